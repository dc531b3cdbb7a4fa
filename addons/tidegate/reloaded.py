"""What is said and recorded of a reload, and what of a policy cannot change while the gate runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from tidegate.gateway import Gateway
from tidegate.policy.policy import Policy, PolicyError

SHOWN = 20
"""Faults that are shown on the terminal and logged; `tidegate check` shows all."""
KIND = "policy"
"""The kind of the events in the recording."""

log = logging.getLogger("tidegate")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload that came into force. ``old`` and ``new`` are the digests of the policies; ``kept`` did not change."""

    cause: str
    old: str
    new: str
    kept: tuple[str, ...] = ()


def fixed(before: Policy, after: Policy) -> tuple[Policy, tuple[str, ...]]:
    """Return the new policy with what cannot change while the gate runs, and sentences that name it."""
    kept: list[str] = []
    if after.recording.path != before.recording.path:
        kept.append(f"recording.path stays {before.recording.path} until the gate is started again")
    if after.state != before.state:
        kept.append(f"state stays as it was, in {before.state.path}, until the gate is started again")
    recording = replace(after.recording, path=before.recording.path)
    return replace(after, recording=recording, state=before.state), tuple(kept)


def tell(addon: Gateway, found: Reloaded, problems: Sequence[str] = ()) -> None:
    """Log and record that another policy is in force."""
    same = found.old == found.new
    result = "unchanged" if same else "reloaded"
    log.info(
        json.dumps({
            "event": "policy", "result": result, "cause": found.cause, "old": found.old, "new": found.new,
            **({"kept": list(found.kept)} if found.kept else {}),
        })
    )  # fmt: skip
    addon.recorder.event(KIND, f"{result} ({found.cause}): {found.old} -> {found.new}")
    table = Text(f"{addon.policy.file}\nsha256 {found.old[:12]} -> {found.new[:12]}, by {found.cause}")
    for each in (*found.kept, *addon.policy.warnings, *problems):
        table.append(f"\n{each}", style="yellow")
    title = "policy read again: nothing has changed" if same else "another policy is in force"
    Console(stderr=True).print(Panel(table, title=title, border_style="green", expand=False))


def refuse(addon: Gateway, error: PolicyError, cause: str) -> None:
    """Log and record that a policy has faults and the old one stays."""
    here, faults = addon.policy.sha256, [str(each) for each in error.faults]
    log.error(
        json.dumps({
            "event": "policy", "result": "refused", "cause": cause, "in_force": here, "faults": faults[:SHOWN],
            "count": len(faults),
        })
    )  # fmt: skip
    addon.recorder.event(KIND, f"refused ({cause}): {len(faults)} faults, {here} stays in force")
    lines = Text("\n".join(faults[:SHOWN]), style="red")
    if len(faults) > SHOWN:
        lines.append(f"\nand {len(faults) - SHOWN} more (tidegate check tells)")
    lines.append(f"\nthe policy with sha256 {here[:12]} stays in force", style="bold")
    Console(stderr=True).print(
        Panel(lines, title="the changed policy was NOT loaded", border_style="red", expand=False)
    )
