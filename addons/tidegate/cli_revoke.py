"""``tidegate revoke``: take tokens back, list what was taken back, and undo it. Works beside a running gate."""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from tidegate.cli_common import policy_file, policy_option, show_faults
from tidegate.policy.policy import OidcIdentity, PolicyError

if TYPE_CHECKING:
    from tidegate.state.revocations import Revocation, Revocations

WAIT_SECONDS = 10.0  # the store waits five seconds for another process


@click.command()
@policy_option
@click.option("--issuer", help="Whose token: an issuer's address, or the name of an identity of the policy.")
@click.option("--jti", help="Take back this one token, by its jti.")
@click.option("--subject", help="Take back every token of this subject (sub) that was issued up to now.")
@click.option("--before", metavar="MOMENT", help="With --subject: issued up to this moment, as 2027-01-31T00:00:00Z.")
@click.option("--reason", default="", help="Why, for those who read the list.")
@click.option("--undo", type=int, metavar="ID", help="Believe the tokens of this entry again.")
@click.option("--list", "listing", is_flag=True, help="Show what was taken back.")
@click.option("--json", "as_json", is_flag=True, help="With --list: one JSON object a line.")
def revoke(  # noqa: PLR0913 - options of a command
    policy_path: Path | None, *, issuer: str | None, jti: str | None, subject: str | None, before: str | None,
    reason: str, undo: int | None, listing: bool, as_json: bool,
) -> None:  # fmt: skip
    """Take tokens back before they end. Every gate on this control store refuses them a second later."""
    given = {"--list": listing, "--undo": undo, "--jti": jti, "--subject": subject}
    asked = [name for name, value in given.items() if value not in (None, False)]
    if len(asked) != 1:
        raise click.UsageError(
            f"found {' and '.join(asked) or 'none'}; accepted: exactly one of --jti, --subject, --list and --undo."
        )
    if before is not None and subject is None:
        raise click.UsageError("--before: accepted together with --subject.")
    with _opened(policy_path) as (revocations, issuers):
        if listing:
            _show(revocations.all().result(WAIT_SECONDS), as_json=as_json)
        elif undo is not None:
            if not revocations.undo(undo).result(WAIT_SECONDS):
                raise click.ClickException(f"--undo: found no entry {undo}; `tidegate revoke --list` shows them.")
            click.echo(f"Entry {undo} is gone; its tokens are believed again until they end.")
        else:
            who, by = _issuer(issuer, issuers), _person()
            if jti is not None:
                entry = revocations.revoke_token(who, jti, made_by=by, why=reason).result(WAIT_SECONDS)
            else:
                moment = _moment(before)
                done = revocations.revoke_subject(who, str(subject), made_by=by, why=reason, before=moment)
                entry = done.result(WAIT_SECONDS)
            click.echo(f"Revoked: entry {entry}. Undo it with: tidegate revoke --undo {entry}")


@contextlib.contextmanager
def _opened(policy_path: Path | None) -> Iterator[tuple[Revocations, dict[str, str]]]:
    """Open the policy's control store beside a gate that may be running; with it the issuers by identity."""
    from tidegate.policy.loading import state_of
    from tidegate.state.control import Control, StateError
    from tidegate.state.revocations import Revocations

    try:
        path, identities = state_of(policy_file(policy_path))
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None
    control = Control(path)
    try:
        control.start()
        yield (
            Revocations(control),
            {each.name: each.issuer for each in identities or () if isinstance(each, OidcIdentity)},
        )
    except (StateError, TimeoutError) as error:
        raise click.ClickException(str(error) or f"{path}: the control store does not answer") from None
    finally:
        control.close()


def _issuer(given: str | None, known: dict[str, str]) -> str:
    """Return the issuer that is meant; an address need not be in the policy, since it may have been."""
    if given is not None and given in known:
        return known[given]
    if given is not None and "://" in given:
        return given
    names = ", ".join(known) or "none"
    raise click.UsageError(
        f"--issuer: found {'nothing' if given is None else repr(given)}; accepted: an issuer's address, or an identity "
        f"of the policy with one: {names}."
    )


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


def _moment(text: str | None) -> float:
    if text is None:
        return time.time()
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise click.UsageError(
            f"--before: found {text!r}; accepted: a moment with its zone, as 2027-01-31T00:00:00Z."
        ) from None
    return moment.timestamp()


def _show(entries: tuple[Revocation, ...], *, as_json: bool) -> None:
    if as_json:
        for each in entries:
            click.echo(json.dumps({name: getattr(each, name) for name in each.__slots__}))
        return
    if not entries:
        click.echo("Nothing is revoked.")
        return
    table = Table("id", "issuer", "tokens", "since", "by", "reason", box=None, pad_edge=False)
    for each in entries:
        what = f"jti {each.jti}" if each.before is None else f"all of {each.subject} up to {_written(each.before)}"
        table.add_row(str(each.id), each.issuer, what, _written(each.made), each.made_by, each.why)
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=200)).print(table, markup=False)


def _written(moment: float) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
