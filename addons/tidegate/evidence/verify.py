"""Verify a recording: every row against its leaf, every leaf against the log, the log against signed checkpoints.

Nothing here trusts what the recording says of itself beyond the log's public key, and it says where that came from.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence import payloads
from tidegate.evidence.files import Files
from tidegate.evidence.notes import Checkpoint, NoteError, Verifier, load_signer, load_verifier, parse, parse_many
from tidegate.evidence.opening import Tiles
from tidegate.evidence.records import APPLICATION_ID, RecordingError
from tidegate.evidence.subjects import MARK, Subjects
from tidegate.evidence.tree import ProofError, Tree, leaf_hash

FAULTS = 20
"""Faults that are told one by one; the rest is counted."""

_EARLIER = re.compile(r", (\d+) exchanges and (\d+) events of before the log$")


@dataclass
class Report:
    """What a verification found. Sound means: no fault, and at least something is proven."""

    proven: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    leaves: int = 0
    faulty: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing was found to be changed."""
        return not self.faulty and bool(self.proven)

    def fault(self, text: str) -> None:
        """Note a fault."""
        self.faulty += 1
        if len(self.faults) < FAULTS:
            self.faults.append(text)


@dataclass
class _Expected:
    """What the leaves of a segment say about an exchange."""

    columns: dict[str, object]
    findings: list[list[object]] = field(default_factory=list)
    decisions: list[list[object]] = field(default_factory=list)
    stored: dict[str, Any] | None = None


def read_key(text: str) -> Verifier:
    """Read a public key: a vkey, or the path of a file that holds one. Raises ``RecordingError``."""
    path = Path(text)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8") if "+" not in text and path.is_file() else text
    try:
        return load_verifier(text)
    except NoteError as error:
        raise RecordingError(f"--key: {error}") from None


def key_beside(files: Files) -> Verifier | None:
    """Return the public half of the key that lies beside a recording, if it may be read."""
    try:
        return load_signer(files.key.read_text(encoding="ascii")).verifier
    except (OSError, UnicodeDecodeError, NoteError):
        return None


