"""Fetches the public keys of one identity provider, and keeps the last good ones. The shell around ``jwks``.

Laws: never on the event loop; one fetch at a time per provider, and not before its next allowed moment, whatever a
token's ``kid`` says, or a random ``kid`` would turn this gate into an amplifier; a worse answer (empty, broken, none)
never replaces good keys; the environment's proxies, redirects to other hosts and plain http are not followed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tidegate.identity.fetching import FetchError, discover, fetch
from tidegate.identity.jwks import KeySet, import_keys
from tidegate.policy.policy import OidcIdentity

REFRESH = 300.0  # seconds between two looks at the provider (Envoy: 600, PyJWT: 300)
FLOOR = 30.0  # seconds after a good fetch before an unknown kid may cause another (PyJWT's cool-down)
BACKOFF = 1.0, 60.0  # seconds after a failed fetch: first, most; doubled in between
STALE = 24 * 3600.0  # seconds that keys outlive their provider

logger = logging.getLogger(__name__)


class KeySource:
    """The keys of one issuer. ``keys`` is ``None`` as long as there are none that may be used."""

    def __init__(
        self,
        identity: OidcIdentity,
        fetch: Callable[[OidcIdentity], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.failing = False
        self.fetches = 0
        self._fetch = fetch or fetch_keys
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched = self._next_try = -float("inf")
        self._wait = BACKOFF[0]
        self._lock = asyncio.Lock()

    @property
    def keys(self) -> KeySet | None:
        """The keys to check tokens with: the last good ones, for at most a day after the provider last answered."""
        return self._keys if self._clock() - self._fetched <= STALE else None

    @property
    def due(self) -> float:
        """Seconds until the next regular look at the provider."""
        now = self._clock()
        return max(0.0, self._next_try - now) if self.failing else max(0.0, self._fetched + REFRESH - now)

    async def refresh(self) -> None:
        """Fetch the keys, unless another call just did or the provider is to be left alone. Never raises."""
        async with self._lock:
            if self._clock() < self._next_try:
                return
            self.fetches += 1
            try:
                fresh = import_keys(await asyncio.to_thread(self._fetch, self.identity))
                problem = "no key in its answer is fit for use" if fresh is None else ""
            except FetchError as error:
                fresh, problem = None, str(error)
            except Exception as error:  # noqa: BLE001 - a fault in a library must not end the gate's look at its provider
                fresh, problem = None, type(error).__name__
            self._settle(fresh, problem)

    def _settle(self, fresh: KeySet | None, problem: str) -> None:
        now = self._clock()
        if fresh is None:
            self._next_try, self._wait = now + self._wait, min(BACKOFF[1], self._wait * 2)
            kept = "the keys at hand stay in use" if self.keys else "its tokens are answered with 503"
            logger.warning("identity %s: the keys could not be fetched (%s); %s", self.identity.name, problem, kept)
            self.failing = True
            return
        if self.failing:
            logger.info("identity %s: the keys were fetched again", self.identity.name)
        if self._keys is None or fresh.print != self._keys.print:
            self._keys = fresh  # the same keys stay the same object: who compares by identity sees no change
        self.failing = False
        self._fetched, self._next_try, self._wait = now, now + FLOOR, BACKOFF[0]


def fetch_keys(identity: OidcIdentity) -> bytes:
    """Ask the provider's discovery document for its keys, and fetch them. Blocks; run it in a thread.

    Raises ``FetchError``.
    """
    address = discover(identity).get("jwks_uri")
    if not isinstance(address, str):
        raise FetchError("its discovery document names no jwks_uri")
    return fetch(identity, address)
