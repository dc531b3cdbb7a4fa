"""JSON source that arrives in pieces parses after masking, holds no secret, and is the same for every cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching import engine, indexes, pieces, rule, texts
from tidegate.inspection.engine import Engine, build
from tidegate.model import Action
from tidegate.streams.redactor import Masked, Noted, Redactor, redact, short_name
from tidegate.streams.source import JsonSource

KEY = "sk-abcdefgh"
RULES = build(
    [
        rule("key", r"\bsk-[a-z]{8}\b"),
        rule("card", r"\b[0-9]{12,16}\b"),
        rule("pin", r'"pin": ?(?P<value>[0-9.eE+-]{1,9})'),
        rule("pair", r'"a": ?"b{1,3}", ?"c": ?(?:true|"x")'),
        rule("lines", "BEGIN\n[a-z]{3}\nEND"),
        rule("quoted", r'say "[a-z]{1,9}"'),
        rule("emoji", r"\xf0\x9f\x98\x80[a-z]{2}"),
        rule("digits", "[1-9][0-9]"),
    ],
    None,
)


def masked(source: str, at: list[int] | None = None, rules: Engine = RULES, every: int = 0) -> tuple[str, list[Any]]:
    parts = pieces(source, at or []) if not every else [source[i : i + every] for i in range(0, len(source), every)]
    channel = JsonSource(Redactor(rules, lambda _: Action.REDACT, short_name))
    out = [piece for part in parts for piece in channel.feed(part)] + channel.end()
    assert channel.held == 0
    hits = [(hit.rule.id, hit.start, hit.length) for hit in out if isinstance(hit, Masked | Noted)]
    return "".join(piece.text for piece in out), hits


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f'{{"q": "x {KEY} y"}}', '{"q": "x [REDACTED:key] y"}'),
        (r'{"q": "\u0073k\u002dabcdef\u0067h"}', '{"q": "[REDACTED:key]"}'),
        (r'{"q": "a\n\tsk-abcdefgh\\"}', r'{"q": "a\n\t[REDACTED:key]\\"}'),
        (r'{"q": "BEGIN\nabc\nEND"}', '{"q": "[REDACTED:lines]"}'),
        (r'{"q": "say \"hello\" now"}', '{"q": "[REDACTED:quoted] now"}'),
        (r'{"q": "\ud83d\ude00ab\uD83D\uDE01"}', r'{"q": "[REDACTED:emoji]\uD83D\uDE01"}'),
        ('{"q": "😀ab"}', '{"q": "[REDACTED:emoji]"}'),
        ('{"n": 4111111111111111, "m": 5}', '{"n": 0, "m": 5}'),
        ('{"n": [-123456789012, 1]}', '{"n": [-0, 1]}'),
        ('{"n": 50.25}', '{"n": 0.0}'),
        ('{"n": 0.25e31}', '{"n": 0.0e0}'),
        ('{"n": 125}', '{"n": 0}'),
        ('{"pin": -1.5e+3, "x": 1}', '{"pin": 0, "x": 1}'),
        ('{"a": "bb", "c": "x"}', '{"[REDACTED:pair]": "[REDACTED:pair]", "[REDACTED:pair]": "[REDACTED:pair]"}'),
        ('{"a": "bb", "c": true}', '{"[REDACTED:pair]": "[REDACTED:pair]", "[REDACTED:pair]": true}'),
        ('{"q": "\\u0', '{"q": "\\u0'),
        ('{"q": "\\ud83d', '{"q": "\\ud83d'),
        ("tru", "tru"),
        (f"not json {KEY}!", "not json [REDACTED:key]!"),
        (f"{{key: {KEY}, 'x'}}", "{key: [REDACTED:key], 'x'}"),
        (r'{"q": "\x sk-abcdefgh', r'{"q": "\x [REDACTED:key]'),
        ("4111-411111111111 x", "0 x"),
        (f'true"x"{KEY}', 'true"x"[REDACTED:key]'),
        (f"true-{KEY} null", "true-[REDACTED:key] null"),
        ("", ""),
    ],
)
def test_source_is_masked_where_json_allows_it(source: str, expected: str) -> None:
    assert masked(source)[0] == expected
    assert masked(source, every=1) == masked(source)


def test_what_is_ordinary_leaves_at_once_and_half_an_escape_waits() -> None:
    channel = JsonSource(Redactor(RULES, lambda _: Action.REDACT, short_name))
    assert "".join(piece.text for piece in channel.feed('{"city": "Gand \\')) == '{"city": "Gand '
    assert channel.held == 1
    assert channel.feed("u00") == []
    assert "".join(piece.text for piece in channel.feed("e9, t")) == "\\u00e9, t"


def _spoken(text: str, how: st.DataObject) -> str:
    """Write ``text`` as a JSON string, some of its characters as escapes."""
    out = []
    for each in text:
        units = (
            [each]
            if ord(each) < 0x10000
            else [chr(0xD800 + (ord(each) - 0x10000 >> 10)), chr(0xDC00 + (ord(each) & 0x3FF))]
        )
        escaped = "".join(f"\\u{ord(unit):04x}" for unit in units)
        out.append(escaped if how.draw(st.booleans()) else json.dumps(each, ensure_ascii=False)[1:-1])
    return f'"{"".join(out)}"'


def _write(value: Any, how: st.DataObject) -> str:
    if isinstance(value, str):
        return _spoken(value, how)
    if isinstance(value, list):
        return f"[{', '.join(_write(each, how) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_spoken(key, how)}: {_write(each, how)}' for key, each in value.items())}}}"
    return json.dumps(value)


PARTS = (
    KEY, "sk-", "pin", "a", "bb", "c", "x", " ", '"', "\\", "\n", "BEGIN\nabc\nEND", "say ", '"hey"', "😀ab", "é", "12",
)  # fmt: skip
strings = st.lists(st.sampled_from(PARTS), max_size=4).map("".join)
numbers = st.one_of(
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.5, 12, 120]),
)
values = st.recursive(
    st.one_of(strings, numbers, st.sampled_from([True, False, None])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
    max_leaves=6,
)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for each in value.values() for text in _strings(each))]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


@settings(max_examples=800, deadline=None)
@given(value=values, at=st.lists(st.integers(0, 300), max_size=20), how=st.data())
def test_masked_source_parses_and_holds_no_secret(value: Any, at: list[int], how: st.DataObject) -> None:
    source = _write(value, how)
    out, hits = masked(source)
    parsed = json.loads(out)
    assert not any(RULES.find_text(text) for text in _strings(parsed) if "[REDACTED" not in text)
    assert hits or out == source
    assert masked(source, at) == (out, hits)
    assert masked(source, every=1) == (out, hits)


@settings(max_examples=800, deadline=None)
@given(source=texts.flatmap(lambda text: st.sampled_from([text, f'"{text}"', f'{{"{text}": {text}}}'])),
       chosen=indexes, at=st.lists(st.integers(0, 200), max_size=20))  # fmt: skip
def test_text_that_is_no_json_is_masked_the_same_for_every_cut(
    source: str, chosen: tuple[int, ...], at: list[int]
) -> None:
    rules = engine(chosen)
    whole = masked(source, rules=rules)
    assert masked(source, at, rules=rules) == whole
    assert masked(source, rules=rules, every=1) == whole


@given(text=st.text(alphabet=st.characters(blacklist_characters='"\\'), max_size=40))
def test_inside_a_string_the_view_is_the_text(text: str) -> None:
    chosen = (0, 2, 6)
    out, _ = redact(engine(chosen), lambda _: Action.REDACT, short_name, text)
    assert masked(f'"{text}"', rules=engine(chosen))[0] == f'"{out}"'


def test_a_flagged_finding_leaves_the_source_alone() -> None:
    channel = JsonSource(Redactor(RULES, lambda _: Action.FLAG, short_name))
    source = f'{{"q": "{KEY}", "n": 4111111111111111}}'
    out = channel.feed(source) + channel.end()
    assert "".join(piece.text for piece in out) == source
    assert {hit.rule.id for hit in out if isinstance(hit, Noted)} >= {"t.key", "t.card"}
