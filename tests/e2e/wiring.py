"""One running gate with its upstream, a caller's token, its recording, and a client that keeps its connection."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils.utils import sqlite3

from tests.e2e.harness import Process, Upstream

CHAT = "/openai/v1/chat/completions"
MESSAGES = "/anthropic/v1/messages"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MAIL = "jane.doe@example.com"
CARD = "4111 1111 1111 1111"


@dataclass(frozen=True)
class Reply:
    """One HTTP/1.1 answer; ``whole`` is false if the peer broke off inside it."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        """The exchange, as the gate names it."""
        return self.headers.get("x-tidegate-exchange") or self.headers["x-request-id"]

    @property
    def code(self) -> str:
        """The reason of a refusal in OpenAI's shape."""
        return str(self.json["error"]["code"])

    def events(self) -> list[Any]:
        """The data of the events of a stream; what is not JSON stays text."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) if line.startswith("{") else line for line in lines]

    @property
    def said(self) -> str:
        """The text of a chat answer, whole or streamed."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            found = [event for event in self.events() if isinstance(event, dict) and "choices" in event]
            return "".join(event["choices"][0]["delta"].get("content") or "" for event in found)
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def error_code(self) -> str:
        """The reason in the last event of a stream that the gate ended."""
        events = [event for event in self.events() if isinstance(event, dict)]
        return str(events[-1].get("error", {}).get("code", "")) if events else ""


class _Kept(io.BufferedReader):
    """A reader that survives the end of one answer."""

    def close(self) -> None:
        return

    def flush(self) -> None:
        return

    def makefile(self, mode: str) -> _Kept:
        return self


class Client:
    """One keep-alive connection of a client that reads HTTP strictly. ``left`` is what follows an answer unasked."""

    def __init__(self, port: int, host: str = "127.0.0.1", seconds: float = 8.0) -> None:
        self.socket = socket.create_connection((host, port), timeout=seconds)
        self._open_reader()

    def _open_reader(self) -> None:
        self._raw = socket.SocketIO(self.socket, "r")
        self._reader = _Kept(self._raw)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        io.BufferedReader.close(self._reader)
        self.socket.close()

    def secure(self, context: Any, name: str) -> None:
        """Speak TLS from here on."""
        io.BufferedReader.close(self._reader)
        self.socket = context.wrap_socket(self.socket, server_hostname=name)
        self._open_reader()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes = b"", method: str = "POST") -> Reply:
        """Send bytes and read one answer."""
        self.send(data)
        answer = http.client.HTTPResponse(self._reader, method=method)  # type: ignore[arg-type]
        answer.begin()
        whole, body = True, b""
        try:
            body = b"" if method == "CONNECT" and answer.status == 200 else answer.read()
        except http.client.IncompleteRead as cut:
            body, whole = cut.partial, False
        finally:
            answer.close()
        return Reply(answer.status, answer.reason, {k.lower(): v for k, v in answer.getheaders()}, body, whole)

    def rest(self, seconds: float = 0.5) -> bytes:
        """Return what else the peer sends until it closes or is silent."""
        self.socket.settimeout(seconds)
        found = b""
        with contextlib.suppress(OSError):
            while piece := self._reader.read1(65536):
                found += piece
        return found


@dataclass
class Stage:
    """A running gate with its upstream. ``regular`` is the port of its explicit proxy."""

    gate: Process
    upstream: Upstream
    token: str
    regular: int = 0
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Wait until the gate answers: mitmdump accepts connections a while before its script has been loaded."""
        with Client(self.gate.port, seconds=60) as client:
            assert client.ask(b"GET / HTTP/1.1\r\nhost: gate\r\n\r\n", "GET").status == 404

    @property
    def auth(self) -> str:
        return f"authorization: Bearer {self.token}"

    def client(self, port: int | None = None) -> Client:
        return Client(port or self.gate.port)

    def ask(self, data: bytes) -> Reply:
        """Send one request on a connection of its own."""
        with self.client() as client:
            return client.ask(data)

    def fresh(self) -> None:
        """Forget what the upstream has seen and was told to do; keep its bytes for the search at the end."""
        self.seen.append(self.upstream.data)
        self.upstream.data, self.upstream.connections = b"", 0
        self.upstream.requests.clear()
        self.upstream.answers.clear()
        self.upstream.default = self.upstream._json

    @property
    def database(self) -> Path:
        return self.gate.cwd / "recording.db"

    def record(self, exchange: str, seconds: float = 5.0) -> dict[str, Any]:
        """Return the row of an exchange as soon as it is sealed."""
        return next(self._rows("id = ?", (exchange,), seconds))

    def last(self, seconds: float = 5.0) -> dict[str, Any]:
        """Return the newest row as soon as it is sealed."""
        return next(self._rows("id = (SELECT max(id) FROM exchange)", (), seconds))

    def after(self, exchange: str, seconds: float = 5.0) -> dict[str, Any]:
        """Return the first row after this exchange as soon as it is sealed."""
        return next(self._rows("id > ?", (exchange,), seconds))

    def _rows(self, where: str, values: tuple[str, ...], seconds: float) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + seconds
        query = f"SELECT * FROM exchange WHERE {where} AND outcome IS NOT NULL"
        while time.monotonic() < end:
            with contextlib.closing(sqlite3.connect(self.database)) as db:
                db.row_factory = sqlite3.Row
                found = [dict(row) for row in db.execute(query, values)]
            if found:
                yield from found
                return
            time.sleep(0.05)
        raise AssertionError(f"no sealed exchange {values} after {seconds} s")
