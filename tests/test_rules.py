from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidegate.inspection.engine import build
from tidegate.inspection.patterns import Problem, Shape, examine
from tidegate.inspection.rules import PACK_KEYS, RULE_KEYS, Rule, Severity, check_examples, parse_pack
from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Fault

PACK = "pack, class, version, description, threshold, rules, words"
BROKEN = Path(__file__).parent / "data" / "broken"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "rules.md"
KEYS = (
    "id, class, description, severity, pattern, end, max, after, not-after, validators, allow, plain, mode, score, "
    "references, match, pass"
)
VALIDATOR_NAMES = ", ".join(sorted(VALIDATORS))
ALONE = "patterns that look at the match alone (\\b and \\B are fine)"
NAME = "a name of lower-case letters, digits and hyphens that starts with a letter"

# The file name (tests/data/broken/pack-<fault>.yaml) and every message its reading gives, after the pack's name.
MESSAGES = {
    "anchor": (
        (
            ":8: rules[acme-token].pattern: found an anchor (^, $, \\A, \\Z)"
            "; accepted: patterns that may match anywhere; use \\b"
        ),
    ),
    "backreference": (f":8: rules[acme-token].pattern: found a backreference; accepted: {ALONE}",),
    "bad-class": (f":2: class: found 'Secret Things'; accepted: {NAME}",),
    "bad-id": (f":5: rules[0].id: found 'Acme_Token'; accepted: {NAME}",),
    "bad-mode": (
        ":9: rules[acme-token].mode: found 'shadow'; accepted: observe, or no mode at all for a rule that acts",
    ),
    "bad-re2": (":8: rules[acme-token].pattern: found a pattern RE2 refuses (missing ]); accepted: RE2 syntax",),
    "bad-reference": (
        (
            ":9: rules[acme-token].references[0]: found 'http://acme.test/docs'"
            "; accepted: a list of public https:// addresses"
        ),
    ),
    "bad-severity": (":7: rules[acme-token].severity: found 'urgent'; accepted: low or medium or high or critical",),
    "bad-version": (":3: version: found 2; accepted: 1",),
    "after-too-long": (
        ":9: rules[acme-token].after[0]: found a longest match of 60 bytes; accepted: at most 48 bytes",
    ),
    "allow-anchor": (
        (
            ":9: rules[acme-token].allow[1]: found an anchor (^, $, \\A, \\Z)"
            "; accepted: patterns that may match anywhere; use \\b"
        ),
    ),
    "delimited-allow": (
        (
            ":11: rules[acme-token].allow: found allow with end"
            "; accepted: no allow beside end: a stream cannot wait for the end"
        ),
    ),
    "delimited-validator": (
        (
            ":11: rules[acme-token].validators: found validators on a delimited rule"
            "; accepted: no validators beside end: a stream cannot wait for the end"
        ),
    ),
    "delimited-value": (
        ":8: rules[acme-token].pattern: found a value group; accepted: no value group beside end: all is redacted",
    ),
    "duplicate-id": (":12: rules[acme-token].id: found the id of an earlier rule; accepted: each id once in a pack",),
    "empty-match": (
        (
            ":8: rules[acme-token].pattern: found a pattern that can match the empty text"
            "; accepted: patterns that match at least one character"
        ),
    ),
    "end-without-max": (
        ":5: rules[acme-token].max: found nothing; accepted: a number of bytes from 21 (both markers) to 16384",
    ),
    "example-not-text": (
        ":11: rules[acme-token].pass[1]: found something that is not a text; accepted: a text; put quotes around it",
    ),
    "lookaround": (f":8: rules[acme-token].pattern: found a lookahead or lookbehind; accepted: {ALONE}",),
    "many-faults": (
        f":4: notes: found an unknown key; accepted: the keys {PACK}",
        (
            ":9: rules[acme-token].pattern: found an unbounded repeat (*, + or {n,})"
            "; accepted: a repeat with an upper bound, such as {1,64}"
        ),
        ":8: rules[acme-token].severity: found 'urgent'; accepted: low or medium or high or critical",
        ":12: rules[acme-token].pass: found 0 texts; accepted: at least 2 texts",
    ),
    "match-does-not-fire": (
        ": rules[acme-token].match[1]: found an example that does not fire its rule; accepted: one that does",
    ),
    "max-too-large": (
        ":10: rules[acme-token].max: found 99999; accepted: a number of bytes from 21 (both markers) to 16384",
    ),
    "max-without-end": (
        ":9: rules[acme-token].max: found max without end; accepted: max beside end, for delimited rules only",
    ),
    "missing-examples": (
        ":5: rules[acme-token].match: found nothing; accepted: at least 2 texts",
        ":10: rules[acme-token].pass: found 1 texts; accepted: at least 2 texts",
    ),
    "named-group": (
        (
            ":8: rules[acme-token].pattern: found a named group other than value"
            "; accepted: (?P<value>...) for the part to redact"
        ),
    ),
    "never-fires": (
        ": rules[acme-token]: found a rule that none of its match examples fire; accepted: a rule that can fire",
    ),
    "no-rules": (":4: rules: found an empty list; accepted: a list with at least one rule",),
    "non-ascii-pattern": (
        (
            ":8: rules[acme-token].pattern: found a character that is not printable ASCII"
            "; accepted: printable ASCII; write other bytes as \\xNN"
        ),
    ),
    "not-a-mapping": (f":1: the file: found a list; accepted: a mapping with the keys {PACK}",),
    "pass-fires": (": rules[acme-token].pass[1]: found an example that fires its rule; accepted: one that does not",),
    "python-only-repeat": (
        ":8: rules[acme-token].pattern: found {,n}, which RE2 reads as plain characters; accepted: {0,n}",
    ),
    "repeat-too-large": (
        (
            ":8: rules[acme-token].pattern: found a longest match of 2005 bytes"
            "; accepted: at most 1024 bytes, or a delimited rule with end and max"
        ),
    ),
    "repeated-key": (":8: rules[acme-token].severity: found the key twice; accepted: each key once",),
    "syntax": (":8: the file: found expected <block end>, but found '<scalar>'; accepted: YAML",),
    "too-long-match": (
        (
            ":8: rules[acme-token].pattern: found a longest match of 1206 bytes"
            "; accepted: at most 1024 bytes, or a delimited rule with end and max"
        ),
    ),
    "unbounded-repeat": (
        (
            ":8: rules[acme-token].pattern: found an unbounded repeat (*, + or {n,})"
            "; accepted: a repeat with an upper bound, such as {1,64}"
        ),
    ),
    "unknown-key": (f":8: rules[acme-token].regex: found an unknown key; accepted: the keys {KEYS}",),
    "unknown-validator": (
        f":9: rules[acme-token].validators[0]: found 'entropy:9'; accepted: one of {VALIDATOR_NAMES}",
    ),
}


