"""How texts are compared when spelling should not matter: as words without case, and numbers without punctuation. Pure.

A word is a run of letters and digits, by NFKC and without case; everything else only parts words. ``O'Neill, ANNA``
is ``o neill anna``. A number is digits with up to three of ``space . - / ( )`` between them: ``41-11`` is ``4111``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

# A single class repeated, so linear. Marks belong to their letter; an underscore parts words (see _spaced).
_WORD = re.compile(r"[\w\u0300-\u036f]+")
# Digits and what stands between them are disjoint, and nothing follows: no way back, so linear.
_RUN = re.compile(r"[0-9]+(?:[ .\-/()]{1,3}[0-9]+)*")
_DIGITS = re.compile(r"[0-9]+")
_TABLE = bytes(
    byte + 32 if 65 <= byte <= 90 else byte if 48 <= byte <= 57 or 97 <= byte <= 122 else 32 for byte in range(256)
)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: its normal form in UTF-8, and where it stands in characters."""

    form: bytes
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text with their places."""
    hits = _WORD.finditer(_spaced(text))
    return [Word(form, hit.start(), hit.end()) for hit in hits if (form := _form(hit[0]))]


def forms(data: bytes) -> list[bytes]:
    """Return the normal forms of the words of a UTF-8 text, without places: the same as ``words`` gives, faster."""
    if data.isascii():
        return data.translate(_TABLE).split()
    text = _spaced(data.decode("utf-8", "surrogatepass"))
    return [form for each in _WORD.findall(text) if (form := _form(each))]


def numbers(text: str, lengths: Collection[int]) -> Iterator[tuple[str, int, int]]:
    """Return the digits of each number that may be meant, and its place: groups in a row with so many digits in all.

    A group that touches a letter is part of a word. Linear: from each group, one look per length.
    """
    least = min(lengths, default=0)
    for run in _RUN.finditer(text):
        if run.end() - run.start() < least:
            continue
        groups = list(_DIGITS.finditer(text, run.start(), run.end()))
        if run.start() and _joins(text[run.start() - 1]):
            del groups[0]
        if groups and run.end() < len(text) and _joins(text[run.end()]):
            del groups[-1]
        digits = "".join(each[0] for each in groups)
        counts = list(accumulate((len(each[0]) for each in groups), initial=0))
        ends = {count: each.end() for count, each in zip(counts[1:], groups, strict=True)}
        for first, group in zip(counts, groups, strict=False):
            for length in lengths:
                if first + length in ends:
                    yield digits[first : first + length], group.start(), ends[first + length]


def number(value: str) -> str | None:
    """Return the digits of a value that is a number, with or without punctuation and a leading ``+``."""
    text = unicodedata.normalize("NFKC", value).strip().lstrip("+").strip(" ()")
    return "".join(_DIGITS.findall(text)) if _RUN.fullmatch(text) else None


def _joins(character: str) -> bool:
    return character.isalnum() or "\u0300" <= character <= "\u036f"


def _spaced(text: str) -> str:
    return text.replace("_", " ")


def _form(word: str) -> bytes:
    if word.isascii():
        return word.lower().encode()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    return "".join(each for each in folded if each.isalnum() or "\u0300" <= each <= "\u036f").encode()
