"""What arrives reaches the layers once, whole and in order, whichever way it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import connection
from mitmproxy.proxy import commands, events, server

from tidegate import turns


class Transport(asyncio.Transport):
    """A transport that never writes: ``waiting`` bytes stand in its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.closed = self.paused = False
        self.protocol: Any = None

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Watch:
    def register_activity(self) -> None:
        pass

    @contextmanager
    def disarm(self) -> Iterator[None]:
        yield


class Layer:
    """Notes what it is given; ``during`` is called in the middle of an event."""

    def __init__(self) -> None:
        self.seen: list[str | bytes] = []
        self.during: Any = None
        self.asks: Iterable[commands.Command] = ()

    def handle_event(self, event: events.Event) -> Iterator[commands.Command]:
        name = event.data if isinstance(event, events.DataReceived) else type(event).__name__
        self.seen.append(name)
        if self.during is not None and name == b"first":
            self.during()
            self.seen.append("end of first")
        if name == b"crash":
            raise RuntimeError("a text of the peer")
        yield from self.asks


class Handler:
    """As much of mitmproxy's handler as a turn needs."""

    def __init__(self) -> None:
        self.client = connection.Client(
            peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), state=connection.ConnectionState.OPEN
        )
        self.transport, self.layer, self.timeout_watchdog = Transport(), Layer(), Watch()
        self.logged: list[str] = []
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=64, loop=loop)
        usual = asyncio.StreamReaderProtocol(reader, loop=loop)
        self.transport.protocol = usual
        usual.connection_made(self.transport)
        writer = asyncio.StreamWriter(self.transport, usual, reader, loop)
        self.transports = {self.client: server.ConnectionIO(reader=reader, writer=writer)}

    async def drain_writers(self) -> None:
        await asyncio.sleep(0)

    def log(self, message: str, level: int) -> None:
        self.logged.append(message)


CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=90), st.booleans(), st.integers(0, 2)), max_size=12)


@given(CHUNKS, st.booleans())
def test_every_byte_reaches_the_layers_in_order(chunks: list[tuple[bytes, bool, int]], reset: bool) -> None:
    async def run() -> Handler:
        handler: Any = Handler()
        task = asyncio.get_running_loop().create_task(turns._read(handler, handler.client, lambda _: None))
        await asyncio.sleep(0)
        for data, congested, pauses in chunks:
            handler.transport.waiting = turns.HIGH_WATER + 1 if congested else 0
            handler.transport.protocol.data_received(data)
            for _ in range(pauses):
                await asyncio.sleep(0)
        if reset:
            handler.transport.protocol.connection_lost(ConnectionResetError())
        else:
            handler.transport.protocol.eof_received()
        for _ in range(40):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert handler.transport.closed
        assert not handler.transports
        return handler

    seen = asyncio.run(run()).layer.seen
    sent = b"".join(data for data, _, _ in chunks)
    if not reset:
        assert seen[-1] == "ConnectionClosed"
        assert b"".join(each for each in seen if isinstance(each, bytes)) == sent
    else:  # what stands in asyncio's buffer when a connection breaks is lost, as without us
        assert sent.startswith(b"".join(each for each in seen if isinstance(each, bytes)))


async def test_while_the_reader_waits_nothing_waits_for_the_loop() -> None:
    handler: Any = Handler()
    task = asyncio.get_running_loop().create_task(turns._read(handler, handler.client, lambda _: None))
    await asyncio.sleep(0)
    handler.transport.protocol.data_received(b"now")
    assert handler.layer.seen == [b"now"]
    handler.transport.waiting = turns.HIGH_WATER + 1
    handler.transport.protocol.data_received(b"later")
    assert handler.layer.seen == [b"now"]
    handler.client.state = connection.ConnectionState.CLOSED
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_event_in_the_middle_of_a_turn_waits_for_its_end() -> None:
    handler: Any = Handler()
    second = events.DataReceived(handler.client, b"second")
    handler.layer.during = lambda: turns.turn(handler, second, lambda _: None)
    turns.turn(handler, events.DataReceived(handler.client, b"first"), lambda _: None)
    assert handler.layer.seen == [b"first", "end of first", b"second"]
    handler.transport.close()


@pytest.mark.parametrize("busy", [True, False], ids=["others wait", "nobody else waits"])
async def test_a_turn_writes_in_one_piece_while_others_wait(busy: bool) -> None:
    handler: Any = Handler()
    written: list[bytes] = []
    handler.transport.write = lambda data: written.append(bytes(data))
    handler.layer.asks = [
        commands.SendData(handler.client, b"head"),
        commands.SendData(handler.client, b"body"),
        commands.CloseTcpConnection(handler.client, half_close=True),
        commands.SendData(handler.client, b"after the end"),
    ]
    handler.close_connection = lambda *_: written.append(b"closed")
    if busy:
        asyncio.get_running_loop().call_soon(lambda: None)
    turns.turn(handler, events.DataReceived(handler.client, b"x"), lambda _: None)
    assert written == [*([b"headbody"] if busy else [b"head", b"body"]), b"closed", b"after the end"]
    handler.transport.close()


async def test_what_a_turn_had_to_send_before_a_crash_is_sent() -> None:
    handler: Any = Handler()
    written: list[bytes] = []
    handler.transport.write = lambda data: written.append(bytes(data))

    def crashes() -> Iterator[commands.Command]:
        yield commands.SendData(handler.client, b"refusal")
        raise RuntimeError("a text of the peer")

    handler.layer.asks = crashes()
    asyncio.get_running_loop().call_soon(lambda: None)
    turns.turn(handler, events.DataReceived(handler.client, b"x"), lambda _: None)
    assert written == [b"refusal"]
    assert handler.logged == ["mitmproxy failed: RuntimeError"]
    handler.transport.close()


async def test_a_crash_in_the_layers_is_logged_without_its_text_and_the_next_turn_goes_on() -> None:
    handler: Any = Handler()
    for data in (b"crash", b"next"):
        turns.turn(handler, events.DataReceived(handler.client, data), lambda _: None)
    assert handler.layer.seen == [b"crash", b"next"]
    assert handler.logged == ["mitmproxy failed: RuntimeError"]
    handler.transport.close()


def test_an_unknown_command_is_a_crash() -> None:
    handler: Any = None
    with pytest.raises(RuntimeError, match="unexpected command"):
        turns._perform(handler, commands.Command())