def _read(name: str) -> tuple[tuple[Rule, ...], tuple[Fault, ...]]:
    return parse_pack((BROKEN / f"pack-{name}.yaml").read_text("utf-8"), "pack.yaml")


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_broken_pack_names_the_place_what_was_found_and_what_is_accepted(name: str) -> None:
    rules, faults = _read(name)
    if not faults:
        faults = check_examples(rules, build(rules, None))
    assert [str(fault).removeprefix("pack.yaml") for fault in faults] == list(MESSAGES[name])


def test_every_broken_pack_is_in_the_table() -> None:
    assert {path.stem.removeprefix("pack-") for path in BROKEN.glob("pack-*.yaml")} == set(MESSAGES)


def test_a_faulty_rule_does_not_take_the_others_down() -> None:
    text = (BROKEN / "pack-anchor.yaml").read_text("utf-8")
    whole = text.split("rules:\n")[1].replace("acme-token", "other").replace("^acme", "other")
    rules, faults = parse_pack(text + whole.replace("acme_", "other_"), "pack.yaml")
    assert [rule.id for rule in rules] == ["broken.other"]
    assert len(faults) == 1


def test_a_rule_carries_what_its_entry_says() -> None:
    text = """
pack: acme
class: secrets
version: 1
rules:
  - id: block
    class: keys
    description: A block
    severity: critical
    pattern: 'BEGIN [A-Z]{3}'
    end: 'END'
    max: 200
    mode: observe
    references: [https://acme.test/block]
    match: ["BEGIN ABC x END", "BEGIN XYZ"]
    pass: ["BEGIN abc", "END"]
"""
    (rule,), faults = parse_pack(text, "acme.yaml")
    assert faults == ()
    assert (rule.id, rule.cls, rule.pack, rule.severity) == ("acme.block", "keys", "acme", Severity.CRITICAL)
    assert (rule.end, rule.cap, rule.observe, rule.file) == ("END", 200, True, "acme.yaml")


