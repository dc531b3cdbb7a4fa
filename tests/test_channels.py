"""Channels of a stream of events: what is held, where it leaves, and what stands beside the text."""

from __future__ import annotations

import json

import pytest

from tests.wire import CARD, FAMILIES, KEY, MAIL, Said, always, endpoint, engine, every
from tidegate.dialects.fields import Trie
from tidegate.dialects.spec import Delta, Flush, StreamSpec
from tidegate.model import Action, Denial, Reason
from tidegate.streams.channels import MALFORMED, RESUMED, UNDECIDED, EventRedactor, HeldCaps, Outgoing


def spec(name: str) -> StreamSpec:
    found = endpoint(name).stream
    assert found is not None
    return found


def channels(name: str, action: Action = Action.REDACT, caps: HeldCaps | None = None) -> EventRedactor:
    return EventRedactor(spec(name), engine(), always(action), caps)


def sent(gate: EventRedactor, *events: dict) -> list[dict]:
    out: list[Outgoing] = []
    for event in events:
        step = gate.event(json.loads(json.dumps(event)))
        assert not isinstance(step, Denial), step
        out += step
    last = gate.end()
    assert not isinstance(last, Denial)
    return [one.value for one in out + last]


def chunk(delta: dict | None = None, finish: str | None = None, index: int = 0, **extra: object) -> dict:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1743636562,
        "model": "m",
        "choices": [choice],
        **extra,
    }


def said(events: list[dict]) -> list[str | None]:
    return [event["choices"][0]["delta"].get("content") for event in events]


def test_a_clean_delta_is_not_changed() -> None:
    gate = channels("chat")
    (out,) = gate.event(chunk({"content": "Hello, "}), like="tag")
    assert (out.changed, out.inserted, out.like) == (False, False, "tag")


def test_what_waits_leaves_with_the_next_delta() -> None:
    events = sent(channels("chat"), chunk({"content": "a sk-AbCd"}), chunk({"content": "1234. b!"}))
    assert said(events) == ["a ", "[REDACTED:key]. b!"]


FINISHES = {
    "without text": (chunk({}, "stop"), ["a ", "sk-AbCd", None]),
    "with text of the channel": (chunk({"content": ""}, "stop"), ["a ", "sk-AbCd"]),
    "with more text": (chunk({"content": "1234"}, "stop"), ["a ", "[REDACTED:key]"]),
}


@pytest.mark.parametrize(("finish", "texts"), FINISHES.values(), ids=FINISHES.keys())
def test_held_text_leaves_before_the_finish(finish: dict, texts: list[str | None]) -> None:
    events = sent(channels("chat"), chunk({"content": "a sk-AbCd"}), finish)
    assert said(events) == texts
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(texts) - 1) + ["stop"]


def test_a_delta_made_up_repeats_nothing_but_its_ids() -> None:
    function = {"name": "f", "arguments": '{"a":"sk-Ab'}
    opening = {"index": 3, "id": "call_1", "type": "function", "function": function}
    first = chunk(
        {"role": "assistant", "content": "x!", "tool_calls": [opening]}, usage={"n": 1}, service_tier="default"
    )
    _, made, last = sent(channels("chat"), first, chunk({}, "tool_calls"))
    assert made == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1743636562,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": None,
                "delta": {"tool_calls": [{"index": 3, "type": "function", "function": {"arguments": "sk-Ab"}}]},
            }
        ],
        "service_tier": "default",
    }
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_choices_are_ended_by_their_own_finish() -> None:
    gate = channels("chat")
    one, two = chunk({"content": "sk-Ab"}), chunk({"content": "sk-Cd"}, index=1)
    events = sent(gate, one, two, chunk({}, "stop"), chunk({"content": "Ef12345"}, index=1), chunk({}, "stop", index=1))
    told = [(e["choices"][0]["index"], e["choices"][0]["delta"].get("content")) for e in events]
    assert told == [(0, ""), (1, ""), (0, "sk-Ab"), (0, None), (1, ""), (1, "[REDACTED:key]"), (1, None)]


def test_an_empty_finish_reason_ends_nothing() -> None:
    events = sent(channels("chat"), chunk({"content": "sk-AbCd"}, ""), chunk({"content": "1234567 x"}, "stop"))
    assert said(events) == ["", "[REDACTED:key] x"]


def test_a_text_that_goes_on_after_its_end_is_refused() -> None:
    gate = channels("chat")
    gate.event(chunk({"content": "sk-AbCd"}, "stop"))
    assert gate.event(chunk({"content": ""})) != RESUMED
    assert gate.event(chunk({"content": "12345678"})) == RESUMED


