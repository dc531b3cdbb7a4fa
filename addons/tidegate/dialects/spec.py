"""What a dialect is, as values: endpoints, the fields of their bodies, their streams, and the shape of an error.

A dialect comes from one YAML file (``load.py``). Paths give roles and exemptions; absence from them exempts nothing.
"""

from __future__ import annotations

import binascii
import enum
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.dialects.counting import RATE_HEADERS, RateHeaders, Usages
from tidegate.dialects.fields import Leaf, LeafKind, Pointer, Selected, Trie, where
from tidegate.dialects.kinds import Composition
from tidegate.model import Denial, Modality, Reason, Role

if TYPE_CHECKING:
    from tidegate.dialects.ownership import Listed, Makes, Owned

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
    TEXT = "text"
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

    ``kinds`` narrows it to JSON types (string, number, boolean, object, list; numbers: a list that holds one, at any
    depth of lists), ``values`` to these values, ``unless`` lets these values pass. ``unread``: it is refused because
    nobody can read it, so the connection's ``on_unknown`` may let it pass.
    """

    path: str
    because: str
    kinds: frozenset[str] = frozenset()
    values: tuple[object, ...] = ()
    unless: tuple[object, ...] = ()
    unread: bool = False

    def meets(self, value: object) -> bool:
        """Say whether a value is refused."""
        if value is None or any(_same(value, other) for other in self.unless):
            return False
        if self.kinds and not is_of(value, self.kinds):
            return False
        return not self.values or any(_same(value, other) for other in self.values)


@dataclass(frozen=True, slots=True)
class Media:
    """A path whose values carry what is no text: pictures, files, speech, or a reference to something stored.

    ``data`` leads to the fields, from the value, that hold a data: URL or base64; the empty way is the value itself.
    Without any the value is a reference. ``kinds`` narrows it to JSON types, ``but`` leaves these values out, ``when``
    narrows it to objects of which a field has one of these values, ``unless`` leaves such objects out. With ``because``
    nothing of it is ever read, whatever its bytes look like. ``modality`` is what it is for a role; without it the
    media type that a field of ``mime`` (of the value) or the data: URL tells.
    """

    path: str
    data: tuple[tuple[str, ...], ...] = ()
    kinds: frozenset[str] = frozenset()
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    unless: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    but: tuple[object, ...] = ()
    because: str = ""
    modality: Modality | None = None
    mime: tuple[str, ...] = ()

    def concerns(self, value: object) -> bool:
        """Say whether a value of this path is media; ``null`` never is."""
        if value is None or (self.kinds and not is_of(value, self.kinds)):
            return False
        if any(_same(value, each) for each in self.but):
            return False
        return all(has_one(value, *each) for each in self.when.items()) and not any(
            has_one(value, *each) for each in self.unless.items()
        )


def has_one(value: object, name: str, values: tuple[object, ...]) -> bool:
    """Say whether a field of an object, ``None`` where it is not there, is one of these values."""
    return isinstance(value, dict) and any(_same(value.get(name), each) for each in values)


def is_listed(events: tuple[str, ...], kind: str) -> bool:
    """Say whether a type of event is among those listed, of which one with ``*`` at its end stands for any rest."""
    return any(kind.startswith(each[:-1]) if each.endswith("*") else kind == each for each in events)


@dataclass(frozen=True, slots=True)
class Delta:
    """A path in a stream event whose string continues a channel.

    Of several deltas that name the same leaf, the first whose ``when`` allows the event is the one.
    The channel's key is this delta and every (depth, name, value) of the fields ``key`` in the objects along the path,
    root included. ``when`` lists event types; ``None`` means any. ``source``: the channel is JSON source. ``beside``
    are fields of those objects that readers want in every event: one that is made up has them too. ``continues``
    leads, by field names, to what is true where the text goes on (where it is not, the channel begins anew), ``ends``
    to what is true where this piece is the last. ``named``: the path has a ``.*``, and the names that lead to the text
    are part of the key.
    """

    path: str
    key: tuple[str, ...] = ()
    when: frozenset[str] | None = None
    source: bool = False
    beside: tuple[str, ...] = ()
    continues: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """A path in a stream event that passes byte-identical. ``when`` lists event types; ``None`` means any.

    ``unread``: it is base64 of what no text rule can read, so that the connection's ``on_unknown`` decides.
    """

    path: str
    because: str
    when: frozenset[str] | None = None
    unread: bool = False


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
    channels are flushed whose key agrees on the names in ``key`` that both know, and whose field of a name in ``same``
    has the value to which the field names beside it lead in the event. ``again``: such a channel may begin anew.
    ``select`` is the path compiled; walk it with ``Flush.hits``.
    """

    path: str | None = None
    key: tuple[str, ...] = ()
    when: frozenset[str] | None = None
    select: Trie[None] | None = None
    values: tuple[object, ...] = field(default=(), hash=False)
    same: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    again: bool = False

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
    a stream; ``sequence`` the field that counts events; ``unique`` the field that no two events have alike; ``padding``
    the field of random text that hides sizes.
    ``fields`` names the deltas, the JSON source, the kept and the dropped values of an event in one walk. All other
    strings are whole texts: repeats of what the deltas said, or text that arrives whole. ``events`` are the types of
    event that are known (``*`` at the end: any rest); none: any. With ``whole`` each event is an answer of its own, and
    all of it but its deltas is inspected as one. ``restore`` names the texts of both kinds in which tokens become their
    values again.
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
    events: tuple[str, ...] = ()
    whole: bool = False
    unique: str | None = None

    def knows(self, kind: str | None) -> bool:
        """Say whether an event of this type may come; any may where the dialect lists none."""
        return not self.events or (kind is not None and is_listed(self.events, kind))


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a message from others: its type is in ``when`` (empty: any), and ``path``, if any, selects a value.

    ``values`` are those that count (empty: any but null).
    """

    when: frozenset[str] = frozenset()
    path: str | None = None
    select: Trie[None] | None = None
    values: tuple[object, ...] = field(default=(), hash=False)

    def fits(self, kinds: tuple[str, ...], message: object) -> bool:
        """Say whether a message with these types is one of those."""
        if self.when and self.when.isdisjoint(kinds):
            return False
        return self.select is None or any(
            found.value is not None and (not self.values or any(_same(found.value, each) for each in self.values))
            for found in self.select.select(message)
        )


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """How a WebSocket is spoken: messages of one JSON object each, whose type is in the stream's ``event_type``.

    ``messages`` are the types by which a client asks; the object is then a request body. ``events`` are the types an
    upstream may send (``*`` at the end: any rest), ``ends`` tells those that end an answer. ``continues`` is the
    request's field that names an earlier answer, ``names`` the field names that lead to where an answer names itself.

    ``fields``: a message has no type; the names of its fields are its types. ``binary``: JSON may come in binary
    messages too. ``duplex``: both sides speak at any time, where ``asks`` tells the client's messages that ask for an
    answer and ``begins`` the events that begin one; ``settings`` are the client's types that settle model and limits
    for what follows, and ``settles`` the events that confirm it. ``parameters`` are those of the address that may be
    there beside the model (``None``: any).
    """

    messages: frozenset[str]
    events: tuple[str, ...]
    ends: tuple[Mark, ...]
    continues: str | None = None
    names: tuple[str, ...] = ()
    fields: bool = False
    binary: bool = False
    duplex: bool = False
    asks: tuple[Mark, ...] = ()
    begins: tuple[Mark, ...] = ()
    settings: frozenset[str] = frozenset()
    settles: frozenset[str] = frozenset()
    parameters: frozenset[str] | None = None

    def knows(self, kind: str) -> bool:
        """Say whether an upstream may send an event of this type."""
        return is_listed(self.events, kind)

    def kinds(self, message: JsonObject, event_type: str | None) -> tuple[str, ...]:
        """Return the types of a message; none where it does not say."""
        if self.fields:
            return tuple(message)
        told = message.get(event_type or "")
        return (told,) if isinstance(told, str) else ()


@dataclass(frozen=True, slots=True)
class Tensors:
    """Where a gRPC message has the raw data of tensors.

    The items of the repeated bytes field ``data`` belong, in order, to the messages of the field ``of``. ``type`` is
    the field of those that names what they hold:
    ``text`` are the types whose data are texts, each after its length; ``numbers`` maps a type to the form (of
    ``struct``) of one number, which is shown where it is alone; ``vectors`` are the types that an answer may hold
    without being looked at.
    """

    data: str
    of: str
    type: str
    text: frozenset[str]
    numbers: Mapping[str, str] = field(default_factory=dict, hash=False)
    vectors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GrpcSpec:
    """How the messages of a gRPC method are shown to rules (``dialects.protobuf``).

    ``elements`` are repeated bytes fields that hold the texts of a tensor; ``numbers`` repeated fields of numbers that
    nobody can read where there is more than one; ``vectors`` those among them that an answer may hold all the same.
    """

    tensors: tuple[Tensors, ...] = ()
    elements: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ToolNames:
    """Where the tools of a request are named.

    ``each`` selects the tools. A tool whose ``type`` is in ``named`` (``""`` stands for no type) is called by the text
    at that path of field names; any other is built in and counts under its type and, if it has one, its name.
    With ``keyed`` the tools are the fields of what is selected, but for these: each is called by its own name, in
    camel case. ``only``: what is of another ``type`` is no tool.
    """

    each: str
    named: Mapping[str, tuple[str, ...]]
    keyed: tuple[str, ...] | None = None
    only: bool = False


@dataclass(frozen=True, slots=True)
class AskedSpec:
    """Where a request body says which model, whether to stream, which tools and how many output tokens.

    ``streams`` is what holds where the body does not say whether to stream. ``endless``: a limit below zero is none;
    so is one of the values ``unlimited``. ``model_prefixes`` may stand before the name of a model in the body and are
    no part of it; a part ``*`` of one is any plain part. ``query`` are parameters of the address that name the model.
    ``path_model``: where the path names the model, what the body says of it means nothing to the upstream. ``called``
    is where tools stand that were called before or must be called now, ``choices`` how many answers are wanted,
    ``modalities`` where the body names kinds of content, and ``always`` are those of every request here.
    """

    model: Trie[str]
    stream: Trie[str]
    tools: Trie[ToolNames]
    max_output: Trie[str]
    called: Trie[ToolNames]
    choices: Trie[str]
    modalities: Trie[str]
    always: frozenset[Modality] = frozenset()
    streams: bool = False
    endless: bool = False
    path_model: bool = False
    model_prefixes: tuple[str, ...] = ()
    unlimited: tuple[object, ...] = ()
    query: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a refusal is written. Templates hold ``${message}``, ``${reason}``, ``${type}``, ``${id}`` and ``${status}``.

    ``types`` maps an HTTP status to the family's error type; 0 is any other status. ``event`` is the body of an error
    in mid-stream and ``event_name`` its SSE event name (``None``: the event has no name). ``message`` is an error on a
    WebSocket (``None``: the family has none, and every refusal ends it); ``close`` the reason with which one is closed.
    ``${call}`` is the id of the JSON-RPC call that is refused, null where there is none; ``answered`` is the HTTP
    status of a refusal that has one (``None``: as of any other). ``grpc``: none of
    it is used, the refusal is a gRPC status.
    """

    body: object
    event: object
    event_name: str | None
    types: Mapping[int, str | int]
    message: object = None
    answered: int | None = None
    close: str = ""
    grpc: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """When a body may be a list of messages: without the header field ``header``, or with one of ``values`` in it."""

    header: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """An address at which JSON-RPC is spoken: the method of a message names the endpoint that it is judged by.

    ``results`` judges what is no call but the answer to one of the upstream's (``None``: there are none). ``batch``
    says when a body may be a list of messages (``None``: never).
    """

    methods: Mapping[str, Endpoint]
    results: Endpoint | None = None
    batch: Batch | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation of an API. ``paths`` stand below the connection's prefix; a ``*`` part is any one plain part.

    ``{model}`` is such a part and names the model that is asked for. Both may be the beginning of a part. Any other
    word in braces is a part that names something stored, of that kind. ``owned``, ``makes``, ``lists`` and ``local``
    are described in ``ownership``.
    ``deny_headers`` are the names, in lower case, of header fields that no request may have, and why.
    With ``socket`` it is a WebSocket: the request that opens it has no body, and each of the client's messages is one.
    With ``calls`` it is no operation but the address of others, which are ``called`` by a JSON-RPC method there and
    have no path of their own. ``pieces`` select texts of a whole body that are one text, cut in the pieces of a list.
    ``made_of`` says what bodies are made of that are not one JSON value. ``unread``: what its answers are that nobody
    can inspect; empty for those that can be.
    With ``grpc`` its one path is that of a gRPC method, whose messages the connection's descriptors describe.
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
    grpc: GrpcSpec | None = None
    media: Trie[Media] = field(default_factory=lambda: Trie[Media]([]))
    restore: Trie[str] = field(default_factory=lambda: Trie[str]([]))
    calls: CallSpec | None = None
    called: tuple[str, ...] = ()
    answer_media: Trie[Media] = field(default_factory=lambda: Trie[Media]([]))
    pieces: Trie[str] = field(default_factory=lambda: Trie[str]([]))
    made_of: Composition = Composition()  # noqa: RUF009 - frozen, and nothing but defaults
    unread: str = ""
    deny_headers: Mapping[str, str] = field(default_factory=dict)
    owned: Trie[Owned] = field(default_factory=lambda: Trie["Owned"]([]))
    makes: Trie[Makes] = field(default_factory=lambda: Trie["Makes"]([]))
    lists: Trie[Listed] = field(default_factory=lambda: Trie["Listed"]([]))
    local: Trie[str] = field(default_factory=lambda: Trie[str]([]))


