"""Read a dialect from YAML text: a ``Dialect``, or everything that is wrong with the file at once. Pure.

The format is described in docs/dialects.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tidegate.dialects import calling, owning
from tidegate.dialects.addresses import MODEL, kinds_of
from tidegate.dialects.composition import COMPOSITION_KEYS, composition
from tidegate.dialects.counting import rate_headers, usages
from tidegate.dialects.errors import GRPC, PLACES
from tidegate.dialects.fields import ExpressionError, Trie, steps
from tidegate.dialects.messages import socket
from tidegate.dialects.methods import all_alike, grpc
from tidegate.dialects.paths import EXPRESSION, REASON, compiled, paths, plain, words
from tidegate.dialects.spec import (
    ALPHABETS,
    AnswerField,
    AskedSpec,
    Closed,
    Condition,
    Dialect,
    Endpoint,
    ErrorShape,
    Exempt,
    Media,
    RequestField,
    RoleFrom,
    Shape,
    ToolNames,
)
from tidegate.dialects.streaming import stream
from tidegate.model import Fault, Modality, Role
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node, parse

ROOT_KEYS = (
    "dialect", "version", "description", "shapes", "error", "endpoints", "closed", "usage", "rate_headers",
)  # fmt: skip
SHAPE_KEYS = ("alphabet", "least", "most", "prefixes", "opaque")
ERROR_KEYS = ("body", "event", "event_name", "message", "close", "types", "answered")
ENDPOINT_KEYS = (
    "like", "methods", "paths", "calls", "called", "body", "asked", "request", "media", "deny", "deny_headers",
    "refuse", "pieces", "answer", "answer_media", "restore", "stream", "socket", "grpc", *COMPOSITION_KEYS, "unread",
    "owned", "makes", "lists", "local",
)  # fmt: skip
ASKED_KEYS = (
    "model", "path_model", "stream", "streams", "tools", "max_output", "endless", "unlimited", "model_prefixes",
    "query", "called", "choices", "modalities", "always",
)  # fmt: skip
TOOL_KEYS = ("each", "named", "keyed", "only")
REQUEST_KEYS = ("path", "role", "role_from", "roles", "source", "exempt", "because")
ANSWER_KEYS = ("path", "role", "role_from", "roles", "source", "exempt", "drop", "because")
MEDIA_KEYS = ("path", "data", "kinds", "but", "when", "unless", "because", "modality", "mime")
HEADER_KEYS = ("name", "because")
CLOSED_KEYS = ("paths", "because")
CONDITION_KEYS = ("path", "because", "kinds", "values", "unless", "unread")
KINDS = ("string", "number", "boolean", "object", "list", "numbers")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_PATH = "a path such as /v1/models/*, without a query"
_FIELD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_PART = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@~")


def parse_dialect(text: str, file: str) -> tuple[Dialect | None, tuple[Fault, ...]]:
    """Read one dialect. Returns it and no faults, or ``None`` and every fault of the file; ``file`` names it."""
    root, faults = parse(text, file)
    if root is None:
        return None, faults
    reader = Reader(file)
    dialect = _dialect(reader, root)
    faults += tuple(reader.faults)
    return (None if faults else dialect), faults


def _dialect(reader: Reader, root: Node) -> Dialect:
    required = {"dialect": NAME, "version": "1", "endpoints": "endpoints by name"}
    top = reader.section(root, ROOT_KEYS, required)
    if "version" in top and top["version"].value != 1:
        reader.fault(top["version"], "1")
    shapes = {name: _shape(reader, node) for name, node in reader.entries(top.get("shapes")).items()}
    error = _error(reader, top["error"]) if "error" in top else GRPC
    nodes = reader.entries(top.get("endpoints"))
    endpoints = {name: _endpoint(reader, name, nodes, shapes) for name in nodes}
    all_alike(reader, root, top, endpoints)
    endpoints = calling.joined(reader, endpoints, nodes)
    told = error.message is not None or error.close
    if "error" in top and not told and any(each.socket is not None for each in endpoints.values()):
        accepted = "a message or close too, which an endpoint with a socket refuses with"
        reader.fault(top["error"], accepted, "no key message or close")
    for name, kinds in owning.unmade(endpoints.values()).items():
        accepted = "{model}, and kinds of stored things that an answer of this dialect makes"
        reader.fault(nodes[name], accepted, ", ".join(kinds), f"{nodes[name].key}: kinds")
    return Dialect(
        name=reader.name(top.get("dialect")),
        endpoints=endpoints,
        error=error,
        exact=_exact(reader, endpoints, nodes),
        closed=tuple(_closed(reader, child) for child in reader.items(top.get("closed"))),
        usage=usages(reader, top.get("usage"), endpoints),
        rate_headers=rate_headers(reader, top.get("rate_headers")),
    )


def _closed(reader: Reader, node: Node) -> Closed:
    entry = reader.section(node, CLOSED_KEYS, {"paths": f"a list with {_PATH}", "because": REASON})
    paths = words(reader, entry.get("paths"), f"a list with {_PATH}")
    if "paths" in entry and (not paths or not all(map(_is_path, paths))):
        reader.fault(entry["paths"], f"a list with {_PATH}", _list(paths))
    return Closed(paths, _because(reader, entry))


def _exact(reader: Reader, endpoints: Mapping[str, Endpoint], nodes: Mapping[str, Node]) -> dict[tuple[str, str], str]:
    """Index the paths without a place; a path that two endpoints claim is a fault."""
    owners: dict[tuple[str, str], str] = {}
    for name, endpoint in endpoints.items():
        for at in ((method, path) for method in endpoint.methods for path in endpoint.paths):
            if owners.setdefault(at, name) != name:
                reader.fault(nodes[name], "each method and path once", f"{' '.join(at)}, which {owners[at]} has too")
    exact = {at: name for at, name in owners.items() if "*" not in at[1] and "{" not in at[1]}
    return exact | {(method, ""): name for (method, path), name in exact.items() if path == "/"}


def _shape(reader: Reader, node: Node) -> Shape:
    entry = reader.section(node, SHAPE_KEYS, {"alphabet": _either(ALPHABETS), "least": "a length", "most": "a length"})
    alphabet = _word(reader, entry.get("alphabet"), tuple(ALPHABETS))
    least = reader.count(entry.get("least"), "a length in characters") or 1
    most = reader.count(entry.get("most"), "a length in characters") or least
    if least > most:
        reader.fault(entry["most"], f"a length of {least} or more, the least of this shape")
    prefixes = words(reader, entry.get("prefixes"), "a list of prefixes")
    return Shape(ALPHABETS.get(alphabet, ""), least, most, prefixes, reader.flag(entry.get("opaque"), default=False))


def _error(reader: Reader, node: Node) -> ErrorShape:
    template = "a body with places such as ${message}"
    required = {"body": template, "event": template, "types": "error types by status, and other"}
    entry = reader.section(node, ERROR_KEYS, required)
    for key in ("body", "event", "message", "close"):
        if key in entry:
            _check_template(reader, entry[key])
    types: dict[int, str | int] = {0: ""}
    for key, child in reader.entries(entry.get("types")).items():
        if key != "other" and not (key.isdecimal() and 400 <= int(key) <= 599):
            reader.fault(child, "an HTTP status from 400 to 599, or other", f"the key {key}")
        else:
            types[0 if key == "other" else int(key)] = _type(reader, child)
    if "types" in entry and not types[0]:
        reader.fault(entry["types"], "a type for every other status too", "no key other")
    named = entry.get("event_name")
    name = None if named is None or named.value is None else reader.text(named, "the name of the event")
    body, event, message = (plain(entry[key]) if key in entry else None for key in ("body", "event", "message"))
    answered = entry["answered"].value if "answered" in entry else None
    if answered is not None and (type(answered) is not int or not 200 <= answered <= 599):
        reader.fault(entry["answered"], "an HTTP status from 200 to 599")
        answered = None
    close = reader.text(entry["close"], "the reason with which a WebSocket is closed") if "close" in entry else ""
    return ErrorShape(body, event, name, types, message, answered, close)


def _type(reader: Reader, node: Node) -> str | int:
    if type(node.value) is int:
        return node.value
    return reader.text(node, "the family's name or number of the error type")


def _check_template(reader: Reader, node: Node) -> None:
    if isinstance(node.value, str):
        for piece in node.value.split("${")[1:]:
            name, closed, _ = piece.partition("}")
            if not closed or name not in PLACES:
                reader.fault(node, _either(f"${{{place}}}" for place in PLACES), "an unknown place in a template")
    for child in _children(node):
        _check_template(reader, child)


def _endpoint(reader: Reader, name: str, nodes: Mapping[str, Node], shapes: Mapping[str, Shape]) -> Endpoint:
    entry = _liked(reader, name, nodes)
    methods: tuple[str, ...] = ()
    places = called = methods
    if "called" in entry or name in calling.results(nodes):
        called = calling.called(reader, entry)
    else:
        methods, places = _address(reader, nodes[name], entry)
    is_socket = "socket" in entry and entry["socket"].value is not None
    told = entry.get("stream")
    spoken = stream(reader, told, unread=is_socket) if told is not None and told.value is not None else None
    return Endpoint(
        name=name,
        methods=methods,
        paths=places,
        body=reader.flag(entry.get("body"), default=True),
        asked=_asked(reader, entry.get("asked")),
        request=_trie(reader, entry.get("request"), lambda node: _request_field(reader, node, shapes)),
        answer=_trie(
            reader, entry.get("answer"), lambda node: _answer_field(reader, node), lambda one: one.exempt is not None
        ),
        stream=spoken,
        deny=_trie(reader, entry.get("deny"), lambda node: _condition(reader, node)),
        refuse=_trie(reader, entry.get("refuse"), lambda node: _condition(reader, node)),
        media=_trie(reader, entry.get("media"), lambda node: _media(reader, node)),
        restore=paths(reader, entry.get("restore")),
        socket=socket(reader, entry, spoken),
        answer_media=_trie(reader, entry.get("answer_media"), lambda node: _media(reader, node)),
        pieces=paths(reader, entry.get("pieces")),
        calls=calling.calls(reader, entry),
        called=called,
        made_of=composition(reader, entry, nodes),
        unread=reader.text(entry.get("unread"), REASON).strip().rstrip("."),
        deny_headers=dict(_header(reader, node) for node in reader.items(entry.get("deny_headers"))),
        grpc=grpc(reader, nodes[name], entry),
        owned=owning.owned(reader, entry.get("owned")),
        makes=owning.makes(reader, entry.get("makes")),
        lists=owning.lists(reader, entry.get("lists")),
        local=owning.local(reader, entry.get("local")),
    )


def _address(reader: Reader, node: Node, entry: Mapping[str, Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    methods = words(reader, entry.get("methods"), f"a list of {_either(METHODS)}")
    if not methods or not set(methods) <= set(METHODS):
        reader.fault(node, f"a list of {_either(METHODS)}", _list(methods), f"{node.key}.methods")
    paths = words(reader, entry.get("paths"), f"a list with {_PATH}")
    if not paths or not all(map(_is_path, paths)):
        reader.fault(node, f"a list with {_PATH}", _list(paths), f"{node.key}.paths")
    return methods, paths


def _liked(reader: Reader, name: str, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Read an endpoint's keys; ``like`` takes those it does not have from another endpoint of the file."""
    entry = reader.section(nodes[name], ENDPOINT_KEYS)
    if "like" not in entry:
        return entry
    other = reader.text(entry["like"], "the name of an endpoint")
    model = nodes.get(other)
    if model is None or not isinstance(model.value, Mapping) or "like" in model.value:
        reader.fault(entry["like"], "the name of an endpoint of this file that has no like itself")
        return entry
    own = ("calls", "called")  # how it is reached by messages is an endpoint's own
    return {key: node for key, node in model.value.items() if key in ENDPOINT_KEYS and key not in own} | entry


