"""What crossed before it was masked, kept until it is sealed to the auditor. It never touches a disk in the clear."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.model import Direction


class Tee:
    """The request as it was sent, and the upstream's answer as it came, of one exchange."""

    __slots__ = ("_answer", "_request")

    def __init__(self) -> None:
        self._request = b""
        self._answer: list[bytes] = []

    def sent(self, body: bytes) -> None:
        """Take the body of the request."""
        self._request = body

    def answered(self, data: bytes) -> None:
        """Take a piece of the answer. Its limits bound what comes."""
        if data:
            self._answer.append(data)

    def originals(self) -> Mapping[str, bytes]:
        """Return what there is, by direction."""
        found = {Direction.PROMPT.value: self._request, Direction.RESPONSE.value: b"".join(self._answer)}
        return {name: body for name, body in found.items() if body}