@dataclass(frozen=True, slots=True)
class Closed:
    """Paths of an API that are no endpoints on purpose, and why."""

    paths: tuple[str, ...]
    because: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API family."""

    name: str
    endpoints: Mapping[str, Endpoint]
    error: ErrorShape
    exact: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(method, path) -> endpoint name, for the paths without a place."""
    closed: tuple[Closed, ...] = ()
    usage: Usages = Usages()  # noqa: RUF009 - frozen, and empty
    rate_headers: RateHeaders = RATE_HEADERS

    @property
    def is_grpc(self) -> bool:
        """Whether its endpoints are gRPC methods: all of them are, or none."""
        return any(each.grpc is not None for each in self.endpoints.values())


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


def refused(
    endpoint: Endpoint,
    body: object,
    *,
    redacting: bool,
    unread: list[tuple[str, str]] | None = None,
    named: bool = False,
) -> Denial | None:
    """Refuse a request that holds what rules cannot read, or that asks for second copies of a text to be redacted.

    With a list ``unread``, what only nobody can read is no refusal: its place and what it is are added there. One that
    names something stored is refused, unless whoever asks finds out whose that is (``named``).
    """
    for stored in () if named else endpoint.owned.select(body):
        for owned in stored.payloads:
            if owned.concerns(stored.value):
                because = "something stored, which may be another caller's"
                return Denial(Reason.BODY_OPAQUE, 400, f"The request uses {owned.path}: {because}.")
    for found in endpoint.deny.select(body):
        denial = _met(found, Reason.BODY_OPAQUE, "uses", unread)
        if denial is not None:
            return denial
    for found in endpoint.refuse.select(body) if redacting else ():
        denial = _met(found, Reason.SECOND_COPY, "asks for", unread)
        if denial is not None:
            return denial
    return None


def _met(found: Selected[Condition], reason: Reason, verb: str, unread: list[tuple[str, str]] | None) -> Denial | None:
    for condition in found.payloads:
        if not condition.meets(found.value):
            continue
        if not condition.unread or unread is None:
            return Denial(reason, 400, f"The request {verb} {condition.path}: {condition.because}.")
        unread.append((where(found.pointer), condition.because))
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


def is_of(value: object, kinds: Collection[str]) -> bool:
    """Say whether a parsed value is of one of these kinds: the JSON types, and ``numbers``."""
    return kind(value) in kinds or ("numbers" in kinds and isinstance(value, list) and _holds_number(value))


def _holds_number(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_holds_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other
