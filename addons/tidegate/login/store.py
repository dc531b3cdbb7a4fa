"""The file of a person's logins: mode 0600 below the XDG configuration folder, replaced whole, renewed under a lock.

A provider may give each refresh token once. So whoever renews holds the lock, looks again, and writes before it lets
go.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.login import provider
from tidegate.login.provider import Client, Refused, Tokens
from tidegate.login.web import LoginError, Unreachable

FILE_BYTES = 1024 * 1024
LOCK_SECONDS = 45.0
"""How long to wait for another process that renews: longer than its own time limit for an answer."""
CLOCK_TURNED = 300.0
"""A token from so far in the future is not believed: the clock was turned back, and its end is not known."""
AGAIN = "run: tidegate login"


@dataclass(frozen=True, slots=True)
class Login:
    """A login that is kept: as which client, where to renew it, and what it gave."""

    name: str
    client: Client
    token_endpoint: str
    revocation_endpoint: str | None
    tokens: Tokens = field(repr=False)


def folder() -> Path:
    """Return the folder for what belongs to this person."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "tidegate"  # noqa: PTH117 - a text


class Store:
    """The logins of one folder. Raises ``LoginError`` in one sentence."""

    def __init__(self, where: Path) -> None:
        self.folder = where
        self.path = where / "login.json"

    def load(self, name: str | None) -> Login | None:
        """Return a login by its name, or the only one (else the last that was made)."""
        logins, last = self._read()
        return logins.get(name if name is not None else last)

    def names(self) -> list[str]:
        """Return the names of all logins."""
        return sorted(self._read()[0])

    def keep(self, login: Login) -> None:
        """Add or replace a login."""
        with self.locked():
            self._put(login)

    def forget(self, name: str) -> None:
        """Remove a login."""
        with self.locked():
            logins, last = self._read()
            logins.pop(name, None)
            self._write(logins, last if last in logins else next(iter(logins), ""))

    def valid(self, name: str | None, *, valid_for: float, force: bool, clock: Callable[[], float]) -> Login:
        """Return a login whose token is good for some time more, renewed if it has to be; raises where it cannot be."""
        login = self._known(name)
        if not force and _fresh(login, valid_for, clock()):
            return login
        seen = login.tokens.access
        with self.locked():
            login = self._known(name)
            renewed = login.tokens.access != seen  # by another process, meanwhile
            if _fresh(login, valid_for, clock()) and (renewed or not force):
                return login
            return self._renew(login, clock, force=force)

    def _renew(self, login: Login, clock: Callable[[], float], *, force: bool) -> Login:
        usable = clock() + 5 < login.tokens.expires and not force
        if login.tokens.refresh is None:
            if usable:
                return login
            raise LoginError(f"The login {login.name} has ended and cannot be renewed; {AGAIN}", person=True)
        try:
            tokens = provider.refresh(login.client, login.token_endpoint, login.tokens.refresh, clock)
        except Refused as refused:
            if usable:
                return login
            raise LoginError(f"The provider does not renew the login {login.name} ({refused.word}); {AGAIN}") from None
        except Unreachable:
            if usable:
                return login
            raise
        renewed = Login(login.name, login.client, login.token_endpoint, login.revocation_endpoint, tokens)
        self._put(renewed)
        return renewed

    def _known(self, name: str | None) -> Login:
        found = self.load(name)
        if found is None:
            raise LoginError(f"Nobody is logged in here{'' if name is None else f' as {name}'}; {AGAIN}", person=True)
        return found

    def _put(self, login: Login) -> None:
        logins, _ = self._read()
        logins[login.name] = login
        self._write(logins, login.name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the file, and from renewing what is in it."""
        import fcntl

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.folder / "login.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise LoginError(f"{self.folder}: cannot be locked: {error.strerror}.") from None
                    if time.monotonic() > until:
                        raise LoginError("Another process has been renewing the login for too long.") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(handle)

    def _read(self) -> tuple[dict[str, Login], str]:
        try:
            with self.path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                    raise LoginError(f"{self.path}: others may read it; make its mode 0600, and log in again.")
                data = file.read(FILE_BYTES)
        except FileNotFoundError:
            return {}, ""
        except OSError as error:
            raise LoginError(f"{self.path}: cannot be read: {error.strerror}.") from None
        try:
            document = json.loads(data)
            logins = {name: _login(name, entry) for name, entry in document["logins"].items()}
            return logins, str(document["last"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LoginError(f"{self.path}: is not what tidegate wrote; delete it, then {AGAIN}", person=True) from None

    def _write(self, logins: dict[str, Login], last: str) -> None:
        document = {"version": 1, "last": last, "logins": {name: _entry(each) for name, each in logins.items()}}
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".login.")  # mkstemp makes it 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise LoginError(f"{self.path}: cannot be written: {error.strerror}.") from None


def _fresh(login: Login, valid_for: float, now: float) -> bool:
    """Say whether a token is good for so long; of one that lives shorter, half its life is enough."""
    tokens = login.tokens
    left = min(valid_for, (tokens.expires - tokens.obtained) / 2)
    return tokens.obtained - CLOCK_TURNED < now < tokens.expires - left


def _login(name: str, entry: dict[str, object]) -> Login:
    extra, secret, revocation = entry["extra"], entry["secret_file"], entry["revocation_endpoint"]
    refresh, expires, obtained = entry["refresh_token"], entry["expires"], entry["obtained"]
    if not isinstance(extra, dict) or not isinstance(expires, int | float) or not isinstance(obtained, int | float):
        raise TypeError
    client = Client(
        issuer=_text(entry["issuer"]),
        client_id=_text(entry["client_id"]),
        scope=_text(entry["scope"]),
        secret_file=None if secret is None else _text(secret),
        extra={_text(key): _text(value) for key, value in extra.items()},
    )
    tokens = Tokens(
        _text(entry["access_token"]), None if refresh is None else _text(refresh), float(expires), float(obtained)
    )
    return Login(
        name, client, _text(entry["token_endpoint"]), None if revocation is None else _text(revocation), tokens
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _entry(login: Login) -> dict[str, object]:
    return {
        "issuer": login.client.issuer,
        "client_id": login.client.client_id,
        "scope": login.client.scope,
        "secret_file": login.client.secret_file,
        "extra": dict(login.client.extra),
        "token_endpoint": login.token_endpoint,
        "revocation_endpoint": login.revocation_endpoint,
        "access_token": login.tokens.access,
        "refresh_token": login.tokens.refresh,
        "expires": login.tokens.expires,
        "obtained": login.tokens.obtained,
    }
