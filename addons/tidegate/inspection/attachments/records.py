"""JSON and notebooks: every string, also what is packed into one."""

from __future__ import annotations

import json

from tidegate.inspection.attachments import packed
from tidegate.inspection.attachments.found import DAMAGED, Found, Inner, below
from tidegate.inspection.attachments.kinds import Kind

_NUMBER = 10**5
"""Numbers from here on are texts too: six digits may be part of a card or an account."""
_SHORT = 64
"""Characters from which on a value is worth opening as base64; the smallest picture or document is larger."""


def records(found: Found, text: str, name: str, depth: int, inner: Inner) -> None:
    """Read JSON, one value or one a line. The text as it stands counts too: a rule may span a key and its value."""
    found.say(name, text)
    try:
        value = json.loads(text.lstrip("\ufeff"))
    except ValueError:
        found.called(Kind.TEXT)  # it only begins like JSON, or is one value a line
        value = _lines(text)
    notebook = isinstance(value, dict) and "cells" in value and "nbformat" in value
    found.called("ipynb" if notebook else Kind.JSON)
    said: list[str] = []
    todo: list[tuple[str, object]] = [("", value)]
    while todo:
        key, each = todo.pop()
        if isinstance(each, dict):
            said += each
            todo += reversed(list(each.items()))
        elif isinstance(each, list):
            lines = [one for one in each if isinstance(one, str)]
            if len(lines) == len(each) and any(not line.endswith("\n") for line in lines[:-1]):
                said.append("".join(lines))  # a notebook's cell is a list of its lines, joined without anything between
            todo += [(key, one) for one in reversed(each)]
        elif isinstance(each, str):
            said.append(each)
            _open(found, key, each, below(name, "strings"), depth, inner)
        elif isinstance(each, int) and abs(each) >= _NUMBER:
            said.append(str(each))
    strings = "\n".join(said)
    if "\\" in text or notebook:
        found.say(below(name, "strings"), strings)


def _lines(text: str) -> list[object]:
    values: list[object] = []
    for line in text.split("\n"):
        try:
            values.append(json.loads(line))
        except ValueError:
            continue  # its text counts as it stands
    return values


def _open(found: Found, key: str, text: str, name: str, depth: int, inner: Inner) -> None:
    """Read what a string holds that is a data: URL, or base64 under the name of a media type (``image/png``)."""
    if "/" in key and not key.startswith("text/") and len(text) >= _SHORT:
        data = packed.base64(text)
    elif text[:5].lower() == "data:":
        opened = packed.url(text)
        data = None if opened is None else opened[1]
    else:
        return
    if data is not None:
        found.spend(len(data))
        inner(found, data, name, depth + 1)
    elif text[:5].lower() == "data:":
        found.miss(DAMAGED)
