"""Document fingerprints by winnowing: finds a pasted part of an indexed text or source file, even reformatted. Pure.

S. Schleimer, D. Wilkerson, A. Aiken: Winnowing: Local Algorithms for Document Fingerprinting, SIGMOD 2003. A gram is
``GRAM`` words in a row (``normal.py``: no case, spaces, line breaks or punctuation); of each ``WINDOW`` grams of a
document the one with the smallest hash is kept, so every run of ``GRAM + WINDOW - 1`` words shared with a text is
noticed. Of a text every gram is looked up, so what is found does not depend on where the part stands.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tidegate.inspection.proprietary import table
from tidegate.inspection.proprietary.detector import CodedSpan
from tidegate.inspection.proprietary.normal import forms, words
from tidegate.inspection.proprietary.table import mac
from tidegate.inspection.rules import Rule

KIND = "documents"
GRAM = 8
WINDOW = 4
DEFAULT_THRESHOLD = 4  # fingerprints: about eighteen words in a row
MOST_DOCUMENTS = 8  # a gram of more documents is boilerplate: a licence, an import
KNOWN = 1 << 16  # words whose hash is remembered
KNOWN_LENGTH = 40
_MASK = (1 << 64) - 1
_TOKEN, _BASE = b"token", b"base"
_RUN = re.compile(rb"\x01{%d,}" % GRAM)


class _Hasher:
    """Rolling keyed hashes of grams: a polynomial with a secret base over keyed hashes of words, modulo 2^64.

    ``vocabulary`` holds the first half of the hash of every word that counts; without one all words do.
    """

    def __init__(self, key: bytes, vocabulary: array[int] | None = None) -> None:
        self._key = key
        self._base = int.from_bytes(mac(key, _BASE, b"")[:8]) | 1
        self._out = pow(self._base, GRAM, 1 << 64)
        self._vocabulary = vocabulary
        self._known: dict[bytes, int] = {}

    def values(self, parts: Sequence[bytes]) -> list[int]:
        """Return the hash of each word, zero for one that does not count."""
        known = list(map(self._known.get, parts))
        return [self._word(parts[at]) if value is None else value for at, value in enumerate(known)]

    def grams(self, values: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Return where each gram begins, and its hash; grams with a word that does not count are left out."""
        base, out = self._base, self._out
        for run in _RUN.finditer(bytes(map(bool, values))):
            start, end = run.span()
            rolled = 0
            for value in values[start : start + GRAM]:
                rolled = (rolled * base + value) & _MASK
            yield start, rolled
            for at in range(start + GRAM, end):
                rolled = (rolled * base + values[at] - values[at - GRAM] * out) & _MASK
                yield at - GRAM + 1, rolled

    def _word(self, word: bytes) -> int:
        if len(self._known) >= KNOWN:
            self._known.clear()
        value = int.from_bytes(mac(self._key, _TOKEN, word)[:8])
        if self._vocabulary is not None:
            half = value >> 32
            at = bisect_left(self._vocabulary, half)
            if at == len(self._vocabulary) or self._vocabulary[at] != half:
                value = 0
        if len(word) <= KNOWN_LENGTH:
            self._known[word] = value
        return value


def winnow(hashes: Sequence[int]) -> set[int]:
    """Return the smallest hash of every window, of fewer than a window the smallest of all."""
    if len(hashes) <= WINDOW:
        return {min(hashes)} if hashes else set()
    return {min(hashes[at : at + WINDOW]) for at in range(len(hashes) - WINDOW + 1)}


@dataclass(slots=True)
class DocumentBuilder:
    """Collects the fingerprints of documents. ``short`` counts those with fewer words than a gram."""

    key: bytes = field(repr=False)
    documents: int = 0
    short: int = 0
    _prints: dict[int, list[int]] = field(default_factory=dict, repr=False)
    _words: set[int] = field(default_factory=set, repr=False)

    def add(self, text: str) -> None:
        """Take one document."""
        hasher = _Hasher(self.key)
        values = hasher.values([word.form for word in words(text)])
        prints = winnow([value for _, value in hasher.grams(values)])
        if not prints:
            self.short += 1
            return
        for each in prints:
            holders = self._prints.setdefault(each, [])
            if len(holders) <= MOST_DOCUMENTS:
                holders.append(self.documents)
        self._words.update(value >> 32 for value in values)
        self.documents += 1

    def file(self) -> bytes:
        """Return the index as a file."""
        hashes, holders, sizes = array("Q"), array("I"), [0] * self.documents
        for each in sorted(self._prints):
            if len(self._prints[each]) <= MOST_DOCUMENTS:
                for document in self._prints[each]:
                    hashes.append(each)
                    holders.append(document)
                    sizes[document] += 1
        arrays = [hashes, holders, array("I", sizes), array("I", sorted(self._words))]
        return table.write(KIND, {"gram": GRAM, "window": WINDOW}, arrays, self.key)


class DocumentMatch:
    """Finds parts of documents. ``threshold``: a share of a document's fingerprints, or from 1 on their number."""

    def __init__(self, data: bytes, key: bytes, rule: Rule, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        """Open an index. Raises ``IndexFault``."""
        _, (self._hashes, self._holders, self._sizes, vocabulary) = table.read(data, KIND, key)
        self.rule = rule
        self.documents = len(self._sizes)
        self._hasher = _Hasher(key, vocabulary)
        self._threshold = threshold
        slots = 1 << max(16, (len(self._hashes) * 8).bit_length())
        self._slot = slots - 1
        self._front = bytearray(slots)
        for each in self._hashes:
            self._front[each & self._slot] = 1

    def may_find(self, data: bytes) -> bool:
        """Say whether enough fingerprints of one document are in the text."""
        return bool(self._enough(self._places(forms(data))))

    def find(self, text: str) -> Sequence[CodedSpan]:
        """Return the parts of a text that a document has too, with the few words beside them that may belong to it."""
        parts = words(text)
        places = self._places([word.form for word in parts])
        reach = 2 * (GRAM + WINDOW)
        runs: list[list[int]] = []
        for at in sorted({at for document in self._enough(places) for at, _ in places[document]}):
            if runs and at <= runs[-1][1] + reach:
                runs[-1][1] = at + GRAM - 1
            else:
                runs.append([at, at + GRAM - 1])
        more, end = WINDOW - 1, len(parts) - 1  # a shared run may begin so many words before its first fingerprint
        return [
            CodedSpan(self.rule, parts[max(first - more, 0)].start, parts[min(last + more, end)].end)
            for first, last in runs
        ]

    def _places(self, parts: Sequence[bytes]) -> dict[int, list[tuple[int, int]]]:
        """Return by document where which of its fingerprints stand, counted in words."""
        front, slot = self._front, self._slot
        found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for at, value in self._hasher.grams(self._hasher.values(parts)):
            if front[value & slot]:
                index = bisect_left(self._hashes, value)
                while index < len(self._hashes) and self._hashes[index] == value:
                    found[self._holders[index]].append((at, value))
                    index += 1
        return found

    def _enough(self, places: dict[int, list[tuple[int, int]]]) -> list[int]:
        """Return the documents of which a text holds enough."""
        enough = []
        for document, held in places.items():
            wanted = self._threshold if self._threshold >= 1 else self._threshold * self._sizes[document]
            if len({value for _, value in held}) >= min(max(wanted, 1), self._sizes[document]):
                enough.append(document)
        return enough
