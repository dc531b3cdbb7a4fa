"""How a recording is kept, apart from where and when: originals, checkpoints, segments, retention. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

CHECKPOINT_LEAVES = 1000
CHECKPOINT_EVERY = 10.0
"""A checkpoint after so many leaves or seconds: what a thief of the key could still rewrite is bounded by both."""

SEGMENT_BYTES = 1 << 30
SEGMENT_AGE = 86_400.0
BALLAST = 64 << 20
"""More than the WAL can be (4 MB), so that a checkpoint and what tells of the full disk find room."""


class Originals(enum.StrEnum):
    """What becomes of the originals of what was masked. ``sealed``: only the auditor's private key opens them."""

    NONE = "none"
    SEALED = "sealed"


class SinkKind(enum.StrEnum):
    """Where copies of checkpoints go."""

    FILE = "file"
    SYSLOG = "syslog"
    WEBHOOK = "webhook"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Sink:
    """A place for copies of checkpoints. ``words`` is a path, an address, a URL, or a command with its arguments."""

    kind: SinkKind
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keeping:
    """Sizes in bytes, times in seconds; ``retain`` is ``None`` for ever. ``auditor`` is an X25519 public key."""

    originals: Originals = Originals.NONE
    auditor: bytes | None = None
    every: float = CHECKPOINT_EVERY
    leaves: int = CHECKPOINT_LEAVES
    sink: Sink | None = None
    segment_bytes: int = SEGMENT_BYTES
    segment_age: float = SEGMENT_AGE
    retain: float | None = None
    ballast: int = BALLAST
