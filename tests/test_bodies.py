"""Whole bodies: every text is looked at, and the JSON as one text; what is exempt, and what may not be masked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, MAIL, PEM, always, endpoint, engine
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.model import Action, Denial, Finding, Reason
from tidegate.streams.redactor import redact, short_name

SEALED = "Gf8qL2x7" * 12 + "/+"


def request(value: object, name: str = "chat", action: Action = Action.REDACT, **extra: str) -> Inspected:
    found = inspect_request(endpoint(name), engine(), always(action), value, extra=extra)
    assert isinstance(found, Inspected)
    return found


def reply(value: object, name: str = "chat", action: Action = Action.REDACT, status: int = 200) -> Inspected | Denial:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return inspect_answer(endpoint(name), engine(), always(action), body, status=status)


def message(content: object, **fields: object) -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": content, **fields}]}


PLACES = {
    "a message": (message(f"my {KEY}"), "$.messages[0].content", message("my [REDACTED:key]")),
    "a part": (
        message([{"type": "text", "text": CARD}]),
        "$.messages[0].content[0].text",
        message([{"type": "text", "text": "[REDACTED:card]"}]),
    ),
    "an unknown field": ({"x": {"y": [MAIL]}}, "$.x.y[0]", {"x": {"y": ["[REDACTED:mail]"]}}),
    "a key": ({"x": {KEY: 1, "b": 2}}, "$.x.*", {"x": {"[REDACTED:key]": 1, "b": 2}}),
    "a value under a masked key": ({KEY: {"b": 2}}, "$.*", {"[REDACTED:key]": {"b": 2}}),
    "a masked key and its value": ({"x": {KEY: f"{MAIL}!"}}, "$.x.*", {"x": {"[REDACTED:key]": "[REDACTED:mail]!"}}),
    "a text after a line end": (message(f"a\n{KEY}"), "$.messages[0].content", message("a\n[REDACTED:key]")),
    "a number": ({"n": int(CARD)}, "$.n", {"n": "[REDACTED:card]"}),
    "a text with line ends": (message(f"a\n{PEM}\nb"), "$.messages[0].content", message("a\n[REDACTED:pem]\nb")),
    "a key and its value": (
        {"x": {"password": "hunter22"}},
        "$",
        {"x": {"password": "[REDACTED:password]"}},
    ),
    "a key and a value with escapes": (
        {"x": {"password": "hun\nter22"}},
        "$",
        {"x": {"password": "[REDACTED:password]"}},
    ),
    "JSON source": (
        {"messages": [{"tool_calls": [{"function": {"arguments": json.dumps({"a": f'"\n{KEY}'})}}]}]},
        "$.messages[0].tool_calls[0].function.arguments",
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"a": "\\"\\n[REDACTED:key]"}'}}]}]},
    ),
    "JSON source that hides it": (
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"a": "\\u0073k-AbCd1234EfGh"}'}}]}]},
        "$.messages[0].tool_calls[0].function.arguments",
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"a": "[REDACTED:key]"}'}}]}]},
    ),
}


@pytest.mark.parametrize(("value", "where", "expected"), PLACES.values(), ids=PLACES.keys())
def test_every_place_is_masked(value: object, where: str, expected: object) -> None:
    found = request(json.loads(json.dumps(value)))
    assert json.loads(found.body) == expected
    assert {finding.where for finding in found.findings} == {where}


@pytest.mark.parametrize(("value", "where", "expected"), PLACES.values(), ids=PLACES.keys())
def test_every_place_of_an_answer_is_masked(value: object, where: str, expected: object) -> None:
    body = json.loads(json.dumps(value))
    if "messages" in body:
        body = {"choices": [{"message": one} for one in body["messages"]]}
    found = reply(body)
    assert isinstance(found, Inspected)
    assert KEY.encode() not in found.body
    assert CARD.encode() not in found.body


def test_positions_count_characters_of_the_field() -> None:
    (finding,) = request(message(f"né {KEY} b")).findings
    assert finding == Finding("t.key", "secrets", "$.messages[0].content", 3, 3 + len(KEY), Action.REDACT)


@pytest.mark.parametrize("action", [Action.FLAG, Action.ALLOW])
def test_a_flag_keeps_the_body(action: Action) -> None:
    value = {**message(f"{KEY} {MAIL}"), "password": "hunter22"}
    found = request(json.loads(json.dumps(value)), action=action)
    assert json.loads(found.body) == value
    assert [finding.rule for finding in found.findings] == (
        ["t.key", "t.mail", "t.password"] if action is Action.FLAG else []
    )


def test_flags_without_end_are_not_listed_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.streams.texts.MAX_FLAGGED", 3)
    value = {"x": [f"{CARD} {index}" for index in range(9)]}
    assert len(request(json.loads(json.dumps(value)), action=Action.FLAG).findings) == 3
    assert len(request(value).findings) == 9


def test_what_is_blocked_is_masked_too_so_that_it_can_be_recorded() -> None:
    found = request(message(KEY), action=Action.BLOCK)
    assert KEY.encode() not in found.body
    assert [finding.action for finding in found.findings] == [Action.BLOCK]


def test_the_body_is_written_anew() -> None:
    assert request(json.loads('{ "b": 1.50, "a": "\\u00e9\\/" }')).body == '{"b":1.5,"a":"é/"}'.encode()


def test_texts_beside_the_body_are_inspected() -> None:
    found = request(None, path=f"/v1/models/{KEY}")
    assert (found.body, [finding.where for finding in found.findings]) == (b"", ["path"])
    found = request(message("hi"), **{"header x-note": f"n {CARD}"})
    assert [(finding.where, finding.start) for finding in found.findings] == [("header x-note", 2)]


def thought(text: str, signature: str) -> dict:
    part = {"type": "thinking", "thinking": text, "signature": signature}
    return {"messages": [{"role": "assistant", "content": [part]}]}


def test_an_exempt_field_passes_if_it_has_its_shape() -> None:
    assert json.loads(request(thought("So", SEALED), "messages").body) == thought("So", SEALED)
    assert json.loads(request(thought("So", KEY), "messages").body) == thought("So", "[REDACTED:key]")


def test_the_signature_of_a_masked_text_goes_with_it() -> None:
    assert json.loads(request(thought(KEY, SEALED), "messages").body) == thought("[REDACTED:key]", "")


def test_an_exempt_field_survives_masking_across_fields() -> None:
    part = {"type": "thinking", "thinking": "x", "signature": SEALED}
    value = {"messages": [{"content": [part, {"input": {"password": "hunter22"}}]}]}
    body = json.loads(request(json.loads(json.dumps(value)), "messages").body)
    assert body == {"messages": [{"content": [part, {"input": {"password": "[REDACTED:password]"}}]}]}


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def completion(content: str, **choice: object) -> dict:
    base = {"id": "chatcmpl-1234567890123456", "object": "chat.completion", "created": 1743636562, "model": "m"}
    return {**base, "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, **choice}]}


def test_a_clean_answer_keeps_its_bytes() -> None:
    body = json.dumps(completion("Hi", logprobs={"content": [{"token": "Hi"}]}), indent=2).encode()
    assert reply(body) == Inspected(body, ())


def test_a_masked_answer_loses_its_second_copies() -> None:
    copies = {"content": [{"token": "sk-Ab", "bytes": [115]}, {"token": "Cd1234EfGh5678"}]}
    found = reply(completion(f"my {KEY}", logprobs=copies, token_ids=[1, 2]))
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == completion("my [REDACTED:key]", logprobs=None, token_ids=[])


def test_an_answers_ids_are_exempt() -> None:
    value = {**completion(f"{MAIL}"), "id": KEY}
    found = reply(value)
    assert isinstance(found, Inspected)
    assert json.loads(found.body)["id"] == KEY
    assert len(found.findings) == 1


def test_a_masked_thought_loses_its_signature() -> None:
    blocks = [
        {"type": "thinking", "thinking": f"I know {KEY}", "signature": SEALED},
        {"type": "thinking", "thinking": "Nothing", "signature": SEALED},
    ]
    found = reply({"type": "message", "content": blocks}, "messages")
    assert isinstance(found, Inspected)
    assert [block["signature"] for block in json.loads(found.body)["content"]] == ["", SEALED]


def test_a_blocked_finding_refuses_the_answer() -> None:
    found = reply(completion(KEY), action=Action.BLOCK)
    assert isinstance(found, Denial)
    assert found.reason is Reason.ANSWER_FINDING
    assert KEY not in found.message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"plain text", 200),
        (b'{"a":1,"a":2}', 200),
        (b'{"a":1,"a":2}', 400),
        (b' {"message": "sk-\\u0041', 500),
        (b"[1", 500),
        (b"caf\xe9", 502),
        (b'{"a":', 200),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, status: int) -> None:
    found = reply(body, status=status)
    assert isinstance(found, Denial)
    assert found.reason is Reason.ANSWER_MALFORMED


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"Bad gateway", b"Bad gateway"),
        (f"No such key: {KEY}".encode(), b"No such key: [REDACTED:key]"),
        (json.dumps({"error": {"message": f"bad {KEY}"}}).encode(), b'{"error":{"message":"bad [REDACTED:key]"}}'),
        (json.dumps(f"bad {KEY}").encode(), b'"bad [REDACTED:key]"'),
        (CARD.encode(), b'"[REDACTED:card]"'),
        (b"", b""),
    ],
    ids=["a text", "a text with a key", "JSON", "a JSON text", "a JSON number", "nothing"],
)
def test_errors_of_the_upstream_are_masked(body: bytes, expected: bytes) -> None:
    found = reply(body, status=502)
    assert isinstance(found, Inspected)
    assert found.body == expected


def test_a_blocked_finding_refuses_an_error_text() -> None:
    found = reply(f"No such key: {KEY}".encode(), status=401, action=Action.BLOCK)
    assert isinstance(found, Denial)
    assert found.reason is Reason.ANSWER_FINDING


def test_no_body_is_in_a_repr() -> None:
    assert "hidden" not in repr(request(message("hidden")))


PARTS = [
    KEY,
    MAIL,
    CARD,
    PEM,
    "sk-",
    "AbCd1234",
    "@",
    ".co",
    "\n",
    '"',
    "\\",
    "\x01",
    "\x7f",
    "\ud800",
    "é",
    "/",
    " ",
    "9" * 8,
]
strings = st.lists(st.sampled_from(PARTS), max_size=5).map("".join)
trees = st.recursive(
    strings | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "ab"]), inner, max_size=3),
    max_leaves=8,
)


def masked(value: object) -> object:
    if isinstance(value, dict):
        return {key: masked(child) for key, child in value.items()}
    if isinstance(value, list):
        return [masked(child) for child in value]
    if isinstance(value, str):
        return redact(engine(), always(Action.REDACT), short_name, value)[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = str(value)
        said = redact(engine(), always(Action.REDACT), short_name, text)[0]
        return value if said == text else said
    return value


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "y"]), trees, max_size=3))
def test_one_scan_misses_nothing_that_a_look_at_each_value_finds(value: dict) -> None:
    assert json.loads(request(json.loads(json.dumps(value))).body) == masked(value)


def test_a_placeholder_makes_no_new_edges() -> None:
    assert json.loads(request({"x": f"{MAIL}{CARD}", "password": "x" * 5}).body)["x"] == f"[REDACTED:mail]{CARD}"
