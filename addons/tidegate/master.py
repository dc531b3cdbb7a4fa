"""The slim master of ``tidegate run``: mitmproxy's proxy core, the gate, and nothing that could undo a decision.

The default addons of mitmdump that map, modify, save, script or show traffic are left out, so their options are unknown
and the chain cannot change while it runs. Hooks are looked up once instead of at each event, and a hook that needs no
await completes at once instead of in a task of its own. What was measured is in docs/decisions.md.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mitmproxy import addonmanager, exceptions, master, options
from mitmproxy.addons import core, errorcheck, next_layer, proxyserver, tlsconfig
from mitmproxy.hooks import Hook

from tidegate import quick, turns

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
    turns.install(dispatch.start)
    quick.quicken()
    return slim


async def serve(slim: master.Master) -> None:
    """Run until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, slim.shutdown)
    await slim.run()
