"""The full-text index of a recording: a file of its own, made on request, a second copy of the masked texts.

It may be deleted at any time; erasing a caller deletes it. Originals are never in it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence.records import RecordingError

INDEX_ID = 0x74696469
"""``tidi``: what other tools read from the head of the file."""

_WORD = re.compile(r"[^\s\"]+")


class Index:
    """The index at ``path``. Raises ``RecordingError`` if it cannot be opened as one."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.path = path
        self._db: Any = None
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA busy_timeout=5000")
            self._db.execute("PRAGMA secure_delete=ON")
            if not self._db.execute("PRAGMA application_id").fetchone()[0]:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(
                    "CREATE VIRTUAL TABLE IF NOT EXISTS said USING fts5(exchange UNINDEXED, prompt, response)"
                )
                self._db.execute("CREATE TABLE IF NOT EXISTS seen (exchange TEXT PRIMARY KEY) STRICT, WITHOUT ROWID")
                self._db.execute(f"PRAGMA application_id={INDEX_ID}")
                self._db.execute("COMMIT")
                with contextlib.suppress(sqlite3.Error):  # not in SQLite 3.40: whoever erases deletes the file
                    self._db.execute("INSERT INTO said (said, rank) VALUES ('secure-delete', 1)")
            if self._db.execute("PRAGMA application_id").fetchone()[0] != INDEX_ID:
                raise RecordingError(f"{path}: found a database of something else; accepted: an index, or no file yet")
        except sqlite3.Error as error:
            raise RecordingError(f"{path}: cannot be opened as an index: {error}; it may be deleted") from error

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return those of some exchanges that are not in the index."""
        seen = {row[0] for row in self._db.execute("SELECT exchange FROM seen")}
        return [each for each in ids if each not in seen]

    def add(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Add exchanges: id, text of the request, text of the answer."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO said (exchange, prompt, response) VALUES (?, ?, ?)", rows)
        self._db.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(row[0],) for row in rows])
        self._db.execute("COMMIT")

    def search(self, text: str, limit: int) -> list[str]:
        """Return the newest exchanges in which every word of a text occurs."""
        words = " ".join(f'"{each}"' for each in _WORD.findall(text))
        if not words:
            return []
        asked = "SELECT exchange FROM said WHERE said MATCH ? ORDER BY rowid DESC LIMIT ?"
        return [row[0] for row in self._db.execute(asked, [words, limit])]

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def holds(text: str, words: str) -> bool:
    """Say whether every word of ``words`` occurs in a text, as the index would: without regard to case."""
    folded = text.casefold()
    return all(each.casefold() in folded for each in _WORD.findall(words))
