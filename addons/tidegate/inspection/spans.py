"""Where one pattern matches: leftmost, longest, with the borders of its value, at a cost that does not explode.

RE2 answers an unanchored search with an automaton whose states it makes as it meets them. A bounded repeat is counted
in such states, so a value nobody has seen before costs hundreds of them, microseconds each. Here the automaton looks
for the pattern without its upper bounds, which has next to no states, and the pattern itself is tried where that
starts, anchored, over no more bytes than it can match: RE2 then steps through the pattern without an automaton.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.inspection.closure import Pattern
from tidegate.inspection.patterns import Match, matcher

FIRST_LOOK = 2048
"""Bytes beyond the longest match that the first look takes in: two microseconds, for a search right after another."""
LONGEST_LOOK = 1 << 20
"""Bytes one look takes in at most; each look is twice as long as the one before."""

# Texts for the first run of each automaton, which RE2 builds when it first meets a byte: not during a stream then.
WARM = (b" The quick brown fox (42) jumps, over: 'lazy' dogs-/_=+@.\n", bytes(range(256)))


@dataclass(frozen=True, slots=True)
class Spans:
    """A pattern ready to be looked for. ``opening`` starts wherever ``exact`` does; ``value``: a group is asked for."""

    opening: Match
    exact: Match
    longest: int
    value: bool

    def search(self, data: bytes, position: int, end: int) -> tuple[int, int, int, int] | None:
        """Return the leftmost longest match from ``position`` on that lies before ``end``: its span, its value's span.

        Where the group takes no part in the match the value is all of it. Bytes beyond ``end`` belong to the text: a
        match that starts before it may be longer than what lies before it.
        """
        longest = self.longest
        look = first = longest + FIRST_LOOK
        while position < end:
            stop = min(position + look, end)
            start = self.opening(data, position, stop)[0][0]
            # Before ``sure`` nothing starts that ``stop`` could have cut off.
            sure = end if stop == end else stop - longest + 1
            if not 0 <= start < sure:
                position = sure
                look = min(2 * look, LONGEST_LOOK)
                continue
            left = start - 1 if start else 0
            near = data[left : start + longest + 1]
            spans = self.exact(near, start - left, len(near))
            last = spans[0][1]
            if last >= 0:
                inside = spans[1] if self.value else spans[0]
                if inside[0] == inside[1]:  # the group took no part in the match
                    inside = spans[0]
                return start, left + last, left + inside[0], left + inside[1]
            position, look = start + 1, first
        return None


def compile_spans(pattern: Pattern, *, value: bool) -> Spans:
    """Compile a pattern; ``value`` when its group is asked for. Raises ``re2.error``."""
    opening = matcher(pattern.opening, longest=False)
    for text in WARM:
        opening(text, 0, len(text))
    # A group, whatever it is for, makes RE2 step through short texts instead of making states for them.
    exact = matcher(pattern.named if value else f"({pattern.plain})", anchored=True)
    return Spans(opening, exact, pattern.longest, value)
