"""The order of an exchange, as a pure state machine: events in, actions out. No I/O, no clock, no await.

    HEAD ──▶ CALLER ──▶ BODY ──▶ INTENT ──▶ SENT ──▶ STREAM ──▶ OVER
      │        │          │         │        └─────▶ WHOLE ──▶ OVER
      ├▶ PASSING (unlisted: pass)    │
      └────────┴──────────┴─────────┴── every refusal ───────▶ OVER

Each stage takes the product of the one before it (``Route -> Caller -> Grant -> Verdict -> Clearance``), so an
uninspected request has nothing to carry a credential. An event that does not belong to the stage is a bug and raises
``OutOfOrder``; whoever drives the machine answers a bug with ``Stopped``. Refusals are values: the action ``Refuse``.

This is the only place where the order is written and the only place where the stage changes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import unquote_plus

from tidegate import headers
from tidegate.dialects import body as bodies
from tidegate.dialects.errors import GENERIC
from tidegate.dialects.spec import Dialect, Endpoint, ErrorShape, asked, refused
from tidegate.identity import claims, permission
from tidegate.inspection.bodies import inspect_answer, inspect_request
from tidegate.model import (
    Action,
    Asked,
    Caller,
    Clearance,
    Decision,
    Denial,
    Direction,
    Finding,
    Grant,
    Head,
    Outcome,
    Reason,
    Route,
    Verdict,
)
from tidegate.policy.policy import Policy
from tidegate.policy.routing import Pass, route
from tidegate.streams.answers import SseAnswer

NAMES = "header names"
"""Where a finding in the name of a header field is reported: the name itself would be the value."""

ANONYMOUS = Caller(identity="none", subject="anyone")
"""The caller of every request under ``identity: none``. Bindings name it as the subject ``none:anyone``."""


class Stage(enum.Enum):
    """Where an exchange stands."""

    HEAD = enum.auto()
    CALLER = enum.auto()
    BODY = enum.auto()
    INTENT = enum.auto()
    SENT = enum.auto()
    STREAM = enum.auto()
    WHOLE = enum.auto()
    PASSING = enum.auto()
    OVER = enum.auto()


class OutOfOrder(Exception):
    """An event came at a stage where it has no meaning: a bug of whoever drives the crossing."""


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HeadArrived:
    """The head of a request; ``caller`` where it is known already, as in a replay."""

    head: Head
    caller: Caller | None = None


@dataclass(frozen=True, slots=True)
class CallerKnown:
    """What the verifier says of the token that ``Identify`` asked about."""

    caller: Caller | Denial


@dataclass(frozen=True, slots=True)
class BodyArrived:
    """The whole body of a request, as it was on the wire.

    ``masked``: what an earlier judgement found in it and took out, where a recorded request is sent again.
    """

    data: bytes = field(repr=False)
    masked: tuple[Finding, ...] = ()


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
class AnswerWhole:
    """The whole body of an answer, as it was on the wire."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stopped:
    """Something outside ends the exchange: a limit passed, a peer left, a bug was caught."""

    denial: Denial
    outcome: Outcome = Outcome.DENIED


Event = (
    HeadArrived
    | CallerKnown
    | BodyArrived
    | IntentKept
    | AnswerBegan
    | AnswerChunk
    | AnswerEnded
    | AnswerWhole
    | Stopped
)


# ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Identify:
    """Ask the verifier who holds this token; come back with ``CallerKnown``."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read the request's body, no more than ``limit`` bytes of it; come back with ``BodyArrived``."""

    limit: int


@dataclass(frozen=True, slots=True)
class Forward:
    """An unlisted host under ``unlisted: pass``: let the exchange through untouched and uninspected."""


@dataclass(frozen=True, slots=True)
class KeepIntent:
    """Record that this exchange is about to be sent; come back with ``IntentKept``."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send exactly this, with the credential of the clearance's connection."""

    clearance: Clearance
    fields: tuple[tuple[str, str], ...]


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
class Refuse:
    """Answer the client with this refusal instead; nothing more goes up or down."""

    denial: Denial


@dataclass(frozen=True, slots=True)
class Nothing:
    """The exchange is over and all is said."""