def _asked(reader: Reader, node: Node | None) -> AskedSpec:
    entry = {} if node is None else reader.section(node, ASKED_KEYS)

    return AskedSpec(
        model=paths(reader, entry.get("model")),
        stream=paths(reader, entry.get("stream")),
        tools=_trie(reader, entry.get("tools"), lambda child: _tools(reader, child)),
        max_output=paths(reader, entry.get("max_output")),
        called=_trie(reader, entry.get("called"), lambda child: _tools(reader, child)),
        choices=paths(reader, entry.get("choices")),
        modalities=paths(reader, entry.get("modalities")),
        always=_modalities(reader, entry.get("always")),
        streams=reader.flag(entry.get("streams"), default=False),
        endless=reader.flag(entry.get("endless"), default=False),
        path_model=reader.flag(entry.get("path_model"), default=False),
        model_prefixes=words(reader, entry.get("model_prefixes"), "a list of prefixes such as models/"),
        unlimited=tuple(map(plain, reader.items(entry.get("unlimited")))),
        query=words(reader, entry.get("query"), "a list of parameters of the address"),
    )


def _modalities(reader: Reader, node: Node | None) -> frozenset[Modality]:
    found = reader.items(node, f"a list of {_either(Modality)}")
    return frozenset(reader.choice(each, Modality, Modality.OTHER) for each in found)


