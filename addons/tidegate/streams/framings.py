"""Find the framing of an answer from its first bytes. The header only decides where the bytes leave it open.

Law: how the bytes are cut does not matter. What fits no framing is ``None``, and is refused.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

from tidegate.dialects.body import strict_json
from tidegate.dialects.spec import FramingKind
from tidegate.model import Denial
from tidegate.streams.array import JsonArray
from tidegate.streams.eventstream import PRELUDE, EventStream
from tidegate.streams.framing import Framing
from tidegate.streams.ndjson import Ndjson
from tidegate.streams.sse import Sse
from tidegate.streams.text import PlainText

MAKERS: Mapping[FramingKind, Callable[[], Framing]] = {
    FramingKind.SSE: Sse,
    FramingKind.NDJSON: Ndjson,
    FramingKind.ARRAY: JsonArray,
    FramingKind.EVENTSTREAM: EventStream,
    FramingKind.TEXT: PlainText,
}

LABELS: Mapping[str, FramingKind] = {
    "text/event-stream": FramingKind.SSE,
    "application/x-ndjson": FramingKind.NDJSON,
    "application/stream+json": FramingKind.NDJSON,
    "application/vnd.amazon.eventstream": FramingKind.EVENTSTREAM,
}
"""The media types of streams. ``application/json`` is none: whole answers have it, and streams of several families."""

_BOM = b"\xef\xbb\xbf"
_SSE = re.compile(rb"(?:data|event|id|retry)?:")
_SSE_NAMES = (b"data:", b"event:", b"id:", b"retry:")


class Undecided(Exception):
    """More bytes are needed to tell."""


def find(head: bytes, label: str, known: Collection[FramingKind], *, final: bool) -> FramingKind | None:
    """Tell the framing of an answer that begins with ``head``; ``None`` for one that is not among those ``known``.

    ``label`` is the media type of the answer; ``final``: ``head`` is all there is. An answer without any byte but white
    space counts as JSON. Raises ``Undecided`` where more bytes could make a difference.
    """
    if head[:1] == b"\0":  # of the length of a message: no text begins so, and no message of 16 MB is read
        return _messages(head, known, final=final)
    if not final and _BOM.startswith(head):
        raise Undecided
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    if not text:
        if final:
            return FramingKind.JSON
        raise Undecided
    if text[:1] == b"{" and FramingKind.NDJSON in known:
        return _lines(text, final=final)
    if text[:1] == b"[" and FramingKind.ARRAY in known:
        return FramingKind.ARRAY
    if text[:1] in (b"{", b"["):
        return FramingKind.JSON
    found = _sse(text, label, final=final) or FramingKind.TEXT
    return found if found in known else None


def _messages(head: bytes, known: Collection[FramingKind], *, final: bool) -> FramingKind | None:
    """Tell messages of an event stream by the checksum of the first one's lengths."""
    if len(head) < PRELUDE and not final:
        raise Undecided
    sealed = len(head) >= PRELUDE and struct.unpack_from(">I", head, 8)[0] == zlib.crc32(head[:8])
    return FramingKind.EVENTSTREAM if sealed and FramingKind.EVENTSTREAM in known else None


def _sse(text: bytes, label: str, *, final: bool) -> FramingKind | None:
    """Say whether a text is server-sent events: by its label whatever it is, else by its first line."""
    if LABELS.get(label) is FramingKind.SSE or _SSE.match(text):
        return FramingKind.SSE  # a reader of events passes over lines it does not know
    if not final and any(name.startswith(text) for name in _SSE_NAMES):
        raise Undecided
    return None


def _lines(text: bytes, *, final: bool) -> FramingKind:
    """Tell lines of JSON from one value that may be written on many: by whether the first line is a value."""
    line, end, _ = text.partition(b"\n")
    if not end:
        if final:
            return FramingKind.JSON
        raise Undecided
    return FramingKind.JSON if isinstance(strict_json(line), Denial) else FramingKind.NDJSON


def expected(label: str, known: Sequence[FramingKind]) -> FramingKind:
    """Return the framing that a client waits for, before any byte of the answer has told."""
    array = label == "application/json" and FramingKind.ARRAY in known
    labelled = FramingKind.ARRAY if array else LABELS.get(label, known[0])
    return labelled if labelled in known else known[0]
