"""mitmproxy hooks in, crossing events out, flow edits back: the one adapter, behind the one guard.

mitmproxy logs an exception in a hook and forwards the traffic. Every hook here runs under ``guarded``, which turns a
bug into a refusal; what mitmproxy does without asking a hook is held by ``egress``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mitmproxy import connection, ctx, http
from mitmproxy.flow import Error
from mitmproxy.proxy import layer as proxy_layer
from mitmproxy.proxy import layers, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from tidegate import crossing as steps
from tidegate import edits, egress
from tidegate.crossing import Stage
from tidegate.evidence.records import RecordingError
from tidegate.evidence.store import Recorder
from tidegate.exchange import Exchange
from tidegate.identity.credential import Secret
from tidegate.identity.verifier import Verifier
from tidegate.limits.answer import AnswerMeter
from tidegate.model import Caller, Denial, Head, Outcome, Reason
from tidegate.policy.policy import Policy, RecordingMode, Unlisted

log = logging.getLogger("tidegate")

THREAD_BYTES = 32 * 1024
"""Bodies above this are judged in a thread: below it, handing over costs more than the milliseconds it keeps from the
loop."""

BUG = Denial(Reason.BUG, 503, "The gateway failed on this exchange and stopped it.")
BROKEN = "the gateway failed"
"""The error of an upstream connection that was not opened because the fence failed."""

UNLISTED = Denial(Reason.UNLISTED_HOST, 403, "This host is not listed in the gateway's policy.")
NOT_HTTP = Denial(Reason.PROTOCOL, 400, "The request is not written as HTTP allows, or it has trailers.")
CLIENT_GONE = Denial(Reason.CLIENT_GONE, 499, "The client left before its answer was complete.")
UPSTREAM_FAILED = Denial(Reason.UPSTREAM_FAILED, 502, "The model provider could not be reached, or it broke off.")
STOPPING = Denial(Reason.STOPPING, 503, "The gateway was stopped before this exchange was complete.")
NO_CREDENTIAL = Denial(
    Reason.CREDENTIAL_UNAVAILABLE, 503, "The gateway has no credential for this model provider right now."
)
LIMITS = {
    Reason.ANSWER_TOO_LARGE: "The answer is larger than this connection allows.",
    Reason.ANSWER_FIRST_BYTE: "The model provider did not begin to answer in the time this connection allows.",
    Reason.ANSWER_IDLE: "The model provider paused in its answer for longer than this connection allows.",
    Reason.ANSWER_DURATION: "The answer took longer than this connection allows.",
}


def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Make a bug in a hook deny what the hook was asked about. A bug's text may hold data: only its type is logged."""

    @functools.wraps(hook)
    def run(self: Gateway, data: Any) -> Awaitable[None] | None:
        try:
            result = hook(self, data)
        except Exception as bug:
            self.deny_bug(hook.__name__, data, bug)
            return None
        return rest(self, data, result) if result is not None and inspect.isawaitable(result) else None

    async def rest(self: Gateway, data: Any, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as bug:
            self.deny_bug(hook.__name__, data, bug)

    return run


class Gateway:
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
        self.policy = policy
        self.recorder = recorder
        self.verifier = verifier
        self.credentials = credentials
        self.replay_caller = replay_caller
        self.exchanges: dict[str, Exchange] = {}
        self.tunnels: set[str] = set()
        egress.harden(self)

    # ── connections ──────────────────────────────────────────────────────────

    @guarded
    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Open a tunnel only to a host of the policy; who calls is asked inside it, where the SDK puts its token."""
        edits.hide_credentials(flow.request)
        if self._may_reach(flow.request.host.lower(), flow.request.port):
            self.tunnels.add(flow.id)
            return
        exchange = self._open(flow)
        exchange.crossing.receive(steps.Stopped(UNLISTED))
        exchange.refuse()
        self._seal(exchange)

    @guarded
    def next_layer(self, data: proxy_layer.NextLayer) -> None:
        """Speak HTTP/2 without TLS to a client that does; mitmproxy by itself ends such a connection."""
        context = data.context
        if not context.client.tls and data.data_client().startswith(b"PRI * HTTP/2.0"):
            context.client.alpn = b"h2"
            data.layer = layers.HttpLayer(context, HTTPMode.transparent)

    @guarded
    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> Awaitable[None] | None:
        """Be the fence under everything: no connection to anything that is not an upstream of the policy."""
        address = data.server.address
        if address is None or not self._may_reach(address[0].lower(), address[1]):
            data.server.error = "not an upstream of the policy"
        elif address[0].lower() not in self.policy.routes.hosts:
            return self._pin(data.server)
        return None

    async def _pin(self, server: connection.Server) -> None:
        """Connect to an unlisted host at the address it has now, unless that is ours: a name can lead anywhere."""
        assert server.address is not None
        host, port = server.address[:2]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        addresses = [str(each[4][0]) for each in found]
        if not addresses or any(edits.is_local(each) for each in addresses):
            server.error = "not a public address"
        else:
            server.address = (addresses[0], port)

    @guarded
    def tcp_start(self, flow: Any) -> None:
        """Close raw TCP and UDP: nobody can inspect what it carries."""
        handler = self._handler(flow)
        if handler is not None and flow.client_conn in handler.transports:
            handler.close_connection(flow.client_conn)

    @guarded
    def tcp_message(self, flow: Any) -> None:
        """Blank what arrives on raw TCP or UDP before its connection is closed."""
        flow.messages[-1].content = b""

    udp_start = tcp_start
    udp_message = tcp_message

    # ── requests ─────────────────────────────────────────────────────────────

    @guarded
    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Route, identify and admit before the body is read."""
        exchange = self._open(flow)
        known = self.replay_caller if flow.is_replay == "request" else None
        head = Head(
            flow.request.method, flow.request.path, edits.fields(flow.request.headers), edits.origin(flow, self.policy)
        )
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
                step = exchange.crossing.receive(steps.Stopped(steps.too_large(step.limit)))
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
            return self._judge_in_thread(exchange, event)
        return self._judged(exchange, exchange.crossing.receive(event))

    async def _judge_in_thread(self, exchange: Exchange, event: steps.BodyArrived) -> None:
        waiting = self._judged(exchange, await asyncio.to_thread(exchange.crossing.receive, event))
        if waiting is not None:
            await waiting

    def _judged(self, exchange: Exchange, step: steps.Step) -> Awaitable[None] | None:
        exchange.flow.request.data.content = exchange.crossing.masked_body
        if isinstance(step, steps.Refuse):
            exchange.refuse()
            return None
        if exchange.crossing.policy.recording.mode is RecordingMode.STRICT:
            return self._keep_intent(exchange)
        self._send(exchange, exchange.crossing.receive(steps.IntentKept(kept=True)))
        return None

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
        if connection.credential is not None and connection.name not in self.credentials:
            exchange.crossing.receive(steps.Stopped(NO_CREDENTIAL))
            exchange.refuse()
            return
        if connection.name in self.credentials:
            exchange.expect_no_echo(self.credentials[connection.name].reveal())
        edits.write_request(exchange.flow, step)
        exchange.clear(step.clearance)
        exchange.meter = AnswerMeter(connection.answer, time.monotonic())
        self._watch(exchange)

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
        if exchange.echo:
            edits.drop_fields_with(flow.response, exchange.echo)
        head = steps.AnswerBegan(flow.response.status_code, edits.fields(flow.response.headers))
        step = exchange.crossing.receive(head)
        limit = exchange.limits.bytes
        announced = flow.response.headers.get("content-length", "")
        if isinstance(step, steps.Buffer) and announced.isdecimal() and int(announced) > limit:
            step = exchange.crossing.receive(steps.Stopped(_limit(Reason.ANSWER_TOO_LARGE)))
        if isinstance(step, steps.Refuse):
            flow.error = Error(Error.KILLED_MESSAGE)  # the egress then refuses the client and stops the upstream
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
                step = crossing.receive(steps.Stopped(_limit(passed)))
            else:
                step = crossing.receive(steps.AnswerChunk(chunk) if chunk else steps.AnswerEnded())
        except Exception as bug:
            log.error("tidegate failed in a stream: %s", type(bug).__name__)
            step = crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
        data = step.data if isinstance(step, steps.Emit) else b""
        if crossing.outcome is not None and chunk:
            self._cut(exchange)
        return exchange.emitted(data)

    @guarded
    def response(self, flow: http.HTTPFlow) -> None:
        """Mask a whole answer, then seal the evidence."""
        exchange = self.exchanges[flow.id]
        assert flow.response is not None
        flow.response.trailers = None
        if exchange.crossing.stage in (Stage.WHOLE, Stage.STREAM):  # STREAM: another addon's reply, no callable saw it
            data = flow.response.raw_content or b""
            if len(data) > exchange.limits.bytes:
                step = exchange.crossing.receive(steps.Stopped(_limit(Reason.ANSWER_TOO_LARGE)))
            else:
                step = exchange.crossing.whole(data)
            if isinstance(step, steps.Emit):
                edits.write_answer_body(flow.response, b"".join(exchange.emitted(step.data)))
                exchange.release()
            else:
                exchange.refuse()
        elif exchange.crossing.stage is Stage.PASSING:
            exchange.crossing.receive(steps.AnswerEnded())
        if flow.websocket is None:
            self._seal(exchange)

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
            exchange.farewell = b"".join(exchange.emitted(step.data)) if isinstance(step, steps.Emit) else b""
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
        route = exchange.crossing.route
        if route is None or route.connection.credential is None:
            return request
        secret = self.credentials[route.connection.name]
        return edits.with_credential(request, route.connection.credential.header, secret.reveal())

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

    def over(self, flow: http.HTTPFlow) -> None:
        """Forget an exchange: the HTTP layer is done with it."""
        exchange = self.exchanges.pop(flow.id, None)
        if exchange is not None:
            self._seal(exchange)
            exchange.stop_watching()

    def stop(self) -> None:
        """Seal what is still open, because the process is about to end."""
        for exchange in list(self.exchanges.values()):
            if exchange.crossing.stage is not Stage.OVER:
                exchange.crossing.receive(steps.Stopped(STOPPING, Outcome.ABORTED))
            self._seal(exchange)

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
        elif hasattr(data, "client_conn"):
            self.tcp_start(data)

    def _fail(self, exchange: Exchange) -> None:
        """End an exchange as a bug; what was sealed of it is sealed again."""
        exchange.revoke()
        exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
        exchange.sealed = False

    def _open(self, flow: http.HTTPFlow) -> Exchange:
        exchange = self.exchanges[flow.id] = Exchange(self.policy, flow)
        return exchange

    def _may_reach(self, host: str, port: int) -> bool:
        routes = self.policy.routes
        if any(origin.host == host and origin.port == port for origin in routes.origins):
            return True
        return (
            self.policy.unlisted is Unlisted.PASS and host.rstrip(".") not in routes.hosts and not edits.is_local(host)
        )

    def _handler(self, flow: Any) -> Any:
        return ctx.master.addons.get("proxyserver").connections.get(flow.client_conn.id)

    def _cut(self, exchange: Exchange, data: bytes = b"") -> None:
        handler = self._handler(exchange.flow)
        if handler is not None:  # None in a client replay: what follows is swallowed
            exchange.later(egress.cut(handler, exchange.flow, data))

    def _watch(self, exchange: Exchange) -> None:
        """Look at the time limits when the next of them is due."""
        assert exchange.meter is not None
        delay = max(0.0, exchange.meter.due() - time.monotonic())
        exchange.timer = asyncio.get_running_loop().call_later(delay, self._due, exchange)

    def _due(self, exchange: Exchange) -> None:
        assert exchange.meter is not None
        if exchange.crossing.stage is Stage.OVER:
            return
        passed = exchange.meter.passed(time.monotonic())
        if passed is None:
            self._watch(exchange)
            return
        self._end(exchange, passed)

    def _end(self, exchange: Exchange, passed: Reason) -> None:
        """End an exchange that broke a limit: with a refusal, or in a stream with the dialect's error event."""
        step = exchange.crossing.receive(steps.Stopped(_limit(passed)))
        data = step.data if isinstance(step, steps.Emit) else b""
        self._cut(exchange, b"".join(exchange.emitted(data)))

    def _seal(self, exchange: Exchange) -> None:
        if exchange.sealed:
            return
        exchange.sealed = True
        exchange.stop_watching()
        record = exchange.record()
        self.recorder.seal(record, exchange.state())
        log.info(exchange.line(record))


def _lost(exchange: Exchange) -> steps.Stopped:
    """Say who ended an exchange early: who broke the protocol, who sent too much, or who left."""
    flow, crossing = exchange.flow, exchange.crossing
    message = flow.error.msg if flow.error else ""
    reading = crossing.stage in (Stage.HEAD, Stage.CALLER, Stage.BODY)
    if message.startswith("Request body exceeds") and crossing.grant is not None:
        return steps.Stopped(steps.too_large(crossing.grant.request_bytes))
    if message.startswith("Response body exceeds"):
        return steps.Stopped(_limit(Reason.ANSWER_TOO_LARGE))
    if reading and message == egress.TRAILERS:
        return steps.Stopped(NOT_HTTP)
    if "lient disconnected" in message or not flow.client_conn.connected:
        return steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
    if BROKEN in message:
        return steps.Stopped(BUG, Outcome.FAILED)
    return steps.Stopped(NOT_HTTP) if reading else steps.Stopped(UPSTREAM_FAILED, Outcome.FAILED)


def _limit(reason: Reason) -> Denial:
    return Denial(reason, 504 if reason is Reason.ANSWER_FIRST_BYTE else 502, LIMITS[reason])