def verify(
    path: Path,
    key: Verifier | None = None,
    checkpoints: Sequence[Path] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Verify the recording at ``path``. ``checkpoints`` are files of notes that were kept elsewhere.

    ``progress`` is told how many leaves have been seen. Raises ``RecordingError`` if there is nothing to verify.
    """
    files, report = Files(path), Report()
    given = key is not None
    key = key or key_beside(files)
    outside = [(each, note) for each in checkpoints for note in _notes(each)]
    return _Verification(files, report, key, given=given, progress=progress).run(outside)


def _notes(path: Path) -> list[str]:
    try:
        return parse_many(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read as checkpoints: {type(error).__name__}") from None


class _Verification:
    def __init__(
        self, files: Files, report: Report, key: Verifier | None, *, given: bool, progress: Callable[[int], None]
    ) -> None:
        self.files, self.report, self.key, self.given, self.progress = files, report, key, given, progress
        self.tree = Tree()
        self.roots: dict[int, bytes] = {}
        self.wanted: set[int] = set()
        self.kinds: dict[str, int] = {}
        self.gone: set[int] = set()
        self.announced: dict[int, str] = {}
        self.deletions: set[int] = set()
        self.earlier = self.older = self.exchanges = self.unlogged = 0
        self.noted = self.last = 0
        self.pseudonyms = False
        self.named: int | None = None

    def run(self, outside: Sequence[tuple[Path, str]]) -> Report:
        """Walk through every segment, then judge the checkpoints."""
        segments = self.files.segments()
        if not segments:
            raise RecordingError(f"{self.files.path}: found no file; accepted: a recording made by tidegate")
        notes = [(where.name, note) for where, note in outside]
        with contextlib.suppress(OSError):
            notes.append((self.files.note.name, self.files.note.read_text(encoding="utf-8", errors="replace")))
        for _, note in notes:
            with contextlib.suppress(NoteError):
                self.wanted.add(parse(note)[0].size)
        closed = self._closed()
        collecting = gc.isenabled()
        gc.disable()  # many small objects without a cycle: the collector would be most of the work
        try:
            for number, path in segments:
                self._segment(number, path, closed)
        finally:
            if collecting:
                gc.enable()
        self._deleted(closed, {number for number, _ in segments})
        self._names()
        for where, note in notes:
            self._judge(where, note)
        self._conclude(bool(outside))
        return self.report

    def _closed(self) -> dict[int, dict[str, Any]]:
        tiles = None
        try:
            tiles = Tiles(self.files.tiles)
            return {row["number"]: row for row in tiles.rows()}
        except (sqlite3.Error, RecordingError) as error:
            self.report.fault(f"{self.files.tiles.name}: cannot be read: {error}")
            return {}
        finally:
            if tiles is not None:
                tiles.close()

    # ── a segment ────────────────────────────────────────────────────────────

    def _segment(self, number: int, path: Path, closed: dict[int, dict[str, Any]]) -> None:
        row = closed.get(number)
        if row is not None and (found := _digest(path)) != row["sha256"]:
            self.report.fault(f"{path.name}: the closed file is not the one that was closed (sha256 {found[:12]}...)")
        db = None
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if row is not None else ''}"
            db = sqlite3.connect(uri, uri=True, isolation_level=None)
            db.execute("PRAGMA busy_timeout=5000")
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise RecordingError(f"{path}: found a database of something else; accepted: a recording of tidegate")
            db.execute("BEGIN")  # one state of the file, while somebody records into it
            self._rows(number, path, db)
            for (text,) in db.execute("PRAGMA integrity_check(3)"):
                if text != "ok":
                    self.report.fault(f"{path.name}: {' '.join(str(text).split())}")
        except (sqlite3.Error, ProofError, OverflowError, UnicodeError) as error:
            self.report.fault(f"{path.name}: cannot be read: {error}")
        finally:
            if db is not None:
                db.close()

    def _rows(self, number: int, path: Path, db: Any) -> None:
        if db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'leaf'").fetchone()[0] == 0:
            self.unlogged += db.execute("SELECT count(*) FROM exchange").fetchone()[0]
            return
        found = db.execute("SELECT number, first, edge, earlier FROM segment").fetchall()
        if len(found) != 1 or found[0][0] != number:
            self.report.fault(f"{path.name}: does not say that it is segment {number}")
            return
        _, first, edge, earlier = found[0]
        base = Tree.load(first, edge)
        if first == self.tree.size:
            if base.root() != self.tree.root():
                self.report.fault(f"{path.name}: does not begin where the segment before it ended")
        elif first > self.tree.size:
            self.gone.update(range(self.last + 1, number))
            self.tree = base  # a later checkpoint will tell whether that was the log
        else:
            self.report.fault(f"{path.name}: begins at event {first}, but {self.tree.size} came before it")
            return
        notes = [tuple(row) for row in db.execute("SELECT size, note FROM checkpoint ORDER BY size")]
        sizes = self.wanted | {size for size, _ in notes}
        expected, events = self._leaves(path, db, sizes)
        self.last = number
        self.earlier += earlier
        self.pseudonyms = self.pseudonyms or any(
            str(e.columns.get("caller", "")).startswith(MARK) for e in expected.values()
        )
        self._compare(path, db, expected, earlier)
        self._events(path, db, events)
        for size, note in notes:
            self._judge(path.name, note, size)

    def _leaves(self, path: Path, db: Any, sizes: set[int]) -> tuple[dict[str, _Expected], list[tuple[int, str, str]]]:
        tree, roots, hashed, parsed = self.tree, self.roots, leaf_hash, json.loads
        expected: dict[str, _Expected] = {}
        events: list[tuple[int, str, str]] = []
        if tree.size in sizes:
            roots[tree.size] = tree.root()
        for seq, payload in db.execute("SELECT seq, payload FROM leaf ORDER BY seq"):
            if seq != tree.size:
                self.report.fault(f"{path.name}: event {tree.size} is missing (found {seq})")
                break
            tree.append(hashed(payload.encode()))
            if tree.size in sizes:
                roots[tree.size] = tree.root()
            if not seq & 0xFFF:
                self.progress(tree.size)
            try:
                _expect(parsed(payload), expected, events)
            except (ValueError, KeyError, TypeError, AttributeError):
                self.report.fault(f"{path.name}: event {seq} cannot be read")
        self.report.leaves = tree.size
        kept = {(level, n): bytes(h) for level, n, h in db.execute("SELECT level, number, hashes FROM tile")}
        if kept != {(level, n): h for level, n, h in tree.full}:
            self.report.fault(f"{path.name}: the hashes kept for proofs are not those of the events")
        tree.full.clear()
        return expected, events

    def _compare(self, path: Path, db: Any, expected: dict[str, _Expected], earlier: int) -> None:
        """Compare every row of a segment with what the leaves say."""
        names = [row[1] for row in db.execute("PRAGMA table_info(exchange)")]
        strangers: set[str] = set()
        seen = 0
        for row in map(_as_said, db.execute("SELECT * FROM exchange ORDER BY id")):
            wanted = expected.get(row[0])
            if wanted is None:
                strangers.add(row[0])
            elif tuple(map(wanted.columns.get, names)) != row or len(wanted.columns) != len(row) - row.count(None):
                self.report.fault(f"{path.name}: exchange {row[0]} is not as it was recorded")
            seen += wanted is not None
        self.exchanges += seen
        if seen != len(expected):
            there = {row[0] for row in db.execute("SELECT id FROM exchange")}
            for each in sorted(set(expected) - there):
                self.report.fault(f"{path.name}: exchange {each} was deleted")
        if len(strangers) != earlier:
            self.report.fault(f"{path.name}: {abs(len(strangers) - earlier)} exchanges were added or deleted")
        for table, column, of in (
            ("finding", "findings", payloads.places), ("decision", "decisions", _results)
        ):  # fmt: skip
            wanted_rows = {each: getattr(e, column) for each, e in expected.items() if getattr(e, column)}
            for exchange, rows in _grouped(db, table):
                if exchange in strangers:
                    continue
                if [row[1] for row in rows] != list(range(len(rows))) or of(rows) != wanted_rows.pop(exchange, None):
                    self.report.fault(f"{path.name}: the {column} of exchange {exchange} are not as recorded")
            for exchange in wanted_rows:
                self.report.fault(f"{path.name}: the {column} of exchange {exchange} were deleted")
        self._bodies(path, db, expected, strangers)

    def _bodies(self, path: Path, db: Any, expected: dict[str, _Expected], strangers: set[str]) -> None:
        parts = {
            (exchange, name): value
            for exchange, wanted in expected.items()
            for name, value in (wanted.stored or {}).items()
            if name not in ("format", "plain", "key")
        }
        formats = {each: (e.stored or {}).get("format") for each, e in expected.items()}
        for exchange, form, state, salt, key in db.execute("SELECT exchange, format, state, salt, key FROM flow_state"):
            if exchange in strangers:
                continue
            sound = parts.pop((exchange, "state"), None) == hashlib.sha256(state).hexdigest()
            if sound and salt is not None:
                sound = (expected[exchange].stored or {}).get("plain") == payloads.salted(salt, state)
            sound = sound and (salt is None) != (key is None) and (expected[exchange].stored or {}).get("key") == key
            if not sound or form != formats[exchange]:
                self.report.fault(f"{path.name}: the bodies of exchange {exchange} are not as recorded")
        self._parts(path, db, parts, strangers)
        for exchange, _ in parts:
            self.report.fault(f"{path.name}: something kept of exchange {exchange} was deleted")

    def _parts(self, path: Path, db: Any, parts: dict[tuple[str, str], str], strangers: set[str]) -> None:
        for exchange, direction, marks in db.execute("SELECT exchange, direction, marks FROM chunk"):
            found = hashlib.sha256(marks.encode()).hexdigest()
            if exchange not in strangers and parts.pop((exchange, f"chunks_{direction}"), None) != found:
                self.report.fault(f"{path.name}: the chunks of exchange {exchange} are not as recorded")
        for exchange, direction, key, wrapped, data in db.execute("SELECT * FROM original"):
            found = payloads.original(key, wrapped, data)
            if exchange not in strangers and parts.pop((exchange, f"original_{direction}"), None) != found:
                self.report.fault(f"{path.name}: the sealed original of exchange {exchange} is not as recorded")

    def _events(self, path: Path, db: Any, events: list[tuple[int, str, str]]) -> None:
        told = older = 0
        for _, kind, detail in events:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            earlier = _EARLIER.search(detail) if kind == "start" else None
            told, older = (int(earlier[1]), int(earlier[2])) if earlier else (told, older)
            if kind == "segment":
                said = json.loads(detail)
                self.announced[said["number"]] = said["sha256"]
            if kind == "deleted":
                self.deletions.add(json.loads(detail)["number"])
        rows = [tuple(row) for row in db.execute("SELECT at_us, kind, detail FROM event ORDER BY rowid")]
        self.older += older
        if len(rows) != older + len(events) or rows[older:] != events:
            self.report.fault(f"{path.name}: the rows of table event are not as recorded")
        counted = db.execute("SELECT earlier FROM segment").fetchone()[0]
        if told != counted:
            self.report.fault(f"{path.name}: the log says that {told} exchanges are older than it, the file {counted}")

    def _deleted(self, closed: dict[int, dict[str, Any]], there: set[int]) -> None:
        for number, row in closed.items():
            if number in self.announced and self.announced[number] != row["sha256"]:
                self.report.fault(f"segment {number}: the list of closed files is not as the log has it")
            if number not in there and number not in self.deletions:
                self.report.fault(f"segment {number} is missing, and no event says that it was deleted")
        for number in self.gone - set(closed):
            self.report.fault(f"segment {number} is missing, and nothing says that it was closed")
        last = max(there)
        for number in self.announced:
            if number not in closed:
                self.report.fault(f"segment {number} was closed, and the list of closed files does not have it")
        if any(number > last for number in closed):
            self.report.fault("the newest segment is missing")

    def _names(self) -> None:
        """Compare each name with its pseudonym, as far as they are there; the log has the pseudonyms alone."""
        name, subjects = self.files.keys.name, None
        try:
            subjects = Subjects(self.files.keys, create=False)
            self.named, strangers = subjects.strangers()
            for each in strangers:
                self.report.fault(f"{name}: {each} is not the pseudonym of the name beside it")
        except RecordingError:
            pass  # not here, or not to be read: said at the end
        except (sqlite3.Error, TypeError, UnicodeError) as error:
            self.report.fault(f"{name}: cannot be read: {type(error).__name__}")
        finally:
            if subjects is not None:
                subjects.close()

    # ── the checkpoints ──────────────────────────────────────────────────────

    def _judge(self, where: str, note: str, size: int | None = None) -> None:
        try:
            found: Checkpoint = self.key.open(note) if self.key is not None else parse(note)[0]
        except NoteError as error:
            self.report.fault(f"{where}: a checkpoint does not hold: {error}")
            return
        if size is not None and size != found.size:
            self.report.fault(f"{where}: a checkpoint is filed under size {size} and says {found.size}")
        if found.size > self.tree.size:
            self.report.fault(
                f"{where}: a checkpoint was signed over {found.size:,} events, but only {self.tree.size:,} are left"
            )
        elif found.size not in self.roots:
            self.report.unproven.append(f"the checkpoint over {found.size:,} events in {where}: that segment is gone")
        elif self.roots[found.size] != found.root:
            self.report.fault(f"{where}: the first {found.size:,} events are not those that were signed")
        else:
            self.noted = max(self.noted, found.size)

    def _conclude(self, outside: bool) -> None:
        report, size = self.report, self.tree.size
        if self.noted and self.key is not None:
            report.proven.append(
                f"{self.noted:,} events are as they were signed: none changed, none removed, none added, none moved"
            )
            report.proven.append(f"the rows of {self.exchanges:,} exchanges say what those events say")
            if self.named:
                report.proven.append(f"every name is that of its pseudonym (callers: {self.named:,})")
            report.proven.append(f"signed by {self.key.vkey}")
        told = {"gap": "told of lost records", "erased": "erased a caller", "deleted": "deleted a closed file"}
        for kind, meaning in told.items():
            if self.kinds.get(kind):
                report.proven.append(f"{self.kinds[kind]} events {meaning}: see table event")
        if size > self.noted:
            report.unproven.append(
                f"the last {size - self.noted:,} events: no checkpoint has been signed over them yet"
            )
        self._not_here()
        if self.key is None:
            report.unproven.append("the signatures: no public key was given and none lies beside the recording")
        elif not self.given:
            report.unproven.append(
                "that nobody has rewritten everything: the key lies beside the recording, where the machine's "
                "administrator can use it; give the key that was noted elsewhere with --key"
            )
        if not outside:
            report.unproven.append(
                "that no newer end was cut off, and that the holder of the key has not signed twice: give the "
                "checkpoints that were copied elsewhere with --checkpoint"
            )

    def _not_here(self) -> None:
        """Say what there is nothing to compare with."""
        report = self.report
        if self.gone:
            report.unproven.append(
                f"what was in {len(self.gone)} deleted segments: the log has their hashes, their content is gone"
            )
        if self.pseudonyms and self.named is None:
            report.unproven.append(
                f"who the callers are: {self.files.keys.name}, which has their names, is not here or cannot be read"
            )
        if self.earlier or self.unlogged:
            report.unproven.append(
                f"{self.earlier + self.unlogged:,} exchanges that a version without a log has recorded"
            )
        if self.older:
            report.unproven.append(f"{self.older:,} rows of table event that a version without a log has written")


def _expect(said: dict[str, Any], expected: dict[str, _Expected], events: list[tuple[int, str, str]]) -> None:
    """Apply a leaf to what is expected of the rows, exactly as the writer applies a record to the tables."""
    kind = said["kind"]
    if said["v"] != payloads.VERSION or kind not in payloads.KINDS:
        raise ValueError(kind)
    if kind == "event":
        events.append((said["at_us"], said["event"], said["detail"]))
        return
    columns, findings = said["exchange"], said["findings"]
    known = expected.get(columns["id"])
    if known is None:
        known = expected[columns["id"]] = _Expected(columns)
    elif kind == "sealed":
        known.columns = columns
    known.findings = findings + known.findings[len(findings) :] if known.findings else findings
    if kind == "sealed":
        decisions = said["decisions"]
        known.decisions = decisions + known.decisions[len(decisions) :] if known.decisions else decisions
        if "stored" in said:
            known.stored = said["stored"]


def _results(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    return [list(each[2:]) for each in rows]


def _as_said(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row as its leaf says it."""
    return tuple(map(payloads.exact, row)) if float in map(type, row) else row


def _grouped(db: Any, table: str) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    group: list[tuple[Any, ...]] = []
    for row in db.execute(f"SELECT * FROM {table} ORDER BY exchange, seq"):  # noqa: S608 - our own names
        if group and group[0][0] != row[0]:
            yield group[0][0], group
            group = []
        group.append(row)
    if group:
        yield group[0][0], group


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
