"""May this caller do this? The semantics are Cedar's, in the clothes of YAML; all of it is pure.

Laws: the default is deny; any deny rule that matches wins; the order of rules means nothing; ONE allow rule must cover
connection, endpoint, model and every other condition together, allows do not add up; where several allow rules cover a
request, the tightest of their limits counts; what is not known (a model, a number of tokens, an address) meets no
condition that allows and every condition that denies.

Two phases: ``admit`` on the request head, before the body is read, and ``permit`` on what the body asks for. A rule
that only observes changes neither; what it would have changed is told beside the decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.identity import conditions
from tidegate.identity.names import NAME_CHARACTERS, matches, named, refused
from tidegate.identity.rulesets import Left, RuleSet, covers_model, widest
from tidegate.model import (
    NOWHERE,
    AllowRule,
    Asked,
    Caller,
    Conditions,
    Denial,
    DenyRule,
    Grant,
    Reason,
    Route,
    Situation,
)

if TYPE_CHECKING:
    from tidegate.policy.policy import Permissions, Policy

__all__ = ["NAME_CHARACTERS", "admit", "matches", "permit", "roles_of"]


def admit(policy: Policy, route: Route, caller: Caller, situation: Situation = NOWHERE) -> Grant | Denial:
    """Decide on the head. The grant's ``request_bytes`` is the most that any rule could still allow."""
    found = policy.permissions.at(route.connection.name, route.endpoint, roles_of(policy, caller))
    if found.conditional:
        return _admit(found, route, caller, situation)
    if found.refused or not found.allows:
        return _not_granted(route)
    return _grant(found, found.allows, found.denies, route, caller, situation)


def permit(grant: Grant, asked: Asked) -> Grant | Denial:
    """Decide on what the body asks for.

    The grant returned holds the rules that cover the request and the tightest of their limits; its ``request_bytes``
    may be lower than before, so the length of the body is compared again.
    """
    found = _permit(grant, asked)
    return _observe(grant, asked, found) if grant.observing or grant.observed else found


def roles_of(policy: Policy, caller: Caller) -> tuple[str, ...]:
    """Return the roles bound to a caller: by group, subject, ``identity:*`` and claims; each once, sorted."""
    permissions = policy.permissions
    found: set[str] = set()
    found.update(permissions.subjects.get(f"{caller.identity}:{caller.subject}", ()))
    found.update(permissions.subjects.get(f"{caller.identity}:*", ()))
    for group in caller.groups:
        found.update(permissions.groups.get(group, ()))
    if permissions.claims:
        found.update(_by_claims(permissions, caller))
    return tuple(sorted(found))


def _by_claims(permissions: Permissions, caller: Caller) -> Iterable[str]:
    """Return the roles of bindings that ask for claims; each was filed under the values of one of its claims."""
    for name, value in caller.claims:
        for binding in permissions.claims.get((caller.identity, name, value), ()):
            if binding.binds(caller):
                yield from binding.roles


# ── on the head ──────────────────────────────────────────────────────────────


def _grant(
    found: RuleSet,
    allows: tuple[AllowRule, ...],
    denies: tuple[DenyRule, ...],
    route: Route,
    caller: Caller,
    situation: Situation,
) -> Grant:
    limit, most = route.connection.request_bytes, found.widest if allows is found.allows else widest(allows)
    return Grant(
        route=route,
        caller=caller,
        roles=found.roles,
        allows=allows,
        denies=denies,
        max_output_tokens=None,
        request_bytes=limit if most is None or most > limit else most,
        situation=situation,
        index=found if found.large else None,
    )


def _admit(found: RuleSet, route: Route, caller: Caller, situation: Situation) -> Grant | Denial:
    """Decide where rules ask for more of the head than connection and endpoint."""
    left = found.left(tuple([applies(rule, caller, situation) for rule in found.asks]))
    decided = _on_head(found, left, route, caller, situation)
    if not left.observing:
        return decided
    observed: list[str] = []
    observing: list[AllowRule | DenyRule] = []
    for rule in left.observing:
        if isinstance(rule, AllowRule) and isinstance(decided, Denial):
            observed.append(f"{rule.id}: would let the head pass")
        elif isinstance(rule, DenyRule) and rule.bare and isinstance(decided, Grant):
            observed.append(f"{rule.id}: would deny ({_by_deny(rule, route).reason})")
        elif isinstance(decided, Grant):
            observing.append(rule)
    if isinstance(decided, Denial):
        return replace(decided, observed=tuple(observed))
    return replace(decided, observed=tuple(observed), observing=tuple(observing))


