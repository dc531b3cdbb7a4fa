"""Forms (``multipart/form-data``, RFC 7578): parts out of bytes, and bytes written anew from parts. Pure.

Law: what two readers could take for different parts is refused, never repaired; and what is sent on is written anew,
with a boundary that nobody chose, so the upstream reads the parts that were inspected and no others. The home of
``python-multipart``, which finds the parts; what it is lenient about is refused here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from tidegate.model import Denial, Reason

MAX_PARTS = 256
"""Parts of a form. An image edit has up to 16 pictures and some ten fields; Starlette stops at 1,000 of each."""
MAX_HEADERS = 8
"""Header fields of a part. RFC 7578 knows three; Ruby's clients write four."""
MAX_HEADER = 2048
"""Bytes of one of them: a file name has at most 255 characters, which take three times as much when escaped."""

LABEL = "multipart/form-data"
TEXT_LABELS = frozenset({"text/plain", "application/json", "application/sdp"})
"""Media types that a text part may have. Others would be words of the sender that nobody inspects."""

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")  # RFC 2046, 5.1.1, without spaces
_TOKEN = r"[0-9A-Za-z!#$&^_.+-]{1,127}"
_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})((?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|\"[^\"\\\x00-\x1f\x7f]*\"))*)[ \t]*")
_PARAMETER = re.compile(r'[ \t]*;[ \t]*([0-9A-Za-z*_-]+)=(?:"([^"\\\x00-\x1f\x7f]*)"|([^\s";\\\x00-\x1f\x7f]+))')
_CODINGS = frozenset({"7bit", "8bit", "binary"})
_HEADERS = frozenset({"content-disposition", "content-type", "content-length", "content-transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Part:
    """One part. A file has a ``filename``, and a ``label``, its media type, if the sender gave one."""

    name: str = field(repr=False)
    data: bytes = field(repr=False)
    filename: str | None = field(default=None, repr=False)
    label: str | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The text of a part that is no file."""
        return self.data.decode("utf-8")


class _Odd(Exception):
    """A form that is refused; the message says why and quotes nothing."""


class _Silent:
    """In place of the parser's logger, which quotes what it reads."""

    def warning(self, *_: object) -> None:
        """Say nothing."""

    debug = info = error = warning


def boundary(content_type: str) -> bytes | None:
    """Return the boundary of a form from its content type; ``None`` where it is no form, or an odd one."""
    label, mark, rest = content_type.partition(";")
    if label.strip().lower() != LABEL or not mark:
        return None
    found = list(_PARAMETER.finditer(mark + rest))
    if "".join(each[0] for each in found).strip() != (mark + rest).strip():
        return None
    told = [each[2] if each[2] is not None else each[3] for each in found if each[1].lower() == "boundary"]
    others = {each[1].lower() for each in found} - {"boundary", "charset"}
    if len(told) != 1 or others or not _BOUNDARY.fullmatch(told[0]):
        return None
    return told[0].encode("ascii")


def read(data: bytes, content_type: str) -> tuple[Part, ...] | Denial:
    """Read the parts of a form, in order.

    Denies ``BODY_MALFORMED``: a boundary that is missing or odd, anything before the first or after the last part, a
    part without a name, ``filename*`` (RFC 2231), names with quotes, backslashes or control characters, an encoded or
    nested part, header fields beyond those of RFC 7578, a text that is not UTF-8, and too many parts.
    """
    mark = boundary(content_type)
    if mark is None:
        return _malformed("it is no form with a plain boundary")
    edge = b"--" + mark
    end = data.find(b"\r\n" + edge + b"--")
    if not data.startswith(edge + b"\r\n") or end < 0 or data[end + len(edge) + 4 :] not in (b"", b"\r\n"):
        return _malformed("something stands before its first part or after its last, or it has no end")
    try:
        return tuple(_part(*each) for each in _split(data, mark))
    except _Odd as odd:
        return _malformed(str(odd))
    except FormParserError:  # its text quotes what it reads
        return _malformed("its parts cannot be told apart")


def _split(data: bytes, mark: bytes) -> list[tuple[list[tuple[bytes, bytes]], bytes]]:
    """Cut a form into the header fields and the data of its parts."""
    found: list[tuple[list[tuple[bytes, bytes]], list[bytes]]] = []
    name, value = bytearray(), bytearray()

    def begin() -> None:
        if len(found) >= MAX_PARTS:
            raise _Odd(f"it has more than {MAX_PARTS} parts")
        found.append(([], []))

    def header() -> None:
        found[-1][0].append((bytes(name).lower(), bytes(value)))
        name.clear()
        value.clear()

    parser = MultipartParser(
        mark,
        {
            "on_part_begin": begin,
            "on_part_data": lambda part, start, stop: found[-1][1].append(part[start:stop]),
            "on_header_field": lambda part, start, stop: name.extend(part[start:stop]),
            "on_header_value": lambda part, start, stop: value.extend(part[start:stop]),
            "on_header_end": header,
        },
        max_header_count=MAX_HEADERS,
        max_header_size=MAX_HEADER,
    )
    parser.logger = _Silent()  # type: ignore[assignment]  # all that it uses
    parser.write(data)
    parser.finalize()
    return [(headers, b"".join(pieces)) for headers, pieces in found]


def _part(headers: Sequence[tuple[bytes, bytes]], data: bytes) -> Part:
    told: dict[str, str] = {}
    for key, value in headers:
        name = key.decode("latin-1")
        if name not in _HEADERS or name in told:
            raise _Odd("a part has a header field twice, or one that forms do not have")
        told[name] = _utf8(value)
    if told.get("content-transfer-encoding", "binary").strip().lower() not in _CODINGS:
        raise _Odd("a part is encoded")
    length = told.get("content-length")
    if length is not None and length.strip() != str(len(data)):
        raise _Odd("a part has another length than it says")
    name, filename = _disposition(told.get("content-disposition", ""))
    label = told.get("content-type")
    if label is not None:
        label = _label(label, file=filename is not None)
    part = Part(name, data, filename, label)
    if filename is None:
        _utf8(data)
    return part


def _disposition(text: str) -> tuple[str, str | None]:
    kind, mark, rest = text.partition(";")
    found = list(_PARAMETER.finditer(mark + rest))
    if kind.strip().lower() != "form-data" or "".join(each[0] for each in found).strip() != (mark + rest).strip():
        raise _Odd("a part has no plain content-disposition")
    told = {each[1].lower(): each[2] if each[2] is not None else each[3] for each in found}
    if len(told) != len(found) or not told.get("name") or not told.keys() <= {"name", "filename"}:
        raise _Odd("a part has no name, two of them, or one that is encoded (filename*)")
    return told["name"], told.get("filename")


def _label(text: str, *, file: bool) -> str:
    """Return the media type of a part. A text is UTF-8 and of one of a few types; no part is a form or a mail."""
    found = _TYPE.fullmatch(text.strip())
    kind = "" if found is None else found[1].lower()
    if found is None or kind.startswith(("multipart/", "message/")):
        raise _Odd("a part is nested, or of an odd type")
    if file:
        return text.strip()
    rest = found[2].replace('"', "").replace(" ", "").lower()
    if kind not in TEXT_LABELS or rest not in ("", ";charset=utf-8", ";charset=us-ascii"):
        raise _Odd("a text is of another type than plain text in UTF-8")
    return kind


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _Odd("a text or a name is not UTF-8") from None


def write(parts: Sequence[Part], seed: bytes) -> tuple[bytes, str]:
    """Write a form anew; return it and its content type. ``seed``: what the boundary is made of.

    Raises ``ValueError`` for a name that cannot be written.
    """
    mark = _fresh(parts, seed)
    out: list[bytes] = []
    for part in parts:
        out.append(b"--%b\r\nContent-Disposition: form-data; name=%b" % (mark, _quoted(part.name)))
        out.append(b"; filename=" + _quoted(part.filename) if part.filename is not None else b"")
        out.append(b"\r\nContent-Type: " + _plain(part.label) if part.label is not None else b"")
        out += [b"\r\n\r\n", part.data, b"\r\n"]
    out.append(b"--%b--\r\n" % mark)
    return b"".join(out), f"{LABEL}; boundary={mark.decode('ascii')}"


def _fresh(parts: Sequence[Part], seed: bytes) -> bytes:
    """Make a boundary that occurs in no part. The same form has the same one, so that evidence can be compared."""
    digest = hashlib.sha256(seed)
    while True:
        mark = b"tidegate-" + digest.hexdigest()[:32].encode("ascii")
        if not any(mark in part.data for part in parts):
            return mark
        digest.update(mark)


def _quoted(text: str) -> bytes:
    if '"' in text or "\\" in text:
        raise ValueError("a name with a quote")
    return b'"%b"' % _plain(text)


def _plain(text: str) -> bytes:
    if any(ord(each) < 32 or ord(each) == 127 for each in text):
        raise ValueError("a name with a control character")
    return text.encode("utf-8")


def _malformed(what: str) -> Denial:
    return Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")
