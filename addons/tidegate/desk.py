"""Where requests wait for people: asks the store, wakes who waits, and tells the evidence. One for each process.

Whoever decides in this process (the admin listener) calls ``decide``, ``revoke`` and ``review``, and who waits is awake
in the same turn of the loop. What other processes decide (``tidegate approvals``) is seen because every step is a row
of one table: while anything is held, and only then, its end is read every ``POLL`` seconds. The same look finds clients
that have left and times that are up, so that a held request costs no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tidegate.approvals.letters import Letter, Occasion
from tidegate.approvals.machine import Refusal, needs
from tidegate.approvals.spec import Answer, Ask, OnGone, Person, State
from tidegate.state import approvals as store
from tidegate.state.approvals import Asked, Item, Said, Step, Teller
from tidegate.state.control import Control, StateError
from tidegate.telling import Telling

log = logging.getLogger("tidegate")

POLL = 0.05
"""Seconds between two looks while something is held: a twentieth of what a person notices, a read of microseconds."""

KEPT = 400 * 86400.0
"""Seconds that an item is kept once it is over, as long as ``state.retain`` by default; its steps stay for good."""


class Ending(enum.Enum):
    """Why a held request goes on."""

    DECIDED = enum.auto()
    TIME_UP = enum.auto()
    GONE = enum.auto()
    KILLED = enum.auto()
    STOPPED = enum.auto()


class Waiter(Protocol):
    """What waits, as the desk looks at it."""

    def gone(self) -> bool:
        """Say whether nobody waits for the answer any more."""

    def killed(self) -> bool:
        """Say whether somebody has ended it by hand. May also put right what somebody has done to it."""


class Evidence(Protocol):
    """Who records what happened: the recorder."""

    def note(self, kind: str, detail: str) -> asyncio.Future[None]:
        """Record an event; await the result. May raise at once."""


@dataclass(slots=True, eq=False)
class _Held:
    approval: str
    until: float
    waiter: Waiter
    done: asyncio.Future[Ending] = field(repr=False)

    def wake(self, why: Ending) -> None:
        if not self.done.done():
            self.done.set_result(why)


class Clock:
    """Unix time that never goes back, nor stands still, while the process runs.

    The wall clock counts across processes and restarts; if somebody sets it back, a deadline comes all the same.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def __call__(self) -> float:
        """Return the time in seconds."""
        return max(self._wall(), self._monotonic() + self._ahead)


