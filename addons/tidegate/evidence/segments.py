"""Closing, hashing and deleting segments; room for a full disk; and the file systems a recording may lie on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.evidence.files import Files, sync_folder
from tidegate.evidence.log import load_tree
from tidegate.evidence.opening import Tiles
from tidegate.evidence.records import RecordingError
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.tree import Tree

log = logging.getLogger("tidegate")

REMOTE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
        *("gfs2", "ocfs2", "beegfs", "gpfs", "orangefs", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs"),
        *("fuse.gcsfuse", "fuse.rclone", "fuse.ceph", "fuse.davfs2"),
    }
)
"""File systems of other machines: WAL needs shared memory, and their locks and syncs are not what they say."""

PATIENCE = 30.0
"""Seconds that closing a segment waits for who is still reading it; then it is tried again at the next start."""


def refuse_remote(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise ``RecordingError`` if a recording would lie on a network file system, or on an overlay over one."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return  # not Linux: there is no list to ask
    table = [found for each in lines if (found := _mount(each)) is not None]
    kind = _kind(path.resolve().parent, table)
    if kind is not None:
        raise RecordingError(
            f"{path}: found a file system of the kind {kind}; accepted: a local one, since others keep "
            "neither locks nor what was synced"
        )


def _mount(line: str) -> tuple[Path, str, str] | None:
    left, dash, right = line.partition(" - ")
    fields, kinds = left.split(" "), right.split(" ")
    if not dash or len(fields) < 5 or len(kinds) < 3:
        return None
    point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
    return Path(point), kinds[0], kinds[2]


def _kind(folder: Path, table: list[tuple[Path, str, str]], deep: int = 4) -> str | None:
    over = [each for each in table if each[0] == folder or each[0] in folder.parents]
    if not over:
        return None
    longest = max(len(point.parts) for point, _, _ in over)
    _, kind, options = [each for each in over if len(each[0].parts) == longest][-1]
    if kind in REMOTE:
        return kind
    if kind == "overlay" and deep:
        for each in options.split(","):
            name, _, value = each.partition("=")
            if name == "upperdir" and (below := _kind(Path(value), table, deep - 1)) is not None:
                return f"{kind} over {below}"
    return None


class Ballast:
    """A file that only takes room: given back when the disk is full, since a checkpoint and a deletion need some."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def fill(self) -> None:
        """Take the room, if it is not taken and there is enough left beside it."""
        if not self.size or self.path.exists():
            return
        handle = -1
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(handle, 0, self.size)
            os.fsync(handle)
        except OSError:
            self.free()
            log.warning("recording: the disk has no room for the ballast of %d bytes", self.size)
        finally:
            if handle >= 0:
                os.close(handle)

    def free(self) -> bool:
        """Give the room back; say whether there was any."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def roomy(self) -> bool:
        """Say whether the disk has room for it and as much again."""
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize > 2 * self.size


class Closer:
    """Finishes closed segments in threads of their own: nobody should wait for the hash of a gigabyte."""

    def __init__(self, files: Files, tell: Callable[[str, str], None]) -> None:
        self.files, self.tell = files, tell
        self._threads: list[threading.Thread] = []

    def start(self, number: int) -> None:
        """Finish a segment that takes no more rows."""
        thread = threading.Thread(target=self._run, args=(number,), name="tidegate segment", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for what has been started."""
        for each in self._threads:
            each.join()

    def _run(self, number: int) -> None:
        try:
            self.tell("segment", finish(self.files, number))
        except (sqlite3.Error, OSError, RecordingError) as error:
            log.warning("recording: segment %d could not be closed yet: %s", number, type(error).__name__)


def finish(files: Files, number: int) -> str:
    """Make one plain file of a segment, hash it, keep its tiles, and take away the right to write it (0440).

    Returns what the log is told: number, first leaf, size of the log at its end, SHA-256. May be done again.
    """
    path = files.segment(number)
    tiles = Tiles(files.tiles, create=True)
    try:
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute(f"PRAGMA busy_timeout={int(PATIENCE * 1000)}")
            tree = load_tree(db, tiles.fetch)
            (first,) = db.execute("SELECT first FROM segment").fetchone()
            rows = db.execute("SELECT level, number, hashes FROM tile").fetchall()
            if db.execute("PRAGMA journal_mode=DELETE").fetchone()[0] != "delete":  # one file, without -wal and -shm
                raise RecordingError(f"{path}: is still being read")
        finally:
            db.close()
        path.chmod(0o440)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tiles.take(rows, (number, first, tree.size, tree.dump(), digest, time.time_ns() // 1000))
    finally:
        tiles.close()
    return announcement(number, first, tree.size, digest)


def announcement(number: int, first: int, size: int, digest: str) -> str:
    """Return what the log is told of a closed segment."""
    return json.dumps({"first": first, "number": number, "sha256": digest, "size": size}, separators=(",", ":"))


def edge_of(files: Files, tiles: Tiles, number: int, db: Any) -> Tree:
    """Return the tree at the end of a closed segment, from its file or, where that is gone, from the tiles."""
    if db is not None:
        return load_tree(db, tiles.fetch)
    for row in tiles.rows():
        if row["number"] == number:
            return Tree.load(row["size"], row["edge"])
    raise RecordingError(f"{files.segment(number)}: found no file and no tiles; accepted: a recording with its files")


def expired(tiles: Tiles, subjects: Subjects, retain: float | None, now_us: int) -> list[dict[str, Any]]:
    """Return the closed segments that may go. While there is any legal hold, none may."""
    if retain is None or subjects.holds():
        return []
    return [
        each for each in tiles.rows() if each["deleted_us"] is None and each["closed_us"] < now_us - retain * 1_000_000
    ]


def delete(files: Files, tiles: Tiles, row: dict[str, Any]) -> None:
    """Delete the file of a closed segment, once the log tells of it."""
    with contextlib.suppress(FileNotFoundError):
        files.segment(row["number"]).unlink()
    sync_folder(files.path.parent)
    tiles.deleted(row["number"], time.time_ns() // 1000)
