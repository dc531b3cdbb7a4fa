"""``application/vnd.amazon.eventstream``: the framing of Amazon Bedrock's streams.

A message is, all big-endian: its length, the length of its headers, CRC-32 of these eight bytes; the headers; the
payload; CRC-32 of all before. A header is a name (length in one byte), the type of its value in one byte, the value
(https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html). The data of a frame is the payload, the
names and values of its headers are beside it; a message that is written anew keeps its headers and gets new checksums.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

from tidegate.streams.framing import MAX_FRAME, Frame, FrameFault

PRELUDE = 12
OVERHEAD = PRELUDE + 4

_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a value by its type: true, false, integers, a time, a UUID. Bytes (6) and text (7) tell their length."""
_BYTES, _TEXT = 6, 7
_NAMES = {"event": ":event-type", "exception": ":exception-type", "error": ":error-code"}
"""The header that names a message, by its ``:message-type``."""
_CUT_OFF = "(cut off)"
"""The data of a message that is not all there: no JSON, so nobody passes it on."""


class _Unreadable(Exception):
    pass


class EventStream:
    """One stream of messages: a ``Framing``."""

    __slots__ = ("_buffer", "_limit", "fault")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.fault: FrameFault | None = None
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the messages they complete."""
        if self.fault is not None:
            return []
        self._buffer += chunk
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= PRELUDE:
            total, _, check = struct.unpack_from(">III", self._buffer, start)
            if check != zlib.crc32(self._buffer[start : start + 8]) or total < OVERHEAD:
                self.fault = FrameFault.UNREADABLE
                break
            if total > self._limit:
                self.fault = FrameFault.TOO_LARGE
                break
            if len(self._buffer) - start < total:
                break
            try:
                frames.append(_read(bytes(self._buffer[start : start + total])))
            except (_Unreadable, UnicodeDecodeError, struct.error, IndexError):
                self.fault = FrameFault.UNREADABLE
                break
            start += total
        del self._buffer[:start]
        return frames

    def end(self) -> list[Frame]:
        """End the stream: a message that is not all there may be left."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        return [Frame(raw, None, _CUT_OFF, whole=False)] if raw and self.fault is None else []

    def same(self, frame: Frame) -> bytes:
        """Write a message as it came."""
        return frame.raw

    def changed(self, frame: Frame, data: bytes) -> bytes:
        """Write a message with another payload."""
        return write(_head(frame.raw), data)

    def added(self, data: bytes, like: Frame) -> bytes:
        """Write a new message with the headers of another."""
        return write(_head(like.raw), data)

    def bare(self, frame: Frame) -> Frame:
        """Return the message with no header but its kind, which is one of three words."""
        kind = _headers(_head(frame.raw))[":message-type"]
        return replace(frame, raw=write(text_header(":message-type", kind), _payload(frame.raw)), name=None, others=())

    def refusal(self, data: bytes, name: str | None) -> bytes:
        """Write the error as an exception; ``name`` is one that the operation has."""
        fields = {":exception-type": name or "error", ":content-type": "application/json"}
        head = b"".join(text_header(*each) for each in fields.items())
        return write(head + text_header(":message-type", "exception"), data)


def write(head: bytes, payload: bytes) -> bytes:
    """Write a message of encoded headers and a payload."""
    start = struct.pack(">II", OVERHEAD + len(head) + len(payload), len(head))
    message = start + struct.pack(">I", zlib.crc32(start)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def text_header(name: str, value: str) -> bytes:
    """Encode one header whose value is a text."""
    return bytes([len(name)]) + name.encode() + bytes([_TEXT]) + struct.pack(">H", len(value.encode())) + value.encode()


def _read(raw: bytes) -> Frame:
    if struct.unpack_from(">I", raw, len(raw) - 4)[0] != zlib.crc32(raw[:-4]):
        raise _Unreadable
    headers = _headers(_head(raw))
    kind = headers.get(":message-type", "")
    if kind not in _NAMES:
        raise _Unreadable
    payload = _payload(raw).decode("utf-8")
    return Frame(raw, headers.get(_NAMES[kind]), payload or None, (*headers, *headers.values()))


def _head(raw: bytes) -> bytes:
    length = struct.unpack_from(">I", raw, 4)[0]
    if length > len(raw) - OVERHEAD:
        raise _Unreadable
    return raw[PRELUDE : PRELUDE + length]


def _payload(raw: bytes) -> bytes:
    return raw[PRELUDE + struct.unpack_from(">I", raw, 4)[0] : -4]


def _headers(head: bytes) -> dict[str, str]:
    """Read headers, each once; every value as a text that rules can look at."""
    found: dict[str, str] = {}
    at = 0
    while at < len(head):
        start = at + 1
        at = start + head[at]
        name, kind = head[start:at].decode("utf-8"), head[at]
        at += 1
        if kind in (_BYTES, _TEXT):
            size = struct.unpack_from(">H", head, at)[0]
            at += 2
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise _Unreadable
        value = head[at : at + size]
        at += size
        if name in found or at > len(head):
            raise _Unreadable
        found[name] = value.decode("utf-8") if kind in (_BYTES, _TEXT) else str(int.from_bytes(value, signed=True))
    return found
