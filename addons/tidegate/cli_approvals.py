"""``tidegate approvals``: look at what waits for approval, and decide on it as an identified person.

Whoever decides proves who he is with a token of one of the policy's identities, as callers do. Then groups count, and
nobody decides on his own request.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tidegate.cli_common import policy_file, policy_option, show_faults
from tidegate.policy.policy import PolicyError

if TYPE_CHECKING:
    from tidegate.approvals.machine import Refusal
    from tidegate.approvals.spec import Person
    from tidegate.desk import Desk
    from tidegate.model import Caller, Denial
    from tidegate.policy.loading import People
    from tidegate.state.approvals import Item, Said, Step
    from tidegate.state.control import Control

LOOK = 0.25
"""Seconds between two looks of ``watch``."""
STYLES = {"pending": "yellow", "approved": "green", "consumed": "green", "denied": "red", "revoked": "red"}

token_option = click.option(
    "--token",
    envvar="TIDEGATE_TOKEN",
    show_envvar=True,
    default=None,
    help="Your token of one of the policy's identities; - reads it from stdin. Without it you are asked.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one object a line.")
reason_option = click.option("--reason", default="", help="Why. It is recorded, and the caller reads it.")
must_reason = click.option("--reason", required=True, help="Why. It is recorded, and the caller reads it.")


@click.group()
def approvals() -> None:
    """Decide on requests that wait for approval."""


@approvals.command("list")
@policy_option
@click.option("--all", "every", is_flag=True, help="Also what is over.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def list_command(policy_path: Path | None, limit: int, *, every: bool, as_json: bool) -> None:
    """List what is pending or approved, newest first."""
    from tidegate import desk as desks
    from tidegate.approvals.spec import State

    states = () if every else (State.PENDING, State.APPROVED)

    async def run(desk: Desk) -> tuple[Item, ...]:
        found = await desk.list(states, limit)
        reviews = () if every else tuple(each for each in await desk.list(limit=limit) if each.review == "open")
        return (*found, *(each for each in reviews if each not in found))

    items = _with_desk(_people(policy_path), run)
    if as_json:
        for each in items:
            click.echo(json.dumps(desks.as_json(each, time.time())))
    elif items:
        _console().print(_table(items))
    else:
        click.echo("Nothing waits for approval." if not every else "No approvals yet.")


@approvals.command()
@click.argument("approval")
@policy_option
@json_option
def show(approval: str, policy_path: Path | None, *, as_json: bool) -> None:
    """Show one approval: who asks for what and why, the request without what was found in it, and its history.

    APPROVAL is an id, or the beginning of one.
    """
    from tidegate import desk as desks

    async def run(desk: Desk) -> tuple[Item, tuple[Said, ...], tuple[Step, ...]]:
        item = await _one(desk, approval)
        return (item, *await desk.history(item.id))

    item, votes, history = _with_desk(_people(policy_path), run)
    if as_json:
        told = desks.as_json(item, time.time())
        told["request"] = None if item.shown is None else item.shown.decode("utf-8", "replace")
        told["votes"] = [
            {"by": each.person.name, "answer": each.answer, "reason": each.reason, "at": each.at} for each in votes
        ]
        told["history"] = [asdict(each) for each in history]
        click.echo(json.dumps(told))
    else:
        _console().print(_view(item, votes, history))


@approvals.command()
@click.argument("approval")
@policy_option
@token_option
@reason_option
@json_option
@click.option("--break-glass", is_flag=True, help="Let it pass on your word alone; needs a reason, and a review after.")
def approve(
    approval: str, policy_path: Path | None, token: str | None, reason: str, *, break_glass: bool, as_json: bool
) -> None:
    """Say yes. The request passes once enough people have."""
    from tidegate.approvals.spec import Answer

    async def work(desk: Desk, one: str, who: Person, why: str) -> Item | Refusal:
        if break_glass:
            return await desk.break_glass(one, who, why)
        return await desk.decide(one, who, Answer.YES, why)

    _act(policy_path, approval, (token, reason), work, as_json=as_json)


@approvals.command()
@click.argument("approval")
@policy_option
@token_option
@must_reason
@json_option
def deny(approval: str, policy_path: Path | None, token: str | None, reason: str, *, as_json: bool) -> None:
    """Say no. One no is enough."""
    from tidegate.approvals.spec import Answer

    _act(
        policy_path,
        approval,
        (token, reason),
        lambda desk, one, who, why: desk.decide(one, who, Answer.NO, why),
        as_json=as_json,
    )


@approvals.command()
@click.argument("approval")
@policy_option
@token_option
@must_reason
@json_option
def revoke(approval: str, policy_path: Path | None, token: str | None, reason: str, *, as_json: bool) -> None:
    """Take back a yes that was not used up."""
    _act(policy_path, approval, (token, reason), lambda desk, *said: desk.revoke(*said), as_json=as_json)


@approvals.command()
@click.argument("approval")
@policy_option
@token_option
@must_reason
@json_option
def review(approval: str, policy_path: Path | None, token: str | None, reason: str, *, as_json: bool) -> None:
    """Note that you have looked at a request that was let pass by breaking the glass."""
    _act(policy_path, approval, (token, reason), lambda desk, *said: desk.review(*said), as_json=as_json)


@approvals.command()
@policy_option
@click.option("--seconds", type=float, default=None, help="Stop after so long; without it until Ctrl-C.")
@json_option
def watch(policy_path: Path | None, seconds: float | None, *, as_json: bool) -> None:
    """Follow live what is asked for and decided, by whatever process."""
    import contextlib

    policy = _people(policy_path)
    until = None if seconds is None else time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _with_desk(policy, lambda desk: _follow(desk, until, as_json=as_json))
        else:
            _with_desk(policy, lambda desk: _live(desk, until))


async def _follow(desk: Desk, until: float | None, *, as_json: bool) -> None:
    """Write each step as a line."""
    from tidegate.approvals.spec import State

    for item in reversed(await desk.list((State.PENDING,))):
        if not as_json:
            click.echo(f"{item.id} pending: {item.asker.name} asks, {', '.join(item.labels)}")
    seen = await desk.last()
    while until is None or time.monotonic() < until:
        for step in await desk.since(seen):
            seen = step.seq
            told = f"{step.approval} {step.what} by {step.actor} {step.reason}"
            click.echo(json.dumps(asdict(step)) if as_json else _text(told).plain.rstrip())
        await asyncio.sleep(LOOK)


async def _live(desk: Desk, until: float | None) -> None:
    """Show what waits as a table that stays up to date."""
    from rich.live import Live

    from tidegate.approvals.spec import State

    with Live(console=Console(), auto_refresh=False) as screen:
        while until is None or time.monotonic() < until:
            items = await desk.list((State.PENDING, State.APPROVED))
            screen.update(_table(items) if items else Text("Nothing waits for approval.", "dim"), refresh=True)
            await asyncio.sleep(LOOK)


# ── acting ───────────────────────────────────────────────────────────────────


def _act(
    policy_path: Path | None,
    approval: str,
    said: tuple[str | None, str],
    work: Callable[[Desk, str, Person, str], Awaitable[Item | Refusal]],
    *,
    as_json: bool,
) -> None:
    """Do something with an approval as an identified person; say what came of it. ``said``: the token, and why."""
    from tidegate import desk as desks
    from tidegate.approving import line
    from tidegate.state.approvals import Item

    policy = _people(policy_path)
    token, why = said[0], line(said[1])

    async def run(control: Control) -> tuple[str, Item | Refusal]:
        person = await _person(policy, control, token)

        async def act(desk: Desk) -> Item | Refusal:
            item = await _one(desk, approval)
            return await work(desk, item.id, person, why)

        return person.name, await _at_desk(control, act)

    name, found = _with_control(policy, run)
    if not isinstance(found, Item):
        raise click.ClickException(f"{approval}: {found}.")
    if as_json:
        click.echo(json.dumps({**desks.as_json(found, time.time()), "by": name}))
        return
    voted = f"{found.id} is {found.state}" if found.state != "pending" else f"{found.id} still needs others"
    click.echo(f"{voted}; recorded as decided by {name}.")


def _people(path: Path | None) -> People:
    """Read who may decide, and where; the packs are not needed, and loading them takes seconds."""
    from tidegate.policy.loading import people_of

    try:
        return people_of(policy_file(path))
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None


async def _person(policy: People, control: Control, token: str | None) -> Person:
    """Find out who acts. A token never shows in a message."""
    from tidegate.approvals.spec import Person
    from tidegate.model import Denial

    if token == "-":
        token = sys.stdin.readline()
    elif not token and sys.stdin.isatty():
        token = click.prompt("Your token", hide_input=True, err=True)
    if not token or not token.strip():
        raise click.ClickException(
            "found no token; accepted: a token of one of the policy's identities in TIDEGATE_TOKEN, or --token."
        )
    caller = await _identified(policy, control, token.strip())
    if isinstance(caller, Denial):
        raise click.ClickException(f"{caller.message} ({caller.reason})")
    return Person(caller.identity, caller.subject, caller.groups, caller.authenticated)


async def _identified(policy: People, control: Control, token: str) -> Caller | Denial:
    """Name the holder of a token as the gate does: what was taken back counts, and so do this gateway's own tokens."""
    from tidegate.identity.own import OwnKeys
    from tidegate.identity.verifier import Verifier
    from tidegate.state.revocations import Revocations
    from tidegate.state.signing import SigningKeys

    revocations = Revocations(control)
    own = OwnKeys(policy, SigningKeys(control)) if policy.admin.url else None
    verifier = Verifier(policy.identities, revoked=revocations.covers, own=own)
    try:
        await verifier.start()
        revocations.start()
        return await verifier.identify(token, time.time())
    finally:
        await verifier.close()
        revocations.close()


