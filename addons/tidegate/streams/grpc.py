"""gRPC's framing: length-prefixed messages, cut over DATA frames anywhere, each compressed or not.

Layout of a message: a byte that is 1 if it is compressed, its length in four bytes (big endian), and its bytes (gRPC
over HTTP/2, "Length-Prefixed-Message"). Law: the messages do not depend on how the bytes were cut. What leaves is never
compressed, so that what was inspected is what the peer reads.
"""

from __future__ import annotations

import enum
import struct

from tidegate.dialects.body import decode
from tidegate.model import Denial, Reason

PREFIX = 5
"""Bytes before each message."""

CODINGS = ("identity", "gzip", "deflate")
"""What a compressed message may be compressed with: ``grpc-encoding``. Others answer with UNIMPLEMENTED."""


class GrpcFault(enum.StrEnum):
    """Why a stream of messages cannot be read any further."""

    TOO_LARGE = "a message is larger than accepted"
    FLAG = "a message begins with a byte that is neither 0 nor 1"
    CODING = "a message is compressed by an algorithm other than gzip and deflate"
    BROKEN = "a compressed message cannot be decompressed, or expands too much"
    CUT = "it ends in the middle of a message"


class Deframer:
    """One direction of a call. ``encoding`` is its ``grpc-encoding``, ``limit`` the bytes of one message, plain.

    After a ``fault`` nothing more comes out.
    """

    __slots__ = ("_buffer", "_encoding", "_limit", "fault")

    def __init__(self, encoding: str, limit: int) -> None:
        self.fault: GrpcFault | None = None
        self._encoding = encoding.strip().lower() or "identity"
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes, cut anywhere; return the messages they complete, decompressed."""
        if self.fault is not None:
            return []
        self._buffer += chunk
        found: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= PREFIX:
            flag, length = struct.unpack_from(">BI", self._buffer, start)
            self.fault = self._prefix(flag, length)
            if self.fault is not None or len(self._buffer) - start < PREFIX + length:
                break
            data = bytes(self._buffer[start + PREFIX : start + PREFIX + length])
            plain = self._plain(data) if flag else data
            start += PREFIX + length
            if plain is None:
                break
            found.append(plain)
        del self._buffer[:start]
        return found

    def end(self) -> None:
        """End the direction: what is left of a message is a fault."""
        if self._buffer and self.fault is None:
            self.fault = GrpcFault.CUT

    @property
    def waiting(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._buffer)

    def _prefix(self, flag: int, length: int) -> GrpcFault | None:
        if flag > 1:
            return GrpcFault.FLAG
        if length > self._limit:
            return GrpcFault.TOO_LARGE
        coded = flag == 1 and self._encoding not in CODINGS[1:]  # "identity" with the flag is an error of the peer
        return GrpcFault.CODING if coded else None

    def _plain(self, data: bytes) -> bytes | None:
        plain = decode(data, [self._encoding], self._limit)
        if isinstance(plain, Denial):
            self.fault = GrpcFault.TOO_LARGE if plain.reason is Reason.BODY_TOO_LARGE else GrpcFault.BROKEN
            return None
        return plain


def frame(message: bytes) -> bytes:
    """Write a message, uncompressed."""
    return struct.pack(">BI", 0, len(message)) + message


def complete(data: bytes | bytearray) -> int:
    """Return how many of the first bytes are whole messages, or are none at all and will be refused."""
    at = 0
    while len(data) - at >= PREFIX:
        flag, length = struct.unpack_from(">BI", data, at)
        if flag > 1:
            return len(data)
        if len(data) - at < PREFIX + length:
            break
        at += PREFIX + length
    return at


def count(data: bytes) -> int:
    """Return how many whole messages there are."""
    found = at = 0
    while len(data) - at >= PREFIX:
        at += PREFIX + int(struct.unpack_from(">I", data, at + 1)[0])
        found += at <= len(data)
    return found
