"""What may happen to an exchange, and what is to be done about it: the events and actions of ``crossing``."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.approvals.spec import Ask
from tidegate.identity.proof import ALONE, Shown
from tidegate.inspection.attachments import Extraction
from tidegate.inspection.ner.spec import Ner, NerSpan, Unread
from tidegate.limits.budgets import Order
from tidegate.model import Caller, Clearance, Denial, Finding, Head, Outcome, Owners, Standing, Stored


class Stage(enum.Enum):
    """Where an exchange stands."""

    HEAD = enum.auto()
    CALLER = enum.auto()
    BODY = enum.auto()
    NER = enum.auto()
    BUDGET = enum.auto()
    HOLD = enum.auto()
    INTENT = enum.auto()
    SENT = enum.auto()
    STREAM = enum.auto()
    WHOLE = enum.auto()
    CLAIM = enum.auto()
    SOCKET = enum.auto()
    PASSING = enum.auto()
    OVER = enum.auto()


class OutOfOrder(Exception):
    """An event came at a stage where it has no meaning: a bug of whoever drives the crossing."""


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HeadArrived:
    """The head of a request; ``caller`` where it is known already, as in a replay.

    ``standing`` is whom the client's connection speaks for, or why nothing is done for it. ``unknown_peer`` is why its
    certificate speaks for nobody: that counts where the request has no token of its own.
    ``now`` is when it came (Unix time in seconds), ``None`` where nobody knows: no window of hours is then open.
    """

    head: Head
    caller: Caller | None = None
    standing: Standing | Denial | None = None
    unknown_peer: Denial | None = None
    now: float | None = None


@dataclass(frozen=True, slots=True)
class CallerKnown:
    """What the verifier says of the token that ``Identify`` asked about."""

    caller: Caller | Denial


@dataclass(frozen=True, slots=True)
class BodyArrived:
    """The whole body of a request, as it was on the wire.

    ``masked``: what an earlier judgement found in it and took out, where a recorded request is sent again.
    ``extracted`` and ``owners``: what ``Extract`` and ``LookUp`` asked for, when the same body comes again with it.
    ``looked``: what ``Crossing.look`` made of it already.
    """

    data: bytes = field(repr=False)
    masked: tuple[Finding, ...] = ()
    extracted: tuple[Extraction, ...] | None = field(default=None, repr=False)
    owners: Owners | None = field(default=None, repr=False)
    looked: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MoreSaid:
    """More whole messages of a client in a gRPC call that is under way, as they were on the wire. ``now``: Unix time.

    ``extracted`` and ``looked`` as in ``BodyArrived``.
    """

    data: bytes = field(repr=False)
    now: float
    extracted: tuple[Extraction, ...] | None = field(default=None, repr=False)
    looked: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ModelSaid:
    """What the model of ``AskModel`` found, by text; texts without a finding may be left out.

    ``unread`` says why the texts were not all read; then there are no findings. ``looked``: what ``Crossing.look`` made
    of it already.
    """

    spans: Mapping[str, tuple[NerSpan, ...]] = field(default_factory=dict, repr=False)
    unread: Unread | None = None
    looked: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a request costs was taken out of its budgets, unless there is a ``denial``."""

    denial: Denial | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of a ``Hold``: somebody has approved this very request, once and for all, or not (``denial``).

    ``approval`` is the id of the item, ``""`` where none was made; ``detail`` says what was approved, never by what
    words. ``now`` is a Unix time. ``looked``: what ``Crossing.look`` made of it already.
    """

    denial: Denial | None
    approval: str
    now: float
    detail: str = ""
    looked: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class IntentKept:
    """Whether the record of the intent is where the policy wants it before anything is sent."""

    kept: bool


@dataclass(frozen=True, slots=True)
class AnswerBegan:
    """The head of an answer; header names are lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AnswerChunk:
    """Some bytes of a streamed answer, cut anywhere."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """The end of a streamed answer; ``cut`` if the upstream broke off."""

    cut: bool = False


@dataclass(frozen=True, slots=True)
class HeldTooLong:
    """Texts of a streamed answer have been held back for as long as they may. ``stuck`` are their names."""

    stuck: frozenset[object]


@dataclass(frozen=True, slots=True)
class AnswerWhole:
    """The whole body of an answer, as it was on the wire.

    ``owners``: what ``LookUp`` asked for, when the same body comes again. ``looked``: what ``Crossing.look`` made of it
    already.
    """

    data: bytes = field(repr=False)
    owners: Owners | None = field(default=None, repr=False)
    looked: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Claimed:
    """Whether everything that ``Claim`` asked to be kept so far is on the disk."""

    kept: bool


class Form(enum.Enum):
    """What came over a WebSocket: a message, a ping or pong that is no plain one, or its end."""

    TEXT = enum.auto()
    BINARY = enum.auto()
    CONTROL = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class ClientSaid:
    """A client did something on its WebSocket. ``now`` is a Unix time in seconds."""

    form: Form
    data: bytes = field(repr=False)
    now: float
    extracted: tuple[Extraction, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamSaid:
    """An upstream did something on its WebSocket. ``now`` is a Unix time; ``aged``: no other answer may begin."""

    form: Form
    data: bytes = field(repr=False)
    now: float = 0.0
    aged: bool = False


@dataclass(frozen=True, slots=True)
class SocketRested:
    """A WebSocket without an answer in flight has been open, or silent, for as long as it may."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Something outside ends the exchange: a limit passed, a peer left, a bug was caught."""

    denial: Denial
    outcome: Outcome = Outcome.DENIED


