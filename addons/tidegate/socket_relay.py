"""mitmproxy's WebSocket layer, made to send what the gate releases and nothing else.

mitmproxy shows each message to its addons and sends whatever is left of it, in one piece, also when an addon failed.
Here a message is shown to the gate alone, by a hook of our own, before any other addon can see it; only the messages
that the gate hands back are sent, however many they are. No answer from the gate (it was removed, it failed) ends the
WebSocket on both sides, and so does every other failure in this layer. What is put on the flow, for mitmweb and
recordings, is what was sent. ``egress.harden`` applies this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import wsproto.events
from mitmproxy import http, websocket
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.websocket import (
    WebsocketConnection,
    WebsocketEndHook,
    WebsocketLayer,
    WebsocketStartHook,
)
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.frame_protocol import Opcode

from tidegate.sockets import POLICY
from tidegate.steps import Form, Relay

Commands = Generator[commands.Command, Any, None]

MAX_CONTROL_PAYLOAD = 8
"""Bytes of a WebSocket ping that is answered: room for a counter or a time (RFC 6455 allows 125). None is relayed."""

FRAME = 4000
"""Bytes of a message in one frame: some servers take no more than 4 KiB."""

LEAVE = 2.0
"""Seconds that a client has to answer the last close frame (RFC 6455, 7.1.1). A connection that is closed under a
client that is still sending is reset, and the client may never read why."""

Ask = Callable[..., Any]
"""Asks the keeper: (question, flow). No keeper, and a bug in it, give ``None``."""


@dataclass(frozen=True)
class Cut(events.Event):
    """End one exchange now: refuse it if its answer has not begun, else send ``data`` and end; stop the upstream.

    ``code`` is the close code on a WebSocket, ``reason`` what its client is told with it.
    """

    flow: http.HTTPFlow
    data: bytes
    code: int = POLICY
    reason: str = ""


@dataclass(frozen=True)
class OwnClose(wsproto.events.CloseConnection):
    """A close of the gate's own, whose reason is the gate's own words."""


@dataclass
class Said:
    """What a peer did on a WebSocket; the gate fills in what may be sent because of it."""

    flow: http.HTTPFlow
    from_client: bool
    form: Form
    data: bytes = field(repr=False)
    released: Relay | None = None


@dataclass
class TidegateSocketHook(commands.StartHook):
    """A peer did something on a WebSocket: asked of the gate and of nobody else."""

    said: Said


class Keeper(Protocol):
    """What this layer asks about one WebSocket. The keeper's ``socket`` gives it, by its flow."""

    def room(self, from_client: bool) -> int:
        """Say how many bytes of a message are worth collecting."""

    def heard(self, from_client: bool, size: int) -> None:
        """Take note of bytes of a message that is coming."""

    def kept(self, flow: http.HTTPFlow) -> None:
        """Bound what the flow remembers after one more message."""

    def shown(self, data: bytes) -> tuple[bytes, ...]:
        """Return what the client gets for a message that the flow keeps: with values where that has tokens."""

    def last_words(self) -> tuple[bytes, ...]:
        """Return what is still to be said where the gate gave no answer about a message."""


_ask: Ask = lambda *_: None  # noqa: E731 - until ``harden``, nobody answers


def harden(ask: Ask) -> None:
    """Change mitmproxy's WebSocket layer, and make ``ask`` the way to the keeper."""
    global _ask  # noqa: PLW0603 - mitmproxy's layers are classes of the process, so is the one they ask
    _ask = ask
    if getattr(WebsocketLayer, "tidegate_hardened", False):
        return
    WebsocketLayer.tidegate_hardened = True  # type: ignore[attr-defined]
    WebsocketLayer._handle_event = _start
    WebsocketLayer.relay_messages = _guarded  # type: ignore[method-assign]
    WebsocketLayer.done = _leave  # type: ignore[method-assign]
    send2 = WebsocketConnection.send2
    WebsocketConnection.send2 = lambda self, event: send2(self, _small(event))  # type: ignore[method-assign]


def _start(self: WebsocketLayer, _event: events.Event) -> Commands:
    """Begin without any extension, whatever the head of the answer says by now."""
    self.client_ws = WebsocketConnection(ConnectionType.SERVER, [], conn=self.context.client)
    self.server_ws = WebsocketConnection(ConnectionType.CLIENT, [], conn=self.context.server)
    self._handle_event = self.relay_messages
    yield WebsocketStartHook(self.flow)


