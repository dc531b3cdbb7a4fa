"""What one transaction of the recording writes: rows, and the leaves that commit to them. In the writer thread alone.

A ledger has one open segment. Several processes may share it, if their SQLite allows that: the tree is taken up anew
whenever another one has written in between, under the lock of the transaction.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence import payloads, records, sealing, segments
from tidegate.evidence.files import Files
from tidegate.evidence.log import Cadence, Log
from tidegate.evidence.opening import Tiles, open_segment
from tidegate.evidence.payloads import Stored
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.tree import Tree
from tidegate.policy.keeping import SEGMENT_AGE, SEGMENT_BYTES

ROWS = 64
"""Rows of one statement: 64 rows of 23 values are far below the 32,766 parameters that SQLite takes."""


PERSONAL = ("approval", "read")
"""Events whose detail may be a JSON object that names its ``actor`` and repeats that person's ``reason``."""

TEND = 1.0
"""Seconds between two looks at the size and age of the segment."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recording is kept. ``private``: callers stand under pseudonyms, bodies under keys of their own."""

    private: bool = False
    cadence: Cadence = field(default_factory=Cadence)
    segment_bytes: int = SEGMENT_BYTES
    segment_age: float = SEGMENT_AGE
    retain: float | None = None
    ballast: int = 0
    auditor: bytes | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of an exchange beside its rows: the flow state, how bodies were cut, originals to be sealed."""

    exchange: str
    state: bytes | None
    chunks: Mapping[str, str]
    originals: Mapping[str, bytes]


class Ledger:
    """The open segment of a recording, its log, and the callers' keys. ``owner``: it may close and delete segments.

    ``tell`` takes events for the log, from any thread. ``earlier``: the exchanges and events that are older than the
    log, where it was begun just now.
    """

    def __init__(self, files: Files, settings: Settings, tell: Callable[[str, str], None], *, owner: bool) -> None:
        segments.refuse_remote(files.path)
        self.files = files
        self.settings = settings
        self.owner = owner
        self.db: Any = None
        self.number = 1
        self.log = Log(files, settings.cadence)
        self.ballast = segments.Ballast(files.ballast, settings.ballast if owner else 0)
        self._closer = segments.Closer(files, tell)
        self._tell = tell
        self._tiles = Tiles(files.tiles)
        self._subjects = Subjects(files.keys)
        self._waiting: list[int] = []
        self._doomed: list[dict[str, Any]] = []
        self._seen = -1
        self._born = self._looked = 0.0
        self._zstd = zstandard.ZstdCompressor(level=3)
        self.earlier = (0, 0)

    def open(self) -> None:
        """Open the newest segment, or make the next. Raises ``RecordingError`` and SQLite's errors."""
        there = self.files.segments()
        number = max([1, *(each for each, _ in there), *(row["number"] for row in self._tiles.rows())])
        self._open(number)
        self.ballast.fill()
        if self.owner:
            done = {row["number"]: row for row in self._tiles.rows()}
            for each, _ in there:
                if each < self.number and each not in done:
                    self._closer.start(each)
            for row in done.values():
                if not row["told"]:
                    shape = segments.announcement(row["number"], row["first"], row["size"], row["sha256"])
                    self._tell("segment", shape)

    def _open(self, number: int) -> None:
        """Open a segment; if it is closed, or gone, the one after it."""
        path, edge = self.files.segment(number), Tree()
        gone = any(row["number"] == number for row in self._tiles.rows())
        db = None if gone else open_segment(path)
        if gone or (db is not None and db.execute("SELECT count(*) FROM segment WHERE closed = 1").fetchone()[0]):
            edge = segments.edge_of(self.files, self._tiles, number, db)
            if db is not None:
                db.close()
            number += 1
            db = open_segment(self.files.segment(number))
        self.db, self.number = db, number
        self._begin(number, edge)
        self.log.open(db, self._tiles.fetch)
        self._version()
        first = self.db.execute("SELECT payload FROM leaf ORDER BY seq LIMIT 1").fetchone()
        self._born = time.time() if first is None else json.loads(first[0])["at_us"] / 1e6

    def _begin(self, number: int, edge: Tree) -> None:
        """Say in a fresh segment where the log had come to. Rows of a version without a log are counted."""
        self.db.execute("BEGIN IMMEDIATE")
        if self.db.execute("SELECT count(*) FROM segment").fetchone()[0] == 0:
            exchanges, events = (
                int(self.db.execute(f"SELECT count(*) FROM {each}").fetchone()[0])  # noqa: S608 - our own names
                for each in ("exchange", "event")
            )
            self.earlier = (exchanges, events)
            self.db.execute(
                "INSERT INTO segment (number, first, edge, earlier) VALUES (?, ?, ?, ?)",
                [number, edge.size, edge.dump(), exchanges],
            )
        self.db.execute("COMMIT")

    # ── segments ─────────────────────────────────────────────────────────────

    def tend(self) -> None:
        """Close the segment if it is large or old enough, and let go what has been kept long enough.

        Looks once a second at most; called by the writer between two commits.
        """
        now = time.monotonic()
        if not self.owner or now - self._looked < TEND:
            return
        self._looked = now
        pages, size = (self.db.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "page_size"))
        rows = self.db.execute("SELECT EXISTS (SELECT 1 FROM exchange)").fetchone()[0]  # events alone fill no segment
        if rows and (
            pages * size >= self.settings.segment_bytes or time.time() - self._born >= self.settings.segment_age
        ):
            self.roll()
        for row in segments.expired(self._tiles, self._subjects, self.settings.retain, time.time_ns() // 1000):
            if row not in self._doomed:
                self._doomed.append(row)
                said = {each: row[each] for each in ("first", "number", "sha256", "size")}
                self._tell("deleted", json.dumps(said, separators=(",", ":")))
        if self.settings.ballast and self.ballast.roomy():
            self.ballast.fill()

    def roll(self) -> None:
        """Close the segment and go on in the next one."""
        batch = _Batch(time.time_ns() // 1000)
        batch.event("closed", json.dumps({"number": self.number}, separators=(",", ":")))
        self._write(batch, note=True, closing=True)
        self.log.publish()
        self.db.close()
        closed = self.number
        self._open(closed)
        self._closer.start(closed)

    def relieve(self) -> bool:
        """Give the ballast back because the disk is full, and make the WAL small with it; say whether there was any."""
        if not self.ballast.free():
            return False
        with contextlib.suppress(sqlite3.Error):
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return True

    def close(self) -> None:
        """Close every file."""
        self._closer.join()
        self._subjects.close()
        self._tiles.close()
        self.ballast.free()
        if self.db is not None:
            self.db.close()

    def _version(self) -> bool:
        version = int(self.db.execute("PRAGMA data_version").fetchone()[0])
        changed, self._seen = version != self._seen, version
        return changed

    def told(self) -> list[tuple[str, str]]:
        """Return events that readers left word of; they are forgotten once a commit has them."""
        found = self._subjects.news()
        self._waiting = [number for number, _, _ in found]
        return [(kind, detail) for _, kind, detail in found]

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
            events = [(kind, self._nameless(detail) if kind in PERSONAL else detail) for kind, detail in events]
        for each in intents:
            batch.intent(each)
        for each, kept in sealed:
            batch.seal(each, self._stored(each, kept))
        for kind, detail in events:
            batch.event(kind, detail)
        self._write(batch, note=note)
        if self._waiting:
            self._subjects.logged(self._waiting)
            self._waiting = []
        for kind, detail in events:
            self._done(kind, detail)

    def _write(self, batch: _Batch, *, note: bool, closing: bool = False) -> None:
        self.db.execute("BEGIN IMMEDIATE")  # a deferred BEGIN that later writes can fail at once, whatever the timeout
        if self._version():
            self._catch_up()
        staged = self.log.stage(batch.leaves, note=note)
        for statement, rows in batch.rows.items():
            insert(self.db, statement, rows)
        insert(self.db, records.INSERT_LEAF, staged.leaves)
        insert(self.db, records.INSERT_TILE, staged.tiles)
        insert(self.db, records.INSERT_NOTE, staged.notes)
        if closing:
            self.db.execute("UPDATE segment SET closed = 1")
        self.db.execute("COMMIT")
        self.log.keep()

    def _catch_up(self) -> None:
        """Take the log up where another process has left it, in another segment if it has closed this one."""
        while self.db.execute("SELECT closed FROM segment").fetchone()[0]:
            self.db.execute("ROLLBACK")
            self.db.close()
            self._tiles.close()
            self._tiles = Tiles(self.files.tiles)
            self._open(self.number)
            self.db.execute("BEGIN IMMEDIATE")
        self.log.open(self.db, self._tiles.fetch)

    def _done(self, kind: str, detail: str) -> None:
        """Do what had to wait until the log tells of it."""
        if not self.owner or kind not in ("segment", "deleted"):
            return
        number = json.loads(detail)["number"]
        self._tiles.close()
        self._tiles = Tiles(self.files.tiles, create=True)
        if kind == "segment":
            self._tiles.told(number)
            return
        for row in [each for each in self._doomed if each["number"] == number]:
            segments.delete(self.files, self._tiles, row)
            self._doomed.remove(row)

    def _hidden(self, record: ExchangeRecord) -> ExchangeRecord:
        """Put a caller's pseudonym in the place of the name."""
        if record.caller is None:
            return record
        return replace(record, caller=self._subjects.pseudonym(_clean(f"{record.identity or ''}:{record.caller}")))

    def _nameless(self, detail: str) -> str:
        """Put a pseudonym in the place of who did it, and a keyed hash in the place of his words.

        The gate itself is no person: its actor has no colon, and its words are the same for everybody.
        """
        try:
            said = json.loads(detail)
        except ValueError:
            return detail
        actor = said.get("actor") if isinstance(said, dict) else None
        if not isinstance(actor, str) or ":" not in actor:
            return detail
        name, reason = _clean(actor), said.get("reason")
        said["actor"] = self._subjects.pseudonym(name)
        if reason:
            said["reason"] = self._subjects.commitment(name, str(reason))
        return json.dumps(said, ensure_ascii=False)

    def _stored(self, record: ExchangeRecord, kept: Kept | None) -> tuple[Stored, _Bodies] | None:
        """Return the rows of what is kept of an exchange, and how the log commits to them."""
        if kept is None:
            return None
        parts = {f"chunks_{each}": sha256(marks.encode()).hexdigest() for each, marks in kept.chunks.items()}
        found = self._subjects.data_key(record.caller or "", record.started_us) if self.settings.private else None
        originals: list[tuple[object, ...]] = []
        if self.settings.auditor is not None and found is not None:
            for direction, plain in kept.originals.items():
                sealed = sealing.seal(self.settings.auditor, found.key, record.id, direction, plain)
                originals.append((record.id, direction, found.id, sealed.wrapped, sealed.data))
                parts[f"original_{direction}"] = payloads.original(found.id, sealed.wrapped, sealed.data)
        chunks: list[tuple[object, ...]] = [(record.id, each, marks) for each, marks in kept.chunks.items()]
        if kept.state is None:
            return Stored(None, None, None, None, parts), _Bodies([], chunks, originals)
        salt = os.urandom(32)
        data, key = kept.state, None
        if found is not None:
            nonce, key = os.urandom(12), found.id
            data = nonce + AESGCM(found.key).encrypt(nonce, salt + self._zstd.compress(data), record.id.encode())
        commitment = payloads.salted(salt, kept.state)
        stored = Stored(records.FLOW_FORMAT, sha256(data).hexdigest(), commitment, key, parts)
        row = (record.id, records.FLOW_FORMAT, data, None if key else salt, key)
        return stored, _Bodies([row], chunks, originals)


@dataclass(frozen=True, slots=True)
class _Bodies:
    """Rows of tables ``flow_state``, ``chunk`` and ``original``."""

    states: list[tuple[object, ...]]
    chunks: list[tuple[object, ...]]
    originals: list[tuple[object, ...]]


class _Batch:
    """The rows of one transaction by statement, and its leaves in order."""

    def __init__(self, at_us: int) -> None:
        self.at_us = at_us
        self.leaves: list[str] = []
        self.rows: dict[str, list[tuple[object, ...]]] = {
            each: []
            for each in (
                records.INSERT_INTENT, records.INSERT_SEAL, records.INSERT_DECISION, records.INSERT_FINDING,
                records.INSERT_STATE, records.INSERT_CHUNKS,
                records.INSERT_ORIGINAL, records.INSERT_EVENT,
            )
        }  # fmt: skip

    def intent(self, record: ExchangeRecord) -> None:
        row, findings = records.exchange_row(record), list(records.finding_rows(record))
        self.rows[records.INSERT_INTENT].append(row)
        self.rows[records.INSERT_FINDING] += findings
        self.leaves.append(payloads.intent(self.at_us, row, findings))

    def seal(self, record: ExchangeRecord, kept: tuple[Stored, _Bodies] | None) -> None:
        row, findings = records.exchange_row(record), list(records.finding_rows(record))
        decisions = list(records.decision_rows(record))
        self.rows[records.INSERT_SEAL].append(row)
        self.rows[records.INSERT_FINDING] += findings
        self.rows[records.INSERT_DECISION] += decisions
        if kept is not None:
            self.rows[records.INSERT_STATE] += kept[1].states
            self.rows[records.INSERT_CHUNKS] += kept[1].chunks
            self.rows[records.INSERT_ORIGINAL] += kept[1].originals
        stored = None if kept is None else kept[0]
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


def _clean(name: str) -> str:
    """Return a name as SQLite takes it."""
    return name.encode("utf-8", "backslashreplace").decode()


@functools.cache
def _many(statement: str, rows: int) -> str:
    """Repeat the row of an ``INSERT ... VALUES (?, ...)``."""
    head, _, rest = statement.partition("VALUES (")
    row, _, tail = rest.partition(")")
    return f"{head}VALUES {', '.join([f'({row})'] * rows)}{tail}"
