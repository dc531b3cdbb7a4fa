"""XML of any kind, HTML and RTF: every text, whatever element it stands in, so that nothing is passed over as hidden.

A document's object model would leave out what it has no name for (comments, revisions, hidden sheets, custom parts).
"""

from __future__ import annotations

import codecs
from html.parser import HTMLParser

from defusedxml.ElementTree import DefusedXMLParser

from tidegate.inspection.attachments.found import DAMAGED, OBJECT, PICTURE, Found
from tidegate.inspection.patterns import compile_re2

_BLOCKS = frozenset(
    # WordprocessingML, DrawingML, SpreadsheetML; OpenDocument; HTML: what ends a line or a cell
    ("p", "br", "cr", "tab", "tr", "tc", "row", "c", "si", "comment", "h", "s", "line-break", "table-cell", "table-row",
     "list-item", "annotation", "td", "th", "li", "div", "h1", "h2", "h3", "h4", "h5", "h6", "title", "option", "pre",
     "script", "style")
)  # fmt: skip
"""Elements after which a text does not go on. Inside of others it may: a word can be cut into runs."""


class Views:
    """The texts of a tree in two readings: run together within a paragraph, and each text by itself.

    The first finds what formatting cuts into runs, the second what would lose its edges when run together.
    """

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.apart: list[str] = []
        self._now: list[str] = []

    def add(self, text: str) -> None:
        """Take a piece of a text, which may go on."""
        self._now.append(text)

    def alone(self, text: str) -> None:
        """Take a text that stands by itself, such as an attribute."""
        self.cut()
        if text and not text.isspace():
            self.apart.append(text)

    def cut(self, *, line: bool = False) -> None:
        """End a text; ``line``: nothing that follows belongs to it."""
        text = "".join(self._now)
        self._now.clear()
        if text:
            self.joined.append(text)
            if not text.isspace():
                self.apart.append(text)
        if line:
            self.joined.append("\n")

    def say(self, found: Found, name: str) -> None:
        """Note both readings as one text, or one of them where they are the same."""
        self.cut()
        joined, apart = "".join(self.joined), "\n".join(self.apart)
        found.say(name, joined if joined.split() == apart.split() else f"{joined}\n\n{apart}")


class _Tree(Views):
    """Takes the events of an XML parser."""

    def start(self, _tag: str, attributes: dict[str, str]) -> None:
        self.cut()
        for value in attributes.values():
            if _tells(value):
                self.alone(value)

    def end(self, tag: str) -> None:
        self.cut(line=tag.rpartition("}")[2].lower() in _BLOCKS)

    def data(self, text: str) -> None:
        self.add(text)

    def comment(self, text: str) -> None:
        self.alone(text)

    def pi(self, _target: str, text: str | None = None) -> None:
        self.alone(text or "")

    def close(self) -> None:
        self.cut()


_IDS = frozenset("0123456789abcdefABCDEF-+.,{}%# ")


def _tells(value: str) -> bool:
    """Say whether an attribute may be a text: not a number, a measure or an id, of which documents are full."""
    return len(value) > 3 and not _IDS.issuperset(value)


def xml(found: Found, data: bytes, name: str) -> None:
    """Read XML. Entities and document types are refused; what is no XML is read as it stands, and not as scanned."""
    tree = _Tree()
    parser = DefusedXMLParser(target=tree, forbid_dtd=True)
    try:
        parser.feed(data)
        parser.close()
    except Exception:  # noqa: BLE001 - expat's and defusedxml's, and any of a coding's: it is no XML for us
        found.miss(DAMAGED)
        found.say(name, data.decode("utf-8", "replace"))
    tree.say(found, name)


class _Page(HTMLParser):
    """Takes the events of an HTML parser."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.views = Views()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.views.cut(line=tag in _BLOCKS)
        for _, value in attrs:
            if value and _tells(value):
                self.views.alone(value)

    def handle_endtag(self, tag: str) -> None:
        self.views.cut(line=tag in _BLOCKS)

    def handle_data(self, data: str) -> None:
        self.views.add(data)

    def handle_comment(self, data: str) -> None:
        self.views.alone(data)


def html(found: Found, text: str, name: str) -> None:
    """Read HTML: what it says, its attributes and comments."""
    page = _Page()
    page.feed(text)
    page.close()
    page.views.say(found, name)


_RTF = compile_re2(r"\\([a-z]{1,32})(-?[0-9]{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-z])|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\")
_BREAKS = {"par", "line", "cell", "row", "tab", "sect", "page", "pard", "nestcell", "nestrow"}
_DROPPED = {"pict": PICTURE, "objdata": OBJECT, "bin": OBJECT}


class _Rtf:
    """An RTF text as it is read, token by token: bytes of the code page in ``run``, what is decoded in ``out``."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.out: list[str] = []
        self.run = bytearray()
        self.page = "cp1252"
        self.stack: list[tuple[int, bool]] = []
        self.fallback, self.dropped, self.skip = 1, False, 0

    def flush(self) -> None:
        if self.run:
            self.out.append(self.run.decode(self.page, "replace"))
            self.run.clear()

    def brace(self, *, opens: bool) -> None:
        if opens:
            self.stack.append((self.fallback, self.dropped))
            return
        self.fallback, self.dropped = self.stack.pop() if self.stack else (1, False)
        self.skip = 0
        self.flush()

    def control(self, word: str, number: str) -> None:
        self.skip = 0
        if word in _DROPPED:
            self.found.miss(_DROPPED[word])
            self.dropped = True
        elif word == "u" and number:
            self.flush()
            self.out.append(chr(int(number) % 0x10000))
            self.skip = self.fallback
        elif word == "uc":
            self.fallback = max(0, min(int(number or "1"), 8))
        elif word == "ansicpg":
            self.page = _page(number)
        elif word in _BREAKS:
            self.flush()
            self.out.append("\n")

    def text(self, said: bytes) -> None:
        if not self.dropped:
            self.run += said[self.skip :]
            self.skip = max(0, self.skip - len(said))


def rtf(found: Found, data: bytes, name: str) -> None:
    """Read RTF (Microsoft's specification 1.9.1): the text of every group, also of those that viewers do not show."""
    reader = _Rtf(found)
    for token in _RTF.finditer(data):
        word, number, code, escaped, brace, plain = (each or b"" for each in token.groups())
        if brace:
            reader.brace(opens=brace == b"{")
        elif word:
            reader.control(word.decode(), number.decode())
        elif code:
            reader.text(bytes.fromhex(code.decode()))
        elif escaped:
            reader.text({b"\\": b"\\", b"{": b"{", b"}": b"}", b"~": b" "}.get(escaped, b""))
        else:
            reader.text(plain)
    reader.flush()
    found.say(name, "".join(reader.out).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _page(number: str) -> str:
    try:
        return codecs.lookup(f"cp{number}").name
    except LookupError:
        return "cp1252"
