"""A small client for the tour: one question, one answer, and when each piece of it came. Standard library only."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"


@dataclass
class Answer:
    """An answer as it arrived. ``pieces`` are (seconds since the question, text) of a stream's events."""

    status: int
    exchange: str
    raw: bytes
    pieces: list[tuple[float, str]] = field(default_factory=list)
    arguments: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        """The words of the model, whole or put together, in whichever API's shape."""
        return "".join(text for _, text in self.pieces) if self.pieces else whole(self.json)


def ask(port: int, path: str, body: Any, token: str | None, *, header: str = "authorization") -> Answer:
    """Send one request and read its answer to the end."""
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    fields = {"content-type": "application/json"}
    if token is not None:
        fields[header] = f"Bearer {token}" if header == "authorization" else token
    began = time.monotonic()
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), fields)
        response = connection.getresponse()
        exchange = response.getheader("x-tidegate-exchange") or response.getheader("x-request-id") or ""
        answer = Answer(response.status, exchange, b"")
        if not (response.getheader("content-type") or "").startswith("text/event-stream"):
            answer.raw = response.read()
            return answer
        while line := response.readline():
            answer.raw += line
            if line.startswith(b"data: {"):
                text, arguments = delta(json.loads(line[6:]))
                answer.pieces.append((time.monotonic() - began, text))
                answer.arguments += arguments
        return answer
    finally:
        connection.close()


def delta(event: dict[str, Any]) -> tuple[str, str]:
    """Return the text and the tool-call arguments that one event adds."""
    if "choices" in event:
        choice = (event["choices"] or [{}])[0]
        added = choice.get("delta", {})
        calls = added.get("tool_calls") or []
        return added.get("content") or choice.get("text") or "", "".join(
            c["function"].get("arguments", "") for c in calls
        )
    added = event.get("delta") or {}
    return added.get("text", ""), added.get("partial_json", "")


def whole(body: dict[str, Any]) -> str:
    """Return the text of an answer that came in one piece; a refusal has none."""
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    return "".join(str(part.get("text", "")) for part in body.get("content", []))


def connect(port: int, target: str) -> tuple[int, bytes]:
    """Ask a proxy for a tunnel; return the status and the body of its answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        connection.request("CONNECT", target)
        response = connection.getresponse()
        return response.status, response.read() if response.status != 200 else b""
    finally:
        connection.close()
