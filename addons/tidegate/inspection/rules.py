"""Rules as data: a pack of YAML becomes a tuple of rules, or the list of everything that is wrong with it.

A rule is one entry with its own ``match`` and ``pass`` examples, and loading runs them. All keys: docs/rules.md.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tidegate.inspection.patterns import Shape, examine
from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Fault, Mode
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node, parse

# The longest text a delimited rule may swallow: an armoured 16384-bit RSA key is about 13,000 bytes.
MAX_DELIMITED = 16384
# Eight rules of the highest score in a tool's result: no text worth the name of a prompt adds up to more.
MAX_THRESHOLD = 12.0
_SCORE = "a number above 0, up to 1"
THRESHOLD = f"a number above 0, up to {MAX_THRESHOLD:g}"
# Fewer examples than this prove nothing about either side of a rule.
MIN_EXAMPLES = 2

PACK_KEYS = ("pack", "class", "version", "description", "threshold", "rules")
RULE_KEYS = (
    "id", "class", "description", "severity", "pattern", "end", "max", "validators", "mode", "score", "references",
    "match", "pass",
)  # fmt: skip
_TEXTS = {
    "description": "one sentence",
    "pattern": "a pattern in RE2 syntax",
    "severity": "low or medium or high or critical",
    "references": "a list of public https:// addresses",
}


class Severity(enum.StrEnum):
    """How bad a true finding is: ``critical`` opens a system, ``low`` only hints at something."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Rule:
    """One detection rule. ``id`` is ``pack.name``; ``cap`` bounds its match in bytes; ``end`` makes it delimited.

    With ``score`` it is no finding by itself: scores of a field are added up, and ``threshold`` is that of its pack.

    Examples are kept out of ``repr``: they look like what the rule finds.
    """

    id: str
    cls: str
    pack: str
    description: str
    severity: Severity
    pattern: str
    end: str | None
    cap: int
    validators: tuple[str, ...]
    observe: bool
    match: tuple[str, ...] = field(repr=False)
    passes: tuple[str, ...] = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    file: str
    score: float | None = None
    threshold: float = 0.0


class Found(Protocol):
    """A span of the engine, as far as examples are concerned."""

    @property
    def rule(self) -> Rule:
        """The rule that matched."""


class Finder(Protocol):
    """What runs examples: ``inspection.engine.Engine``."""

    def find(self, data: bytes) -> Sequence[Found]:
        """Return every finding in ``data``."""

    def marks(self, text: str) -> Sequence[Found]:
        """Return the first match of each scored rule in ``text``."""


def parse_pack(text: str, file: str) -> tuple[tuple[Rule, ...], tuple[Fault, ...]]:
    """Read one pack. Returns the rules that are whole, and every fault of the file at once; ``file`` names it."""
    root, faults = parse(text, file)
    if root is None:
        return (), faults
    reader = Reader(file)
    rules = _pack(reader, root)
    names = _names(root)
    return rules, tuple(replace(each, key=_named(each.key, names)) for each in (*faults, *reader.faults))


def check_examples(rules: Sequence[Rule], engine: Finder) -> tuple[Fault, ...]:
    """Run every example: each ``match`` must fire its own rule and no ``pass`` may. Messages hold no example text."""
    faults: list[Fault] = []
    for rule in rules:
        key = f"rules[{rule.id.partition('.')[2]}]"
        fired = [_fires(rule, text, engine) for text in rule.match]
        if not any(fired):
            faults.append(Fault(rule.file, key, "a rule that none of its match examples fire", "a rule that can fire"))
        else:
            faults += [
                Fault(rule.file, f"{key}.match[{index}]", "an example that does not fire its rule", "one that does")
                for index, hit in enumerate(fired)
                if not hit
            ]
        faults += [
            Fault(rule.file, f"{key}.pass[{index}]", "an example that fires its rule", "one that does not")
            for index, text in enumerate(rule.passes)
            if _fires(rule, text, engine)
        ]
    return tuple(faults)


def _fires(rule: Rule, text: str, engine: Finder) -> bool:
    if rule.score is not None:
        return any(mark.rule.id == rule.id for mark in engine.marks(text))
    return any(span.rule.id == rule.id for span in engine.find(text.encode("utf-8", "surrogatepass")))


def _pack(reader: Reader, root: Node) -> tuple[Rule, ...]:
    required = {"pack": NAME, "class": NAME, "version": "1", "rules": "a list with at least one rule"}
    top = reader.section(root, PACK_KEYS, required)
    if "version" in top and top["version"].value != 1:
        reader.fault(top["version"], "1")
    pack, cls = reader.name(top.get("pack")), reader.name(top.get("class"))
    reader.text(top.get("description"), _TEXTS["description"])
    entries = reader.items(top.get("rules"), required["rules"])
    if "rules" in top and top["rules"].value == ():
        reader.fault(top["rules"], required["rules"], found="an empty list")
    threshold = reader.number(top.get("threshold"), THRESHOLD, MAX_THRESHOLD)
    rules: dict[str, Rule] = {}
    for entry in entries:
        before = len(reader.faults)
        rule = _scored(reader, entry, _rule(reader, entry, pack, cls), threshold)
        if rule.id in rules:
            reader.fault(entry, "each id once in a pack", found="the id of an earlier rule", key=f"{entry.key}.id")
        if len(reader.faults) == before and pack and cls:
            rules[rule.id] = rule
    return tuple(rules.values())


