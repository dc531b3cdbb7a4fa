"""One JSON array of objects, sent piece by piece, as Google's APIs stream without ``alt=sse``.

A frame is an object with what stands before it: the bracket or comma, and white space. The array is read strictly, so
that no other reader sees other objects in it; whatever else it holds cannot be read.
"""

from __future__ import annotations

import enum
import re
from dataclasses import replace

from tidegate.streams.framing import MAX_FRAME, Frame, FrameFault

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_BETWEEN = re.compile(rb"[^ \t\r\n]")
_INSIDE = re.compile(rb'["{}\[\]]')
_STRING = re.compile(rb'["\\]')
_GAP = b",\r\n"


class _Next(enum.Enum):
    """What may come next between two objects."""

    OPENING = enum.auto()
    FIRST = enum.auto()
    COMMA = enum.auto()
    OBJECT = enum.auto()
    NOTHING = enum.auto()


_MAY: dict[_Next, dict[bytes, _Next]] = {
    _Next.OPENING: {b"[": _Next.FIRST},
    _Next.FIRST: {b"{": _Next.COMMA, b"]": _Next.NOTHING},
    _Next.COMMA: {b",": _Next.OBJECT, b"]": _Next.NOTHING},
    _Next.OBJECT: {b"{": _Next.COMMA},
    _Next.NOTHING: {},
}


class JsonArray:
    """One array: a ``Framing``."""

    __slots__ = ("_at", "_begin", "_buffer", "_depth", "_left", "_limit", "_next", "_string", "fault")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.fault: FrameFault | None = None
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0
        self._begin = 0
        self._depth = 0
        self._string = False
        self._next = _Next.OPENING
        self._left = _Next.OPENING  # how far the array has got that the client sees

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the objects they complete."""
        frames: list[Frame] = []
        if self.fault is not None:
            return frames
        self._buffer += chunk
        self._read(frames)
        return frames

    def end(self) -> list[Frame]:
        """End the stream: white space after the array may be left, or the beginning of an object that was cut off."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        if self.fault is not None or not raw:
            return []
        return [Frame(raw, None, raw.strip(_SPACE).decode("utf-8", "replace") or None, whole=False)]

    def same(self, frame: Frame) -> bytes:
        """Write an object, or the end of the array, as it came."""
        self._left = _Next.NOTHING if frame.closes else _Next.COMMA
        return frame.raw

    def changed(self, frame: Frame, data: bytes) -> bytes:
        """Write another object in the place of one."""
        self._left = _Next.COMMA
        return frame.raw[: frame.raw.index(b"{")] + data

    def added(self, data: bytes, _like: Frame) -> bytes:
        """Write a new object, which is never the first: it is modelled on one that has left."""
        assert self._left is _Next.COMMA
        return _GAP + data

    def bare(self, frame: Frame) -> Frame:
        """Return the object: there is nothing beside it."""
        return replace(frame, others=())

    def refusal(self, data: bytes, _name: str | None) -> bytes:
        """Write the error as the last object and close the array; after its end nothing can be said."""
        left, self._left = self._left, _Next.NOTHING
        if left is _Next.NOTHING:
            return b""
        return (b"[" if left is _Next.OPENING else _GAP) + data + b"]"

    def _read(self, frames: list[Frame]) -> None:
        while self.fault is None and self._step(frames):
            pass
        if self.fault is None and len(self._buffer) > self._limit:
            self.fault = FrameFault.TOO_LARGE

    def _step(self, frames: list[Frame]) -> bool:
        """Look at the next byte that matters; say whether there was one."""
        pattern = _STRING if self._string else _INSIDE if self._depth else _BETWEEN
        start = self._at
        if self._next is _Next.OPENING and not start:
            if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
                return False
            start = len(_BOM) if self._buffer.startswith(_BOM) else 0
        found = pattern.search(self._buffer, start)
        if found is None:
            self._at = len(self._buffer)
            return False
        mark, self._at = found[0], found.end()
        if self._string:
            return self._in_string(mark)
        if self._depth:
            self._in_object(mark, frames)
        else:
            self._between(mark, frames)
        return True

    def _in_string(self, mark: bytes) -> bool:
        if mark == b'"':
            self._string = False
        elif self._at == len(self._buffer):
            self._at -= 1  # the character behind the backslash is not there yet
            return False
        else:
            self._at += 1
        return True

    def _in_object(self, mark: bytes, frames: list[Frame]) -> None:
        if mark == b'"':
            self._string = True
        elif mark in (b"{", b"["):
            self._depth += 1
        else:
            self._depth -= 1
            if not self._depth:
                self._take(frames, closes=False)

    def _between(self, mark: bytes, frames: list[Frame]) -> None:
        after = _MAY[self._next].get(mark)
        if after is None:
            self.fault = FrameFault.UNREADABLE
            return
        self._next = after
        if mark == b"{":
            self._begin, self._depth = self._at - 1, 1
        elif mark == b"]":
            self._take(frames, closes=True)

    def _take(self, frames: list[Frame], *, closes: bool) -> None:
        raw = bytes(self._buffer[: self._at])
        data = None
        if len(raw) > self._limit:
            self.fault = FrameFault.TOO_LARGE
            return
        if not closes:
            try:
                data = raw[self._begin :].decode("utf-8")
            except UnicodeDecodeError:
                self.fault = FrameFault.UNREADABLE
                return
        frames.append(Frame(raw, None, data, closes=closes))
        del self._buffer[: self._at]
        self._at = 0
