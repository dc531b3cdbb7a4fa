"""The real thing, started for a test: processes of the gate, and an upstream that writes down every byte it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tidegate.evidence import queries

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "sample-small",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}

Answer = Callable[["Received", asyncio.StreamWriter], Awaitable[None]]


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None, seconds: float = 120.0) -> None:
    """Wait until something accepts connections; fail early if the process that should do so has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"process ended with {process.returncode} before it listened on {port}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port} after {seconds} s")


@dataclass
class Received:
    """One request as it came over the wire. ``connection`` counts the connections of an upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int = 0


def http_answer(
    body: bytes, *, status: str = "200 OK", content_type: str = "application/json", extra: str = ""
) -> bytes:
    """Return the bytes of a whole HTTP/1.1 answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def chat_sse(text: str, *, size: int = 3) -> list[bytes]:
    """Return the events of an OpenAI chat stream that says ``text``, ``size`` characters per delta."""

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "sample-small",
            "choices": [choice],
        }
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    cuts = [text[at : at + size] for at in range(0, len(text), size)]
    return [
        event({"role": "assistant", "content": ""}),
        *(event({"content": cut}) for cut in cuts),
        event({}, "stop"),
        b"data: [DONE]\n\n",
    ]


class Upstream:
    """A model provider of our own on 127.0.0.1, in a thread. ``answers`` maps a path to what is written back.

    ``data`` holds every byte that arrived on any connection, ``requests`` what was understood, ``connections`` how
    many were opened, ``open`` how many of them are, ``closed`` the numbers of those that clients have closed.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.data = b""
        self.requests: list[Received] = []
        self.connections = self.open = 0
        self.closed: set[int] = set()
        self.answers: dict[str, Answer] = {}
        self.default: Answer = self._json
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Upstream:
        self._thread.start()
        wait_for_port(self.port)
        end = time.monotonic() + 5
        while not self.connections and time.monotonic() < end:  # the probe itself is counted a moment later
            time.sleep(0.01)
        self.connections = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def url(self) -> str:
        """The address a policy gives as ``upstream``."""
        return f"http://127.0.0.1:{self.port}"

    def says(self, raw: bytes, path: str | None = None) -> None:
        """Answer with these raw bytes, on one path or on all."""

        async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(raw)

        self._set(answer, path)

    def streams(
        self, pieces: Sequence[bytes], *, pause: float = 0.01, path: str | None = None, head: str = "", end: bool = True
    ) -> None:
        """Answer with a chunked event stream, a pause after each piece; without ``end`` it never ends."""

        async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                + f"{head}transfer-encoding: chunked\r\n\r\n".encode()
            )
            for piece in pieces:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(pause)
            if end:
                writer.write(b"0\r\n\r\n")
            else:
                await asyncio.sleep(60)

        self._set(answer, path)

    def does(self, answer: Answer, path: str | None = None) -> None:
        """Answer with a coroutine of the test's own."""
        self._set(answer, path)

    def _set(self, answer: Answer, path: str | None) -> None:
        if path is None:
            self.default = answer
        else:
            self.answers[path] = answer

    async def _json(self, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(json.dumps(ANSWER).encode()))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = next(self._numbers)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await self._read(reader.readuntil(b"\r\n\r\n"))
                lines = head.decode("latin-1").split("\r\n")
                headers = {
                    k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)
                }
                method, path, _ = lines[0].split(" ", 2)
                body = await self._read(reader.readexactly(int(headers.get("content-length", "0"))))
                received = Received(method, path, headers, body, number)
                self.requests.append(received)
                await self.answers.get(path, self.default)(received, writer)
                await writer.drain()
        self.open -= 1
        self.closed.add(number)
        writer.close()

    async def _read(self, what: Awaitable[bytes]) -> bytes:
        try:
            found = await what
        except asyncio.IncompleteReadError as partial:
            self.data += partial.partial
            raise
        self.data += found
        return found


