"""Plain text that is streamed: cut anywhere, masked like the whole, in its framing and through a whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, MAIL, PEM, always, engine
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Dialect, FramingKind
from tidegate.model import Action, Reason
from tidegate.streams import framings
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.framing import Frame, FrameFault
from tidegate.streams.redactor import redact, short_name
from tidegate.streams.text import PlainText

DIALECT = """
dialect: plain
version: 1
error: {body: {error: "${message}"}, event: {error: "${message}"}, types: {other: x}}
endpoints:
  predict:
    methods: [POST]
    paths: [/predictions/*]
    stream:
      framing: [text, sse]
      deltas: [{path: $.text}]
"""


@cache
def dialect() -> Dialect:
    found, faults = parse_dialect(DIALECT, "plain.yaml")
    assert faults == ()
    assert found is not None
    return found


def gate(action: Action = Action.REDACT) -> StreamedAnswer:
    head = AnswerHead("text/plain", 200)
    return StreamedAnswer(dialect().endpoints["predict"], dialect().error, engine(), always(action), "ex-1", head)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    marks = [0, *sorted(each % (len(data) + 1) for each in at), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


def relayed(pieces: Sequence[bytes], action: Action = Action.REDACT) -> tuple[bytes, StreamedAnswer]:
    answer = gate(action)
    return b"".join(answer.feed(piece) for piece in pieces) + answer.end(), answer


SAID = st.lists(
    st.sampled_from([KEY, KEY[:7], MAIL, CARD, PEM, PEM[:20], "hello ", "é", "日本", "😀", "\n", '"', "\\", " "]),
    min_size=1, max_size=8,
).map(lambda parts: "x" + "".join(parts))  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(SAID, st.lists(st.integers(0, 400), max_size=30))
def test_any_cut_gives_what_redacting_the_whole_gives(said: str, at: list[int]) -> None:
    out, answer = relayed(cut(said.encode(), at))
    assert answer.denial is None
    assert out.decode() == redact(engine(), always(Action.REDACT), short_name, said)[0]


def test_every_cut_in_two_of_a_fixed_text() -> None:
    said = f"é {KEY} 😀 {MAIL} and {PEM} end".encode()
    whole = relayed([said])[0]
    assert KEY.encode() not in whole
    for at in range(len(said) + 1):
        assert relayed([said[:at], said[at:]])[0] == whole
    assert relayed([said[i : i + 1] for i in range(len(said))])[0] == whole


@settings(max_examples=100, deadline=None)
@given(SAID, st.lists(st.integers(0, 400), max_size=30))
def test_clean_text_leaves_with_its_bytes_and_what_leaves_is_never_masked_later(said: str, at: list[int]) -> None:
    pieces = cut(said.encode(), at)
    assert relayed(pieces, Action.ALLOW)[0] == said.encode()
    final = redact(engine(), always(Action.REDACT), short_name, said)[0].encode()
    answer, out = gate(), b""
    for piece in pieces:
        out += answer.feed(piece)
        assert final.startswith(out)


def test_it_is_live() -> None:
    answer = gate()
    assert answer.feed(b"Hello ") == b"Hello "
    assert answer.feed(b"there, ") == b"there, "
    assert answer.feed(KEY[:9].encode()) == b""
    assert answer.held == 9


def test_a_finding_that_is_blocked_ends_it_with_the_error_on_a_line_of_its_own() -> None:
    out, answer = relayed([b"see ", KEY.encode(), b" end"], Action.BLOCK)
    assert answer.denial is not None
    assert answer.denial.reason is Reason.ANSWER_FINDING
    assert out.startswith(b'see \n{"error":"Blocked by policy: ')
    assert KEY.encode() not in out


def test_what_is_no_text_ends_it() -> None:
    out, answer = relayed([b"see ", b"\xff\xfe", KEY.encode()])
    assert answer.denial is not None
    assert answer.denial.reason is Reason.ANSWER_MALFORMED
    assert KEY.encode() not in out


def test_a_character_that_the_end_cuts_off_is_left_out() -> None:
    assert relayed(["aé".encode()[:2]])[0] == b"a"


def test_other_framings_are_told_first() -> None:
    assert framings.find(b"data: x", "text/plain", (FramingKind.TEXT, FramingKind.SSE), final=True) is FramingKind.SSE
    assert framings.find(b"data: x", "text/plain", (FramingKind.TEXT,), final=True) is None
    assert framings.find(b"hello", "text/event-stream", (FramingKind.TEXT,), final=True) is None
    assert framings.find(b'{"a', "text/plain", (FramingKind.TEXT,), final=True) is FramingKind.JSON
    assert framings.find(b"hello", "text/plain", (FramingKind.SSE,), final=True) is None


@settings(max_examples=100)
@given(st.text(st.characters(blacklist_categories=("Cs",))), st.lists(st.integers(0, 200), max_size=20))
def test_frames_hold_the_bytes_that_were_fed(text: str, at: list[int]) -> None:
    framing = PlainText()
    frames: list[Frame] = [frame for piece in cut(text.encode(), at) for frame in framing.feed(piece)] + framing.end()
    assert framing.fault is None
    assert b"".join(frame.raw for frame in frames) == text.encode()
    assert b"".join(framing.changed(frame, (frame.data or "").encode()) for frame in frames) == text.encode()


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3("])
def test_after_a_fault_nothing_comes(bad: bytes) -> None:
    framing = PlainText()
    assert framing.feed(b"a")
    assert framing.feed(bad) == []
    assert framing.fault is FrameFault.UNREADABLE
    assert framing.feed(b"b") == []
