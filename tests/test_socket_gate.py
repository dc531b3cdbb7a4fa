"""The adapter's side of one WebSocket: what the flow remembers, and the limits between two answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import websocket
from mitmproxy.test import tflow
from wsproto.frame_protocol import Opcode

from tidegate.extracting import Extractor
from tidegate.model import AnswerLimits
from tidegate.policy.policy import Keep
from tidegate.socket_gate import LiveSocket
from tidegate.steps import Stage


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
