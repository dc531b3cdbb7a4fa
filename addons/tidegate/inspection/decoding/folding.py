"""Characters that read as others: compatibility forms, look-alikes of other scripts, and characters nobody sees."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from tidegate.inspection.decoding.views import Edit
from tidegate.inspection.spotting import HINT

_OTHERS = re.compile(rb"[\x80-\xff]+")  # one class cannot backtrack, and RE2's binding takes four times as long
# Letters and digits of full width, mathematical, enclosed and tag characters, the selectors that carry bytes.
_MEANT = re.compile(
    rb"\xef\xbc[\x90-\x99\xa1-\xba]|\xef\xbd[\x81-\x9a]|\xf0\x9d[\x90-\x9f]|\xf0\x9f[\x84-\x86]|\xf3\xa0[\x80-\x87]"
    rb"|\xe2[\x91-\x93]"
)
# A text of its own in characters that nobody sees: whatever letter carries it, it is no part of that word.
_CARRIED = re.compile("[\U000e0020-\U000e007e\U000e0100-\U000e01ef\ufe00-\ufe0f]{4,}")
_AROUND = 12
_HINT = re.compile(HINT.encode())
_MARKS = b" -.,:;!?'\x22_/()"
# Letters of other scripts that look like ASCII ones (Unicode TS #39).
_ALIKE = {
    "a": "аαɑ", "b": "ьƄ", "c": "сϲ", "d": "ԁ", "e": "еєҽ", "f": "ƒ", "g": "ɡց", "h": "һհ", "i": "іιıɩ", "j": "јϳ",
    "k": "кκ", "l": "ӏℓƖ", "m": "м", "n": "ող", "o": "оοօ", "p": "рρ", "q": "ԛզ", "r": "гʀ", "s": "ѕ", "t": "тτ",
    "u": "υսʋ", "v": "νѵ", "w": "ԝѡωա", "x": "хχ", "y": "уγүʏ", "z": "ᴢ",
    "A": "АΑ", "B": "ВΒ", "C": "СϹ", "D": "Ꭰ", "E": "ЕΕ", "F": "Ϝ", "G": "Ԍ", "H": "НΗ", "I": "ІΙӀ", "J": "ЈͿ",
    "K": "КΚ", "L": "Ꮮ", "M": "МΜ", "N": "Ν", "O": "ОΟՕ", "P": "РΡ", "Q": "Ԛ", "R": "Ꭱ", "S": "ЅՏ", "T": "ТΤ",
    "U": "Ս", "V": "ѴᏙ", "W": "Ԝ", "X": "ХΧ", "Y": "УΥҮ", "Z": "Ζ",
    "3": "З", "-": "‐‑‒–−⁃", "/": "∕⁄", ":": "∶", ".": "․ꓸ", ",": "‚", "'": "′ʹ", "_": "ˍ",
}  # fmt: skip
_TAGS = 0xE0000
_SELECTORS = 0xE0100
_SELECTED = {0xFE09: "\t", 0xFE0A: "\n", 0xFE0D: "\r"}  # the same for bytes below 16


class _Fold(dict[int, str]):
    """What each character reads as, worked out when it is first met; bounded by the number of characters."""

    def __missing__(self, code: int) -> str:
        self[code] = read = _read(code)
        return read


def _read(code: int) -> str:
    if code < 0x80:
        return chr(code)
    if _TAGS + 0x20 <= code < _TAGS + 0x7F:  # tag characters spell ASCII
        return chr(code - _TAGS)
    if _SELECTORS <= code < _SELECTORS + 0xF0:  # variation selectors 17 to 256 carry a byte each
        byte = code - _SELECTORS + 16
        return chr(byte) if 0x20 <= byte < 0x7F else ""
    if code in _SELECTED:
        return _SELECTED[code]
    char = chr(code)
    if unicodedata.category(char) in ("Cf", "Co", "Cn") or 0xFE00 <= code <= 0xFE0F or 0x300 <= code <= 0x36F:
        return ""
    same = unicodedata.normalize("NFKC", char)
    return same if same.isascii() else char


_FOLD = _Fold({ord(other): letter for letter, others in _ALIKE.items() for other in others})
_FLIPS = (b"\xe2\x80\xae", b"\xe2\x80\xac")  # RIGHT-TO-LEFT OVERRIDE, POP DIRECTIONAL FORMATTING


def folded(data: bytes) -> Iterator[Edit]:
    """Find what reads as other characters: runs that read as ASCII, and those with letters that only mean ASCII ones.

    Words of other scripts have look-alikes among their letters; they stay as they are.
    """
    for match in _OTHERS.finditer(data):
        run = match.group()
        read = _short(run) if len(run) <= _KEPT else _folded(run)
        if read is not None:
            start, end = match.span()
            if not read or read.strip(_MARKS) or _in_value(data, start, end):
                yield start, end, read


def _in_value(data: bytes, start: int, end: int) -> bool:
    """Say whether a dash, a space or another mark may stand inside a value: no space beside it, and a hint near."""
    if data[start - 1 : start].isspace() or data[end : end + 1].isspace():
        return False
    return bool(_HINT.search(data[max(start - _AROUND, 0) : start]) or _HINT.search(data[end : end + _AROUND]))


def _folded(run: bytes) -> bytes | None:
    """Return what a run outside ASCII reads as; ``None`` for itself, and for bytes that an escape spelt."""
    try:
        text = run.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    if _MEANT.search(run):
        return _CARRIED.sub(r" \g<0> ", text).translate(_FOLD).encode("utf-8", "surrogatepass")
    for char in text:  # most words of other scripts end here at their first letter
        if not _FOLD[ord(char)].isascii():
            return None
    return text.translate(_FOLD).encode()


_KEPT = 8
"""Bytes of the runs that are remembered: dashes, quotes and accented letters come again and again. Not of words."""
_short = lru_cache(maxsize=4096)(_folded)


def overridden(data: bytes) -> Iterator[Edit]:
    """Find text that is shown from right to left by an override, and read it as it is shown."""
    start = data.find(_FLIPS[0])
    while start >= 0:
        begin = start + len(_FLIPS[0])
        stop = data.find(_FLIPS[1], begin, begin + 4096)
        end = stop if stop >= 0 else min(len(data), begin + 4096)
        text = data[begin:end].decode("utf-8", "replace")
        yield start, end, text[::-1].encode("utf-8", "surrogatepass")
        start = data.find(_FLIPS[0], end)
