"""A history never changes a result: whatever was seen before, a body is judged as if nothing had been."""

from __future__ import annotations

import base64
import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching import rule
from tests.wire import CARD, KEY, MAIL, always, endpoint
from tests.wire import engine as wired
from tidegate.dialects.body import dump
from tidegate.inspection import history as histories
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.history import History, parts
from tidegate.inspection.proprietary.known import Known, fingerprint
from tidegate.model import Action, Denial
from tidegate.policy import coded
from tidegate.policy.loading import load
from tidegate.streams import texts as streams
from tidegate.streams.texts import Texts

ROOT = Path(__file__).resolve().parents[1]
WRONG = CARD[:-1] + str((int(CARD[-1]) + 1) % 10)
ACROSS = rule("across", r'zz"\},\{"role":"user","content":"yy')
PADDING = "so it went on and on, as it does. " * 8
FRAGMENTS = (
    "plain words", "done.", PADDING, PADDING, KEY, CARD, WRONG, MAIL, KEY[:7], KEY[7:], KEY[::-1], "zz", "yy",
    base64.b64encode(KEY.encode()).decode(), '},{"role":"user', '"},{"a":"', "a\nb", 'say "x"', "\\", "\x1b[0m", "é😀",
    "A", "1", "4111,", " ", json.dumps({"a": f"{KEY}\n"}), "password", "hunter22",
)  # fmt: skip

contents = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5).map("".join)
texts = contents.map(lambda text: {"type": "text", "text": text})
calls = contents.map(lambda text: {"function": {"arguments": text}})
others = ({"n": int(CARD)}, {"n": [int(WRONG), int(WRONG[:8]), 1.5]}, {"password": "hunter22"}, {"role": "user"})
items = st.one_of(
    contents.map(lambda text: {"role": "user", "content": text}),
    st.lists(texts, max_size=3).map(lambda many: {"role": "user", "content": many}),
    calls.map(lambda call: {"role": "assistant", "tool_calls": [call]}),
    st.sampled_from(others),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), items),
        st.tuples(st.just("add"), items),
        st.tuples(st.just("drop"), st.integers(0, 20)),
        st.tuples(st.just("change"), items),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def rules() -> Engine:
    return build([*wired().rules, ACROSS], DiskCache())


def remembering(rules: Engine, key: bytes = b"k" * 32) -> Engine:
    return rules.extended({}, {}, (), History(key))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut bodies of a test's size."""
    monkeypatch.setattr(histories, "LEAST", 150)
    monkeypatch.setattr(histories, "FINE", 50)
    monkeypatch.setattr(streams, "LONG", 0)


def judged(rules: Engine, value: Any, action: Action = Action.REDACT) -> Inspected | Denial:
    extra = {"header x": "4111 and on"}
    return inspect_request(endpoint("chat"), rules, always(action), copy.deepcopy(value), extra=extra)


