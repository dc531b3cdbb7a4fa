"""What a rule's pattern can still become: its prefix closure, over bytes.

A stream may only let go of text that no rule can still match. The prefixes of a regular language are themselves a
regular language, so each pattern has a second one, its closure: ``closure\\z`` matches exactly where the end of the
text so far could be the beginning, or the whole, of a match. Whole words belong to it, since they may still grow.

Python's regular expression parser gives the tree (matching is never done with it). Every class is spelled out as
bytes, so that RE2 and Hyperscan cannot disagree on what ``\\s``, ``.`` or ``(?i)`` mean: the meanings are RE2's.
"""

from __future__ import annotations

import itertools
import math
import re
import re._constants as ops  # type: ignore[import-not-found]  # typeshed has no stubs for it
import re._parser as parser  # type: ignore[import-not-found]  # the same
import warnings
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

from tidegate.memo import Memo

# RE2 refuses a repeat above this (re2/parse.cc, kMaxRepeat).
_MAX_REPEAT = 1000

_ALL = frozenset(range(256))
_DIGIT = frozenset(b"0123456789")
_SPACE = frozenset(b"\t\n\f\r ")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_CATEGORIES = {
    ops.CATEGORY_DIGIT: _DIGIT,
    ops.CATEGORY_NOT_DIGIT: _ALL - _DIGIT,
    ops.CATEGORY_SPACE: _SPACE,
    ops.CATEGORY_NOT_SPACE: _ALL - _SPACE,
    ops.CATEGORY_WORD: _WORD,
    ops.CATEGORY_NOT_WORD: _ALL - _WORD,
}
_EDGES = {ops.AT_BOUNDARY: r"\b", ops.AT_NON_BOUNDARY: r"\B"}


class PatternError(ValueError):
    """A pattern that cannot be matched in a stream. The message says why and never quotes the pattern."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern over bytes in one spelling for every engine, and its closure (both RE2 and Hyperscan syntax).

    ``named`` keeps the group ``value``, ``plain`` has no groups, and every match contains a match of ``loose``.
    ``opening`` matches, with upper bounds left out, wherever a match starts, and perhaps elsewhere.
    ``begun`` is the part of the closure that reaches into the group ``value``; ``None`` where that is all of it.
    ``shortest`` and ``longest`` count bytes.
    """

    named: str
    plain: str
    loose: str
    opening: str
    closure: str
    shortest: int
    longest: int
    begun: str | None = None


@dataclass(frozen=True, slots=True)
class Byte:
    """One byte out of a class."""

    of: frozenset[int]


@dataclass(frozen=True, slots=True)
class Edge:
    """A zero-width assertion, ``\\b`` or ``\\B``."""

    text: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node several times."""

    low: int
    high: int
    of: Node
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """Nodes in a row; ``value`` when it is the group to redact."""

    nodes: tuple[Node, ...]
    value: bool = False


@dataclass(frozen=True, slots=True)
class Either:
    """One of several nodes."""

    nodes: tuple[Node, ...]


type Node = Byte | Edge | Repeat | Sequence | Either


PATTERNS: Memo[Pattern] = Memo("pattern", lambda made: list(astuple(made)), lambda stored: Pattern(*stored))
SKETCHES: Memo[str] = Memo("sketch", str, str)


def read(pattern: str) -> Pattern:
    """Read a rule's pattern. Raises ``PatternError`` for what is unbounded, can be empty, or looks around."""
    return PATTERNS.get(pattern) or PATTERNS.put(pattern, _pattern(pattern))


def _pattern(pattern: str) -> Pattern:
    node = _parsed(pattern)
    shortest, longest = _widths(node)
    if shortest == 0:
        raise PatternError("it can match the empty text")
    prefixes = _prefixes(node)
    if prefixes is None:
        raise PatternError("it can never match")
    plain, loose, closure = (_render(each, named=False) for each in (node, _loosen(node), prefixes))
    opening = _render(_unbounded(node), named=False)
    reaching = _reaching(node.nodes) if _holds_value(node) else None
    begun = _render(reaching, named=False) if reaching is not None else None
    return Pattern(
        _render(node, named=True),
        plain,
        loose,
        opening,
        closure,
        shortest,
        longest,
        begun if begun != closure else None,
    )


