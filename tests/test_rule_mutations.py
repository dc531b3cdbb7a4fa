"""Take a rule away or break it, and a test fails: no rule of these packs can go unnoticed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tidegate.inspection.engine import build
from tidegate.inspection.rules import Rule, check_examples, parse_pack

ROOT = Path(__file__).resolve().parents[1]
PACKS = ("secrets", "injection", "exfil")


def _pack(name: str) -> tuple[Rule, ...]:
    return parse_pack((ROOT / "rules" / "packs" / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml")[0]


RULES = tuple(rule for name in PACKS for rule in _pack(name))


def _misspelt(rule: Rule) -> Rule:
    """Change the longest literal of the pattern by one character; without one, ask for a character nobody writes."""
    plain = re.sub(
        r"\\x[0-9a-fA-F]{2}|\\.|\[[^]]{0,200}\]|\{[0-9,]{1,9}\}|\(\?P<value>|\(\?i:",
        lambda hit: " " * len(hit[0]),
        rule.pattern,
    )
    longest = max(re.finditer(r"[A-Za-z0-9_]+", plain), key=lambda hit: len(hit[0]), default=None)
    if longest is None or "|" in plain or ")?" in plain:
        return replace(rule, pattern=f"(?:{rule.pattern})\\x00")
    at = longest.start() + len(longest[0]) // 2
    return replace(rule, pattern=f"{rule.pattern[:at]}\\x00{rule.pattern[at + 1 :]}")


@pytest.mark.parametrize("pack", PACKS)
def test_every_rule_is_listed(pack: str) -> None:
    """A rule that is removed or renamed is missing from the list; add new ones to it."""
    names = (ROOT / "tests" / "data" / f"{pack}-rules.txt").read_text("utf-8").split()
    assert [rule.id.partition(".")[2] for rule in RULES if rule.pack == pack] == names


def test_every_rule_has_an_id_and_examples_of_its_own() -> None:
    texts = [text for rule in RULES for text in rule.match]
    assert len(texts) == len(set(texts))


@pytest.fixture(scope="module")
def broken() -> dict[str, int]:
    """How many of its examples each rule misses once its pattern is misspelt."""
    rules = [_misspelt(rule) for rule in RULES]
    engine = build(rules, None)
    return {rule.id: len(check_examples([rule], engine)) for rule in rules}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_misspelt_pattern_is_noticed(rule: Rule, broken: dict[str, int]) -> None:
    assert broken[rule.id] > 0