def the_long_way(rules: Engine, value: Any, action: Action = Action.REDACT) -> Inspected | Denial:
    """Look at every value by itself, whatever a look at all of them would say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Texts, "are_clean", lambda *_: False)
        patch.setattr(Texts, "may_be_skipped", lambda *_: False)
        return judged(rules, value, action)


def conversation(messages: list[Any]) -> dict[str, Any]:
    return {"model": "m", "messages": messages, "stream": True}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("action", [Action.REDACT, Action.FLAG])
def test_any_sequence_of_bodies_is_judged_as_without_a_history(rules: Engine, action: Action) -> None:
    known = remembering(rules)

    @settings(max_examples=400, deadline=None)
    @given(first=st.lists(items, max_size=6), after=steps)
    def holds(first: list[Any], after: list[tuple[str, Any]]) -> None:
        messages = list(first)
        for step, what in [("none", None), *after, ("none", None)]:
            if step == "add":
                messages.append(what)
            elif step == "drop" and messages:
                del messages[what % len(messages)]
            elif step == "change" and messages:
                messages[len(messages) // 2] = what
            value = conversation(messages)
            assert judged(known, value, action) == the_long_way(rules, value, action)
            body = dump({"choices": [{"message": each} for each in messages]})
            answer = [
                inspect_answer(endpoint("chat"), each, always(action), body, status=200) for each in (known, rules)
            ]
            assert answer[0] == answer[1]

    holds()
    assert known.history is not None
    assert len(known.history) > 100


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(items, max_size=12), least=st.integers(1, 200))
def test_a_text_is_never_cut_inside_a_value(messages: list[Any], least: int) -> None:
    body = dump(conversation(messages))
    cut = list(parts(body, 0, len(body), least))
    assert b"".join(body[start:stop] for start, stop in cut) == body
    for _, stop in cut[:-1]:
        assert body[stop - 1 : stop + 3] == b'},{"'
        quotes = body[:stop].replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')
        assert quotes % 2 == 0


def test_a_value_split_over_two_messages_is_not_cut_there() -> None:
    filler = {"role": "user", "content": "words. " * 100}
    halves = [filler, {"role": "user", "content": f"my {KEY[:9]}"}, {"role": "user", "content": KEY[9:]}, filler]
    body = dump(conversation(halves))
    at = body.index(KEY[9:].encode())
    for least in range(1, len(body)):
        assert all(not at - 60 < stop < at for _, stop in parts(body, 0, len(body), least))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("before", [200, 700])
def test_what_reaches_over_a_cut_is_found_however_far_it_reaches(before: int) -> None:
    known = remembering(build([rule("far", r'xx[^y]{0,900}"\},\{"role":"user","content":"[^y]{0,90}yy')], None))
    far = [f"xx {'. ' * (before // 2)}", f"{'. ' * ((760 - before) // 20)}yy", PADDING, PADDING]
    value = conversation([{"role": "user", "content": text} for text in [PADDING, *far]])
    body = dump(value)
    cut = [stop for _, stop in parts(body, 0, len(body), histories.LEAST)]
    assert any(body.index(b"xx") < stop < body.index(b"yy") for stop in cut)
    other = conversation([*value["messages"][:2], {"role": "user", "content": ". " * 40}])
    assert judged(known, other) == the_long_way(known, other)  # now the part with the beginning is known
    for _ in range(2):
        found = judged(known, value)
        assert isinstance(found, Inspected)
        assert [each.rule for each in found.findings] == ["t.far"]


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(base64.b64encode(KEY.encode()).decode(), id="base64"),
        pytest.param(KEY.encode().hex(), id="hex"),
        pytest.param("\u200b".join(KEY), id="zero-width"),
        pytest.param("".join(f"\\u{ord(each):04x}" for each in KEY), id="escaped"),
    ],
)
def test_what_one_direction_allows_is_still_found_in_the_other(rules: Engine, secret: str) -> None:
    known = remembering(rules)
    text = f'{{"a": "{PADDING}{secret} {PADDING}"}}'
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}]
    message = {"role": "assistant", "content": text, "tool_calls": calls}
    answer, request = dump({"choices": [{"message": message}]}), conversation([message])
    judged(known, request, Action.ALLOW)
    found = [
        inspect_answer(endpoint("chat"), each, always(Action.REDACT), answer, status=200) for each in (known, rules)
    ]
    assert found[0] == found[1]
    assert isinstance(found[0], Inspected)
    assert found[0].findings
    known = remembering(rules)
    inspect_answer(endpoint("chat"), known, always(Action.ALLOW), answer, status=200)
    assert judged(known, request, Action.BLOCK) == judged(rules, request, Action.BLOCK)


def test_an_engine_made_for_one_text_has_no_history(rules: Engine) -> None:
    assert remembering(rules).beside(()).history is None


def looked_at(engine: Engine, value: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Judge a body; return how many bytes of it were searched for what nobody had seen before."""
    seen = 0
    original = Texts._tells_nothing

    def counting(self: Texts, data: bytes, in_one: Any) -> bool:
        nonlocal seen
        seen += len(data)
        return original(self, data, in_one)

    with monkeypatch.context() as patch:
        patch.setattr(Texts, "_tells_nothing", counting)
        judged(engine, value)
    return seen


def long_talk() -> list[dict[str, str]]:
    return [{"role": "user", "content": f"part {index:04d} of it. " + PADDING * 2} for index in range(180)]


