"""What tokens cost: a table of prices per million tokens, by model. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Price:
    """What one token costs, in parts of ``budgets.UNIT``: one that is read, one that a cache holds, one written."""

    models: tuple[str, ...]
    input: int
    cached: int
    output: int

    def of(self, read: int, written: int, cached: int = 0) -> int:
        """Return what an exchange costs; ``cached`` is a part of ``read``."""
        cached = min(cached, read)
        return (read - cached) * self.input + cached * self.cached + written * self.output


@dataclass(frozen=True, slots=True)
class Prices:
    """A price table. The first entry that covers a model counts."""

    currency: str
    entries: tuple[Price, ...]

    def of(self, model: str | None, matches: Callable[[str, str], bool]) -> Price | None:
        """Return the price of a model, ``None`` where the table does not have it."""
        if model is None:
            return None
        return next((one for one in self.entries if any(matches(pattern, model) for pattern in one.models)), None)
