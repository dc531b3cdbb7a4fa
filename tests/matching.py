"""What the tests of matching share: small rules, texts made of pieces of their matches, and a naive second opinion.

``spans`` and ``masked`` say what a whole text's matches are and how it is masked, by trying every start and every end
with Python's ``re``; nothing of the code under test is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from hypothesis import strategies as st

from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import Rule, Severity
from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Action


def rule(
    name: str,
    pattern: str,
    end: str | None = None,
    cap: int = 64,
    validators: tuple[str, ...] = (),
    severity: Severity = Severity.LOW,
    **conditions: tuple[str, ...],
) -> Rule:
    return Rule(
        id=f"t.{name}", cls="secrets", pack="t", description="a rule", severity=severity, pattern=pattern, end=end,
        cap=cap, validators=validators, observe=False, match=(), passes=(), references=(), file="t.yaml",
        **conditions,
    )  # fmt: skip


POOL = (
    rule("literal", "abc"),
    rule("nested", "bc"),
    rule("grows", "a{2,4}"),
    rule("long", "(?:ab){3,12}"),
    rule("word", r"\bab\b"),
    rule("inside", r"b\Bc|c\b a"),
    rule("start", r"\Bca\b"),
    rule("choice", "a(?:b|bc)(?:@|c@)?"),
    rule("optional", "x?[ab]?c?1"),
    rule("repeat", r"(?:a\b[ @]|c){1,3}1"),
    rule("mail", r"\b[a-c]{1,4}@[a-c1]{1,3}\b"),
    rule("value", "x(?P<value>[ab]{1,3})c?"),
    rule("tail", "[abc]{1,3}(?P<value>@ ?1)"),
    rule("case", "(?i:Ab)X"),
    rule("bytes", r"[^a]b"),
    rule("half", r"\xa9[ab]"),
    rule("any", "1.c"),
    rule("maybe", "1(?:x(?P<value>a))?b"),
    rule("late", "c@1bb?"),
    rule("number", r"[0-9]{3,6}", validators=("luhn",)),
    rule("after", "[ab]{1,2}1?", after=("x.{0,9}c", r"\xa9")),
    rule("unless", "c[ab]{0,3}", not_after=("b ?", "1", r"\n")),
    rule("allowed", "[abc]{2,4}", allow=("ab?c", "b{2}|c[ab]{3}")),
    rule("lead", r"\xf0", end=r"\x98\x80b|x", cap=12),
    rule("region", "<a?", end="c?>{1,2}", cap=24),
    rule("short", r"\b<b", end=r">\b|\xa9a", cap=9),
)
FRAGMENTS = (
    "a", "b", "c", "ab", "abc", "bc", "aa", "x", "X", "A", "1", "@", " ", "\n", "é", "😀", "\ud83d", "<", "<a", "<b",
    ">", "c>", ">>", "059", "18", "7992", "ab@c", "x1",
)  # fmt: skip

REGIONS = st.sampled_from([(), (len(POOL) - 2,), (len(POOL) - 1,), (len(POOL) - 2, len(POOL) - 1)])
VALUE_AHEAD = tuple(index for index, each in enumerate(POOL) if each.id in ("t.tail", "t.late"))
indexes = st.builds(
    lambda few, regions: tuple(sorted({*few, *regions})),
    st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=5),
    REGIONS,
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)
actions = st.sampled_from([Action.FLAG, Action.REDACT, Action.REDACT, Action.BLOCK, Action.ALLOW])


@cache
def engine(chosen: tuple[int, ...]) -> Engine:
    return build([POOL[index] for index in chosen], None)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    """Cut ``text`` at ``cuts``, each taken modulo its length."""
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(edges)]


# ---------------------------------------------------------------------------------------------- second opinion


@cache
def _before(pattern: str, after: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:%b)(?=[\x00-\xff]{%d}\Z)" % (pattern.encode(), after))


def _longest(pattern: str, data: bytes, start: int) -> tuple[int, int, int] | None:
    """The longest match at ``start``: its end, and its value."""
    for end in range(len(data), start, -1):
        if hit := _before(pattern, len(data) - end).match(data, start):
            first, last = hit.span("value") if "value" in hit.re.groupindex else hit.span()
            return (end, first, last) if first < last else (end, start, end)
    return None


def _accepts(each: Rule, left: bytes, span: bytes) -> bool:
    left = left[-48:]
    if any(re.search(rb"(?:%b)\Z" % pattern.encode(), left) for pattern in each.not_after):
        return False
    if each.after and not any(re.search(pattern.encode(), left) for pattern in each.after):
        return False
    if any(re.fullmatch(pattern.encode(), span) for pattern in each.allow):
        return False
    return all(VALIDATORS[name](span) for name in each.validators)


def _next(each: Rule, data: bytes, start: int) -> tuple[int, int, int, int] | None:
    while start < len(data):
        found = _longest(each.pattern, data, start)
        if found and _accepts(each, data[:start], data[found[1] : found[2]]):
            return (start, *found)
        start += 1
    return None


def _outward(data: bytes, start: int, end: int) -> tuple[int, int]:
    while 0 < start < len(data) and 0x80 <= data[start] < 0xC0:
        start -= 1
    while end < len(data) and 0x80 <= data[end] < 0xC0:
        end += 1
    return start, end


def _region(each: Rule, data: bytes, start: int, begun: int) -> int:
    """Where the region ends that a begin marker from ``start`` to ``begun`` opens."""
    assert each.end is not None
    stop = max(start + each.cap, begun)
    for at in range(begun, len(data)):
        if found := _longest(each.end, data, at):
            stop = min(stop, found[0])
            break
    return _outward(data, start, min(stop, len(data)))[1]


def spans(rules: Sequence[Rule], data: bytes, hides: Sequence[bool] | None = None) -> list[tuple[int, int, str, int]]:
    """Start, end, rule id and cover of every match. ``hides``: which delimited rules have regions (all of them)."""
    hides = hides or [True] * len(rules)
    found: list[tuple[int, int, str, int]] = []
    floor, resume = 0, [0] * len(rules)
    while True:
        heads = [
            (head[0], -head[1], each.id, index, head)
            for index, each in enumerate(rules)
            if (head := _next(each, data, max(floor, resume[index])))
        ]
        if not heads:
            return found
        index, (start, end, first, last) = min(heads)[3:]
        resume[index] = end
        if rules[index].end and hides[index]:
            floor = _region(rules[index], data, start, end)
            a, b = _outward(data, start, end)
            found.append((a, b, rules[index].id, floor))
        else:
            a, b = _outward(data, first, last) if not rules[index].end else _outward(data, start, end)
            found.append((a, b, rules[index].id, b))


def masked(
    chosen: Sequence[Rule], action: dict[str, Action], text: str
) -> tuple[str, list[tuple[str, int, int, bool]]]:
    """The masked text, and (rule id, start, length, placeholder?) of every finding, in characters."""
    rules = [each for each in chosen if action[each.id] is not Action.ALLOW]
    data = text.encode("utf-8", "surrogatepass")
    found = spans(rules, data, [action[each.id] is not Action.FLAG for each in rules])
    out, done, covered = [], 0, 0
    findings = []
    for start, end, name, cover in sorted(found, key=lambda each: (each[0], -each[1], each[2])):
        masks = action[name] is not Action.FLAG
        findings.append((name, _count(data[:start]), _count(data[start:end]), masks and start >= covered))
        if masks:
            if start >= covered:
                out += [data[done:start].decode("utf-8", "surrogatepass"), f"[REDACTED:{name[2:]}]"]
            covered = done = max(covered, cover)
    return "".join([*out, data[done:].decode("utf-8", "surrogatepass")]), findings


def _count(data: bytes) -> int:
    return len(data.decode("utf-8", "surrogatepass"))
