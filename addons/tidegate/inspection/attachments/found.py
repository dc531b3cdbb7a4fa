"""What is read out of an attachment, and how much of it may be read. The values every reader here writes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MAX_BYTES = 64 * 1024 * 1024
"""Bytes unpacked out of one attachment, all entries together: as much as ``tidegate scan`` reads of one file."""
MAX_ENTRIES = 10_000
"""Entries of all its archives together. An office document has tens, a large program (jar, apk) some thousands."""
MAX_RATIO, RATIO_FLOOR = 200, 256 * 1024
"""How many times its size an entry may unpack to, once it is larger than the floor: as for bodies, and for the reasons
that ``dialects.body`` gives. The XML of spreadsheets reaches about 50."""
MAX_DEPTH = 4
"""Containers in containers: a document in an archive in a mail in an archive. Nobody sends more by accident."""
MAX_TEXTS = 20_000
"""Texts that are told apart by their place; one for each entry, page and part, so twice the entries will do."""

PICTURE = "a picture"
SOUND = "sound or video"
UNKNOWN = "data of an unknown type"
DAMAGED = "data that is damaged"
ENCRYPTED = "data that is encrypted"
OBJECT = "an embedded object"
ADDRESS = "an address, which the provider reads past this gate"
STORED = "something stored at the provider"
NOT_BASE64 = "data that is neither base64 nor a data: URL"
IN_ANSWER = "a document, which is not opened in an answer"
LATE = "data that took too long to read"
CRASHED = "data on which its reader failed"
TOO_DEEP = f"containers in containers, more than {MAX_DEPTH} deep"
TOO_MANY = f"more than {MAX_ENTRIES} entries"
TOO_LARGE = f"more than {MAX_BYTES // 2**20} MiB when unpacked"
TOO_DENSE = "data that unpacks to a suspicious size"

REASONS = (
    PICTURE, SOUND, UNKNOWN, DAMAGED, ENCRYPTED, OBJECT, ADDRESS, STORED, NOT_BASE64, IN_ANSWER, LATE, CRASHED,
    TOO_DEEP, TOO_MANY, TOO_LARGE, TOO_DENSE,
)  # fmt: skip
"""Every reason why something was not scanned: a closed list, so that none can quote what was sent."""


class Exceeded(Exception):
    """An attachment is over a limit; the message is one of ``REASONS``."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of an attachment. ``name`` says where it stands in it (``word/document.xml``), in the sender's words."""

    name: str = field(repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was read out of an attachment. ``kind`` is what it is (``docx``); ``unread`` why parts were not scanned.

    Nothing in ``unread``: it was read whole.
    """

    kind: str
    texts: tuple[Text, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(slots=True)
class Found:
    """What has been read so far, and what may still be read."""

    kind: str = ""
    texts: list[Text] = field(default_factory=list)
    unread: dict[str, None] = field(default_factory=dict)
    bytes_left: int = MAX_BYTES
    entries_left: int = MAX_ENTRIES

    def say(self, name: str, text: str) -> None:
        """Note a text; one of white space alone is none."""
        if not text or text.isspace():
            return
        if len(self.texts) >= MAX_TEXTS:
            raise Exceeded(TOO_MANY)
        self.texts.append(Text(name, text))

    def miss(self, why: str) -> None:
        """Note that something was not scanned."""
        self.unread.setdefault(why)

    def called(self, kind: str) -> None:
        """Name the kind of the attachment; what is inside it does not change the name."""
        self.kind = self.kind or kind

    def spend(self, size: int) -> None:
        """Count bytes that were unpacked."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise Exceeded(TOO_LARGE)

    def enter(self) -> None:
        """Count an entry of an archive."""
        self.entries_left -= 1
        if self.entries_left < 0:
            raise Exceeded(TOO_MANY)


Inner = Callable[[Found, bytes, str, int], None]
"""Reads what stands inside something else: what was found so far, its bytes, its name, how deep it is."""


def below(name: str, inner: str) -> str:
    """Name something inside of something named."""
    return f"{name}/{inner}" if name else inner
