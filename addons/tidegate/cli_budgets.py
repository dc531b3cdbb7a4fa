"""``tidegate budgets``: what of the budgets is in use, and giving it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli_common import policy_file, policy_option, show_faults
from tidegate.policy.policy import PolicyError

if TYPE_CHECKING:
    from tidegate.state.budgets import Budgets, Row

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


@click.group("budgets")
def budgets() -> None:
    """See what of the budgets is in use, and give it back."""


@budgets.command("list")
@policy_option
@click.option("--budget", help="Only this budget.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def budgets_list(policy_path: Path | None, budget: str | None, *, as_json: bool) -> None:
    """List what is used of each budget, by holder; what is not listed is unused."""
    rows: list[Row] = _with(policy_path, lambda store: store.rows().result())
    found = [each for each in rows if budget in (None, each.budget)]
    if as_json:
        for each in found:
            click.echo(json.dumps(_as_json(each)))
        return
    if not found:
        click.echo("Nothing of any budget is in use.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("budget", "holder", "counts"):
        table.add_column(name, overflow="fold")
    for name in ("used", "of", "share", "all back in"):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(*_told(each))
    _console().print(table)


@budgets.command("reset")
@click.argument("budget")
@policy_option
@click.option("--holder", help="Only what this holder has used, as `tidegate budgets list` writes it.")
def budgets_reset(budget: str, policy_path: Path | None, holder: str | None) -> None:
    """Give back all that was used of BUDGET; who did that and when is kept. Requests under way keep their seats."""
    gone: int = _with(policy_path, lambda store: store.reset(budget, holder).result())
    if not gone:
        raise click.ClickException(
            f"found nothing in use of the budget {budget!r}"
            f"{'' if holder is None else f' by {holder!r}'}; accepted: what `tidegate budgets list` shows"
        )
    click.echo(f"Given back: {gone} counter{'s' if gone != 1 else ''} of {budget}.")


@budgets.command("resets")
@policy_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def budgets_resets(policy_path: Path | None, *, as_json: bool) -> None:
    """List who gave which budget back, newest first."""
    found = _with(policy_path, lambda store: store.resets().result())
    names = ("at", "budget", "holder", "by", "counters")
    rows = [(datetime.fromtimestamp(each[0], UTC).isoformat(timespec="seconds"), *each[1:]) for each in found]
    if as_json:
        for row in rows:
            click.echo(json.dumps(dict(zip(names, row, strict=True))))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(part if part is not None else "all")) for part in row))
    _console().print(table)


def _with(policy_path: Path | None, work: Callable[[Budgets], Any]) -> Any:
    """Do something with the control store of a policy; what is wrong with either is told in one sentence."""
    from tidegate.policy.loading import state_of
    from tidegate.state.budgets import Budgets
    from tidegate.state.control import Control, StateError

    try:
        path, _ = state_of(policy_file(policy_path))
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None
    if not path.is_file():
        raise click.ClickException(f"{path}: found no file; accepted: the control store of a gate that has run")
    control = Control(path)
    try:
        control.start()
        return work(Budgets(control))
    except StateError as error:
        raise click.ClickException(str(error)) from None
    finally:
        control.close()


def _console() -> Console:
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)  # a pipe has no width; nothing is lost in it


def _as_json(row: Row) -> dict[str, Any]:
    from tidegate.limits.budgets import UNIT, Metric

    money = row.metric == Metric.SPEND
    return {
        "budget": row.budget,
        "holder": row.who,
        "metric": row.metric,
        "used": row.used / UNIT if money else row.used,
        "limit": row.most / UNIT if money else row.most,
        "window_seconds": row.window,
        "reset_seconds": None if row.reset is None else round(row.reset, 1),
    }


def _told(row: Row) -> tuple[Text | str, ...]:
    from tidegate.evidence.queries import printable

    share = row.used / row.most
    colour = "red" if share >= 1 else "yellow" if share >= 0.8 else ""
    window = "" if row.window is None else f" in {_time(row.window)}"
    back = "" if row.reset is None else _time(row.reset)
    holder = Text(printable(row.who))
    used, most = _amount(row, row.used), _amount(row, row.most)
    return Text(row.budget), holder, row.metric, used, most + window, Text(f"{share:.0%}", style=colour), back


def _amount(row: Row, amount: int) -> str:
    from tidegate.limits.budgets import UNIT, Metric

    return f"{amount / UNIT:.4f}" if row.metric == Metric.SPEND else str(amount)


def _time(seconds: float) -> str:
    """Write a time in its two largest units."""
    left, parts = max(1, round(seconds)), []
    for unit, size in _UNITS:
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return "".join(parts[:2])
