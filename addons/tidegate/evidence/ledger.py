"""What one transaction of the recording writes: rows, and the leaves that commit to them. In the writer thread alone.

A ledger has one open segment. Several processes may share it, if their SQLite allows that: the tree is taken up anew
whenever another one has written in between, under the lock of the transaction.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidegate.evidence import payloads, records
from tidegate.evidence.files import Files
from tidegate.evidence.log import Cadence, Log
from tidegate.evidence.opening import Tiles, open_segment
from tidegate.evidence.payloads import Stored
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.tree import Tree

ROWS = 64
"""Rows of one statement: 64 rows of 23 values are far below the 32,766 parameters that SQLite takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recording is kept. ``private``: callers stand under pseudonyms, bodies under keys of their own."""

    private: bool = False
    cadence: Cadence = field(default_factory=Cadence)


@dataclass(frozen=True, slots=True)
class Kept:
    """A flow state ready to be written, with what belongs beside it."""

    exchange: str
    state: bytes
    chunks: Mapping[str, str]


class Ledger:
    """The open segment of a recording, its log, and the callers' keys."""

    def __init__(self, files: Files, settings: Settings) -> None:
        self.files = files
        self.settings = settings
        self.db: Any = None
        self.log = Log(files, settings.cadence)
        self._tiles = Tiles(files.tiles)
        self._subjects = Subjects(files.keys)
        self._waiting: list[int] = []
        self._seen = -1
        self._zstd = zstandard.ZstdCompressor(level=3)
        self.earlier = 0

    def open(self) -> None:
        """Open the newest segment, or make the first. Raises ``RecordingError`` and SQLite's errors."""
        segments = self.files.segments()
        number = segments[-1][0] if segments else 1
        self.db = open_segment(self.files.segment(number))
        self._begin(number, Tree())
        self.log.open(self.db, self._tiles.fetch)
        self._version()

    def _begin(self, number: int, edge: Tree) -> None:
        """Say in a fresh segment where the log had come to. Rows of a version without a log are counted."""
        self.db.execute("BEGIN IMMEDIATE")
        if self.db.execute("SELECT count(*) FROM segment").fetchone()[0] == 0:
            self.earlier = int(self.db.execute("SELECT count(*) FROM exchange").fetchone()[0])
            self.db.execute(
                "INSERT INTO segment (number, first, edge, earlier) VALUES (?, ?, ?, ?)",
                [number, edge.size, edge.dump(), self.earlier],
            )
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Close every file."""
        self._subjects.close()
        self._tiles.close()
        if self.db is not None:
            self.db.close()

    def _version(self) -> bool:
        version = int(self.db.execute("PRAGMA data_version").fetchone()[0])
        changed, self._seen = version != self._seen, version
        return changed

    def told(self) -> list[tuple[str, str]]:
        """Return events that readers left word of; they are forgotten once a commit has them."""
        if not self._subjects.refresh():
            return []
        found = self._subjects.told()
        self._waiting = [number for number, _, _ in found]
        return [(kind, detail) for _, kind, detail in found]

    def keep(self, exchange: str, state: bytes, chunks: Mapping[str, Sequence[tuple[int, int]]]) -> Kept:
        """Make what is kept of an exchange ready to be written."""
        marks = {each: json.dumps(cut, separators=(",", ":")) for each, cut in chunks.items()}
        return Kept(exchange, state, marks)

    def commit(
        self,
        intents: Sequence[ExchangeRecord],
        sealed: Sequence[tuple[ExchangeRecord, Kept | None]],
        events: Sequence[tuple[str, str]],
        *,
        note: bool = False,
    ) -> None:
        """Write a batch, rows and leaves, in one transaction."""
        batch = _Batch(time.time_ns() // 1000)
        if self.settings.private:
            self._subjects.refresh()
            intents = [self._hidden(each) for each in intents]
            sealed = [(self._hidden(each), kept) for each, kept in sealed]
        for each in intents:
            batch.intent(each)
        for each, kept in sealed:
            batch.seal(each, *self._stored(each, kept))
        for kind, detail in events:
            batch.event(kind, detail)
        self.db.execute("BEGIN IMMEDIATE")  # a deferred BEGIN that later writes can fail at once, whatever the timeout
        if self._version():
            self.log.open(self.db, self._tiles.fetch)
        staged = self.log.stage(batch.leaves, note=note)
        for statement, rows in batch.rows.items():
            insert(self.db, statement, rows)
        insert(self.db, records.INSERT_LEAF, staged.leaves)
        insert(self.db, records.INSERT_TILE, staged.tiles)
        insert(self.db, records.INSERT_NOTE, staged.notes)
        self.db.execute("COMMIT")
        self.log.keep()
        if self._waiting:
            self._subjects.logged(self._waiting)
            self._waiting = []

    def _hidden(self, record: ExchangeRecord) -> ExchangeRecord:
        """Put a caller's pseudonym in the place of the name."""
        if record.caller is None:
            return record
        name = f"{record.identity or ''}:{record.caller}".encode("utf-8", "backslashreplace").decode()
        return replace(record, caller=self._subjects.pseudonym(name))

    def _stored(
        self, record: ExchangeRecord, kept: Kept | None
    ) -> tuple[tuple[object, ...] | None, Stored | None, Kept | None]:
        """Return the row of a flow state, and how the log commits to it."""
        if kept is None:
            return None, None, None
        salt = os.urandom(32)
        data, key = kept.state, None
        if self.settings.private:
            found = self._subjects.data_key(record.caller or "", record.started_us)
            nonce, key = os.urandom(12), found.id
            data = nonce + AESGCM(found.key).encrypt(nonce, salt + self._zstd.compress(data), record.id.encode())
        parts = {f"chunks_{each}": sha256(marks.encode()).hexdigest() for each, marks in kept.chunks.items()}
        stored = Stored(records.FLOW_FORMAT, sha256(data).hexdigest(), payloads.salted(salt, kept.state), key, parts)
        return (record.id, records.FLOW_FORMAT, data, None if key else salt, key), stored, kept


