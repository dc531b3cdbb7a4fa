"""Newline-delimited JSON, cut everywhere; and an Ollama answer that crosses in it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, Said, answer, every, lines_of, read, run, stream_of
from tidegate.model import Action, Denial, Reason
from tidegate.streams.framing import Frame, FrameFault
from tidegate.streams.ndjson import Ndjson

GRAMMAR = {
    "lf": (b'{"a":1}\n{"b":2}\n', ['{"a":1}', '{"b":2}']),
    "crlf": (b'{"a":1}\r\n{"b":2}\r\n', ['{"a":1}', '{"b":2}']),
    "spaces": (b' {"a": 1} \n', ['{"a": 1}']),
    "empty lines": (b'\n\r\n{"a":1}\n \n', [None, None, '{"a":1}', None]),
    "no last line end": (b'{"a":1}\n{"b":2}', ['{"a":1}', '{"b":2}']),
    "no line end but LF": ('{"a":"\u2028\u0085"}\n'.encode(), ['{"a":"\u2028\u0085"}']),
    "nothing": (b"", []),
}


def frames(pieces: list[bytes], limit: int = 1000) -> tuple[list[Frame], Ndjson]:
    framing = Ndjson(limit)
    found = [frame for piece in pieces for frame in framing.feed(piece)]
    return found + framing.end(), framing


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000], ids="pieces of {}".format)
@pytest.mark.parametrize(("stream", "expected"), GRAMMAR.values(), ids=GRAMMAR.keys())
def test_grammar(stream: bytes, expected: list[str | None], cut: int) -> None:
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert framing.fault is None
    assert [frame.data for frame in found] == expected
    assert b"".join(frame.raw for frame in found) == stream
    assert [frame.whole for frame in found] == [frame.raw.endswith(b"\n") for frame in found]


@settings(max_examples=300)
@given(st.lists(st.sampled_from([b"{}", b'{"a":"x"}', b"\r", b"\n", b"\r\n", b" ", b"\xe2\x80\xa8"])), st.data())
def test_any_cut_reads_alike(parts: list[bytes], draw: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, _ = frames([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    assert found == frames([stream])[0]
    assert b"".join(frame.raw for frame in found) == stream


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b'{"a":1}\n"\xff"\n{}\n', FrameFault.UNREADABLE),
        (b'{"a":1}\n"\xed\xa0\x80"\n{}\n', FrameFault.UNREADABLE),
        (b'{"a":1}\n' + b"x" * 60 + b"\n{}\n", FrameFault.TOO_LARGE),
        (b'{"a":1}\n"\xe2\x80', FrameFault.UNREADABLE),
    ],
    ids=["not UTF-8", "a surrogate", "a long line", "cut inside a character"],
)
def test_after_a_fault_nothing_comes(stream: bytes, fault: FrameFault, cut: int) -> None:
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)], limit=50)
    assert (framing.fault, [frame.data for frame in found]) == (fault, ['{"a":1}'])
    assert framing.feed(b"{}\n") == []


def test_writing() -> None:
    (first, second), framing = frames([b'{"a":1}\r\n{"b":2}'])
    assert framing.changed(first, b'{"a":3}') == b'{"a":3}\r\n'
    assert framing.added(b"{}", first) == b"{}\r\n"
    assert framing.same(second) == b'{"b":2}'
    assert framing.refusal(b'{"error":"x"}', None) == b'\n{"error":"x"}\n', "a line that was left open is ended"
    assert framing.refusal(b'{"error":"x"}', None) == b'{"error":"x"}\n'


def test_what_some_readers_take_for_a_line_end_is_escaped() -> None:
    (frame,), framing = frames([b"{}\n"])
    written = framing.changed(
        frame, json.dumps({"a": "\u2028\u2029\x85"}, ensure_ascii=False, separators=(",", ":")).encode()
    )
    assert written == b'{"a":"\\u2028\\u2029\\u0085"}\n'
    assert len(written.decode().splitlines()) == 1


# ── an answer ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_masked_in_its_arguments() -> None:
    call = {"id": "call_gsiiy8py", "function": {"index": 0, "name": "f", "arguments": {"to": ["x", KEY], CARD: 1}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    stream = json.dumps({"model": "m", "message": message, "done": False}).encode() + b"\n"
    (_, event), = lines_of(run(answer("ollama"), stream))  # fmt: skip
    (call,) = event["message"]["tool_calls"]
    assert call["function"]["arguments"] == {"to": ["x", "[REDACTED:key]"], "[REDACTED:card]": 1}
    assert (call["id"], call["function"]["name"]) == ("call_gsiiy8py", "f")


def test_token_ids_and_tokens_do_not_leave_where_answers_are_masked() -> None:
    last = {"model": "m", "response": "", "done": True, "context": [1, 2345678], "logprobs": [{"token": "x"}]}
    stream = json.dumps(last).encode() + b"\n"
    (_, event), = lines_of(run(answer("generate"), stream))  # fmt: skip
    assert (event["context"], event["logprobs"]) == ([], [])
    assert run(answer("generate", Action.FLAG), stream) == stream


@pytest.mark.parametrize("last", [b'{"message":{"content":""},"done":true}\n', b'{"error":"out of memory"}\n', b""])
def test_held_text_leaves_before_the_last_line(last: bytes) -> None:
    stream = b'{"message":{"content":"a sk-AbC"},"done":false}\n' + last
    out = run(answer("ollama"), stream)
    assert read("ollama", out).text == "a sk-AbC"
    assert lines_of(out)[-1][1].keys() == json.loads(last or stream).keys()


def test_a_line_that_is_made_up_has_a_role() -> None:
    message = {"role": "assistant", "content": "", "thinking": "a sk-AbC"}
    stream = json.dumps({"model": "m", "message": message, "done": False}).encode() + b"\n"
    out = lines_of(run(answer("ollama"), stream + b'{"model":"m","done":true}\n'))
    added = {"model": "m", "message": {**message, "thinking": "sk-AbC"}, "done": False}
    assert [event for _, event in out][1] == added


def test_a_last_line_may_lack_its_end() -> None:
    stream = stream_of("ollama", Said(f"a {KEY}"), every(3)).removesuffix(b"\n")
    out = run(answer("ollama"), stream)
    assert not out.endswith(b"\n")
    assert read("ollama", out + b"\n").text == "a [REDACTED:key]"


@pytest.mark.parametrize("bad", [b"[]\n", b'"text"\n', b"{} {}\n", b'{"a":1,"a":2}\n', b"data: {}\n", b"\xff\n"])
def test_what_cannot_be_read_ends_the_answer(bad: bytes) -> None:
    before = b'{"message":{"content":"Hi! "},"done":false}\n'
    gate = answer("ollama")
    out = run(gate, before + bad + before)
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_MALFORMED
    assert out.startswith(before)
    (_, error), = lines_of(out.removeprefix(before))  # fmt: skip
    assert "ex-1" in error["error"]


def test_stopping_before_anything_came_speaks_in_lines() -> None:
    gate = answer("ollama")
    last = gate.stop(Denial(Reason.ANSWER_IDLE, 504, "Too slow."))
    assert lines_of(last) == [(None, {"error": "Too slow. (request ex-1)", "code": "answer_idle"})]
