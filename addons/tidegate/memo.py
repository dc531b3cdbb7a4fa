"""What pure functions make of texts, remembered, so that a start need not make it anew. Pure.

A start reads the same patterns, paths and files as the one before. Whoever loads gives each ``Memo`` what an earlier
start kept (``recall``), takes what is worth keeping (``told``), and ends with ``forget``: then nothing is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

SHORT = 256
"""Characters of the longest text that is remembered by itself; a longer one by its hash."""


class Memo[T]:
    """Results by text. ``write`` turns one into a JSON value, and ``read`` that into one again."""

    def __init__(self, name: str, write: Callable[[T], Any], read: Callable[[Any], T]) -> None:
        self.name = name
        self._write = write
        self._read = read
        self._known: dict[str, T] = {}
        self._stored: Mapping[str, Any] = {}
        self.grown = False

    def get(self, text: str) -> T | None:
        """Return what was made of a text, or ``None``."""
        key = _key(text)
        found = self._known.get(key)
        if found is None and key in self._stored:
            found = self._known[key] = self._read(self._stored[key])
        return found

    def put(self, text: str, made: T) -> T:
        """Remember what was made of a text, and return it."""
        self._known[_key(text)] = made
        self.grown = True
        return made

    def recall(self, stored: Mapping[str, Any]) -> None:
        """Take what ``told`` once said."""
        self._stored = stored

    def told(self) -> dict[str, Any]:
        """Return what was asked for since the last ``forget``, as JSON values."""
        return {key: self._write(made) for key, made in list(self._known.items())}

    def forget(self) -> None:
        """Hold nothing any more."""
        self._known, self._stored, self.grown = {}, {}, False


def _key(text: str) -> str:
    return text if len(text) <= SHORT else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
