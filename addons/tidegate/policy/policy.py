"""The policy in force: immutable values that the stages of an exchange read. ``loading`` makes it, once."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from tidegate.identity.rulesets import RuleSet, joined
from tidegate.model import ACTING, Action, AllowRule, Caller, Connection, DenyRule, Direction, Fault, Mode, Origin
from tidegate.policy.keeping import Keeping

if TYPE_CHECKING:
    from tidegate.approvals.spec import Approvals
    from tidegate.dialects.protobuf import Descriptors
    from tidegate.dialects.spec import Dialect
    from tidegate.inspection.engine import Engine
    from tidegate.inspection.ner.spec import Ner
    from tidegate.inspection.rules import Rule
    from tidegate.inspection.tokens import TokenLimits
    from tidegate.limits.budgets import Budget
    from tidegate.limits.prices import Prices
    from tidegate.policy.role_actions import Inspections


JOINED = 4096
"""Sets of rules remembered: endpoints times the sets of roles that callers have; one takes a few hundred bytes."""


class Unlisted(enum.StrEnum):
    """What happens to a host that no connection names (explicit and transparent modes)."""

    DENY = "deny"
    PASS = "pass"


class RecordingMode(enum.StrEnum):
    """``strict`` records an exchange before anything is sent; ``best_effort`` may lose a record, never an answer."""

    STRICT = "strict"
    BEST_EFFORT = "best_effort"


class Keep(enum.StrEnum):
    """Which bodies a recording holds."""

    REDACTED = "redacted"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Recording:
    """Where and how exchanges are recorded. ``path`` is the absolute path of the SQLite file.

    ``modes`` are those of connections that say otherwise than ``mode``, by name.
    """

    mode: RecordingMode
    keep: Keep
    path: str
    modes: Mapping[str, RecordingMode] = MappingProxyType({})
    keeping: Keeping = field(default_factory=Keeping)

    def mode_of(self, connection: str | None) -> RecordingMode:
        """Return the mode for exchanges with a connection."""
        return self.mode if connection is None else self.modes.get(connection, self.mode)


@dataclass(frozen=True, slots=True)
class State:
    """Where the control store is, and for how many seconds it knows who made what. ``path`` is absolute."""

    path: str
    retain: float


class OnOverage(enum.StrEnum):
    """What is done where a provider left the groups out of a token, because there are too many."""

    DENY = "deny"
    USERINFO = "userinfo"
    STATIC = "static"


class Split(enum.StrEnum):
    """Where a text with several groups is cut."""

    SPACES = "spaces"
    COMMAS = "commas"


class Bound(enum.StrEnum):
    """Whether tokens must be bound to their sender. Those that are bound are always held to it."""

    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Introspection:
    """How a provider is asked about tokens that say nothing by themselves (RFC 7662).

    ``secret`` is a reference. ``endpoint`` is ``None`` where the discovery document names it; ``prefix`` is what these
    tokens begin with; ``cache`` is in seconds.
    """

    client: str
    secret: str = field(repr=False)
    endpoint: str | None = None
    prefix: str = ""
    cache: float = 60.0


@dataclass(frozen=True, slots=True)
class OidcIdentity:
    """An OpenID Connect issuer whose access tokens are accepted. Times are in seconds.

    ``groups`` is a JSONPath into the claims, or ``None`` when callers of this issuer have no groups. ``types`` is the
    accepted set of ``typ`` headers, in lower case; the empty text in it accepts a token without one. ``claims`` are the
    accepted values of claims that must be there; ``carry`` names those that go into ``Caller.claims``. ``strip`` is
    what group names lose at their beginning, ``group_map`` renames those that are listed and drops the rest.
    ``addresses`` are the gate's own, as clients write them, for the proofs of bound tokens. ``ca`` is the path of the
    certificates that the provider's is checked against, ``None`` for those of the system.
    """

    name: str
    issuer: str
    audiences: frozenset[str]
    groups: str | None
    algorithms: frozenset[str]
    allowed_clients: frozenset[str] | None
    discovery_url: str
    max_lifetime: float
    leeway: float
    types: frozenset[str]
    insecure_http: bool
    claims: tuple[tuple[str, frozenset[str]], ...] = ()
    carry: tuple[str, ...] = ()
    max_age: float | None = None
    split: Split | None = None
    strip: str = ""
    group_map: Mapping[str, str] | None = None
    on_overage: OnOverage = OnOverage.DENY
    overage_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    introspection: Introspection | None = None
    bound: Bound = Bound.OPTIONAL
    addresses: tuple[str, ...] = ()
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class StaticIdentity:
    """Tokens made by ``tidegate login --static``, kept as hashes in the file ``tokens`` (an absolute path)."""

    name: str
    tokens: str


@dataclass(frozen=True, slots=True)
class SamlIdentity:
    """A SAML 2.0 provider, by its metadata file (an absolute path). Its assertions are exchanged for our own tokens.

    ``issuer`` is its entity id, where the file has several; ``entity_id`` ours, ``None``: the address of our metadata.
    ``groups`` and ``subject`` are names of attributes; without ``subject`` it is the NameID. ``leeway`` is in seconds.
    """

    name: str
    metadata: str
    issuer: str | None
    entity_id: str | None
    groups: str | None
    subject: str | None
    leeway: float


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Callers known by nothing but the address of their connection. ``networks`` are in the form of ``ipaddress``.

    ``subject`` is ``None`` where each address is a caller of its own. ``groups`` are not qualified.
    """

    name: str
    networks: tuple[str, ...]
    subject: str | None
    groups: tuple[str, ...]


