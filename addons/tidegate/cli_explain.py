"""``tidegate explain``: why a request is allowed or denied, for a request in a file or one that was recorded."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidegate.cli_common import load_policy, policy_file, policy_option, show_faults
from tidegate.model import Caller, Head, Peer
from tidegate.policy.policy import Policy, PolicyError

if TYPE_CHECKING:
    from tidegate.explaining import Explained, Ruled
    from tidegate.policy.schema import Document


@dataclass(frozen=True, slots=True)
class Request:
    """A request to explain. ``notes`` say what was assumed of it."""

    method: str
    path: str
    body: bytes
    caller: Caller
    notes: tuple[str, ...] = ()


@click.command()
@click.argument("request")
@policy_option
@click.option("--as", "subject", metavar="[IDENTITY:]NAME", help="Who asks; of a recorded exchange, whoever asked.")
@click.option("--groups", multiple=True, metavar="IDENTITY:GROUP", help="Groups of the caller; repeat, or use commas.")
@click.option("--claims", multiple=True, metavar="NAME=VALUE", help="A claim of the caller; repeat.")
@click.option("--strength", multiple=True, metavar="WORD", help="An acr or amr value of the caller; repeat.")
@click.option("--signed-in", metavar="TIME", help="When the caller signed in, as 2026-11-28T09:00; default: just now.")
@click.option("--at", "moment", metavar="TIME", help="When the request comes, as 2026-11-28T22:00+01:00; default: now.")
@click.option(
    "--from", "source", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="From where it comes."
)
@click.option("--to", metavar="[METHOD ]PATH", help="Where it is sent, as /openai/v1/chat/completions.")
@click.option(
    "--recording", type=click.Path(path_type=Path), default=None, help="The recording, instead of the policy's."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def explain(  # noqa: PLR0913 - each is an option
    request: str,
    *,
    policy_path: Path | None,
    subject: str | None,
    groups: Sequence[str],
    claims: Sequence[str],
    strength: Sequence[str],
    signed_in: str | None,
    moment: str | None,
    source: str,
    to: str | None,
    recording: Path | None,
    as_json: bool,
) -> None:
    """Say which binding, rule and condition decide on a request, and what would have to change.

    REQUEST is a file with the JSON body of a request, - for standard input, or the id of a recorded exchange. Ends
    with 0 where it is allowed and with 3 where it is denied. Nothing is sent or recorded.
    """
    from tidegate.explaining import explain as explained
    from tidegate.policy.loading import read_document

    policy = load_policy(policy_path)
    try:
        document = read_document(policy_file(policy_path))
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None
    now = time.time() if moment is None else _time(moment, "--at")
    given = _caller(
        policy, subject, groups, claims, strength, now if signed_in is None else _time(signed_in, "--signed-in")
    )
    if request == "-" or Path(request).is_file():
        asked = _from_file(policy, request, given, to)
    else:
        asked = _from_recording(policy, document, request, given, recording)
    head = Head(asked.method, asked.path, (("content-type", "application/json"),), None, peer=Peer(source))
    found = explained(policy, document, head, asked.caller, asked.body, now)
    if as_json:
        click.echo(json.dumps({"request": _told(asked), **asdict(found)}, default=str))
    else:
        Console().print(view(found, asked))
    raise click.exceptions.Exit(0 if found.allowed else 3)


def _told(asked: Request) -> dict[str, object]:
    who = asked.caller
    return {
        "method": asked.method, "path": asked.path, "caller": f"{who.identity}:{who.subject}",
        "groups": sorted(who.groups), "notes": list(asked.notes),
    }  # fmt: skip


# ── what is asked ────────────────────────────────────────────────────────────


def _time(text: str, option: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("found no time; accepted: 2026-11-28T22:00+01:00", param_hint=option) from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _caller(
    policy: Policy,
    subject: str | None,
    groups: Sequence[str],
    claims: Sequence[str],
    strength: Sequence[str],
    since: float,
) -> Caller | None:
    """Make the caller that the options name; ``None`` where they name nobody."""
    if subject is None:
        if groups or claims or strength:
            raise click.BadParameter(
                "found no caller; accepted: --as NAME beside groups, claims and strength", param_hint="--as"
            )
        return None
    names = [each.name for each in policy.identities] if policy.identities is not None else ["none"]
    identity, colon, name = subject.partition(":")
    if not colon or identity not in names:
        if len(names) != 1 and not colon:
            raise click.BadParameter(
                f"found {subject}; accepted: IDENTITY:NAME with {' or '.join(names)}", param_hint="--as"
            )
        identity, name = (identity, name) if colon and identity in names else (names[0], subject)
    spelled = [one.strip() for each in groups for one in each.split(",") if one.strip()]
    pairs = [each.partition("=") for each in claims]
    if any(not equals for _, equals, _ in pairs):
        raise click.BadParameter("found a claim without a value; accepted: NAME=VALUE", param_hint="--claims")
    return Caller(
        identity,
        name,
        frozenset(each if ":" in each else f"{identity}:{each}" for each in spelled),
        strength=frozenset(strength),
        authenticated=since,
        claims=frozenset((name, value) for name, _, value in pairs),
    )


def _from_file(policy: Policy, name: str, caller: Caller | None, to: str | None) -> Request:
    if caller is None:
        raise click.BadParameter("found nobody; accepted: --as NAME, who asks", param_hint="--as")
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    if to is not None:
        method, space, path = to.partition(" ")
        return Request(method, path, data, caller) if space else Request("POST" if data else "GET", to, data, caller)
    guessed = _guess(policy, data)
    if guessed is None:
        raise click.BadParameter("found no address; accepted: --to /openai/v1/chat/completions", param_hint="--to")
    return Request("POST", guessed, data, caller, (f"taken as POST {guessed}; --to names another address",))


def _guess(policy: Policy, data: bytes) -> str | None:
    """Find the address whose dialect knows most of a body; of several, the policy's first."""
    try:
        body = json.loads(data)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    best, found = 0, None
    for connection in policy.connections.values():
        for endpoint in policy.dialects[connection.dialect].endpoints.values():
            plain = [each for each in endpoint.paths if "{" not in each and "*" not in each]
            if connection.prefix is None or "POST" not in endpoint.methods or not plain or endpoint.socket is not None:
                continue
            known = {each.pointer[0] for each in endpoint.request.select(body) if each.pointer}
            asks = endpoint.asked
            for names in (asks.model, asks.stream, asks.max_output):
                known |= {each.pointer[0] for each in names.select(body) if each.pointer}
            if len(known) > best:
                best, found = len(known), f"{connection.prefix}{plain[0]}"
    return found


