"""The order of an exchange, as a pure state machine: events in, actions out. No I/O, no clock, no await.

    HEAD ──▶ CALLER ──▶ BODY ──▶ INTENT ──▶ SENT ──▶ STREAM ──▶ OVER
      │        │         │└▶ NER ─▶┘│        ├─────▶ WHOLE ──▶ OVER
      │        │         │    │     │        └─────▶ SOCKET ─▶ OVER
      ├▶ PASSING (unlisted: pass)   │
      └────────┴─────────┴────┴─────┴── every refusal ───────▶ OVER

Each stage takes the product of the one before it (``Route -> Caller -> Grant -> Verdict -> Clearance``), so an
uninspected request has nothing to carry a credential. An event that does not belong to the stage is a bug and raises
``OutOfOrder``; whoever drives the machine answers a bug with ``Stopped``. Refusals are values: the action ``Refuse``.

A WebSocket is one exchange: its handshake passes these stages, and at ``SOCKET`` each message is judged (``sockets``).
This is the only place where the order is written and the only place where the stage changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tidegate import asking, calls, headers, sockets
from tidegate.composing import judge_body
from tidegate.dialects import body as bodies
from tidegate.dialects.errors import GENERIC, NO_CALLS, Calls, render
from tidegate.dialects.spec import Dialect, Endpoint, ErrorShape, FramingKind
from tidegate.duplex import Duplex
from tidegate.identity import claims, permission
from tidegate.inspection import media
from tidegate.inspection.bodies import MALFORMED, Inspected, inspect_answer
from tidegate.inspection.composed import Judge, inspect_whole
from tidegate.inspection.ner.spec import Ner, Unread
from tidegate.inspection.tokens import Counts, Session, TokenLimits, Who
from tidegate.judging import (
    NAMES,
    Judged,
    Unopened,
    again,
    barred,
    beside,
    inspect,
    judge,
    parse,
    too_large,
    whose,
    worst,
)
from tidegate.model import (
    ACTING,
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
    Scanned,
    Verdict,
)
from tidegate.policy.policy import Policy
from tidegate.policy.routing import Pass, route
from tidegate.steps import (
    AnswerBegan,
    AnswerChunk,
    AnswerEnded,
    AnswerWhole,
    AskModel,
    BodyArrived,
    Buffer,
    CallerKnown,
    ClientSaid,
    Emit,
    Event,
    Extract,
    Forward,
    HeadArrived,
    HeldTooLong,
    Identify,
    IntentKept,
    KeepIntent,
    ModelSaid,
    Nothing,
    OpenSocket,
    OutOfOrder,
    ReadBody,
    Refuse,
    Relay,
    Send,
    SocketRested,
    Stage,
    Step,
    Stopped,
    Stream,
    UpstreamSaid,
)
from tidegate.streams import framings
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.channels import HeldCaps
from tidegate.streams.opaque import OpaqueAnswer
from tidegate.streams.restoring import RestoredStream, restored_whole
from tidegate.streams.tokenising import Tokens
from tidegate.streams.unpacking import Unpacker, can_undo

JSON = "application/json"

type Sessions = Callable[[Who, TokenLimits], Session]
"""Gives a caller's session of tokens, as it is at this time."""

