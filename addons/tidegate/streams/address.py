"""Where in a text the next character stands: inside an address or not. Fed in any pieces, with the same result.

An address is what a client or its server may fetch or show as a link: what follows ``//``, ``www.``, ``mailto:`` or a
host and a slash up to the next white space; the destination of a Markdown link, picture or reference; everything inside
an HTML tag, and so an autolink in angle brackets. Three readers look at every character side by side, and each of them
is enough, since nobody knows which of them a client will be. What is unclear is an address.

A text that begins as JSON is read with its escapes undone as long as it is JSON, and there the end of a string ends an
address that is not in a link or tag.
"""

from __future__ import annotations

import copy
import enum
import re
from collections.abc import Mapping

_SPACE = " \t\n\r\f\v"
_LINKED = ("//", "www.", "mailto:", "xmpp:")
_HOST = re.compile(r"\.(?:[^\W_]{2,63}|xn--[\w-]{1,59}|[0-9]{1,3})(?::[0-9]{1,5})?[/?#]\Z")
_TAIL = 80
"""Characters of a run that are remembered: the last label of a host has 63."""
_MARKS = re.compile(r"[/.:?#<\\\]]")
_JSON_MARKS = re.compile(r'[/.:?#<\\\]"]')
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_BETWEEN = frozenset(" \t\n\r{}[],:0123456789+-.eEtrufalsn")
"""What JSON has between its strings."""
_AFTER = frozenset(" \t\n\r,:}]")


class _Tag(enum.Enum):
    """States of the HTML standard's tokenizer, 13.2.5.6 to 13.2.5.39, as far as they say where a tag ends."""

    OUT = enum.auto()
    OPEN = enum.auto()  # after <
    NAME = enum.auto()
    BEFORE = enum.auto()  # before an attribute's name
    ATTRIBUTE = enum.auto()
    AFTER = enum.auto()  # after an attribute's name
    EQUALS = enum.auto()
    BARE = enum.auto()
    SINGLE = enum.auto()
    DOUBLE = enum.auto()
    QUOTED = enum.auto()  # after a quoted value


_TURNS: Mapping[_Tag, Mapping[str, _Tag]] = {
    _Tag.OUT: {"<": _Tag.OPEN},
    _Tag.OPEN: {
        "letter": _Tag.NAME, "/": _Tag.NAME, "!": _Tag.NAME, "?": _Tag.NAME, "<": _Tag.OPEN, "else": _Tag.OUT,
    },
    _Tag.NAME: {"space": _Tag.BEFORE, "/": _Tag.BEFORE, ">": _Tag.OUT},
    _Tag.BEFORE: {"space": _Tag.BEFORE, "/": _Tag.BEFORE, ">": _Tag.OUT, "else": _Tag.ATTRIBUTE},
    _Tag.ATTRIBUTE: {"space": _Tag.AFTER, "/": _Tag.BEFORE, "=": _Tag.EQUALS, ">": _Tag.OUT},
    _Tag.AFTER: {
        "space": _Tag.AFTER, "/": _Tag.BEFORE, "=": _Tag.EQUALS, ">": _Tag.OUT, "else": _Tag.ATTRIBUTE,
    },
    _Tag.EQUALS: {
        "space": _Tag.EQUALS, "'": _Tag.SINGLE, '"': _Tag.DOUBLE, ">": _Tag.OUT, "else": _Tag.BARE,
    },
    _Tag.BARE: {"space": _Tag.BEFORE, ">": _Tag.OUT},
    _Tag.SINGLE: {"'": _Tag.QUOTED},
    _Tag.DOUBLE: {'"': _Tag.QUOTED},
    _Tag.QUOTED: {"space": _Tag.BEFORE, "/": _Tag.BEFORE, ">": _Tag.OUT, "else": _Tag.ATTRIBUTE},
}  # fmt: skip
"""Where a character leads; without ``else`` any other leaves the state."""


class _Json(enum.Enum):
    """Whether a text is JSON, as far as it goes."""

    UNKNOWN = enum.auto()
    NO = enum.auto()
    BETWEEN = enum.auto()
    STRING = enum.auto()
    AFTER = enum.auto()  # right after a string


