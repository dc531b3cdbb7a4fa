"""The slim master of ``tidegate run``: mitmproxy's proxy core, the gate, and nothing that could undo a decision.

The default addons of mitmdump that map, modify, save, script or show traffic are left out, so their options are unknown
and the chain cannot change while it runs. Hooks are looked up once instead of at each event, and a hook that needs no
await completes at once instead of in a task of its own. What was measured is in docs/decisions.md.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mitmproxy import addonmanager, exceptions, master, options
from mitmproxy.addons import core, errorcheck, next_layer, proxyserver, tlsconfig
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook
from mitmproxy.proxy import commands, events, server
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from tidegate import quick

Handler = Callable[..., Any]


class Dispatch:
    """Every addon's hooks by name, in the order of the chain, from the moment the chain is complete."""

    def __init__(self, manager: addonmanager.AddonManager) -> None:
        self._manager = manager
        self._table: dict[str, tuple[Handler, ...]] = {}

    def hooks(self, event: Hook) -> tuple[Handler, ...]:
        """Return the callables that handle an event."""
        found = self._table.get(event.name)
        if found is None:
            chain = (self._manager._iter_hooks(addon, event) for addon in self._manager.chain)
            found = self._table[event.name] = tuple(call for pairs in chain for _, call in pairs)
        return found

    async def trigger(self, event: Hook) -> None:
        """Call every hook of an event; as ``AddonManager.trigger_event``, which this replaces."""
        waiting = self.start(event)
        if waiting is not None:
            await waiting

    def start(self, event: Hook) -> Awaitable[None] | None:
        """Call the hooks of an event; return what is left to await, or ``None`` if all is done."""
        found = self.hooks(event)
        arguments = event.args() if found else ()
        for position, call in enumerate(found):
            try:
                result = call(*arguments)
                if result is not None and inspect.isawaitable(result):
                    return self._finish(result, found[position + 1 :], event)
            except exceptions.AddonHalt:
                return None
            except Exception:  # as mitmproxy treats it
                with addonmanager.safecall():
                    raise
        return None

    async def _finish(self, first: Awaitable[None], rest: Sequence[Handler], event: Hook) -> None:
        try:
            with addonmanager.safecall():
                await first
            for call in rest:
                with addonmanager.safecall():
                    result = call(*event.args())
                    if inspect.isawaitable(result):
                        await result
        except exceptions.AddonHalt:
            return


def quicken(dispatch: Dispatch) -> None:
    """Let a connection complete hooks that need no await in the same turn of the loop, without a task for each."""

    async def server_event(self: server.ConnectionHandler, event: events.Event) -> None:
        async with self._server_event_lock:
            self.timeout_watchdog.register_activity()
            pending = collections.deque((event,))
            try:
                while pending:
                    for command in self.layer.handle_event(pending.popleft()):
                        if isinstance(command, commands.StartHook):
                            if _at_once(self, dispatch, command) and command.blocking:
                                pending.append(events.HookCompleted(command))
                        else:
                            _perform(self, command)
            except Exception as crash:
                self.log(f"mitmproxy failed: {type(crash).__name__}", logging.ERROR)

    ProxyConnectionHandler.server_event = server_event  # type: ignore[method-assign]
    quick.quicken()


def _at_once(handler: server.ConnectionHandler, dispatch: Dispatch, hook: commands.StartHook) -> bool:
    """Run a hook; say whether it is complete. If not, a task goes on with it and completes it."""
    waiting = dispatch.start(hook)
    (data,) = hook.args()
    held = isinstance(data, Flow) and data.intercepted
    if waiting is None and not held:
        return True

    async def rest() -> None:
        with handler.timeout_watchdog.disarm():
            if waiting is not None:
                await waiting
            if isinstance(data, Flow):
                await data.wait_for_resume()
        if hook.blocking:
            await handler.server_event(events.HookCompleted(hook))

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


def build(settings: dict[str, Any], *addons: object) -> master.Master:
    """Make the master with ``addons`` (the gate first) in front of mitmproxy's own layers; needs a running loop.

    ``settings`` are mitmproxy options; an unknown name raises ``KeyError``.
    """
    logging.getLogger("mitmproxy").setLevel(logging.WARNING)  # below it, mitmproxy logs raw bytes
    slim = master.Master(options.Options())
    slim._legacy_log_events.uninstall()  # formats every log line once more, for hooks that no addon here has
    slim.addons.add(
        core.Core(),
        proxyserver.Proxyserver(),
        *addons,
        next_layer.NextLayer(),
        tlsconfig.TlsConfig(),
        errorcheck.ErrorCheck(True),
    )
    slim.options.update(**settings)
    dispatch = Dispatch(slim.addons)
    slim.addons.trigger_event = dispatch.trigger  # type: ignore[method-assign]
    quicken(dispatch)
    return slim


async def serve(slim: master.Master) -> None:
    """Run until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, slim.shutdown)
    await slim.run()
