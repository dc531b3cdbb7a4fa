"""Which files a policy was made of, and whether any of them has changed. A shell: it looks at the file system."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tidegate.policy.schema import DIALECTS, PACKS
from tidegate.policy.source import Node, parse

FILES = 2000
"""Files that are watched; a glob that names more is a mistake, and looking at them would take the time of others."""

Stamp = frozenset[tuple[str, int, int, int]]
"""Of each file that is there: its path, when it was written, its size and its number on the disk."""

_FILE_REFERENCE = re.compile(r"\$\{file:([^}]+)\}")
_OWN = ("recording.path", "state.path")
_TOKENS = re.compile(r"identity\[\d+\]\.static\.tokens")
"""What is written by the gate itself, or read anew without a reload."""


class Watched:
    """The files of one policy. ``stamp`` changes when one of them does, or one appears or goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: set[Path] = {path}
        self._globs: tuple[str, ...] = ()
        self.renew()

    def renew(self) -> bool:
        """Find out anew which files there are, and say whether others are; of a broken policy, those it had before."""
        before = self._names, self._globs
        try:
            root, _ = parse(self._path.read_text("utf-8"), str(self._path))
        except (OSError, ValueError):
            return False
        if root is None or not isinstance(root.value, Mapping):
            return False
        folder = self._path.parent
        self._names = {self._path, *_named(root, folder)}
        self._globs = tuple(
            str(each)
            for key, default in (("packs", PACKS), ("dialects", DIALECTS))
            for each in (_texts(root.value[key]) if key in root.value else default)
        )
        return before != (self._names, self._globs)

    def stamp(self) -> Stamp:
        """Look at every file."""
        names = set(self._names)
        for glob in self._globs:
            try:
                found = sorted(self._path.parent.glob(glob))[:FILES]
            except (OSError, ValueError, NotImplementedError):
                continue
            names.update(found)
            for folder in {each.parent for each in found}:  # a pack may name lists beside it
                names.update(sorted(folder.glob("*.txt"))[:FILES])
        return frozenset(each for each in map(_look, sorted(names)[:FILES]) if each is not None)


def _look(path: Path) -> tuple[str, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino


def _named(node: Node, folder: Path) -> Iterator[Path]:
    """Yield each file that a value of the policy names: as a path, as a folder of files, or by a reference."""
    if isinstance(node.value, Mapping):
        for each in node.value.values():
            yield from _named(each, folder)
    elif isinstance(node.value, tuple):
        for each in node.value:
            yield from _named(each, folder)
    elif isinstance(node.value, str) and node.key not in _OWN and not _TOKENS.fullmatch(node.key):
        yield from (Path(each) for each in _FILE_REFERENCE.findall(node.value))
        if "\0" in node.value or len(node.value) > 1024 or "://" in node.value:
            return
        path = folder / node.value
        try:
            if path.is_file():
                yield from (path, path.with_name(path.name + ".key"))
            elif node.key.endswith(".folder") and path.is_dir():
                yield from (each for each in path.iterdir() if each.is_file())
        except OSError:
            return


def _texts(node: Node) -> Iterator[str]:
    for each in node.value if isinstance(node.value, tuple) else ():
        if isinstance(each.value, str):
            yield each.value