def _guarded(self: WebsocketLayer, event: events.Event) -> Commands:
    """Take one event; a bug on the way ends the WebSocket."""
    try:
        yield from _relay(self, event)
    except Exception as bug:  # noqa: BLE001 - whatever it is, nothing more may pass
        logging.getLogger("tidegate").error("tidegate failed on a WebSocket: %s", type(bug).__name__)
        yield from _close(self, POLICY)


def _leave(self: WebsocketLayer, event: events.Event) -> Commands:
    """Throw away what comes after the end; close the client's connection when it has said its end too, or is late."""
    client = self.context.client
    if isinstance(event, events.DataReceived) and event.connection is client:
        if not _has_ended(self.client_ws, event.data):
            return
    elif not isinstance(event, events.Wakeup) and not (
        isinstance(event, events.ConnectionClosed) and event.connection is client
    ):
        return
    self._handle_event = _nothing
    yield commands.CloseConnection(client)


def _has_ended(source: WebsocketConnection, data: bytes) -> bool:
    """Say whether a peer's data hold its close frame, or no frames at all."""
    if source.state is ConnectionState.CLOSED:
        return True
    try:
        source.receive_data(data)
        return any(isinstance(each, wsproto.events.CloseConnection) for each in source.events())
    except wsproto.utilities.RemoteProtocolError:
        return True


def _nothing(_event: events.Event) -> Commands:
    """Take no more events."""
    yield from ()


def _socket(self: WebsocketLayer) -> Keeper:
    """Return who judges this WebSocket; without one it ends."""
    found: Keeper | None = _ask("socket", self.flow)
    if found is None:
        raise LookupError
    return found


def _relay(self: WebsocketLayer, event: events.Event) -> Commands:
    if isinstance(event, Cut):
        if event.flow is self.flow:
            yield from _end(self, Relay((event.data,) if event.data else (), (), event.code, event.reason))
        return
    if not isinstance(event, events.ConnectionEvent):
        return  # a message that a person injects: nobody judged it
    from_client = event.connection == self.context.client
    source = self.client_ws if from_client else self.server_ws
    if source.state is not ConnectionState.CLOSED:
        source.receive_data(event.data if isinstance(event, events.DataReceived) else None)
    for each in source.events():
        if isinstance(each, wsproto.events.Message):
            yield from _message(self, source, each, from_client)
        elif isinstance(each, wsproto.events.CloseConnection):
            yield from _closed(self, int(each.code), from_client)
        elif isinstance(each, (wsproto.events.Ping, wsproto.events.Pong)):
            if len(each.payload) > MAX_CONTROL_PAYLOAD:
                yield from _hear(self, Said(self.flow, from_client, Form.CONTROL, b""))
            elif isinstance(each, wsproto.events.Ping):
                yield from _send(source, each.response())  # answered here: many small ones would carry a text across
        if _is_over(self):
            return


def _message(
    self: WebsocketLayer, source: WebsocketConnection, part: wsproto.events.Message[Any], from_client: bool
) -> Commands:
    """Collect the parts of a message, no more than the gate takes; show it when it is whole or too large."""
    text = isinstance(part.data, str)
    data = part.data.encode() if text else bytes(part.data)
    source.frame_buf.append(data)
    size = sum(map(len, source.frame_buf))
    keeper = _socket(self)
    keeper.heard(from_client, len(data))
    if not part.message_finished and size <= keeper.room(from_client):
        if len(source.frame_buf) > 64:  # parts are joined now and then: a byte each would cost a list of them
            source.frame_buf[:] = [b"".join(source.frame_buf)]
        return
    whole = b"".join(source.frame_buf)
    source.frame_buf = []
    yield from _hear(self, Said(self.flow, from_client, Form.TEXT if text else Form.BINARY, whole))
    if not part.message_finished and not _is_over(self):
        yield from _end(self, Relay(close=POLICY))  # the gate took the first part of a message for all of it