def sketch(pattern: str) -> str:
    """Return a pattern of which every match of ``pattern`` holds a match that ends where it does.

    Any bytes stand in its wide gaps: Hyperscan skips such a gap where it would step through one of words. A gap behind
    one of many words it would enter at each of them, so there the pattern begins behind the gap. Raises
    ``PatternError``.
    """
    known = SKETCHES.get(pattern)
    return SKETCHES.put(pattern, _render(_opened(_tail(_parsed(pattern))), named=False)) if known is None else known


def begin(pattern: str, enough: int) -> Node:
    """Return the tree of what every match of a pattern begins with: ``enough`` bytes or a few more, if it has as many.

    Raises ``PatternError`` as ``read`` does.
    """
    node = _parsed(pattern)
    return _begin(node, enough) if _widths(node)[0] > enough else node


def write(node: Node) -> str:
    """Write a tree without groups, for every engine."""
    return _render(node, named=False)


# ------------------------------------------------------------------------------------------------- reading


def _parsed(pattern: str) -> Sequence:
    if not pattern.isascii():
        raise PatternError("it names a character that is not a byte")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError, Warning):
        raise PatternError("not a regular expression that tidegate can read") from None
    return _sequence(tree, tree.state.flags & (re.IGNORECASE | re.DOTALL))


def _sequence(tree: Any, flags: int) -> Sequence:
    return Sequence(tuple(_node(op, argument, flags, tree.state) for op, argument in tree))


def _node(op: Any, argument: Any, flags: int, state: Any) -> Node:
    """Turn one node of Python's tree into ours."""
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        return _repeat(argument, flags)
    if op is ops.SUBPATTERN:
        group, add, remove, inside = argument
        value = group is not None and state.groupdict.get("value") == group
        return replace(_sequence(inside, (flags | add) & ~remove), value=value)
    if op is ops.BRANCH:
        return Either(tuple(_sequence(branch, flags) for branch in argument[1]))
    if op is ops.AT and argument in _EDGES:
        return Edge(_EDGES[argument])
    if op is ops.ANY:
        return Byte(_ALL if flags & re.DOTALL else _ALL - {10})
    if op is ops.IN:
        return _byte(argument, flags)
    if op in (ops.LITERAL, ops.NOT_LITERAL):
        negate = [(ops.NEGATE, None)] if op is ops.NOT_LITERAL else []
        return _byte([*negate, (ops.LITERAL, argument)], flags)
    raise PatternError(f"it uses {str(op).lower()}, which cannot be matched in a stream")


def _repeat(argument: Any, flags: int) -> Repeat:
    low, high, inside = argument
    if high is ops.MAXREPEAT:
        raise PatternError("it has a repeat without an upper bound")
    node = _sequence(inside, flags)
    if _widths(node)[1] == 0:
        raise PatternError("it repeats something without a width")
    return Repeat(int(low), int(high), node.nodes[0] if len(node.nodes) == 1 else node)


def _byte(items: Iterable[tuple[Any, Any]], flags: int) -> Byte:
    """Spell out a class. Case is folded for ASCII letters alone, before a negation, as in RE2."""
    members: set[int] = set()
    negate = False
    for op, argument in items:
        if op is ops.NEGATE:
            negate = True
        elif op is ops.LITERAL:
            members.add(argument)
        elif op is ops.RANGE:
            members.update(range(argument[0], argument[1] + 1))
        else:
            members |= _CATEGORIES[argument]
    if max(members, default=0) > 255:
        raise PatternError("it names a character that is not a byte")
    if flags & re.IGNORECASE:
        members |= {byte ^ 0x20 for byte in members if 65 <= byte <= 90 or 97 <= byte <= 122}
    kept = _ALL - members if negate else frozenset(members)
    if not kept:
        raise PatternError("it has a class without members")
    return Byte(kept)


