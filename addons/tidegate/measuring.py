"""Recall and precision of rules on labelled texts, by class and by label: ``tidegate rules bench``.

A row is ``{"text", "class", "label", "expect"}``, one a line. ``expect: true`` means that a finding of that class
belongs in the text, ``false`` that none does. ``kind`` may stand for ``class``, and a row of the kind ``benign``, or
without either, is one in which no class may find anything. With ``scope: rule`` it is a negative of its label only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tidegate.inspection.findings import TextFinding

BENIGN = "benign"
_KINDS = {"secret": "secrets"}  # a class's name where it differs from the kind


@dataclass(slots=True)
class Tally:
    """Counts of rows: ``found`` of the ``expected``, and ``flagged`` of the ``clean`` ones."""

    expected: int = 0
    found: int = 0
    clean: int = 0
    flagged: int = 0

    @property
    def recall(self) -> float | None:
        """The part of the expected rows in which something was found; ``None`` without any."""
        return self.found / self.expected if self.expected else None

    @property
    def precision(self) -> float | None:
        """The part of the rows with a finding in which one was expected; ``None`` without any finding."""
        fired = self.found + self.flagged
        return self.found / fired if fired else None

    def note(self, *, expected: bool, fired: bool) -> None:
        """Count one row."""
        if expected:
            self.expected += 1
            self.found += fired
        else:
            self.clean += 1
            self.flagged += fired


@dataclass(frozen=True, slots=True)
class Measured:
    """Tallies by class, and by class and label."""

    classes: Mapping[str, Tally]
    labels: Mapping[tuple[str, str], Tally]


def measure(
    rows: Iterable[Mapping[str, object]], inspect: Callable[[str], Iterable[TextFinding]], classes: Iterable[str]
) -> Measured:
    """Run every row; ``classes`` are those of the rules, for the rows in which none of them may find anything."""
    by_class = {cls: Tally() for cls in sorted(classes)}
    by_label: dict[tuple[str, str], Tally] = {}
    for row in rows:
        cls, expected, own = reading(row)
        fired = {each.rule.cls for each in inspect(str(row["text"]))}
        label = by_label.setdefault((cls, str(row.get("label", ""))), Tally())
        if cls == BENIGN:
            label.note(expected=False, fired=bool(fired))
            for name, tally in () if own else by_class.items():
                tally.note(expected=False, fired=name in fired)
        else:
            label.note(expected=expected, fired=cls in fired)
            by_class.setdefault(cls, Tally()).note(expected=expected, fired=cls in fired)
    return Measured(by_class, dict(sorted(by_label.items())))


def reading(row: Mapping[str, object]) -> tuple[str, bool, bool]:
    """Return a row's class, whether a finding belongs in it, and whether it counts for its label alone."""
    kind = str(row.get("class") or row.get("kind") or BENIGN)
    return _KINDS.get(kind, kind), row.get("expect", kind != BENIGN) is True, row.get("scope") == "rule"


def as_json(measured: Measured) -> dict[str, object]:
    """Return the tallies as they are printed with ``--json``."""
    return {
        "classes": {cls: _numbers(tally) for cls, tally in measured.classes.items()},
        "labels": [
            {"class": cls, "label": label, **_numbers(tally)} for (cls, label), tally in measured.labels.items()
        ],
    }


def _numbers(tally: Tally) -> dict[str, object]:
    return {
        "expected": tally.expected,
        "found": tally.found,
        "recall": tally.recall,
        "clean": tally.clean,
        "flagged": tally.flagged,
        "precision": tally.precision,
    }