class Desk:
    """The approvals of one process. Methods are called from one event loop; errors of the store are ``StateError``.

    ``plain`` takes out of people's words what a rule finds in them, before callers and the evidence get them.
    ``notify`` is told of each step too, with the item as it is by then. Of several gates one tells.
    """

    def __init__(
        self,
        control: Control,
        evidence: Evidence | None = None,
        clock: Clock | None = None,
        plain: Callable[[str], str] = str,
        notify: Callable[[Step, Item], None] | None = None,
    ) -> None:
        self.now = clock or Clock()
        self._control = control
        self._evidence = evidence
        self.plain = plain
        self._notify = notify
        self._held: dict[str, list[_Held]] = {}
        self._seen = -1
        self._polling: asyncio.Task[None] | None = None
        self._tellings: list[Telling] = []
        if evidence is not None:
            self._tellings.append(Telling(control, Teller.EVIDENCE, self._record, self.now))
        if notify is not None:
            self._tellings.append(Telling(control, Teller.LETTERS, self._write_to_people, self.now))
        self._closed = False

    # requests ────────────────────────────────────────────────────────────────

    async def ask(self, wanted: Ask) -> Asked:
        """Find or begin the item of a request."""
        found: Asked = await self._write(lambda db, now: store.ask(db, wanted, now))
        if found.item is not None and wanted.break_glass and not found.joined:
            log.warning("%s", _loud(found.item, wanted.caller.name))
        return found

    async def wait(self, item: Item, seconds: float, waiter: Waiter) -> Ending:
        """Wait until an item is decided, ``seconds`` at most, or until nobody waits for it any more."""
        if self._closed:
            return Ending.STOPPED
        loop = asyncio.get_running_loop()
        held = _Held(item.id, time.monotonic() + seconds, waiter, loop.create_future())
        self._held.setdefault(item.id, []).append(held)
        try:
            if self._seen < 0:
                self._seen = await self._read(store.last)
            if self._polling is None:
                self._polling = loop.create_task(self._poll())
            latest = await self._read(lambda db: store.get(db, item.id))  # it may have been decided before we listened
            if latest is None or latest.state is not State.PENDING:
                return Ending.DECIDED
            return await held.done
        finally:
            mine = self._held[item.id]
            mine.remove(held)
            if not mine:
                del self._held[item.id]

    async def latest(self, item: Item) -> Item:
        """Return an item as it is now; what is over by now is told so."""
        await self._write(store.expire)
        found: Item | None = await self._read(lambda db: store.get(db, item.id))
        return found or item

    async def use(self, item: Item, wanted: Ask) -> Item | None:
        """Take the right to send a request, if it is there; ``None``: it is not, or another request has taken it."""
        used: Item | None = await self._write(lambda db, now: store.use(db, item.id, wanted, now))
        return used

    async def give_back(self, approval: str) -> None:
        """Give back the right to send that ``use`` took, because nothing was sent, and nothing will be."""
        await self._write(lambda db, now: store.give_back(db, approval, now))

    async def left(self, item: Item, wanted: Ask) -> None:
        """Note that nobody waits for an item in this process: it stays for the retry, or ends, as the policy says."""
        if wanted.on_gone is OnGone.CANCEL and item.id not in self._held:
            await self.end(item, State.CANCELLED, wanted.caller.name, "the client has left")

    async def end(self, item: Item, state: State, actor: str, reason: str) -> None:
        """End a pending item."""
        await self._write(lambda db, now: store.end(db, item.id, state, actor, reason, now))
        self._wake(item.id)

    # people ──────────────────────────────────────────────────────────────────

    async def decide(self, approval: str, person: Person, answer: Answer, reason: str) -> Item | Refusal:
        """Count a vote. ``reason`` is kept as it is: ``approving.line`` makes it fit to be kept."""
        return await self._changed(approval, lambda db, now: store.vote(db, approval, person, answer, reason, now))

    async def break_glass(self, approval: str, person: Person, reason: str) -> Item | Refusal:
        """Let a pending item pass on one person's word."""
        found = await self._changed(approval, lambda db, now: store.break_glass(db, approval, person, reason, now))
        if isinstance(found, Item):
            log.warning("%s", _loud(found, person.name))
        return found

    async def revoke(self, approval: str, person: Person, reason: str) -> Item | Refusal:
        """Take back a yes that was not used up."""
        if not reason:
            return Refusal.WORDLESS
        return await self._changed(approval, lambda db, now: store.revoke(db, approval, person, reason, now))

    async def review(self, approval: str, person: Person, reason: str) -> Item | Refusal:
        """Note that somebody has looked at what was let pass by breaking the glass."""
        if not reason:
            return Refusal.WORDLESS
        return await self._changed(approval, lambda db, now: store.review(db, approval, person, reason, now))

    async def find(self, beginning: str) -> tuple[Item, ...]:
        """Return the items whose ids begin like this."""
        found: tuple[Item, ...] = await self._read(lambda db: store.find(db, beginning))
        return found

    async def list(self, states: tuple[State, ...] = (), limit: int = 200) -> tuple[Item, ...]:
        """Return items, newest first; what is over by now is told so."""
        await self._write(store.expire)
        found: tuple[Item, ...] = await self._read(lambda db: store.listed(db, states, limit))
        return found

    async def history(self, approval: str) -> tuple[tuple[Said, ...], tuple[Step, ...]]:
        """Return the votes on an item, and everything that happened to it."""
        found: tuple[tuple[Said, ...], tuple[Step, ...]] = await self._read(
            lambda db: (store.votes(db, approval), store.steps(db, approval))
        )
        return found

    async def last(self) -> int:
        """Return the number of the latest step."""
        found: int = await self._read(store.last)
        return found

    async def since(self, seq: int) -> tuple[Step, ...]:
        """Return what happened after a step, by whatever process; a thousand steps at most."""
        found: tuple[Step, ...] = await self._read(lambda db: store.since(db, seq))
        return found

    # the process ─────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Tell the evidence what happened while no gate ran, and forget what is long over."""
        await self._write(lambda db, now: store.forget(db, now - KEPT))

    async def close(self) -> None:
        """Wake everybody who waits, and tell the evidence what it does not have yet."""
        self._closed = True
        for each in [one for held in self._held.values() for one in held]:
            each.wake(Ending.STOPPED)
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        for each_told in self._tellings:
            await each_told.close()

    @property
    def waiting(self) -> int:
        """How many requests are held in this process."""
        return sum(map(len, self._held.values()))

    async def _changed(self, approval: str, work: Callable[[Any, float], Item | Refusal]) -> Item | Refusal:
        found: Item | Refusal = await self._write(work)
        if isinstance(found, Item) and found.state is not State.PENDING:
            self._wake(approval)
        return found

    async def _write(self, work: Callable[[Any, float], Any]) -> Any:
        now = self.now()
        try:
            return await asyncio.wrap_future(self._control.write(lambda db: work(db, now)))
        finally:
            self._tell()

    async def _read(self, work: Callable[[Any], Any]) -> Any:
        done: Future[Any] = self._control.read(work)
        return await asyncio.wrap_future(done)

    def _wake(self, approval: str) -> None:
        for each in self._held.get(approval, ()):
            each.wake(Ending.DECIDED)

    async def _poll(self) -> None:
        """Look at everything that waits, until nothing does."""
        try:
            while self._held:
                await asyncio.sleep(POLL)
                self._look()
                with contextlib.suppress(StateError):  # who waits is told when its time is up
                    await self._hear()
        finally:
            self._polling = None

    def _look(self) -> None:
        now = time.monotonic()
        for each in [one for held in self._held.values() for one in held]:
            try:
                why = _ending(each, now)
            except Exception as bug:  # noqa: BLE001 - one that cannot be looked at ends; the others go on waiting
                log.error("tidegate failed over a held request: %s", type(bug).__name__)
                why = Ending.KILLED
            if why is not None:
                each.wake(why)

    async def _hear(self) -> None:
        """Wake who waits for what has been decided, here or in another process."""
        seen = self._seen
        steps: tuple[Step, ...] = await self._read(lambda db: store.since(db, seen))
        for each in steps:
            self._seen = max(self._seen, each.seq)
            if each.became != State.PENDING:
                self._wake(each.approval)
        if steps:
            self._tell()

    # who is told ─────────────────────────────────────────────────────────────

    def _tell(self) -> None:
        for each in self._tellings:
            each.wake()

    async def _record(self, steps: tuple[Step, ...]) -> None:
        assert self._evidence is not None
        await asyncio.gather(*[self._evidence.note("approval", self._evident(each)) for each in steps])

    async def _write_to_people(self, steps: tuple[Step, ...]) -> None:
        assert self._notify is not None
        for step in steps:
            item: Item | None = await self._read(functools.partial(store.get, approval=step.approval))
            if item is not None:
                self._notify(step, item)

    def _evident(self, step: Step) -> str:
        """Write a step as the evidence keeps it: who, when, why, by which policy; never anything that a rule finds."""
        return json.dumps({**asdict(step), "reason": self.plain(step.reason)}, ensure_ascii=False)


