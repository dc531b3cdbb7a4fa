"""The policy in force: immutable values that the stages of an exchange read. ``loading`` makes it, once."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.model import ACTING, Action, AllowRule, Connection, DenyRule, Direction, Fault, Mode, Origin

if TYPE_CHECKING:
    from tidegate.dialects.protobuf import Descriptors
    from tidegate.dialects.spec import Dialect
    from tidegate.inspection.engine import Engine
    from tidegate.inspection.ner.spec import Ner
    from tidegate.inspection.rules import Rule
    from tidegate.inspection.tokens import TokenLimits


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
    """Where and how exchanges are recorded. ``path`` is the absolute path of the SQLite file."""

    mode: RecordingMode
    keep: Keep
    path: str


@dataclass(frozen=True, slots=True)
class State:
    """Where the control store is, and for how many seconds it knows who made what. ``path`` is absolute."""

    path: str
    retain: float


@dataclass(frozen=True, slots=True)
class OidcIdentity:
    """An OpenID Connect issuer whose access tokens are accepted. Times are in seconds.

    ``groups`` is a JSONPath into the claims, or ``None`` when callers of this issuer have no groups. ``types`` is the
    accepted set of ``typ`` headers, in lower case; the empty text in it accepts a token without one.
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


Identity = OidcIdentity | StaticIdentity | SamlIdentity


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
    """The rules of one role on one endpoint of one connection. ``refused``: a deny rule without further conditions."""

    allows: tuple[AllowRule, ...]
    denies: tuple[DenyRule, ...]
    refused: bool


@dataclass(frozen=True, slots=True)
class Permissions:
    """The roles and bindings, indexed for a decision in a few dictionary look-ups.

    ``groups`` and ``subjects`` map qualified names to role names; a subject ``corp:*`` is every caller of ``corp``.
    ``places`` maps connection, endpoint to the roles that say anything about it.
    """

    groups: Mapping[str, tuple[str, ...]]
    subjects: Mapping[str, tuple[str, ...]]
    places: Mapping[tuple[str, str], Mapping[str, Place]]


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
    ``descriptors`` are those of the gRPC connections, by name. ``encoded_runs`` is how many characters of a run in
    base64 or hexadecimal a stream waits for; 0: it does not. ``ner`` is the model that reads prompts, ``None`` where
    the policy has none or wants nothing of it. ``tokens`` says how tokens are kept and restored, ``None`` where nothing
    is tokenised.
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
    encoded_runs: int = 0
    tokens: TokenLimits | None = None
    admin: Admin = field(default_factory=Admin)
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
