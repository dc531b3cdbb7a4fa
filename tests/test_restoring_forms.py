"""Values put back where answers come in odd forms: compressed, held too long, as data, in messages, in lines."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from tests.test_composing import CONTENT, with_rule
from tests.test_restoring import ALICE, OWN, Clock, T, crossing, message, policy, session
from tests.wire import CARD, MAIL, Said, answer, dialect, every, read, stream_of
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.dialects.body import dump
from tidegate.dialects.load import parse_dialect
from tidegate.inspection.tokens import Counts, Session
from tidegate.model import Action, Head, OnUnknown
from tidegate.policy.policy import Policy
from tidegate.streams.answers import AnswerHead
from tidegate.streams.opaque import HEAD
from tidegate.streams.restoring import EventRestorer, RestoredStream, restored_whole
from tidegate.streams.tokenising import Tokens

__all__ = ["policy"]  # the fixture

SSE = (("content-type", "text/event-stream"),)


def restorer(family: str, name: str, own: Session = OWN) -> RestoredStream:
    spoken = dialect(family)
    return RestoredStream(
        spoken.endpoints[name], spoken.error, Tokens(own, Counts()), "ex_1", AnswerHead("text/event-stream")
    )


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_compressed_stream_is_restored(policy: Policy, size: int) -> None:
    one, token = crossing(policy, Clock(), MAIL)
    assert isinstance(one.receive(steps.AnswerBegan(200, (*SSE, ("content-encoding", "gzip")))), steps.Stream)
    packed = gzip.compress(stream_of("chat", Said(f"Hi {token}!"), every(3)))
    emitted, shown = b"", b""
    for at in range(0, len(packed), size):
        step = one.receive(steps.AnswerChunk(packed[at : at + size]))
        assert isinstance(step, steps.Emit)
        emitted += step.data
        shown += one.restore(step.data, last=False) or b""
    step = one.receive(steps.AnswerEnded())
    assert isinstance(step, steps.Emit)
    emitted, shown = emitted + step.data, shown + (one.restore(step.data, last=True) or b"")
    assert read("chat", emitted).text == f"Hi {token}!"
    assert read("chat", shown).text == f"Hi {MAIL}!"


def test_what_was_held_too_long_is_masked_and_the_rest_restored() -> None:
    gate, back = answer("chat", Action.REDACT), restorer("openai", "chat")
    stream = stream_of("chat", Said(f"{T} and {CARD} {T} ok"), every(1))
    middle = stream.index(b'"4"') + 500  # a few of its digits are there
    out = back.feed(gate.feed(stream[:middle]))
    assert gate.stuck
    out += back.feed(gate.expire(gate.stuck))
    out += back.feed(gate.feed(stream[middle:])) + back.feed(gate.end()) + back.end()
    assert read("chat", out).text == f"{MAIL} and [REDACTED:card] {MAIL} ok"


@pytest.mark.parametrize(
    ("family", "name", "event"),
    [
        ("mcp", "call_tool", {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": T}]}}),
        ("mcp", "call_tool", [{"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": T}]}}]),
        ("a2a", "stream", {"jsonrpc": "2.0", "id": 1, "result": {"artifact": {"parts": [{"text": T}]}}}),
    ],
)
def test_messages_of_servers_and_agents_keep_their_tokens(family: str, name: str, event: object) -> None:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    back = restorer(family, name)
    assert back.feed(data) + back.end() == data
    whole = json.dumps(event).encode()
    assert restored_whole(dialect(family).endpoints[name], Tokens(OWN, Counts()), whole) == whole


def test_lines_of_answers_keep_their_tokens() -> None:
    line = {"response": {"body": {"choices": [{"message": {"content": T, "tool_calls": [{"x": T}]}}]}}}
    body = b"\n".join([json.dumps(line).encode()] * 2)
    found, faults = parse_dialect(CONTENT, "content.yaml")
    assert found is not None, faults
    for own in (OWN, session(tool_arguments=True)):
        assert restored_whole(found.endpoints["content"], Tokens(own, Counts()), body) == body


def asked(policy: Policy, text: str) -> Crossing:
    one = Crossing(policy, "ex_1")
    one.sessions = Clock()
    head = Head("POST", "/openai/v1/chat/completions", (("authorization", "Bearer x"),), None)
    one.receive(steps.HeadArrived(head, ALICE))
    one.receive(steps.BodyArrived(json.dumps({"model": "m", **message(text)}).encode()))
    one.receive(steps.IntentKept(kept=True))
    return one


def test_data_that_nobody_reads_leave_as_they_came(policy: Policy) -> None:
    passing = with_rule(policy, OnUnknown.PASS)
    one = asked(passing, MAIL)
    token = json.loads(one.masked_body)["messages"][0]["content"]
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8 + token.encode()
    one.receive(steps.AnswerBegan(200, (("content-type", "image/png"),)))
    step = one.receive(steps.AnswerWhole(data))
    assert isinstance(step, steps.Emit)
    assert step.data == data
    assert one.restore(data, last=True) == data


@pytest.mark.parametrize("packed", [False, True])
def test_a_streamed_sound_leaves_as_it_came(policy: Policy, packed: bool) -> None:
    passing = with_rule(policy, OnUnknown.PASS)
    dialects = dict(passing.dialects)
    spoken = dialects["openai"]
    chat = replace(spoken.endpoints["chat"], unread="speech", stream=None)
    dialects["openai"] = replace(spoken, endpoints={**spoken.endpoints, "chat": chat})
    one = asked(replace(passing, dialects=dialects), MAIL)
    token = json.loads(one.masked_body)["messages"][0]["content"]
    data = b"ID3\x04" + bytes(range(256)) * 8 + token.encode()
    assert len(data) > HEAD
    coding = (("content-encoding", "gzip"),) if packed else ()
    assert isinstance(one.receive(steps.AnswerBegan(200, (("content-type", "audio/mpeg"), *coding))), steps.Stream)
    sent = gzip.compress(data) if packed else data
    out = b""
    for at in range(0, len(sent), 100):
        step = one.receive(steps.AnswerChunk(sent[at : at + 100]))
        assert isinstance(step, steps.Emit)
        out += one.restore(step.data, last=False) or b""
    step = one.receive(steps.AnswerEnded())
    assert isinstance(step, steps.Emit)
    assert out + (one.restore(step.data, last=True) or b"") == data
    assert one.stuck == frozenset()


def test_spoken_words_are_restored_by_their_type_and_arguments_are_not() -> None:
    spec = dialect("openai").endpoints["realtime"].stream
    assert spec is not None
    back = EventRestorer(spec, Tokens(OWN, Counts()))
    said: dict[str, str] = {}
    for at in range(0, len(T), 4):
        for kind in (
            "response.output_audio_transcript.delta",
            "response.function_call_arguments.delta",
            "response.x.delta",
        ):
            event = {"type": kind, "response_id": "r", "item_id": kind, "output_index": 0, "delta": T[at : at + 4]}
            if kind.startswith("response.output"):
                event["content_index"] = 0
            out = back.event(event, None, b"")
            assert isinstance(out, list)
            said[kind] = said.get(kind, "") + "".join(str(each.value["delta"]) for each in out)
    late = back.end()
    assert isinstance(late, list)
    for each in late:
        said[str(each.value["type"])] += str(each.value["delta"])
    assert list(said.values()) == [MAIL, T, T]
    done = {
        "type": "response.done",
        "response": {"output": [{"content": [{"transcript": T}], "arguments": dump({"a": T}).decode()}]},
    }
    (out,) = back.event(done, None, b"")  # type: ignore[misc]  # it is a list
    (item,) = out.value["response"]["output"]  # type: ignore[index]  # an object
    assert (item["content"][0]["transcript"], json.loads(item["arguments"])["a"]) == (MAIL, T)


def test_an_answer_that_is_a_text_is_restored(policy: Policy) -> None:
    dialects = dict(policy.dialects)
    spoken = dialects["openai"]
    chat, heard = spoken.endpoints["chat"], spoken.endpoints["transcriptions"]
    assert heard.stream is not None
    dialects["openai"] = replace(spoken, endpoints={**spoken.endpoints, "chat": replace(chat, made_of=heard.made_of)})
    one = asked(policy, MAIL)
    token = json.loads(one.masked_body)["messages"][0]["content"]
    one.policy = replace(policy, dialects=dialects)
    one.receive(steps.AnswerBegan(200, (("content-type", "text/plain"),)))
    step = one.receive(steps.AnswerWhole(f"Write to {token}.".encode()))
    assert isinstance(step, steps.Emit)
    assert step.data == f"Write to {token}.".encode()
    assert one.restore(step.data, last=True) == f"Write to {MAIL}.".encode()
