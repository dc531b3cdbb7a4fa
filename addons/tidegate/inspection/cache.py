"""Compiled databases on disk, so that a start costs milliseconds instead of seconds.

The folder is the user's cache folder (XDG Base Directory 0.8), closed to everyone else. What it holds can be deleted at
any time. A folder that someone else could write to is not used: a compiled database decides what is found.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path


class DiskCache:
    """Keeps entries as files in ``folder``; the default is ``$XDG_CACHE_HOME/tidegate`` or ``~/.cache/tidegate``."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None else _default()
        self._announced = False

    def get(self, key: str) -> bytes | None:
        """Return what was put under ``key`` (hexadecimal), or ``None``."""
        try:
            found = (self._folder / key).read_bytes() if self._private() else None
        except OSError:  # absent or unreadable: it is compiled anew
            found = None
        if found is None and not self._announced:
            self._announced = True
            sys.stderr.write("tidegate: compiling the rules, once for this machine; up to half a minute\n")
        return found

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data`` under ``key``; a folder that cannot be written only makes the next start slower."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._private():
                self._write(key, data)
        except OSError:  # a cache that cannot be written is a slower start, nothing else
            return

    def _write(self, key: str, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(self._folder / key)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    def _private(self) -> bool:
        found = self._folder.lstat()
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )


def _default() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "tidegate"