class Place:
    """The place in one text. ``json``: the text is JSON source, whatever it begins with."""

    __slots__ = (
        "_address", "_angle", "_depth", "_escape", "_escaped", "_json", "_last", "_line", "_reference", "_shut",
        "_sure", "_tag", "_tail",
    )  # fmt: skip

    def __init__(self, *, json: bool = False) -> None:
        self._tail = ""  # the end of the run of characters that are no white space
        self._address = False
        self._shut = False  # the JSON string that held the address has ended
        self._tag = _Tag.OUT
        self._depth = 0  # of parentheses in a link's destination, 0 outside
        self._angle = False
        self._escaped = False
        self._line = False  # only white space since the last line break
        self._reference = 0  # 1: after ``]:``, 2: in its destination
        self._last = ""
        self._json = _Json.BETWEEN if json else _Json.UNKNOWN
        self._sure = json
        self._escape = ""

    @property
    def inside(self) -> bool:
        """Whether the next character belongs to an address. One right after ``<`` does."""
        return self._tag is not _Tag.OUT or self._elsewhere

    @property
    def after_angle(self) -> bool:
        """Whether ``<`` was the last character, and nothing else makes this an address."""
        return self._tag is _Tag.OPEN and not self._elsewhere

    @property
    def in_json(self) -> bool:
        """Whether the next character belongs to a string of JSON."""
        return self._json is _Json.STRING

    @property
    def _elsewhere(self) -> bool:
        linked = self._address and not (self._shut and self.in_json)
        return linked or self._depth > 0 or self._reference > 0

    def onward(self) -> Place | None:
        """Return the place where a text begins that clients may join to this one; ``None`` where it is no address."""
        if self._tag is _Tag.OUT and not self._elsewhere:
            return None
        return copy.copy(self)

    def feed(self, text: str) -> None:
        """Go on by some characters."""
        at = 0
        while at < len(text):
            marks = self._marks()
            if marks is not None:
                mark = marks.search(text, at)
                stop = mark.start() if mark else len(text)
                if stop > at:
                    self._skim(text[at:stop])
                    at = stop
                    continue
            if self._json is _Json.NO:
                self._see(text[at])
            else:
                self._read(text[at])
            at += 1

    def _marks(self) -> re.Pattern[str] | None:
        """Return what may begin or end anything but a run; ``None`` where any character may."""
        if self._tag is not _Tag.OUT or self._depth or self._reference or self._last == "]" or self._escape:
            return None
        return {_Json.NO: _MARKS, _Json.STRING: _JSON_MARKS}.get(self._json)

    def _skim(self, text: str) -> None:
        """Go on by characters of which each only ends a run or goes on with one: most of most texts."""
        space = max(map(text.rfind, _SPACE))
        if space >= 0:
            self._tail, self._address, self._shut = "", False, False
        self._tail = (self._tail + text[space + 1 :][-_TAIL:])[-_TAIL:]
        self._last = text[-1]

    # JSON ────────────────────────────────────────────────────────────────────

    def _read(self, each: str) -> None:
        state = self._json
        if state is _Json.UNKNOWN:
            if each not in " \t\n\r\ufeff":
                self._json = _Json.BETWEEN if each in "{[" else _Json.NO
        elif state is _Json.STRING:
            if self._escape or each == "\\":
                self._unescape(each)
                return
            if each == '"':
                self._json = _Json.AFTER
                self._shut = self._address
        elif each == '"' and (state is _Json.BETWEEN or self._sure):
            self._json = _Json.STRING
        elif each not in (_AFTER if state is _Json.AFTER else _BETWEEN) and not self._sure:
            self._json = _Json.NO
        else:
            self._json = _Json.BETWEEN
        self._see(each)

    def _unescape(self, each: str) -> None:
        self._escape += each
        code = self._escape[1:]
        if code[:1] == "u":
            if len(code) < 5:
                return
            try:
                self._see(chr(int(code[1:], 16)))
            except ValueError:
                self._json = self._json if self._sure else _Json.NO
        elif code:
            self._see(_SHORT.get(code, code))
        else:
            return
        self._escape = ""

    # the three readers ───────────────────────────────────────────────────────

    def _see(self, each: str) -> None:
        self._see_run(each)
        self._see_link(each)
        self._see_tag(each)
        self._last = each

    def _see_run(self, each: str) -> None:
        if each in _SPACE:
            self._tail, self._address, self._shut = "", False, False
            return
        if each == "\\":
            return  # an escape in Markdown
        self._tail = (self._tail + each)[-_TAIL:]
        if each in "/.:?#":
            low = self._tail[-8:].lower()
            if low.endswith(_LINKED) or (each in "/?#" and _HOST.search(self._tail)):
                self._address, self._shut = True, False

    def _see_link(self, each: str) -> None:
        if self._depth:
            self._see_destination(each)
        elif each == "(" and self._last == "]":
            self._depth, self._line = 1, False
        if self._reference:
            blank = each in _SPACE
            if self._reference == 1 and not blank:
                self._reference = 2
            elif self._reference == 2 and blank:
                self._reference = 0
        elif each == ":" and self._last == "]":
            self._reference = 1

    def _see_destination(self, each: str) -> None:
        if self._escaped:
            self._escaped = False
        elif each == "\\":
            self._escaped = True
        elif self._angle:
            self._angle = each not in ">\n"
        elif each == "<":
            self._angle = True
        elif each == "(":
            self._depth += 1
        elif each == ")":
            self._depth -= 1
        if each == "\n":
            if self._line:  # no link goes on after an empty line
                self._depth, self._angle = 0, False
            self._line = True
        elif each not in _SPACE:
            self._line = False

    def _see_tag(self, each: str) -> None:
        turns = _TURNS[self._tag]
        kind = "space" if each in _SPACE else "letter" if self._tag is _Tag.OPEN and each.isalpha() else each
        self._tag = turns.get(kind) or turns.get("else", self._tag)
