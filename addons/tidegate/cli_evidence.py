"""``tidegate verify`` and ``tidegate evidence``: what a recording proves, and its keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from tidegate.cli_common import policy_option
from tidegate.cli_recording import no_stack, recording_argument, recording_option, told, where

if TYPE_CHECKING:
    from tidegate.evidence.subjects import Subjects


@click.command()
@recording_argument
@policy_option
@click.option("--key", metavar="KEY", help="The log's public key (or a file that holds it), as noted elsewhere.")
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of checkpoints that were copied elsewhere; repeat.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def verify(
    recording: Path | None, policy_path: Path | None, key: str | None, checkpoints: Sequence[Path], *, as_json: bool
) -> None:
    """Say what a recording proves, and what it does not.

    RECORDING is the path the policy names, if it is left out. The exit status is 0 if nothing was found to be changed,
    1 if something was or nothing is proven, 2 if there was nothing that could be read.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from tidegate.evidence import verify as verifying

    path = where(recording, policy_path)
    stage = Progress(
        SpinnerColumn(), TextColumn("{task.completed:,} events"), TimeElapsedColumn(), transient=True,
        console=Console(stderr=True),
    )  # fmt: skip
    with no_stack(2), stage:
        task = stage.add_task("", total=None)
        public = None if key is None else verifying.read_key(key)
        report = verifying.verify(path, public, checkpoints, lambda seen: stage.update(task, completed=seen))
    if as_json:
        said = {name: getattr(report, name) for name in ("sound", "leaves", "proven", "unproven", "faults", "faulty")}
        click.echo(json.dumps({"recording": str(path), **said}))
    else:
        _tell(path, report)
    sys.exit(0 if report.sound else 1)


def _tell(path: Path, report: object) -> None:
    from rich.text import Text

    from tidegate.evidence.verify import Report

    assert isinstance(report, Report)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{path}: {report.leaves:,} events")
    for name, lines, style in (
        ("CHANGED", report.faults, "bold red"),
        ("proven", report.proven, "green"),
        ("not proven", report.unproven, "yellow"),
    ):
        for line in lines:
            console.print(Text.assemble((f"{name:>10}  ", style), line))
    if report.faulty > len(report.faults):
        console.print(Text.assemble(("   CHANGED  ", "bold red"), f"and {report.faulty - len(report.faults):,} more"))
    verdict = "sound" if report.sound else "NOT SOUND" if report.faulty else "nothing is proven"
    console.print(Text.assemble((f"{'verdict':>10}  ", "bold"), verdict))


@click.group()
def evidence() -> None:
    """Keys, erasure and holds of a recording."""


@evidence.command("key")
@policy_option
@recording_option
def evidence_key(policy_path: Path | None, recording: Path | None) -> None:
    """Print the public key of the log.

    Note it where this machine cannot change it, and give it to `tidegate verify --key`.
    """
    from tidegate.evidence import verify as verifying
    from tidegate.evidence.files import Files

    files = Files(where(recording, policy_path))
    key = verifying.key_beside(files)
    if key is None:
        raise click.ClickException(f"{files.key}: found no key that can be read; it is made at the first start.")
    click.echo(key.vkey)


@evidence.command("erase")
@click.argument("subject", metavar="IDENTITY:NAME")
@policy_option
@recording_option
@click.option("--basis", default="", help="Why, for the log: a ticket, a law. No name.")
@click.confirmation_option(prompt="This destroys a caller's name and bodies for good. Go on?")
def evidence_erase(subject: str, policy_path: Path | None, recording: Path | None, basis: str) -> None:
    """Erase a caller: destroy the name and the keys of the bodies. The log stays valid, and tells of it.

    What the control store holds of approvals (names, words) stays there.
    """
    from tidegate.evidence.files import Files

    with no_stack(), _subjects(recording, policy_path) as subjects:
        many = subjects.erase(subject, basis)
        Files(where(recording, policy_path)).index.unlink(missing_ok=True)  # it holds a copy of what was said
    click.echo(f"{subject}: name and {many} keys destroyed; copies of the file of keys must be destroyed too", err=True)
    click.echo("note: approvals in the control store (state.path) keep names and words as they were", err=True)


