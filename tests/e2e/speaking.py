"""What an upstream of our own says in the shape of any of the APIs: for tests that decide when each event leaves."""

from __future__ import annotations

import asyncio
import json

from tests.e2e.harness import Received, http_answer
from tidegate import sample_answers
from tidegate.sample_answers import Api, Said

APIS: dict[str, type[Api]] = {
    "/v1/chat/completions": sample_answers.Chat,
    "/v1/completions": sample_answers.Completions,
    "/v1/responses": sample_answers.Responses,
    "/v1/messages": sample_answers.Messages,
}


def whole(received: Received, text: str) -> bytes:
    """Return the bytes of an answer that says a text at once."""
    return http_answer(json.dumps(_api(received, text).whole()).encode())


def events(received: Received, text: str) -> list[bytes]:
    """Return the events of a stream that says a text, a few characters per delta."""
    api = _api(received, text)
    said = [_event(name, json.dumps(event)) for name, event in api.events()]
    return [*said, _event(None, api.done)] if api.done else said


async def begin(writer: asyncio.StreamWriter) -> None:
    """Write the head of a stream."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()


async def write(writer: asyncio.StreamWriter, event: bytes) -> None:
    """Write one event as one chunk; nothing at all is the end."""
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
    await writer.drain()


def _event(name: str | None, data: str) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def _api(received: Received, text: str) -> Api:
    return APIS[received.path](1, json.loads(received.body), Said(None, text, None), 5)
