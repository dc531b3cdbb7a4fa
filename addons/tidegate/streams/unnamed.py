"""Fields of a stream's events that no ``deltas`` entry names: a value cut over several events is not let through there.

Such a field is mostly a label, so it never waits: each event's text is looked at whole and leaves with its event. But
where the texts at one place differ from event to event they are read as one: what a match covers of a later text is
masked, and so is a text that only goes on with a match begun in an earlier one. So no more of a value leaves than its
first piece, or ``BEGUN`` characters in smaller ones. In 620 recorded streams no place needed masking, and 46 texts in
all stood where texts differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.inspection.engine import Engine, count, encode
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.redactor import plan_of

MAX_PLACES = 256
"""Places followed at once; the oldest is forgotten. Recorded events have a few dozen unnamed texts at most."""
BEGUN = 8
"""Bytes of a match in progress that tell it from chance. Two numbers of four digits in a row are no card number."""
YEAR = 4
"""Bytes of a match in progress that any text may end with: a year is the beginning of many a number."""
_PLAIN = (
    b"see the harbour",
    b"see the Orders",
    b"it was last",
    b"it is in_progress",
    b"as tool-use",
    b"sample-small-2025",
    b"see https://www.example.org/docs/page",
)
"""What is in progress at the end of one of these is so at the end of any text: it tells nothing."""


@dataclass(slots=True)
class _Place:
    """One place: its last text, the end of all its texts joined, and whether they have differed."""

    last: str
    tail: bytes
    differs: bool = False
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Went:
    """The first ``length`` characters of a text go on with a value of an earlier one.

    ``fresh``: nothing of that value was masked yet.
    """

    rule: Rule
    length: int
    fresh: bool


class Unnamed:
    """The unnamed texts of one stream, by place."""

    def __init__(self, engine: Engine, decide: Callable[[Rule], Action]) -> None:
        self._engine = engine
        self._masking = plan_of(engine, decide).masking
        self._telling: set[int] | None = None
        self._places: OrderedDict[object, _Place] = OrderedDict()

    def differs(self, at: object) -> bool:
        """Say whether the texts at a place have differed, so that each of them counts, also one seen before."""
        place = self._places.get(at)
        return place is not None and place.differs

    def follow(self, at: object, text: str) -> Went | None:
        """Take the next text at a place; say what of it must not leave."""
        place = self._places.get(at)
        if place is None:
            self._places[at] = _Place(text, encode(text)[-self._engine.reach :])
            if len(self._places) > MAX_PLACES:
                self._places.popitem(last=False)
            return None
        if text == place.last and not place.differs:
            return None
        place.differs, place.last = True, text
        data = encode(text)
        went = self._went(place, data)
        place.tail = (place.tail + data)[-self._engine.reach :]
        place.masked = went is not None and went.length == len(text)
        return went

    def _went(self, place: _Place, data: bytes) -> Went | None:
        joined, border = place.tail + data, len(place.tail)
        found = self._complete(joined, border)
        going = self._in_progress(joined, border)
        if going is not None:
            return Went(going, count(data), not place.masked)
        if found is None:
            return None
        rule, end = found
        return Went(rule, count(data[: end - border]), not place.masked)

    def _complete(self, joined: bytes, border: int) -> tuple[Rule, int] | None:
        """Return the match that reaches furthest over the border, and where it ends."""
        if not self._masking.intersection(self._engine.candidates(joined)):
            return None
        masking = {self._engine.compiled[index].rule.id for index in self._masking}
        ends = [
            (each.rule, each.end)
            for each in self._engine.find(joined)
            if each.start < border < each.end and each.rule.id in masking
        ]
        return max(ends, key=lambda one: one[1], default=None)

    def _in_progress(self, joined: bytes, border: int) -> Rule | None:
        """Return a rule of which a match may be in progress from before the border to the end."""
        size = len(joined)
        for index in self._engine.live(joined):
            compiled = self._engine.compiled[index]
            if index in self._masking and index in self._tell():
                first = (compiled.begun or compiled.starts)(joined, max(0, size - compiled.longest), size)[0][0]
                if 0 <= first < border and size - first >= BEGUN:
                    return compiled.rule
        return None

    def _tell(self) -> set[int]:
        """Return the rules of which a match in progress tells something: not those that any word or link may open."""
        if self._telling is None:
            plain = {index for text in _PLAIN for index in self._engine.live(text)}
            open_ = {index for index in plain if self._is_long(index)}
            self._telling = set(range(len(self._engine.compiled))) - open_
        return self._telling

    def _is_long(self, index: int) -> bool:
        compiled = self._engine.compiled[index]
        firsts = ((compiled.begun or compiled.starts)(text, 0, len(text))[0][0] for text in _PLAIN)
        return any(0 <= first < len(text) - YEAR for first, text in zip(firsts, _PLAIN, strict=True))
