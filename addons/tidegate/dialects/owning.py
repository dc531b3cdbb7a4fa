"""Read the keys ``owned``, ``makes`` and ``lists`` of an endpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tidegate.dialects.addresses import kinds_of
from tidegate.dialects.fields import Trie
from tidegate.dialects.ownership import Conditions, Listed, Makes, Owned, Way
from tidegate.dialects.paths import EXPRESSION, compiled, plain, words
from tidegate.dialects.spec import Endpoint
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node

OWNED_KEYS = ("path", "query", "kind", "id", "when", "unless")
MAKES_KEYS = ("path", "kind", "id", "when", "unless")
LISTS_KEYS = ("path", "kind", "id", "ends")

_WAY = "field names joined by dots, such as conversation.id"


def owned(reader: Reader, node: Node | None) -> Trie[Owned]:
    """Read where a request names what is stored."""
    paths: list[tuple[Node, Owned]] = []
    for each in reader.items(node):
        entry = reader.section(each, OWNED_KEYS, {"kind": NAME})
        if ("path" in entry) == ("query" in entry):
            reader.fault(each, "either a path into the body or a field of the query", "both or neither")
            continue
        when, unless = _conditions(reader, entry, "when"), _conditions(reader, entry, "unless")
        ways = words(reader, entry.get("id"), f"a list of {_WAY}, or . for the value itself") or (".",)
        ids = tuple(tuple(filter(None, way.split("."))) for way in ways)
        kind = reader.name(entry.get("kind"))
        if "query" in entry:
            name = reader.text(entry["query"], "the name of a field of the query")
            for key in {"id", "when", "unless"} & set(entry):
                reader.fault(entry[key], "nothing beside query and kind", f"{key}")
            at = Node(entry["query"].key, entry["query"].line, "$.'?'")  # no body has it: it is read elsewhere
            paths.append((at, Owned(name, kind, query=True)))
        else:
            paths.append((entry["path"], Owned(str(entry["path"].value), kind, ids, when, unless)))
    return compiled(reader, paths)


def makes(reader: Reader, node: Node | None) -> Trie[Makes]:
    """Read where an answer says that something was made."""
    paths: list[tuple[Node, Makes]] = []
    for each in reader.items(node):
        entry = reader.section(each, MAKES_KEYS, {"path": EXPRESSION, "kind": NAME})
        if "path" in entry:
            when, unless = _conditions(reader, entry, "when"), _conditions(reader, entry, "unless")
            spec = Makes(
                str(entry["path"].value), reader.name(entry.get("kind")), _way(reader, entry.get("id")), when, unless
            )
            paths.append((entry["path"], spec))
    return compiled(reader, paths)


def lists(reader: Reader, node: Node | None) -> Trie[Listed]:
    """Read where an answer lists what is stored."""
    paths: list[tuple[Node, Listed]] = []
    for each in reader.items(node):
        entry = reader.section(each, LISTS_KEYS, {"path": EXPRESSION, "kind": NAME})
        ends = words(reader, entry.get("ends"), "the fields that name the first and the last entry")
        if "ends" in entry and len(ends) != 2:
            reader.fault(entry["ends"], "two fields, that of the first and that of the last entry")
        if "path" in entry:
            two = (ends[0], ends[1]) if len(ends) == 2 else None
            spec = Listed(str(entry["path"].value), reader.name(entry.get("kind")), _way(reader, entry.get("id")), two)
            paths.append((entry["path"], spec))
    return compiled(reader, paths)


def local(reader: Reader, node: Node | None) -> Trie[str]:
    """Read where an answer gives an address at the upstream that the client will ask for."""
    found = reader.texts(node, f"a list with {EXPRESSION}")
    return compiled(reader, [(text, str(text.value)) for text in found])


def unmade(endpoints: Iterable[Endpoint]) -> dict[str, tuple[str, ...]]:
    """Return the kinds that requests name and no answer makes, by endpoint: nobody could ever own one."""
    every = tuple(endpoints)
    known = {each.kind for endpoint in every for _, each in endpoint.makes.paths}
    return {endpoint.name: lost for endpoint in every if (lost := tuple(sorted(_named(endpoint) - known)))}


def _named(endpoint: Endpoint) -> set[str]:
    found = {each.kind for _, each in endpoint.owned.paths} | {each.kind for _, each in endpoint.lists.paths}
    return found | {kind for path in endpoint.paths for kind in kinds_of(path)}


def _way(reader: Reader, node: Node | None) -> Way:
    return tuple(filter(None, reader.text(node, _WAY, "id").split(".")))


def _conditions(reader: Reader, entry: Mapping[str, Node], key: str) -> Conditions:
    return {name: tuple(map(plain, reader.items(child))) for name, child in reader.entries(entry.get(key)).items()}
