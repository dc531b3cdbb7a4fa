"""What the commands about recordings share: which recording is meant, and how its faults are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tidegate.cli_common import policy_file, show_faults
from tidegate.policy.policy import PolicyError

recording_option = click.option(
    "--recording",
    type=click.Path(path_type=Path),
    default=None,
    help="The recording, instead of the one the policy names.",
)

recording_argument = click.argument("recording", type=click.Path(path_type=Path), required=False)


def where(recording: Path | None, policy_path: Path | None) -> Path:
    """Return the recording that is meant: named, or the policy's."""
    from tidegate.policy.loading import recording_of

    try:
        return recording if recording is not None else recording_of(policy_file(policy_path))
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None


@contextmanager
def no_stack(status: int = 1) -> Iterator[None]:
    """Turn what is wrong with a recording into one sentence and an exit status."""
    from tidegate.evidence.records import RecordingError

    try:
        yield
    except RecordingError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(status) from None


def told(path: Path, kind: str, detail: str) -> None:
    """Put a reading into the log, or say that it could not be: a copy has none to tell."""
    from tidegate.evidence.proving import leave_word

    if not leave_word(path, kind, detail):
        click.echo("note: this reading is not in the log: the recording is a copy, or may not be written", err=True)
