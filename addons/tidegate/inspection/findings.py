"""Everything that is found in one whole text: the one function that whoever looks at texts outside an exchange calls.

The gate itself reads bodies and streams (``inspection.bodies``, ``streams.texts``); ``tidegate scan``,
``tidegate rules`` and ``scripts/bench --detection`` read texts, and all of them read them here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.inspection import decoding
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.model import Role

CERTAIN = 1.0
"""The score of a rule that has none of its own: its pattern, validators and examples are all it has to say."""


@dataclass(frozen=True, slots=True)
class TextFinding:
    """A rule found something in a text. ``start`` and ``end`` count its characters; ``score`` is from 0 to 1.

    ``hints`` are what a score is made of: rule ids, and what each added. The text itself is not part of it.
    """

    rule: Rule
    start: int
    end: int
    score: float = CERTAIN
    hints: tuple[tuple[str, float], ...] = ()


def inspect_text(engine: Engine, text: str) -> tuple[TextFinding, ...]:
    """Return everything the rules find in a whole text, decoded or not, sorted by start, longest first, then rule id.

    What is found in an encoded part (``inspection.decoding``) is reported at all of that part. Overlapping findings of
    different rules are all there. Hints are scored as in a user's words, in the text as it stands. Raises
    ``DetectorError`` where code of a detector fails.
    """
    found = [TextFinding(each.rule, each.start, each.end) for each in decoding.find_text(engine, text)]
    scored = engine.scorer.weigh(text, Role.USER) if engine.scorer is not None else ()
    if not scored:
        return tuple(found)
    found += [TextFinding(each.rule, each.start, each.end, each.score.total, each.score.hints) for each in scored]
    return tuple(sorted(found, key=lambda each: (each.start, -each.end)))
