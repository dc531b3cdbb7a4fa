"""A text with something undone, and the way back: where each of its bytes came from.

A view holds what was undone and the text around it, not the rest: what is far away reads the same as before, and was
looked at there. Positions count bytes of UTF-8.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

CONTEXT = 256
"""Bytes kept on either side of what was undone, so that a rule sees the words around a value."""
_APART = 2 * CONTEXT
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
    source: View | None
    joined: bool
    _made: Callable[[], list[Part]]
    _parts: list[Part]

    @property
    def parts(self) -> list[Part]:
        """The parts in their order. They are made when first asked for: in most texts nothing is found."""
        if not self._parts:
            self._parts.extend(self._made())
        return self._parts

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


def substitute(data: bytes, edits: list[Edit], undone: str, source: View | None, *, joined: bool = False) -> View:
    """Read ``data`` with ``edits`` made, which come in order and do not overlap."""
    out: list[bytes] = []
    done = 0
    for start, end, text in edits:
        if start - done > _APART:
            if done:
                out.append(data[done : done + CONTEXT])
            out += (BREAK, data[start - CONTEXT : start], text)
        else:
            out += (data[done:start], text)
        done = end
    out.append(data[done : done + CONTEXT])
    return View(b"".join(out), undone, source, joined, lambda: _parts(len(data), edits), [])


def _parts(length: int, edits: list[Edit]) -> list[Part]:
    """Return the parts of a view that ``substitute`` made of a text of ``length`` bytes."""
    parts: list[Part] = []
    at = done = 0

    def put(size: int, start: int, end: int, edited: bool) -> None:
        nonlocal at
        parts.append(Part(at, start, end, edited))
        at += size

    for start, end, text in edits:
        if start - done > _APART:
            if done:
                put(CONTEXT, done, done + CONTEXT, False)
            put(len(BREAK), start - CONTEXT, start - CONTEXT, False)
            done = start - CONTEXT
        if start > done:
            put(start - done, done, start, False)
        put(len(text), start, end, True)
        done = end
    if done < length:
        last = min(done + CONTEXT, length)
        put(last - done, done, last, False)
    return parts


def windows(pieces: list[Edit], undone: str, source: View | None) -> View:
    """Make a view of parts that are looked at alone, each as it reads."""

    def made() -> list[Part]:
        parts: list[Part] = []
        at = 0
        for start, end, text in pieces:
            parts.append(Part(at, start, end, True))
            at += len(text) + len(BREAK)
        return parts

    return View(BREAK.join([text for _, _, text in pieces]), undone, source, False, made, [])


def _at(part: Part) -> int:
    return part.at