def _on_head(found: RuleSet, left: Left, route: Route, caller: Caller, situation: Situation) -> Grant | Denial:
    if found.refused:
        return _not_granted(route)
    first = next((rule for rule in left.denies if rule.bare), None)
    if first is not None:
        return _by_deny(first, route)
    if not left.allows:
        return _nearest(found.allows, route, caller, situation)
    same = len(left.allows) == len(found.allows)
    return _grant(found, found.allows if same else left.allows, left.denies, route, caller, situation)


def applies(rule: AllowRule | DenyRule, caller: Caller, situation: Situation) -> bool:
    """Whether what a rule asks of the head of a request holds."""
    if isinstance(rule, AllowRule):
        return rule.head is None or conditions.failed(rule.head, caller, situation) is None
    if rule.head is not None and not conditions.denies(rule.head, caller, situation):
        return False
    return rule.unless is None or conditions.failed(rule.unless, caller, situation) is not None


def _nearest(allows: Sequence[AllowRule], route: Route, caller: Caller, situation: Situation) -> Denial:
    """Say what the rule that came nearest lacked: the one whose conditions held the longest."""
    kinds = list(conditions.Failed)
    missing = [
        (kind, rule.head)
        for rule in allows
        if rule.head is not None and (kind := conditions.failed(rule.head, caller, situation)) is not None
    ]
    if not missing:
        return _not_granted(route)
    kind, head = max(missing, key=lambda each: kinds.index(each[0]))
    return _not_granted(route) if kind is conditions.Failed.ADDRESS else conditions.denial(kind, head)


def _by_deny(rule: DenyRule, route: Route) -> Denial:
    """Say why a deny rule that asks nothing of the body refuses."""
    if rule.unless is not None:
        return Denial(
            Reason.STRENGTH_DENIED if rule.unless.strength or rule.unless.max_age else _reason(rule.unless),
            403,
            "Your roles deny this unless the call comes as they ask: how you signed in, when, and from where.",
        )
    if rule.head is not None and (rule.head.windows or rule.head.sources):
        kind = conditions.Failed.WINDOW if rule.head.windows else conditions.Failed.SOURCE
        return conditions.denial(kind, rule.head)
    return _not_granted(route)


def _reason(head: Conditions) -> Reason:
    return Reason.SOURCE_DENIED if head.sources and not head.windows else Reason.TIME_DENIED


# ── on the body ──────────────────────────────────────────────────────────────


def _permit(grant: Grant, asked: Asked) -> Grant | Denial:
    allows: Sequence[AllowRule] = grant.allows
    denies: Sequence[DenyRule] = grant.denies
    if grant.index is not None:
        here, against = grant.index.for_model(asked.model)
        allows = [rule for rule in allows if id(rule) in here]
        denies = [rule for rule in denies if id(rule) in against]
    bodies: list[int] = []
    for deny in denies:
        denial = _denied(deny, asked)
        if denial is None:
            continue
        if deny.above_body is None:
            return denial
        bodies.append(deny.above_body)
    covering = tuple(rule for rule in allows if covers(rule, asked))
    if not covering:
        return _uncovered(allows, asked)
    denial = _over(covering, asked)
    if denial is not None:
        return denial
    tokens = min((r.max_output_tokens for r in covering if r.max_output_tokens is not None), default=None)
    if tokens is not None and (asked.max_output is None or asked.max_output > tokens):
        return Denial(
            Reason.OUTPUT_LIMIT,
            403,
            f"Your role allows at most {tokens} output tokens here; ask for no more than that.",
        )
    bodies += [rule.body for rule in covering if rule.body is not None]
    if tokens is None and not bodies and len(covering) == len(grant.allows):
        return grant
    return replace(grant, allows=covering, max_output_tokens=tokens, request_bytes=min((*bodies, grant.request_bytes)))


def covers(rule: AllowRule, asked: Asked) -> bool:
    """Whether an allow rule covers what a body asks for: its model, whether it streams, what it holds beside text."""
    if rule.models is not None and (asked.model is None or not named(rule.models, asked.model)):
        return False
    if rule.stream is not None and rule.stream is not asked.stream:
        return False
    return rule.modalities is None or (asked.modalities is not None and asked.modalities <= rule.modalities)


def _over(covering: Iterable[AllowRule], asked: Asked) -> Denial | None:
    """Compare what is asked for with the limits of the rules that cover it, but for tokens and bytes."""
    for rule in covering:
        if rule.tools is not None and not all(named(rule.tools, tool) for tool in asked.tools):
            return _tool_denied()
        if rule.called is not None and (
            asked.called is None or not all(named(rule.called, tool) for tool in asked.called)
        ):
            return _called_denied()
        if rule.choices is not None and (asked.choices is None or asked.choices > rule.choices):
            return _choices(rule.choices)
    return None


