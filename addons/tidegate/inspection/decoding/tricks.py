"""Ways to write a text so that people and models still read it: split, spaced out, reversed, leetspoken and so on."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from tidegate.inspection.decoding.views import BREAK, Edit
from tidegate.inspection.patterns import compile_re2

_SIDE = r"[A-Za-z0-9+/=_.:~()-]"
_BETWEEN = compile_re2(
    rf"{_SIDE}(?P<value>[\x22'`]\s{{0,9}}[+.&,]?\s{{0,9}}(?:[\x22'][A-Za-z0-9_]{{1,20}}[\x22']\s{{0,3}}:\s{{0,3}})?[\x22'`]"
    r"|\x22\s{0,9}\}\s{0,9},\s{0,9}\{\s{0,9}"
    r"(?:\x22[a-z_]{1,20}\x22\s{0,3}:\s{0,3}(?:\x22[a-z_]{1,20}\x22\s{0,3},\s{0,9})?){1,4}\x22(?:[A-Za-z0-9 ]{1,20}: )?"
    rf"|\r?\n)(?: ?[0-9(]|{_SIDE})"
)
_NEAR = re.compile(rb"[0-9@]|[a-z][A-Z]")
_WORDS = (b"zero", b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight", b"nine")
_UNIT = "(?:[!-~]|zero|one|two|three|four|five|six|seven|eight|nine)"
_SPACED = compile_re2(
    rf"(?:\A|[\s\x22'(])(?P<value>{_UNIT}(?:(?: |   ){_UNIT}){{7,}}|[!-~](?:-[!-~\s]){{7,}})(?:[\s\x22',;)]|\z)"
)
_TOKENS = compile_re2(
    r"[!#-&*+./:;=?@A-Z^_a-z|~-]*(?:[0-9@]|[a-z][A-Z])[!#-&*+./0-9:;=?@A-Z^_a-z|~-]{5,}"
    r"|[0-9A-Z+()-][0-9A-Z()+.-]{0,15}(?: [0-9A-Z()+.-]{1,15}){1,9}"
)
_BLOCKS = compile_re2(r"-{5}[A-Za-z ]{8,40}-{5}\s[A-Za-z0-9+/=\s]{16,}(?:-{5}[A-Za-z ]{8,40}-{5})?")
_BASE85 = compile_re2(r"(?:\A|[\s(>])(?P<value>[!-u]{14,})(?:[\s)<]|\z)")
_BEGIN = b"-----"
_ODD = re.compile(rb"[^A-Za-z0-9_./-]{1}[!-u]*[^A-Za-z0-9_./-]")
_LEET = bytes.maketrans(b"0134578@$", b"oieastbas")
_ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
)
_DIGIT = re.compile(rb"[0134578][a-z]|[a-z][0134578]")
_MIXED = re.compile(rb"[0-9]*[A-Za-z][A-Za-z0-9]*")
_FIRST = re.compile(rb"(?<![0-9])[0134578](?=[a-z0-9])")
_MAX_TOKEN = 2048
_REACH = 24
_SHORTEST = 11
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"


def split(data: bytes) -> Iterator[Edit]:
    """Find what stands between parts of a text that was split: over lines, strings, items, fields or messages.

    Where neither side has a digit or an at sign there is no value to split.
    """
    for match in _BETWEEN.finditer(data):
        start, end = match.span(1)
        if _NEAR.search(data, max(start - _REACH, 0), start) or _NEAR.search(data, end, end + _REACH):
            yield start, end, b""


def spaced(data: bytes) -> Iterator[Edit]:
    """Find characters written one by one, digits as words too."""
    for match in _SPACED.finditer(data):
        run = match.group(1)
        if run[1:2] == b"-":
            said = run[::2]
        else:
            units = run.replace(b"   ", b" \0 ").split(b" ")
            said = b"".join(_DIGITS.get(unit, unit) for unit in units).replace(b"\0", b" ")
        yield match.start(1), match.end(1), said


_DIGITS = {word: b"%d" % digit for digit, word in enumerate(_WORDS)}


def turned(data: bytes) -> Iterator[Edit]:
    """Read every long token reversed, in ROT13, with its case swapped, and without leetspeak."""
    for match in _TOKENS.finditer(data):
        if match.end() - match.start() >= _SHORTEST:
            yield from _turned(match.start(), match.group())
    if _BEGIN in data:
        for match in _BLOCKS.finditer(data):
            yield from _turned(match.start(), match.group())


def every_turn(data: bytes) -> bytes:
    """Return all that ``turned`` reads in one piece, for the question whether it holds anything."""
    tokens = [match for match in _TOKENS.findall(data) if len(match) >= _SHORTEST]
    if _BEGIN in data:
        tokens += _BLOCKS.findall(data)
    worded = [token for token in tokens if token.lower() != token.upper()]
    text = BREAK.join(worded)
    leet = [said for token in worded for said in _unleet(token) if said != token]
    return BREAK.join((BREAK.join(tokens)[::-1], text.translate(_ROT13), text.swapcase(), *leet))


def _turned(start: int, token: bytes) -> Iterator[Edit]:
    end = start + len(token)
    if len(token) <= _MAX_TOKEN:
        yield start, end, token[::-1]
        for said in {token.translate(_ROT13), token.swapcase(), *_unleet(token)}:
            if said != token:
                yield start, end, said


def ascii85(data: bytes) -> Iterator[Edit]:
    """Find ascii85 that says text."""
    for match in _BASE85.finditer(data):
        token = match.group(1)
        if _ODD.search(token) and (said := _ascii85(token)) is not None:
            yield match.start(1), match.end(1), said


def _unleet(token: bytes) -> Iterator[bytes]:
    """Read digits as letters in every word that has letters: all of them, or the first of each number."""
    if _DIGIT.search(token):
        yield _MIXED.sub(lambda each: each.group().translate(_LEET), token)
        yield _FIRST.sub(lambda each: each.group().translate(_LEET), token)


def _ascii85(token: bytes) -> bytes | None:
    if token.isalnum() or max(token[:5]) > 0x75:
        return None
    value = 0
    for byte in token[:5]:
        value = value * 85 + byte - 33
    if value >> 32 or value.to_bytes(4).translate(None, _PRINTABLE):
        return None
    try:
        said = base64.a85decode(token)
    except ValueError:
        return None
    return None if said.translate(None, _PRINTABLE) else said
