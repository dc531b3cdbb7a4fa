"""One exchange as the adapter holds it: flow and crossing; what was cleared, released and emitted; its evidence."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from mitmproxy import http

from tidegate import edits, spending
from tidegate.approving import HOW
from tidegate.crossing import Crossing
from tidegate.dialects.errors import render, status
from tidegate.evidence.records import ExchangeRecord
from tidegate.identity.credential import Secret
from tidegate.identity.verifier import Verifier
from tidegate.judging import readings
from tidegate.limits.answer import AnswerMeter
from tidegate.model import AnswerLimits, Clearance, Decision, Direction, Head
from tidegate.policy.keeping import Originals
from tidegate.policy.policy import Keep, Policy, RecordingMode
from tidegate.replay.flows import EXCHANGE, masked, safe_state
from tidegate.state.budgets import Held
from tidegate.steps import BodyArrived, Stage
from tidegate.tee import Tee

ECHO = b"[REDACTED:credential]"

_cuts: set[asyncio.Task[Any]] = set()


_random = random.Random(secrets.token_bytes(32))  # noqa: S311 - names, not secrets; no system call for each


def new_id() -> str:
    """Return an exchange id: milliseconds since 1970 in hex, then 40 random bits. Ids sort by time."""
    return f"ex_{time.time_ns() // 1_000_000:011x}{_random.getrandbits(40):010x}"


class Exchange:
    """The state of the adapter for one flow."""

    verifier: Verifier  # set as the head arrives; nothing is identified before

    def __init__(self, policy: Policy, flow: http.HTTPFlow) -> None:
        self.id = new_id()
        self.flow = flow
        self.crossing = Crossing(policy, self.id)
        self.started = time.time_ns()
        self.clock = time.perf_counter()
        self.first_byte: float | None = None
        known = flow.request.method.isalpha() and len(flow.request.method) < 16  # else it is a text of the client's own
        self.method = flow.request.method if known else "?"
        self.path = flow.request.path
        self.target = (flow.request.scheme, flow.request.host, flow.request.port)
        self.replay_of = str(flow.metadata.get(EXCHANGE)) if flow.is_replay and EXCHANGE in flow.metadata else None
        self.masked_before = masked(flow) if flow.is_replay else ()
        self.request_bytes = 0
        self.response_bytes = 0
        self.kept: list[bytes] = []
        self.marks: list[tuple[int, int]] = []
        self.tee = Tee() if policy.recording.keeping.originals is Originals.SEALED else None
        self.meter: AnswerMeter | None = None
        self.claims: list[Future[None]] = []
        self.held: Held | None = None
        self.used = ""  # the approval that it took the right to send from
        self.paid: tuple[int, ...] = ()
        self.rate_fields: tuple[tuple[str, str], ...] = ()
        self.timer: asyncio.TimerHandle | None = None
        self.released: tuple[http.Response, object] | None = None
        self.farewell = b""
        self.status_fields: tuple[tuple[str, str], ...] = ()
        self.trailers: http.Headers | None = None
        self.echo = b""
        self.credentials: Mapping[str, Secret] = {}
        self.token: str | None = None  # of the caller, until it is known
        self.sealed = False
        self.sent = self.abandoned = self.refused = False
        self.last = False  # of its connection, if it is refused
        self._cleared: tuple[object, ...] | None = None
        self._shown: tuple[bytes, bytes] | None = None

    @property
    def limits(self) -> AnswerLimits:
        """The limits of the answer; the defaults where no connection is known.

        A call in which both sides speak may be silent, and last, for as long as a WebSocket.
        """
        route, call = self.crossing.route, self.crossing.call
        limits = AnswerLimits() if route is None else route.connection.answer
        if call is None or not call.live:
            return limits
        return replace(limits, idle=limits.socket_idle, duration=limits.socket_duration)

    @property
    def wants_socket(self) -> bool:
        """Whether a request is about to be sent that asks for a WebSocket."""
        clear = self.crossing.stage is Stage.SENT
        return clear and self.flow.request.headers.get("upgrade", "").lower() == "websocket"

    def again(self, policy: Policy) -> tuple[Head, BodyArrived]:
        """Begin anew under another policy; return what arrived. What was decided is remembered."""
        old = self.crossing
        held = old.received
        assert old.head is not None
        assert held is not None
        self.crossing = Crossing(policy, self.id)
        self.crossing.decisions = [*old.decisions, Decision("hold", "again", None, "the policy has changed")]
        return old.head, BodyArrived(held.data)

    @property
    def strict(self) -> bool:
        """Whether nothing may be sent before it is recorded."""
        route, recording = self.crossing.route, self.crossing.policy.recording
        return recording.mode_of(None if route is None else route.connection.name) is RecordingMode.STRICT

    # what may leave ──────────────────────────────────────────────────────────

    def clear(self, clearance: Clearance | None = None) -> None:
        """Note what may be sent, as it stands on the flow now; ``None`` for a host that may pass untouched."""
        body = clearance.verdict.body if clearance is not None else self.flow.request.raw_content
        self._cleared = (*_line(self.flow.request), body)

    def is_cleared(self, request: http.Request) -> bool:
        """Say whether a request is the one that was cleared: same place, method, path, header fields and body."""
        return self._cleared == (*_line(request), request.raw_content)

    def revoke(self) -> None:
        """Take back what was cleared."""
        self._cleared = None

    def release(self) -> None:
        """Let the flow's answer, as it is now, reach the client."""
        self._let_go(self.flow.response)

    def is_released(self, response: http.Response) -> bool:
        """Say whether an answer is the one that was released, streamed by whom it was streamed then."""
        return self.released is not None and self.released[0] is response and self.released[1] is response.stream

    def _let_go(self, response: http.Response | None) -> None:
        self.released = None if response is None else (response, response.stream)

    def refuse(self) -> None:
        """Put the refusal on the flow in place of any answer."""
        self.revoke()
        self.refused = True
        self.flow.response = self.refusal()

    def refusal(self) -> http.Response:
        """Make the refusal, in the shape of the caller's dialect."""
        denial = self.crossing.denial
        assert denial is not None
        shape, calls = self.crossing.shape, self.crossing.calls
        self.crossing.status = status(shape, denial, calls)
        sent = 200 if shape.grpc else self.crossing.status
        fields, body = render(shape, denial, self.id, calls)
        if self.crossing.approval:
            fields = (*fields, (HOW, self.crossing.approval))
        told = () if shape.grpc else self.rate_fields
        response = edits.refusal(sent, (*fields, *told), body)
        if self.last and not (self.flow.request.is_http2 or self.flow.request.is_http3):
            response.headers["connection"] = "close"
        self._let_go(response)
        return response

    def heard(self, data: bytes, now: float) -> bytes:
        """Keep what a client said in a call, as it is sent: as much of it as one request may have. It is not idle."""
        if self.meter is not None:
            self.meter.last = now
        grant, kept = self.crossing.grant, self.crossing.masked_body
        if grant is not None and len(kept) + len(data) <= grant.request_bytes:
            self.crossing.masked_body = kept + data
        return data

    def end_call(self, fields: tuple[tuple[str, str], ...]) -> http.Headers | None:
        """Return the trailers that may end the answer of a gRPC call; ``None`` for anything else.

        ``fields`` are the upstream's, who may have said its status in the head of its answer.
        """
        if self.crossing.call is None:
            return None
        if self.trailers is None:
            found = self.crossing.trailers((*self.status_fields, *fields))
            if self.echo:
                found = tuple(pair for pair in found if self.echo.decode("latin-1") not in pair[1])
            self.trailers = edits.trailers(found)
        return self.trailers

    def expect_no_echo(self, credential: str) -> None:
        """Take out the upstream credential (its last word) wherever the upstream repeats it in one piece."""
        self.echo = credential.rpartition(" ")[2].encode()

    def emitted(self, data: bytes) -> list[bytes]:
        """Count and keep what goes to the client; returned as the list that a stream callable returns."""
        if not data:
            return []
        data = self.said(data)
        if self.crossing.policy.recording.keep is not Keep.NONE:
            self.kept.append(data)
            if self.crossing.streamed:
                self.marks.append((int((time.perf_counter() - self.clock) * 1e6), len(data)))
        return [data]

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """The numbers of the exchange's tokens, if the policy tokenises anything."""
        tokens = self.crossing.tokens
        return None if tokens is None else tokens.counts.told()

    def shown(self, pieces: list[bytes], *, last: bool) -> list[bytes]:
        """Return what the client gets for pieces of a stream that were ``emitted``: values in place of their tokens."""
        if self.crossing.tokens is None or not self.crossing.streamed:
            return pieces
        said = b"".join(pieces)
        data = self.crossing.restore(said, last=last) or b""
        self.response_bytes += len(data) - len(said)
        return [data] if data else []

    def show(self, body: bytes) -> None:
        """Note what the client gets for a whole body: the flow keeps the body, so that nobody else sees the values."""
        data = self.crossing.restore(body, last=True) if body else None
        if data is not None and data != body:
            self._shown = body, data
            self.response_bytes += len(data) - len(body)

    def for_client(self, response: http.Response) -> bytes | None:
        """Return the body that goes to the client in place of the one on the flow, if there is such a one."""
        if self._shown is None or self._shown[0] != response.raw_content:
            return None
        return self._shown[1]

    def said(self, data: bytes) -> bytes:
        """Count what goes to the client; returned without the upstream credential."""
        if self.echo:
            data = data.replace(self.echo, ECHO)
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        self.response_bytes += len(data)
        return data

    # timers ──────────────────────────────────────────────────────────────────

    def stop_watching(self) -> None:
        """Cancel the timer of the answer's limits."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine after the current event of the connection."""
        task = asyncio.get_running_loop().create_task(work)
        _cuts.add(task)
        task.add_done_callback(_cuts.discard)

    # evidence ────────────────────────────────────────────────────────────────

    def record(self) -> ExchangeRecord:
        """Say what is known of the exchange so far, as it is recorded."""
        crossing, now = self.crossing, time.perf_counter()
        route, caller = crossing.route, crossing.caller
        over = crossing.stage is Stage.OVER
        usage = crossing.usage if over and self.sent else None
        price = None if usage is None else crossing.price
        return ExchangeRecord(
            id=self.id,
            started_us=self.started // 1000,
            method=self.method,
            path=self.path if crossing.verdict is not None else self._shown_path(),
            ended_us=time.time_ns() // 1000 if over else None,
            first_byte_us=None if self.first_byte is None else int((self.first_byte - self.clock) * 1e6),
            duration_us=int((now - self.clock) * 1e6) if over else None,
            identity=caller.identity if caller else None,
            caller=caller.subject if caller else None,
            connection=route.connection.name if route else None,
            endpoint=route.endpoint if route else None,
            model=self.shown_model(),
            outcome=crossing.outcome,
            reason=crossing.denial.reason if crossing.denial else None,
            status=crossing.status,
            mode=crossing.policy.mode,
            policy_sha=crossing.policy.sha256,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            streamed=crossing.streamed,
            scanned=crossing.scanned,
            replay_of=self.replay_of,
            input_tokens=None if usage is None else usage.input,
            output_tokens=None if usage is None else usage.output,
            cached_tokens=None if usage is None else usage.cached,
            tokens_estimated=None if usage is None else usage.estimated,
            cost=None if usage is None or price is None else spending.cost(usage, price),
            prompt_findings=crossing.prompt_findings,
            answer_findings=crossing.answer_findings,
            decisions=(*crossing.decisions, *crossing.told_tokens),
        )

    def _shown_path(self) -> str:
        """Return the path of a request that was not sent, unless a rule finds something in it."""
        return "[REDACTED]" if self.crossing.policy.engine.find_many([readings(self.path)]) else self.path

    def shown_model(self) -> str | None:
        """Return the model a request names, unless a rule finds something in it."""
        crossing = self.crossing
        model = crossing.asked.model if crossing.asked else None
        clean = crossing.verdict is not None and not crossing.prompt_findings
        if model is None or clean or not crossing.policy.engine.find_many([model]):
            return model
        return "[REDACTED]"

    def state(self) -> dict[str, Any] | None:
        """Return the flow as the recording keeps it: what was sent and what was emitted, both masked."""
        crossing = self.crossing
        keep = Keep.NONE if crossing.passing else crossing.policy.recording.keep  # what nobody inspected is not kept
        live = crossing.call is not None and crossing.call.live
        if (live or crossing.ask is not None) and crossing.verdict is not None:  # what was approved is not kept
            self.flow.request.data.content = crossing.masked_body
        if crossing.streamed and self.flow.response is not None:
            self.flow.response.data.content = b"".join(self.kept)
        inspected = self.meter is not None  # sent, so that its head is what was cleared
        if not inspected:
            self.path = self._shown_path()
            edits.hide_findings(self.flow.request, crossing.policy.engine)
        socket = crossing.socket is not None
        return safe_state(self.flow, keep, self.id, self.path, self.target, inspected=inspected, websocket=socket)

    def cut(self) -> Mapping[str, list[tuple[int, int]]]:
        """Say how the stream that the client got was cut: microseconds since the start, and bytes of each piece."""
        return {Direction.RESPONSE.value: self.marks} if self.marks else {}

    @staticmethod
    def line(record: ExchangeRecord, tokens: Mapping[str, int] | None = None) -> str:
        """Write the one canonical log line of an exchange: a JSON object without any text that was inspected.

        ``tokens`` are the numbers of its tokens, where the policy tokenises anything.
        """
        found = (*record.prompt_findings, *record.answer_findings)
        observed = [each.detail for each in record.decisions if each.result == "observe"]
        return json.dumps(
            {
                "event": "exchange",
                "exchange": record.id,
                "caller": f"{record.identity}:{record.caller}" if record.caller else None,
                "connection": record.connection,
                "endpoint": record.endpoint,
                "model": record.model,
                "outcome": record.outcome,
                "reason": record.reason,
                "status": record.status,
                "mode": record.mode,
                "rules": Counter(each.rule for each in found) if found else {},
                "scores": {each.rule: each.score.total for each in found if each.score is not None} if found else {},
                "request_bytes": record.request_bytes,
                "response_bytes": record.response_bytes,
                "streamed": record.streamed,
                "scanned": record.scanned,
                **({} if tokens is None else {"tokens": tokens}),
                **({"observed": observed} if observed else {}),
                "duration_ms": round((record.duration_us or 0) / 1000, 2),
            }
        )


def _line(request: http.Request) -> tuple[object, ...]:
    data = request.data
    return data.scheme, data.host, data.port, data.method, data.path, data.authority, data.headers.fields
