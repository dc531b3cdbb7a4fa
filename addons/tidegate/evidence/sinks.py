"""Copies of checkpoints outside: a file, syslog, a webhook, a command. A thread of its own, which nobody waits for.

What counts is that the place cannot be rewritten by whoever can rewrite the recording. A copy that fails is tried again
with the next one, logged, and told to the log itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tidegate.policy.keeping import Sink, SinkKind

log = logging.getLogger("tidegate")

TIMEOUT = 10.0
"""Seconds that a webhook or a command may take."""

WAITING = 100
"""Checkpoints that may wait for a sink: at one each 10 seconds, a quarter of an hour."""

_AUTH_NOTICE = (10 << 3) + 5
"""The priority of a syslog line: facility authpriv, severity notice (RFC 5424)."""


class SinkError(Exception):
    """A copy could not be made. The text says how it failed, never where to."""


def to_file(path: Path, note: str) -> None:
    """Append a note to a file, and have it on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, f"{note}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def to_syslog(address: str, note: str) -> None:
    """Send a note as one line to a socket of this machine (a path) or over UDP (``host:port``)."""
    line = note.strip().replace("\n\n", "|").replace("\n", "|")
    data = f"<{_AUTH_NOTICE}>tidegate: checkpoint {line}".encode()
    if address.startswith("/"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(data)
        return
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, (host.strip("[]"), int(port)))


def to_webhook(url: str, note: str) -> None:
    """Post a note; any status but 2xx is a failure, and no redirect is followed."""
    request = urllib.request.Request(  # noqa: S310 - the policy takes http and https alone
        url, note.encode(), {"content-type": "text/plain; charset=utf-8"}, method="POST"
    )
    opener = urllib.request.build_opener(_Straight)
    with opener.open(request, timeout=TIMEOUT) as answer:
        if not 200 <= answer.status < 300:
            raise SinkError(f"status {answer.status}")


class _Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing."""


def to_command(words: tuple[str, ...], note: str) -> None:
    """Give a note to a command on its standard input; any exit status but 0 is a failure."""
    done = subprocess.run(
        words, input=note.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise SinkError(f"exit status {done.returncode}")


class Copier:
    """Copies notes to a sink, oldest first. ``failed`` is told when copies begin to fail, and when they go again."""

    SENDERS: ClassVar[dict[SinkKind, Callable[[Sink, str], None]]] = {
        SinkKind.FILE: lambda sink, note: to_file(Path(sink.words[0]), note),
        SinkKind.SYSLOG: lambda sink, note: to_syslog(sink.words[0], note),
        SinkKind.WEBHOOK: lambda sink, note: to_webhook(sink.words[0], note),
        SinkKind.COMMAND: lambda sink, note: to_command(sink.words, note),
    }

    def __init__(self, sink: Sink, failed: Callable[[str], None] = lambda _: None) -> None:
        self.sink = sink
        self.failed = failed
        self.copied = self.lost = 0
        self._notes: queue.Queue[str | None] = queue.Queue(WAITING)
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="tidegate checkpoints", daemon=True)
        self._thread.start()

    def __call__(self, note: str) -> None:
        """Take a note; never waits. When too many wait the oldest is lost: a newer one says more."""
        while True:
            try:
                self._notes.put_nowait(note)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._notes.get_nowait()
                    self.lost += 1
            else:
                return

    def close(self) -> None:
        """Copy what is waiting, for at most ``TIMEOUT`` seconds more than the one that is on its way."""
        with contextlib.suppress(queue.Full):
            self._notes.put(None, timeout=TIMEOUT)
        self._thread.join(2 * TIMEOUT)

    def _run(self) -> None:
        while (note := self._notes.get()) is not None:
            try:
                self.SENDERS[self.sink.kind](self.sink, note)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next checkpoint is tried
                self.lost += 1
                self._tell(f"{self.sink.kind} {_why(error)}", broken=True)
            else:
                self.copied += 1
                self._tell(f"{self.sink.kind} again", broken=False)

    def _tell(self, what: str, *, broken: bool) -> None:
        if broken != self._broken:
            self._broken = broken
            log.log(logging.ERROR if broken else logging.INFO, "recording: checkpoints to %s", what)
            self.failed(what)


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"failed: status {error.code}"
    return f"failed: {error if isinstance(error, SinkError) else type(error).__name__}"
