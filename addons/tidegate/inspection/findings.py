"""Everything that is found in one whole text: the one function that whoever looks at texts outside an exchange calls.

The gate itself reads bodies and streams (``inspection.bodies``, ``streams.texts``); ``tidegate scan``,
``tidegate rules`` and ``scripts/bench --detection`` read texts, and all of them read them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidegate.inspection import attachments, data_urls, decoding
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

    What is found in an encoded part (``inspection.decoding``), or in the document that a data: URL holds
    (``inspection.attachments``), is reported at all of that part. Overlapping findings of different rules are all
    there. Hints are scored as in a user's words, in the text as it stands. Raises ``DetectorError`` where code of a
    detector fails.
    """
    found = [TextFinding(each.rule, each.start, each.end) for each in decoding.find_text(engine, text)]
    if "64," in text:  # as every data: URL in base64 has it
        found += _in_urls(engine, text, found)
    scored = engine.scorer.weigh(text, Role.USER) if engine.scorer is not None else ()
    found += [TextFinding(each.rule, each.start, each.end, each.score.total, each.score.hints) for each in scored]
    return tuple(sorted(found, key=lambda each: (each.start, -each.end, each.rule.id)))


def _in_urls(engine: Engine, text: str, known: Sequence[TextFinding]) -> Iterator[TextFinding]:
    """Return what is found in the documents of data: URLs, each rule once for a URL."""
    for start, end, data in data_urls.urls(text):
        told = {each.rule.id for each in known if each.start < end and start < each.end}
        for part in attachments.extract(data).texts:
            for each in decoding.find_text(engine, part.text):
                if each.rule.id not in told:
                    told.add(each.rule.id)
                    yield TextFinding(each.rule, start, end)
