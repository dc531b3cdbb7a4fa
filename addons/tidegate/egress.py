"""The last check before a byte leaves, inside mitmproxy's HTTP layer.

mitmproxy runs its addons one after the other and forwards whatever is left on the flow; an addon that is skipped,
removed or overtaken (``map_remote``, ``modify_body``, an edit in mitmweb) does not stop the traffic. So the gate is
also asked where mitmproxy sends: a request leaves only if it is, byte for byte, the one that was cleared, and it is
*here*, on a copy that no addon can see, that the upstream credential is attached. An answer leaves only if the gate
released it. Errors that mitmproxy would word itself become the gate's own refusals, and one exchange can be cut
without touching its neighbours.

Everything that changes mitmproxy's layers stands in this file and, for WebSockets, in ``socket_relay``. ``harden``
applies it once; without a keeper nothing passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy import flow as mitm_flow
from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http import DropStream as Drop
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream, SendHttp
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook
from mitmproxy.proxy.layers.http._http1 import Http1Connection

from tidegate import call_relay, resuming, socket_relay
from tidegate.socket_relay import Cut
from tidegate.sockets import POLICY

SAID = (http_events.RequestData, http_events.RequestTrailers, http_events.RequestEndOfMessage)
"""What a client says after the head of its request."""

Commands = Generator[commands.Command, Any, None]

TRAILERS = "trailers are not accepted"
"""The error of an HTTP/1 message with trailers."""

RESET = "stream reset by client"
"""How the error of a reset HTTP/2 stream begins; mitmproxy says so of either side."""


class Resume(events.Event):
    """Something that a stream waited for has happened: the keeper may have more of it."""

    def __init__(self, flow: http.HTTPFlow) -> None:
        self.flow = flow


@dataclass
class Overdue(events.Event):
    """Text of a flow's streamed answer has been held back for too long; asked in turn with what else happens to it."""

    flow: http.HTTPFlow


class Keeper(Protocol):
    """What the HTTP layer asks the gate."""

    def outgoing(self, flow: http.HTTPFlow, request: http.Request) -> http.Request | None:
        """Return the copy of ``request`` to send, credential attached; ``None`` if it is not what was cleared."""

    def released(self, flow: http.HTTPFlow, response: http.Response) -> bool:
        """Say whether the gate let this answer go to the client."""

    def shown(self, flow: http.HTTPFlow, response: http.Response) -> bytes | None:
        """Return the body that goes to the client in place of a whole answer's own; ``None`` where there is none."""

    def arrived(self, flow: http.HTTPFlow, size: int) -> None:
        """Take note of bytes of an answer's body that came from the upstream."""

    def left(self, flow: http.HTTPFlow) -> None:
        """Take note that the client wants no more of a flow."""

    def refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """Return the gate's own words for an exchange that ends before an answer began."""

    def ending(self, flow: http.HTTPFlow) -> http.Headers | None:
        """Return the trailers that end an answer; ``None`` where it has none."""

    def live(self, flow: http.HTTPFlow) -> int:
        """Return how many bytes a message may have, of a call whose client may speak at any time; 0 for all others."""

    def hasty(self, flow: http.HTTPFlow) -> bool:
        """Say whether a flow must be refused now, before its request is complete."""

    def farewell(self, flow: http.HTTPFlow) -> bytes:
        """Return the last words of a stream that breaks off in the middle; empty if there is nothing to say."""

    def resumed(self, flow: http.HTTPFlow) -> list[bytes]:
        """Return what of a streamed answer may leave now without more of it having come."""

    def overdue(self, flow: http.HTTPFlow) -> tuple[bytes, bool]:
        """Return what leaves for text that was held back for too long, and whether nothing may follow it."""

    def socket(self, flow: http.HTTPFlow) -> socket_relay.Keeper | None:
        """Return who judges the messages of a WebSocket."""

    def over(self, flow: http.HTTPFlow) -> None:
        """Take note that the HTTP layer is done with a flow."""


_keeper: Keeper | None = None


