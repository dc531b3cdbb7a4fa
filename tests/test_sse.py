"""Server-sent events in every spelling the standard allows, cut everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.streams.framing import Frame, FrameFault
from tidegate.streams.sse import Sse, rewrite, write

GRAMMAR = {
    "lf": (b"data: a\n\ndata: b\n\n", [(None, "a"), (None, "b")]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [(None, "a"), (None, "b")]),
    "cr": (b"data: a\r\rdata: b\r\r", [(None, "a"), (None, "b")]),
    "mixed line ends": (b"event: x\r\ndata: a\n\r\ndata: b\r\n\ndata: c\r\r\n", [("x", "a"), (None, "b"), (None, "c")]),
    "several data lines": (b"data: a\ndata: b\ndata:\n\n", [(None, "a\nb\n")]),
    "no space after the colon": (b"event:x\ndata:a\n\n", [("x", "a")]),
    "only one space belongs to the colon": (b"data:  a\n\n", [(None, " a")]),
    "data without a colon": (b"data\n\n", [(None, "")]),
    "id and retry": (b"id: 7\nretry: 10\ndata: a\n\n", [(None, "a")]),
    "comments": (b": hello\n\n:\ndata: a\n: x\n\n", [(None, None), (None, "a")]),
    "unknown fields": (b"datax: a\ndat: b\ndata : c\n\n", [(None, None)]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [(None, "a"), (None, "b")]),
    "a second mark is text": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(None, "a"), (None, None)]),
    "no line break but CR and LF": (
        "data: a\u2028b\u0085c\x0bd\x0ce\n\n".encode(),
        [(None, "a\u2028b\u0085c\x0bd\x0ce")],
    ),
    "last event without its empty line": (b"data: a\n\ndata: b\n", [(None, "a"), (None, "b")]),
    "last event without any line end": (b"data: a\n\ndata: b", [(None, "a"), (None, "b")]),
    "empty lines before": (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [(None, "a"), (None, "b")]),
    "the last name counts": (b"event: x\nevent: y\ndata: a\n\n", [("y", "a")]),
}


def read(pieces: list[bytes], limit: int = 1000) -> tuple[list[Frame], Sse]:
    parser = Sse(limit)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.end(), parser


def spoken(events: list[Frame]) -> list[tuple[str | None, str | None, tuple[str, ...]]]:
    return [(e.name, e.data, e.others) for e in events if e.data is not None or e.others]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000], ids="pieces of {}".format)
@pytest.mark.parametrize(("stream", "expected"), GRAMMAR.values(), ids=GRAMMAR.keys())
def test_grammar(stream: bytes, expected: list[tuple[str | None, str | None]], cut: int) -> None:
    events, parser = read([stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert parser.fault is None
    assert [(name, data) for name, data, _ in spoken(events)] == expected
    assert b"".join(e.raw for e in events) == stream


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [b"data: x", b"data:", b"event: e", b": c", b"\r", b"\n", b"\r\n", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"y"]
        )
    ),
    st.data(),
)
def test_any_cut_reads_alike(parts: list[bytes], draw: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, _ = read([stream])
    events, _ = read(pieces)
    assert spoken(events) == spoken(whole)
    assert b"".join(e.raw for e in events) == stream


def test_an_event_leaves_with_its_empty_line() -> None:
    parser = Sse()
    assert [e.data for e in parser.feed(b"data: a\r\n\r")] == ["a"]
    assert [e.data for e in parser.feed(b"\ndata: b\r\r")] == ["b"]


def test_what_comes_last_may_be_incomplete() -> None:
    events, _ = read([b"data: a\n\ndata: b\n"])
    assert [e.whole for e in events] == [True, False]


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(
    ("stream", "fault", "before"),
    [
        (b"data: a\n\ndata: \xff\n\ndata: b\n\n", FrameFault.UNREADABLE, ["a"]),
        (b"data: a\n\ndata: \xed\xa0\x80\n\ndata: b\n\n", FrameFault.UNREADABLE, ["a"]),
        (b"data: a\n\ndata: " + b"b" * 60 + b"\n\ndata: c\n\n", FrameFault.TOO_LARGE, ["a"]),
        (b"data: a\n\n" + b": b\n" * 30 + b"\n", FrameFault.TOO_LARGE, ["a"]),
        (b"data: a\n\ndata: \xe2\x80", FrameFault.UNREADABLE, ["a"]),
    ],
    ids=["not UTF-8", "a surrogate", "a long line", "many lines", "cut inside a character"],
)
def test_after_a_fault_nothing_comes(stream: bytes, fault: FrameFault, before: list[str], cut: int) -> None:
    events, parser = read([stream[i : i + cut] for i in range(0, len(stream), cut)], limit=50)
    assert (parser.fault, [e.data for e in events]) == (fault, before)
    assert parser.feed(b"data: d\n\n") == []


def test_a_long_event_is_refused_before_it_ends() -> None:
    parser = Sse(limit=50)
    parser.feed(b"x" * 51)
    assert parser.fault is FrameFault.TOO_LARGE


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: a\n\n", b"data: Z\n\n"),
        (b": c\r\nevent: e\r\ndata:a\r\ndata: b\r\nid: 1\r\n\r\n", b": c\r\nevent: e\r\ndata:Z\r\nid: 1\r\n\r\n"),
        (b"\xef\xbb\xbfdata: a\r\r", b"\xef\xbb\xbfdata: Z\r\r"),
        (b"\ndata: a\n\n", b"\ndata: Z\n\n"),
        (b"data: a", b"data: Z"),
        (b"data: a\nid: 1\ndata: b\n\n", b"data: Z\nid: 1\n\n"),
        (b"data\nretry: 1\n\n", b"data:Z\nretry: 1\n\n"),
        ("data: a\u2028\n\n".encode(), b"data: Z\n\n"),
    ],
)
def test_rewriting_keeps_the_other_lines(raw: bytes, expected: bytes) -> None:
    events, _ = read([raw])
    assert b"".join(rewrite(e, b"Z") for e in events) == expected


@pytest.mark.parametrize(
    ("name", "like", "expected"),
    [
        (None, b"data: a\n\n", b"data: {}\n\n"),
        ("e", b"event: e\r\ndata: a\r\n\r\n", b"event: e\r\ndata: {}\r\n\r\n"),
        ("e", b"data: a\r\r", b"event: e\rdata: {}\r\r"),
        (None, b"", b"data: {}\n\n"),
    ],
)
def test_a_new_event_ends_its_lines_like_its_neighbour(name: str | None, like: bytes, expected: bytes) -> None:
    assert write(name, b"{}", like) == expected


def test_text_of_an_event_is_not_in_its_repr() -> None:
    (event,) = Sse().feed(b": sesame\ndata: sesame\n\n")
    assert "sesame" not in repr(event)
