"""Mail (RFC 5322 and MIME): every header field, every part, also what stands before, between and after the parts."""

from __future__ import annotations

from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesParser
from email.policy import compat32

from tidegate.inspection.attachments.found import DAMAGED, Found, Inner, below


def mail(found: Found, data: bytes, name: str, depth: int, inner: Inner) -> None:
    """Read a mail. ``compat32``, because the newer policy parses addresses at a cost that a sender could drive up."""
    message = BytesParser(policy=compat32).parsebytes(data)
    for number, part in enumerate(message.walk()):
        found.enter()
        at = below(name, f"part {number}" if number else "")
        found.say(below(at, "headers"), "\n".join(f"{key}: {_header(value)}" for key, value in part.items()))
        for aside in (part.preamble, part.epilogue):
            found.say(at, aside if isinstance(aside, str) else "")
        if part.is_multipart():
            continue
        plain = part.get_payload(decode=True)
        if not isinstance(plain, bytes):
            found.miss(DAMAGED)
            continue
        found.spend(len(plain))
        text = _said(part, plain)
        if text is not None and part.get_content_subtype() == "plain":
            found.say(at, text)
        else:
            inner(found, plain if text is None else text.encode("utf-8", "surrogatepass"), at, depth + 1)


def _said(part: Message, plain: bytes) -> str | None:
    """Decode a part that says it is a text in some coding; ``None`` where its bytes tell better."""
    charset = part.get_content_charset()
    if part.get_content_maintype() != "text" or not charset:
        return None
    try:
        return plain.decode(charset)
    except (LookupError, UnicodeError):
        return None


def _header(value: object) -> str:
    text = str(value)
    try:
        return str(make_header(decode_header(text)))
    except Exception:  # noqa: BLE001 - the library raises many things for a broken field, which is then read as written
        return text