Step = Identify | ReadBody | Forward | KeepIntent | Send | Stream | Buffer | Emit | Refuse | Nothing


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Crossing:
    """One exchange under one policy. After each event the attributes hold what is known so far, for the evidence."""

    def __init__(self, policy: Policy, exchange: str) -> None:
        self.policy = policy
        self.exchange = exchange
        self.stage = Stage.HEAD
        self.head: Head | None = None
        self.route: Route | None = None
        self.caller: Caller | None = None
        self.grant: Grant | None = None
        self.asked: Asked | None = None
        self.verdict: Verdict | None = None
        self.masked_body = b""
        self.masked_before: tuple[Finding, ...] = ()
        self.prompt_findings: tuple[Finding, ...] = ()
        self.denial: Denial | None = None
        self.outcome: Outcome | None = None
        self.status: int | None = None
        self.decisions: list[Decision] = []
        self.answer_findings: tuple[Finding, ...] = ()
        self.streamed = False
        self.passing = False
        self._stream: SseAnswer | None = None
        self._encodings: list[str] = []

    @property
    def shape(self) -> ErrorShape:
        """The form of a refusal that this caller's SDK understands."""
        return GENERIC if self.route is None else self._dialect().error

    def receive(self, event: Event) -> Step:
        """Take one event, move to the next stage, and say what to do."""
        if isinstance(event, Stopped):
            return self._stopped(event)
        step = _ORDER.get((self.stage, type(event)))
        if step is None:
            raise OutOfOrder(f"{type(event).__name__} at {self.stage.name}")
        return step(self, event)

    # request ─────────────────────────────────────────────────────────────────

    def _head(self, event: HeadArrived) -> Step:
        self.head = event.head
        denial = _upgrade(event.head)
        if denial is not None:
            return self._refuse("head", denial)
        found = route(self.policy, event.head)
        if isinstance(found, Denial):
            return self._refuse("route", found)
        if isinstance(found, Pass):
            self._decide("route", "pass")
            self.stage = Stage.PASSING
            self.passing = True
            return Forward()
        self.route = found
        self._decide("route", "allow", f"{found.connection.name}/{found.endpoint}")
        if event.caller is not None or self.policy.identities is None:
            return self._admit(event.caller or ANONYMOUS)
        token = claims.credentials(event.head.headers)
        if isinstance(token, Denial):
            return self._refuse("caller", token)
        self.stage = Stage.CALLER
        return Identify(token)

    def _caller(self, event: CallerKnown) -> Step:
        if isinstance(event.caller, Denial):
            return self._refuse("caller", event.caller)
        return self._admit(event.caller)

    def _admit(self, caller: Caller) -> Step:
        assert self.route is not None
        self.caller = caller
        self._decide("caller", "allow", caller.identity)
        grant = permission.admit(self.policy, self.route, caller)
        if isinstance(grant, Denial):
            return self._refuse("grant", grant)
        self.grant = grant
        self._decide("grant", "allow", ",".join(grant.roles))
        self.stage = Stage.BODY
        return ReadBody(grant.request_bytes)

    def _body(self, event: BodyArrived) -> Step:
        assert self.grant is not None
        assert self.head is not None
        self.masked_before = event.masked
        judged = self._judge(self.grant, self.head, event.data)
        if isinstance(judged, tuple):
            return self._refuse(*judged)
        self.verdict = judged
        self._decide("inspect", _worst(judged.findings), _scores(judged.findings))
        self.stage = Stage.INTENT
        return KeepIntent()

    def _judge(self, grant: Grant, head: Head, data: bytes) -> Verdict | tuple[str, Denial]:
        """Decode, read, permit and inspect a body; a denial comes with the stage that made it."""
        if len(data) > grant.request_bytes:
            return "body", too_large(grant.request_bytes)
        plain = bodies.decode(data, headers.values(head.headers, "content-encoding"), grant.request_bytes)
        if isinstance(plain, Denial):
            return "body", plain
        endpoint = self._endpoint()
        value = self._read(endpoint, plain)
        if isinstance(value, Denial):
            return "body", value
        what = Asked(None, False, (), None) if value is None else asked(endpoint, value)
        if isinstance(what, Denial):
            return "body", what
        self.asked = what
        permitted = permission.permit(grant, what)
        if isinstance(permitted, Denial):
            return "permission", permitted
        if len(plain) > permitted.request_bytes:
            return "body", too_large(permitted.request_bytes)
        self.grant = permitted
        return self._inspect(permitted, head, what, value)

    def _read(self, endpoint: Endpoint, plain: bytes) -> dict[str, object] | Denial | None:
        """Parse a body and refuse what rules could not read in it; ``None`` for an endpoint without one."""
        if not endpoint.body:
            return None if not plain else Denial(Reason.BODY_MALFORMED, 400, "This endpoint takes no request body.")
        value = bodies.strict_json(plain)
        if isinstance(value, Denial):
            return value
        if not isinstance(value, dict):
            return Denial(Reason.BODY_MALFORMED, 400, "The request body is not a JSON object.")
        return refused(endpoint, value, redacting=self.policy.redacts_answers) or value

    def _inspect(self, grant: Grant, head: Head, what: Asked, value: object) -> Verdict | tuple[str, Denial]:
        """Look at every text of a request: all of its body, its path and its header fields."""
        decide = self.policy.decide(Direction.PROMPT)
        found = inspect_request(self._endpoint(), self.policy.engine, decide, value, extra=_extra(head, grant.route))
        if isinstance(found, Denial):
            return "inspect", found
        self.masked_body = found.body
        self.prompt_findings = (*found.findings, *self._found_before(found.findings))
        denial = blocked(self.prompt_findings)
        return Verdict(grant, what, found.body, self.prompt_findings) if denial is None else ("inspect", denial)

    def _found_before(self, now: tuple[Finding, ...]) -> Iterator[Finding]:
        """Decide again on what a recorded request no longer holds, because it was masked before it was kept."""
        decisions, seen = self.policy.decisions[Direction.PROMPT], {(each.rule, each.where) for each in now}
        for each in self.masked_before:
            action = decisions.get(each.rule)  # a rule that is no longer in force finds nothing
            if action is not None and (each.rule, each.where) not in seen:
                yield replace(each, action=action)

    def _intent(self, event: IntentKept) -> Step:
        assert self.verdict is not None
        assert self.head is not None
        if not event.kept:
            return self._refuse(
                "record", Denial(Reason.RECORDING_FAILED, 503, "The gateway cannot record, so it does not send.")
            )
        self.stage = Stage.SENT
        masked = {f.where for f in self.verdict.findings if f.action is not Action.FLAG}
        if masked & {"path", NAMES}:
            return self._refuse("inspect", _UNMASKABLE)
        own = self.verdict.grant.route.connection.credential
        taken = own.header.lower() if own is not None else ""
        crossing = ((k, v) for k, v in headers.upstream(self.head.headers) if k != taken)
        fields = tuple((k, v) for k, v in crossing if f"header {k}" not in masked)
        return Send(Clearance(self.verdict, self.exchange), fields)

    # answer ──────────────────────────────────────────────────────────────────

    def _answer(self, event: AnswerBegan) -> Step:
        assert self.asked is not None
        self.status = event.status
        if event.status < 200 or 300 <= event.status < 400:  # a redirect would lead the client past the gate
            return self._refuse("answer", _PROTOCOL)
        drop = self._inspect_head(event)
        content_type = ",".join(headers.values(event.headers, "content-type")).partition(";")[0].strip().lower()
        self._encodings = headers.values(event.headers, "content-encoding")
        streamed = content_type == "text/event-stream" or (
            self.asked.stream and event.status < 300 and content_type != "application/json"
        )
        if not streamed:
            self.stage = Stage.WHOLE
            return Buffer(drop)
        endpoint = self._endpoint()
        if endpoint.stream is None or any(each.lower() != "identity" for each in self._encodings):
            return self._refuse("answer", _PROTOCOL)
        self._stream = SseAnswer(
            endpoint, self.shape, self.policy.engine, self.policy.decide(Direction.RESPONSE), self.exchange
        )
        self.stage = Stage.STREAM
        self.streamed = True
        return Stream(drop)

    def _inspect_head(self, event: AnswerBegan) -> frozenset[str]:
        """Return the header fields of an answer that must not reach the client."""
        fields = [(name, value) for name, value in event.headers if not _plain(name, value)]
        texts = [*(value for _, value in fields), *(name for name, _ in fields)]
        found = self.policy.engine.find_many(texts) if fields else {}
        decide = self.policy.decide(Direction.RESPONSE)
        drop = set(headers.NOT_TO_CLIENT)
        for index, spans in found.items():
            name = fields[index % len(fields)][0]
            where = f"header {name}" if index < len(fields) and index + len(fields) not in found else NAMES
            for span in spans:
                action = decide(span.rule)
                if action is not Action.ALLOW:
                    self.answer_findings += (Finding(span.rule.id, span.rule.cls, where, span.start, span.end, action),)
                if action in (Action.REDACT, Action.BLOCK):
                    drop.add(name)
        return frozenset(drop)

    def _chunk(self, event: AnswerChunk) -> Step:
        assert self._stream is not None
        data = self._stream.feed(event.data)
        return self._emit(data) if self._stream.denial is None else self._broken_off(data, self._stream.denial)

    def _ended(self, event: AnswerEnded) -> Step:
        assert self._stream is not None
        data = self._stream.end()
        if self._stream.denial is not None:
            return self._broken_off(data, self._stream.denial)
        self._close(Outcome.FAILED if event.cut else Outcome.ANSWERED)
        return Emit(data, last=True)

    def _emit(self, data: bytes) -> Step:
        return Emit(data)

    def _broken_off(self, data: bytes, denial: Denial) -> Step:
        """End a stream that may not go on; ``data`` already ends with the dialect's own error event."""
        self._decide("answer", "deny", reason=denial.reason)
        self.denial = denial
        self._close(Outcome.DENIED)
        return Emit(data, last=True)

    def _whole(self, event: AnswerWhole) -> Step:
        assert self.route is not None
        assert self.status is not None
        limit = self.route.connection.answer.bytes
        plain = bodies.decode(event.data, self._encodings, limit)
        if isinstance(plain, Denial):
            return self._refuse("answer", replace(plain, reason=Reason.ANSWER_MALFORMED, status=502))
        found = inspect_answer(
            self._endpoint(), self.policy.engine, self.policy.decide(Direction.RESPONSE), plain, status=self.status
        )
        if isinstance(found, Denial):
            return self._refuse("answer", found)
        self.answer_findings += found.findings
        self._decide("answer", _worst(found.findings))
        self._close(Outcome.ANSWERED)
        return Emit(found.body, last=True)

    # endings ─────────────────────────────────────────────────────────────────

    def _passed(self, _event: AnswerEnded) -> Step:
        self._close(Outcome.ANSWERED)
        return Nothing()

    def whole(self, data: bytes) -> Step:
        """Take an answer that is there in one piece, at whichever stage its head left the exchange."""
        if self.stage is Stage.WHOLE:
            return self.receive(AnswerWhole(data))
        first = self.receive(AnswerChunk(data))
        if self.stage is Stage.OVER:
            return first
        last = self.receive(AnswerEnded())
        assert isinstance(first, Emit)
        assert isinstance(last, Emit)
        return Emit(first.data + last.data, last=True)

    def _stopped(self, event: Stopped) -> Step:
        """End the exchange from outside: in mid-stream with the dialect's error event, else with a refusal."""
        if self.stage is Stage.OVER:
            self.denial = self.denial or event.denial
            self.outcome = event.outcome
            return Nothing()
        if self.stage is Stage.STREAM and self._stream is not None:
            self._decide("answer", "deny", reason=event.denial.reason)
            self.denial = event.denial
            data = self._stream.stop(event.denial)
            self._close(event.outcome)
            return Emit(data, last=True)
        return self._refuse(self.stage.name.lower(), event.denial, event.outcome)

    def _refuse(self, stage: str, denial: Denial, outcome: Outcome = Outcome.DENIED) -> Step:
        self._decide(stage, "deny", reason=denial.reason)
        self.denial = denial
        self.status = denial.status
        self._close(outcome)
        return Refuse(denial)

    def _close(self, outcome: Outcome) -> None:
        if self._stream is not None:
            self.answer_findings += tuple(self._stream.findings)
        self.outcome = outcome
        self.stage = Stage.OVER

    def _decide(self, stage: str, result: str, detail: str = "", *, reason: Reason | None = None) -> None:
        self.decisions.append(Decision(stage, result, reason, detail))

    def _dialect(self) -> Dialect:
        assert self.route is not None
        return self.policy.dialects[self.route.connection.dialect]

    def _endpoint(self) -> Endpoint:
        assert self.route is not None
        return self._dialect().endpoints[self.route.endpoint]


