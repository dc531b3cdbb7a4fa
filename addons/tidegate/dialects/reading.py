"""Read a request body of any kind as one JSON value, and write it again from that value once it was masked. Pure.

A form is an object of its fields, a text ``{"text": ...}``, any other data ``{}`` with a file at the root. The bytes of
files are no part of the value: they stand beside it, by pointer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tidegate.dialects import forms
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Pointer
from tidegate.dialects.kinds import BodyKind, FormSpec
from tidegate.dialects.spec import Endpoint, JsonObject
from tidegate.model import Denial, Reason

NO_OBJECT = Denial(Reason.BODY_MALFORMED, 400, "The request body is not a JSON object.")
_UNBROKEN = Denial(Reason.BODY_MALFORMED, 400, "The request body cannot be masked without breaking it.")


@dataclass(frozen=True, slots=True)
class Body:
    """A body as it was read. ``files`` are the bytes that nobody reads as text here, by the place of their file.

    ``parts`` are those of a form, in the order of the fields of ``value``; ``plain`` is the body as it came.
    """

    kind: BodyKind
    value: JsonObject = field(repr=False)
    plain: bytes = field(repr=False)
    parts: tuple[forms.Part, ...] = field(default=(), repr=False)
    files: tuple[tuple[Pointer, bytes], ...] = field(default=(), repr=False)


def read(endpoint: Endpoint, plain: bytes, content_type: str) -> Body | Denial:
    """Read a decoded body as one of the kinds that the endpoint has; a form by its content type, others by bytes."""
    kinds = endpoint.made_of.bodies
    label = content_type.partition(";")[0].strip().lower()
    if BodyKind.FORM in kinds and label == forms.LABEL:
        return _form(endpoint.made_of.form, plain, content_type)
    if label.startswith("multipart/"):  # the upstream would read parts that nobody here has seen
        return _refused("it is a form where none belongs, or of an odd kind")
    if BodyKind.JSON in kinds:
        value = strict_json(plain)
        if isinstance(value, dict):
            return Body(BodyKind.JSON, value, plain)
        if kinds == (BodyKind.JSON,) or not isinstance(value, Denial) or _like_json(plain):
            return value if isinstance(value, Denial) else NO_OBJECT
    if BodyKind.TEXT in kinds and (text := _text(plain)) is not None:
        return Body(BodyKind.TEXT, {"text": text}, plain)
    if BodyKind.DATA in kinds:
        return Body(BodyKind.DATA, {}, plain, files=(((), plain),))
    return Denial(
        Reason.BODY_MALFORMED, 400, f"The request body is none of those this endpoint takes: {', '.join(kinds)}."
    )


def write(body: Body, masked: object) -> tuple[bytes, str | None] | Denial:
    """Write a body from its value as it may travel; return its bytes and, where it changes, its content type."""
    if body.kind is BodyKind.JSON:
        return dump(masked), None
    if body.kind is BodyKind.DATA:
        return body.plain, None
    if not isinstance(masked, dict):
        return _UNBROKEN
    if body.kind is BodyKind.TEXT:
        text = masked.get("text")
        return (text.encode("utf-8"), None) if isinstance(text, str) else _UNBROKEN
    try:
        return forms.write([_written(*each) for each in zip(body.parts, _fields(masked), strict=True)], body.plain)
    except (ValueError, TypeError, KeyError):
        return _UNBROKEN


def _refused(what: str) -> Denial:
    return Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")


def _like_json(plain: bytes) -> bool:
    """Say whether a body that is no strict JSON may be one to a more lenient reader."""
    return plain.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[", b'"')


def _text(plain: bytes) -> str | None:
    try:
        text = plain.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _form(spec: FormSpec, plain: bytes, content_type: str) -> Body | Denial:
    parts = forms.read(plain, content_type)
    if isinstance(parts, Denial):
        return parts
    named: dict[str, list[forms.Part]] = {}
    for part in parts:
        if part.name in named and not spec.repeats(part.name):
            return _refused("it has a field twice")
        if any(part.name == each.part for each in spec.lines) and part.filename is None:
            return _refused("a field is a text that must be a file")
        if any(part.name in each.when for each in spec.lines) and part.filename is not None:
            return _refused("a field is a file that must be a text")
        named.setdefault(part.name, []).append(part)
    if any(f"{name}[]" in named for name in named):  # to some readers they are one
        return _refused("it has a field twice")
    texts = {name: found[0].text for name, found in named.items() if found[0].filename is None}
    value: JsonObject = {}
    files: list[tuple[Pointer, bytes]] = []
    for name, found in named.items():
        items = [_item(part) for part in found]
        repeats = spec.repeats(name)
        value[name] = items if repeats else items[0]
        for index, (part, item) in enumerate(zip(found, items, strict=True)):
            if not isinstance(item, dict):
                continue
            if any(each.concerns(name, texts) for each in spec.lines):
                lines = _lines(part.data)
                if isinstance(lines, Denial):
                    return lines
                item["lines"] = lines
            else:
                files.append(((name, index) if repeats else (name,), part.data))
    ordered = tuple(part for found in named.values() for part in found)
    return Body(BodyKind.FORM, value, plain, ordered, tuple(files))


def _item(part: forms.Part) -> str | JsonObject:
    if part.filename is None:
        return part.text
    item: JsonObject = {"filename": part.filename}
    return item if part.label is None else item | {"content_type": part.label}


def _lines(data: bytes) -> list[object] | Denial:
    """Read lines of JSON objects; empty ones are left out."""
    found: list[object] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not (plain := line.strip()):
            continue
        value = strict_json(plain)
        if not isinstance(value, dict):
            why = value.message.rpartition(": ")[2] if isinstance(value, Denial) else "it is not a JSON object."
            return Denial(Reason.BODY_MALFORMED, 400, f"In line {number} of the file: {why}")
        found.append(value)
    return found


def _fields(masked: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(name, each) for name, value in masked.items() for each in _listed(value)]


def _listed(value: object) -> Iterator[object]:
    if isinstance(value, list):
        yield from value
    else:
        yield value


def _written(part: forms.Part, field: tuple[str, object]) -> forms.Part:
    """Return a part with the name, text and file name that may travel; the bytes of a file are its own."""
    name, item = field
    if part.filename is None:
        if not isinstance(item, str):
            raise TypeError("a text that is none any more")
        return replace(part, name=name, data=item.encode("utf-8"))
    if not isinstance(item, dict):
        raise TypeError("a file that is none any more")
    lines = item.get("lines")
    data = part.data if lines is None else b"".join(dump(each) + b"\n" for each in lines)
    label = None if part.label is None else str(item["content_type"])
    return forms.Part(name, data, str(item["filename"]), label)
