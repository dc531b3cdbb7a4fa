"""SQLite files, read as data: no SQL of theirs is run, and what was deleted and is still there is read too.

The format is https://www.sqlite.org/fileformat2.html. Opening a stranger's database with SQLite would run its schema.
"""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.inspection.attachments.found import DAMAGED, Found, Inner, below
from tidegate.inspection.attachments.kinds import Kind, as_text, strings

_LEAF_TABLE, _LEAF_INDEX, _INNER_INDEX, _INNER_TABLE = 13, 10, 2, 5
_CODINGS = {1: "utf-8", 2: "utf-16-le", 3: "utf-16-be"}
_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8}
_NUMBER = 10**5
_SMALL = 16
"""Bytes of a blob below which it is no text and no file: a hash, an id, a flag."""


def database(found: Found, data: bytes, name: str, depth: int, inner: Inner) -> None:
    """Read every value of every row, index and page; pages that hold none are searched for strings."""
    found.called(Kind.SQLITE)
    size = int.from_bytes(data[16:18], "big")
    size = 65_536 if size == 1 else size
    if size < 512 or size & (size - 1) or len(data) < size:
        found.miss(DAMAGED)
        found.say(name, strings(data))
        return
    if len(data) % size:
        found.miss(DAMAGED)
    file = _File(data, size, size - data[20], _CODINGS.get(int.from_bytes(data[56:60], "big"), "utf-8"))
    rows: list[str] = []
    rest: list[str] = []
    for number in range(1, -(-len(data) // size) + 1):
        page = file.page(number)
        start = 100 if number == 1 else 0
        cells = list(file.payloads(page, start))
        for payload in cells:
            found.spend(len(payload))
            rows.append("\t".join(_texts(found, _values(payload), file.coding, (name, depth), inner)))
        rest.append(strings(file.unused(page, start) if cells else page))
    found.say(below(name, "rows"), "\n".join(rows))
    found.say(below(name, "free space"), "\n".join(filter(None, rest)))


class _File:
    """A database as pages. ``usable`` counts the bytes of a page that are not reserved."""

    def __init__(self, data: bytes, size: int, usable: int, coding: str) -> None:
        self.data, self.size, self.usable, self.coding = data, size, usable, coding

    def page(self, number: int) -> bytes:
        """Return a page; pages count from 1."""
        return self.data[(number - 1) * self.size : number * self.size] if number > 0 else b""

    def payloads(self, page: bytes, start: int) -> Iterator[bytes]:
        """Return the payloads of a page's cells, none for a page that is no leaf and no index."""
        kind = page[start] if len(page) > start else 0
        if kind not in (_LEAF_TABLE, _LEAF_INDEX, _INNER_INDEX):
            return
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        first = start + (12 if kind == _INNER_INDEX else 8)
        for index in range(count):
            at = int.from_bytes(page[first + 2 * index : first + 2 * index + 2], "big")
            if first + 2 * count <= at < len(page):
                yield self._payload(page, at + (4 if kind == _INNER_INDEX else 0), table=kind == _LEAF_TABLE)

    def _payload(self, page: bytes, at: int, *, table: bool) -> bytes:
        """Return a payload whole, with what overflowed to other pages (section 1.6 of the format)."""
        length, at = _varint(page, at)
        if table:
            _, at = _varint(page, at)
        most = self.usable - 35 if table else (self.usable - 12) * 64 // 255 - 23
        if length <= most:
            return page[at : at + length]
        least = (self.usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (self.usable - 4)
        here = here if here <= most else least
        pieces, left = [page[at : at + here]], min(length, len(self.data)) - here
        following, seen = int.from_bytes(page[at + here : at + here + 4], "big"), set[int]()
        while left > 0 and following and following not in seen:
            seen.add(following)
            over = self.page(following)
            pieces.append(over[4 : min(self.usable, 4 + left)])
            left -= self.usable - 4
            following = int.from_bytes(over[:4], "big")
        return b"".join(pieces)

    def unused(self, page: bytes, start: int) -> bytes:
        """Return what a page holds beside its cells: the gap in its middle, and the blocks that were freed."""
        first = start + (12 if page[start] == _INNER_INDEX else 8)
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        content = int.from_bytes(page[start + 5 : start + 7], "big") or 65_536
        pieces = [page[first + 2 * count : content]]
        block, seen = int.from_bytes(page[start + 1 : start + 3], "big"), set[int]()
        while block and block not in seen and block + 4 <= len(page):
            seen.add(block)
            pieces.append(page[block + 4 : block + int.from_bytes(page[block + 2 : block + 4], "big")])
            block = int.from_bytes(page[block : block + 2], "big")
        return b"\0\0".join(pieces)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read SQLite's variable-length integer: up to nine bytes; returns it and where it ends."""
    value = 0
    for count in range(9):
        byte = data[at] if at < len(data) else 0
        at += 1
        if count == 8:
            return value << 8 | byte, at
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value, at


def _values(payload: bytes) -> Iterator[tuple[bool, bytes | int]]:
    """Read a record: whether each value is a text, and the value (section 2.1 of the format)."""
    end, at = _varint(payload, 0)
    body, end = end, min(end, len(payload))
    while at < end:
        kind, at = _varint(payload, at)
        size = (kind - 12) // 2 if kind >= 12 else _SIZES.get(kind, 0)
        value = payload[body : body + size]
        body += size
        if kind >= 12:
            yield bool(kind & 1), value
        elif 1 <= kind <= 6:
            yield True, int.from_bytes(value, "big", signed=True)


def _texts(
    found: Found, values: Iterator[tuple[bool, bytes | int]], coding: str, at: tuple[str, int], inner: Inner
) -> Iterator[str]:
    for text, value in values:
        if isinstance(value, int):
            if abs(value) >= _NUMBER:
                yield str(value)
        elif text:
            yield value.decode(coding, "replace")
        elif (said := as_text(value)) is not None:
            yield said
        elif len(value) >= _SMALL:
            inner(found, value, below(at[0], "blob"), at[1] + 1)
