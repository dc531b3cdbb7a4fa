"""Everything that is found in one whole text: the one function that whoever looks at texts outside an exchange calls.

The gate itself reads bodies and streams (``inspection.bodies``, ``streams.texts``); ``tidegate scan``,
``tidegate rules`` and ``scripts/bench --detection`` read texts, and all of them read them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidegate.inspection import attachments, decoding, urls
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule

CERTAIN = 1.0
"""The score of a rule that has none of its own: its pattern, validators and examples are all it has to say."""


@dataclass(frozen=True, slots=True)
class TextFinding:
    """A rule found something in a text. ``start`` and ``end`` count its characters; ``score`` is from 0 to 1.

    The text itself is not part of it.
    """

    rule: Rule
    start: int
    end: int
    score: float = CERTAIN


def inspect_text(engine: Engine, text: str) -> tuple[TextFinding, ...]:
    """Return everything the rules find in a whole text, decoded or not, sorted by start, longest first, then rule id.

    What is found in an encoded part (``inspection.decoding``), or in the document that a data: URL holds
    (``inspection.attachments``), is reported at all of that part. Overlapping findings of different rules are all
    there. Raises ``DetectorError`` where code of a detector fails.
    """
    found = [TextFinding(each.rule, each.start, each.end) for each in decoding.find_text(engine, text)]
    if "64," in text:  # as every data: URL in base64 has it
        found += _in_urls(engine, text, found)
        found.sort(key=lambda each: (each.start, -each.end, each.rule.id))
    return tuple(found)


def _in_urls(engine: Engine, text: str, known: Sequence[TextFinding]) -> Iterator[TextFinding]:
    """Return what is found in the documents of data: URLs, each rule once for a URL."""
    for start, end, data in urls.urls(text):
        told = {each.rule.id for each in known if each.start < end and start < each.end}
        for part in attachments.extract(data).texts:
            for each in decoding.find_text(engine, part.text):
                if each.rule.id not in told:
                    told.add(each.rule.id)
                    yield TextFinding(each.rule, start, end)
