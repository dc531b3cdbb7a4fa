"""What a dialect is, as values: endpoints, the fields of their bodies, their streams, and the shape of an error.

A dialect comes from one YAML file (``load.py``). Paths give roles and exemptions; absence from them exempts nothing.
"""

from __future__ import annotations

import binascii
import enum
import string
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.dialects.fields import Leaf, LeafKind, Pointer, Trie
from tidegate.model import Denial, Reason, Role

JsonObject = dict[str, object]

ALPHABETS: Mapping[str, str] = {
    "base64": string.ascii_letters + string.digits + "+/=",
    "base64url": string.ascii_letters + string.digits + "-_=",
    "id": string.ascii_letters + string.digits + "-_",
    "digits": string.digits + ".",
}


class FramingKind(enum.StrEnum):
    """The form in which the events of a streamed answer arrive. ``JSON``: it is no stream but one value."""

    SSE = "sse"
    NDJSON = "ndjson"
    ARRAY = "array"
    EVENTSTREAM = "eventstream"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class RoleFrom:
    """The role of everything in an object is told by a field of that object.

    ``depth`` counts the pointer parts that lead to the object. A value outside ``roles`` leaves the role as it was.
    """

    field: str
    depth: int
    roles: Mapping[str, Role]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the text of an exempt request field must look like. Checked in linear time, without a pattern.

    ``opaque`` adds that the text, read as base64, must not decode to text. A field that has another shape is inspected
    like any other, so an exempt field is no place to hide a text.
    """

    alphabet: str
    least: int
    most: int
    prefixes: tuple[str, ...] = ()
    opaque: bool = False

    def fits(self, text: str) -> bool:
        """Say whether a text has the shape: length in characters, one of the prefixes, nothing but the alphabet."""
        return (
            self.least <= len(text) <= self.most
            and (not self.prefixes or text.startswith(self.prefixes))
            and not text.strip(self.alphabet)
            and not (self.opaque and _readable(text))
        )


def _readable(text: str) -> bool:
    """Say whether base64 of either alphabet hides UTF-8 text (64 random bytes practically never are)."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        binascii.a2b_base64(plain + "=" * (-len(plain) % 4)).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Exempt:
    """A field that is not inspected. In requests it must fit one of ``shapes``; in answers there are none."""

    because: str
    shapes: tuple[Shape, ...] = ()

    def covers(self, text: str) -> bool:
        """Say whether this text may go uninspected."""
        return not self.shapes or any(shape.fits(text) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class RequestField:
    """What a path says about a field of a request. ``source``: the text is JSON source in a string."""

    path: str
    role: Role | None = None
    role_from: RoleFrom | None = None
    source: bool = False
    exempt: Exempt | None = None


@dataclass(frozen=True, slots=True)
class AnswerField:
    """What a path says about a field of an answer. ``drop``: a second copy, emptied."""

    path: str
    role: Role | None = None
    role_from: RoleFrom | None = None
    source: bool = False
    exempt: Exempt | None = None
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """A path whose values are refused in a request. ``null`` is never refused.

    ``kinds`` narrows it to JSON types (string, number, boolean, object, list), ``values`` to these values, ``unless``
    lets these values pass.
    """

    path: str
    because: str
    kinds: frozenset[str] = frozenset()
    values: tuple[object, ...] = ()
    unless: tuple[object, ...] = ()

    def meets(self, value: object) -> bool:
        """Say whether a value is refused."""
        if value is None or any(_same(value, other) for other in self.unless):
            return False
        if self.kinds and kind(value) not in self.kinds:
            return False
        return not self.values or any(_same(value, other) for other in self.values)


@dataclass(frozen=True, slots=True)
class Media:
    """A path whose values carry what is no text: pictures, files, speech, or a reference to something stored.

    ``data`` leads to the fields, from the value, that hold a data: URL or base64; the empty way is the value itself.
    Without any the value is a reference. ``kinds`` narrows it to JSON types, ``when`` to objects of which a field has
    one of these values, ``unless`` leaves such objects out.
    """

    path: str
    data: tuple[tuple[str, ...], ...] = ()
    kinds: frozenset[str] = frozenset()
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    unless: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def concerns(self, value: object) -> bool:
        """Say whether a value of this path is media; ``null`` never is."""
        if value is None or (self.kinds and kind(value) not in self.kinds):
            return False
        return all(_has(value, *each) for each in self.when.items()) and not any(
            _has(value, *each) for each in self.unless.items()
        )


def _has(value: object, name: str, values: tuple[object, ...]) -> bool:
    return isinstance(value, dict) and any(_same(value.get(name), each) for each in values)


@dataclass(frozen=True, slots=True)
class Delta:
    """A path in a stream event whose string continues a channel.

    Of several deltas that name the same leaf, the first whose ``when`` allows the event is the one.
    The channel's key is this delta and every (depth, name, value) of the fields ``key`` in the objects along the path,
    root included. ``when`` lists event types; ``None`` means any. ``source``: the channel is JSON source. ``beside``
    are fields of those objects that readers want in every event: one that is made up has them too.
    """

    path: str
    key: tuple[str, ...] = ()
    when: frozenset[str] | None = None
    source: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """A path in a stream event that passes byte-identical."""

    path: str
    because: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A path in a stream event that holds a second copy and is emptied."""

    path: str
    because: str


@dataclass(frozen=True, slots=True)
class Source:
    """A path in a stream event whose whole text is JSON source in a string: a repeat of tool-call arguments."""

    path: str


@dataclass(frozen=True, slots=True)
class Restore:
    """A path in a stream event whose text people read: tokens in it become values again. ``when`` as in ``Delta``."""

    path: str
    when: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Flush:
    """When held text must leave: the event type is in ``when`` (``None``: any) and ``path`` selects a value.

    ``path`` ``None`` means the event alone is enough; ``values`` are those that count (empty: any but null). Those
    channels are flushed whose key agrees on the names in ``key`` that both know. ``select`` is the path compiled; walk
    it with ``Flush.hits``.
    """

    path: str | None = None
    key: tuple[str, ...] = ()
    when: frozenset[str] | None = None
    select: Trie[None] | None = None
    values: tuple[object, ...] = field(default=(), hash=False)

    def hits(self, event: object) -> tuple[Pointer, ...]:
        """Point at the selected values that count; the empty pointer when no path is asked for."""
        if self.select is None:
            return ((),)
        hits = [found for found in self.select.select(event) if found.value is not None]
        if hits and self.values:
            hits = [found for found in hits if any(_same(found.value, each) for each in self.values)]
        return tuple(found.pointer for found in hits)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """How to read and write the stream of an endpoint.

    ``framings`` are the forms it may arrive in, the first the usual one. ``absent`` says what a field of a channel's
    key is where it is not there. ``wrapped``: an event is JSON in base64, in this field of the frame's object.
    ``event_type`` is the field that names an event (the SSE event name where it is absent); ``done`` the text that ends
    a stream; ``sequence`` the field that counts events; ``padding`` the field of random text that hides sizes.
    ``fields`` names the deltas, the JSON source, the kept and the dropped values of an event in one walk. All other
    strings are whole texts: repeats of what the deltas said, or text that arrives whole. ``restore`` names the texts of
    both kinds in which tokens become their values again.
    """

    event_type: str | None
    done: str | None
    sequence: str | None
    padding: str | None
    deltas: tuple[Delta, ...]
    flushes: tuple[Flush, ...]
    keep: tuple[Keep, ...]
    drop: tuple[Drop, ...]
    fields: Trie[Delta | Source | Keep | Drop]
    framings: tuple[FramingKind, ...] = (FramingKind.SSE,)
    absent: Mapping[str, object] = field(default_factory=dict, hash=False)
    wrapped: str | None = None
    restore: Trie[Restore] = field(default_factory=lambda: Trie[Restore]([]))


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """How a WebSocket is spoken: text messages of one JSON object each, whose type is in the stream's ``event_type``.

    ``messages`` are the types by which a client asks; the object is then a request body. ``events`` are the types an
    upstream may send (``*`` at the end: any rest), ``ends`` those that end an answer. ``continues`` is the request's
    field that names an earlier answer, ``names`` the field names that lead to where an answer names itself.
    """

    messages: frozenset[str]
    events: tuple[str, ...]
    ends: frozenset[str]
    continues: str | None = None
    names: tuple[str, ...] = ()

    def knows(self, kind: str) -> bool:
        """Say whether an upstream may send an event of this type."""
        return any(kind.startswith(each[:-1]) if each.endswith("*") else kind == each for each in self.events)


@dataclass(frozen=True, slots=True)
class ToolNames:
    """Where the tools of a request are named.

    ``each`` selects the tools. A tool whose ``type`` is in ``named`` (``""`` stands for no type) is called by the text
    at that path of field names; any other is built in and counts under its type and, if it has one, its name.
    With ``keyed`` the tools are the fields of what is selected, but for these: each is called by its own name, in
    camel case.
    """

    each: str
    named: Mapping[str, tuple[str, ...]]
    keyed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AskedSpec:
    """Where a request body says which model, whether to stream, which tools and how many output tokens.

    ``streams`` is what holds where the body does not say whether to stream. ``endless``: a limit below zero is none.
    ``model_prefixes`` may stand before the name of a model in the body and are no part of it.
    """

    model: Trie[str]
    stream: Trie[str]
    tools: Trie[ToolNames]
    max_output: Trie[str]
    streams: bool = False
    endless: bool = False
    model_prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a refusal is written. Templates hold ``${message}``, ``${reason}``, ``${type}``, ``${id}`` and ``${status}``.

    ``types`` maps an HTTP status to the family's error type; 0 is any other status. ``event`` is the body of an error
    in mid-stream and ``event_name`` its SSE event name (``None``: the event has no name). ``message`` is an error on a
    WebSocket (``None``: the family has none).
    """

    body: object
    event: object
    event_name: str | None
    types: Mapping[int, str]
    message: object = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation of an API. ``paths`` stand below the connection's prefix; a ``*`` part is any one plain part.

    ``{model}`` is such a part, or the beginning of one, and names the model that is asked for.
    With ``socket`` it is a WebSocket: the request that opens it has no body, and each of the client's messages is one.
    ``restore`` names the texts of an answer that people read: tokens in them become their values again.
    """

    name: str
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    body: bool
    asked: AskedSpec
    request: Trie[RequestField]
    answer: Trie[AnswerField]
    stream: StreamSpec | None
    deny: Trie[Condition]
    refuse: Trie[Condition]
    socket: SocketSpec | None = None
    media: Trie[Media] = field(default_factory=lambda: Trie[Media]([]))
    restore: Trie[str] = field(default_factory=lambda: Trie[str]([]))


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API family."""

    name: str
    endpoints: Mapping[str, Endpoint]
    error: ErrorShape
    exact: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(method, path) -> endpoint name, for the paths without a place."""


def role_of(leaf: Leaf[RequestField] | Leaf[AnswerField], body: object) -> Role:
    """Tell who speaks in a leaf: the innermost path that gives a role wins, and of equals the later in the file."""
    named: tuple[RequestField | AnswerField, ...] = (*leaf.around, *leaf.payloads)
    for payload in reversed(named):
        if payload.role_from is not None:
            role = _neighbour(payload.role_from, leaf.pointer, body)
            if role is not None:
                return role
        if payload.role is not None:
            return payload.role
    return Role.OTHER


def _neighbour(source: RoleFrom, pointer: Pointer, body: object) -> Role | None:
    holder = body
    for part in pointer[: source.depth]:
        holder = holder[part]  # type: ignore[index]  # the pointer came from this body
    told = holder.get(source.field) if isinstance(holder, dict) else None
    return source.roles.get(told) if isinstance(told, str) else None


def is_source(leaf: Leaf[RequestField] | Leaf[AnswerField]) -> bool:
    """Say whether a leaf's text is JSON source in a string."""
    return leaf.kind is LeafKind.STRING and any(payload.source for payload in leaf.payloads)


def is_exempt(leaf: Leaf[RequestField] | Leaf[AnswerField]) -> bool:
    """Say whether a leaf is left out of inspection. A key never is: its name is the sender's choice."""
    if leaf.kind is LeafKind.KEY:
        return False
    for payload in (*leaf.payloads, *leaf.around):
        if payload.exempt is not None and payload.exempt.covers(leaf.text):
            return True
    return False


def refused(endpoint: Endpoint, body: object, *, redacting: bool) -> Denial | None:
    """Refuse a request that holds what rules cannot read, or that asks for second copies of a text to be redacted."""
    for found in endpoint.deny.select(body):
        for condition in found.payloads:
            if condition.meets(found.value):
                return Denial(Reason.BODY_OPAQUE, 400, f"The request uses {condition.path}: {condition.because}.")
    for found in endpoint.refuse.select(body) if redacting else ():
        for condition in found.payloads:
            if condition.meets(found.value):
                return Denial(Reason.SECOND_COPY, 400, f"The request asks for {condition.path}: {condition.because}.")
    return None


def kind(value: object) -> str:
    """Name the JSON type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "list" if isinstance(value, list) else "object"


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other
