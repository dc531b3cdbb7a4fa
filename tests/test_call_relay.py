"""The client's side of a call: whole messages are shown to the gate, and nothing is sent that it did not release."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http import _events as http
from mitmproxy.test import tflow

from tidegate.call_relay import Speech, Spoken, TidegateCallHook, hear
from tidegate.streams.grpc import PREFIX, complete, frame

ROOM = 100


class Stream:
    """As much of an ``HttpStream`` as a call needs."""

    stream_id = 1

    def __init__(self, *, connects: bool = True) -> None:
        self.flow = tflow.tflow(resp=False)
        self.context = self.flow  # it has the connection that messages are sent on, under another name
        self.context.server = self.flow.server_conn
        self.connects = connects
        self.connected = self.done = False
        self._paused_event_queue: collections.deque[Any] = collections.deque()
        self.client_state = self.state_consume_request_body
        self.server_state = self.state_wait_for_response_headers

    def state_consume_request_body(self) -> None: ...
    def state_stream_request_body(self) -> None: ...
    def state_wait_for_response_headers(self) -> None: ...
    def state_done(self) -> None: ...
    def state_errored(self) -> None: ...

    def make_server_connection(self) -> Any:
        self.connected = self.connects
        return self.connects
        yield

    def flow_done(self) -> Any:
        self.done = True
        yield from ()


class Relay:
    """Drives a call: ``shown`` is what the gate was asked about, ``sent`` what went to the upstream."""

    def __init__(self, stream: Stream | None = None, refuse: int = -1) -> None:
        self.stream: Any = stream or Stream()
        self.speech = Speech(ROOM)
        self.shown: list[Spoken] = []
        self.sent: list[Any] = []
        self._refuse = refuse

    def take(self, event: Any) -> None:
        for command in hear(self.stream, self.speech, event):
            if isinstance(command, TidegateCallHook):
                assert not self.sent or not command.spoken.first
                self.shown.append(command.spoken)
                if len(self.shown) - 1 != self._refuse:
                    command.spoken.released = command.spoken.data.upper()
            else:
                assert isinstance(command, SendHttp)
                self.sent.append(command.event)

    def say(self, *pieces: bytes, end: bool = True) -> None:
        for piece in pieces:
            self.take(http.RequestData(1, piece))
        if end:
            self.take(http.RequestEndOfMessage(1))

    @property
    def kinds(self) -> list[str]:
        return [type(each).__name__ for each in self.sent]

    @property
    def data(self) -> bytes:
        return b"".join(each.data for each in self.sent if isinstance(each, http.RequestData))


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5), st.lists(st.integers(0, 200), max_size=8))
def test_any_cut_shows_whole_messages_and_sends_what_was_released(messages: list[bytes], places: list[int]) -> None:
    data = b"".join(map(frame, messages))
    edges = [0, *sorted(min(at, len(data)) for at in places), len(data)]
    relay = Relay()
    relay.say(*(data[a:b] for a, b in itertools.pairwise(edges)))
    assert b"".join(each.data for each in relay.shown) == data
    assert all(complete(each.data) == len(each.data) for each in relay.shown)
    assert [each.first for each in relay.shown] == [True] + [False] * (len(relay.shown) - 1)
    assert relay.data == data.upper()
    assert relay.kinds[0] == "RequestHeaders"
    assert relay.kinds[-1] == "RequestEndOfMessage"


@pytest.mark.parametrize("refuse", [0, 1, 2])
def test_a_refused_message_stops_the_call_for_good(refuse: int) -> None:
    relay = Relay(refuse=refuse)
    relay.say(frame(b"one"), frame(b"two"), frame(b"three"), frame(b"four"))
    assert relay.speech.stopped
    assert relay.stream.connected is (refuse > 0)
    assert relay.data == b"".join(map(frame, [b"ONE", b"TWO", b"THREE"][:refuse]))
    assert len(relay.shown) == refuse + 1
    assert "RequestEndOfMessage" not in relay.kinds


def test_nothing_is_opened_before_a_message_is_complete() -> None:
    relay = Relay()
    relay.say(frame(b"one")[:-1], end=False)
    assert not relay.shown
    assert not relay.stream.connected


def test_an_end_without_a_message_and_half_a_message_are_the_gates_to_judge() -> None:
    empty, half = Relay(refuse=0), Relay(refuse=1)
    empty.say()
    half.say(frame(b"one"), frame(b"two")[:-1])
    assert [(each.data, each.first, each.ended) for each in empty.shown] == [(b"", True, True)]
    assert half.shown[-1].data == frame(b"two")[:-1]
    assert half.data == frame(b"ONE")


def test_a_message_that_is_larger_than_any_is_shown_before_it_is_complete() -> None:
    relay = Relay(refuse=0)
    announced = b"\0\0\x10\0\0"
    relay.say(announced, b"x" * ROOM, end=False)
    assert not relay.shown
    relay.say(b"x", end=False)
    assert len(relay.shown[0].data) == PREFIX + ROOM + 1
    assert relay.speech.stopped


def test_what_waits_is_counted() -> None:
    relay = Relay()
    relay.stream._paused_event_queue.extend([http.RequestData(1, b"x" * 70), http.RequestEndOfMessage(1)])
    relay.say(frame(b"one"), end=False)
    assert relay.shown[0].waiting == 70


def test_trailers_of_a_client_are_dropped() -> None:
    relay = Relay()
    relay.say(frame(b"one"), end=False)
    relay.take(http.RequestTrailers(1, tflow.tflow().request.headers))
    assert relay.kinds == ["RequestHeaders", "RequestData"]


def test_an_upstream_that_cannot_be_reached_is_sent_nothing() -> None:
    relay = Relay(Stream(connects=False))
    relay.say(frame(b"one"), end=False)
    assert relay.sent == []
    assert relay.stream.client_state == relay.stream.state_errored


def test_what_comes_after_the_answer_is_thrown_away() -> None:
    relay = Relay()
    relay.say(frame(b"one"), end=False)
    relay.stream.server_state = relay.stream.state_done
    relay.stream.flow.response = tflow.tflow(resp=True).response
    relay.say(frame(b"two"))
    assert relay.data == frame(b"ONE")
    assert relay.stream.done