def test_after_a_finish_without_held_text_a_new_text_is_masked_too() -> None:
    events = sent(channels("chat"), chunk({"content": "Hi! "}, "stop"), chunk({"content": KEY}), chunk({}, "stop"))
    assert said(events) == ["Hi! ", "", "[REDACTED:key]", None]


def test_end_of_stream_releases_what_was_held() -> None:
    gate = channels("chat")
    gate.event(chunk({"content": f"a {CARD}"}))
    assert gate.held == 16
    last = gate.end()
    assert not isinstance(last, Denial)
    assert [said([one.value]) for one in last] == [["[REDACTED:card]"]]
    assert gate.held == 0


def test_signature_of_a_masked_thought_is_taken_away() -> None:
    said_ = Said(thinking=f"I know {KEY}. Now", text="ok!")
    events = sent(channels("messages"), *(event for _, event in FAMILIES["messages"](said_, every(5))))
    assert [e["delta"]["signature"] for e in events if "signature" in e.get("delta", {})] == [""]


@pytest.mark.parametrize("end", [".", " sk-Ab"], ids=["nothing held", "text held"])
def test_signature_of_an_unmasked_thought_stays(end: str) -> None:
    said_ = Said(thinking=f"I know{end}", text=f"{KEY}.")
    events = sent(channels("messages"), *(event for _, event in FAMILIES["messages"](said_, every(5))))
    deltas = [e["delta"] for e in events if "delta" in e and e["type"] == "content_block_delta"]
    assert "".join(d["thinking"] for d in deltas if "thinking" in d) == f"I know{end}"
    assert [d["signature"] for d in deltas if "signature" in d] == ["c2lnbmF0dXJl" * 8]
    thinking = [i for i, d in enumerate(deltas) if "thinking" in d]
    assert max(thinking) < next(i for i, d in enumerate(deltas) if "signature" in d)


def test_responses_are_numbered_without_holes_and_repeat_what_the_deltas_said() -> None:
    whole = Said(f"mail {MAIL}", f"think {KEY}", (json.dumps({"a": CARD}),))
    events = sent(channels("responses"), *(event for _, event in FAMILIES["responses"](whole, every(4))))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert len(events) > len(FAMILIES["responses"](whole, every(4)))
    for done, field in [
        ("output_text", "text"),
        ("reasoning_summary_text", "text"),
        ("function_call_arguments", "arguments"),
    ]:
        joined = "".join(e["delta"] for e in events if e["type"] == f"response.{done}.delta")
        assert [e[field] for e in events if e["type"] == f"response.{done}.done"] == [joined]
        assert "[REDACTED:" in joined
        assert json.dumps(joined)[1:-1] in json.dumps(events[-1]["response"])


def test_padding_keeps_the_size_of_an_event() -> None:
    first = {"choices": [{"index": 0, "delta": {"content": "hello sk-AbCd1234 x! "}}], "obfuscation": "abcdef"}
    size = len(json.dumps(first))
    (event,) = sent(channels("chat"), first)
    assert event["choices"][0]["delta"]["content"] == "hello [REDACTED:key] x! "
    assert (len(json.dumps(event)), event["obfuscation"]) == (size, "abc")


@pytest.mark.parametrize("action", [Action.REDACT, Action.ALLOW])
def test_second_copies_are_emptied_where_answers_are_masked(action: Action) -> None:
    event = chunk({"content": "Hi! "})
    event["choices"][0]["logprobs"] = {"content": [{"token": "Hi", "bytes": [72, 105]}]}
    event["choices"][0]["token_ids"] = [1, 2]
    (out,) = sent(channels("chat", action), event)
    copies = (out["choices"][0]["logprobs"], out["choices"][0]["token_ids"])
    assert (copies == (None, [])) == (action is Action.REDACT)


WHOLE = {
    "an unknown text": ({"note": f"x {KEY}"}, {"note": "x [REDACTED:key]"}),
    "a key": ({"notes": {MAIL: 1}}, {"notes": {"[REDACTED:mail]": 1}}),
    "a number": ({"count": int(CARD)}, {"count": "[REDACTED:card]"}),
    "an error": ({"error": {"message": f"bad {KEY}"}}, {"error": {"message": "bad [REDACTED:key]"}}),
    "an exempt field": ({"id": KEY}, {"id": KEY}),
}