@pytest.mark.parametrize("held", ["", f" ask {MAIL} then "], ids=["clean", "with a finding"])
def test_only_what_is_new_is_searched(rules: Engine, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, messages = remembering(rules), long_talk()
    messages[40]["content"] += held
    size = len(dump(conversation(messages)))
    assert size > 100_000
    assert looked_at(known, conversation(messages), monkeypatch) >= size
    looked_at(known, conversation(messages), monkeypatch)
    for turn in range(20):
        messages.append({"role": "assistant", "content": f"answer {turn}. " + PADDING})
        assert looked_at(known, conversation(messages), monkeypatch) < 3000


def test_a_finding_in_a_known_conversation_is_found_at_every_turn(rules: Engine) -> None:
    known, messages = remembering(rules), long_talk()
    judged(known, conversation(messages))
    messages.append({"role": "user", "content": f"use {KEY} now"})
    for _ in range(3):
        found = judged(known, conversation(messages))
        assert isinstance(found, Inspected)
        assert [each.where for each in found.findings] == ["$.messages[180].content"]
        assert KEY.encode() not in found.body


def test_a_history_is_bounded_and_forgets_what_is_not_asked_about() -> None:
    history = History(b"k" * 32, most=100)
    first = history.name(b"first", b"")
    for number in range(1000):
        history.keep(history.name(b"%d" % number, b""))
        history.keep(first) if number == 0 else history.knows(first)
        assert len(history) <= 100
    assert history.knows(first)
    assert not history.knows(history.name(b"1", b""))
    assert history.knows(history.name(b"999", b""))


def test_names_depend_on_the_key_and_on_the_question() -> None:
    one, other = History(b"1" * 32), History(b"2" * 32)
    names = {each.name(data, under) for each in (one, other) for data in (b"a", b"b") for under in (b"", b"x")}
    assert len(names) == 8
    assert all(len(name) == 16 for name in names)


def test_a_policy_that_is_loaded_again_remembers_nothing() -> None:
    path = ROOT / "rules" / "policy.yaml"
    first = load(path, engine_cache=DiskCache()).engine.history
    second = load(path, engine_cache=DiskCache()).engine.history
    assert first is not None
    assert second is not None
    first.keep(first.name(b"text", b""))
    assert (len(first), len(second)) == (1, 0)
    assert first.name(b"text", b"") != second.name(b"text", b"")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("written", [KEY, base64.b64encode(KEY.encode()).decode(), KEY.encode().hex()])
def test_a_known_false_positive_is_found_again_after_its_last_day(
    rules: Engine, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [5.0]
    monkeypatch.setattr(coded, "time", SimpleNamespace(time=lambda: now[0]))
    hmac = b"h" * 32
    entry = Known("t.key", fingerprint(hmac, "t.key", KEY.encode()), 10.0)
    engine = coded.Coded(known=[(entry, hmac)]).extend(rules)
    value = conversation([{"role": "user", "content": f"{PADDING} {written} {PADDING}"}])
    for now[0], found in [(5.0, 0), (9.0, 0), (10.0, 1), (11.0, 1)]:
        inspected = judged(engine, value)
        assert isinstance(inspected, Inspected)
        assert len(inspected.findings) == found, now


@pytest.mark.usefixtures("small")
def test_threads_may_share_a_history(rules: Engine) -> None:
    known = rules.extended({}, {}, (), History(b"k" * 32, most=40))
    talks = [conversation(long_talk()[index : index + 6]) for index in range(40)]
    talks[7]["messages"].append({"role": "user", "content": KEY})
    expected = [judged(rules, each) for each in talks]
    with ThreadPoolExecutor(8) as pool:
        for found in [list(pool.map(lambda each: judged(known, each), talks)) for _ in range(3)]:
            assert found == expected


@pytest.mark.parametrize(
    ("span", "inside"),
    [
        (b"4111 1111", True),
        (b"token: abcdefgh", True),
        (b"411111", True),
        (b"-1.5e10", True),
        (b"4111,4111", False),
        (b'a","b', False),
        (b"1],[1", False),
        (b"null,true", False),
        (b"falsehood,x", True),
    ],
)
def test_what_lies_in_one_value(span: bytes, inside: bool) -> None:
    assert streams._in_one_value(span) is inside
