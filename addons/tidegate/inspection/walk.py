"""The matches of all rules in one text that arrives in pieces: only final ones, in order, the same for every cut.

What a text's matches are: each rule iterates by itself, leftmost first, longest among those, never overlapping its own
earlier match; a match its conditions reject is passed over by one byte. A delimited rule's begin marker opens a region
that lasts to the first end marker or to the rule's cap; matches that start inside it are not looked at, and every rule
begins anew at its end. All of it is over UTF-8 bytes; spans then grow outward to whole characters.

When a match is final: ``limit`` is the smallest position from which the text so far could still be the beginning, or
the whole, of some match (``closure.py``). No later byte can change what starts before it.

What may leave: ``free`` is the smallest position that could still lie in the span of a match that masks. It is
``limit`` or more: words that only introduce a value (``password: ``) are seen, not masked, so they need not wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.inspection.rules import LEFT_CONTEXT

if TYPE_CHECKING:
    from tidegate.inspection.engine import Compiled, Engine, Ranges

# Bytes kept of what has left: \b looks at one, a rule's conditions at LEFT_CONTEXT, the rest is for whole characters.
CONTEXT = LEFT_CONTEXT + 16

TAIL = 48
"""Bytes of the end of a text of which is remembered what it may become: a word or two, as models write them."""
TAILS = 1 << 14
"""Ends of texts remembered, of all streams: as many as a language has words in pairs that are common, in 4 MB."""
JUDGED = 1024
"""Spans remembered with a rule's answer about them: a long log repeats its addresses and numbers, a stream its ids."""


@dataclass(frozen=True, slots=True)
class Match:
    """A final match of rule ``index``. Positions count bytes of the whole text.

    ``cover`` is where its region ends, as far as that is known; ``end`` for rules without one.
    """

    index: int
    start: int
    end: int
    cover: int


@dataclass(slots=True)
class _Region:
    """An open region: where its end marker is looked for next, and where it ends without one."""

    rule: Compiled
    seek: int
    stop: int


type _Head = tuple[int, int, int, int, int, int]  # match start, -match end, rank, rule, span start, span end


