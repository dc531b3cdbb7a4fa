"""Puts a changed policy in force while the gate runs: when a file of it changes, on SIGHUP, and when somebody asks.

Law: a policy comes into force whole or not at all. A fault keeps the one in force, is told, and is recorded; an
exchange stays with the policy and the credentials it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from tidegate.building import Gate
from tidegate.policy.policy import PolicyError
from tidegate.policy.watching import Watched

EVERY = 1.0
"""Seconds between two looks at the files. What changes is reloaded when two looks see the same: half a file is not."""

log = logging.getLogger("tidegate")


class Reloader:
    """Watches the files of a policy."""

    def __init__(self, gate: Gate, path: Path, every: float = EVERY) -> None:
        self._gate, self._path, self._every = gate, path, every
        self._watched = Watched(path)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to watch, in the running event loop."""
        self._keep(asyncio.get_running_loop().create_task(self._watch()))

    def stop(self) -> None:
        """Watch no longer."""
        for each in list(self._tasks):
            each.cancel()

    def soon(self, cause: str) -> None:
        """Reload now, whether or not a file has changed: for a signal."""
        self._keep(asyncio.get_running_loop().create_task(self._reload(cause)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        known = seen = await asyncio.to_thread(self._watched.stamp)
        while True:
            await asyncio.sleep(self._every)
            try:
                now = await asyncio.to_thread(self._watched.stamp)
                if now != known and now == seen:
                    known = now  # what changes while it loads is another change
                    await self._reload("file")
                    if await asyncio.to_thread(self._watched.renew):
                        known = seen = await asyncio.to_thread(self._watched.stamp)
                        continue
                seen = now
            except Exception:  # whatever it was, the files must go on being watched
                log.exception("the files of the policy could not be looked at")

    async def _reload(self, cause: str) -> None:
        with contextlib.suppress(PolicyError):  # told by the gate
            await self._gate.reload(self._path, cause)
