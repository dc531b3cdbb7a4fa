"""gRPC's framing: the same messages for every cut, compressed ones under limits, and clear faults."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dialects.body import RATIO_FLOOR
from tidegate.streams.grpc import Deframer, GrpcFault, complete, count, frame

LIMIT = 4 * 1024 * 1024
CODERS = {"gzip": gzip.compress, "deflate": zlib.compress}
BOMB = gzip.compress(bytes(LIMIT - 1))


def coded(data: bytes) -> bytes:
    return b"\1" + struct.pack(">I", len(data)) + data


def read(chunks: list[bytes], encoding: str = "identity", limit: int = LIMIT) -> tuple[list[bytes], GrpcFault | None]:
    deframer = Deframer(encoding, limit)
    found = [each for chunk in chunks for each in deframer.feed(chunk)]
    deframer.end()
    return found, deframer.fault


def cut_at(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("place", range(1, 6))
def test_a_prefix_may_be_cut_anywhere(place: int) -> None:
    assert read(cut_at(frame(b"hello"), place)) == ([b"hello"], None)


SOUND = {
    "nothing": ([], "", []),
    "an empty message": ([frame(b"")], "", [b""]),
    "two in one piece": ([frame(b"one") + frame(b"two")], "", [b"one", b"two"]),
    "one in three pieces": (cut_at(frame(b"hello"), 3, 7), "", [b"hello"]),
    "an end and a beginning": (cut_at(frame(b"one") + frame(b"two"), 6, 10), "", [b"one", b"two"]),
    "gzip": ([coded(gzip.compress(b"hello"))], "gzip", [b"hello"]),
    "deflate": ([coded(zlib.compress(b"hello"))], "Deflate", [b"hello"]),
    "plain beside gzip": ([frame(b"one") + coded(gzip.compress(b"two"))], "gzip", [b"one", b"two"]),
    "an unknown coding that is not used": ([frame(b"one")], "snappy", [b"one"]),
}


@pytest.mark.parametrize(("chunks", "encoding", "messages"), SOUND.values(), ids=SOUND)
def test_messages(chunks: list[bytes], encoding: str, messages: list[bytes]) -> None:
    assert read(chunks, encoding) == (messages, None)


FAULTY = {
    "a bomb": ([coded(BOMB)], "gzip", GrpcFault.BROKEN),
    "more than the limit": ([frame(bytes(LIMIT + 1))[:100]], "", GrpcFault.TOO_LARGE),
    "more than the limit when plain": ([coded(gzip.compress(b"ab" * LIMIT))], "gzip", GrpcFault.BROKEN),
    "a little more than the limit when plain": (
        [coded(zlib.compress(bytes(range(256)) * (LIMIT // 256) + b"x", 0)[: LIMIT - 9])], "deflate", GrpcFault.BROKEN,
    ),
    "an unknown coding": ([coded(b"hello")], "snappy", GrpcFault.CODING),
    "no coding": ([coded(b"hello")], "identity", GrpcFault.CODING),
    "two codings": ([coded(gzip.compress(gzip.compress(b"x")))], "gzip,gzip", GrpcFault.CODING),
    "broken gzip": ([coded(gzip.compress(b"hello")[:-2])], "gzip", GrpcFault.BROKEN),
    "bytes after gzip": ([coded(gzip.compress(b"hello") + b"x")], "gzip", GrpcFault.BROKEN),
    "another flag": ([b"\2\0\0\0\0"], "", GrpcFault.FLAG),
    "trailers of gRPC-Web": ([b"\x80\0\0\0\0"], "", GrpcFault.FLAG),
    "a prefix that is cut": ([b"\0\0\0"], "", GrpcFault.CUT),
    "a message that is cut": ([frame(b"hello")[:-1]], "", GrpcFault.CUT),
}  # fmt: skip


@pytest.mark.parametrize(("chunks", "encoding", "fault"), FAULTY.values(), ids=FAULTY)
def test_faults(chunks: list[bytes], encoding: str, fault: GrpcFault) -> None:
    assert read(chunks, encoding) == ([], fault)


def test_a_message_expands_to_its_limit_and_not_beyond() -> None:
    plain = b"ab" * (RATIO_FLOOR // 2)
    data = [coded(gzip.compress(plain))]
    assert read(data, "gzip", RATIO_FLOOR) == ([plain], None)
    assert read(data, "gzip", RATIO_FLOOR - 1) == ([], GrpcFault.TOO_LARGE)


def test_what_came_before_a_fault_is_there_and_nothing_after_it() -> None:
    deframer = Deframer("", LIMIT)
    assert deframer.feed(frame(b"one") + b"\2\0\0\0\0" + frame(b"two")) == [b"one"]
    assert deframer.fault is GrpcFault.FLAG
    assert deframer.feed(frame(b"three")) == []


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=6),
    st.sampled_from(["gzip", "deflate"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_any_cut_gives_the_same_messages(messages: list[tuple[bytes, bool]], coding: str, places: list[int]) -> None:
    data = b"".join(coded(CODERS[coding](each)) if packed else frame(each) for each, packed in messages)
    assert read(cut_at(data, *(min(at, len(data)) for at in places)), coding) == ([each for each, _ in messages], None)


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(0, 30))
def test_whole_messages_are_told_from_the_rest(messages: list[bytes], less: int) -> None:
    data = b"".join(map(frame, messages))
    data = data[: max(0, len(data) - less)]
    size = complete(data)
    found, fault = read([data[:size]])
    assert fault is None
    assert len(found) == count(data[:size]) == count(data)
    assert complete(data[size:]) == 0
    assert messages[: len(found)] == found
