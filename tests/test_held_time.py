"""Text that a stream holds back for too long is masked, never let go; what goes on with it is masked as well."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching import POOL, engine, pieces, texts
from tests.wire import CARD, FAMILIES, KEY, MAIL, PEM, Said, answer, as_sent, every, read, stream_of
from tests.wire import engine as few
from tests.wire import pieces as framed
from tidegate.limits.answer import AnswerMeter
from tidegate.model import Action, AnswerLimits
from tidegate.streams.redactor import Dropped, Kept, Masked, Redactor, redact, short_name
from tidegate.streams.source import JsonSource


def channel() -> Redactor:
    return Redactor(few(), lambda _: Action.REDACT, short_name)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (CARD[:8], CARD[8:] + " ok", "[REDACTED:card] ok"),
        (KEY[:6], KEY[6:] + " ok", "[REDACTED:key] ok"),
        (MAIL, "m ok", "[REDACTED:mail] ok"),
        ("see " + CARD[:8], " ok", "see [REDACTED:card] ok"),
        (PEM[:8], PEM[8:] + " ok", "[REDACTED:pem] ok"),
        ('"password": "abc', 'def" ok', '[REDACTED:password]" ok'),
    ],
    ids=["card", "key", "mail that grows", "no card after all", "marker", "value"],
)
def test_held_text_is_masked_and_what_goes_on_with_it(before: str, after: str, said: str) -> None:
    text = channel()
    out = [*text.feed(before), *text.expire()]
    assert text.held == 0
    out += [*text.feed(after), *text.end()]
    assert "".join(piece.text for piece in out) == said


def test_nothing_held_is_nothing_masked() -> None:
    text = channel()
    assert text.expire() == []
    assert text.feed("Hi. ") == [Kept("Hi. ")]
    assert text.expire() == []


def test_a_rule_that_blocks_is_only_masked() -> None:
    text = Redactor(few(), lambda _: Action.BLOCK, short_name)
    text.feed(CARD[:8])
    hits = [piece for piece in text.expire() if isinstance(piece, Masked)]
    assert [(hit.rule.id, hit.action, hit.length) for hit in hits] == [("t.card", Action.REDACT, 8)]


@settings(max_examples=400, deadline=None)
@given(text=texts, at=st.lists(st.integers(0, 60), max_size=6), draw=st.data())
def test_expiring_anywhere_shows_no_more_than_the_whole_does(text: str, at: list[int], draw: st.DataObject) -> None:
    rules = engine(tuple(range(len(POOL))))
    kept = _kept(rules, text, [text], ())
    parts = pieces(text, at)
    late = draw.draw(st.sets(st.integers(0, len(parts))))
    assert _kept(rules, text, parts, late) <= kept


def _kept(rules, text: str, parts: list[str], late) -> set[int]:
    """Return the positions of the characters that leave as they came."""
    one = Redactor(rules, lambda _: Action.REDACT, short_name)
    out, at = set(), 0
    moved = []
    for number, part in enumerate(parts):
        moved += one.feed(part) + (one.expire() if number in late else [])
    moved += one.end()
    for piece in moved:
        if isinstance(piece, Kept):
            assert piece.text == text[at : at + len(piece.text)]
            out |= set(range(at, at + len(piece.text)))
            at += len(piece.text)
        elif isinstance(piece, Dropped):
            at += piece.length
    assert at == len(text)
    return out


def test_json_source_still_parses() -> None:
    source = json.dumps({"a": f"see {CARD} now", "b": 1})
    for at in range(1, len(source)):
        text = JsonSource(channel())
        out = [*text.feed(source[:at]), *text.expire(), *text.feed(source[at:]), *text.end()]
        said = "".join(piece.text for piece in out)
        assert CARD not in said
        json.loads(said)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_masked_late_leaves_in_an_event_of_its_own(name: str) -> None:
    gate, out, named = answer(name), b"", 0
    for piece in framed(name, FAMILIES[name](as_sent(name, Said(f"see {CARD} now")), every(3))):
        out += gate.feed(piece)
        if gate.held >= 8 and not named:
            out += gate.expire(gate.stuck)
            named += 1
            assert gate.held == 0
    out += gate.end()
    assert named
    assert read(name, out).text == "see [REDACTED:card] now"
    assert gate.denial is None


def test_only_what_is_named_expires() -> None:
    gate = answer("chat")
    gate.feed(stream_of("chat", Said(CARD[:9])).partition(b'"finish_reason":"stop"')[0].rpartition(b"data:")[0])
    assert gate.held == 9
    assert gate.expire(frozenset({"another"})) == b""
    assert gate.held == 9
    assert b"REDACTED" in gate.expire(gate.stuck)


def test_the_time_counts_from_when_the_same_text_was_first_held() -> None:
    limits = replace(AnswerLimits(idle=100, duration=100), held=10.0)
    meter = AnswerMeter(limits, 0.0)
    meter.began(0.0)
    assert meter.due() == 100.0
    meter.holds({"a"}, 1.0)
    meter.holds({"a", "b"}, 5.0)
    assert meter.due() == 11.0
    assert meter.overdue(10.9) == frozenset()
    assert meter.overdue(11.0) == {"a"}
    meter.holds({"b"}, 12.0)
    assert meter.overdue(14.9) == frozenset()
    assert meter.overdue(15.0) == {"b"}
    assert AnswerMeter(AnswerLimits(), 0.0).overdue(1e9) == frozenset()


def test_without_expiring_nothing_changes() -> None:
    whole = redact(few(), lambda _: Action.REDACT, short_name, f"a {CARD} b")[0]
    text = channel()
    assert "".join(piece.text for piece in [*text.feed(f"a {CARD} b"), *text.end()]) == whole
