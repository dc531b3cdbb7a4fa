"""What a judged request takes out of the budgets of the rules that allow it, and how a refusal is told. Pure.

``crossing`` says when: after everything else was decided, before anything is recorded as sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

from tidegate.dialects.counting import Counting
from tidegate.dialects.spec import Dialect, Endpoint
from tidegate.identity.permission import matches
from tidegate.limits import budgets, usage
from tidegate.limits.budgets import Budget, Charge, Metric, Order, Per, Refused, Seat
from tidegate.limits.prices import Price
from tidegate.limits.usage import Meter, Usage
from tidegate.model import Asked, Denial, Finding, Grant, Reason
from tidegate.policy.policy import Policy

COUNTERS = 64
"""Counters of one budget that one request may take from: a caller with more groups than that is refused."""

LOST = Denial(
    Reason.STATE_UNAVAILABLE, 503, "The gateway cannot find out what is left of your budget, so it goes no further."
)
_UNPRICED = Denial(
    Reason.MODEL_UNPRICED,
    403,
    "Your role has a budget for spending, and the price table has no price for the model this request names.",
)
_NO_MODEL = Denial(
    Reason.MODEL_UNPRICED, 403, "Your role has a budget for spending, and this request names no model, so no price."
)
_TOO_MANY_GROUPS = Denial(
    Reason.BUDGET_EXHAUSTED, 429, "You are in more groups than one budget of this gateway can count."
)


def meter(dialect: Dialect, endpoint: Endpoint) -> Meter:
    """Return what reads the tokens of an answer."""
    return Meter(dialect.usage.counts.get(endpoint.name))


def free(dialect: Dialect, endpoint: Endpoint) -> bool:
    """Say whether an endpoint takes no tokens: it asks no model."""
    return endpoint.name in dialect.usage.free or (not endpoint.body and endpoint.socket is None)


def order(
    policy: Policy, dialect: Dialect, grant: Grant, asked: Asked, size: int, findings: Iterable[Finding]
) -> Order | Denial | None:
    """Say what a request takes, with a body of ``size`` bytes; ``None`` where none of its rules has a budget."""
    named: dict[str, dict[str, None]] = {}
    for rule in grant.allows:
        for each in rule.budgets:
            named.setdefault(each, {})[rule.role] = None
    if not named:
        return None
    endpoint = dialect.endpoints[grant.route.endpoint]
    costs = not free(dialect, endpoint)
    counting = dialect.usage.counts.get(endpoint.name, Counting())
    read = usage.of_body(size) if costs else 0
    price = None if policy.prices is None else policy.prices.of(asked.model, matches)
    charges: list[Charge] = []
    seats: list[Seat] = []
    clean = not any(findings)
    for name, roles in named.items():
        budget = policy.budgets[name]
        if Metric.SPEND in budget.limits and costs and price is None:
            return _UNPRICED if asked.model is not None else _NO_MODEL
        written = _written(budget, asked, endpoint) if costs and counting.answers else 0
        holders = _holders(policy, budget, grant, asked, tuple(roles))
        if len(holders) > COUNTERS:
            return _TOO_MANY_GROUPS
        for parts in holders:
            _take(budget, parts, (read, written), price, charges, seats, clean=clean)
    return Order(tuple(charges), tuple(seats))


def _take(
    budget: Budget,
    parts: tuple[str, ...],
    tokens: tuple[int, int],
    price: Price | None,
    charges: list[Charge],
    seats: list[Seat],
    *,
    clean: bool,
) -> None:
    """Add what is taken from one holder's counters."""
    read, written = tokens
    who = ", ".join(
        f"{per}={part if clean or per is not Per.MODEL else '[REDACTED]'}"
        for per, part in zip(budget.per, parts, strict=True)
    )
    who = who or "everyone"
    whole = {Metric.REQUESTS: 1, Metric.TOKENS: read + written, Metric.SPEND: price.of(read, written) if price else 0}
    kept = {Metric.REQUESTS: 1, Metric.TOKENS: read, Metric.SPEND: price.of(read, 0) if price else 0}
    for metric, limit in budget.limits.items():
        key = budgets.key(budget.name, metric, f"{limit.window:g}", *budget.per, *parts)
        charges.append(Charge(budget.name, who, key, metric, limit, whole[metric], kept[metric]))
    if budget.concurrent is not None:
        seats.append(Seat(budget.name, who, budgets.key(budget.name, "seat", *budget.per, *parts), budget.concurrent))


def _written(budget: Budget, asked: Asked, endpoint: Endpoint) -> int:
    """Say how many tokens the answer may have: as many as the request asks for, or as the budget takes it to have."""
    return budget.answer if asked.max_output is None or endpoint.socket is not None else asked.max_output


def _holders(
    policy: Policy, budget: Budget, grant: Grant, asked: Asked, roles: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """List whose counters a budget has for a request. Of groups those count that the policy binds to a role."""
    caller = grant.caller
    bound = tuple(sorted(each for each in caller.groups if each in policy.permissions.groups))
    values: Mapping[Per, tuple[str, ...]] = {
        Per.CALLER: (f"{caller.identity}:{caller.subject}",),
        Per.GROUP: bound or ("",),
        Per.ROLE: roles,
        Per.CONNECTION: (grant.route.connection.name,),
        Per.MODEL: ((asked.model or "").lower(),),
    }
    return list(itertools.islice(itertools.product(*(values[each] for each in budget.per)), COUNTERS + 1))


def refusal(refused: Refused) -> Denial:
    """Tell a caller which budget has no room, and when it will."""
    wait = None if refused.wait is None else max(1, math.ceil(refused.wait))
    if refused.metric is None:
        return Denial(
            Reason.TOO_MANY_CONCURRENT,
            429,
            f"Too many of your requests are under way (budget {refused.budget}); wait until one has ended.",
            retry_after=wait,
        )
    assert refused.limit is not None
    short = refused.metric is not Metric.SPEND and refused.limit.window <= 3600
    reason = Reason.RATE_LIMITED if short else Reason.BUDGET_EXHAUSTED
    what = {Metric.REQUESTS: "requests", Metric.TOKENS: "tokens", Metric.SPEND: "spending"}[refused.metric]
    if wait is None:
        told = f"This request may take more {what} than the budget {refused.budget} has in all; ask for less."
    else:
        told = f"The budget {refused.budget} has not enough {what} left for this request; try again in {wait} s."
    return Denial(reason, 429, told, retry_after=wait)


def cost(taken: Usage, price: Price) -> float:
    """Return what tokens cost, in the currency of the price table."""
    return price.of(taken.input, taken.output, taken.cached) / budgets.UNIT


def used(charge: Charge, taken: Usage, price: Price | None) -> int:
    """Return what of a charge was really used."""
    if charge.metric is Metric.REQUESTS:
        return 1
    if charge.metric is Metric.TOKENS:
        return taken.input + taken.output
    return price.of(taken.input, taken.output, taken.cached) if price is not None else charge.amount
