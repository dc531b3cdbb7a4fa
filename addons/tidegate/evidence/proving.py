"""Proofs out of a recording: its tree as it is now, over every segment and over the hashes of those that are gone."""

from __future__ import annotations

import base64
import contextlib
import getpass
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tidegate.evidence.files import Files
from tidegate.evidence.log import load_tree
from tidegate.evidence.notes import NoteError, parse, parse_many, tlog_proof
from tidegate.evidence.opening import Tiles
from tidegate.evidence.queries import find, reading
from tidegate.evidence.records import RecordingError
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.tree import ProofError, Proofs


class Prover:
    """The log of a recording, opened for reading: leaves, notes, and proofs over them."""

    def __init__(self, segments: list[Any], tiles: Tiles) -> None:
        self._segments, self._tiles = segments, tiles
        self.notes: dict[int, str] = {}
        for db in segments:
            self.notes.update(db.execute("SELECT size, note FROM checkpoint"))
        try:
            self.proofs = Proofs(load_tree(segments[-1], self._fetch), self._fetch)
        except ProofError as error:
            raise RecordingError(f"the log cannot be read: {error}; `tidegate verify` says more") from None

    def _fetch(self, level: int, number: int) -> bytes | None:
        found = self._tiles.fetch(level, number)
        for db in self._segments:
            if found is not None:
                break
            row = db.execute("SELECT hashes FROM tile WHERE level = ? AND number = ?", [level, number]).fetchone()
            found = None if row is None else bytes(row[0])
        return found

    def leaves(self) -> Iterator[tuple[int, str]]:
        """Return every leaf that is there, in order: its index and its payload."""
        for db in self._segments:
            yield from db.execute("SELECT seq, payload FROM leaf ORDER BY seq")

    def note_over(self, index: int) -> str | None:
        """Return the newest checkpoint, if it is over leaf ``index``."""
        newest = max(self.notes, default=0)
        return self.notes[newest] if newest > index else None

    def inclusion(self, index: int, note: str) -> list[bytes]:
        """Prove that a leaf is under the root of a checkpoint. Raises ``ProofError``."""
        return self.proofs.inclusion(index, parse(note)[0].size)

    def consistency(self, older: str, newer: str) -> list[bytes]:
        """Prove that what one checkpoint signs is the beginning of what another does. Raises ``ProofError``."""
        return self.proofs.consistency(parse(older)[0].size, parse(newer)[0].size)


@contextmanager
def proving(path: Path) -> Iterator[Prover]:
    """Open the log of a recording for reading. Raises ``RecordingError``, also for a recording without a log."""
    files = Files(path)
    with ExitStack() as stack:
        segments = [stack.enter_context(reading(each)).conn for _, each in files.segments()]
        if not segments:
            raise RecordingError(f"{path}: found no file; accepted: a recording made by tidegate")
        for db in segments:
            if db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'leaf'").fetchone()[0] == 0:
                raise RecordingError(f"{path}: found a recording of before the log; accepted: one with a log")
        tiles = Tiles(files.tiles)
        stack.callback(tiles.close)
        yield Prover(segments, tiles)


def prove(path: Path, prefix: str) -> str:
    """Return a tlog-proof of the last event of an exchange, under the newest checkpoint. Raises ``RecordingError``."""
    exchange = find(path, prefix)
    with proving(path) as prover:
        index = payload = None
        for number, said in prover.leaves():
            if exchange in said and json.loads(said).get("exchange", {}).get("id") == exchange:
                index, payload = number, said
        note = None if index is None else prover.note_over(index)
        if index is None or payload is None or note is None:
            raise RecordingError(f"{path}: found no checkpoint over an event of {exchange} yet; try again later")
        text = tlog_proof(index, prover.inclusion(index, note), note)
    extra = base64.b64encode(payload.encode()).decode()
    return text.replace("@v1\n", f"@v1\nextra {extra}\n", 1)


def prove_growth(path: Path, older: str) -> str:
    """Return a proof that an older checkpoint is the beginning of the newest one. Raises ``RecordingError``."""
    with proving(path) as prover:
        if not prover.notes:
            raise RecordingError(f"{path}: found no checkpoint yet; try again later")
        newest = prover.notes[max(prover.notes)]
        try:
            hashes = prover.consistency(parse_many(older)[0] if older.strip() else "", newest)
        except (ProofError, NoteError) as error:
            raise RecordingError(f"{path}: {error}") from None
    lines = "".join(f"{base64.b64encode(each).decode()}\n" for each in hashes)
    return f"consistency proof, older to newest checkpoint\n{lines}\n{newest}"


def leave_word(path: Path, kind: str, detail: str) -> bool:
    """Tell the log of a recording that it was read or exported, and by whom; say whether that was possible.

    The word lies beside the recording until the process that records takes it up. A copy without its file of keys, or
    one that may not be written, has no log to tell.
    """
    try:
        subjects = Subjects(Files(path).keys, create=False)
    except RecordingError:
        return False
    try:
        with contextlib.suppress(OSError, KeyError):
            detail = f"{detail} by {getpass.getuser()}"
        subjects.tell(kind, detail)
    except Exception as error:  # noqa: BLE001 - a database that may not be written, or is locked for long
        raise_unless_read_only(error)
        return False
    finally:
        subjects.close()
    return True


def raise_unless_read_only(error: Exception) -> None:
    """Let pass what says that a database may not be written; raise anything else as ``RecordingError``."""
    name = getattr(error, "sqlite_errorname", "")
    if not name.startswith("SQLITE_READONLY"):
        raise RecordingError(f"the reading could not be told to the log: {name or type(error).__name__}") from error
