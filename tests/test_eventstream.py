"""Amazon's event streams, cut everywhere, judged by the AWS SDK; and Bedrock's answers that cross in them."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import (
    CARD,
    FORMS,
    KEY,
    Said,
    answer,
    chunk_piece,
    compact,
    every,
    message_piece,
    messages_of,
    pieces,
    read,
    run,
    stream_of,
)
from tidegate.model import Action, Denial, Reason
from tidegate.streams.eventstream import EventStream, text_header, write
from tidegate.streams.framing import Frame, FrameFault

ONE = message_piece("contentBlockDelta", b'{"a":1}')
TWO = message_piece("metadata", b'{"b":"\xc3\xa9"}')
ODD = b"".join(
    [
        bytes([1]) + b"t" + b"\0",
        bytes([1]) + b"f" + b"\x01",
        bytes([1]) + b"b" + b"\x02\x07",
        bytes([1]) + b"s" + b"\x03\0\x07",
        bytes([1]) + b"i" + b"\x04" + struct.pack(">i", 41111111),
        bytes([1]) + b"l" + b"\x05" + struct.pack(">q", -5),
        bytes([1]) + b"y" + b"\x06\0\x02hi",
        bytes([1]) + b"d" + b"\x08" + struct.pack(">q", 1700000000000),
        bytes([1]) + b"u" + b"\x09" + b"\0" * 16,
    ]
)


def frames(parts: list[bytes], limit: int = 1000) -> tuple[list[Frame], EventStream]:
    framing = EventStream(limit)
    found = [frame for part in parts for frame in framing.feed(part)]
    return found + framing.end(), framing


@settings(max_examples=200)
@given(st.lists(st.sampled_from([ONE, TWO, message_piece("x", b"")])), st.data())
def test_any_cut_reads_alike(parts: list[bytes], draw: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, framing = frames([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    assert framing.fault is None
    assert found == frames([stream])[0]
    assert [frame.raw for frame in found] == parts


def test_what_a_message_says() -> None:
    (frame,), _ = frames([ONE])
    assert (frame.name, frame.data, frame.whole) == ("contentBlockDelta", '{"a":1}', True)
    assert set(frame.others) == {
        ":event-type", ":content-type", ":message-type", "contentBlockDelta", "application/json", "event",
    }  # fmt: skip
    fields = {"message-type": "error", "error-code": "E", "error-message": "m"}
    (error,), _ = frames([message_piece(None, b"", **fields)])
    assert (error.name, error.data) == ("E", None)
    (odd,), _ = frames([write(ODD + text_header(":message-type", "event"), b"{}")])
    assert {"41111111", "-5", "hi", "1700000000000"} <= set(odd.others)


def spoilt(at: int, message: bytes = ONE) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def sealed(total: int, head: int, rest: bytes) -> bytes:
    start = struct.pack(">II", total, head)
    message = start + struct.pack(">I", zlib.crc32(start)) + rest
    return message + struct.pack(">I", zlib.crc32(message))


UNREADABLE = {
    "the length": spoilt(3),
    "the length of the headers": spoilt(7),
    "the checksum of the lengths": spoilt(9),
    "a header": spoilt(20),
    "the payload": spoilt(len(ONE) - 6),
    "the last checksum": spoilt(len(ONE) - 1),
    "a length that is too short": sealed(15, 0, b""),
    "headers longer than the message": sealed(20, 40, b"1234"),
    "a header that ends after them": write(text_header(":message-type", "event")[:-1], b"{}"),
    "a type of header that there is not": write(b"\x01x\x0a", b"{}"),
    "a header twice": write(text_header(":message-type", "event") * 2, b"{}"),
    "no kind of message": write(text_header(":event-type", "x"), b"{}"),
    "another kind of message": write(text_header(":message-type", "x"), b"{}"),
    "a payload that is not UTF-8": message_piece("x", b'"\xff"'),
    "text": b"data: {}\n\n" + b" " * 20,
}


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_a_fault(bad: bytes, cut: int) -> None:
    stream = ONE + bad + TWO * 3
    found, framing = frames([stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert framing.fault is FrameFault.UNREADABLE
    assert [frame.raw for frame in found] == [ONE]
    assert framing.feed(ONE) == []


def test_a_long_message_is_refused_before_it_comes() -> None:
    found, framing = frames([ONE, message_piece("x", b"x" * 500)[:12]], limit=200)
    assert (len(found), framing.fault) == (1, FrameFault.TOO_LARGE)


def test_what_is_written_is_what_the_sdk_reads() -> None:
    (frame, other), framing = frames([ONE + TWO])
    assert framing.same(frame) == ONE
    out = framing.changed(frame, b'{"a":2}') + framing.added(b'{"c":3}', other)
    assert messages_of(out) == [("contentBlockDelta", {"a": 2}), ("metadata", {"c": 3})]
    refusal = framing.refusal(b'{"message":"no"}', "modelStreamErrorException")
    assert messages_of(refusal) == [("modelStreamErrorException", {"message": "no"})]


@settings(max_examples=100)
@given(st.dictionaries(st.text("abc-:", min_size=1, max_size=9), st.text(max_size=20)), st.binary(max_size=50))
def test_messages_of_any_headers_are_what_the_sdk_reads(headers: dict[str, str], payload: bytes) -> None:
    from botocore.eventstream import EventStreamBuffer

    buffer = EventStreamBuffer()
    buffer.add_data(write(b"".join(text_header(*each) for each in headers.items()), payload))
    (message,) = buffer
    assert (message.headers, message.payload) == (headers, payload)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["name", "value"])
def test_a_finding_in_a_header_does_not_leave(where: str) -> None:
    more = {KEY: "x"} if where == "name" else {"trace": f"a {KEY}"}
    stream = message_piece("messageStart", b'{"role":"assistant"}', **more)
    out = run(answer("converse"), stream)
    assert KEY.encode() not in out
    (message,) = messages_of(out)
    assert message == (None, {"role": "assistant"})


@pytest.mark.parametrize("name", ["converse", "invoke"])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_masked_event_is_as_long_as_it_was(name: str, size: int) -> None:
    stream = stream_of(name, Said(f"a {'x' * 40} {KEY} b!"), every(size))
    out = run(answer(name), stream)
    assert read(name, out).text == f"a {'x' * 40} [REDACTED:key] b!"
    before, after = (pieces_of(each) for each in (stream, out))
    changed = [(len(old), len(new)) for old, new in zip(before, after, strict=True) if old != new]
    assert all(new >= old for old, new in changed), "text that waited makes the event longer that carries it"
    assert any(new == old for old, new in changed)


def pieces_of(stream: bytes) -> list[bytes]:
    return [frame.raw for frame in EventStream().feed(stream)]


def test_arguments_of_a_call_stay_json() -> None:
    source = json.dumps({"card": CARD, "n": 4})
    for name in ("converse", "invoke"):
        out = run(answer(name), stream_of(name, Said(tools=(source,)), every(3)))
        assert json.loads(read(name, out).tools[0]) == {"card": "[REDACTED:card]", "n": 4}


@pytest.mark.parametrize("name", ["converse", "invoke"])
def test_a_signature_goes_with_the_text_it_signs(name: str) -> None:
    clean = stream_of(name, Said(thinking="I think!"), every(8))
    assert run(answer(name), clean) == clean
    out = run(answer(name), stream_of(name, Said(thinking=f"I know {KEY} now"), every(3)))
    assert "c2lnbmF0dXJl" not in json.dumps(messages_of(out))


def test_a_trace_does_not_leave_where_answers_are_masked() -> None:
    stream = message_piece("metadata", compact({"usage": {}, "trace": {"guardrail": {"modelOutput": ["x"]}}}))
    assert messages_of(run(answer("converse"), stream)) == [("metadata", {"usage": {}, "trace": None})]
    assert run(answer("converse", Action.FLAG), stream) == stream


@pytest.mark.parametrize("action", [Action.REDACT, Action.FLAG, Action.BLOCK])
def test_what_stands_around_an_event_is_inspected(action: Action) -> None:
    event = {"type": "ping"}
    outer = {"bytes": base64.b64encode(compact(event)).decode(), "note": f"a {KEY}", "p": "abc"}
    stream = message_piece("chunk", compact(outer))
    gate = answer("invoke", action)
    out = run(gate, stream)
    assert [finding.rule for finding in gate.findings] == ["t.key"]
    if action is Action.FLAG:
        assert out == stream
    else:
        assert KEY.encode() not in out
        assert (gate.denial is not None) == (action is Action.BLOCK)
    if action is Action.REDACT:
        assert messages_of(out) == [("chunk", event)]
        assert b"note" not in out


def test_an_exception_of_the_model_passes_and_is_masked() -> None:
    fields = {"message-type": "exception", "exception-type": "throttlingException"}
    before = chunk_piece({"type": "content_block_delta", "index": 0, "delta": {"text": "a sk-Ab"}})
    out = run(answer("invoke"), before + message_piece(None, compact({"message": f"slow {KEY}"}), **fields))
    _, held, last = messages_of(out)
    assert held[1]["delta"]["text"] == "sk-Ab"
    assert last == ("throttlingException", {"message": "slow [REDACTED:key]"})


LAST = {
    "the end of the block": message_piece("contentBlockStop", compact({"contentBlockIndex": 1})),
    "the end": message_piece("messageStop", compact({"stopReason": "end_turn"})),
    "an exception": message_piece(
        None, b'{"message":"x"}', **{"message-type": "exception", "exception-type": "throttlingException"}
    ),
    "nothing": b"",
    "a cut inside a message": ONE[:-3],
    "a cut inside the lengths": ONE[:7],
}


@pytest.mark.parametrize("last", LAST.values(), ids=LAST.keys())
def test_held_text_leaves_at_every_end(last: bytes) -> None:
    event = {"contentBlockIndex": 1, "delta": {"text": "a sk-AbC"}, "p": "abc"}
    out = run(answer("converse"), message_piece("contentBlockDelta", compact(event)) + last)
    assert read("converse", out).text == "a sk-AbC"
    names = [name for name, _ in messages_of(out)]
    assert names[:2] == ["contentBlockDelta"] * 2
    assert len(names) == 2 + bool(last and frames([last])[0][0].whole)


BAD = {
    "a bad checksum": spoilt(30),
    "no JSON": message_piece("chunk", b"garbage"),
    "no object": message_piece("chunk", b"[]"),
    "a key twice": message_piece("chunk", b'{"a":1,"a":2}'),
    "no base64": message_piece("chunk", b'{"bytes":"e30*"}'),
    "base64 of no JSON": message_piece("chunk", b'{"bytes":"AAAA"}'),
    "bytes that are no text": message_piece("chunk", b'{"bytes":7}'),
    "not ASCII": message_piece("chunk", '{"bytes":"é"}'.encode()),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_ends_the_answer(bad: bytes) -> None:
    gate = answer("invoke")
    before = chunk_piece({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi! "}})
    out = run(gate, before + bad + before)
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_MALFORMED
    assert out.startswith(before)
    ((name, error),) = messages_of(out.removeprefix(before))
    assert name == "modelStreamErrorException"
    assert "ex-1" in error["message"]


def test_stopping_before_anything_came_is_an_exception() -> None:
    last = answer("converse").stop(Denial(Reason.ANSWER_IDLE, 504, "Too slow."))
    ((name, error),) = messages_of(last)
    assert (name, error["message"]) == ("modelStreamErrorException", "Too slow. (request ex-1)")


def test_every_cut_in_two_of_a_stream_reads_alike() -> None:
    events = [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": part}}) for part in ("a sk-Ab", KEY[5:])]
    stream = b"".join(pieces("converse", events))
    whole = run(answer("converse"), stream)
    assert all(run(answer("converse"), stream, [cut]) == whole for cut in range(len(stream)))


def invoked(path: str, text: str) -> dict[str, object]:
    """Write an event of ``invoke`` whose text stands at a path; a number is the only item of a list."""
    value: object = text
    for name in reversed(path.split(".")):
        value = [value] if name == "0" else {name: value}
    assert isinstance(value, dict)
    return {"index": 0, **value}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("delta.text", id="Anthropic"),
        pytest.param("contentBlockDelta.delta.text", id="Nova"),
        pytest.param("completion", id="Anthropic, text completion"),
        pytest.param("generation", id="Llama"),
        pytest.param("outputText", id="Titan"),
        pytest.param("outputs.0.text", id="Mistral"),
        pytest.param("choices.0.message.content", id="Mistral, chat"),
        pytest.param("choices.0.delta.content", id="OpenAI's form"),
        pytest.param("choices.0.delta.refusal", id="OpenAI's form, refusal"),
        pytest.param("choices.0.text", id="DeepSeek"),
        pytest.param("choices.0.message.reasoning_content", id="DeepSeek, reasoning"),
        pytest.param("text", id="Cohere"),
        pytest.param("delta.message.content.text", id="Cohere, version 2"),
        pytest.param("delta.message.content.thinking", id="Cohere, version 2, thinking"),
        pytest.param("delta.message.tool_plan", id="Cohere, version 2, plan"),
    ],
)
def test_a_value_in_pieces_is_masked_in_the_events_of_every_model(path: str) -> None:
    said = f"the key is {KEY} so"
    stream = b"".join(chunk_piece(invoked(path, said[at : at + 3])) for at in range(0, len(said), 3))
    gate = answer("invoke")
    out = run(gate, stream)
    assert gate.denial is None
    joined = ""
    for _, event in FORMS["invoke"].events(out):
        value: Any = event
        for name in path.split("."):
            value = value[int(name) if name == "0" else name]
        joined += value
    assert joined == "the key is [REDACTED:key] so"
