"""Where a text may be disguised: one more scan says which disguises there are, so that only those are undone.

Each pattern matches at least where the step of ``decoding`` that undoes the disguise would find something to undo. The
patterns were chosen by what they cost and how rarely clean text has them: all of them together take less time than the
scan for the rules.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidegate.inspection.patterns import matcher
from tidegate.inspection.rules import Rule, Severity
from tidegate.inspection.scanner import CompiledCache, Scanner, Spotter, scanner, spotter
from tidegate.inspection.turning import Turn, turned


class Disguise(enum.Enum):
    """What a text may have been written in."""

    RUN = "run"
    """Fourteen or more characters of base64, base32 or hexadecimal. All ends are told."""
    SPLIT = "split"
    """What stands between two parts of a text, and one character more. All ends are told."""
    ESCAPED = "escaped"
    WRAPPED = "wrapped"
    LISTED = "listed"
    LABELLED = "labelled"
    SPACED = "spaced"
    BASE85 = "base85"
    """Three groups of ascii85 that each say printable text."""
    NUMBER = "number"
    """Groups of digits as a card, an account or a telephone number has them, which may be written backwards."""
    BACK = "back"
    """This and the next three: the opening of a rule, turned (``turning``)."""
    ROT13 = "rot13"
    CASE = "case"
    LEET = "leet"


_TURNS = {
    Turn.BACK: Disguise.BACK,
    Turn.ROT13: Disguise.ROT13,
    Turn.CASE: Disguise.CASE,
    Turn.LEET: Disguise.LEET,
}
HINT = "(?:[0-9]|[A-Z][A-Z]|[a-z][A-Z])"
"""What prose has seldom and values mostly have: a digit, two capitals, a capital inside a word."""
SIDE = "A-Za-z0-9+/=_.:~()-"
"""What may stand on either side of the place where a value was split."""
# Without bounds, which the steps of ``decoding`` have: bounded repeats cost Hyperscan three times as much here.
_LITERALS = r"[\x22'`]\s*[+.&,]?\s*(?:[\x22'][A-Za-z0-9_]+[\x22']\s*:\s*)?[\x22'`]"
_STRINGS = r"\x22[\s\]}]*,[\s\[{]*(?:\x22[a-z_]+\x22\s*:[\s\[{]*(?:\x22[a-z_]+\x22\s*,\s*)?)+\x22(?:[A-Za-z0-9 ]+: )?"
_JOINT = rf"(?:\r?\n|{_LITERALS}|{_STRINGS})"
_UNIT = "(?:[!-~]|zero|one|two|three|four|five|six|seven|eight|nine)"

_RUN = r"[A-Za-z0-9+/_-]{14}[^A-Za-z0-9+/_-]"
_SPLIT = rf"(?:@|{HINT})[{SIDE}@]*{_JOINT} ?[{SIDE}]|[{SIDE}]{_JOINT} ?[{SIDE}]+@"
_ESCAPED = (
    r"%[0-9A-Fa-f]{2}|&(?:#[0-9]|#[xX][0-9A-Fa-f]|[A-Za-z][A-Za-z0-9]{1,30};)"
    r"|\\(?:u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]|x[0-9A-Fa-f]{2}|[\x22'/\x5c])"
    r"|\\[nrtbf0][A-Za-z0-9\\-]|[0-9A-Z_=+/-]\\[nrtbf0]"
    r"|=[0-9A-F]{2}=[0-9A-F]{2}|=\r?\n"
)
NUMBER = r"[0-9]{3,4}[ )(-]{1,2}[0-9]{2,4}[ )(-]{1,2}[0-9]{3,4}"
_SEARCHED = {
    Disguise.WRAPPED: r"[A-Za-z0-9+/]{60}\r?\n[A-Za-z0-9+/]",
    Disguise.LISTED: r"(?:[0-9A-Fa-f]{2}[ :,-]){7}|[01]{8} ?[01]{8}|(?:[0-9]{2,3}, ?){7}",
    Disguise.LABELLED: r"[0-9A-Fa-f]{16}\.[0-9A-Fa-f]{2}",
    Disguise.SPACED: rf"(?:\A|[\s\x22'(]){_UNIT}(?:(?: |   ){_UNIT}){{7}}|(?:\A|[\s\x22'(])[!-~](?:-[!-~\s]){{7}}",
    Disguise.BASE85: r"(?:\A|[\s(>\x22])[+-I][!-u]{4}[+-I][!-u]{4}[+-I][!-u]{3}",
    Disguise.NUMBER: NUMBER,
}
# Measured per 4 KB of prose: Hyperscan 9 microseconds for these, one search with RE2 for all of them 6. The others are
# apart because Hyperscan is slower with them in one database: 20 microseconds for _RUN and _SPLIT, 15 one by one.
_ANY = matcher("|".join(_SEARCHED.values()), longest=False)
_EACH = [(kind, matcher(pattern, longest=False)) for kind, pattern in _SEARCHED.items()]


@dataclass(frozen=True, slots=True)
class Spots:
    """What a text may be disguised in, and the ends of its runs and joints (``RUN``, ``SPLIT``), ascending."""

    kinds: frozenset[Disguise]
    runs: Sequence[int] = ()
    joints: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Scans:
    """What is asked of a text: where runs and joints end, and which of ``others`` it has."""

    runs: Spotter
    joints: Spotter
    others: Scanner
    kinds: tuple[Disguise, ...]


class Spotting:
    """The scans for disguises that go with a set of rules. Compiled when first asked, if not before."""

    def __init__(self, rules: Iterable[Rule], cache: CompiledCache | None) -> None:
        self._rules = tuple(rules)
        self._cache = cache
        self._scans: _Scans | None = None

    def compile(self) -> _Scans:
        """Compile the patterns of disguises and those of turned rules, or load them."""
        patterns, kinds = [_ESCAPED], [Disguise.ESCAPED]
        for rule in filter(is_sure, self._rules):
            for turn, pattern in turned(rule.pattern).items():
                patterns.append(pattern)
                kinds.append(_TURNS[turn])
        cache = self._cache
        self._scans = _Scans(spotter(_RUN, cache), spotter(_SPLIT, cache), scanner(patterns, cache), tuple(kinds))
        return self._scans

    def spots(self, data: bytes) -> Spots:
        """Say what a text in UTF-8 may be disguised in: nothing that ``decoding`` could undo is missing."""
        scans = self._scans or self.compile()
        kinds = {scans.kinds[index] for index in scans.others.hits(data)}
        size = len(data)
        if _ANY(data, 0, size)[0][0] >= 0:
            kinds.update([kind for kind, match in _EACH if match(data, 0, size)[0][0] >= 0])
        runs = [end - 1 for end in scans.runs.ends(data + b"\n")]  # a run ends in front of something else
        return Spots(frozenset(kinds), runs, scans.joints.ends(data))


def is_sure(rule: Rule) -> bool:
    """Say whether a rule is asked where text was turned or joined: not one that guesses, nor one that is plain."""
    if rule.plain:
        return False
    return rule.severity is not Severity.LOW and not any(name.startswith("entropy") for name in rule.validators)
