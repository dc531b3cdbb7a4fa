"""Sign-ins under way, assertions that were believed, and terminals that wait: what SAML needs to remember.

In the control store, so that any process of this gateway can go on with a sign-in that another began, and an assertion
is believed once by all of them. What a browser or a terminal holds is kept as a hash; nothing lives longer than
``SECONDS`` but the ids of assertions, which stay until these have ended.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tidegate.model import Caller
from tidegate.state.control import Control

SECONDS = 600.0
"""From the request to the answer of a provider, and from there to the page that shows the token."""

MOST = 10_000
"""Sign-ins, and terminals, under way at a time: beyond it the oldest go, since anybody may begin one."""

INTERVAL = 2.0
"""Seconds between two questions of a terminal (RFC 8628 section 3.5)."""


class Settled(enum.Enum):
    """What became of an assertion."""

    BELIEVED = enum.auto()
    UNKNOWN = enum.auto()
    REPLAYED = enum.auto()


class Waits(enum.Enum):
    """What a terminal is told as long as it has no caller."""

    PENDING = enum.auto()
    SLOWER = enum.auto()
    DENIED = enum.auto()
    GONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Login:
    """A sign-in under way. ``caller`` is there once the provider's answer was believed; ``until`` ends the session."""

    id: str
    identity: str
    user_code: str | None
    caller: Caller | None = field(default=None, repr=False)
    until: float | None = None


class Logins:
    """The part of the control store that knows them. Times are Unix seconds."""

    def __init__(self, control: Control, now: Callable[[], float]) -> None:
        self._control = control
        self._now = now

    def begin(self, login: str, identity: str, browser: str, user_code: str | None) -> Future[None]:
        """Keep that a browser was sent to a provider."""
        now = self._now()

        def work(db: Any) -> None:
            _tidy(db, now)
            db.execute(
                "INSERT INTO saml_login (id, identity, browser, user_code, made) VALUES (?, ?, ?, ?, ?)",
                (login, identity, _hash(browser), user_code, now),
            )

        return self._control.write(work)

    def begun(self, login: str) -> Future[Login | None]:
        """Return the sign-in that a provider's answer belongs to, unless it was answered already."""
        oldest = self._now() - SECONDS

        def work(db: Any) -> Login | None:
            row = db.execute(
                "SELECT identity, user_code FROM saml_login WHERE id = ? AND made > ? AND caller IS NULL",
                (login, oldest),
            ).fetchone()
            return None if row is None else Login(login, row[0], row[1])

        return self._control.read(work)

    def settle(
        self, login: Login, caller: Caller, until: float | None, *, assertion: str, ends: float
    ) -> Future[Settled]:
        """Believe an assertion: once for all, and once for each sign-in."""
        now = self._now()

        def work(db: Any) -> Settled:
            if not _first(db, login.identity, assertion, ends, now):
                return Settled.REPLAYED
            done = db.execute(
                "UPDATE saml_login SET caller = ?, until = ? WHERE id = ? AND made > ? AND caller IS NULL",
                (_written(caller), until, login.id, now - SECONDS),
            )
            return Settled.BELIEVED if done.rowcount == 1 else Settled.UNKNOWN

        return self._control.write(work)

    def believe(self, identity: str, assertion: str, ends: float) -> Future[bool]:
        """Believe an assertion that nobody asked for (RFC 7522): say whether it is the first time."""
        now = self._now()
        return self._control.write(lambda db: _first(db, identity, assertion, ends, now))

    def done(self, browser: str) -> Future[Login | None]:
        """Return the sign-in of a browser, once it is answered."""
        oldest = self._now() - SECONDS
        return self._control.read(lambda db: _done(db, browser, oldest))

    def take(self, browser: str) -> Future[Login | None]:
        """Return the answered sign-in of a browser, and forget it: it gives one token."""
        oldest = self._now() - SECONDS

        def work(db: Any) -> Login | None:
            found = _done(db, browser, oldest)
            if found is not None:
                db.execute("DELETE FROM saml_login WHERE id = ?", (found.id,))
            return found

        return self._control.write(work)

    # ── terminals ────────────────────────────────────────────────────────────

    def wait(self, device_code: str, user_code: str) -> Future[None]:
        """Keep that a terminal waits for somebody to sign in."""
        now = self._now()

        def work(db: Any) -> None:
            _tidy(db, now)
            db.execute(
                "INSERT INTO saml_device (code, user_code, made, asked, denied) VALUES (?, ?, ?, 0, 0)",
                (_hash(device_code), user_code, now),
            )

        return self._control.write(work)

    def waits(self, user_code: str) -> Future[bool]:
        """Say whether a terminal waits under this code."""
        oldest = self._now() - SECONDS

        def work(db: Any) -> bool:
            row = db.execute(
                "SELECT 1 FROM saml_device WHERE user_code = ? AND made > ? AND caller IS NULL AND denied = 0",
                (user_code, oldest),
            ).fetchone()
            return row is not None

        return self._control.read(work)

    def give(self, user_code: str, login: Login, *, allowed: bool) -> Future[bool]:
        """Let a terminal go on as the caller of a sign-in, or not at all; says whether it still waited."""
        oldest = self._now() - SECONDS
        caller = _written(login.caller) if allowed and login.caller is not None else None

        def work(db: Any) -> bool:
            done = db.execute(
                "UPDATE saml_device SET caller = ?, until = ?, denied = ? "
                "WHERE user_code = ? AND made > ? AND caller IS NULL AND denied = 0",
                (caller, login.until, int(caller is None), user_code, oldest),
            )
            return bool(done.rowcount == 1)

        return self._control.write(work)

    def ask(self, device_code: str) -> Future[Login | Waits]:
        """Return the sign-in that a terminal waits for, once; or how it stands."""
        now = self._now()

        def work(db: Any) -> Login | Waits:
            code = _hash(device_code)
            row = db.execute(
                "SELECT user_code, made, asked, denied, caller, until FROM saml_device WHERE code = ?", (code,)
            ).fetchone()
            if row is None or row[1] <= now - SECONDS:
                return Waits.GONE
            user_code, _, asked, denied, caller, until = row
            if denied:
                return Waits.DENIED
            if caller is None:
                db.execute("UPDATE saml_device SET asked = ? WHERE code = ?", (now, code))
                return Waits.SLOWER if now - asked < INTERVAL / 2 else Waits.PENDING
            db.execute("DELETE FROM saml_device WHERE code = ?", (code,))
            return Login("", "", user_code, _read(caller), until)

        return self._control.write(work)


