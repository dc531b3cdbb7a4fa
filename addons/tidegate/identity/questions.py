"""Asks a provider about one caller: is this opaque token good (RFC 7662), which groups has he (userinfo)?

Laws: never on the event loop; a few questions at a time, and none while the provider does not answer, since every
unknown token would be one more; nobody is told more than that it could not be asked. A token goes to its own issuer.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tidegate.identity.credential import CredentialError, Secret, resolve
from tidegate.identity.fetching import FetchError, discover, fetch
from tidegate.policy.policy import Introspection, OidcIdentity

AT_ONCE = 8
"""Questions to one provider at the same time: each is a connection, and a thread that nobody else waits for."""

WAITING = 256
"""Questions that may wait for their turn: beyond it callers are told to come back."""

BACKOFF = 1.0, 30.0
"""Seconds without questions after one that was not answered: first, most; doubled in between."""

DISCOVERED = 3600.0
"""Seconds that the addresses in the discovery document are taken from memory."""

logger = logging.getLogger(__name__)


class Questions:
    """What one provider is asked on behalf of callers. Answers are bytes, or ``None``: it could not be asked."""

    def __init__(self, identity: OidcIdentity, clock: Callable[[], float] = time.monotonic) -> None:
        self.identity = identity
        self.asked = 0
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._threads = ThreadPoolExecutor(AT_ONCE, f"tidegate asks {identity.name}")
        self._waiting = 0
        self._next_try = -float("inf")
        self._wait = BACKOFF[0]
        self._document: Mapping[str, object] = {}
        self._discovered = -float("inf")
        self._secret: Secret | None = None

    async def introspect(self, token: str) -> bytes | None:
        """Ask whether an opaque token is good."""
        how = self.identity.introspection
        assert how is not None
        return await self._ask(lambda: self._introspect(how, token))

    async def userinfo(self, token: str) -> bytes | None:
        """Ask, with the caller's own token, who he is."""
        return await self._ask(lambda: self._userinfo(token))

    def close(self) -> None:
        """Ask nothing more; what is under way is answered."""
        self._threads.shutdown(wait=False)

    async def _ask(self, question: Callable[[], bytes]) -> bytes | None:
        if self._waiting >= WAITING or self._clock() < self._next_try:
            return None
        self._waiting += 1
        try:
            async with self._turns:
                if self._clock() < self._next_try:
                    return None
                self.asked += 1
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, question)
        except (FetchError, CredentialError) as error:
            self._failed(str(error))
            return None
        except Exception as error:  # noqa: BLE001 - a fault in a library is no answer, and its text may hold the token
            self._failed(type(error).__name__)
            return None
        finally:
            self._waiting -= 1
        self._wait = BACKOFF[0]
        return answer

    def _failed(self, problem: str) -> None:
        now = self._clock()
        if now >= self._next_try:  # those that were under way together are one failure
            self._next_try, self._wait = now + self._wait, min(BACKOFF[1], self._wait * 2)
        logger.warning(
            "identity %s: the provider could not be asked about a caller (%s); such callers are answered with 503",
            self.identity.name, problem,
        )  # fmt: skip

    # ── in a thread ──────────────────────────────────────────────────────────

    def _introspect(self, how: Introspection, token: str) -> bytes:
        if self._secret is None:
            self._secret = resolve(how.secret, f"{self.identity.name} introspection")
        who = ":".join(urllib.parse.quote_plus(each) for each in (how.client, self._secret.reveal()))  # RFC 6749, 2.3.1
        form = urllib.parse.urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        basic = "Basic " + base64.b64encode(who.encode()).decode()
        return fetch(
            self.identity, how.endpoint or self._address("introspection_endpoint"), form, {"authorization": basic}
        )

    def _userinfo(self, token: str) -> bytes:
        return fetch(self.identity, self._address("userinfo_endpoint"), None, {"authorization": f"Bearer {token}"})

    def _address(self, name: str) -> str:
        """Return an address out of the discovery document."""
        if self._clock() - self._discovered > DISCOVERED:
            self._document, self._discovered = discover(self.identity), self._clock()
        address = self._document.get(name)
        if not isinstance(address, str):
            raise FetchError(f"its discovery document names no {name}")
        return address
