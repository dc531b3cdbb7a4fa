"""Where the files of a recording are. All of them lie beside the first segment, which has the recording's own path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Files:
    """The files of the recording at ``path``.

    ``segment(1)`` is the path itself, later ones are numbered beside it. ``key`` is the log's private key, ``note`` the
    last checkpoint, ``tiles`` the log's hashes of closed segments, ``keys`` the callers' names and data keys.
    """

    path: Path

    def segment(self, number: int) -> Path:
        """Return the path of a segment, counted from 1."""
        if number == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{number:05}{self.path.suffix}")

    def segments(self) -> list[tuple[int, Path]]:
        """Return the segments that are there, oldest first."""
        shape = re.compile(re.escape(self.path.stem) + r"-(\d{5,})" + re.escape(self.path.suffix))
        found = [(1, self.path)] if self.path.is_file() else []
        if self.path.parent.is_dir():
            for each in self.path.parent.iterdir():
                match = shape.fullmatch(each.name)
                if match and each.is_file():
                    found.append((int(match[1]), each))
        return sorted(found)

    @property
    def lock(self) -> Path:
        """Held by the process that records."""
        return self._beside("lock")

    @property
    def key(self) -> Path:
        """The log's private key."""
        return self._beside("key")

    @property
    def note(self) -> Path:
        """The last checkpoint."""
        return self._beside("checkpoint")

    @property
    def tiles(self) -> Path:
        """The hashes that outlive their segments."""
        return self._beside("tiles")

    @property
    def keys(self) -> Path:
        """The callers' names and data keys; destroying a row erases."""
        return self._beside("keys")

    @property
    def ballast(self) -> Path:
        """Room that is given back when the disk is full."""
        return self._beside("ballast")

    @property
    def index(self) -> Path:
        """The full-text index."""
        return self._beside("index")

    def _beside(self, end: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{end}")


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a small file so that after a power loss it is the old one or the new one, never a part."""
    fresh = path.with_name(f"{path.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename, a new file or a removal in a directory durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
