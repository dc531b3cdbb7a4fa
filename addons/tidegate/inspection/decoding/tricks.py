"""Ways to write a text so that people and models still read it: split, spaced out, reversed, leetspoken and so on."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from tidegate.inspection.decoding.views import Edit
from tidegate.inspection.patterns import compile_re2, matcher
from tidegate.inspection.spotting import HINT, NUMBER, SIDE, Disguise
from tidegate.inspection.turning import LEET, ROT13

_REACH = 24
"""Bytes of the words on both sides of a joint that are looked at."""
_SPAN = 240
"""Bytes before the end of a joint in which it is looked for; one from message to message has about sixty."""
_SIDE = rf"[{SIDE}]"
_LITERALS = r"[\x22'`]\s{0,9}[+.&,]?\s{0,9}(?:[\x22'][A-Za-z0-9_]{1,20}[\x22']\s{0,3}:\s{0,3})?[\x22'`]"
_STRINGS = (
    r"\x22[\s\]}]{0,12},[\s\[{]{0,12}"
    r"(?:\x22[a-z_]{1,20}\x22\s{0,3}:[\s\[{]{0,9}(?:\x22[a-z_]{1,20}\x22\s{0,3},\s{0,9})?){1,4}\x22"
    r"(?:[A-Za-z0-9 ]{1,20}: )?"
)
_BETWEEN = rf"[{SIDE}@](?P<value>{_LITERALS}|{_STRINGS}|\r?\n)"
_BETWEENS = compile_re2(rf"{_BETWEEN}(?: ?[0-9(]|{_SIDE})")
_LAST = matcher(rf"{_BETWEEN} ?{_SIDE}[{SIDE}@]{{0,{_REACH}}}\z")
_HINT = re.compile(HINT.encode())
_APART = bytes(byte if re.match(f"[{SIDE}@]", chr(byte)) else 0x20 for byte in range(256))
_WORDS = (b"zero", b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight", b"nine")
_UNIT = "(?:[!-~]|zero|one|two|three|four|five|six|seven|eight|nine)"
_SPACED = compile_re2(
    rf"(?:\A|[\s\x22'(])(?P<value>{_UNIT}(?:(?: |   ){_UNIT}){{7,}}|[!-~](?:-[!-~\s]){{7,}})(?:[\s\x22',;)]|\z)"
)
_TOKENS = compile_re2(r"[!#-&*+./:;=?@A-Z^_a-z|~-]*(?:[0-9@]|[a-z][A-Z])[!#-&*+./0-9:;=?@A-Z^_a-z|~-]{5,}")
_NUMBERS = compile_re2(r"[0-9A-Z+()-][0-9A-Z()+.-]{0,20}(?: [0-9A-Z()+.-]{1,15}){0,9}")
_AROUND = 40
_GROUPED = compile_re2(NUMBER)
_BLOCKS = compile_re2(r"-{5}[A-Za-z ]{8,40}-{5}\s[A-Za-z0-9+/=\s]{16,}(?:-{5}[A-Za-z ]{8,40}-{5})?")
_BASE85 = matcher(r"(?:\A|[\s(>\x22])[+-I][!-u]{4}[+-I][!-u]{4}[+-I][!-u]{3,}")
_END85 = re.compile(rb"\x22[,:}\]]")
_BEFORE85 = b' \t\n\f\r(>"'
_OPENING85 = b"+,-./0123456789:;<=>?@ABCDEFGHI"
"""With these begin the five characters that stand for four printable ones: 0x20202020 and 0x7E7E7E7E over 85 ** 4."""
_BEGIN = b"-----"
_ODD = re.compile(rb"[^A-Za-z0-9_./-]{1}[!-u]*[^A-Za-z0-9_./-]")
_DIGIT = re.compile(rb"[0134578][a-z]|[a-z][0134578]")
_MIXED = re.compile(rb"[0-9]*[A-Za-z][A-Za-z0-9]*")
_FIRST = re.compile(rb"(?<![0-9])[0134578](?=[a-z0-9])")
_MAX_TOKEN = 2048
_MAX_BLOCK = 8192
"""Bytes of a token, and of a block such as a private key: the longest keys have 6 KB."""
_SHORTEST = 11
_SHORTEST85 = 14
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"


def joint_ends(data: bytes) -> list[int]:
    """Return the ends of everything that stands between two parts of a text, and one character more."""
    return [match.end() for match in _BETWEENS.finditer(data)]


def split(data: bytes, ends: Iterable[int]) -> Iterator[Edit]:
    """Find what stands between parts of a text that was split: over lines, strings, items, fields or messages.

    The words that meet there must both look like parts of a value, or one of them like a part of a mail address.
    ``ends`` are about where it ends, ascending.
    """
    done = 0
    for at in ends:
        if not _HINT.search(_word(data, at - 1)) and data.find(b"@", max(at - _SPAN, 0), at + _REACH) < 0:
            continue
        start, end = _line_end(data, at) or _joint(data, max(at - _SPAN, done), at)
        if start > done and _meet(data, start, end):
            yield start, end, b""
            done = end


def _line_end(data: bytes, at: int) -> tuple[int, int] | None:
    """Return the end of a line before the first character of the next one, which ends at ``at``; most joints are."""
    end = at - 1
    stop = end - 1 if data[end - 1 : end] == b" " else end
    if data[stop - 1 : stop] != b"\n":
        return None
    return stop - 2 if data[stop - 2 : stop - 1] == b"\r" else stop - 1, stop


def _joint(data: bytes, left: int, at: int) -> tuple[int, int]:
    """Return the last joint between two positions, or (0, 0)."""
    start, end = _LAST(data[left:at], 0, at - left)[1]
    return (start + left, end + left) if start >= 0 else (0, 0)


def _meet(data: bytes, start: int, end: int) -> bool:
    """Say whether the words around a joint may be parts of one value."""
    right = _word(data, end)
    left = data[max(start - _REACH, 0) : start].translate(_APART).rpartition(b" ")[2]
    return b"@" in left or b"@" in right or bool(_HINT.search(left) and _HINT.search(right))


def _word(data: bytes, start: int) -> bytes:
    return data[start : start + _REACH].translate(_APART).lstrip(b" ").partition(b" ")[0]


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


def turned(data: bytes, kinds: AbstractSet[Disguise]) -> Iterator[Edit]:
    """Read every long token reversed, in ROT13, with its case swapped, and without leetspeak, whichever is asked."""
    turns = [turn for kind, turn in _TURNS.items() if kind in kinds]
    if not turns:
        return
    for match in _TOKENS.finditer(data):
        start, end = match.span()
        if _SHORTEST <= end - start <= _MAX_TOKEN:
            yield from _turned(start, data[start:end], turns)
    if _BEGIN in data:
        for match in _BLOCKS.finditer(data):
            if match.end() - match.start() <= _MAX_BLOCK:
                yield from _turned(match.start(), match.group(), turns)


def _turned(start: int, token: bytes, turns: Iterable[Callable[[bytes], Iterable[bytes]]]) -> Iterator[Edit]:
    for turn in turns:
        for said in turn(token):
            if said != token:
                yield start, start + len(token), said


def backwards(data: bytes) -> Iterator[Edit]:
    """Read groups of digits from the back."""
    done = 0
    for group in _GROUPED.finditer(data):
        start, end = group.span()
        if end <= done:
            continue
        left = max(start - _AROUND, done)
        for match in _NUMBERS.finditer(data[left : end + _AROUND]):
            first, last = match.span()
            first, last = first + left, last + left
            if first <= start and end <= last and last - first >= _SHORTEST:
                yield first, last, data[first:last][::-1]
                done = last


def is_grouped(run: bytes) -> bool:
    """Say whether a run has the groups of digits that ``backwards`` reads."""
    return _GROUPED.search(run) is not None


def ascii85(data: bytes) -> Iterator[Edit]:
    """Find ascii85 that says text."""
    at = 0
    while (hit := _BASE85(data, at, len(data))[0])[0] >= 0:
        start, end = hit
        at = end
        start += data[start : start + 1] in _BEFORE85
        quote = _END85.search(data, start, end + 1)  # the end of a string in JSON
        token = data[start : quote.start() if quote else end]
        if not quote and token.endswith(b")") and data[start - 1 : start] == b"(":
            token = token[:-1]
        if len(token) >= _SHORTEST85 and _ODD.search(token) and (said := _ascii85(token)) is not None:
            yield start, start + len(token), said


def _unleet(token: bytes) -> Iterator[bytes]:
    """Read digits as letters in every word that has letters: all of them, or the first of each number."""
    if _DIGIT.search(token):
        yield _MIXED.sub(lambda each: each.group().translate(LEET), token)
        yield _FIRST.sub(lambda each: each.group().translate(LEET), token)


_TURNS: dict[Disguise, Callable[[bytes], Iterable[bytes]]] = {
    Disguise.BACK: lambda token: (token[::-1],),
    Disguise.ROT13: lambda token: (token.translate(ROT13),),
    Disguise.CASE: lambda token: (token.swapcase(),),
    Disguise.LEET: _unleet,
}


def _ascii85(token: bytes) -> bytes | None:
    if token[0] not in _OPENING85 or token[5] not in _OPENING85 or token[10] not in _OPENING85:
        return None  # what was taken for the bracket before it is its first character
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