def _first(db: Any, identity: str, assertion: str, ends: float, now: float) -> bool:
    """Note an assertion's id until it ends; say whether it was not known."""
    db.execute("DELETE FROM saml_seen WHERE ends < ?", (now - SECONDS,))
    name = hashlib.sha256(f"{identity}\0{assertion}".encode()).digest()
    done = db.execute("INSERT INTO saml_seen (name, ends) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, ends))
    return bool(done.rowcount == 1)


def _done(db: Any, browser: str, oldest: float) -> Login | None:
    row = db.execute(
        "SELECT id, identity, user_code, caller, until FROM saml_login "
        "WHERE browser = ? AND made > ? AND caller IS NOT NULL",
        (_hash(browser), oldest),
    ).fetchone()
    return None if row is None else Login(row[0], row[1], row[2], _read(row[3]), row[4])


def _tidy(db: Any, now: float) -> None:
    """Forget what is too old, and the oldest of what is too many."""
    for table, key in (("saml_login", "id"), ("saml_device", "code")):
        db.execute(f"DELETE FROM {table} WHERE made <= ?", (now - SECONDS,))  # noqa: S608 - our own names
        db.execute(
            f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608
            f"(SELECT {key} FROM {table} ORDER BY made DESC LIMIT -1 OFFSET ?)",
            (MOST - 1,),
        )


def _hash(secret: str) -> bytes:
    """Hash 256 random bits, which nobody guesses."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _written(caller: Caller) -> str:
    return json.dumps(
        [caller.identity, caller.subject, sorted(caller.groups), sorted(caller.strength), caller.authenticated]
    )


def _read(text: str) -> Caller:
    identity, subject, groups, strength, authenticated = json.loads(text)
    return Caller(identity, subject, frozenset(groups), strength=frozenset(strength), authenticated=authenticated)
