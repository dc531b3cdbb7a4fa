"""The values that travel between the stages of an exchange: frozen dataclasses and enums, no behaviour.

The words are those of the design: a *caller* asks a *connection* for an *endpoint*; every *field* of a body has a
*role*; a *rule* makes a *finding*; the policy turns findings into a *verdict*; a refusal is a *denial*.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol


class Action(enum.StrEnum):
    """What the policy does with a finding, mildest first."""

    ALLOW = "allow"
    FLAG = "flag"
    TOKENISE = "tokenise"
    REDACT = "redact"
    APPROVE = "approve"
    BLOCK = "block"


MASKING = (Action.TOKENISE, Action.REDACT)
ACTING = (*MASKING, Action.APPROVE, Action.BLOCK)
"""The actions that take a finding out of the text; ``approve`` does until somebody has approved."""


class Direction(enum.StrEnum):
    """Which way a text travels."""

    PROMPT = "prompt"
    RESPONSE = "response"


class Mode(enum.StrEnum):
    """Whether a policy or a rule acts on what it finds, or only records it."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class OnUnknown(enum.StrEnum):
    """What a connection does with what cannot be inspected: pictures, stored files, data that no reader opens."""

    BLOCK = "block"
    FLAG = "flag"
    PASS = "pass"


class Scanned(enum.StrEnum):
    """How much of what crossed the rules have seen."""

    WHOLE = "scanned"
    PARTLY = "partly scanned"
    NOTHING = "not scanned"


class Role(enum.StrEnum):
    """Who speaks in a field of a body. A string that no path names has the role ``OTHER``."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL_RESULT = "tool_result"
    TOOL_DEFINITION = "tool_definition"
    METADATA = "metadata"
    OTHER = "other"


class Modality(enum.StrEnum):
    """What a request holds or asks for beside text; ``OTHER`` is what the dialect has no name for."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    FILE = "file"
    OTHER = "other"


class RuleMode(enum.StrEnum):
    """Whether a rule of a role counts, is only recorded as what it would have done, or is as if it were absent."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    OFF = "off"


class Reason(enum.StrEnum):
    """Why an exchange was refused or ended early: the one closed list. Each is documented in docs/denials.md."""

    # where to, and by which protocol
    UNLISTED_HOST = "unlisted_host"
    NO_CONNECTION = "no_connection"
    NO_ENDPOINT = "no_endpoint"
    PROTOCOL = "protocol"
    # who
    CALLER_MISSING = "caller_missing"
    CALLER_AMBIGUOUS = "caller_ambiguous"
    TOKEN_TOO_LARGE = "token_too_large"
    TOKEN_MALFORMED = "token_malformed"
    TOKEN_ALG = "token_alg"
    TOKEN_HEADER = "token_header"
    TOKEN_TYPE = "token_type"
    TOKEN_ISSUER = "token_issuer"
    KEY_UNKNOWN = "key_unknown"
    TOKEN_SIGNATURE = "token_signature"
    TOKEN_AUDIENCE = "token_audience"
    TOKEN_CLIENT = "token_client"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_NOT_YET = "token_not_yet"
    TOKEN_LIFETIME = "token_lifetime"
    TOKEN_CLAIM = "token_claim"
    TOKEN_TENANT = "token_tenant"
    TOKEN_AGE = "token_age"
    TOKEN_BOUND = "token_bound"
    TOKEN_PROOF = "token_proof"
    TOKEN_REVOKED = "token_revoked"
    TOKEN_INACTIVE = "token_inactive"
    TOKEN_UNKNOWN = "token_unknown"
    GROUPS_OVERAGE = "groups_overage"
    CERTIFICATE_REFUSED = "certificate_refused"
    IDP_UNAVAILABLE = "idp_unavailable"
    # may they
    NOT_GRANTED = "not_granted"
    MODEL_DENIED = "model_denied"
    TOOL_DENIED = "tool_denied"
    OUTPUT_LIMIT = "output_limit"
    TIME_DENIED = "time_denied"
    SOURCE_DENIED = "source_denied"
    STRENGTH_DENIED = "strength_denied"
    STREAM_DENIED = "stream_denied"
    MODALITY_DENIED = "modality_denied"
    CHOICES_LIMIT = "choices_limit"
    NOT_OWNER = "not_owner"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_USED = "approval_used"
    APPROVAL_REASON = "approval_reason"
    APPROVAL_LIMIT = "approval_limit"
    APPROVAL_IMPOSSIBLE = "approval_impossible"
    # how much of it
    RATE_LIMITED = "rate_limited"
    BUDGET_EXHAUSTED = "budget_exhausted"
    TOO_MANY_CONCURRENT = "too_many_concurrent"
    MODEL_UNPRICED = "model_unpriced"
    # what they sent
    BODY_TOO_LARGE = "body_too_large"
    BODY_ENCODING = "body_encoding"
    BODY_MALFORMED = "body_malformed"
    BODY_OPAQUE = "body_opaque"
    SECOND_COPY = "second_copy"
    FINDING = "finding"
    NER_UNREAD = "ner_unread"
    # what came back
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    ANSWER_FINDING = "answer_finding"
    ANSWER_MALFORMED = "answer_malformed"
    ANSWER_OPAQUE = "answer_opaque"
    ANSWER_TOO_LARGE = "answer_too_large"
    ANSWER_FIRST_BYTE = "answer_first_byte"
    ANSWER_IDLE = "answer_idle"
    ANSWER_DURATION = "answer_duration"
    CLIENT_GONE = "client_gone"
    # ourselves
    STOPPING = "stopping"
    CREDENTIAL_UNAVAILABLE = "credential_unavailable"
    RECORDING_FAILED = "recording_failed"
    STATE_UNAVAILABLE = "state_unavailable"
    REPLAY_UNMATCHED = "replay_unmatched"
    BUG = "bug"


class Outcome(enum.StrEnum):
    """How an exchange ended."""

    ANSWERED = "answered"
    DENIED = "denied"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file the user wrote: where, what was found, what is accepted."""

    file: str
    key: str
    found: str
    accepted: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: found {self.found}; accepted: {self.accepted}"