def _rule(reader: Reader, entry: Node, pack: str, pack_class: str) -> Rule:
    """Read one rule; worthless when it added a fault, but every key of it has been looked at."""
    required = {
        "id": NAME,
        **_TEXTS,
        "match": f"at least {MIN_EXAMPLES} texts",
        "pass": f"at least {MIN_EXAMPLES} texts",
    }
    keys = reader.section(entry, RULE_KEYS, required)
    end, cap = _bounds(reader, entry, keys)
    return Rule(
        id=f"{pack}.{reader.name(keys.get('id'))}",
        cls=reader.name(keys["class"]) if "class" in keys else pack_class,
        pack=pack,
        description=reader.text(keys.get("description"), _TEXTS["description"]),
        severity=reader.choice(keys.get("severity"), Severity, Severity.LOW),
        pattern=_plain(keys.get("pattern")),
        end=end,
        cap=cap,
        validators=_validators(reader, keys.get("validators")),
        observe=_observe(reader, keys.get("mode")),
        match=_examples(reader, keys.get("match")),
        passes=_examples(reader, keys.get("pass")),
        references=_references(reader, keys.get("references")),
        file=reader.file,
    )


def _scored(reader: Reader, entry: Node, rule: Rule, threshold: float | None) -> Rule:
    """Add a rule's score and its pack's threshold; what only rules that act by themselves may have is a fault."""
    keys = entry.value if isinstance(entry.value, Mapping) else {}
    if "score" not in keys:
        return rule
    score = reader.number(keys["score"], _SCORE, 1.0)
    if threshold is None:
        reader.fault(keys["score"], "a score in a pack with a threshold", found="a score, but no threshold of the pack")
    for other in ("end", "validators", "mode"):
        if other in keys:
            reader.fault(keys[other], "no end, validators or mode beside score", found=f"{other} on a scored rule")
    return replace(rule, score=score, threshold=threshold or 0.0)


def _bounds(reader: Reader, entry: Node, keys: Mapping[str, Node]) -> tuple[str | None, int]:
    """Check pattern, end and max together. Returns the end marker and the longest match in bytes."""
    begin = _pattern(reader, keys.get("pattern"))
    if "end" not in keys:
        if "max" in keys:
            reader.fault(keys["max"], "max beside end, for delimited rules only", found="max without end")
        return None, begin
    end = _pattern(reader, keys["end"])
    floor = begin + end
    accepted = f"a number of bytes from {floor} (both markers) to {MAX_DELIMITED}"
    if "max" not in keys:
        reader.fault(entry, accepted, found="nothing", key=f"{entry.key}.max")
        return _plain(keys["end"]), 0
    cap = reader.count(keys["max"], accepted) or floor
    if not floor <= cap <= MAX_DELIMITED:
        reader.fault(keys["max"], accepted)
    if "validators" in keys:
        found = "validators on a delimited rule"
        reader.fault(keys["validators"], "no validators beside end: a stream cannot wait for the end", found=found)
    if "(?P<value>" in _plain(keys.get("pattern")):
        reader.fault(keys["pattern"], "no value group beside end: all is redacted", found="a value group")
    return _plain(keys["end"]), cap


def _pattern(reader: Reader, node: Node | None) -> int:
    """Check one pattern; return its longest match in bytes, or 0 when it is refused or absent."""
    value = reader.text(node, _TEXTS["pattern"])
    if node is None or not value:
        return 0
    result = examine(value)
    if isinstance(result, Shape):
        return result.longest
    for problem in result:
        reader.fault(node, problem.accepted, found=problem.found)
    return 0


def _validators(reader: Reader, node: Node | None) -> tuple[str, ...]:
    accepted = "one of " + ", ".join(sorted(VALIDATORS))
    names = reader.texts(node, accepted)
    for each in names:
        if each.value not in VALIDATORS:
            reader.fault(each, accepted)
    return tuple(_plain(each) for each in names)


def _references(reader: Reader, node: Node | None) -> tuple[str, ...]:
    links = reader.texts(node, _TEXTS["references"])
    for each in links:
        if not _plain(each).startswith("https://"):
            reader.fault(each, _TEXTS["references"])
    return tuple(_plain(each) for each in links)


def _observe(reader: Reader, node: Node | None) -> bool:
    if node is not None and node.value != Mode.OBSERVE:
        reader.fault(node, "observe, or no mode at all for a rule that acts")
    return node is not None


def _examples(reader: Reader, node: Node | None) -> tuple[str, ...]:
    """Read example texts. Neither a text nor a number that should have been one is ever shown."""
    accepted = f"at least {MIN_EXAMPLES} texts"
    if node is None:
        return ()
    items = node.value if isinstance(node.value, tuple) else ()
    for each in items:
        if not isinstance(each.value, str) or not each.value:
            reader.fault(each, "a text; put quotes around it", found="something that is not a text")
    if len(items) < MIN_EXAMPLES:
        reader.fault(node, accepted, found=f"{len(items)} texts" if isinstance(node.value, tuple) else "no list")
    return tuple(_plain(each) for each in items)


def _plain(node: Node | None) -> str:
    return node.value if node is not None and isinstance(node.value, str) else ""


def _names(root: Node) -> dict[str, str]:
    """Map ``rules[3]`` to ``rules[openai-key]`` for every rule whose id can be told."""
    rules = root.value.get("rules") if isinstance(root.value, Mapping) else None
    named: dict[str, str] = {}
    for entry in rules.value if rules is not None and isinstance(rules.value, tuple) else ():
        own = entry.value.get("id") if isinstance(entry.value, Mapping) else None
        if own is not None and isinstance(own.value, str) and re.fullmatch(r"[a-z0-9-]+", own.value):
            named[entry.key] = f"rules[{own.value}]"
    return named


def _named(key: str, names: Mapping[str, str]) -> str:
    head, bracket, tail = key.partition("]")
    return names.get(head + bracket, head + bracket) + tail
