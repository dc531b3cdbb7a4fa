"""Callers in evidence: their pseudonyms, their names, and the keys under which their bodies lie.

A file of its own beside the recording. In the recording and its log a caller is a pseudonym, keyed by a random key of
that caller's; bodies lie under a data key for each (caller, month). Deleting a caller's rows here erases the name and
the bodies everywhere, in closed segments and in their copies too, and leaves every hash of the log as it was.

Readers leave word here of what they read or exported, for the process that records to put into the log.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence.records import RecordingError

KEYS_ID = 0x7469646B
"""``tidk``: what other tools read from the head of the file."""

MARK = "~"
"""Every pseudonym begins with it."""

_TABLES = {
    "subject": "pseudonym TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, key BLOB NOT NULL",
    "data_key": "id TEXT PRIMARY KEY, pseudonym TEXT NOT NULL, month TEXT NOT NULL, key BLOB NOT NULL, "
    "UNIQUE (pseudonym, month)",
    "hold": "name TEXT PRIMARY KEY, at_us INTEGER NOT NULL, reason TEXT NOT NULL",
    "pending": "id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL",
}

MOST = 256
"""Events that readers left word of, of one commit."""

EVERYBODY = "*"
"""The name of a legal hold on every caller."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key for the bodies of one caller in one month."""

    id: str
    key: bytes


