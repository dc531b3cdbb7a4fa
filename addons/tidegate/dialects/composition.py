"""Read what the bodies of an endpoint are made of: ``bodies``, ``form``, ``inner``, ``answers``, ``answered``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.dialects.fields import Trie
from tidegate.dialects.kinds import JSON_ALONE, BodyKind, Composition, FormSpec, Inner, Lines
from tidegate.dialects.paths import EXPRESSION, compiled, plain, words
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

COMPOSITION_KEYS = ("bodies", "form", "inner", "answers", "answered")
FORM_KEYS = ("lists", "lines")
LINES_KEYS = ("part", "when")
INNER_KEYS = ("path", "endpoint", "method", "url")
ANSWERED_KEYS = ("path", "endpoint", "told_by", "endpoints")

BODIES = (BodyKind.JSON, BodyKind.FORM, BodyKind.TEXT, BodyKind.DATA)
ANSWERS = (BodyKind.JSON, BodyKind.LINES, BodyKind.TEXT)


def composition(reader: Reader, entry: Mapping[str, Node], names: Mapping[str, object]) -> Composition:
    """Read the composition of an endpoint with the keys ``entry``; ``names`` are the endpoints of the file."""
    bodies = _kinds(reader, entry.get("bodies"), BODIES)
    if "form" in entry and BodyKind.FORM not in bodies:
        reader.fault(entry["form"], "form among the bodies", "a form that is no body of this endpoint")
    return Composition(
        bodies,
        _form(reader, entry["form"]) if "form" in entry else FormSpec(),
        _inners(reader, entry.get("inner"), INNER_KEYS, names),
        _kinds(reader, entry.get("answers"), ANSWERS),
        _inners(reader, entry.get("answered"), ANSWERED_KEYS, names),
    )


def _kinds(reader: Reader, node: Node | None, known: Sequence[BodyKind]) -> tuple[BodyKind, ...]:
    if node is None:
        return JSON_ALONE
    accepted = f"a list of {', '.join(known)}"
    found = words(reader, node, accepted)
    if not found or not set(found) <= set(known):
        reader.fault(node, accepted, f"[{', '.join(found)}]")
    return tuple(each for each in known if each in found) or JSON_ALONE


def _form(reader: Reader, node: Node) -> FormSpec:
    entry = reader.section(node, FORM_KEYS)
    lists = words(reader, entry.get("lists"), "a list of field names")
    return FormSpec(frozenset(lists), tuple(_lines(reader, each) for each in reader.items(entry.get("lines"))))


def _lines(reader: Reader, node: Node) -> Lines:
    entry = reader.section(node, LINES_KEYS, {"part": "the name of a file's field"})
    when = {
        name: tuple(map(plain, reader.items(child, "a list of values")))
        for name, child in reader.entries(entry.get("when")).items()
    }
    return Lines(reader.text(entry.get("part"), "the name of a file's field"), when)


def _inners(reader: Reader, node: Node | None, keys: Sequence[str], names: Mapping[str, object]) -> Trie[Inner]:
    found = [_inner(reader, each, keys, names) for each in reader.items(node)]
    return compiled(reader, [each for each in found if each is not None])


def _inner(reader: Reader, node: Node, keys: Sequence[str], names: Mapping[str, object]) -> tuple[Node, Inner] | None:
    entry = reader.section(node, keys, {"path": EXPRESSION})
    pair = keys[-2:]
    told = [each for each in pair if each in entry]
    if len(told) == 1 or ("endpoint" in entry) == bool(told):
        reader.fault(node, f"either endpoint, or {' and '.join(pair)}", f"the keys {', '.join(entry)}")
        return None
    table = {key: reader.text(each, "an endpoint") for key, each in reader.entries(entry.get("endpoints")).items()}
    inner = Inner(
        str(entry["path"].value) if "path" in entry else "$",
        endpoint=reader.text(entry["endpoint"], "an endpoint") if "endpoint" in entry else None,
        method=reader.text(entry["method"], "a field") if "method" in entry else None,
        url=reader.text(entry["url"], "a field") if "url" in entry else None,
        told_by=reader.text(entry["told_by"], "a field") if "told_by" in entry else None,
        endpoints=table,
    )
    for name in inner.named():
        if name not in names:
            reader.fault(node, "endpoints of this file", name)
    return (entry["path"], inner) if "path" in entry else None
