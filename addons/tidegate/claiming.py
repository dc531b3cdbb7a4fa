"""What an answer makes, and what of the answer waits until that is kept under the caller's name. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidegate.inspection.bodies import Inspected
from tidegate.limits.usage import Meter
from tidegate.model import Denial, Outcome, Reason, Stored

LOST = Denial(
    Reason.STATE_UNAVAILABLE,
    503,
    "The gateway cannot keep or find out whose this is, so it goes no further.",
)


@dataclass(frozen=True, slots=True)
class Looked:
    """A whole answer as it may travel, and what it says was made. ``meter`` has counted one that is a stream."""

    answer: Inspected
    made: tuple[Stored, ...] = ()
    meter: Meter | None = None


@dataclass(slots=True)
class Claims:
    """The claims of one exchange. ``waiting``: not all of them are kept, so nothing leaves.

    ``held`` is what waits of a stream, ``ending`` how it ends with that, ``whole`` the whole answer that waits.
    """

    waiting: bool = False
    held: bytearray = field(default_factory=bytearray)
    ending: tuple[Outcome, Denial | None] | None = None
    whole: Looked | None = None
    _known: set[Stored] = field(default_factory=set)

    def fresh(self, made: Iterable[Stored]) -> tuple[Stored, ...]:
        """Return what was not claimed before; it counts as claimed from now on."""
        found = tuple(dict.fromkeys(each for each in made if each not in self._known))
        self._known.update(found)
        return found

    def kept(self) -> bytes:
        """Return what may leave, now that everything is kept."""
        data, self.held, self.waiting = bytes(self.held), bytearray(), False
        return data
