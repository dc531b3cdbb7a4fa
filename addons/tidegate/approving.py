"""What people have to approve of a judged request, and what they may see of it. Pure; ``crossing`` says when.

An approved request is judged three times, each time by the same rules: as the policy says, which masks what needs
approval and everything else that acts; as an approver may see it, without anything that was found; and as it is sent,
with what was approved in it. So whoever forgets to ask people sends a masked request, never the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidegate import headers
from tidegate.approvals.digest import bound
from tidegate.approvals.needs import Facts, needed
from tidegate.approvals.spec import Ask, Need, Person
from tidegate.dialects.spec import Endpoint
from tidegate.inspection.engine import Engine
from tidegate.judging import NAMES, Judged, readings
from tidegate.model import Action, Caller, Denial, Direction, Finding, Head, Reason
from tidegate.policy.policy import Policy

REASON = "x-tidegate-reason"
"""Where a caller says why. It never goes upstream."""
HOW = "x-tidegate-approval"
"""Where a caller says that he does not wait (``async``), or breaks the glass (``break-glass``); in a refusal the id of
the approval."""
ASYNC, BREAK_GLASS = "async", "break-glass"
REASON_CHARACTERS = 500
HIDDEN = "[REDACTED]"

PATH = Denial(
    Reason.FINDING,
    403,
    "Blocked by policy: the address or a header name holds what would need approval, and nobody could be shown it.",
)
IMPOSSIBLE = Denial(
    Reason.APPROVAL_IMPOSSIBLE,
    403,
    "This needs approval, and nobody can be asked in the middle of a connection; send it as a request of its own.",
)


def needs(policy: Policy, endpoint: Endpoint, judged: Judged, size: int, at: float | None) -> tuple[Need, ...]:
    """Return what must be approved before a judged request, or message, may pass. ``size`` counts its bytes."""
    assert policy.approvals is not None
    assert judged.asked is not None
    made = bool(endpoint.made_of.inner.paths)
    names = endpoint.calls is None and endpoint.body and bool(endpoint.paths) and endpoint.made_of.may_name_model
    return needed(
        policy.approvals,
        Facts(
            asked=judged.asked,
            findings=[each for each in judged.findings if not is_beside(each)],
            approve=judged.approve,
            size=size,
            at=at,
            models=names or made or bool(endpoint.asked.model.paths),
            counts=made or bool(endpoint.asked.max_output.paths),
        ),
    )


def unheld(policy: Policy, endpoint: Endpoint, judged: Judged, size: int, at: float | None) -> Judged:
    """Refuse what would need approval where nobody can be asked: a message in the middle of a connection."""
    if policy.approvals is None or judged.denial is not None:
        return judged
    acts = any(each.action is Action.APPROVE for each in judged.findings)
    wanted = acts or needs(policy, endpoint, judged, size, at)
    return replace(judged, denial=IMPOSSIBLE, stage="hold") if wanted else judged


def is_beside(finding: Finding) -> bool:
    """Say whether something was found in a header field, which is left out, so that nobody need be asked."""
    return finding.where.startswith("header ")


def is_unshowable(judged: Judged) -> bool:
    """Say whether something that needs approval stands where nothing can be masked: path and header names."""
    return any(each.action is Action.APPROVE and each.where in ("path", NAMES) for each in judged.findings)


def make(
    policy: Policy, caller: Caller, head: Head, judged: Judged, wanted: tuple[Need, ...], *, data: bytes
) -> Ask | Denial:
    """Make the question to people. Denies a request that must say why and does not.

    ``data`` is the body as it was received.
    """
    approvals, route, asked = policy.approvals, judged.grant.route, judged.asked
    assert approvals is not None
    assert asked is not None
    person = Person(caller.identity, caller.subject, caller.groups, caller.authenticated)
    told = [value for name, value in head.headers if name == HOW]
    reason = plain(policy.engine, " ".join(value for name, value in head.headers if name == REASON))
    names = [each.approval.name for each in wanted]
    if not reason and any(each.approval.reason for each in wanted):
        return Denial(
            Reason.APPROVAL_REASON,
            403,
            f"This request needs approval ({', '.join(names)}), and whoever approves wants to know why: "
            f"say so in the header {REASON}.",
        )
    path, model = route.path, asked.model
    return Ask(
        caller=person,
        connection=route.connection.name,
        endpoint=route.endpoint,
        method=head.method,
        path=HIDDEN if policy.engine.find_many([readings(path)]) else path,
        model=None if model is None else plain(policy.engine, model),
        needs=wanted,
        findings=tuple((each.rule, each.cls, each.where, str(each.action)) for each in judged.findings[:200]),
        reason=reason,
        policy_sha=policy.sha256,
        owners=approvals.owners.get(person.name, ()),
        per_caller=approvals.per_caller,
        in_all=approvals.in_all,
        bound=bound(person, route.connection.name, (head.method, head.path), headers.upstream(head.headers), data),
        at_once=ASYNC in told,
        break_glass=BREAK_GLASS in told,
    )


def plain(engine: Engine, text: str) -> str:
    """Return a person's words as they may be kept: in one line, not endless, and nothing in them that a rule finds."""
    words = line(text)
    return HIDDEN if words and engine.find_many([words]) else words


def line(text: str) -> str:
    """Return a person's words in one line of printable characters, not endless."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:REASON_CHARACTERS]


type Decisions = Mapping[Direction, Mapping[str, Action]]


def for_people(policy: Policy) -> Policy:
    """Return the policy that masks everything it finds in prompts: what is left may be shown."""
    return _changed(policy, {act: Action.REDACT for act in Action if act is not Action.ALLOW})


def as_approved(policy: Policy) -> Policy:
    """Return the policy that lets pass what it would have approved."""
    return _changed(policy, {Action.APPROVE: Action.FLAG})


def _changed(policy: Policy, other: Mapping[Action, Action]) -> Policy:
    scored = {rule.id for rule in policy.engine.rules if rule.score is not None}

    def change(decisions: Decisions) -> Decisions:
        prompt = {
            rule: Action.FLAG if rule in scored and act in other else other.get(act, act)
            for rule, act in decisions[Direction.PROMPT].items()
        }
        return {**decisions, Direction.PROMPT: prompt}

    own = policy.inspections  # parts of a request may be judged by actions of roles: those are changed alike
    changed = None if own is None else replace(own, decide=lambda actions: change(own.decide(actions)))
    return replace(policy, decisions=change(policy.decisions), inspections=changed)
