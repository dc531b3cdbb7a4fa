"""Read the ``socket`` section of an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.dialects.paths import EXPRESSION, compiled, plain, words
from tidegate.dialects.spec import Mark, SocketSpec, StreamSpec
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

SOCKET_KEYS = (
    "messages", "events", "ends", "continues", "names", "fields", "binary", "duplex", "asks", "begins", "settings",
    "settles", "parameters",
)  # fmt: skip
MARK_KEYS = ("when", "path", "values")

_CONTINUES = "the field of a request that names an earlier answer"
_NAMES = "field names joined by dots, such as response.id"
_DUPLEX = ("asks", "begins", "settings", "settles")


def socket(reader: Reader, entry: Mapping[str, Node], stream: StreamSpec | None) -> SocketSpec | None:
    """Read the socket of an endpoint with the keys ``entry``, and the stream beside it."""
    node = entry.get("socket")
    if node is None or node.value is None:
        return None
    methods = words(reader, entry.get("methods"), "[GET]")
    if methods != ("GET",):
        reader.fault(node, "the method GET alone, by which a WebSocket is opened", f"[{', '.join(methods)}]")
    required = {"messages": "a list of types of messages", "events": "a list of event types", "ends": "a list of ends"}
    found = reader.section(node, SOCKET_KEYS, required)
    fields, binary, duplex = (reader.flag(found.get(key), default=False) for key in ("fields", "binary", "duplex"))
    if stream is None or (stream.event_type is None) is not fields:
        reader.fault(node, "a stream beside it, with event_type, which tells the type of a message, or fields: true")
    for key in _DUPLEX if not duplex else ():
        if key in found:
            reader.fault(found[key], f"{key} of a socket with duplex: true", f"{key} without duplex")
    events = words(reader, found.get("events"), "a list of event types")
    for each in events:
        if "*" in each[:-1] or each == "*":
            reader.fault(found["events"], "event types, with * at the end of one alone", each)
    continues, names = _continues(reader, found, duplex=duplex)
    messages = frozenset(words(reader, found.get("messages"), "a list of types of messages"))
    known = SocketSpec(messages, events, ())
    parameters = words(reader, found.get("parameters"), "a list of parameters of the address")
    return SocketSpec(
        messages=messages,
        events=events,
        ends=_marks(reader, found.get("ends"), known, client=False),
        continues=continues,
        names=names,
        fields=fields,
        binary=binary,
        duplex=duplex,
        asks=_marks(reader, found.get("asks"), known, client=True),
        begins=_marks(reader, found.get("begins"), known, client=False),
        settings=_types(reader, found.get("settings"), known, client=True),
        settles=_types(reader, found.get("settles"), known, client=False),
        parameters=frozenset(parameters) if "parameters" in found else None,
    )


def _marks(reader: Reader, node: Node | None, known: SocketSpec, *, client: bool) -> tuple[Mark, ...]:
    """Read what tells some messages from others: a type alone, or types and a path."""
    marks = []
    for child in reader.items(node):
        if not isinstance(child.value, Mapping):
            marks.append(Mark(frozenset({_type(reader, child, known, client=client)})))
            continue
        entry = reader.section(child, MARK_KEYS, {"path": EXPRESSION})
        path = entry.get("path")
        select = None if path is None else compiled(reader, [(path, None)])
        values = tuple(map(plain, reader.items(entry.get("values"))))
        when = _types(reader, entry.get("when"), known, client=client)
        marks.append(Mark(when, None if path is None else str(path.value), select, values))
    return tuple(marks)


def _types(reader: Reader, node: Node | None, known: SocketSpec, *, client: bool) -> frozenset[str]:
    return frozenset(_type(reader, child, known, client=client) for child in reader.items(node))


def _type(reader: Reader, node: Node, known: SocketSpec, *, client: bool) -> str:
    """Read a type that must be among those of the client's messages or the upstream's events."""
    text = reader.text(node, "a type of messages" if client else "an event type")
    if text and not (text in known.messages if client else known.knows(text)) and (known.events or client):
        reader.fault(node, f"types that are among {'messages' if client else 'events'}", text)
    return text


def _continues(reader: Reader, found: Mapping[str, Node], *, duplex: bool) -> tuple[str | None, tuple[str, ...]]:
    """Read how answers are named, and how one is continued; where several may be under way a name alone will do."""
    if "continues" not in found and "names" in found and duplex:
        return None, tuple(reader.text(found["names"], _NAMES).split("."))
    if "continues" not in found or "names" not in found:
        for key in {"continues", "names"} & set(found):
            reader.fault(found[key], "continues and names together", f"{key} alone")
        return None, ()
    names = reader.text(found["names"], _NAMES)
    return reader.text(found["continues"], _CONTINUES), tuple(names.split("."))
