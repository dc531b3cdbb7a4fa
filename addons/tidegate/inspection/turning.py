"""Patterns as they read in turned text: reversed, in ROT13, with their case swapped, in leetspeak.

A rule that begins with text of its own (``AKIA``, ``ghp_``) has a beginning that is still rare once it is turned, so
these patterns tell in one scan of the text itself whether turning any part of it could give something. Other rules,
most numbers, would match anything: any number reversed is a number.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import lru_cache

from tidegate.inspection.closure import Byte, Either, Node, Repeat, Sequence, begin, write

LEET = bytes.maketrans(b"0134578@$", b"oieastbas")
ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)
ENOUGH = 24
"""Bytes of a pattern that are looked at: an opening and some of what follows it, so that matches are rare. With twice
as many Hyperscan takes the same time and finds as little."""
_TOLD = 22.0
"""Bits that a rule's opening must tell: about three known letters."""
_NARROW = 6
"""Bytes a class may have and still count as told: the ``[pousr]`` of ``gh[pousr]_``."""


class Turn(enum.Enum):
    """The ways to turn a text: written from its end, by 13 letters, upper for lower case, digits for letters."""

    BACK = "back"
    ROT13 = "rot13"
    CASE = "case"
    LEET = "leet"


_SPELT: dict[int, set[int]] = {}
for _code in b"0134578@$":
    _SPELT.setdefault(LEET[_code], set()).add(_code)


@lru_cache(maxsize=4096)
def has_opening(pattern: str) -> bool:
    """Say whether a rule's pattern begins with enough text of its own to be looked for in turned text."""
    return _told(begin(pattern, ENOUGH))[0] >= _TOLD


def turned(pattern: str) -> dict[Turn, str]:
    """Return the patterns of which one matches where a match of ``pattern``, turned, stands.

    They are coarser than the pattern: only its first bytes count. Of what has no opening there are none.
    """
    node = begin(pattern, ENOUGH)
    if _told(node)[0] < _TOLD:
        return {}
    made = {
        Turn.BACK: _reversed(node),
        Turn.ROT13: _mapped(node, lambda byte: {ROT13[byte]}),
        Turn.CASE: _mapped(node, lambda byte: set(bytes((byte,)).swapcase())),
        Turn.LEET: _mapped(node, lambda byte: {byte} | _SPELT.get(byte | 0x20 if chr(byte).isalpha() else byte, set())),
    }
    plain = write(node)
    return {turn: text for turn, each in made.items() if (text := write(each)) != plain}


def _told(node: Node) -> tuple[float, bool]:
    """Return the bits that the head of a node tells, and whether what follows the node still belongs to the head."""
    match node:
        case Byte(of):
            return (8 - math.log2(len(of)), True) if len(of) <= _NARROW else (0.0, False)
        case Repeat(low, high, inside):
            bits, whole = _told(inside)
            return bits * low, whole and low == high
        case Sequence(nodes):
            told = 0.0
            for each in nodes:
                bits, whole = _told(each)
                told += bits
                if not whole:
                    return told, False
            return told, True
        case Either(nodes):
            branches = [_told(each) for each in nodes]
            return min(bits for bits, _ in branches), all(whole for _, whole in branches)
    return 0.0, True  # the edge of a word


def _reversed(node: Node) -> Node:
    match node:
        case Repeat(low, high, inside):
            return Repeat(low, high, _reversed(inside))
        case Sequence(nodes):
            return Sequence(tuple(_reversed(each) for each in reversed(nodes)))
        case Either(nodes):
            return Either(tuple(_reversed(each) for each in nodes))
    return node


def _mapped(node: Node, spell: Callable[[int], set[int]]) -> Node:
    match node:
        case Byte(of):
            return Byte(frozenset(each for byte in of for each in spell(byte)))
        case Repeat(low, high, inside):
            return Repeat(low, high, _mapped(inside, spell))
        case Sequence(nodes):
            return Sequence(tuple(_mapped(each, spell) for each in nodes))
        case Either(nodes):
            return Either(tuple(_mapped(each, spell) for each in nodes))
    return node
