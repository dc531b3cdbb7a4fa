"""Read the ``socket`` section of an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.dialects.paths import words
from tidegate.dialects.spec import SocketSpec
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

SOCKET_KEYS = ("messages", "events", "ends", "continues", "names")

_CONTINUES = "the field of a request that names an earlier answer"
_NAMES = "field names joined by dots, such as response.id"


def socket(reader: Reader, entry: Mapping[str, Node], *, named: bool) -> SocketSpec | None:
    """Read the socket of an endpoint with the keys ``entry``; ``named``: its stream tells the type of an event."""
    node = entry.get("socket")
    if node is None or node.value is None:
        return None
    if not named:
        reader.fault(node, "a stream with event_type beside it, which tells the type of a message")
    methods = words(reader, entry.get("methods"), "[GET]")
    if methods != ("GET",):
        reader.fault(node, "the method GET alone, by which a WebSocket is opened", f"[{', '.join(methods)}]")
    found = reader.section(
        node,
        SOCKET_KEYS,
        {"messages": "a list of types of messages", "events": "a list of event types", "ends": "a list of event types"},
    )
    messages, events, ends = (
        words(reader, found.get(key), f"a list of {what}")
        for key, what in (("messages", "types of messages"), ("events", "event types"), ("ends", "event types"))
    )
    spec = SocketSpec(frozenset(messages), events, frozenset(ends), *_continues(reader, found))
    for each in events:
        if "*" in each[:-1] or each == "*":
            reader.fault(found["events"], "event types, with * at the end of one alone", each)
    for each in ends:
        if events and not spec.knows(each):
            reader.fault(found["ends"], "event types that are among events", each)
    return spec


def _continues(reader: Reader, found: Mapping[str, Node]) -> tuple[str | None, tuple[str, ...]]:
    if "continues" not in found or "names" not in found:
        for key in {"continues", "names"} & set(found):
            reader.fault(found[key], "continues and names together", f"{key} alone")
        return None, ()
    names = reader.text(found["names"], _NAMES)
    return reader.text(found["continues"], _CONTINUES), tuple(names.split("."))