@dataclass(frozen=True, slots=True)
class Denial:
    """A refusal. ``message`` is one public sentence and never quotes what was inspected.

    ``observed`` says what rules that only observe would have changed.
    ``retry_after`` is in how many seconds the same request may pass, where somebody knows.
    """

    reason: Reason
    status: int
    message: str
    observed: tuple[str, ...] = ()
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What the hints in one field come to, from 0 to 1, the threshold it reached, and what each rule added to it."""

    total: float
    threshold: float
    hints: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        hints = " + ".join(f"{rule} {added:g}" for rule, added in self.hints)
        return f"score {self.total:g} of {self.threshold:g}: {hints}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule matched. ``start`` and ``end`` count characters of the field's text; the text itself never travels.

    With ``score`` it is what several hints come to, and ``rule`` is the hint that added most.
    """

    rule: str
    cls: str
    where: str
    start: int
    end: int
    action: Action
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What one stage of a crossing decided. ``detail`` names things of the policy, never anything of a body."""

    stage: str
    result: str
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes: scheme, lower-case host without brackets, port."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the client's connection: its address as text, and the certificate it showed (DER).

    The client has proven that it holds the certificate's key; nobody has yet asked who signed it.
    """

    address: str | None = None
    certificate: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """A request head. ``path`` holds the query; header names are lower case, repeats are kept in order.

    ``origin`` is where the client's connection leads (explicit, transparent) and ``None`` on a reverse listener.
    ``http1``: it came as HTTP/1.1, the only version whose connections can become a WebSocket here.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    origin: Origin | None
    http1: bool = True
    peer: Peer = Peer()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``groups`` are qualified by the identity they came from: ``corp:ml-eng``.

    ``expires`` is a Unix time in seconds, or ``None`` for a caller without an end (static token, identity none).
    ``strength`` holds what the provider says of how the caller proved who he is (``acr``, ``amr``, RFC 8176), and
    ``authenticated`` when he did (``auth_time``, else ``iat``; Unix time in seconds). ``claims`` are the pairs of name
    and value that conditions and bindings may name; a claim with a list of values stands there once for each.
    """

    identity: str
    subject: str
    groups: frozenset[str] = frozenset()
    expires: float | None = None
    strength: frozenset[str] = frozenset()
    authenticated: float | None = None
    claims: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Standing:
    """Whom the client's connection itself speaks for: its tunnel's token, its certificate or its address.

    ``by_token``: a request with a token of its own must then be of the same caller.
    """

    caller: Caller
    by_token: bool = False


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Limits of an answer: bytes, and seconds to the first byte, between two bytes, and in all.

    ``held`` is how long a text of a stream may be held back before it is masked; ``None``: as long as it takes.

    A WebSocket carries many answers, each with these limits. Between two of them it may be silent for ``socket_idle``
    seconds, and no new one begins after ``socket_duration``.
    """

    bytes: int = 16 * 1024 * 1024
    first_byte: float = 300.0
    idle: float = 120.0
    duration: float = 900.0
    held: float | None = None
    socket_idle: float = 600.0  # mitmproxy by itself ends a connection that is silent for 10 minutes
    socket_duration: float = 3600.0  # OpenAI closes a WebSocket of the Responses API after 60 minutes


@dataclass(frozen=True, slots=True)
class CredentialRef:
    """How the upstream credential is attached: header name, and a template whose ``${...}`` is a reference."""

    header: str
    template: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """A model provider as the policy names it. ``prefix`` is the path prefix served in reverse mode (``/openai``).

    ``encoded_runs`` is how many characters of a run in base64 or hexadecimal a stream waits for; 0: it does not.
    """

    name: str
    dialect: str
    upstream: Origin
    upstream_path: str
    prefix: str | None
    credential: CredentialRef | None
    request_bytes: int
    answer: AnswerLimits
    on_unknown: OnUnknown = OnUnknown.BLOCK
    encoded_runs: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """Something that a provider keeps, by the name it gave it: a file, a response, a thread ...

    ``kind`` is the dialect's word for it. What is named by a caller may be anybody's, or nobody's.
    """

    kind: str
    id: str = field(repr=False)  # an upstream may write anything here


@dataclass(frozen=True, slots=True)
class Owners:
    """What is known of stored things somebody asked about: those that are this caller's own.

    Each comes with the model it was made with, where a request named one. What is not here is not his.
    """

    own: Mapping[Stored, str | None]


@dataclass(frozen=True, slots=True)
class Route:
    """The first product: which connection and endpoint a request head names. ``path`` is what goes upstream.

    ``model`` is named by the path, where the API has it there; so are ``stored`` things.
    """

    connection: Connection
    endpoint: str
    path: str
    model: str | None = None
    stored: tuple[Stored, ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """How a request came: when (Unix time in seconds), from which address, with which method and path.

    ``path`` is below the connection's own, without query. What is ``None`` is not known: it meets no condition that
    allows and every one that denies.
    """

    now: float | None = None
    source: str | None = None
    method: str | None = None
    path: str | None = None


NOWHERE = Situation()


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of some days, by the clock of a zone. Days count from 0, Monday; ``start`` and ``end`` are minutes.

    Where ``end`` is not after ``start`` the window goes on into the next day.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold of the head of a request; what is empty or ``None`` is no condition.

    One of the ``windows``, one of the ``sources`` and one word of ``strength`` is enough; ``max_age`` is in seconds;
    ``addresses`` are pairs of method (empty: any) and pattern of a path.
    """

    windows: tuple[Window, ...] = ()
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    strength: tuple[str, ...] = ()
    max_age: float | None = None
    addresses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One allow rule of a role, on a connection and an endpoint it covers. ``None`` means: no condition.

    ``models``, ``tools`` and ``called`` are patterns in which ``*`` stands for any text; ``body`` counts bytes. ``id``
    is the rule's key path in the policy. ``head``, ``models``, ``stream`` and ``modalities`` say which requests the
    rule covers; the rest are limits of those.
    ``budgets`` are those that pay for what it allows.
    ``approve`` names the approval without which it allows nothing.
    """

    role: str
    models: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    max_output_tokens: int | None
    body: int | None
    id: str = ""
    head: Conditions | None = None
    stream: bool | None = None
    modalities: frozenset[Modality] | None = None
    called: tuple[str, ...] | None = None
    choices: int | None = None
    budgets: tuple[str, ...] = ()
    approve: str | None = None


@dataclass(frozen=True, slots=True)
class DenyRule:
    """One deny rule of a role, on a connection and an endpoint it covers. Every condition given must hold.

    ``modalities``: one of them is enough. The rule does not hold where all of ``unless`` does. ``above_tokens``,
    ``above_choices`` and ``above_body`` must be passed.
    """

    role: str
    models: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    id: str = ""
    head: Conditions | None = None
    unless: Conditions | None = None
    stream: bool | None = None
    modalities: frozenset[Modality] | None = None
    called: tuple[str, ...] | None = None
    above_tokens: int | None = None
    above_choices: int | None = None
    above_body: int | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing in a body is asked for: the head alone decides."""
        asked = (self.models, self.tools, self.called, self.stream, self.modalities)
        above = (self.above_tokens, self.above_choices, self.above_body)
        return all(each is None for each in (*asked, *above))


