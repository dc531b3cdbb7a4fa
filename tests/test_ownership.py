"""What is stored at a provider: where it is named, made and listed, and the order in which it is asked about."""

from __future__ import annotations

import gzip
import json
import random
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_crossing import ALICE, JSON, head, policy, refused  # noqa: F401 - a fixture
from tests.test_dialects import SMALL, faults_of
from tests.wire import RECORDED, always, dialect, engine
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.dialects import ownership
from tidegate.dialects.addresses import match, stored_in
from tidegate.dialects.asking import asked
from tidegate.dialects.body import strict_json
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Endpoint
from tidegate.dialects.spec import refused as refused_body
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.model import (
    Action,
    AllowRule,
    AnswerLimits,
    Connection,
    Denial,
    Origin,
    Outcome,
    Owners,
    Reason,
    Route,
    Stored,
)
from tidegate.policy.policy import Policy
from tidegate.steps import Stage
from tidegate.streams.answers import AnswerHead, StreamedAnswer

OWNED = """\
    owned:
      - {path: $.one, kind: thing}
      - {path: $.either, kind: thing, id: [., id, deep.id]}
      - {path: "$.items[*]", kind: item, id: [id], when: {type: [ref, null]}, unless: {role: [user]}}
      - {query: after, kind: thing}
    makes:
      - {path: $, kind: thing, when: {object: [thing]}, unless: {store: [false]}}
      - {path: $.thing, kind: item, id: parts.id}
    lists:
      - {path: $.data, kind: thing, ends: [first, last]}
    local: [$.url]
"""
TEXT = SMALL.replace("    stream:\n", OWNED + "    stream:\n").replace("/d/*/chat]", "'/d/{thing}/of/{item}']")
CONNECTION = Connection("c", "small", Origin("https", "up.example", 443), "/base", "/c", None, 10_000, AnswerLimits())


@cache
def endpoint() -> Endpoint:
    found, faults = parse_dialect(TEXT, "small.yaml")
    assert found is not None, faults
    return found.endpoints["chat"]


def named(body: object, path: str = "/v1/chat", held: tuple[Stored, ...] = ()) -> object:
    found = ownership.stored(endpoint(), body, Route(CONNECTION, "chat", path, None, held))
    return found if isinstance(found, Denial) else [(each.kind, each.id) for each in found]


NAMED = {
    "nothing": ({}, []),
    "a text": ({"one": "a"}, [("thing", "a")]),
    "null": ({"one": None, "either": None}, []),
    "a list": ({"one": ["a", "b", "a"]}, [("thing", "a"), ("thing", "b")]),
    "a list of lists": ({"one": [["a"], ["b"]]}, [("thing", "a"), ("thing", "b")]),
    "an object": ({"either": {"id": "a"}}, [("thing", "a")]),
    "both ways of an object": ({"either": {"id": "a", "deep": {"id": "b"}}}, [("thing", "a"), ("thing", "b")]),
    "either a text": ({"either": "a"}, [("thing", "a")]),
    "an entry": ({"items": [{"type": "ref", "id": "a"}, {"type": "other", "id": "b"}]}, [("item", "a")]),
    "an entry without the field": ({"items": [{"id": "a"}]}, [("item", "a")]),
    "an entry that is left out": ({"items": [{"id": "a", "role": "user"}, "text"]}, []),
    "an empty text": ({"one": ""}, [("thing", "")]),
}


@pytest.mark.parametrize(("body", "expected"), NAMED.values(), ids=NAMED.keys())
def test_what_a_body_names(body: dict, expected: list) -> None:
    assert named(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"one": 1},
        {"one": True},
        {"one": {"id": "a"}},
        {"one": ["a", 1]},
        {"either": {}},
        {"either": {"id": 1}},
        {"either": {"id": "a", "deep": {"id": 2}}},
        {"items": [{"type": "ref"}]},
        {"items": [{"type": "ref", "id": ["a"]}]},
    ],
    ids=json.dumps,
)
def test_what_is_named_but_not_by_a_text_is_malformed(body: dict) -> None:
    found = named(body)
    assert isinstance(found, Denial)
    assert found.reason is Reason.BODY_MALFORMED


def test_what_an_address_names() -> None:
    assert named({}, "/v1/chat?after=a&x=1&after=b%20") == [("thing", "a"), ("thing", "b ")]
    assert named({}, "/v1/chat?after=") == [("thing", "")]
    assert stored_in(endpoint(), "/d/a/of/b") == (Stored("thing", "a"), Stored("item", "b"))
    assert stored_in(endpoint(), "/v1/chat") == ()
    held = stored_in(endpoint(), "/d/a/of/b")
    assert named({"one": "a"}, held=held) == [("thing", "a"), ("item", "b")]


