"""Rules compiled for searching: which may match (one scan for all), where they match, and what is still open.

Immutable once built. Matching is linear in the text whatever the pattern: RE2 and Hyperscan never backtrack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from tidegate.inspection.closure import Pattern, PatternError, read
from tidegate.inspection.patterns import compile_re2
from tidegate.inspection.rules import Rule
from tidegate.inspection.scanner import CompiledCache, CompileError, Scanner, refused, scanner
from tidegate.inspection.scoring import Mark
from tidegate.inspection.validators import VALIDATORS
from tidegate.inspection.walk import Walk

__all__ = ["Compiled", "CompiledCache", "Engine", "Marker", "RuleError", "Span", "TextSpan", "build", "count", "encode"]

# Texts for the first run of each automaton, which RE2 builds when it first meets a byte: not during a stream then.
_WARM = (b" The quick brown fox (42) jumps, over: 'lazy' dogs-/_=+@.\n", bytes(range(256)))


# The bytes of UTF-8 that do not begin a character.
_CONTINUES = bytes(range(0x80, 0xC0))


class RuleError(ValueError):
    """A rule that cannot be compiled. ``rule`` is its id; ``why`` never quotes the pattern."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(f"rule {rule} cannot be compiled: {why}")
        self.rule = rule
        self.why = why


