"""The arithmetic of budgets: nothing ever overshoots, whatever happens in whichever order, and clocks that jump."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.clock import Clock
from tidegate.limits import budgets
from tidegate.limits.budgets import Charge, Granted, Limit, Metric, Order, Refused, Seat
from tidegate.limits.prices import Price, Prices
from tidegate.state.budgets import ALIVE, CONCURRENT, Budgets, Held
from tidegate.state.control import Control, StateError

MOST, WINDOW = 20, 60.0
LIMIT = Limit(MOST, WINDOW)


def charge(amount: int = 1, kept: int = 0, limit: Limit = LIMIT, name: str = "one") -> Charge:
    return Charge(name, "caller=local:alice", budgets.key(name), Metric.TOKENS, limit, amount, kept)


def order(*charges: Charge, seats: int | None = None) -> Order:
    seat = (Seat("one", "caller=local:alice", budgets.key("seat"), seats),) if seats else ()
    return Order(charges, seat)


class Machine(RuleBasedStateMachine):
    """Take and settle in any order while time goes on: no span as long as the window holds more than the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.slots: budgets.Slots = {}
        self.open: list[tuple[Charge, int, float]] = []
        self.held: list[tuple[float, int]] = []

    @rule(seconds=st.floats(0, WINDOW * 1.5))
    def goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule(amount=st.integers(1, MOST + 3))
    def takes(self, amount: int) -> None:
        one = charge(amount)
        found = budgets.decide(order(one), [self.slots], [], self.now)
        if isinstance(found, Granted):
            self.slots = found.slots[0]
            self.open.append((one, found.steps[0], self.now))
            self.held.append((self.now, amount))
            return
        assert sum(amount for _, amount in self.inside()) + amount > 0
        if amount <= MOST:
            assert found.wait is not None
            later = budgets.decide(order(one), [self.slots], [], self.now + found.wait + 0.001)
            assert isinstance(later, Granted)
        else:
            assert found.wait is None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settles(self, data: st.DataObject) -> None:
        one, at, when = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = data.draw(st.integers(0, one.amount))
        self.slots = budgets.settled(one, self.slots, at, used, self.now)
        self.held[self.held.index((when, one.amount))] = when, used

    def inside(self) -> list[tuple[float, int]]:
        return [each for each in self.held if each[0] > self.now - WINDOW]

    @invariant()
    def no_window_holds_more(self) -> None:
        assert sum(amount for _, amount in self.inside()) <= MOST

    @invariant()
    def the_counter_holds_at_least_what_is_inside(self) -> None:
        counted = sum(budgets.aged(self.slots, WINDOW, self.now).values())
        assert counted >= sum(amount for _, amount in self.inside())
        assert len(self.slots) <= budgets.STEPS + 1 + len(self.held)


TestNeverOvershoots = Machine.TestCase
TestNeverOvershoots.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(-500, 500), st.integers(1, 8)), max_size=30))
def test_a_clock_that_jumps_back_brings_nothing_back(jumps: list[tuple[float, int]]) -> None:
    now, slots, taken = 1_000_000.0, {}, 0
    last = now
    for jump, amount in jumps:
        now += min(jump, 0.0)  # only back: what was taken is still taken
        found = budgets.decide(order(charge(amount)), [slots], [], now)
        if isinstance(found, Granted):
            taken += amount
        slots = dict(found.slots[0])
        assert taken <= MOST
        assert now <= last
    assert budgets.aged(slots, WINDOW, now + 2 * WINDOW) == {}, "nor does it stay for ever"


def test_a_clock_that_was_far_ahead_does_not_lock_a_budget() -> None:
    found = budgets.decide(order(charge(MOST)), [{}], [], 2_000_000_000.0)
    assert isinstance(found, Granted)
    refused = budgets.decide(order(charge(1)), found.slots, [], 1_000_000.0)
    assert isinstance(refused, Refused)
    assert refused.wait is not None
    later = budgets.decide(order(charge(1)), refused.slots, [], 1_000_000.0 + refused.wait)
    assert isinstance(later, Granted)
    assert refused.wait <= WINDOW * (1 + 1 / budgets.STEPS)


