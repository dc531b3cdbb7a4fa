"""Read the ``stream`` section of an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.dialects.fields import ExpressionError, steps
from tidegate.dialects.paths import EXPRESSION, REASON, compiled, plain, words
from tidegate.dialects.spec import Delta, Drop, Flush, FramingKind, Keep, Restore, Source, StreamSpec
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

STREAM_KEYS = (
    "framing", "whole", "wrapped", "absent", "event_type", "events", "done", "sequence", "unique", "padding",
    "deltas", "source", "restore", "flush", "keep", "drop",
)  # fmt: skip
DELTA_KEYS = ("path", "key", "when", "source", "beside", "continues", "ends")
FLUSH_KEYS = ("path", "key", "same", "when", "values", "again")
SOURCE_KEYS = ("path",)
RESTORE_KEYS = ("path", "when")
KEEP_KEYS = ("path", "when", "unread", "because")
DROP_KEYS = ("path", "because")


def stream(reader: Reader, node: Node, *, unread: bool) -> StreamSpec:
    """Read a stream section. ``unread``: it is that of a socket, where a connection decides on what cannot be read."""
    whole = isinstance(node.value, Mapping) and "whole" in node.value  # its events need no text in pieces
    entry = reader.section(node, STREAM_KEYS, {} if whole else {"deltas": "a list with at least one delta"})
    deltas = [_delta(reader, child) for child in reader.items(entry.get("deltas"))]
    sources: list[tuple[Node, Source]] = [
        (path, Source(text)) for path, text, _ in _entries(reader, entry.get("source"), SOURCE_KEYS)
    ]
    keep = [pair for child in reader.items(entry.get("keep")) if (pair := _keep(reader, child, unread=unread))]
    drop = [(path, Drop(text, why)) for path, text, why in _entries(reader, entry.get("drop"), DROP_KEYS)]
    named: list[tuple[Node, Delta | Source | Keep | Drop]] = [*deltas, *sources, *keep, *drop]
    restore = [each for child in reader.items(entry.get("restore")) for each in _restore(reader, child)]
    return StreamSpec(
        event_type=_name(reader, entry.get("event_type")),
        done=_name(reader, entry.get("done")),
        sequence=_name(reader, entry.get("sequence")),
        padding=_name(reader, entry.get("padding")),
        deltas=tuple(delta for _, delta in deltas),
        flushes=tuple(_flush(reader, child) for child in reader.items(entry.get("flush"))),
        keep=tuple(one for _, one in keep),
        drop=tuple(one for _, one in drop),
        fields=compiled(reader, named),
        framings=_framings(reader, entry.get("framing")),
        wrapped=_name(reader, entry.get("wrapped")),
        events=_events(reader, entry),
        unique=_name(reader, entry.get("unique")),
        restore=compiled(reader, restore),
        absent={name: plain(child) for name, child in reader.entries(entry.get("absent")).items()},
        whole=reader.flag(entry.get("whole"), default=False),
    )


def _events(reader: Reader, entry: Mapping[str, Node]) -> tuple[str, ...]:
    found = words(reader, entry.get("events"), "a list of event types")
    for each in found:
        if "*" in each[:-1] or each == "*":
            reader.fault(entry["events"], "event types, with * at the end of one alone", each)
    return found


def _framings(reader: Reader, node: Node | None) -> tuple[FramingKind, ...]:
    """Read the framings of a stream; the first is the usual one."""
    if node is None:
        return (FramingKind.SSE,)
    known = {kind.value: kind for kind in FramingKind if kind is not FramingKind.JSON}
    accepted = f"a list of {', '.join(known)}"
    found = words(reader, node, accepted)
    if not found or not set(found) <= set(known):
        reader.fault(node, accepted, f"[{', '.join(found)}]")
    return tuple(known[each] for each in found if each in known) or (FramingKind.SSE,)


def _delta(reader: Reader, node: Node) -> tuple[Node, Delta]:
    entry = reader.section(node, DELTA_KEYS, {"path": EXPRESSION})
    path = entry.get("path", Node(f"{node.key}.path", node.line, "$"))
    source = reader.flag(entry.get("source"), default=False)
    beside = words(reader, entry.get("beside"), "a list of field names")
    goes_on, ends = (_way(reader, entry[key]) if key in entry else () for key in ("continues", "ends"))
    text = str(path.value)
    named = ".*" in text
    return path, Delta(text, _key(reader, entry), _when(reader, entry), source, beside, goes_on, ends, named=named)


def _way(reader: Reader, node: Node) -> tuple[str, ...]:
    """Read a path that leads to one field."""
    try:
        way = steps(str(node.value))
    except ExpressionError:
        way = ()
    if not way or any(step.deep or len(step.names) != 1 for step in way):
        reader.fault(node, "a path of field names, such as $.result.append")
    return tuple(step.names[0] for step in way if step.names)


def _restore(reader: Reader, node: Node) -> list[tuple[Node, Restore]]:
    """Read an entry of ``restore``: a path, or one with the event types that it counts in."""
    if isinstance(node.value, str):
        return [(node, Restore(node.value))]
    entry = reader.section(node, RESTORE_KEYS, {"path": EXPRESSION, "when": "a list of event types"})
    return [(entry["path"], Restore(str(entry["path"].value), _when(reader, entry)))] if "path" in entry else []


def _flush(reader: Reader, node: Node) -> Flush:
    entry = reader.section(node, FLUSH_KEYS)
    path, when = entry.get("path"), _when(reader, entry)
    if path is None and when is None:
        reader.fault(node, "path or when, since every event would flush", "neither path nor when")
    if path is None and "values" in entry:
        reader.fault(entry["values"], "values of a path", "values without a path")
    select = None if path is None else compiled(reader, [(path, None)])
    values = tuple(map(plain, reader.items(entry.get("values"))))
    ways = reader.entries(entry.get("same"))
    same = {name: tuple(reader.text(way, "field names joined by dots").split(".")) for name, way in ways.items()}
    again = reader.flag(entry.get("again"), default=False)
    return Flush(None if path is None else str(path.value), _key(reader, entry), when, select, values, same, again)


def _keep(reader: Reader, node: Node, *, unread: bool) -> tuple[Node, Keep] | None:
    entry = reader.section(node, KEEP_KEYS, {"path": EXPRESSION, "because": REASON})
    because = reader.text(entry.get("because"), REASON)
    flag = reader.flag(entry.get("unread"), default=False)
    if flag and not unread:
        reader.fault(entry["unread"], "unread in the stream of a socket alone", "unread in another stream")
    if "path" not in entry:
        return None
    return entry["path"], Keep(str(entry["path"].value), because, _when(reader, entry), flag)


def _entries(reader: Reader, node: Node | None, keys: tuple[str, ...]) -> list[tuple[Node, str, str]]:
    found = []
    for child in reader.items(node):
        entry = reader.section(child, keys, {key: EXPRESSION if key == "path" else REASON for key in keys})
        if "path" in entry:
            found.append((entry["path"], str(entry["path"].value), reader.text(entry.get("because"), REASON)))
    return found


def _key(reader: Reader, entry: Mapping[str, Node]) -> tuple[str, ...]:
    return words(reader, entry.get("key"), "a list of field names")


def _when(reader: Reader, entry: Mapping[str, Node]) -> frozenset[str] | None:
    return frozenset(words(reader, entry["when"], "a list of event types")) if "when" in entry else None


def _name(reader: Reader, node: Node | None) -> str | None:
    return None if node is None or node.value is None else reader.text(node, "a text")
