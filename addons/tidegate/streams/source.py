"""JSON source that arrives in pieces (a tool call's arguments), redacted so that it still parses.

Rules look at the *view*: the source with the escapes in its strings undone, so that ``\\n`` in a key hides nothing.
What they find is cut out of the source: inside a string the placeholder replaces content; quotes, colons, commas and
brackets stay; masked digits outside strings become ``0``; ``true``, ``false`` and ``null`` stay. Text that
is not JSON is masked all the same, its structural characters excepted.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from dataclasses import dataclass, replace

from tidegate.streams.redactor import Dropped, Kept, Masked, Piece, Redactor

_CONTENT = re.compile(r'[^"\\]+')
_STRUCTURE = re.compile(r"[ \t\n\r{}\[\],:]+")
_TOKEN = re.compile(r'[^ \t\n\r{}\[\],:"]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})')
_UNFINISHED = re.compile(r"\\(?:u[0-9A-Fa-f]{0,3})?\Z")
_HIGH = re.compile(r"\\u[dD][89abAB]")
_LOW = re.compile(r"\\u[dD][c-fC-F][0-9A-Fa-f]{2}")
_UNFINISHED_LOW = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9A-Fa-f]?)?)?)?)?\Z")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS = ("true", "false", "null")


class _Kind(enum.Enum):
    """What a part of the source is, which decides what may stand in its place."""

    STRUCTURE = enum.auto()  # stays, masked or not; literals too
    STRING = enum.auto()  # content of a string: the placeholder
    NUMBER = enum.auto()  # a number that parses
    JUNK = enum.auto()  # nothing JSON knows: the placeholder


@dataclass(slots=True)
class _Unit:
    """A part of the source: as many characters of the view, or one when it is an escape."""

    kind: _Kind
    source: str
    escape: bool = False


class JsonSource:
    """One channel of JSON source around ``redactor``. Positions of its findings count characters of the view."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._reader = _Reader()
        self._units: deque[_Unit] = deque()
        self._number = _Number()
        self._placeholder = ""
        self._placed = False

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left; an escape counts as one once it is complete."""
        return self._redactor.held + self._reader.held

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the source and return what may leave."""
        return self._pieces(self._redactor.feed(self._view(self._reader.feed(text))))

    @property
    def position(self) -> int:
        """Where what is held begins; it moves whenever something leaves."""
        return self._redactor.position

    def expire(self) -> list[Piece]:
        """Mask what is held, but for half an escape, which has no text yet."""
        return self._pieces(self._redactor.expire())

    def end(self) -> list[Piece]:
        """Return what is left: the source is over. Nothing may be fed after it."""
        pieces = self._redactor.feed(self._view(self._reader.end()))
        return self._pieces(pieces + self._redactor.end())

    def _view(self, units: list[_Unit]) -> str:
        self._units.extend(units)
        return _viewed(units)

    def _pieces(self, pieces: list[Piece]) -> list[Piece]:
        """Turn pieces of the view into pieces of the source."""
        out: list[Piece] = []
        for piece in pieces:
            match piece:
                case Kept(text):
                    out.append(Kept(self._take(len(text), masked=False)))
                case Dropped(length):
                    out.append(Dropped(length, self._take(length, masked=True)))
                case Masked(text):
                    self._placeholder, self._placed = text, False
                    out.append(replace(piece, text=""))
                case _:
                    out.append(piece)
        return out

    def _take(self, length: int, *, masked: bool) -> str:
        """Return what leaves for the next ``length`` characters of the view."""
        out: list[str] = []
        while length:
            unit = self._units[0]
            part = unit.source if unit.escape else unit.source[:length]
            length -= 1 if unit.escape else len(part)
            if len(part) == len(unit.source):
                self._units.popleft()
            else:
                unit.source = unit.source[len(part) :]
            out.append(self._instead(unit.kind, part) if masked else self._as_is(unit.kind, part))
        return "".join(out)

    def _as_is(self, kind: _Kind, part: str) -> str:
        if kind is _Kind.NUMBER:
            return self._number.kept(part)
        if kind is _Kind.STRUCTURE:
            self._number = _Number()
        return part

    def _instead(self, kind: _Kind, part: str) -> str:
        if kind is _Kind.NUMBER:
            return self._number.masked(part)
        if kind is _Kind.STRUCTURE:
            self._number = _Number()
            self._placed = self._placed and part != '"'  # every string has its own placeholder
            return part
        if self._placed:
            return ""
        self._placed = True
        return self._placeholder


