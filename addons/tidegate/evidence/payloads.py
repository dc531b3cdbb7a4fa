"""What the log's leaves say: canonical JSON (RFC 8785) that commits to everything stored about an exchange. Pure.

The bytes are stored and hashed as they are, so nobody who verifies has to write the same JSON again. There are no
floats, keys are ASCII, integers stay below 2^53. A column that is empty is left out: a column that a later version
adds to an old file is empty there, and still as the log says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from tidegate.evidence.records import COLUMNS

VERSION = 1
"""The format of the payloads; ``v`` of each."""

KINDS = ("intent", "sealed", "event")
"""``kind`` of a payload."""

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


@dataclass(frozen=True, slots=True)
class Stored:
    """What is kept beside the rows of an exchange, as the log commits to it.

    ``state`` is the hash of the flow state as it lies in the file, ``plain`` the salted hash of its plain form, ``key``
    the id of the data key it lies under.
    ``parts`` are further hashes by name: chunk marks and sealed originals.
    """

    format: int | None
    state: str | None
    plain: str | None
    key: str | None
    parts: Mapping[str, str]


def salted(salt: bytes, data: bytes) -> str:
    """Return the commitment to a body: a bare hash of a short one would give it away."""
    return sha256(b"\0" + salt + data).hexdigest()


def original(key: str | None, wrapped: bytes, data: bytes) -> str:
    """Return the commitment to a sealed original."""
    return sha256(f"{key or ''}\n{len(wrapped)}\n".encode() + wrapped + data).hexdigest()


def intent(at_us: int, row: Sequence[object], findings: Iterable[Sequence[object]]) -> str:
    """Say that an exchange is about to be sent."""
    return _encode({"at_us": at_us, "exchange": columns(row), "findings": places(findings), "kind": "intent", "v": 1})


def sealed(
    at_us: int,
    row: Sequence[object],
    findings: Iterable[Sequence[object]],
    decisions: Iterable[Sequence[object]],
    stored: Stored | None,
) -> str:
    """Say how an exchange ended, and what was kept of it."""
    said: dict[str, Any] = {
        "at_us": at_us, "decisions": [list(each[2:]) for each in decisions], "exchange": columns(row),
        "findings": places(findings), "kind": "sealed", "v": 1,
    }  # fmt: skip
    if stored is not None:
        kept = {
            "format": stored.format,
            "key": stored.key,
            "plain": stored.plain,
            "state": stored.state,
            **stored.parts,
        }
        said["stored"] = {name: value for name, value in kept.items() if value is not None}
    return _encode(said)


def event(at_us: int, kind: str, detail: str) -> str:
    """Say that something happened: a start, a gap, a reading, a change of policy."""
    return _encode({"at_us": at_us, "detail": detail, "event": kind, "kind": "event", "v": 1})


def columns(row: Sequence[object]) -> dict[str, object]:
    """Return the columns of an exchange that are not empty."""
    return {name: exact(value) for name, value in zip(COLUMNS, row, strict=True) if value is not None}


def places(findings: Iterable[Sequence[object]]) -> list[list[object]]:
    """Return rows of table ``finding`` without their exchange and number."""
    return [[exact(each) for each in row[2:]] for row in findings]


def exact(value: object) -> object:
    """Return a value as a leaf says it: a score or a cost as text, since two writers may write a float differently."""
    return repr(value) if type(value) is float else value