def _tools(reader: Reader, node: Node) -> tuple[Node, ToolNames] | None:
    entry = reader.section(node, TOOL_KEYS, {"each": EXPRESSION})
    named = {}
    for key, child in reader.entries(entry.get("named")).items():
        parts = tuple(reader.text(child, "field names joined by dots, such as function.name").split("."))
        named[key] = parts
    keyed = words(reader, entry["keyed"], "a list of fields that are no tools") if "keyed" in entry else None
    only = reader.flag(entry.get("only"), default=False)
    return (entry["each"], ToolNames(str(entry["each"].value), named, keyed, only)) if "each" in entry else None


def _request_field(reader: Reader, node: Node, shapes: Mapping[str, Shape]) -> tuple[Node, RequestField] | None:
    entry = reader.section(node, REQUEST_KEYS, _required("exempt" in _names(node)))
    names = reader.texts(entry.get("exempt"), f"a list of shapes: {_either(shapes)}")
    for each in names:
        if each.value not in shapes:
            reader.fault(each, f"a shape of this file: {_either(shapes)}")
    known = tuple(shapes[str(each.value)] for each in names if each.value in shapes)
    exempt = Exempt(_because(reader, entry), known) if "exempt" in entry else None
    if "path" not in entry:
        return None
    role_from = _role_from(reader, entry)
    role = _role(reader, entry.get("role"))
    source = reader.flag(entry.get("source"), default=False)
    _says_something(reader, node, REQUEST_KEYS)
    return entry["path"], RequestField(str(entry["path"].value), role, role_from, source, exempt)