async def _one(desk: Desk, beginning: str) -> Item:
    found = await desk.find(beginning) if beginning.startswith("apr_") else ()
    if len(found) != 1:
        told = "the beginning of several" if found else "no approval"
        raise click.ClickException(f"{beginning}: found {told}; accepted: an id from `tidegate approvals list`.")
    return found[0]


def _with_desk[T](policy: People, work: Callable[[Desk], Awaitable[T]]) -> T:
    """Open the policy's control store and do some work at a desk of this process."""
    return _with_control(policy, lambda control: _at_desk(control, work))


async def _at_desk[T](control: Control, work: Callable[[Desk], Awaitable[T]]) -> T:
    from tidegate.desk import Desk

    desk = Desk(control)
    try:
        return await work(desk)
    finally:
        await desk.close()


def _with_control[T](policy: People, work: Callable[[Control], Coroutine[Any, Any, T]]) -> T:
    """Open the policy's control store and do some work with it."""
    from tidegate.state.control import Control, StateError

    control = Control(Path(policy.state.path))
    try:
        control.start()
        return asyncio.run(work(control))
    except StateError as error:
        raise click.ClickException(str(error)) from None
    finally:
        control.close()


# ── showing ──────────────────────────────────────────────────────────────────


def _console() -> Console:
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)  # a pipe has no width


