"""The values of approvals: what a policy says of them, what a request needs, what an approver sees. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.approvals.letters import Form, Occasion

PER_CALLER = 3
"""Pending items of one caller: a program that asks for more is in a loop, and its approvers stop reading."""
IN_ALL = 200
"""Pending items in all: what people can look through in a morning."""


class State(enum.StrEnum):
    """Where an item stands. ``machine`` says which step may follow which."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    CONSUMED = "consumed"
    REVOKED = "revoked"


class Scope(enum.StrEnum):
    """What a yes lets pass: the request once; the same request again; whatever this caller asks of the same kind."""

    ONCE = "once"
    REQUEST = "request"
    DATA = "data"


class OnGone(enum.StrEnum):
    """What becomes of a pending item whose client has left."""

    KEEP = "keep"
    CANCEL = "cancel"


class Sends(enum.StrEnum):
    """What goes upstream of the findings that were approved: they themselves, or what masks them."""

    APPROVED = "approved"
    REDACTED = "redacted"


class Answer(enum.StrEnum):
    """What an approver says."""

    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of the week in which nobody needs to be asked. Minutes count from midnight in ``zone``; Monday is 0."""

    days: frozenset[int]
    start: int
    end: int
    zone: str


@dataclass(frozen=True, slots=True)
class Triggers:
    """What makes a request need an approval; each by itself is enough. Tools and models are patterns with ``*``.

    ``output_tokens`` and ``body``: more than that. ``hours``: outside of them.
    """

    classes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    output_tokens: int | None = None
    body: int | None = None
    hours: Hours | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """One entry of ``approvals``. ``every``: one person for each of the groups, else anybody of any of them.

    Times are in seconds. ``break_glass`` are the groups that may let their own request pass; ``max_age`` is how long
    ago an approver may have signed in.
    """

    name: str
    groups: tuple[str, ...]
    every: bool = False
    quorum: int = 1
    decide_within: float = 900.0
    use_within: float = 300.0
    scope: Scope = Scope.ONCE
    reason: bool = False
    on_gone: OnGone = OnGone.KEEP
    sends: Sends = Sends.APPROVED
    when: Triggers = Triggers()
    break_glass: tuple[str, ...] = ()
    max_age: float | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a letter is posted. ``url`` and ``secret`` are references: who knows the address may write there."""

    url: str = field(repr=False)
    secret: str | None = field(repr=False)
    form: Form
    events: frozenset[Occasion]


@dataclass(frozen=True, slots=True)
class Mail:
    """To whom a letter is mailed, by which server. ``password`` is a reference."""

    host: str
    port: int
    sender: str
    to: tuple[str, ...]
    user: str | None
    password: str | None = field(repr=False)
    events: frozenset[Occasion]


Target = Webhook | Mail


@dataclass(frozen=True, slots=True)
class Approvals:
    """The section ``approvals``: entries by name, how many items may be pending, and who owns which caller.

    ``notify`` says who is told of what.
    """

    entries: Mapping[str, Approval]
    per_caller: int = PER_CALLER
    in_all: int = IN_ALL
    owners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notify: tuple[Target, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether the time of day matters."""
        return any(each.when.hours is not None for each in self.entries.values())


@dataclass(frozen=True, slots=True)
class Need:
    """One approval that a request needs, and why: ``labels`` are words of the policy, never of a request."""

    approval: Approval
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, or who decides: ``(identity, subject)`` is one person, whatever groups he is in."""

    identity: str
    subject: str
    groups: frozenset[str] = frozenset()
    authenticated: float | None = None

    @property
    def name(self) -> str:
        """The subject with its identity, as policies write it."""
        return f"{self.identity}:{self.subject}"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that needs approval, without anything that was found in it.

    ``bound`` is what the digest covers, ``shown`` the body as an approver may see it: ``None`` where it cannot be
    shown. ``at_once``: the client does not wait.
    """

    caller: Person
    connection: str
    endpoint: str
    method: str
    path: str
    model: str | None
    needs: tuple[Need, ...]
    findings: tuple[tuple[str, str, str, str], ...]
    reason: str
    policy_sha: str
    owners: tuple[str, ...] = ()
    per_caller: int = PER_CALLER
    in_all: int = IN_ALL
    bound: tuple[bytes, ...] = field(default=(), repr=False)
    shown: bytes | None = field(default=None, repr=False)
    at_once: bool = False
    break_glass: bool = False

    @property
    def decide_within(self) -> float:
        """Seconds in which somebody must have decided: the shortest of all that is needed."""
        return min(each.approval.decide_within for each in self.needs)

    @property
    def use_within(self) -> float:
        """Seconds after the yes in which it counts: the shortest of all that is needed."""
        return min(each.approval.use_within for each in self.needs)

    @property
    def scope(self) -> Scope:
        """What a yes lets pass: the narrowest of all that is needed."""
        return min((each.approval.scope for each in self.needs), key=list(Scope).index)

    @property
    def on_gone(self) -> OnGone:
        """What becomes of it when its client leaves."""
        cancels = any(each.approval.on_gone is OnGone.CANCEL for each in self.needs)
        return OnGone.CANCEL if cancels else OnGone.KEEP

    @property
    def labels(self) -> tuple[str, ...]:
        """Everything that made it need approval."""
        return tuple(dict.fromkeys(f"{each.approval.name} {label}" for each in self.needs for label in each.labels))
