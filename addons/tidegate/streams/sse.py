"""Server-sent events: bytes in, events out, each with the exact bytes it came in.

Law: the bytes of all events, joined, are the bytes that were fed, and neither the events' fields nor their order depend
on how the stream was cut. The grammar is that of the WHATWG HTML standard, section 9.2 (Server-sent events): lines end
in CR LF, LF or CR and in nothing else (U+2028 is text), an empty line ends an event, a byte order mark may come first.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one event. The largest text event recorded is about 200 KB (a response that repeats its tools); a picture in
base64 reaches a few MB."""

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)?")
_LOOK_BACK = 2
"""Bytes before a new chunk that may be the beginning of an empty line: CR LF."""


class SseFault(enum.StrEnum):
    """Why a stream of events cannot be read any further."""

    TOO_LARGE = "an event is too large"
    NOT_UTF8 = "an event is not UTF-8"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event, or the comments between two. ``raw`` ends with the empty line, ``whole`` says it was there.

    ``data`` is ``None`` without a data line; ``others`` are the texts of all other lines (comments, names, ids ...).
    """

    raw: bytes = field(repr=False)
    name: str | None
    data: str | None = field(repr=False)
    others: tuple[str, ...] = field(repr=False)
    whole: bool = True


class SseParser:
    """Cut a stream into events. After a fault nothing more comes out; ``fault`` says why."""

    __slots__ = ("_buffer", "_first", "_limit", "_seen", "fault")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self.fault: SseFault | None = None
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take bytes, cut anywhere; return the events they complete."""
        if self.fault is not None:
            return []
        self._buffer += chunk
        events: list[SseEvent] = []
        start = 0
        look = max(0, self._seen - _LOOK_BACK)
        while blank := _BLANK.search(self._buffer, look):
            if not self._take(start, blank.end(), events, whole=True):
                return events
            start = look = blank.end()
        if len(self._buffer) - start > self._limit:
            self.fault = SseFault.TOO_LARGE
        del self._buffer[:start]
        self._seen = len(self._buffer)
        return events

    def end(self) -> list[SseEvent]:
        """End the stream: what is left is an event without its empty line, which a reader may use or ignore."""
        events: list[SseEvent] = []
        if self.fault is None and self._buffer:
            self._take(0, len(self._buffer), events, whole=False)
        self._buffer.clear()
        return events

    def _take(self, start: int, end: int, events: list[SseEvent], *, whole: bool) -> bool:
        event = None
        if end - start > self._limit:
            self.fault = SseFault.TOO_LARGE
        elif (event := _read(bytes(self._buffer[start:end]), first=self._first, whole=whole)) is None:
            self.fault = SseFault.NOT_UTF8
        else:
            self._first = False
            events.append(event)
        return event is not None


def _read(raw: bytes, *, first: bool, whole: bool) -> SseEvent | None:
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
    return SseEvent(raw, name, "\n".join(data) if data else None, tuple(others), whole)


def rewrite(event: SseEvent, data: bytes) -> bytes:
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


def only_data(event: SseEvent) -> bytes:
    """Write the event without any line but its data and what ends it."""
    lines = [found[0] for found in _LINE.finditer(event.raw)]
    bare = [line.removeprefix(_BOM).rstrip(b"\r\n") for line in lines]
    return b"".join(
        line for line, text in zip(lines, bare, strict=True) if not text or text == b"data" or text.startswith(b"data:")
    )