def _from_recording(
    policy: Policy, document: Document, prefix: str, given: Caller | None, recording: Path | None
) -> Request:
    """Take the request of a recorded exchange, as it was kept: masked, if anything was masked."""
    from tidegate.evidence import queries
    from tidegate.evidence.records import RecordingError
    from tidegate.replay.flows import client_form, load_recording

    path = recording if recording is not None else Path(policy.recording.path)
    try:
        row = queries.show(path, prefix)
        (flow,) = load_recording(path, [row["id"]])
    except RecordingError as error:
        raise click.ClickException(f"{prefix} is no file, and no exchange can be read: {error}") from None
    client_form(flow)
    notes = [f"exchange {row['id']}, as it was kept"]
    caller = given
    if caller is None:
        roles = next(
            (each["detail"] for each in row["decisions"] if each["stage"] == "grant" and each["result"] == "allow"), ""
        )
        identity, subject = row["identity"] or "none", row["caller"] or "anyone"
        groups = _groups(document, set(roles.split(",")), f"{identity}:{subject}") if roles else frozenset()
        caller = Caller(identity, subject, groups)
        notes.append("groups are not recorded: those are taken that the policy binds to the roles it was granted by")
    body = flow.request.get_content(strict=False) or b""
    return Request(flow.request.method, flow.request.path, body, caller, tuple(notes))


def _groups(document: Document, roles: set[str], subject: str) -> frozenset[str]:
    """Name a group for each role, but for those that the caller has by name."""
    found: set[str] = set()
    for binding in document.bindings:
        here = {str(node.value) for node in binding.roles} & roles
        if here and binding.groups and subject not in {str(node.value) for node in binding.subjects}:
            found.add(str(binding.groups[0].value))
    return frozenset(found)


# ── how it is shown ──────────────────────────────────────────────────────────


def view(found: Explained, asked: Request) -> RenderableType:
    """Render an explanation for a terminal."""
    parts: list[RenderableType] = [_panel(found, asked)]
    if found.rules:
        parts.append(_table(found))
    if found.changes:
        parts.append(Text("What would have to change", style="bold"))
        parts += [Text(f"  - {each}") for each in found.changes]
    parts += [Text(f"not told: {each}", style="yellow") for each in found.open]
    return Group(*parts)


def _panel(found: Explained, asked: Request) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    who = asked.caller
    grid.add_row("caller", Text(f"{who.identity}:{who.subject}  {' '.join(sorted(who.groups))}"))
    grid.add_row("asks", Text(f"{asked.method} {asked.path}"))
    if found.connection:
        grid.add_row("which is", Text(f"{found.connection}/{found.endpoint}, model {found.model or 'not named'}"))
    roles = [f"{role} (by {', '.join(by)})" for role, by in found.roles]
    grid.add_row("roles", Text("\n".join(roles) or "none"))
    grid.add_row("decided", Text("\n".join(_decision(each) for each in found.decisions)))
    if found.reason:
        grid.add_row("denied", Text(f"{found.reason}: {found.message}", style="red"))
    for each in asked.notes:
        grid.add_row("note", Text(each, style="dim"))
    title, style = ("allowed", "green") if found.allowed else ("denied", "red")
    return Panel(grid, title=title, border_style=style, expand=False)


def _decision(each: object) -> str:
    told = asdict(each)  # type: ignore[call-overload]  # a Decision
    return " ".join(str(told[name]) for name in ("stage", "result", "reason", "detail") if told[name])


def _table(found: Explained) -> Table:
    table = Table(title="Rules, those of the caller's roles first", title_justify="left", show_lines=False)
    for name in ("rule", "line", "says", "because"):
        table.add_column(name, overflow="fold")
    for each in sorted(found.rules, key=lambda rule: not rule.bound):
        style = "" if each.bound else "dim"
        table.add_row(
            Text(each.rule, style=style),
            Text(str(each.line), style=style),
            _says(each),
            Text(_because(each), style=style),
        )
    return table


def _says(each: Ruled) -> Text:
    applies = not each.condition or (each.kind == "allow" and each.limit)
    if not each.bound:
        return Text("role not bound", style="dim")
    if each.mode != "enforce":
        return Text(f"{each.mode}: would {each.kind}" if applies else each.mode, style="yellow")
    if not applies:
        return Text("does not apply", style="dim")
    if each.kind == "deny":
        return Text("DENIES", style="bold red")
    return Text("covers it, limit passed", style="red") if each.limit else Text("allows", style="bold green")


def _because(each: Ruled) -> str:
    if not each.condition:
        return "every condition holds"
    return f"{each.condition}: found {each.found}; accepted: {each.accepted}"
