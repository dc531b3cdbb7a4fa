"""A JSON array that comes in pieces, cut everywhere; and a Gemini answer that crosses in it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, Said, answer, array_of, every, read, run, stream_of
from tidegate.model import Action, Denial, Reason
from tidegate.streams.array import JsonArray
from tidegate.streams.framing import Frame, FrameFault

GRAMMAR = {
    "as Google writes it": (b'[{"a": 1}\n,\r\n{"b": 2}\n]\n', ['{"a": 1}', '{"b": 2}', None]),
    "compact": (b'[{"a":1},{"b":2}]', ['{"a":1}', '{"b":2}', None]),
    "empty": (b" [ ] ", [None]),
    "brackets in strings": (b'[{"a":"]},{["},{"b":["\\"]}"]}]', ['{"a":"]},{["}', '{"b":["\\"]}"]}', None]),
    "backslashes at the end of strings": (b'[{"a":"\\\\"},{"b":"\\\\\\""}]', ['{"a":"\\\\"}', '{"b":"\\\\\\""}', None]),
    "nested": (b'[{"a":{"b":[{"c":[]}]}}]', ['{"a":{"b":[{"c":[]}]}}', None]),
    "a byte order mark": (b'\xef\xbb\xbf[{"a":1}]', ['{"a":1}', None]),
    "characters of many bytes": ('[{"a":"é\U0001f600"}]'.encode(), ['{"a":"é\U0001f600"}', None]),
}


def frames(pieces: list[bytes], limit: int = 1000) -> tuple[list[Frame], JsonArray]:
    framing = JsonArray(limit)
    found = [frame for piece in pieces for frame in framing.feed(piece)]
    return found + framing.end(), framing


def objects(found: list[Frame]) -> list[str | None]:
    return [frame.data for frame in found if frame.whole]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000], ids="pieces of {}".format)
@pytest.mark.parametrize(("stream", "expected"), GRAMMAR.values(), ids=GRAMMAR.keys())
def test_grammar(stream: bytes, expected: list[str | None], cut: int) -> None:
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert framing.fault is None
    assert objects(found) == expected
    assert [frame.closes for frame in found if frame.whole] == [data is None for data in expected]
    assert b"".join(frame.raw for frame in found) == stream


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b" ", b"{}", b'{"a":"x"}', b"\xc3\xa9"])),
    st.data(),
)
def test_any_cut_reads_alike(parts: list[bytes], draw: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, framing = frames([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    whole, other = frames([stream])
    assert (found, framing.fault) == (whole, other.fault)
    assert framing.fault or b"".join(frame.raw for frame in found) == stream


@settings(max_examples=300)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=9) | st.lists(st.text(max_size=3))), max_size=4))
def test_it_reads_what_json_reads(values: list[dict]) -> None:
    found, framing = frames([bytes([byte]) for byte in json.dumps(values, ensure_ascii=False).encode()], 10_000)
    assert framing.fault is None
    assert [json.loads(data) for data in objects(found) if data] == values


UNREADABLE = {
    "no comma": b"[{}{}]",
    "a comma first": b"[,{}]",
    "a comma last": b"[{},]",
    "two commas": b"[{},,{}]",
    "a number": b"[{},1]",
    "a text": b'["x"]',
    "an array in it": b"[[{}]]",
    "an object alone": b"{}",
    "something behind it": b"[{}] {}",
    "not UTF-8": b'[{"a":"\xff"}]',
    "nothing in it": b"x",
}


@pytest.mark.parametrize("cut", [1, 1000])
@pytest.mark.parametrize("stream", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_another_reader_could_read_otherwise_is_a_fault(stream: bytes, cut: int) -> None:
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert framing.fault is FrameFault.UNREADABLE
    assert framing.feed(b",{}]") == framing.end() == []
    assert all(frame.data in ("{}", None) for frame in found)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_long_object_is_refused_before_it_ends(cut: int) -> None:
    stream = b'[{"a":1},{"b":"' + b"x" * 60
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)], limit=50)
    assert (framing.fault, objects(found)) == (FrameFault.TOO_LARGE, ['{"a":1}'])


def test_writing() -> None:
    (first, second, last), framing = frames([b'[{"a":1}\n,\r\n{"b":2}\n]'])
    out = framing.same(first) + framing.added(b"{}", first) + framing.changed(second, b'{"b":3}') + framing.same(last)
    assert out == b'[{"a":1},\r\n{}\n,\r\n{"b":3}\n]'
    assert framing.refusal(b'{"error":1}', None) == b"", "after its end nothing can be said"


@pytest.mark.parametrize("before", [b"", b'[{"a":1}', b'[{"a":1},\r\n'])
def test_a_refusal_closes_the_array(before: bytes) -> None:
    framing = JsonArray()
    out = b"".join(map(framing.same, framing.feed(before)))
    assert json.loads(out + framing.refusal(b'{"error":1}', None)) == [*([{"a": 1}] if before else []), {"error": 1}]


# ── an answer ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_masked_answer_is_still_json() -> None:
    stream = stream_of("gemini array", Said(f"a {KEY} b", "I think"), every(2))
    for cut in range(0, len(stream), 97):
        events = json.loads(run(answer("gemini array"), stream, [cut]))
        assert "sk-A" not in json.dumps(events)


def test_a_call_is_masked_in_its_arguments_and_its_signature_stays() -> None:
    sign = "c2lnbmF0dXJl" * 8
    call = {"functionCall": {"name": "f", "args": {"to": ["x", KEY], CARD: 1}}, "thoughtSignature": sign}
    stream = b"[" + json.dumps({"candidates": [{"content": {"parts": [call]}}]}).encode() + b"]"
    ((_, event),) = array_of(run(answer("gemini array"), stream))
    (part,) = event["candidates"][0]["content"]["parts"]
    assert part["functionCall"]["args"] == {"to": ["x", "[REDACTED:key]"], "[REDACTED:card]": 1}
    assert part["thoughtSignature"] == sign


def test_tokens_do_not_leave_where_answers_are_masked() -> None:
    candidate = {"index": 0, "logprobsResult": {"chosenCandidates": [{"token": "x"}]}}
    stream = json.dumps([{"candidates": [candidate]}]).encode()
    assert json.loads(run(answer("gemini array"), stream)) == [{"candidates": [{"index": 0, "logprobsResult": None}]}]
    assert run(answer("gemini array", Action.FLAG), stream) == stream


def text(part: str, **more: object) -> bytes:
    return json.dumps({"candidates": [{"content": {"parts": [{"text": part}]}, **more}]}).encode()


LAST = {
    "the end of the array": b"]",
    "a finish reason": b"," + text("", index=0, finishReason="STOP") + b"]",
    "an error": b',{"error":{"code":503,"message":"x"}}]',
    "nothing": b"",
    "a cut inside an object": b',{"candidates":[{"content":{"parts":[{"text":"sk-',
}


@pytest.mark.parametrize("last", LAST.values(), ids=LAST.keys())
def test_held_text_leaves_at_every_end(last: bytes) -> None:
    out = run(answer("gemini array"), b"[" + text("a sk-AbC", index=0) + last)
    events = [event for _, event in array_of(out)]
    said = [part["text"] for each in events for c in each.get("candidates", ()) for part in c["content"]["parts"]]
    assert "".join(said) == "a sk-AbC"
    assert out.endswith(b"]") == last.endswith(b"]")


@pytest.mark.parametrize("bad", [b"1]", b'{"a":1,"a":2}]', b'{"a":NaN}]', b'{"a":"\xff"}]', b"data: {}"])
def test_what_cannot_be_read_ends_the_answer(bad: bytes) -> None:
    gate = answer("gemini array")
    out = json.loads(run(gate, b"[" + text("Hi! ") + b"," + bad))
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_MALFORMED
    assert out[0] == json.loads(text("Hi! "))
    assert out[1]["error"]["code"] == 502
    assert "ex-1" in out[1]["error"]["message"]


def test_stopping_before_anything_came_speaks_in_an_array() -> None:
    last = answer("gemini array").stop(Denial(Reason.ANSWER_IDLE, 504, "Too slow."))
    (error,) = json.loads(last)
    assert (error["error"]["status"], error["error"]["message"]) == ("DEADLINE_EXCEEDED", "Too slow. (request ex-1)")


def test_candidates_without_an_index_are_the_first() -> None:
    stream = b"[" + text("sk-Ab", index=0) + b"," + text("other ", index=1) + b"," + text("Cd1234EfGh ") + b"]"
    first = [e for _, e in array_of(run(answer("gemini array"), stream)) if e["candidates"][0].get("index", 0) == 0]
    said = "".join(part["text"] for each in first for part in each["candidates"][0]["content"]["parts"])
    assert said == "[REDACTED:key] "
    assert read("gemini array", run(answer("gemini array"), stream)).text == "other "
