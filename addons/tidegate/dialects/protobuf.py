"""Protocol Buffers by descriptor: a message as a JSON value that rules can walk, and what they change put back in it.

Law: what the view does not show is named in ``unread``, or is a default, or no finite number; what is not changed in
the view is not changed in the message, so that unknown fields, presence and everything else survive.

In the view every field has the name it has in its descriptor. Texts are strings, and so are bytes that are UTF-8; maps
are objects by key. A tensor's raw data stands in the tensor's own object, unpacked: docs/dialects.md, "gRPC".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from tidegate.dialects.fields import LeafKind, Pointer, Trie, replace, where
from tidegate.dialects.spec import GrpcSpec, JsonObject, Tensors

NUMBERS = "numbers, which no rule can read"
BINARY = "bytes that are no text"
UNKNOWN = "a field that the descriptors do not know"
PACKED = "raw data that is not packed as its tensor says"

INDEX, TEXT = "index", "text"
"""The two fields of an element of a tensor in the view."""

_LENGTH = 4  # bytes before each element of a BYTES tensor: its length, little endian
MAX_VALUES = 250_000
"""Messages, elements and values of a repeated field in one message: empty ones take two bytes on the wire and 200 here.
A prompt of a million tokens has one element; a batch has thousands."""

_NESTED = 16  # levels of messages in messages that are looked into without a descriptor


class DescriptorFault(ValueError):
    """A descriptor set cannot be used. The message says why, in words of our own."""


class Unreadable(Exception):
    """Bytes are no message of their type, or one that cannot be shown."""


class Unwritable(Exception):
    """A changed view does not fit its message."""


@dataclass(frozen=True, slots=True)
class Method:
    """One gRPC method: the classes of its messages, and which side may send many."""

    request: type[Message]
    answer: type[Message]
    client_streams: bool
    server_streams: bool


@dataclass(slots=True)
class View:
    """A message as a JSON value. ``unread``: places of what it does not show, and why.

    ``texts`` are those of unknown fields, by the place their findings are reported at; none of them can be changed.
    """

    value: JsonObject = field(default_factory=dict, repr=False)
    unread: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict, repr=False)


class Descriptors:
    """A descriptor set, as ``protoc --descriptor_set_out --include_imports`` writes it. Raises ``DescriptorFault``."""

    def __init__(self, data: bytes) -> None:
        pool = descriptor_pool.DescriptorPool()
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(data)
        except DecodeError:
            raise DescriptorFault("a file that is no descriptor set") from None
        self._services: dict[str, Any] = {}
        for each in files.file:
            try:
                pool.AddSerializedFile(each.SerializeToString())
            except (TypeError, ValueError):
                raise DescriptorFault("a descriptor set without all its imports, or with a fault in one file") from None
        for each in files.file:
            for service in each.service:
                name = f"{each.package}.{service.name}" if each.package else service.name
                self._services[name] = pool.FindServiceByName(name)
        if not self._services:
            raise DescriptorFault("a descriptor set without any service")

    def method(self, path: str) -> Method | None:
        """Return the method of a path such as ``/pkg.Service/Method``; ``None`` if the set has none."""
        service, _, name = path.removeprefix("/").partition("/")
        found = self._services[service].methods_by_name.get(name) if service in self._services else None
        if found is None:
            return None
        proto = descriptor_pb2.MethodDescriptorProto()
        found.CopyToProto(proto)
        return Method(
            message_factory.GetMessageClass(found.input_type),
            message_factory.GetMessageClass(found.output_type),
            proto.client_streaming,
            proto.server_streaming,
        )


def parse(kind: type[Message], data: bytes) -> Message:
    """Read a message. Raises ``Unreadable``."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise Unreadable from None
    return message


def dump(message: Message) -> bytes:
    """Write a message anew, unknown fields included: what was inspected is what is sent."""
    return message.SerializeToString()


def show(message: Message, spec: GrpcSpec, *, answer: bool = False) -> View:
    """Make the view of a message; in an ``answer`` vectors are left out and not missed. Raises ``Unreadable``."""
    view = View()
    try:
        view.value = _Showing(spec, view, answer=answer).message(message, ())
    except UnicodeDecodeError:  # a string of proto2 may hold anything
        raise Unreadable from None
    return view


