"""The recording: one SQLite file, one connection, one writer thread; a commit is on the disk when it returns.

``intent`` resolves when its row is durable; ``seal`` completes the row later and nobody waits for it. What arrives
while a commit runs goes into the next one (group commit). After an error that may have lost pages the connection is
never used again: sqlite's next commit would succeed although the kernel dropped what the last one wrote.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate import __version__
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Kept, Ledger, Settings
from tidegate.evidence.records import ExchangeRecord, RecordingError

log = logging.getLogger("tidegate")

SAFE_SQLITE = (3, 51, 3)
"""Older versions can corrupt a WAL database when two connections write at once (the WAL-reset bug)."""

BATCH = 256
"""Rows of one transaction: beyond it a row gets no cheaper, and the first in line waits longer."""

LOOK = 2.0
"""Seconds after which the writer looks, with nothing to do, whether a reader has left word for the log."""

LINGER = 0.05
"""Seconds a seal waits for company. Nobody waits for it; 50 records in a commit cost three quarters of 20, each."""

CAPACITY_ITEMS = 20_000
CAPACITY_BYTES = 64 * 1024 * 1024
"""What may wait for the writer: two seconds at full speed. Beyond it intents are refused, seals lose their bodies."""

PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")
"""Errors after which sqlite has rolled back cleanly and the same connection may be used again."""


NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished exchange, on its way to the writer. ``weight`` is an estimate in bytes."""

    record: ExchangeRecord
    state: dict[str, Any] | None
    weight: int
    chunks: Mapping[str, Sequence[tuple[int, int]]]
    originals: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Intent:
    """An exchange about to be sent, and who waits for its row."""

    record: ExchangeRecord
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened outside of any exchange, and who waits for its row."""

    kind: str
    detail: str
    done: asyncio.Future[None]


class Recorder:
    """Writes exchanges into one SQLite file. Methods are called from one thread, the event loop's.

    ``encode`` makes bytes of a flow state (``replay.flows.encode``); it runs in the writer thread. ``failed`` is why
    nothing can be written any more, or empty.
    """

    def __init__(
        self,
        path: Path,
        encode: Callable[[dict[str, Any]], bytes],
        *,
        capacity: tuple[int, int] = (CAPACITY_ITEMS, CAPACITY_BYTES),
        settings: Settings = Settings(),  # noqa: B008 - frozen
    ) -> None:
        self.path = path
        self.files = Files(path)
        self.settings = settings
        self.encode = encode
        self.failed = ""
        self.closed: Callable[[], None] = lambda: None
        self._items, self._bytes = capacity
        self._inbox: queue.SimpleQueue[Intent | Note | None] = queue.SimpleQueue()
        self._sealed: collections.deque[Sealed] = collections.deque()
        self._weighed_in = self._weighed_out = 0
        self._lost = [0, 0]  # refused in the loop's thread, lost in the writer's: each written by one thread only
        self._bare = [0, 0]
        self._reported = (0, 0)
        self._awake = False
        self._due = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._told: collections.deque[tuple[str, str]] = collections.deque()
        self._lock: int | None = None
        self._owner = False
        self._ledger: Ledger

    def start(self) -> None:
        """Open or create the file (0600, in a directory made 0700) and start the writer. Raises ``RecordingError``."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock, self._owner = _lock(self.path)
            self._ledger = Ledger(self.files, self.settings, self.event, owner=self._owner)
            self._ledger.open()
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise RecordingError(f"{self.path}: cannot be opened as a recording: {error}") from error
        except RecordingError:
            self._unlock()
            raise
        self._thread = threading.Thread(target=self._run, name="tidegate recorder", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many sealed records were lost. Each loss is also a row of table ``event``."""
        return sum(self._lost)

    @property
    def stripped(self) -> int:
        """How many sealed records lost their flow state. Each loss is also a row of table ``event``."""
        return sum(self._bare)

    @property
    def queued(self) -> int:
        """How many bytes of sealed records wait to be written, about."""
        return self._weighed_in - self._weighed_out

    @property
    def writing(self) -> bool:
        """Whether records reach the disk, as far as anybody knows."""
        return not self.failed and not self._closing and self._thread is not None and self._thread.is_alive()

    def intent(self, record: ExchangeRecord) -> asyncio.Future[None]:
        """Record an exchange before it is sent; await the result, which comes when the row is on the disk.

        Raises ``RecordingError`` at once when too much is waiting or the recording has failed, and through the future
        when the commit fails.
        """
        if self.failed or self._closing or self._thread is None:
            raise RecordingError(f"{self.path}: {self.failed or 'the recording is closed'}")
        if self._inbox.qsize() + len(self._sealed) >= self._items:
            raise RecordingError(f"{self.path}: too many records are waiting to be written")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put(Intent(record, done))
        return done

    def note(self, kind: str, detail: str) -> asyncio.Future[None]:
        """Record an event that belongs to no exchange, such as an approval; awaited and raises as ``intent``."""
        if self.failed or self._closing or self._thread is None:
            raise RecordingError(f"{self.path}: {self.failed or 'the recording is closed'}")
        if self._inbox.qsize() >= self._items:
            raise RecordingError(f"{self.path}: too many records are waiting to be written")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put(Note(kind, detail, done))
        return done

    def seal(
        self,
        record: ExchangeRecord,
        state: dict[str, Any] | None,
        chunks: Mapping[str, Sequence[tuple[int, int]]] = NOTHING,
        originals: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """Record how an exchange ended, with the flow state as the policy keeps it. Never raises, never waits.

        ``chunks`` say by direction how a body was cut: microseconds since the start, and bytes. ``originals`` are
        bodies before masking; they are sealed to the auditor, or left out where there is none.

        When too many bytes are waiting the bodies are left out; when too many records are, the record is dropped.
        Both count.
        """
        waiting = len(self._sealed)
        if self.failed or self._closing or self._thread is None or waiting >= 2 * self._items:
            self._lost[0] += 1  # twice the room of intents: what was acknowledged as sent may still be completed
            return
        weight = record.request_bytes + record.response_bytes + 1024 + sum(map(len, originals.values()))
        if (state is not None or originals) and self._weighed_in - self._weighed_out + weight > self._bytes:
            state, chunks, originals, weight = None, NOTHING, NOTHING, 1024
            self._bare[0] += 1
        self._weighed_in += weight
        self._sealed.append(Sealed(record, state, weight, chunks, originals))
        if not self._awake:
            self._awake = True
            self._due = time.monotonic() + LINGER
            self._inbox.put(None)

    def drain(self) -> None:
        """Wait while much is waiting to be written: for who records as fast as a file can be read."""
        while len(self._sealed) > BATCH and not self.failed:
            time.sleep(LINGER / 10)

    def lose(self) -> None:
        """Count a record that could not even be made; the loss is a row of table ``event`` with the next record."""
        self._lost[0] += 1

    def event(self, kind: str, detail: str = "") -> None:
        """Put something that happened into the log: a row of table ``event`` and a leaf. Never raises, never waits.

        ``kind`` is one of docs/recording.md's. ``detail`` names things of the policy, never a text that was inspected.
        May be called from any thread.
        """
        self._told.append((kind, detail))
        self._inbox.put(None)

    def close(self) -> None:
        """Write what is waiting, close the file, and end the writer. May be called again."""
        if self._closing:
            return
        self._closing = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        self._unlock()
        self.closed()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ── in the writer thread ─────────────────────────────────────────────────

    def _run(self) -> None:
        self._write([], [], (("start", self._start()),))
        while not self._closing:
            self._turn(self._wait())
        while not self._inbox.empty() or (self._sealed and not self.failed):
            before = len(self._sealed)
            self._turn([])
            if self._sealed and len(self._sealed) >= before and self._inbox.empty():
                break  # the disk does not take them
        self._lost[1] += len(self._sealed)
        self._write([], [], (*self._gaps(), *self._news(), ("stop", "")))
        with contextlib.suppress(sqlite3.Error):
            self._ledger.close()

    def _start(self) -> str:
        exchanges, events = self._ledger.earlier
        earlier = f", {exchanges} exchanges and {events} events of before the log" if exchanges or events else ""
        return f"tidegate {__version__}, sqlite {sqlite3.sqlite_version}{earlier}"

    def _news(self) -> tuple[tuple[str, str], ...]:
        """Return what happened since the last commit: here, and among those who read the recording."""
        told = [self._told.popleft() for _ in range(len(self._told))]
        with contextlib.suppress(sqlite3.Error):  # a lock on the file of keys: next time
            told += self._ledger.told()
        return tuple(told)

    def _wait(self) -> list[Intent | Note]:
        """Wait for an intent, or until the seals that are there have waited long enough, or a checkpoint is due."""
        while not self._closing:
            left = self._due - time.monotonic() if self._sealed else LOOK
            left = min(left, self._noting())
            if left <= 0:
                break
            try:
                first = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            if first is not None:
                return [first]
            if self._told:
                break
        return []

    def _noting(self) -> float:
        """Return the seconds until a checkpoint is due."""
        wait = self._ledger.log.wait()
        return LOOK if wait is None or self.failed else wait

    def _turn(self, waiting: list[Intent | Note]) -> None:
        """Commit the intents that are waiting, and with them the seals that are due: at most ``BATCH`` of each kind."""
        with contextlib.suppress(queue.Empty):
            while len(waiting) < BATCH:
                following = self._inbox.get_nowait()
                if following is not None:
                    waiting.append(following)
        intents = [each for each in waiting if isinstance(each, Intent)]
        notes = [each for each in waiting if isinstance(each, Note)]
        sealed: list[Sealed] = []
        if not intents or len(self._sealed) >= BATCH or time.monotonic() >= self._due:
            self._awake = False  # before the deque is read: a seal that comes later wakes us again
            sealed = [self._sealed.popleft() for _ in range(min(len(self._sealed), BATCH))]
        news = self._news()
        if waiting or sealed or news or self._noting() <= 0:
            before = self._reported
            if not self._write(intents, sealed, (*self._gaps(), *news), notes):
                self._told.extendleft(reversed(news))
                self._reported = before  # the row that tells of losses was lost with the others

    def _gaps(self) -> tuple[tuple[str, str], ...]:
        """Return the event that tells of records lost since the last one."""
        now = (self.dropped, self.stripped)
        if now == self._reported:
            return ()
        lost, bare = now[0] - self._reported[0], now[1] - self._reported[1]
        self._reported = now
        return (("gap", f"{lost} dropped, {bare} without bodies"),)

    def _write(
        self,
        intents: Sequence[Intent],
        sealed: Sequence[Sealed],
        events: Sequence[tuple[str, str]] = (),
        notes: Sequence[Note] = (),
    ) -> bool:
        """Commit a batch and tell who waits; say whether it is kept. The first fault that does not pass is final."""
        fault: RecordingError | None = None
        try:
            if self.failed:
                raise RecordingError(f"{self.path}: {self.failed}")
            states = [self._state(each) for each in sealed]
            said = [*events, *((each.kind, each.detail) for each in notes)]
            self._commit(intents, sealed, states, said)
        except RecordingError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it was
            fault = self._fault(error)
        if fault is not None and not self.failed:
            self._sealed.extendleft(reversed(sealed))  # a passing fault: these are tried again
        else:
            self._lost[1] += len(sealed) if fault is not None else 0
            self._weighed_out += sum(each.weight for each in sealed)
        _settle([*intents, *notes], fault)
        if fault is None:
            self._ledger.log.publish()
            self._tend()
        if fault is not None and not self.failed and not self._closing:
            time.sleep(LINGER)
            self._inbox.put(None)
        for kind, detail in events if fault is None else ():
            if kind == "gap":
                log.warning("recording: records were lost: %s", detail)
        return fault is None

    def _tend(self) -> None:
        """Let the ledger close and delete segments; a fault in that costs no record."""
        try:
            self._ledger.tend()
        except (sqlite3.Error, OSError, RecordingError) as error:
            self._fault(error)

    def _commit(
        self,
        intents: Sequence[Intent],
        sealed: Sequence[Sealed],
        states: Sequence[Kept | None],
        events: Sequence[tuple[str, str]],
    ) -> None:
        done = [(each.record, kept) for each, kept in zip(sealed, states, strict=True)]
        marked = any(kind in ("start", "stop") for kind, _ in events)
        self._ledger.commit([each.record for each in intents], done, events, note=marked)

    def _state(self, sealed: Sealed) -> Kept | None:
        """Encode a flow state; one that cannot be encoded is left out and counted, the record is kept."""
        if sealed.state is None and not sealed.originals:
            return None
        try:
            state = None if sealed.state is None else self.encode(sealed.state)
            marks = {each: json.dumps(cut, separators=(",", ":")) for each, cut in sealed.chunks.items()}
            return Kept(sealed.record.id, state, marks, sealed.originals)
        except Exception as error:  # noqa: BLE001 - the encoder is the caller's
            log.warning("recording: a flow state could not be encoded: %s", type(error).__name__)
            self._bare[1] += 1
            return None

    def _fault(self, error: Exception) -> RecordingError:
        """Roll back, and decide whether the connection may be used again."""
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        passing = name.startswith(PASSING)
        try:
            if self._ledger.db.in_transaction:
                self._ledger.db.execute("ROLLBACK")
        except sqlite3.Error:
            passing = False
        if name.startswith("SQLITE_FULL") and self._ledger.relieve():
            self._told.append(("full", "the disk is full; the ballast was given back"))
        if not passing:
            self.failed = f"recording has stopped: {name}"
        log.error("recording %s: %s", "is waiting" if passing else "has stopped", name)
        return RecordingError(f"{self.path}: not recorded: {name}")


def _settle(intents: Sequence[Intent | Note], fault: RecordingError | None) -> None:
    """Tell who waits, each in its own event loop; a loop that is gone waits for nothing."""
    loops: dict[asyncio.AbstractEventLoop, list[Intent | Note]] = {}
    for each in intents:
        loops.setdefault(each.done.get_loop(), []).append(each)
    for loop, those in loops.items():
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, those, fault)


def _resolve(intents: Sequence[Intent | Note], fault: RecordingError | None) -> None:
    for each in intents:
        if each.done.done():
            continue  # cancelled: the exchange is over
        if fault is None:
            each.done.set_result(None)
        else:
            each.done.set_exception(RecordingError(str(fault)))


def _lock(path: Path) -> tuple[int, bool]:
    """Take the file's lock, or go without it where several writers are safe; returns a file descriptor, and whether.

    Raises ``RecordingError`` when another process records into the file and this SQLite has the WAL-reset bug.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    old = tuple(sqlite3.sqlite_version_info) < SAFE_SQLITE
    held = True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = False
        if old:
            os.close(lock)
            raise RecordingError(
                f"{path}: found another process recording into it with SQLite {sqlite3.sqlite_version}; "
                "accepted: a file for each process, or SQLite 3.51.3 or newer"
            ) from None
    if old:
        log.warning("recording: SQLite %s is older than 3.51.3, so only this process may write", sqlite3.sqlite_version)
    return lock, held
