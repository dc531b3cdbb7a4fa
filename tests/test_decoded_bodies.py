"""Prompts and whole answers in which a value is disguised: masked where it stands, or blocked; streams are not."""

from __future__ import annotations

import base64
import json

import pytest

from tests.disguises import ENGINE, HIDDEN
from tests.wire import KEY, always, endpoint
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.model import Action, Denial, Reason
from tidegate.streams.texts import Texts

MASK = "[REDACTED:key]"


def message(*contents: str) -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": content} for content in contents]}


def answer(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_disguised_value_is_masked_in_prompts_and_answers(hidden: str) -> None:
    text = f"my {hidden} ok"
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), message(text))
    assert isinstance(found, Inspected)
    said = json.loads(found.body)["messages"][0]["content"]
    assert MASK in said
    assert said.startswith("my ")
    assert said.endswith(" ok")
    assert {finding.rule for finding in found.findings} == {"t.key"}
    assert all(3 <= finding.start < finding.end <= 3 + len(hidden) for finding in found.findings)
    told = inspect_answer(endpoint("chat"), ENGINE, always(Action.REDACT), answer(text), status=200)
    assert isinstance(told, Inspected)
    assert json.loads(told.body)["choices"][0]["message"]["content"] == said


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_disguised_value_is_blocked(hidden: str) -> None:
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.BLOCK), message(f"my {hidden} ok"))
    assert isinstance(found, Inspected)
    assert {finding.action for finding in found.findings} == {Action.BLOCK}
    told = inspect_answer(endpoint("chat"), ENGINE, always(Action.BLOCK), answer(f"my {hidden} ok"), status=200)
    assert isinstance(told, Denial)
    assert told.reason is Reason.ANSWER_FINDING


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_what_is_only_flagged_stays(hidden: str) -> None:
    value = message(hidden)
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.FLAG), json.loads(json.dumps(value)))
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == value
    assert found.findings
    assert {finding.action for finding in found.findings} == {Action.FLAG}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_what_is_allowed_stays(hidden: str) -> None:
    body = answer(hidden)
    assert inspect_answer(endpoint("chat"), ENGINE, always(Action.ALLOW), body, status=200) == Inspected(body, ())


BODIES = {
    "base64": ([f"my {HIDDEN['base64']} ok"], [f"my {MASK} ok"]),
    "zero width": ([f"é {HIDDEN['zero width']}"], [f"é {MASK}"]),
    "behind a backslash n": ([f"one\\n{KEY}"], [f"one\\n{MASK}"]),
    "plain and hex": ([f"{KEY} {HIDDEN['hex']}"], [f"{MASK} {MASK}"]),
    "split over messages": (
        [f"first half: {KEY[:9]}", f"second half: {KEY[9:]} !"],
        [f"first half: {MASK}", f"second half: {MASK} !"],
    ),
}


@pytest.mark.parametrize(("contents", "expected"), BODIES.values(), ids=BODIES.keys())
def test_all_of_the_encoded_part_is_masked_and_nothing_else(contents: list[str], expected: list[str]) -> None:
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), message(*contents))
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == message(*expected)


def test_a_value_split_over_the_parts_of_messages_is_masked_on_both_sides() -> None:
    halves = [[{"type": "text", "text": half}] for half in (f"a {KEY[:9]}", f"{KEY[9:]} b")]
    value = {"model": "m", "messages": [{"role": "user", "content": each} for each in halves]}
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), value)
    assert isinstance(found, Inspected)
    said = [each["content"][0]["text"] for each in json.loads(found.body)["messages"]]
    assert said == [f"a {MASK}", f"{MASK} b"]


def test_the_bounds_of_one_text_take_nothing_from_another() -> None:
    """One text that is disguised in every way uses up its own readings, not those of the texts beside it."""
    ways = (
        lambda text: base64.b64encode(text).decode(),
        lambda text: text.hex(),
        lambda text: "".join(f"%{each:02X}" for each in text[:60]),
        lambda text: " ".join(text.decode()[:20]),
        lambda text: ", ".join(map(str, text[:60])),
        lambda text: "\u200b".join(text.decode()[:60]),
        lambda text: base64.a85encode(text).decode(),
    )
    plain = b"the quick brown fox jumps over the lazy dog"
    decoy = " ; ".join(outer(inner(plain).encode()) for outer in ways for inner in ways if inner(plain).isascii())
    thrice = KEY.encode()
    for _ in range(3):
        thrice = base64.b64encode(thrice)
    for contents in ([decoy, thrice.decode()], [thrice.decode(), decoy]):
        found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), message(*contents))
        assert isinstance(found, Inspected)
        assert [each.rule for each in found.findings] == ["t.key"]


def test_json_source_stays_json() -> None:
    source = json.dumps({"a": [HIDDEN["base64"] + "\n", 1], "b": HIDDEN["percent"], "c": [KEY[:9], KEY[9:]]})
    value = {"messages": [{"tool_calls": [{"function": {"arguments": source}}]}]}
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), value)
    assert isinstance(found, Inspected)
    sent = json.loads(found.body)["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"a": [MASK + "\n", 1], "b": MASK, "c": [MASK, MASK]}


def test_clean_bodies_stay_byte_for_byte() -> None:
    text = (
        'Dr. Müller – 東京 “x” 100 % &amp; a\\nb "q" '
        "aGVsbG8gd29ybGQsIGhlbGxvIHdvcmxk e3b0c44298fc1c149afbf4c8996fb92427ae"
    )
    body = answer(text)
    assert inspect_answer(endpoint("chat"), ENGINE, always(Action.BLOCK), body, status=200) == Inspected(body, ())


def test_what_is_flagged_inside_one_value_is_noted_once() -> None:
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.FLAG), message(f"{KEY[:9]}\n{KEY[9:]}"))
    assert isinstance(found, Inspected)
    assert len(found.findings) == 2  # the part on each line
    assert {finding.where for finding in found.findings} == {"$.messages[0].content"}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_the_texts_of_a_stream_are_not_decoded(hidden: str) -> None:
    assert Texts(ENGINE, always(Action.REDACT), streamed=True).check([hidden], lambda _: "$") == {}