def _answer_field(reader: Reader, node: Node) -> tuple[Node, AnswerField] | None:
    entry = reader.section(node, ANSWER_KEYS, _required({"exempt", "drop"} & set(_names(node))))
    if "path" not in entry:
        return None
    unread = reader.flag(entry.get("exempt"), default=False)
    because = _because(reader, entry)
    role_from = _role_from(reader, entry)
    role = _role(reader, entry.get("role"))
    source, drop = (reader.flag(entry.get(key), default=False) for key in ("source", "drop"))
    _says_something(reader, node, ANSWER_KEYS)
    exempt = Exempt(because) if unread else None
    return entry["path"], AnswerField(str(entry["path"].value), role, role_from, source, exempt, drop)


def _media(reader: Reader, node: Node) -> tuple[Node, Media] | None:
    entry = reader.section(node, MEDIA_KEYS, {"path": EXPRESSION})
    kinds = _kinds(reader, entry)
    ways = words(reader, entry.get("data"), "a list of field names joined by dots, such as source.data, or . itself")
    when, unless = (
        {name: tuple(map(plain, reader.items(child))) for name, child in reader.entries(entry.get(key)).items()}
        for key in ("when", "unless")
    )
    if "path" not in entry:
        return None
    data = tuple(tuple(filter(None, each.split("."))) for each in ways)
    but = tuple(map(plain, reader.items(entry.get("but"))))
    because = _because(reader, entry) if "because" in entry else ""
    modality = reader.choice(entry["modality"], Modality, Modality.OTHER) if "modality" in entry else None
    mime = words(reader, entry.get("mime"), "a list of field names such as mimeType")
    return entry["path"], Media(str(entry["path"].value), data, kinds, when, unless, but, because, modality, mime)


