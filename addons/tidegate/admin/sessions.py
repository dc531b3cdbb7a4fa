"""Who has signed in to the pages: sessions on the server, and sign-ins that are under way. Pure but for its letters.

A browser holds nothing but a random name in a cookie; the token stays here, and is verified anew at each request, so
what ends a token (its time, a revocation, another policy) ends the session. A restart ends all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

LIFETIME = 8 * 3600.0
"""Seconds from one sign-in to the next, a working day (NIST SP 800-63B asks for 12 hours at most)."""
IDLE = 1800.0
"""Seconds without a request (the same, 30 minutes). A page that is open and live counts as a request."""
SESSIONS = 1000
UNDER_WAY = 1000
UNDER_WAY_SECONDS = 600.0
"""How long a person may take at the provider."""


@dataclass(slots=True)
class Session:
    """One browser of one person. ``csrf`` goes into each form; ``until`` and ``idle`` are Unix times in seconds."""

    token: str = field(repr=False)
    csrf: str = field(repr=False)
    until: float
    idle: float

    def owns(self, csrf: str) -> bool:
        """Say whether a form comes from a page of this session."""
        return _same(self.csrf, csrf)


@dataclass(frozen=True, slots=True)
class SignIn:
    """A person is at a provider. ``browser`` binds what comes back to the browser that left; RFC 7636 ``verifier``."""

    identity: str
    browser: str = field(repr=False)
    verifier: str = field(repr=False)
    back: str
    until: float


class Sessions:
    """All of them, in memory. Used in one thread."""

    def __init__(self, letters: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> None:
        self._letters = letters
        self._open: OrderedDict[bytes, Session] = OrderedDict()
        self._under_way: OrderedDict[bytes, SignIn] = OrderedDict()

    def open(self, token: str, now: float) -> tuple[str, Session]:
        """Begin a session; return the cookie's value with it. Of too many the one not used for longest ends."""
        name = self._letters()
        session = self._open[_digest(name)] = Session(token, self._letters(), now + LIFETIME, now + IDLE)
        while len(self._open) > SESSIONS:
            self._open.popitem(last=False)
        return name, session

    def find(self, name: str, now: float) -> Session | None:
        """Return the session of a cookie, and keep it alive."""
        key = _digest(name)
        session = self._open.get(key)
        if session is None or now >= min(session.until, session.idle):
            self._open.pop(key, None)
            return None
        session.idle = now + IDLE
        self._open.move_to_end(key)
        return session

    def close(self, name: str) -> None:
        """End a session."""
        self._open.pop(_digest(name), None)

    def leave(self, identity: str, back: str, now: float) -> tuple[str, SignIn]:
        """Send a person to a provider; return the ``state`` with what is remembered."""
        state = self._letters()
        begun = SignIn(identity, self._letters(), self._letters(), back, now + UNDER_WAY_SECONDS)
        self._under_way[_digest(state)] = begun
        while len(self._under_way) > UNDER_WAY:
            self._under_way.popitem(last=False)
        return state, begun

    def come_back(self, state: str, browser: str, now: float) -> SignIn | None:
        """Take a person back, once, in the browser that left; ``None`` for anybody else."""
        begun = self._under_way.get(_digest(state))
        if begun is None or not _same(begun.browser, browser):
            return None
        del self._under_way[_digest(state)]
        return begun if now < begun.until else None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
