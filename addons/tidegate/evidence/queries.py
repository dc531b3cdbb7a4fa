"""What people ask a recording: read only, so that a look never changes it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence.files import Files
from tidegate.evidence.names import Names, names_of
from tidegate.evidence.records import APPLICATION_ID, RecordingError
from tidegate.model import Action, Direction, Finding

Row = dict[str, Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_COLOURS = {"answered": "green", "denied": "red", "aborted": "yellow", "failed": "yellow", "open": "cyan"}


@dataclass(frozen=True, slots=True)
class StoredState:
    """A flow state as it lies in the recording, with what belongs beside it when it is shown or replayed.

    ``masked`` is what was found in the request.
    """

    exchange: str
    format: int
    state: bytes
    row: Row
    masked: tuple[Finding, ...] = ()


@contextmanager
def reading(path: Path) -> Iterator[Database]:
    """Open a recording for reading. Raises ``RecordingError`` with one sentence when it is none or cannot be read."""
    if not path.is_file():
        raise RecordingError(f"{path}: found no file; accepted: a recording made by tidegate")
    db = None
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise RecordingError(f"{path}: found a database of something else; accepted: a recording made by tidegate")
        db.execute("PRAGMA busy_timeout=5000")
        yield Database(db)
    except sqlite3.Error as error:
        raise RecordingError(f"{path}: cannot be read as a recording: {error}") from error
    finally:
        if db is not None:
            db.close()


def list_flows(
    path: Path,
    *,
    limit: int = 20,
    outcome: str | None = None,
    caller: str | None = None,
    connection: str | None = None,
    rule: str | None = None,
    since: str | None = None,
) -> list[Row]:
    """Return exchanges, newest first, as rows of table ``exchange`` plus ``rules``: each rule found, with its count.

    ``outcome`` may be ``open``: sent, and not yet ended. ``caller`` is a subject or ``identity:subject``. ``since`` is
    an age (``30m``, ``2h``, ``3d``) or a date or time in ISO 8601, UTC unless it says otherwise. Raises
    ``RecordingError``.
    """
    found: dict[str, Row] = {}
    with names_of(Files(path)) as names:
        where, values = _conditions(names, outcome, caller, connection, rule, since)
        for file in reversed(_segments(path)):  # ids sort by time, and what a later segment says of one holds
            with reading(file) as db:
                rows = db["exchange"].rows_where(where, values, order_by="id DESC", limit=limit + len(found))
                for row in rows:
                    if row["id"] not in found and not (row["outcome"] is None and _ended(path, file, row["id"])):
                        found[row["id"]] = {**names.named(row), "rules": _rules(db, row)}
            if len(found) >= limit:
                break
    return [found[each] for each in sorted(found, reverse=True)[:limit]]


def _conditions(
    names: Names, outcome: str | None, caller: str | None, connection: str | None, rule: str | None, since: str | None
) -> tuple[str | None, dict[str, Any]]:
    where: list[str] = []
    values: dict[str, Any] = {}
    known = [] if caller is None else names.pseudonyms(caller)
    marks = "".join(f", :caller{at}" for at in range(len(known)))
    for condition, name, value in (
        ("coalesce(outcome, 'open') = :outcome", "outcome", outcome),
        (
            f"(:caller = coalesce(identity, '') || ':' || caller OR caller IN (:caller{marks}))",
            "caller",
            caller,
        ),
        ("connection = :connection", "connection", connection),
        ("id IN (SELECT exchange FROM finding WHERE rule = :rule)", "rule", rule),
        ("started_us >= :since", "since", None if since is None else since_us(since)),
    ):
        if value is not None:
            where.append(condition)
            values[name] = value
    values.update((f"caller{at}", each) for at, each in enumerate(known))
    return " AND ".join(where) or None, values


def _segments(path: Path) -> list[Path]:
    """Return the segments of a recording, oldest first; at least its own path, whatever is there."""
    return [file for _, file in Files(path).segments()] or [path]


@dataclass(frozen=True, slots=True)
class Part:
    """A segment, open for reading. ``moved`` is the JSON of the ids of which a later segment has the last word."""

    db: Database
    moved: str


@contextmanager
def parts(path: Path, since_us: int = 0) -> Iterator[list[Part]]:
    """Open the segments of a recording, newest first, as far back as something was written since.

    An exchange can have its intent in one segment and its end in the next: who counts leaves out ``moved``. Ids sort by
    time, so that only those at the seam are looked at. Raises ``RecordingError``.
    """
    with ExitStack() as stack:
        found: list[Part] = []
        for file in reversed(_segments(path)):
            db = stack.enter_context(reading(file))
            if found and _last_written(db) < since_us:
                break
            (newest,) = db.execute("SELECT coalesce(max(id), '') FROM exchange").fetchone()
            moved: set[str] = set()
            for later in found:
                seam = later.db.execute("SELECT id FROM exchange WHERE id <= ?", [newest])
                moved.update(each for (each,) in seam)
            found.append(Part(db, json.dumps(sorted(moved))))
        yield found


def _last_written(db: Database) -> int:
    """Return when a segment was last written to, by its newest event; now, if it has none."""
    with contextlib.suppress(sqlite3.OperationalError):  # a version without a log
        row = db.execute("SELECT payload FROM leaf ORDER BY seq DESC LIMIT 1").fetchone()
        if row is not None:
            return int(json.loads(row[0])["at_us"])
    return 1 << 62


def _ended(path: Path, file: Path, exchange: str) -> bool:
    """Say whether a segment after ``file`` has the row of an exchange: it then says how that one ended."""
    segments = _segments(path)
    for later in segments[segments.index(file) + 1 :]:
        with reading(later) as db:
            if db.execute("SELECT 1 FROM exchange WHERE id = ?", [exchange]).fetchone():
                return True
    return False


def find(path: Path, prefix: str) -> str:
    """Return the id of the one exchange that begins with ``prefix``. Raises ``RecordingError`` for none or several."""
    found: set[str] = set()
    for file in _segments(path):
        with reading(file) as db:
            found.update(_matching(db, prefix))
    if prefix in found:
        return prefix
    if len(found) == 1:
        return found.pop()
    if not found:
        raise RecordingError(f"{path}: found no exchange {prefix!r}; accepted: the beginning of an id of `flows list`")
    raise RecordingError(f"{path}: found several exchanges that begin with {prefix!r}; accepted: more of the id")


def _matching(db: Database, prefix: str) -> list[str]:
    condition = "substr(id, 1, length(:prefix)) = :prefix"
    found = [row["id"] for row in db["exchange"].rows_where(condition, {"prefix": prefix}, select="id", limit=2)]
    return [prefix] if prefix in found else found


def show(path: Path, prefix: str) -> Row:
    """Return one exchange: its columns, ``decisions`` and ``finding_list``; never a text that was inspected.

    ``prefix`` is the beginning of its id. Raises ``RecordingError``.
    """
    exchange = find(path, prefix)
    row: Row = {}
    decisions: list[Row] = []
    findings: list[Row] = []
    for file in _segments(path):
        with reading(file) as db:
            row = next(iter(db["exchange"].rows_where("id = ?", [exchange])), row)
            decisions = list(db["decision"].rows_where("exchange = ?", [exchange], order_by="seq")) or decisions
            findings = list(db["finding"].rows_where("exchange = ?", [exchange], order_by="seq")) or findings
    for each in (*decisions, *findings):
        del each["exchange"], each["seq"]
    with names_of(Files(path)) as names:
        return {**names.named(row), "decisions": decisions, "finding_list": findings}


def states(path: Path, ids: Sequence[str] | None = None, *, strict: bool = True) -> list[StoredState]:
    """Return the stored flow states in the order of their exchanges: all, or those of ``ids`` (prefixes will do).

    Not ``strict``: ``ids`` are whole ids, and those without a flow state are left out.

    Those that were erased are left out. Raises ``RecordingError``, also for an id that has no flow state.
    """
    wanted = None if ids is None else {find(path, each) for each in ids} if strict else set(ids)
    found: dict[str, StoredState] = {}
    with names_of(Files(path)) as names:
        for file in _segments(path):
            with reading(file) as db:
                for each in _states(db, wanted, names, strict=strict):
                    found[each.exchange] = each
    missing = set(wanted or ()) - set(found)
    if missing and strict:
        raise RecordingError(
            f"{path}: found no bodies for {', '.join(sorted(missing))}; accepted: an exchange that kept them"
        )
    return [found[each] for each in sorted(found)]


def _states(db: Database, wanted: set[str] | None, names: Names, *, strict: bool) -> Iterator[StoredState]:
    coded = "salt" in {each.name for each in db["flow_state"].columns}  # an older recording has none of them
    more = "s.salt AS salt, s.key AS key" if coded else "NULL AS salt, NULL AS key"
    query = (
        f"SELECT e.*, s.format AS format, s.state AS state, {more} "  # noqa: S608 - our own names
        "FROM exchange e JOIN flow_state s ON s.exchange = e.id"
    )
    if wanted is None:
        rows: Iterator[Row] = db.query(f"{query} ORDER BY e.id")
    else:
        rows = (row for each in sorted(wanted) for row in db.query(f"{query} WHERE e.id = ?", [each]))
    for row in rows:
        form, state, salt, key = (row.pop(each) for each in ("format", "state", "salt", "key"))
        try:
            state, _ = names.open(row["id"], state, salt, key)
        except RecordingError:
            if wanted is not None and strict:
                raise
            continue
        yield StoredState(row["id"], form, state, {**names.named(row), "rules": _rules(db, row)}, _masked(db, row))


def _masked(db: Database, row: Row) -> tuple[Finding, ...]:
    if not row["findings"]:
        return ()
    found = db["finding"].rows_where("exchange = ? AND direction = ?", [row["id"], Direction.PROMPT], order_by="seq")
    return tuple(
        Finding(each["rule"], each["class"], each["where"], each["start"], each["end"], Action(each["action"]))
        for each in found
    )


def since_us(text: str, now: float | None = None) -> int:
    """Return a time in microseconds since 1970 for an age (``2h``) or an ISO 8601 date or time.

    Raises ``RecordingError``. ``now`` is a Unix time in seconds.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago:
        return int(((time.time() if now is None else now) - int(ago[1]) * _UNITS[ago[2]]) * 1_000_000)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise RecordingError(
            f"--since: found {text!r}; accepted: an age such as 30m, 2h or 3d, or a date such as 2026-11-01"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000)


