"""The log of one writer: its tree, its key, its checkpoints. Runs in the recorder's writer thread.

A leaf is appended in the transaction of the rows it speaks of; a note leaves the process only after the commit. A log
never signs a checkpoint that contradicts an earlier one: at start the file must hold at least what the last note says.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.evidence.files import Files, write_whole
from tidegate.evidence.notes import NoteError, Signer, load_signer, make_signer
from tidegate.evidence.records import RecordingError
from tidegate.evidence.tree import HEIGHT, TILE, ProofError, Proofs, Tree, leaf_hash, root_of, split
from tidegate.policy.keeping import CHECKPOINT_EVERY, CHECKPOINT_LEAVES

log = logging.getLogger("tidegate")


@dataclass(frozen=True, slots=True)
class Cadence:
    """When a checkpoint is due, and where its copies go."""

    leaves: int = CHECKPOINT_LEAVES
    every: float = CHECKPOINT_EVERY
    sink: Callable[[str], None] | None = None


def open_key(files: Files) -> Signer:
    """Return the log's key, made at the first start (0600). Raises ``RecordingError``."""
    try:
        handle = os.open(files.key, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if files.note.exists():
            raise RecordingError(
                f"{files.key}: found no key, but a checkpoint that one has signed; accepted: the key of this recording"
            ) from None
        signer = make_signer(_origin(files.path))
        write_whole(files.key, signer.dump() + "\n")
        return signer
    with os.fdopen(handle, encoding="ascii") as file:
        if os.fstat(handle).st_mode & 0o077:
            raise RecordingError(f"{files.key}: found a key that others may read; accepted: mode 0600")
        try:
            return load_signer(file.read())
        except (NoteError, UnicodeDecodeError) as error:
            raise RecordingError(f"{files.key}: cannot be read as the key of a log: {error}") from None


def _origin(path: Path) -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
    return f"{host}/log/{re.sub(r'[^A-Za-z0-9.-]', '-', path.stem)}-{secrets.token_hex(4)}"


def load_tree(db: Any, fetch: Callable[[int, int], bytes | None]) -> Tree:
    """Return the tree of the open segment, as its rows say. Raises ``ProofError``.

    ``fetch`` gives tiles of earlier segments. Only leaves after the last full tile are hashed.
    """
    first, edge = db.execute("SELECT first, edge FROM segment").fetchone()
    base = Tree.load(first, edge)
    last = db.execute("SELECT max(seq) FROM leaf").fetchone()[0]
    size = first if last is None else last + 1
    start = size - size % TILE
    below = base.levels[0] if start == first - len(base.levels[0]) else []
    rows = db.execute("SELECT payload FROM leaf WHERE seq >= ? ORDER BY seq", [max(start, first)])
    levels = [[*below, *(leaf_hash(payload.encode()) for (payload,) in rows)]]
    level = 1
    while size >> HEIGHT * level:
        count, before = size >> HEIGHT * level, first >> HEIGHT * level
        start = count - count % TILE
        known = base.levels[level] if level < len(base.levels) else []
        row = list(known) if before - len(known) == start else []
        for number in range(start + len(row), count):
            tile = _tile(db, level - 1, number) or fetch(level - 1, number)
            if tile is None:
                raise ProofError(f"found no tile {number} of level {level - 1}")
            row.append(root_of(split(tile)))
        levels.append(row)
        level += 1
    return Tree(size, levels)


def _tile(db: Any, level: int, number: int) -> bytes | None:
    row = db.execute("SELECT hashes FROM tile WHERE level = ? AND number = ?", [level, number]).fetchone()
    return None if row is None else bytes(row[0])


@dataclass(frozen=True, slots=True)
class Staged:
    """The rows of tables ``leaf``, ``tile`` and ``checkpoint`` that go into one transaction."""

    leaves: list[tuple[object, ...]]
    tiles: list[tuple[object, ...]]
    notes: list[tuple[object, ...]]


class Log:
    """The tree of a writer while it runs. ``stage`` and ``keep`` bracket a transaction."""

    def __init__(self, files: Files, cadence: Cadence) -> None:
        self.files = files
        self.cadence = cadence
        self.signer = open_key(files)
        self.tree = Tree()
        self.noted = 0
        self._due: float | None = None
        self._note = ""
        self._staged: tuple[Tree, str] = (self.tree, "")

    def open(self, db: Any, fetch: Callable[[int, int], bytes | None]) -> None:
        """Take up the log where its file ends, if that is not before the last checkpoint. Raises ``RecordingError``."""
        try:
            self.tree = load_tree(db, fetch)
            self._agree(db, fetch)
        except (ProofError, NoteError, OSError, UnicodeDecodeError) as error:
            raise RecordingError(f"{self.files.path}: {error}") from None
        self.noted = db.execute("SELECT max(size) FROM checkpoint").fetchone()[0] or 0

    def _agree(self, db: Any, fetch: Callable[[int, int], bytes | None]) -> None:
        if not self.files.note.exists():
            return
        note = self.signer.verifier.open(self.files.note.read_text(encoding="utf-8"))
        if note.size > self.tree.size:
            raise RecordingError(
                f"{self.files.path}: found a log of {self.tree.size} events, but {self.files.note.name} was signed "
                f"over {note.size}; accepted: the recording that goes with it (was an older copy restored?)"
            )
        proofs = Proofs(self.tree, lambda level, number: _tile(db, level, number) or fetch(level, number))
        if proofs.root(note.size) != note.root:
            raise RecordingError(
                f"{self.files.path}: found events that differ from those of {self.files.note.name}; "
                "accepted: the recording that goes with it"
            )

    def stage(self, payloads: Sequence[str], *, note: bool = False) -> Staged:
        """Return the rows for further leaves; a checkpoint is among them if one is due, or asked for with ``note``."""
        tree, first = self.tree.copy(), self.tree.size
        for each in payloads:
            tree.append(leaf_hash(each.encode()))
        signed = ""
        due = note or tree.size - self.noted >= self.cadence.leaves or self.wait() == 0
        if tree.size > self.noted and due:
            signed = self.signer.sign(tree.size, tree.root())
        self._staged = tree, signed
        return Staged(
            [(first + at, each) for at, each in enumerate(payloads)],
            list(tree.full),
            [(tree.size, time.time_ns() // 1000, signed)] if signed else [],
        )

    def keep(self) -> None:
        """Take over what was staged, because it is on the disk."""
        self.tree, note = self._staged
        self.tree.full.clear()
        if note:
            self.noted, self._note, self._due = self.tree.size, note, None
        elif self._due is None:
            self._due = time.monotonic() + self.cadence.every

    def publish(self) -> None:
        """Let a checkpoint that is on the disk out of it: into its file, and to the sink."""
        note, self._note = self._note, ""
        if not note:
            return
        try:
            write_whole(self.files.note, note)
        except OSError as error:
            log.warning("recording: the checkpoint could not be kept: %s", type(error).__name__)
        if self.cadence.sink is not None:
            self.cadence.sink(note)

    def wait(self) -> float | None:
        """Return after how many seconds a checkpoint is due; ``None`` if every leaf is under one."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())