def _widths(node: Node) -> tuple[int, int]:
    """Return the shortest and the longest match in bytes."""
    match node:
        case Byte():
            return 1, 1
        case Edge():
            return 0, 0
        case Repeat(low, high, inside):
            shortest, longest = _widths(inside)
            return low * shortest, high * longest
        case Sequence(nodes):
            widths = [_widths(each) for each in nodes]
            return sum(each[0] for each in widths), sum(each[1] for each in widths)
        case Either(nodes):
            widths = [_widths(each) for each in nodes]
            return min(each[0] for each in widths), max(each[1] for each in widths)


# ------------------------------------------------------------------------------------------------- loosening

# Measured with Hyperscan on 4 KB of text: two of 285 patterns cost three quarters of a scan, the mail address for the
# long name before its @, the account number for its seventy countries. Loosened they cost a thirtieth of that.
_WIDE = 32
_MANY = 8
# Measured on recorded requests and prose: from ten words on it pays; from six on common words open many hints.
_MANY_WORDS = 10
_ENOUGH = 12
_ROWS = 1000


def _loosen(node: Sequence) -> Sequence:
    """Return a cheaper pattern that every match contains: without a wide open head, large choices cut short.

    It is not much more frequent: a head is cut only in front of a single byte, a choice only behind ``_ENOUGH`` bytes.
    """
    nodes = list(_flat(node))
    first = next((at for at, each in enumerate(nodes) if isinstance(each, Byte) and len(each.of) == 1), 0)
    shortest, longest = _widths(Sequence(tuple(nodes[:first])))
    if longest - shortest >= _WIDE and all(map(_open, nodes[:first])):
        nodes = nodes[first:]
    for at, each in enumerate(nodes):
        if isinstance(each, Either) and len(each.nodes) >= _MANY and _widths(each)[0] >= _ENOUGH:
            if _count(_begin(each, _ENOUGH)) > _ROWS:
                break
            return Sequence((*nodes[:at], _overlaid(list(_ways(_begin(each, _ENOUGH))))))
    return Sequence(tuple(nodes))


def _tail(node: Node) -> Node:
    """Return of each alternative what follows the gap behind one of many words, if that is long enough by itself."""
    if isinstance(node, Either):
        return Either(tuple(map(_tail, node.nodes)))
    nodes = list(_flat(node))
    told = [each for each in nodes if not isinstance(each, Edge)]
    if len(told) == 1 and isinstance(told[0], Either):
        return _tail(told[0])
    gap = next((at for at, each in enumerate(nodes) if isinstance(each, Repeat) and _is_wide(each)), 0)
    rest = Sequence(tuple(nodes[gap + 1 :]))
    if gap and _count(Sequence(tuple(nodes[:gap]))) >= _MANY_WORDS and _widths(rest)[0] >= _MANY:
        return rest
    return node


def _is_wide(node: Node) -> bool:
    shortest, longest = _widths(node)
    return longest - shortest >= _WIDE


def _opened(node: Node) -> Node:
    """Return a node with any bytes for what is repeated over ``_WIDE`` widths or more."""
    match node:
        case Repeat(low, high, inside):
            if _is_wide(node):
                return Repeat(*_widths(node), Byte(_ALL))
            return Repeat(low, high, _opened(inside))
        case Sequence(nodes, value):
            return Sequence(tuple(map(_opened, nodes)), value)
        case Either(nodes):
            return Either(tuple(map(_opened, nodes)))
    return node


def _flat(node: Node) -> Iterable[Node]:
    if isinstance(node, Sequence):
        for each in node.nodes:
            yield from _flat(each)
    else:
        yield node