class Index(Protocol):
    """The rules that hold for a caller at a place, found by the model that a request names."""

    def for_model(self, model: str | None) -> tuple[frozenset[int], frozenset[int]]:
        """Return the ``id()`` of each allow rule that covers a model, and of each deny rule that may deny it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do on a route.

    After ``admit``: every rule that may still apply, and the widest limits among them. After ``permit``: the allow
    rules that cover the request, and the tightest limits among those.
    """

    route: Route
    caller: Caller
    roles: tuple[str, ...]
    allows: tuple[AllowRule, ...]
    denies: tuple[DenyRule, ...]
    max_output_tokens: int | None
    request_bytes: int
    situation: Situation = NOWHERE
    observing: tuple[AllowRule | DenyRule, ...] = ()
    observed: tuple[str, ...] = ()
    index: Index | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request body asks for, as the dialect reads it. ``tools`` are names; ``max_output`` counts tokens.

    ``called`` are the names of tools that the request calls, has called or demands. It, ``choices`` (how many answers)
    and ``modalities`` are read only where a rule asks for them; ``None`` is not known.
    """

    model: str | None
    stream: bool
    tools: tuple[str, ...]
    max_output: int | None
    called: tuple[str, ...] | None = None
    choices: int | None = None
    modalities: frozenset[Modality] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The inspected request: the exact body that may go upstream, and what was found in it."""

    grant: Grant
    asked: Asked
    body: bytes = field(repr=False)
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Clearance:
    """Proof that every check passed; the only thing the credential stage accepts."""

    verdict: Verdict
    exchange: str
