"""The groups a provider names, as the rest of the gate knows them: ``corp:ml-eng``. Pure.

Law: "no groups" and "too many groups to list" never look alike.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from tidegate.dialects.fields import ExpressionError, Trie
from tidegate.policy.policy import OidcIdentity, Split

GROUPS = 1000  # more than any provider lists before it says "too many"
NAME_CHARACTERS = 512  # of a subject or a group; Kubernetes' and GitHub's subjects stay under 300
RESERVED = "tidegate:"

Claims = Mapping[str, object]

_paths: dict[str, Trie[None]] = {}


class Unread(enum.Enum):
    """Why there are no groups: what stands there is not groups, or there are too many to list."""

    WRONG = enum.auto()
    TOO_MANY = enum.auto()


def read_groups(claims: Claims, identity: OidcIdentity) -> frozenset[str] | Unread:
    """Read the groups out of claims, with the identity's name before each."""
    if identity.groups is None:
        return frozenset()
    if _left_out(claims, identity.groups):
        return Unread.TOO_MANY
    found: set[str] = set()
    for value in select(claims, identity.groups):
        if value is None:
            continue
        listed = texts(value)
        if listed is None:
            return Unread.WRONG
        found |= listed
    return qualified(_cut(found, identity.split), identity)


def _left_out(claims: Claims, where: str) -> bool:
    """Say whether the provider left out what a path selects: whatever the claim says beside that is not the whole.

    Entra's overage, and the distributed claims of OpenID Connect Core, 5.6.2. App roles are whole where groups are not.
    """
    elsewhere = claims.get("_claim_names", {})
    if not isinstance(elsewhere, dict):
        return True
    names = {*elsewhere, *(("groups",) if "hasgroups" in claims else ())}
    anything = "*" in where or ".." in where
    return any(anything or name in where for name in names)


def qualified(found: Iterable[str], identity: OidcIdentity) -> frozenset[str] | Unread:
    """Give groups the names they have here."""
    names = {each.removeprefix(identity.strip) for each in found}
    if identity.group_map is not None:
        # A group that is not listed is none: its name might be what another is called here.
        names = {identity.group_map[each] for each in names if each in identity.group_map}
    if len(names) > GROUPS or not all(is_name(each) for each in names):
        return Unread.WRONG
    return frozenset(f"{identity.name}:{each}" for each in names)


def _cut(found: set[str], split: Split | None) -> set[str]:
    if split is None:
        return found
    parts = (part for each in found for part in each.split(None if split is Split.SPACES else ","))
    return {part.strip() for part in parts if part.strip()}


def select(claims: Claims, where: str) -> list[object]:
    """Find a claim by its name, or by a JSONPath where ``where`` begins with ``$``."""
    if where.startswith("$"):
        return [each.value for each in path(where).select(claims)]
    return [claims[where]] if where in claims else []


def path(text: str) -> Trie[None]:
    """Compile a path once per process; policies hold a handful. Raises ``ExpressionError``."""
    if text not in _paths:
        _paths[text] = Trie([(text, None)])
    return _paths[text]


def path_problem(text: str) -> bool:
    """Say whether a text is not a JSONPath that can select claims."""
    try:
        path(text)
    except ExpressionError:
        return True
    return False


def texts(value: object) -> frozenset[str] | None:
    """Read a text or a list of texts; ``None`` for anything else."""
    if isinstance(value, str):
        return frozenset({value})
    if not isinstance(value, list):
        return None
    found = [each for each in value if isinstance(each, str)]
    return frozenset(found) if len(found) == len(value) else None


def is_name(text: str) -> bool:
    """Say whether a subject or group can be shown and stored as it is, and is not one of ours."""
    return 0 < len(text) <= NAME_CHARACTERS and text.isprintable() and not text.lower().startswith(RESERVED)
