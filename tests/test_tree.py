"""The Merkle tree against pymerkle, and its proofs against a second implementation written from the RFC's recursion."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from tidegate.evidence.tree import (
    EMPTY,
    MissingTileError,
    ProofError,
    Proofs,
    Tree,
    check_consistency,
    check_inclusion,
    leaf_hash,
    root_of,
)

PAYLOADS = [f"event {at}".encode() for at in range(1000)]
LEAVES = [leaf_hash(each) for each in PAYLOADS]


def grown(size: int, leaves: list[bytes] | None = None) -> tuple[Tree, Proofs]:
    tree, tiles = Tree(), {}
    for each in (leaves or LEAVES)[:size]:
        tree.append(each)
    for level, number, hashes in tree.full:
        tiles[level, number] = hashes
    return tree, Proofs(tree, lambda level, number: tiles.get((level, number)))


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def mth(hashes: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256(b"").digest()
    k = split(len(hashes))
    return node(mth(hashes[:k]), mth(hashes[k:]))


def recompute(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root an inclusion proof leads to, by the recursion of RFC 6962 2.1.1 instead of RFC 9162's loop."""
    if size == 1:
        assert not proof
        return leaf
    k, (*rest, last) = split(size), proof
    if index < k:
        return node(recompute(leaf, index, k, rest), last)
    return node(last, recompute(leaf, index - k, size - k, rest))


def both(old: int, size: int, proof: list[bytes], old_root: bytes, *, whole: bool = True) -> tuple[bytes, bytes]:
    """The two roots a consistency proof leads to, by the recursion of RFC 6962 2.1.2."""
    if old == size:
        found = old_root if whole else proof.pop(0)
        return found, found
    k, last = split(size), proof.pop()
    if old <= k:
        first, second = both(old, k, proof, old_root, whole=whole)
        return first, node(second, last)
    first, second = both(old - k, size - k, proof, old_root, whole=False)
    return node(last, first), node(last, second)


def test_roots_are_pymerkle_s() -> None:
    oracle, tree = InmemoryTree(algorithm="sha256"), Tree()
    assert tree.root() == EMPTY == mth([])
    for payload in PAYLOADS:
        oracle.append_entry(payload)
        tree.append(leaf_hash(payload))
        assert tree.root() == oracle.get_root(), tree.size


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 511, 513, 700, 1000])
def test_every_inclusion_proof_leads_to_the_root(size: int) -> None:
    _, proofs = grown(size)
    root = proofs.root()
    assert root == mth(LEAVES[:size])
    for index in range(0, size, 1 if size < 300 else 7):
        proof = proofs.inclusion(index)
        assert recompute(LEAVES[index], index, size, proof) == root
        check_inclusion(LEAVES[index], index, size, proof, root)


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_every_consistency_proof_leads_to_both_roots(size: int, old: int) -> None:
    old = min(old, size)
    _, proofs = grown(size)
    proof = proofs.consistency(old)
    check_consistency(old, size, proof, proofs.root(old), proofs.root())
    if 0 < old < size:
        assert both(old, size, list(proof), mth(LEAVES[:old])) == (mth(LEAVES[:old]), mth(LEAVES[:size]))


@given(st.integers(2, 400), st.data())
def test_altered_proofs_are_refused(size: int, data: st.DataObject) -> None:
    _, proofs = grown(size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    root, proof = proofs.root(), proofs.inclusion(index)
    at = data.draw(st.integers(0, len(proof) - 1))
    bad = [bytes(32) if n == at else each for n, each in enumerate(proof)]
    for altered in (bad, proof[:-1], [*proof, proof[0]], proof[1:]):
        with pytest.raises(ProofError):
            check_inclusion(LEAVES[index], index, size, altered, root)
    with pytest.raises(ProofError):
        check_inclusion(LEAVES[index], size, size, proof, root)
    with pytest.raises(ProofError):
        check_inclusion(LEAVES[index], (index + 1) % size, size, proof, root)
    path = proofs.consistency(old)
    for altered in ([*path, bytes(32)], path[:-1], [bytes(32), *path[1:]]):
        with pytest.raises(ProofError):
            check_consistency(old, size, altered, proofs.root(old), root)
    with pytest.raises(ProofError):
        check_consistency(size + 1, size, path, root, root)
    with pytest.raises(ProofError):
        check_consistency(size, size, path or [bytes(32)], root, root)


def test_a_log_of_more_than_one_level_of_tiles() -> None:
    leaves = [sha256(at.to_bytes(4)).digest() for at in range(256 * 256 + 300)]
    tree, proofs = grown(len(leaves), leaves)
    assert [len(each) for each in tree.levels] == [44, 1, 1]
    assert tree.root() == proofs.root() == root_of(leaves)
    for index in (0, 255, 256, 65_535, 65_536, len(leaves) - 1):
        check_inclusion(leaves[index], index, len(leaves), proofs.inclusion(index), tree.root())
    for old, size in pairwise((1, 256, 65_536, 65_537, 65_792, len(leaves))):
        check_consistency(old, size, proofs.consistency(old, size), proofs.root(old), proofs.root(size))


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_an_edge_is_taken_up_where_it_was_left(before: int, after: int) -> None:
    tree, _ = grown(min(before, after))
    again = Tree.load(tree.size, tree.dump())
    for each in LEAVES[tree.size : after]:
        again.append(each)
    assert again.root() == root_of(LEAVES[: max(after, tree.size)])


def test_an_edge_that_does_not_fit_is_refused() -> None:
    tree, _ = grown(300)
    for size, data in ((301, tree.dump()), (300, tree.dump()[:-1]), (300 + 65536, tree.dump())):
        with pytest.raises(ProofError, match="does not fit"):
            Tree.load(size, data)


def test_a_missing_tile_is_named() -> None:
    tree, _ = grown(600)
    with pytest.raises(MissingTileError, match="tile 0 of level 0"):
        Proofs(tree, lambda *_: None).inclusion(3)
