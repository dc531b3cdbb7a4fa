"""What the hints in one text come to: a score from 0 to 1 with its explanation. Pure.

A hint is no verdict: many harmless texts hold one. Each is read as a chance by itself, so two of 0.5 come to 0.75 and
no number of them to more than 1; from the threshold of their pack on they are one finding. A text's score depends on
that text and on who speaks in it, never on its neighbours; each hint counts once, however often it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.inspection.rules import Rule
from tidegate.inspection.scanner import Scanner
from tidegate.model import Role, Score

WEIGHTS: Mapping[Role, float] = {
    Role.SYSTEM: 0.4,
    Role.USER: 1.0,
    Role.ASSISTANT: 0.5,
    Role.TOOL_RESULT: 1.3,
    Role.TOOL_DEFINITION: 1.0,
    Role.METADATA: 1.0,
    Role.OTHER: 1.0,
}
"""How much a hint counts, by who speaks. The operator's own prompt states rules and forbids their disclosure; the
model's earlier words repeat what it was asked. Data that a tool or a search brought has no business giving orders."""

MOST = 0.98
"""A weighted hint counts for no more: none is certain, and a second one must still be seen in the score."""

LONG = 512
"""Bytes from which on a text is remembered by its digest: below, a scan costs no more than that."""
REMEMBERED = 8192
"""Texts remembered, those of some hundred conversations in 2 MB: their digests, and what was found by rule."""

_HEAVIEST = max(WEIGHTS.values())
# The bytes of UTF-8 that do not begin a character.
_CONTINUES = bytes(range(0x80, 0xC0))


@dataclass(frozen=True, slots=True)
class Hint:
    """A scored rule ready to search. ``shortest`` and ``longest`` are the widths of its matches in bytes."""

    rule: Rule
    find: Any
    shortest: int
    longest: int

    def near(self, data: bytes, end: int | None) -> Any:
        """Return the leftmost match, if it is where the scan said that a first match ends; else ``None``.

        No match ends before ``end``, so none starts farther left of it than the longest is wide.
        """
        if end is None:
            return None
        match = self.find.search(data, max(end - self.longest, 0), min(end + self.longest + 1, len(data)))
        return match if match is not None and match.start() <= end else None


@dataclass(frozen=True, slots=True)
class Weighed:
    """A score that reached its threshold. ``rule`` is the hint that added most; it stands at ``start`` to ``end``."""

    rule: Rule
    start: int
    end: int
    score: Score


