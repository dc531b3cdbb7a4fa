"""What goes through the pipes to a worker and back: JSON, four bytes of its length before it. Pure."""

from __future__ import annotations

from typing import Any

import orjson

HEAD = 4
MOST = 64 << 20
"""Bytes of a frame: a request body of any sensible limit, with its escapes."""


def pack(value: Any) -> bytes:
    """Write a frame."""
    data = orjson.dumps(value)
    return len(data).to_bytes(HEAD, "big") + data


def length(head: bytes) -> int:
    """Read how many bytes follow. Raises ``ValueError`` for more than a frame may have."""
    size = int.from_bytes(head, "big")
    if size > MOST:
        raise ValueError("a frame that is too large")
    return size


def unpack(data: bytes) -> Any:
    """Read what follows. Raises ``ValueError``."""
    return orjson.loads(data)
