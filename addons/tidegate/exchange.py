"""One exchange as the adapter holds it: the flow, the crossing, what was cleared, what was released, what was emitted."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from mitmproxy import http

from tidegate import edits
from tidegate.crossing import Crossing
from tidegate.dialects.errors import render
from tidegate.limits.answer import AnswerMeter
from tidegate.model import AnswerLimits, Clearance
from tidegate.policy.policy import Policy

_cuts: set[asyncio.Task[Any]] = set()


def new_id() -> str:
    """Return an exchange id: milliseconds since 1970 in hex, then 40 random bits. Ids sort by time."""
    return f"ex_{time.time_ns() // 1_000_000:011x}{secrets.token_hex(5)}"


class Exchange:
    """The state of the adapter for one flow."""

    def __init__(self, policy: Policy, flow: http.HTTPFlow) -> None:
        self.id = new_id()
        self.flow = flow
        self.crossing = Crossing(policy, self.id)
        self.started = time.time_ns()
        self.clock = time.perf_counter()
        self.first_byte: float | None = None
        self.path = flow.request.path
        self.target = (flow.request.scheme, flow.request.host, flow.request.port)
        self.request_bytes = 0
        self.response_bytes = 0
        self.kept: list[bytes] = []
        self.meter: AnswerMeter | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.released: http.Response | None = None
        self.farewell = b""
        self.sealed = False
        self._cleared: tuple[object, ...] | None = None

    @property
    def limits(self) -> AnswerLimits:
        """The limits of the answer; the defaults where no connection is known."""
        route = self.crossing.route
        return AnswerLimits() if route is None else route.connection.answer

    # what may leave ──────────────────────────────────────────────────────────

    def clear(self, clearance: Clearance | None = None) -> None:
        """Note what may be sent, as it stands on the flow now; ``None`` for a host that may pass untouched."""
        body = clearance.verdict.body if clearance is not None else self.flow.request.raw_content
        self._cleared = (*_line(self.flow.request), body)

    def is_cleared(self, request: http.Request) -> bool:
        """Say whether a request is the one that was cleared: same place, method, path, header fields and body."""
        return self._cleared == (*_line(request), request.raw_content)

    def revoke(self) -> None:
        """Take back what was cleared."""
        self._cleared = None

    def release(self) -> None:
        """Let the flow's answer, as it is now, reach the client."""
        self.released = self.flow.response

    def refuse(self) -> None:
        """Put the refusal on the flow in place of any answer."""
        self.revoke()
        self.flow.response = self.refusal()

    def refusal(self) -> http.Response:
        """Make the refusal, in the shape of the caller's dialect."""
        denial = self.crossing.denial
        assert denial is not None
        response = edits.refusal(denial.status, *render(self.crossing.shape, denial, self.id))
        self.released = response
        return response

    def emitted(self, data: bytes) -> list[bytes]:
        """Count and keep what goes to the client; returned as the list that a stream callable returns."""
        if not data:
            return []
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        self.response_bytes += len(data)
        self.kept.append(data)
        return [data]

    # timers ──────────────────────────────────────────────────────────────────

    def stop_watching(self) -> None:
        """Cancel the timer of the answer's limits."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine after the current event of the connection."""
        task = asyncio.get_running_loop().create_task(work)
        _cuts.add(task)
        task.add_done_callback(_cuts.discard)

    # evidence ────────────────────────────────────────────────────────────────
