"""Newline-delimited JSON: one value a line, as Ollama streams it.

Lines end in LF, or CR LF; a line of white space alone holds nothing. Inside a JSON text there is no raw line end, so
a line is cut without looking into it.
"""

from __future__ import annotations

from dataclasses import replace

from tidegate.streams.framing import MAX_FRAME, Frame, FrameFault

_LINE_ENDS = tuple((mark.encode(), f"\\u{ord(mark):04x}".encode()) for mark in "\u0085\u2028\u2029")


class Ndjson:
    """One stream of lines: a ``Framing``."""

    __slots__ = ("_buffer", "_limit", "_open", "_seen", "fault")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.fault: FrameFault | None = None
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0
        self._open = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the lines they complete."""
        if self.fault is not None:
            return []
        self._buffer += chunk
        frames: list[Frame] = []
        start, look = 0, self._seen
        while (at := self._buffer.find(b"\n", look)) >= 0:
            if not self._take(start, at + 1, frames, whole=True):
                return frames
            start = look = at + 1
        if len(self._buffer) - start > self._limit:
            self.fault = FrameFault.TOO_LARGE
        del self._buffer[:start]
        self._seen = len(self._buffer)
        return frames

    def end(self) -> list[Frame]:
        """End the stream: what is left is a line without its end, which readers take all the same."""
        frames: list[Frame] = []
        if self.fault is None and self._buffer:
            self._take(0, len(self._buffer), frames, whole=False)
        self._buffer.clear()
        return frames

    def same(self, frame: Frame) -> bytes:
        """Write a line as it came."""
        return self._leave(frame, frame.raw)

    def changed(self, frame: Frame, data: bytes) -> bytes:
        """Write other JSON in a line's place."""
        return self._leave(frame, _one_line(data) + frame.raw[len(frame.raw.rstrip()) :])

    def added(self, data: bytes, like: Frame) -> bytes:
        """Write a new line."""
        return self._closing() + _one_line(data) + (b"\r\n" if like.raw.endswith(b"\r\n") else b"\n")

    def bare(self, frame: Frame) -> Frame:
        """Return the line: there is nothing beside its value."""
        return replace(frame, others=())

    def refusal(self, data: bytes, _name: str | None) -> bytes:
        """Write the error as a line of its own."""
        return self._closing() + _one_line(data) + b"\n"

    def _leave(self, frame: Frame, raw: bytes) -> bytes:
        self._open = not frame.whole
        return raw

    def _closing(self) -> bytes:
        """End the line before, where the upstream broke off without its end."""
        opened, self._open = self._open, False
        return b"\n" if opened else b""

    def _take(self, start: int, end: int, frames: list[Frame], *, whole: bool) -> bool:
        if end - start > self._limit:
            self.fault = FrameFault.TOO_LARGE
            return False
        raw = bytes(self._buffer[start:end])
        try:
            text = raw.decode("utf-8").strip(" \t\r\n")
        except UnicodeDecodeError:
            self.fault = FrameFault.UNREADABLE
            return False
        frames.append(Frame(raw, None, text or None, whole=whole))
        return True


def _one_line(data: bytes) -> bytes:
    """Escape what some readers take for a line end: servers do so, ``dialects.body.dump`` does not."""
    for mark, escape in _LINE_ENDS:
        if mark in data:
            data = data.replace(mark, escape)
    return data
