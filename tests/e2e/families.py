"""An upstream that speaks Ollama's API: it says back what it is told, or leaks, live and whole, as each API has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from tests.e2e.harness import Received, Upstream, http_answer

LEAK = "Jane pays with 4111 1111 1111 1111, mail jane.doe@example.com. Plan: gold"
"""What the model says when somebody asks it to leak."""

THOUGHT = "The card is 4111 1111 1111 1111."
SIZE = 4  # characters in a delta
PAUSE = 0.01  # seconds after one


class Families(Upstream):
    """Answers by path."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._speak

    async def _speak(self, received: Received, writer: asyncio.StreamWriter) -> None:
        body = json.loads(received.body) if received.body else {}
        path = received.path.partition("?")[0]
        if path.startswith("/api/"):
            await self._ollama(path, body, writer)
        else:
            writer.write(http_answer(b"{}", status="404 Not Found"))

    async def _ollama(self, path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        base = {"model": body.get("model"), "created_at": "2026-08-07T06:08:14.947137Z"}
        end = {"done": True, "done_reason": "stop", "total_duration": 572052292, "eval_count": 102}

        def message(**said: object) -> dict:
            return {"message": {"role": "assistant", "content": "", **said}}

        match path:
            case "/api/chat":
                call = {"function": {"name": "send_mail", "arguments": {"to": "jane.doe@example.com", "subject": "hi"}}}
                calls = {"tool_calls": [call]} if body.get("tools") else {}
                text = reply(body["messages"][-1]["content"])
                whole = {**base, **message(content=text, thinking=THOUGHT, **calls), **end}
                events = [*(message(thinking=part) for part in cut(THOUGHT)), message(**calls)]
                events += [message(content=part) for part in cut(text)]
                events.append({**message(), **end})
            case "/api/generate":
                text = reply(body["prompt"])
                whole = {**base, "response": text, **end, "context": [105, 2364, 107]}
                events = [{"response": part, "done": False} for part in cut(text)]
                events.append({"response": "", **end, "context": [105, 2364, 107]})
            case "/api/embed":
                whole, events = {"model": body["model"], "embeddings": [[0.015991924, -0.1588247]]}, []
            case "/api/tags":
                whole, events = {"models": [{"name": "m:latest", "model": "m:latest", "size": 815319791}]}, []
            case "/api/show":
                whole = {"license": "Ask jane.doe@example.com.", "model_info": {"general.architecture": "gemma3"}}
                events = []
            case _:
                whole, events = {"version": "0.12.0"}, []
        if events and body.get("stream", True):
            lines = (json.dumps({**base, "done": False, **event}).encode() + b"\n" for event in events)
            await stream(writer, "application/x-ndjson", lines)
        else:
            writer.write(http_answer(json.dumps(whole).encode(), content_type="application/json; charset=utf-8"))


def reply(text: str) -> str:
    """Say what a model says to this."""
    return LEAK if "leak" in text else f"You said: {text}"


def cut(text: str) -> list[str]:
    """Cut a text into deltas."""
    return [text[at : at + SIZE] for at in range(0, len(text), SIZE)]


async def stream(writer: asyncio.StreamWriter, kind: str, pieces: Iterable[bytes]) -> None:
    """Answer with chunks, with a pause after each."""
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    for piece in pieces:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(PAUSE)
    writer.write(b"0\r\n\r\n")