class Scorer:
    """The hints of all packs, compiled. ``scanner`` answers, for ``hints`` in this order, which may match at all.

    ``firsts`` holds one rule of each pack: what is decided about it is decided about the others. ``reach`` is the
    longest match of any, in bytes.
    """

    def __init__(self, hints: Sequence[Hint], scanner: Scanner) -> None:
        self.rules = tuple(each.rule for each in hints)
        self.firsts = tuple({rule.pack: rule for rule in reversed(self.rules)}.values())
        self._hints = tuple(hints)
        self._scanner = scanner
        self._shortest = min(hint.shortest for hint in hints)
        self.reach = max(hint.longest for hint in hints)
        self._hits: dict[bytes, Mapping[int, int | None]] = {}
        self._weighed: dict[tuple[bytes, Role], tuple[Weighed, ...]] = {}

    def hits(self, data: bytes) -> Mapping[int, int | None]:
        """Return the hints that may be in ``data``; none where all of them together would reach no threshold.

        With each the end of its first match, where that is known. One scan, and all there is to do for most texts. A
        text that holds ``data`` as a part gives no fewer.
        """
        found = self._scanner.first_ends(data) if len(data) >= self._shortest else {}
        return self._enough(found, _HEAVIEST) if found else found

    def holds_any(self, data: bytes) -> bool:
        """Say whether any hint may be in ``data``, a part of a text, whatever it would come to."""
        return bool(self._scanner.hits(data))

    def weigh(self, text: str, role: Role, hits: Mapping[int, int | None] | None = None) -> tuple[Weighed, ...]:
        """Return what the hints of each pack in a text come to, where it reaches the pack's threshold, by pack.

        ``hits`` is what ``hits`` said of the text, when the caller knows. Positions count characters.
        """
        data, weight = text.encode("utf-8", "surrogatepass"), WEIGHTS[role]
        asked = self._enough(self.hits(data) if hits is None else hits, weight)
        found = {index: self._hints[index].near(data, end) for index, end in asked.items()}
        if any(match is None for match in found.values()):  # few: those are looked for in all of the text
            found = {at: match or self._hints[at].find.search(data) for at, match in found.items()}
        sure = self._enough({index: match for index, match in found.items() if match is not None}, weight)
        marks: dict[str, list[tuple[Rule, int, int]]] = {}
        for index, match in sure.items():
            rule = self.rules[index]
            marks.setdefault(rule.pack, []).append((rule, match.start(), match.end()))
        scored = (_weigh(data, marks[pack], weight) for pack in sorted(marks))
        return tuple(each for each in scored if each.score.total >= each.score.threshold)

    def recall(self, text: str, role: Callable[[], Role]) -> tuple[Weighed, ...]:
        """Return what ``weigh`` does; of a long text that was seen before, as earlier turns are, without a second look.

        ``role`` is asked only where it matters.
        """
        data = text.encode("utf-8", "surrogatepass")
        if len(data) < LONG:
            hits = self.hits(data)
            return self.weigh(text, role(), hits) if hits else ()
        key = hashlib.blake2b(data, digest_size=16).digest()
        known = self._hits.get(key)
        if known is None:
            known = _kept(self._hits, key, self.hits(data))
        if not known:
            return ()
        who = role()
        found = self._weighed.get((key, who))
        return _kept(self._weighed, (key, who), self.weigh(text, who, known)) if found is None else found

    def _enough[T](self, found: Mapping[int, T], weight: float) -> Mapping[int, T]:
        """Keep of some hints those whose pack they could bring to its threshold, all together."""
        left: dict[str, float] = {}
        for index in found:
            rule = self.rules[index]
            left[rule.pack] = left.get(rule.pack, 1.0) * (1 - _points(rule, weight))
        enough = {rule.pack for rule in self.firsts if 1 - left.get(rule.pack, 1.0) >= rule.threshold - _ROUNDING}
        return {index: each for index, each in found.items() if self.rules[index].pack in enough}

    def fires(self, rule: str, data: bytes) -> bool:
        """Tell whether the hint with this id is in ``data``, whatever it comes to."""
        index = next(index for index, each in enumerate(self.rules) if each.id == rule)
        return index in self._scanner.hits(data) and self._hints[index].find.search(data) is not None


def _kept[K, V](memory: dict[K, V], key: K, value: V) -> V:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


_ROUNDING = 0.001  # scores are told to three places, so 0.4996 reaches 0.5


def _points(rule: Rule, weight: float) -> float:
    return min((rule.score or 0.0) * weight, MOST)


def _weigh(data: bytes, marks: Iterable[tuple[Rule, int, int]], weight: float) -> Weighed:
    """Add up the hints of one pack, strongest first, then by id: what each adds is its part of what is left of 1."""
    ordered = sorted(marks, key=lambda mark: (-_points(mark[0], weight), mark[0].id))
    left, hints = 1.0, []
    for rule, _, _ in ordered:
        added = left * _points(rule, weight)
        left -= added
        hints.append((rule.id, round(added, 3)))
    rule, start, end = ordered[0]
    score = Score(round(1 - left, 3), rule.threshold, tuple(hints))
    return Weighed(rule, _begun(data[: start + 1]) - 1, _begun(data[:end]), score)


def _begun(data: bytes) -> int:
    """Count the characters that begin in encoded text, of which the last may be cut."""
    return len(data.translate(None, _CONTINUES))
