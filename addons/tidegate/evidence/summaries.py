"""What a recording comes to over a time: counts for the pages that people look at, never a text that was inspected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from tidegate.evidence.queries import Row, reading

SAMPLE = 20_000
"""Exchanges whose durations are looked at: more do not move a percentile that people see."""


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
    with reading(path) as db:
        bars: list[dict[str, int]] = [{} for _ in range(steps)]
        for row in db.query(
            "SELECT (started_us - :since) / :step AS bar, coalesce(outcome, 'open') AS outcome, count(*) AS many "
            "FROM exchange WHERE id >= :first AND id < :last GROUP BY 1, 2",
            span,
        ):
            bar = bars[min(max(row["bar"], 0), steps - 1)]
            bar[row["outcome"]] = bar.get(row["outcome"], 0) + row["many"]
        refusals = _counts(
            db,
            "SELECT reason, count(*) AS many FROM exchange WHERE id >= :first AND id < :last AND reason IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
            span,
        )
        classes = _counts(
            db,
            "SELECT class, action, count(*) AS many FROM finding WHERE exchange >= :first AND exchange < :last "
            "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
            span,
        )
        connections = _counts(
            db,
            "SELECT coalesce(connection, ''), coalesce(outcome, 'open'), count(*) AS many FROM exchange "
            "WHERE id >= :first AND id < :last GROUP BY 1, 2 ORDER BY 1, 2",
            span,
        )
        first, duration = (_percentiles(db, name, span) for name in ("first_byte_us", "duration_us"))
    one = {str(key[0]): many for key, many in refusals.items()}
    pairs = {(str(key[0]), str(key[1])): many for key, many in classes.items()}
    return Activity(
        since_us,
        step,
        tuple(bars),
        one,
        pairs,
        {(str(key[0]), str(key[1])): many for key, many in connections.items()},
        first,
        duration,
    )


def rule_hits(path: Path, since_us: int) -> tuple[Row, ...]:
    """Return how often each rule fired since, by direction and action, most first. Raises ``RecordingError``."""
    with reading(path) as db:
        return tuple(
            db.query(
                "SELECT rule, class, direction, action, count(*) AS many, count(DISTINCT exchange) AS exchanges "
                "FROM finding WHERE exchange >= :first GROUP BY 1, 2, 3, 4 ORDER BY many DESC, rule LIMIT 500",
                {"first": _first_id(since_us)},
            )
        )


def _first_id(at_us: int) -> str:
    """Return the id before which no exchange that began later stands: ids begin with the time in milliseconds."""
    return f"ex_{max(0, at_us // 1000):011x}"


def _counts(db: Database, query: str, values: dict[str, Any]) -> dict[tuple[object, ...], int]:
    found: dict[tuple[object, ...], int] = {}
    for row in db.query(query, values):
        *key, many = row.values()
        found[tuple(key)] = many
    return found


def _percentiles(db: Database, column: str, values: dict[str, Any]) -> tuple[int, int] | None:
    rows = db.query(
        f"SELECT {column} AS took FROM exchange WHERE id >= :first AND id < :last AND outcome = 'answered' "  # noqa: S608 - our own names
        f"AND {column} IS NOT NULL ORDER BY id DESC LIMIT {SAMPLE}",
        values,
    )
    took: Sequence[int] = sorted(row["took"] for row in rows)
    return (took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)]) if took else None
