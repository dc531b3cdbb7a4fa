"""Attachments: every format by example, every way to hide in one, and that no bytes whatever make a reader raise."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import documents
from tests.documents import PNG, archive, database, docx, odt, pdf, run, tarred, xlsx
from tidegate.inspection.attachments import REASONS, Extraction, extract, found, is_quick, packed
from tidegate.inspection.attachments.kinds import Kind, as_text, kinds, strings

MARK = "AKIATESTKEY1234567890"
CORPUS = Path(os.environ.get("TIDEGATE_CORPORA") or Path(__file__).resolve().parents[2] / "shared" / "corpora")
FILES = sorted((CORPUS / "attachments").glob("*"))

HIDDEN = "<</Type/Annot/Subtype/Text/Contents(" + MARK + ")>>"
FORM = f"<</Subtype/Form/Length {len(MARK) + 12}>>\nstream\nBT ({MARK}) Tj ET\nendstream"
NOTEBOOK = {"cells": [{"cell_type": "code", "source": ["AKIATEST", "KEY1234567890"]}], "nbformat": 4}
MAIL = "From: a@b.test\nTo: c@d.test\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n{}\n--x--\n"
ATTACHED = "--x\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
QUOTED = "--x\nContent-Type: text/plain; charset=utf-16-le\nContent-Transfer-Encoding: base64\n\n"
OVERFLOW = "INSERT INTO t VALUES (printf('%.6000c', 'x') || ' AKIATESTKEY1234567890 ' || printf('%.6000c', 'y'))"
DELETED = (f"INSERT INTO t VALUES ('{MARK}')", "INSERT INTO t VALUES ('other')", f"DELETE FROM t WHERE a = '{MARK}'")

READ: dict[str, tuple[bytes, str, str]] = {
    "text": (f"key {MARK}".encode(), "text", ""),
    "text in UTF-16": (f"key {MARK}".encode("utf-16"), "text", ""),
    "text in UTF-16 without a mark": (f"key {MARK}".encode("utf-16-le"), "text", ""),
    "text in UTF-32": (f"key {MARK}".encode("utf-32"), "text", ""),
    "text in Latin-1": (f"clé {MARK}".encode("latin-1"), "text", ""),
    "text with a control character": (f"a log line with a bell \x07 and {MARK}".encode(), "text", ""),
    "docx": (docx(run(MARK)), "docx", "word/document.xml"),
    "docx, cut into runs": (docx(run("AKIATEST") + run("KEY123") + run("4567890")), "docx", "word/document.xml"),
    "docx, deleted": (docx(f"<w:del><w:r><w:delText>{MARK}</w:delText></w:r></w:del>"), "docx", "word/document.xml"),
    "docx, comment": (docx("", word_comments__xml=f"<c>{MARK}</c>"), "docx", "word/comments.xml"),
    "docx, header": (docx("", word_header1__xml=f"<c>{MARK}</c>"), "docx", "word/header1.xml"),
    "docx, metadata": (docx("", docProps_core__xml=f"<c>{MARK}</c>"), "docx", "docProps/core.xml"),
    "docx, link": (docx("", word_a__rels=f"<r Target='https://x.test/{MARK}'/>"), "docx", "word/a.rels"),
    "docx, XML comment": (docx(f"<!-- {MARK} -->"), "docx", "word/document.xml"),
    "docx, any other part": (docx("", customXml_item1__xml=f"<c>{MARK}</c>"), "docx", "customXml/item1.xml"),
    "docx, text beside": (docx("", word_notes__txt=MARK), "docx", "word/notes.txt"),
    "xlsx": (xlsx(sharedStrings=f"<s><si><t>{MARK}</t></si></s>"), "xlsx", "xl/sharedStrings.xml"),
    "xlsx, in a cell": (xlsx(s=f"<s><c><is><t>name</t></is></c><c><is><t>{MARK}</t></is></c></s>"), "xlsx", "xl/s.xml"),
    "xlsx, formula": (xlsx(s=f"<s><c><f>IF(1,&quot;{MARK}&quot;)</f></c></s>"), "xlsx", "xl/s.xml"),
    "odt": (odt(MARK), "odt", "content.xml"),
    "odt, in spans": (odt("AKIATEST<text:span>KEY1234567890</text:span>"), "odt", "content.xml"),
    "pdf": (pdf(MARK), "pdf", "page 1"),
    "pdf, note": (pdf("x", HIDDEN), "pdf", "objects"),
    "pdf, look of a note": (pdf("x", FORM), "pdf", "forms"),
    "pdf with something in front": (b"junk\n" + pdf(MARK), "pdf", "page 1"),
    "rtf": (rb"{\rtf1\ansi key: " + MARK.encode() + rb"\par}", "rtf", ""),
    "rtf, header": (rb"{\rtf1 {\header " + MARK.encode() + b"}}", "rtf", ""),
    "rtf, metadata": (rb"{\rtf1 {\info{\author " + MARK.encode() + b"}}}", "rtf", ""),
    "rtf, not to be shown": (rb"{\rtf1 {\*\anything " + MARK.encode() + b"}}", "rtf", ""),
    "rtf, hexadecimal": (rb"{\rtf1 \'41\'4b\'49ATESTKEY1234567890}", "rtf", ""),
    "rtf, Unicode": (rb"{\rtf1\uc1 \u65?KIATESTKEY1234567890}", "rtf", ""),
    "rtf, cut by formatting": (rb"{\rtf1 AKIATEST{\b KEY}\i0 1234567890}", "rtf", ""),
    "eml": (MAIL.format(f"--x\n\n{MARK}").encode(), "eml", "part 1"),
    "eml, header": (f"From: a@b.test\nTo: c@d.test\nX-Key: {MARK}\n\nhello".encode(), "eml", "headers"),
    "eml, encoded header": (b"From: a@b.test\nTo: c@d.test\nSubject: =?utf-8?b?%s?=\n\nx" % base64.b64encode(MARK.encode()), "eml", "headers"),  # noqa: E501
    "eml, before the parts": (MAIL.format(f"{MARK}\n--x\n\nx").encode(), "eml", ""),
    "eml, attachment": (MAIL.format(ATTACHED + base64.b64encode(docx(run(MARK))).decode()).encode(), "eml", "part 1/word/document.xml"),  # noqa: E501
    "eml, another charset": (MAIL.format(QUOTED + base64.b64encode(MARK.encode("utf-16-le")).decode()).encode(), "eml", "part 1"),  # noqa: E501
    "zip": (archive({"a.txt": MARK}), "zip", "a.txt"),
    "zip, a name": (archive({f"{MARK}.txt": "x"}), "zip", "names"),
    "zip, a comment": (archive({"a.txt": "x"}, MARK.encode()), "zip", "comments"),
    "zip in a zip": (archive({"b.zip": archive({"a.txt": MARK})}), "zip", "b.zip/a.txt"),
    "zip, docx inside": (archive({"b.docx": docx(run(MARK))}), "zip", "b.docx/word/document.xml"),
    "zip with something in front": (b"Cr24\2\0\0\0" + archive({"a.json": MARK}), "zip", "a.json"),
    "tar": (tarred({"a.txt": MARK.encode()}), "tar", "a.txt"),
    "tar, a name": (tarred({MARK: b"x"}), "tar", "names"),
    "tar.gz": (gzip.compress(tarred({"a.txt": MARK.encode()})), "gz", "a.txt"),
    "gz": (gzip.compress(MARK.encode()), "gz", ""),
    "gz, two members": (gzip.compress(b"x") + gzip.compress(MARK.encode()), "gz", ""),
    "bz2": (bz2.compress(MARK.encode()), "bz2", ""),
    "xz": (lzma.compress(MARK.encode()), "xz", ""),
    "sqlite": (database("CREATE TABLE t (a, b)", f"INSERT INTO t VALUES ('name', '{MARK}')"), "sqlite", "rows"),
    "sqlite, large row": (database("CREATE TABLE t (a)", OVERFLOW), "sqlite", "rows"),
    "sqlite, index": (database("CREATE TABLE t (a)", f"CREATE INDEX i ON t(a || '{MARK}')"), "sqlite", "rows"),
    "sqlite, UTF-16": (database("PRAGMA encoding='UTF-16'", f"CREATE TABLE t AS SELECT '{MARK}'"), "sqlite", "rows"),
    "sqlite, deleted": (database("CREATE TABLE t (a)", *DELETED), "sqlite", "free space"),
    "sqlite, document": (database("CREATE TABLE t (a)", f"INSERT INTO t VALUES (x'{archive({'a.txt': MARK}).hex()}')"), "sqlite", "blob/a.txt"),  # noqa: E501
    "sqlite, small pages": (database("CREATE TABLE t (a)", OVERFLOW, page=512), "sqlite", "rows"),
    "ipynb": (json.dumps(NOTEBOOK).encode(), "ipynb", "strings"),
    "json, escaped": (rb'{"a": "\u0041KIATESTKEY1234567890"}', "json", "strings"),
    "json lines, escaped": (b'{"b": 1}\n{"a": "\\u0041KIATESTKEY1234567890"}', "text", "strings"),
    "json, a file in it": (json.dumps({"application/zip": base64.b64encode(archive({"a.txt": MARK})).decode()}).encode(), "json", "strings/a.txt"),  # noqa: E501
    "json, a data: URL in it": (json.dumps([f"data:;base64,{base64.b64encode(archive({'a.txt': MARK})).decode()}"]).encode(), "json", "strings/a.txt"),  # noqa: E501
    "xml": (b"<?xml version='1.0'?><a>AKIA&#84;ESTKEY1234567890</a>", "xml", ""),
    "html": (b"<!DOCTYPE html><p>AKIATEST<b>KEY</b>1234567890</p>", "html", ""),
    "html, entities": (b"<html><p>&#65;KIATESTKEY1234567890</p>", "html", ""),
    "html, attribute": (f"<html><img alt='see {MARK}'>".encode(), "html", ""),
}  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "name"), READ.values(), ids=READ.keys())
def test_a_text_is_read_wherever_it_stands(data: bytes, kind: str, name: str) -> None:
    read = extract(data)
    assert read.kind == kind
    assert name in [each.name for each in read.texts if MARK in each.text]
    assert read.unread == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_text_of_every_corpus_attachment_is_read(path: Path) -> None:
    read = extract(path.read_bytes())
    assert any(MARK in each.text for each in read.texts)
    assert read.unread == ()


def encrypted_zip() -> bytes:
    """An archive whose only entry says that it is encrypted."""
    data = bytearray(archive({"a.txt": "x"}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def deep(times: int) -> bytes:
    data = b"text"
    for _ in range(times):
        data = archive({"a.zip": data})
    return data


PICTURE = b"<</Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8/Length 1>>"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing known": (bytes(range(256)) * 4, found.UNKNOWN),
    "png": (PNG, found.PICTURE),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(99), found.PICTURE),
    "webp": (b"RIFF\0\0\0\0WEBP" + bytes(99), found.PICTURE),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(99), found.PICTURE),
    "wav": (b"RIFF\0\0\0\0WAVE" + bytes(99), found.SOUND),
    "mp4": (b"\0\0\0\x18ftypmp42" + bytes(99), found.SOUND),
    "mp3": (b"ID3\4\0\0" + bytes(99), found.SOUND),
    "old Word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), found.UNKNOWN),
    "docx with a picture": (docx("x", word_media_a__png=PNG), found.PICTURE),
    "docx with an object": (docx("x", word_a__bin=b"\xd0\xcf\x11\xe0" + bytes(99)), found.UNKNOWN),
    "docx that is no XML": (docx("<unclosed>"), found.DAMAGED),
    "XML bomb": (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>', found.DAMAGED),
    "entity that reads a file": (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', found.DAMAGED),  # noqa: E501
    "locked pdf": (documents.locked_pdf("x"), found.ENCRYPTED),
    "pdf with a picture": (pdf("x", PICTURE.decode() + "\nstream\nx\nendstream"), found.PICTURE),
    "pdf that is none": (b"%PDF-1.4 and nothing else", found.DAMAGED),
    "pdf, cut": (pdf("x")[:150], found.DAMAGED),
    "rtf with a picture": (rb"{\rtf1 {\pict\pngblip 89504e47}}", found.PICTURE),
    "rtf with an object": (rb"{\rtf1 {\object{\objdata 0105}}}", found.OBJECT),
    "encrypted zip": (encrypted_zip(), found.ENCRYPTED),
    "zip, cut": (archive({"a.txt": "x" * 99})[:-30], found.DAMAGED),
    "zip of an entry that is damaged": (archive({"a.txt": os.urandom(200)}).replace(b"a.txt", b"b.txt", 1), found.DAMAGED),  # noqa: E501
    "zip bomb": (archive({"a.txt": "0" * 50_000_000}), found.TOO_DENSE),
    "gzip bomb": (gzip.compress(bytes(50_000_000)), found.TOO_DENSE),
    "gzip bomb in steps": (gzip.compress(gzip.compress(bytes(300_000_000))), found.TOO_DENSE),
    "many small bombs": (archive({f"{n}.txt": "0" * 250_000 for n in range(300)}), found.TOO_LARGE),
    "too many entries": (archive(dict.fromkeys(map(str, range(found.MAX_ENTRIES + 1)), "x")), found.TOO_MANY),
    "too deep": (deep(6), found.TOO_DEEP),
    "gz, cut": (gzip.compress(os.urandom(99))[:-9], found.DAMAGED),
    "tar, cut": (tarred({"a.txt": os.urandom(5000)})[:2000], found.DAMAGED),
    "sqlite of another size": (b"SQLite format 3\0\7\7" + bytes(5000), found.DAMAGED),
    "sqlite, cut": (database("CREATE TABLE t (a)")[:-7], found.DAMAGED),
    "json, too deep": (b"[" * 100_000, found.DAMAGED),
    "pdf and zip at once": (pdf("x") + encrypted_zip(), found.ENCRYPTED),
}  # fmt: skip


@pytest.mark.parametrize(("data", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_cannot_be_read_is_said(data: bytes, why: str) -> None:
    read = extract(data)
    assert why in read.unread
    assert set(read.unread) <= set(REASONS)


def test_a_file_that_two_readers_open_is_read_as_both() -> None:
    read = extract(pdf("one") + archive({"two.txt": MARK}))
    assert {"page 1", "two.txt"} <= {each.name for each in read.texts}
    assert kinds(PNG + archive({"a.txt": "x"})) == (Kind.ZIP, Kind.PICTURE)


def test_a_damaged_entry_hides_no_other() -> None:
    data = archive({"word/a.xml": "<open>", "word/b.xml": f"<a>{MARK}</a>", "c.txt": MARK})
    assert [each.name for each in extract(data).texts if MARK in each.text] == ["word/b.xml", "c.txt"]


def test_runs_of_letters_in_unknown_data_are_texts() -> None:
    assert strings(b"\x01\x02" + MARK.encode() + b"\x00\xff") == MARK
    assert MARK in strings(b"\x01\x02" + MARK.encode("utf-16-le") + b"\x03")
    assert strings(b"abc\x00de") == ""


def test_a_row_of_a_database_runs_no_sql() -> None:
    """A view over a function that does not exist would fail, a trigger would write; here both are only text."""
    data = database(
        "CREATE TABLE t (a)", "CREATE VIEW v AS SELECT load_extension('x')", f"INSERT INTO t VALUES ('{MARK}')"
    )
    read = extract(data)
    assert read.unread == ()
    assert "load_extension" in next(each.text for each in read.texts if each.name == "rows")


@pytest.mark.parametrize("page", [512, 1024, 4096, 65_536])
def test_what_overflows_a_page_of_a_database_is_joined_where_it_was_cut(page: int) -> None:
    rows = [f"INSERT INTO t VALUES ('{(MARK + ' ') * times}')" for times in (1, 22, 23, 180, 190, 500, 7000)]
    data = database("CREATE TABLE t (a)", "CREATE INDEX i ON t(a)", *rows, page=page)
    text = next(each.text for each in extract(data).texts if each.name == "rows")
    assert text.count(MARK) == 2 * sum((1, 22, 23, 180, 190, 500, 7000)), "in the table and in the index"


def test_texts_show_no_text_in_their_repr() -> None:
    assert MARK not in repr(extract(archive({MARK: MARK})))


@pytest.mark.parametrize(
    ("data", "quick"),
    [
        (b"a text", True),
        (PNG, True),
        (b"\x01\x02\x03", True),
        (b"x" * 300_000, False),
        (docx("x"), False),
        (pdf("x"), False),
        (PNG + archive({"a": "x"}), False),
        (b"{}", False),
    ],
    ids=["text", "png", "unknown", "large text", "docx", "pdf", "png and zip", "json"],
)
def test_only_what_no_parser_opens_is_quick(data: bytes, quick: bool) -> None:
    assert is_quick(data) is quick


# ── what travels inside a text ───────────────────────────────────────────────

URLS = {
    "data:text/plain;base64,aGVsbG8=": ("data:text/plain;base64", b"hello"),
    "DATA:;BASE64,aGVsbG8": ("DATA:;BASE64", b"hello"),
    "data:;base64,aGVs\nbG8=": ("data:;base64", b"hello"),
    "data:;base64,aGVsbG8%3D": ("data:;base64", b"hello"),
    "data:,hello%20you": ("data:", b"hello you"),
    "data:;base64,%%%": None,
    "data:;base64,aGVsbG8=!": None,
    "data:text/plain": None,
    "https://x.test/,": None,
}


@pytest.mark.parametrize(("text", "opened"), URLS.items(), ids=URLS.keys())
def test_data_urls(text: str, opened: tuple[str, bytes] | None) -> None:
    assert packed.url(text) == opened


@given(st.binary())
def test_base64_reads_what_was_written(data: bytes) -> None:
    assert packed.base64(base64.b64encode(data).decode()) == data
    assert packed.base64(base64.urlsafe_b64encode(data).decode().rstrip("=")) == data


# ── hostile input ────────────────────────────────────────────────────────────

SEEDS = [data for data, *_ in READ.values()] + [data for data, _ in HOSTILE.values() if len(data) < 20_000]


@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-16", "replace"))))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert isinstance(extract(data), Extraction)
    assert as_text(data) is None or isinstance(as_text(data), str)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_no_damage_makes_it_raise(seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    read = extract(bytes(changed))
    assert set(read.unread) <= set(REASONS)


def test_an_archive_that_overlaps_itself_is_bounded() -> None:
    """Entries that all point at the same data: each is unpacked, and all of them count."""
    data = archive({"a": os.urandom(1_000_000)})
    at = data.index(b"PK\1\2")
    entry, end = data[at : data.index(b"PK\5\6")], bytearray(data[data.index(b"PK\5\6") :])
    for field in (8, 10):
        end[field : field + 2] = (100).to_bytes(2, "little")
    end[12:16] = (100 * len(entry)).to_bytes(4, "little")
    read = extract(data[:at] + entry * 100 + bytes(end))
    assert {found.TOO_LARGE, found.DAMAGED} & set(read.unread)  # newer versions of zipfile refuse it by themselves
