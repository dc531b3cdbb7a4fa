"""The keys of this gateway's own tokens, as a source of keys like any provider's. The shell around ``issuing``.

Nothing is fetched: the keys are in the control store, which every process of this gateway shares. A key that another
process has just made is there at the second look, which an unknown ``kid`` causes, once a second at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from tidegate.identity import issuing
from tidegate.identity.claims import Verified
from tidegate.identity.issuing import OwnKey
from tidegate.identity.jwks import KeySet, import_keys
from tidegate.identity.keys import KeySource
from tidegate.model import Denial
from tidegate.policy.policy import Admin, Identity

REFRESH = 30.0
FLOOR = 1.0
PATIENCE = 120.0
"""How long keys count after they were last seen in the store."""

logger = logging.getLogger(__name__)


class Keeper(Protocol):
    """Where the keys are kept (``state.signing``)."""

    def read(self) -> Future[tuple[OwnKey, ...]]:
        """Return the keys there are."""

    def turn(self, now: float, rotate: float) -> Future[tuple[OwnKey, ...]]:
        """Make a key if one is due, delete those that are over, and return what there is then."""


class Settings(Protocol):
    """What of a policy our own tokens depend on: for whom they are made, where, and how often their keys turn."""

    @property
    def identities(self) -> tuple[Identity, ...] | None:
        """Whom they can name."""

    @property
    def admin(self) -> Admin:
        """Their issuer's address, and when a key is due."""


class OwnKeys(KeySource):
    """Our keys, for one event loop. ``signing`` are the private ones, empty as long as there are none to sign with."""

    def __init__(
        self,
        policy: Settings,
        keeper: Keeper,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(issuing.identity(policy.admin.url), clock=clock)
        self.signing: Sequence[OwnKey] = ()
        self._names = frozenset(each.name for each in policy.identities or ())
        self._rotate = policy.admin.rotate
        self._keeper = keeper
        self._now = now
        self._alone = asyncio.Lock()
        self._set: KeySet | None = None
        self._seen = self._looked = -float("inf")

    @property
    def keys(self) -> KeySet | None:
        """The public keys, as long as the store can be read."""
        return self._set if self._clock() - self._seen <= PATIENCE else None

    @property
    def due(self) -> float:
        """Seconds until the next regular look into the store."""
        return max(0.0, self._looked + REFRESH - self._clock())

    async def refresh(self) -> None:
        """Look into the store, unless another call just did; make a key if one is due. Never raises."""
        async with self._alone:
            if self._clock() < self._looked + FLOOR:
                return
            self._looked = self._clock()
            try:
                found = await asyncio.wrap_future(self._keeper.read())
                now = self._now()
                if issuing.is_due(found, now, self._rotate) or issuing.is_over(found, now):
                    found = await asyncio.wrap_future(self._keeper.turn(now, self._rotate))
            except Exception as error:  # noqa: BLE001 - it must not end the gate's look at its keys
                logger.warning("our own keys could not be read: %s", type(error).__name__)
                self.failing = True
                return
            if tuple(found) != self.signing or self._set is None:
                self.signing, self._set = tuple(found), import_keys(issuing.published(found))
            self.failing, self._seen = False, self._clock()

    def named(self, verified: Verified, token: str) -> Verified | Denial:
        """Name the caller that a verified token of ours was made for."""
        return issuing.named(verified, token, self._names)
