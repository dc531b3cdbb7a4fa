"""The commands for a company's own data: ``tidegate rules fingerprint | canary | allow``."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from tidegate.places import default_policy

if TYPE_CHECKING:
    from tidegate.fingerprinting import Made

key_option = click.option(
    "--key",
    metavar="REF",
    help="The key by reference, as ${env:NAME}; without it a key file is made beside the output.",
)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


@click.command()
@click.argument("table", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--columns", metavar="NAMES", help="The columns to look for, with commas between them.")
@click.option("--delimiter", default=",", show_default=True, help="What stands between the fields of the table.")
@click.option(
    "--documents", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder of documents."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The index to write.")
@key_option
def fingerprint(
    table: Path | None, columns: str | None, delimiter: str, documents: Path | None, output: Path, key: str | None
) -> None:
    """Index a table (CSV) or a folder of documents as keyed hashes, to be looked for without being carried along."""
    from tidegate import fingerprinting

    if (table is None) == (documents is None) or (table is None) != (columns is None):
        raise click.UsageError("accepted: a table and --columns, or --documents")
    if len(delimiter) != 1:
        raise click.BadParameter("accepted: one character", param_hint="--delimiter")
    with _told():
        secret = fingerprinting.open_key(output, key)
        if table is not None and columns is not None:
            names = [each.strip() for each in columns.split(",")]
            with _progress(table.stat().st_size) as moved:
                made = fingerprinting.table(table, names, output, secret, moved, delimiter)
            _say(made, "values", output)
        elif documents is not None:
            with _progress(fingerprinting.size_below(documents)) as moved:
                made = fingerprinting.documents(documents, output, secret, moved)
            _say(made, "documents", output)


@click.command()
@click.argument("name")
@click.option("--form", type=click.Choice(["key", "url", "words"]), default="key", show_default=True)
@click.option("--host", default="files.example.com", show_default=True, help="The host of an address.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file of canaries.")
@key_option
def canary(name: str, form: str, host: str, output: Path, key: str | None) -> None:
    """Mint a canary token, to be planted where only a leak would find it; it is shown once and kept as a keyed hash."""
    from tidegate import fingerprinting
    from tidegate.inspection.proprietary.canary import Form

    if not _NAME.fullmatch(name):
        raise click.BadParameter("accepted: lower-case letters, digits and hyphens, first a letter", param_hint="NAME")
    if not re.fullmatch(r"[a-z0-9.-]{3,200}", host):
        raise click.BadParameter("accepted: a host name in lower case", param_hint="--host")
    with _told():
        secret = fingerprinting.open_key(output, key)
        token = fingerprinting.mint(name, Form(form), host, output, secret, _today().isoformat())
    click.echo(token)
    click.echo(f"Canary {name} added to {output}. It is not shown again.", err=True)


@click.command()
@click.argument("rule")
@click.option("--policy", "policy_path", type=click.Path(path_type=Path), default=None, help="The policy file.")
@click.option("--reason", required=True, help="Why it is no finding: one sentence.")
@click.option("--author", required=True, help="Who decided.")
@click.option("--expires", required=True, metavar="DATE", help="The last day it counts, such as 2027-01-31.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file of known values.")
@key_option
def allow(
    rule: str, policy_path: Path | None, reason: str, author: str, expires: str, output: Path, key: str | None
) -> None:
    """Let a rule pass over one value, read from standard input as it stood in its text and kept as a keyed hash."""
    from tidegate import fingerprinting
    from tidegate.inspection.cache import DiskCache
    from tidegate.policy.loading import load
    from tidegate.policy.policy import PolicyError

    try:
        last = dt.date.fromisoformat(expires)
    except ValueError:
        raise click.BadParameter("accepted: a date such as 2027-01-31", param_hint="--expires") from None
    if last < _today():
        raise click.BadParameter("found a date that is over; accepted: today or later", param_hint="--expires")
    if not reason.strip() or not author.strip():
        raise click.UsageError("accepted: a --reason and an --author that are not empty")
    try:
        engine = load(default_policy() if policy_path is None else policy_path, engine_cache=DiskCache()).engine
    except PolicyError as error:
        raise click.ClickException(str(error)) from None
    text = click.prompt("value", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    said = {"reason": reason, "author": author, "added": _today().isoformat(), "expires": last.isoformat()}
    with _told():
        secret = fingerprinting.open_key(output, key)
        fingerprinting.allow(engine, rule, text, output, secret, said)
    click.echo(f"{rule}: one value added to {output}; name it under inspection.allow of the policy.", err=True)


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def _say(made: Made, what: str, output: Path) -> None:
    click.echo(f"{output}: {made.count} {what}, {made.size} bytes", err=True)
    for each in made.left_out:
        click.echo(f"left out: {each}", err=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what is wrong into one sentence."""
    from tidegate.fingerprinting import FingerprintError

    try:
        yield
    except FingerprintError as error:
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """Show how far a long reading is, on a terminal only."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda done: bar.update(task, completed=done)
