"""A compressed stream is undone as its bytes come: every cut gives the same text and the same refusal."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.dialects.body import MAX_RATIO, RATIO_FLOOR, decode
from tidegate.model import Denial, Reason
from tidegate.streams.unpacking import BLOCK, Unpacker, can_undo


def bare(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


ONE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate bare": bare,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
STACKS = [(name,) for name in ONE] + [("gzip", "br"), ("zstd", "gzip"), ("br", "deflate", "identity", "gzip")]
stacks = st.sampled_from(STACKS)
LIMIT = 1 << 20


def packed(names: Sequence[str], data: bytes) -> tuple[list[str], bytes]:
    """Return the header and the bytes of a body in these codings, the first applied first."""
    for name in names:
        data = data if name == "identity" else ONE[name](data)
    return [", ".join(name.removesuffix(" bare") for name in names)], data


def undone(encodings: list[str], data: bytes, cuts: Sequence[int], limit: int = LIMIT) -> tuple[bytes, Denial | None]:
    machine, out = Unpacker(encodings, limit), b""
    for start, stop in pairwise([0, *sorted(cuts), len(data)]):
        came = machine.feed(data[start:stop])
        out += came.data
        if came.denial is not None:
            return out, came.denial
    return out, machine.end()


texts = st.lists(st.sampled_from([b"data: {}\n\n", b"x" * 300, b"\0\xff", b"ab", random.Random(1).randbytes(90)]))


@settings(max_examples=300, deadline=None)
@given(names=stacks, text=texts.map(b"".join), draw=st.data())
def test_every_cut_gives_the_text(names: Sequence[str], text: bytes, draw: st.DataObject) -> None:
    encodings, data = packed(names, text)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=12))
    assert undone(encodings, data, cuts) == (text, None)
    assert undone(encodings, data, range(1, len(data))) == (text, None)


@settings(max_examples=200, deadline=None)
@given(names=stacks, text=texts.map(b"".join), draw=st.data())
def test_what_is_cut_off_or_goes_on_is_refused_as_in_whole_bodies(
    names: Sequence[str], text: bytes, draw: st.DataObject
) -> None:
    encodings, data = packed(names, text)
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    for broken in (data[: draw.draw(st.integers(0, len(data) - 1))], data + b"x"):
        out, denial = undone(encodings, broken, [cut for cut in cuts if cut < len(broken)])
        assert text.startswith(out)
        assert isinstance(decode(broken, encodings, LIMIT), Denial) == (denial is not None)
        if denial is not None:
            assert (denial.reason, denial.status) == (Reason.ANSWER_MALFORMED, 502)


@pytest.mark.parametrize("name", ONE)
def test_a_bomb_is_stopped_at_the_same_byte_wherever_it_is_cut(name: str) -> None:
    encodings, data = packed([name], b"\0" * 50_000_000)
    chance = random.Random(name)
    found = [undone(encodings, data, cuts) for cuts in ((), range(1, len(data), 7))]
    found += [undone(encodings, data, [chance.randrange(len(data)) for _ in range(9)]) for _ in range(3)]
    out, denial = found[0]
    assert denial is not None
    assert denial.reason in (Reason.ANSWER_MALFORMED, Reason.ANSWER_TOO_LARGE)
    assert RATIO_FLOOR <= len(out) <= max(RATIO_FLOOR, MAX_RATIO * (len(data) + BLOCK))
    assert all(each == found[0] for each in found)


def test_more_than_the_limit_is_refused_once_the_limit_has_left() -> None:
    text = random.Random(2).randbytes(3000)
    for name in ONE:
        out, denial = undone(*packed([name], text), cuts=(100, 200), limit=1000)
        assert out == text[:1000]
        assert denial is not None
        assert denial.reason is Reason.ANSWER_TOO_LARGE


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate bare", "br", "zstd"])
def test_what_was_flushed_comes_out_at_once(name: str) -> None:
    pieces = [f'data: {{"n": {number}}}\n\n'.encode() for number in range(50)]
    machine = Unpacker([name.removesuffix(" bare")], LIMIT)
    for piece, sent in zip(pieces, flushed(name, pieces), strict=True):
        assert machine.feed(sent).data == piece


def flushed(name: str, pieces: Sequence[bytes]) -> list[bytes]:
    """Compress pieces one by one, flushing after each, as a server that streams must."""
    if name == "br":
        machine = brotli.Compressor()
        return [machine.process(piece) + machine.flush() for piece in pieces]
    if name == "zstd":
        writer = zstandard.ZstdCompressor().compressobj()
        return [writer.compress(each) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for each in pieces]
    packer = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}.get(name, -15))
    return [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]


@pytest.mark.parametrize(
    ("encodings", "able"),
    [
        ([], True),
        (["identity"], True),
        (["GZIP , br"], True),
        (["gzip", "zstd", "deflate", "x-gzip"], True),
        (["gzip, gzip, gzip, gzip, gzip"], False),
        (["compress"], False),
        (["gzip", "aes"], False),
    ],
)
def test_what_can_be_undone(encodings: list[str], able: bool) -> None:
    assert can_undo(encodings) is able


def test_what_is_no_coding_is_refused() -> None:
    for name in ("gzip", "br", "zstd", "deflate"):
        out, denial = undone([name], b"data: {}\n\n", (3,))
        assert out == b""
        assert denial is not None
        assert denial.reason is Reason.ANSWER_MALFORMED
