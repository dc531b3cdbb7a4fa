"""Rules compiled for searching: which may match (one scan for all), where they match, and what is still open.

Immutable once built. Matching is linear in the text whatever the pattern: RE2 and Hyperscan never backtrack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import re2

from tidegate.inspection.closure import Pattern, PatternError, read, sketch
from tidegate.inspection.history import History
from tidegate.inspection.patterns import Match, asked, compile_re2, matcher
from tidegate.inspection.proprietary.detector import Detector
from tidegate.inspection.rules import Rule, Severity
from tidegate.inspection.scanner import CompiledCache, CompileError, Scanner, refused, scanner
from tidegate.inspection.scoring import Hint, Scorer
from tidegate.inspection.spans import WARM, Spans, compile_spans
from tidegate.inspection.spotting import Spots, Spotting
from tidegate.inspection.validators import VALIDATORS
from tidegate.inspection.walk import Walk

__all__ = ["Compiled", "CompiledCache", "Engine", "Marker", "RuleError", "Span", "TextSpan", "build", "count", "encode"]

BLOCK = 16384
"""Bytes that one scan takes in where it is asked where rules may match: a hit sends RE2 over these, not over all."""
_TOO_LARGE = "RE2 refuses its pattern or its closure (too large)"

type Tails = dict[tuple[bytes, int], tuple[int, int]]
"""Ends of texts, and how many bytes of each have left; where in it what may become a match starts, and its mask."""

type Ranges = tuple[tuple[int, int], ...]
"""Parts of a text, from and to, in order and apart from each other."""


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
    """A rule ready to search. ``rank`` orders rules that match the same.

    ``live`` finds what may still become a match, and ``starts`` asks it; ``begun`` asks for that of it in which the
    value has begun: ``None`` where the whole match is the value.
    """

    rule: Rule
    rank: int
    find: Spans
    live: Any
    starts: Match
    longest: int
    checks: tuple[Callable[[bytes], bool], ...]
    end: Marker | None
    allow: Any = None
    after: Match | None = None
    not_after: Match | None = None
    begun: Match | None = None
    known: Callable[[bytes], bool] | None = None  # a known false positive is passed over whole

    @property
    def conditional(self) -> bool:
        """Whether the rule asks anything of the text before a match."""
        return self.after is not None or self.not_after is not None

    def follows(self, left: bytes) -> bool:
        """Ask the rule's conditions on ``left``, the text before the match."""
        if self.not_after is not None and self.not_after(left, 0, len(left))[0][0] >= 0:
            return False
        return self.after is None or self.after(left, 0, len(left))[0][0] >= 0

    def accepts(self, span: bytes) -> bool:
        """Ask the rule's validators and its allow-list about the span alone."""
        return all(check(span) for check in self.checks) and (self.allow is None or self.allow.fullmatch(span) is None)