def _ending(held: _Held, now: float) -> Ending | None:
    """Say why something waits no longer, apart from a decision."""
    if held.waiter.gone():
        return Ending.GONE
    if held.waiter.killed():
        return Ending.KILLED
    return Ending.TIME_UP if held.until <= now else None


def as_json(item: Item, now: float) -> dict[str, Any]:
    """Return what may be shown of an item, ready to be written as JSON. The request itself is ``item.shown``."""
    return {
        "id": item.id,
        "state": str(item.state),
        "caller": item.asker.name,
        "groups": sorted(item.asker.groups),
        "connection": item.connection,
        "endpoint": item.endpoint,
        "method": item.method,
        "path": item.path,
        "model": item.model,
        "why": list(item.labels),
        "reason": item.reason,
        "approvals": [asdict(each) for each in item.demands],
        "findings": [dict(zip(("rule", "class", "where", "action"), each, strict=True)) for each in item.findings],
        "scope": str(item.scope),
        "uses": item.uses,
        "policy": item.policy_sha,
        "asked": item.asked,
        "decide_by": item.decide_by,
        "use_by": item.use_by,
        "left": left(item, now),
        "broke_glass": item.broke_glass or item.review is not None,
        "review": item.review,
    }


_OCCASIONS = {"ask": Occasion.ASKED, "break glass": Occasion.GLASS}
_DECIDED = frozenset({State.APPROVED, State.DENIED, State.EXPIRED, State.REVOKED})


def letter(step: Step, item: Item, page: str) -> Letter | None:
    """Write the letter about a step; ``None`` where nobody needs one. ``page`` is where the pages are, or empty."""
    event = _OCCASIONS.get(step.what)
    if event is None and step.what == step.became and step.became in _DECIDED:
        event = Occasion.DECIDED
    if event is None:
        return None
    return Letter(
        event=event,
        approval=item.id,
        state=step.became,
        caller=item.asker.name,
        connection=item.connection,
        model=item.model,
        why=item.labels,
        needs=needs(item.demands),
        by=step.actor,
        at=step.at,
        decide_by=item.decide_by,
        link=f"{page}/approvals/{item.id}" if page else "",
        step=step.seq,
    )


def left(item: Item, now: float) -> float | None:
    """Return the seconds in which an item can still be decided on, or used; ``None`` once it is over."""
    until = {State.PENDING: item.decide_by, State.APPROVED: item.use_by}.get(item.state)
    return None if until is None else max(0.0, until - now)


def _loud(item: Item, person: str) -> str:
    return json.dumps(
        {
            "event": "break_glass",
            "approval": item.id,
            "by": person,
            "caller": item.asker.name,
            "connection": item.connection,
            "why": list(item.labels),
        }
    )
