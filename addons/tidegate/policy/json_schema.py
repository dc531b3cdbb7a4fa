"""The JSON Schema of a policy, for editors. The readers themselves are asked, so it tells no other story. Pure.

Which keys there are stands in ``SECTIONS``. What each accepts is found out by giving the reader values of every kind:
those without a fault are accepted, and the fault's own words describe the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tidegate.model import Fault
from tidegate.policy.reader import BYTES, BYTES_PATTERN, NAME, NAME_PATTERN, SECONDS, SECONDS_PATTERN, Reader
from tidegate.policy.schema import SECTIONS, read
from tidegate.policy.source import Node

Json = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_WORDS = (
    "x", "a-name", "1KiB", "10s", "/x", "https://x.example", "x.example", "${env:X}", "authorization", "$.groups",
    "RS256", "at+jwt", "mon-fri", "08:00-18:00", "UTC", "10.0.0.0/8", "text", "image", "user", "corp:x", "packs/*.yaml",
    "ou",
)  # fmt: skip
"""Texts of the forms that keys have; a key that accepts another form alone is not narrowed."""
_BESIDE: Mapping[str, Mapping[str, object]] = {
    "inspection.proprietary[]": {"edm": "x", "class": "x"},
    "inspection.proprietary[].threshold": {"documents": "x", "class": "x"},
    "inspection.proprietary[].documents": {"class": "x"},
    "inspection.proprietary[].canaries": {"class": "x"},
    "inspection.proprietary[].edm": {"class": "x"},
}
"""What must stand in a section, or beside a key of it, before the others are read."""
_LIKE = {
    f"roles.NAME.inspection.{below}{way}": ("inspection", way)
    for below in ("", "loosen.")
    for way in ("prompt", "response")
}
"""Keys that are read only when names are resolved, and the ones that accept the same."""
_TEXTS = frozenset({"bindings[].identity", "roles.NAME.allow[].approve"})
"""The same, of a name."""
_PATTERNS = {BYTES: BYTES_PATTERN, SECONDS: SECONDS_PATTERN, NAME: NAME_PATTERN}


def schema() -> Json:
    """Return the schema of a whole policy file."""
    found = _object("")
    return {"$schema": DRAFT, "title": "A policy of tidegate", **found}


def _object(section: str) -> Json:
    """Describe a section whose keys are known; any other key is an error."""
    required = _required(section)
    keys = {key: _key(section, key) for key in SECTIONS[section]}
    found: Json = {"type": "object", "additionalProperties": False, "properties": keys}
    return {**found, **({"required": required} if required else {})}


def _key(section: str, key: str) -> Json:
    path = f"{section}.{key}".removeprefix(".")
    if (
        path not in SECTIONS and (path.partition("[].")[2] or "?") in SECTIONS
    ):  # a connection's limits are those of all of them
        path = path.partition("[].")[2]
    if path in _LIKE:
        return _leaf(*_LIKE[path])
    if path in _TEXTS:
        return {"type": "string"}
    if path in SECTIONS:
        inner = _object(path)
        if f"{path}.NAME" in SECTIONS:  # some names are taken, all others are the user's
            return {**inner, "additionalProperties": _object(f"{path}.NAME")}
        return {"anyOf": [inner, {"type": "array", "items": inner, "minItems": 1}]} if key == "when" else inner
    if f"{path}[]" in SECTIONS:
        items: Json = {"type": "array", "items": _object(f"{path}[]")}
        return {"anyOf": [{"const": "none"}, items]} if path == "identity" else items
    if f"{path}.NAME" in SECTIONS:
        inner = _object(f"{path}.NAME")
        return {"type": "object", "propertyNames": {"pattern": f"^{NAME_PATTERN}$"}, "additionalProperties": inner}
    return _leaf(section, key)


def _leaf(section: str, key: str) -> Json:
    """Describe a key without keys of its own: by its kind and, where it has a form, by that."""
    accepted = _sentence(section, key)
    found: Json = {"description": accepted} if accepted else {}
    if key == "version":
        return {**found, "const": 1}
    kinds: list[Json] = []
    if _accepts(section, key, True):
        kinds.append({"type": "boolean"})
    if _accepts(section, key, 1):
        kinds.append({"type": "number" if _accepts(section, key, 0.5) else "integer"})
    elif _accepts(section, key, 0.5):
        kinds.append({"type": "number"})
    kinds += _text(section, key, accepted)
    kinds += _list(section, key)
    kinds += _mapping(section, key)
    if {"boolean", "number", "string", "array"} <= {str(each.get("type")) for each in kinds}:
        return found  # nothing reads it here, so nobody knows
    if len(kinds) == 1:
        return {**found, **kinds[0]}
    return {**found, **({"anyOf": kinds} if kinds else {})}


def _text(section: str, key: str, accepted: str) -> Iterator[Json]:
    words = accepted.split(" or ")
    if accepted in _PATTERNS:
        if any(_accepts(section, key, word) for word in _WORDS):
            yield {"type": "string", "pattern": f"^(?:{_PATTERNS[accepted]})$"}
    elif all(_accepts(section, key, word) for word in words) and not _accepts(section, key, "x"):
        yield {"enum": words}
    elif any(_accepts(section, key, word) for word in _WORDS):
        yield {"type": "string"}


def _list(section: str, key: str) -> Iterator[Json]:
    """Describe a list of texts; where only some words may stand in it, by those."""
    one = next((word for word in _WORDS if _accepts(section, key, (word,))), None)
    if one is None:
        return
    wrong = _faults(section, key, ("?",))
    told = " or ".join(each.accepted for each in wrong if each.key.endswith("[0]"))
    words = re.split(r" or |, ", told)
    whole = bool(told) and not _accepts(section, key, ("x",)) and all(_accepts(section, key, (word,)) for word in words)
    least = {} if _accepts(section, key, ()) else {"minItems": 1}
    yield {"type": "array", "items": {"enum": words} if whole else {"type": "string"}, **least}


def _mapping(section: str, key: str) -> Iterator[Json]:
    """Describe a mapping of the user's own names."""
    values: tuple[tuple[object, Json], ...] = (
        (("x", 1), {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1}),
        (("x",), {"type": "array", "items": {"type": "string"}, "minItems": 1}),
        (0.5, {"type": "number"}),
        (1, {"type": "integer"}),
        ("x", {"type": "string"}),
        ("block", {"type": "string"}),
    )
    kinds = [described for value, described in values if _accepts(section, key, {"x": value})]
    if not kinds:
        return
    told = " or ".join(each.accepted for each in _faults(section, key, {"x": "?"}))
    words = [word for word in told.split(" or ") if _accepts(section, key, {"x": word})]
    if words and not _accepts(section, key, {"x": "x"}):
        kinds = [{"enum": words}]
    yield {"type": "object", "additionalProperties": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}