def test_examples_stay_out_of_a_rules_repr() -> None:
    rules, _ = _read("pass-fires")
    assert not any(text in repr(rules) for text in (*rules[0].match, *rules[0].passes))


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_no_message_holds_an_example(name: str) -> None:
    text = (BROKEN / f"pack-{name}.yaml").read_text("utf-8")
    examples = re.findall(r"acme_[a-z]{5,}|4111111111111111", text)
    assert not any(example in message for example in examples for message in MESSAGES[name])


@pytest.mark.parametrize(
    ("pattern", "shortest", "longest"),
    [
        (r"a{2,3}\b", 2, 3),
        (r"(?i:ab)[^x]{2}", 4, 4),
        (r"(?P<value>a)|bcd", 1, 3),
        (r"\xc3\xb8(?:ab|c){0,3}", 2, 8),
        (r"\B\+[1-9]", 2, 2),
    ],
)
def test_a_pattern_is_measured_in_bytes(pattern: str, shortest: int, longest: int) -> None:
    assert examine(pattern) == Shape(shortest, longest)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a*", "an unbounded repeat (*, + or {n,})"),
        ("(?:ab){2,}", "an unbounded repeat (*, + or {n,})"),
        ("a$", "an anchor (^, $, \\A, \\Z)"),
        ("(?:^|x)a", "an anchor (^, $, \\A, \\Z)"),
        ("\\Aab", "an anchor (^, $, \\A, \\Z)"),
        ("(?=a)b", "a lookahead or lookbehind"),
        ("(?<!a)b", "a lookahead or lookbehind"),
        ("(a)\\1", "a backreference"),
        ("a++", "a possessive repeat"),
        ("(?>ab)c", "an atomic group"),
        ("[[:alpha:]]a", "a construct whose length tidegate cannot tell"),
        ("a\\z", "a construct whose length tidegate cannot tell"),
        ("\\pLa", "a construct whose length tidegate cannot tell"),
        ("a{0,3}", "a pattern that can match the empty text"),
        ("a{600}b{600}", "a longest match of 1200 bytes"),
        ("a\nb", "a character that is not printable ASCII"),
    ],
)
def test_a_pattern_that_cannot_be_kept_in_a_stream_is_refused(pattern: str, found: str) -> None:
    problems = examine(pattern)
    assert isinstance(problems, tuple)
    assert all(isinstance(problem, Problem) for problem in problems)
    assert [problem.found for problem in problems] == [found]


def test_the_page_names_every_key_and_every_validator() -> None:
    page = DOCS.read_text("utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    rows = {title: tuple(re.findall(r"^\| `([^`]+)`", body, re.MULTILINE)) for title, body in sections.items()}
    assert set(rows["Keys of a pack"]) == set(PACK_KEYS)
    assert set(rows["Keys of a rule"]) == set(RULE_KEYS)
    assert set(rows["Validators"]) == set(VALIDATORS)
    assert set(rows["Severities"]) == {str(each) for each in Severity}
