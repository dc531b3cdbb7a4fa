"""The form of one JSON event: which objects lead to a text, and an event made after another with one text alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice

from tidegate.dialects.body import dump
from tidegate.dialects.fields import Pointer

_NONE: Mapping[str, object] = {}

type JsonObject = dict[str, object]
type Key = tuple[tuple[int, str, object], ...]
"""What tells a channel from its neighbours: (depth, name, value) of fields of the objects that lead to its text."""


def key_of(event: object, pointer: Pointer, names: tuple[str, ...], absent: Mapping[str, object] = _NONE) -> Key:
    """Collect the named fields of the objects along a pointer, the root included.

    ``absent`` says what a field counts as where it is not there, or null.
    """
    found: list[tuple[int, str, object]] = []
    holder = event
    for depth in range(max(1, len(pointer))):
        if isinstance(holder, dict):
            for name in names:
                if name in holder and ((told := holder[name]) is not None or name not in absent):
                    found.append((depth, name, dump(told) if isinstance(told, dict | list) else told))
                elif absent and name in absent:
                    found.append((depth, name, absent[name]))
        if depth < len(pointer):
            holder = holder[pointer[depth]]  # type: ignore[index]  # the pointer came from this event
    return tuple(found)


def value_at(event: object, pointer: Pointer) -> object:
    """Follow a pointer that came from this event."""
    for part in pointer:
        event = event[part]  # type: ignore[index]  # the pointer came from this event
    return event


def agree(key: Key, told: dict[tuple[int, str], object]) -> bool:
    """Say whether a key and what an event tells say the same where both say anything."""
    return all(told.get((depth, name), value) == value for depth, name, value in key)


def slim(value: object, at: Pointer, names: set[str], text: str, *, root: bool = True) -> JsonObject:
    """Copy what leads to one text: at the root all that is no list or object, below it ``names``; and what is empty."""
    copy = _branch(value, at, names, text, root=root)
    assert isinstance(copy, dict)
    return copy


def _branch(value: object, at: Pointer, names: set[str], text: str, *, root: bool) -> object:
    if not at:
        return text
    if isinstance(value, list):
        return [_branch(value[at[0]], at[1:], names, text, root=False)]  # type: ignore[index]  # a list's index
    assert isinstance(value, dict)
    return {
        key: _branch(child, at[1:], names, text, root=False) if key == at[0] else child
        for key, child in value.items()
        if key == at[0]
        or child in (None, "", [], {})
        or (not isinstance(child, dict | list) and (root or key in names))
    }


def is_true(value: object, way: tuple[str, ...]) -> bool:
    """Say whether field names lead to true; none lead nowhere."""
    for name in way:
        value = value.get(name) if isinstance(value, dict) else None
    return value is True


def set_true(value: JsonObject, way: tuple[str, ...]) -> None:
    """Make what field names lead to true."""
    holder: object = value
    for name in way[:-1]:
        holder = holder.get(name) if isinstance(holder, dict) else None
    if isinstance(holder, dict):
        holder[way[-1]] = True


def stretch(padding: str, size: int) -> str:
    """Rebuild padding at another length from its own characters."""
    return "".join(islice(cycle(padding), max(0, size))) if padding else ""
