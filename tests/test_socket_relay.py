"""mitmproxy's WebSocket layer as the gate leaves it: driven by hand, with a keeper that says what each test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import wsproto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy import http, options, websocket
from mitmproxy.proxy import commands, context, events
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketLayer, WebSocketMessageInjected
from mitmproxy.test import tflow
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import Opcode

from tidegate import egress, socket_relay
from tidegate.socket_relay import Cut, Said, TidegateSocketHook
from tidegate.steps import Form, Relay

SECRET = "words-CANARY-of-a-message"
Judge = Callable[[Said], Relay | None]


@dataclass
class Keeper:
    """A gate that judges as told. ``room`` is the size of a message it takes."""

    size: int = 1000
    sizes: list[int] = field(default_factory=list)
    over: int = 0

    def room(self, from_client: bool) -> int:
        return self.size

    def heard(self, from_client: bool, size: int) -> None:
        self.sizes.append(size)

    def kept(self, flow: http.HTTPFlow) -> None:
        """Keep everything."""

    def shown(self, data: bytes) -> tuple[bytes, ...]:
        return (data,)

    def last_words(self) -> tuple[bytes, ...]:
        return (b'"sorry"',)


class Wire:
    """The layer between a client and an upstream, each with a WebSocket of its own."""

    def __init__(self, judge: Judge) -> None:
        self.flow = tflow.twebsocketflow()
        assert self.flow.websocket is not None
        self.flow.websocket.messages.clear()
        self.keeper: Keeper | None = Keeper()
        self.judge = judge
        self.context = context.Context(self.flow.client_conn, options.Options())
        self.context.server = self.flow.server_conn
        self.layer = WebsocketLayer(self.context, self.flow)
        self.client = wsproto.Connection(ConnectionType.CLIENT)
        self.server = wsproto.Connection(ConnectionType.SERVER)
        self.closed: list[object] = []
        self.wakeups: list[commands.RequestWakeup] = []
        self.ended = 0
        self.run(events.Start())

    def run(self, event: events.Event) -> None:
        """Give the layer an event, and do what it asks for."""
        for command in self.layer.handle_event(event):
            if isinstance(command, TidegateSocketHook):
                command.said.released = self.judge(command.said)
            if isinstance(command, commands.StartHook):
                self.ended += isinstance(command, WebsocketEndHook)
                if command.blocking:
                    self.run(events.HookCompleted(command))
            elif isinstance(command, commands.SendData):
                peer = self.client if command.connection is self.context.client else self.server
                peer.receive_data(command.data)
            elif isinstance(command, commands.RequestWakeup):
                self.wakeups.append(command)
            elif isinstance(command, commands.CloseConnection):
                self.closed.append(command.connection)

    def says(self, event: wsproto.events.Event, *, upstream: bool = False) -> None:
        peer, connection = (self.server, self.context.server) if upstream else (self.client, self.context.client)
        self.run(events.DataReceived(connection, peer.send(event)))

    def got(self) -> tuple[list[str], list[str]]:
        """Return the texts that reached the client and the upstream since last asked, closes by their code."""
        return _texts(self.client), _texts(self.server)

    @property
    def is_closed(self) -> bool:
        """Say whether it is over: the upstream cut off, the client's connection closed once it has said its end too."""
        if self.closed == [self.context.server]:
            _texts(self.client)
            if self.client.state is ConnectionState.REMOTE_CLOSING:
                self.says(CloseConnection(code=1000))
        return self.closed == [self.context.server, self.context.client]


def _closed(peer: wsproto.Connection) -> list[tuple[int, str | None]]:
    return [(int(each.code), each.reason) for each in peer.events() if isinstance(each, CloseConnection)]


def _bytes(peer: wsproto.Connection) -> list[bytes]:
    found = [b""]
    for each in peer.events():
        assert isinstance(each, BytesMessage)
        found[-1] += bytes(each.data)
        found += [b""] if each.message_finished else []
    return found[:-1]


def _texts(peer: wsproto.Connection) -> list[str]:
    found: list[str] = []
    text = ""
    for event in peer.events():
        if isinstance(event, TextMessage):
            text += event.data
            if event.message_finished:
                found.append(text)
                text = ""
        elif isinstance(event, CloseConnection):
            found.append(str(int(event.code)))
        else:
            found.append(type(event).__name__)
    return found


@pytest.fixture
def wire() -> Iterator[Callable[[Judge], Wire]]:
    made: list[Wire] = []

    def make(judge: Judge) -> Wire:
        made.append(Wire(judge))
        return made[-1]

    def ask(question: str, flow: http.HTTPFlow) -> Any:
        if question == "over":
            assert made[-1].keeper is None or made[-1].keeper.__class__ is Keeper
            return None
        return made[-1].keeper

    egress.harden(None)
    socket_relay.harden(ask)
    yield make
    egress.harden(None)


def passes(said: Said) -> Relay:
    data = (said.data,) if said.form is Form.TEXT else ()
    return Relay((), data) if said.from_client else Relay(data)