def test_whoever_does_not_ask_whose_it_is_refuses_it() -> None:
    for body, expected in NAMED.values():
        denial = refused_body(endpoint(), body, redacting=False)
        assert (denial is not None and denial.reason is Reason.BODY_OPAQUE) == bool(expected), body
        assert refused_body(endpoint(), body, redacting=False, named=True) is None


MADE = {
    "whole": ({"object": "thing", "id": "a"}, [("thing", "a")]),
    "of another kind": ({"object": "other", "id": "a"}, []),
    "not kept there": ({"object": "thing", "id": "a", "store": False}, []),
    "in lists": ({"thing": {"parts": [{"id": "a"}, {"id": "b"}, {}, {"id": 3}, "x"]}}, [("item", "a"), ("item", "b")]),
    "no text": ({"object": "thing", "id": 7}, []),
    "an empty text": ({"object": "thing", "id": ""}, []),
    "a list": ([1], []),
}


@pytest.mark.parametrize(("answer", "expected"), MADE.values(), ids=MADE.keys())
def test_what_an_answer_makes(answer: object, expected: list) -> None:
    assert [(each.kind, each.id) for each in ownership.made(endpoint(), answer)] == expected


def test_a_list_shows_only_ones_own() -> None:
    entries = [{"id": name, "text": name} for name in "abcd"] + [{"id": 5}, "e", {}, None]
    answer = {"data": entries, "first": "a", "last": "x", "has_more": True}
    found = ownership.listed(endpoint(), answer)
    assert isinstance(found, tuple)
    assert [each.id for each in found] == list("abcd")
    ownership.keep_own(endpoint(), answer, Owners({Stored("thing", "b"): None, Stored("thing", "c"): "m"}))
    kept = [{"id": "b", "text": "b"}, {"id": "c", "text": "c"}]
    assert answer == {"data": kept, "first": "b", "last": "c", "has_more": True}
    ownership.keep_own(endpoint(), answer, Owners({Stored("item", "b"): None}))
    assert answer == {"data": [], "first": None, "last": None, "has_more": True}


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": {"a": {"id": "a"}}}, [{"id": "a"}], {"Data": []}, "x"])
def test_an_answer_without_the_list_is_refused(answer: object) -> None:
    found = ownership.listed(endpoint(), answer)
    assert isinstance(found, Denial)
    assert found.reason is Reason.ANSWER_MALFORMED


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://up.example/base/v1/x?y=1", "/v1/x?y=1"),
        ("https://UP.example:443/base/v1/x", "/v1/x"),
        ("https://up.example:444/base/v1/x", None),
        ("http://up.example/base/v1/x", None),
        ("https://other.example/v1/x", None),
        ("/v1/x", None),
        ("https://[/v1/x", None),
        (None, None),
        (5, None),
    ],
)
def test_an_address_at_the_upstream_leads_through_the_gate(url: object, expected: str | None) -> None:
    answer = {"url": url}
    ownership.make_local(endpoint(), answer, CONNECTION)
    assert answer == {"url": url if expected is None else expected}


FAULTS = {
    "no kind": ("{path: $.one, kind: thing}", "{path: $.one}", "kind: found nothing"),
    "path and query": ("{query: after, kind", "{query: after, path: $.x, kind", "found both or neither"),
    "neither": ("{path: $.one, kind: thing}", "{kind: thing}", "found both or neither"),
    "a query with conditions": ("{query: after,", "{query: after, when: {a: [b]},", "accepted: nothing beside query"),
    "a kind nobody makes": ("{path: $.one, kind: thing}", "{path: $.one, kind: thign}", "kinds: found thign; accepted"),
    "a place nobody makes": ("{thing}/of", "{thign}/of", "kinds: found thign; accepted"),
    "one end": ("[first, last]", "[first]", "two fields, that of the first"),
    "no path": ("{path: $.data, kind: thing,", "{kind: thing,", "path: found nothing"),
    "no expression": ("local: [$.url]", "local: [url]", "accepted: a JSONPath expression"),
    "an unknown key": ("{path: $.one, kind: thing}", "{path: $.one, kind: thing, ids: [a]}", "an unknown key"),
}