@evidence.command("hold")
@click.argument("subject", metavar="IDENTITY:NAME", required=False)
@policy_option
@recording_option
@click.option("--reason", help="Set a legal hold; without it the holds are listed.")
@click.option("--release", is_flag=True, help="Lift it.")
def evidence_hold(
    subject: str | None, policy_path: Path | None, recording: Path | None, reason: str | None, *, release: bool
) -> None:
    """Set, lift or list legal holds: a caller on hold is not erased, and while there is any no segment is deleted.

    IDENTITY:NAME is a caller, or * for everybody.
    """
    from tidegate.evidence.queries import moment

    if subject is None and (reason or release):
        raise click.UsageError("found no caller; accepted: IDENTITY:NAME, or * for everybody.")
    if reason and release:
        raise click.UsageError("found --reason and --release; accepted: one of them.")
    with no_stack(), _subjects(recording, policy_path) as subjects:
        if subject is not None and (reason or release):
            known = [each for each, name in subjects.matching(subject) if name == subject]
            subjects.hold(subject, reason, subject if subject == "*" else (known or ["a caller not seen yet"])[0])
        for name, at_us, why in subjects.holds():
            click.echo(f"{name} since {moment(at_us)}: {why}")


@contextmanager
def _subjects(recording: Path | None, policy_path: Path | None) -> Iterator[Subjects]:
    from tidegate.evidence.files import Files
    from tidegate.evidence.subjects import Subjects

    subjects = Subjects(Files(where(recording, policy_path)).keys, create=False)
    try:
        yield subjects
    finally:
        subjects.close()


@evidence.command("keygen")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A new file for the private key."
)
def evidence_keygen(out: Path) -> None:
    """Make an auditor's pair of keys: the private one into a new file (0600), the public one printed for the policy.

    Do this on the auditor's machine: who has the private key opens sealed originals, and nobody else does.
    """
    import os

    from tidegate.evidence.sealing import make_auditor

    private, public = make_auditor()
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise click.ClickException(f"{out}: cannot be made: {error.strerror}; accepted: a new file") from None
    with os.fdopen(handle, "w") as file:
        file.write(private + "\n")
    click.echo(public)


@evidence.command("unseal")
@click.argument("exchange")
@policy_option
@recording_option
@click.option(
    "--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="The private key."
)
@click.option("--direction", type=click.Choice(["prompt", "response"]), default="prompt", show_default=True)
def evidence_unseal(exchange: str, policy_path: Path | None, recording: Path | None, key: Path, direction: str) -> None:
    """Print a sealed original, as it was before masking. That it was opened, and by whom, is an event of the log.

    EXCHANGE is an id, or the beginning of one.
    """
    from tidegate.evidence.unsealing import open_original

    path = where(recording, policy_path)
    with no_stack():
        name, plain = open_original(path, exchange, direction, key.read_text(encoding="ascii", errors="replace"))
        told(path, "unsealed", f"{name} {direction}")
    click.echo(plain, nl=False)


@evidence.command("prove")
@click.argument("exchange", required=False)
@policy_option
@recording_option
@click.option(
    "--older", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with an older checkpoint: prove that it is the beginning of the newest one.",
)  # fmt: skip
def evidence_prove(exchange: str | None, policy_path: Path | None, recording: Path | None, older: Path | None) -> None:
    """Print a proof that any verifier of C2SP logs can check: that an exchange's last event is in the log.

    EXCHANGE is an id, or the beginning of one. With --older instead: one line that names the proof, then its hashes,
    then the newest checkpoint.
    """
    from tidegate.evidence import proving

    if (exchange is None) == (older is None):
        raise click.UsageError("found both or neither; accepted: EXCHANGE, or --older FILE.")
    path = where(recording, policy_path)
    with no_stack():
        if exchange is not None:
            click.echo(proving.prove(path, exchange), nl=False)
        else:
            assert older is not None
            click.echo(proving.prove_growth(path, older.read_text(encoding="utf-8", errors="replace")), nl=False)
