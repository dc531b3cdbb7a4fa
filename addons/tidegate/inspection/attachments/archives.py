"""Archives and packed files: ZIP and all that is made of it, tar, gzip, bzip2, xz. Each entry is read in its turn."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from typing import Protocol

from tidegate.inspection.attachments import markup
from tidegate.inspection.attachments.found import (
    DAMAGED,
    ENCRYPTED,
    MAX_RATIO,
    RATIO_FLOOR,
    TOO_DENSE,
    TOO_LARGE,
    UNKNOWN,
    Exceeded,
    Found,
    Inner,
    below,
)
from tidegate.inspection.attachments.kinds import Kind, is_archive


class Readable(Protocol):
    """What can be read piece by piece."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


_PIECE = 1 << 20
_XZ_MEMORY = 128 * 1024 * 1024
"""Bytes that xz may take to unpack: what its strongest preset needs is 65 MiB."""
_OFFICE = (("word/", "docx"), ("xl/", "xlsx"), ("ppt/", "pptx"))
_OPEN = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "graphics": "odg"}


def zipped(found: Found, data: bytes, name: str, depth: int, inner: Inner) -> None:
    """Read every entry of a ZIP archive, its names and its comments. XML of a document is read as such."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        if is_archive(data):
            raise
        return  # something else, near whose end the mark of an archive happens to stand
    with archive:
        entries = archive.infolist()
        found.called(_document([each.filename for each in entries[:100]], archive))
        found.say(below(name, "names"), "\n".join(each.filename for each in entries))
        comments = [archive.comment, *(each.comment for each in entries)]
        found.say(below(name, "comments"), "\n".join(each.decode("utf-8", "replace") for each in comments if each))
        for entry in entries:
            found.enter()
            if entry.is_dir():
                continue
            if entry.flag_bits & 1:
                found.miss(ENCRYPTED)
                continue
            try:
                with archive.open(entry) as file:
                    plain = _unpacked(found, file, entry.compress_size)
            except Exceeded:
                raise
            except Exception:  # noqa: BLE001 - one entry that cannot be read does not hide the others
                found.miss(DAMAGED)
                continue
            at = below(name, entry.filename)
            if entry.filename.endswith((".xml", ".rels")) and plain.lstrip()[:1] == b"<":
                markup.xml(found, plain, at)
            else:
                inner(found, plain, at, depth + 1)


def _document(names: list[str], archive: zipfile.ZipFile) -> str:
    """Say which document a ZIP archive is, if it is one."""
    if "[Content_Types].xml" in names or any(each.startswith(tuple(part for part, _ in _OFFICE)) for each in names):
        for part, kind in _OFFICE:
            if any(each.startswith(part) for each in names):
                return kind
    if "content.xml" in names:
        if "mimetype" not in names:
            return "odf"
        with archive.open("mimetype") as file:
            said = file.read(100).decode("ascii", "replace")
        return _OPEN.get(said.rpartition(".")[2], "odf")
    return Kind.ZIP


def tarred(found: Found, data: bytes, name: str, depth: int, inner: Inner) -> None:
    """Read every file of a tar archive, and its names: of links, folders and their owners too."""
    found.called(Kind.TAR)
    names: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for entry in archive:
                found.enter()
                names += [entry.name, entry.linkname, *map(str, entry.pax_headers.values())]
                if not entry.isfile():
                    continue
                file = archive.extractfile(entry)
                if file is None or entry.issparse():
                    found.miss(UNKNOWN)
                    continue
                with file:
                    plain = _unpacked(found, file, entry.size)
                inner(found, plain, below(name, entry.name), depth + 1)
    finally:
        found.say(below(name, "names"), "\n".join(filter(None, names)))


def unpacked(found: Found, data: bytes, name: str, depth: int, inner: Inner, kind: Kind) -> None:
    """Read what one stream of gzip, bzip2 or xz holds."""
    found.called(kind)
    found.enter()
    source = io.BytesIO(data)
    if kind is Kind.XZ:
        _check_xz(data)
    with _opened(source, kind) as file:
        plain = _unpacked(found, file, len(data))
    inner(found, plain, name, depth + 1)


def _opened(source: io.BytesIO, kind: Kind) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if kind is Kind.GZIP:
        return gzip.GzipFile(fileobj=source)
    return bz2.BZ2File(source) if kind is Kind.BZIP2 else lzma.LZMAFile(source)


def _check_xz(data: bytes) -> None:
    """Raise ``LZMAError`` where unpacking would take too much memory, which ``LZMAFile`` does not bound."""
    machine = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    machine.decompress(data, max_length=1)


def _unpacked(found: Found, file: Readable, packed: int) -> bytes:
    """Read a file to its end, under the limits of size and ratio."""
    most = max(RATIO_FLOOR, packed * MAX_RATIO)
    pieces: list[bytes] = []
    size = 0
    while piece := file.read(_PIECE):
        size += len(piece)
        if size > most:
            raise Exceeded(TOO_DENSE)
        if size > found.bytes_left:
            raise Exceeded(TOO_LARGE)
        pieces.append(piece)
    found.spend(size)
    return b"".join(pieces)
