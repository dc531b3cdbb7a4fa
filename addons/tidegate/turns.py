"""One turn of a connection, without a task for it: what arrives is given to mitmproxy's layers at once.

mitmproxy reads each peer in a task: bytes wait in a stream reader, the loop turns once more to wake the task, and
each hook gets a task of its own, all of it behind a lock. Here the transport's callback runs the layers, and a hook
that needs no await completes in the same turn. Where a peer reads more slowly than the other writes, bytes take
mitmproxy's way, whose reader pauses the transport. The rest does as ``ConnectionHandler`` of mitmproxy 12.2 does;
``tidegate run`` alone uses it, and docs/decisions.md says what it gains.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook
from mitmproxy.proxy import commands, events, server
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

HIGH_WATER = 64 * 1024
"""Bytes that wait to be written to a peer above which nobody reads for it: asyncio's own limit for ``drain``."""

type Start = Callable[[Hook], Awaitable[None] | None]
"""Calls the hooks of an event; returns what is left to await, or ``None`` if all is done."""


type Outbox = dict[Any, list[bytes]]
"""What waits for the end of a turn, by writer. Head and body of a message then take one write and wake the peer once:
a fifteenth of a request where the loop has other connections to serve. Where it has none the peer wakes early instead,
and works on the head while the body is still being made."""


