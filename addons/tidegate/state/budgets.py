"""What callers have left, for all processes on one control store.

An order is taken whole or not at all, in one transaction, so that no two processes give away the same room. Its part of
each counter is a *hold* until somebody settles it with what was really used. A hold belongs to a process, which says
every few seconds that it is alive; those of a dead one go back: the seat, and the part of an answer nobody has seen.

What is taken is in the file before the request goes on, and synced to the disk with every beat: kill -9 loses nothing,
power loss the counts of the last ``BEAT`` seconds. A sync for each request would cost it more than all the rest.

Two clocks: windows are in Unix time, because they outlive a restart. Whether a process is alive is told by the clock of
the machine since it was started, which all its processes share and nobody can set.
"""

from __future__ import annotations

import getpass
import json
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tidegate.limits import budgets
from tidegate.limits.budgets import Charge, Granted, Limit, Metric, Order, Refused, Slots
from tidegate.state.control import Control

ALIVE = 30.0
"""Seconds for which a process counts as alive after it has said so: how long a seat stays taken after kill -9."""

BEAT = 10.0
"""Seconds between two times a process says that it is alive: two of them may fail."""

REAPED = 2_000
"""Holds of dead processes that are given back at once: well under a tenth of a second, for others wait."""


CONCURRENT = "concurrent"
_SITTING = "ON budget_owner.name = budget_seat.owner WHERE until > ? AND until <= ?"
"""A process of before a restart of the machine says that it lives for longer than any may: it is dead."""


@dataclass(frozen=True, slots=True)
class Held:
    """An order that was taken, as it is settled: by exchange, with the step in which each charge was taken.

    What lives long takes one ``part`` after another; its seats are left with the ``last`` one.
    """

    exchange: str
    order: Order
    steps: tuple[int, ...]
    part: int = 0
    last: bool = True


type Ended = tuple[Held, Sequence[int]]
"""What an exchange held, and what of each charge it used."""


@dataclass(frozen=True, slots=True)
class Row:
    """A counter as people see it. ``used`` and ``most`` of spending are in parts of ``budgets.UNIT``.

    Of requests that are under way (``CONCURRENT``) there is no ``window``, and nothing that comes back by itself.
    """

    budget: str
    who: str
    metric: str
    used: int
    most: int
    window: float | None
    reset: float | None


class Budgets:
    """The part of the control store that counts. ``now`` is a clock in Unix seconds, ``since_boot`` a monotonic one."""

    def __init__(
        self,
        control: Control,
        now: Callable[[], float] = time.time,
        since_boot: Callable[[], float] = time.monotonic,
    ) -> None:
        self.control = control
        self.owner = secrets.token_hex(8)
        self._now = now
        self._since_boot = since_boot

    def take(
        self, exchange: str, order: Order, ended: Sequence[Ended] = (), part: int = 0
    ) -> Future[Granted | Refused]:
        """Settle what has ended, then take an order; the future says if there was room, or has a ``StateError``."""

        def work(db: Any) -> Granted | Refused:
            now, beat = self._now(), self._since_boot()
            for each in ended:
                _settle(db, *each, now)
            slots = [_slots(db, each.key) for each in order.charges]
            seated = [self._seated(db, each.key, beat) for each in order.seats]
            found = budgets.decide(order, slots, seated, now)
            if isinstance(found, Refused):
                for charge, before, after in zip(order.charges, slots, found.slots, strict=True):
                    if budgets.ahead(before, charge.limit.window, now):
                        _keep(db, charge, after, now)
                return found
            self._alive(db, beat)
            for charge, after in zip(order.charges, found.slots, strict=True):
                _keep(db, charge, after, now)
            holds = [
                (f"{exchange}/{part}", each.key, self.owner, each.limit.window, at, str(each.amount - each.kept))
                for each, at in zip(order.charges, found.steps, strict=True)
            ]
            seats = [(exchange, each.key, self.owner, each.budget, each.who, each.most) for each in order.seats]
            db.executemany("INSERT INTO budget_hold VALUES (?, ?, ?, ?, ?, ?)", holds)
            db.executemany("INSERT INTO budget_seat VALUES (?, ?, ?, ?, ?, ?)", seats)
            return found

        return self.control.write(work, durable=False)

    def settle(self, ended: Sequence[Ended]) -> Future[None]:
        """Put what was used in the place of what was taken, and leave the seats. Zero everywhere: it never was."""

        def work(db: Any) -> None:
            now = self._now()
            for each in ended:
                _settle(db, *each, now)

        return self.control.write(work, durable=False)

    def beat(self) -> Future[None]:
        """Say that this process is alive, and give back what dead ones hold."""

        def work(db: Any) -> None:
            beat = self._since_boot()
            self._alive(db, beat)
            _reap(db, beat, self._now())

        return self.control.write(work)

    def rows(self) -> Future[list[Row]]:
        """Return every counter that is in use, by budget and holder, and how many requests are under way."""

        def work(db: Any) -> list[Row]:
            now, beat = self._now(), self._since_boot()
            found = []
            for budget, who, metric, most, window, text in db.execute(
                'SELECT budget, who, metric, most, "window", slots FROM budget_counter ORDER BY budget, who, metric'
            ):
                slots = budgets.aged(_read(text), window, now)
                used = sum(slots.values())
                if used:
                    found.append(Row(budget, who, metric, used, int(most), window, budgets.back(slots, window, now)))
            seats = db.execute(
                f"SELECT budget, who, count(*), max(most) FROM budget_seat JOIN budget_owner {_SITTING} "  # noqa: S608
                "GROUP BY counter ORDER BY budget, who",
                (beat, beat + ALIVE),
            )
            found += [Row(budget, who, CONCURRENT, used, most, None, None) for budget, who, used, most in seats]
            return found

        return self.control.read(work)

    def reset(self, budget: str, who: str | None) -> Future[int]:
        """Give everything back that was taken from a budget, by one holder or by all; who did it is kept."""
        by = _user()

        def work(db: Any) -> int:
            condition, values = "budget = ?", [budget]
            if who is not None:
                condition, values = f"{condition} AND who = ?", [budget, who]
            gone = int(db.execute(f"DELETE FROM budget_counter WHERE {condition}", values).rowcount)  # noqa: S608
            if gone:
                row = (self._now(), budget, who, by, gone)
                db.execute("INSERT INTO budget_reset (at, budget, who, by, counters) VALUES (?, ?, ?, ?, ?)", row)
            return gone

        return self.control.write(work)

    def resets(self) -> Future[list[tuple[float, str, str | None, str, int]]]:
        """Return when who gave which budget back, newest first: time, budget, holder, who did it, counters."""
        found = 'SELECT at, budget, who, "by", counters FROM budget_reset ORDER BY at DESC'
        return self.control.read(lambda db: db.execute(found).fetchall())

    def _seated(self, db: Any, key: bytes, beat: float) -> int:
        found = db.execute(
            f"SELECT count(*) FROM budget_seat JOIN budget_owner {_SITTING} AND counter = ?",  # noqa: S608 - our own names
            (beat, beat + ALIVE, key),
        )
        return int(found.fetchone()[0])

    def _alive(self, db: Any, beat: float) -> None:
        db.execute(
            "INSERT INTO budget_owner VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET until = excluded.until",
            (self.owner, beat + ALIVE),
        )