ANONYMOUS = Caller(identity="none", subject="anyone")
"""The caller of every request under ``identity: none``. Bindings name it as the subject ``none:anyone``."""


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
        self.prompt_findings: tuple[Finding, ...] = ()
        self.denial: Denial | None = None
        self.outcome: Outcome | None = None
        self.status: int | None = None
        self.decisions: list[Decision] = []
        self.answer_findings: tuple[Finding, ...] = ()
        self.streamed = False
        self.passing = False
        self.scanned: Scanned | None = None
        self.socket: sockets.Socket | None = None
        self.sessions: Sessions | None = None
        self.tokens: Tokens | None = None
        self._stream: StreamedAnswer | OpaqueAnswer | None = None
        self._packed: Unpacker | None = None
        self._encodings: list[str] = []
        self._written_type: str | None = None
        self._unread: tuple[BodyArrived, Judged, tuple[str, ...]] | None = None
        self._calls = NO_CALLS
        self._answer_head = AnswerHead()
        self._restoring: RestoredStream | None = None
        self._is_data = False

    @property
    def shape(self) -> ErrorShape:
        """The form of a refusal that this caller's SDK understands."""
        return GENERIC if self.route is None else self._dialect().error

    @property
    def calls(self) -> Calls:
        """The JSON-RPC calls that a refusal answers."""
        return calls.answerable(self.policy.engine, self._calls)

    def receive(self, event: Event) -> Step:
        """Take one event, move to the next stage, and say what to do."""
        if isinstance(event, Stopped):
            return self._stopped(event)
        step = _ORDER.get((self.stage, type(event)))
        if step is None:
            raise OutOfOrder(f"{type(event).__name__} at {self.stage.name}")
        return step(self, event)

    def look(self, event: BodyArrived | ModelSaid | AnswerWhole) -> BodyArrived | ModelSaid | AnswerWhole:
        """Inspect what an event brings, without taking it; return the event that carries what was found.

        Changes nothing here, so a thread may do it while the exchange goes on, or ends.
        """
        if isinstance(event, BodyArrived):
            judged = self._judge(event, self.policy)
            looked = judged if isinstance(judged, Unopened) else again(self.policy, judged, event.masked)
            return replace(event, looked=looked)
        if isinstance(event, ModelSaid):
            return replace(event, looked=self._with_told(event))
        return replace(event, looked=self._masked(event.data))

    # request ─────────────────────────────────────────────────────────────────

    def _head(self, event: HeadArrived) -> Step:
        self.head = event.head
        upgrade = sockets.wanted(event.head)
        if isinstance(upgrade, Denial):
            return self._refuse("head", upgrade)
        found = route(self.policy, event.head)
        if isinstance(found, Denial):
            return self._refuse("route", found)
        if isinstance(found, Pass):
            if upgrade:
                return self._refuse("route", sockets.NO_SWITCH)
            self._decide("route", "pass")
            self.scanned = Scanned.NOTHING
            self.stage = Stage.PASSING
            self.passing = True
            return Forward()
        self.route = found
        denial = sockets.fits(self._endpoint(), asked=upgrade)
        if denial is not None:
            return self._refuse("route", denial)
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
        if self.policy.tokens is not None and self.sessions is not None:
            assert self.head is not None
            who = whose(caller, self.route.connection, self.head)
            self.tokens = Tokens(self.sessions(who, self.policy.tokens), Counts())
        self.stage = Stage.BODY
        return ReadBody(grant.request_bytes)

    def _body(self, event: BodyArrived) -> Step:
        judged = event.looked or self.look(event).looked
        if isinstance(judged, Unopened):
            return Extract(judged.attachments)
        assert isinstance(judged, Judged)
        self._calls, self.route = judged.calls, judged.grant.route
        if self.policy.ner is not None and judged.denial is None:
            return self._ask(self.policy.ner, event, judged)
        return self._judged(judged)

    def _ask(self, ner: Ner, event: BodyArrived, judged: Judged) -> Step:
        """Have the model read what the rules let through."""
        assert self.head is not None
        assert self.grant is not None
        if self._endpoint().socket is not None:
            return self._without_model(ner, judged, Unread.SOCKET)
        encodings = headers.values(self.head.headers, "content-encoding")
        endpoint = self._endpoint()
        if endpoint.body and not endpoint.made_of.asks_plainly:
            told = self._content_type()
            texts = asking.texts_within(ner, self.policy, endpoint, self.grant, event.data, encodings, told)
        else:
            texts = asking.texts(ner, endpoint, event.data, encodings, self.grant.request_bytes)
        if not texts:
            return self._judged(judged)
        self._unread = event, judged, texts
        self.stage = Stage.NER
        return AskModel(ner, texts)

    def _model_said(self, event: ModelSaid) -> Step:
        assert self.policy.ner is not None
        assert self._unread is not None
        looked = event.looked or self._with_told(event)
        (_, judged, texts), self._unread = self._unread, None
        unread = event.unread
        if looked is not None:
            assert isinstance(looked, tuple)
            judged, unread = looked
        if unread is not None:
            return self._without_model(self.policy.ner, judged, unread)
        self._decide("ner", worst(asking.own(judged.findings)), f"texts read: {len(texts)}")
        return self._judged(judged)

    def _with_told(self, event: ModelSaid) -> tuple[Judged, Unread | None] | None:
        """Judge the body once more with what the model found in it; ``None`` where there is nothing to add."""
        assert self._unread is not None
        body = self._unread[0]
        if event.unread is not None or not event.spans:
            return None
        policy, told = asking.with_told(self.policy, event.spans)
        once_more = self._judge(body, policy)
        assert isinstance(once_more, Judged)
        judged = again(self.policy, once_more, body.masked)
        return judged, Unread.MISSED if judged.denial is None and any(each.missed for each in told) else None

    def _without_model(self, ner: Ner, judged: Judged, unread: Unread) -> Step:
        """Decide on a request that the model did not read, as the policy says."""
        result, findings, denial = asking.verdict(ner, self.policy.mode, unread)
        if denial is not None:
            self._scan(judged)
            self.asked, self.prompt_findings = judged.asked or self.asked, judged.findings
            return self._refuse("ner", denial, detail=unread)
        self._decide("ner", result, unread)
        return self._judged(replace(judged, findings=(*judged.findings, *findings)))

    def _judged(self, judged: Judged) -> Step:
        self.asked = judged.asked or self.asked
        self._scan(judged)
        self.prompt_findings, self.masked_body = judged.findings, judged.body
        self._written_type = judged.content_type
        if judged.denial is not None:
            return self._refuse(judged.stage, judged.denial)
        assert judged.asked is not None
        self.grant = judged.grant
        self.verdict = Verdict(judged.grant, judged.asked, judged.body, judged.findings)
        self._decide("inspect", worst(judged.findings))
        self.stage = Stage.INTENT
        return KeepIntent()

    def _scan(self, judged: Judged) -> None:
        """Note how much of the request was scanned, and what the connection says of the rest."""
        if judged.media is None:
            self.scanned = Scanned.WHOLE if judged.stage == "inspect" else None
            return
        self.scanned = media.scanned(judged.media)
        if judged.denial is None and judged.media.unread:
            self._decide("media", judged.grant.route.connection.on_unknown, media.told(judged.media.unread))

    def _judge(self, event: BodyArrived, policy: Policy) -> Judged | Unopened:
        """Decode and read a body, then judge it with the rest of its request."""
        data = event.data
        assert self.grant is not None
        assert self.head is not None
        grant, head = self.grant, self.head
        endpoint = self._dialect().endpoints[grant.route.endpoint]
        if len(data) > grant.request_bytes:
            return Judged(grant, "body", too_large(grant.request_bytes))
        if endpoint.deny_headers and (denial := barred(endpoint, head)) is not None:
            return Judged(grant, "body", denial)
        plain = bodies.decode(data, headers.values(head.headers, "content-encoding"), grant.request_bytes)
        if isinstance(plain, Denial):
            return Judged(grant, "body", plain)
        if endpoint.calls is not None:
            return calls.judge(policy, endpoint, grant, plain, head, extracted=event.extracted, tokens=self.tokens)
        extra = beside(head, grant.route)
        if endpoint.body and endpoint.socket is None and not endpoint.made_of.asks_plainly:
            return judge_body(
                policy,
                endpoint,
                grant,
                plain,
                self._content_type(),
                extra=extra,
                extracted=event.extracted,
                tokens=self.tokens,
            )
        if endpoint.body and endpoint.socket is None:
            value = parse(plain)
            if isinstance(value, Denial):
                return Judged(grant, "body", value)
            return judge(
                policy, endpoint, grant, value, plain, extra=extra, extracted=event.extracted, tokens=self.tokens
            )
        if plain:
            return Judged(grant, "body", NO_BODY)
        nothing = Asked(None, False, (), None)
        if endpoint.socket is not None:
            if not endpoint.asked.query:  # who may use which model is asked of each message
                return inspect(policy, endpoint, grant, nothing, None, extra, tokens=self.tokens)
            nothing = Asked(grant.route.model, False, (), 0)
        permitted = permission.permit(grant, nothing)
        if isinstance(permitted, Denial):
            return Judged(grant, "permission", permitted, nothing)
        return inspect(policy, endpoint, permitted, nothing, None, extra, tokens=self.tokens)

    def _content_type(self) -> str:
        """Return the media type of the request, empty where there is none, or several that could be meant."""
        assert self.head is not None
        told = [value for name, value in self.head.headers if name == "content-type"]
        return told[0] if len(told) == 1 else ""

    def _intent(self, event: IntentKept) -> Step:
        assert self.verdict is not None
        assert self.head is not None
        if not event.kept:
            return self._refuse(
                "record", Denial(Reason.RECORDING_FAILED, 503, "The gateway cannot record, so it does not send.")
            )
        self.stage = Stage.SENT
        masked = {f.where for f in self.verdict.findings if f.action is not Action.FLAG}
        if masked & {"path", NAMES, "header sec-websocket-key"}:
            return self._refuse("inspect", _UNMASKABLE)
        own = self.verdict.grant.route.connection.credential
        taken = own.header.lower() if own is not None else ""
        crossing = ((k, v) for k, v in headers.upstream(self.head.headers) if k != taken)
        fields = tuple((k, v) for k, v in crossing if f"header {k}" not in masked)
        if self._endpoint().socket is not None:
            fields = sockets.opening(fields)
        if self._written_type is not None:
            fields = tuple(pair for pair in fields if pair[0] != "content-type")
            fields += (("content-type", self._written_type),)
        return Send(Clearance(self.verdict, self.exchange), fields)

    # answer ──────────────────────────────────────────────────────────────────

    def _answer(self, event: AnswerBegan) -> Step:
        assert self.asked is not None
        self.status = event.status
        if event.status == 101 and self._endpoint().socket is not None:
            return self._open(event)
        if event.status < 200 or 300 <= event.status < 400:  # a redirect would lead the client past the gate
            return self._refuse("answer", _PROTOCOL)
        drop = self._inspect_head(event)
        content_type = ",".join(headers.values(event.headers, "content-type")).partition(";")[0].strip().lower()
        self._encodings = headers.values(event.headers, "content-encoding")
        readable = self._endpoint().stream is not None and can_undo(self._encodings)
        asked = self.asked.stream and event.status < 300
        if self._endpoint().unread and event.status < 300 and can_undo(self._encodings) and _is_opaque(content_type):
            return self._begin(OpaqueAnswer(self._inspected, self._words), drop)
        # the label of both whole answers and streams: where it cannot be a stream it may still be whole
        if content_type not in framings.LABELS and (not asked or (content_type == JSON and not readable)):
            self.stage = Stage.WHOLE
            return Buffer(drop)
        if not readable:
            return self._refuse("answer", _PROTOCOL)
        return self._begin(self._streamed(content_type, event.status), drop)

    def _begin(self, stream: StreamedAnswer | OpaqueAnswer, drop: frozenset[str]) -> Step:
        """Let an answer pass in pieces, out of its content codings."""
        assert self.route is not None
        self._stream = stream
        self._packed = Unpacker(self._encodings, self.route.connection.answer.bytes)
        self.stage = Stage.STREAM
        self.streamed = True
        return Stream(drop)

    def _streamed(self, content_type: str, status: int) -> StreamedAnswer:
        assert self.route is not None
        decide = self.policy.decide(Direction.RESPONSE)
        head = self._answer_head = AnswerHead(content_type, status, self.route.connection.on_unknown)
        caps = HeldCaps(runs=self.policy.encoded_runs)
        answer = StreamedAnswer(self._endpoint(), self.shape, self.policy.engine, decide, self.exchange, head, caps)
        answer.calls = self.calls
        return answer

    def _words(self, denial: Denial) -> bytes:
        return render(self.shape, denial, self.exchange)[1]

    def _open(self, event: AnswerBegan) -> Step:
        assert self.head is not None
        assert self.grant is not None
        drop = self._inspect_head(event) - {"upgrade"}
        if not sockets.accepted(self.head, event.headers) or "sec-websocket-accept" in drop:
            return self._refuse("answer", _PROTOCOL)
        duplex = (spec := self._endpoint().socket) is not None and spec.duplex
        kind = Duplex if duplex else sockets.Socket
        self.socket = kind(self.policy, self._dialect(), self._endpoint(), self.grant, self.exchange, self.tokens)
        self.stage = Stage.SOCKET
        self.streamed = True
        return OpenSocket(drop)

    def _inspect_head(self, event: AnswerBegan) -> frozenset[str]:
        """Return the header fields of an answer that must not reach the client."""
        fields = [(name, value) for name, value in event.headers if not headers.is_plain(name, value)]
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
                if action in ACTING:
                    drop.add(name)
        return frozenset(drop)

    def _chunk(self, event: AnswerChunk) -> Step:
        assert self._stream is not None
        assert self._packed is not None
        came = self._packed.feed(event.data)
        data = self._stream.feed(came.data)
        if came.denial is not None:
            data += self._stream.stop(came.denial)
        return self._emit(data) if self._stream.denial is None else self._broken_off(data, self._stream.denial)

    @property
    def stuck(self) -> frozenset[object]:
        """Name the texts of a streamed answer that are held back: the same name means the same text."""
        return frozenset() if self._stream is None or self.stage is not Stage.STREAM else self._stream.stuck

    def _held_too_long(self, event: HeldTooLong) -> Step:
        assert self._stream is not None
        data = self._stream.expire(event.stuck)
        return self._emit(data) if self._stream.denial is None else self._broken_off(data, self._stream.denial)

    def _ended(self, event: AnswerEnded) -> Step:
        assert self._stream is not None
        assert self._packed is not None
        unfinished = self._packed.end()
        data = self._stream.end() if unfinished is None else self._stream.stop(unfinished)
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

    def _client_said(self, event: ClientSaid) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.client(event))

    def _upstream_said(self, event: UpstreamSaid) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.upstream(event))

    def _rested(self, _event: SocketRested) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.rest())

    def _relayed(self, step: Relay | Extract) -> Step:
        assert self.socket is not None
        if isinstance(step, Extract):
            return step
        self.scanned = self.socket.scanned
        self.asked = self.socket.asked or self.asked
        if step.close is not None:
            self.denial = self.socket.denial
            self.decisions.extend(self.socket.decisions)
            self._close(self.socket.outcome or Outcome.FAILED)
        return step

    def _whole(self, event: AnswerWhole) -> Step:
        found = event.looked or self.look(event).looked
        if isinstance(found, Denial):
            return self._refuse("answer", found)
        assert isinstance(found, Inspected)
        self._unscanned(found.unread)
        self._is_data = any(place == media.ANSWER for place, _ in found.unread)
        self.answer_findings += found.findings
        self._decide("answer", worst(found.findings))
        self._close(Outcome.ANSWERED)
        return Emit(found.body, last=True)

    def _masked(self, data: bytes) -> Inspected | Denial:
        """Decode the whole body of an answer and mask it."""
        assert self.route is not None
        plain = bodies.decode(data, self._encodings, self.route.connection.answer.bytes)
        if isinstance(plain, Denial):
            return replace(plain, reason=Reason.ANSWER_MALFORMED, status=502)
        return self._inspected(plain)

    def _inspected(self, plain: bytes) -> Inspected | Denial:
        """Mask the whole body of an answer, out of its content codings."""
        assert self.route is not None
        assert self.status is not None
        decide = self.policy.decide(Direction.RESPONSE)
        endpoint, engine = self._endpoint(), self.policy.engine
        if endpoint.made_of.answers_plainly:
            found = inspect_answer(endpoint, engine, decide, plain, status=self.status)
        else:
            found = inspect_whole(endpoint, Judge(self._dialect().endpoints, engine, decide), plain, status=self.status)
        stream = endpoint.stream
        if found == MALFORMED and stream is not None:
            found = self._unannounced(plain)
            if plain[:1] == b"\0" and FramingKind.EVENTSTREAM in stream.framings:
                return found  # messages that are broken
        if found == MALFORMED and (why := media.opaque(plain)) is not None:
            found = Inspected(plain, (), ((media.ANSWER, why),))
        unread = found.unread if isinstance(found, Inspected) else ()
        return media.withheld(unread, self.route.connection.on_unknown) or found

    def _unannounced(self, plain: bytes) -> Inspected | Denial:
        """Take a whole answer that is no JSON for the stream that its bytes may be, whatever its label says."""
        assert self.status is not None
        stream = self._streamed(JSON, self.status)
        body = stream.feed(plain) + stream.end()
        return stream.denial or Inspected(body, stream.findings, tuple(stream.unread))

    def _unscanned(self, unread: Sequence[tuple[str, str]]) -> None:
        """Note what nobody has read of an answer, and that the connection lets that pass."""
        if unread:
            assert self.route is not None
            self.scanned = Scanned.PARTLY
            self._decide("media", self.route.connection.on_unknown, f"answer {media.told(unread)}")

    # for this caller alone ───────────────────────────────────────────────────

    @property
    def told_tokens(self) -> tuple[Decision, ...]:
        """What is recorded of the tokens of this exchange: how many, never which."""
        told = {} if self.tokens is None else self.tokens.counts.told()
        if not any(told.values()):
            return ()
        return (
            Decision("tokens", Action.TOKENISE, None, ", ".join(f"{name}: {count}" for name, count in told.items())),
        )

    def restore(self, data: bytes, *, last: bool) -> bytes | None:
        """Put values back in what an ``Emit`` said, on its way to the client; ``None`` where nothing is tokenised.

        ``last``: the answer ends with it. What is emitted is what is recorded; this is what only the client sees.
        """
        if self.tokens is None:
            return None
        if isinstance(self._stream, OpaqueAnswer):  # data, or one text
            return data if self._stream.unread else restored_whole(self._endpoint(), self.tokens, data)
        if not self.streamed:
            return data if self._is_data else self._restored_whole(data)
        if self._restoring is None:
            self._restoring = RestoredStream(
                self._endpoint(), self.shape, self.tokens, self.exchange, self._answer_head
            )
        said = self._restoring.feed(data) if data else b""
        if last and self.denial is None:  # after an error event nothing may follow
            said += self._restoring.end()
        assert self._restoring.denial is None  # what was masked can be read
        return said

    def _restored_whole(self, data: bytes) -> bytes:
        assert self.tokens is not None
        endpoint = self._endpoint()
        plainly = endpoint.stream is not None and endpoint.made_of.answers_plainly
        if not plainly or not isinstance(bodies.strict_json(data), Denial):
            return restored_whole(endpoint, self.tokens, data)
        stream = RestoredStream(endpoint, self.shape, self.tokens, self.exchange, AnswerHead(JSON, self.status or 200))
        return stream.feed(data) + stream.end()

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
        if self.stage is Stage.SOCKET and self.socket is not None:
            return self._relayed(self.socket.stop(event.denial, event.outcome))
        return self._refuse(self.stage.name.lower(), event.denial, event.outcome)

    def _refuse(self, stage: str, denial: Denial, outcome: Outcome = Outcome.DENIED, detail: str = "") -> Step:
        self._decide(stage, "deny", detail, reason=denial.reason)
        self.denial = denial
        self.status = denial.status
        self._close(outcome)
        return Refuse(denial)

    def _close(self, outcome: Outcome) -> None:
        if self._stream is not None:
            self._unscanned(self._stream.unread)
            self.answer_findings += tuple(self._stream.findings)
        if self.socket is not None:
            self.prompt_findings += tuple(self.socket.prompt_findings)
            self.answer_findings += self.socket.answer_findings
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
        (Stage.NER, ModelSaid): Crossing._model_said,
        (Stage.INTENT, IntentKept): Crossing._intent,
        (Stage.SENT, AnswerBegan): Crossing._answer,
        (Stage.STREAM, AnswerChunk): Crossing._chunk,
        (Stage.STREAM, AnswerEnded): Crossing._ended,
        (Stage.STREAM, HeldTooLong): Crossing._held_too_long,
        (Stage.WHOLE, AnswerWhole): Crossing._whole,
        (Stage.SOCKET, ClientSaid): Crossing._client_said,
        (Stage.SOCKET, UpstreamSaid): Crossing._upstream_said,
        (Stage.SOCKET, SocketRested): Crossing._rested,
        (Stage.PASSING, AnswerEnded): Crossing._passed,
    },
)


def _is_opaque(label: str) -> bool:
    """Say whether a media type is one of data that are no text."""
    return label.startswith(("audio/", "image/", "video/")) or label == "application/octet-stream"


_PROTOCOL = Denial(Reason.UPSTREAM_PROTOCOL, 502, "The upstream answered in a form that the gateway cannot inspect.")
NO_BODY = Denial(Reason.BODY_MALFORMED, 400, "This endpoint takes no request body.")
_UNMASKABLE = Denial(Reason.FINDING, 403, "Blocked by policy: the address or a header name holds what may not be sent.")
