"""PDF through pypdf: the text of its pages, and every string of every object, whether a viewer shows it or not."""

from __future__ import annotations

import io
from collections.abc import Iterator

from pypdf import PdfReader
from pypdf.generic import (
    ArrayObject,
    ByteStringObject,
    ContentStream,
    DictionaryObject,
    IndirectObject,
    PdfObject,
    StreamObject,
    TextStringObject,
)

from tidegate.inspection.attachments.found import DAMAGED, ENCRYPTED, PICTURE, Exceeded, Found, Inner, below

_SHOWING = (b"Tj", b"TJ", b"'", b'"')


def pdf(found: Found, data: bytes, name: str, depth: int, inner: Inner) -> None:
    """Read a PDF. Pictures in it are not scanned, and it is then not scanned whole."""
    found.called("pdf")
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        found.miss(ENCRYPTED)
        return
    for number, page in enumerate(reader.pages, 1):
        found.enter()
        try:
            text = page.extract_text()
        except Exception:  # noqa: BLE001 - one page that cannot be read does not hide the others
            found.miss(DAMAGED)
            continue
        found.spend(len(text))
        found.say(below(name, f"page {number}"), text)
    said: list[str] = []
    for each in _objects(reader):
        found.enter()
        try:
            said += _strings(each)
            if isinstance(each, StreamObject):
                _stream(found, each, (name, depth), inner)
        except Exceeded:
            raise
        except Exception:  # noqa: BLE001 - as above
            found.miss(DAMAGED)
    found.say(below(name, "objects"), "\n".join(said))


def _objects(reader: PdfReader) -> Iterator[PdfObject]:
    """Return every object of the cross-reference, those in object streams too."""
    numbers = [(number, generation) for generation, table in reader.xref.items() for number in table]
    numbers += [(number, 0) for number in reader.xref_objStm]
    for number, generation in numbers:
        found = reader.get_object(IndirectObject(number, generation, reader))
        if found is not None:
            yield found


def _strings(root: PdfObject) -> Iterator[str]:
    """Return the strings that stand in an object itself; what it refers to is an object of its own."""
    todo: list[object] = [root]
    while todo:
        each = todo.pop()
        if isinstance(each, DictionaryObject):
            todo += [each.raw_get(key) for key in each]
        elif isinstance(each, ArrayObject):
            todo += list(list.__iter__(each))
        elif isinstance(each, TextStringObject):
            yield str(each)
        elif isinstance(each, ByteStringObject):
            yield bytes(each).decode("latin-1")


def _stream(found: Found, each: StreamObject, at: tuple[str, int], inner: Inner) -> None:
    """Read a stream that is not a page's: files inside, metadata, scripts, and forms such as the look of a note."""
    kind, subtype = each.get("/Type"), each.get("/Subtype")
    if subtype == "/Image":
        found.miss(PICTURE)
    elif kind == "/EmbeddedFile":
        data = each.get_data()
        found.spend(len(data))
        inner(found, data, below(at[0], "file"), at[1] + 1)
    elif kind == "/Metadata" or subtype == "/XML":
        data = each.get_data()
        found.spend(len(data))
        inner(found, data, below(at[0], "metadata"), at[1] + 1)
    elif subtype == "/Form":
        found.say(below(at[0], "forms"), "\n".join(_shown(each)))


def _shown(form: StreamObject) -> Iterator[str]:
    """Return the strings that a content stream shows."""
    for operands, operator in ContentStream(form, None).operations:
        if operator in _SHOWING:
            parts = operands[0] if operator == b"TJ" and operands else operands
            yield "".join(
                bytes(one).decode("latin-1") if isinstance(one, ByteStringObject) else str(one)
                for one in parts
                if isinstance(one, TextStringObject | ByteStringObject)
            )
