"""Reads attachments in a process of their own, which is ended when it takes too long: hostile input meets no gate.

One process for the attachments of one request, and none before the first: a parser that is taken over by one caller's
document cannot see another's. It gets the bytes and nothing else: no environment, no files to write, little memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tidegate.extraction_worker import CPU_SECONDS
from tidegate.inspection.attachments import REASONS, Extraction, Text
from tidegate.inspection.attachments.found import CRASHED, LATE, MAX_BYTES

SECONDS = 10.0
"""Time for the attachments of one request: a PDF of 500 pages takes about half of it. Below the CPU limit inside."""
WAIT = 10.0
"""Seconds to wait for a turn; later than that the attachments count as not scanned."""
MAX_REPLY = 6 * MAX_BYTES
"""Bytes of a reply: two readings of each text, up to three bytes a character."""
MIN_WORKERS, MAX_WORKERS = 2, 4
"""Processes at once, as many as there are processors. Two at least: one slow document shall not stop all others. They
run at a lower priority than the gate."""
_PIECE = 1 << 20
_LARGE = 256 * 1024

assert CPU_SECONDS > SECONDS


def _command() -> tuple[str, ...]:
    """Start the worker from where this package is, whatever the environment says."""
    start = "import sys; sys.path.insert(0, sys.argv[1]); from tidegate.extraction_worker import main; main()"
    return (sys.executable, "-I", "-B", "-c", start, str(Path(__file__).resolve().parents[1]))


class Extractor:
    """Reads attachments apart. Methods belong to one event loop."""

    def __init__(self, command: Sequence[str] = (), seconds: float = SECONDS) -> None:
        self._command = tuple(command) or _command()
        self._seconds = seconds
        self._turns = asyncio.Semaphore(max(MIN_WORKERS, min(MAX_WORKERS, os.cpu_count() or 1)))
        self._running: set[asyncio.subprocess.Process] = set()

    async def extract(self, attachments: Sequence[bytes]) -> tuple[Extraction, ...]:
        """Return what is read of each, in order. Whatever goes wrong makes them *not scanned*; this never raises."""
        try:
            async with asyncio.timeout(WAIT):
                await self._turns.acquire()
        except TimeoutError:
            return _unread(attachments, LATE)
        try:
            return await self._one(attachments)
        except TimeoutError:
            return _unread(attachments, LATE)
        except (OSError, ValueError):
            return _unread(attachments, CRASHED)
        finally:
            self._turns.release()

    async def _one(self, attachments: Sequence[bytes]) -> tuple[Extraction, ...]:
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment, limit=_PIECE
        )
        self._running.add(process)
        try:
            async with asyncio.timeout(self._seconds):
                reply, _ = await asyncio.gather(_reply(process), _ask(process, attachments))
                await process.wait()
        finally:
            self._running.discard(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if len(reply) > _LARGE:
            return await asyncio.to_thread(_read, reply, attachments)
        return _read(reply, attachments)

    def close(self) -> None:
        """End what is still running."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def extract_apart(data: bytes) -> Extraction:
    """Read one attachment in a process of its own, for programs without an event loop."""

    async def one() -> Extraction:
        return (await Extractor().extract([data]))[0]

    return asyncio.run(one())


async def _ask(process: asyncio.subprocess.Process, attachments: Sequence[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is gone, and its reply will not be whole
        for each in attachments:
            process.stdin.write(len(each).to_bytes(8, "big"))
            for at in range(0, len(each), _PIECE):
                process.stdin.write(each[at : at + _PIECE])
                await process.stdin.drain()
        await process.stdin.drain()
    process.stdin.close()


async def _reply(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    pieces: list[bytes] = []
    size = 0
    while piece := await process.stdout.read(_PIECE):
        size += len(piece)
        if size > MAX_REPLY:
            raise ValueError("a reply that is too large")
        pieces.append(piece)
    return b"".join(pieces)


def _read(reply: bytes, attachments: Sequence[bytes]) -> tuple[Extraction, ...]:
    """Read a reply as what a stranger wrote: the worker has read hostile input. Raises ``ValueError``."""
    try:
        rows = json.loads(reply.decode("utf-8", "surrogatepass"))
        if len(rows) != len(attachments):
            raise ValueError("a reply about something else")
        return tuple(_extraction(row) for row in rows)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError("a reply of another form") from error


def _extraction(row: dict[str, object]) -> Extraction:
    kind, texts, unread = row["kind"], row["texts"], row["unread"]
    if not isinstance(texts, list) or not isinstance(unread, list):
        raise TypeError("a row of another form")
    plain = isinstance(kind, str) and kind.isascii() and kind.isalnum() and len(kind) < 16
    return Extraction(
        str(kind) if plain else "unknown",
        tuple(Text(str(name), str(text)) for name, text in texts),
        tuple(dict.fromkeys(each if each in REASONS else CRASHED for each in unread)),
    )


def _unread(attachments: Sequence[bytes], why: str) -> tuple[Extraction, ...]:
    return tuple(Extraction("unknown", (), (why,)) for _ in attachments)
