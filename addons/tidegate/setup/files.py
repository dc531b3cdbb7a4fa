"""Write what was planned, keep what was there, and put it back byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class SetupError(Exception):
    """Nothing was changed, or not all; the text says what, in one sentence."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file (behind any links) and its bytes before and after; ``None`` where there is none."""

    path: Path
    before: bytes | None = field(repr=False)
    after: bytes = field(repr=False)


def read(path: Path) -> bytes | None:
    """Return a file's bytes, ``None`` if there is no such file. Raises ``SetupError``."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}.") from None


class Kept:
    """What ``tidegate setup`` wrote for one client, and the copies of what was there before, in their own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep copies, then write. A file that somebody changed since the last time is not touched. ``SetupError``."""
        entries = self._read()
        for each in changes:
            if str(each.path) in entries and not self._is_ours(entries[str(each.path)], each.before):
                raise SetupError(
                    f"{each.path}: was changed since tidegate wrote it. Take it back first (--undo --force puts the "
                    "file of before in place), or change it yourself (--print)."
                )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in changes:
            entry = entries.get(str(each.path))
            if entry is None:
                entry = {
                    "existed": each.before is not None,
                    "copy": f"{len(entries)}.before",
                    "made": _missing(each.path),
                }
                if each.before is not None:
                    _write(self.folder / str(entry["copy"]), each.before, 0o600)
            entries[str(each.path)] = {**entry, "after": _digest(each.after)}
            self._write(entries)  # before the file: a crash in between leaves a copy too many, never one too few
            _write(each.path, each.after, _mode(each.path))

    def base(self, path: Path, now: bytes | None) -> bytes | None:
        """Return what new settings are put into: what was there before, if nobody changed the file since."""
        entry = self._read().get(str(path))
        return self._before(entry) if entry is not None and self._is_ours(entry, now) else now

    def _before(self, entry: dict[str, object]) -> bytes | None:
        return read(self.folder / str(entry["copy"])) if entry["existed"] else None

    def _is_ours(self, entry: dict[str, object], now: bytes | None) -> bool:
        """Say whether a file is as we wrote it, or (we were interrupted, or it was taken away) as it was before us."""
        return now is None or _digest(now) == entry["after"] or now == self._before(entry)

    def undo(self, *, force: bool) -> list[Path]:
        """Put back every file as it was; return them. Raises ``SetupError`` before anything is changed."""
        entries = self._read()
        restored: list[tuple[Path, bytes | None]] = []
        for name, entry in entries.items():
            path = Path(name)
            now = read(path)
            before = self._before(entry)
            if entry["existed"] and before is None:
                raise SetupError(f"{self.folder}: the copy of {path} is missing; nothing was changed.")
            if not self._is_ours(entry, now) and not force:
                raise SetupError(
                    f"{path}: was changed since tidegate wrote it; nothing was changed. --force puts the file of "
                    "before in place, without those changes."
                )
            restored.append((path, before))
        for path, before in restored:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                _write(path, before, _mode(path))
        for entry in entries.values():
            _remove(entry["made"])
        self._forget(entries)
        return [path for path, _ in restored]

    def _forget(self, entries: dict[str, dict[str, object]]) -> None:
        for entry in entries.values():
            (self.folder / str(entry["copy"])).unlink(missing_ok=True)
        self._manifest.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _read(self) -> dict[str, dict[str, object]]:
        data = read(self._manifest)
        try:
            found: dict[str, dict[str, object]] = {} if data is None else json.loads(data)["files"]
            if any({"existed", "copy", "made", "after"} - set(each) for each in found.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SetupError(f"{self._manifest}: is not what tidegate wrote; nothing was changed.") from None
        return found

    def _write(self, entries: dict[str, dict[str, object]]) -> None:
        _write(self._manifest, json.dumps({"version": 1, "files": entries}, indent=1).encode(), 0o600)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mode(path: Path) -> int:
    """Return the mode a file has; a new one is for its owner alone."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return 0o600


def _missing(path: Path) -> list[str]:
    """Return the folders that have to be made for a file, innermost first."""
    return [str(each) for each in path.parents if not each.exists()]


def _remove(made: object) -> None:
    """Remove the folders that were made for a file, innermost first, if nothing else is in them."""
    for each in made if isinstance(made, list) else ():
        with contextlib.suppress(OSError):
            Path(each).rmdir()


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file as a whole: whoever reads sees the old one or the new one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SetupError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise SetupError(f"{path}: cannot be written: {error.strerror}.") from None
