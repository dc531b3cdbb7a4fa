"""What two parsers could read in two ways is refused; what is left is what is forwarded."""

from __future__ import annotations

import gzip
import json
import timeit
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dialects.body import decode, dump, strict_json
from tidegate.model import Denial, Reason

TEXT = b'{"messages":[{"role":"user","content":"hello"}]}' * 20
LIMIT = 1_000_000


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd_stream(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()  # a frame that does not tell its size
    return stream.compress(data) + stream.flush()


CODINGS = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "deflate-zlib": ("deflate", zlib.compress),
    "deflate-raw": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd-stream": ("zstd", zstd_stream),
}
every_coding = pytest.mark.parametrize(("name", "encode"), CODINGS.values(), ids=CODINGS)


@every_coding
def test_one_coding(name: str, encode) -> None:
    assert decode(encode(TEXT), [name], LIMIT) == TEXT
    assert decode(encode(b""), [name], LIMIT) == b""
    assert decode(encode(TEXT), [name], len(TEXT)) == TEXT


@every_coding
def test_size_cap(name: str, encode) -> None:
    denial = decode(encode(TEXT), [name], len(TEXT) - 1)
    accepted = len(TEXT) - 1
    assert denial == Denial(Reason.BODY_TOO_LARGE, 413, f"The body is larger than the {accepted} bytes accepted here.")


@every_coding
def test_bomb(name: str, encode) -> None:
    denial = decode(encode(b"a" * 20_000_000), [name], 1_000_000_000)
    assert denial == Denial(Reason.BODY_ENCODING, 400, "The body cannot be read: it expands more than 200 times.")


@every_coding
def test_every_truncation_is_refused(name: str, encode) -> None:
    whole = encode(b"a short text")
    for end in range(len(whole)):
        assert isinstance(decode(whole[:end], [name], LIMIT), Denial), end


@every_coding
@pytest.mark.parametrize("tail", [b"x", b"\x00", b"\x1f\x8b", b"{}"])
def test_bytes_after_the_end(name: str, encode, tail: bytes) -> None:
    denial = decode(encode(TEXT) + tail, [name], LIMIT)
    assert denial == Denial(Reason.BODY_ENCODING, 400, f"The body cannot be read: it is not valid {name.lower()}.")


@every_coding
def test_two_members(name: str, encode) -> None:
    assert isinstance(decode(encode(TEXT) * 2, [name], LIMIT), Denial)


@pytest.mark.parametrize(
    "headers", [["gzip, br"], ["gzip", "br"], [" GZIP ,br "], ["identity", "gzip", "identity,br"]], ids=str
)
def test_stacked_in_header_order(headers: list[str]) -> None:
    assert decode(brotli.compress(gzip.compress(TEXT)), headers, LIMIT) == TEXT
    assert isinstance(decode(gzip.compress(brotli.compress(TEXT)), headers, LIMIT), Denial)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        (["compress"], 415, "its content-encoding is none of gzip, deflate, br, zstd, identity"),
        (["gzip;q=1"], 415, "its content-encoding is none of gzip, deflate, br, zstd, identity"),
        (["gzip"] * 5, 415, "it is encoded 5 times; at most 4 are accepted"),
        (["gzip"], 400, "it is not valid gzip"),
        (["br"], 400, "it is not valid br"),
        (["zstd"], 400, "it is not valid zstd"),
        (["deflate"], 400, "it is not valid deflate"),
    ],
    ids=["unknown", "parameters", "too-many", "no-gzip", "no-br", "no-zstd", "no-deflate"],
)
def test_encoding_refusals(headers: list[str], status: int, message: str) -> None:
    assert decode(TEXT, headers, LIMIT) == Denial(Reason.BODY_ENCODING, status, f"The body cannot be read: {message}.")


