"""Change settings files as text, so that what else is in them stays as it is. Pure.

Every change is proven before it is used: the new text, parsed, is the old one with the wanted settings and no other
change.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

type Settings = Mapping[str, Any]
"""Settings to put into a file: texts, numbers, lists of them, and mappings of settings."""


class NotEditable(Exception):
    """A file cannot be changed without harm; the text says why, and quotes nothing of the file."""


def merged(old: Settings, new: Settings) -> dict[str, Any]:
    """Return settings with others put in; mappings are merged."""
    found = dict(old)
    for key, value in new.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return found


# ── JSON ─────────────────────────────────────────────────────────────────────


def edit_json(text: str, new: Settings) -> str:
    """Put settings into a JSON object; order and indentation stay."""
    if not text.strip():
        return json.dumps(new, indent=2, ensure_ascii=False) + "\n"
    try:
        old = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise NotEditable("it is not plain JSON (comments, perhaps, or a key twice)") from None
    if not isinstance(old, dict):
        raise NotEditable("it is not a JSON object")
    wanted = merged(old, new)
    if wanted == old:
        return text
    lead = re.search(r"\n([ \t]+)\"", text)
    indent: str | int = lead[1] if lead else 2
    end = text[len(text.rstrip()) :]
    return json.dumps(wanted, indent=indent, ensure_ascii=False) + end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


# ── TOML ─────────────────────────────────────────────────────────────────────

MARK = "# by tidegate setup"


def edit_toml(text: str, new: Settings) -> str:
    """Put settings into a TOML document: top-level values into its head, tables to its end; comments stay.

    A table of ours that is there already must say the same; a top-level value is replaced where it stands.
    """
    old = _toml(text)
    wanted = merged(old, new)
    if wanted == old:
        return text
    changed = text
    tables = {key: value for key, value in new.items() if isinstance(value, Mapping)}
    for key, value in new.items():
        if key not in tables and old.get(key) != value:
            changed = _with_value(changed, key, value)
    for key, value in tables.items():
        if merged(old.get(key, {}), value) != old.get(key):
            changed = _with_tables(changed, (key,), value, old.get(key, {}))
    try:
        proven = _toml(changed) == wanted
    except NotEditable:
        proven = False
    if not proven:
        raise NotEditable("it already has these settings in another form")
    return changed


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise NotEditable("it is not TOML") from None


def _with_value(text: str, key: str, value: object) -> str:
    line = f"{key} = {_written(value)}"
    head = re.search(r"(?m)^[ \t]*\[", text)
    end = head.start() if head else len(text)
    top, rest = text[:end], text[end:]
    found = re.search(rf"(?m)^{re.escape(key)}[ \t]*=.*$", top)
    if found:
        return top[: found.start()] + line + top[found.end() :] + rest
    return f"{line}  {MARK}\n{text}"


def _with_tables(text: str, path: tuple[str, ...], value: Settings, old: Any) -> str:
    """Add the tables below ``path`` that are not there; those that are cannot be changed here."""
    below = {key: each for key, each in value.items() if isinstance(each, Mapping)}
    plain = {key: each for key, each in value.items() if key not in below}
    before = old if isinstance(old, Mapping) else {}
    if plain and any(before.get(key) != each for key, each in plain.items()):
        lines = "".join(f"{key} = {_written(each)}\n" for key, each in plain.items())
        gap = "" if not text or text.endswith("\n") else "\n"
        text = f"{text}{gap}\n[{'.'.join(path)}]  {MARK}\n{lines}"
    for key, each in below.items():
        if merged(before.get(key, {}), each) != before.get(key):
            text = _with_tables(text, (*path, key), each, before.get(key, {}))
    return text


def _written(value: object) -> str:
    """Write a value; JSON's texts, numbers and lists of texts are TOML's as well."""
    return json.dumps(value, ensure_ascii=True)


def toml(new: Settings) -> str:
    """Write settings as a document of their own."""
    return edit_toml("", new).replace(f"  {MARK}", "")


# ── what is shown ────────────────────────────────────────────────────────────

_SECRET = re.compile(r"(?i)((?:key|token|secret|password|authorization)\w*[\"']?\s*[:=]\s*)(?!.*helper)(\S.*)")


def without_secrets(line: str) -> str:
    """Hide the value of a setting that is called like a secret; what calls tidegate for one is none."""
    if "login --print" in line or "HELPER" in line:
        return line
    return _SECRET.sub(r"\1(not shown)", line)
