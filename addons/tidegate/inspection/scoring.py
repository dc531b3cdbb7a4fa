"""Add up what scored rules found in one field, by who speaks in it: one score, with its explanation.

A scored rule is a hint and no verdict: many harmless texts hold one. Only their sum, above the threshold of their pack,
is a finding. A field's score depends on its own text and role alone, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidegate.inspection.rules import Rule
from tidegate.model import Role, Score

WEIGHTS: Mapping[Role, float] = {
    Role.SYSTEM: 0.5,
    Role.USER: 1.0,
    Role.ASSISTANT: 0.5,
    Role.TOOL_RESULT: 1.5,
    Role.TOOL_DEFINITION: 1.0,
    Role.METADATA: 1.0,
    Role.OTHER: 1.0,
}
"""How much a hint counts, by who speaks. The operator's own prompt names its rules and forbids their disclosure; the
model's earlier words repeat what it was asked. Data that a tool or a search brought has no business giving orders."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The first match of a scored rule in a text. Positions count characters."""

    rule: Rule
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """A score that reached its threshold. ``mark`` is that of the rule that gave most."""

    mark: Mark
    score: Score


def weigh(marks: Iterable[Mark], role: Role) -> tuple[Weighed, ...]:
    """Return what the rules of each pack add up to in one field, where it reaches the pack's threshold; by pack name.

    ``marks`` hold each rule once. The parts of a score are sorted: most first, then by rule id.
    """
    packs: dict[str, list[Mark]] = {}
    for mark in marks:
        packs.setdefault(mark.rule.pack, []).append(mark)
    found = (_weigh(packs[pack], WEIGHTS[role]) for pack in sorted(packs))
    return tuple(each for each in found if each.score.total >= each.score.threshold)


def _weigh(marks: list[Mark], weight: float) -> Weighed:
    points = {mark.rule.id: round((mark.rule.score or 0.0) * weight, 3) for mark in marks}
    ordered = sorted(marks, key=lambda mark: (-points[mark.rule.id], mark.rule.id))
    parts = tuple((mark.rule.id, points[mark.rule.id]) for mark in ordered)
    # Rounded, so that 0.5 + 0.3 + 0.2 reaches 1 whatever the order of the additions.
    total = round(sum(value for _, value in parts), 3)
    return Weighed(ordered[0], Score(total, max(mark.rule.threshold for mark in marks), parts))