def write(message: Message, spec: GrpcSpec, after: JsonObject, *, answer: bool = False) -> None:
    """Put a changed view into the message it is of, in place.

    A number that was masked becomes 0, a field that was emptied is cleared. Raises ``Unwritable``.
    """
    before = show(message, spec, answer=answer).value
    _Writing(spec).message(message, before, after)


def alone(message: Message, spec: GrpcSpec, deltas: Trie[Any], place: Pointer, text: str) -> Message:
    """Copy a message of a stream so that the text at a place of its view is ``text``, and no other delta says anything.

    ``deltas`` names the texts that continue others. Raises ``Unwritable`` where there is no text at the place.
    """
    copy = type(message)()
    copy.CopyFrom(message)
    value = show(copy, spec, answer=True).value
    leaves = [leaf for leaf in deltas.walk(value) if leaf.payloads and leaf.kind is LeafKind.STRING]
    for leaf in leaves:
        replace(None, leaf, text if leaf.pointer == place else "")
    write(copy, spec, value, answer=True)
    if place not in {leaf.pointer for leaf in leaves}:  # an empty field is not there: what it said was held back
        _say(copy, place, text)
    return copy


def _say(message: Message, place: Pointer, text: str) -> None:
    """Give a field that is not there a text."""
    holder: Any = message
    try:
        for part in place[:-1]:
            holder = getattr(holder, str(part)) if isinstance(holder, Message) else holder[part]
        each = holder.DESCRIPTOR.fields_by_name[place[-1]]
    except (AttributeError, KeyError, IndexError, TypeError):
        raise Unwritable from None
    if each.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) or each.is_repeated:
        raise Unwritable
    setattr(holder, each.name, text if each.type == FieldDescriptor.TYPE_STRING else text.encode())


def _name(each: FieldDescriptor) -> str:
    return each.full_name if each.is_extension else each.name


def _entry(each: FieldDescriptor, name: str) -> FieldDescriptor:
    """Return the key or the value of the entries of a map."""
    assert each.message_type is not None
    found: FieldDescriptor = each.message_type.fields_by_name[name]
    return found


def _is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and bool(each.message_type.GetOptions().map_entry)


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def unpack(data: bytes) -> list[bytes] | None:
    """Cut raw data of a BYTES tensor into its elements; ``None`` if its lengths do not add up."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH:
            return None
        (length,) = struct.unpack_from("<I", data, at)
        at += _LENGTH
        if len(data) - at < length:
            return None
        found.append(data[at : at + length])
        at += length
    return found


def pack(elements: Sequence[bytes]) -> bytes:
    """Put elements together as raw data of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def _raw(message: Message, spec: GrpcSpec) -> Iterator[tuple[Tensors, Any, Any]]:
    """Find the raw data of tensors that a message holds: which, the tensors, and their data."""
    names = message.DESCRIPTOR.fields_by_name
    for tensors in spec.tensors:
        if tensors.data in names and tensors.of in names and (data := getattr(message, tensors.data)):
            yield tensors, getattr(message, tensors.of), data