def harden(keeper: Keeper | None) -> None:
    """Change mitmproxy's HTTP layer once and make ``keeper`` the one it asks; ``None`` makes it refuse everything."""
    global _keeper  # noqa: PLW0603 - mitmproxy's layers are classes of the process, so is the one they ask
    _keeper = keeper
    socket_relay.harden(_ask)
    if getattr(HttpStream, "tidegate_hardened", False):
        return
    resuming.harden()
    _handle_event = HttpStream._handle_event
    HttpStream._handle_event = lambda self, event: _stream(self, event, _handle_event)  # type: ignore[method-assign]
    _layer_event = HttpLayer._handle_event
    HttpLayer._handle_event = lambda self, event: (  # type: ignore[method-assign]
        _route(self, event) if isinstance(event, Cut | Resume | Overdue) else _layer_event(self, event)
    )
    _read_body = Http1Connection.read_body
    Http1Connection.read_body = lambda self, event: _without_trailers(  # type: ignore[method-assign]
        self, event, _read_body
    )
    HttpStream.tidegate_hardened = True  # type: ignore[attr-defined]
    logging.getLogger("mitmproxy.proxy.server").addFilter(_without_data)


def cut(handler: Any, flow: http.HTTPFlow, data: bytes, code: int = POLICY, reason: str = "") -> Any:
    """Return a coroutine that cuts ``flow``; ``handler`` is the entry of ``proxyserver.connections`` of its client."""
    return handler.server_event(Cut(flow, data, code, reason))


def resume(handler: Any, flow: http.HTTPFlow) -> Any:
    """Return a coroutine that asks the keeper for more of ``flow``; ``handler`` as in ``cut``."""
    return handler.server_event(Resume(flow))


def remind(handler: Any, flow: http.HTTPFlow) -> Any:
    """Return a coroutine that asks the gate for what leaves of a stream although nothing came."""
    return handler.server_event(Overdue(flow))


def _stream(self: HttpStream, event: events.Event, original: Callable[..., Commands]) -> Commands:
    """Run one event of a stream and look at each message it wants to send."""
    if isinstance(event, Cut):
        yield from _end(self, event)
        return
    if isinstance(event, Resume):
        yield from _go_on(self)
    if isinstance(event, Overdue):
        yield from _overdue(self)
        return
    if type(event) is http_events.ResponseData:
        _ask("arrived", self.flow, len(event.data))
    elif type(event) is http_events.RequestProtocolError and event.message.startswith(RESET):
        _ask("left", self.flow)
    speech: call_relay.Speech | None = getattr(self, "tidegate_speech", None)
    if speech is not None and isinstance(event, SAID):
        yield from _passed(self, call_relay.hear(self, speech, event))
        if speech.stopped and not getattr(self, "tidegate_over", False):
            yield from _stop(self)
        return
    yield from _passed(self, original(self, event))
    if type(event) is http_events.RequestHeaders and self.client_state == self.state_consume_request_body:
        yield from _begin(self)


def _passed(self: HttpStream, source: Commands) -> Commands:
    """Carry out what a stream wants, and look at each message it wants to send."""
    reply: Any = None
    while True:
        try:
            command = source.send(reply)
        except StopIteration:
            return
        reply = None
        if type(command) is SendHttp:
            yield from _message(self, command)
        elif type(command) is Drop:
            yield from _drop(self)
        else:
            reply = yield command


def _begin(self: HttpStream) -> Commands:
    """Refuse at once what may never end, and listen to a call in which both sides speak."""
    if self.flow.response is not None:
        if _ask("hasty", self.flow):
            yield from _refuse(self)
    elif room := _ask("live", self.flow):
        self.tidegate_speech = call_relay.Speech(room)  # type: ignore[attr-defined]


def _stop(self: HttpStream) -> Commands:
    """End a call because of what its client said in it."""
    if getattr(self, "tidegate_answered", False):
        yield from _end(self, Cut(self.flow, b""))
    else:
        yield from _refuse(self)


def _ask(question: str, flow: http.HTTPFlow, *more: Any) -> Any:
    """Ask the keeper; no keeper and a bug in it both mean no."""
    try:
        return getattr(_keeper, question)(flow, *more) if _keeper is not None else None
    except Exception as bug:  # noqa: BLE001 - whatever it is, nothing may pass
        logging.getLogger("tidegate").error("tidegate failed at the egress: %s", type(bug).__name__)
        return None


