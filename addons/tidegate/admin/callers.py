"""Who calls the admin listener: a verifier of its own, in its own loop, for the policy in force.

The data path's verifier is not asked: it lives in another thread, and a flood of tokens here must cost nobody there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial
from tidegate.policy.policy import Identity, Policy


class Callers:
    """Names the holders of tokens. Made anywhere, used in one loop; ``close`` it there."""

    def __init__(
        self, policy: Callable[[], Policy], make: Callable[[Policy], Verifier], now: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._make = make
        self._now = now
        self._for: tuple[Identity, ...] | None = None
        self._verifier: Verifier | None = None
        self._starting: asyncio.Task[None] | None = None

    async def identify(self, token: str) -> Caller | Denial:
        """Verify a token as the data path would."""
        return await (await self.verifier()).identify(token, self._now())

    async def verifier(self) -> Verifier:
        """Return the verifier of the policy in force; it fetches its keys meanwhile.

        Nothing is awaited between the look and the change: all who come after a reload get the same one.
        """
        policy = self._policy()
        if self._verifier is None or self._for is not policy.identities:
            old, starting = self._verifier, self._starting
            self._for, self._verifier = policy.identities, self._make(policy)
            self._starting = asyncio.create_task(_change(old, starting, self._verifier))
        return self._verifier

    async def close(self) -> None:
        """Stop fetching keys."""
        verifier, starting = self._verifier, self._starting
        self._verifier = self._starting = None
        await _end(verifier, starting)


async def _change(old: Verifier | None, starting: asyncio.Task[None] | None, new: Verifier) -> None:
    """Start a verifier, and end the one before it."""
    await asyncio.gather(new.start(), _end(old, starting))


async def _end(verifier: Verifier | None, starting: asyncio.Task[None] | None) -> None:
    """Close a verifier once it has started."""
    if starting is not None:
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    if verifier is not None:
        await verifier.close()
