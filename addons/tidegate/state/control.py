"""The control store: one SQLite file for what must survive a restart and is no evidence. Two processes may share it.

Everything that decides about later requests belongs here: today who made what (``ownership``). A part brings its tables
as a migration and its work as functions of a connection; it never opens the file itself. ``write`` resolves when the
commit is on the disk: one thread does all writing of a process, and what arrives while it commits goes into the next
commit. ``read`` has a thread and a connection of its own, which never waits for a writer. Neither blocks the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # the one SQLite module of the process

from tidegate.state.tables import migrations

log = logging.getLogger("tidegate")

APPLICATION_ID = 0x54694374
"""``TiCt``: tells a control store from any other database."""

PRAGMAS = (
    "journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "secure_delete=ON",
    "cell_size_check=ON", "trusted_schema=OFF", "temp_store=MEMORY", "journal_size_limit=16777216",
)  # fmt: skip
"""As the recording's (``evidence.store``): with less than FULL an acknowledged row can vanish on power loss."""

BATCH = 256
"""Pieces of work in one commit: beyond it none gets cheaper, and the first in line waits longer."""

CAPACITY = 20_000
"""Pieces of work that may wait: seconds at full speed. Beyond it they are refused."""

PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")
"""Errors after which SQLite has rolled back cleanly and the same connection may be used again."""

TIDY_SECONDS = 3600.0
"""How often what is too old is deleted."""

type Work = Callable[[Any], Any]
"""Something to do with a connection, inside a transaction that is not its own."""


class StateError(Exception):
    """The control store cannot be used, or did not keep something. The text names the file and the cause."""


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    done: Future[Any]
    durable: bool = True


class Control:
    """The open store. ``tidy`` is work that is done now and then, such as to delete what is too old."""

    def __init__(self, path: Path, tidy: Sequence[Work] = ()) -> None:
        self.path = path
        self.failed = ""
        self._tidy = tuple(tidy)
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reading = ThreadPoolExecutor(1, "tidegate state reader")
        self._thread: threading.Thread | None = None
        self._lock = -1
        self._writer: Any = None
        self._reader: Any = None
        self._closing = False
        self._durable = True

    def start(self) -> None:
        """Open or create the file (0600, in a directory made 0700) and start both threads. Raises ``StateError``."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with self._alone():
                self._writer = _open(self.path)
                self._reader = _connect(self.path)
                self._reader.execute("PRAGMA query_only=ON")
        except (OSError, sqlite3.Error) as error:
            self._let_go()
            raise StateError(f"{self.path}: cannot be opened as a control store: {error}") from error
        except StateError:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="tidegate state", daemon=True)
        self._thread.start()

    def write(self, work: Work, *, durable: bool = True) -> Future[Any]:
        """Do some work in a transaction; the future has its result once it is on the disk, or a ``StateError``.

        Without ``durable`` it has it once every process sees it: kill -9 loses none of it, power loss all since the
        last commit that was.
        """
        done: Future[Any] = Future()
        if self.failed or self._closing or self._thread is None:
            done.set_exception(StateError(f"{self.path}: {self.failed or 'the control store is closed'}"))
        elif self._inbox.qsize() >= CAPACITY:
            done.set_exception(StateError(f"{self.path}: too much is waiting to be written"))
        else:
            self._inbox.put(_Job(work, done, durable))
        return done

    def read(self, work: Work) -> Future[Any]:
        """Do some work that changes nothing; the future has its result, or a ``StateError``."""
        try:
            return self._reading.submit(self._read, work)
        except RuntimeError:
            done: Future[Any] = Future()
            done.set_exception(StateError(f"{self.path}: the control store is closed"))
            return done

    def close(self) -> None:
        """Write what is waiting, and close the file. May be called again."""
        if self._closing:
            return
        self._closing = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        self._reading.shutdown()
        self._let_go()

    # ── in the threads ───────────────────────────────────────────────────────

    def _read(self, work: Work) -> Any:
        if self._reader is None:
            raise StateError(f"{self.path}: the control store is closed")
        try:
            return work(self._reader)
        except sqlite3.Error as error:
            raise StateError(f"{self.path}: cannot be read: {_name(error)}") from None

    def _run(self) -> None:
        due = 0.0
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + TIDY_SECONDS
                self._commit([_Job(each, Future()) for each in self._tidy])
            try:
                first = self._inbox.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            jobs = [] if first is None else [first]
            with contextlib.suppress(queue.Empty):
                while len(jobs) < BATCH:
                    following = self._inbox.get_nowait()
                    if following is not None:
                        jobs.append(following)
            self._commit(jobs)
            if self._closing and self._inbox.empty():
                return

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """Do several jobs in one transaction, each as if alone: what one of them did wrong is its own."""
        if not jobs:
            return
        results: list[tuple[_Job, Any, Exception | None]] = []
        try:
            if self.failed:
                raise StateError(f"{self.path}: {self.failed}")
            with self._alone():
                durable = any(each.durable for each in jobs)
                if durable is not self._durable:  # in WAL mode NORMAL syncs nothing; the next FULL commit syncs all
                    self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                self._writer.execute("BEGIN IMMEDIATE")
                results = [self._try(each) for each in jobs]
                self._writer.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it was
            fault = error if isinstance(error, StateError) else self._fault(error)
            results = [(each, None, fault) for each in jobs]
        for job, result, problem in results:
            with contextlib.suppress(InvalidStateError):  # whoever asked has gone; it is done all the same
                if problem is None:
                    job.done.set_result(result)
                else:
                    job.done.set_exception(problem)

    def _try(self, job: _Job) -> tuple[_Job, Any, Exception | None]:
        self._writer.execute("SAVEPOINT job")
        try:
            result = job.work(self._writer)
        except sqlite3.IntegrityError as error:
            self._writer.execute("ROLLBACK TO job")
            self._writer.execute("RELEASE job")
            return job, None, StateError(f"{self.path}: not kept: {_name(error)}")
        self._writer.execute("RELEASE job")
        return job, result, None

    def _fault(self, error: Exception) -> StateError:
        """Roll back, and decide whether the connection may be used again."""
        name = _name(error)
        passing = name.startswith(PASSING)
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            passing = False
        if not passing:
            self.failed = f"the control store has stopped: {name}"
        log.error("control store %s: %s", "is waiting" if passing else "has stopped", name)
        return StateError(f"{self.path}: not kept: {name}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only process that writes: in turn, and safe from the WAL-reset bug of SQLite before 3.51.3."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _let_go(self) -> None:
        if self._lock < 0:
            return
        with self._alone(), contextlib.suppress(sqlite3.Error):  # the last to close writes the WAL back
            for each in (self._reader, self._writer):
                if each is not None:
                    each.close()
        os.close(self._lock)
        self._lock, self._reader, self._writer = -1, None, None


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", "") or type(error).__name__


def _connect(path: Path) -> Any:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


def _open(path: Path) -> Any:
    """Open the file for writing, with the tables of today."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # -wal and -shm take its mode
    path.chmod(0o600)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        elif db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StateError(f"{path}: found a database of something else; accepted: a control store, or no file yet")
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        migrations.apply(Database(db))
    except BaseException:
        db.close()
        raise
    return db
