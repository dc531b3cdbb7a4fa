"""The worker processes of a model: started with the gate, asked within a budget, replaced when they die.

A shell, and the only one that starts them. The event loop never waits for a model: a question is a job in a bounded
queue, and whoever asked stops waiting at its budget. Texts go to a worker and nowhere else; what it finds is remembered
by a keyed hash of the text, so that history is read once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.inspection.ner import frames
from tidegate.inspection.ner.spans import readable
from tidegate.inspection.ner.spec import Ner, NerSpan, Unread

log = logging.getLogger("tidegate")

WAITING = 32
"""Requests that may wait for each worker. At a tenth of a second each the last of them is late by far."""
LOADING = 60.0
"""Seconds a worker may take to load: a model of 1 GB is read from a slow disk in ten."""
HUNG = 10.0
"""Seconds past its budget after which a worker is taken for hung: it looks at the clock several times a second."""
FASTEST = 1_000_000
"""Characters a second that no model reads on one core: what is more than that in a budget is not even sent."""
LARGE = 256 * 1024
"""Characters from which texts are hashed in a thread: a millisecond of the loop's time."""
KNOWN = 20_000
"""Texts remembered: a hash and a few spans each, about 300 bytes, so 6 MB. A conversation has some hundreds."""
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each new start of a worker that cannot load, so that a broken folder does not keep a core busy."""

Spans = tuple[NerSpan, ...]


class NerError(Exception):
    """A model cannot be used; the text says why, in one sentence without anything of a request."""


@dataclass(slots=True)
class _Job:
    """Texts to read until a time of the loop's clock. ``done`` says why they were not all read, if they were not."""

    keys: Sequence[bytes]
    texts: Sequence[str] = field(repr=False)
    until: float
    done: asyncio.Future[Unread | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model found, by text; texts without a finding are left out. ``unread``: some of them were not read."""

    spans: Mapping[str, Spans] = field(default_factory=dict, repr=False)
    unread: Unread | None = None


class Pool:
    """The workers of one model."""

    def __init__(self, ner: Ner) -> None:
        self.ner = ner
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, Spans] = OrderedDict()
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(WAITING * ner.workers)
        self._workers = [_Worker(ner) for _ in range(ner.workers)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [each.process.pid for each in self._workers if each.process is not None]

    async def start(self) -> None:
        """Start every worker and wait until it has loaded. Raises ``NerError`` if one cannot."""
        try:
            await asyncio.gather(*(each.start() for each in self._workers))
        except NerError:
            self.kill()
            raise
        self.begin()

    def begin(self) -> None:
        """Take questions from now on; workers that do not run yet are started."""
        self._tasks = [asyncio.get_running_loop().create_task(self._work(each)) for each in self._workers]

    async def ask(self, texts: Sequence[str]) -> Answer:
        """Have texts read, in no more time than the budget."""
        until = asyncio.get_running_loop().time() + self.ner.budget
        large = sum(map(len, texts)) > LARGE
        keys = await asyncio.to_thread(self._hashes, texts) if large else self._hashes(texts)
        new = [index for index, key in enumerate(keys) if key not in self._known]
        unread = await self._read([(keys[index], texts[index]) for index in new], until) if new else None
        if unread is None and any(key not in self._known for key in keys):  # not all of it was sent, or is remembered
            unread = Unread.LATE
        if unread is not None:
            return Answer({}, unread)
        spans = {text: found for text, key in zip(texts, keys, strict=True) if (found := self._recall(key))}
        return Answer(spans)

    async def close(self) -> None:
        """End every worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._jobs.empty():
            _tell(self._jobs.get_nowait(), Unread.FAILED)
        self.kill()
        for each in self._workers:
            await each.ended()

    def kill(self) -> None:
        """End every worker at once, without a loop to wait in."""
        for each in self._workers:
            each.kill()

    async def _read(self, new: Sequence[tuple[bytes, str]], until: float) -> Unread | None:
        """Have as many new texts read as there could be time for, and wait no longer than ``until``."""
        room = self.ner.budget * FASTEST
        sizes = itertools.accumulate(len(text) for _, text in new)
        chosen = [each for each, size in zip(new, sizes, strict=True) if size <= room]
        if not chosen:
            return Unread.LATE
        done: asyncio.Future[Unread | None] = asyncio.get_running_loop().create_future()
        job = _Job([key for key, _ in chosen], [readable(text) for _, text in chosen], until, done)
        try:
            self._jobs.put_nowait(job)
        except asyncio.QueueFull:
            return Unread.BUSY
        await asyncio.wait((done,), timeout=until - asyncio.get_running_loop().time())
        return done.result() if done.done() else Unread.LATE

    async def _work(self, worker: _Worker) -> None:
        """Give one worker its jobs, for as long as there are any; start it again whenever it has ended."""
        failures = 0
        while True:
            if worker.process is None:
                try:
                    await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
                    await worker.start()
                except NerError as why:
                    failures += 1
                    log.error("a worker of inspection.ner cannot be started: %s", why)
                    continue
                failures = 0
            job = await self._next_job(worker)
            if job is None:
                log.warning("a worker of inspection.ner ended while it was idle; another is started")
                await worker.lost()
                continue
            if time.monotonic() >= job.until:
                _tell(job, Unread.LATE)
                continue
            try:
                self._learn(job, await worker.read(job))
            except NerError as why:
                log.warning("a worker of inspection.ner ended (%s); another is started", why)
                await worker.lost()
            finally:  # whoever asks does not wait for its budget when there is nobody left to answer
                _tell(job, Unread.FAILED)

    async def _next_job(self, worker: _Worker) -> _Job | None:
        """Wait for the next job; ``None`` if the worker ends first."""
        wanted = asyncio.ensure_future(self._jobs.get())
        gone = worker.exit()
        handed = False
        try:
            await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
            handed = not gone.done()
            return wanted.result() if handed else None
        finally:
            if wanted.done() and not handed:
                _tell(wanted.result(), Unread.FAILED)
            wanted.cancel()

    def _learn(self, job: _Job, said: Sequence[Spans | None] | None) -> None:
        """Remember what a worker said of each text, even when whoever asked has stopped waiting."""
        if said is None or len(said) != len(job.keys):
            _tell(job, Unread.FAILED)
            return
        self._known.update((key, found) for key, found in zip(job.keys, said, strict=True) if found is not None)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        _tell(job, Unread.LATE if any(each is None for each in said) else None)

    def _recall(self, key: bytes) -> Spans:
        """Return what is remembered of a text, and remember it for longer."""
        self._known.move_to_end(key)
        return self._known[key]

    def _hashes(self, texts: Sequence[str]) -> list[bytes]:
        data = (text.encode("utf-8", "surrogatepass") for text in texts)
        return [hashlib.blake2b(each, key=self._key, digest_size=16).digest() for each in data]


class _Worker:
    """One process, or none while it is not started."""

    def __init__(self, ner: Ner) -> None:
        self._ner = ner
        self.process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Start the process and wait until it has loaded the model. Raises ``NerError``."""
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the folder the gate was started in is no place to import from
                "-m",
                "tidegate.inspection.ner.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C at the gate's terminal is for the gate, which then ends its workers
            )
        except OSError as why:
            raise NerError(f"no process could be made ({type(why).__name__})") from None
        self._exit = asyncio.get_running_loop().create_task(self.process.wait())
        given = {
            "model": self._ner.model,
            "tokenizer": self._ner.tokenizer,
            "labels": self._ner.labels,
            "classes": self._ner.classes,
            "length": self._ner.length,
            "threshold": self._ner.threshold,
        }
        try:
            said = await self._exchange(given, LOADING)
        except NerError:
            await self.lost()
            raise
        if not isinstance(said, dict) or "ready" not in said:
            await self.lost()
            raise NerError(str(said.get("refused")) if isinstance(said, dict) else "its first words are unknown")

    async def read(self, job: _Job) -> list[Spans | None] | None:
        """Have texts read; ``None`` if the worker could not. Raises ``NerError`` when it has ended or is hung."""
        left = max(0.0, job.until - time.monotonic())
        said = await self._exchange({"texts": job.texts, "until": job.until}, left + HUNG)
        if not isinstance(said, dict) or "spans" not in said:
            return None
        return [
            None if found is None else tuple(NerSpan(str(cls), int(start), int(end)) for cls, start, end in found)
            for found in said["spans"]
        ]

    def exit(self) -> asyncio.Task[int]:
        """Return what is done once the process is no more: one task for all, since asyncio keeps who waits."""
        assert self._exit is not None
        return self._exit

    async def ended(self) -> None:
        """Wait until the process is no more."""
        if self._exit is not None:
            await asyncio.wait((self._exit,))

    async def lost(self) -> None:
        """Forget a process that is of no use any more."""
        self.kill()
        await self.ended()
        self.process = None

    def kill(self) -> None:
        """End the process."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def _exchange(self, value: object, seconds: float) -> object:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(frames.pack(value))
                await process.stdin.drain()
                head = await process.stdout.readexactly(frames.HEAD)
                return frames.unpack(await process.stdout.readexactly(frames.length(head)))
        except TimeoutError:
            raise NerError(f"it said nothing for {seconds:.0f} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError):
            raise NerError("it broke off") from None


def _tell(job: _Job, unread: Unread | None) -> None:
    if not job.done.done():
        job.done.set_result(unread)


def _environment() -> dict[str, str]:
    """Return what a worker needs of the environment: none of the gate's credentials are in it."""
    package = Path(__file__).resolve().parents[3]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(package), "TOKENIZERS_PARALLELISM": "false"}