@pytest.mark.parametrize(("extra", "expected"), WHOLE.values(), ids=WHOLE.keys())
def test_whole_texts_of_an_event(extra: dict, expected: dict) -> None:
    (out,) = sent(channels("chat"), {**chunk({"content": "Hi! "}), **extra})
    assert {key: out[key] for key in expected} == expected


def test_a_flagged_finding_is_noted_and_kept() -> None:
    gate = channels("chat", Action.FLAG)
    events = sent(gate, chunk({"content": f"a {KEY[:9]}"}), chunk({"content": f"{KEY[9:]} b"}, "stop"))
    assert "".join(filter(None, said(events))) == f"a {KEY} b"
    (finding,) = gate.findings
    assert (finding.rule, finding.start, finding.end, finding.action) == ("t.key", 2, 2 + len(KEY), Action.FLAG)
    assert finding.where == "stream:$.choices[0].delta.content"


@pytest.mark.parametrize(
    "event", [chunk({"content": f"{KEY} "}), chunk({"content": "x"}, note=KEY)], ids=["in a delta", "in a whole text"]
)
def test_a_blocked_finding_refuses(event: dict) -> None:
    denial = channels("chat", Action.BLOCK).event(event)
    assert isinstance(denial, Denial)
    assert denial.reason is Reason.ANSWER_FINDING
    assert KEY not in denial.message


def test_a_finding_blocked_at_the_end_refuses() -> None:
    gate = channels("chat", Action.BLOCK)
    assert not isinstance(gate.event(chunk({"content": KEY})), Denial)
    denial = gate.end()
    assert isinstance(denial, Denial)
    assert denial.reason is Reason.ANSWER_FINDING


@pytest.mark.parametrize("value", [[], "text", 1, None], ids=repr)
def test_an_event_that_is_no_object_is_refused(value: object) -> None:
    assert channels("chat").event(value) == MALFORMED


def test_an_event_with_two_names_is_refused() -> None:
    assert channels("messages").event({"type": "ping"}, "content_block_delta") == MALFORMED


CAPS = {
    "a channel": (HeldCaps(channel=4), [chunk({"content": "sk-AbCd"})]),
    "the stream": (HeldCaps(stream=8), [chunk({"content": "sk-Ab"}, index=i) for i in range(2)]),
    "channels": (HeldCaps(channels=2), [chunk({"content": "x! "}, index=i) for i in range(3)]),
}


@pytest.mark.parametrize(("caps", "events"), CAPS.values(), ids=CAPS.keys())
def test_more_than_may_be_held_is_refused(caps: HeldCaps, events: list[dict]) -> None:
    gate = channels("chat", caps=caps)
    steps = [gate.event(event) for event in events]
    assert steps[-1] == UNDECIDED
    assert UNDECIDED not in steps[:-1]


def test_no_text_is_in_a_repr() -> None:
    gate = channels("chat")
    (out,) = gate.event(chunk({"content": f"{KEY} and {MAIL}"}), like=f"{KEY}")
    assert KEY not in repr(out) + repr(gate) + repr(gate._channels) + repr(gate.findings)


def call(name: str) -> dict:
    return chunk({"tool_calls": [{"index": 0, "function": {"name": name}}]})


def test_a_tools_name_does_not_wait_and_may_not_go_on() -> None:
    gate = channels("chat")
    events = sent(gate, call("jane.doe"), call("jane.doe"), call(""))
    names = [event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] for event in events]
    assert names == ["jane.doe", "jane.doe", ""]
    assert gate.event(call("@example.com")) == RESUMED


def test_a_made_up_delta_says_nothing_of_its_neighbours() -> None:
    deltas = (Delta("$.response"), Delta("$.thinking"))
    flush = Flush("$.done", select=Trie([("$.done", None)]))
    paths = Trie((one.path, one) for one in deltas)
    lines = StreamSpec(None, None, None, None, deltas, (flush,), (), (), paths)
    gate = EventRedactor(lines, engine(), always(Action.REDACT))
    events = sent(gate, {"model": "m", "response": "a sk-Ab", "thinking": "Hm. "}, {"model": "m", "done": True})
    assert events[1] == {"model": "m", "response": "sk-Ab", "thinking": ""}


def test_a_signature_in_a_part_of_its_own_is_taken_away_too() -> None:
    def details(**part: object) -> dict:
        return chunk({"reasoning_details": [{"index": 0, **part}]})

    events = sent(
        channels("chat"),
        details(type="reasoning.text", text=f"{KEY} is it. "),
        details(type="reasoning.signature", signature="c2lnbmF0dXJl"),
    )
    assert events[-1]["choices"][0]["delta"]["reasoning_details"][0]["signature"] == ""
