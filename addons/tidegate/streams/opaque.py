"""A streamed answer that its endpoint says nobody can inspect, such as speech: it passes as it comes, if it is that.

Law: what is a text after all is inspected. So nothing leaves before the first bytes have told, and a text waits for its
end and is inspected as a whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from tidegate.inspection import media
from tidegate.inspection.bodies import Inspected
from tidegate.model import Denial, Finding, Stored

HEAD = 1024
"""Bytes that tell. The marks of pictures and sound stand in the first 64; chance makes no text of so many others."""


class OpaqueAnswer:
    """Bytes in, bytes out, like a ``StreamedAnswer``. ``unread`` says what it is once that is known.

    ``whole`` inspects an answer that is a text; ``denial`` is what it made of that, and ``words`` writes it for the
    client, who gets them where nothing else has left.
    """

    def __init__(self, whole: Callable[[bytes], Inspected | Denial], words: Callable[[Denial], bytes]) -> None:
        self.denial: Denial | None = None
        self.findings: tuple[Finding, ...] = ()
        self.unread: tuple[tuple[str, str], ...] = ()
        self.made: list[Stored] = []  # nothing: nobody reads what it says
        self._whole = whole
        self._words = words
        self._head = bytearray()

    @property
    def held(self) -> int:
        """Bytes held back now."""
        return len(self._head)

    @property
    def stuck(self) -> frozenset[object]:
        """Nothing here waits for what it could still become: a text waits for its end, which other limits bound."""
        return frozenset()

    def expire(self, _stuck: Collection[object]) -> bytes:
        """Let nothing leave before its time."""
        return b""

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, cut anywhere; return what may leave now."""
        if self.unread:
            return chunk
        if self.denial is not None:
            return b""
        before = len(self._head)
        self._head += chunk
        if before >= HEAD or len(self._head) < HEAD:  # it is a text, or too short to tell
            return b""
        why = media.opaque(bytes(self._head[:HEAD]))
        if why is None:
            return b""
        self.unread = ((media.ANSWER, why),)
        out, self._head = bytes(self._head), bytearray()
        return out

    def end(self) -> bytes:
        """End the answer: one that was short, or a text, is looked at now."""
        if self.unread or self.denial is not None:
            return b""
        found = self._whole(bytes(self._head))
        if isinstance(found, Denial):
            return self.stop(found)
        self.findings, self.unread = found.findings, found.unread
        return found.body

    def stop(self, denial: Denial) -> bytes:
        """End the answer from outside. Nothing can be said in the middle of a sound."""
        if self.denial is not None:
            return b""
        self.denial = denial
        return b"" if self.unread else self._words(denial)
