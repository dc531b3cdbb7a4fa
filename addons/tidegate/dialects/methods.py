"""Read the ``grpc`` section of an endpoint, and compare a dialect's methods with a descriptor set. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from tidegate.dialects.paths import words
from tidegate.dialects.protobuf import Descriptors
from tidegate.dialects.spec import Dialect, Endpoint, GrpcSpec, Tensors
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

GRPC_KEYS = ("tensors", "elements", "numbers", "vectors")
TENSOR_KEYS = ("data", "of", "type", "text", "numbers", "vectors")

_FIELD = "the name of a field"
_FIELDS = "a list of field names"
_TYPES = "a list of types of tensors"
_FORM = "a form of Python's struct for one number, such as i"
_METHOD = "one path such as /package.Service/Method, and the method POST"


def grpc(reader: Reader, node: Node, entry: Mapping[str, Node]) -> GrpcSpec | None:
    """Read how the messages of an endpoint with the keys ``entry`` are shown; ``None`` if it is no gRPC method."""
    if "grpc" not in entry or entry["grpc"].value is None:
        return None
    paths, methods = words(reader, entry.get("paths"), _METHOD), words(reader, entry.get("methods"), _METHOD)
    if methods != ("POST",) or len(paths) != 1 or paths[0].count("/") != 2 or {"*", "{"} & set(paths[0]):
        reader.fault(node, _METHOD, f"{', '.join(methods)} {', '.join(paths)}")
    if "socket" in entry:
        reader.fault(entry["socket"], "a WebSocket or a gRPC method", "both")
    spoken = entry["stream"].value if "stream" in entry else None
    for key in ("framing", "wrapped", "done"):
        if isinstance(spoken, Mapping) and key in spoken:
            reader.fault(spoken[key], f"no key {key} in the stream of a gRPC method")
    found = reader.section(entry["grpc"], GRPC_KEYS)
    return GrpcSpec(
        tensors=tuple(_tensors(reader, child) for child in reader.items(found.get("tensors"))),
        elements=frozenset(words(reader, found.get("elements"), _FIELDS)),
        numbers=frozenset(words(reader, found.get("numbers"), _FIELDS)),
        vectors=frozenset(words(reader, found.get("vectors"), _FIELDS)),
    )


def _tensors(reader: Reader, node: Node) -> Tensors:
    entry = reader.section(node, TENSOR_KEYS, {"data": _FIELD, "of": _FIELD, "type": _FIELD, "text": _TYPES})
    numbers = {}
    for kind, child in reader.entries(entry.get("numbers")).items():
        form = reader.text(child, _FORM)
        if not _is_form(form):
            reader.fault(child, _FORM)
        numbers[kind] = form
    return Tensors(
        data=reader.text(entry.get("data"), _FIELD),
        of=reader.text(entry.get("of"), _FIELD),
        type=reader.text(entry.get("type"), _FIELD),
        text=frozenset(words(reader, entry.get("text"), _TYPES)),
        numbers=numbers,
        vectors=frozenset(words(reader, entry.get("vectors"), _TYPES)),
    )


def _is_form(form: str) -> bool:
    return len(form) == 1 and form in "?bBhHiIqQefd" and bool(struct.calcsize(f"<{form}"))


def all_alike(reader: Reader, root: Node, top: Mapping[str, Node], endpoints: Mapping[str, Endpoint]) -> None:
    """Want a dialect to be all gRPC, whose refusals have one form, or to say how its own are written."""
    kinds = {each.grpc is not None for each in endpoints.values()}
    if len(kinds) > 1:
        reader.fault(top["endpoints"], "a section grpc in all endpoints or in none", "both kinds")
    if kinds == {True} and "error" in top:
        reader.fault(top["error"], "no section error, since gRPC says how errors are written")
    if kinds != {True} and "error" not in top:
        reader.fault(root, "how errors are written", "nothing", "error")


def misfits(dialect: Dialect, descriptors: Descriptors) -> Iterator[tuple[str, str]]:
    """Find what a dialect's methods want and a descriptor set does not have: what was found, and what is accepted."""
    for name, endpoint in dialect.endpoints.items():
        if endpoint.grpc is None:
            continue
        method = descriptors.method(endpoint.paths[0])
        if method is None:
            yield (
                f"no method {endpoint.paths[0]}, which the endpoint {name} is",
                "a set with its methods",
            )
            continue
        if method.server_streams and endpoint.stream is None:
            yield f"an answer in many messages of {endpoint.paths[0]}", f"a section stream in the endpoint {name}"
        for kind in (method.request.DESCRIPTOR, method.answer.DESCRIPTOR):
            yield from _collisions(endpoint.grpc, kind)


def _collisions(spec: GrpcSpec, kind: Any) -> Iterator[tuple[str, str]]:
    """Find tensors that have a field of the name under which their raw data are shown: it would not be seen."""
    todo, seen = [kind], {kind.full_name}
    while todo:
        at = todo.pop()
        for tensors in spec.tensors:
            of = at.fields_by_name.get(tensors.of)
            if of is not None and of.message_type and tensors.data in of.message_type.fields_by_name:
                yield f"a field {tensors.data} in {of.message_type.full_name}", "tensors without a field of that name"
        for each in at.fields:
            if each.message_type is not None and each.message_type.full_name not in seen:
                seen.add(each.message_type.full_name)
                todo.append(each.message_type)
