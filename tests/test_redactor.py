"""A stream cut anywhere is masked like the whole text, and the whole text like a naive reading of the rules says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.matching import POOL, VALUE_AHEAD, actions, engine, indexes, masked, pieces, rule, texts
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.patterns import Match
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.redactor import Dropped, Kept, Masked, Noted, Redactor, placeholder, redact, short_name

cuts = st.lists(st.integers(0, 200), max_size=30)


def always(_: Rule) -> Action:
    return Action.REDACT


def findings(channel_pieces: list) -> list[tuple[str, int, int, bool]]:
    hits = [piece for piece in channel_pieces if isinstance(piece, Masked | Noted)]
    return [(hit.rule.id, hit.start, hit.length, isinstance(hit, Masked)) for hit in hits]


def stream(rules: Engine, decide: dict[str, Action], parts: list[str]) -> tuple[str, list, int]:
    """The output, all pieces, and the most that was held after any part, in characters."""
    channel = Redactor(rules, lambda each: decide[each.id], short_name)
    out, held = [], 0
    for part in parts:
        out += channel.feed(part)
        held = max(held, channel.held)
    out += channel.end()
    assert channel.held == 0
    return "".join(piece.text for piece in out), out, held


@settings(max_examples=1500, deadline=None)
@given(chosen=indexes, text=texts, draw=st.data())
def test_a_whole_text_is_masked_as_the_naive_reading_says(
    chosen: tuple[int, ...], text: str, draw: st.DataObject
) -> None:
    action = {POOL[index].id: draw.draw(actions) for index in chosen}
    out, hits = redact(engine(chosen), lambda each: action[each.id], short_name, text)
    expected, found = masked([POOL[index] for index in chosen], action, text)
    assert out == expected
    assert findings(list(hits)) == found


TRAPS = {
    "an end marker that grows": "<>>",
    "an end marker that grows past the cap": "<baaaaaa>>",
    "an end marker at the cap": "<baaaaaa>b",
    "a match before a region that reaches over it": "a1<c>>b",
    "a match right after a region": "<>abc",
    "a region inside a region": "<a<bc>>>b",
    "a region cut by its cap in a character": "<b" + "é" * 5,
    "a marker that ends in half a character": "é<aé>",
    "a value behind its match": "abc@1bb c",
    "a value in a region": "abc@ <>1",
    "two rules in one character": "éaéb",
    "a rejected match over an accepted one": "10059",
    "a word edge at the cut": "ab ab\u00e9b ab",
    "an end marker that begins in a character": "a<béaab",
    "both markers in one character": "a😀b1",
    "a value that is not there": "1b1xab",
    "growth": "aaaaab@cab@c1",
}


@pytest.mark.parametrize("text", TRAPS.values(), ids=TRAPS.keys())
def test_every_cut_of_a_trap_gives_what_the_whole_gives(text: str) -> None:
    every = engine(tuple(range(len(POOL))))
    for rules in (every, engine(VALUE_AHEAD), *(engine((index,)) for index in range(len(POOL)))):
        decide = {each.id: Action.REDACT for each in rules.rules}
        whole = redact(rules, always, short_name, text)[0]
        assert whole == masked(rules.rules, decide, text)[0]
        for first in range(len(text)):
            for second in range(first, len(text)):
                assert stream(rules, decide, [text[:first], text[first:second], text[second:]])[0] == whole
        assert stream(rules, decide, list(text))[0] == whole


@settings(max_examples=2500, deadline=None)
@given(chosen=indexes, text=texts, at=cuts, draw=st.data())
def test_every_cut_gives_what_the_whole_gives(
    chosen: tuple[int, ...], text: str, at: list[int], draw: st.DataObject
) -> None:
    action = {POOL[index].id: draw.draw(actions) for index in chosen}
    rules = engine(chosen)
    longest = max([rules.reach, *(each.end.longest for each in rules.compiled if each.end)])
    whole, hits = redact(rules, lambda each: action[each.id], short_name, text)
    for parts in (pieces(text, at), list(text)):
        out, got, held = stream(rules, action, parts)
        assert out == whole
        assert findings(got) == findings(list(hits))
        assert held <= longest
        lengths = [len(piece.text) if isinstance(piece, Kept) else piece.length for piece in got]
        moved = (isinstance(piece, Kept | Dropped) for piece in got)
        assert sum(length for length, moves in zip(lengths, moved, strict=True) if moves) == len(text)


SECRET = build([rule("key", r"\bsk-[a-z]{4,40}\b"), rule("mail", r"\b[a-z.]{1,20}@[a-z]{1,20}\.[a-z.]{2,6}\b")], None)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["jane@example.co", ".uk", " x"], "[REDACTED:mail] x"),
        (["sk-abcdefgh", "ijklmnop", " x"], "[REDACTED:key] x"),
        (["sk-abcd"], "[REDACTED:key]"),
        (["sk-abc", "d", "-"], "[REDACTED:key]-"),
        (["ask", "-abcd "], "ask-abcd "),
        (["sk-", "abc", "D "], "sk-abcD "),
    ],
)
def test_a_match_that_could_still_grow_waits(parts: list[str], expected: str) -> None:
    assert stream(SECRET, {"t.key": Action.REDACT, "t.mail": Action.REDACT}, parts)[0] == expected


def test_text_without_a_beginning_of_a_match_leaves_at_once() -> None:
    channel = Redactor(build([rule("key", r"\bsk-[a-z]{4,40}\b")], None), always, short_name)
    assert channel.feed("Hello, ") == [Kept("Hello, ")]
    assert channel.feed("s") == []
    assert channel.held == 1
    assert channel.feed("o") == [Kept("so")]
    assert channel.feed("") == []


def test_pieces_of_one_masked_run() -> None:
    rules = build([rule("a", "abcd"), rule("b", "cdef"), rule("c", "fg")], None)
    (first, second, third) = rules.rules
    channel = Redactor(rules, always, short_name)
    assert channel.feed("xabcdefg.") + channel.end() == [
        Kept("x"),
        Masked("[REDACTED:a]", 4, first, Action.REDACT, 1),
        Dropped(2),
        Noted(4, second, Action.REDACT, 3),
        Dropped(3),
        Noted(2, third, Action.REDACT, 6),
        Dropped(2),
        Kept("."),
    ]


def test_matches_that_touch_get_a_placeholder_each() -> None:
    rules = build([rule("a", "aa"), rule("b", "bb")], None)
    assert redact(rules, always, short_name, "aabb")[0] == "[REDACTED:a][REDACTED:b]"


def test_a_flagged_match_keeps_the_text_and_hides_nothing() -> None:
    rules = build([rule("wide", "<", end=">", cap=50), rule("key", "secret")], None)
    decide = {"t.wide": Action.FLAG, "t.key": Action.REDACT}
    out, hits = redact(rules, lambda each: decide[each.id], short_name, "<a secret>")
    assert out == "<a [REDACTED:key]>"
    assert [(hit.rule.id, hit.action) for hit in hits] == [("t.wide", Action.FLAG), ("t.key", Action.REDACT)]


def test_an_allowed_rule_is_not_looked_for() -> None:
    rules = build([rule("key", "secret")], None)
    channel = Redactor(rules, lambda _: Action.ALLOW, short_name)
    assert channel.feed("a sec") == [Kept("a sec")]
    assert channel.feed("ret") == [Kept("ret")]


PEM = build([rule("pem", "--BEGIN", end="--END", cap=100), rule("key", "secret")], None)


def test_a_region_is_swallowed_to_its_end_and_never_held() -> None:
    channel = Redactor(PEM, always, short_name)
    first = channel.feed("x --BEGIN secret ")
    assert "".join(piece.text for piece in first) == "x [REDACTED:pem]"
    assert channel.feed("body " * 4) == [Dropped(20)]
    assert channel.held == 0
    assert channel.feed("--EN") == []
    assert channel.held == 4
    assert "".join(piece.text for piece in channel.feed("D secret") + channel.end()) == " [REDACTED:key]"


def test_a_region_without_an_end_stops_at_its_cap() -> None:
    text = "--BEGIN" + "x" * 93 + "after"
    assert redact(PEM, always, short_name, text)[0] == "[REDACTED:pem]after"
    assert stream(PEM, {"t.pem": Action.REDACT, "t.key": Action.REDACT}, list(text))[0] == "[REDACTED:pem]after"


@given(label=st.text())
@example(label='a"b\\c\n')
def test_a_placeholder_needs_no_escape_anywhere(label: str) -> None:
    text = placeholder(label)
    assert text.startswith("[REDACTED:")
    assert not set(text) & set("\"\\<>&'\n\r\t")
    assert text.isprintable()


HOSTILE = {
    "rejected numbers": "1234567" * 3000,
    "half markers": "--EN--BEGI" * 2000,
    "regions": "--BEGIN--END" * 1700,
    "open regions": "--BEGIN" * 3000,
    "one growing match": "a" * 20000,
    "words": "a@b." * 5000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_work_grows_with_the_text_and_no_faster(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = build(
        [
            rule("pem", "--BEGIN", end="--END", cap=100),
            rule("number", "[0-9]{13,19}", validators=("luhn",)),
            rule("run", "a{20,400}"),
            rule("mail", r"\b[a-z.]{1,20}@[a-z]{1,20}\.[a-z.]{2,6}\b"),
        ],
        None,
    )

    def work(part: str) -> int:
        seen = 0

        class Counting:
            def __init__(self, compiled: object) -> None:
                self.compiled = compiled

            def search(self, data: bytes, start: int, end: int | None = None) -> object:
                nonlocal seen
                hit = self.compiled.search(data, start, end)
                stop = len(data) if end is None else end
                seen += 1 + (hit.end() if hit else stop) - start
                return hit

        def counting(match: Match) -> Match:
            def call(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
                nonlocal seen
                spans = match(data, start, end)
                seen += 1 + (end if spans[0][1] < 0 else spans[0][1]) - start
                return spans

            return call

        kept = rules.compiled
        counted = tuple(
            replace(
                each,
                find=replace(each.find, opening=counting(each.find.opening), exact=counting(each.find.exact)),
                end=each.end and replace(each.end, find=Counting(each.end.find)),
            )
            for each in kept
        )
        with monkeypatch.context() as patch:
            patch.setattr(rules, "compiled", counted)
            redact(rules, always, short_name, part)
        return seen

    half, whole = work(text[: len(text) // 2]), work(text)
    assert whole <= 2.2 * half + 2000
