"""Which framing an answer has: told by its bytes, however they are cut, by its label only where they leave it open."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter

import pytest

from tests.wire import RECORDED, message_piece
from tidegate.dialects.spec import FramingKind
from tidegate.streams import framings
from tidegate.streams.framings import Undecided, expected, find

EVERY = tuple(kind for kind in framings.MAKERS if kind is not FramingKind.TEXT)
"""All that tell by their bytes; any other text is ``TEXT``, where that may come."""
JSON, SSE, NDJSON, ARRAY = FramingKind.JSON, FramingKind.SSE, FramingKind.NDJSON, FramingKind.ARRAY
MESSAGES = FramingKind.EVENTSTREAM
EVENT_STREAM, AWS = "text/event-stream", "application/vnd.amazon.eventstream"

BYTES = {
    "sse": (b"data: {}\n\n", "", SSE),
    "sse with names": (b"event: x\ndata: {}\n\n", "application/json", SSE),
    "sse: a comment": (b": PROCESSING\n\n", "text/plain", SSE),
    "sse: an id": (b"id: 7\n\n", "", SSE),
    "sse: a time": (b"retry: 7\n\n", "", SSE),
    "sse: empty lines before": (b"\n\r\n\ndata: {}\n\n", "", SSE),
    "sse: a byte order mark": (b"\xef\xbb\xbfdata: {}\n\n", "", SSE),
    "sse: a line nobody knows, labelled": (b"hello\n\n", EVENT_STREAM, SSE),
    "a line nobody knows": (b"hello\n\n", "", None),
    "almost a field": (b"database: x\n\n", "", None),
    "the beginning of a field": (b"dat", "", None),
    "json": (b'{"a": 1}', "", JSON),
    "json labelled sse": (b'{"error": 1}', EVENT_STREAM, JSON),
    "json after white space": (b"\n \n  {}", EVENT_STREAM, JSON),
    "json after a byte order mark": (b"\xef\xbb\xbf{}", "", JSON),
    "ndjson": (b'{"a": 1}\n{"a": 2}\n', "", NDJSON),
    "ndjson: one line": (b'{"a": 1}\r\n', EVENT_STREAM, NDJSON),
    "ndjson: white space before": (b'\n {"a": 1}\n', "", NDJSON),
    "json on many lines": (b'{\n "a": 1}\n', "application/x-ndjson", JSON),
    "a line that is no json": (b'{"a": 1]\n{"a": 2}\n', "application/x-ndjson", JSON),
    "array": (b'[{"a": 1}\n,\r\n{"a": 2}\n]', "application/json", ARRAY),
    "array: white space and a mark": (b"\xef\xbb\xbf\n [{}]", EVENT_STREAM, ARRAY),
    "event stream": (message_piece("chunk", b"{}"), "application/json", MESSAGES),
    "event stream: a bad checksum": (b"\0\0\0\x20\0\0\0\0\0\0\0\0" + b"\0" * 20, AWS, None),
    "event stream: too short": (b"\0\0\0\x20\0\0", AWS, None),
    "nothing": (b"", EVENT_STREAM, JSON),
    "only white space": (b" \r\n", EVENT_STREAM, JSON),
    "bytes": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "", None),
    "zeros": (b"\0" * 64, "", None),
    "half a byte order mark": (b"\xef\xbb", "", None),
}


def slowly(stream: bytes, label: str, known: tuple[FramingKind, ...] = EVERY) -> FramingKind | None:
    """Give the bytes one by one; once told, more bytes must not change it."""
    told: list[FramingKind | None] = []
    for end in range(len(stream) + 1):
        try:
            told.append(find(stream[:end], label, known, final=False))
        except Undecided:
            assert not told
    told.append(find(stream, label, known, final=True))
    assert len(set(told)) == 1
    return told[0]


@pytest.mark.parametrize(("stream", "label", "kind"), BYTES.values(), ids=BYTES.keys())
def test_the_bytes_tell(stream: bytes, label: str, kind: FramingKind | None) -> None:
    assert slowly(stream, label) is kind


@pytest.mark.parametrize("kind", EVERY)
def test_a_framing_that_the_endpoint_does_not_have_is_none(kind: FramingKind) -> None:
    stream, label, _ = next(each for each in BYTES.values() if each[2] is kind)
    others = tuple(each for each in EVERY if each is not kind)
    assert slowly(stream, label, others) in (None, JSON)


def test_what_a_client_waits_for() -> None:
    assert expected("", (SSE,)) is SSE
    assert expected(EVENT_STREAM, (SSE,)) is SSE
    assert expected("application/json", (SSE,)) is SSE
    assert expected("application/json", (SSE, ARRAY)) is ARRAY
    assert expected("", (SSE, ARRAY)) is SSE
    assert expected(EVENT_STREAM, (NDJSON,)) is NDJSON


def test_recorded_answers_are_told_by_their_bytes() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded exchanges are not on this machine")
    found: Counter[str] = Counter()
    with gzip.open(RECORDED, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            response = row["response"]
            if isinstance(response["body"], str) and "-ws" not in row["api"]:
                coded = response.get("body_encoding") == "base64"
                body = base64.b64decode(response["body"]) if coded else response["body"].encode()
                found[str(find(body, "", EVERY, final=True))] += 1
    assert found["sse"] == 574
    assert found["array"] == 11
    assert found["ndjson"] == 121, "13 of many lines, the others are one line of JSON with a line end"
    assert found["eventstream"] == 52
    assert found["None"] == 4, "two SDP answers, an MP3, and the text of a 404"
