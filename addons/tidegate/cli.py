"""The command line: ``tidegate run``, ``check``, ``login``, ``setup``, ``flows`` and what else there is."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from tidegate import __version__, cli_flows, cli_proprietary
from tidegate.cli_approvals import approvals
from tidegate.cli_budgets import budgets
from tidegate.cli_common import load_policy, policy_file, policy_option, show_faults
from tidegate.cli_evidence import evidence, verify
from tidegate.cli_explain import explain
from tidegate.cli_export import export
from tidegate.cli_login import login, logout
from tidegate.cli_recording import recording_option, told
from tidegate.cli_recording import where as _recording
from tidegate.cli_revoke import revoke
from tidegate.cli_rules import rules
from tidegate.cli_scan import scan
from tidegate.cli_setup import setup
from tidegate.policy.policy import Policy, PolicyError

if TYPE_CHECKING:
    from tidegate.replay.send import Sent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """tidegate: a data-aware gateway for model inference."""


main.add_command(scan)
main.add_command(explain)
main.add_command(login)
main.add_command(logout)
main.add_command(setup)
main.add_command(rules)
main.add_command(revoke)
main.add_command(budgets)
main.add_command(approvals)
main.add_command(verify)
main.add_command(evidence)
main.add_command(export)


@main.command()
@policy_option
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="Where clients connect: HOST:PORT.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    help="reverse (default), regular (explicit proxy) or transparent; several with @PORT: --mode regular@8081.",
)
@click.option("--sample-model", is_flag=True, help="Start the built-in sample model too (no key, no network).")
@click.option("--confdir", default="~/.mitmproxy", show_default=True, help="Where mitmproxy's CA is kept.")
@click.option("--set", "options", multiple=True, metavar="NAME=VALUE", help="A mitmproxy option, as in mitmdump.")
@click.option(
    "--admin",
    default=None,
    metavar="[HOST]:PORT",
    help="Serve health, metrics, reload and the token service here; without HOST only to this machine.",
)
def run(
    policy_path: Path | None,
    listen: str,
    modes: Sequence[str],
    sample_model: bool,
    confdir: str,
    options: Sequence[str],
    admin: str | None,
) -> None:
    """Run the gate."""
    from tidegate import running

    host, port = _listen(listen)
    settings = running.Settings(
        policy=policy_file(policy_path),
        host=host,
        port=port,
        modes=tuple(modes) or ("reverse",),
        confdir=confdir,
        options=tuple(options),
        sample_model=sample_model,
        admin=None if admin is None else _listen(f"127.0.0.1{admin}" if admin[:1] == ":" else admin, "--admin"),
    )
    try:
        asyncio.run(running.run(settings))
    except PolicyError as error:
        sys.exit(show_faults(error))
    except running.StartError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@policy_option
@click.option("--strict", is_flag=True, help="End with 2 if there is any notice.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def check(policy_path: Path | None, *, strict: bool, as_json: bool) -> None:
    """Report every fault of the policy, its packs and its dialects, and every rule of a role that does nothing.

    Ends with 1 where there is a fault. Rules that cannot be reached, repeat or contradict others are notices.
    """
    from tidegate.policy.lint import lint
    from tidegate.policy.loading import read_document

    policy = load_policy(policy_path)
    document = read_document(policy_file(policy_path))
    notices = lint(policy.file, document, policy.connections, policy.dialects, policy.permissions)
    if as_json:
        told = {"file": policy.file, "sha256": policy.sha256, "attention": policy.warnings}
        click.echo(json.dumps({**told, "notices": [asdict(each) for each in notices]}))
    else:
        _say_sound(policy, [str(each) for each in notices])
    raise click.exceptions.Exit(2 if strict and notices else 0)


def _say_sound(policy: Policy, notices: Sequence[str]) -> None:
    console = Console()
    console.print(
        f"{policy.file} is sound: {len(policy.connections)} connections, {len(policy.engine.rules)} rules, "
        f"{len(policy.dialects)} dialects; sha256 {policy.sha256}.",
        highlight=False,
        soft_wrap=True,
    )
    for warning in policy.warnings:
        console.print(f"attention: {warning}", style="yellow", highlight=False, soft_wrap=True)
    for notice in notices:
        console.print(f"notice: {notice}", style="cyan", markup=False, highlight=False, soft_wrap=True)


@main.group()
def policy() -> None:
    """Help with writing policies."""


@policy.command("schema")
def policy_schema() -> None:
    """Print the JSON Schema of policy files, for editors: the shipped one is rules/policy.schema.json."""
    from tidegate.policy.json_schema import schema

    click.echo(json.dumps(schema(), indent=2))


for each in (cli_proprietary.fingerprint, cli_proprietary.canary, cli_proprietary.allow):
    rules.add_command(each)


@main.group()
def flows() -> None:
    """Look at recorded exchanges."""


@flows.command("list")
@policy_option
@recording_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--outcome", help="answered, denied, aborted or failed.")
@click.option("--caller", help="A subject, or identity:subject.")
@click.option("--connection")
@click.option("--rule", help="Exchanges in which this rule found something.")
@click.option("--since", help="For example 2h, 3d or 2026-11-01.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def flows_list(recording: Path | None, policy_path: Path | None, as_json: bool, **filters: str | int | None) -> None:
    """List exchanges, newest first."""
    from tidegate.evidence import queries

    rows = _reading(lambda: queries.list_flows(_recording(recording, policy_path), **filters))  # type: ignore[arg-type]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
    else:
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=200)  # a pipe has no width; nothing is lost in it
        console.print(queries.table(rows, console.width))


for each in cli_flows.COMMANDS:
    flows.add_command(each)


@flows.command("show")
@click.argument("exchange")
@policy_option
@recording_option
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def flows_show(exchange: str, recording: Path | None, policy_path: Path | None, *, as_json: bool) -> None:
    """Show one exchange: decisions, findings (rule and place, never a value), bodies as kept.

    EXCHANGE is an id, or the beginning of one.
    """
    from tidegate.replay import show

    path = _recording(recording, policy_path)
    details = _reading(lambda: show.details(path, exchange))
    _reading(lambda: told(path, "read", f"flows show {details['id']}"))
    if as_json:
        click.echo(json.dumps(details))
    else:
        Console().print(show.view(details))


def _reading[T](read: Callable[[], T]) -> T:
    """Turn what is wrong with a recording into one sentence."""
    from tidegate.evidence.records import RecordingError

    try:
        return read()
    except RecordingError as error:
        raise click.ClickException(str(error)) from None


@main.group()
def replay() -> None:
    """Replay recorded exchanges with mitmproxy's own engine."""