class CertificateName(enum.StrEnum):
    """Which name in a client's certificate is the caller's subject."""

    CN = "cn"
    DNS = "dns"
    URI = "uri"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class CertificateIdentity:
    """Callers known by the certificate of their TLS connection. ``ca`` is the absolute path of the file of ``roots``.

    ``roots`` (DER) are the authorities whose certificates count, and no others. ``groups`` are fixed and not
    qualified; with ``units`` the organisational units of the certificate are groups too.
    """

    name: str
    ca: str
    subject: CertificateName
    groups: tuple[str, ...]
    units: bool
    roots: tuple[bytes, ...] = field(default=(), repr=False)


Identity = OidcIdentity | StaticIdentity | SamlIdentity | SourceIdentity | CertificateIdentity


class ProxyAuthentication(enum.StrEnum):
    """Whether a client has to say who calls before the proxy does anything for it (explicit mode)."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    OFF = "off"


LIFETIME, ROTATE = 3600.0, 7 * 86400.0


class AdminRight(enum.StrEnum):
    """What a role may do on the admin listener."""

    OVERVIEW = "overview"
    EXCHANGES = "exchanges"
    METRICS = "metrics"
    RELOAD = "reload"
    REVOKE = "revoke"


@dataclass(frozen=True, slots=True)
class SignInClient:
    """How people sign in to the pages at the provider of an ``oidc`` identity (authorization code with PKCE).

    ``client_secret`` is a reference, ``None`` for a public client. ``parameters`` go into the address at the provider.
    """

    identity: str
    client_id: str
    client_secret: str | None = field(repr=False)
    scopes: tuple[str, ...]
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin listener. ``url`` is where browsers and clients reach it, and the issuer of our tokens; empty: none.

    ``hosts`` are further names it answers to. ``lifetime`` of a token and ``rotate``, the time a key signs, are in
    seconds. ``rights`` are by role, ``sign_in`` by identity.
    """

    url: str = ""
    hosts: frozenset[str] = frozenset()
    lifetime: float = LIFETIME
    rotate: float = ROTATE
    rights: Mapping[str, frozenset[AdminRight]] = field(default_factory=dict)
    sign_in: Mapping[str, SignInClient] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """The rules of one role on one endpoint of one connection. ``refused``: a deny rule without further conditions.

    ``observing`` are those that only observe.
    """

    allows: tuple[AllowRule, ...]
    denies: tuple[DenyRule, ...]
    refused: bool
    observing: tuple[AllowRule | DenyRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimBinding:
    """A binding that asks for claims: each of them with one of its values, and one of the groups or subjects if any.

    ``claims`` are claims of callers of one ``identity``; a subject ``*`` is every caller of it.
    """

    identity: str
    claims: tuple[tuple[str, frozenset[str]], ...]
    groups: frozenset[str]
    subjects: frozenset[str]
    roles: tuple[str, ...]

    def binds(self, caller: Caller) -> bool:
        """Whether a caller has the roles."""
        if caller.identity != self.identity:
            return False
        if not all(any((name, value) in caller.claims for value in values) for name, values in self.claims):
            return False
        if not self.groups and not self.subjects:
            return True
        known = caller.subject in self.subjects or "*" in self.subjects
        return known or not self.groups.isdisjoint(caller.groups)


@dataclass(frozen=True, slots=True)
class Permissions:
    """The roles and bindings, indexed for a decision in a few dictionary look-ups.

    ``groups`` and ``subjects`` map qualified names to role names; a subject ``corp:*`` is every caller of ``corp``.
    ``places`` maps connection, endpoint to the roles that say anything about it. ``claims`` files each binding that
    asks for claims under identity, name and value of one of them. ``reads`` names what rules ask of a body that is
    read for them alone: ``called``, ``choices``, ``modalities``. ``situated``: some rule asks when, from where or with
    which method and path a request came, or how its caller signed in.
    """

    groups: Mapping[str, tuple[str, ...]]
    subjects: Mapping[str, tuple[str, ...]]
    places: Mapping[tuple[str, str], Mapping[str, Place]]
    claims: Mapping[tuple[str, str, str], tuple[ClaimBinding, ...]] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    situated: bool = False
    _joined: dict[tuple[str, str, tuple[str, ...]], RuleSet] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def at(self, connection: str, endpoint: str, roles: tuple[str, ...]) -> RuleSet:
        """Return what roles say about an endpoint; the same one as long as it is remembered."""
        key = connection, endpoint, roles
        known = self._joined.get(key)
        if known is None:
            if len(self._joined) >= JOINED:
                self._joined.clear()
            known = self._joined[key] = joined(roles, self.places.get((connection, endpoint), {}))
        return known


@dataclass(frozen=True, slots=True)
class Routes:
    """The connections, indexed for routing: longest prefix first, and by exact upstream origin."""

    prefixes: tuple[tuple[str, Connection], ...]
    origins: Mapping[Origin, tuple[Connection, ...]]
    hosts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the gate decides by. ``identities`` is ``None`` when the policy says ``identity: none``.

    ``sha256`` covers the texts of the policy, its packs and its dialects. ``warnings`` are sentences for the start
    panel. ``decisions`` holds, per direction and rule id, what is done with a finding, observing already applied.
    ``descriptors`` are those of the gRPC connections, by name. ``ner`` is the model that reads prompts, ``None`` where
    the policy has none or wants nothing of it. ``tokens`` says how tokens are kept and restored, ``None`` where nothing
    is tokenised. ``inspections`` are actions of roles of their own, ``None`` where no role has any.
    is tokenised. ``budgets`` are those that rules name; with them, or with ``prices``, the tokens of answers are read.
    is tokenised. ``approvals`` says who approves what, ``None`` where nothing needs it.
    """

    file: str
    sha256: str
    mode: Mode
    unlisted: Unlisted
    identities: tuple[Identity, ...] | None
    connections: Mapping[str, Connection]
    routes: Routes
    permissions: Permissions
    dialects: Mapping[str, Dialect]
    engine: Engine
    actions: Mapping[tuple[str, Direction], Action]
    decisions: Mapping[Direction, Mapping[str, Action]] = field(repr=False)
    recording: Recording
    state: State
    warnings: tuple[str, ...]
    ner: Ner | None = None
    descriptors: Mapping[str, Descriptors] = field(default_factory=dict, repr=False)
    tokens: TokenLimits | None = None
    admin: Admin = field(default_factory=Admin)
    proxy: ProxyAuthentication = ProxyAuthentication.OPTIONAL
    inspections: Inspections | None = field(default=None, repr=False)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    prices: Prices | None = None
    approvals: Approvals | None = None
    _deciding: dict[Direction, Callable[[Rule], Action]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def decide(self, direction: Direction) -> Callable[[Rule], Action]:
        """Return the function that says what is done with a finding of a rule in one direction; always the same one."""
        known = self._deciding.get(direction)
        if known is None:
            table = self.decisions[direction]
            known = self._deciding[direction] = lambda rule: table[rule.id]
        return known

    @property
    def redacts_answers(self) -> bool:
        """Whether any class is masked or blocked in answers, so that a second copy of their text would undo it."""
        return any(act in ACTING for (_, way), act in self.actions.items() if way is Direction.RESPONSE)


class PolicyError(Exception):
    """The policy cannot be used. ``faults`` holds everything that is wrong with it, its packs and its dialects."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
