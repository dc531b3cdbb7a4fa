"""Undo the content codings of a streamed answer while it arrives, under the bounds of whole bodies.

Law: what comes out, and whether it is refused for its size or its end, does not depend on how the bytes are cut. So
bounds are asked at every ``BLOCK`` bytes of input, wherever a cut falls, and exactly what a bound allows comes out
before the refusal. What a sender has flushed comes out with the bytes that bring it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from tidegate.dialects.body import MAX_LAYERS, MAX_RATIO, RATIO_FLOOR, ZSTD_WINDOW, codings, has_zlib_header
from tidegate.model import Denial, Reason

BLOCK = 64
"""Bytes of input between two looks at the bounds. A call of a decoder costs about a microsecond; and as Zstandard's
tells no bound for one call, this many bytes are what can grow at once: to 2 MB, sixteen repeats of 128 KB."""

KNOWN = frozenset({"identity", "gzip", "x-gzip", "deflate", "br", "zstd"})


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out; after a ``denial`` nothing more does."""

    data: bytes = field(repr=False)
    denial: Denial | None = None


class _Decoder(Protocol):
    """One coding. ``feed`` may return a little more than ``room`` bytes; then no more is asked of it."""

    @property
    def over(self) -> bool:
        """Whether the end of the coding was read."""

    @property
    def trailing(self) -> bool:
        """Whether more stood behind the end."""

    def feed(self, data: bytes, room: int, /) -> bytes:
        """Take bytes; return what they say."""


class Unpacker:
    """The codings of one answer, the last applied undone first; ``limit`` caps the bytes that come out of each."""

    def __init__(self, encodings: Sequence[str], limit: int) -> None:
        self._layers = [_Layer(name, limit) for name in reversed(codings(encodings)) if name != "identity"]
        self._denial: Denial | None = None

    def feed(self, data: bytes) -> Unpacked:
        """Take bytes, cut anywhere; return what they say."""
        if self._denial is not None:
            return Unpacked(b"", self._denial)
        for layer in self._layers:
            data = layer.feed(data)
        return Unpacked(data, self._fault())

    def end(self) -> Denial | None:
        """End the answer: refuse one that is cut off inside a coding."""
        if self._denial is None and not all(layer.over for layer in self._layers):
            self._denial = _malformed("it is cut off inside its content-encoding")
        return self._denial

    def _fault(self) -> Denial | None:
        self._denial = next((layer.denial for layer in self._layers if layer.denial is not None), None)
        return self._denial


def can_undo(encodings: Sequence[str]) -> bool:
    """Say whether these codings are known, and not too many."""
    named = codings(encodings)
    return len(named) <= MAX_LAYERS and KNOWN.issuperset(named)


class _Layer:
    """One coding under its bounds."""

    def __init__(self, name: str, limit: int) -> None:
        self._decoder = _MAKERS[name]()
        self._limit = limit
        self._read = self._written = 0
        self.denial: Denial | None = None

    @property
    def over(self) -> bool:
        return self._decoder.over

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        at = 0
        while at < len(data) and self.denial is None:
            step = min(BLOCK - self._read % BLOCK, len(data) - at)
            self._read += step
            out.append(self._step(data[at : at + step]))
            at += step
        return b"".join(out)

    def _step(self, data: bytes) -> bytes:
        if self._decoder.over:
            self.denial = _malformed(_TRAILING)
            return b""
        fed = -(-self._read // BLOCK) * BLOCK
        allowed = min(self._limit, max(RATIO_FLOOR, fed * MAX_RATIO))
        room = allowed - self._written
        try:
            plain = self._decoder.feed(data, room + 1)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            self.denial = _malformed("its content-encoding cannot be undone")
            return b""
        if self._decoder.trailing:
            self.denial = _malformed(_TRAILING)
        if len(plain) > room:
            small = allowed < self._limit
            self.denial = _malformed(f"it expands more than {MAX_RATIO} times") if small else _TOO_LARGE
            plain = plain[:room]
        self._written += len(plain)
        return plain


class _Inflate:
    """gzip (RFC 1952) or zlib (RFC 1950); one member, as in whole bodies."""

    def __init__(self, window: int = 31) -> None:
        self._stream = zlib.decompressobj(window)

    @property
    def over(self) -> bool:
        return self._stream.eof

    @property
    def trailing(self) -> bool:
        return bool(self._stream.unused_data)

    def feed(self, data: bytes, room: int) -> bytes:
        return self._stream.decompress(data, room)


class _Deflate:
    """``deflate``: zlib, or the bare DEFLATE that some senders mean; the first two bytes tell."""

    def __init__(self) -> None:
        self._inner: _Inflate | None = None
        self._head = b""

    @property
    def over(self) -> bool:
        return self._inner is not None and self._inner.over

    @property
    def trailing(self) -> bool:
        return self._inner is not None and self._inner.trailing

    def feed(self, data: bytes, room: int) -> bytes:
        if self._inner is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            self._inner = _Inflate(15 if has_zlib_header(self._head) else -15)
            data = self._head
        return self._inner.feed(data, room)


class _Brotli:
    """``br`` (RFC 7932). The decoder itself refuses bytes after the end; its pieces exceed the room by 32 KB."""

    trailing = False

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def over(self) -> bool:
        return bool(self._stream.is_finished())

    def feed(self, data: bytes, room: int) -> bytes:
        pieces = [self._stream.process(data, output_buffer_limit=room)]
        size = len(pieces[0])
        while size < room and not self._stream.is_finished() and not self._stream.can_accept_more_data():
            pieces.append(self._stream.process(b"", output_buffer_limit=room - size))
            size += len(pieces[-1])
        return b"".join(pieces)


class _Zstd:
    """``zstd`` (RFC 8878): one frame."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()

    @property
    def over(self) -> bool:
        return bool(self._stream.eof)

    @property
    def trailing(self) -> bool:
        return bool(self._stream.unused_data)

    def feed(self, data: bytes, _room: int) -> bytes:
        return bytes(self._stream.decompress(data))


_MAKERS: Mapping[str, Callable[[], _Decoder]] = {
    "gzip": _Inflate, "x-gzip": _Inflate, "deflate": _Deflate, "br": _Brotli, "zstd": _Zstd,
}  # fmt: skip

_TRAILING = "it goes on after the end of its content-encoding"
_TOO_LARGE = Denial(Reason.ANSWER_TOO_LARGE, 502, "The answer is larger than the gateway accepts once it is unpacked.")


def _malformed(what: str) -> Denial:
    return Denial(Reason.ANSWER_MALFORMED, 502, f"The upstream's answer cannot be read: {what}.")
