"""Read the ``stream`` section of an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.dialects.paths import EXPRESSION, REASON, compiled, plain, words
from tidegate.dialects.spec import Delta, Drop, Flush, FramingKind, Keep, Restore, Source, StreamSpec
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

STREAM_KEYS = (
    "framing", "wrapped", "absent", "event_type", "done", "sequence", "padding",
    "deltas", "source", "restore", "flush", "keep", "drop",
)  # fmt: skip
DELTA_KEYS = ("path", "key", "when", "source", "beside")
FLUSH_KEYS = ("path", "key", "when", "values")
SOURCE_KEYS = ("path",)
RESTORE_KEYS = ("path", "when")
KEEP_KEYS = DROP_KEYS = ("path", "because")


def stream(reader: Reader, node: Node) -> StreamSpec:
    """Read a stream section."""
    entry = reader.section(node, STREAM_KEYS, {"deltas": "a list with at least one delta"})
    deltas = [_delta(reader, child) for child in reader.items(entry.get("deltas"))]
    sources: list[tuple[Node, Source]] = [
        (path, Source(text)) for path, text, _ in _entries(reader, entry.get("source"), SOURCE_KEYS)
    ]
    keep = [(path, Keep(text, why)) for path, text, why in _entries(reader, entry.get("keep"), KEEP_KEYS)]
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
        restore=compiled(reader, restore),
        absent={name: plain(child) for name, child in reader.entries(entry.get("absent")).items()},
    )


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
    return path, Delta(str(path.value), _key(reader, entry), _when(reader, entry), source, beside)


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
    return Flush(None if path is None else str(path.value), _key(reader, entry), when, select, values)


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
