"""How long may a request wait for its approval? As long as its client says that it waits, less a margin. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

CAP = 120.0
"""Seconds that nobody waits longer than: balancers and clients with timeouts of their own give up around then."""
UNKNOWN = 30.0
"""Seconds for a client that does not say how long it waits: below the shortest timeouts that are common (60 s)."""
MARGIN = 15.0
"""Seconds before the client's own timeout by which it has its answer; after it the SDK would ask again, twice."""
SHARE = 0.25
"""The margin of a client that waits for less than a minute: so much of it."""
GRPC_MARGIN = 2.0

ANNOUNCED = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Headers in which the SDKs of OpenAI and Anthropic say how many seconds they wait for the next byte."""

_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def hold_for(fields: Sequence[tuple[str, str]], decide_within: float) -> float:
    """Return how many seconds a request may be held."""
    told = dict(fields)
    deadline = _GRPC.fullmatch(told.get("grpc-timeout", ""))
    if deadline is not None:
        room = int(deadline[1]) * _UNITS[deadline[2]] - GRPC_MARGIN
        return max(0.0, min(decide_within, CAP, room))
    announced = next((_number(told[name]) for name in ANNOUNCED if name in told), None)
    room = UNKNOWN if announced is None else announced - min(MARGIN, announced * SHARE)
    return max(0.0, min(decide_within, CAP, room))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