class _Showing:
    """Makes a view. ``at`` is where in it a value stands."""

    def __init__(self, spec: GrpcSpec, view: View, *, answer: bool) -> None:
        self._spec = spec
        self._view = view
        self._answer = answer
        self._left = MAX_VALUES

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise Unreadable

    def message(self, message: Message, at: Pointer) -> JsonObject:
        shown: JsonObject = {}
        raw = {tensors.data: (tensors, of, data) for tensors, of, data in _raw(message, self._spec)}
        for each, value in message.ListFields():
            name = _name(each)
            if name not in raw:
                found = self._field(each, value, (*at, name))
                if found is not None:
                    shown[name] = found
        for tensors, of, data in raw.values():
            self._tensors(tensors, (of, data), shown, at)
        self._unknown(message, at)
        return shown

    def _field(self, each: FieldDescriptor, value: Any, at: Pointer) -> object:
        if _is_map(each):
            inner = _entry(each, "value")
            self._count(len(value))
            found = {str(key): self._one(inner, value[key], (*at, str(key))) for key in value}
            return {key: child for key, child in found.items() if child is not None}
        if not each.is_repeated:
            self._count(1)
            return self._one(each, value, at)
        if each.name in self._spec.elements and each.type == FieldDescriptor.TYPE_BYTES:
            return self._texts(value, at)
        if each.name in self._spec.numbers and len(value) > 1:
            if not (self._answer and each.name in self._spec.vectors):
                self._miss(at, NUMBERS)
            return None
        self._count(len(value))
        return [self._one(each, child, (*at, number)) for number, child in enumerate(value)]

    def _one(self, each: FieldDescriptor, value: Any, at: Pointer) -> object:
        if each.type == FieldDescriptor.TYPE_BYTES:
            text = _decoded(value)
            if text is None:
                self._miss(at, BINARY)
            return text
        if each.message_type is not None:
            if each.message_type.full_name == "google.protobuf.Any" and value.value:
                self._miss(at, BINARY)
            return self.message(value, at)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def _texts(self, data: Sequence[bytes], at: Pointer) -> list[JsonObject]:
        found: list[JsonObject] = []
        self._count(len(data))
        for number, each in enumerate(data):
            text = _decoded(each)
            if text is None:
                self._miss((*at, number), BINARY)
            else:
                found.append({INDEX: number, TEXT: text})
        return found

    def _tensors(self, tensors: Tensors, pairs: tuple[Any, Any], shown: JsonObject, at: Pointer) -> None:
        """Show raw data in the objects of the tensors it belongs to, which it follows in order."""
        of, data = pairs
        objects = shown.get(tensors.of)
        if len(of) != len(data) or not isinstance(objects, list):
            self._miss((*at, tensors.data), PACKED)
            return
        for number, (tensor, each, holder) in enumerate(zip(of, data, objects, strict=True)):
            place = (*at, tensors.of, number, tensors.data)
            found = self._tensor(tensors, str(getattr(tensor, tensors.type, "")), each, place)
            if found is not None and isinstance(holder, dict):
                holder[tensors.data] = found

    def _tensor(self, tensors: Tensors, kind: str, data: bytes, at: Pointer) -> object:
        if kind in tensors.text:
            elements = unpack(data)
            if elements is None:
                self._miss(at, PACKED)
                return None
            return self._texts(elements, at)
        if not data or (self._answer and kind in tensors.vectors):
            return None
        form = tensors.numbers.get(kind)
        if form is None or struct.calcsize(f"<{form}") != len(data):
            self._miss(at, NUMBERS)
            return None
        (number,) = struct.unpack(f"<{form}", data)
        return None if isinstance(number, float) and not math.isfinite(number) else number

    def _unknown(self, message: Message, at: Pointer) -> None:
        for each in _unknown(message):
            place = f"{where(at)}, unknown field {each.field_number}"
            self._view.unread.append((place, UNKNOWN))
            texts = "\n".join(_texts_of(each))
            self._view.texts[place] = f"{self._view.texts[place]}\n{texts}" if place in self._view.texts else texts

    def _miss(self, at: Pointer, why: str) -> None:
        self._view.unread.append((where(at), why))


def _unknown(message: Message) -> list[Any]:
    """Return the unknown fields of a message itself, not of those in it."""
    found: Any = UnknownFieldSet(message)
    return list(found)


def _texts_of(unknown: Any, depth: int = 0) -> Iterator[str]:
    """Return what an unknown field may say: its bytes, and what they say if they are a message; a number's digits."""
    data = unknown.data
    if isinstance(data, bytes):
        yield data.decode("utf-8", "replace")
        yield from texts_inside(data, depth + 1)
    elif isinstance(data, int):
        yield str(data)
    else:
        for each in data:
            yield from _texts_of(each, depth + 1)


def texts_inside(data: bytes, depth: int = 0) -> Iterator[str]:
    """Return what bytes may say if they are a message of any type: where a length stands before a text, it joins it."""
    if depth > _NESTED:
        return
    message = Empty()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    for each in _unknown(message):
        yield from _texts_of(each, depth)


