"""A WebSocket upstream on 127.0.0.1: speaks the Responses API as told, and writes down every byte it gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.e2e.harness import free_port, wait_for_port

Play = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]
"""What the upstream does with one request message."""


def answer(text: str, *, size: int = 3, number: int = 1) -> list[dict[str, Any]]:
    """Return the events of one answer that says ``text``, ``size`` characters per delta."""
    events: list[dict[str, Any]] = []

    def add(kind: str, **fields: object) -> None:
        events.append({"type": kind, **fields, "sequence_number": len(events)})

    base = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": "sample-small", "tools": []}
    at = {"item_id": f"msg_{number}", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "text": text}
    item = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    add("response.created", response={**base, "status": "in_progress", "output": []})
    add("response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
    add("response.content_part.added", **at, part={**part, "text": ""})
    for cut in range(0, len(text), size):
        add("response.output_text.delta", **at, delta=text[cut : cut + size], logprobs=[])
    add("response.output_text.done", **at, text=text, logprobs=[])
    add("response.content_part.done", **at, part=part)
    add("response.output_item.done", output_index=0, item=item)
    add("response.completed", response={**base, "status": "completed", "output": [item]})
    return events


class SocketUpstream:
    """``messages`` are what was understood, ``data`` every byte after each handshake, ``heads`` the handshakes.

    ``plays`` is what it does with a message, ``refusal`` an HTTP answer instead of the handshake, ``extra`` header
    fields of its ``101``; ``closed`` counts the connections that have ended.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.port = free_port()
        self.heads: list[Headers] = []
        self.messages: list[dict[str, Any]] = []
        self.data = b""
        self.closed = 0
        self.plays: Play = self.says("hello")
        self.refusal: Response | None = None
        self.extra: dict[str, str] = {}
        self.greeting: Sequence[str | bytes] = ()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Server | None = None
        self._newest: ServerConnection | None = None

    @property
    def url(self) -> str:
        """The address a policy gives as ``upstream``."""
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> SocketUpstream:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def reset(self) -> None:
        """Forget what was seen, and answer in the plain way again."""
        self.heads.clear()
        self.messages.clear()
        self.data, self.closed, self.refusal, self.extra, self.greeting = b"", 0, None, {}, ()
        self.plays = self.says("hello")

    def says(self, text: str, *, size: int = 3, pause: float = 0.0) -> Play:
        """Answer every message with ``text``."""

        async def play(socket: ServerConnection, _: dict[str, Any]) -> None:
            for event in answer(text, size=size, number=len(self.messages)):
                await socket.send(json.dumps(event))
                await asyncio.sleep(pause)

        return play

    def sends(self, *messages: str | bytes | dict[str, Any], pause: float = 0.0, hang: bool = False) -> Play:
        """Send exactly these messages; with ``hang`` nothing follows, without it the connection is closed."""

        async def play(socket: ServerConnection, _: dict[str, Any]) -> None:
            for message in messages:
                await socket.send(json.dumps(message) if isinstance(message, dict) else message)
                await asyncio.sleep(pause)
            if hang:
                await socket.wait_closed()

        return play

    def push(self, message: str) -> None:
        """Send a message on the newest connection."""
        assert self._newest is not None
        asyncio.run_coroutine_threadsafe(self._newest.send(message), self._loop).result(5)

    async def _start(self) -> None:
        upstream = self

        class Recorded(ServerConnection):
            def data_received(self, data: bytes) -> None:
                if self.request is not None:
                    upstream.data += data
                super().data_received(data)

        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            ssl=self.context,
            process_request=self._head,
            process_response=self._more,
            create_connection=Recorded,
            ping_interval=None,
        )

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 3)

    async def _head(self, _: ServerConnection, request: Request) -> Response | None:
        self.heads.append(request.headers)
        return self.refusal

    async def _more(self, _: ServerConnection, __: Request, response: Response) -> Response:
        for name, value in self.extra.items():
            response.headers[name] = value
        return response

    async def _serve(self, socket: ServerConnection) -> None:
        self._newest = socket
        try:
            for each in self.greeting:
                await socket.send(each)
            async for message in socket:
                self.messages.append(json.loads(message))
                await self.plays(socket, self.messages[-1])
        except ConnectionClosed:
            pass
        finally:
            self.closed += 1
