"""What bytes are, told by the bytes: a label is the sender's word. Two answers where two readers would open them."""

from __future__ import annotations

import codecs
import enum
import string

from tidegate.inspection.attachments.found import PICTURE, SOUND


class Kind(enum.StrEnum):
    """What a reader takes bytes for."""

    PDF = "pdf"
    RTF = "rtf"
    ZIP = "zip"
    TAR = "tar"
    GZIP = "gz"
    BZIP2 = "bz2"
    XZ = "xz"
    SQLITE = "sqlite"
    JSON = "json"
    XML = "xml"
    HTML = "html"
    MAIL = "eml"
    TEXT = "text"
    PICTURE = "picture"
    SOUND = "media"
    UNKNOWN = "unknown"


UNREADABLE = {Kind.PICTURE: PICTURE, Kind.SOUND: SOUND}

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\1\0", b"8BPS")
_SOUNDS = (b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3", b"FORM", b"#!AMR", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
_BRANDS = {b"avif": Kind.PICTURE, b"heic": Kind.PICTURE, b"heix": Kind.PICTURE, b"mif1": Kind.PICTURE}
_PACKED = ((b"\x1f\x8b", Kind.GZIP), (b"BZh", Kind.BZIP2), (b"\xfd7zXZ\0", Kind.XZ))
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_ODD = bytes(each for each in range(32) if each not in b"\t\n\v\f\r\x1b")
_SHOWN = bytes(each if chr(each) in string.printable[:95] + "\t" else 0 for each in range(256))
_MAIL = ("from:", "to:", "subject:", "received:", "mime-version:", "date:", "return-path:", "message-id:",
         "delivered-to:", "content-type:", "x-")  # fmt: skip
_HEAD = 1024
"""Bytes in which PDF readers look for the mark of a PDF (ISO 32000, annex H of the first edition)."""
_END = 22 + 65_535
"""Bytes at the end of a ZIP file that may hold its directory's end: the record and the longest comment."""
_RUN = 6
"""Characters of a run that is taken for a text in unknown data; ``strings`` takes 4, and finds much noise."""


def kinds(data: bytes) -> tuple[Kind, ...]:
    """Say what bytes are, most telling first; never empty. A file that two readers would open is both."""
    found = [*_by_mark(data)]
    text = as_text(data)
    if text is not None:
        found += [each for each in _by_text(text) if each not in found]
    return tuple(found) or (Kind.UNKNOWN,)


def _by_mark(data: bytes) -> list[Kind]:
    found = [Kind.SQLITE] if data.startswith(b"SQLite format 3\0") else []
    head = data[:_HEAD]
    if head.lstrip(b"\xef\xbb\xbf \t\r\n\0").startswith(b"%PDF-") or (b"%PDF-" in head and b"startxref" in data):
        found.append(Kind.PDF)
    if head.lstrip(b" \t\r\n").startswith(b"{\\rt"):  # Word opens what begins so
        found.append(Kind.RTF)
    if is_archive(data) or b"PK\5\6" in data[-_END:]:
        found.append(Kind.ZIP)
    found += [kind for mark, kind in _PACKED if data.startswith(mark)]
    if data[257:262] == b"ustar":
        found.append(Kind.TAR)
    return [*found, *_media(data)]


def is_archive(data: bytes) -> bool:
    """Say whether bytes begin as a ZIP archive does, or as a browser extension that is one."""
    return data.startswith((b"PK\3\4", b"PK\5\6", b"Cr24"))


def _media(data: bytes) -> list[Kind]:
    if data.startswith(_PICTURES) or (data[:2] == b"BM" and data[6:10] == b"\0\0\0\0"):
        return [Kind.PICTURE]
    if data[4:8] == b"ftyp":
        return [_BRANDS.get(data[8:12], Kind.SOUND)]
    if data[:4] == b"RIFF":
        return [Kind.PICTURE if data[8:12] == b"WEBP" else Kind.SOUND]
    return [Kind.SOUND] if data.startswith(_SOUNDS) and as_text(data[:_HEAD]) is None else []


def _by_text(text: str) -> list[Kind]:
    head = text[:4096].lstrip("\ufeff \t\r\n").lower()
    if head.startswith(("{\\rt", "%pdf-")):
        return []
    if "<html" in head or head.startswith("<!doctype html"):
        return [Kind.HTML]
    if head.startswith("<?xml"):
        return [Kind.XML]
    if head[:1] in ("{", "["):
        return [Kind.JSON]
    lines = head.split("\n", 40)
    named = [each for each in lines if each.startswith(_MAIL)]
    if lines[0].partition(":")[0].replace("-", "").isalnum() and ":" in lines[0] and len(named) > 1:
        return [Kind.MAIL]
    return [Kind.TEXT]


def as_text(data: bytes) -> str | None:
    """Decode bytes that are a text: UTF-8 (few control characters), UTF-16, UTF-32, or one byte each without any."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return _decoded(data, name)
    wide = _wide(data)
    if wide:
        return _decoded(data, wide)
    odd = len(data) - len(data.translate(None, _ODD))
    if b"\0" in data or odd * 10 > len(data):
        return None
    text = _decoded(data, "utf-8")
    if text is not None or odd:
        return text
    controls = sum(data.count(bytes([each])) for each in range(0x7F, 0xA0))
    return data.decode("cp1252", "replace") if controls * 10 < len(data) else None


def _decoded(data: bytes, name: str) -> str | None:
    try:
        return data.decode(name)
    except UnicodeDecodeError:
        return None


def _wide(data: bytes) -> str:
    """Name the form of UTF-16 without a byte order mark, in which every second byte of most scripts' texts is 0."""
    if len(data) < 4 or len(data) % 2 or data.startswith(b"SQLite"):
        return ""
    head = data[:4096]
    low, high, half = head[0::2].count(0), head[1::2].count(0), len(head) // 2
    if high * 10 >= half * 7 and not low:
        return "utf-16-le"
    return "utf-16-be" if low * 10 >= half * 7 and not high else ""


def strings(data: bytes) -> str:
    """Return the runs of printable ASCII in bytes, one a line, of one byte or two bytes a character."""
    narrow = [run for run in data.translate(_SHOWN).split(b"\0") if len(run) >= _RUN]
    runs = [run.decode("ascii") for run in narrow]
    for wide in (data[0::2], data[1::2]) if data.count(0) * 8 > len(data) else ():
        runs += [run.decode("ascii") for run in wide.translate(_SHOWN).split(b"\0") if len(run) >= _RUN]
    return "\n".join(runs)
