"""Approvals in the control store: every change is one transaction that compares what it found with what it expects.

The functions here are work for ``Control.write`` and ``Control.read``: each takes the connection, and runs inside a
transaction that is not its own. ``now`` is a Unix time in seconds; the rules are those of ``approvals.machine``.
"""

from __future__ import annotations

import enum
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tidegate.approvals import machine
from tidegate.approvals.digest import KEY_BYTES, digest, fingerprint
from tidegate.approvals.machine import Demand, Refusal, Vote
from tidegate.approvals.spec import Answer, Ask, Person, Scope, State

GATE = "tidegate"
"""The actor of steps that nobody takes: time does, or a new policy."""

REVIEW_OPEN = "open"

LEASE = 30.0
"""Seconds for which steps are one gate's to tell: a recording takes a thousand of them in less than one."""


class Teller(enum.StrEnum):
    """Who is told of every step."""

    EVIDENCE = "evidence"
    LETTERS = "letters"


@dataclass(frozen=True, slots=True)
class Item:
    """An approval as it is kept. Times are Unix seconds. ``findings`` are rule, class, place and action."""

    id: str
    state: State
    asker: Person
    connection: str
    endpoint: str
    method: str
    path: str
    model: str | None
    demands: tuple[Demand, ...]
    labels: tuple[str, ...]
    findings: tuple[tuple[str, str, str, str], ...]
    reason: str
    policy_sha: str
    scope: Scope
    asked: float
    decide_by: float
    use_by: float | None
    uses: int
    owners: tuple[str, ...]
    review: str | None
    broke_glass: bool
    shown: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Said:
    """A vote with its words."""

    person: Person
    answer: Answer
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Step:
    """One row of what happened."""

    seq: int
    approval: str
    at: float
    what: str
    was: str
    became: str
    actor: str
    reason: str
    policy: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking. ``usable``: a yes is there already; ``over``: somebody has said no to this very request.

    Without ``item`` nothing was kept: ``why`` says which limit was reached, or why the glass stays whole.
    """

    item: Item | None
    usable: bool = False
    over: bool = False
    joined: bool = False
    why: str = ""


def ask(db: Any, wanted: Ask, now: float) -> Asked:
    """Find the item that this request may use or join, or begin one."""
    expire(db, now)
    key = _key(db)
    exact, loose = digest(key, wanted.bound, wanted.policy_sha), fingerprint(key, wanted.bound)
    for row in _all(db, "print = ? AND digest <> ? AND state = 'pending'", (loose, exact)):
        _move(db, row, State.SUPERSEDED, GATE, "the policy has changed", now)
    for row in _all(db, "digest = ? AND state IN ('approved', 'pending')", (exact,)):
        if row.state is State.PENDING and wanted.break_glass:
            broken = break_glass(db, row.id, wanted.caller, wanted.reason, now)
            return Asked(None, why=str(broken)) if isinstance(broken, Refusal) else Asked(broken, usable=True)
        return Asked(row, usable=row.state is State.APPROVED, joined=True)
    for row in _all(
        db,
        "identity = ? AND subject = ? AND connection = ? AND policy = ? AND state = 'approved' AND scope = 'data'",
        (wanted.caller.identity, wanted.caller.subject, wanted.connection, wanted.policy_sha),
    ):
        if set(wanted.labels) <= set(row.labels):
            return Asked(row, usable=True, joined=True)
    for row in _all(db, "digest = ? AND state = 'denied' AND decide_by > ?", (exact, now)):
        return Asked(row, over=True, joined=True)
    if wanted.break_glass:
        return _break(db, wanted, (exact, loose), now)
    counts = db.execute(
        "SELECT count(*), total(identity = ? AND subject = ?) FROM approval WHERE state = 'pending'",
        (wanted.caller.identity, wanted.caller.subject),
    ).fetchone()
    if counts[1] >= wanted.per_caller:
        return Asked(None, why=f"{wanted.per_caller} requests of yours are waiting for approval already")
    if counts[0] >= wanted.in_all:
        return Asked(None, why=f"{wanted.in_all} requests are waiting for approval already")
    return Asked(_begin(db, wanted, (exact, loose), now))


def vote(db: Any, approval: str, voter: Person, answer: Answer, reason: str, now: float) -> Item | Refusal:
    """Count a person's vote; return the item as it is then, or why the vote does not count."""
    item = _standing(db, approval, State.PENDING, now)
    if isinstance(item, Refusal):
        return item
    refusal = machine.may_vote(item.demands, item.asker, item.owners, voter, now)
    if refusal is not None:
        return refusal
    groups = json.dumps(sorted(voter.groups))
    row = (approval, voter.identity, voter.subject, groups, str(answer), reason, now)
    kept = db.execute("INSERT INTO approval_vote VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
    if kept.rowcount != 1:
        return Refusal.VOTED
    _note(db, item, f"vote {answer}", item.state, (voter.name, reason), now)
    became = machine.outcome(item.demands, [Vote(each.person, each.answer) for each in votes(db, approval)])
    if became is State.PENDING:
        return item
    return _move(db, item, became, voter.name, reason, now) or Refusal.OVER


def break_glass(db: Any, approval: str, person: Person, reason: str, now: float) -> Item | Refusal:
    """Let a pending item pass on one person's word, for somebody to look at afterwards."""
    item = _standing(db, approval, State.PENDING, now)
    if isinstance(item, Refusal):
        return item
    refusal = machine.may_break(item.demands, item.asker, item.owners, person, reason)
    if refusal is not None:
        return refusal
    db.execute("UPDATE approval SET review = ? WHERE id = ?", (REVIEW_OPEN, approval))
    _note(db, item, "break glass", item.state, (person.name, reason), now)
    return _move(db, item, State.APPROVED, person.name, reason, now) or Refusal.OVER


def revoke(db: Any, approval: str, person: Person, reason: str, now: float) -> Item | Refusal:
    """Take back a yes that was not used up. Who may approve may revoke."""
    item = _standing(db, approval, State.APPROVED, now)
    if isinstance(item, Refusal):
        return item
    refusal = machine.may_vote(item.demands, item.asker, item.owners, person, now)
    return refusal or _move(db, item, State.REVOKED, person.name, reason, now) or Refusal.OVER


def review(db: Any, approval: str, person: Person, reason: str, now: float) -> Item | Refusal:
    """Note that somebody who may approve has looked at an item for which glass was broken."""
    item = get(db, approval)
    if item is None:
        return Refusal.UNKNOWN
    if item.review != REVIEW_OPEN:
        return Refusal.OVER
    refusal = machine.may_vote(item.demands, item.asker, item.owners, person, now)
    if refusal is None and any(each.actor == person.name for each in steps(db, approval)):
        refusal = Refusal.OWN  # who broke the glass does not review it
    if refusal is not None:
        return refusal
    db.execute("UPDATE approval SET review = ? WHERE id = ?", (f"{person.name}: {reason}", approval))
    _note(db, item, "review", item.state, (person.name, reason), now)
    return get(db, approval) or Refusal.UNKNOWN


def use(db: Any, approval: str, wanted: Ask, now: float) -> Item | None:
    """Take the right to send this request, if it is there: the only way to send. ``None``: it is not."""
    expire(db, now)
    item = get(db, approval)
    if item is None or item.state is not State.APPROVED or item.policy_sha != wanted.policy_sha:
        return None
    if item.scope is Scope.DATA:
        mine = (item.asker.name, item.connection) == (wanted.caller.name, wanted.connection)
        if not mine or not set(wanted.labels) <= set(item.labels):
            return None
        args: tuple[object, ...] = (approval, now)
        fits = ""
    else:
        args = (approval, now, digest(_key(db), wanted.bound, wanted.policy_sha))
        fits = " AND digest = ?"
    becomes = State.CONSUMED if item.scope is Scope.ONCE else State.APPROVED
    done = db.execute(
        f"UPDATE approval SET state = '{becomes}', version = version + 1, uses = uses + 1 "  # noqa: S608 - our words
        f"WHERE id = ? AND state = 'approved' AND use_by > ?{fits}",
        args,
    )
    if done.rowcount != 1:
        return None
    _note(db, item, "use", becomes, (wanted.caller.name, ""), now)
    return get(db, approval)


def give_back(db: Any, approval: str, now: float) -> Item | None:
    """Undo a use of which nothing was sent, and nothing will be; ``None`` where its time is up, or it is asked anew."""
    item = get(db, approval)
    if item is None or item.state is not State.CONSUMED:
        return None
    machine.check(item.state, State.APPROVED, unsent=True)
    done = db.execute(
        "UPDATE approval SET state = 'approved', version = version + 1, uses = uses - 1 "
        "WHERE id = ? AND state = 'consumed' AND use_by > ? AND NOT EXISTS "
        "(SELECT 1 FROM approval AS o WHERE o.digest = approval.digest AND o.state IN ('pending', 'approved'))",
        (approval, now),
    )
    if done.rowcount != 1:
        return None
    _note(db, item, "not sent", State.APPROVED, (GATE, ""), now)
    return get(db, approval)


def end(db: Any, approval: str, state: State, actor: str, reason: str, now: float) -> Item | None:
    """End a pending item: cancelled, superseded. ``None`` where it is no longer pending."""
    item = get(db, approval)
    if item is None or item.state is not State.PENDING:
        return None
    return _move(db, item, state, actor, reason, now)


def expire(db: Any, now: float) -> None:
    """End what nobody decided on, or used, in time."""
    for row in _all(db, "state = 'pending' AND decide_by <= ?", (now,)):
        _move(db, row, State.EXPIRED, GATE, "nobody decided in time", now)
    for row in _all(db, "state = 'approved' AND use_by <= ?", (now,)):
        _move(db, row, State.EXPIRED, GATE, "it was not used in time" if not row.uses else "its time is up", now)


def forget(db: Any, before: float) -> None:
    """Delete items that were asked before a time and are over; their steps stay."""
    db.execute("DELETE FROM approval WHERE asked < ? AND state NOT IN ('pending', 'approved')", (before,))


# ── reading ──────────────────────────────────────────────────────────────────


def get(db: Any, approval: str) -> Item | None:
    """Return an item."""
    return next(iter(_all(db, "id = ?", (approval,))), None)


def find(db: Any, beginning: str) -> tuple[Item, ...]:
    """Return the items whose ids begin like this: all of them, so that nobody takes one for another."""
    return _all(db, "substr(id, 1, ?) = ?", (len(beginning), beginning))


def listed(db: Any, states: Sequence[State] = (), limit: int = 200) -> tuple[Item, ...]:
    """Return items in these states (in any, if none is given), newest first."""
    marks = ", ".join("?" * len(states))
    chosen = f"state IN ({marks})" if states else "TRUE"
    return _all(db, f"{chosen} ORDER BY asked DESC, id DESC LIMIT ?", (*map(str, states), limit))


def votes(db: Any, approval: str) -> tuple[Said, ...]:
    """Return the votes on an item, in the order they came."""
    rows = db.execute(
        "SELECT identity, subject, groups, answer, reason, at FROM approval_vote WHERE approval = ? ORDER BY at, rowid",
        (approval,),
    )
    return tuple(Said(Person(r[0], r[1], frozenset(json.loads(r[2]))), Answer(r[3]), r[4], r[5]) for r in rows)


def steps(db: Any, approval: str) -> tuple[Step, ...]:
    """Return everything that happened to an item."""
    rows = db.execute("SELECT * FROM approval_step WHERE approval = ? ORDER BY seq", (approval,))
    return tuple(Step(*row) for row in rows)


def since(db: Any, seq: int, limit: int = 1000) -> tuple[Step, ...]:
    """Return what happened after a step."""
    return tuple(
        Step(*row) for row in db.execute("SELECT * FROM approval_step WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
    )


def last(db: Any) -> int:
    """Return the number of the latest step."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM approval_step").fetchone()[0])


def untold(db: Any, teller: Teller) -> tuple[Step, ...]:
    """Return the steps that a receiver does not have yet."""
    return since(db, db.execute("SELECT seq FROM approval_teller WHERE name = ?", (str(teller),)).fetchone()[0])


def claim(db: Any, teller: Teller, owner: str, now: float) -> tuple[Step, ...]:
    """Take the steps that a receiver does not have yet, to tell them; none where another gate is at it."""
    done = db.execute(
        "UPDATE approval_teller SET owner = ?, until = ? WHERE name = ? AND (owner = ? OR until <= ?)",
        (owner, now + LEASE, str(teller), owner, now),
    )
    return untold(db, teller) if done.rowcount == 1 else ()


def told(db: Any, teller: Teller, owner: str, seq: int) -> None:
    """Note that a receiver has every step up to this one, and let other gates tell it the next."""
    db.execute("UPDATE approval_teller SET seq = max(seq, ?) WHERE name = ?", (seq, str(teller)))
    db.execute("UPDATE approval_teller SET until = 0.0 WHERE name = ? AND owner = ?", (str(teller), owner))


# ── inside ───────────────────────────────────────────────────────────────────


def _standing(db: Any, approval: str, state: State, now: float) -> Item | Refusal:
    """Return an item that is in this state now; else why it is not."""
    expire(db, now)
    item = get(db, approval)
    if item is None:
        return Refusal.UNKNOWN
    return item if item.state is state else Refusal.OVER


def _key(db: Any) -> bytes:
    """Return the key of this store; the first who asks makes it."""
    db.execute("INSERT INTO approval_key VALUES (1, ?) ON CONFLICT DO NOTHING", (secrets.token_bytes(KEY_BYTES),))
    return bytes(db.execute("SELECT key FROM approval_key").fetchone()[0])


def _begin(db: Any, wanted: Ask, prints: tuple[bytes, bytes], now: float) -> Item:
    new = f"apr_{secrets.token_hex(5)}"
    demands = [
        asdict(Demand(one.name, one.groups, one.every, one.quorum, one.max_age, one.break_glass))
        for one in (each.approval for each in wanted.needs)
    ]
    data = {
        "groups": sorted(wanted.caller.groups),
        "endpoint": wanted.endpoint,
        "method": wanted.method,
        "path": wanted.path,
        "model": wanted.model,
        "demands": demands,
        "labels": wanted.labels,
        "findings": wanted.findings,
        "reason": wanted.reason,
        "owners": wanted.owners,
        "broke_glass": wanted.break_glass,
    }
    db.execute(
        "INSERT INTO approval VALUES (?, ?, ?, ?, ?, ?, ?, 'pending', 1, ?, ?, ?, ?, NULL, 0, ?, ?, ?)",
        (
            new, *prints, wanted.caller.identity, wanted.caller.subject, wanted.connection, wanted.policy_sha,
            str(wanted.scope), now, now + wanted.decide_within, wanted.use_within,
            REVIEW_OPEN if wanted.break_glass else None, json.dumps(data), wanted.shown,
        ),
    )  # fmt: skip
    item = get(db, new)
    assert item is not None
    _note(db, item, "ask", State.PENDING, (wanted.caller.name, wanted.reason), now, was="")
    return item


def _break(db: Any, wanted: Ask, prints: tuple[bytes, bytes], now: float) -> Asked:
    demands = [
        Demand(one.name, one.groups, one.every, one.quorum, one.max_age, one.break_glass)
        for one in (each.approval for each in wanted.needs)
    ]
    refusal = machine.may_break(demands, wanted.caller, wanted.owners, wanted.caller, wanted.reason)
    if refusal is not None:
        return Asked(None, why=str(refusal))
    item = _begin(db, wanted, prints, now)
    _note(db, item, "break glass", item.state, (wanted.caller.name, wanted.reason), now)
    return Asked(_move(db, item, State.APPROVED, wanted.caller.name, wanted.reason, now), usable=True)


def _move(db: Any, item: Item, state: State, actor: str, reason: str, now: float) -> Item | None:
    """Take one step, if the item still is where it was seen; ``None``: somebody else was first."""
    machine.check(item.state, state)
    done = db.execute(
        "UPDATE approval SET state = ?, version = version + 1, "
        "use_by = CASE WHEN ? = 'approved' THEN ? + use_within ELSE use_by END WHERE id = ? AND state = ?",
        (str(state), str(state), now, item.id, str(item.state)),
    )
    if done.rowcount != 1:
        return None
    _note(db, item, str(state), state, (actor, reason), now)
    return get(db, item.id)


def _note(
    db: Any, item: Item, what: str, became: State, who: tuple[str, str], now: float, was: str | None = None
) -> None:
    row = (item.id, now, what, str(item.state) if was is None else was, str(became), *who, item.policy_sha)
    db.execute(
        "INSERT INTO approval_step (approval, at, what, was, became, actor, reason, policy) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )


_COLUMNS = (
    "id, state, identity, subject, connection, policy, scope, asked, decide_by, use_by, uses, review, data, shown"
)


def _all(db: Any, where: str, arguments: Iterable[object]) -> tuple[Item, ...]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM approval WHERE {where}", tuple(arguments)).fetchall()  # noqa: S608
    return tuple(map(_item, rows))


def _item(row: Sequence[Any]) -> Item:
    data = json.loads(row[12])
    demands = tuple(
        Demand(**{**each, "groups": tuple(each["groups"]), "break_glass": tuple(each["break_glass"])})
        for each in data["demands"]
    )
    return Item(
        id=row[0],
        state=State(row[1]),
        asker=Person(row[2], row[3], frozenset(data["groups"])),
        connection=row[4],
        endpoint=data["endpoint"],
        method=data["method"],
        path=data["path"],
        model=data["model"],
        demands=demands,
        labels=tuple(data["labels"]),
        findings=tuple((e[0], e[1], e[2], e[3]) for e in data["findings"]),
        reason=data["reason"],
        policy_sha=row[5],
        scope=Scope(row[6]),
        asked=row[7],
        decide_by=row[8],
        use_by=row[9],
        uses=row[10],
        owners=tuple(data["owners"]),
        review=row[11],
        broke_glass=bool(data["broke_glass"]),
        shown=row[13],
    )
