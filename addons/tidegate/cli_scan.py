"""``tidegate scan``: look for secrets and personal data in files, standard input, or rows of JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli_common import load_engine, packs_option, rules_option

if TYPE_CHECKING:
    from tidegate.inspection.attachments import Extraction
    from tidegate.inspection.engine import Engine
    from tidegate.inspection.rules import Severity
    from tidegate.scanning import Located

FOUND, FAILED = 1, 2  # exit codes: something was found; something could not be scanned
SLOW = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "dim"}


@click.command()
@click.argument("paths", nargs=-1, metavar="[FILE|FOLDER|-]...")
@packs_option
@rules_option
@click.option(
    "--severity",
    "at_least",
    type=click.Choice(["low", "medium", "high", "critical"]),
    default="low",
    show_default=True,
    help="Report rules from this severity on.",
)
@click.option("--jsonl", is_flag=True, help='Read rows {"id", "text"}, one a line; write {"id", "findings"} for each.')
def scan(paths: Sequence[str], packs: Sequence[str], policy_path: Path | None, at_least: str, *, jsonl: bool) -> None:
    """Look for secrets and personal data in files, folders, or standard input.

    Values are never shown. Exit code: 0 when nothing was found (with --jsonl: when every row was read), 1 when
    something was found, 2 when something could not be scanned.
    """
    from tidegate.inspection.detectors import DetectorError
    from tidegate.inspection.rules import Severity
    from tidegate.scanning import ScanError

    if not paths:
        if sys.stdin.isatty():
            raise click.UsageError("found no file; accepted: files, folders, or - for standard input")
        paths = ("-",)
    engine = load_engine(packs, policy_path, failed=FAILED)
    try:
        code = (_scan_rows if jsonl else _scan_files)(engine, paths, Severity(at_least))
    except (ScanError, DetectorError) as error:
        _say(str(error))
        code = FAILED
    raise click.exceptions.Exit(code)


def _say(sentence: str) -> None:
    from tidegate.scanning import printable

    click.echo(f"tidegate scan: {printable(sentence)}", err=True)


@contextmanager
def _progress(total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while something takes long, on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scanning"), BarColumn(), TextColumn(f"{{task.completed}} {unit}"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scan", total=total)
        yield lambda done: progress.advance(task, done)


def _scan_files(engine: Engine, paths: Sequence[str], at_least: Severity) -> int:
    """Scan everything and show one table. What cannot be read is said at once and does not end the scan."""
    from tidegate.extracting import extract_apart
    from tidegate.scanning import ScanError, files, read_file, texts

    named = list(dict.fromkeys(path for each in paths for path in ([Path("-")] if each == "-" else files([each]))))
    found: list[tuple[str, Located]] = []
    failed = skipped = hit = 0
    with _progress(len(named), "files") as advance:
        for path in named:
            stdin = path == Path("-")
            try:
                read = texts(sys.stdin.buffer.read() if stdin else read_file(path), extract_apart)
            except ScanError as error:
                _say(str(error))
                failed += 1
                continue
            if read.unread:
                _say(f"{path}: {_unread(read)}")
                skipped += not read.texts
            name = "standard input" if stdin else str(path)
            here = _in_file(engine, name, read, at_least)
            found += here
            hit += bool(here)
            advance(1)
    if found:
        terminal = Console()
        (terminal if terminal.is_terminal else Console(width=200)).print(_table(found))
    scanned = len(named) - failed - skipped
    summary = f"{len(found)} findings in {hit} of {_files(scanned)}"
    _say(
        summary + (f"; {_files(skipped)} skipped" if skipped else "") + (f"; {_files(failed)} failed" if failed else "")
    )
    return FAILED if failed else FOUND if found else 0


def _in_file(engine: Engine, name: str, read: Extraction, at_least: Severity) -> list[tuple[str, Located]]:
    """Return the findings of one file with their places: those of a document name the part of it."""
    from tidegate.inspection.findings import inspect_text
    from tidegate.scanning import is_severe, locate

    found: list[tuple[str, Located]] = []
    for text in read.texts:
        place = name if read.kind == "text" else f"{name} ({text.name or read.kind})"
        findings = inspect_text(engine, text.text)
        located = locate(text.text, findings) if findings else ()  # milder findings are masked all the same
        found += [(place, each) for each in located if is_severe(each.finding, at_least)]
    return found


def _unread(read: Extraction) -> str:
    if read.kind == "binary":
        return "skipped, a binary file"
    return f"{'partly' if read.texts else 'not'} scanned: it is or holds {'; '.join(read.unread)}"


def _files(count: int) -> str:
    return f"{count} file{'s' if count != 1 else ''}"


def _table(found: Sequence[tuple[str, Located]]) -> Table:
    from tidegate.scanning import printable

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("where", overflow="fold")
    for heading in ("severity", "class", "rule"):
        table.add_column(heading, no_wrap=True)
    table.add_column("line, masked", overflow="ellipsis", no_wrap=True)
    for name, each in found:
        rule = each.finding.rule
        table.add_row(
            Text(f"{printable(name)}:{each.line}:{each.column}"),
            Text(rule.severity, SLOW[rule.severity]),
            Text(rule.cls),
            Text(rule.id),
            Text(each.excerpt),
        )
    return table


def _scan_rows(engine: Engine, paths: Sequence[str], at_least: Severity) -> int:
    """Answer row by row, in order; the first row that is none ends it."""
    from tidegate.scanning import answer, rows, scan_text

    for path in paths:
        with _opened(path) as (stream, size), _progress(size, "bytes") as advance:

            def lines(stream: BinaryIO = stream, advance: Callable[[int], None] = advance) -> Iterator[bytes]:
                for line in stream:
                    yield line
                    advance(len(line))

            for ident, text, _ in rows(lines(), "standard input" if path == "-" else path):
                click.echo(answer(ident, scan_text(engine, text, at_least)))
    return 0


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file of rows; with its size, or ``None`` for standard input."""
    from tidegate.scanning import ScanError

    if path == "-":
        yield sys.stdin.buffer, None
        return
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 - closed below; here only its opening may fail
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror})") from None
    with stream:
        yield stream, Path(path).stat().st_size