def _message(self: HttpStream, command: SendHttp) -> Commands:
    """Let one message of a stream through, changed or not at all."""
    event = command.event
    if getattr(self, "tidegate_over", False):
        return
    if isinstance(event, http_events.RequestHeaders):
        request = _ask("outgoing", self.flow, event.request)
        if request is None:
            yield from _refuse(self)
            return
        self.tidegate_upstream = True  # type: ignore[attr-defined]
        yield SendHttp(http_events.RequestHeaders(event.stream_id, request, event.end_stream), command.connection)
    elif isinstance(event, http_events.ResponseHeaders):
        yield from _answer_head(self, event, command)
    elif isinstance(event, http_events.ResponseData) and getattr(self, "tidegate_body", None) is not None:
        yield SendHttp(http_events.ResponseData(event.stream_id, self.tidegate_body), command.connection)  # type: ignore[attr-defined]
    elif isinstance(event, http_events.ResponseProtocolError):
        if event.code is http_events.ErrorCode.PASSTHROUGH_CLOSE:
            yield command
        elif getattr(self, "tidegate_answered", False):
            yield from _break_off(self, _ask("farewell", self.flow) or b"", command)
        else:
            yield from _refuse(self)
    elif isinstance(event, http_events.ResponseTrailers):
        trailers = _ask("ending", self.flow)
        if trailers is not None:  # those that the gate looked at, whatever is on the flow by now
            yield SendHttp(http_events.ResponseTrailers(event.stream_id, trailers), command.connection)
    elif not isinstance(event, http_events.RequestTrailers):
        yield command  # other trailers are dropped: nobody inspects them, and no dialect needs them


def _answer_head(self: HttpStream, event: http_events.ResponseHeaders, command: SendHttp) -> Commands:
    """Let the head of an answer through if the gate let exactly this one go."""
    if event.response.status_code != 100 and not _ask("released", self.flow, event.response):
        yield from _refuse(self)
        return
    self.tidegate_answered = event.response.status_code != 100  # type: ignore[attr-defined]
    body = None if event.response.stream else _ask("shown", self.flow, event.response)
    self.tidegate_body = body  # type: ignore[attr-defined]
    if body is not None:
        response = _with_length(event.response, len(body))
        command = SendHttp(http_events.ResponseHeaders(event.stream_id, response), command.connection)
    yield command


def _with_length(response: http.Response, size: int) -> http.Response:
    """Return a copy of an answer's head that announces a body of another size."""
    shown = response.copy()
    shown.headers["content-length"] = str(size)
    return shown


def _refuse(self: HttpStream) -> Commands:
    """Answer with the gate's refusal (nothing at all without one), stop the upstream, and end the stream."""
    client, stream = self.context.client, self.stream_id
    response: http.Response | None = _ask("refusal", self.flow)
    whole = self.client_state == self.state_done
    self.tidegate_over = True  # type: ignore[attr-defined]
    if response is not None:
        if not whole and not self.flow.request.is_http2:
            response.headers["connection"] = "close"
        self.flow.response = response
        body = response.raw_content or b""
        yield SendHttp(http_events.ResponseHeaders(stream, response, not body), client)
        if body:
            yield SendHttp(http_events.ResponseData(stream, body), client)
        yield SendHttp(http_events.ResponseEndOfMessage(stream), client)
    if response is None or not (whole or _ends_itself(self, response)):
        yield SendHttp(http_events.ResponseProtocolError(stream, "refused", http_events.ErrorCode.KILL), client)
    yield from _cancel(self)
    yield from _forget(self)


def _ends_itself(self: HttpStream, response: http.Response) -> bool:
    """Say whether a refusal is a gRPC status: its client ends the stream then, and a reset would undo the status."""
    return self.flow.request.is_http2 and "grpc-status" in response.headers


def _forget(self: HttpStream) -> Commands:
    """Leave a stream for good: whatever still comes for it is ignored."""
    self.client_state = self.server_state = self.state_errored
    self.flow.live = False
    yield from _drop(self)


def _drop(self: HttpStream) -> Commands:
    yield Drop(self.stream_id)
    _ask("over", self.flow)


