"""Has the control store take what an exchange costs, and give back what it did not use: the gateway's side of budgets.

While any exchange holds something, the process says every ``BEAT`` seconds that it is alive; otherwise it is silent.
"""

from __future__ import annotations

import asyncio
import time

from tidegate import spending
from tidegate.exchange import Exchange
from tidegate.limits import rate_fields
from tidegate.limits.budgets import Granted, Order, Refused
from tidegate.model import Denial
from tidegate.state.budgets import BEAT, Budgets, Held
from tidegate.state.control import Control, StateError


class Budgeting:
    """The budgets of one running gate."""

    def __init__(self, control: Control) -> None:
        self._budgets = Budgets(control)
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, exchange: Exchange, order: Order) -> Denial | None:
        """Take an order for an exchange; return why not, if there is no room or nobody can tell."""
        asked = time.time()
        self._count(1)
        try:
            found = await asyncio.wrap_future(self._budgets.take(exchange.id, order))
        except StateError:
            self._count(-1)
            return spending.LOST
        except asyncio.CancelledError:  # what was taken all the same counts until its window ends
            self._count(-1)
            raise
        assert isinstance(found, Granted | Refused)
        crossing = exchange.crossing
        exchange.rate_fields = rate_fields.fields(found.standings, crossing.rate_headers, asked)
        if isinstance(found, Refused):
            self._count(-1)
            return spending.refusal(found)
        exchange.held = Held(exchange.id, order, found.steps)
        return None

    def settle(self, exchange: Exchange) -> None:
        """Settle what an exchange holds with what it used; nobody waits for that. May be called again."""
        held, exchange.held = exchange.held, None
        if held is None:
            return
        used = exchange.crossing.used(held.order) if exchange.sent else tuple(0 for _ in held.order.charges)
        self._budgets.settle(held, used)
        self._count(-1)

    def close(self) -> None:
        """Say no more that the process is alive."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, more: int) -> None:
        self._open += more
        if self._open and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BEAT, self._beat)

    def _beat(self) -> None:
        self._timer = None
        done = self._budgets.beat()
        done.add_done_callback(lambda each: each.exception())  # where it fails the store has logged it
        self._count(0)