def test_an_order_is_taken_whole_or_not_at_all() -> None:
    small, large = charge(5, limit=Limit(4, 60.0), name="small"), charge(5, name="large")
    found = budgets.decide(order(large, small), [{}, {}], [], 0.0)
    assert isinstance(found, Refused)
    assert (found.budget, found.metric, found.wait) == ("small", Metric.TOKENS, None)
    assert [each.left for each in found.standings] == [20, 4]


def test_the_longest_wait_is_told() -> None:
    short, long = charge(1, limit=Limit(1, 10.0), name="short"), charge(1, limit=Limit(1, 100.0), name="long")
    granted = budgets.decide(order(short, long), [{}, {}], [], 1000.0)
    assert isinstance(granted, Granted)
    found = budgets.decide(order(short, long), granted.slots, [], 1001.0)
    assert isinstance(found, Refused)
    assert found.budget == "long"
    assert found.wait == pytest.approx(100, abs=3)
    full = budgets.decide(order(seats=2), [], [2], 0.0)
    assert full == Refused("one", None, None, 1.0)


def test_two_counters_are_never_one() -> None:
    assert budgets.key("a", "bc") != budgets.key("ab", "c")
    assert budgets.key("a", "") != budgets.key("a")


def test_a_price_is_exact_to_the_last_part() -> None:
    price = Price(("gpt-*",), input=2_500_000, cached=1_250_000, output=10_000_000)  # 2.50, 1.25 and 10 a million
    assert price.of(1_000_000, 0) == 5 * budgets.UNIT // 2
    assert price.of(3, 2, cached=2) == 2_500_000 + 2 * 1_250_000 + 2 * 10_000_000
    assert price.of(3, 0, cached=99) == 3 * 1_250_000
    other = Price(("*",), 1, 1, 1)
    assert Prices("USD", (price, other)).of("gpt-4", lambda pattern, name: name.startswith(pattern[:-1])) is price
    assert Prices("USD", (price,)).of(None, lambda _, __: True) is None


# ── the store ────────────────────────────────────────────────────────────────


def opened(path: Path, now: Clock | None = None, beat: Clock | None = None) -> Budgets:
    control = Control(path)
    control.start()
    return Budgets(control, now or Clock(), beat or Clock())


def test_many_threads_of_two_stores_take_exactly_what_there_is(tmp_path: Path) -> None:
    stores = [opened(tmp_path / "control.db"), opened(tmp_path / "control.db")]
    found: list[object] = []

    def take(number: int) -> None:
        one = order(charge(1, limit=Limit(10, 60.0)))
        found.append(stores[number % 2].take(f"ex_{number}", one).result(30))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(50)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(isinstance(each, Granted) for each in found) == 10
    for store in stores:
        store.control.close()


def test_what_was_not_used_comes_back_and_what_was_used_more_is_taken(tmp_path: Path) -> None:
    store = opened(tmp_path / "control.db")
    one = order(charge(10), seats=1)
    granted = store.take("ex_1", one).result()
    assert isinstance(granted, Granted)
    assert [(each.metric, each.used) for each in store.rows().result()] == [("tokens", 10), (CONCURRENT, 1)]
    assert isinstance(store.take("ex_2", order(charge(1), seats=1)).result(), Refused)
    store.settle([(Held("ex_1", one, granted.steps), (3,))]).result()
    assert [(each.metric, each.used) for each in store.rows().result()] == [("tokens", 3)]
    again = store.take("ex_3", one).result()
    assert isinstance(again, Granted)
    store.settle([(Held("ex_3", one, again.steps), (19,))]).result()
    assert store.rows().result()[0].used == 22
    store.control.close()


