"""What a request takes out of its budgets, and whether it may: whole numbers and a clock that is an argument. Pure.

A window slides in steps of a sixtieth. What was taken counts until the whole step in which it was taken has left the
window, so that no span of time as long as the window ever holds more than the limit; room comes back at most a step
late. A clock that goes back brings nothing back: what was taken later than now counts as taken now.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEPS = 60
"""Steps of a window: a limit for an hour comes back by the minute, and a counter has at most 61 numbers."""

UNIT = 10**12
"""Parts of one unit of money in which is counted: a price has up to six decimals, for a million tokens."""

type Slots = Mapping[int, int]
"""What was taken, by the number of the step since 1970 in which it was."""


class Metric(enum.StrEnum):
    """What a budget counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SPEND = "spend"


class Per(enum.StrEnum):
    """Who has a budget of his own: each value of each of these."""

    CALLER = "caller"
    GROUP = "group"
    ROLE = "role"
    CONNECTION = "connection"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``most`` in any span of ``window`` seconds."""

    most: int
    window: float


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as the policy names it.

    ``concurrent`` is how many requests may be under way, ``answer`` how many tokens an answer is taken to have where
    the request does not say. Without ``per`` it is one budget for everybody.
    """

    name: str
    per: tuple[Per, ...]
    limits: Mapping[Metric, Limit]
    concurrent: int | None = None
    answer: int = 4096


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount that is taken from one counter. ``kept`` stays taken if nobody ever says what was used."""

    budget: str
    who: str
    key: bytes
    metric: Metric
    limit: Limit
    amount: int
    kept: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A place among the requests that are under way."""

    budget: str
    who: str
    key: bytes
    most: int


@dataclass(frozen=True, slots=True)
class Order:
    """All that one request takes: everything of it, or nothing."""

    charges: tuple[Charge, ...]
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a counter stands after a request: what is ``left``, and in how many seconds everything is back."""

    budget: str
    metric: Metric
    limit: Limit
    left: int
    reset: float


@dataclass(frozen=True, slots=True)
class Refused:
    """What there is no room for. ``metric`` is ``None`` for a seat, ``wait`` for what never fits.

    ``slots`` are the counters as they are now: keep those that are ``ahead``, or what a wrong clock did stays for ever.
    """

    budget: str
    metric: Metric | None
    limit: Limit | None
    wait: float | None
    standings: tuple[Standing, ...] = ()
    slots: tuple[Slots, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """What was taken: the counters as they are now, the steps it was taken in, and how the counters stand."""

    slots: tuple[Slots, ...]
    steps: tuple[int, ...]
    standings: tuple[Standing, ...]


def step(window: float, now: float) -> int:
    """Return the number of the step of a window in which a time lies."""
    return math.floor(now * STEPS / window)


def aged(slots: Slots, window: float, now: float) -> dict[int, int]:
    """Leave out what has left the window, and count as taken now what says it was taken later."""
    last = step(window, now)
    kept: dict[int, int] = {}
    for number, amount in slots.items():
        if amount > 0 and number >= last - STEPS:
            at = min(number, last)
            kept[at] = kept.get(at, 0) + amount
    return kept


def ahead(slots: Slots, window: float, now: float) -> bool:
    """Say whether a counter was used when the clock was ahead of now."""
    return bool(slots) and max(slots) > step(window, now)


def taken(slots: Slots, at: int, amount: int) -> dict[int, int]:
    """Take an amount in a step."""
    return {**slots, at: slots.get(at, 0) + amount} if amount > 0 else dict(slots)


def given(slots: Slots, at: int, amount: int) -> dict[int, int]:
    """Give back what was taken in a step; what has left the window is not there any more."""
    left = {**slots, at: max(0, slots.get(at, 0) - amount)}
    return {number: held for number, held in left.items() if held > 0}


def settled(charge: Charge, slots: Slots, at: int, used: int, now: float) -> dict[int, int]:
    """Put what was used in the place of what was taken in the step ``at``."""
    found = aged(slots, charge.limit.window, now)
    if used <= charge.amount:
        return given(found, at, charge.amount - used)
    return taken(found, step(charge.limit.window, now), used - charge.amount)


def back(slots: Slots, window: float, now: float) -> float:
    """Return in how many seconds everything is back."""
    return max(0.0, (max(slots) + STEPS + 1) * window / STEPS - now) if slots else 0.0


def wait(slots: Slots, limit: Limit, amount: int, now: float) -> float | None:
    """Return in how many seconds there is room for an amount, if no one else takes it; ``None``: never."""
    if amount > limit.most:
        return None
    held = sum(slots.values())
    for number in sorted(slots):
        if held + amount <= limit.most:
            break
        held -= slots[number]
        until = (number + STEPS + 1) * limit.window / STEPS - now
        if held + amount <= limit.most:
            return max(0.0, until)
    return 0.0


def decide(order: Order, slots: Sequence[Slots], seated: Sequence[int], now: float) -> Granted | Refused:
    """Take all of an order, or nothing.

    ``slots`` are the counters of its charges, ``seated`` how many sit at its seats. Of several things without room
    the one that takes longest to come back is told.
    """
    before = [aged(each, charge.limit.window, now) for each, charge in zip(slots, order.charges, strict=True)]
    refused: list[tuple[Metric | None, str, Limit | None, float | None]] = []
    for charge, held in zip(order.charges, before, strict=True):
        if sum(held.values()) + charge.amount > charge.limit.most:
            room = wait(held, charge.limit, charge.amount, now)
            refused.append((charge.metric, charge.budget, charge.limit, room))
    refused += [
        (None, seat.budget, None, 1.0)
        for seat, sitting in zip(order.seats, seated, strict=True)
        if sitting >= seat.most
    ]
    if refused:
        metric, budget, limit, room = max(refused, key=lambda each: math.inf if each[3] is None else each[3])
        return Refused(budget, metric, limit, room, standings(order, before, now), tuple(before))
    steps = tuple(step(charge.limit.window, now) for charge in order.charges)
    after = tuple(taken(held, at, charge.amount) for charge, held, at in zip(order.charges, before, steps, strict=True))
    return Granted(after, steps, standings(order, after, now))


def standings(order: Order, slots: Sequence[Slots], now: float) -> tuple[Standing, ...]:
    """Say how the counters of an order stand."""
    return tuple(
        Standing(
            charge.budget,
            charge.metric,
            charge.limit,
            max(0, charge.limit.most - sum(held.values())),
            back(held, charge.limit.window, now),
        )
        for charge, held in zip(order.charges, slots, strict=True)
    )


def key(*parts: str) -> bytes:
    """Return what stands for a counter: no two differ only in where one part ends and the next begins."""
    digest = hashlib.blake2b(digest_size=20, person=b"tidegate budget")
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
