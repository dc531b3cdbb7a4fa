"""Reads the lists that ``tidegate rules canary`` and ``rules allow`` write: YAML with keyed fingerprints. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from tidegate.inspection.proprietary.canary import Canary, Form
from tidegate.inspection.proprietary.known import Known
from tidegate.model import Fault
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node, parse

CANARY_KEYS = ("name", "form", "lead", "fingerprint", "minted")
KNOWN_KEYS = ("rule", "fingerprint", "reason", "author", "added", "expires")
_PRINT = "32 hexadecimal digits, as the command wrote them"
_LEADS = {Form.KEY: r"AKIA", Form.URL: r"https://[a-z0-9.-]{3,200}/", Form.WORDS: r"[a-z]{5}"}
_LEAD = "the beginning of the token, as the command wrote it"


def read_canaries(text: str, file: str) -> tuple[tuple[Canary, ...], tuple[Fault, ...]]:
    """Read a file of canaries; returns those that are whole, and every fault."""
    reader, entries = _entries(text, file, "canaries")
    found: list[Canary] = []
    for entry in entries:
        before = len(reader.faults)
        keys = reader.section(entry, CANARY_KEYS, {"name": NAME, "form": " or ".join(Form), "lead": _LEAD})
        form = reader.choice(keys.get("form"), Form, Form.KEY)
        lead = reader.text(keys.get("lead"), _LEAD)
        if lead and not re.fullmatch(_LEADS[form], lead):
            reader.fault(keys["lead"], _LEAD, found="something else")
        one = Canary(reader.name(keys.get("name")), form, lead, _fingerprint(reader, entry, keys.get("fingerprint")))
        if len(reader.faults) == before:
            found.append(one)
    return tuple(found), tuple(reader.faults)


def read_known(text: str, file: str) -> tuple[tuple[Known, ...], tuple[Fault, ...]]:
    """Read a file of known false positives; returns those that are whole, and every fault."""
    reader, entries = _entries(text, file, "allowed")
    found: list[Known] = []
    for entry in entries:
        before = len(reader.faults)
        required = {"rule": "the id of a rule", "reason": "one sentence", "author": "who decided", "expires": "a date"}
        keys = reader.section(entry, KNOWN_KEYS, required)
        for name in ("reason", "author"):
            reader.text(keys.get(name), required[name])
        one = Known(
            reader.text(keys.get("rule"), "the id of a rule"),
            _fingerprint(reader, entry, keys.get("fingerprint")),
            _date(reader, keys.get("expires")),
        )
        if len(reader.faults) == before:
            found.append(one)
    return tuple(found), tuple(reader.faults)


def _entries(text: str, file: str, key: str) -> tuple[Reader, Sequence[Node]]:
    reader = Reader(file)
    root, faults = parse(text, file)
    reader.faults += faults
    if root is None:
        return reader, ()
    top = reader.section(root, ("version", key), {"version": "1", key: "a list"})
    if "version" in top and top["version"].value != 1:
        reader.fault(top["version"], "1")
    return reader, reader.items(top.get(key))


def _fingerprint(reader: Reader, entry: Node, node: Node | None) -> str:
    if node is None:
        reader.fault(entry, _PRINT, found="nothing", key=f"{entry.key}.fingerprint")
        return ""
    if not isinstance(node.value, str) or not re.fullmatch("[0-9a-f]{32}", node.value):
        reader.fault(node, _PRINT, found="something else")
        return ""
    return node.value


def _date(reader: Reader, node: Node | None) -> float:
    """Read a date; a value is known until the end of that day, UTC."""
    accepted = "a date such as 2027-01-31"
    if node is None:
        return 0.0
    try:
        day = dt.date.fromisoformat(str(node.value))
        return dt.datetime.combine(day, dt.time.max, dt.UTC).timestamp()
    except ValueError:
        reader.fault(node, accepted)
        return 0.0