def _open(node: Node) -> bool:
    """Say whether a node holds classes alone, no text of its own."""
    match node:
        case Byte(of):
            return len(of) > 1
        case Repeat(_, _, inside):
            return _open(inside)
        case Sequence(nodes):
            return all(map(_open, nodes))
    return isinstance(node, Edge)


def _count(node: Node) -> int:
    """Count the rows of ``_ways`` without making them."""
    match node:
        case Either(nodes):
            return sum(map(_count, nodes))
        case Sequence(nodes):
            return math.prod(map(_count, nodes))
    return 1


def _ways(node: Node) -> Iterable[tuple[Node, ...]]:
    """Return the rows of nodes that a node of sequences and choices stands for."""
    if isinstance(node, Either):
        for each in node.nodes:
            yield from _ways(each)
    elif isinstance(node, Sequence):
        for row in itertools.product(*(tuple(_ways(each)) for each in node.nodes)):
            yield tuple(itertools.chain.from_iterable(row))
    else:
        yield (node,)


def _overlaid(rows: list[tuple[Node, ...]]) -> Node:
    """Return one row that covers all: rows of one length that differ in single bytes are laid over each other."""
    if len({len(row) for row in rows}) > 1:
        return Either(tuple(Sequence(row) for row in rows))
    over: list[Node] = []
    for column in zip(*rows, strict=True):
        if all(isinstance(each, Byte) for each in column):
            over.append(Byte(frozenset().union(*(each.of for each in column if isinstance(each, Byte)))))
        elif len(set(column)) == 1:
            over.append(column[0])
        else:
            return Either(tuple(Sequence(row) for row in rows))
    return Sequence(tuple(over))