def _rules(db: Database, row: Row) -> dict[str, int]:
    if not row["findings"]:
        return {}
    rules = "SELECT rule, count(*) AS times FROM finding WHERE exchange = ? GROUP BY rule ORDER BY rule"
    return {each["rule"]: each["times"] for each in db.query(rules, [row["id"]])}


WIDE = 150
"""Columns of a terminal from which on ``table`` shows everything it knows in a line."""


def table(rows: Sequence[Row], width: int = WIDE) -> Table:
    """Render ``list_flows`` for a terminal of ``width`` columns; a narrow one is told how many findings, not which.

    What a client could have written is shown without control characters.
    """
    wide = width >= WIDE
    view = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("id", "started (UTC)", "outcome"):
        view.add_column(name, no_wrap=True)
    for name in (
        ("status", "caller", "connection", "model", "ms", "tokens", "scanned", "findings") if wide else ("findings",)
    ):
        view.add_column(name, overflow="fold")
    for row in rows:
        outcome = row["outcome"] or "open"
        ended = outcome if row["reason"] is None else f"{outcome}: {row['reason']}"
        first = (
            Text(row["id"]),
            moment(row["started_us"])[0 if wide else 5 :],
            Text(ended, style=_COLOURS.get(outcome, "")),
        )
        view.add_row(*first, *(_rest(row) if wide else (str(sum(row["rules"].values()) or ""),)))
    return view


def _rest(row: Row) -> tuple[Text | str, ...]:
    where = "/".join(each for each in (row["connection"], row["endpoint"]) if each)
    rules = ", ".join(rule if times == 1 else f"{rule} x{times}" for rule, times in row["rules"].items())
    took = "" if row["duration_us"] is None else f"{row['duration_us'] / 1000:.1f}"
    names = (Text(printable(each or "")) for each in (who(row), where, row["model"]))
    return str(row["status"] or ""), *names, took, tokens(row), row.get("scanned") or "", Text(rules)


def tokens(row: Row) -> str:
    """Return the tokens of a row as people read them: in and out, ``~`` where that is an estimate."""
    if row.get("input_tokens") is None:
        return ""
    return f"{'~' if row['tokens_estimated'] else ''}{row['input_tokens']}+{row['output_tokens']}"


def who(row: Row) -> str:
    """Return ``identity:subject`` of a row, or an empty text."""
    return ":".join(each for each in (row["identity"], row["caller"]) if each)


def moment(at_us: int) -> str:
    """Return a time in microseconds since 1970 as people read it, UTC."""
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Replace what would steer a terminal or turn the order of a text around: a recording holds what strangers sent."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
