"""Lists of words as patterns: without case, whole words, any white space between the words of a phrase. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_LETTERS = 1500  # of one list: Hyperscan refuses the closure of a list of 2,000
MOST_BYTES = 200  # of one word or phrase
LEAST_CHARACTERS = 3
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def letters(words: Iterable[str]) -> int:
    """Return how much of ``MOST_LETTERS`` a list takes: a character outside ASCII takes as much as six."""
    return sum(1 if each.isascii() else 6 for word in words for each in word)


def lines(text: str) -> list[str]:
    """Read a file of words: one a line, empty lines and lines that begin with ``#`` aside."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def is_usable(word: str) -> bool:
    """Say whether a word or phrase can be looked for: three characters or more, not too long, no control characters."""
    said = " ".join(word.split())
    return said.isprintable() and len(said) >= LEAST_CHARACTERS and len(said.encode("utf-8", "replace")) <= MOST_BYTES


def pattern(words: Iterable[str]) -> str:
    r"""Return the pattern that finds any of the words; ``\b`` stands beside ASCII letters and digits only."""
    return f"(?i:{'|'.join(_one(each) for each in sorted({' '.join(word.lower().split()) for word in words}))})"


def examples(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return texts in which the list must and must not be found."""
    word = min(words, key=lambda each: (len(each), each))
    return (*words, f"({word.upper() if word.isascii() else word})"), ("x", "".join(f"{each}~" for each in word))


def _one(word: str) -> str:
    body = r"\s{1,4}".join("".join(map(_character, part)) for part in word.split())
    return rf"{_edge(word[0])}{body}{_edge(word[-1])}"


def _edge(character: str) -> str:
    return r"\b" if character in _WORD else ""


def _character(character: str) -> str:
    if character in _WORD:
        return character
    if character.isascii():
        return re.sub(r"(\W)", r"\\\1", character)
    spelt = sorted({form for form in (character, character.upper()) if len(form) == 1})
    return f"(?:{'|'.join(''.join(f'\\x{byte:02X}' for byte in form.encode()) for form in spelt)})"
