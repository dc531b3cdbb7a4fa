"""May this caller do this? The semantics are Cedar's, in the clothes of YAML; all of it is pure.

Laws: the default is deny; any deny rule that matches wins; the order of rules means nothing; ONE allow rule must cover
connection, endpoint and model together, allows do not add up; where several allow rules cover a request, the tightest
of their limits counts; what is not known (a model, a number of tokens) meets no condition that allows and every
condition that denies.

Two phases: ``admit`` on the request head, before the body is read, and ``permit`` on what the body asks for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.model import AllowRule, Asked, Caller, Denial, DenyRule, Grant, Reason, Route

if TYPE_CHECKING:
    from tidegate.policy.policy import Policy

NAME_CHARACTERS = 256  # the longest published model and tool names are under 128 characters


def admit(policy: Policy, route: Route, caller: Caller) -> Grant | Denial:
    """Decide on connection and endpoint. The grant's ``request_bytes`` is the most that any rule could still allow."""
    permissions = policy.permissions
    place = permissions.places.get((route.connection.name, route.endpoint), {})
    roles: list[str] = []
    allows: list[AllowRule] = []
    denies: list[DenyRule] = []
    for role in roles_of(policy, caller):
        rules = place.get(role)
        if rules is None:
            continue
        if rules.refused:
            return _not_granted(route)
        roles.append(role)
        allows.extend(rules.allows)
        denies.extend(rules.denies)
    if not allows:
        return _not_granted(route)
    most = max(route.connection.request_bytes if rule.body is None else rule.body for rule in allows)
    return Grant(
        route=route,
        caller=caller,
        roles=tuple(roles),
        allows=tuple(allows),
        denies=tuple(denies),
        max_output_tokens=None,
        request_bytes=min(most, route.connection.request_bytes),
    )


def permit(grant: Grant, asked: Asked) -> Grant | Denial:
    """Decide on model, tools and output tokens.

    The grant returned holds the rules that cover the request and the tightest of their limits; its ``request_bytes``
    may be lower than before, so the length of the body is compared again.
    """
    denial = _denied(grant.denies, asked)
    if denial is not None:
        return denial
    covering = tuple(rule for rule in grant.allows if rule.models is None or _model_in(rule.models, asked.model))
    if not covering:
        return _model_denied(asked)
    for rule in covering:
        if rule.tools is not None and not all(_named(rule.tools, tool) for tool in asked.tools):
            return _tool_denied()
    tokens = min((r.max_output_tokens for r in covering if r.max_output_tokens is not None), default=None)
    if tokens is not None and (asked.max_output is None or asked.max_output > tokens):
        return Denial(
            Reason.OUTPUT_LIMIT,
            403,
            f"Your role allows at most {tokens} output tokens here; ask for no more than that.",
        )
    bodies = [rule.body for rule in covering if rule.body is not None]
    if tokens is None and not bodies and len(covering) == len(grant.allows):
        return grant
    return replace(grant, allows=covering, max_output_tokens=tokens, request_bytes=min((*bodies, grant.request_bytes)))


def roles_of(policy: Policy, caller: Caller) -> tuple[str, ...]:
    """Return the roles bound to a caller, by group, by subject, and by ``identity:*``; each once, sorted."""
    permissions = policy.permissions
    found: set[str] = set()
    found.update(permissions.subjects.get(f"{caller.identity}:{caller.subject}", ()))
    found.update(permissions.subjects.get(f"{caller.identity}:*", ()))
    for group in caller.groups:
        found.update(permissions.groups.get(group, ()))
    return tuple(sorted(found))


@functools.lru_cache(maxsize=4096)  # names are plain, so short, before they come here
def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers a whole name: ``*`` is any text, everything else is itself. Linear in the name."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    last = rest.pop()
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in rest:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _plain(name: str) -> bool:
    """Whether a name has the form of a name: an upstream that trims or folds it must not see another one."""
    return 0 < len(name) <= NAME_CHARACTERS and name.isascii() and name.isprintable() and " " not in name


def _named(patterns: Iterable[str], name: str) -> bool:
    return _plain(name) and any(matches(pattern, name) for pattern in patterns)


def _refused(patterns: Iterable[str], name: str) -> bool:
    """A deny pattern also covers other spellings in upper and lower case, and any name that is not plain."""
    return not _plain(name) or any(matches(pattern.lower(), name.lower()) for pattern in patterns)


def _model_in(models: Iterable[str], model: str | None) -> bool:
    return model is not None and _named(models, model)


def _denied(denies: Iterable[DenyRule], asked: Asked) -> Denial | None:
    """Apply the deny rules; an unknown model meets every condition on models."""
    for rule in denies:
        if rule.models is not None and asked.model is not None and not _refused(rule.models, asked.model):
            continue
        if rule.tools is None:
            return _model_denied(asked)
        if any(_refused(rule.tools, tool) for tool in asked.tools):
            return _tool_denied()
    return None


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