_ORDER: Mapping[tuple[Stage, type], Callable[[Crossing, Any], Step]] = cast(
    "Mapping[tuple[Stage, type], Callable[[Crossing, Any], Step]]",
    {
        (Stage.HEAD, HeadArrived): Crossing._head,
        (Stage.CALLER, CallerKnown): Crossing._caller,
        (Stage.BODY, BodyArrived): Crossing._body,
        (Stage.INTENT, IntentKept): Crossing._intent,
        (Stage.SENT, AnswerBegan): Crossing._answer,
        (Stage.STREAM, AnswerChunk): Crossing._chunk,
        (Stage.STREAM, AnswerEnded): Crossing._ended,
        (Stage.WHOLE, AnswerWhole): Crossing._whole,
        (Stage.PASSING, AnswerEnded): Crossing._passed,
    },
)

_PROTOCOL = Denial(Reason.UPSTREAM_PROTOCOL, 502, "The upstream answered in a form that the gateway cannot inspect.")


_UNMASKABLE = Denial(Reason.FINDING, 403, "Blocked by policy: the address or a header name holds what may not be sent.")


def too_large(limit: int) -> Denial:
    """Refuse a request body over ``limit`` bytes."""
    return Denial(
        Reason.BODY_TOO_LARGE, 413, f"The request body is larger than the {limit} bytes this connection accepts."
    )


