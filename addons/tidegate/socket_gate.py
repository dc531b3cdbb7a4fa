"""An open WebSocket as the adapter holds it: messages in, crossing events, what may be sent; its limits; what is kept.

Each answer has the limits of a connection's answers, counted from the message that asked for it. Between two answers
only ``socket_idle`` and ``socket_duration`` count, and a socket that has had its time is closed without a refusal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from mitmproxy import http

from tidegate import endings
from tidegate.exchange import Exchange
from tidegate.extracting import Extractor
from tidegate.limits.answer import AnswerMeter
from tidegate.model import Denial, Outcome, Reason
from tidegate.policy.policy import Keep
from tidegate.socket_relay import Said
from tidegate.sockets import POLICY
from tidegate.steps import ClientSaid, Extract, Form, Relay, SocketRested, Stage, Step, Stopped, UpstreamSaid
from tidegate.streams.framing import MAX_FRAME

AGAIN = 0.05
"""Seconds until the limits are looked at again where a message is being judged in a thread just then."""

Cut = Callable[[Exchange, bytes, int, str], None]
"""Closes an exchange's WebSocket from outside: last words, close code and reason."""


class LiveSocket:
    """One open WebSocket. Made when its ``101`` is released."""

    def __init__(self, exchange: Exchange, thread_bytes: int, cut: Cut, extractor: Extractor) -> None:
        self.pays: Callable[[Exchange], Awaitable[Denial | None]] | None = None
        self._answers = 0
        self._exchange = exchange
        self._crossing = exchange.crossing
        self._thread_bytes = thread_bytes
        self._cut = cut
        self._extractor = extractor
        self._opened = self._last = time.monotonic()
        self._turns = 0
        self._meter: AnswerMeter | None = None
        self._unasked = 0
        self._judging = False
        self._farewell: tuple[bytes, ...] = ()
        self._reason = ""
        self._kept = 0
        self._watch()

    # what the relay asks ─────────────────────────────────────────────────────

    def room(self, from_client: bool) -> int:
        """Say how many bytes of a message are worth collecting."""
        grant = self._crossing.grant
        assert grant is not None
        return grant.request_bytes if from_client else min(self._exchange.limits.bytes, MAX_FRAME)

    def heard(self, from_client: bool, size: int) -> None:
        """Count bytes of messages as they come; the limit they break ends the socket."""
        now = self._last = time.monotonic()
        if from_client:
            self._exchange.request_bytes += size
            return
        passed: Reason | None = None
        if self._meter is None:
            self._unasked += size
            passed = Reason.ANSWER_TOO_LARGE if self._unasked > self._exchange.limits.bytes else None
        else:
            if self._meter.first is None:
                self._meter.began(now)
            passed = self._meter.received(size, now)
        if passed is not None:
            self._end(endings.limit(passed))

    def last_words(self) -> tuple[bytes, ...]:
        """Return what is still to be said when the gate gave no answer about a message."""
        self.stop(endings.BUG, Outcome.FAILED)
        return self._farewell

    def shown(self, data: bytes) -> tuple[bytes, ...]:
        """Return what the client gets for a message that the flow keeps: with values where that has tokens."""
        socket = self._crossing.socket
        return (data,) if socket is None else socket.restored(data)

    def kept(self, flow: http.HTTPFlow) -> None:
        """Bound what the flow remembers: as much as one request and one answer may have; the oldest goes first."""
        assert flow.websocket is not None
        messages = flow.websocket.messages
        self._kept += len(messages[-1].content)
        route = self._crossing.route
        most = 0
        if route is not None and self._crossing.policy.recording.keep is not Keep.NONE:
            most = route.connection.request_bytes + route.connection.answer.bytes
        if self._kept > most:
            drop, target = 0, most * 3 // 4  # some at once: a list does not give up its first one cheaply
            while self._kept > target:
                self._kept -= len(messages[drop].content)
                drop += 1
            del messages[:drop]

    # what the gateway asks ───────────────────────────────────────────────────

    def take(self, said: Said) -> Awaitable[None] | None:
        """Judge what a peer did, and put on ``said`` what may be sent because of it."""
        if self._crossing.stage is not Stage.SOCKET:
            said.released = Relay(self._farewell, (), POLICY, self._reason)
            return None
        if not said.from_client:
            event = UpstreamSaid(said.form, said.data, time.time(), self._is_aged(time.monotonic()))
            said.released = self._after(self._crossing.receive(event))
            return None
        asked = ClientSaid(said.form, said.data, time.time())
        if len(said.data) > self._thread_bytes and said.form in (Form.TEXT, Form.BINARY):
            return self._in_thread(said, asked)
        step = self._crossing.receive(asked)
        if isinstance(step, Extract):
            return self._in_thread(said, asked, step)
        said.released = self._after(step)
        return None

    def stop(self, denial: Denial, outcome: Outcome = Outcome.DENIED) -> None:
        """End the exchange from outside; what is to be said of it is the last that leaves."""
        step = self._crossing.receive(Stopped(denial, outcome))
        if isinstance(step, Relay) and not self._farewell and not self._reason:
            self._farewell, self._reason = self._after(step).down, step.reason

    # parts ───────────────────────────────────────────────────────────────────

    async def _in_thread(self, said: Said, event: ClientSaid, step: Extract | None = None) -> None:
        self._judging = True
        try:
            if step is None:
                first = await asyncio.to_thread(self._crossing.receive, event)
            else:
                first = step
            if isinstance(first, Extract):
                event = replace(event, extracted=await self._extractor.extract(first.attachments))
                first = await asyncio.to_thread(self._crossing.receive, event)
        finally:
            self._judging = False
        said.released = self._after(first)

    def _after(self, step: Step) -> Relay:
        """Note what a step began and ended, and count what leaves."""
        assert isinstance(step, Relay)
        socket, now = self._crossing.socket, time.monotonic()
        assert socket is not None
        if socket.turns != self._turns:
            self._turns, self._unasked = socket.turns, 0
            if self._meter is None or not self._is_aged(now):  # answers that overlap would keep an old one open
                self._meter = AnswerMeter(self._exchange.limits, now)
        if not socket.busy:
            self._meter = None
        self._last = now
        if self.pays is not None and (meter := self._crossing.meter) is not None and meter.answers != self._answers:
            self._answers = meter.answers
            self._exchange.later(self._pay(self.pays))
        if step.close is None:
            self._watch()
        else:
            self._exchange.stop_watching()
        return replace(step, down=tuple(self._exchange.said(data) for data in step.down))

    async def _pay(self, pays: Callable[[Exchange], Awaitable[Denial | None]]) -> None:
        """Have an answer paid; without room for another one the socket ends."""
        denial = await pays(self._exchange)
        if denial is not None and self._crossing.stage is Stage.SOCKET:
            self._end(denial)

    def _is_aged(self, now: float) -> bool:
        return now >= self._opened + self._exchange.limits.socket_duration

    def _end(self, denial: Denial) -> None:
        self.stop(denial)
        self._cut(self._exchange, b"".join(self._farewell), POLICY, self._reason)

    def _watch(self) -> None:
        """Look at the limits when the next of them is due."""
        self._exchange.stop_watching()
        delay = max(0.0, self._next() - time.monotonic())
        self._exchange.timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _next(self) -> float:
        if self._meter is not None:
            return self._meter.due()
        limits = self._exchange.limits
        return min(self._last + limits.socket_idle, self._opened + limits.socket_duration)

    def _due(self) -> None:
        if self._crossing.stage is not Stage.SOCKET:
            return
        now = time.monotonic()
        if self._judging:
            self._exchange.timer = asyncio.get_running_loop().call_later(AGAIN, self._due)
        elif self._meter is not None and (passed := self._meter.passed(now)) is not None:
            self._end(endings.limit(passed))
        elif self._meter is None and now >= self._next():
            step = self._after(self._crossing.receive(SocketRested()))
            self._cut(self._exchange, b"", step.close or POLICY, step.reason)
        else:
            self._watch()
