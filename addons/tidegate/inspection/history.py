"""What was looked at before: a conversation is sent again at every turn, and only its new part need be searched again.

A JSON text is cut between objects of a list, so that every value of it lies in one part, and parts overlap by all that
decides about a place near a cut. Remembered of a part is one thing, that nothing is in it, under a keyed hash of its
bytes: without the key nobody can make two parts that hash alike. Of a part that has something in it only that is
remembered, and each time it is searched again: what was found is nowhere but in the body, and a body is masked anew at
each turn. A history belongs to one set of compiled rules and ends with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from tidegate.inspection.spotting import SIDE

LEAST = 8192
"""Bytes of a part at least, what it overlaps aside: an overlap is a fifth of that, and is hashed twice."""
FINE = 512
"""Bytes at least of what the last parts of a text are cut into once more: there a conversation grows, by a turn."""
GROWING = 2
"""Parts at the end that a turn may have changed: the last one, and the one before it where it overlaps the last."""
PARTS = 1 << 16
"""Parts remembered at most: 16 bytes each, about 8 MB with all that Python puts around them, for 300 MB of text."""
BEFORE = 640
"""Bytes before a part that belong to what is looked at: what is decoded is looked at with 256 characters around it, a
rule asks about 48 before its match, and an escape writes one character as two bytes."""
_JOINED = 600
"""Bytes on either side of a cut that are looked at for a value that was split there: ``decoding`` reads two words of 24
characters as one over 240."""

_CUT = b'},{"'
_SIDE = bytes(byte for byte in range(128) if re.match(f"[{SIDE}@]", chr(byte)))
_HINTS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ@"

type _Part = tuple[int, int, bytes]  # from, up to, its name


class History:
    """Parts of JSON texts in which nothing was found. Safe to use from many threads."""

    __slots__ = ("_age", "_earlier", "_key", "_known", "_most")

    def __init__(self, key: bytes, most: int = PARTS, age: Callable[[], int] = int) -> None:
        """Begin with nothing. ``key`` holds up to 64 random bytes that nobody else knows.

        ``age`` is another number once the rules find more than before, as when a known false positive expires.
        """
        self._age = age
        self._key = key
        self._most = most
        # Two generations: the younger takes in what is asked about, and becomes the elder when it is half of all.
        self._known: set[bytes] = set()
        self._earlier: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._known) + len(self._earlier)

    def is_clean(self, body: bytes, reach: int, is_empty: Callable[[bytes], bool], under: bytes) -> bool:
        """Say that nothing is in a JSON text as ``dialects.body.dump`` writes it, asking about what was not seen yet.

        ``reach`` is the longest match in bytes. ``is_empty`` says whether nothing is in a part of the text, escapes and
        all; parts that follow one another are asked about as one. ``under`` names what is asked, up to 16 bytes.
        """
        new: list[_Part] = []
        whole: list[_Part] = []
        every = list(parts(body, 0, len(body), LEAST))
        for index, (start, stop) in enumerate(every):
            part = self._part(body, start, stop, reach, under)
            if self.knows(part[2]):
                continue
            if index < len(every) - GROWING:
                new.append(part)
                continue
            whole.append(part)
            fine = (self._part(body, *each, reach, under) for each in parts(body, start, stop, FINE))
            new += [each for each in fine if not self.knows(each[2])]

        def look(start: int, stop: int) -> bool:
            return is_empty(body[slice(*_around(body, start, stop, reach))])

        left = [each for each in new if self.knows(self._holding(each))]
        for run in _runs([each for each in new if each not in left]):
            left += self._look(run, look)
        for part in whole:
            if not any(part[0] <= each[0] < part[1] for each in left):
                self.keep(part[2])
        return not left

    def _look(self, run: list[_Part], is_empty: Callable[[int, int], bool]) -> list[_Part]:
        """Look at parts that follow one another, as one; return those that may hold something."""
        if is_empty(run[0][0], run[-1][1]):
            for each in run:
                self.keep(each[2])
            return []
        again = self.name(run[0][2], b"again")
        if not self.knows(again):  # a body that comes once is not worth a second look
            self.keep(again)
            return run
        holding = [each for each in run if len(run) == 1 or not is_empty(each[0], each[1])]
        for each in run if holding else ():  # else no part by itself tells what there is
            self.keep(self._holding(each) if each in holding else each[2])
        return holding or run

    def _holding(self, part: _Part) -> bytes:
        """Name what is remembered of a part that holds something: that it need not be looked at to know."""
        return self.name(part[2], b"holds")

    def _part(self, body: bytes, start: int, stop: int, reach: int, under: bytes) -> _Part:
        return start, stop, self.name(body[slice(*_around(body, start, stop, reach))], under)

    def name(self, data: bytes, under: bytes) -> bytes:
        """Name what was asked about something; ``under`` names the question, in up to 16 bytes."""
        age = self._age().to_bytes(8, "big")
        return hashlib.blake2b(data, digest_size=16, key=self._key, salt=under, person=age).digest()

    def knows(self, name: bytes) -> bool:
        """Say whether a name was kept, and not forgotten since."""
        if name in self._known:
            return True
        if name in self._earlier:
            self.keep(name)
            return True
        return False

    def keep(self, name: bytes) -> None:
        """Remember a name."""
        known = self._known  # threads that do this at once lose names at worst: their parts are looked at again
        known.add(name)
        if len(known) >= self._most // 2:
            self._earlier, self._known = known, set()


def parts(body: bytes, start: int, stop: int, least: int) -> Iterator[tuple[int, int]]:
    """Cut a JSON text between objects of a list, into parts of ``least`` bytes or more; the last may be shorter.

    A quote before a letter opens a string, since one that closes it stands before punctuation, and inside a string it
    has a backslash before it. So this cut is never inside a value.
    """
    edges = [start]
    at = body.find(_CUT, start + least, stop)
    while at >= 0:
        if body[at + 4 : at + 5].islower() and not _may_join(body, at + 1):
            edges.append(at + 1)
            at += least
        at = body.find(_CUT, at + 1, stop)
    return pairwise([*edges, stop])


def _may_join(body: bytes, cut: int) -> bool:
    """Say whether a value may have been split over a cut: texts that follow one another are read as one, too.

    As ``decoding`` tells it and a little more often: a digit, a capital or an @ in the word in front of the closing
    quote, or an @ not far behind the cut.
    """
    before = body[max(cut - _JOINED, 0) : cut].rstrip(b"]}")
    if not before.endswith(b'"'):
        return False
    text = before[:-1]
    word = text[len(text.rstrip(_SIDE)) :]
    return bool(word) and (len(word.translate(None, _HINTS)) < len(word) or b"@" in body[cut : cut + _JOINED])


def _around(body: bytes, start: int, stop: int, reach: int) -> tuple[int, int]:
    """Return a part with all that decides about its places, from the beginning of a character or escape to an end."""
    left = max(start - BEFORE, 0)
    while left > 0 and (body[left - 1] == 92 or body[left] & 0xC0 == 0x80):
        left -= 1
    need = reach + 2  # \b sees one more byte on either side
    right = stop
    while need and right < len(body):
        right, need = right + need, body.count(b"\\", right, right + need)
    right = min(right, len(body))
    while right < len(body) and (body[right - 1] == 92 or body[right] & 0xC0 == 0x80):
        right += 1
    return left, right


def _runs(new: list[_Part]) -> Iterator[list[_Part]]:
    """Join parts that follow one another: looked at as one, they are looked at once where they overlap."""
    run: list[_Part] = []
    for each in new:
        if run and run[-1][1] != each[0]:
            yield run
            run = []
        run.append(each)
    if run:
        yield run