def _denied(rule: DenyRule, asked: Asked) -> Denial | None:
    """Ask one deny rule; what is not known meets its conditions."""
    if rule.models is not None and asked.model is not None and not refused(rule.models, asked.model):
        return None
    if rule.stream is not None and rule.stream is not asked.stream:
        return None
    if rule.modalities is not None and asked.modalities is not None and asked.modalities.isdisjoint(rule.modalities):
        return None
    if rule.tools is not None and not any(refused(rule.tools, tool) for tool in asked.tools):
        return None
    known = rule.called is not None and asked.called is not None
    if known and not any(refused(rule.called or (), tool) for tool in asked.called or ()):
        return None
    if rule.above_tokens is not None and asked.max_output is not None and asked.max_output <= rule.above_tokens:
        return None
    if rule.above_choices is not None and asked.choices is not None and asked.choices <= rule.above_choices:
        return None
    return _why_denied(rule, asked)


def _why_denied(rule: DenyRule, asked: Asked) -> Denial:
    if rule.tools is not None:
        return _tool_denied()
    if rule.called is not None:
        return _called_denied()
    if rule.above_tokens is not None:
        return Denial(
            Reason.OUTPUT_LIMIT, 403, f"Your roles deny more than {rule.above_tokens} output tokens here; ask for less."
        )
    if rule.above_choices is not None:
        return _choices(rule.above_choices)
    if rule.modalities is not None:
        return _modality_denied()
    if rule.stream is not None:
        return _stream_denied(asked)
    return _model_denied(asked)


def _uncovered(allows: Iterable[AllowRule], asked: Asked) -> Denial:
    """Say what the rule that came nearest did not cover."""
    near = [rule for rule in allows if covers_model(rule, asked.model)]
    if any(rule.stream in (None, asked.stream) for rule in near):
        return _modality_denied()
    return _stream_denied(asked) if near else _model_denied(asked)


def _observe(grant: Grant, asked: Asked, found: Grant | Denial) -> Grant | Denial:
    """Tell what each rule that only observes would have changed, had it counted."""
    told: list[str] = []
    for rule in grant.observing:
        if isinstance(rule, AllowRule):
            other = replace(grant, allows=(*grant.allows, rule), observing=(), index=None)
        else:
            other = replace(grant, denies=(*grant.denies, rule), observing=(), index=None)
        would = _permit(other, asked)
        if isinstance(would, Denial) and isinstance(found, Grant):
            told.append(f"{rule.id}: would deny ({would.reason})")
        elif isinstance(found, Denial) and isinstance(would, Grant):
            told.append(f"{rule.id}: would allow")
        elif isinstance(found, Grant) and isinstance(would, Grant) and would.request_bytes < found.request_bytes:
            told.append(f"{rule.id}: would limit the body to {would.request_bytes} bytes")
    return replace(found, observed=(*grant.observed, *told))


def _not_granted(route: Route) -> Denial:
    return Denial(
        Reason.NOT_GRANTED,
        403,
        f"Your roles do not allow the endpoint {route.endpoint} of the connection {route.connection.name}.",
    )


def _model_denied(asked: Asked) -> Denial:
    if asked.model is None:
        return Denial(Reason.MODEL_DENIED, 403, "The request names no model, and your roles are bound to models.")
    return Denial(Reason.MODEL_DENIED, 403, "Your roles do not allow the model this request names.")


def _tool_denied() -> Denial:
    return Denial(
        Reason.TOOL_DENIED, 403, "Your roles do not allow a tool that this request offers to the model or calls."
    )


def _called_denied() -> Denial:
    return Denial(
        Reason.TOOL_DENIED,
        403,
        "Your roles do not allow a tool that this request demands, or that was called earlier in its conversation.",
    )


def _modality_denied() -> Denial:
    return Denial(
        Reason.MODALITY_DENIED,
        403,
        "Your roles do not allow a kind of content that this request holds or asks for; send what the role lists.",
    )


def _stream_denied(asked: Asked) -> Denial:
    wanted = "a streamed answer; ask without stream" if asked.stream else "a whole answer; ask with stream"
    return Denial(Reason.STREAM_DENIED, 403, f"Your roles do not allow {wanted}.")


def _choices(most: int) -> Denial:
    return Denial(Reason.CHOICES_LIMIT, 403, f"Your roles allow at most {most} answers to one request; ask for fewer.")
