"""Document fingerprints by winnowing: finds a pasted part of an indexed text or source file, even reformatted. Pure.

S. Schleimer, D. Wilkerson, A. Aiken: Winnowing: Local Algorithms for Document Fingerprinting, SIGMOD 2003. A gram is
``GRAM`` words in a row (``normal.py``: no case, spaces, line breaks or punctuation); of each ``WINDOW`` grams of a
document the one with the smallest hash is kept, so every run of ``GRAM + WINDOW - 1`` words shared with a text is
noticed. Of a text every gram is looked up, so what is found does not depend on where the part stands.
"""

from __future__ import annotations

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
_MASK = (1 << 64) - 1
_TOKEN, _BASE = b"token", b"base"


class _Hasher:
    """Rolling keyed hashes of grams: a polynomial with a secret base over keyed hashes of words, modulo 2^64."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._base = int.from_bytes(mac(key, _BASE, b"")[:8]) | 1
        self._out = pow(self._base, GRAM, 1 << 64)
        self._known: dict[bytes, int] = {}

    def grams(self, parts: Sequence[bytes]) -> Iterator[int]:
        """Return the hash of each gram, in order."""
        if len(parts) < GRAM:
            return
        values = [self._known.get(each) or self._word(each) for each in parts]
        base, out, rolled = self._base, self._out, 0
        for value in values[:GRAM]:
            rolled = (rolled * base + value) & _MASK
        yield rolled
        for old, new in zip(values, values[GRAM:], strict=False):
            rolled = (rolled * base + new - old * out) & _MASK
            yield rolled

    def _word(self, word: bytes) -> int:
        if len(self._known) >= KNOWN:
            self._known.clear()
        value = int.from_bytes(mac(self._key, _TOKEN, word)[:8])
        if len(word) <= 40:
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

    def add(self, text: str) -> None:
        """Take one document."""
        prints = winnow(list(_Hasher(self.key).grams([word.form for word in words(text)])))
        if not prints:
            self.short += 1
            return
        for each in prints:
            holders = self._prints.setdefault(each, [])
            if len(holders) <= MOST_DOCUMENTS:
                holders.append(self.documents)
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
        return table.write(KIND, {"gram": GRAM, "window": WINDOW}, [hashes, holders, array("I", sizes)], self.key)


class DocumentMatch:
    """Finds parts of documents. ``threshold``: a share of a document's fingerprints, or from 1 on their number."""

    def __init__(self, data: bytes, key: bytes, rule: Rule, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        """Open an index. Raises ``IndexFault``."""
        _, (self._hashes, self._holders, self._sizes) = table.read(data, KIND, key)
        self.rule = rule
        self.documents = len(self._sizes)
        self._hasher = _Hasher(key)
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
        """Return the parts of a text that an indexed document has too, each from its first to its last shared gram."""
        parts = words(text)
        places = self._places([word.form for word in parts])
        reach = 2 * (GRAM + WINDOW)
        runs: list[list[int]] = []
        for at in sorted({at for document in self._enough(places) for at, _ in places[document]}):
            if runs and at <= runs[-1][1] + reach:
                runs[-1][1] = at + GRAM - 1
            else:
                runs.append([at, at + GRAM - 1])
        return [CodedSpan(self.rule, parts[first].start, parts[last].end) for first, last in runs]

    def _places(self, parts: Sequence[bytes]) -> dict[int, list[tuple[int, int]]]:
        """Return by document where which of its fingerprints stand, counted in words."""
        front, slot = self._front, self._slot
        found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for at, value in enumerate(self._hasher.grams(parts)):
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
