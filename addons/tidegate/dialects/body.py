"""Bodies: content decoding under caps, strict JSON, and writing JSON again. Bytes in, values out.

What is forwarded is what was inspected: one parser decides what a body says, and its value is written anew. Whatever
two parsers could read in two ways (a repeated key, ``NaN``, broken UTF-8, bytes after the end) is refused.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence

import brotli  # type: ignore[import-untyped]
import orjson
import zstandard

from tidegate.model import Denial, Reason

MAX_LAYERS = 4
"""RFC 9110 sets no limit to stacked codings; nobody sends more than two."""
MAX_RATIO = 200
"""Text compresses 3 to 20 times, one word repeated up to 1,000 times; DEFLATE cannot do better than 1,032."""
RATIO_FLOOR = 256 * 1024
"""Below this size no ratio is suspicious: the work is bounded by the size itself."""
MAX_DEPTH = 100
"""Nesting of objects and lists. Protocol Buffers stop at 100 too; JSON Schema in tools reaches about 30."""
ZSTD_WINDOW = 8 * 1024 * 1024
"""RFC 8878 asks decoders to support this much; RFC 9659 forbids HTTP more."""


class _Refusal(Exception):
    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


def decode(data: bytes, encodings: Sequence[str], limit: int) -> bytes | Denial:
    """Undo the content codings of a body, the last applied first.

    ``encodings`` are the values of the content-encoding headers in order; ``limit`` caps the size in bytes after every
    layer. Denials: ``BODY_ENCODING`` (unknown, truncated, trailing bytes, expands too much) and ``BODY_TOO_LARGE``.
    """
    named = codings(encodings)
    if len(data) > limit:
        return _too_large(limit)
    if len(named) > MAX_LAYERS:
        return _encoding(415, f"it is encoded {len(named)} times; at most {MAX_LAYERS} are accepted")
    try:
        for coding in reversed(named):
            data = _undo(data, coding, limit)
    except _Refusal as refusal:
        return refusal.denial
    return data


def codings(encodings: Sequence[str]) -> list[str]:
    """Return the names of the codings in content-encoding headers, in the order in which they were applied."""
    return [name for value in encodings for part in value.split(",") if (name := part.strip().lower())]


def _undo(data: bytes, coding: str, limit: int) -> bytes:
    if coding == "identity":
        return data
    cap = min(limit, max(RATIO_FLOOR, len(data) * MAX_RATIO))
    try:
        match coding:
            case "gzip" | "x-gzip":
                plain = _inflate(data, 31, cap)  # one member: no client sends more, and many tiny ones cost time
            case "deflate":
                plain = _inflate(data, 15 if has_zlib_header(data) else -15, cap)
            case "br":
                plain = _brotli(data, cap)
            case "zstd":
                plain = _zstd(data, cap)
            case _:
                raise _Refusal(_encoding(415, "its content-encoding is none of gzip, deflate, br, zstd, identity"))
    except (zlib.error, brotli.error, zstandard.ZstdError):
        raise _Refusal(_encoding(400, f"it is not valid {coding}")) from None
    if len(plain) > cap:
        small = cap < limit
        raise _Refusal(_encoding(400, f"it expands more than {MAX_RATIO} times") if small else _too_large(limit))
    return plain


def has_zlib_header(data: bytes) -> bool:
    """Tell the zlib format from the bare DEFLATE that some senders mean by ``deflate`` (RFC 9110, section 8.4.1.2)."""
    return len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0


def _inflate(data: bytes, window: int, cap: int) -> bytes:
    stream = zlib.decompressobj(window)
    plain = stream.decompress(data, cap + 1)
    if len(plain) <= cap and (not stream.eof or stream.unused_data):
        raise zlib.error("truncated, or bytes after the end")
    return plain


def _brotli(data: bytes, cap: int) -> bytes:
    """Undo Brotli (RFC 7932). The decoder itself refuses bytes after the end; its pieces exceed the cap by 32 KB."""
    stream = brotli.Decompressor()
    pieces = [stream.process(data, output_buffer_limit=cap + 1)]
    size = len(pieces[0])
    while size <= cap and not stream.is_finished() and not stream.can_accept_more_data():
        pieces.append(stream.process(b"", output_buffer_limit=cap + 1 - size))
        size += len(pieces[-1])
    if size <= cap and not stream.is_finished():
        raise brotli.error("truncated")
    return b"".join(pieces)


def _zstd(data: bytes, cap: int) -> bytes:
    """Undo one Zstandard frame (RFC 8878): measured first by a bounded reader, then read to its end."""
    machine = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    with machine.stream_reader(data, read_across_frames=False) as reader:
        plain = reader.read(cap + 1)
    if len(plain) > cap:
        return plain
    stream = machine.decompressobj()
    whole = stream.decompress(data)
    if not stream.eof or stream.unused_data:
        raise zstandard.ZstdError("truncated, or bytes after the end")
    return whole


def _too_large(limit: int) -> Denial:
    return Denial(Reason.BODY_TOO_LARGE, 413, f"The body is larger than the {limit} bytes accepted here.")


def _encoding(status: int, what: str) -> Denial:
    return Denial(Reason.BODY_ENCODING, status, f"The body cannot be read: {what}.")


def strict_json(data: bytes) -> object | Denial:
    """Parse JSON that every parser reads alike.

    Denies (``BODY_MALFORMED``): no JSON, invalid UTF-8 or a byte order mark, a key twice in one object, ``NaN`` and
    infinities (``1e999`` too), numbers beyond Python's digit limit, nesting deeper than ``MAX_DEPTH``.
    """
    try:
        quick: object = orjson.loads(data)
        flat = data.count(b"{") + data.count(b"[") <= MAX_DEPTH  # so that most need no measuring
        if _is_same(orjson.dumps(quick), data) and (flat or _depth(quick) <= MAX_DEPTH):
            return quick  # written anew it is the same bytes, so nothing was lost: what most SDKs send
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # a lone surrogate, say, or deep nesting: the strict parser says
    return _strictly(data)


def _is_same(written: bytes, data: bytes) -> bool:
    """Say that two JSON texts are the same but for spaces: then they have the same tokens, each key as often.

    Without spaces a text still has its tokens, since a mark stands between any two numbers or words; its strings are
    shorter, in both texts alike.
    """
    return written == data or (
        len(written) < len(data) and written.translate(None, _SPACES) == data.translate(None, _SPACES)
    )


def _strictly(data: bytes) -> object | Denial:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _malformed("it is not valid UTF-8")
    try:
        value: object = _DECODER.decode(text)
    except _Refusal as refusal:
        return refusal.denial
    except RecursionError:
        return _malformed(f"it nests deeper than {MAX_DEPTH} levels")
    except ValueError:  # JSONDecodeError quotes the text, and so must not be chained or shown
        return _malformed("it is not JSON")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return _malformed(f"it nests deeper than {MAX_DEPTH} levels")
    return value


def dump(value: object) -> bytes:
    """Write what ``strict_json`` gave as JSON: compact, UTF-8; a body with lone surrogates is written with escapes."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # a lone surrogate, a large number or deep nesting
        return _dump_rare(value)


def _dump_rare(value: object) -> bytes:
    try:
        return _PLAIN.encode(value).encode("utf-8")
    except UnicodeEncodeError:
        return _ESCAPED.encode(value).encode("ascii")


def _malformed(what: str) -> Denial:
    return Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refusal(_malformed("an object holds the same key twice"))
    return members


def _constant(_: str) -> object:
    raise _Refusal(_malformed("NaN and Infinity are not JSON"))


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refusal(_malformed("a number is too large"))
    return value


def _depth(value: object) -> int:
    """Measure nesting without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


_SPACES = b" \t\r\n"
_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_constant, parse_float=_float)
_PLAIN = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
