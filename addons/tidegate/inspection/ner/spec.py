"""The values of the optional name recognition: which model reads, what of it counts, and what it said. Pure.

A model of the usual Hugging Face layout gives every token of a text a label such as ``B-PER``, ``I-PER`` or ``O``; the
part behind the prefix is an *entity*, and the policy says which class of finding each entity is.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.inspection.proprietary.detector import coded_rule
from tidegate.inspection.rules import Rule, Severity
from tidegate.model import Role

PACK = "ner"
"""The pack that the rules of the model belong to: one for each class, ``ner.CLASS``."""

READ_BY_DEFAULT = (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL_RESULT, Role.OTHER)
"""Whoever speaks, and every text that no path names. Descriptions of tools and metadata are written by programs."""

_PREFIX = re.compile(r"([BILUSE])[-_](.+)", re.DOTALL)


class Late(enum.StrEnum):
    """What becomes of a request that the model did not read."""

    ALLOW = "allow"
    FLAG = "flag"
    BLOCK = "block"


class Unread(enum.StrEnum):
    """Why the model did not read a request."""

    LATE = "late"  # the budget was over
    BUSY = "busy"  # too many requests wait for a worker
    FAILED = "failed"  # the worker ended, or could not read the text
    MISSED = "missed"  # what it found was in a text that inspection did not look at again
    SOCKET = "socket"  # messages of a WebSocket are not read


@dataclass(frozen=True, slots=True)
class Ner:
    """A model as the policy names it. Paths are absolute, ``budget`` is in seconds, ``length`` in tokens.

    ``labels`` are the model's, by the index of its output; ``classes`` pairs entities with classes of findings.
    ``threshold`` is the probability from which a word counts. ``digest`` covers the model's files.
    """

    model: str
    tokenizer: str
    labels: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    length: int
    digest: str
    budget: float
    late: Late
    workers: int
    roles: frozenset[Role]
    threshold: float


@dataclass(frozen=True, slots=True)
class NerSpan:
    """What the model found in characters of a text; the text itself stays where it is."""

    cls: str
    start: int
    end: int


def entity(label: str) -> str:
    """Return what a label is about, the empty text for one that says there is nothing."""
    prefixed = _PREFIX.fullmatch(label)
    return "" if label == "O" else prefixed[2] if prefixed else label


def entities(labels: Sequence[str]) -> tuple[str, ...]:
    """Return every entity of a model, sorted."""
    return tuple(sorted({entity(each) for each in labels} - {""}))


def begins(label: str) -> bool:
    """Say whether a label is that of the first token of an entity."""
    prefixed = _PREFIX.fullmatch(label)
    return prefixed is not None and prefixed[1] in "BSU"


def rule_of(cls: str, file: str) -> Rule:
    """Make the rule that stands for what the model finds of a class."""
    return coded_rule(cls, cls, f"What the model of inspection.ner takes for {cls}", Severity.MEDIUM, file, pack=PACK)
