"""What a recording comes to over a time: counts for the pages that people look at, never a text that was inspected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from tidegate.evidence.queries import Row, parts

SAMPLE = 20_000
"""Exchanges whose durations are looked at: more do not move a percentile that people see."""

_LAST_ID = "ex_~"
_OF_EXCHANGE = "id >= :first AND id < :last AND id NOT IN (SELECT value FROM json_each(:moved))"
_OF_FINDING = _OF_EXCHANGE.replace("id ", "exchange ")


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened from ``since_us`` on. ``bars`` holds, for each step of ``step_us``, how many ended how.

    ``first_byte_us`` and ``duration_us`` are the median and the 99th percentile of answered exchanges, ``None`` where
    there are none. ``refusals`` are counts by reason, ``classes`` of findings by class and action, ``connections`` of
    exchanges by connection and outcome.
    """

    since_us: int
    step_us: int
    bars: tuple[Mapping[str, int], ...]
    refusals: Mapping[str, int]
    classes: Mapping[tuple[str, str], int]
    connections: Mapping[tuple[str, str], int]
    first_byte_us: tuple[int, int] | None
    duration_us: tuple[int, int] | None

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many exchanges ended how, over the whole time."""
        found: dict[str, int] = {}
        for bar in self.bars:
            for outcome, count in bar.items():
                found[outcome] = found.get(outcome, 0) + count
        return found


def activity(path: Path, since_us: int, until_us: int, steps: int) -> Activity:
    """Sum up a time in ``steps`` equal steps. Raises ``RecordingError``."""
    step = max(1, (until_us - since_us) // steps)
    span: dict[str, Any] = {
        "since": since_us,
        "step": step,
        "first": _first_id(since_us),
        "last": _first_id(until_us + 1_000_000),
    }
    bars: list[dict[str, int]] = [{} for _ in range(steps)]
    refusals: dict[tuple[str, ...], int] = {}
    classes: dict[tuple[str, ...], int] = {}
    connections: dict[tuple[str, ...], int] = {}
    took: dict[str, list[int]] = {"first_byte_us": [], "duration_us": []}
    with parts(path, since_us) as found:
        for part in found:
            span["moved"] = part.moved
            for row in part.db.query(
                "SELECT (started_us - :since) / :step AS bar, coalesce(outcome, 'open') AS outcome, count(*) AS many "  # noqa: S608 - our own names
                f"FROM exchange WHERE {_OF_EXCHANGE} GROUP BY 1, 2",
                span,
            ):
                bar = bars[min(max(row["bar"], 0), steps - 1)]
                bar[row["outcome"]] = bar.get(row["outcome"], 0) + row["many"]
            of, at = f"FROM exchange WHERE {_OF_EXCHANGE}", f"FROM finding WHERE {_OF_FINDING}"
            _count(part.db, refusals, f"SELECT reason, count(*) {of} AND reason IS NOT NULL GROUP BY 1", span)
            _count(part.db, classes, f"SELECT class, action, count(*) {at} GROUP BY 1, 2", span)
            named = "coalesce(connection, ''), coalesce(outcome, 'open')"
            _count(part.db, connections, f"SELECT {named}, count(*) {of} GROUP BY 1, 2", span)
            for column, sample in took.items():
                sample.extend(_took(part.db, column, span, SAMPLE - len(sample)))
    return Activity(
        since_us,
        step,
        tuple(bars),
        {key[0]: many for key, many in _ranked(refusals)},
        {(key[0], key[1]): many for key, many in _ranked(classes)},
        {(key[0], key[1]): many for key, many in sorted(connections.items())},
        _percentiles(took["first_byte_us"]),
        _percentiles(took["duration_us"]),
    )


def rule_hits(path: Path, since_us: int) -> tuple[Row, ...]:
    """Return how often each rule fired since, by direction and action, most first. Raises ``RecordingError``."""
    hits: dict[tuple[str, ...], Row] = {}
    span = {"first": _first_id(since_us), "last": _LAST_ID}
    with parts(path, since_us) as found:
        for part in found:
            for row in part.db.query(
                "SELECT rule, class, direction, action, count(*) AS many, count(DISTINCT exchange) AS exchanges "  # noqa: S608 - our own names
                f"FROM finding WHERE {_OF_FINDING} GROUP BY 1, 2, 3, 4",
                {**span, "moved": part.moved},
            ):
                known = hits.setdefault(
                    (row["rule"], row["class"], row["direction"], row["action"]), {**row, "many": 0, "exchanges": 0}
                )
                known["many"] += row["many"]
                known["exchanges"] += row["exchanges"]
    return tuple(hits[key] for key in sorted(hits, key=lambda key: (-hits[key]["many"], key))[:500])


def _first_id(at_us: int) -> str:
    """Return the id before which no exchange that began later stands: ids begin with the time in milliseconds."""
    return f"ex_{max(0, at_us // 1000):011x}"


def _count(db: Database, into: dict[tuple[str, ...], int], query: str, values: dict[str, Any]) -> None:
    """Add what a query counts in its last column, by the columns before it."""
    for *key, many in db.execute(query, values):
        named = tuple(map(str, key))
        into[named] = into.get(named, 0) + many


def _ranked(counts: dict[tuple[str, ...], int]) -> list[tuple[tuple[str, ...], int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _took(db: Database, column: str, values: dict[str, Any], most: int) -> list[int]:
    """Return how long the latest answered exchanges took, ``most`` at most."""
    rows = db.execute(
        f"SELECT {column} FROM exchange WHERE {_OF_EXCHANGE} AND outcome = 'answered' "  # noqa: S608 - our own names
        f"AND {column} IS NOT NULL ORDER BY id DESC LIMIT {most}",
        values,
    )
    return [took for (took,) in rows]


def _percentiles(sample: Sequence[int]) -> tuple[int, int] | None:
    took = sorted(sample)
    return (took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)]) if took else None
