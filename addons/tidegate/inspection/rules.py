"""Rules as data: a pack of YAML becomes a tuple of rules, or the list of everything that is wrong with it.

A rule is one entry with its own ``match`` and ``pass`` examples, and loading runs them. All keys: docs/rules.md.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tidegate.inspection.patterns import Shape, examine
from tidegate.inspection.proprietary import words
from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Fault, Mode
from tidegate.policy.reader import NAME, SHARE, Reader
from tidegate.policy.source import Node, parse

# The longest text a delimited rule may swallow: an armoured 16384-bit RSA key is about 13,000 bytes.
MAX_DELIMITED = 16384
# Bytes before a match that `after` and `not-after` look at: a stream keeps more than these of what has left (walk.py).
LEFT_CONTEXT = 48
# Fewer examples than this prove nothing about either side of a rule.
MIN_EXAMPLES = 2

PACK_KEYS = ("pack", "class", "version", "description", "threshold", "rules", "words")
RULE_KEYS = (
    "id", "class", "description", "severity", "pattern", "end", "max", "after", "not-after", "validators", "allow",
    "plain", "mode", "score", "references", "match", "pass",
)  # fmt: skip
_UNSCORED = ("class", "end", "max", "after", "not-after", "validators", "allow", "plain", "mode")
WORD_KEYS = ("id", "class", "description", "severity", "words", "file", "mode")
_WORDS = "words or phrases of 3 characters to 200 bytes"
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

    ``after`` and ``not_after`` are patterns of the text before a match, ``allow`` patterns of harmless values; what is
    ``plain`` is looked for in texts as they stand, never in what decodes from them.
    With ``score`` it is a hint: what the hints of a pack come to is a finding from ``threshold`` on (``scoring``).
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
    after: tuple[str, ...] = ()
    not_after: tuple[str, ...] = ()
    allow: tuple[str, ...] = field(default=(), repr=False)
    plain: bool = False
    score: float | None = None
    threshold: float = 0.0


class Finder(Protocol):
    """What runs examples: ``inspection.engine.Engine``."""

    def fires(self, rule: str, data: bytes) -> bool:
        """Tell whether the rule with this id finds something in ``data``."""


type Lists = Callable[[str], str]
"""Reads a text file that a pack names; raises ``OSError`` or ``ValueError``."""


def parse_pack(text: str, file: str, lists: Lists | None = None) -> tuple[tuple[Rule, ...], tuple[Fault, ...]]:
    """Read one pack. Returns the rules that are whole, and every fault of the file at once; ``file`` names it."""
    root, faults = parse(text, file)
    if root is None:
        return (), faults
    reader = Reader(file)
    rules = _pack(reader, root, lists)
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
    return engine.fires(rule.id, text.encode("utf-8", "surrogatepass"))


def _pack(reader: Reader, root: Node, lists: Lists | None) -> tuple[Rule, ...]:
    required = {"pack": NAME, "class": NAME, "version": "1", "rules": "a list with at least one rule"}
    if isinstance(root.value, Mapping) and "words" in root.value and "rules" not in root.value:
        del required["rules"]
    top = reader.section(root, PACK_KEYS, required)
    if "version" in top and top["version"].value != 1:
        reader.fault(top["version"], "1")
    pack, cls = reader.name(top.get("pack")), reader.name(top.get("class"))
    reader.text(top.get("description"), _TEXTS["description"])
    entries = reader.items(top.get("rules"), "a list with at least one rule")
    word_lists = reader.items(top.get("words"), "a list of word lists")
    if "rules" in top and top["rules"].value == ():
        reader.fault(top["rules"], required["rules"], found="an empty list")
    threshold = reader.share(top.get("threshold"))
    if "threshold" in top and "words" in top:
        reader.fault(top["words"], "no words beside threshold: a word has no score", found="a list of words")
    rules: dict[str, Rule] = {}
    for entry in (*entries, *word_lists):
        before = len(reader.faults)
        if entry in entries:
            rule = _scored(reader, entry, _rule(reader, entry, pack, cls), ("threshold" in top, threshold))
        else:
            rule = _words(reader, entry, (pack, cls), lists)
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
        after=_patterns(reader, keys.get("after"), LEFT_CONTEXT),
        not_after=_patterns(reader, keys.get("not-after"), LEFT_CONTEXT),
        allow=_patterns(reader, keys.get("allow")),
        plain=reader.flag(keys.get("plain"), False),
    )


def _scored(reader: Reader, entry: Node, rule: Rule, threshold: tuple[bool, float | None]) -> Rule:
    """Add a hint's score and its pack's threshold. A pack has hints alone or none, and what acts has no score."""
    keys = entry.value if isinstance(entry.value, Mapping) else {}
    if "score" not in keys:
        if threshold[0]:
            reader.fault(entry, f"{SHARE}, for every rule of a pack with a threshold", "nothing", f"{entry.key}.score")
        return rule
    if not threshold[0]:
        reader.fault(keys["score"], "a score in a pack with a threshold", found="a score, but no threshold of the pack")
    for other in [each for each in _UNSCORED if each in keys]:
        reader.fault(keys[other], f"no {', '.join(_UNSCORED[:-1])} or mode beside score", found=f"{other} on a hint")
    return replace(rule, score=reader.share(keys["score"]) or 0.0, threshold=threshold[1] or 0.0)


def _words(reader: Reader, entry: Node, named: tuple[str, str], lists: Lists | None) -> Rule:
    """Read one list of words and make a rule of it, with examples of its own."""
    keys = reader.section(entry, WORD_KEYS, {"id": NAME, "description": _TEXTS["description"]})
    said = [_plain(each) for each in reader.texts(keys.get("words"), _WORDS)]
    said += _listed(reader, keys.get("file"), lists)
    if isinstance(entry.value, Mapping) and not {"words", "file"} & entry.value.keys():
        reader.fault(entry, f"words ({_WORDS}), or file (a text file with one a line), or both", found="neither")
    unfit = sum(not words.is_usable(each) for each in said)
    if unfit:
        reader.fault(entry, _WORDS, found=f"{unfit} that are too short, too long or not printable")
    fit = [each for each in said if words.is_usable(each)]
    if words.letters(fit) > words.MOST_LETTERS:
        accepted = f"at most {words.MOST_LETTERS}; make it several lists, or a table for tidegate rules fingerprint"
        reader.fault(entry, accepted, found=f"{words.letters(fit)} letters in all (outside ASCII each counts six)")
        fit = []
    match, passes = words.examples(fit) if fit else ((), ())
    pattern = words.pattern(fit) if fit else ""
    if fit and not isinstance(examine(pattern), Shape):
        reader.fault(entry, _WORDS, found="words that make no pattern")
    return Rule(
        id=f"{named[0]}.{reader.name(keys.get('id'))}",
        cls=reader.name(keys["class"]) if "class" in keys else named[1],
        pack=named[0],
        description=reader.text(keys.get("description"), _TEXTS["description"]),
        severity=reader.choice(keys.get("severity"), Severity, Severity.MEDIUM),
        pattern=pattern,
        end=None,
        cap=0,
        validators=(),
        observe=_observe(reader, keys.get("mode")),
        match=match,
        passes=passes,
        references=(),
        file=reader.file,
    )


def _listed(reader: Reader, node: Node | None, lists: Lists | None) -> list[str]:
    accepted = "a UTF-8 text file in or below the pack's folder, one word or phrase a line"
    name = reader.text(node, accepted)
    if node is None or not name:
        return []
    if lists is None:
        reader.fault(node, "words written in the pack: files are not read here", found="a file")
        return []
    try:
        found = words.lines(lists(name))
    except (OSError, ValueError):
        reader.fault(node, accepted)
        return []
    if not found:
        reader.fault(node, accepted, found="a file without words")
    return found


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
    if "allow" in keys:
        reader.fault(keys["allow"], "no allow beside end: a stream cannot wait for the end", found="allow with end")
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


def _patterns(reader: Reader, node: Node | None, longest: int | None = None) -> tuple[str, ...]:
    """Check a list of patterns, none of which may need more than ``longest`` bytes."""
    found = reader.texts(node, _TEXTS["pattern"])
    for each in found:
        width = _pattern(reader, each)
        if longest is not None and width > longest:
            reader.fault(each, f"at most {longest} bytes", found=f"a longest match of {width} bytes")
    return tuple(_plain(each) for each in found)


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
