"""Approvals without a gate: who may decide, what votes come to, what needs one, how long a request may wait."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.approvals import machine
from tidegate.approvals.digest import bound, digest, fingerprint
from tidegate.approvals.holding import hold_for
from tidegate.approvals.machine import Demand, Illegal, Refusal, Vote
from tidegate.approvals.needs import Facts, needed, outside
from tidegate.approvals.spec import (
    Answer,
    Approval,
    Approvals,
    Ask,
    Hours,
    Need,
    Person,
    Scope,
    Sends,
    State,
    Triggers,
)
from tidegate.desk import Clock, Desk, Ending
from tidegate.model import Action, Asked, Finding
from tidegate.state import approvals as store
from tidegate.state.approvals import Item, Teller
from tidegate.state.control import Control, StateError

ALICE = Person("corp", "alice", frozenset({"corp:dev"}))
BOB = Person("corp", "bob", frozenset({"corp:boss", "corp:legal"}), authenticated=1000.0)
CAROL = Person("corp", "carol", frozenset({"corp:boss"}))
LENA = Person("corp", "lena", frozenset({"corp:legal"}))
ROOT = Person("corp", "root", frozenset({"corp:admin", "corp:boss"}))
NOW = 1_700_000_000.0
LONG = "the on-call database is on fire"


def demand(*groups: str, **more: Any) -> Demand:
    facts = {"every": False, "quorum": 1, "max_age": None, "break_glass": (), **more}
    return Demand("pii", groups or ("corp:boss",), **facts)


# ── the machine ──────────────────────────────────────────────────────────────


def test_only_the_steps_of_the_table_can_be_taken() -> None:
    taken = []
    for before, after in itertools.product(State, State):
        if (before, after) == (State.CONSUMED, State.APPROVED):
            machine.check(before, after, unsent=True)
        else:
            with pytest.raises(Illegal):
                machine.check(before, after, unsent=True)
        try:
            machine.check(before, after)
        except Illegal:
            continue
        taken.append(f"{before}>{after}")
    assert sorted(taken) == sorted(
        [
            "pending>approved",
            "pending>denied",
            "pending>expired",
            "pending>cancelled",
            "pending>superseded",
            "approved>consumed",
            "approved>expired",
            "approved>revoked",
        ]
    )
    assert [each for each in State if not machine.is_over(each)] == [State.PENDING, State.APPROVED]


VOTERS = {
    "a stranger": (demand(), replace(LENA, groups=frozenset({"corp:dev"})), Refusal.STRANGER),
    "the one who asks": (demand("corp:dev"), ALICE, Refusal.OWN),
    "an administrator on his own request": (demand("corp:admin"), replace(ROOT, subject="alice"), Refusal.OWN),
    "the owner of the program": (demand(), BOB, Refusal.OWNER),
    "an approver": (demand(), CAROL, None),
    "one who signed in just now": (demand(max_age=60.0), replace(CAROL, authenticated=NOW - 59), None),
    "one who signed in long ago": (demand(max_age=60.0), replace(CAROL, authenticated=NOW - 61), Refusal.STALE),
    "one of whom nobody knows when": (demand(max_age=60.0), CAROL, Refusal.STALE),
}


@pytest.mark.parametrize(("needs", "voter", "refusal"), VOTERS.values(), ids=VOTERS.keys())
def test_who_may_decide(needs: Demand, voter: Person, refusal: Refusal | None) -> None:
    owners = ("corp:bob",)
    assert machine.may_vote([needs], ALICE, owners, voter, NOW) is refusal


def votes(*people: Person, no: Person | None = None) -> list[Vote]:
    said = [Vote(each, Answer.YES) for each in people]
    return said if no is None else [*said, Vote(no, Answer.NO)]


BOTH = demand("corp:boss", "corp:legal", every=True, quorum=2)
OUTCOMES = {
    "nobody has voted": ([demand()], votes(), State.PENDING),
    "one of one": ([demand()], votes(CAROL), State.APPROVED),
    "one person in two groups is one person": (
        [demand("corp:boss", "corp:legal", quorum=2)],
        votes(BOB),
        State.PENDING,
    ),
    "who votes twice is one person": ([demand(quorum=2)], votes(CAROL, CAROL), State.PENDING),
    "more than enough are enough": ([demand()], votes(CAROL, ROOT), State.APPROVED),
    "any of two groups": ([demand("corp:boss", "corp:legal", quorum=2)], votes(CAROL, ROOT), State.APPROVED),
    "each group: one person does not stand for both": ([BOTH], votes(BOB), State.PENDING),
    "each group: two of the same group": ([BOTH], votes(CAROL, ROOT), State.PENDING),
    "each group: who is in both stands for the other one": ([BOTH], votes(BOB, CAROL), State.APPROVED),
    "each group: one of each": ([BOTH], votes(CAROL, LENA), State.APPROVED),
    "one no ends it": ([demand(quorum=1)], votes(CAROL, ROOT, no=BOB), State.DENIED),
    "a first vote stands": ([demand()], [Vote(CAROL, Answer.YES), Vote(CAROL, Answer.NO)], State.APPROVED),
    "two needs, one met": ([demand(), demand("corp:legal")], votes(CAROL), State.PENDING),
    "two needs, both met by one person": ([demand(), demand("corp:legal")], votes(BOB), State.APPROVED),
}


@pytest.mark.parametrize(("needs", "said", "state"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_what_votes_come_to(needs: list[Demand], said: list[Vote], state: State) -> None:
    assert machine.outcome(needs, said) is state


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from("abc"))), max_size=8), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_quorum_counts_people_whatever_their_groups(said: list[tuple[int, set[str]]], quorum: int) -> None:
    people = [Person("corp", f"p{number}", frozenset(groups)) for number, groups in said]
    first = {each.subject: each for each in reversed(people)}
    able = [each for each in first.values() if each.groups & {"a", "b"}]
    got = machine.outcome([demand("a", "b", quorum=quorum)], votes(*people))
    assert (got is State.APPROVED) is (len(able) >= quorum)


GLASS = {
    "a fireman for himself": (replace(ALICE, groups=frozenset({"corp:fire"})), LONG, None),
    "a fireman for somebody": (replace(LENA, groups=frozenset({"corp:fire"})), LONG, None),
    "an approver": (CAROL, LONG, Refusal.NO_GLASS),
    "no reason": (replace(ALICE, groups=frozenset({"corp:fire"})), "x" * 19, Refusal.NO_REASON),
    "the owner of the program": (replace(BOB, groups=frozenset({"corp:fire"})), LONG, Refusal.OWNER),
}


@pytest.mark.parametrize(("person", "reason", "refusal"), GLASS.values(), ids=GLASS.keys())
def test_who_may_break_the_glass(person: Person, reason: str, refusal: Refusal | None) -> None:
    needs = [demand(break_glass=("corp:fire",))]
    assert machine.may_break(needs, ALICE, ("corp:bob",), person, reason) is refusal
    also = [*needs, demand(break_glass=())]
    assert machine.may_break(also, ALICE, (), person, LONG) is Refusal.NO_GLASS


# ── what needs one ───────────────────────────────────────────────────────────

ASKED = Asked("gpt-5", stream=False, tools=("search",), max_output=100)
EMAIL = Finding("pii.email", "pii", "$.messages[0].content", 0, 5, Action.APPROVE)
WORK = Hours(frozenset(range(5)), 8 * 60, 18 * 60, "Europe/Berlin")
NIGHT = Hours(frozenset({4}), 22 * 60, 6 * 60, "UTC")

CAUSES = {
    "class": (Triggers(classes=("pii",)), {"findings": [EMAIL]}, ("class pii",)),
    "class that is only flagged": (
        Triggers(classes=("pii",)), {"findings": [replace(EMAIL, action=Action.FLAG)]}, None,
    ),
    "rule": (
        Triggers(rules=("pii.email",)), {"findings": [replace(EMAIL, action=Action.FLAG)]}, ("rule pii.email",),
    ),
    "tool": (Triggers(tools=("sea*",)), {}, ("tool sea*",)),
    "tool in other letters": (Triggers(tools=("SEARCH",)), {}, ("tool SEARCH",)),
    "another tool": (Triggers(tools=("launch",)), {}, None),
    "a tool whose name is no name": (Triggers(tools=("launch",)), {"asked": replace(ASKED, tools=("lau nch",))},
                                     ("tool launch",)),
    "model": (Triggers(models=("gpt-*",)), {}, ("model gpt-*",)),
    "another model": (Triggers(models=("o1",)), {}, None),
    "no model where one could be": (Triggers(models=("o1",)), {"asked": replace(ASKED, model=None)}, ("model o1",)),
    "no model where none can be": (
        Triggers(models=("o1",)), {"asked": replace(ASKED, model=None), "models": False}, None,
    ),
    "few tokens": (Triggers(output_tokens=100), {}, None),
    "many tokens": (Triggers(output_tokens=99), {}, ("more than 99 output tokens",)),
    "nobody knows how many": (
        Triggers(output_tokens=99), {"asked": replace(ASKED, max_output=None)}, ("more than 99 output tokens",),
    ),
    "a large body": (Triggers(body=9), {}, ("more than 9 bytes",)),
    "a small body": (Triggers(body=10), {}, None),
    "at night": (Triggers(hours=WORK), {"at": datetime(2026, 1, 5, 20, tzinfo=UTC).timestamp()}, ("the time of day",)),
    "at work": (Triggers(hours=WORK), {"at": datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()}, None),
    "at a time that nobody knows": (Triggers(hours=WORK), {}, ("the time of day",)),
    "permission": (Triggers(), {"approve": ("entry",)}, ("permission",)),
    "nothing": (Triggers(), {}, None),
}  # fmt: skip


@pytest.mark.parametrize(("when", "facts", "labels"), CAUSES.values(), ids=CAUSES.keys())
def test_what_needs_approval(when: Triggers, facts: dict[str, Any], labels: tuple[str, ...] | None) -> None:
    entry = Approval("entry", ("corp:boss",), when=when)
    known = Facts(**{"asked": ASKED, "findings": [], "approve": (), "size": 10, "at": None, **facts})
    got = needed(Approvals({"entry": entry}), known)
    assert got == (() if labels is None else (Need(entry, labels),))


def test_a_class_that_is_sent_masked_needs_approval_too() -> None:
    entry = Approval("entry", (), sends=Sends.REDACTED, when=Triggers(classes=("pii",)))
    masked = [replace(EMAIL, action=Action.REDACT)]
    assert needed(Approvals({"entry": entry}), Facts(ASKED, masked, (), 1, None))


@pytest.mark.parametrize(
    ("when", "is_outside"),
    [("2026-01-02T22:00", False), ("2026-01-03T05:59", False), ("2026-01-03T06:00", True), ("2026-01-02T05:00", True)],
)
def test_hours_that_end_on_the_next_day(when: str, is_outside: bool) -> None:
    assert outside(NIGHT, datetime.fromisoformat(f"{when}+00:00").timestamp()) is is_outside


HOLDS = {
    "a default SDK": ({"x-stainless-read-timeout": "600"}, 120.0),
    "one that says only how long in all": ({"x-stainless-timeout": "100"}, 85.0),
    "an impatient one": ({"x-stainless-read-timeout": "8"}, 6.0),
    "one that does not say": ({}, 30.0),
    "nan": ({"x-stainless-read-timeout": "nan"}, 30.0),
    "infinite": ({"x-stainless-read-timeout": "inf"}, 30.0),
    "zero": ({"x-stainless-read-timeout": "0"}, 30.0),
    "words": ({"x-stainless-read-timeout": "NOT_GIVEN"}, 30.0),
    "gRPC": ({"grpc-timeout": "10S"}, 8.0),
    "gRPC in milliseconds": ({"grpc-timeout": "1500m"}, 0.0),
}


@pytest.mark.parametrize(("fields", "seconds"), HOLDS.values(), ids=HOLDS.keys())
def test_how_long_a_request_may_wait(fields: dict[str, str], seconds: float) -> None:
    assert math.isclose(hold_for(list(fields.items()), 900.0), seconds)
    assert hold_for(list(fields.items()), 0.5) <= 0.5


KEY = b"k" * 32
LINE = ("POST", "/v1/chat/completions")
CHANGES: dict[str, dict[str, Any]] = {
    "caller": {"caller": CAROL},
    "connection": {"connection": "other"},
    "method": {"line": ("PUT", LINE[1])},
    "path": {"line": ("POST", LINE[1] + "?a=1")},
    "body": {"body": b"{} "},
    "what reads the body": {"fields": [("content-type", "text/plain")]},
    "a part that moves into the next": {"connection": "openaiP", "line": ("OST", LINE[1])},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_request_is_another(change: dict[str, Any]) -> None:
    facts: dict[str, Any] = {"caller": ALICE, "connection": "openai", "line": LINE, "fields": [], "body": b"{}"}
    one, other = bound(**facts), bound(**{**facts, **change})
    assert digest(KEY, one, "p") == digest(KEY, bound(**facts), "p")
    assert digest(KEY, one, "p") not in {digest(KEY, other, "p"), digest(KEY, one, "q"), digest(b"l" * 32, one, "p")}
    assert fingerprint(KEY, one) != fingerprint(KEY, other)


def test_what_differs_between_tries_does_not_count() -> None:
    told = [("x-stainless-retry-count", "0"), ("content-length", "2"), ("user-agent", "a")]
    again = [("x-stainless-retry-count", "1"), ("traceparent", "b")]
    assert bound(ALICE, "openai", LINE, told, b"{}") == bound(ALICE, "openai", LINE, again, b"{}")


# ── the store ────────────────────────────────────────────────────────────────


def wanted(body: bytes = b"{}", caller: Person = ALICE, policy: str = "p1", **entry: Any) -> Ask:
    made = Approval("pii", ("corp:boss", "corp:legal"), break_glass=("corp:fire",), **entry)
    return Ask(
        caller, "openai", "chat", "POST", "/v1/chat/completions", "gpt-5", (Need(made, ("class pii",)),),
        (("pii.email", "pii", "$.messages[0].content", "approve"),), "because", policy,
        bound=bound(caller, "openai", LINE, (), body), shown=b'{"masked": true}',
    )  # fmt: skip


def do(control: Control, work: Any, *arguments: Any) -> Any:
    return control.write(lambda db: work(db, *arguments)).result(10)


def begun(control: Control, ask: Ask, now: float = NOW) -> Item:
    found = do(control, store.ask, ask, now)
    assert found.item is not None
    return found.item  # type: ignore[no-any-return]


def state(control: Control, item: Item) -> State:
    found: Item = control.read(lambda db: store.get(db, item.id)).result(10)
    return found.state


def test_a_retry_joins_the_pending_item_and_a_changed_request_does_not(control: Control) -> None:
    item = begun(control, wanted())
    assert begun(control, wanted()).id == item.id
    assert begun(control, wanted(b"{ }")).id != item.id
    assert begun(control, wanted(caller=CAROL)).id != item.id


def test_another_policy_makes_another_item_and_ends_the_pending_one(control: Control) -> None:
    item = begun(control, wanted())
    other = begun(control, wanted(policy="p2"))
    assert (other.id != item.id, state(control, item)) == (True, State.SUPERSEDED)
    assert do(control, store.vote, item.id, CAROL, Answer.YES, "", NOW) is Refusal.OVER


def test_an_item_is_used_once_and_only_for_its_request(control: Control) -> None:
    ask = wanted()
    item = begun(control, ask)
    assert do(control, store.use, item.id, ask, NOW) is None
    assert do(control, store.vote, item.id, CAROL, Answer.YES, "fine", NOW + 1).state is State.APPROVED
    assert do(control, store.use, item.id, wanted(b"{ }"), NOW + 2) is None
    assert do(control, store.use, item.id, wanted(policy="p2"), NOW + 2) is None
    assert do(control, store.use, item.id, wanted(caller=LENA), NOW + 2) is None
    assert do(control, store.use, item.id, ask, NOW + 2).state is State.CONSUMED
    assert do(control, store.use, item.id, ask, NOW + 2) is None
    assert begun(control, ask, NOW + 3).id != item.id
    steps = control.read(lambda db: store.steps(db, item.id)).result(10)
    assert [(each.what, each.was, each.became, each.actor, each.reason, each.policy) for each in steps] == [
        ("ask", "", "pending", "corp:alice", "because", "p1"),
        ("vote yes", "pending", "pending", "corp:carol", "fine", "p1"),
        ("approved", "pending", "approved", "corp:carol", "fine", "p1"),
        ("use", "approved", "consumed", "corp:alice", "", "p1"),
    ]


def test_a_use_of_which_nothing_was_sent_is_given_back(control: Control) -> None:
    ask = wanted()
    item = begun(control, ask)
    assert do(control, store.give_back, item.id, NOW) is None, "it was not used"
    do(control, store.vote, item.id, CAROL, Answer.YES, "", NOW)
    assert do(control, store.give_back, item.id, NOW) is None
    assert do(control, store.use, item.id, ask, NOW).state is State.CONSUMED
    back = do(control, store.give_back, item.id, NOW + 1)
    assert (back.state, back.uses) == (State.APPROVED, 0)
    assert do(control, store.give_back, item.id, NOW + 1) is None, "once"
    assert do(control, store.ask, ask, NOW + 2).usable
    used = do(control, store.use, item.id, ask, NOW + 2)
    assert do(control, store.use, item.id, ask, NOW + 2) is None
    steps = [(each.what, each.was, each.became) for each in do(control, store.steps, item.id)]
    assert steps[3:] == [
        ("use", "approved", "consumed"),
        ("not sent", "consumed", "approved"),
        ("use", "approved", "consumed"),
    ]
    assert do(control, store.give_back, item.id, used.use_by) is None, "its time is up"
    begun(control, ask, NOW + 3)
    assert do(control, store.give_back, item.id, NOW + 3) is None, "it is asked anew"
    assert state(control, item) is State.CONSUMED


def test_two_clocks(control: Control) -> None:
    late = begun(control, wanted(b"1", decide_within=10.0), NOW)
    assert do(control, store.vote, late.id, CAROL, Answer.YES, "", NOW + 10) is Refusal.OVER
    assert state(control, late) is State.EXPIRED
    unused = begun(control, wanted(b"2", use_within=5.0), NOW)
    do(control, store.vote, unused.id, CAROL, Answer.YES, "", NOW + 1)
    assert do(control, store.use, unused.id, wanted(b"2", use_within=5.0), NOW + 6) is None
    assert state(control, unused) is State.EXPIRED


def test_a_denial_holds_for_as_long_as_it_could_have_been_decided(control: Control) -> None:
    item = begun(control, wanted(decide_within=60.0))
    assert do(control, store.vote, item.id, LENA, Answer.NO, "no", NOW).state is State.DENIED
    again = do(control, store.ask, wanted(decide_within=60.0), NOW + 59)
    assert (again.over, again.item.id) == (True, item.id)
    assert begun(control, wanted(decide_within=60.0), NOW + 61).id != item.id


def test_the_first_vote_of_a_person_stands(control: Control) -> None:
    item = begun(control, wanted(quorum=2))
    assert do(control, store.vote, item.id, BOB, Answer.YES, "", NOW).state is State.PENDING
    assert do(control, store.vote, item.id, BOB, Answer.YES, "", NOW) is Refusal.VOTED
    assert do(control, store.vote, item.id, replace(BOB, groups=frozenset({"corp:legal"})), Answer.YES, "", NOW) is (
        Refusal.VOTED
    )
    assert do(control, store.vote, item.id, LENA, Answer.YES, "", NOW).state is State.APPROVED


def test_scopes(control: Control) -> None:
    again = wanted(b"again", scope=Scope.REQUEST, use_within=60.0)
    item = begun(control, again)
    do(control, store.vote, item.id, CAROL, Answer.YES, "", NOW)
    assert [do(control, store.use, item.id, again, NOW + n).uses for n in (1, 2)] == [1, 2]
    assert do(control, store.use, item.id, wanted(b"other", scope=Scope.REQUEST), NOW + 3) is None
    assert do(control, store.use, item.id, again, NOW + 61) is None
    kind = wanted(b"first", scope=Scope.DATA)
    wide = begun(control, kind)
    do(control, store.vote, wide.id, CAROL, Answer.YES, "", NOW)
    other = do(control, store.ask, wanted(b"second", scope=Scope.DATA), NOW + 1)
    assert (other.usable, other.item.id) == (True, wide.id)
    assert do(control, store.use, wide.id, wanted(b"second", scope=Scope.DATA), NOW + 1).uses == 1
    more = replace(kind, needs=(replace(kind.needs[0], labels=("class pii", "model gpt-*")),), bound=(b"third",))
    assert not do(control, store.ask, more, NOW + 1).usable
    assert do(control, store.use, wide.id, replace(kind, caller=CAROL), NOW + 1) is None
    assert do(control, store.use, wide.id, replace(kind, connection="anthropic"), NOW + 1) is None


def test_revoked_is_not_usable(control: Control) -> None:
    item = begun(control, wanted())
    assert do(control, store.revoke, item.id, CAROL, "", NOW) is Refusal.OVER
    do(control, store.vote, item.id, CAROL, Answer.YES, "", NOW)
    assert do(control, store.revoke, item.id, ALICE, "", NOW) is Refusal.OWN
    assert do(control, store.revoke, item.id, LENA, "no", NOW).state is State.REVOKED
    assert do(control, store.use, item.id, wanted(), NOW) is None


def test_limits(control: Control) -> None:
    for number in range(3):
        begun(control, wanted(b"%d" % number))
    assert begun(control, wanted(b"0"))  # joins
    found = do(control, store.ask, wanted(b"4"), NOW)
    assert (found.item, found.why) == (None, "3 requests of yours are waiting for approval already")
    found = do(control, store.ask, replace(wanted(b"5", CAROL), in_all=3), NOW)
    assert (found.item, found.why) == (None, "3 requests are waiting for approval already")


def test_broken_glass_is_marked_until_somebody_else_has_looked(control: Control) -> None:
    fay = Person("corp", "fay", frozenset({"corp:fire", "corp:boss"}))
    assert do(control, store.ask, replace(wanted(caller=ALICE), break_glass=True, reason=LONG), NOW).why == str(
        Refusal.NO_GLASS
    )
    found = do(control, store.ask, replace(wanted(caller=fay), break_glass=True, reason=LONG), NOW)
    assert (found.usable, found.item.review, found.item.broke_glass) == (True, "open", True)
    assert do(control, store.use, found.item.id, wanted(caller=fay), NOW).state is State.CONSUMED
    assert do(control, store.review, found.item.id, fay, "me", NOW) is Refusal.OWN
    assert do(control, store.review, found.item.id, CAROL, "seen", NOW).review == "corp:carol: seen"
    item = begun(control, wanted(b"other"))
    assert do(control, store.break_glass, item.id, fay, "short", NOW) is Refusal.NO_REASON
    assert do(control, store.break_glass, item.id, fay, LONG, NOW).state is State.APPROVED
    assert do(control, store.review, item.id, fay, "me", NOW) is Refusal.OWN


async def test_glass_is_broken_for_a_request_that_waits_already(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(control)
    fay = Person("corp", "fay", frozenset({"corp:fire"}))
    for caller, reason, why in ((ALICE, LONG, Refusal.NO_GLASS), (fay, "short", Refusal.NO_REASON)):
        pending = (await desk.ask(wanted(caller=caller))).item
        assert pending is not None
        told = await desk.ask(replace(wanted(caller=caller), break_glass=True, reason=reason))
        assert (told.item, told.usable, told.why) == (None, False, str(why))
        assert (await desk.latest(pending)).state is State.PENDING
    assert caplog.records == []
    found = await desk.ask(replace(wanted(caller=fay), break_glass=True, reason=LONG))
    assert found.item is not None
    assert (found.item.id, found.item.state, found.item.review) == (pending.id, State.APPROVED, "open")
    assert (found.usable, found.joined) == (True, False)
    assert json.loads(caplog.records[0].message)["by"] == "corp:fay"
    assert [each.what for each in (await desk.history(pending.id))[1]] == ["ask", "break glass", "approved"]
    await desk.close()


def test_steps_cannot_be_changed(control: Control) -> None:
    begun(control, wanted())
    for verb in ("UPDATE approval_step SET actor = 'x'", "DELETE FROM approval_step"):
        with pytest.raises(StateError, match="CONSTRAINT"):
            do(control, lambda db, verb=verb: db.execute(verb))


def test_what_is_kept_is_not_found_again_by_whoever_reads_the_file(control: Control) -> None:
    begun(control, wanted(b'{"secret": "CANARY-1"}'))
    assert not any(b"CANARY-1" in each.read_bytes() for each in control.path.parent.iterdir())


def test_of_many_votes_and_uses_at_once_in_two_processes_one_passes(tmp_path: Path) -> None:
    """Two controls on one file are two processes: each has its own connection, thread and lock."""
    controls = [Control(tmp_path / "control.db") for _ in range(2)]
    for each in controls:
        each.start()
    try:
        ask = wanted(quorum=2)
        item = begun(controls[0], ask)
        gate = threading.Barrier(50)

        def one(number: int) -> tuple[bool, bool]:
            control = controls[number % 2]
            gate.wait(30)
            person = Person("corp", f"p{number}", frozenset({"corp:boss"}))
            do(control, store.vote, item.id, person, Answer.YES, "", NOW)
            used = do(control, store.use, item.id, ask, NOW)
            return used is not None, begun(control, ask).id == item.id

        with ThreadPoolExecutor(50) as pool:
            got = list(pool.map(one, range(50)))
        assert sum(used for used, _ in got) == 1
        steps = controls[0].read(lambda db: store.steps(db, item.id)).result(10)
        assert [each.what for each in steps].count("approved") == 1
        assert [each.what for each in steps].count("use") == 1
    finally:
        for each in controls:
            each.close()


# ── the desk ─────────────────────────────────────────────────────────────────


class Wait:
    left = stopped = False

    def gone(self) -> bool:
        return self.left

    def killed(self) -> bool:
        return self.stopped


async def test_a_decision_wakes_who_waits_in_this_process_and_in_another(tmp_path: Path) -> None:
    controls = [Control(tmp_path / "control.db") for _ in range(2)]
    for each in controls:
        each.start()
    here, there = map(Desk, controls)
    try:
        for desk, body in ((here, b"1"), (there, b"2")):
            found = await here.ask(wanted(body))
            assert found.item is not None
            waiting = asyncio.create_task(here.wait(found.item, 30.0, Wait()))
            await asyncio.sleep(0.2)
            assert (waiting.done(), here.waiting) == (False, 1)
            await desk.decide(found.item.id, CAROL, Answer.YES, "")
            assert await asyncio.wait_for(waiting, 10) is Ending.DECIDED
            assert await here.use(found.item, wanted(body))
        assert here.waiting == 0
    finally:
        for desk in (here, there):
            await desk.close()
        for each in controls:
            each.close()


async def test_nobody_waits_longer_than_he_may_or_than_he_is_there(control: Control) -> None:
    desk = Desk(control)
    found = await desk.ask(wanted())
    assert found.item is not None
    assert await desk.wait(found.item, 0.01, Wait()) is Ending.TIME_UP
    gone, killed = Wait(), Wait()
    gone.left = killed.stopped = True
    assert await desk.wait(found.item, 30.0, gone) is Ending.GONE
    assert await desk.wait(found.item, 30.0, killed) is Ending.KILLED
    await desk.decide(found.item.id, CAROL, Answer.NO, "")
    assert await desk.wait(found.item, 30.0, Wait()) is Ending.DECIDED
    await desk.close()
    assert await desk.wait(found.item, 30.0, Wait()) is Ending.STOPPED


async def test_the_evidence_has_every_step_once_even_if_it_failed_meanwhile(control: Control) -> None:
    told: list[dict[str, Any]] = []
    broken = [True]

    class Evidence:
        def note(self, kind: str, detail: str) -> asyncio.Future[None]:
            if broken[0]:
                raise RuntimeError
            told.append({"kind": kind, **json.loads(detail)})
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    desk = Desk(control, Evidence())
    found = await desk.ask(wanted())
    assert found.item is not None
    await asyncio.sleep(0.1)
    assert told == []
    broken[0] = False
    await desk.decide(found.item.id, CAROL, Answer.YES, "fine")
    end = time.monotonic() + 10
    while len(told) < 3 and time.monotonic() < end:  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0.05)
    await desk.close()
    assert [(each["kind"], each["what"], each["actor"]) for each in told] == [
        ("approval", "ask", "corp:alice"),
        ("approval", "vote yes", "corp:carol"),
        ("approval", "approved", "corp:carol"),
    ]


class Slow:
    """A recording that takes a while, or none of it."""

    def __init__(self, *, broken: bool = False) -> None:
        self.got: list[tuple[int, str]] = []
        self.broken = broken

    async def _keep(self, detail: str) -> None:
        await asyncio.sleep(0.1)
        told = json.loads(detail)
        self.got.append((told["seq"], told["what"]))

    def note(self, _kind: str, detail: str) -> asyncio.Future[None]:
        if self.broken:
            raise RuntimeError
        return asyncio.ensure_future(self._keep(detail))


async def until(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not said() and time.monotonic() < end:  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0.05)
    assert said()


ALL = [(1, "ask"), (2, "vote yes"), (3, "approved")]


async def test_two_gates_on_one_store_tell_every_step_once(tmp_path: Path) -> None:
    controls = [Control(tmp_path / "control.db") for _ in range(2)]
    recordings, letters = (Slow(), Slow()), list[tuple[int, str]]()
    for each in controls:
        each.start()
    desks = [
        Desk(control, slow, None, str, lambda step, _: letters.append((step.seq, step.what)))
        for control, slow in zip(controls, recordings, strict=True)
    ]
    item = (await desks[0].ask(wanted())).item
    assert item is not None
    waiting = [asyncio.create_task(each.wait(item, 30.0, Wait())) for each in desks]
    await asyncio.sleep(0.1)
    await desks[0].decide(item.id, CAROL, Answer.YES, "ok")
    assert await asyncio.gather(*waiting) == [Ending.DECIDED] * 2
    await until(lambda: len(letters) >= 3 and sum(len(each.got) for each in recordings) >= 3)
    for each in desks:
        await each.close()
    assert sorted(recordings[0].got + recordings[1].got) == ALL
    assert letters == ALL
    for control in controls:
        control.close()


async def test_letters_are_sent_while_the_recording_is_down(control: Control) -> None:
    letters = list[tuple[int, str]]()
    desk = Desk(control, Slow(broken=True), None, str, lambda step, _: letters.append((step.seq, step.what)))
    item = (await desk.ask(wanted())).item
    assert item is not None
    await until(lambda: len(letters) == 1)
    await desk.decide(item.id, CAROL, Answer.YES, "ok")
    await until(lambda: letters == ALL)
    await desk.close()
    assert len(do(control, store.untold, Teller.EVIDENCE)) == 3


def test_the_steps_of_a_gate_that_died_while_it_told_are_told_by_another(control: Control) -> None:
    begun(control, wanted())
    first = do(control, store.claim, Teller.EVIDENCE, "dead", NOW)
    assert [each.what for each in first] == ["ask"]
    assert do(control, store.claim, Teller.EVIDENCE, "other", NOW + store.LEASE - 1) == ()
    assert do(control, store.claim, Teller.LETTERS, "other", NOW) == first
    assert do(control, store.claim, Teller.EVIDENCE, "other", NOW + store.LEASE) == first
    do(control, store.told, Teller.EVIDENCE, "other", 1)
    assert do(control, store.claim, Teller.EVIDENCE, "dead", NOW + store.LEASE) == ()
    assert do(control, store.untold, Teller.EVIDENCE) == ()


def test_a_clock_that_is_set_back_prolongs_nothing_and_one_set_forward_ends_early() -> None:
    wall, since = [1000.0], [5.0]
    clock = Clock(lambda: wall[0], lambda: since[0])
    assert clock() == 1000.0
    wall[0], since[0] = 400.0, 65.0
    assert clock() == 1060.0
    wall[0] = 5000.0
    assert clock() == 5000.0
    wall[0], since[0] = 1061.0, 66.0
    assert clock() == 1061.0