class _Batch:
    """The rows of one transaction by statement, and its leaves in order."""

    def __init__(self, at_us: int) -> None:
        self.at_us = at_us
        self.leaves: list[str] = []
        self.rows: dict[str, list[tuple[object, ...]]] = {
            each: []
            for each in (
                records.INSERT_INTENT, records.INSERT_SEAL, records.INSERT_DECISION, records.INSERT_FINDING,
                records.INSERT_STATE, records.INSERT_CHUNKS, records.INSERT_EVENT,
            )
        }  # fmt: skip

    def intent(self, record: ExchangeRecord) -> None:
        row, findings = records.exchange_row(record), list(records.finding_rows(record))
        self.rows[records.INSERT_INTENT].append(row)
        self.rows[records.INSERT_FINDING] += findings
        self.leaves.append(payloads.intent(self.at_us, row, findings))

    def seal(
        self, record: ExchangeRecord, state: tuple[object, ...] | None, stored: Stored | None, kept: Kept | None
    ) -> None:
        row, findings = records.exchange_row(record), list(records.finding_rows(record))
        decisions = list(records.decision_rows(record))
        self.rows[records.INSERT_SEAL].append(row)
        self.rows[records.INSERT_FINDING] += findings
        self.rows[records.INSERT_DECISION] += decisions
        if state is not None:
            self.rows[records.INSERT_STATE].append(state)
        if kept is not None:
            self.rows[records.INSERT_CHUNKS] += [(record.id, each, marks) for each, marks in kept.chunks.items()]
        self.leaves.append(payloads.sealed(self.at_us, row, findings, decisions, stored))

    def event(self, kind: str, detail: str) -> None:
        self.rows[records.INSERT_EVENT].append((self.at_us, kind, detail))
        self.leaves.append(payloads.event(self.at_us, kind, detail))


def insert(db: Any, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows, many with one statement.

    SQLite then works through all of them without the interpreter's lock; a statement for each row takes the lock back
    after each, from the thread that serves the clients. Powers of two, so that few statements are ever compiled.
    """
    at = 0
    while at < len(rows):
        many = min(1 << ((len(rows) - at).bit_length() - 1), ROWS)
        db.execute(_many(statement, many), list(itertools.chain.from_iterable(rows[at : at + many])))
        at += many


@functools.cache
def _many(statement: str, rows: int) -> str:
    """Repeat the row of an ``INSERT ... VALUES (?, ...)``."""
    head, _, rest = statement.partition("VALUES (")
    row, _, tail = rest.partition(")")
    return f"{head}VALUES {', '.join([f'({row})'] * rows)}{tail}"
