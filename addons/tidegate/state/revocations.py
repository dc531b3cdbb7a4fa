"""Tokens that are no longer believed: one token by its ``jti``, or every token of a subject up to a moment.

Kept in the control store, asked on every request. ``covers`` does no I/O: it looks into a copy in memory, which a
thread compares with the store every ``LOOK_SECONDS``, so that what another process revokes counts here a second later.
A copy that could not be compared is worth nothing: ``covers`` then says that nobody knows, and the request is denied.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from typing import Any

from tidegate.state.control import Control, StateError

log = logging.getLogger("tidegate")

LOOK_SECONDS = 1.0
"""How often the copy is compared with the store: one row is read."""

TRUSTED_SECONDS = 10.0
"""How long a copy counts after it was last found to be right: longer only if this machine has stood still."""

ENDED_SECONDS = 300.0
"""How long a row outlives its token: the widest leeway a policy may give to clocks."""

TIDY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Revocation:
    """One entry: a token (``jti``) or the tokens of a subject issued up to ``before``. Times are Unix seconds."""

    id: int
    issuer: str
    jti: str | None
    subject: str | None
    before: float | None
    expires: float | None
    made: float
    made_by: str
    why: str


@dataclass(frozen=True, slots=True)
class _Copy:
    """What the store held at its change ``number``."""

    number: int
    tokens: frozenset[tuple[str, str]]
    subjects: Mapping[tuple[str, str], float]


class Revocations:
    """The part of the control store that knows revoked tokens. ``start`` it once the store is open."""

    def __init__(
        self,
        control: Control,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._now = now
        self._monotonic = monotonic
        self._copy = _Copy(-1, frozenset(), {})
        self._right = -float("inf")
        self._taking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the list, and keep the copy right from then on. Raises ``StateError``."""
        self._look()
        self._thread = threading.Thread(target=self._run, name="tidegate revocations", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop comparing. From then on nobody knows. May be called again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._right = -float("inf")

    def covers(self, issuer: str, jti: str | None, subject: str, issued: float | None) -> bool | None:
        """Say whether a token is revoked; ``None``: nobody can tell. Costs no I/O.

        A token that does not say when it was issued counts as issued before any moment.
        """
        if self._monotonic() - self._right > TRUSTED_SECONDS:
            return None
        copy = self._copy
        if jti is not None and (issuer, jti) in copy.tokens:
            return True
        if not copy.subjects:
            return False
        before = copy.subjects.get((issuer, subject))
        return before is not None and (issued is None or issued <= before)

    def revoke_token(
        self, issuer: str, jti: str, *, made_by: str, why: str = "", expires: float | None = None
    ) -> Future[int]:
        """Take back one token; the future has the entry's id once it is on the disk. The same token again is no fault.

        ``expires`` is the token's own end, if it is known: the entry goes some time after it.
        """
        return self._add(issuer, jti, None, None, expires, made_by, why)

    def revoke_subject(
        self, issuer: str, subject: str, *, made_by: str, why: str = "", before: float | None = None
    ) -> Future[int]:
        """Take back every token of a subject issued up to ``before`` (now); as ``revoke_token``."""
        return self._add(issuer, None, subject, self._now() if before is None else before, None, made_by, why)

    def undo(self, entry: int) -> Future[bool]:
        """Delete an entry; the future says whether there was one."""
        work = self._control.write(lambda db: db.execute("DELETE FROM revoked WHERE id = ?", (entry,)).rowcount == 1)
        return self._then_look(work)

    def all(self) -> Future[tuple[Revocation, ...]]:
        """Return every entry, the newest first."""

        def work(db: Any) -> tuple[Revocation, ...]:
            rows = db.execute(
                "SELECT id, issuer, jti, subject, before, expires, made, made_by, why FROM revoked ORDER BY id DESC"
            )
            return tuple(Revocation(*row) for row in rows)

        return self._control.read(work)

    def _add(
        self, issuer: str, jti: str | None, subject: str | None, before: float | None, expires: float | None,
        made_by: str, why: str,
    ) -> Future[int]:  # fmt: skip
        row = (issuer, jti, subject, before, expires, self._now(), made_by, why)

        def work(db: Any) -> int:
            known = db.execute("SELECT id FROM revoked WHERE issuer = ? AND jti = ?", (issuer, jti)).fetchone()
            if known is not None:
                return int(known[0])
            found = db.execute(
                "INSERT INTO revoked (issuer, jti, subject, before, expires, made, made_by, why) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return int(found.lastrowid)

        return self._then_look(self._control.write(work))

    def _then_look(self, work: Future[Any]) -> Future[Any]:
        """Have a change of our own count here by the time whoever made it is told."""
        told: Future[Any] = Future()

        def looked(read: Future[tuple[float, _Copy | None]]) -> None:
            if read.exception() is None:  # otherwise the thread looks again, and until then the old copy ages
                self._take(*read.result())
            told.set_result(work.result())

        def done(_: Future[Any]) -> None:
            if problem := work.exception():
                told.set_exception(problem)
            else:
                self._control.read(self._read).add_done_callback(looked)

        work.add_done_callback(done)
        return told

    # ── the copy ─────────────────────────────────────────────────────────────

    def _run(self) -> None:
        due = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except StateError as error:
                if self._right > -float("inf"):
                    log.error("revocations: %s; until it can be read, tokens are answered with 503", error)
                self._right = -float("inf")
                continue
            if self._monotonic() >= due:
                due = self._monotonic() + TIDY_SECONDS
                self._control.write(self._tidy)

    def _tidy(self, db: Any) -> None:
        db.execute("DELETE FROM revoked WHERE expires < ?", (self._now() - ENDED_SECONDS,))

    def _look(self) -> None:
        try:
            self._take(*self._control.read(self._read).result(TRUSTED_SECONDS))
        except TooLate:
            raise StateError(f"{self._control.path}: cannot be read: it takes too long") from None

    def _read(self, db: Any) -> tuple[float, _Copy | None]:
        """Read the list, or ``None`` where the copy is right; and say as of when."""
        at = self._monotonic()
        (number,) = db.execute("SELECT number FROM revoked_change").fetchone()
        if number == self._copy.number:
            return at, None
        db.execute("BEGIN")
        try:
            (number,) = db.execute("SELECT number FROM revoked_change").fetchone()
            tokens = db.execute("SELECT issuer, jti FROM revoked WHERE jti IS NOT NULL").fetchall()
            subjects = db.execute(
                "SELECT issuer, subject, max(before) FROM revoked WHERE subject IS NOT NULL GROUP BY issuer, subject"
            ).fetchall()
        finally:
            db.execute("COMMIT")
        by_subject = {(issuer, subject): before for issuer, subject, before in subjects}
        return at, _Copy(number, frozenset(map(tuple, tokens)), by_subject)

    def _take(self, at: float, fresh: _Copy | None) -> None:
        """Put a copy in place, unless a later look has come before this one."""
        with self._taking:
            if at < self._right or self._stop.is_set():
                return
            self._copy, self._right = fresh or self._copy, at
