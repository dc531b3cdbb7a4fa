"""Bytes that travel inside a text: base64, and data: URLs (RFC 2397). Read strictly, so that no reader reads more."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from tidegate.inspection.engine import count, encode
from tidegate.inspection.patterns import compile_re2


def base64(text: str) -> bytes | None:
    """Decode base64 of either alphabet, padded or not, with white space in it; ``None`` for anything else."""
    try:
        plain = text.encode("ascii").translate(None, b" \t\r\n").rstrip(b"=")
        if b"-" in plain or b"_" in plain:
            plain = plain.translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError
        return None


_URL = compile_re2(r"[Dd][Aa][Tt][Aa]:[^,\s\"'<>()]{0,200};[Bb][Aa][Ss][Ee]64,[A-Za-z0-9+/_%-]{24,}={0,2}")


def may_hold(json: bytes) -> bool:
    """Say cheaply whether a JSON text may hold a data: URL in base64, which ends its head with ``;base64,``."""
    return b"64," in json or b"\\u" in json


def urls(text: str) -> Iterator[tuple[int, int, bytes]]:
    """Find the data: URLs that stand inside a text: where each begins and ends, in characters, and what it holds."""
    coded = encode(text)
    end, seen = 0, 0
    for match in _URL.finditer(coded):
        start = end + count(coded[seen : match.start()])
        end, seen = start + len(match.group()), match.end()
        opened = url(match.group().decode("ascii"))
        if opened is not None:
            yield start, end, opened[1]


def url(text: str) -> tuple[str, bytes] | None:
    """Open a data: URL: everything before its data, and the data; ``None`` where it is none that can be read."""
    head, comma, rest = text.partition(",")
    if head[:5].lower() != "data:" or not comma:
        return None
    if head.rstrip().lower().endswith(";base64"):
        data = base64(unquote_to_bytes(rest).decode("latin-1") if "%" in rest else rest)
    else:
        data = unquote_to_bytes(rest.encode("utf-8", "surrogatepass"))
    return None if data is None else (head, data)