Event = (
    HeadArrived
    | CallerKnown
    | BodyArrived
    | MoreSaid
    | ModelSaid
    | Spent
    | Decided
    | IntentKept
    | AnswerBegan
    | AnswerChunk
    | AnswerEnded
    | HeldTooLong
    | AnswerWhole
    | Claimed
    | ClientSaid
    | UpstreamSaid
    | SocketRested
    | Stopped
)


# ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Identify:
    """Ask the verifier who holds this token, shown like this; come back with ``CallerKnown``."""

    token: str = field(repr=False)
    shown: Shown = field(default=ALONE, compare=False)


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read the request's body, no more than ``limit`` bytes of it; come back with ``BodyArrived``."""

    limit: int


@dataclass(frozen=True, slots=True)
class Forward:
    """An unlisted host under ``unlisted: pass``: let the exchange through untouched and uninspected."""


@dataclass(frozen=True, slots=True)
class Extract:
    """Read these attachments, away from the loop; come back with the same event and what was read of each.

    Nothing has changed yet, so that whoever asked may be told to stop in the meantime.
    """

    attachments: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LookUp:
    """Find out which of these stored things are the caller's own; come back with the same event and ``owners``.

    Nothing has changed yet, as with ``Extract``.
    """

    stored: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Keep it that the caller has made these; come back with ``Claimed``, before more of the answer leaves.

    What was to leave waits here until then. In a stream other pieces of the answer may come first.
    """

    made: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class AskModel:
    """Have a local model read these texts within its budget; come back with ``ModelSaid``, in time or not."""

    ner: Ner
    texts: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Spend:
    """Take all of this out of the budgets, or nothing; come back with ``Spent``."""

    order: Order


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait until people have approved the request, ``seconds`` at most; then say ``Decided``."""

    ask: Ask
    seconds: float


@dataclass(frozen=True, slots=True)
class KeepIntent:
    """Record that this exchange is about to be sent; come back with ``IntentKept``."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send exactly this, with the credential of the clearance's connection; ``measured``: say how long the body is."""

    clearance: Clearance
    fields: tuple[tuple[str, str], ...]
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Stream:
    """Relay the answer as it comes: each chunk is an ``AnswerChunk``. ``drop`` names header fields to leave out."""

    drop: frozenset[str]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Collect the answer: its body is an ``AnswerWhole``. ``drop`` names header fields to leave out."""

    drop: frozenset[str]


@dataclass(frozen=True, slots=True)
class Emit:
    """Give the client these bytes; ``last``: nothing follows, whatever the upstream still sends."""

    data: bytes = field(repr=False)
    last: bool = False


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """Let the connection become a WebSocket: what comes is a ``ClientSaid`` or an ``UpstreamSaid``."""

    drop: frozenset[str]


@dataclass(frozen=True, slots=True)
class Relay:
    """Send these messages down to the client and up to the upstream, then close both ends if ``close`` is a code.

    Codes are those of RFC 6455, 7.4; ``reason`` is told to the client alone. ``binary``: they are no text messages.
    """

    down: tuple[bytes, ...] = field(default=(), repr=False)
    up: tuple[bytes, ...] = field(default=(), repr=False)
    close: int | None = None
    reason: str = ""
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the client with this refusal instead; nothing more goes up or down."""

    denial: Denial


@dataclass(frozen=True, slots=True)
class Nothing:
    """The exchange is over and all is said."""


Step = (
    Identify
    | ReadBody
    | Forward
    | Extract
    | LookUp
    | Claim
    | AskModel
    | Spend
    | Hold
    | KeepIntent
    | Send
    | Stream
    | Buffer
    | Emit
    | OpenSocket
    | Relay
    | Refuse
    | Nothing
)