@dataclass(frozen=True, slots=True)
class Span:
    """A match of ``rule`` in bytes. A delimited rule's span is its whole region."""

    rule: Rule
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A match of ``rule`` in characters of a text."""

    rule: Rule
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Marker:
    """The end of a delimited rule: its pattern, its closure, its longest match in bytes."""

    find: Any
    live: Any
    longest: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """A rule ready to search. ``rank`` orders rules by id; ``value`` tells whether a group is the part to redact."""

    rule: Rule
    rank: int
    find: Any
    live: Any
    longest: int
    value: bool
    checks: tuple[Callable[[bytes], bool], ...]
    end: Marker | None

    def accepts(self, span: bytes) -> bool:
        """Ask every validator of the rule."""
        return all(check(span) for check in self.checks)


@dataclass(frozen=True, slots=True)
class Hint:
    """A scored rule ready to search."""

    rule: Rule
    find: Any


class Engine:
    """A set of rules, compiled. ``reach`` and ``shortest`` are the longest and shortest match of any, in bytes.

    Scored rules (``hints``) share the first scan and nothing else: they have no closure and no span to mask. ``rules``
    holds the others first, in the order of ``compiled``, then those.
    """

    def __init__(
        self,
        compiled: Sequence[Compiled],
        hints: Sequence[Hint],
        widths: tuple[int, int],
        scanners: tuple[Scanner, Scanner],
    ) -> None:
        self.compiled = tuple(compiled)
        self.hints = tuple(hints)
        self.rules = (*(each.rule for each in compiled), *(each.rule for each in hints))
        self.shortest, self.reach = widths
        self._words, self._closures = scanners
        self._all = frozenset(range(len(self.compiled)))
        self._regions = frozenset(index for index in self._all if self.compiled[index].end is not None)

    def candidates(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules that may match in ``data``: none that does is missing."""
        return self.hits(data)[0]

    def hits(self, data: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return, from one scan, the indexes in ``compiled`` and in ``hints`` of the rules that may match."""
        found = self._words.hits(data)
        if not found:
            return (), ()
        acting = len(self.compiled)
        return tuple(i for i in found if i < acting), tuple(i - acting for i in found if i >= acting)

    def marks(self, text: str, known: Sequence[int] | None = None) -> tuple[Mark, ...]:
        """Return the first match of each scored rule; ``known`` are the only ones to ask, when the caller knows."""
        data = encode(text)
        if known is None:
            known = self.hits(data)[1] if self.hints else ()
        found = ((self.hints[index].rule, self.hints[index].find.search(data)) for index in sorted(known))
        return tuple(
            Mark(rule, _whole(data, hit.start()), _begun(data[: hit.end()])) for rule, hit in found if hit is not None
        )

    def live(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules of which some match may start in ``data`` and go on after it."""
        return tuple(self._closures.hits(data))

    def find(self, data: bytes) -> tuple[Span, ...]:
        """Return the matches of all rules in a whole text, sorted by start, longest first, then rule id."""
        return self._spans(data, None)

    def find_text(self, text: str) -> tuple[TextSpan, ...]:
        """Return the matches of all rules in characters of ``text``."""
        return _in_characters(text, self.find(encode(text)))

    def find_many(self, texts: Sequence[str]) -> dict[int, tuple[TextSpan, ...]]:
        """Search many texts with one scan for all; the result holds the texts that have matches, by index."""
        parts = [encode(text) for text in texts]
        hit = self.candidates(b"\0".join(parts))
        if not hit:
            return {}
        found = ((index, self._spans(part, hit)) for index, part in enumerate(parts))
        return {index: _in_characters(texts[index], spans) for index, spans in found if spans}

    def _spans(self, data: bytes, known: tuple[int, ...] | None) -> tuple[Span, ...]:
        matches = Walk(self, self._all, self._regions, known).feed(data, final=True)
        spans = [(each.start, -each.cover, self.compiled[each.index].rank, each.index) for each in matches]
        return tuple(Span(self.rules[index], start, -end) for start, end, _, index in sorted(spans))


def build(rules: Sequence[Rule], cache: CompiledCache | None) -> Engine:
    """Compile ``rules``; ``cache`` keeps the slow part. Raises ``RuleError`` for the first rule that is refused."""
    ranks = {rule.id: rank for rank, rule in enumerate(sorted(rules, key=lambda rule: rule.id))}
    acting = [rule for rule in rules if rule.score is None]
    scored = [rule for rule in rules if rule.score is not None]
    read_in = [(_read(rule, rule.pattern), rule) for rule in acting]
    compiled = [_compile(rule, pattern, ranks[rule.id]) for pattern, rule in read_in]
    hinting = [(_read(rule, rule.pattern), rule) for rule in scored]
    hints = [Hint(rule, _re2(rule, pattern.plain)) for pattern, rule in hinting]
    words = [*(pattern.loose for pattern, _ in read_in), *(pattern.part for pattern, _ in hinting)]
    closures = [_live(pattern) for pattern, _ in read_in]
    try:
        scanners = scanner(words, cache), scanner(closures, cache)
    except CompileError:
        for rule, expression in zip((*acting, *scored, *acting), (*words, *closures), strict=True):
            if why := refused(expression):
                raise RuleError(rule.id, why) from None
        raise
    widths = (
        min((pattern.shortest for pattern, _ in read_in), default=0),
        max((pattern.longest for pattern, _ in read_in), default=0),
    )
    return Engine(compiled, hints, widths, scanners)


def encode(text: str) -> bytes:
    """Encode a text as it is searched: lone surrogates become three bytes each."""
    return text.encode("utf-8", "surrogatepass")


def _read(rule: Rule, pattern: str) -> Pattern:
    try:
        return read(pattern)
    except PatternError as error:
        raise RuleError(rule.id, str(error)) from None


def _compile(rule: Rule, pattern: Pattern, rank: int) -> Compiled:
    unknown = [name for name in rule.validators if name not in VALIDATORS]
    if unknown:
        raise RuleError(rule.id, f"it names the unknown validator {unknown[0]}")
    end = None
    if rule.end is not None:
        marker = _read(rule, rule.end)
        end = Marker(_re2(rule, marker.plain), _re2(rule, _live(marker)), marker.longest)
    value = pattern.named != pattern.plain and end is None
    return Compiled(
        rule=rule,
        rank=rank,
        find=_re2(rule, pattern.named if value else pattern.plain),
        live=_re2(rule, _live(pattern)),
        longest=pattern.longest,
        value=value,
        checks=tuple(VALIDATORS[name] for name in rule.validators),
        end=end,
    )


def _live(pattern: Pattern) -> str:
    return rf"(?:{pattern.closure})\z"


def _re2(rule: Rule, pattern: str) -> Any:
    try:
        compiled = compile_re2(pattern)
    except re2.error:
        raise RuleError(rule.id, "RE2 refuses its pattern or its closure (too large)") from None
    for text in _WARM:
        compiled.search(text)
    return compiled


def _in_characters(text: str, spans: Iterable[Span]) -> tuple[TextSpan, ...]:
    """Turn byte positions into character positions; ``spans`` are sorted by their starts."""
    if text.isascii():
        return tuple(TextSpan(each.rule, each.start, each.end) for each in spans)
    data, bytes_seen, seen = encode(text), 0, 0
    found = []
    for each in spans:
        seen += count(data[bytes_seen : each.start])
        bytes_seen = each.start
        found.append(TextSpan(each.rule, seen, seen + count(data[each.start : each.end])))
    return tuple(found)


def _begun(data: bytes) -> int:
    """Count the characters that begin in encoded text, of which the last may be cut."""
    return len(data.translate(None, _CONTINUES))


def _whole(data: bytes, position: int) -> int:
    """Return the index of the character that the byte at ``position`` belongs to."""
    return _begun(data[: position + 1]) - 1


def count(data: bytes) -> int:
    """Count the characters of encoded text."""
    return len(data.decode("utf-8", "surrogatepass"))
