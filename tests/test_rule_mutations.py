"""Take a rule away or break it, and a test fails: no rule of the secrets pack can go unnoticed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tidegate.inspection.engine import build
from tidegate.inspection.rules import Rule, check_examples, parse_pack

ROOT = Path(__file__).resolve().parents[1]
RULES, _ = parse_pack((ROOT / "rules" / "packs" / "secrets.yaml").read_text("utf-8"), "secrets.yaml")
NAMES = (ROOT / "tests" / "data" / "secrets-rules.txt").read_text("utf-8").split()


def _misspelt(rule: Rule) -> Rule:
    """Change the longest literal of the pattern by one character; without one, ask for a character nobody writes."""
    plain = re.sub(
        r"\\.|\[[^]]{0,200}\]|\{[0-9,]{1,9}\}|\(\?P<value>|\(\?i:", lambda hit: " " * len(hit[0]), rule.pattern
    )
    longest = max(re.finditer(r"[A-Za-z0-9_]+", plain), key=lambda hit: len(hit[0]), default=None)
    if longest is None or "|" in plain or ")?" in plain:
        return replace(rule, pattern=f"(?:{rule.pattern})\\x00")
    at = longest.start() + len(longest[0]) // 2
    return replace(rule, pattern=f"{rule.pattern[:at]}\\x00{rule.pattern[at + 1 :]}")


def test_every_rule_is_listed() -> None:
    """A rule that is removed or renamed is missing from the list; add new ones to it."""
    assert [rule.id.partition(".")[2] for rule in RULES] == NAMES


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
