"""Runs the admin listener: uvicorn in a thread of its own, with a loop of its own, in the gateway's process.

So no page waits for the data path, and the data path waits for no page.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("tidegate")

CONNECTIONS = 256
"""Open at a time: a balancer, Prometheus and a few hundred browsers; beyond it 503."""
HEAD_BYTES = 32 * 1024
"""A token may have 16 KiB (``claims.TOKEN_BYTES``); servers in front add their own fields."""
HEAD_SECONDS = 10.0
"""For the head of a request."""
STOP_SECONDS = 2
START_SECONDS = 30.0


class ListenError(Exception):
    """The admin listener cannot listen; the text says why."""


class _Prompt(H11Protocol):
    """uvicorn's protocol, which waits for ever for the first or next request of a connection that has begun it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the connection from now on."""
        super().connection_made(transport)
        self._waits = False
        self._looking = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._looking.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """End a connection that has no request under way, and had none a while ago."""
        never = self.cycle is None  # uvicorn begins with None, whatever the type says
        waits = never or self.cycle.response_complete
        if never or (waits and self._waits):
            self.transport.close()
            return
        self._waits = waits
        self._looking = self.loop.call_later(HEAD_SECONDS, self._look)


class AdminServer:
    """The listener. ``listen`` binds and may fail, ``start`` serves, ``stop`` ends it. Called in the main thread."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host or "127.0.0.1"
        self.port = port
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    def listen(self) -> None:
        """Take the port. Raises ``ListenError``."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            self._socket = socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            raise ListenError(f"{self.host}:{self.port}: {os.strerror(error.errno or 0)}") from None
        self.port = int(self._socket.getsockname()[1])

    def start(self, app: ASGIApp, background: Callable[[], Awaitable[None]]) -> None:
        """Serve in a thread of its own, and run ``background`` beside it in the same loop. Raises ``ListenError``."""
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=_Prompt,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=STOP_SECONDS,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(background)), name="tidegate admin", daemon=True
        )
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise ListenError(f"{self.host}:{self.port}: the server did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Answer what is being answered, then end. May be called again."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_SECONDS + 5)
        if self._socket is not None:
            self._socket.close()

    async def _serve(self, background: Callable[[], Awaitable[None]]) -> None:
        assert self._server is not None
        assert self._socket is not None
        beside = asyncio.ensure_future(background())
        try:
            await self._server.serve(sockets=[self._socket])
        except Exception as bug:  # noqa: BLE001 - the data path goes on; readiness is not answered any more
            log.error("the admin listener has stopped: %s", type(bug).__name__)
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
