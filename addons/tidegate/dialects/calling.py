"""Read the ``calls`` of an endpoint, and join the endpoints that are called there to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidegate.dialects.paths import words
from tidegate.dialects.spec import Batch, CallSpec, Endpoint
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

CALLS_KEYS = ("batch", "results")
BATCH_KEYS = ("header", "values")

_NO_ADDRESS = ("methods", "paths", "body", "socket", "calls")
_METHODS = "a list of JSON-RPC methods, such as tools/call"
_RESULTS = "the name of an endpoint of this file that has neither methods and paths nor called"


def calls(reader: Reader, entry: Mapping[str, Node]) -> CallSpec | None:
    """Read the calls of an endpoint with the keys ``entry``; the endpoints that are called come with ``joined``."""
    if "calls" not in entry:
        return None
    found = reader.section(entry["calls"], CALLS_KEYS)
    if words(reader, entry.get("methods"), "[POST]") != ("POST",):
        reader.fault(entry["calls"], "the method POST alone, by which JSON-RPC is spoken", "other methods")
    batch = None
    if "batch" in found:
        keys = reader.section(found["batch"], BATCH_KEYS, {"header": _HEADER, "values": _VALUES})
        batch = Batch(reader.text(keys.get("header"), _HEADER).lower(), words(reader, keys.get("values"), _VALUES))
    return CallSpec({}, None, batch)


_HEADER = "the name of a header field"
_VALUES = "a list of values of that header field"


def results(nodes: Mapping[str, Node]) -> frozenset[str]:
    """Return the names of the endpoints by which what a client answers is judged."""
    named = (_keys(_keys(node).get("calls")).get("results") for node in nodes.values())
    return frozenset(str(each.value) for each in named if each is not None)


def called(reader: Reader, entry: Mapping[str, Node]) -> tuple[str, ...]:
    """Read the methods that call an endpoint with the keys ``entry``. It must not have an address as well."""
    for key in _NO_ADDRESS:
        if key in entry:
            reader.fault(entry[key], "no such key where an endpoint is called by a message", f"the key {key}")
    return words(reader, entry.get("called"), _METHODS)


def joined(reader: Reader, endpoints: dict[str, Endpoint], nodes: Mapping[str, Node]) -> dict[str, Endpoint]:
    """Give the endpoint with ``calls`` those that are called there.

    They answer as it does, unless they say how: an answer may hold messages of every kind.
    """
    doors = [each for each in endpoints.values() if each.calls is not None]
    members = [each for each in endpoints.values() if each.called]
    if len(doors) != 1:
        told = f"{len(doors)} endpoints with calls"
        for each in (*doors[1:], *(() if doors else members)):
            reader.fault(nodes[each.name], "one endpoint with calls, where the others are called", told)
        return endpoints
    door = doors[0]
    assert door.calls is not None
    ready = dict(endpoints)
    methods: dict[str, Endpoint] = {}
    for each in members:
        ready[each.name] = _answering(each, door)
        for method in each.called:
            if methods.setdefault(method, ready[each.name]) is not ready[each.name]:
                found = f"{method}, which {methods[method].name} has too"
                reader.fault(nodes[each.name], "each JSON-RPC method once", found)
    answers = None
    for name in results(nodes):
        judging = endpoints.get(name)
        if judging is None or judging.paths or judging.called:
            reader.fault(_keys(_keys(nodes[door.name])["calls"])["results"], _RESULTS)
        else:
            answers = ready[name] = _answering(judging, door)
    ready[door.name] = replace(door, calls=replace(door.calls, methods=methods, results=answers))
    return ready


def _answering(endpoint: Endpoint, door: Endpoint) -> Endpoint:
    return replace(
        endpoint,
        answer=endpoint.answer if endpoint.answer.paths else door.answer,
        stream=endpoint.stream or door.stream,
        answer_media=endpoint.answer_media if endpoint.answer_media.paths else door.answer_media,
        pieces=endpoint.pieces if endpoint.pieces.paths else door.pieces,
        restore=endpoint.restore if endpoint.restore.paths else door.restore,
    )


def _keys(node: Node | None) -> Mapping[str, Node]:
    return node.value if node is not None and isinstance(node.value, Mapping) else {}
