"""What the end of a text may still become is remembered: that changes nothing of what leaves, and when."""

from __future__ import annotations

from functools import cache
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_split_invariance import FRAGMENTS
from tests.wire import always, engine
from tidegate.inspection import walk
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import parse_pack
from tidegate.model import Action
from tidegate.streams.redactor import Redactor, short_name

SHORT = r"""
pack: t
class: secrets
version: 1
rules:
  - {id: word, description: a, severity: low, pattern: '\bab\b', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
  - {id: two, description: a, severity: low, pattern: 'aa', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
"""


@cache
def short() -> Engine:
    """Rules of which the longest match is so short that a scan begins inside of what is held."""
    rules, faults = parse_pack(SHORT, "short.yaml")
    assert not faults
    return build(rules, None)


def parts(rules: Engine, cut: list[str]) -> list[object]:
    channel = Redactor(rules, always(Action.REDACT), short_name)
    return [[*map(channel.feed, cut)], channel.end(), channel.held]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([*FRAGMENTS, "a", "b", "aa", "ab", "_", " ab"]), max_size=12))
@pytest.mark.parametrize("kind", ["usual", "short"])
def test_what_is_remembered_is_what_would_be_found(kind: str, cut: list[str]) -> None:
    rules = engine() if kind == "usual" else short()
    with mock.patch.object(walk, "TAIL", -1):
        expected = parts(rules, cut)
    assert parts(rules, cut) == expected
    assert parts(rules, cut) == expected


def test_as_much_as_is_remembered() -> None:
    rules = short()
    with mock.patch.object(walk, "TAILS", 4):
        for number in range(20):
            parts(rules, [f"{number} "])
    (tails,) = rules._tails.values()
    assert 0 < len(tails) <= 4


def test_what_has_left_is_no_beginning() -> None:
    rules, faults = parse_pack(SHORT.partition("  - {id: two")[0], "word.yaml")
    assert not faults
    word = build(rules, None)
    assert parts(word, ["ab"])[0] == [[]]
    before = Redactor(word, always(Action.REDACT), short_name)
    assert ["".join(piece.text for piece in before.feed(part)) for part in ("_", "a", "b")] == ["_", "a", "b"]
