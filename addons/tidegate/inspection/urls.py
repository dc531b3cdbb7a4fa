"""The data: URLs that stand inside texts. Apart from ``attachments``, whose process starts without the engine."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.inspection.attachments.packed import url
from tidegate.inspection.engine import count, encode
from tidegate.inspection.patterns import compile_re2

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
