"""A whole streamed answer: bytes in, bytes out, and how it is cut short."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import (
    CARD,
    FAMILIES,
    FORMS,
    KEY,
    MAIL,
    Said,
    always,
    answer,
    dialect,
    endpoint,
    engine,
    events_of,
    every,
    pieces,
    read,
    run,
    sse,
    stream_of,
)
from tidegate.model import Action, Denial, Reason
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.channels import HeldCaps
from tidegate.streams.sse import Sse

STOPPED = Denial(Reason.ANSWER_IDLE, 504, "The upstream was silent for too long.")


def delta(text: str, finish: str | None = None) -> bytes:
    return sse([(None, {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})])


def texts(stream: bytes) -> str:
    return read("chat", stream).text


UNTOUCHED = {
    "spaces in the JSON": b'data: { "choices" : [ ] }\n\n',
    "escapes": b'data: {"choices":[{"index":0,"delta":{"content":"\\u0041 \\/ "}}]}\n\n',
    "number forms": b'data: {"created":1e3,"choices":[]}\n\n',
    "line ends": b": hello\r\n\r\nevent: x\r\nid: 7\r\nretry: 5\r\ndata:{}\r\n\r\n",
    "several data lines": b'data: {"choices":\ndata: []}\n\n',
    "an event without data": b"event: x\n\n",
    "empty data": b"data:\n\ndata: \n\n",
    "the terminator": b"data: [DONE]\n\n",
    "a byte order mark": b"\xef\xbb\xbfdata: {}\n\n",
    "no last empty line": b"data: {}",
    "nothing": b"",
}


@pytest.mark.parametrize("stream", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_clean_bytes_pass_as_they_came(stream: bytes) -> None:
    gate = answer("chat")
    assert (run(gate, stream), gate.denial) == (stream, None)


def test_a_changed_event_keeps_its_other_lines() -> None:
    stream = b'id: 7\r\ndata: {"note": "' + CARD.encode() + b'"}\r\n\r\n'
    assert run(answer("chat"), stream) == b'id: 7\r\ndata: {"note":"[REDACTED:card]"}\r\n\r\n'


@pytest.mark.parametrize("line", [f": {KEY}", f"event: {KEY}", f"id: {KEY}", f"x: {KEY}", KEY])
def test_a_line_that_holds_a_finding_does_not_leave(line: str) -> None:
    gate = answer("chat")
    out = run(gate, f'{line}\ndata: {{"choices":[]}}\n\n{line}\n\n'.encode())
    assert out == b'data: {"choices":[]}\n\n\n'
    assert {finding.where for finding in gate.findings} == {"stream:line"}


ENDS = {
    "[DONE]": b"data: [DONE]\n\n",
    "the end of the stream": b"",
    "a cut inside an event": b'data: {"choices":[{"index":0,"delta":{"content":"sk-AbC',
    "a cut inside a character": b'data: {"choices":[{"index":0,"delta":{"content":"\xc3',
}


@pytest.mark.parametrize("tail", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize(("text", "left"), [(KEY, "[REDACTED:key]"), ("sk-AbC", "sk-AbC")], ids=["masked", "safe"])
def test_held_text_leaves_at_every_end(text: str, left: str, tail: bytes) -> None:
    gate = answer("chat")
    out = run(gate, delta(f"a {text}") + tail)
    assert gate.denial is None
    assert texts(out) == f"a {left}"
    assert out.endswith(b"data: [DONE]\n\n") == (tail == ENDS["[DONE]"])


def test_an_event_without_its_empty_line_is_closed_before_more_is_said() -> None:
    out = run(answer("chat"), delta("a sk-AbC").removesuffix(b"\n\n"))
    assert out.count(b"\n\n") == 2
    assert texts(out) == "a sk-AbC"


MALFORMED = {
    "no JSON": b"data: {\n\n",
    "a key twice": b'data: {"choices":[],"choices":[]}\n\n',
    "no object": b"data: []\n\n",
    "NaN": b'data: {"a":NaN}\n\n',
    "not UTF-8": b"data: \xff\n\n",
    "another event inside": b"event: error\ndata: {} {}\n\n",
    "plain text": b"data: " + KEY.encode() + b"\n\n",
}


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("name", ["chat", "messages"])
def test_what_cannot_be_read_ends_the_answer(name: str, bad: bytes) -> None:
    gate = answer(name)
    before = sse(FAMILIES[name](Said("Hi! "), every(9)))[:-30].rpartition(b"\n\n")[0] + b"\n\n"
    out = run(gate, before + bad + delta("later"))
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_MALFORMED
    assert out.startswith(before)
    _, error = events_of(out[len(before) :])[0]
    assert "ex-1" in json.dumps(error)
    assert len(events_of(out[len(before) :])) == 1
    assert KEY not in out.decode()


def test_an_event_too_large_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = answer("chat")
    gate._framing = Sse(100)
    out = gate.feed(delta("a! ")) + gate.feed(b"data: " + b"x" * 200)
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_TOO_LARGE
    assert out.startswith(delta("a! "))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_blocked_finding_cuts_the_answer(name: str, size: int) -> None:
    stream = stream_of(name, Said(f"The key is {KEY}, and so on"), every(size))
    gate = answer(name, Action.BLOCK)
    out = run(gate, stream, range(0, len(stream), 11))
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_FINDING
    *before, (_, error) = FORMS[name].events(out)
    assert b"[DONE]" not in out
    assert not any(isinstance(e, dict) and e.get("type") in ("message_stop", "response.completed") for _, e in before)
    assert "Blocked by policy" in json.dumps(error)
    assert b"sk-A" not in out
    assert "The key is ".startswith(read(name, b"".join(pieces(name, before))).text)
    assert gate.feed(stream) == gate.end() == b""


def test_stopping_says_why_and_keeps_what_was_held() -> None:
    gate = answer("messages")
    stream = sse(FAMILIES["messages"](Said(f"a {MAIL}"), every(50)))
    out = gate.feed(stream[: stream.index(b"event: content_block_stop")])
    last = gate.stop(STOPPED)
    assert events_of(last)[0][0] == "error"
    assert STOPPED.message in last.decode()
    assert "jane" not in (out + last).decode()
    assert (gate.denial, gate.feed(stream), gate.end(), gate.stop(STOPPED)) == (STOPPED, b"", b"", b"")


def test_beyond_the_caps_the_answer_ends_and_nothing_held_leaves() -> None:
    gate = answer("chat", caps=HeldCaps(channel=5))
    out = gate.feed(delta("a! sk-AbCd"))
    assert gate.denial is not None
    assert "sk-" not in out.decode()


def test_findings_name_channel_and_span() -> None:
    gate = answer("chat")
    run(gate, delta(f"ab {KEY[:6]}") + delta(f"{KEY[6:]}. "))
    (finding,) = gate.findings
    assert (finding.where, finding.start, finding.end) == ("stream:$.choices[0].delta.content", 3, 3 + len(KEY))


LABELS = ["application/x-ndjson", "application/vnd.amazon.eventstream", "application/json", "text/plain", ""]


def whole_answer(name: str, label: str, status: int, body: bytes, cuts: Sequence[int]) -> tuple[bytes, StreamedAnswer]:
    shape = dialect(FORMS[name].dialect).error
    gate = StreamedAnswer(endpoint(name), shape, engine(), always(Action.REDACT), "ex-1", AnswerHead(label, status))
    return run(gate, body, cuts), gate


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["chat", "ollama", "gemini", "converse"])
@given(cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=20, deadline=None)
def test_one_json_value_in_a_streams_place_is_inspected_as_a_whole(name: str, label: str, cuts: list[int]) -> None:
    body = f'{{\n "error": "the key is {KEY}"\n}}'.encode()
    out, gate = whole_answer(name, label, 200, body, [min(cut, len(body)) for cut in cuts])
    assert out == b'{"error":"the key is [REDACTED:key]"}'
    assert [finding.where for finding in gate.findings] == ["$.error"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["chat", "ollama", "gemini", "converse"])
def test_an_error_may_be_a_plain_text(name: str, label: str) -> None:
    body = f"upstream says no to {KEY}".encode()
    out, gate = whole_answer(name, label, 502, body, range(0, len(body), 3))
    assert (out, gate.denial) == (b"upstream says no to [REDACTED:key]", None)
    _, gate = whole_answer(name, label, 200, body, ())
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_MALFORMED
