"""``tidegate export``: evidence for somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from tidegate.cli_common import policy_option
from tidegate.cli_recording import no_stack, recording_option, told, where


@click.command()
@click.argument("exchanges", nargs=-1)
@policy_option
@recording_option
@click.option("--caller", help="Every exchange of this caller: a subject, or identity:subject.")
@click.option("--since", help="From then on: 2h, 3d or 2026-11-01.")
@click.option("--until", help="Up to then.")
@click.option(
    "--format", "form", type=click.Choice(["bundle", "mitm", "har", "jsonl"]), default="bundle", show_default=True,
    help="bundle: with proofs, and a program that checks them offline.",
)  # fmt: skip
@click.option("--no-bodies", is_flag=True, help="Leave out what was kept of requests and answers (bundle).")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
def export(  # noqa: PLR0913 - one for each option
    exchanges: Sequence[str],
    policy_path: Path | None,
    recording: Path | None,
    caller: str | None,
    since: str | None,
    until: str | None,
    form: str,
    *,
    no_bodies: bool,
    out: Path,
) -> None:
    """Export exchanges, a caller's session or a time span, for an auditor or for other tools.

    EXCHANGES are ids or their beginnings. That something was exported, and by whom, is an event of the log.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from tidegate.evidence import bundle, queries

    if not exchanges and caller is None and since is None and until is None:
        raise click.UsageError("found nothing to export; accepted: EXCHANGES, --caller, --since or --until.")
    path = where(recording, policy_path)
    with no_stack():
        low, high = (None if each is None else queries.since_us(each) for each in (since, until))
        selection = bundle.Selection(tuple(exchanges), caller, low, high, bodies=not no_bodies)
        ids = bundle.chosen(path, selection)
        told(path, "export", f"{form} of {len(ids)} exchanges, {ids[0]} to {ids[-1]}")
        stage = Progress(
            SpinnerColumn(), TextColumn("{task.completed:,} events read"), transient=True, console=Console(stderr=True)
        )
        with stage:
            task = stage.add_task("", total=None)
            if form == "bundle":
                data = bundle.export(path, selection, lambda seen: stage.update(task, completed=seen))
            else:
                from tidegate.replay import saving

                data = {"mitm": saving.to_mitm, "har": saving.to_har, "jsonl": saving.to_jsonl}[form](path, ids)
    out.touch(mode=0o600)
    out.write_bytes(data)
    click.echo(f"{out}: {len(ids)} exchanges, {len(data):,} bytes", err=True)
