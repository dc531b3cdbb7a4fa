"""Exact data match: the values of a table, looked for by keyed hash, so that the table is not carried along. Pure.

A value is found where a text has the same words (``normal.py``), or the same digits for a number. Per value the index
holds eight bytes of its hash, its row and its column; per first word four bytes of a hash, so that most words cost
nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tidegate.inspection.proprietary import table
from tidegate.inspection.proprietary.detector import CodedSpan
from tidegate.inspection.proprietary.normal import forms, number, numbers, words
from tidegate.inspection.proprietary.table import IndexFault, mac
from tidegate.inspection.rules import Rule

KIND = "exact"
LEAST_LETTERS = 4  # letters and digits of a value; shorter ones are everywhere
LEAST_DIGITS = 6
MOST_DIGITS = 40
MOST_WORDS = 12  # an address has about eight
MOST_ROWS = 64  # rows kept of one value: what more rows share (a city) identifies none of them
COLD = 1 << 16  # words known to begin no value; a language's everyday words are a few thousand
COLD_LENGTH = 40
_WORDS, _NUMBER, _HEAD = b"words", b"number", b"head"
_RECORD = 13


type _Rows = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class ExactBuilder:
    """Collects values: 13 bytes for each and 4 for each first word, in 256 parts that are sorted one by one."""

    key: bytes = field(repr=False)
    columns: Sequence[str]
    values: int = 0
    short: int = 0
    long: int = 0
    _parts: list[bytearray] = field(default_factory=lambda: [bytearray() for _ in range(256)], repr=False)
    _heads: set[int] = field(default_factory=set, repr=False)
    _lengths: set[int] = field(default_factory=set)
    _digits: set[int] = field(default_factory=set)

    def add(self, row: int, column: int, value: str) -> None:
        """Take one value of the table. Empty ones are passed over; short and long ones are counted and left out."""
        digits = number(value)
        if digits is not None:
            if self._fits(len(digits), LEAST_DIGITS, len(digits) <= MOST_DIGITS):
                self._put(mac(self.key, _NUMBER, digits.encode()), row, column)
                self._digits.add(len(digits))
            return
        parts = [word.form for word in words(value)]
        if parts and self._fits(sum(map(len, parts)), LEAST_LETTERS, len(parts) <= MOST_WORDS):
            for form in _written(parts):
                self._put(mac(self.key, _WORDS, b" ".join(form)), row, column)
                self._heads.add(_head(self.key, form[0]))
                self._lengths.add(len(form))

    def file(self) -> bytes:
        """Return the index as a file."""
        hashes, rows, columns = array("Q"), array("I"), array("B")
        for part in self._parts:
            records = sorted({bytes(part[at : at + _RECORD]) for at in range(0, len(part), _RECORD)})
            last, kept = b"", 0
            for record in records:
                kept = kept + 1 if record[:8] == last else 0
                last = record[:8]
                if kept <= MOST_ROWS:  # one more than counts, so that a reader knows
                    hashes.append(int.from_bytes(last))
                    rows.append(int.from_bytes(record[8:12]))
                    columns.append(record[12])
        header = {
            "columns": list(self.columns),
            "values": self.values,
            "lengths": sorted(self._lengths),
            "digits": sorted(self._digits),
        }
        return table.write(KIND, header, [array("I", sorted(self._heads)), hashes, rows, columns], self.key)

    def _fits(self, size: int, least: int, fits: bool) -> bool:
        if size < least:
            self.short += 1
        elif not fits:
            self.long += 1
        else:
            self.values += 1
            return True
        return False

    def _put(self, digest: bytes, row: int, column: int) -> None:
        self._parts[digest[0]] += digest[:8] + row.to_bytes(4) + bytes((column,))


def _written(parts: list[bytes]) -> list[tuple[bytes, ...]]:
    """Return the ways a value may be written: a code (digits, no long word) also in one piece and in fours."""
    whole = b"".join(parts)
    found = {tuple(parts)}
    is_code = any(48 <= byte <= 57 for byte in whole) and not any(len(each) > 3 and each.isalpha() for each in parts)
    if is_code and whole.isascii():
        fours = tuple(whole[at : at + 4] for at in range(0, len(whole), 4))
        found |= {(whole,), fours} if len(fours) <= MOST_WORDS else {(whole,)}
    return sorted(found)


def _head(key: bytes, word: bytes) -> int:
    return int.from_bytes(mac(key, _HEAD, word)[:4])


@dataclass(frozen=True, slots=True)
class _Hit:
    """A value that stands in a text: its place, and the rows and columns of the table that hold it."""

    start: int
    end: int
    rows: _Rows


class ExactMatch:
    """Finds the values of one table: ``require`` columns of a row, all within ``window`` characters."""

    def __init__(self, data: bytes, key: bytes, rule: Rule, *, require: int = 1, window: int = 300) -> None:
        """Open an index. Raises ``IndexFault``, also where the table has fewer columns than ``require``."""
        header, (self._heads, self._hashes, self._rows, self._columns) = table.read(data, KIND, key)
        self.columns = [str(each) for each in _list(header["columns"])]
        if require > len(self.columns):
            raise IndexFault(f"require: {require}", f"at most the {len(self.columns)} columns of the index")
        self.rule = rule
        self.values = len(self._hashes)
        self._key = key
        self._lengths = [each for each in _list(header["lengths"]) if isinstance(each, int)]
        self._digits = frozenset(each for each in _list(header["digits"]) if isinstance(each, int))
        self._require = require
        self._window = window
        self._cold: set[bytes] = set()

    def may_find(self, data: bytes) -> bool:
        """Say whether any value may stand in the text: a look-up of each word, and of each number."""
        parts = forms(data)
        if not self._cold.issuperset(parts):
            warm = {each for each in set(parts) - self._cold if self._begins(each)}
            if warm and any(self._phrase(parts, at) for at, each in enumerate(parts) if each in warm):
                return True
        return bool(self._digits) and any(True for _ in self._numbers(data.decode("utf-8", "surrogatepass")))

    def find(self, text: str) -> Sequence[CodedSpan]:
        """Return the values that stand in a text, each with its whole words."""
        hits = sorted([*self._phrases(text), *self._numbers(text)], key=lambda hit: (hit.start, -hit.end))
        if self._require > 1:
            hits = self._together(hits)
        spans: list[CodedSpan] = []
        for hit in hits:
            if not spans or hit.end > spans[-1].end:  # what lies within another says nothing new
                spans.append(CodedSpan(self.rule, hit.start, hit.end))
        return spans

    def _begins(self, word: bytes) -> bool:
        """Say whether a word may begin a value, and remember those that do not."""
        if word in self._cold:
            return False
        wanted = _head(self._key, word)
        at = bisect_left(self._heads, wanted)
        if at < len(self._heads) and self._heads[at] == wanted:
            return True
        if len(word) <= COLD_LENGTH:
            if len(self._cold) >= COLD:
                self._cold.clear()
            self._cold.add(word)
        return False

    def _phrases(self, text: str) -> Iterator[_Hit]:
        found = words(text)
        parts = [each.form for each in found]
        for at, word in enumerate(found):
            if self._begins(word.form):
                for length, rows in self._phrase(parts, at):
                    yield _Hit(word.start, found[at + length - 1].end, rows)

    def _phrase(self, parts: Sequence[bytes], at: int) -> list[tuple[int, _Rows]]:
        """Return the lengths of the values that begin at a word, and what holds them."""
        found = []
        for length in self._lengths:
            if at + length > len(parts):
                break
            if rows := self._look(mac(self._key, _WORDS, b" ".join(parts[at : at + length]))):
                found.append((length, rows))
        return found

    def _numbers(self, text: str) -> Iterator[_Hit]:
        if not self._digits:
            return
        for digits, start, end in numbers(text, self._digits):
            if rows := self._look(mac(self._key, _NUMBER, digits.encode())):
                yield _Hit(start, end, rows)

    def _look(self, digest: bytes) -> _Rows:
        """Return the rows and columns of a value; one without a row where it is in more rows than count."""
        wanted = int.from_bytes(digest[:8])
        first = at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            at += 1
        found = tuple((self._rows[each], self._columns[each]) for each in range(first, at))
        return found if len(found) <= MOST_ROWS else ((-1, -1),)

    def _together(self, hits: Sequence[_Hit]) -> list[_Hit]:
        """Keep the hits that have enough columns of the same row near them."""
        by_row: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, hit in enumerate(hits):
            for row, column in hit.rows:
                if row >= 0:
                    by_row[row].append((index, column))
        kept: set[int] = set()
        for members in by_row.values():
            kept |= self._near(hits, members)
        return [hits[index] for index in sorted(kept)]

    def _near(self, hits: Sequence[_Hit], members: Sequence[tuple[int, int]]) -> set[int]:
        """Return the hits of one row that stand in a window with enough different columns."""
        kept: set[int] = set()
        counts: defaultdict[int, int] = defaultdict(int)
        first = done = 0
        for at, (index, column) in enumerate(members):
            counts[column] += 1
            while hits[index].end - hits[members[first][0]].start > self._window and first < at:
                left = members[first][1]
                counts[left] -= 1
                if not counts[left]:
                    del counts[left]
                first += 1
            if len(counts) >= self._require:
                done = max(done, first)
                kept.update(each for each, _ in members[done : at + 1])
                done = at + 1
        return kept


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