class Direct(asyncio.Protocol):
    """Stands before the protocol of a stream reader, and gives the layers what arrives while its reader waits."""

    def __init__(self, handler: server.ConnectionHandler, peer: Connection, usual: Any, start: Start) -> None:
        self.waiting = False
        self._handler = handler
        self._peer = peer
        self._usual = usual
        self._start = start

    def data_received(self, data: bytes) -> None:
        """Take bytes. The reader has none while it waits, so they keep their order whichever way they go."""
        if self.waiting and self._peer.state & ConnectionState.CAN_READ and not self._is_congested():
            turn(self._handler, events.DataReceived(self._peer, data), self._start)
        else:
            self.waiting = False
            self._usual.data_received(data)

    def _is_congested(self) -> bool:
        for io in self._handler.transports.values():
            writer: Any = io.writer
            if writer is not None and writer.transport.get_write_buffer_size() > HIGH_WATER:
                return True
        return False

    def eof_received(self) -> bool | None:
        """Pass on that the peer sends no more."""
        return bool(self._usual.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection is gone."""
        self._usual.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the peer reads too slowly: who drains the writer waits."""
        self._usual.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the peer has caught up."""
        self._usual.resume_writing()


def install(start: Start) -> None:
    """Let every connection take its turns here; ``start`` calls hooks."""

    async def server_event(self: server.ConnectionHandler, event: events.Event) -> None:
        turn(self, event, start)

    async def handle_connection(self: server.ConnectionHandler, connection: Connection) -> None:
        await _read(self, connection, start)

    ProxyConnectionHandler.server_event = server_event  # type: ignore[method-assign]
    ProxyConnectionHandler.handle_connection = handle_connection  # type: ignore[method-assign]


def turn(self: server.ConnectionHandler, event: events.Event, start: Start) -> None:
    """Give an event to the layers and carry out what they ask for.

    mitmproxy's loop begins tasks at once (``asyncio.eager_task_factory``), so that one may come here in the middle of
    another's turn: its event waits for the end of that.
    """
    running: collections.deque[events.Event] | None = getattr(self, "tidegate_turn", None)
    if running is not None:
        running.append(event)
        return
    self.timeout_watchdog.register_activity()
    pending = collections.deque((event,))
    self.tidegate_turn = pending  # type: ignore[attr-defined]
    outbox: Outbox | None = {} if _others_wait() else None
    try:
        while pending:
            _step(self, pending, start, outbox)
    finally:
        self.tidegate_turn = None  # type: ignore[attr-defined]
        if outbox:
            _send(outbox)


def _others_wait() -> bool:
    """Say whether more is to be done in this round of the loop; a loop that does not tell has nothing."""
    return bool(getattr(asyncio.get_running_loop(), "_ready", ()))


def _send(outbox: Outbox) -> None:
    """Write what a turn has for each peer in one piece."""
    for writer, parts in outbox.items():
        if not writer.is_closing():
            writer.write(parts[0] if len(parts) == 1 else b"".join(parts))
    outbox.clear()


def _step(
    self: server.ConnectionHandler, pending: collections.deque[events.Event], start: Start, outbox: Outbox | None
) -> None:
    """Give the next event to the layers; a hook that is complete makes another event."""
    try:
        for command in self.layer.handle_event(pending.popleft()):
            if isinstance(command, commands.StartHook):
                if _at_once(self, start, command) and command.blocking:
                    pending.append(events.HookCompleted(command))
            elif outbox is not None and isinstance(command, commands.SendData):
                io = self.transports.get(command.connection)
                if io is not None and io.writer is not None:
                    outbox.setdefault(io.writer, []).append(command.data)
            else:
                if outbox:
                    _send(outbox)
                _perform(self, command)
    except Exception as crash:  # noqa: BLE001 - as mitmproxy treats it; a crash's text may hold what a peer sent
        self.log(f"mitmproxy failed: {type(crash).__name__}", logging.ERROR)


async def _read(self: server.ConnectionHandler, connection: Connection, start: Start) -> None:
    """Read a peer until it ends, then wait until our side of the connection is to be closed."""
    io = self.transports[connection]
    reader: Any = io.reader
    direct = _stand_before(self, connection, io.writer, start)
    cancelled: asyncio.CancelledError | None = None
    try:
        while True:
            if direct is not None:
                direct.waiting = True
            data = await reader.read(65535)
            if not data:
                break
            turn(self, events.DataReceived(connection, data), start)
            await self.drain_writers()
    except OSError:
        pass
    except asyncio.CancelledError as stop:
        cancelled = stop
    if direct is not None:
        direct.waiting = False
    if cancelled is None and connection.transport_protocol == "tcp":
        connection.state &= ~ConnectionState.CAN_READ
    else:
        connection.state = ConnectionState.CLOSED
    turn(self, events.ConnectionClosed(connection), start)
    if connection.state is ConnectionState.CAN_WRITE:  # half closed: kept for writing until somebody closes it
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as stop:
            cancelled = stop
    writer: Any = self.transports.pop(connection).writer
    try:
        writer.close()
    except OSError:
        logging.getLogger("tidegate").debug("a connection was closed already")
    if cancelled is not None:
        raise cancelled


def _stand_before(self: server.ConnectionHandler, peer: Connection, writer: Any, start: Start) -> Direct | None:
    """Put a ``Direct`` before the reader of a TCP connection; UDP has none of asyncio's transports."""
    if not isinstance(writer, asyncio.StreamWriter):
        return None
    transport = writer.transport
    direct = Direct(self, peer, transport.get_protocol(), start)
    transport.set_protocol(direct)
    return direct


def _at_once(handler: server.ConnectionHandler, start: Start, hook: commands.StartHook) -> bool:
    """Run a hook; say whether it is complete. If not, a task goes on with it and completes it."""
    waiting = start(hook)
    (data,) = hook.args()
    held = getattr(data, "intercepted", False)  # only a flow has it
    if waiting is None and not held:
        return True

    async def rest() -> None:
        with handler.timeout_watchdog.disarm():
            if waiting is not None:
                await waiting
            if isinstance(data, Flow):
                await data.wait_for_resume()
        if hook.blocking:
            turn(handler, events.HookCompleted(hook), start)

    _task(rest(), f"hook {hook.name}")
    return False


_tasks: set[asyncio.Task[None]] = set()


def _task(work: Any, name: str) -> None:
    task = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _perform(self: server.ConnectionHandler, command: commands.Command) -> None:
    """Carry out what a layer asks for, as ``ConnectionHandler.server_event`` of mitmproxy 12.2 does."""
    if isinstance(command, commands.SendData):
        io = self.transports.get(command.connection)
        if io is not None and io.writer is not None and not io.writer.is_closing():
            io.writer.write(command.data)
    elif isinstance(command, commands.OpenConnection):
        task = asyncio.get_running_loop().create_task(self.open_connection(command), name="server connection")
        self.transports[command.connection] = server.ConnectionIO(handler=task)
    elif isinstance(command, commands.RequestWakeup):
        wakeup = asyncio.get_running_loop().create_task(self.wakeup(command), name="wakeup")
        self.wakeup_timer.add(wakeup)
    elif isinstance(command, commands.ConnectionCommand) and command.connection not in self.transports:
        pass  # already closed
    elif isinstance(command, commands.CloseTcpConnection):
        self.close_connection(command.connection, command.half_close)
    elif isinstance(command, commands.CloseConnection):
        self.close_connection(command.connection, False)
    elif isinstance(command, commands.Log):
        self.log(command.message, command.level)
    else:
        raise RuntimeError(f"unexpected command {type(command).__name__}")
