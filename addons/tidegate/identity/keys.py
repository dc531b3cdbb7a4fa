"""Fetches the public keys of one identity provider, and keeps the last good ones. The shell around ``jwks``.

Laws: never on the event loop; one fetch at a time per provider, and not before its next allowed moment, whatever a
token's ``kid`` says, or a random ``kid`` would turn this gate into an amplifier; a worse answer (empty, broken, none)
never replaces good keys; the environment's proxies, redirects to other hosts and plain http are not followed.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO
from urllib.parse import urlsplit

from tidegate.dialects.body import strict_json
from tidegate.identity.jwks import KeySet, import_keys
from tidegate.policy.policy import OidcIdentity

REFRESH = 300.0  # seconds between two looks at the provider (Envoy: 600, PyJWT: 300)
FLOOR = 30.0  # seconds after a good fetch before an unknown kid may cause another (PyJWT's cool-down)
BACKOFF = 1.0, 60.0  # seconds after a failed fetch: first, most; doubled in between
STALE = 24 * 3600.0  # seconds that keys outlive their provider
DOCUMENT_BYTES = 512 * 1024  # 100 RSA-8192 keys with certificates stay below
TIMEOUT = 10.0  # seconds without a byte
DEADLINE = 20.0  # seconds for a whole document
REDIRECTS = 3

logger = logging.getLogger(__name__)


class FetchError(Exception):
    """A provider's document could not be had. Says what is wrong, never what was received."""


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
    document = strict_json(_get(identity.discovery_url, identity.insecure_http))
    if not isinstance(document, dict):
        raise FetchError("its discovery document is not a JSON object")
    if document.get("issuer") != identity.issuer:
        raise FetchError("its discovery document names another issuer")
    address = document.get("jwks_uri")
    if not isinstance(address, str):
        raise FetchError("its discovery document names no jwks_uri")
    return _get(address, identity.insecure_http)


def _allowed(address: str, insecure: bool) -> bool:
    """Whether an address may be asked: https, or http to loopback where the policy says so."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return False
    if parts.username is not None or not host or not address.isprintable() or " " in address:
        return False
    return parts.scheme == "https" or (
        insecure and parts.scheme == "http" and host in {"127.0.0.1", "::1", "localhost"}
    )


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only on the same scheme, host and port."""

    max_redirections = REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Build the next request, or refuse it."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            fp.close()
            raise FetchError("it redirects to another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener that knows http and https and nothing else: no proxies, no cookies, no file: or ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameHost(),
    ):
        opener.add_handler(handler)
    return opener


def _get(address: str, insecure: bool) -> bytes:
    """Fetch one document within its limits."""
    if not _allowed(address, insecure):
        raise FetchError("an address of it is not https")
    until = time.monotonic() + DEADLINE
    request = urllib.request.Request(address, headers={"accept": "application/json"})  # noqa: S310 - _allowed
    try:
        with _opener().open(request, timeout=TIMEOUT) as answer:
            if answer.status != 200:
                raise FetchError(f"it answered with status {answer.status}")
            data = bytearray()
            while chunk := answer.read1(65536):
                data += chunk
                if len(data) > DOCUMENT_BYTES:
                    raise FetchError(f"its answer is longer than {DOCUMENT_BYTES} bytes")
                if time.monotonic() > until:
                    raise FetchError(f"its answer took longer than {DEADLINE:.0f} seconds")
            return bytes(data)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"it answered with status {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FetchError(f"it could not be reached: {type(reason).__name__}") from None
