"""The life of an approval, as a table and a few questions. Pure: the store asks it inside its transaction.

    pending ──▶ approved ──▶ consumed | expired | revoked
       └──────▶ denied | expired | cancelled | superseded

What has ended never changes, but for one step: a right that was taken, and then not used to send anything, is given
back (consumed ──▶ approved). A vote counts once for each person, whatever groups he is in and however often he votes;
the first one stands. One no ends an item. Nobody decides on what he asked for himself, or on what a program asks for
that he owns, whoever he is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tidegate.approvals.spec import Answer, Person, State

STEPS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.APPROVED, State.DENIED, State.EXPIRED, State.CANCELLED, State.SUPERSEDED}),
    State.APPROVED: frozenset({State.CONSUMED, State.EXPIRED, State.REVOKED}),
}
"""Every step there is; a state that is no key has ended."""

UNSENT: Mapping[State, frozenset[State]] = {State.CONSUMED: frozenset({State.APPROVED})}
"""What only an exchange may do that took the right to send, and has sent nothing."""

REASON_CHARACTERS = 20
"""Characters of a reason with which glass may be broken: less says nothing to whoever reviews it."""


class Illegal(Exception):
    """A step that is not in the table was about to be taken: a bug."""


class Refusal(enum.StrEnum):
    """Why somebody may not decide, or not now."""

    UNKNOWN = "there is no approval with this id"
    OVER = "it has been decided, or its time is up"
    OWN = "nobody decides on his own request"
    OWNER = "nobody decides on the request of a program that he owns"
    STRANGER = "you are in none of the groups that may decide on it"
    STALE = "your sign-in is too old for this decision; sign in again"
    VOTED = "you have voted on it already, and the first vote stands"
    NO_GLASS = "you are in none of the groups that may break the glass for it"
    NO_REASON = "a reason of at least 20 characters is needed to break the glass"
    WORDLESS = "a reason is needed"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one need of an item asks of its approvers, as the policy said when it was asked."""

    name: str
    groups: tuple[str, ...]
    every: bool
    quorum: int
    max_age: float | None
    break_glass: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said."""

    person: Person
    answer: Answer


def check(before: State, after: State, *, unsent: bool = False) -> None:
    """Raise ``Illegal`` for a step that does not exist. ``unsent``: it gives back a right to send."""
    if after not in (UNSENT if unsent else STEPS).get(before, ()):
        raise Illegal(f"{before} -> {after}")


def is_over(state: State) -> bool:
    """Say whether a state has no step after it."""
    return state not in STEPS


def may_vote(
    demands: Sequence[Demand], asker: Person, owners: Sequence[str], voter: Person, now: float
) -> Refusal | None:
    """Say why somebody may not decide on an item; ``None``: he may. ``now`` is a Unix time."""
    refusal = _is_own(asker, owners, voter)
    if refusal is not None:
        return refusal
    mine = [each for each in demands if voter.groups & set(each.groups)]
    if not mine:
        return Refusal.STRANGER
    if any(_is_stale(each, voter, now) for each in mine):
        return Refusal.STALE
    return None


def may_break(
    demands: Sequence[Demand], asker: Person, owners: Sequence[str], person: Person, reason: str
) -> Refusal | None:
    """Say why somebody may not let an item pass alone. The asker may: that is what the glass is for."""
    if person.name != asker.name and person.name in owners:
        return Refusal.OWNER
    if not all(person.groups & set(each.break_glass) for each in demands):
        return Refusal.NO_GLASS
    return Refusal.NO_REASON if len(reason.strip()) < REASON_CHARACTERS else None


def outcome(demands: Sequence[Demand], votes: Iterable[Vote]) -> State:
    """Say what the votes come to: each person's first."""
    first: dict[tuple[str, str], Vote] = {}
    for each in votes:
        first.setdefault((each.person.identity, each.person.subject), each)
    if any(each.answer is Answer.NO for each in first.values()):
        return State.DENIED
    people = [each.person for each in first.values()]
    return State.APPROVED if demands and all(met(each, people) for each in demands) else State.PENDING


def met(demand: Demand, people: Sequence[Person]) -> bool:
    """Say whether these distinct people are enough. Where each group must agree nobody stands for two of them."""
    able = [each for each in people if each.groups & set(demand.groups)]
    if len(able) < demand.quorum:
        return False
    return not demand.every or _is_seated(demand.groups, able)


def needs(demands: Sequence[Demand]) -> str:
    """Say in words who decides."""
    return "; ".join(_need(each) for each in demands)


def _need(demand: Demand) -> str:
    who = (" and " if demand.every else " or ").join(demand.groups)
    return who if demand.every or demand.quorum == 1 else f"{demand.quorum} people of {who}"


def _is_own(asker: Person, owners: Sequence[str], voter: Person) -> Refusal | None:
    if voter.name == asker.name:
        return Refusal.OWN
    return Refusal.OWNER if voter.name in owners else None


def _is_stale(demand: Demand, voter: Person, now: float) -> bool:
    if demand.max_age is None:
        return False
    return voter.authenticated is None or now - voter.authenticated > demand.max_age


def _is_seated(groups: Sequence[str], people: Sequence[Person]) -> bool:
    """Say whether each group can have a person of its own (Kuhn's algorithm; a handful of each)."""
    seat: dict[int, str] = {}

    def find(group: str, seen: set[int]) -> bool:
        for index, person in enumerate(people):
            if group not in person.groups or index in seen:
                continue
            seen.add(index)
            if index not in seat or find(seat[index], seen):
                seat[index] = group
                return True
        return False

    return all(find(group, set()) for group in groups)
