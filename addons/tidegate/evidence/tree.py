"""The Merkle tree of RFC 6962: roots, inclusion and consistency proofs, and how to check them. Pure.

A log keeps its leaf hashes in *tiles* of 256, as C2SP's tlog-tiles does: the hashes of level 0 are leaves, an entry of
level 1 is the root of a full tile of level 0, and so on. A root or a proof needs a few tiles, never the whole log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

TILE = 256
HEIGHT = 8
"""A tile is a perfect subtree of this height."""

EMPTY = sha256(b"").digest()
"""The root of a log without leaves."""

FetchTile = Callable[[int, int], bytes | None]
"""Gives the hashes of the full tile (level, number), one after the other, or ``None`` if it is not kept."""


class ProofError(Exception):
    """A proof does not hold, or cannot be made. The text says which part of it."""


class MissingTileError(ProofError):
    """A tile that a root or a proof needs is not there."""


def leaf_hash(payload: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\0" + payload).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes, or over roots of perfect subtrees that stand in for them."""
    if not hashes:
        return EMPTY
    row = list(hashes)
    while len(row) > 1:
        even = len(row) & ~1
        above = [sha256(b"\1" + row[at] + row[at + 1]).digest() for at in range(0, even, 2)]
        row = [*above, row[-1]] if len(row) & 1 else above
    return row[0]


def split(tile: bytes) -> list[bytes]:
    """Cut a tile into its hashes."""
    return [tile[at : at + 32] for at in range(0, len(tile), 32)]


