"""Names and the patterns of rules that cover them. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterable

NAME_CHARACTERS = 256  # the longest published model and tool names are under 128 characters


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


def plain(name: str) -> bool:
    """Whether a name has the form of a name: an upstream that trims or folds it must not see another one."""
    return 0 < len(name) <= NAME_CHARACTERS and name.isascii() and name.isprintable() and " " not in name


def named(patterns: Iterable[str], name: str) -> bool:
    """Whether an allow pattern covers a name, which must be plain."""
    return plain(name) and any(matches(pattern, name) for pattern in patterns)


def refused(patterns: Iterable[str], name: str) -> bool:
    """A deny pattern also covers other spellings in upper and lower case, and any name that is not plain."""
    return not plain(name) or any(matches(pattern.lower(), name.lower()) for pattern in patterns)


def within(inner: Iterable[str], outer: Iterable[str]) -> bool:
    """Whether ``outer`` covers every name that ``inner`` covers: a ``*`` of inner must meet a ``*`` of outer."""
    wide = [each.lower() for each in outer]
    return all(any(matches(each, narrow.lower()) for each in wide) for narrow in inner)


def overlap(one: str, other: str) -> bool:
    """Whether any text fits both patterns."""
    reached = {(0, 0)}
    seen: set[tuple[int, int]] = set()
    while reached:
        left, right = at = reached.pop()
        if at in seen:
            continue
        seen.add(at)
        a, b = one[left : left + 1], other[right : right + 1]
        if not a and not b:
            return True
        if a == "*":
            reached |= {(left + 1, right), *([(left, right + 1)] if b else [])}
        if b == "*":
            reached |= {(left, right + 1), *([(left + 1, right)] if a else [])}
        if a == b and a:
            reached.add((left + 1, right + 1))
    return False