@pytest.mark.parametrize(("old", "new", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_wrong_with_a_dialect_is_told(old: str, new: str, message: str) -> None:
    assert faults_of(TEXT) == []
    assert old in TEXT
    found = faults_of(TEXT.replace(old, new, 1))
    assert any(message in each for each in found), found


# ── the order of an exchange ─────────────────────────────────────────────────────────────────────────────────────────

RESPONSES = "/openai/v1/responses"
OPEN = AllowRule("dev", None, None, None, None)


def admitted(policy: Policy, path: str, method: str = "POST", *, models: tuple[str, ...] | None = None) -> Crossing:  # noqa: F811
    exchange = Crossing(policy, "ex_1")
    assert isinstance(exchange.receive(steps.HeadArrived(head(path, method))), steps.Identify)
    exchange.receive(steps.CallerKnown(ALICE))
    assert exchange.grant is not None
    exchange.grant = replace(exchange.grant, allows=(replace(OPEN, models=models),), denies=())
    return exchange


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "input": "hello", **more}).encode()


PREVIOUS = Stored("response", "resp_1")


def test_a_request_that_names_something_is_judged_once_its_owner_is_known(policy: Policy) -> None:  # noqa: F811
    exchange = admitted(policy, RESPONSES)
    event = steps.BodyArrived(body(previous_response_id="resp_1"))
    assert exchange.receive(event) == steps.LookUp((PREVIOUS,))
    assert exchange.stage is Stage.BODY
    assert isinstance(exchange.receive(replace(event, owners=Owners({PREVIOUS: None}))), steps.KeepIntent)
    assert ("owner", "allow") in [(each.stage, each.result) for each in exchange.decisions]


@pytest.mark.parametrize("own", [{}, {Stored("file", "resp_1"): None}, {Stored("response", "resp_2"): None}])
def test_what_is_not_the_callers_is_refused(policy: Policy, own: dict) -> None:  # noqa: F811
    exchange = admitted(policy, RESPONSES)
    event = steps.BodyArrived(body(previous_response_id="resp_1", conversation="conv_1"))
    assert isinstance(exchange.receive(event), steps.LookUp)
    assert refused(exchange.receive(replace(event, owners=Owners(own)))) is ownership.NOT_OWNER
    assert (exchange.stage, exchange.outcome, exchange.masked_body) == (Stage.OVER, Outcome.DENIED, b"")


def test_a_request_that_names_nothing_asks_nobody(policy: Policy) -> None:  # noqa: F811
    assert isinstance(admitted(policy, RESPONSES).receive(steps.BodyArrived(body())), steps.KeepIntent)


def test_a_name_in_the_path_is_asked_about(policy: Policy) -> None:  # noqa: F811
    exchange = admitted(policy, f"{RESPONSES}/resp_1", "GET")
    assert exchange.receive(steps.BodyArrived(b"")) == steps.LookUp((PREVIOUS,))
    found = exchange.receive(steps.BodyArrived(b"", owners=Owners({PREVIOUS: "m"})))
    assert isinstance(found, steps.KeepIntent)
    assert exchange.asked is not None
    assert exchange.asked.model == "m"


@pytest.mark.parametrize(
    ("known", "reason"), [("gpt-small", None), ("gpt-large", Reason.MODEL_DENIED), (None, Reason.MODEL_DENIED)]
)
def test_the_model_it_was_made_with_must_be_permitted(policy: Policy, known: str | None, reason: Reason | None) -> None:  # noqa: F811
    exchange = admitted(policy, f"{RESPONSES}/resp_1", "GET", models=("gpt-small",))
    step = exchange.receive(steps.BodyArrived(b"", owners=Owners({PREVIOUS: known})))
    assert (refused(step).reason if reason else type(step)) == (reason or steps.KeepIntent)


def whole(policy: Policy, path: str = RESPONSES, method: str = "POST") -> Crossing:  # noqa: F811
    exchange = admitted(policy, path, method)
    asked = body() if method == "POST" else b""
    assert isinstance(exchange.receive(steps.BodyArrived(asked, owners=Owners({PREVIOUS: "m"}))), steps.KeepIntent)
    exchange.receive(steps.IntentKept(kept=True))
    return exchange


ANSWER = json.dumps({"id": "resp_9", "object": "response", "output": [{"id": "msg_9"}]}).encode()
NEW = (Stored("response", "resp_9"), Stored("item", "msg_9"))


def test_a_whole_answer_waits_until_what_it_makes_is_kept(policy: Policy) -> None:  # noqa: F811
    exchange = whole(policy)
    exchange.receive(steps.AnswerBegan(200, JSON))
    assert exchange.receive(steps.AnswerWhole(ANSWER)) == steps.Claim(NEW)
    assert exchange.stage is Stage.CLAIM
    assert exchange.receive(steps.Claimed(kept=True)) == steps.Emit(ANSWER, last=True)
    assert exchange.outcome is Outcome.ANSWERED


