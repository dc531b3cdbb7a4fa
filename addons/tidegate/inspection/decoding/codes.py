"""Encodings of bytes as text: which runs are encoded, and what they say. What does not say text is left alone."""

from __future__ import annotations

import base64
import binascii
import html
import re
import zlib
from collections.abc import Iterable, Iterator
from unicodedata import category

from tidegate.inspection.decoding.views import BREAK, Edit
from tidegate.inspection.patterns import compile_re2

MAX_UNPACKED = 1 << 16
"""Bytes that one compressed run is unpacked to. What is not compressed cannot grow, and is decoded whole."""
_PROBE = 12
"""Characters decoded to see whether a run says text at all: nine bytes of chance are text once in 7,000 times."""
_READABLE = 0.7  # of the characters of a text outside ASCII
_UNSEEN = ("Cf", "Mn")
_SHIFTED = 512
_PADDING = 8
_SHORTEST = 14
_MAX_PADDING = 6  # base32 has up to six
_SAMPLED = 256

_ESCAPES = compile_re2(
    r"(?:%[0-9A-Fa-f]{2})+|(?:&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});)+"
    r"|(?:\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|\\x[0-9A-Fa-f]{2}|\\[nrtbf\x22'/\x5c0])+"
    r"|(?:=[0-9A-F]{2}){2,}|=\r?\n"
)
_MARKS = (b"%", b"&", b"\\", b"=")
_MEMBERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-")
_RUNS = compile_re2(r"[A-Za-z0-9+/_-]{14,}")
_APART = bytes(byte if chr(byte) in _MEMBERS else 0x20 for byte in range(256))
_WRAPPED = compile_re2(r"(?:[A-Za-z0-9+/]{60}[A-Za-z0-9+/]*\r?\n)+[A-Za-z0-9+/]{1,80}={0,2}")
_LISTS = compile_re2(
    r"(?:[0-9A-Fa-f]{2}[ :,-]){7,}[0-9A-Fa-f]{2}|[01]{8}(?: ?[01]{8}){7,}|(?:[0-9]{2,3}, ?){7,}[0-9]{2,3}"
)
_LABELS = compile_re2(r"(?:[0-9A-Fa-f]{16,63}\.)+[0-9A-Fa-f]{2,63}")
_LINE = compile_re2(r"[A-Za-z0-9+/]{20}\r?\n[A-Za-z0-9+/]{4}")
# The beginning of a text in UTF-8, a little wider than it may be: most runs say none, and are told by this alone.
_BEGINNING = re.compile(
    rb"(?:[\t\n\r -~]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})*+"
)
_ALPHABET = bytes.maketrans(b"-_", b"+/")
_LOWER = bytes(range(0x61, 0x7B)) + b"_-/+="
_CONTROLS = bytes(set(range(0x20)) - {9, 10, 13}) + b"\x7f"
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_HEX = b"0123456789abcdefABCDEF"
_HEX_MARKS = (b"0x", b"0X")
_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567="
_PAIR = compile_re2(r"[0-9A-Fa-f]{2}")
_ESCAPE = re.compile(rb"\\(?:u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_COMMON = {b"\\n": b"\n", b'\\"': b'"', b"\\t": b"\t", b"\\/": b"/"}
_SHORT = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b" ", b"f": b" ", b"0": b" "}


def escaped(data: bytes) -> Iterator[Edit]:
    """Find runs of percent, HTML, backslash and quoted-printable escapes."""
    if not any(mark in data for mark in _MARKS):
        return
    for match in _ESCAPES.finditer(data):
        start, end = match.span()  # each question to a match of RE2's binding costs as much as the match
        run = data[start:end]
        said = _COMMON.get(run) or _unescaped(run)
        if said is not None and said != run:
            yield start, end, said


def _unescaped(run: bytes) -> bytes | None:
    head = run[:1]
    if head == b"%":
        return bytes.fromhex(run.replace(b"%", b"").decode())
    if head == b"&":
        return html.unescape(run.decode()).encode("utf-8", "replace")
    if head == b"=":
        return b"" if run[1:2] in b"\r\n" else bytes.fromhex(run.replace(b"=", b"").decode())
    return _ESCAPE.sub(_one, run)


def _one(match: re.Match[bytes]) -> bytes:
    wide, four, two, short = match.groups()
    if short is not None:
        return _SHORT.get(short, short)
    code = int(wide or four or two, 16)
    return chr(code).encode("utf-8", "surrogatepass") if code < 0x110000 else b" "


def run_ends(data: bytes) -> list[int]:
    """Return the ends of all runs that ``encoded`` looks at."""
    return [match.end() for match in _RUNS.finditer(data)]


def encoded(data: bytes, ends: Iterable[int]) -> Iterator[Edit]:
    """Read the runs that say text in base64, base64url, base32 or hexadecimal; ``ends`` is where they end."""
    apart = data.translate(_APART)
    for end in ends:
        start = apart.rfind(b" ", 0, end) + 1
        run = data[start:end]
        if not run.translate(None, _LOWER):  # words: what is encoded has capitals or digits
            continue
        said = _said(run)
        if said is not None:
            padding = data[end : end + _MAX_PADDING]
            yield start, end + len(padding) - len(padding.lstrip(b"=")), said
        elif b"/" in run[:-1]:  # a part of an address or a path may be encoded by itself
            yield from _between_slashes(start, run)


def wrapped(data: bytes) -> Iterator[Edit]:
    """Find base64 that is broken into lines."""
    if b"\n" in data and _LINE.search(data):
        for match in _WRAPPED.finditer(data):
            said = _base64(match.group())
            if said is not None:
                yield match.start(), match.end(), said


