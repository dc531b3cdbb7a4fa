"""Events that differ from an earlier one in the text of one delta alone, as most of a stream do: read once, then known.

A mould is what an event's JSON has before that text and after it. Another event with the same before and after it, and
between them a text that needs no escapes, is the same tokens but for that one string: the same places, keys and types.
So all that reading it would tell is told already, and its text goes straight to its channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tidegate.dialects.body import strict_json
from tidegate.dialects.fields import Pointer
from tidegate.inspection.bodies import at
from tidegate.limits.usage import Taken
from tidegate.streams.events import Key

MOULDS = 8
"""Moulds of one stream: one for each of its channels that speak by turns."""
TRIES = 16
"""Moulds in a row that fitted no event, after which no more are made: every event of the stream counts itself."""
_PROBE = "tidegate"

type Channel = tuple[int, Key]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the only text of an event stood that was looked at, what it was, and the channel it went to.

    ``taken`` is what its event added to the meter.
    """

    pointer: Pointer
    text: str = field(repr=False)
    channel: Channel
    taken: Taken | None = None


@dataclass(frozen=True, slots=True)
class Mould:
    """One form of an event. ``name`` is the one that its framing gave it."""

    before: str = field(repr=False)
    after: str = field(repr=False)
    name: str | None
    place: Place

    def text(self, data: str, name: str | None) -> str | None:
        """Return the text of another event of this form; ``None`` for any other event."""
        if name != self.name or not data.startswith(self.before) or not data.endswith(self.after):
            return None
        said = data[len(self.before) : len(data) - len(self.after)]
        return said if len(data) > len(self.before) + len(self.after) and _is_plain(said) else None


class Moulds:
    """The moulds of one stream."""

    __slots__ = ("_known", "_tries")

    def __init__(self) -> None:
        self._known: dict[Channel, Mould] = {}
        self._tries = 0

    def find(self, data: str, name: str | None) -> tuple[Place, str] | None:
        """Return what is known of an event that has been read before, and its text."""
        for mould in self._known.values():
            said = mould.text(data, name)
            if said is not None:
                self._tries = 0
                return mould.place, said
        return None

    def learn(self, data: str, name: str | None, place: Place, taken: Taken | None = None) -> None:
        """Make a mould of an event of which nothing but the text at ``place`` was looked at; a meter has ``taken``."""
        quoted = f'"{place.text}"'
        if self._tries >= TRIES or not _is_plain(place.text) or data.count(quoted) != 1:
            return
        self._tries += 1
        before, _, after = data.partition(quoted)
        # What looks like the text could be the end of one string and the beginning of the next.
        if at(strict_json(f'{before}"{_PROBE}"{after}'.encode()), place.pointer) != _PROBE:
            return
        if len(self._known) >= MOULDS:
            self._known.clear()
        self._known[place.channel] = Mould(f'{before}"', f'"{after}', name, replace(place, taken=taken))

    def clear(self) -> None:
        """Forget all: what was known of other texts of these events holds no longer."""
        self._known.clear()


def _is_plain(text: str) -> bool:
    """Say whether JSON writes a text as it is, not empty."""
    return bool(text) and text.isprintable() and '"' not in text and "\\" not in text
