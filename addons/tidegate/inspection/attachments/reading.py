"""Bytes in, texts out: reads an attachment of any kind, to its last container, and never raises."""

from __future__ import annotations

from tidegate.inspection.attachments import archives, databases, mail, markup, records
from tidegate.inspection.attachments.found import (
    CRASHED,
    DAMAGED,
    MAX_DEPTH,
    TOO_DEEP,
    UNKNOWN,
    Exceeded,
    Extraction,
    Found,
)
from tidegate.inspection.attachments.kinds import UNREADABLE, Kind, as_text, kinds, strings

SMALL = 256 * 1024
"""Bytes of a plain text that are read on the spot; larger ones are handed to whoever may take long."""
_AT_ONCE = frozenset({Kind.TEXT, Kind.PICTURE, Kind.SOUND, Kind.UNKNOWN})


def is_quick(data: bytes) -> bool:
    """Say whether ``extract`` only looks at these bytes, so that no parser can be made to take long."""
    return len(data) <= SMALL and _AT_ONCE.issuperset(kinds(data))


def extract(data: bytes) -> Extraction:
    """Read an attachment: its texts, and what of it was not scanned. Never raises, and takes no more than the limits.

    There is no limit of time here, which is for a process that can be ended (``tidegate.extracting``).
    """
    found = Found()
    try:
        read(found, data, "", 0)
    except Exceeded as limit:
        found.miss(str(limit))
    except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - whatever it was: not scanned
        found.miss(CRASHED)
    return Extraction(found.kind or Kind.UNKNOWN, tuple(found.texts), tuple(found.unread))


def read(found: Found, data: bytes, name: str, depth: int) -> None:
    """Read bytes of any kind at a depth of containers. Raises ``Exceeded``."""
    if depth > MAX_DEPTH:
        raise Exceeded(TOO_DEEP)
    for kind in kinds(data):
        try:
            _read(found, data, name, depth, kind)
        except Exceeded:
            raise
        except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - what a parser refuses is damaged
            found.called(kind)
            found.miss(DAMAGED)
            found.say(name, strings(data))


def _read(found: Found, data: bytes, name: str, depth: int, kind: Kind) -> None:
    match kind:
        case Kind.PDF:
            from tidegate.inspection.attachments.pdf import pdf  # three times the start of all the others

            pdf(found, data, name, depth, read)
        case Kind.ZIP:
            archives.zipped(found, data, name, depth, read)
        case Kind.TAR:
            archives.tarred(found, data, name, depth, read)
        case Kind.GZIP | Kind.BZIP2 | Kind.XZ:
            archives.unpacked(found, data, name, depth, read, kind)
        case Kind.SQLITE:
            databases.database(found, data, name, depth, read)
        case Kind.MAIL:
            found.called(kind)
            mail.mail(found, data, name, depth, read)
        case Kind.RTF:
            found.called(kind)
            markup.rtf(found, data, name)
        case Kind.PICTURE | Kind.SOUND:
            found.called(kind)
            found.miss(UNREADABLE[kind])
        case Kind.UNKNOWN:
            found.called(kind)
            if data:
                found.miss(UNKNOWN)
                found.say(name, strings(data))
        case _:
            _read_text(found, data, name, depth, kind)


def _read_text(found: Found, data: bytes, name: str, depth: int, kind: Kind) -> None:
    text = as_text(data) or ""
    if kind is Kind.JSON:
        records.records(found, text, name, depth, read)
        return
    found.called(kind)
    if kind is Kind.XML:
        markup.xml(found, data, name)
    elif kind is Kind.HTML:
        markup.html(found, text, name)
    else:
        found.say(name, text)
