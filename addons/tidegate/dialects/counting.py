"""Where a family says how many tokens an answer took, and how it tells a client what it has left. Pure.

``usage`` of a dialect lists the paths; docs/dialects.md describes them. An endpoint that is not there is estimated,
unless it is ``free``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.dialects.fields import ExpressionError, Trie, steps
from tidegate.dialects.paths import words
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

if TYPE_CHECKING:
    from tidegate.dialects.spec import Endpoint

KINDS = ("input", "input_beside", "cached", "cached_beside", "output", "output_beside")
USAGE_KEYS = ("counts", "free")
COUNT_KEYS = ("endpoints", *KINDS)
RATE_KEYS = ("requests", "tokens", "reset")
NAMES_KEYS = ("limit", "remaining", "reset")
_WAY = "a path of field names, such as $.usage.input_tokens"


@dataclass(frozen=True, slots=True)
class Counting:
    """Where the answers of an endpoint tell tokens: by the first name of a path, the kinds and the rest of the paths.

    ``deltas`` select the texts of a stream's event. ``answers``: there are tokens that are written, not only read.
    """

    roots: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = field(default_factory=dict)
    deltas: Trie[None] = field(default_factory=lambda: Trie[None]([]))
    answers: bool = True


class ResetForm(enum.StrEnum):
    """How a family writes the time at which everything is back."""

    DURATION = "duration"
    TIME = "time"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class RateNames:
    """The header fields of one metric: limit, what remains, when it is back."""

    limit: str
    remaining: str
    reset: str


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """The header fields in which a family tells a client what it has left."""

    requests: RateNames
    tokens: RateNames
    reset: ResetForm = ResetForm.DURATION


@dataclass(frozen=True, slots=True)
class Usages:
    """What a dialect says of usage. ``free`` endpoints take no tokens."""

    counts: Mapping[str, Counting] = field(default_factory=dict)
    free: frozenset[str] = frozenset()


def _names(prefix: str, metric: str) -> RateNames:
    return RateNames(f"{prefix}-limit-{metric}", f"{prefix}-remaining-{metric}", f"{prefix}-reset-{metric}")


RATE_HEADERS = RateHeaders(_names("x-ratelimit", "requests"), _names("x-ratelimit", "tokens"))
"""OpenAI's, which most compatible servers send: for every dialect that says nothing else."""


def usages(reader: Reader, node: Node | None, endpoints: Mapping[str, Endpoint]) -> Usages:
    """Read ``usage``. Faults go to the reader."""
    if node is None:
        return Usages()
    entry = reader.section(node, USAGE_KEYS)
    accepted = f"endpoints of this dialect: {', '.join(endpoints)}"
    found: dict[str, Counting] = {}
    for child in reader.items(entry.get("counts")):
        one = reader.section(child, COUNT_KEYS, {"endpoints": "a list of endpoints"})
        counting = _counting(reader, one)
        for each in reader.texts(one.get("endpoints"), "a list of endpoints"):
            name = str(each.value)
            if name not in endpoints or name in found:
                reader.fault(each, f"{accepted}, each once")
                continue
            stream = endpoints[name].stream
            deltas = Trie([(one.path, None) for one in stream.deltas]) if stream is not None else Trie[None]([])
            found[name] = Counting(counting.roots, deltas, counting.answers)
    free = frozenset(words(reader, entry.get("free"), "a list of endpoints"))
    for name in sorted(free - (set(endpoints) - set(found))):
        reader.fault(entry["free"], f"{accepted}, that are not counted", name)
    return Usages(found, free)


def _counting(reader: Reader, entry: Mapping[str, Node]) -> Counting:
    roots: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for kind in KINDS:
        for each in reader.texts(entry.get(kind), f"a list with {_WAY}"):
            try:
                way = steps(str(each.value))
            except ExpressionError:
                way = ()
            names = tuple(one.names[0] for one in way if one.names and len(one.names) == 1 and not one.deep)
            if not way or len(names) != len(way):
                reader.fault(each, _WAY)
            else:
                roots.setdefault(names[0], []).append((kind, names[1:]))
    answers = "output" in entry or not roots
    return Counting({first: tuple(ways) for first, ways in roots.items()}, answers=answers)


def rate_headers(reader: Reader, node: Node | None) -> RateHeaders:
    """Read ``rate_headers``. Faults go to the reader."""
    if node is None:
        return RATE_HEADERS
    entry = reader.section(node, RATE_KEYS, dict.fromkeys(("requests", "tokens"), "the names of three header fields"))
    requests, tokens = (_rate_names(reader, entry.get(each)) for each in ("requests", "tokens"))
    return RateHeaders(requests, tokens, reader.choice(entry.get("reset"), ResetForm, ResetForm.DURATION))


def _rate_names(reader: Reader, node: Node | None) -> RateNames:
    entry = {} if node is None else reader.section(node, NAMES_KEYS, dict.fromkeys(NAMES_KEYS, "a header field"))
    limit, remaining, reset = (reader.text(entry.get(each), "a header field") for each in NAMES_KEYS)
    return RateNames(limit, remaining, reset)
