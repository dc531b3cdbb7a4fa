"""How many tokens an exchange took: what the answer says of it, and an estimate where it says nothing. Pure.

The estimate: a token for every 3 bytes of a request body, and in an answer a token for every 4 characters or for every
piece of text in a stream, whichever is more (recorded streams of OpenAI have 5 characters in a piece, of Anthropic 24).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.dialects.body import strict_json
from tidegate.model import Denial

if TYPE_CHECKING:
    from tidegate.dialects.counting import Counting

BODY_BYTES = 3
TEXT_CHARACTERS = 4
MOST = 2**53
"""A larger number of tokens is no number of tokens."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of an exchange. ``cached`` is a part of ``input``; ``estimated``: one of them was not told."""

    input: int
    output: int
    cached: int = 0
    estimated: bool = False


def of_body(size: int) -> int:
    """Estimate the tokens of a request body of so many bytes."""
    return -(-size // BODY_BYTES)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one event added to a meter: its pieces of text, their characters, and whether it told the output."""

    pieces: int
    characters: int
    told: bool


class Meter:
    """Reads what the answer of one exchange says of its tokens, from what was parsed already.

    A stream may tell a number again and again, so that the largest counts; on a WebSocket each answer has its own.
    """

    __slots__ = ("_before", "_counts", "_spec", "_untold", "answers", "characters", "pieces")

    def __init__(self, spec: Counting | None) -> None:
        self._spec = spec
        self._counts: dict[tuple[str, str], int] = {}
        self._before: dict[str, int] = {}
        self._untold = False
        self.answers = 0
        self.characters = self.pieces = 0

    def event(self, value: object) -> Taken | None:
        """Take one event of a stream; return what ``again`` needs for one that differs in a text alone."""
        spec = self._spec
        if spec is None or not isinstance(value, dict):
            return None
        texts = [one.value for one in spec.deltas.select(value) if isinstance(one.value, str) and one.value]
        before, self._untold = self._untold, True
        for first, ways in spec.roots.items():
            if first in value:
                self._read(ways, value[first])
        taken = Taken(len(texts), sum(map(len, texts)), told=not self._untold)
        self._untold = before
        self.again(taken, 0)
        return taken

    def again(self, taken: Taken, longer: int) -> None:
        """Take an event like an earlier one, with a text that is longer by so many characters, or shorter."""
        if taken.pieces:
            self.pieces += taken.pieces
            self.characters += taken.characters + longer
        self._untold = (self._untold or taken.pieces > 0) and not taken.told

    def whole(self, body: bytes) -> None:
        """Take a whole answer."""
        value = strict_json(body) if self._spec is not None and self._spec.roots else None
        if isinstance(value, Denial) or value is None:
            self.characters += len(body)
            return
        assert self._spec is not None
        self.characters += len(body)
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, dict):
                for first, ways in self._spec.roots.items():
                    if first in each:
                        self._read(ways, each[first])

    def turn(self) -> None:
        """End one of several answers of a WebSocket: the next one counts anew."""
        for kind, amount in {"output": self._estimate(), **self._sums()}.items():
            self._before[kind] = self._before.get(kind, 0) + amount
        self._counts.clear()
        self.characters = self.pieces = 0
        self.answers += 1

    def _read(self, ways: tuple[tuple[str, tuple[str, ...]], ...], value: object) -> None:
        for kind, way in ways:
            found = value
            for name in way:
                found = found.get(name) if isinstance(found, dict) else None
            if type(found) in (int, float) and 0 <= found <= MOST:  # type: ignore[operator]  # Cohere writes 12.0
                at = kind, way[-1] if way else ""
                self._untold = self._untold and kind != "output"
                self._counts[at] = max(self._counts.get(at, 0), int(found))  # type: ignore[call-overload]

    def _sums(self) -> dict[str, int]:
        """Return what was told of each kind: of several spellings the largest, of what stands beside it the sum."""
        found: dict[str, int] = {}
        for (kind, _), amount in self._counts.items():
            if not kind.endswith("_beside"):
                found[kind] = max(found.get(kind, 0), amount)
        for (kind, _), amount in self._counts.items():
            plain = kind.removesuffix("_beside")
            if plain == kind:
                continue
            found[plain] = found.get(plain, 0) + amount
            if plain == "cached":  # what a cache held was read too
                found["input"] = found.get("input", 0) + amount
        return found

    def _estimate(self) -> int:
        return max(self.pieces, -(-self.characters // TEXT_CHARACTERS))

    def total(self, body: int, *, complete: bool, failed: bool = False) -> Usage:
        """Return what the exchange took. ``body`` is the size of its request in bytes.

        ``complete``: the answer came to its end; of one that did not, what came after the last number counts too.
        ``failed``: the upstream answered with an error, which takes nothing unless it says so.
        """
        told = self._sums()
        for kind, amount in self._before.items():
            told[kind] = told.get(kind, 0) + amount
        if failed and not told:
            return Usage(0, 0)
        answers = self._spec is None or self._spec.answers
        guess = self._estimate() if answers else 0
        estimated = "input" not in told or (answers and "output" not in told and not self._before)
        output = told.get("output", guess)
        if not complete and self._untold and guess > output:
            output, estimated = guess, True
        return Usage(told.get("input", of_body(body)), output, told.get("cached", 0), estimated)
