"""A text with something undone, and the way back: where each of its bytes came from.

A view holds what was undone and the text around it, not the rest: what is far away reads the same as before, and was
looked at there. Positions count bytes of UTF-8.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

CONTEXT = 256
"""Bytes kept on either side of what was undone, so that a rule sees the words around a value."""
BREAK = b"\n\0\n"
"""Stands between parts that were not neighbours."""

type Edit = tuple[int, int, bytes]
"""A span of the text and what it reads as."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a view: from ``at`` on it reads what ``start`` to ``end`` of its source says."""

    at: int
    start: int
    end: int
    edited: bool


@dataclass(frozen=True, slots=True)
class View:
    """A text as it reads with ``undone`` undone; ``source`` is the view it was made from, none for the text itself.

    ``joined``: only what runs over an edit is news, since the edits took something out that stood between two texts.
    """

    data: bytes
    undone: str
    parts: tuple[Part, ...]
    source: View | None
    joined: bool = False

    def new(self, start: int, end: int) -> bool:
        """Say whether a match could not be seen before: it touches what was undone, or runs over it."""
        parts, margin = self.parts, 0 if self.joined else 1
        index = max(bisect_right(parts, start - 1, key=_at) - 1, 0)
        while index < len(parts) and parts[index].at <= end:
            stop = parts[index + 1].at if index + 1 < len(parts) else len(self.data)
            if parts[index].edited and parts[index].at < end + margin and stop > start - margin:
                return True
            index += 1
        return False

    def pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the spans of the first text that a match stands for: one, or each side of what was taken out."""
        if not self.joined:
            return [self.origin(start, end)]
        found = []
        index = max(bisect_right(self.parts, start, key=_at) - 1, 0)
        while index < len(self.parts) and self.parts[index].at < end:
            part = self.parts[index]
            first, last = part.start + max(start - part.at, 0), min(part.end, part.start + end - part.at)
            if not part.edited and last > first:
                found.append((first, last))
            index += 1
        return found

    def around(self, position: int) -> int:
        """Return the length of the part of a view of windows that holds a position."""
        index = max(bisect_right(self.parts, position, key=_at) - 1, 0)
        if index + 1 == len(self.parts):
            return len(self.data) - self.parts[index].at
        return self.parts[index + 1].at - self.parts[index].at - len(BREAK)

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the first text that a span of this view stands for; never empty where it is not."""
        first = self.parts[max(bisect_right(self.parts, start, key=_at) - 1, 0)]
        last = self.parts[max(bisect_right(self.parts, max(end - 1, start), key=_at) - 1, 0)]
        begin = first.start if first.edited else first.start + start - first.at
        stop = last.end if last.edited else last.start + end - last.at
        return self.source.origin(begin, stop) if self.source is not None else (begin, stop)


def substitute(data: bytes, edits: Iterable[Edit], undone: str, source: View | None, *, joined: bool = False) -> View:
    """Read ``data`` with ``edits`` made, which come in order and do not overlap."""
    out: list[bytes] = []
    parts: list[Part] = []
    length = done = 0

    def put(text: bytes, start: int, end: int, edited: bool) -> None:
        nonlocal length
        parts.append(Part(length, start, end, edited))
        out.append(text)
        length += len(text)

    for start, end, text in edits:
        if start - done > 2 * CONTEXT:
            if done:
                put(data[done : done + CONTEXT], done, done + CONTEXT, False)
            put(BREAK, start - CONTEXT, start - CONTEXT, False)
            done = start - CONTEXT
        if start > done:
            put(data[done:start], done, start, False)
        put(text, start, end, True)
        done = end
    if done < len(data):
        put(data[done : done + CONTEXT], done, min(done + CONTEXT, len(data)), False)
    return View(b"".join(out), undone, tuple(parts), source, joined)


def windows(pieces: Iterable[Edit], undone: str, source: View | None) -> View:
    """Make a view of parts that are looked at alone, each as it reads."""
    out: list[bytes] = []
    parts: list[Part] = []
    length = 0
    for start, end, text in pieces:
        parts.append(Part(length, start, end, True))
        out.append(text)
        length += len(text) + len(BREAK)
    return View(BREAK.join(out), undone, tuple(parts), source)


def _at(part: Part) -> int:
    return part.at
