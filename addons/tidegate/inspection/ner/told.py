"""What the model said of the texts of one request, as detectors that inspection asks like any other. Pure.

So its findings are laid over those of the rules, masked, counted and blocked where those are, and by the same actions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tidegate.dialects.fields import LeafKind
from tidegate.dialects.spec import Endpoint, is_exempt, is_source, role_of
from tidegate.inspection.ner.spec import Ner, NerSpan
from tidegate.inspection.proprietary.detector import CodedSpan
from tidegate.inspection.rules import Rule
from tidegate.streams.source import view

DATA = 256
"""ASCII characters without a space that are data, not prose: hashes, base64. A model would read them for nothing."""

_LETTERS = re.compile(r"[^\W\d_]{2}")
_SPACE = re.compile(r"\s")


def questions(ner: Ner, endpoint: Endpoint, body: object) -> tuple[str, ...]:
    """Return the texts of a parsed request body that the model is to read, as inspection will look at them, each once.

    JSON source is read with its escapes undone. Numbers and texts without two letters in a row are left out.
    """
    found: dict[str, None] = {}
    for leaf in endpoint.request.walk(body):
        if leaf.kind is LeafKind.NUMBER or is_exempt(leaf) or role_of(leaf, body) not in ner.roles:
            continue
        text = view(leaf.text) if is_source(leaf) and "\\" in leaf.text else leaf.text
        if _LETTERS.search(text) and not _is_data(text):
            found[text] = None
    return tuple(found)


def _is_data(text: str) -> bool:
    return len(text) > DATA and text.isascii() and _SPACE.search(text) is None


class Told:
    """A ``Detector`` of one class that finds what the model found; ``missed`` says whether all of it was asked for."""

    def __init__(self, rule: Rule, spans: Mapping[str, Sequence[NerSpan]]) -> None:
        own = ((text, [each for each in found if each.cls == rule.cls]) for text, found in spans.items())
        self._rule = rule
        self._spans = {text: found for text, found in own if found}
        self._asked: set[str] = set()

    @property
    def rule(self) -> Rule:
        """The rule that its findings name."""
        return self._rule

    @property
    def missed(self) -> bool:
        """Whether a text in which the model found something has not been looked at."""
        return len(self._asked) < len(self._spans)

    def may_find(self, _data: bytes) -> bool:
        """Say whether ``find`` could find anything."""
        return bool(self._spans)

    def find(self, text: str) -> Sequence[CodedSpan]:
        """Return what the model found in a whole text."""
        found = self._spans.get(text)
        if found is None:
            return ()
        self._asked.add(text)
        return [CodedSpan(self._rule, each.start, each.end) for each in found]
