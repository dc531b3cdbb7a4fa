"""Small documents of many kinds, made by hand or by the libraries that write them."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import zipfile
from collections.abc import Mapping

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def archive(entries: Mapping[str, str | bytes], comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in entries.items():
            made.writestr(name, text)
        made.comment = comment
    return file.getvalue()


def docx(text: str, **more: str | bytes) -> bytes:
    """A Word document with one paragraph; ``more`` are other parts, ``_`` in their names standing for ``/``."""
    body = f'<?xml version="1.0"?><w:document xmlns:w="{WORD}"><w:body><w:p>{text}</w:p></w:body></w:document>'
    parts = {name.replace("__", ".").replace("_", "/"): value for name, value in more.items()}
    return archive({"[Content_Types].xml": "<Types/>", "word/document.xml": body, **parts})


def run(text: str) -> str:
    """A run of text in a paragraph, as Word cuts them."""
    return f"<w:r><w:rPr><w:b/></w:rPr><w:t>{text}</w:t></w:r>"


def xlsx(**sheets: str) -> bytes:
    return archive({f"xl/{name}.xml": f"<?xml version='1.0'?>{text}" for name, text in sheets.items()})


def odt(text: str) -> bytes:
    xml = f"<?xml version='1.0'?><o:c xmlns:o='o' xmlns:text='t'><text:p>{text}</text:p></o:c>"
    return archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": xml})


def tarred(entries: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def pdf(text: str, *objects: str) -> bytes:
    """A PDF of one page that shows a text; ``objects`` are more of its objects, numbered from 6."""
    shown = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    parts = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(shown)}>>\nstream\n{shown}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *objects,
    ]
    out = b"%PDF-1.4\n"
    places = []
    for number, part in enumerate(parts, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{part}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer<</Size {len(parts) + 1}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {len(parts) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def locked_pdf(text: str) -> bytes:
    """A PDF that opens with a password."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(text)))
    writer.encrypt("a password", algorithm="AES-256")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def database(*statements: str, page: int = 4096) -> bytes:
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size={page}")
        db.execute("PRAGMA secure_delete=OFF")  # what some builds do by themselves
        for each in statements:
            db.execute(each)
        return db.serialize()
    finally:
        db.close()


PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de") + bytes(40)


def slow_docx(entries: int = 300) -> bytes:
    """A Word document of 100 KB that takes far longer to read than it may: 64 MiB of empty elements."""
    part = "<?xml version='1.0'?><a>" + "<b/>" * 60_000 + "</a>"
    return archive({"word/document.xml": "<a/>", **{f"word/p{number}.xml": part for number in range(entries)}})
