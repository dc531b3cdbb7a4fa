"""Reading what lies under callers' keys: names in the place of pseudonyms, and bodies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidegate.evidence.files import Files
from tidegate.evidence.records import RecordingError
from tidegate.evidence.subjects import MARK, Subjects

MOST = 1 << 30
"""Bytes that a stored body may grow to; a gate's own limits are far below."""


class Names:
    """The callers' names and keys of a recording, as far as they are there and may be read."""

    def __init__(self, files: Files) -> None:
        self._subjects: Subjects | None = None
        with contextlib.suppress(RecordingError, OSError):
            self._subjects = Subjects(files.keys, create=False)
        self._known: dict[str, str | None] = {}

    def close(self) -> None:
        """Close the file."""
        if self._subjects is not None:
            self._subjects.close()

    def named(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of table ``exchange`` with the caller's name; who was erased stays a pseudonym."""
        caller = row.get("caller")
        if self._subjects is None or not caller or not caller.startswith(MARK):
            return row
        if caller not in self._known:
            self._known[caller] = self._subjects.name(caller)
        name = self._known[caller]
        return row if name is None else {**row, "caller": name.partition(":")[2]}

    def pseudonyms(self, caller: str) -> list[str]:
        """Return the pseudonyms of callers with that subject, or that ``identity:subject``."""
        return [] if self._subjects is None else [pseudonym for pseudonym, _ in self._subjects.matching(caller)]

    def key(self, key: str) -> bytes | None:
        """Return a data key; ``None`` if it was destroyed or the file of keys is not here."""
        return None if self._subjects is None else self._subjects.key(key)

    def open(self, exchange: str, data: bytes, salt: bytes | None, key: str | None) -> tuple[bytes, bytes]:
        """Return a stored body and its salt. Raises ``RecordingError`` where the key is gone or does not fit."""
        if key is None:
            return data, salt or b""
        found = self.key(key)
        if found is None:
            raise RecordingError(f"exchange {exchange}: its bodies were erased, or the file of keys is not here")
        try:
            plain = AESGCM(found).decrypt(data[:12], data[12:], exchange.encode())
            state = zstandard.ZstdDecompressor().decompress(plain[32:], max_output_size=MOST)
        except (InvalidTag, ValueError, zstandard.ZstdError):
            raise RecordingError(f"exchange {exchange}: its bodies are not as they were recorded") from None
        return state, plain[:32]


@contextlib.contextmanager
def names_of(files: Files) -> Iterator[Names]:
    """Open the names of a recording for reading."""
    names = Names(files)
    try:
        yield names
    finally:
        names.close()