class Walk:
    """One text. ``active`` are the rules looked for, ``regions`` those among them whose regions hide other rules.

    ``masking`` are those whose spans may not leave; the others are only reported.

    After each ``feed``: matches that start before ``limit`` have been returned, ``carried`` is how far regions opened
    by earlier feeds reach, and ``buffer`` holds the text from ``base`` on.
    """

    def __init__(
        self,
        engine: Engine,
        active: AbstractSet[int],
        regions: AbstractSet[int],
        masking: AbstractSet[int] | None = None,
    ) -> None:
        """Start before the first byte."""
        self.buffer = b""
        self.base = 0
        self.limit = 0
        self.free = 0
        self._cover = 0
        self.carried = 0
        self._engine = engine
        self._active = active
        self._masking = active if masking is None else masking
        self._regions = regions
        self._tails = engine.tails(self._active, self._masking)
        self._places: Mapping[int, Ranges] | None = None
        self._scanned = 0
        self._resume: dict[int, int] = {}
        self._judged: dict[tuple[int, bytes], bool] = {}
        self._floor = 0
        self._region: _Region | None = None

    @property
    def end(self) -> int:
        """The length of the text so far, in bytes."""
        return self.base + len(self.buffer)

    def feed(self, data: bytes, *, final: bool = False) -> list[Match]:
        """Take the next bytes, whole characters, and return what has become final; all of it when ``final``."""
        drop = self.limit - CONTEXT - self.base
        if drop > 0:
            self.buffer = self.buffer[drop:]
            self.base += drop
        self.buffer += data
        self._places = None
        found: list[Match] = []
        if self._region is not None:
            closed = self._swallow(self._region, final)
            self.carried = self._cover
            if not closed:
                return found
        self._pass(found, final)
        return found

    def _pass(self, found: list[Match], final: bool) -> None:
        """Take the matches of all rules in the order of their starts, up to the limit."""
        limit, free = self._live(final)
        heap = self._heads(limit)
        while heap:
            start, end, _, index, first, last = heapq.heappop(heap)
            if start >= self._floor:
                self._resume[index] = -end
                if index in self._regions:
                    compiled = self._engine.compiled[index]
                    self._region = _Region(compiled, -end, max(start + compiled.rule.cap, -end))
                    closed = self._swallow(self._region, final)
                    found.append(Match(index, self._outward(start), self._onward(-end), self._cover))
                    if not closed:
                        return
                else:
                    last = self._onward(last)
                    found.append(Match(index, self._outward(first), last, last))
            head = self._next(index, limit)
            if head is not None:
                heapq.heappush(heap, head)
        self.limit = limit
        self.free = max(self.free, self._pending(limit, free))

    def _live(self, final: bool) -> tuple[int, int]:
        """Return the smallest start of what may still become a match, or still grow, and of what of it is masked."""
        end = self.end
        position = max(self.limit, self._floor)
        if final or position == end:
            return end, end
        left = max(position - 1, end - self._engine.reach - 1, self.base)
        tail = self.buffer[left - self.base :]
        context = position - left
        if len(tail) > TAIL or any(stop > position for stop in self._resume.values()):
            return self._opened(tail, position)
        told = self._tails.get((tail, context))
        if told is None:
            limit, free = self._opened(tail, position)
            if len(self._tails) >= TAILS:
                self._tails.clear()
            told = self._tails[tail, context] = limit - left, free - left
        return told[0] + left, told[1] + left

    def _opened(self, tail: bytes, position: int) -> tuple[int, int]:
        """Look for what may still become a match in ``tail``, the end of the text, and does not start left of it."""
        end, base = self.end, self.base
        limit = free = size = len(self.buffer)  # from here on positions are those of the buffer
        for index in self._engine.live(tail):
            if index not in self._active:
                continue
            compiled, masks = self._engine.compiled[index], index in self._masking
            start = max(position, self._resume.get(index, 0), end - compiled.longest) - base
            if start >= (free if masks else limit):
                continue
            first = compiled.starts(self.buffer, start, size)[0][0]
            if first < 0:
                continue
            limit = min(limit, first)
            if masks and first < free:
                if compiled.begun is not None:
                    first = compiled.begun(self.buffer, first, size)[0][0]
                free = min(free, first) if first >= 0 else free
        return self._outward(limit + base), self._outward(free + base)

    def suspect(self, position: int) -> int:
        """Return the index of a rule that keeps the text from ``position`` on: the first of those that do."""
        compiled, size = self._engine.compiled, len(self.buffer)
        if self._region is not None:
            return next(index for index in self._masking if compiled[index] is self._region.rule)
        found: list[tuple[int, int, int]] = []
        for index in self._masking & set(self._engine.live(self.buffer)):
            each = compiled[index]
            first = (each.begun or each.starts)(self.buffer, max(0, size - each.longest), size)[0][0]
            if first >= 0:
                found.append((first, each.rank, index))
        if found:
            return min(found)[2]
        whole = self._masking & set(self._engine.candidates(self.buffer[max(position - self.base, 0) :]))
        return min(whole or self._masking, key=lambda index: compiled[index].rank)

    def _pending(self, limit: int, free: int) -> int:
        """Return ``free``, or where an earlier match masks that is complete, but starts behind ``limit``.

        Another rule may still match before it, so it is not reported yet.
        """
        if free <= limit or self.end - limit < self._engine.shortest:
            return free
        for index, ranges in self._look(limit).items():
            if index in self._masking:
                free = self._masked_from(index, limit, free, ranges)
        return free

    def _masked_from(self, index: int, limit: int, free: int, ranges: Ranges) -> int:
        compiled, base, shift = self._engine.compiled[index], self.base, self._scanned - self.base
        position = max(limit, self._floor, self._resume.get(index, 0)) - base
        for begin, stop in ranges:
            position = max(position, begin + shift)
            while hit := compiled.find.search(self.buffer, position, stop + shift):
                start, _, first, last = hit
                if start + base >= free:
                    break
                if self._fits(index, start, first, last):
                    return min(free, self._outward(first + base))
                position = start + 1
        return free

    def _look(self, position: int) -> Mapping[int, Ranges]:
        """Ask once for each feed where rules may match from a position on."""
        if self._places is None:
            left = max(position - 1 - self.base, 0)
            self._places = self._engine.places(self.buffer[left:])
            self._scanned = self.base + left
        return self._places

    def _heads(self, limit: int) -> list[_Head]:
        """Return a heap of the next match of each rule that has one before ``limit``."""
        position = max(self.limit, self._floor)
        if limit <= position or self.end - position < self._engine.shortest:
            return []
        places = self._look(position)
        heads = (self._next(index, limit) for index in places if index in self._active)
        heap = [head for head in heads if head is not None]
        heapq.heapify(heap)
        return heap

    def _next(self, index: int, limit: int) -> _Head | None:
        """Return the next match of a rule that its conditions accept and that starts before ``limit``."""
        compiled, buffer, base = self._engine.compiled[index], self.buffer, self.base
        assert self._places is not None
        position = max(self.limit, self._floor, self._resume.get(index, 0)) - base
        shift = self._scanned - base
        for begin, stop in self._places[index]:
            position = max(position, begin + shift)
            while hit := compiled.find.search(buffer, position, stop + shift):
                start, end, first, last = hit
                if start + base >= limit:
                    return None
                position = start + 1
                if self._fits(index, start, first, last):
                    if compiled.known is None or not compiled.known(buffer[first:last]):
                        return start + base, -end - base, compiled.rank, index, first + base, last + base
                    position = end
                self._resume[index] = position + base
        return None

    def _fits(self, index: int, start: int, first: int, last: int) -> bool:
        """Ask a rule's conditions about a match at ``start`` of the buffer and its span."""
        compiled, buffer = self._engine.compiled[index], self.buffer
        if compiled.conditional and not compiled.follows(buffer[max(start - LEFT_CONTEXT, 0) : start]):
            return False
        return self._accepts(index, buffer[first:last])

    def _accepts(self, index: int, span: bytes) -> bool:
        """Ask a rule about a span, once for each different one: numbers and names come again and again in a text."""
        compiled = self._engine.compiled[index]
        if not compiled.checks and compiled.allow is None:
            return True
        answer = self._judged.get((index, span))
        if answer is None:
            if len(self._judged) >= JUDGED:
                self._judged.clear()
            answer = self._judged[index, span] = compiled.accepts(span)
        return answer

    def _swallow(self, region: _Region, final: bool) -> bool:
        """Move on inside a region; tell whether it is closed."""
        marker = region.rule.end
        assert marker is not None
        end = limit = self.end
        if not final:
            start = max(region.seek, end - marker.longest)
            if hit := marker.live.search(self.buffer, start - self.base):
                limit = hit.start() + self.base
        # Far enough for every end marker that could count, and for what \b sees to its right.
        beyond = min(region.stop + marker.longest + 1, end)
        hit = marker.find.search(self.buffer, region.seek - self.base, beyond - self.base)
        if hit and hit.start() + self.base < limit:
            close = min(hit.end() + self.base, region.stop)
        elif region.stop <= limit:
            close = region.stop
        else:
            self.limit = self.free = self._cover = max(self._outward(limit), self._onward(region.seek))
            region.seek = max(region.seek, limit)
            return False
        self._floor = self._cover = self._onward(close)
        self._region = None
        return True

    def _outward(self, position: int) -> int:
        """Move left to the start of a character."""
        at = position - self.base
        while 0 < at < len(self.buffer) and self.buffer[at] & 0xC0 == 0x80:
            at -= 1
        return at + self.base

    def _onward(self, position: int) -> int:
        """Move right to the start of a character."""
        at = position - self.base
        while 0 < at < len(self.buffer) and self.buffer[at] & 0xC0 == 0x80:
            at += 1
        return at + self.base
