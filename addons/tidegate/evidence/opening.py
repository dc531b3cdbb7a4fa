"""How a recording's SQLite files are opened: one module, one set of pragmas, the schema of today."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence import records
from tidegate.evidence.records import RecordingError

PRAGMAS = (
    "journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "secure_delete=ON",
    "cell_size_check=ON", "trusted_schema=OFF", "temp_store=MEMORY", "journal_size_limit=67108864",
    "wal_autocheckpoint=1000",
)  # fmt: skip
"""FULL: with NORMAL acknowledged rows vanish on power loss. 1,000 pages bound the WAL to 4 MB, so that a checkpoint
needs little space on a full disk. Never ``mmap_size``."""

TILES_ID = 0x74696474
"""``tidt``: the application id of the file of tiles."""


def open_segment(path: Path) -> Any:
    """Open a segment for writing, with every pragma and the schema of today. Raises ``RecordingError``."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # -wal and -shm take its mode
    path.chmod(0o600)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.execute(f"PRAGMA application_id={records.APPLICATION_ID}")
        elif db.execute("PRAGMA application_id").fetchone()[0] != records.APPLICATION_ID:
            raise RecordingError(f"{path}: found a database of something else; accepted: a recording, or no file yet")
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        records.migrations.apply(Database(db))
        db.execute("PRAGMA recursive_triggers=OFF")
    except BaseException:
        db.close()
        raise
    return db


class Tiles:
    """The hashes and the list of closed segments, which outlive them: without them no proof crosses a gap.

    A file of its own with a rollback journal, written when a segment closes or goes.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self._db: Any = None
        if create or path.is_file():
            self._open(create=create)

    def _open(self, *, create: bool) -> None:
        if create:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # For writing even by who only reads, where that may be: a process that was killed here has left a journal, and
        # rolling it back is a write.
        self._db = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
        )
        reading = () if create else ("query_only=ON",)
        for pragma in ("busy_timeout=5000", "synchronous=FULL", "trusted_schema=OFF", *reading):
            self._db.execute(f"PRAGMA {pragma}")
        if create and not self._db.execute("PRAGMA application_id").fetchone()[0]:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "CREATE TABLE tile (level INTEGER NOT NULL, number INTEGER NOT NULL, hashes BLOB NOT NULL, "
                "PRIMARY KEY (level, number)) STRICT"
            )
            self._db.execute(
                "CREATE TABLE closed (number INTEGER PRIMARY KEY, first INTEGER NOT NULL, size INTEGER NOT NULL, "
                "edge BLOB NOT NULL, sha256 TEXT NOT NULL, closed_us INTEGER NOT NULL, deleted_us INTEGER, "
                "told INTEGER NOT NULL DEFAULT 0) STRICT"
            )
            self._db.execute(f"PRAGMA application_id={TILES_ID}")
            self._db.execute("COMMIT")
        if self._db.execute("PRAGMA application_id").fetchone()[0] != TILES_ID:
            raise RecordingError(f"{self.path}: found a database of something else; accepted: the tiles of a recording")

    def fetch(self, level: int, number: int) -> bytes | None:
        """Return a full tile, if it is here."""
        if self._db is None:
            return None
        row = self._db.execute("SELECT hashes FROM tile WHERE level = ? AND number = ?", [level, number]).fetchone()
        return None if row is None else bytes(row[0])

    def rows(self) -> list[dict[str, Any]]:
        """Return the closed segments, oldest first."""
        if self._db is None:
            return []
        names = ("number", "first", "size", "edge", "sha256", "closed_us", "deleted_us", "told")
        found = self._db.execute(f"SELECT {', '.join(names)} FROM closed ORDER BY number")  # noqa: S608 - our own names
        return [dict(zip(names, row, strict=True)) for row in found]

    def take(self, tiles: Sequence[tuple[object, ...]], row: tuple[object, ...]) -> None:
        """Keep the tiles of a segment that is being closed, and note it. May be done again."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO tile VALUES (?, ?, ?)", tiles)
        self._db.execute("INSERT OR REPLACE INTO closed VALUES (?, ?, ?, ?, ?, ?, NULL, 0)", row)
        self._db.execute("COMMIT")

    def told(self, number: int) -> None:
        """Note that the log tells of a closed segment."""
        self._db.execute("UPDATE closed SET told = 1 WHERE number = ?", [number])

    def deleted(self, number: int, at_us: int) -> None:
        """Note that a closed segment is gone."""
        self._db.execute("UPDATE closed SET deleted_us = ? WHERE number = ?", [at_us, number])

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None
