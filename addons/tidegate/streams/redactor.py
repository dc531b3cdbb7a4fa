"""One channel of text, redacted while it arrives. For every cut, the pieces joined are what the whole text gives.

Held back is only what could still be masked, as part of a match to come or of one that still grows. A run of
overlapping matches gets one placeholder, named by its first match; matches that only touch get one each.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from tidegate.inspection.engine import Engine, count, encode
from tidegate.inspection.rules import Rule
from tidegate.inspection.walk import Walk
from tidegate.model import Action


@dataclass(frozen=True, slots=True)
class Kept:
    """Text that leaves as it came."""

    text: str


@dataclass(frozen=True, slots=True)
class Masked:
    """A finding whose placeholder, ``text``, leaves here. ``start`` and ``length`` count characters of the channel.

    The characters it stands for follow as ``Dropped``. For a delimited rule ``length`` is that of its begin marker: the
    placeholder leaves before the end is known.
    """

    text: str
    length: int
    rule: Rule
    action: Action
    start: int


@dataclass(frozen=True, slots=True)
class Noted:
    """A finding without a placeholder: a flagged one, or one that overlaps what is masked already."""

    length: int
    rule: Rule
    action: Action
    start: int
    text: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """``length`` characters of the channel that a placeholder before them stands for.

    ``text`` is what leaves in their place all the same: empty, but for JSON source (``source.py``).
    """

    length: int
    text: str = ""


type Piece = Kept | Masked | Noted | Dropped
type Hit = Masked | Noted


def placeholder(label: str) -> str:
    """Return what stands for a masked text: no quotes, backslashes or control characters, whatever the label."""
    return f"[REDACTED:{''.join(each for each in label if each.isalnum() or each in '-_.') or 'value'}]"


def short_name(rule: Rule) -> str:
    """Return the last part of a rule's id: the usual label."""
    return rule.id.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with each rule, by its index."""

    actions: Mapping[int, Action]
    active: frozenset[int]
    regions: frozenset[int]
    masking: frozenset[int]


@lru_cache(maxsize=32)  # a policy asks with one function for each direction, and a reload makes another policy
def plan_of(engine: Engine, decide: Callable[[Rule], Action]) -> Plan:
    """Ask what is done with each rule."""
    actions = {index: decide(each.rule) for index, each in enumerate(engine.compiled)}
    active = frozenset(index for index, action in actions.items() if action is not Action.ALLOW)
    masking = frozenset(index for index in active if actions[index] is not Action.FLAG)
    # A flagged begin marker is a finding by itself: what is only noted must not hide what is masked.
    regions = frozenset(index for index in masking if engine.compiled[index].end)
    return Plan(actions, active, regions, masking)


class Redactor:
    """One channel of one stream. ``decide`` gives each rule's action, ``label`` the word in its placeholder.

    Rules that are allowed are not looked for. Channels share nothing but the engine.
    """

    def __init__(self, engine: Engine, decide: Callable[[Rule], Action], label: Callable[[Rule], str]) -> None:
        plan = plan_of(engine, decide)
        self._actions = plan.actions
        self._walk = Walk(engine, plan.active, plan.regions, plan.masking)
        self._compiled = engine.compiled
        self._label = label
        self._waiting: list[tuple[int, int, int, int, int]] = []  # start, -end, rank, rule, cover
        self._done = 0
        self._covered = 0
        self._characters = 0
        self._pieces: list[Piece] = []

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left."""
        return count(self._walk.buffer[self._done - self._walk.base :])

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the text and return what may leave. An empty part changes nothing."""
        return self._step(encode(text), final=False) if text else []

    @property
    def position(self) -> int:
        """Where what is held begins; it moves whenever something leaves."""
        return self._done

    def expire(self) -> list[Piece]:
        """Mask what is held, since it has waited for too long; what goes on with it is masked as well.

        Which rule it belongs to is not known yet: the one that begins first names it, and it is redacted whatever the
        policy says of a match.
        """
        self._pieces = []
        end = self._walk.end
        if end > self._done:
            if self._done >= self._covered:
                rule = self._compiled[self._walk.suspect(self._done)].rule
                length = count(self._walk.buffer[self._done - self._walk.base :])
                said = placeholder(self._label(rule))
                self._pieces.append(Masked(said, length, rule, Action.REDACT, self._characters))
            self._covered = max(self._covered, end)
            self._move(end)
        return self._pieces

    def end(self) -> list[Piece]:
        """Return what is left: the text is over. Nothing may be fed after it."""
        return self._step(b"", final=True)

    def _step(self, data: bytes, *, final: bool) -> list[Piece]:
        self._pieces = []
        for each in self._walk.feed(data, final=final):
            rank = self._compiled[each.index].rank
            heapq.heappush(self._waiting, (each.start, -each.end, rank, each.index, each.cover))
        self._covered = max(self._covered, self._walk.carried)
        limit = self._walk.free
        while self._waiting and self._waiting[0][0] < limit:
            start, end, _, index, cover = heapq.heappop(self._waiting)
            self._move(start)
            self._found(index, start, -end, cover)
        self._move(limit)
        return self._pieces

    def _found(self, index: int, start: int, end: int, cover: int) -> None:
        """Report one match at the place where it starts."""
        rule, action = self._compiled[index].rule, self._actions[index]
        base = self._walk.base
        length = count(self._walk.buffer[start - base : end - base])
        if action is Action.FLAG or start < self._covered:
            left = count(self._walk.buffer[start - base : self._done - base]) if start < self._done else 0
            self._pieces.append(Noted(length, rule, action, self._characters - left))
        else:
            self._pieces.append(Masked(placeholder(self._label(rule)), length, rule, action, self._characters))
        if action is not Action.FLAG:
            self._covered = max(self._covered, end, cover)

    def _move(self, to: int) -> None:
        """Let the text up to ``to`` leave, without what is covered."""
        covered = min(max(self._covered, self._done), to)
        if covered > self._done:
            self._pieces.append(Dropped(len(self._take(covered))))
        if to > self._done:
            self._pieces.append(Kept(self._take(to)))

    def _take(self, to: int) -> str:
        base = self._walk.base
        text = self._walk.buffer[self._done - base : to - base].decode("utf-8", "surrogatepass")
        self._characters += len(text)
        self._done = to
        return text


def redact(
    engine: Engine, decide: Callable[[Rule], Action], label: Callable[[Rule], str], text: str
) -> tuple[str, tuple[Hit, ...]]:
    """Redact a whole text. Returns what may leave, and every finding in the order of their starts."""
    channel = Redactor(engine, decide, label)
    pieces = channel.feed(text) + channel.end()
    hits = tuple(piece for piece in pieces if isinstance(piece, Masked | Noted))
    return "".join(piece.text for piece in pieces), hits


class Whole(Redactor):
    """A text that is judged at its end, by another redactor and by what is known then; until then all is held."""

    def __init__(self, inner: Redactor) -> None:
        self._inner = inner
        self._parts: list[str] = []

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left."""
        return sum(map(len, self._parts))

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the text."""
        self._parts.append(text)
        return []

    def _whole(self) -> tuple[str, list[Piece]]:
        """Return the text, and what the other redactor makes of it."""
        text = "".join(self._parts)
        self._parts.clear()
        return text, self._inner.feed(text) + self._inner.end()
