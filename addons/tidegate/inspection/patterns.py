"""What a pattern promises: RE2 accepts it, its length is bounded, and it asks nothing of the text around it.

A stream may only let go of text when no rule can still grow over it (docs/rules.md), so a pattern must be bounded and
must not look around. The parse tree is that of Python's regular expression parser; matching is never done with it.
"""

from __future__ import annotations

import functools
import re
import re._constants as ops  # type: ignore[import-not-found]  # typeshed has no stubs for it
import re._parser as parser  # type: ignore[import-not-found]  # the same
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import re2

# A pattern's longest match, in bytes: what a stream may have to hold back for one rule.
MAX_MATCH = 1024

_ANCHORS = {ops.AT_BEGINNING, ops.AT_BEGINNING_STRING, ops.AT_END, ops.AT_END_STRING}
_REFUSED = {
    ops.ASSERT: "a lookahead or lookbehind",
    ops.ASSERT_NOT: "a lookahead or lookbehind",
    ops.GROUPREF: "a backreference",
    ops.GROUPREF_EXISTS: "a conditional group",
    ops.ATOMIC_GROUP: "an atomic group",
    ops.POSSESSIVE_REPEAT: "a possessive repeat",
}

type Match = Callable[[bytes, int, int], list[tuple[int, int]]]
"""Takes a text, from where and up to where; returns the spans of the match and of its groups, (-1, -1) for none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The lengths, in bytes, of a pattern's shortest and longest match."""

    shortest: int
    longest: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pattern is refused: what was found and what is accepted."""

    found: str
    accepted: str


def compile_re2(pattern: str, *, longest: bool = True) -> Any:
    """Compile ``pattern`` as the engine runs it: over bytes, longest match, silent. Raises ``re2.error``.

    Without ``longest`` only where the leftmost match starts is what it would be: a smaller automaton tells.
    """
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.longest_match = longest
    options.log_errors = False
    return re2.compile(pattern.encode("ascii"), options)


def matcher(pattern: str, *, anchored: bool = False, longest: bool = True) -> Match:
    """Compile a pattern to be asked often: the binding's own call takes half the time of its wrapper around it."""
    kind = re2._re2.RE2.Anchor
    anchor = kind.ANCHOR_START if anchored else kind.UNANCHORED
    return functools.partial(compile_re2(pattern, longest=longest)._regexp.Match, anchor)


def asked(compiled: Any) -> Match:
    """Return the binding's own call of a compiled pattern: the same as ``search``, in half the time."""
    return functools.partial(compiled._regexp.Match, re2._re2.RE2.Anchor.UNANCHORED)


def examine(pattern: str) -> Shape | tuple[Problem, ...]:
    """Return the shape of an acceptable pattern, or everything that is wrong with it."""
    if not pattern.isascii() or not pattern.isprintable():
        return (Problem("a character that is not printable ASCII", "printable ASCII; write other bytes as \\xNN"),)
    tree = _parse(pattern)
    problems = () if isinstance(tree, Problem) else tuple(dict.fromkeys(_problems(tree)))
    if problems:
        return problems
    try:
        compile_re2(pattern)
    except re2.error as error:
        return (Problem(f"a pattern RE2 refuses ({_reason(error)})", "RE2 syntax"),)
    if isinstance(tree, Problem):
        return (tree,)
    shortest, longest = (int(width) for width in tree.getwidth())
    if shortest == 0:
        return (Problem("a pattern that can match the empty text", "patterns that match at least one character"),)
    return Shape(shortest, longest)


def _parse(pattern: str) -> parser.SubPattern | Problem:
    """Parse with Python's parser; where the two syntaxes differ, refuse what only one of them reads."""
    accepted = "RE2 syntax without \\pN, \\Q..\\E, [[:class:]], \\C and \\z"
    if re.search(r"(?<!\\)(?:\\\\)*\{,\d", pattern):
        return Problem("{,n}, which RE2 reads as plain characters", "{0,n}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return parser.parse(pattern)
    except (re.error, Warning):
        return Problem("a construct whose length tidegate cannot tell", accepted)


def _problems(tree: parser.SubPattern) -> Iterator[Problem]:
    if "value" not in tree.state.groupdict and tree.state.groupdict:
        yield Problem("a named group other than value", "(?P<value>...) for the part to redact")
    for op, argument in _nodes(tree):
        if op in _REFUSED:
            yield Problem(_REFUSED[op], "patterns that look at the match alone (\\b and \\B are fine)")
        elif op is ops.AT and argument in _ANCHORS:
            yield Problem("an anchor (^, $, \\A, \\Z)", "patterns that may match anywhere; use \\b")
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT) and argument[1] is ops.MAXREPEAT:
            yield Problem("an unbounded repeat (*, + or {n,})", "a repeat with an upper bound, such as {1,64}")
    if int(tree.getwidth()[1]) > MAX_MATCH and not _unbounded(tree):
        found = f"a longest match of {int(tree.getwidth()[1])} bytes"
        yield Problem(found, f"at most {MAX_MATCH} bytes, or a delimited rule with end and max")


def _unbounded(tree: parser.SubPattern) -> bool:
    repeats = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
    return any(op in repeats and argument[1] is ops.MAXREPEAT for op, argument in _nodes(tree))


def _nodes(tree: object) -> Iterator[tuple[object, tuple[object, ...]]]:
    """Every (operation, argument) of a parse tree, at any depth."""
    if isinstance(tree, parser.SubPattern):
        for op, argument in tree.data:
            yield op, argument
            yield from _nodes(argument)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _nodes(item)


def _reason(error: Exception) -> str:
    """RE2's own words without the pattern it quotes after the colon."""
    raw = error.args[0] if error.args else "no reason given"
    words = raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)
    return words.split(":")[0]