def test_what_the_gate_releases_is_sent(wire: Callable[[Judge], Wire]) -> None:
    here = wire(passes)
    here.says(TextMessage("up"))
    here.says(TextMessage("down"), upstream=True)
    assert here.got() == (["down"], ["up"])
    assert here.flow.websocket is not None
    assert [(m.from_client, m.content) for m in here.flow.websocket.messages] == [(True, b"up"), (False, b"down")]


def test_one_message_may_become_none_or_several_both_ways(wire: Callable[[Judge], Wire]) -> None:
    here = wire(lambda said: Relay((b"a", b"b"), (b"c", b"d")) if said.from_client else Relay())
    here.says(TextMessage(SECRET))
    here.says(TextMessage(SECRET), upstream=True)
    assert here.got() == (["a", "b"], ["c", "d"])
    assert here.flow.websocket is not None
    assert SECRET.encode() not in b"".join(each.content for each in here.flow.websocket.messages)


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("keeper", [True, False], ids=["a gate that says nothing", "no gate"])
def test_without_an_answer_of_the_gate_the_socket_is_cut(
    wire: Callable[[Judge], Wire], upstream: bool, keeper: bool
) -> None:
    here = wire(lambda _: None)
    here.keeper = here.keeper if keeper else None
    here.says(TextMessage(SECRET), upstream=upstream)
    assert here.got() == ([*(['"sorry"'] if keeper else []), "1008"], ["1008"])
    assert here.is_closed
    assert here.ended == 1


