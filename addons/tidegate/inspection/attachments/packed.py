"""Bytes that travel inside a text: base64, and data: URLs (RFC 2397). Read strictly, so that no reader reads more."""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes


def base64(text: str) -> bytes | None:
    """Decode base64 of either alphabet, padded or not, with white space in it; ``None`` for anything else."""
    try:
        plain = text.encode("ascii").translate(None, b" \t\r\n").rstrip(b"=")
        if b"-" in plain or b"_" in plain:
            plain = plain.translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError
        return None


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