def _state(item: Item) -> Text:
    text = Text(str(item.state), STYLES.get(item.state, "dim"))
    if item.review is not None:
        text.append(" glass broken", "bold red" if item.review == "open" else "dim")
    return text


def _table(items: tuple[Item, ...]) -> Table:
    from tidegate.desk import left

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("approval", "state", "left", "caller", "asks", "why it was held", "reason"):
        table.add_column(name, overflow="fold")
    for each in items:
        asks = " ".join(filter(None, (each.connection, each.endpoint, each.model)))
        words = (_seconds(left(each, time.time())), each.asker.name, asks, ", ".join(each.labels), each.reason)
        table.add_row(each.id, _state(each), *map(_text, words))
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _at(value: float | None) -> str:
    return "" if value is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def _view(item: Item, votes: tuple[Said, ...], history: tuple[Step, ...]) -> Group:
    from tidegate.desk import left

    facts = Table.grid(padding=(0, 2))
    needs = [
        f"{each.name}: {each.quorum} of {' and '.join(each.groups) if each.every else ' or '.join(each.groups)}"
        for each in item.demands
    ]
    rows: list[tuple[str, Any]] = [
        ("state", _state(item)),
        ("left", _seconds(left(item, time.time()))),
        ("caller", f"{item.asker.name} ({', '.join(sorted(item.asker.groups)) or 'no groups'})"),
        ("asks", f"{item.connection} {item.endpoint} {item.model or ''}  {item.method} {item.path}"),
        ("why it was held", ", ".join(item.labels)),
        ("reason", item.reason or "none given"),
        ("needs", "; ".join(needs)),
        ("a yes lets pass", f"{item.scope}, until {_at(item.use_by)}" if item.use_by else str(item.scope)),
        ("asked", _at(item.asked)),
        ("policy", item.policy_sha[:12]),
    ]
    for name, value in rows:
        facts.add_row(Text(name, "dim"), value if isinstance(value, Text) else _text(value))
    found = Table(box=None, pad_edge=False, header_style="bold", title="found in it", title_justify="left")
    for name in ("rule", "class", "where", "action"):
        found.add_column(name)
    for each in item.findings:
        found.add_row(*map(_text, each))
    steps = Table(box=None, pad_edge=False, header_style="bold", title="history", title_justify="left")
    for name in ("when", "what", "by", "reason"):
        steps.add_column(name)
    for step in history:
        steps.add_row(_at(step.at), step.what, _text(step.actor), _text(step.reason))
    yes = sum(each.answer == "yes" for each in votes)
    parts: list[Any] = [Text(item.id, "bold"), facts, Text(f"\n{yes} yes so far\n" if votes else "")]
    parts += [found, Text("")] if item.findings else []
    parts += [Text("the request, without what was found in it", "bold italic"), Text(_request(item)), Text(""), steps]
    return Group(*parts)


def _text(words: str) -> Text:
    """Return words as they are, without markup and without what a terminal would obey."""
    return Text("".join(char if char.isprintable() else "�" for char in words))


def _request(item: Item) -> str:
    if item.shown is None:
        return "cannot be shown: something in it cannot be masked (an attachment)"
    try:
        text = json.dumps(json.loads(item.shown), indent=2, ensure_ascii=False)
    except ValueError:
        text = item.shown.decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
