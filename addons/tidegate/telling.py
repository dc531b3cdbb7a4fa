"""Has one receiver of the steps of approvals (the evidence, or people) take each of them, from all gates once.

Several gates may share a control store. Whoever tells takes the steps for ``approvals.LEASE`` seconds, so that no other
does; if it dies meanwhile, another tells them then. A receiver that fails keeps no other receiver from its steps.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from tidegate.state import approvals as store
from tidegate.state.approvals import Step, Teller
from tidegate.state.control import Control

log = logging.getLogger("tidegate")

LINGER = 0.25
"""Seconds that steps wait for company on their way: nobody waits for them, and the commits that a held request waits
for go first. They are durable in the control store by then."""

RETRY = 1.0
"""Seconds until a receiver that did not take the steps is asked again, or whether another gate is still at it."""


class Telling:
    """What tells one receiver. ``take`` takes steps in their order; ``now`` returns a Unix time."""

    def __init__(
        self,
        control: Control,
        teller: Teller,
        take: Callable[[tuple[Step, ...]], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._control = control
        self._teller = teller
        self._take = take
        self._now = now
        self._owner = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._more = False
        self._closed = False

    def wake(self) -> None:
        """Have the receiver take what it does not have yet; one task does it, again if more came meanwhile."""
        self._more = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Tell what is left, once, and end."""
        self._closed = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        self.wake()
        await asyncio.gather(*filter(None, [self._task]), return_exceptions=True)

    async def _run(self) -> None:
        while self._more:
            if not self._closed:
                await asyncio.sleep(LINGER)
            self._more = False
            try:
                done = await self._told()
            except Exception as error:  # noqa: BLE001 - the receiver's own words name no step; they are told later
                log.error("approvals: the %s has not got the latest steps yet: %s", self._teller, type(error).__name__)
                done = False
            if done is None:
                continue
            if not done:
                if self._closed:
                    return
                await asyncio.sleep(RETRY)
            self._more = True

    async def _told(self) -> bool | None:
        """Tell what is untold; ``None``: there is nothing, ``False``: another gate is at it."""
        if not await asyncio.wrap_future(self._control.read(lambda db: store.untold(db, self._teller))):
            return None
        steps: tuple[Step, ...] = await self._write(store.claim, self._now())
        if not steps:
            return False
        await self._take(steps)
        await self._write(store.told, steps[-1].seq)
        return True  # there may be more than one reading

    async def _write(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.wrap_future(
            self._control.write(lambda db: work(db, self._teller, self._owner, *arguments))
        )
