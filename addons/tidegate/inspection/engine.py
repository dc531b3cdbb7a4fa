"""Rules compiled for searching: which may match (one scan for all), where they match, and what is still open.

Immutable once built. Matching is linear in the text whatever the pattern: RE2 and Hyperscan never backtrack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import re2

from tidegate.inspection.closure import Pattern, PatternError, read
from tidegate.inspection.patterns import compile_re2
from tidegate.inspection.proprietary.detector import Detector
from tidegate.inspection.rules import Rule, Severity
from tidegate.inspection.scanner import CompiledCache, CompileError, Scanner, refused, scanner
from tidegate.inspection.spotting import Spots, Spotting
from tidegate.inspection.validators import VALIDATORS
from tidegate.inspection.walk import Walk

__all__ = ["Compiled", "CompiledCache", "Engine", "Marker", "RuleError", "Span", "TextSpan", "build", "count", "encode"]

# Texts for the first run of each automaton, which RE2 builds when it first meets a byte: not during a stream then.
_WARM = (b" The quick brown fox (42) jumps, over: 'lazy' dogs-/_=+@.\n", bytes(range(256)))


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
    """A rule ready to search. ``rank`` orders rules that match the same; ``value``: a group is the part to redact."""

    rule: Rule
    rank: int
    find: Any
    live: Any
    longest: int
    value: bool
    checks: tuple[Callable[[bytes], bool], ...]
    end: Marker | None
    allow: Any = None
    after: Any = None
    not_after: Any = None
    known: Callable[[bytes], bool] | None = None  # a known false positive is passed over whole

    def accepts(self, span: bytes, left: bytes) -> bool:
        """Ask the rule's conditions on ``left``, the text before the match, its allow-list and its validators."""
        if self.not_after is not None and self.not_after.search(left) is not None:
            return False
        if self.after is not None and self.after.search(left) is None:
            return False
        if not all(check(span) for check in self.checks):
            return False
        return self.allow is None or self.allow.fullmatch(span) is None


class Engine:
    """A set of rules, compiled. ``reach`` and ``shortest`` are the longest and shortest match of any, in bytes."""

    def __init__(
        self, compiled: Sequence[Compiled], widths: tuple[int, int], scanners: tuple[Scanner, Scanner, Spotting]
    ) -> None:
        self.compiled = tuple(compiled)
        self.rules = tuple(each.rule for each in compiled)
        self.shortest, self.reach = widths
        self.detectors: tuple[Detector, ...] = ()
        self._words, self._closures, self._spotting = scanners
        self._all = frozenset(range(len(self.compiled)))
        self._regions = frozenset(index for index in self._all if self.compiled[index].end is not None)

    def extended(
        self,
        checks: Mapping[str, Callable[[bytes], bool]],
        known: Mapping[str, Callable[[bytes], bool]],
        detectors: Sequence[Detector],
    ) -> Engine:
        """Return this engine with more: a last check per rule id, known false positives per rule id, detectors."""
        compiled = [
            replace(
                each,
                checks=(*each.checks, checks[each.rule.id]) if each.rule.id in checks else each.checks,
                known=known.get(each.rule.id),
            )
            for each in self.compiled
        ]
        engine = Engine(compiled, (self.shortest, self.reach), (self._words, self._closures, self._spotting))
        engine.detectors = tuple(detectors)
        return engine

    def beside(self, detectors: Sequence[Detector]) -> Engine:
        """Return this engine with more detectors, made for one text; the rules are shared."""
        engine = copy.copy(self)
        engine.detectors = (*self.detectors, *detectors)
        return engine

    def candidates(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules that may match in ``data``: none that does is missing."""
        return tuple(self._words.hits(data))

    def live(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules of which some match may start in ``data`` and go on after it."""
        return tuple(self._closures.hits(data))

    def spots(self, data: bytes) -> Spots:
        """Say what ``data`` may be disguised in (``decoding``): nothing that can be undone is missing."""
        return self._spotting.spots(data)

    def find(self, data: bytes) -> tuple[Span, ...]:
        """Return the matches of all rules in a whole text, by start, longest first, most severe first, then rule id."""
        return self._spans(data, None)

    def fires(self, rule: str, data: bytes) -> bool:
        """Tell whether the rule with this id, looked for alone, finds something in ``data``."""
        index = next(index for index, each in enumerate(self.rules) if each.id == rule)
        if index not in self.candidates(data):
            return False
        alone = frozenset({index})
        return bool(Walk(self, alone, self._regions & alone, (index,)).feed(data, final=True))

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
    ranks = {rule.id: rank for rank, rule in enumerate(sorted(rules, key=_order))}
    read_in = [(_read(rule, rule.pattern), rule) for rule in rules]
    compiled = [_compile(rule, pattern, ranks[rule.id]) for pattern, rule in read_in]
    words = [pattern.loose for pattern, _ in read_in]
    closures = [_live(pattern) for pattern, _ in read_in]
    try:
        scanners = scanner(words, cache), scanner(closures, cache)
    except CompileError:
        for rule, word, closure in zip(rules, words, closures, strict=True):
            if why := refused(word) or refused(closure):
                raise RuleError(rule.id, why) from None
        raise
    widths = (
        min((pattern.shortest for pattern, _ in read_in), default=0),
        max((pattern.longest for pattern, _ in read_in), default=0),
    )
    spotting = Spotting(rules, cache)
    if cache is not None:  # else whoever never asks what is disguised need not wait for it
        spotting.compile()
    return Engine(compiled, widths, (*scanners, spotting))


def _order(rule: Rule) -> tuple[int, str]:
    """Order rules that match the very same text: the most severe names it, then the first id."""
    return -list(Severity).index(rule.severity), rule.id


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
        allow=_any(rule, rule.allow),
        after=_any(rule, rule.after),
        not_after=_any(rule, rule.not_after, r"\z"),
    )


def _any(rule: Rule, patterns: Sequence[str], tail: str = "") -> Any:
    return _re2(rule, f"(?:{'|'.join(patterns)}){tail}") if patterns else None


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


def count(data: bytes) -> int:
    """Count the characters of encoded text."""
    return len(data.decode("utf-8", "surrogatepass"))
