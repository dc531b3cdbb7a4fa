"""From words with classes to findings, and from a text to the pieces of it that fit the model. Pure.

Law: whatever is cut, a word that a piece holds whole is read, and its span counts characters of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tidegate.inspection.ner.spec import NerSpan

CHARS_PER_TOKEN = 3
"""Prose has four to five characters a token, other text fewer; where it has fewer still, the tokenizer cuts again."""
OVERLAP = 8
"""An eighth of a piece is read twice, so that a name at its edge stands whole in one of the two: 96 characters."""

_EDGE = re.compile(r"\s")
_JOINS = re.compile(r"[\s\-'’.·]{0,3}")
_TRIM = ' \t\r\n.,;:!?()[]{}<>"“”«»'
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Word:
    """A word that the model gave a class. ``begins``: another entity of the same kind starts with it."""

    start: int
    end: int
    cls: str
    entity: str
    begins: bool


def readable(text: str) -> str:
    """Return a text as tokenizers accept it, of the same length: lone surrogates are no text."""
    return _SURROGATES.sub("\ufffd", text)


def pieces(text: str, length: int) -> Iterator[tuple[int, str]]:
    """Cut a text into overlapping pieces of about ``length`` tokens, at white space where there is some nearby.

    Yields where each begins, and the piece. A text that fits is one piece.
    """
    size = length * CHARS_PER_TOKEN
    back = size // OVERLAP
    start = 0
    while len(text) - start > size:
        stop = start + size
        yield start, text[start:stop]
        begin = _EDGE.search(text, stop - back, stop - back // 2)
        start = begin.end() if begin else stop - back
    yield start, text[start:]


def joined(text: str, words: Iterable[Word]) -> tuple[NerSpan, ...]:
    """Join words of a text, in any order and perhaps twice, to spans: sorted by start, none of a class overlap.

    Neighbours of one class become one span, such as a given name and a surname, unless the second begins another
    entity of the same kind.
    """
    spans: list[tuple[NerSpan, Word]] = []
    for word in sorted(set(words), key=lambda each: (each.cls, each.start, each.end)):
        start, end = _trimmed(text, word.start, word.end)
        if start >= end:
            continue
        if spans and _continues(text, spans[-1], word, start):
            last = spans[-1][0]
            spans[-1] = NerSpan(last.cls, last.start, max(last.end, end)), word
        else:
            spans.append((NerSpan(word.cls, start, end), word))
    return tuple(sorted((span for span, _ in spans), key=lambda each: (each.start, each.end, each.cls)))


def _continues(text: str, last: tuple[NerSpan, Word], word: Word, start: int) -> bool:
    span, before = last
    if span.cls != word.cls:
        return False
    if start < span.end:
        return True
    another = word.begins and word.entity == before.entity
    return not another and _JOINS.fullmatch(text, span.end, start) is not None


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out what is no part of a name at either end: some tokenizers take white space and commas for it."""
    part = text[start:end]
    kept = part.strip(_TRIM)
    if not kept:
        return start, start
    left = len(part) - len(part.lstrip(_TRIM))
    return start + left, start + left + len(kept)


def batches(sizes: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Group windows of these sizes in tokens, so that no group, padded to its longest, holds more than ``most``.

    Yields indexes, shortest windows first. A window larger than ``most`` is alone.
    """
    group: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda each: sizes[each]):
        if group and sizes[index] * (len(group) + 1) > most:
            yield tuple(group)
            group = []
        group.append(index)
    if group:
        yield tuple(group)