@dataclass
class Process:
    """A running process of the gate: where it listens, and what it printed."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    cwd: Path
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the process to end by itself; return its exit status."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End the process as an operator would, so that the recording is complete."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


def policy(folder: Path, upstream: str, *, name: str = "policy.yaml", **changes: object) -> Path:
    """Write a policy for one upstream with both dialects, a static token file and a recording in ``folder``.

    ``changes`` replace whole top-level keys; ``None`` removes one.
    """
    for each in ("packs", "dialects"):
        if not (folder / each).exists():
            (folder / each).symlink_to(ROOT / "rules" / each, target_is_directory=True)
    credential = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
    document: dict[str, object] = {
        "version": 1,
        "identity": [{"name": "local", "static": {"tokens": "tokens.yaml"}}],
        "connections": [
            {
                "name": "openai",
                "dialect": "openai",
                "upstream": upstream,
                "serve": {"path": "/openai"},
                "credential": credential,
            },
            {
                "name": "anthropic",
                "dialect": "anthropic",
                "upstream": upstream,
                "serve": {"path": "/anthropic"},
                "credential": {"header": "x-api-key", "value": "${env:TIDEGATE_TEST_CREDENTIAL}"},
            },
        ],
        "roles": {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["*"]}]}},
        "bindings": [{"groups": ["local:dev"], "roles": ["dev"]}],
        "inspection": {
            "prompt": {"secrets": "block", "pii": "redact", "injection": "flag", "exfil": "allow"},
            "response": {"secrets": "redact", "pii": "redact", "injection": "allow", "exfil": "redact"},
        },
        "recording": {"mode": "strict", "keep": "redacted", "path": "recording.db"},
    }
    document.update(changes)
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}, sort_keys=False))
    return path


def few_rules(folder: Path) -> dict[str, object]:
    """Put a small pack in place of the shipped ones, for a gate that starts at once; return what a policy changes."""
    (folder / "packs").symlink_to(ROOT / "tests" / "data" / "packs", target_is_directory=True)
    actions = {"secrets": "block", "pii": "redact"}
    return {"inspection": {"prompt": actions, "response": {"secrets": "redact", "pii": "redact"}}}


CREDENTIAL = "upstream-credential-CANARY-7f3a9c"


def token(folder: Path, name: str = "alice", groups: Sequence[str] = ("dev",)) -> str:
    """Make a static token in the folder's token file."""
    from tidegate.identity.static import create

    return create(folder / "tokens.yaml", name, groups)


@contextlib.contextmanager
def started(command: Sequence[str | Path], port: int, folder: Path, *, wait: bool = True) -> Iterator[Process]:
    """Run a command that should listen on ``port``; stop it at the end whatever happens."""
    log_path = folder / f"{Path(str(command[0])).name}-{port}.log"
    environment = {
        **os.environ,
        "TIDEGATE_TEST_CREDENTIAL": CREDENTIAL,
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
        )
        running = Process(process, port, log_path, folder)
        try:
            if wait:
                try:
                    wait_for_port(port, process)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{running.log}") from None
            yield running
        finally:
            running.stop()


def tidegate_run(
    policy_path: Path, *options: str, port: int | None = None, wait: bool = True
) -> contextlib.AbstractContextManager[Process]:
    """Start ``tidegate run`` on a free port."""
    port = port or free_port()
    folder = policy_path.parent
    command = [
        BIN / "tidegate",
        "run",
        "--policy",
        policy_path,
        "--listen",
        f"127.0.0.1:{port}",
        "--confdir",
        folder / "ca",
        *options,
    ]
    return started(command, port, folder, wait=wait)


def mitm(
    program: str,
    policy_path: Path,
    *options: str,
    mode: str = "reverse:http://unset.invalid",
    port: int | None = None,
    script: Path = ROOT / "addons" / "gateway.py",
    wait: bool = True,
) -> contextlib.AbstractContextManager[Process]:
    """Start ``mitmdump`` or ``mitmweb`` with the gate as its script."""
    port = port or free_port()
    folder = policy_path.parent
    command = [
        BIN / program,
        "-s",
        script,
        "--set",
        f"tidegate={policy_path}",
        "--mode",
        mode,
        "--listen-host",
        "127.0.0.1",
        "--listen-port",
        str(port),
        "--set",
        f"confdir={folder / 'ca'}",
        *options,
    ]
    return started(command, port, folder, wait=wait)


def raw(port: int, data: bytes, *, seconds: float = 5.0, end: bool = False) -> bytes:
    """Send bytes to a port of 127.0.0.1; return what comes back until the peer closes or is silent for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                found += piece
                if _complete(found):
                    break
        return found


def _complete(data: bytes) -> bool:
    """Say whether an HTTP/1.1 answer is whole."""
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if length:
        return len(body) >= int(length[1])
    return b"chunked" in head.lower() and body.endswith(b"0\r\n\r\n")


def chat(text: str, **more: object) -> bytes:
    """Return the body of a chat request."""
    return json.dumps({"model": "sample-small", "messages": [{"role": "user", "content": text}], **more}).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a POST request."""
    fields = ["host: gate", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return f"POST {path} HTTP/1.1\r\n".encode() + "".join(f"{each}\r\n" for each in fields).encode() + b"\r\n" + body


def recorded(folder: Path) -> bytes:
    """Return what a recording in this folder holds: its files as they are, and its flow states unpacked."""
    files = b"".join(each.read_bytes() for each in sorted(folder.glob("recording*")) if each.is_file())
    found = queries.states(folder / "recording.db") if (folder / "recording.db").exists() else []
    return b"\n".join((files, *(each.state for each in found)))