def test_counts_outlive_a_restart_and_dead_processes_give_back(tmp_path: Path) -> None:
    now, beat = Clock(), Clock(500.0)
    store = opened(tmp_path / "control.db", now, beat)
    one = order(charge(10, kept=2), seats=1)
    granted = store.take("ex_1", one).result()
    assert isinstance(granted, Granted)
    store.control.close()  # as kill -9 leaves it: nothing was settled
    other = opened(tmp_path / "control.db", now, beat)
    beat.now += ALIVE - 1
    other.beat().result()
    assert isinstance(other.take("ex_2", one).result(), Refused), "it may be alive"
    beat.now += 2
    other.beat().result()
    assert [(each.metric, each.used) for each in other.rows().result()] == [("tokens", 2)]
    other.settle([(Held("ex_1", one, granted.steps), (7,))]).result()  # it was only slow
    assert other.rows().result()[0].used == 7
    other.control.close()


def test_a_process_of_before_the_machine_was_restarted_is_dead(tmp_path: Path) -> None:
    store = opened(tmp_path / "control.db", beat=Clock(1_000_000.0))
    assert isinstance(store.take("ex_1", order(seats=1)).result(), Granted)
    store.control.close()
    other = opened(tmp_path / "control.db", beat=Clock(60.0))
    assert isinstance(other.take("ex_2", order(seats=1)).result(), Granted)
    other.control.close()


def test_a_reset_is_kept_with_who_did_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "control.db")
    store.take("ex_1", order(charge(5))).result()
    assert store.reset("other", None).result() == 0
    assert store.reset("one", "caller=local:bob").result() == 0
    assert store.reset("one", "caller=local:alice").result() == 1
    assert store.rows().result() == []
    ((_, budget, who, by, counters),) = store.resets().result()
    assert (budget, who, counters) == ("one", "caller=local:alice", 1)
    assert by
    store.control.close()


def test_counters_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    now = Clock()
    store = opened(tmp_path / "control.db", now)
    store.take("ex_1", order(charge(5))).result()
    now.now += 2 * WINDOW + 1
    store.beat().result()
    assert store.control.read(lambda db: db.execute("SELECT count(*) FROM budget_counter").fetchone()[0]).result() == 0
    store.control.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path / "control.db")
    store.control.close()
    with pytest.raises(StateError):
        store.take("ex_1", order(charge(5))).result()


class StoreMachine(RuleBasedStateMachine):
    """Two processes on one store: what is held in all never passes the limit, and all of it comes back."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.now, self.beat = Clock(), Clock()
        path = self.folder / f"{id(self)}.db"
        self.stores = [opened(path, self.now, self.beat) for _ in range(2)]
        self.open: dict[str, tuple[Order, Held]] = {}
        self.used, self.count = 0, 0

    @rule(which=st.integers(0, 1), amount=st.integers(1, 9))
    def takes(self, which: int, amount: int) -> None:
        self.count += 1
        name, one = f"ex_{self.count}", order(charge(amount), seats=3)
        found = self.stores[which].take(name, one).result()
        held = sum(each[0].charges[0].amount for each in self.open.values())
        fits = self.used + held + amount <= MOST and len(self.open) < 3
        assert isinstance(found, Granted) == fits
        if isinstance(found, Granted):
            self.open[name] = one, Held(name, one, found.steps)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1), share=st.floats(0, 1))
    def settles(self, which: int, share: float) -> None:
        name = next(iter(self.open))
        one, held = self.open.pop(name)
        used = int(one.charges[0].amount * share)
        self.used += used
        self.stores[which].settle([(held, (used,))]).result()

    def teardown(self) -> None:
        for each in self.stores:
            each.control.close()


def test_two_processes_never_overshoot(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    StoreMachine.folder = tmp_path
    quick = settings(max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(StoreMachine, settings=quick)
