"""The gateway's side of budgets: what the store did not keep is tried again, and what has ended is settled once."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate import budgeting
from tidegate.budgeting import Budgeting
from tidegate.limits import budgets
from tidegate.limits.budgets import Charge, Limit, Metric, Order, Seat
from tidegate.model import Reason
from tidegate.state.control import Control, StateError

ORDER = Order(
    (Charge("one", "caller=a", budgets.key("one"), Metric.TOKENS, Limit(100, 60.0), 40, 10),),
    (Seat("one", "caller=a", budgets.key("seat"), 1),),
)


def an_exchange(number: int, used: int = 7) -> Any:
    from tidegate.dialects.counting import RATE_HEADERS

    crossing = SimpleNamespace(rate_headers=RATE_HEADERS, used=lambda order: tuple(used for _ in order.charges))
    return SimpleNamespace(
        id=f"ex_{number}", crossing=crossing, held=None, paid=(), sent=True, sealed=False, rate_fields=()
    )


class Shaky(Control):
    """A control store that fails as often as it is told."""

    failing = 0

    def write(self, work: Any, *, durable: bool = True) -> Future[Any]:
        if self.failing:
            self.failing -= 1
            done: Future[Any] = Future()
            done.set_exception(StateError("not kept"))
            return done
        return super().write(work, durable=durable)


@pytest.fixture
def control(tmp_path: Path) -> Any:
    control = Shaky(tmp_path / "control.db")
    control.start()
    yield control
    control.close()


async def used(money: Budgeting) -> dict[str, int]:
    await asyncio.sleep(0)
    rows = await asyncio.wrap_future(money._budgets.rows())
    return {each.metric: each.used for each in rows}


async def until(money: Budgeting, expected: dict[str, int]) -> None:
    for _ in range(500):
        if (found := await used(money)) == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(found)


async def test_what_was_not_kept_is_tried_again(control: Shaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgeting, "AGAIN", 0.05)
    money = Budgeting(control)
    first, second = an_exchange(1), an_exchange(2)
    assert await money.take(first, ORDER) is None
    money.settle(first)
    money.settle(first)
    control.failing = 2
    denial = await money.take(second, ORDER)
    assert denial is not None
    assert (denial.reason, second.held) == (Reason.STATE_UNAVAILABLE, None)
    await until(money, {"tokens": 7})
    money.close()


async def test_what_has_ended_is_settled_with_the_next_request(control: Shaky) -> None:
    money = Budgeting(control)
    for number in range(5):
        exchange = an_exchange(number)
        assert await money.take(exchange, ORDER) is None, "the seat of the one before is free at once"
        money.settle(exchange)
    await until(money, {"tokens": 35})
    money.close()


async def test_what_was_never_sent_costs_nothing(control: Shaky) -> None:
    money, exchange = Budgeting(control), an_exchange(1)
    assert await money.take(exchange, ORDER) is None
    exchange.sent = False
    money.settle(exchange)
    await until(money, {})
    money.close()


async def test_the_answers_of_a_socket_are_paid_one_by_one(control: Shaky) -> None:
    money, exchange = Budgeting(control), an_exchange(1, used=20)
    assert await money.take(exchange, ORDER) is None
    assert await money.go_on(exchange) is None
    assert await used(money) == {"tokens": 60, "concurrent": 1}
    exchange.crossing.used = lambda order: tuple(65 for _ in order.charges)
    denial = await money.go_on(exchange)
    assert denial is not None
    assert denial.reason is Reason.RATE_LIMITED
    assert await used(money) == {"tokens": 65, "concurrent": 1}
    money.settle(exchange)
    await until(money, {"tokens": 65})
    money.close()


async def test_a_socket_that_ends_while_it_is_paid_is_settled(control: Shaky) -> None:
    money, exchange = Budgeting(control), an_exchange(1, used=20)
    assert await money.take(exchange, ORDER) is None
    going = asyncio.ensure_future(money.go_on(exchange))
    await asyncio.sleep(0)
    exchange.sealed = True
    money.settle(exchange)
    assert await going is None
    await until(money, {"tokens": 20})
    money.close()


async def test_closing_settles_what_has_ended(control: Shaky) -> None:
    money, exchange = Budgeting(control), an_exchange(1)
    assert await money.take(exchange, ORDER) is None
    money.settle(exchange)
    money.close()
    await until(money, {"tokens": 7})
