"""The adapter's side of one WebSocket: what the flow remembers, and the limits between two answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import websocket
from mitmproxy.test import tflow
from wsproto.frame_protocol import Opcode

from tidegate.endings import BUG
from tidegate.extracting import Extractor
from tidegate.model import AnswerLimits
from tidegate.policy.policy import Keep
from tidegate.socket_gate import LiveSocket
from tidegate.socket_relay import Said
from tidegate.steps import Form, Relay, Stage


def exchange(keep: Keep, limits: AnswerLimits) -> Any:
    connection = SimpleNamespace(request_bytes=600, answer=limits)
    crossing = SimpleNamespace(
        route=SimpleNamespace(connection=connection),
        policy=SimpleNamespace(recording=SimpleNamespace(keep=keep)),
        stage=Stage.SOCKET,
    )
    return SimpleNamespace(crossing=crossing, limits=limits, stop_watching=lambda: None, timer=None)


@pytest.mark.parametrize(("keep", "most"), [(Keep.REDACTED, 1000), (Keep.NONE, 0)])
def test_what_a_flow_remembers_is_bounded(keep: Keep, most: int) -> None:
    async def run() -> None:
        live = LiveSocket(exchange(keep, AnswerLimits(bytes=400)), 1000, lambda *_: None, Extractor())
        flow = tflow.twebsocketflow()
        assert flow.websocket is not None
        flow.websocket.messages.clear()
        for number in range(1000):
            flow.websocket.messages.append(websocket.WebSocketMessage(Opcode.TEXT, False, b"%010d" % number))
            live.kept(flow)
            assert sum(len(each.content) for each in flow.websocket.messages) <= most
        if most:
            assert flow.websocket.messages[-1].content == b"%010d" % 999
            assert len(flow.websocket.messages) > 50

    asyncio.run(run())


class Talks:
    """A crossing that is told how many answers have begun, and is stopped once."""

    def __init__(self, limits: AnswerLimits) -> None:
        base = exchange(Keep.NONE, limits).crossing
        self.route, self.policy, self.stage, self.grant = base.route, base.policy, base.stage, None
        self.socket = SimpleNamespace(turns=0, busy=False)

    def receive(self, event: object) -> Relay:
        if type(event).__name__ == "Stopped":
            self.stage = Stage.OVER
            return Relay((), (), 1008, "bug: sorry")
        self.socket.turns += 1
        self.socket.busy = True
        return Relay()


def live_socket(limits: AnswerLimits, cuts: list[Any]) -> LiveSocket:
    given = exchange(Keep.NONE, limits)
    given.crossing, given.said = Talks(limits), lambda data: data
    return LiveSocket(given, 1000, lambda *cut: cuts.append(cut[1:]), Extractor())


def test_answers_that_overlap_do_not_keep_an_old_socket_open() -> None:
    async def run() -> None:
        socket = live_socket(AnswerLimits(socket_duration=100.0), [])
        said = Said(tflow.twebsocketflow(), from_client=False, form=Form.TEXT, data=b"{}")
        socket.take(said)
        first = socket._meter
        socket.take(said)
        second = socket._meter
        assert first is not second  # the next answer has its own time
        socket._opened -= 101
        socket.take(said)
        assert socket._meter is second

    asyncio.run(run())


def test_what_ends_a_socket_from_outside_is_told_in_its_close_frame() -> None:
    async def run() -> None:
        cuts: list[Any] = []
        socket = live_socket(AnswerLimits(), cuts)
        socket._end(BUG)
        assert cuts == [(b"", 1008, "bug: sorry")]
        said = Said(tflow.twebsocketflow(), from_client=True, form=Form.TEXT, data=b"{}")
        socket.take(said)
        assert said.released == Relay((), (), 1008, "bug: sorry")

    asyncio.run(run())
