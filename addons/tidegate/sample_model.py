"""A sample model: a small server on this machine that speaks the OpenAI and Anthropic APIs with made-up answers.

    python -m tidegate.sample_model --port 8091

It is no model. It exists so that the first run needs no key and no network, and so that tests have an upstream that
leaks on request. What it says depends on the last user message alone:

- ``customer record``: a made-up record with an e-mail address, a phone number and a card number;
- ``tool`` (or a forced ``tool_choice``) in a request that offers tools: a call of one, with an e-mail address in its
  arguments;
- ``think`` or ``step by step``, or a request that asks for reasoning: reasoning text comes first, and leaks as the
  answer does;
- anything else: a friendly echo.

Every answer carries ``x-sample-model: 1`` and a model name that begins with ``sample-``. ``GET /hits`` tells how many
requests arrived, and of the last one the method, path, size and header names, never a header's value.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tornado import httpserver, netutil, web
from tornado.iostream import StreamClosedError

from tidegate import sample_answers as answers
from tidegate.sample_answers import Api, Json


@dataclass(slots=True)
class Seen:
    """What arrived: a count, and the outline of the last request."""

    hits: int = 0
    last: Json | None = None


class Handler(web.RequestHandler):
    """What all routes share: the label, the count, and errors in the shape of the API."""

    def initialize(self, seen: Seen, delay: float, api: type[Api] | None = None) -> None:
        self.seen, self.delay, self.api = seen, delay, api

    def set_default_headers(self) -> None:
        self.set_header("server", "tidegate-sample-model")
        self.set_header("x-sample-model", "1")

    def prepare(self) -> None:
        asked = self.request
        names = sorted({name.lower() for name, _ in asked.headers.get_all()})
        self.seen.hits += 1
        self.seen.last = {"method": asked.method, "path": asked.path, "bytes": len(asked.body), "headers": names}

    def write_error(self, status_code: int, **_: Any) -> None:
        error = {"type": "invalid_request_error", "message": f"The sample model cannot do that ({status_code})."}
        self.finish({"type": "error", "error": {**error, "param": None, "code": None}})

    def read(self) -> Json:
        """Return the request's JSON object; anything else is a 400."""
        try:
            body = json.loads(self.request.body)
        except ValueError:
            raise web.HTTPError(400) from None
        if not isinstance(body, dict):
            raise web.HTTPError(400)
        return body


class Generate(Handler):
    """Any of the routes that make text."""

    async def post(self) -> None:
        body = self.read()
        try:
            said = answers.say(body)
        except (AttributeError, TypeError):
            raise web.HTTPError(400) from None
        assert self.api is not None
        answer = self.api(self.seen.hits, body, said, answers.prompt_tokens(body))
        if not body.get("stream"):
            self.finish(answer.whole())
            return
        self.set_header("content-type", "text/event-stream; charset=utf-8")
        self.set_header("cache-control", "no-cache")
        try:
            for name, event in answer.events():
                head = f"event: {name}\n" if name else ""
                await self._send(f"{head}data: {json.dumps(event, separators=(',', ':'))}\n\n")
            if answer.done:
                await self._send(f"data: {answer.done}\n\n")
        except StreamClosedError:
            return  # the reader left; a model would stop as well

    async def _send(self, text: str) -> None:
        self.write(text)
        await self.flush()
        await asyncio.sleep(self.delay)


class CountTokens(Handler):
    """Anthropic's token count."""

    def post(self) -> None:
        self.finish({"input_tokens": answers.prompt_tokens(self.read())})


class Embeddings(Handler):
    """OpenAI embeddings."""

    def post(self) -> None:
        self.finish(answers.embeddings(self.read()))


class Models(Handler):
    """The list of models, for both APIs."""

    def get(self) -> None:
        self.finish(answers.models())


class Hits(Handler):
    """What arrived so far. Looking does not count."""

    def prepare(self) -> None:
        """Leave the count alone."""

    def get(self) -> None:
        self.finish({"hits": self.seen.hits, "last": self.seen.last})


def application(delay: float) -> web.Application:
    """Make the routes; ``delay`` is in seconds between two events of a stream."""
    shared: Json = {"seen": Seen(), "delay": delay}
    generate: Mapping[str, type[Api]] = {
        "/v1/chat/completions": answers.Chat,
        "/v1/completions": answers.Completions,
        "/v1/responses": answers.Responses,
        "/v1/messages": answers.Messages,
    }
    routes: list[Any] = [(path, Generate, {**shared, "api": api}) for path, api in generate.items()]
    routes += [
        ("/v1/messages/count_tokens", CountTokens, shared),
        ("/v1/embeddings", Embeddings, shared),
        ("/v1/models", Models, shared),
        ("/hits", Hits, shared),
        (".*", Handler, shared),
    ]
    return web.Application(routes, log_function=lambda _: None)


def listen(port: int = 0, delay: float = 0.02) -> tuple[httpserver.HTTPServer, int]:
    """Serve on 127.0.0.1 within the running event loop. Returns the server and its port; ``server.stop()`` ends it."""
    sockets = netutil.bind_sockets(port, "127.0.0.1")
    server = httpserver.HTTPServer(application(delay))
    server.add_sockets(sockets)
    return server, int(sockets[0].getsockname()[1])


async def serve(port: int, delay: float) -> None:
    """Serve until cancelled, after one line that says what this is and where."""
    _, bound = listen(port, delay)
    print(f"sample model (made-up answers, no real model) on http://127.0.0.1:{bound}", flush=True)  # noqa: T201
    await asyncio.Event().wait()


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(prog="python -m tidegate.sample_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, default=8091, help="port on 127.0.0.1; 0 takes a free one (default 8091)")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds between two events of a stream")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, options.delay))


if __name__ == "__main__":
    main()