def listed(data: bytes) -> Iterator[Edit]:
    """Find text written as bits, as decimal or as hexadecimal codes."""
    for match in _LISTS.finditer(data):
        said = _listed(match.group())
        if said is not None:
            yield match.start(), match.end(), said


def labelled(data: bytes) -> Iterator[Edit]:
    """Find text written in hexadecimal as labels of a host name."""
    for match in _LABELS.finditer(data):
        digits = match.group().replace(b".", b"")
        said = None if len(digits) & 1 else _text(bytes.fromhex(digits.decode()))
        if said is not None:
            yield match.start(), match.end(), said


def _between_slashes(start: int, run: bytes) -> Iterator[Edit]:
    for part in run.split(b"/"):
        if len(part) >= _SHORTEST and (said := _said(part)) is not None:
            yield start, start + len(part), said
        start += len(part) + 1


def _said(run: bytes) -> bytes | None:
    """Return the text a run says; ``None`` when it says none."""
    if run[:2] in _HEX_MARKS and not run[2:].translate(None, _HEX):
        run = run[2:]
    if not run.translate(None, _HEX):
        digits = run[: len(run) & ~1].decode()
        return _text(bytes.fromhex(digits)) or (_base64(run) if len(run) < 64 else None)
    if run[2:3] == b"-" and not run.translate(None, _HEX + b"-"):
        return _listed(run)
    if not run.translate(None, b"01"):
        return _listed(run)
    if not run.translate(None, _BASE32) and (said := _base32(run)):
        return said
    if not run.translate(None, _BASE32.lower()) and (said := _base32(run.upper())):
        return said
    return _base64(run)


def _listed(run: bytes) -> bytes | None:
    """Read codes with something between them: bits, decimal or hexadecimal numbers."""
    bits = run.replace(b" ", b"")
    if not bits.translate(None, b"01"):
        codes = [int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8)]
    elif (b"," in run and max(map(len, run.replace(b" ", b"").split(b","))) == 3) or _decimal(run):
        codes = [int(each) for each in run.replace(b" ", b"").split(b",")]
    else:
        codes = [int(each, 16) for each in _PAIR.findall(run)]
    return _text(bytes(codes)) if all(0 <= code < 256 for code in codes) else None


def _decimal(run: bytes) -> bool:
    codes = run.replace(b" ", b"").split(b",")
    return len(codes) > 1 and all(each.isdigit() and int(each) >= 32 for each in codes)


def _base32(run: bytes) -> bytes | None:
    body = run.rstrip(b"=")
    try:
        return _text(base64.b32decode(body + b"=" * (-len(body) % 8)))
    except (binascii.Error, ValueError):
        return None


def _base64(run: bytes) -> bytes | None:
    """Decode base64 of either alphabet, wrapped or not, and what is compressed in it."""
    body = run.translate(_ALPHABET, b"\r\n=")
    packed = _is_packed(body)
    if not packed:
        begin = next((skip for skip in range(4) if _begins_text(body[skip : skip + _PROBE])), None)
        if begin is None:
            return None
        body = body[begin:]  # cut out of more, it may begin in the middle of a group
    if len(body) % 4 == 1:
        body = body[:-1]
    data = binascii.a2b_base64(body + b"=" * (-len(body) % 4))
    said = _text(_unpacked(data)) if packed else _text(data)
    if said is None:
        return None
    said = _unpadded(said)
    if len(said) > _SHIFTED:
        return said
    return BREAK.join((said, said[1:], said[2:]))  # cut out of a longer run, it may begin with what belongs to another


def _is_packed(body: bytes) -> bool:
    head = binascii.a2b_base64(body[:4])
    return head[:2] == b"\x1f\x8b" or (head[:1] == b"\x78" and head[1:2] in b"\x01\x5e\x9c\xda")


def _begins_text(body: bytes) -> bool:
    """Say whether the beginning of what base64 says may be text."""
    if len(body) != _PROBE:
        return False
    probe = binascii.a2b_base64(body)
    told = _BEGINNING.match(probe)
    assert told is not None
    return told.end() >= len(probe) - 3 and (probe.isascii() or _utf8(probe)) and not _controls(probe)


def _unpadded(said: bytes) -> bytes:
    """Take off what only fills the run: the same character many times."""
    for side in (said[:1], said[-1:]):
        if side.isalpha() and (said.startswith(side * _PADDING) or said.endswith(side * _PADDING)):
            said = said.strip(side)
    return said


def _controls(data: bytes) -> bool:
    return len(data.translate(None, _CONTROLS)) < len(data)


def _utf8(data: bytes) -> bool:
    """Say whether bytes can be the beginning of UTF-8 text."""
    read = len(data.decode("utf-8", "ignore").encode())
    return read >= len(data) - 3 and data.startswith(data[:read].decode("utf-8", "ignore").encode())


def _unpacked(data: bytes) -> bytes:
    """Inflate gzip or zlib data, as far as it is looked at; what is broken gives nothing."""
    try:
        return zlib.decompressobj(47).decompress(data, MAX_UNPACKED)
    except zlib.error:
        return b""


def _text(data: bytes) -> bytes | None:
    """Return bytes that are text; ``None`` for any others."""
    if len(data) < 6:
        return None
    if not data.translate(None, _PRINTABLE):
        return data
    if data.isascii() or not _utf8(data) or _controls(data):
        return None
    text = data.decode("utf-8", "ignore")
    some = text[:_SAMPLED]
    read = sum(each.isalnum() or each.isspace() or category(each) in _UNSEEN for each in some)
    return text.encode() if read > _READABLE * len(some) else None