def _settle(db: Any, held: Held, used: Sequence[int], now: float) -> None:
    for charge, at, amount in zip(held.order.charges, held.steps, used, strict=True):
        gone = (f"{held.exchange}/{held.part}", charge.key)
        alive = db.execute("DELETE FROM budget_hold WHERE exchange = ? AND counter = ?", gone).rowcount
        taken = charge if alive else _as_reaped(charge)
        if amount != taken.amount:
            _keep(db, charge, budgets.settled(taken, _slots(db, charge.key), at, amount, now), now)
    if held.last:
        db.execute("DELETE FROM budget_seat WHERE exchange = ?", (held.exchange,))


def _as_reaped(charge: Charge) -> Charge:
    """Return a charge of which the unseen part was given back already."""
    return Charge(charge.budget, charge.who, charge.key, charge.metric, charge.limit, charge.kept, charge.kept)


def _reap(db: Any, beat: float, now: float) -> None:
    """Give back what dead processes hold. One of before a restart of the machine says it lives for longer than it may.

    Counters that nobody has touched for twice their window hold nothing any more.
    """
    dead = "SELECT name FROM budget_owner WHERE until <= ? OR until > ?"
    until = (beat, beat + ALIVE)
    holds = db.execute(
        f'SELECT exchange, counter, "window", step, back FROM budget_hold WHERE owner IN ({dead}) LIMIT ?',  # noqa: S608
        (*until, REAPED),
    ).fetchall()
    for exchange, counter, window, at, back in holds:
        slots = budgets.given(budgets.aged(_slots(db, counter), window, now), at, int(back))
        db.execute("UPDATE budget_counter SET slots = ? WHERE name = ?", (_written(slots), counter))
        db.execute("DELETE FROM budget_hold WHERE exchange = ? AND counter = ?", (exchange, counter))
    db.execute(f"DELETE FROM budget_seat WHERE owner IN ({dead})", until)  # noqa: S608
    db.execute(
        f"DELETE FROM budget_owner WHERE name IN ({dead}) AND name NOT IN (SELECT owner FROM budget_hold)",  # noqa: S608
        until,
    )
    stale = 'SELECT name FROM budget_counter WHERE touched < ? - 2 * "window" LIMIT ?'
    db.execute(f"DELETE FROM budget_counter WHERE name IN ({stale})", (now, REAPED))  # noqa: S608


def _slots(db: Any, key: bytes) -> Slots:
    row = db.execute("SELECT slots FROM budget_counter WHERE name = ?", (key,)).fetchone()
    return {} if row is None else _read(row[0])


def _read(text: str) -> Slots:
    return {int(number): int(amount) for number, amount in json.loads(text)}


def _written(slots: Slots) -> str:
    return json.dumps([[number, amount] for number, amount in slots.items()], separators=(",", ":"))


def _keep(db: Any, charge: Charge, slots: Slots, now: float) -> None:
    limit: Limit = charge.limit
    metric: Metric = charge.metric
    db.execute(
        "INSERT INTO budget_counter VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, most = excluded.most, touched = excluded.touched",
        (charge.key, charge.budget, charge.who, metric.value, str(limit.most), limit.window, _written(slots), now),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
