"""Has the control store take what an exchange costs, and give back what it did not use: the gateway's side of budgets.

What has ended is settled with the next request, or ``LINGER`` seconds later: nobody waits for it, and one commit is
cheaper than two. While anything is held, the process says every ``BEAT`` seconds that it is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from tidegate import spending
from tidegate.exchange import Exchange
from tidegate.limits import rate_fields
from tidegate.limits.budgets import Granted, Metric, Order, Refused
from tidegate.model import Denial
from tidegate.state.budgets import BEAT, Budgets, Ended, Held
from tidegate.state.control import Control, StateError

LINGER = 0.02
"""Seconds for which a seat stays taken after its request has ended: less than a client needs to come again."""

AGAIN = 1.0
"""Seconds until what the store did not keep is tried again."""


class Budgeting:
    """The budgets of one running gate."""

    def __init__(self, control: Control) -> None:
        self._budgets = Budgets(control)
        self._open = 0
        self._ended: list[Ended] = []
        self._beating: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None

    async def take(self, exchange: Exchange, order: Order) -> Denial | None:
        """Take an order for an exchange; return why not, if there is no room or nobody can tell."""
        asked = time.time()
        ended, self._ended = self._ended, []
        try:
            found = await asyncio.wrap_future(self._budgets.take(exchange.id, order, ended))
        except StateError:
            self._put_back(ended)
            return spending.LOST
        assert isinstance(found, Granted | Refused)
        exchange.rate_fields = rate_fields.fields(found.standings, exchange.crossing.rate_headers, asked)
        if isinstance(found, Refused):
            return spending.refusal(found)
        exchange.held = Held(exchange.id, order, found.steps)
        self._open += 1
        if self._beating is None:
            self._beating = _later(BEAT, self._beat)
        return None

    async def go_on(self, exchange: Exchange) -> Denial | None:
        """Settle an answer of a WebSocket and take the next one; return why not. At once only one of these is done."""
        held, exchange.held = exchange.held, None
        if held is None:
            return None
        used = self._used(exchange, held)
        exchange.paid = tuple(map(sum, zip(exchange.paid or (0,) * len(used), used, strict=True)))
        part, charges = held.part + 1, held.order.charges
        more = tuple(replace(each, amount=0, kept=0) if each.metric is Metric.REQUESTS else each for each in charges)
        ended, self._ended = [*self._ended, (replace(held, last=False), used)], []
        denial: Denial | None = None
        order, steps = Order((), ()), tuple[int, ...]()
        try:
            found = await asyncio.wrap_future(self._budgets.take(exchange.id, Order(more, ()), ended, part))
        except StateError:
            self._put_back(ended)
            denial = spending.LOST
        else:
            if isinstance(found, Refused):
                denial = spending.refusal(found)
            else:
                order, steps = Order(more, ()), found.steps
        exchange.held = Held(exchange.id, order, steps, part)
        if exchange.sealed:  # it has ended meanwhile
            self.settle(exchange)
            return None
        return denial

    def settle(self, exchange: Exchange) -> None:
        """Settle what an exchange holds with what it used. May be called again."""
        held, exchange.held = exchange.held, None
        if held is None:
            return
        self._open -= 1
        self._ended.append((held, self._used(exchange, held)))
        if self._settling is None:
            self._settling = _later(LINGER, self._flush)

    def close(self) -> None:
        """Settle what has ended; say no more that the process is alive."""
        if self._ended:
            self._flush(again=False)
        for each in (self._beating, self._settling):
            if each is not None:
                each.cancel()
        self._beating = self._settling = None

    @staticmethod
    def _used(exchange: Exchange, held: Held) -> tuple[int, ...]:
        """Return what was used of what an exchange holds: all it used so far but what is paid."""
        charges = held.order.charges
        if not exchange.sent:
            return (0,) * len(charges)
        paid = exchange.paid or (0,) * len(charges)
        return tuple(max(0, one - other) for one, other in zip(exchange.crossing.used(held.order), paid, strict=False))

    def _flush(self, *, again: bool = True) -> None:
        self._settling = None
        ended, self._ended = self._ended, []
        if not ended:
            return
        done = self._budgets.settle(ended)
        if again:
            loop = asyncio.get_running_loop()
            done.add_done_callback(lambda told: _call(loop, self._settled, told, ended))

    def _settled(self, told: Future[None], ended: Sequence[Ended]) -> None:
        if told.exception() is not None:
            self._put_back(ended)

    def _put_back(self, ended: Sequence[Ended]) -> None:
        """Try again what the store did not keep: what is held stays taken until then."""
        self._ended[:0] = ended
        if self._ended and self._settling is None:
            self._settling = _later(AGAIN, self._flush)

    def _beat(self) -> None:
        self._beating = None
        self._budgets.beat()  # where it fails the store has said so
        if self._open:
            self._beating = _later(BEAT, self._beat)


def _later(seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, work)


def _call(loop: asyncio.AbstractEventLoop, work: Callable[..., None], *given: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(work, *given)