def view(source: str) -> str:
    """Return whole JSON source with the escapes in its strings undone: the text that rules look at."""
    reader = _Reader()
    return _viewed([*reader.feed(source), *reader.end()])


def _viewed(units: list[_Unit]) -> str:
    return "".join(_unescape(unit.source) if unit.escape else unit.source for unit in units)


class _Reader:
    """Cuts source into units. What it cannot judge yet waits: an unfinished escape, the beginning of a literal."""

    def __init__(self) -> None:
        self._waiting = ""
        self._in_string = False
        self._token: _Kind | None = None

    @property
    def held(self) -> int:
        return len(self._waiting)

    def feed(self, text: str) -> list[_Unit]:
        return self._read(self._waiting + text, final=False)

    def end(self) -> list[_Unit]:
        return self._read(self._waiting, final=True)

    def _read(self, text: str, *, final: bool) -> list[_Unit]:
        self._waiting = ""
        units: list[_Unit] = []
        at = 0
        while at < len(text):
            unit = self._string(text, at, final) if self._in_string else self._outside(text, at, final)
            if unit is None:
                self._waiting = text[at:]
                break
            units.append(unit)
            at += len(unit.source)
        return units

    def _string(self, text: str, at: int, final: bool) -> _Unit | None:
        if text[at] == '"':
            self._in_string = False
            return _Unit(_Kind.STRUCTURE, '"')
        if plain := _CONTENT.match(text, at):
            return _Unit(_Kind.STRING, plain[0])
        escape = _ESCAPE.match(text, at)
        if escape is None:
            if not final and _UNFINISHED.match(text, at):
                return None
            return _Unit(_Kind.STRING, "\\")  # no escape JSON knows
        if _HIGH.match(escape[0]):
            if low := _LOW.match(text, escape.end()):
                return _Unit(_Kind.STRING, escape[0] + low[0], escape=True)
            if not final and _UNFINISHED_LOW.match(text, escape.end()):
                return None
        return _Unit(_Kind.STRING, escape[0], escape=True)

    def _outside(self, text: str, at: int, final: bool) -> _Unit | None:
        if text[at] == '"':
            self._in_string, self._token = True, None
            return _Unit(_Kind.STRUCTURE, '"')
        if structure := _STRUCTURE.match(text, at):
            self._token = None
            return _Unit(_Kind.STRUCTURE, structure[0])
        token = _TOKEN.match(text, at)
        assert token is not None
        if self._token is None:
            if text[at] in "-0123456789":
                self._token = _Kind.NUMBER
            elif token.end() == len(text) and not final and any(each.startswith(token[0]) for each in _LITERALS):
                return None
            else:
                self._token = _Kind.STRUCTURE if token[0] in _LITERALS else _Kind.JUNK
        return _Unit(self._token, token[0])


class _Number:
    """One number on its way out. Whatever is masked of a valid number, what has left is the beginning of one."""

    def __init__(self) -> None:
        self._head = ""  # the first characters that have left: enough to know a lone zero
        self._last = ""
        self._masked = False

    def kept(self, part: str) -> str:
        return "".join(map(self._keep, part)) if self._masked else self._emit(part)

    def masked(self, part: str) -> str:
        self._masked = True
        wanted = any(each.isdigit() for each in part) and not self._last.isdigit()
        return self._emit("0") if wanted else ""

    def _keep(self, each: str) -> str:
        """Let one character of a number leave of which something was masked, where it still fits."""
        if each.isdigit():
            return "" if self._head in ("0", "-0") else self._emit(each)
        fits = self._last.isdigit() if each in ".eE" else self._last in ("e", "E") or each not in "+-"
        return self._emit(each) if fits else ""

    def _emit(self, part: str) -> str:
        self._head = (self._head + part)[:3]
        self._last = part[-1]
        return part


def _unescape(source: str) -> str:
    """Return the one character an escape stands for; a lone surrogate stands for itself."""
    if source[1] != "u":
        return _SHORT.get(source[1], source[1])
    code = int(source[2:6], 16)
    if len(source) > 6:
        code = 0x10000 + ((code - 0xD800) << 10) + (int(source[8:12], 16) - 0xDC00)
    return chr(code)