class Engine:
    """A set of rules, compiled. ``reach`` and ``shortest`` are the longest and shortest match of any, in bytes.

    ``rules`` holds those of ``compiled``, in that order, then the hints of ``scorer``, which take no part in the rest.
    """

    def __init__(
        self,
        compiled: Sequence[Compiled],
        widths: tuple[int, int],
        scanners: tuple[Scanner, Scanner, Spotting],
        scorer: Scorer | None = None,
    ) -> None:
        self.compiled = tuple(compiled)
        self.scorer = scorer
        self.rules = (*(each.rule for each in compiled), *(scorer.rules if scorer is not None else ()))
        self.shortest, self.reach = widths
        self.detectors: tuple[Detector, ...] = ()
        self.history: History | None = None
        self._words, self._closures, self._spotting = scanners
        self._tails: dict[tuple[Set[int], Set[int]], Tails] = {}
        self._all = frozenset(range(len(self.compiled)))
        self._regions = frozenset(index for index in self._all if self.compiled[index].end is not None)

    def extended(
        self,
        checks: Mapping[str, Callable[[bytes], bool]],
        known: Mapping[str, Callable[[bytes], bool]],
        detectors: Sequence[Detector],
        history: History | None = None,
    ) -> Engine:
        """Return this engine with more: a last check per rule id, known false positives per rule id, detectors.

        A ``history`` is this engine's alone, and begins empty.
        """
        compiled = [
            replace(
                each,
                checks=(*each.checks, checks[each.rule.id]) if each.rule.id in checks else each.checks,
                known=known.get(each.rule.id),
            )
            for each in self.compiled
        ]
        scanners = self._words, self._closures, self._spotting
        engine = Engine(compiled, (self.shortest, self.reach), scanners, self.scorer)
        engine.detectors = tuple(detectors)
        engine.history = history
        return engine

    def beside(self, detectors: Sequence[Detector]) -> Engine:
        """Return this engine with more detectors, made for one text; the rules are shared."""
        engine = copy.copy(self)
        engine.detectors = (*self.detectors, *detectors)
        engine.history = None  # that nothing was found would be remembered of other texts, too
        return engine

    def candidates(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules that may match in ``data``: none that does is missing."""
        return tuple(self._words.hits(data))

    def places(self, data: bytes) -> dict[int, Ranges]:
        """Return the parts of ``data`` in which a rule may match, by its index: every match of it lies in one of them.

        Blocks overlap by the longest match and what ``\\b`` sees on either side of it.
        """
        size = len(data)
        if size <= BLOCK:
            return dict.fromkeys(self._words.hits(data), ((0, size),))
        found: dict[int, list[tuple[int, int]]] = {}
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK + self.reach + 2, size)
            for index in self._words.hits(data[start:stop]):
                ranges = found.setdefault(index, [])
                begin = ranges.pop()[0] if ranges and ranges[-1][1] >= start else start
                ranges.append((begin, stop))
        return {index: tuple(ranges) for index, ranges in found.items()}

    def refuses(self, data: bytes, in_one: Callable[[bytes], bool]) -> bool:
        """Say that nothing is found in ``data``, nor in any value of it looked at alone.

        So it is where rules refuse every match for what it is (validators, allow-list) and not for what stands before
        it, and where each lies in one value as ``in_one`` says of it: there the same match is all there is, too.
        """
        for index, ranges in self.places(data).items():
            compiled = self.compiled[index]
            refused: set[bytes] = set()
            position = 0
            for begin, stop in ranges:
                position = max(position, begin)
                while hit := compiled.find.search(data, position, stop):
                    start, end, first, last = hit
                    span = data[first:last]
                    if not in_one(data[start:end]) or (span not in refused and compiled.accepts(span)):
                        return False
                    refused.add(span)
                    position = start + 1
        return True

    def live(self, data: bytes) -> tuple[int, ...]:
        """Return the indexes of the rules of which some match may start in ``data`` and go on after it."""
        return tuple(self._closures.hits(data))

    def tails(self, active: Set[int], masking: Set[int]) -> Tails:
        """Return the memory of those who look for the same rules: what the end of a text may still become."""
        return self._tails.setdefault((active, masking), {})

    def spots(self, data: bytes) -> Spots:
        """Say what ``data`` may be disguised in (``decoding``): nothing that can be undone is missing."""
        return self._spotting.spots(data)

    def find(self, data: bytes) -> tuple[Span, ...]:
        """Return the matches of all rules in a whole text, by start, longest first, most severe first, then rule id."""
        matches = Walk(self, self._all, self._regions).feed(data, final=True)
        if not matches:
            return ()
        spans = [(each.start, -each.cover, self.compiled[each.index].rank, each.index) for each in matches]
        return tuple(Span(self.rules[index], start, -end) for start, end, _, index in sorted(spans))

    def fires(self, rule: str, data: bytes) -> bool:
        """Tell whether the rule with this id, looked for alone, finds something in ``data``."""
        index = next(index for index, each in enumerate(self.rules) if each.id == rule)
        if self.scorer is not None and index >= len(self.compiled):
            return self.scorer.fires(rule, data)
        alone = frozenset({index})
        return bool(Walk(self, alone, self._regions & alone).feed(data, final=True))

    def passes_over(self, rule: Rule, data: bytes) -> bool:
        """Say whether ``data`` holds a known false positive of a rule."""
        compiled = next(each for each in self.compiled if each.rule is rule)
        if compiled.known is None:
            return False
        hit = compiled.find.search(data, 0, len(data))
        return hit is not None and compiled.known(data[hit[2] : hit[3]])

    def find_text(self, text: str) -> tuple[TextSpan, ...]:
        """Return the matches of all rules in characters of ``text``."""
        return _in_characters(text, self.find(encode(text)))

    def find_many(self, texts: Sequence[str]) -> dict[int, tuple[TextSpan, ...]]:
        """Search many texts with one scan for all; the result holds the texts that have matches, by index."""
        parts = [encode(text) for text in texts]
        if not self._words.hits(b"\0".join(parts)):
            return {}
        found = ((index, self.find(part)) for index, part in enumerate(parts))
        return {index: _in_characters(texts[index], spans) for index, spans in found if spans}


def build(rules: Sequence[Rule], cache: CompiledCache | None) -> Engine:
    """Compile ``rules``; ``cache`` keeps the slow part. Raises ``RuleError`` for the first rule that is refused."""
    hints, rules = [rule for rule in rules if rule.score is not None], [rule for rule in rules if rule.score is None]
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
    return Engine(compiled, widths, (*scanners, spotting), _scorer(hints, cache) if hints else None)


def _scorer(rules: Sequence[Rule], cache: CompiledCache | None) -> Scorer:
    """Compile hints. They have a database of their own: in one with all rules they cost four times as much."""
    patterns = [_read(rule, rule.pattern) for rule in rules]
    hints = [Hint(r, _re2(r, p.plain), p.shortest, p.longest) for r, p in zip(rules, patterns, strict=True)]
    sketches = [sketch(rule.pattern) for rule in rules]
    try:
        return Scorer(hints, scanner(sketches, cache))
    except CompileError:
        for rule, expression in zip(rules, sketches, strict=True):
            if why := refused(expression):
                raise RuleError(rule.id, why) from None
        raise


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
    try:
        find = compile_spans(pattern, value=value)
    except re2.error:
        raise RuleError(rule.id, _TOO_LARGE) from None
    live = _re2(rule, _live(pattern))
    begun = _re2(rule, rf"(?:{pattern.begun})\z") if value and pattern.begun is not None else None
    return Compiled(
        rule=rule,
        rank=rank,
        find=find,
        live=live,
        starts=asked(live),
        longest=pattern.longest,
        checks=tuple(VALIDATORS[name] for name in rule.validators),
        end=end,
        allow=_any(rule, rule.allow),
        after=_before(rule, rule.after),
        not_after=_before(rule, rule.not_after, r"\z"),
        begun=None if begun is None else asked(begun),
    )


def _any(rule: Rule, patterns: Sequence[str]) -> Any:
    return _re2(rule, f"(?:{'|'.join(patterns)})") if patterns else None


def _before(rule: Rule, patterns: Sequence[str], tail: str = "") -> Match | None:
    """Compile what is asked of the text before a match: whether, not where."""
    if not patterns:
        return None
    try:
        found = matcher(f"(?:{'|'.join(patterns)}){tail}", longest=False)
    except re2.error:
        raise RuleError(rule.id, _TOO_LARGE) from None
    for text in WARM:
        found(text, 0, len(text))
    return found


def _live(pattern: Pattern) -> str:
    return rf"(?:{pattern.closure})\z"


def _re2(rule: Rule, pattern: str) -> Any:
    try:
        compiled = compile_re2(pattern)
    except re2.error:
        raise RuleError(rule.id, _TOO_LARGE) from None
    for text in WARM:
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
