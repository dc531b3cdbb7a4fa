"""Do the conditions of a rule on the head of a request hold? Pure: clock and address are part of the situation.

Law: what is not known fails. A condition of an allow rule then does not hold, one of a deny rule does, and ``unless``
of a deny rule does not: each of the three leads away from sending.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote

from tidegate.identity.names import matches
from tidegate.model import Caller, Conditions, Denial, Reason, Situation, Window

SKEW = 300.0
"""Seconds by which a sign-in may lie in the future: what an issuer's clock may be ahead (claims allow as much)."""
DAY = 24 * 60


class Failed(enum.StrEnum):
    """The first condition on a head that does not hold."""

    ADDRESS = "endpoints"
    WINDOW = "when"
    SOURCE = "sources"
    STRENGTH = "strength"
    AGE = "max_age"


def failed(conditions: Conditions, caller: Caller, situation: Situation) -> Failed | None:
    """Return the first condition that does not hold, or that cannot be told; ``None`` where all hold."""
    for kind, given, holds in _CHECKS:
        if given(conditions) and holds(conditions, caller, situation) is not True:
            return kind
    return None


def denies(conditions: Conditions, caller: Caller, situation: Situation) -> bool:
    """Whether the conditions of a deny rule hold, or cannot be told."""
    return all(
        not given(conditions) or holds(conditions, caller, situation) is not False for _, given, holds in _CHECKS
    )


def in_window(window: Window, now: float) -> bool:
    """Whether a Unix time lies in a window, by the clock on the wall of its zone."""
    local = datetime.fromtimestamp(now, UTC).astimezone(window.zone)
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    return (day in window.days and minute >= window.start) or ((day - 1) % 7 in window.days and minute < window.end)


def denial(kind: Failed, conditions: Conditions) -> Denial:
    """Say which condition the caller's roles could not be used for; the sentence is public."""
    if kind is Failed.WINDOW:
        return Denial(Reason.TIME_DENIED, 403, "Your roles do not allow this at this time; try again within the hours.")
    if kind is Failed.SOURCE:
        return Denial(Reason.SOURCE_DENIED, 403, "Your roles do not allow this from the network you call from.")
    if kind is Failed.STRENGTH:
        return Denial(
            Reason.STRENGTH_DENIED,
            403,
            f"This asks for a stronger sign-in ({' or '.join(conditions.strength)}); sign in that way and try again.",
        )
    if kind is Failed.AGE:
        return Denial(
            Reason.STRENGTH_DENIED, 403, "Your sign-in is too long ago for this; sign in again and use the new token."
        )
    return Denial(Reason.NOT_GRANTED, 403, "Your roles do not allow this method and path.")


def _in_windows(conditions: Conditions, _caller: Caller, situation: Situation) -> bool | None:
    now = situation.now
    return None if now is None else any(in_window(each, now) for each in conditions.windows)


def _from_sources(conditions: Conditions, _caller: Caller, situation: Situation) -> bool | None:
    source = _address(situation.source or "")
    return None if source is None else any(source in each for each in conditions.sources)


def _is_strong(conditions: Conditions, caller: Caller, _situation: Situation) -> bool:
    return not caller.strength.isdisjoint(conditions.strength)


def _is_fresh(conditions: Conditions, caller: Caller, situation: Situation) -> bool | None:
    if caller.authenticated is None or situation.now is None or conditions.max_age is None:
        return None
    return -SKEW <= situation.now - caller.authenticated <= conditions.max_age


def _at_address(conditions: Conditions, _caller: Caller, situation: Situation) -> bool | None:
    """Compare method and path. Where the readings of a path (with escapes, in lower case) differ, nobody can tell."""
    if situation.method is None or situation.path is None:
        return None
    patterns = [path for method, path in conditions.addresses if not method or method == situation.method]
    low = [each.lower() for each in patterns]
    plain = unquote(situation.path)
    found = {any(matches(each, path) for each in patterns) for path in {situation.path, plain}}
    found.add(any(matches(each, plain.lower()) for each in low))
    return found.pop() if len(found) == 1 else None


_Holds = Callable[[Conditions, Caller, Situation], bool | None]
_CHECKS: tuple[tuple[Failed, Callable[[Conditions], object], _Holds], ...] = (
    (Failed.ADDRESS, lambda each: each.addresses, _at_address),
    (Failed.WINDOW, lambda each: each.windows, _in_windows),
    (Failed.SOURCE, lambda each: each.sources, _from_sources),
    (Failed.STRENGTH, lambda each: each.strength, _is_strong),
    (Failed.AGE, lambda each: each.max_age is not None, _is_fresh),
)


@functools.lru_cache(maxsize=1024)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address; one of IPv4 inside of IPv6 is the one of IPv4, and a scope is left out."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
