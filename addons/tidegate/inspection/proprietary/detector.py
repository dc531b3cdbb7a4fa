"""Detectors in code, for what no pattern can describe: functions of one whole text. Pure.

A detector looks at a text of which it knows the end, so it takes no part in streamed answers (docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidegate.inspection.rules import Rule, Severity

PACK = "proprietary"
"""The pack that the rules of all detectors belong to."""


@dataclass(frozen=True, slots=True)
class CodedSpan:
    """What a detector found in characters of a text; the text itself stays where it is."""

    rule: Rule
    start: int
    end: int


class Detector(Protocol):
    """Finds one kind of text. Both methods are linear in their input and depend on nothing else."""

    @property
    def rule(self) -> Rule:
        """The rule that its findings name."""

    def may_find(self, data: bytes) -> bool:
        """Say whether ``find`` could find anything in any part of a UTF-8 text that stands between non-letters."""

    def find(self, text: str) -> Sequence[CodedSpan]:
        """Return what is found in a whole text, sorted by start."""


def coded_rule(
    name: str, cls: str, description: str, severity: Severity, file: str, *, pack: str = PACK, pattern: str = ""
) -> Rule:
    """Make the rule that stands for a detector: it has a class and a severity like any other, and mostly no pattern."""
    return Rule(
        id=f"{pack}.{name}",
        cls=cls,
        pack=pack,
        description=description,
        severity=severity,
        pattern=pattern,
        end=None,
        cap=0,
        validators=(),
        observe=False,
        match=(),
        passes=(),
        references=(),
        file=file,
    )


def find_all(detectors: Iterable[Detector], text: str) -> list[CodedSpan]:
    """Return the findings of all detectors in a text, sorted by start, longest first."""
    spans = [span for each in detectors for span in each.find(text)]
    return sorted(spans, key=lambda span: (span.start, -span.end, span.rule.id))