def _begin(node: Node, enough: int) -> Node:
    """Return what a match of ``node``, which has at least ``enough`` bytes, must begin with."""
    match node:
        case Either(nodes):
            return Either(tuple(_begin(each, enough) for each in nodes))
        case Repeat(low, _, inside):
            width = _widths(inside)[0]
            times = min(low, -(-enough // width)) if width else low
            return Repeat(times, times, inside)
        case Sequence(nodes):
            kept: list[Node] = []
            for each in nodes:
                if enough <= 0:
                    break
                shortest = _widths(each)[0]
                kept.append(_begin(each, enough) if shortest >= enough else each)
                enough -= shortest
            return Sequence(tuple(kept))
    return node


# ------------------------------------------------------------------------------------------------- openings


def _unbounded(node: Node) -> Node:
    """Return ``node`` with the upper bounds of its repeats left out.

    An automaton counts a bounded repeat in states of its own, one for each set of lengths it may have by then, and
    makes hundreds of them for every new value it meets; without the bound there is next to nothing to count.
    """
    match node:
        case Repeat(low, high, inside):
            return Repeat(low, high, _unbounded(inside), endless=high not in (low, 1))
        case Sequence(nodes, value):
            return Sequence(tuple(map(_unbounded, nodes)), value)
        case Either(nodes):
            return Either(tuple(map(_unbounded, nodes)))
    return node


# ------------------------------------------------------------------------------------------------- prefixes


def _prefixes(node: Node, rest: Node | None = None) -> Node | None:
    """Return a node for the non-empty prefixes of ``node`` followed by a text whose own prefixes are ``rest``.

    Assertions stay in front of what follows them and are dropped at the end: the text to their right is not known.
    ``None`` stands for no prefixes at all.
    """
    match node:
        case Byte():
            return node if rest is None else Sequence((node, Repeat(0, 1, rest)))
        case Edge():
            return None if rest is None else Sequence((node, rest))
        case Repeat(_, 0, _):
            return rest
        case Repeat(_, high, Byte()):
            return _either(Repeat(1, high, node.of), _then(node, rest))
        case Repeat(_, high, inside):
            return _either(_then(Repeat(0, high - 1, inside), _prefixes(inside)), _then(node, rest))
        case Sequence(nodes):
            for each in reversed(nodes):
                rest = _prefixes(each, rest)
            return rest
        case Either(nodes):
            return _either(*(_prefixes(each) for each in nodes), _then(node, rest))


def _reaching(nodes: tuple[Node, ...]) -> Node | None:
    """Return a node for the prefixes of a row of nodes of which something would be masked.

    What is before the group ``value`` stays in any case. Where the group takes no part, or may be empty, all is masked.
    """
    at = next((at for at, each in enumerate(nodes) if _holds_value(each)), None)
    if at is None:
        return _prefixes(Sequence(nodes))
    before, each, behind = nodes[:at], nodes[at], nodes[at + 1 :]
    match each:
        case Sequence(inside, False):
            return _reaching((*before, *inside, *behind))
        case Sequence() if _widths(each)[0]:
            return _then(Sequence(before), _prefixes(Sequence(nodes[at:])))
        case Either(ways):
            without = tuple(way for way in ways if not _holds_value(way))
            rows = [way for way in ways if _holds_value(way)] + ([Either(without)] if without else [])
            return _either(*(_reaching((*before, row, *behind)) for row in rows))
    return _prefixes(Sequence(nodes))


def _holds_value(node: Node) -> bool:
    match node:
        case Repeat(_, _, inside):
            return _holds_value(inside)
        case Sequence(nodes, value):
            return value or any(map(_holds_value, nodes))
        case Either(nodes):
            return any(map(_holds_value, nodes))
    return False


def _then(node: Node, rest: Node | None) -> Node | None:
    return None if rest is None else Sequence((node, rest))


def _either(*nodes: Node | None) -> Node | None:
    some = tuple(each for each in nodes if each is not None)
    return Either(some) if len(some) > 1 else next(iter(some), None)


# ------------------------------------------------------------------------------------------------- writing


def _render(node: Node, *, named: bool) -> str:
    match node:
        case Byte(members):
            return _class(members)
        case Edge(text):
            return text
        case Repeat(low, high, inside, endless):
            atom = _atom(inside, named=named)
            return _endless(atom, low) if endless else _times(atom, low, high)
        case Sequence(nodes, value):
            inside_text = "".join(
                f"(?:{_render(each, named=named)})" if isinstance(each, Either) else _render(each, named=named)
                for each in nodes
            )
            return f"(?P<value>{inside_text})" if value and named else inside_text
        case Either(nodes):
            return "|".join(_render(each, named=named) for each in nodes)


def _atom(node: Node, *, named: bool) -> str:
    text = _render(node, named=named)
    return text if isinstance(node, Byte) else f"(?:{text})"


def _times(text: str, low: int, high: int) -> str:
    """Write a repeat, in pieces RE2 accepts."""
    if high > _MAX_REPEAT:
        first = min(low, _MAX_REPEAT)
        return _times(text, first, _MAX_REPEAT) + _times(text, low - first, high - _MAX_REPEAT)
    if high == 0:
        return ""
    if (low, high) == (1, 1):
        return text
    if (low, high) == (0, 1):
        return f"{text}?"
    return f"{text}{{{low}}}" if low == high else f"{text}{{{low},{high}}}"


def _endless(text: str, low: int) -> str:
    """Write a repeat without an upper bound; reluctant, since nothing is asked of it but where it starts."""
    if low > _MAX_REPEAT:
        return _times(text, _MAX_REPEAT, _MAX_REPEAT) + _endless(text, low - _MAX_REPEAT)
    return text + {0: "*?", 1: "+?"}.get(low, f"{{{low},}}?")


def _class(members: frozenset[int]) -> str:
    if len(members) == 1:
        return _escape(next(iter(members)))
    ranges: list[tuple[int, int]] = []
    for byte in sorted(members):
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1] = (ranges[-1][0], byte)
        else:
            ranges.append((byte, byte))
    spelled = (_escape(a) if a == b else f"{_escape(a)}-{_escape(b)}" for a, b in ranges)
    return f"[{''.join(spelled)}]"


def _escape(byte: int) -> str:
    return chr(byte) if byte in _WORD else f"\\x{byte:02x}"