def test_a_whole_answer_that_cannot_be_kept_is_withheld(policy: Policy) -> None:  # noqa: F811
    exchange = whole(policy)
    exchange.receive(steps.AnswerBegan(200, JSON))
    exchange.receive(steps.AnswerWhole(ANSWER))
    denial = refused(exchange.receive(steps.Claimed(kept=False)))
    assert denial.reason is Reason.STATE_UNAVAILABLE
    assert exchange.outcome is Outcome.FAILED


def test_an_error_makes_nothing(policy: Policy) -> None:  # noqa: F811
    exchange = whole(policy)
    exchange.receive(steps.AnswerBegan(400, JSON))
    assert exchange.receive(steps.AnswerWhole(ANSWER)) == steps.Emit(ANSWER, last=True)


def test_a_list_is_shown_once_it_is_known_whose_it_is(policy: Policy) -> None:  # noqa: F811
    exchange = whole(policy, "/openai/v1/files", "GET")
    exchange.receive(steps.AnswerBegan(200, JSON))
    answer = steps.AnswerWhole(b'{"data": [{"id": "file-1"}, {"id": "file-2"}], "has_more": false}')
    mine, other = Stored("file", "file-1"), Stored("file", "file-2")
    assert exchange.receive(answer) == steps.LookUp((mine, other))
    step = exchange.receive(replace(answer, owners=Owners({mine: None})))
    assert step == steps.Emit(b'{"data":[{"id":"file-1"}],"has_more":false}', last=True)


def events() -> list[tuple[str, dict]]:
    made = {"id": "resp_9", "object": "response", "output": []}
    text = "mail jane.doe@example.com, card 4111 1111 1111 1111. Bye"
    return [
        ("response.created", {"type": "response.created", "response": made}),
        *(
            ("response.output_text.delta", {"type": "response.output_text.delta", "output_index": 0, "delta": each})
            for each in (text[at : at + 5] for at in range(0, len(text), 5))
        ),
        ("response.completed", {"type": "response.completed", "response": made | {"output": [{"id": "msg_9"}]}}),
    ]


STREAM = b"".join(f"event: {name}\ndata: {json.dumps(event)}\n\n".encode() for name, event in events())
SSE = (("content-type", "text/event-stream"),)


def streamed(policy: Policy) -> Crossing:  # noqa: F811
    exchange = admitted(policy, RESPONSES)
    exchange.receive(steps.BodyArrived(body(stream=True)))
    exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(exchange.receive(steps.AnswerBegan(200, SSE)), steps.Stream)
    return exchange


def ran(policy: Policy, cuts: list[int], late: list[int]) -> tuple[bytes, list[Stored]]:  # noqa: F811
    """Drive a stream cut at ``cuts``; each claim is answered after as many further pieces as ``late`` says in turn."""
    exchange, out, made, waiting = streamed(policy), b"", [], 0
    at, pieces, delays = 0, [], iter(late)
    for cut in sorted({*cuts, len(STREAM)}):
        pieces.append(STREAM[at:cut])
        at = cut
    for event in (*(steps.AnswerChunk(each) for each in pieces if each), steps.AnswerEnded()):
        if waiting == 1:
            step = exchange.receive(steps.Claimed(kept=True))
            assert isinstance(step, steps.Emit)
            out += step.data
        waiting = max(0, waiting - 1)
        step = exchange.receive(event)
        if isinstance(step, steps.Claim):
            made += step.made
            waiting = max(waiting, next(delays, 1))
        else:
            assert isinstance(step, steps.Emit)
            assert not waiting or not step.data, "something left before it was kept"
            out += step.data
    if exchange.stage is not Stage.OVER:
        step = exchange.receive(steps.Claimed(kept=True))
        assert step == steps.Emit(step.data, last=True)  # type: ignore[union-attr]
        out += step.data  # type: ignore[union-attr]
    assert exchange.outcome is Outcome.ANSWERED
    return out, made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.lists(st.integers(1, 6), max_size=3))
def test_however_a_stream_is_cut_and_whenever_it_is_kept_the_client_reads_the_same(
    cuts: list[int], late: list[int]
) -> None:
    found = shared()
    expected, _ = ran(found, [], [])
    assert ran(found, cuts, late) == (expected, list(NEW))
    assert b"jane.doe" not in expected
    assert b"4111" not in expected


@cache
def shared() -> Policy:
    from tests.test_crossing import RULES
    from tidegate.inspection.cache import DiskCache
    from tidegate.policy.loading import load

    return load(RULES, engine_cache=DiskCache())


