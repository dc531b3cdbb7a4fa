"""Known false positives: values of one rule that are no finding, kept as keyed fingerprints. Pure.

Only the matched value is looked at, so streams and whole texts agree. A known value is passed over whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tidegate.inspection.proprietary.table import mac

_DOMAIN = b"known"


@dataclass(frozen=True, slots=True)
class Known:
    """One value that a rule may see without a finding, until ``expires`` (a Unix time in seconds)."""

    rule: str
    fingerprint: str = field(repr=False)
    expires: float


def fingerprint(key: bytes, rule: str, value: bytes) -> str:
    """Return what is kept of a value: 32 hexadecimal digits, others for every rule."""
    return mac(key, _DOMAIN, rule.encode() + b"\0" + value).hex()


def passes(entries: Iterable[tuple[Known, bytes]], now: Callable[[], float]) -> Mapping[str, Callable[[bytes], bool]]:
    """Return for each rule, by id, what says whether a value is known. ``entries`` come with the key of their file."""
    by_rule: dict[str, dict[bytes, dict[str, float]]] = {}
    for known, key in entries:
        held = by_rule.setdefault(known.rule, {}).setdefault(key, {})
        held[known.fingerprint] = max(held.get(known.fingerprint, 0.0), known.expires)
    return {rule: _test(rule, keys, now) for rule, keys in by_rule.items()}


def _test(rule: str, keys: Mapping[bytes, Mapping[str, float]], now: Callable[[], float]) -> Callable[[bytes], bool]:
    def is_known(value: bytes) -> bool:
        ends = [held.get(fingerprint(key, rule, value)) for key, held in keys.items()]
        return any(end is not None and end > now() for end in ends)

    return is_known