@replay.command("send")
@click.argument("exchanges", nargs=-1)
@policy_option
@recording_option
@click.option("--as", "subject", metavar="IDENTITY:NAME", required=True, help="The caller of the replay.")
@click.option("--group", "groups", multiple=True, help="A group of that caller, without its identity; repeat.")
@click.option("--live", is_flag=True, help="Really send to the model provider; without it nothing is sent.")
def replay_send(
    exchanges: Sequence[str],
    policy_path: Path | None,
    recording: Path | None,
    subject: str,
    groups: Sequence[str],
    live: bool,
) -> None:
    """Send recorded requests through the gate again, as they were kept, for a caller named here.

    EXCHANGES are ids or their beginnings; without any, every request of the recording is sent.
    """
    from tidegate.building import build_gate
    from tidegate.model import Caller
    from tidegate.replay.flows import load_recording
    from tidegate.replay.send import send, table

    identity, colon, name = subject.partition(":")
    if not colon or not name:
        raise click.BadParameter(f"found {subject!r}; accepted: identity:name, as in local:alice", param_hint="--as")
    caller = Caller(identity, name, frozenset(f"{identity}:{group}" for group in groups))
    path = _recording(recording, policy_path)

    async def replayed() -> list[Sent]:
        gate = build_gate(policy_file(policy_path), replay_caller=caller)
        try:
            await gate.start_model()
            return await send(load_recording(path, list(exchanges) or None), gate.addon, live=live)
        finally:
            await gate.close()

    try:
        results = _reading(lambda: asyncio.run(replayed()))
    except PolicyError as error:
        sys.exit(show_faults(error))
    Console().print(table(results))


@replay.command("serve")
@click.argument("exchanges", nargs=-1)
@policy_option
@recording_option
@click.option("--listen", default="127.0.0.1:8090", show_default=True, help="HOST:PORT.")
@click.option("--ignore-content", is_flag=True, help="Match method and path alone: for requests that were redacted.")
def replay_serve(
    exchanges: Sequence[str], policy_path: Path | None, recording: Path | None, listen: str, *, ignore_content: bool
) -> None:
    """Answer requests from a recording; nothing is ever forwarded.

    Point a client's base URL here instead of at the gate, with the same path.
    """
    from tidegate.replay.flows import load_recording
    from tidegate.replay.serve import serve

    host, port = _listen(listen)
    path = _recording(recording, policy_path)

    def ready(count: int) -> None:
        click.echo(f"replaying {count} recorded answers of {path} on http://{listen}; nothing is forwarded", err=True)

    loaded = _reading(lambda: load_recording(path, list(exchanges) or None))
    _reading(lambda: asyncio.run(serve(loaded, host=host, port=port, ignore_content=ignore_content, ready=ready)))


@main.command("sample-model")
@click.option("--port", type=int, default=8091, show_default=True)
@click.option("--delay", type=float, default=0.02, show_default=True, help="Seconds between two events of a stream.")
def sample_model_command(port: int, delay: float) -> None:
    """Run the built-in sample model alone: both dialects, made-up answers, for a first try and for tests."""
    import contextlib

    from tidegate.sample_model import serve

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(port, delay))


def _listen(text: str, option: str = "--listen") -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise click.BadParameter(f"found {text!r}; accepted: HOST:PORT, as in 127.0.0.1:8080", param_hint=option)
    return host.strip("[]"), int(port)