def _cancel(self: HttpStream) -> Commands:
    """Tell the upstream to stop: closes an HTTP/1 connection, resets one HTTP/2 stream."""
    if getattr(self, "tidegate_upstream", False) and self.server_state != self.state_done:
        self.tidegate_upstream = False  # type: ignore[attr-defined]
        stop = http_events.RequestProtocolError(self.stream_id, "cancelled", http_events.ErrorCode.CANCEL)
        yield SendHttp(stop, self.context.server)


def _break_off(self: HttpStream, data: bytes, otherwise: SendHttp | None = None) -> Commands:
    """End an answer that has begun: with last words and a proper end, or as mitmproxy would (a reset)."""
    client, stream = self.context.client, self.stream_id
    self.tidegate_over = True  # type: ignore[attr-defined]
    trailers = _ask("ending", self.flow)
    if data:
        yield SendHttp(http_events.ResponseData(stream, data), client)
    if trailers is not None:
        yield SendHttp(http_events.ResponseTrailers(stream, trailers), client)
    if data or otherwise is None or trailers is not None:
        yield SendHttp(http_events.ResponseEndOfMessage(stream), client)
    else:
        yield otherwise
    yield from _cancel(self)


def _end(self: HttpStream, event: Cut) -> Commands:
    """Cut a stream wherever it stands; one that is over already is left alone."""
    if getattr(self, "tidegate_over", False) or self.server_state in (self.state_done, self.state_errored):
        return
    self.flow.error = self.flow.error or mitm_flow.Error("cut by the gate")
    yield HttpErrorHook(self.flow)
    if getattr(self, "tidegate_answered", False):
        yield from _break_off(self, event.data)
        yield from _forget(self)
    else:
        yield from _refuse(self)


def _go_on(self: HttpStream) -> Commands:
    """Send what was held of a stream that is still under way."""
    over = getattr(self, "tidegate_over", False) or self.server_state in (self.state_done, self.state_errored)
    if not over and getattr(self, "tidegate_answered", False):
        for piece in _ask("resumed", self.flow) or ():
            yield SendHttp(http_events.ResponseData(self.stream_id, piece), self.context.client)


def _overdue(self: HttpStream) -> Commands:
    """Send what leaves of a stream although nothing came."""
    gone = getattr(self, "tidegate_over", False) or self.server_state in (self.state_done, self.state_errored)
    if gone or not getattr(self, "tidegate_answered", False):
        return
    data, last = _ask("overdue", self.flow) or (b"", False)
    if last:
        yield from _end(self, Cut(self.flow, data, POLICY))
    elif data:
        yield SendHttp(http_events.ResponseData(self.stream_id, data), self.context.client)


def _route(self: HttpLayer, event: Cut | Resume | Overdue) -> Commands:
    """Bring an event of ours to its stream, through CONNECT tunnels too."""
    for stream in list(self.streams.values()):
        if getattr(stream, "flow", None) is event.flow or stream.child_layer is not None:
            yield from self.event_to_child(stream, event)


def _without_trailers(self: Http1Connection, event: events.Event, original: Callable[..., Commands]) -> Commands:
    """End an HTTP/1 message with trailers as a protocol error; mitmproxy raises and leaves the peer hanging (#2474)."""
    try:
        yield from original(self, event)
    except NotImplementedError:
        yield commands.CloseConnection(self.conn)
        assert self.stream_id is not None
        kind = self.ReceiveProtocolError
        code = http_events.ErrorCode.GENERIC_SERVER_ERROR
        if kind is http_events.RequestProtocolError:
            code = http_events.ErrorCode.GENERIC_CLIENT_ERROR
        yield ReceiveHttp(kind(self.stream_id, TRAILERS, code))


def _without_data(record: logging.LogRecord) -> bool:
    """Drop what mitmproxy's proxy core logs below WARNING (raw bytes among it) and every exception's text."""
    if record.levelno < logging.WARNING:
        return False
    if record.exc_info and record.exc_info[0]:
        record.msg, record.args = f"mitmproxy failed: {record.exc_info[0].__name__}", ()
        record.exc_info = record.exc_text = None
    return True