def blocked(findings: tuple[Finding, ...]) -> Denial | None:
    """Refuse a request with a finding that the policy blocks; the sentence names rule and place, never the value."""
    first = next((f for f in findings if f.action is Action.BLOCK), None)
    if first is None:
        return None
    why = f"rule {first.rule}" if first.score is None else str(first.score)
    return Denial(
        Reason.FINDING,
        403,
        f"Blocked by policy: {first.where} contains something of the class {first.cls} ({why}). "
        "Nothing was sent to the model; remove it and try again.",
    )


def _scores(findings: tuple[Finding, ...]) -> str:
    """Explain the scores among findings: where, how much, and which rule gave what. The first few tell enough."""
    return "; ".join([f"{each.where}: {each.score}" for each in findings if each.score is not None][:_EXPLAINED])


def _worst(findings: tuple[Finding, ...]) -> str:
    return max((f.action for f in findings), key=list(Action).index).value if findings else Action.ALLOW.value


def _plain(name: str, value: str) -> bool:
    """Say whether a header field has one of the few values that HTTP itself prescribes, and so holds no text."""
    return value in _PLAIN.get(name, ()) or (name == "content-length" and value.isdecimal() and len(value) < 12)


_EXPLAINED = 5
_PLAIN = {
    "content-type": ("application/json", "application/json; charset=utf-8", "text/event-stream"),
    "connection": ("keep-alive", "close"),
    "transfer-encoding": ("chunked",),
}


def _extra(head: Head, found: Route) -> dict[str, str]:
    """The texts of a request outside its body: query and header values, by the place a finding is reported at."""
    texts = {"path": readings(found.path), NAMES: "\n".join(name for name, _ in headers.upstream(head.headers))}
    for name, value in headers.upstream(head.headers):
        place = f"header {name}"
        texts[place] = f"{texts[place]}\n{value}" if place in texts else value
    return texts


def readings(path: str) -> str:
    """Return a path as it is written and, where that differs, with its percent escapes undone."""
    return f"{path}\n{unquote_plus(path)}" if "%" in path or "+" in path else path


def _upgrade(head: Head) -> Denial | None:
    """Refuse a change of protocol: what follows a ``101`` would pass unseen."""
    if head.method.upper() == "CONNECT" or any(
        name == "upgrade" and value.lower() != "h2c" for name, value in head.headers
    ):
        return Denial(Reason.PROTOCOL, 400, "This gateway does not switch protocols on this address.")
    return None
