"""Keyed hashes, and the file that holds them: a line of JSON, arrays of whole numbers, a seal made with the key. Pure.

Without the key nobody can tell what a hash stands for, nor try values against it. A file opened with another key, or
one that was changed or cut short, is refused as a whole.
"""

from __future__ import annotations

import hmac
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

MAGIC = b"tidegate-index 1\n"
SEAL = 32
HEADER_BYTES = 1 << 20  # the longest header is a list of columns
_WIDTHS = {"Q": 8, "I": 4, "B": 1}

type Header = Mapping[str, object]


class IndexFault(ValueError):
    """An index that cannot be used: what was found and what is accepted."""

    def __init__(self, found: str, accepted: str) -> None:
        super().__init__(f"found {found}; accepted: {accepted}")
        self.found = found
        self.accepted = accepted


def derive(secret: str) -> bytes:
    """Make the key of all hashes out of a secret text."""
    return blake2b(secret.encode(), digest_size=32, person=b"tidegate-key").digest()


def mac(key: bytes, domain: bytes, data: bytes) -> bytes:
    """Hash with a key: 16 bytes. ``domain`` (at most 16 bytes) keeps hashes of different kinds apart."""
    return blake2b(data, digest_size=16, key=key, person=domain).digest()


def write(kind: str, header: Header, arrays: Sequence[array[int]], key: bytes) -> bytes:
    """Return the file of an index."""
    shape = [[each.typecode, len(each)] for each in arrays]
    line = json.dumps({"kind": kind, **header, "arrays": shape}, sort_keys=True).encode() + b"\n"
    body = b"".join([MAGIC, line, *map(_little, arrays)])
    return body + _seal(key, body)


def read(data: bytes, kind: str, key: bytes) -> tuple[Header, list[array[int]]]:
    """Read the file of an index. Raises ``IndexFault``."""
    accepted = f"an index of the kind {kind}, made by tidegate rules fingerprint"
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + SEAL:
        raise IndexFault("no such index", accepted)
    if not hmac.compare_digest(_seal(key, memoryview(data)[:-SEAL]), data[-SEAL:]):
        raise IndexFault("a seal that does not fit: another key, or a damaged file", "the file as made, and its key")
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + HEADER_BYTES)
    header = json.loads(data[len(MAGIC) : end])
    if header["kind"] != kind:
        raise IndexFault(f"an index of the kind {header['kind']}", accepted)
    arrays, at = [], end + 1
    for code, count in header["arrays"]:
        size = count * _WIDTHS[code]
        arrays.append(_array(code, data[at : at + size]))
        at += size
    return header, arrays


def _seal(key: bytes, body: bytes | memoryview) -> bytes:
    return blake2b(body, digest_size=SEAL, key=key, person=b"tidegate-seal").digest()


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "little":
        return values.tobytes()
    copy = array(values.typecode, values)
    copy.byteswap()
    return copy.tobytes()


def _array(code: str, data: bytes) -> array[int]:
    values: array[int] = array(code)
    values.frombytes(data)
    if sys.byteorder != "little":
        values.byteswap()
    return values