# ── asking the reader ────────────────────────────────────────────────────────


def _required(section: str) -> list[str]:
    """Return the keys without which the reader says that nothing was found."""
    here = _place(section)
    prefix = f"{here}." if here else ""
    missing = {each.key for each in _read(section, {}) if each.found == "nothing"}
    return [key for key in SECTIONS[section] if f"{prefix}{key}" in missing]


def _sentence(section: str, key: str) -> str:
    """Return the reader's words for what a key accepts."""
    every: tuple[object, ...] = ({"?": {"?": {}}}, ({},), None, "\0")
    for wrong in every:
        found = [each for each in _faults(section, key, wrong) if each.key == _place(section, key)]
        if found:
            return found[0].accepted
    return ""


def _accepts(section: str, key: str, value: object) -> bool:
    return not _faults(section, key, value)


def _faults(section: str, key: str, value: object) -> list[Fault]:
    """Return what the reader says of one key with this value, or of what is in it."""
    here, beside = _place(section, key), _BESIDE.get(f"{section}.{key}", _BESIDE.get(section, {}))
    return [
        each
        for each in _read(section, {**beside, key: value})
        if each.key == here or each.key.startswith((f"{here}.", f"{here}["))
    ]


def _place(section: str, key: str = "") -> str:
    path = section.replace("[]", "[0]").replace("NAME", "a-name")
    return ".".join(filter(None, (path, key)))


def _read(section: str, value: Mapping[str, object]) -> list[Fault]:
    """Read a policy in which nothing stands but one section."""
    whole: object = value
    for part in reversed(section.split(".") if section else []):
        name = "a-name" if part == "NAME" else part.removesuffix("[]")
        whole = {name: (whole,) if part.endswith("[]") else whole}
    reader = Reader("policy.yaml")
    read(reader, _node(whole, ""))
    return reader.faults


def _node(value: object, key: str) -> Node:
    """Turn plain values into what YAML would be read as."""
    if isinstance(value, Mapping):
        return Node(key, 1, {name: _node(each, f"{key}.{name}" if key else name) for name, each in value.items()})
    if isinstance(value, tuple):
        return Node(key, 1, tuple(_node(each, f"{key}[{at}]") for at, each in enumerate(value)))
    assert value is None or isinstance(value, str | int | float)
    return Node(key, 1, value)
