"""What a framing is: bytes in, frames out; frames in, bytes out. One small module for each, none knows another.

Law: the bytes of all frames, joined, are the bytes that were fed, and the frames do not depend on how the bytes were
cut. A framing reads and writes one stream, since what it may write can depend on what has left (the bracket of an
array is opened once). What it cannot read is a ``fault``, after which nothing more comes out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

MAX_FRAME = 4 * 1024 * 1024
"""Bytes of one frame. The largest text event recorded is about 200 KB (a response that repeats its tools); a picture in
base64 reaches a few MB."""


class FrameFault(enum.StrEnum):
    """Why a stream cannot be read any further."""

    TOO_LARGE = "a frame is too large"
    UNREADABLE = "a frame cannot be read"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, or what stands between two. ``raw`` is its bytes, all of them.

    ``data`` is the JSON text of its event, ``None`` where it has none; ``name`` is what the framing calls the
    event, ``others`` are the texts beside it. ``closes``: it ends the stream, so held text must leave before it.
    ``whole`` is false for what was left when the stream ended.
    """

    raw: bytes = field(repr=False)
    name: str | None
    data: str | None = field(repr=False)
    others: tuple[str, ...] = field(repr=False, default=())
    closes: bool = False
    whole: bool = True


class Framing(Protocol):
    """One stream. The frames that leave are handed to ``same``, ``changed`` or ``added``, in order."""

    fault: FrameFault | None

    def feed(self, chunk: bytes, /) -> list[Frame]:
        """Take bytes, cut anywhere; return the frames they complete."""

    def end(self) -> list[Frame]:
        """End the stream: what is left is a frame that is not ``whole``, which a reader may use or ignore."""

    def same(self, frame: Frame, /) -> bytes:
        """Write a frame as it came."""

    def changed(self, frame: Frame, data: bytes, /) -> bytes:
        """Write a frame with other data: JSON on one line, as ``dialects.body.dump`` writes it."""

    def added(self, data: bytes, like: Frame, /) -> bytes:
        """Write a new frame with this data, modelled on one that has left."""

    def bare(self, frame: Frame, /) -> Frame:
        """Return the frame without its name and the texts beside the event."""

    def refusal(self, data: bytes, name: str | None, /) -> bytes:
        """Write the frame that ends the answer before its time; ``name`` is what the dialect calls it."""
