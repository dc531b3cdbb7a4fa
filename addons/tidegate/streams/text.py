"""Plain text that is streamed as it is, as servers do that know no events (TorchServe, chunked ``text/plain``).

A frame is what a chunk adds to the text: the event ``{"text": ...}`` of the type ``text``, so that a dialect's delta
``$.text`` makes one channel of it. Chunks may be cut inside a character; what is no UTF-8 ends the stream, and a
character that the end cuts off is left out.
"""

from __future__ import annotations

import codecs

import orjson

from tidegate.streams.framing import Frame, FrameFault

NAME = "text"
"""The field of an event, and its type."""


class PlainText:
    """One stream of text: a ``Framing``."""

    __slots__ = ("_decoder", "_pending", "fault")

    def __init__(self) -> None:
        self.fault: FrameFault | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._pending = b""

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes, cut anywhere; return the characters they complete as one frame."""
        if self.fault is not None or not chunk:
            return []
        try:
            text = self._decoder.decode(chunk)
        except UnicodeDecodeError:
            self.fault = FrameFault.UNREADABLE
            return []
        came = self._pending + chunk
        left = len(self._decoder.getstate()[0])
        raw, self._pending = came[: len(came) - left], came[len(came) - left :]
        return [Frame(raw, NAME, orjson.dumps({NAME: text}).decode())] if text else []

    def end(self) -> list[Frame]:
        """End the stream: a character that is not whole is nothing that a reader could show."""
        self._pending = b""
        return []

    def same(self, frame: Frame) -> bytes:
        """Write a piece as it came."""
        return frame.raw

    def changed(self, _frame: Frame, data: bytes) -> bytes:
        """Write other text in a piece's place."""
        return _text(data)

    def added(self, data: bytes, _like: Frame) -> bytes:
        """Write a new piece."""
        return _text(data)

    def bare(self, frame: Frame) -> Frame:
        """Return the piece: there is nothing beside its text."""
        return frame

    def refusal(self, data: bytes, _name: str | None) -> bytes:
        """Write the error as a line of its own."""
        return b"\n" + data + b"\n"


def _text(data: bytes) -> bytes:
    text: object = orjson.loads(data).get(NAME)
    return text.encode("utf-8") if isinstance(text, str) else b""
