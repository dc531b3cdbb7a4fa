"""Ties the admin listener to a running gate: the one place of the package that knows both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from tidegate.admin import approving, entering, names, operating, pages, saml, tokens
from tidegate.admin.app import build
from tidegate.admin.callers import Callers
from tidegate.admin.doors import Door
from tidegate.admin.issuer import Tokens
from tidegate.admin.metrics import Metrics
from tidegate.admin.services import Services
from tidegate.admin.serving import AdminServer
from tidegate.admin.sessions import Sessions
from tidegate.admin.signing_in import SigningIn
from tidegate.building import Gate
from tidegate.desk import Desk
from tidegate.policy.policy import Policy
from tidegate.state.logins import Logins

DOORS: tuple[Door, ...] = (
    *operating.DOORS,
    *tokens.DOORS,
    *saml.DOORS,
    *entering.DOORS,
    *pages.DOORS,
    *approving.DOORS,
)
"""Every route of the listener."""

TICK_SECONDS = 1.0
PING_SECONDS = 5.0
"""A loop that has not come round for so long serves nobody; a policy with a cold cache takes 3."""
COMMIT_SECONDS = 2.0


class Admin:
    """The admin listener of one gate. Made on the data path's loop; ``start`` after the gate, ``stop`` before it."""

    def __init__(self, gate: Gate, policy_path: Path, server: AdminServer) -> None:
        self._gate = gate
        self._path = policy_path
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._metrics = Metrics()
        self._callers = Callers(self._policy, gate.verifier_for, time.time)
        self.services = Services(
            policy=self._policy,
            identify=self._callers.identify,
            alive=self._alive,
            ready=self._ready,
            failing=self._failing,
            reload=self._reload,
            now=time.time,
            metrics=self._metrics,
            sessions=Sessions(),
            changed=self._changed,
            noted=self._noted,
            desk=self._desk,
            tokens=Tokens(self._policy, self._callers.verifier, gate.addon.revocations, self._metrics, time.time),
            signing_in=SigningIn(self._policy, Logins(gate.control, time.time), self._metrics, time.time),
        )

    @property
    def app(self) -> ASGIApp:
        """The application, as uvicorn serves it and tests may call it."""
        return build(DOORS, self.services)

    def start(self) -> None:
        """Count from now on, and serve. Raises ``ListenError``."""
        self._gate.addon.counting = self._metrics.sealed
        self._watch()
        self._server.start(self.app, self._background)

    def leave(self) -> None:
        """Be no longer ready: the gate is about to stop."""
        self._stopping.set()

    def stop(self) -> None:
        """End the listener."""
        self.leave()
        self._gate.addon.counting = None
        self._server.stop()

    async def _background(self) -> None:
        try:
            await self._callers.verifier()
            while True:
                self._metrics.drain()
                await asyncio.sleep(TICK_SECONDS)
        finally:
            await self._callers.close()

    def _watch(self) -> None:
        addon, watch = self._gate.addon, self._metrics.watch
        watch(names.OPEN, "Exchanges that are open.", lambda: len(addon.exchanges))
        watch(names.RECORDING_DROPPED, "Records that were lost.", lambda: addon.recorder.dropped, rising=True)
        watch(
            names.RECORDING_STRIPPED,
            "Records that were kept without bodies.",
            lambda: addon.recorder.stripped,
            rising=True,
        )
        watch(names.RECORDING_QUEUE, "Bytes that wait for the recorder.", lambda: addon.recorder.queued)

    # ── what the routes ask ──────────────────────────────────────────────────

    def _policy(self) -> Policy:
        return self._gate.addon.policy

    def _failing(self) -> Mapping[str, bool]:
        return {source.identity.name: source.failing for source in self._gate.addon.verifier.sources}

    def _changed(self) -> str:
        """Look at the files that say what happened: a recording or a control store that was written to is another."""
        policy = self._policy()
        marks = [policy.sha256]
        for path in (policy.recording.path, policy.state.path):
            for name in (path, f"{path}-wal"):
                with contextlib.suppress(OSError):
                    marks.append(str(Path(name).stat().st_mtime_ns))
        return "-".join(marks)

    def _noted(self, kind: str, detail: str) -> None:
        self._gate.addon.recorder.event(kind, detail)

    async def _desk(self, work: Callable[[Desk], Awaitable[Any]]) -> Any:
        """Have work done in the data path's loop, where whoever waits is woken in the same turn."""
        assert self._gate.addon.holding is not None
        desk = self._gate.addon.holding.desk

        async def there() -> Any:
            return await work(desk)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))

    async def _alive(self) -> bool:
        """Ask the data path's loop for a sign."""
        ping: Future[None] = Future()

        def answer() -> None:
            if ping.set_running_or_notify_cancel():  # else it came too late
                ping.set_result(None)

        try:
            self._loop.call_soon_threadsafe(answer)
            await asyncio.wait_for(asyncio.wrap_future(ping), PING_SECONDS)
        except (TimeoutError, RuntimeError):
            return False
        return True

    async def _ready(self) -> Mapping[str, bool]:
        """Look at everything that traffic needs."""
        addon = self._gate.addon
        return {
            "policy": bool(addon.policy.connections),
            "keys": all(source.keys is not None for source in addon.verifier.sources),
            "recording": addon.recorder.writing,
            "state": await self._commits(),
            "data_path": await self._alive(),
            "not_stopping": not self._stopping.is_set(),
        }

    async def _commits(self) -> bool:
        """Have the control store commit nothing at all, which takes its lock and its thread."""
        done = self._gate.control.write(lambda _: None)
        try:
            await asyncio.wait_for(asyncio.wrap_future(done), COMMIT_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it was, it does not write
            return False
        return True

    async def _reload(self) -> tuple[str, ...]:
        """Reload on the data path's loop, which is where the gate's parts are exchanged."""
        future = asyncio.run_coroutine_threadsafe(self._reload_there(), self._loop)
        return await asyncio.wrap_future(future)

    async def _reload_there(self) -> tuple[str, ...]:
        await self._gate.reload(self._path, "admin call")
        return self._gate.problems
