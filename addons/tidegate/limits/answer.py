"""Measure one answer against its limits: bytes, first byte, idle, duration, held text. The clock is an argument."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.model import AnswerLimits, Reason


class AnswerMeter:
    """Count what an upstream sends. Times are seconds of one monotonic clock, started when the request was sent."""

    __slots__ = ("_held", "bytes", "first", "last", "limits", "sent")

    def __init__(self, limits: AnswerLimits, now: float) -> None:
        self.limits = limits
        self.sent = self.last = now
        self.first: float | None = None
        self.bytes = 0
        self._held: dict[object, float] = {}

    def began(self, now: float) -> None:
        """Note that the head of the answer arrived: the limit on the first byte is met."""
        self.first = self.last = now

    def received(self, size: int, now: float) -> Reason | None:
        """Count ``size`` bytes of body; return the limit they break, if any."""
        self.bytes += size
        self.last = now
        return Reason.ANSWER_TOO_LARGE if self.bytes > self.limits.bytes else self.passed(now)

    def due(self) -> float:
        """Return the time at which a limit passes if nothing more arrives."""
        waiting = self.sent + self.limits.first_byte if self.first is None else self.last + self.limits.idle
        held = min(self._held.values(), default=waiting) + (self.limits.held or 0.0) if self._held else waiting
        return min(waiting, held, self.sent + self.limits.duration)

    def holds(self, stuck: Iterable[object], now: float) -> None:
        """Note what is held back now, by name; what was held before under the same name has waited since then."""
        self._held = {name: self._held.get(name, now) for name in stuck}

    def overdue(self, now: float) -> frozenset[object]:
        """Name what has been held back for as long as it may."""
        if self.limits.held is None:
            return frozenset()
        return frozenset(name for name, since in self._held.items() if now >= since + self.limits.held)

    def passed(self, now: float) -> Reason | None:
        """Return the time limit that has passed at ``now``, if any."""
        if now >= self.sent + self.limits.duration:
            return Reason.ANSWER_DURATION
        if self.first is None:
            return Reason.ANSWER_FIRST_BYTE if now >= self.sent + self.limits.first_byte else None
        return Reason.ANSWER_IDLE if now >= self.last + self.limits.idle else None
