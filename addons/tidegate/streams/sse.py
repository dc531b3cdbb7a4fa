"""Server-sent events: the framing of most streams.

The grammar is that of the WHATWG HTML standard, section 9.2 (Server-sent events): lines end in CR LF, LF or CR and in
nothing else (U+2028 is text), an empty line ends an event, a byte order mark may come first.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tidegate.streams.framing import MAX_FRAME, Frame, FrameFault

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)?")
_LOOK_BACK = 2
"""Bytes before a new chunk that may be the beginning of an empty line: CR LF."""


class Sse:
    """One stream of events: a ``Framing``. The data of a frame is that of its event, its other lines are beside it."""

    __slots__ = ("_buffer", "_first", "_limit", "_open", "_seen", "fault")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.fault: FrameFault | None = None
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0
        self._first = True
        self._open = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the events they complete."""
        if self.fault is not None:
            return []
        self._buffer += chunk
        events: list[Frame] = []
        start = 0
        look = max(0, self._seen - _LOOK_BACK)
        while blank := _BLANK.search(self._buffer, look):
            if not self._take(start, blank.end(), events, whole=True):
                return events
            start = look = blank.end()
        if len(self._buffer) - start > self._limit:
            self.fault = FrameFault.TOO_LARGE
        del self._buffer[:start]
        self._seen = len(self._buffer)
        return events

    def end(self) -> list[Frame]:
        """End the stream: what is left is an event without its empty line, which a reader may use or ignore."""
        events: list[Frame] = []
        if self.fault is None and self._buffer:
            self._take(0, len(self._buffer), events, whole=False)
        self._buffer.clear()
        return events

    def same(self, frame: Frame) -> bytes:
        """Write an event as it came."""
        return self._leave(frame, frame.raw)

    def changed(self, frame: Frame, data: bytes) -> bytes:
        """Give an event other data; every other line of it stays as it is."""
        return self._leave(frame, rewrite(frame, data))

    def added(self, data: bytes, like: Frame) -> bytes:
        """Write a new event with the name and the line ends of another."""
        return self._closing() + write(like.name, data, like.raw)

    def bare(self, frame: Frame) -> Frame:
        """Return an event without any line but its data and what ends it."""
        return replace(frame, raw=only_data(frame), name=None, others=())

    def refusal(self, data: bytes, name: str | None) -> bytes:
        """Write the error event."""
        return self._closing() + write(name, data, b"")

    def _leave(self, frame: Frame, raw: bytes) -> bytes:
        self._open = not frame.whole
        return raw

    def _closing(self) -> bytes:
        """End the event before, where the upstream broke off without an empty line."""
        opened, self._open = self._open, False
        return b"\n\n" if opened else b""

    def _take(self, start: int, end: int, events: list[Frame], *, whole: bool) -> bool:
        event = None
        if end - start > self._limit:
            self.fault = FrameFault.TOO_LARGE
        elif (event := _read(bytes(self._buffer[start:end]), first=self._first, whole=whole)) is None:
            self.fault = FrameFault.UNREADABLE
        else:
            self._first = False
            events.append(event)
        return event is not None


def _read(raw: bytes, *, first: bool, whole: bool) -> Frame | None:
    try:
        text = (raw.removeprefix(_BOM) if first else raw).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    name: str | None = None
    data: list[str] = []
    others: list[str] = []
    for line in text.split("\n"):
        if line.startswith("data:"):
            data.append(line[6:] if line[5:6] == " " else line[5:])
        elif line.startswith("event:"):
            name = line[6:].removeprefix(" ")
            others.append(name)
        elif line == "data":
            data.append("")
        elif line:
            others.append(line)
    return Frame(raw, name, "\n".join(data) if data else None, tuple(others), whole=whole)


def rewrite(event: Frame, data: bytes) -> bytes:
    """Give the event other data, on one line where its first data line was; every other line stays as it is.

    ``data`` holds no line end, as JSON written by ``dialects.body.dump`` never does.
    """
    head, mark, rest = event.raw.partition(b"data: ")
    if (not head or head.endswith(b"\n")) and mark and b"\r" not in event.raw and b"\ndata" not in rest:
        return head + mark + data + rest[rest.find(b"\n") :] if b"\n" in rest else head + mark + data
    lines: list[bytes] = []
    written = False
    for found in _LINE.finditer(event.raw):
        line = found[0]
        bare = line.rstrip(b"\r\n")
        plain = bare.removeprefix(_BOM)
        if plain != b"data" and not plain.startswith(b"data:"):
            lines.append(line)
        elif not written:
            written = True
            opening = bare[: len(bare) - len(plain)] + (b"data: " if plain.startswith(b"data: ") else b"data:")
            lines.append(opening + data + line[len(bare) :])
    return b"".join(lines)


def write(name: str | None, data: bytes, like: bytes) -> bytes:
    """Write a new event; its lines end as the first line of ``like`` (the bytes of another event) ends."""
    found = re.search(rb"\r\n|\n|\r", like)
    end = found[0] if found else b"\n"
    opening = b"" if name is None else b"event: " + name.encode() + end
    return opening + b"data: " + data + end + end


def only_data(event: Frame) -> bytes:
    """Write the event without any line but its data and what ends it."""
    lines = [found[0] for found in _LINE.finditer(event.raw)]
    bare = [line.removeprefix(_BOM).rstrip(b"\r\n") for line in lines]
    return b"".join(
        line for line, text in zip(lines, bare, strict=True) if not text or text == b"data" or text.startswith(b"data:")
    )
