"""What a person reads when the gate starts: one panel on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tidegate.inspection.ner.spec import Ner
from tidegate.model import Action, Direction, Mode
from tidegate.policy.policy import (
    CertificateIdentity,
    Identity,
    OidcIdentity,
    Policy,
    SamlIdentity,
    SourceIdentity,
    Unlisted,
)


def announce(policy: Policy, *, modes: Sequence[str], problems: Sequence[str] = (), web: bool = False) -> None:
    """Print mode, connections, rules, what is enforced and what is only observed."""
    Console(stderr=True).print(panel(policy, modes=modes, problems=problems, web=web))


def panel(policy: Policy, *, modes: Sequence[str], problems: Sequence[str] = (), web: bool = False) -> Panel:
    """Build the panel of ``announce``."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("policy", f"{policy.file}  [dim]sha256 {policy.sha256[:12]}[/]")
    table.add_row("listens", "\n".join(modes))
    table.add_row("callers", _callers(policy))
    table.add_row("connections", "\n".join(_connection_lines(policy)))
    table.add_row("rules", _rules(policy))
    table.add_row("prompts", _actions(policy, Direction.PROMPT))
    table.add_row("answers", _actions(policy, Direction.RESPONSE))
    if policy.ner is not None:
        table.add_row("local model", _local_model(policy.ner))
    table.add_row("recording", f"{policy.recording.mode}, bodies {policy.recording.keep}, in {policy.recording.path}")
    if any(endpoint.makes.paths for each in policy.dialects.values() for endpoint in each.endpoints.values()):
        days = policy.state.retain / 86400
        table.add_row("state", f"who made what is stored at a provider, for {days:g} days, in {policy.state.path}")
    warnings = [*policy.warnings, *problems, *_warnings(policy, web)]
    if warnings:
        table.add_row("[yellow]attention[/]", "\n".join(f"[yellow]{each}[/]" for each in warnings))
    enforced = policy.mode is Mode.ENFORCE
    title = "tidegate enforces" if enforced else "tidegate only OBSERVES: nothing is blocked or masked"
    return Panel(table, title=title, border_style="green" if enforced else "red", expand=False)


def _callers(policy: Policy) -> str:
    if policy.identities is None:
        return "[red]identity: none - everybody who reaches this port is let in[/]"
    return "\n".join(f"{each.name}: {_identity(each)}" for each in policy.identities)


def _identity(identity: Identity) -> str:
    if isinstance(identity, OidcIdentity):
        return f"OIDC {identity.issuer}"
    if isinstance(identity, SamlIdentity):
        return f"SAML, by {identity.metadata}"
    if isinstance(identity, SourceIdentity):
        return f"[yellow]whoever connects from {', '.join(identity.networks)}[/]"
    return "client certificates" if isinstance(identity, CertificateIdentity) else "static tokens"


def _connection_lines(policy: Policy) -> list[str]:
    lines = []
    for each in policy.connections.values():
        origin = each.upstream
        served = f"{each.prefix}/... -> " if each.prefix is not None else ""
        credential = "" if each.credential else "  [dim]no credential[/]"
        lines.append(f"{each.name} ({each.dialect}): {served}{origin.scheme}://{origin.host}:{origin.port}{credential}")
    return lines


def _rules(policy: Policy) -> str:
    packs: dict[str, int] = {}
    for rule in policy.engine.rules:
        packs[rule.pack] = packs.get(rule.pack, 0) + 1
    text = ", ".join(f"{name} {count}" for name, count in sorted(packs.items()))
    observed = sum(rule.observe for rule in policy.engine.rules)
    return f"{sum(packs.values())} ({text})" + (f"\n[yellow]{observed} of them only observe[/]" if observed else "")


def _actions(policy: Policy, direction: Direction) -> str:
    pairs = sorted((cls, act) for (cls, way), act in policy.actions.items() if way is direction)
    return ", ".join(f"{cls}: {act}" + (" [dim](recorded only)[/]" if act is Action.FLAG else "") for cls, act in pairs)


def _local_model(ner: Ner) -> str:
    labels = ", ".join(f"{label}: {cls}" for label, cls in ner.classes)
    waits = f"{ner.budget * 1000:g} ms, late: {ner.late}, {ner.workers} worker{'s' * (ner.workers > 1)}"
    return f"{ner.model} reads prompts ({labels}; {waits})"


def _warnings(policy: Policy, web: bool) -> list[str]:
    found = []
    if policy.unlisted is Unlisted.PASS:
        found.append("unlisted: pass - hosts that no connection names are forwarded uninspected")
    if web:
        found.append("mitmweb: whoever opens its page is an administrator and can switch everything off")
    return found
