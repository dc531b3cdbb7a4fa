"""mitmproxy hooks in, crossing events out, flow edits back: the one adapter, behind the one guard.

mitmproxy logs an exception in a hook and forwards the traffic. Every hook runs under ``guarded``, which turns a
bug into a refusal; what mitmproxy does without asking a hook is held by ``egress``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.proxy import server_hooks

from tidegate import edits, egress, judging, steps
from tidegate.endings import BUG, CLIENT_GONE, NO_CREDENTIAL, NOT_HTTP, STOPPING, UPSTREAM_FAILED, limit
from tidegate.evidence.records import RecordingError
from tidegate.evidence.store import Recorder
from tidegate.exchange import Exchange
from tidegate.extracting import Extractor
from tidegate.fence import BROKEN, Fence
from tidegate.guard import guarded
from tidegate.identity.credential import Secret
from tidegate.identity.verifier import Verifier
from tidegate.inspection.ner.pool import Pool
from tidegate.inspection.ner.spec import Unread
from tidegate.inspection.tokens import Session, TokenLimits, Vault, Who
from tidegate.limits.answer import AnswerMeter
from tidegate.model import Caller, Head, OnUnknown, Outcome, Reason
from tidegate.policy.policy import Policy, RecordingMode
from tidegate.socket_gate import LiveSocket
from tidegate.socket_relay import Said
from tidegate.sockets import POLICY
from tidegate.steps import Stage

log = logging.getLogger("tidegate")

THREAD_BYTES = 16 * 1024
"""Bodies above this are looked at in a thread. Handing over costs 0.03 to 0.1 ms; a look at as much takes one or two,
and 130 where the text is hostile (numbers that each read as an encoded text), while nobody else is served."""
THREADS = min(4, os.cpu_count() or 1)
"""Large bodies looked at in one moment: the rest waits, so that small ones need not wait for all of them."""


class Gateway(Fence):
    """The enforcement addon. ``policy`` may be replaced between exchanges; an exchange keeps the one it began with."""

    name = "tidegate"

    def __init__(
        self,
        policy: Policy,
        recorder: Recorder,
        verifier: Verifier,
        credentials: Mapping[str, Secret],
        replay_caller: Caller | None = None,
    ) -> None:
        super().__init__(policy)
        self.recorder = recorder
        self.verifier = verifier
        self.credentials = credentials
        self.replay_caller = replay_caller
        self.extractor = Extractor()
        self.ner: Pool | None = None
        self.sockets: dict[str, LiveSocket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(THREADS, "tidegate-inspection")
        self._lines: list[tuple[int, str]] = []
        self.vault = Vault(lambda: secrets.token_bytes(32))
        self._sweeping: asyncio.TimerHandle | None = None
        egress.harden(self)

    # ── requests ─────────────────────────────────────────────────────────────

    @guarded
    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Route, identify and admit before the body is read."""
        exchange = self._open(flow)
        exchange.crossing.sessions = self._sessions
        exchange.credentials = self.credentials  # a reload changes neither policy nor credentials under an exchange
        known = self.replay_caller if flow.is_replay == "request" else None
        request = flow.request
        fields, origin = edits.fields(request.headers), edits.origin(flow, self.policy)
        http1 = not (request.is_http2 or request.is_http3)
        head = Head(request.method, request.path, fields, origin, http1)
        step = exchange.crossing.receive(steps.HeadArrived(head, known))
        edits.hide_credentials(flow.request)
        if isinstance(step, steps.Identify):
            caller = self.verifier.cached(step.token, time.time())
            if caller is None:
                return self._identify(exchange, step.token)
            step = exchange.crossing.receive(steps.CallerKnown(caller))
        self._admitted(exchange, step)
        return None

    async def _identify(self, exchange: Exchange, token: str) -> None:
        caller = await self.verifier.identify(token, time.time())
        self._admitted(exchange, exchange.crossing.receive(steps.CallerKnown(caller)))

    def _admitted(self, exchange: Exchange, step: steps.Step) -> None:
        if isinstance(step, steps.ReadBody):
            announced = exchange.flow.request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > step.limit:
                step = exchange.crossing.receive(steps.Stopped(judging.too_large(step.limit)))
        if isinstance(step, steps.Refuse):
            exchange.refuse()

    @guarded
    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Judge the body; what may go on is recorded, then made ready to send."""
        exchange = self.exchanges[flow.id]
        exchange.request_bytes = len(flow.request.raw_content or b"")
        if exchange.crossing.stage is Stage.OVER:
            flow.request.data.content = b""  # refused on its head: nobody may see what follows it
            exchange.refuse()
            return None
        if exchange.crossing.stage is Stage.PASSING:
            exchange.clear()
            return None
        event = steps.BodyArrived(flow.request.raw_content or b"", exchange.masked_before)
        if exchange.request_bytes > THREAD_BYTES:
            return self._judge_aside(exchange, event)
        step = exchange.crossing.receive(event)
        if isinstance(step, steps.Extract):
            return self._judge_extracted(exchange, event, step)
        return self._judged(exchange, step)

    async def _judge_aside(self, exchange: Exchange, event: steps.BodyArrived) -> None:
        step = await self._aside(exchange, event)
        if isinstance(step, steps.Extract):
            await self._judge_extracted(exchange, event, step)
        elif (waiting := self._judged(exchange, step)) is not None:
            await waiting

    async def _judge_extracted(self, exchange: Exchange, event: steps.BodyArrived, step: steps.Extract) -> None:
        """Judge a body once its attachments were read; in a thread, since their texts may be larger than they."""
        event = replace(event, extracted=await self.extractor.extract(step.attachments))
        if exchange.crossing.stage is not Stage.BODY:  # it was stopped meanwhile
            exchange.refuse()
            return
        waiting = self._judged(exchange, await self._aside(exchange, event))
        if waiting is not None:
            await waiting

    async def _aside(
        self, exchange: Exchange, event: steps.BodyArrived | steps.ModelSaid | steps.AnswerWhole
    ) -> steps.Step:
        """Take a large body: it is looked at in a thread, and counts only if nothing has ended the exchange by then."""
        crossing, stage = exchange.crossing, exchange.crossing.stage
        looked = await asyncio.get_running_loop().run_in_executor(self._threads, crossing.look, event)
        if crossing.stage is not stage:
            assert crossing.denial is not None
            return steps.Refuse(crossing.denial)
        if not exchange.flow.client_conn.connected and not exchange.flow.is_replay:
            return crossing.receive(steps.Stopped(CLIENT_GONE, Outcome.ABORTED))
        return crossing.receive(looked)

    def _judged(self, exchange: Exchange, step: steps.Step) -> Awaitable[None] | None:
        exchange.flow.request.data.content = exchange.crossing.masked_body
        if isinstance(step, steps.Refuse):
            exchange.refuse()
            return None
        if isinstance(step, steps.AskModel):
            return self._ask_model(exchange, step)
        if exchange.crossing.policy.recording.mode is RecordingMode.STRICT:
            return self._keep_intent(exchange)
        self._send(exchange, exchange.crossing.receive(steps.IntentKept(kept=True)))
        return None

    async def _ask_model(self, exchange: Exchange, ask: steps.AskModel) -> None:
        """Judge a request once the local model has read it, or not in time."""
        pool = self.ner
        if pool is not None and pool.ner == ask.ner:
            answer = await pool.ask(ask.texts)
            said = steps.ModelSaid(answer.spans, answer.unread)
        else:  # a reload put another model in force after this request was judged
            said = steps.ModelSaid(unread=Unread.FAILED)
        if exchange.crossing.stage is not Stage.NER:  # it was stopped meanwhile
            exchange.refuse()
            return
        large = exchange.request_bytes > THREAD_BYTES and bool(said.spans)
        step = await self._aside(exchange, said) if large else exchange.crossing.receive(said)
        waiting = self._judged(exchange, step)
        if waiting is not None:
            await waiting

    async def _keep_intent(self, exchange: Exchange) -> None:
        try:
            await self.recorder.intent(exchange.record())
            kept = True
        except RecordingError:
            kept = False
        self._send(exchange, exchange.crossing.receive(steps.IntentKept(kept=kept)))

    def _send(self, exchange: Exchange, step: steps.Step) -> None:
        if not isinstance(step, steps.Send):
            exchange.refuse()
            return
        connection = step.clearance.verdict.grant.route.connection
        if connection.credential is not None and connection.name not in exchange.credentials:
            exchange.crossing.receive(steps.Stopped(NO_CREDENTIAL))
            exchange.refuse()
            return
        if connection.name in exchange.credentials:
            exchange.expect_no_echo(exchange.credentials[connection.name].reveal())
        edits.write_request(exchange.flow, step)
        exchange.clear(step.clearance)
        exchange.meter = AnswerMeter(connection.answer, time.monotonic())
        self._watch(exchange.meter.due())

    # ── answers ──────────────────────────────────────────────────────────────

    @guarded
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Decide how an answer crosses, before the client has seen any of it."""
        exchange = self.exchanges[flow.id]
        assert flow.response is not None
        if exchange.crossing.stage is Stage.OVER:
            return
        if exchange.crossing.stage is Stage.PASSING:
            flow.response.stream = True
            exchange.release()
            return
        if exchange.meter is not None:
            exchange.meter.began(time.monotonic())
            self._watch(exchange.meter.due())
        if exchange.echo:
            edits.drop_fields_with(flow.response, exchange.echo)
        head = steps.AnswerBegan(flow.response.status_code, edits.fields(flow.response.headers))
        step = exchange.crossing.receive(head)
        most = exchange.limits.bytes
        announced = flow.response.headers.get("content-length", "")
        if isinstance(step, steps.Buffer) and announced.isdecimal() and int(announced) > most:
            step = exchange.crossing.receive(steps.Stopped(limit(Reason.ANSWER_TOO_LARGE)))
        if isinstance(step, steps.Refuse):
            flow.error = Error(Error.KILLED_MESSAGE)  # the egress then refuses the client and stops the upstream
        elif isinstance(step, steps.OpenSocket):
            edits.write_answer_head(flow.response, step.drop, exchange.id, streamed=True, http1=False)
        elif isinstance(step, (steps.Stream, steps.Buffer)):
            streamed = isinstance(step, steps.Stream)
            http1 = not flow.request.is_http2
            edits.write_answer_head(flow.response, step.drop, exchange.id, streamed=streamed, http1=http1)
            if streamed:
                flow.response.stream = functools.partial(self._relay, exchange)
                exchange.release()

    def _relay(self, exchange: Exchange, chunk: bytes) -> list[bytes]:
        """Take a chunk of a streamed answer (``b""`` at its end); return what may leave. Never raises, never empty."""
        crossing = exchange.crossing
        if crossing.stage is not Stage.STREAM:
            return []
        try:
            passed = exchange.meter.received(len(chunk), time.monotonic()) if exchange.meter else None
            if passed is not None:
                step = crossing.receive(steps.Stopped(limit(passed)))
            else:
                step = crossing.receive(steps.AnswerChunk(chunk) if chunk else steps.AnswerEnded())
            data = step.data if isinstance(step, steps.Emit) else b""
            shown = exchange.shown(exchange.emitted(data), last=crossing.outcome is not None)
        except Exception as bug:
            log.error("tidegate failed in a stream: %s", type(bug).__name__)
            step = crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            shown = exchange.emitted(step.data if isinstance(step, steps.Emit) else b"")
        if crossing.outcome is not None and chunk:
            self._cut(exchange)
        if exchange.meter is not None and exchange.meter.limits.held is not None:
            self._hold(exchange, exchange.meter)
        return shown

    def _hold(self, exchange: Exchange, meter: AnswerMeter) -> None:
        """Watch how long what is held back has waited."""
        meter.holds(exchange.crossing.stuck, time.monotonic())
        if exchange.crossing.stage is Stage.STREAM:
            self._watch(meter.due())

    def overdue(self, flow: http.HTTPFlow) -> tuple[bytes, bool]:
        """Mask what has been held back for too long; return what leaves, and whether that ends the answer."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or exchange.meter is None or exchange.crossing.stage is not Stage.STREAM:
            return b"", False
        stuck = exchange.meter.overdue(time.monotonic())
        crossing = exchange.crossing
        try:
            step = crossing.receive(steps.HeldTooLong(stuck))
            data = step.data if isinstance(step, steps.Emit) else b""
            shown = exchange.shown(exchange.emitted(data), last=crossing.outcome is not None)
        except Exception as bug:
            log.error("tidegate failed over held text: %s", type(bug).__name__)
            step = crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            shown = exchange.emitted(step.data if isinstance(step, steps.Emit) else b"")
        exchange.meter.holds((), time.monotonic())  # what cannot leave even so waits anew
        self._hold(exchange, exchange.meter)
        return b"".join(shown), crossing.outcome is not None

    @guarded
    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Mask a whole answer. The evidence is sealed once the answer is on its way (``over``), unless it is strict."""
        exchange = self.exchanges[flow.id]
        assert flow.response is not None
        flow.response.trailers = None
        if exchange.crossing.stage in (Stage.WHOLE, Stage.STREAM):  # STREAM: another addon's reply, no callable saw it
            data = flow.response.raw_content or b""
            if len(data) > exchange.limits.bytes:
                step = exchange.crossing.receive(steps.Stopped(limit(Reason.ANSWER_TOO_LARGE)))
            elif len(data) > THREAD_BYTES and exchange.crossing.stage is Stage.WHOLE:
                return self._answer_aside(exchange, data)
            else:
                step = exchange.crossing.whole(data)
            exchange.show(self._answered(exchange, step))
        elif exchange.crossing.stage is Stage.PASSING:
            exchange.crossing.receive(steps.AnswerEnded())
        elif exchange.crossing.stage is Stage.SOCKET:
            self._open_socket(exchange)
        if exchange.crossing.stage is not Stage.SOCKET:
            self._seal_strictly(exchange)
        return None

    async def _answer_aside(self, exchange: Exchange, data: bytes) -> None:
        body = self._answered(exchange, await self._aside(exchange, steps.AnswerWhole(data)))
        if exchange.crossing.tokens is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, exchange.show, body)
        self._seal_strictly(exchange)

    def _seal_strictly(self, exchange: Exchange) -> None:
        """Seal the evidence before the answer leaves, where the policy wants it strict."""
        if exchange.crossing.policy.recording.mode is RecordingMode.STRICT:
            self._seal(exchange)

    def _answered(self, exchange: Exchange, step: steps.Step) -> bytes:
        """Put a whole answer, or the refusal in its place, on the flow; return the body of the answer."""
        if isinstance(step, steps.Emit):
            assert exchange.flow.response is not None
            body = b"".join(exchange.emitted(step.data))
            edits.write_answer_body(exchange.flow.response, body)
            exchange.release()
            return body
        exchange.refuse()
        return b""

    def _open_socket(self, exchange: Exchange) -> None:
        """Let the client have its WebSocket, if the proxy is going to make one."""
        flow = exchange.flow
        assert flow.response is not None
        if flow.websocket is None or exchange.crossing.status != flow.response.status_code:
            self._fail(exchange)
            exchange.refuse()
            return
        flow.response.data.content = b""
        self.sockets[flow.id] = LiveSocket(exchange, THREAD_BYTES, self._cut, self.extractor)
        exchange.release()

    @guarded
    def tidegate_socket(self, said: Said) -> Awaitable[None] | None:
        """Judge what a peer did on a WebSocket: nothing is sent but what this puts on ``said``."""
        socket = self.socket(said.flow)
        return None if socket is None else socket.take(said)

    @guarded
    def error(self, flow: http.HTTPFlow) -> None:
        """Seal an exchange that ended without an answer, or in the middle of one."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None:
            if flow.id in self.tunnels or not flow.live:
                return
            exchange = self._open(flow)
        if exchange.crossing.stage is not Stage.OVER:
            step = exchange.crossing.receive(_lost(exchange))
            data = step.data if isinstance(step, steps.Emit) else b""
            exchange.farewell = b"".join(exchange.shown(exchange.emitted(data), last=True))
        if exchange.crossing.denial is not None and flow.error is not None:
            flow.error.msg = exchange.crossing.denial.message  # mitmproxy's own text may quote what a peer sent
        flow.request.data.content = exchange.crossing.masked_body
        edits.hide_credentials(flow.request)
        self._seal(exchange)

    # ── what the egress asks ─────────────────────────────────────────────────

    def outgoing(self, flow: http.HTTPFlow, request: http.Request) -> http.Request | None:
        """Return the copy to send if the request is still what was cleared, with the connection's credential on it."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or not exchange.is_cleared(request):
            return None
        exchange.sent = True
        route = exchange.crossing.route
        if route is None or route.connection.credential is None:
            return request
        secret = exchange.credentials[route.connection.name]
        return edits.with_credential(request, route.connection.credential.header, secret.reveal())

    def shown(self, flow: http.HTTPFlow, response: http.Response) -> bytes | None:
        """Return the body that the client gets in place of the one on the flow: with values where that has tokens."""
        exchange = self.exchanges.get(flow.id)
        return None if exchange is None else exchange.for_client(response)

    def released(self, flow: http.HTTPFlow, response: http.Response) -> bool:
        """Say whether an answer may reach the client: the gate let exactly this one go."""
        if flow.id in self.tunnels and flow.request.method == "CONNECT":
            self.tunnels.discard(flow.id)
            return response.status_code == 200
        exchange = self.exchanges.get(flow.id)
        return exchange is not None and exchange.is_released(response)

    def arrived(self, flow: http.HTTPFlow, size: int) -> None:
        """Measure bytes of an answer that is being collected; those of a stream are measured where they are relayed."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or exchange.meter is None or exchange.crossing.stage is not Stage.WHOLE:
            return
        passed = exchange.meter.received(size, time.monotonic())
        if passed is not None:
            self._end(exchange, passed)

    def left(self, flow: http.HTTPFlow) -> None:
        """Note that the client has reset the stream of an exchange; its connection may go on."""
        exchange = self.exchanges.get(flow.id)
        if exchange is not None:
            exchange.abandoned = True

    def refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """Return the words for an exchange that ends before its answer began."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None:  # no hook of ours has seen it: another addon halted the chain
            exchange = self._open(flow)
            edits.hide_credentials(flow.request)
        if exchange.crossing.denial is None:
            self._fail(exchange)
        return exchange.refusal()

    def farewell(self, flow: http.HTTPFlow) -> bytes:
        """Return the last words for a stream whose upstream broke off: the dialect's own error event."""
        exchange = self.exchanges.get(flow.id)
        return exchange.farewell if exchange is not None else b""

    def socket(self, flow: http.HTTPFlow) -> LiveSocket | None:
        """Return who judges the messages of a WebSocket."""
        return self.sockets.get(flow.id)

    def over(self, flow: http.HTTPFlow) -> None:
        """Forget an exchange: the HTTP layer is done with it."""
        self.sockets.pop(flow.id, None)
        exchange = self.exchanges.pop(flow.id, None)
        if exchange is not None:
            if exchange.crossing.stage is Stage.SOCKET:  # the relay cut it, because the gate failed under it
                exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            try:
                self._seal(exchange)
            except Exception as bug:
                log.error("tidegate failed to seal an exchange: %s", type(bug).__name__)
                self.recorder.lose()
            exchange.stop_watching()

    def stop(self) -> None:
        """Seal what is still open, because the process is about to end."""
        self.extractor.close()
        for exchange in list(self.exchanges.values()):
            if exchange.crossing.stage is not Stage.OVER:
                exchange.crossing.receive(steps.Stopped(STOPPING, Outcome.ABORTED))
            self._seal(exchange)
        self._say()

    # ── parts ────────────────────────────────────────────────────────────────

    def deny_bug(self, hook: str, data: Any, bug: Exception) -> None:
        """Refuse what a hook was asked about, because the hook failed."""
        log.error("tidegate failed in %s: %s", hook, type(bug).__name__)
        try:
            self._refuse_bug(hook, data)
        except Exception as worse:
            log.error("tidegate failed to refuse after %s: %s", hook, type(worse).__name__)

    def _refuse_bug(self, hook: str, data: Any) -> None:
        if isinstance(data, server_hooks.ServerConnectionHookData):
            data.server.error = BROKEN
        elif isinstance(data, http.HTTPFlow):
            exchange = self.exchanges.get(data.id) or self._open(data)
            self._fail(exchange)
            data.request.data.content = b""
            edits.hide_credentials(data.request)
            if hook in ("responseheaders", "error"):
                data.error = Error(Error.KILLED_MESSAGE)
                exchange.crossing.status = BUG.status if hook == "responseheaders" else exchange.crossing.status
            else:
                exchange.refuse()
            if hook == "http_connect":
                self._seal(exchange)  # no other hook follows a refused CONNECT
        elif isinstance(data, Said):
            data.released = None  # the relay then asks for the last words, and ends the WebSocket
            socket = self.socket(data.flow)
            if socket is not None:
                socket.stop(BUG, Outcome.FAILED)
        elif hasattr(data, "client_conn"):
            self.tcp_start(data)

    def _fail(self, exchange: Exchange) -> None:
        """End an exchange as a bug; what was sealed of it is sealed again."""
        exchange.revoke()
        exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
        exchange.sealed = False

    def _cut(self, exchange: Exchange, data: bytes = b"", code: int = POLICY, reason: str = "") -> None:
        handler = self._handler(exchange.flow)
        if handler is not None:  # None in a client replay: what follows is swallowed
            exchange.later(egress.cut(handler, exchange.flow, data, code, reason))

    def _watch(self, due: float) -> None:
        """Look at the time limits of all answers at ``due``, or earlier: one timer serves all of them."""
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        waiting = [
            each
            for each in self.exchanges.values()
            if each.meter is not None and each.crossing.stage in (Stage.SENT, Stage.STREAM, Stage.WHOLE)
        ]
        for each in waiting:
            assert each.meter is not None
            passed = each.meter.passed(now)
            if passed is None and each.meter.overdue(now):
                self._remind(each)
            elif passed is None:
                self._watch(each.meter.due())
            else:
                self._guarded_end(each, passed)

    def _remind(self, exchange: Exchange) -> None:
        """Have the HTTP layer ask for text that is overdue, in turn with what else happens to the stream."""
        handler = self._handler(exchange.flow)
        if handler is not None:
            exchange.later(egress.remind(handler, exchange.flow))

    def _sessions(self, who: Who, limits: TokenLimits) -> Session:
        """Return a caller's tokens; what nobody asks for in time is forgotten."""
        found = self.vault.session(who, limits, time.monotonic())
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_at(found.due, self._sweep)
        return found

    def _sweep(self) -> None:
        due = self.vault.sweep(time.monotonic())
        self._sweeping = None if due is None else asyncio.get_running_loop().call_at(due, self._sweep)

    def _guarded_end(self, exchange: Exchange, passed: Reason) -> None:
        """End an exchange for a limit; a bug in that ends it as a bug, and no other."""
        try:
            self._end(exchange, passed)
        except Exception as bug:
            log.error("tidegate failed at a limit: %s", type(bug).__name__)
            self._fail(exchange)
            self._cut(exchange)

    def _end(self, exchange: Exchange, passed: Reason) -> None:
        """End an exchange that broke a limit: with a refusal, or in a stream with the dialect's error event."""
        step = exchange.crossing.receive(steps.Stopped(limit(passed)))
        data = step.data if isinstance(step, steps.Emit) else b""
        self._cut(exchange, b"".join(exchange.shown(exchange.emitted(data), last=True)))

    def _seal(self, exchange: Exchange) -> None:
        if exchange.sealed:
            return
        exchange.sealed = True
        exchange.stop_watching()
        record = exchange.record()
        self.recorder.seal(record, exchange.state())
        flagged = any(each.stage == "media" and each.result == OnUnknown.FLAG for each in record.decisions)
        self._lines.append((logging.WARNING if flagged else logging.INFO, exchange.line(record, exchange.tokens)))
        if len(self._lines) == 1:  # said once the answer is on its way: nobody waits for the log
            asyncio.get_running_loop().call_soon(self._say)

    def _say(self) -> None:
        """Write the log lines of exchanges that are over."""
        lines, self._lines = self._lines, []
        for level, line in lines:
            log.log(level, line)


def _lost(exchange: Exchange) -> steps.Stopped:
    """Say who ended an exchange early: who broke the protocol, who sent too much, or who left."""
    flow, crossing = exchange.flow, exchange.crossing
    message = flow.error.msg if flow.error else ""
    reading = crossing.stage in (Stage.HEAD, Stage.CALLER, Stage.BODY)
    if message.startswith("Request body exceeds") and crossing.grant is not None:
        return steps.Stopped(judging.too_large(crossing.grant.request_bytes))
    if message.startswith("Response body exceeds"):
        return steps.Stopped(limit(Reason.ANSWER_TOO_LARGE))
    if reading and message == egress.TRAILERS:
        return steps.Stopped(NOT_HTTP)
    reset = exchange.abandoned or (not exchange.sent and message.startswith(egress.RESET))  # then it was no upstream
    if reset or "lient disconnected" in message or not flow.client_conn.connected:
        return steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
    if BROKEN in message:
        return steps.Stopped(BUG, Outcome.FAILED)
    return steps.Stopped(NOT_HTTP) if reading else steps.Stopped(UPSTREAM_FAILED, Outcome.FAILED)