def test_a_layer_that_fails_cuts_the_socket(wire: Callable[[Judge], Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    here = wire(passes)
    monkeypatch.setattr(socket_relay, "_say", broken)
    here.says(TextMessage(SECRET))
    assert here.got() == (["1008"], ["1008"])
    assert here.is_closed


def test_nothing_follows_the_end(wire: Callable[[Judge], Wire]) -> None:
    here = wire(lambda said: Relay((b"bye",), (), 1008))
    here.says(TextMessage("x"))
    assert here.got() == (["bye", "1008"], ["1008"])
    here.run(events.DataReceived(here.context.client, b"\x81\x80\0\0\0\0"))
    here.run(events.ConnectionClosed(here.context.server))
    here.run(Cut(here.flow, b"again"))
    assert here.got() == ([], [])
    assert here.is_closed
    assert here.ended == 1


@pytest.mark.parametrize("then", ["it says its end", "it is late", "it is gone", "it sends what is no frame"])
def test_a_client_that_still_sends_can_read_why_it_ended(wire: Callable[[Judge], Wire], then: str) -> None:
    here = wire(lambda _: Relay((b"bye",), (), 1008))
    for _ in range(3):
        here.says(TextMessage("x" * 1001, message_finished=False))
    assert here.closed == [here.context.server]  # not the client's: closed while it sends, it would be reset
    assert [each.delay for each in here.wakeups] == [socket_relay.LEAVE]
    here.run(events.DataReceived(here.context.server, b"\x81\x01x"))
    here.run(events.ConnectionClosed(here.context.server))
    assert here.closed == [here.context.server]
    last: dict[str, events.Event] = {
        "it says its end": events.DataReceived(here.context.client, b"\x88\x82\0\0\0\0\x03\xf0"),
        "it is late": events.Wakeup(here.wakeups[0]),
        "it is gone": events.ConnectionClosed(here.context.client),
        "it sends what is no frame": events.DataReceived(here.context.client, b"\xff" * 20),
    }
    for event in last.values() if then == "it says its end" else [last[then], *last.values()]:
        here.run(event)
    assert here.closed == [here.context.server, here.context.client]
    assert here.got() == (["bye", "1008"], ["1008"])


def test_a_cut_says_its_words_and_closes(wire: Callable[[Judge], Wire]) -> None:
    here = wire(passes)
    here.run(Cut(tflow.tflow(), b"for another"))
    assert here.got() == ([], [])
    here.run(Cut(here.flow, b"too slow", 1001))
    assert here.got() == (["too slow", "1001"], ["1001"])
    assert here.is_closed


def test_a_message_that_a_person_injects_is_not_sent(wire: Callable[[Judge], Wire]) -> None:
    here = wire(passes)
    message = websocket.WebSocketMessage(Opcode.TEXT, True, SECRET.encode())
    here.run(WebSocketMessageInjected(here.flow, message))
    assert here.got() == ([], [])
    assert not here.is_closed


def test_parts_are_one_message_and_no_more_than_fits_is_collected(wire: Callable[[Judge], Wire]) -> None:
    seen: list[bytes] = []

    def judge(said: Said) -> Relay:
        seen.append(said.data)
        return passes(said)

    here = wire(judge)
    assert here.keeper is not None
    for _ in range(200):
        here.says(TextMessage("x", message_finished=False))
    here.says(TextMessage("y"))
    assert seen == [b"x" * 200 + b"y"]
    for _ in range(300):
        if not here.closed:
            here.says(TextMessage("z" * 10, message_finished=False))
    assert len(seen[1]) == here.keeper.size + 10
    assert here.is_closed
    assert sum(here.keeper.sizes) == 201 + here.keeper.size + 10


@pytest.mark.parametrize("upstream", [False, True])
def test_small_pings_are_answered_here_and_large_ones_are_judged(wire: Callable[[Judge], Wire], upstream: bool) -> None:
    forms: list[Form] = []

    def judge(said: Said) -> Relay:
        forms.append(said.form)
        return Relay(close=1008)

    here = wire(judge)
    here.says(Ping(b"12345678"), upstream=upstream)
    assert here.got() == (([], ["Pong"]) if upstream else (["Pong"], []))
    here.says(Pong(b"12345678"), upstream=upstream)
    assert here.got() == ([], [])
    here.says(Ping(b"123456789"), upstream=upstream)
    assert forms == [Form.CONTROL]
    assert here.is_closed


@pytest.mark.parametrize("upstream", [False, True])
def test_a_close_is_passed_on_without_its_reason(wire: Callable[[Judge], Wire], upstream: bool) -> None:
    here = wire(lambda _: Relay((b"last",), (), 1000))
    here.says(CloseConnection(code=4001, reason=SECRET), upstream=upstream)
    client, server = here.got()
    assert (client, server) == (["last", "4001"] if upstream else ["4001"], ["4001"])
    assert here.flow.websocket is not None
    assert (here.flow.websocket.close_code, here.flow.websocket.close_reason) == (4001, "")
    assert here.flow.websocket.closed_by_client is not upstream
    assert here.is_closed


def test_a_connection_that_is_gone_ends_the_other(wire: Callable[[Judge], Wire]) -> None:
    here = wire(lambda said: Relay((), (), 1000))
    here.run(events.ConnectionClosed(here.context.client))
    assert here.is_closed


def test_no_extension_is_spoken_whatever_the_head_says(wire: Callable[[Judge], Wire]) -> None:
    flow = tflow.twebsocketflow()
    assert flow.response is not None
    flow.response.headers["sec-websocket-extensions"] = "permessage-deflate"
    layer = WebsocketLayer(context.Context(flow.client_conn, options.Options()), flow)
    list(layer.handle_event(events.Start()))
    assert layer.client_ws._proto.extensions == []
    assert layer.server_ws._proto.extensions == []


CUTS = st.lists(st.integers(0, 200), max_size=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), frames=CUTS, pieces=CUTS, binary=st.booleans(), upstream=st.booleans())
def test_any_cut_of_a_message_is_the_same_message(
    wire: Callable[[Judge], Wire], text: str, frames: list[int], pieces: list[int], binary: bool, upstream: bool
) -> None:
    """However a peer cuts it into frames, and the network these into bytes, the gate is shown it once and whole."""
    shown: list[tuple[Form, bytes]] = []

    def judge(said: Said) -> Relay:
        shown.append((said.form, said.data))
        return Relay()

    here = wire(judge)
    peer, connection = (here.server, here.context.server) if upstream else (here.client, here.context.client)
    whole: Any = text.encode() if binary else text
    at = sorted({min(each, len(whole)) for each in frames} - {len(whole)})
    data = b""
    for start, end in zip([0, *at], [*at, len(whole)], strict=True):
        kind = BytesMessage if binary else TextMessage
        data += peer.send(kind(whole[start:end], message_finished=end == len(whole)))
    at = sorted({min(each, len(data)) for each in pieces})
    for start, end in zip([0, *at], [*at, len(data)], strict=True):
        here.run(events.DataReceived(connection, data[start:end]))
    assert shown == [(Form.BINARY if binary else Form.TEXT, text.encode())]


@pytest.mark.parametrize("upstream", [False, True])
def test_a_long_text_is_cut_between_characters(wire: Callable[[Judge], Wire], upstream: bool) -> None:
    here = wire(passes)
    text = "x" + "\u00e9" * 3000 + "\U0001f600" * 3000
    here.says(TextMessage(text), upstream=upstream)
    assert here.got() == (([text], []) if upstream else ([], [text]))


@pytest.mark.parametrize("size", [0, 1, 4000, 4001, 20000])
@pytest.mark.parametrize("upstream", [False, True])
def test_what_is_no_text_stays_none(wire: Callable[[Judge], Wire], upstream: bool, size: int) -> None:
    def judge(said: Said) -> Relay:
        return Relay((), (said.data,), binary=True) if said.from_client else Relay((said.data,), binary=True)

    here = wire(judge)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    here.says(BytesMessage(data), upstream=upstream)
    assert (_bytes(here.client), _bytes(here.server)) == (([data], []) if upstream else ([], [data]))
    assert here.flow.websocket is not None
    assert [each.type for each in here.flow.websocket.messages] == [Opcode.BINARY]


@pytest.mark.parametrize("way", ["a message", "a cut"])
def test_the_gates_own_reason_is_told_to_the_client_alone(wire: Callable[[Judge], Wire], way: str) -> None:
    here = wire(lambda _: Relay((), (), 1008, "finding: no"))
    if way == "a cut":
        here.run(Cut(here.flow, b"", 1008, "finding: no"))
    else:
        here.says(TextMessage("x"))
    assert _closed(here.client) == [(1008, "finding: no")]
    assert _closed(here.server) == [(1008, "")]
    assert here.flow.websocket is not None
    assert here.flow.websocket.close_reason == ""