class Subjects:
    """The file of callers' keys. Used by one thread at a time; several processes may have it open.

    The journal is a rollback journal: this file is small and written rarely, and one thing fewer can go wrong in it.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.is_file():
            raise RecordingError(f"{path}: found no file; accepted: the file of keys beside a recording")
        if create:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.path = path
        mode = "rw" if create or os.access(path, os.W_OK) else "ro"
        try:
            self._db: Any = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
            )
            for pragma in ("busy_timeout=5000", "secure_delete=ON", "synchronous=FULL", "trusted_schema=OFF"):
                self._db.execute(f"PRAGMA {pragma}")
            if create and not self._db.execute("PRAGMA application_id").fetchone()[0]:
                self._db.execute("BEGIN IMMEDIATE")
                for table, columns in _TABLES.items():
                    self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) STRICT")
                self._db.execute(f"PRAGMA application_id={KEYS_ID}")
                self._db.execute("COMMIT")
            if self._db.execute("PRAGMA application_id").fetchone()[0] != KEYS_ID:
                raise RecordingError(f"{path}: found a database of something else; accepted: the keys of a recording")
        except sqlite3.Error as error:
            raise RecordingError(f"{path}: cannot be opened as the keys of a recording: {error}") from error
        self._pseudonyms: dict[str, str] = {}
        self._keys: dict[tuple[str, str], DataKey] = {}
        self._seen = self._heard = -1

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def refresh(self) -> bool:
        """Forget what is remembered if another process has written; say whether it has."""
        version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        changed, self._seen = version != self._seen, version
        if changed:
            self._pseudonyms.clear()
            self._keys.clear()
        return changed

    # ── for the writer ───────────────────────────────────────────────────────

    def pseudonym(self, name: str) -> str:
        """Return the pseudonym of ``identity:subject``, made at first sight."""
        known = self._pseudonyms.get(name)
        if known is None:
            row = self._db.execute("SELECT pseudonym FROM subject WHERE name = ?", [name]).fetchone()
            if row is None:
                key = secrets.token_bytes(32)
                self._db.execute(
                    "INSERT INTO subject VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [pseudonym_of(name, key), name, key]
                )
                row = self._db.execute("SELECT pseudonym FROM subject WHERE name = ?", [name]).fetchone()
            known = self._pseudonyms[name] = str(row[0])
        return known

    def commitment(self, name: str, text: str) -> str:
        """Return a hash of what a person said, under that person's key: erased with it, it says nothing any more."""
        self.pseudonym(name)
        row = self._db.execute("SELECT key FROM subject WHERE name = ?", [name]).fetchone()
        said = b"reason\0" + text.encode("utf-8", "backslashreplace")
        return f"hmac-sha256:{hmac.digest(row[0], said, 'sha256').hex()}"

    def data_key(self, pseudonym: str, at_us: int) -> DataKey:
        """Return the key for the bodies of a caller in the month of a time, made at first use."""
        month = time.strftime("%Y-%m", time.gmtime(at_us / 1e6))
        known = self._keys.get((pseudonym, month))
        if known is None:
            asked = "SELECT id, key FROM data_key WHERE pseudonym = ? AND month = ?"
            row = self._db.execute(asked, [pseudonym, month]).fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO data_key VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    [secrets.token_hex(8), pseudonym, month, secrets.token_bytes(32)],
                )
                row = self._db.execute(asked, [pseudonym, month]).fetchone()
            known = self._keys[pseudonym, month] = DataKey(str(row[0]), bytes(row[1]))
        return known

    # ── for readers ──────────────────────────────────────────────────────────

    def name(self, pseudonym: str) -> str | None:
        """Return the ``identity:subject`` of a pseudonym; ``None`` if it was erased, or is not that name's."""
        row = self._db.execute("SELECT name, key FROM subject WHERE pseudonym = ?", [pseudonym]).fetchone()
        return None if row is None or pseudonym_of(*row) != pseudonym else str(row[0])

    def matching(self, caller: str) -> list[tuple[str, str]]:
        """Return (pseudonym, name) of the callers with that subject, or that ``identity:subject``."""
        rows = self._db.execute("SELECT pseudonym, name, key FROM subject").fetchall()
        return [(p, n) for p, n, key in rows if caller in (n, n.partition(":")[2], p) and pseudonym_of(n, key) == p]

    def strangers(self) -> tuple[int, list[str]]:
        """Return how many callers there are, and the pseudonyms that are not those of the names beside them."""
        rows = self._db.execute("SELECT pseudonym, name, key FROM subject ORDER BY pseudonym").fetchall()
        return len(rows), [pseudonym for pseudonym, name, key in rows if pseudonym_of(name, key) != pseudonym]

    def key(self, key_id: str) -> bytes | None:
        """Return a data key; ``None`` if it was destroyed."""
        row = self._db.execute("SELECT key FROM data_key WHERE id = ?", [key_id]).fetchone()
        return None if row is None else bytes(row[0])

    # ── erasure and holds ────────────────────────────────────────────────────

    def held(self, name: str) -> str | None:
        """Return the reason of a legal hold on a caller or on everybody, if there is one."""
        row = self._db.execute("SELECT reason FROM hold WHERE name IN (?, ?)", [name, EVERYBODY]).fetchone()
        return None if row is None else str(row[0])

    def holds(self) -> list[tuple[str, int, str]]:
        """Return every legal hold: name, since when, reason."""
        return [tuple(row) for row in self._db.execute("SELECT name, at_us, reason FROM hold ORDER BY name")]

    def hold(self, name: str, reason: str | None, detail: str) -> None:
        """Set a legal hold, or lift it where there is no reason; the log learns of it."""
        self._db.execute("BEGIN IMMEDIATE")
        if reason is None:
            self._db.execute("DELETE FROM hold WHERE name = ?", [name])
        else:
            self._db.execute("INSERT OR REPLACE INTO hold VALUES (?, ?, ?)", [name, time.time_ns() // 1000, reason])
        self._tell("hold" if reason is not None else "release", detail)
        self._db.execute("COMMIT")

    def erase(self, name: str, detail: str) -> int:
        """Destroy a caller's name and data keys; returns how many keys there were. The log learns of it.

        Raises ``RecordingError`` while a legal hold is on that caller.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if (reason := self.held(name)) is not None:
                raise RecordingError(f"{self.path}: found a legal hold on this caller ({reason}); nothing was erased")
            row = self._db.execute("SELECT pseudonym FROM subject WHERE name = ?", [name]).fetchone()
            if row is None:
                raise RecordingError(f"{self.path}: found no caller of that name; nothing was erased")
            many = int(self._db.execute("SELECT count(*) FROM data_key WHERE pseudonym = ?", row).fetchone()[0])
            self._db.execute("DELETE FROM data_key WHERE pseudonym = ?", row)
            self._db.execute("DELETE FROM subject WHERE pseudonym = ?", row)
            self._tell("erased", f"{row[0]} {many} keys {detail}".strip())
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._pseudonyms.clear()
        self._keys.clear()
        return many

    # ── word for the log ─────────────────────────────────────────────────────

    def tell(self, kind: str, detail: str) -> None:
        """Leave word of an event; whoever records puts it into the log."""
        self._tell(kind, detail)

    def _tell(self, kind: str, detail: str) -> None:
        self._db.execute(
            "INSERT INTO pending (at_us, kind, detail) VALUES (?, ?, ?)", [time.time_ns() // 1000, kind, detail]
        )

    def news(self) -> list[tuple[int, str, str]]:
        """Return what ``told`` does, without a look into the file where nobody else has written since the last one."""
        version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        if version == self._heard:
            return []
        found = self.told()
        if len(found) < MOST:
            self._heard = version
        return found

    def told(self) -> list[tuple[int, str, str]]:
        """Return the events that wait to get into the log: number, kind, detail."""
        return [
            tuple(row) for row in self._db.execute("SELECT id, kind, detail FROM pending ORDER BY id LIMIT ?", [MOST])
        ]

    def logged(self, numbers: Iterable[int]) -> None:
        """Forget events that are in the log now."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("DELETE FROM pending WHERE id = ?", [(each,) for each in numbers])
        self._db.execute("COMMIT")


def pseudonym_of(name: str, key: bytes) -> str:
    """Return the pseudonym that a key makes of a name: nobody finds another pair that comes to the same."""
    return MARK + base64.b32encode(hmac.digest(key, name.encode(), "sha256")[:10]).decode().lower()
