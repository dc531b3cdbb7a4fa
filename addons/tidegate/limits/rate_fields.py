"""What is left of a caller's budgets, as header fields of an answer: the family's own, and those of the IETF. Pure.

``RateLimit`` and ``RateLimit-Policy`` are those of draft-ietf-httpapi-ratelimit-headers: the budget's name, what it
allows (q) in how many seconds (w), what is left (r) and when all of it is back (t). Spending is told there alone.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence

from tidegate.dialects.counting import RateHeaders, ResetForm
from tidegate.limits.budgets import UNIT, Metric, Standing

PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit")
"""Header fields of an upstream that speak of the gate's own account there, which is no caller's business."""


def own(name: str) -> bool:
    """Say whether a header field (lower case) tells limits: the upstream's are replaced by the budgets'."""
    return name.startswith(PREFIXES)


def fields(standings: Sequence[Standing], names: RateHeaders, now: float) -> tuple[tuple[str, str], ...]:
    """Write what is left; of several budgets the families' fields tell the one with the smallest share left."""
    found: list[tuple[str, str]] = []
    for metric, each in ((Metric.REQUESTS, names.requests), (Metric.TOKENS, names.tokens)):
        tight = tightest(one for one in standings if one.metric is metric)
        if tight is not None:
            found += [
                (each.limit, str(tight.limit.most)),
                (each.remaining, str(tight.left)),
                (each.reset, _reset(names.reset, tight.reset, now)),
            ]
    if standings:
        found.append(("ratelimit-policy", ", ".join(map(_policy, standings))))
        found.append(("ratelimit", ", ".join(map(_left, standings))))
    return tuple(found)


def tightest(standings: Iterable[Standing]) -> Standing | None:
    """Return the standing with the smallest share left."""
    return min(standings, key=lambda each: (each.left / each.limit.most, each.left), default=None)


def _reset(form: ResetForm, seconds: float, now: float) -> str:
    if form is ResetForm.SECONDS:
        return str(math.ceil(seconds))
    if form is ResetForm.TIME:
        at = datetime.datetime.fromtimestamp(math.ceil(now + seconds), datetime.UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _name(each: Standing) -> str:
    return f'"{each.budget}-{each.metric}"'


def _amount(each: Standing, parts: int) -> int:
    """Return an amount as a whole number: of spending the whole units of money."""
    return parts // UNIT if each.metric is Metric.SPEND else parts


def _policy(each: Standing) -> str:
    return f"{_name(each)};q={_amount(each, each.limit.most)};w={math.ceil(each.limit.window)}"


def _left(each: Standing) -> str:
    return f"{_name(each)};r={_amount(each, each.left)};t={math.ceil(each.reset)}"