def test_plain_bodies_have_the_same_cap() -> None:
    assert decode(TEXT, [], len(TEXT)) == TEXT
    assert decode(TEXT, ["identity"], len(TEXT) - 1) == Denial(
        Reason.BODY_TOO_LARGE, 413, f"The body is larger than the {len(TEXT) - 1} bytes accepted here."
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'{"a":1,"a":1}', "an object holds the same key twice"),
        (b'{"a":1,"\\u0061":2}', "an object holds the same key twice"),
        (b'{"x":[{"b":{"a":1,"a":2}}]}', "an object holds the same key twice"),
        (b'{"a": 1, "a": 1}', "an object holds the same key twice"),
        (b'{ "a b" : [ ] , "a b" : [ ] }', "an object holds the same key twice"),
        (b'{"x": " ", "x": "  "}', "an object holds the same key twice"),
        (b'{"a":NaN}', "NaN and Infinity are not JSON"),
        (b'{"a":-Infinity}', "NaN and Infinity are not JSON"),
        (b'{"a":1e999}', "a number is too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "it is not JSON"),
        (b'{"a":"\xff"}', "it is not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "it is not valid UTF-8"),
        (b'{"a":"\xc0\xaf"}', "it is not valid UTF-8"),
        (b'\xef\xbb\xbf{"a":1}', "it is not JSON"),
        ('{"a":1}'.encode("utf-16"), "it is not valid UTF-8"),
        ('{"a":1}'.encode("utf-16-le"), "it is not JSON"),
        (b'{"a":1} x', "it is not JSON"),
        (b'{"a":1}{"b":2}', "it is not JSON"),
        (b'{"a":1,}', "it is not JSON"),
        (b"{'a':1}", "it is not JSON"),
        (b'{"a":"\n"}', "it is not JSON"),
        (b'{"a":01}', "it is not JSON"),
        (b"", "it is not JSON"),
        (b"[" * 101 + b"]" * 101, "it nests deeper than 100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "it nests deeper than 100 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "it nests deeper than 100 levels"),
    ],
)
def test_strict_json_refuses(data: bytes, what: str) -> None:
    assert strict_json(data) == Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")


@pytest.mark.parametrize(
    "data",
    [b"{}", b"[]", b"null", b'"text"', b'{"a":{"a":1}}', b"[" * 100 + b"]" * 100, b"[[],[],{}]" * 1],
)
def test_strict_json_reads(data: bytes) -> None:
    assert strict_json(data) == json.loads(data)


def test_wide_is_not_deep() -> None:
    assert strict_json(b"[" + b"[]," * 5000 + b"[]]") == [[]] * 5001


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_dump_and_back(value: object) -> None:
    assert strict_json(dump(value)) == value


@given(json_values, st.sampled_from([None, 0, 2]))
def test_spaces_change_nothing(value: object, indent: int | None) -> None:
    assert strict_json(json.dumps(value, indent=indent, ensure_ascii=False).encode()) == value


@given(st.dictionaries(st.text(" ab", max_size=3), json_values, min_size=1), st.data())
def test_a_second_key_is_seen_among_spaces(value: dict[str, object], data: st.DataObject) -> None:
    parts = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in value.items()]
    parts.insert(data.draw(st.integers(0, len(parts))), data.draw(st.sampled_from(parts)))
    assert isinstance(strict_json(f"{{{', '.join(parts)}}}".encode()), Denial)


def test_dump_writes_what_orjson_does_not_take() -> None:
    assert dump([2**64, -(2**70)]) == f"[{2**64},{-(2**70)}]".encode()


def test_dump_is_compact_utf8_and_survives_lone_surrogates() -> None:
    assert dump({"a": ["é", 1.5]}) == '{"a":["é",1.5]}'.encode()
    lone = strict_json(b'{"a":"\\ud83d","b":"\xc3\xa9"}')
    assert dump(lone) == b'{"a":"\\ud83d","b":"\\u00e9"}'


def test_a_4_kb_body_parses_well_under_a_tenth_of_a_millisecond() -> None:
    body = dump({"model": "m", "messages": [{"role": "user", "content": "word " * 80} for _ in range(10)]})
    assert 4000 < len(body) < 4600
    best = min(timeit.repeat(lambda: strict_json(body), number=50, repeat=5)) / 50
    assert best < 100e-6