class Tree:
    """The right edge of a growing log: of each level the tile that is not full yet.

    ``full`` collects the tiles that became full, (level, number, hashes), until somebody takes them.
    """

    __slots__ = ("full", "levels", "size")

    def __init__(self, size: int = 0, levels: Iterable[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.levels: list[list[bytes]] = [list(each) for each in levels] or [[]]
        self.full: list[tuple[int, int, bytes]] = []

    def copy(self) -> Tree:
        """Return a tree that grows apart from this one; tiles that were not taken stay with the old one."""
        return Tree(self.size, self.levels)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        self.levels[0].append(leaf)
        self.size += 1
        if len(self.levels[0]) == TILE:
            self._carry()

    def _carry(self) -> None:
        level = 0
        while len(self.levels[level]) == TILE:
            number = (self.size >> HEIGHT * (level + 1)) - 1
            hashes, self.levels[level] = self.levels[level], []
            self.full.append((level, number, b"".join(hashes)))
            level += 1
            if level == len(self.levels):
                self.levels.append([])
            self.levels[level].append(root_of(hashes))

    def root(self) -> bytes:
        """Return the root over every leaf so far."""
        right: bytes | None = None
        for hashes in self.levels:
            row = hashes if right is None else [*hashes, right]
            if row:
                right = root_of(row)
        return EMPTY if right is None else right

    def dump(self) -> bytes:
        """Return the edge as bytes: for each level one byte that counts its hashes, then the hashes."""
        return b"".join(bytes((len(each),)) + b"".join(each) for each in self.levels)

    @classmethod
    def load(cls, size: int, data: bytes) -> Tree:
        """Read what ``dump`` wrote. Raises ``ProofError`` if it cannot be the edge of a log of that size."""
        levels, at = [], 0
        while at < len(data):
            count = data[at]
            levels.append(split(data[at + 1 : at + 1 + 32 * count]))
            at += 1 + 32 * count
        found = [len(each) for each in levels]
        due = [size >> HEIGHT * level & TILE - 1 for level in range(len(levels))]
        if at != len(data) or found != due or (levels and size >> HEIGHT * len(levels)):
            raise ProofError("the edge of the log does not fit its size")
        return cls(size, levels)


class Proofs:
    """Makes roots and proofs of a log from its edge and its full tiles. Perfect subtrees are remembered."""

    def __init__(self, tree: Tree, fetch: FetchTile) -> None:
        self.size = tree.size
        self._edge = [list(each) for each in tree.levels]
        self._fetch = fetch
        self._tiles: dict[tuple[int, int], list[bytes]] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first ``size`` leaves. Raises ``ProofError``."""
        size = self.size if size is None else size
        self._within(size)
        return self._range(0, size) if size else EMPTY

    def leaf(self, index: int) -> bytes:
        """Return a leaf hash."""
        return self._node(0, index)

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Prove that leaf ``index`` is among the first ``size`` leaves, from its sibling up. Raises ``ProofError``."""
        size = self.size if size is None else size
        self._within(size)
        if not 0 <= index < size:
            raise ProofError(f"found no leaf {index} among the first {size}")
        return self._path(index, 0, size)

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Prove that the first ``old`` leaves are the beginning of the first ``size``. Raises ``ProofError``."""
        size = self.size if size is None else size
        self._within(size)
        if not 0 <= old <= size:
            raise ProofError(f"found a log of {size} leaves, which cannot begin with {old}")
        return [] if old in (0, size) else self._old(old, 0, size, whole=True)

    def _within(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise ProofError(f"found {self.size} leaves in the log, not {size}")

    def _path(self, index: int, low: int, high: int) -> list[bytes]:
        if high - low == 1:
            return []
        middle = low + _half(high - low)
        if index < middle:
            return [*self._path(index, low, middle), self._range(middle, high)]
        return [*self._path(index, middle, high), self._range(low, middle)]

    def _old(self, old: int, low: int, high: int, *, whole: bool) -> list[bytes]:
        if old == high:
            return [] if whole else [self._range(low, high)]
        middle = low + _half(high - low)
        if old <= middle:
            return [*self._old(old, low, middle, whole=whole), self._range(middle, high)]
        return [*self._old(old, middle, high, whole=False), self._range(low, middle)]

    def _range(self, low: int, high: int) -> bytes:
        width = high - low
        if width & width - 1 == 0:  # a power of two, and always aligned: the halves are cut that way
            return self._node(width.bit_length() - 1, low // width)
        middle = low + _half(width)
        return node_hash(self._range(low, middle), self._range(middle, high))

    def _node(self, height: int, index: int) -> bytes:
        known = self._nodes.get((height, index))
        if known is None:
            level, inside = divmod(height, HEIGHT)
            first = index << inside
            tile = self._tile(level, first // TILE)
            hashes = tile[first % TILE : first % TILE + (1 << inside)]
            if len(hashes) != 1 << inside:
                raise MissingTileError(f"a tile of level {level} is too short")
            known = self._nodes[height, index] = root_of(hashes)
        return known

    def _tile(self, level: int, number: int) -> list[bytes]:
        known = self._tiles.get((level, number))
        if known is None:
            count = self.size >> HEIGHT * level
            if number == count // TILE:
                known = self._edge[level] if level < len(self._edge) else []
            else:
                found = self._fetch(level, number)
                if found is None or len(found) != 32 * TILE:
                    raise MissingTileError(f"found no tile {number} of level {level}")
                known = split(found)
            self._tiles[level, number] = known
        return known


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check an inclusion proof (RFC 9162, 2.1.3.2). Raises ``ProofError``."""
    if not 0 <= index < size:
        raise ProofError("the index is out of range")
    at, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            found = node_hash(each, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, each)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise ProofError("the proof is too short")
    if found != root:
        raise ProofError("the proof leads to another root")


def check_consistency(old: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> None:
    """Check a consistency proof (RFC 9162, 2.1.4.2). Raises ``ProofError``."""
    if old > size or old < 0:
        raise ProofError("the older log is longer than the newer one")
    if old in (0, size):
        if proof or (old == size and old_root != root) or (old == 0 and old_root != EMPTY):
            raise ProofError("the logs differ")
        return
    path = list(proof) if old & old - 1 else [old_root, *proof]
    if not path:
        raise ProofError("the proof is too short")
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for each in path[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, each)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise ProofError("the proof is too short")
    if first != old_root or second != root:
        raise ProofError("the proof leads to other roots")


def _half(width: int) -> int:
    """Return the largest power of two below ``width``."""
    return 1 << (width - 1).bit_length() - 1