def _kinds(reader: Reader, entry: Mapping[str, Node]) -> frozenset[str]:
    kinds = words(reader, entry.get("kinds"), f"a list of {_either(KINDS)}")
    if not set(kinds) <= set(KINDS):
        reader.fault(entry["kinds"], f"a list of {_either(KINDS)}", _list(kinds))
    return frozenset(kinds)


def _condition(reader: Reader, node: Node) -> tuple[Node, Condition] | None:
    entry = reader.section(node, CONDITION_KEYS, _required(because=True))
    kinds = _kinds(reader, entry)
    values, unless = (tuple(map(plain, reader.items(entry.get(key)))) for key in ("values", "unless"))
    because, unread = _because(reader, entry), reader.flag(entry.get("unread"), default=False)
    if "path" not in entry:
        return None
    return entry["path"], Condition(str(entry["path"].value), because, kinds, values, unless, unread)


def _header(reader: Reader, node: Node) -> tuple[str, str]:
    accepted = "the name of a header field in lower case"
    entry = reader.section(node, HEADER_KEYS, {"name": accepted, "because": REASON})
    name = reader.text(entry.get("name"), accepted)
    if "name" in entry and not _FIELD.issuperset(name):
        reader.fault(entry["name"], accepted)
    return name, _because(reader, entry)


def _role(reader: Reader, node: Node | None) -> Role | None:
    return None if node is None else reader.choice(node, Role, Role.OTHER)


def _role_from(reader: Reader, entry: Mapping[str, Node]) -> RoleFrom | None:
    if "role_from" not in entry or "roles" not in entry:
        for key in {"role_from", "roles"} & set(entry):
            reader.fault(entry[key], "role_from and roles together", f"{key} alone")
        return None
    roles = {key: reader.choice(child, Role, Role.OTHER) for key, child in reader.entries(entry["roles"]).items()}
    try:
        way = steps(str(entry["path"].value)) if "path" in entry else ()
    except ExpressionError:
        way = ()  # reported where the path is compiled
    if any(step.deep for step in way):
        reader.fault(entry["path"], "a path of fixed depth, since role_from looks at one object", ".. in the path")
    return RoleFrom(reader.text(entry["role_from"], "the name of a field"), len(way), roles)


def _says_something(reader: Reader, node: Node, keys: tuple[str, ...]) -> None:
    if not set(_names(node)) - {"path", "because"}:
        reader.fault(node, f"one of {_either(key for key in keys if key != 'path')}", "a path that says nothing")


def _required(because: object) -> dict[str, str]:
    return {"path": EXPRESSION} | ({"because": REASON} if because else {})


def _because(reader: Reader, entry: Mapping[str, Node]) -> str:
    return reader.text(entry.get("because"), REASON).strip().rstrip(".")


def _trie[T](
    reader: Reader,
    node: Node | None,
    one: Callable[[Node], tuple[Node, T] | None],
    skip: Callable[[T], bool] | None = None,
) -> Trie[T]:
    found = [one(child) for child in reader.items(node)]
    return compiled(reader, [pair for pair in found if pair is not None], skip)


def _word(reader: Reader, node: Node | None, words: tuple[str, ...]) -> str:
    if node is not None and node.value not in words:
        reader.fault(node, _either(words))
    return "" if node is None else str(node.value)


def _children(node: Node) -> Iterable[Node]:
    if isinstance(node.value, Mapping):
        return node.value.values()
    return node.value if isinstance(node.value, tuple) else ()


def _names(node: Node) -> Iterable[str]:
    return node.value if isinstance(node.value, Mapping) else ()


def _is_path(text: str) -> bool:
    if text == "/":
        return True
    parts = text[1:].split("/")
    return text.startswith("/") and text.count(MODEL) <= 1 and all(map(_is_part, parts))


def _is_part(part: str) -> bool:
    if kinds_of(part):
        return True
    place = next((each for each in ("*", MODEL) if part.startswith(each)), "")
    return bool(part) and _PART.issuperset(part.removeprefix(place))


def _list(words: Iterable[str]) -> str:
    return f"[{', '.join(words)}]"


def _either(words: Iterable[object]) -> str:
    every = [str(word) for word in words]
    return " or ".join(filter(None, (", ".join(every[:-1]), *every[-1:])))