def test_a_stream_that_cannot_be_kept_ends_with_an_error_and_shows_no_name(policy: Policy) -> None:  # noqa: F811
    exchange = streamed(policy)
    assert exchange.receive(steps.AnswerChunk(STREAM[:-200])) == steps.Claim(NEW[:1])
    step = exchange.receive(steps.Claimed(kept=False))
    assert isinstance(step, steps.Emit)
    assert step.last
    assert b"state_unavailable" in step.data
    assert b"resp_9" not in step.data
    assert (exchange.outcome, exchange.stage) == (Outcome.FAILED, Stage.OVER)


# ── recorded traffic ─────────────────────────────────────────────────────────────────────────────────────────────────


def rows() -> Iterator[tuple[dict, Endpoint, str]]:
    """Recorded exchanges that concern something stored, each with its endpoint and the path below the base URL."""
    openai, anthropic = dialect("openai"), dialect("anthropic")
    with gzip.open(RECORDED, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if row["api"] not in ("openai.assistants", "openai.conversations", "files", "batches", "openai.responses"):
                continue
            path = urllib.parse.urlsplit(row["request"]["url"]).path
            for known in (openai, anthropic):
                found = match(known, row["request"]["method"], path)
                if found is not None and (
                    found.owned.paths or found.makes.paths or found.lists.paths or "{" in str(found.paths)
                ):
                    yield row, found, path
                    break


@pytest.mark.skipif(not RECORDED.exists(), reason="the corpus is not here")
def test_recorded_traffic_names_makes_and_lists_what_it_should() -> None:
    names, makes, lists = Counter[str](), Counter[str](), Counter[str]()
    for row, found, path in rows():
        value = strict_json((row["request"]["body"] or "").encode()) if found.body else None
        if isinstance(value, Denial):
            continue
        route = Route(CONNECTION, found.name, path, None, stored_in(found, path))
        told = ownership.stored(found, value, route)
        assert not isinstance(told, Denial), row["id"]
        names.update(each.kind for each in told)
        answer = strict_json(row["response"]["body"].encode())
        if row["response"]["status"] < 300 and not isinstance(answer, Denial):
            makes.update(each.kind for each in ownership.made(found, answer))
            if found.lists.paths:
                told = ownership.listed(found, answer)
                assert isinstance(told, tuple)
                lists.update(each.kind for each in told)
    assert names == {
        "thread": 34,
        "response": 16,
        "assistant": 13,
        "file": 7,
        "batch-input": 1,
        "conversation": 4,
        "vector-store": 3,
        "batch": 3,
        "message-batch": 3,
    }
    assert makes == {
        "item": 329,
        "response": 223,
        "assistant": 9,
        "thread": 8,
        "batch": 4,
        "conversation": 3,
        "message-batch": 3,
        "file": 1,
    }
    assert lists == {"file": 99}


@pytest.mark.skipif(not RECORDED.exists(), reason="the corpus is not here")
def test_recorded_traffic_is_clean_and_its_streams_are_intact() -> None:
    seen = Counter[str]()
    for row, found, _ in rows():
        value = strict_json((row["request"]["body"] or "").encode()) if found.body else None
        if isinstance(value, dict):
            seen["asked"] += 1
            assert not isinstance(asked(found, value), Denial) or row["api"] == "openai.responses"
            assert isinstance(inspect_request(found, engine(), always(Action.ALLOW), value), Inspected)
        data = row["response"]["body"].encode()
        if row["response"]["streaming"] and found.stream is not None:
            seen["streamed"] += 1
            stream = StreamedAnswer(
                found, dialect("openai").error, engine(), always(Action.ALLOW), "ex", AnswerHead("text/event-stream")
            )
            out, at, dice = b"", 0, random.Random(row["id"])
            while at < len(data):
                size = dice.randint(1, 400)
                out += stream.feed(data[at : at + size])
                at += size
            assert out + stream.end() == data, row["id"]
        elif row["response"]["status"] < 300 and not row["response"]["streaming"]:
            seen["whole"] += 1
            looked = inspect_answer(found, engine(), always(Action.ALLOW), data, status=200)
            if isinstance(looked, Denial):  # lines of JSON
                assert found.name in ("file_content", "message_batch_results"), row["id"]
                stream = StreamedAnswer(found, dialect("openai").error, engine(), always(Action.ALLOW), "ex")
                assert stream.feed(data) + stream.end() == data
                seen["lines"] += 1
            else:
                assert looked.body == data
    assert seen == {"asked": 461, "whole": 409, "streamed": 98, "lines": 2}