class _Writing:
    """Puts the differences between two views into the message of the first."""

    def __init__(self, spec: GrpcSpec) -> None:
        self._spec = spec

    def message(self, message: Message, before: JsonObject, after: object) -> None:
        if before == after:
            return
        if not isinstance(after, dict) or list(before) != list(after):
            raise Unwritable
        raw = list(_raw(message, self._spec))
        for tensors, of, data in raw:
            self._tensors(tensors, (of, data), before, after)
        fields = {_name(each): (each, value) for each, value in message.ListFields()}
        for name, old in before.items():
            if old != after[name] and name in fields:
                self._field(message, *fields[name], old, after[name])

    def _field(self, message: Message, each: FieldDescriptor, value: Any, before: Any, after: object) -> None:
        if after is None or after == []:
            if each.is_extension:
                raise Unwritable
            message.ClearField(each.name)
        elif _is_map(each):
            self._map(each, value, before, after)
        elif each.is_repeated:
            self._list(each, value, before, after)
        elif each.message_type is not None:
            self.message(value, before, after)
        elif each.is_extension:
            raise Unwritable
        else:
            setattr(message, each.name, self._scalar(each, after))

    def _list(self, each: FieldDescriptor, value: Any, before: list[Any], after: object) -> None:
        if not isinstance(after, list) or len(after) != len(before):
            raise Unwritable
        if each.name in self._spec.elements and each.type == FieldDescriptor.TYPE_BYTES:
            for number, data in _changed(before, after):
                value[number] = data
            return
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old == new:
                continue
            if each.message_type is not None:
                self.message(value[number], old, new)
            else:
                value[number] = self._scalar(each, new)

    def _map(self, each: FieldDescriptor, value: Any, before: JsonObject, after: object) -> None:
        if not isinstance(after, dict) or len(after) != len(before):
            raise Unwritable
        inner, key_field = _entry(each, "value"), _entry(each, "key")
        keys = {str(key): key for key in value}
        for (old_key, old), (new_key, new) in zip(before.items(), after.items(), strict=True):
            key = keys[old_key]
            if inner.message_type is not None:
                self.message(value[key], old, new)  # type: ignore[arg-type]  # a message is shown as an object
            elif old != new:
                value[key] = self._scalar(inner, new)
            if old_key != new_key:
                if key_field.type != FieldDescriptor.TYPE_STRING:
                    raise Unwritable
                if inner.message_type is not None:
                    value[new_key].CopyFrom(value[key])
                else:
                    value[new_key] = value[key]
                del value[key]

    def _tensors(self, tensors: Tensors, pairs: tuple[Any, Any], before: JsonObject, after: JsonObject) -> None:
        data = pairs[1]
        old, new = before.get(tensors.of), after.get(tensors.of)
        if old == new:
            return
        if not isinstance(old, list) or not isinstance(new, list) or len(old) != len(new):
            raise Unwritable
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            if not isinstance(other, dict):
                raise Unwritable
            was, is_ = one.get(tensors.data), other.get(tensors.data)
            if was == is_:
                continue
            if not isinstance(was, list):
                data[number] = bytes(len(data[number]))  # a number that was masked
            elif not is_:
                data[number] = b""
            else:
                elements = unpack(data[number])
                if elements is None or not isinstance(is_, list) or len(was) != len(is_):
                    raise Unwritable
                for index, text in _changed(was, is_):
                    elements[index] = text
                data[number] = pack(elements)

    @staticmethod
    def _scalar(each: FieldDescriptor, new: object) -> Any:
        if each.type == FieldDescriptor.TYPE_STRING and isinstance(new, str):
            return new
        if each.type == FieldDescriptor.TYPE_BYTES and isinstance(new, str):
            return new.encode("utf-8")
        return False if each.type == FieldDescriptor.TYPE_BOOL else 0


def _changed(before: Sequence[Mapping[str, Any]], after: Sequence[Any]) -> Iterator[tuple[int, bytes]]:
    """Return the elements that changed: their number in the tensor, and what they say now."""
    for old, new in zip(before, after, strict=True):
        if old == new:
            continue
        if not isinstance(new, dict) or new.get(INDEX) != old[INDEX] or not isinstance(new.get(TEXT), str):
            raise Unwritable
        yield old[INDEX], new[TEXT].encode("utf-8")
