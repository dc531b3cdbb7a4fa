"""Spans of a text that are asked many times: each answer takes the logarithm of their number, not their number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Intervals:
    """Spans, none of which lies in another: of two that do, the longer is kept. So both their ends ascend."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add a span."""
        before = bisect_right(self._starts, start)
        if before and self._ends[before - 1] >= end:
            return
        first, last = bisect_left(self._starts, start), bisect_right(self._ends, end)
        self._starts[first : max(first, last)] = [start]
        self._ends[first : max(first, last)] = [end]

    def nests(self, start: int, end: int) -> bool:
        """Say whether a span lies in one of these, or one of these in it."""
        before, first = bisect_right(self._starts, start), bisect_left(self._starts, start)
        within = before > 0 and self._ends[before - 1] >= end
        return within or (first < len(self._ends) and self._ends[first] <= end)

    def touches(self, start: int, end: int) -> bool:
        """Say whether a span and one of these have a byte in common."""
        after = bisect_right(self._ends, start)
        return after < len(self._starts) and self._starts[after] < end
