"""Sums over a recording: how exchanges ended, by whom, with what, how long they took, what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tidegate.evidence.files import Files
from tidegate.evidence.names import names_of
from tidegate.evidence.queries import parts, printable, since_us

GROUPS = ("outcome", "reason", "connection", "model", "caller")
"""The columns whose values are counted."""

_COUNTED = "started_us >= :low AND id NOT IN (SELECT value FROM json_each(:moved))"


def stats(path: Path, since: str | None = None) -> dict[str, Any]:
    """Return the sums as JSON values. Raises ``RecordingError``."""
    low = 0 if since is None else since_us(since)
    counts: dict[str, dict[str, int]] = {each: {} for each in (*GROUPS, "rule")}
    durations: list[int] = []
    total = sent = given = 0
    with names_of(Files(path)) as names, parts(path, low) as found:
        for part in found:
            span = {"low": low, "moved": part.moved}
            for row in part.db.query(
                "SELECT outcome, reason, connection, model, identity, caller, count(*) AS times, "  # noqa: S608 - our own names
                "sum(request_bytes) AS sent, sum(response_bytes) AS given FROM exchange "
                f"WHERE {_COUNTED} GROUP BY outcome, reason, connection, model, identity, caller",
                span,
            ):
                named = names.named(row)
                total, sent, given = total + row["times"], sent + row["sent"], given + row["given"]
                for each in GROUPS:
                    value = named[each] or ("open" if each == "outcome" else None)
                    if value is not None:
                        counts[each][value] = counts[each].get(value, 0) + row["times"]
            for row in part.db.query(
                "SELECT f.rule AS rule, count(*) AS times FROM finding f JOIN exchange e ON e.id = f.exchange "  # noqa: S608 - our own names
                f"WHERE {_COUNTED} GROUP BY f.rule",
                span,
            ):
                counts["rule"][row["rule"]] = counts["rule"].get(row["rule"], 0) + row["times"]
            asked = f"SELECT duration_us FROM exchange WHERE duration_us IS NOT NULL AND {_COUNTED}"  # noqa: S608 - our own names
            durations += (row[0] for row in part.db.execute(asked, span))
    durations.sort()
    return {
        "exchanges": total,
        "request_bytes": sent,
        "response_bytes": given,
        "ms": {f"p{share}": _share(durations, share) for share in (50, 95, 99)},
        **{each: dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))) for each, found in counts.items()},
    }


def _share(durations: list[int], share: int) -> float | None:
    return None if not durations else round(durations[min(len(durations) - 1, len(durations) * share // 100)] / 1000, 2)


def table(found: dict[str, Any], most: int = 10) -> Table:
    """Render ``stats`` for a terminal: of each column the ``most`` frequent values."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("what", "value", "exchanges"):
        view.add_column(name, justify="right" if name == "exchanges" else "left", overflow="fold")
    view.add_row("all", "", f"{found['exchanges']:,}")
    view.add_row("bytes", "from clients", f"{found['request_bytes']:,}")
    view.add_row("bytes", "to clients", f"{found['response_bytes']:,}")
    for name, value in found["ms"].items():
        view.add_row("ms", name, "" if value is None else f"{value:,}")
    for column in (*GROUPS, "rule"):
        for value, times in list(found[column].items())[:most]:
            view.add_row(column if column != "rule" else "findings of", Text(printable(value)), f"{times:,}")
        if len(found[column]) > most:
            view.add_row(column, f"and {len(found[column]) - most} more", "")
    return view
