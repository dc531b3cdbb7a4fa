"""Limits on a WebSocket, held by a real process: of a message, of each answer, and of the socket between answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from tests.e2e.socket_peer import Play, answer
from tests.e2e.test_socket import Rig, a_rig, ask, end_of, hear, text_of, wait_for

pytestmark = pytest.mark.e2e

LIMITS = {
    "request": {"bytes": "5000B"},
    "response": {"bytes": "20000B", "first_byte": "600ms", "idle": "500ms", "duration": "1500ms"},
    "socket": {"idle": "1200ms", "duration": "3s"},
}
DELTA = {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "x "}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with a_rig(tmp_path_factory.mktemp("socket-limits"), limits=LIMITS) as rig:
        yield rig


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.upstream.reset()
    return running


def dripping(event: dict[str, Any], pause: float) -> Play:
    """Send an event again and again."""

    async def play(socket: ServerConnection, _: dict[str, Any]) -> None:
        for _number in range(1000):
            await socket.send(json.dumps(event))
            await asyncio.sleep(pause)

    return play


def half_a_message(size: int) -> Play:
    """Begin a message of ``size`` bytes and do not end it."""

    async def play(socket: ServerConnection, _: dict[str, Any]) -> None:
        async def parts() -> Any:
            for _number in range(size // 1000):
                yield "x" * 1000
            await socket.wait_closed()

        await socket.send(parts())

    return play


def plays(rig: Rig, name: str) -> Play:
    return {
        "silence": rig.upstream.sends(hang=True),
        "silence in an answer": rig.upstream.sends(answer("x")[0], DELTA, hang=True),
        "an endless answer": dripping(DELTA, 0.1),
        "many events": dripping({**DELTA, "delta": "word " * 100}, 0.0),
        "one large event": rig.upstream.sends({**DELTA, "delta": "word " * 5000}, hang=True),
        "a message that never ends": half_a_message(30_000),
        "a message that stops": half_a_message(3000),
    }[name]


@pytest.mark.parametrize(
    ("name", "code", "seconds"),
    [
        ("silence", "answer_first_byte", 0.6),
        ("silence in an answer", "answer_idle", 0.5),
        ("an endless answer", "answer_duration", 1.5),
        ("many events", "answer_too_large", 0.0),
        ("one large event", "answer_too_large", 0.0),
        ("a message that never ends", "answer_too_large", 0.0),
        ("a message that stops", "answer_idle", 0.5),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_limit_of_an_answer(rig: Rig, name: str, code: str, seconds: float) -> None:
    rig.upstream.plays = plays(rig, name)
    with rig.open() as socket:
        began = time.monotonic()
        ask(socket)
        events, closed = end_of(socket)
        took = time.monotonic() - began
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", code)
    assert [each["type"] for each in events[:-1] if each["type"] == "error"] == []
    assert closed == 1008
    assert seconds - 0.05 <= took < seconds + 2
    assert sum(len(json.dumps(each)) for each in events) < 25_000
    wait_for(lambda: rig.upstream.closed)
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("denied", code)


def test_a_message_that_is_too_large_ends_the_socket(rig: Rig) -> None:
    with rig.open() as socket:
        ask(socket, "words " * 1000)
        events, closed = end_of(socket)
    assert ([each["error"]["code"] for each in events], closed) == (["body_too_large"], 1008)
    assert rig.upstream.messages == []
    assert rig.row(socket)["reason"] == "body_too_large"


def test_a_message_that_never_ends_is_not_collected(rig: Rig) -> None:
    with rig.open() as socket:
        with contextlib.suppress(ConnectionClosed):  # the end may come before the last part is sent
            socket.send("x" * 600 for _ in range(20))
        events, closed = end_of(socket)
    assert ([each["error"]["code"] for each in events], closed) == (["body_too_large"], 1008)
    assert rig.upstream.messages == []


def test_no_limit_of_an_answer_counts_between_two(rig: Rig) -> None:
    with rig.open() as socket:
        for _ in range(2):
            ask(socket)
            assert text_of(hear(socket)) == "hello"
            time.sleep(0.8)  # longer than the first byte may take, and longer than idle
    assert rig.row(socket)["outcome"] == "answered"


def test_each_answer_has_its_own_limits(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.says("word " * 600, size=300)  # 15 kB each
    with rig.open() as socket:
        for _ in range(3):
            ask(socket)
            assert hear(socket)[-1]["type"] == "response.completed"
    assert rig.row(socket)["response_bytes"] > 30_000


def test_a_silent_socket_is_closed_without_an_error(rig: Rig) -> None:
    with rig.open(ping_interval=0.2) as socket:
        ask(socket)
        hear(socket)
        began = time.monotonic()
        assert end_of(socket) == ([], 1001)
        assert 1.0 < time.monotonic() - began < 2.5
    wait_for(lambda: rig.upstream.closed)
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("answered", None)


def test_no_answer_begins_on_an_old_socket(rig: Rig) -> None:
    with rig.open() as socket:
        began, asked = time.monotonic(), 0
        while time.monotonic() - began < 2.7:
            ask(socket)
            hear(socket)
            asked += 1
            time.sleep(0.3)
        assert end_of(socket) == ([], 1001)
        assert 2.9 < time.monotonic() - began < 4
    assert rig.row(socket)["outcome"] == "answered"
    assert len(rig.upstream.messages) == asked
