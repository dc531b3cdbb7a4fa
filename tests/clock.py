"""A clock for tests."""

from __future__ import annotations


class Clock:
    """Stands still until it is told otherwise: ``now`` is what it shows, in seconds."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
