"""``tidegate flows search | tail | stats | open | import``: looking at recorded exchanges."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tidegate.cli_common import policy_option
from tidegate.cli_recording import no_stack, recording_option, told, where

POLL = 0.5
"""Seconds between two looks of ``flows tail``."""


@contextlib.contextmanager
def _stage(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how far long work has come, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as stage:
        task = stage.add_task("", total=total)
        yield lambda done: stage.update(task, completed=done)


def _print(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    from tidegate.evidence import queries

    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=200)
    console.print(queries.table(rows, console.width))


@click.command("search")
@click.argument("text")
@policy_option
@recording_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--caller", help="A subject, or identity:subject.")
@click.option("--since", help="For example 2h, 3d or 2026-11-01.")
@click.option("--index", "indexed", is_flag=True, help="Make, or bring up to date, a full-text index: a second copy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def search(  # noqa: PLR0913 - one for each option
    text: str,
    policy_path: Path | None,
    recording: Path | None,
    limit: int,
    caller: str | None,
    since: str | None,
    *,
    indexed: bool,
    as_json: bool,
) -> None:
    """Find exchanges whose masked bodies hold every word of TEXT, newest first.

    Without an index every body is read; with one (`--index`, once) only those since the last time. That somebody
    searched is an event of the log, without the words.
    """
    from tidegate.evidence import queries
    from tidegate.evidence.files import Files
    from tidegate.evidence.index import Index, holds
    from tidegate.replay.texts import texts

    path = where(recording, policy_path)
    with no_stack():
        rows = queries.list_flows(path, limit=10**9, caller=caller, since=since)
        place = Files(path).index
        told(path, "read", f"flows search over {len(rows)} exchanges")
        if indexed or place.exists():
            index = Index(place)
            new = index.missing(row["id"] for row in queries.list_flows(path, limit=10**9) if row["outcome"])
            with _stage("indexing", len(new)) as progress:
                for at in range(0, len(new), 500):
                    index.add(texts(path, new[at : at + 500]))
                    progress(at)
            found = set(index.search(text, 10**9))
            index.close()
            rows = [row for row in rows if row["id"] in found][:limit]
        else:
            with _stage("reading", len(rows)) as progress:
                found = set()
                for at in range(0, len(rows), 500):
                    part = texts(path, [row["id"] for row in rows[at : at + 500]])
                    found |= {each for each, asked, said in part if holds(f"{asked}\n{said}", text)}
                    progress(at)
                    if len(found) >= limit:
                        break
            rows = [row for row in rows if row["id"] in found][:limit]
    _print(rows, as_json=as_json)


@click.command("tail")
@policy_option
@recording_option
@click.option("--limit", type=click.IntRange(0, 10_000), default=10, show_default=True, help="How many to begin with.")
@click.option("--once", is_flag=True, help="Do not wait for more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tail(policy_path: Path | None, recording: Path | None, limit: int, *, once: bool, as_json: bool) -> None:
    """Show exchanges as they end, oldest first, until interrupted."""
    from tidegate.evidence import queries

    path = where(recording, policy_path)
    shown: set[str] = set()
    first = True
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            with no_stack():
                rows = [
                    row for row in queries.list_flows(path, limit=1000) if row["outcome"] and row["id"] not in shown
                ]
            new = list(reversed(rows[:limit] if first else rows))
            shown.update(row["id"] for row in rows)
            first = False
            for row in new:
                click.echo(json.dumps(row) if as_json else _line(row))
            if once:
                return
            time.sleep(POLL)


def _line(row: dict[str, Any]) -> str:
    from tidegate.evidence.queries import moment, printable, who

    ended = row["outcome"] if row["reason"] is None else f"{row['outcome']}: {row['reason']}"
    rules = ", ".join(rule if times == 1 else f"{rule} x{times}" for rule, times in row["rules"].items())
    where_to = "/".join(each for each in (row["connection"], row["endpoint"]) if each)
    parts = (moment(row["started_us"])[11:], row["id"], ended, printable(who(row)), where_to, row["model"] or "", rules)
    return "  ".join(printable(each) for each in parts if each)


@click.command("stats")
@policy_option
@recording_option
@click.option("--since", help="For example 2h, 3d or 2026-11-01.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def stats(policy_path: Path | None, recording: Path | None, since: str | None, *, as_json: bool) -> None:
    """Count exchanges by outcome, reason, connection, model, caller and rule; how long they took, and bytes."""
    from tidegate.evidence import stats as counting

    with no_stack():
        found = counting.stats(where(recording, policy_path), since)
    if as_json:
        click.echo(json.dumps(found))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(counting.table(found))


@click.command("open")
@click.argument("exchanges", nargs=-1)
@policy_option
@recording_option
@click.option("--port", type=int, default=8081, show_default=True, help="Of the page, on 127.0.0.1.")
@click.option("--no-browser", is_flag=True, help="Only say where the page is.")
def open_flows(
    exchanges: Sequence[str], policy_path: Path | None, recording: Path | None, port: int, *, no_browser: bool
) -> None:
    """Look at recorded exchanges in mitmweb, which proxies nothing meanwhile.

    EXCHANGES are ids or their beginnings; without any, all that kept their bodies. Who looked at what is an event of
    the log.
    """
    from tidegate.evidence import queries
    from tidegate.replay import viewing

    path = where(recording, policy_path)
    with no_stack():
        ids = [queries.find(path, each) for each in exchanges]
        told(path, "read", f"flows open {' '.join(ids) or 'all'}")
    command = [
        str(Path(sys.executable).with_name("mitmweb")), "--no-server", "-s", viewing.__file__,
        "--web-host", "127.0.0.1", "--web-port", str(port),
        "--set", f"recording={path.resolve()}", "--set", f"exchanges={','.join(ids)}",
        "--set", f"web_open_browser={'false' if no_browser else 'true'}",
    ]  # fmt: skip
    os.execv(command[0], command)  # noqa: S606 - our own words; mitmweb takes this process over, and its signals


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--into", type=click.Path(path_type=Path), required=True, help="The recording; made if it is not there.")
def import_flows(source: Path, into: Path) -> None:
    """Record the flows of a mitmproxy file or a HAR file, to look at, search or replay them.

    Credentials are left out; nothing is judged and nothing is masked.
    """
    from tidegate.replay import importing

    with no_stack(), _stage("importing") as progress:
        done = importing.import_flows(source, into, progress)
    click.echo(f"{into}: {done} flows imported", err=True)


COMMANDS = (search, tail, stats, open_flows, import_flows)