def _hear(self: WebsocketLayer, said: Said) -> Commands:
    """Show the gate what a peer did, and send what it releases."""
    yield TidegateSocketHook(said)
    step = said.released
    if step is None:
        yield from _end(self, Relay(_socket(self).last_words(), (), POLICY))
        return
    for data in step.up:
        yield from _say(self, self.server_ws, data, binary=step.binary)
    if step.close is not None:
        yield from _end(self, step)
        return
    for data in step.down:
        yield from _say(self, self.client_ws, data, binary=step.binary)


def _closed(self: WebsocketLayer, code: int, by_client: bool) -> Commands:
    """Pass on a peer's end, after the last that the gate has to say."""
    assert self.flow.websocket
    self.flow.websocket.closed_by_client = by_client
    said = Said(self.flow, by_client, Form.END, b"")
    yield TidegateSocketHook(said)
    step = said.released
    if step is None:
        step = Relay(_socket(self).last_words(), (), POLICY)
    yield from _end(self, step if step.close == POLICY else replace(step, close=code))


def _end(self: WebsocketLayer, last: Relay) -> Commands:
    """Say the last words to the client and close both sides; nothing is relayed after that."""
    if not _is_over(self):
        self._handle_event = self.done
        for data in last.down:
            yield from _say(self, self.client_ws, data, binary=last.binary)
        yield from _close(self, POLICY if last.close is None else last.close, last.reason)


def _close(self: WebsocketLayer, code: int, reason: str = "") -> Commands:
    assert self.flow.websocket
    self._handle_event = self.done
    self.flow.websocket.timestamp_end = time.time()
    self.flow.websocket.close_code = code
    self.flow.websocket.close_reason = ""
    for each in (self.server_ws, self.client_ws):
        told = reason if each is self.client_ws else ""
        yield from _send(each, OwnClose(code=code, reason=told or None))
    yield commands.CloseConnection(self.server_ws.conn)
    if self.client_ws.state is ConnectionState.LOCAL_CLOSING:
        yield commands.RequestWakeup(LEAVE)
    else:
        self._handle_event = _nothing
        yield commands.CloseConnection(self.client_ws.conn)
    yield WebsocketEndHook(self.flow)
    self.flow.live = False
    _ask("over", self.flow)


def _say(self: WebsocketLayer, to: WebsocketConnection, data: bytes, *, binary: bool) -> Commands:
    """Send one message and put it on the flow."""
    if to.state is not ConnectionState.OPEN:
        return
    assert self.flow.websocket
    message = websocket.WebSocketMessage(Opcode.BINARY if binary else Opcode.TEXT, to is self.server_ws, data)
    self.flow.websocket.messages.append(message)
    _socket(self).kept(self.flow)
    for shown in _socket(self).shown(data) if to is self.client_ws else (data,):
        for each in _frames(shown, binary=binary):
            yield to.send2(each)


def _frames(data: bytes, *, binary: bool) -> Iterator[wsproto.events.Event]:
    """Cut a message into frames; a text between two characters."""
    start = 0
    while True:
        end = min(len(data), start + FRAME)
        while not binary and end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        piece, last = data[start:end], end == len(data)
        if binary:
            yield wsproto.events.BytesMessage(piece, message_finished=last)
        else:
            yield wsproto.events.TextMessage(piece.decode(), message_finished=last)
        if last:
            return
        start = end


def _send(to: WebsocketConnection, event: wsproto.events.Event) -> Commands:
    """Send a control frame where it still can be sent."""
    closing = isinstance(event, wsproto.events.CloseConnection)
    if to.state is ConnectionState.OPEN or (closing and to.state is ConnectionState.REMOTE_CLOSING):
        yield to.send2(event)


def _is_over(self: WebsocketLayer) -> bool:
    return self._handle_event == self.done or self._handle_event is _nothing


def _small(event: wsproto.events.Event) -> wsproto.events.Event:
    """Close instead of relaying a ping or pong that could carry text, and relay no close reason: no rule reads them."""
    if isinstance(event, (wsproto.events.Ping, wsproto.events.Pong)) and len(event.payload) > MAX_CONTROL_PAYLOAD:
        return wsproto.events.CloseConnection(code=POLICY)
    if isinstance(event, wsproto.events.CloseConnection) and not isinstance(event, OwnClose):
        return wsproto.events.CloseConnection(code=event.code)
    return event
