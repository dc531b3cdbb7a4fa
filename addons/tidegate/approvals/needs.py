"""Which approvals does a judged request need, and why? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from tidegate.approvals.spec import Approvals, Hours, Need, Sends, Triggers
from tidegate.identity.permission import matches
from tidegate.model import ACTING, Action, Asked, Finding


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request.

    ``approve`` are the names that allow rules ask for, ``at`` is a Unix time. ``models`` and ``counts``: it could name
    a model, or a number of tokens.
    """

    asked: Asked
    findings: Sequence[Finding]
    approve: Sequence[str]
    size: int
    at: float | None
    models: bool = True
    counts: bool = True


def needed(approvals: Approvals, facts: Facts) -> tuple[Need, ...]:
    """Return what must be approved before a request may pass; nothing where it may pass by itself.

    What is not known (a model, a number of tokens, the time) needs approval where the known could. A name that an allow
    rule asks for and nobody knows cannot be: the policy would not have loaded.
    """
    found = []
    for name, each in approvals.entries.items():
        labels = tuple(dict.fromkeys(_labels(each.when, facts, masks=each.sends is Sends.REDACTED)))
        if name in facts.approve:
            labels = ("permission", *labels)
        if labels:
            found.append(Need(each, labels))
    return tuple(found)


def outside(hours: Hours, at: float | None) -> bool:
    """Say whether a time lies outside of hours. An end at or before the start is on the next day."""
    if at is None:
        return True
    local = datetime.fromtimestamp(at, ZoneInfo(hours.zone))
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if hours.start < hours.end:
        return not (day in hours.days and hours.start <= minute < hours.end)
    late = day in hours.days and minute >= hours.start
    early = (day - 1) % 7 in hours.days and minute < hours.end
    return not (late or early)


def _labels(when: Triggers, facts: Facts, *, masks: bool) -> list[str]:
    acts = ACTING if masks else (Action.APPROVE,)
    labels = [
        f"class {each.cls}" if each.cls in when.classes else f"rule {each.rule}"
        for each in facts.findings
        if (each.action in acts and each.cls in when.classes) or each.rule in when.rules
    ]
    labels += [f"tool {each}" for each in when.tools if any(_names(each, tool) for tool in facts.asked.tools)]
    labels += [f"model {each}" for each in when.models if _is_model(each, facts)]
    most = facts.asked.max_output
    if when.output_tokens is not None and facts.counts and (most is None or most > when.output_tokens):
        labels.append(f"more than {when.output_tokens} output tokens")
    if when.body is not None and facts.size > when.body:
        labels.append(f"more than {when.body} bytes")
    if when.hours is not None and outside(when.hours, facts.at):
        labels.append("the time of day")
    return labels


def _names(pattern: str, name: str) -> bool:
    """A pattern also covers other spellings, and a name that is not plain: who reads it upstream may fold it."""
    plain = 0 < len(name) <= 256 and name.isascii() and name.isprintable() and " " not in name
    return not plain or matches(pattern.lower(), name.lower())


def _is_model(pattern: str, facts: Facts) -> bool:
    model = facts.asked.model
    return facts.models if model is None else _names(pattern, model)
