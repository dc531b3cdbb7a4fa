"""The three parts of a signed token, read more strictly than libraries do. Pure."""

from __future__ import annotations

import base64
import binascii
import math
import re

from tidegate.dialects.body import strict_json

SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # fullmatch: ``$`` would let a newline through
OPAQUE = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


def json_segment(part: str) -> dict[str, object] | None:
    """Read a part in base64url without padding as a JSON object without repeated keys; ``None``: it is none."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return json_object(data)


def json_object(data: bytes) -> dict[str, object] | None:
    """Read a JSON object; ``None``: it is none."""
    value = strict_json(data)
    return value if isinstance(value, dict) else None


def number(value: object) -> float | None:
    """Read a finite number; ``true`` is none, nor is a number in a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
