"""mitmproxy hooks in, crossing events out, flow edits back: the one adapter, behind the one guard.

mitmproxy logs an exception in a hook and forwards the traffic. Every hook runs under ``guarded``, which turns a
bug into a refusal; what mitmproxy does without asking a hook is held by ``egress``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.proxy import server_hooks

from tidegate import edits, egress, grpc_calls, judging, spending, steps
from tidegate.budgeting import Budgeting
from tidegate.call_relay import Spoken
from tidegate.claiming import LOST
from tidegate.crossing import Lookable
from tidegate.endings import (
    BUG,
    CLIENT_GONE,
    NO_CREDENTIAL,
    NO_LONGER_KNOWN,
    NOT_HTTP,
    STOPPING,
    UPSTREAM_FAILED,
    limit,
)
from tidegate.entrance import by_token
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.exchange import Exchange
from tidegate.extracting import Extractor
from tidegate.fence import BROKEN, Fence
from tidegate.guard import guarded
from tidegate.holding import Holding
from tidegate.identity.credential import Secret
from tidegate.identity.verifier import Verifier
from tidegate.inspection.ner.pool import Pool
from tidegate.inspection.ner.spec import Unread
from tidegate.inspection.tokens import Session, TokenLimits, Vault, Who
from tidegate.limits.answer import AnswerMeter
from tidegate.model import Caller, Denial, Head, OnUnknown, Outcome, Owners, Reason, Stored
from tidegate.policy.policy import Policy
from tidegate.socket_gate import LiveSocket
from tidegate.socket_relay import Said
from tidegate.sockets import POLICY
from tidegate.state.control import StateError
from tidegate.state.ownership import Ownership
from tidegate.state.revocations import Revocations
from tidegate.steps import Stage

log = logging.getLogger("tidegate")

THREAD_BYTES = 16 * 1024
"""Bodies above this are looked at in a thread. Handing over costs 0.03 to 0.1 ms; a look at as much takes one or two,
and 130 where the text is hostile (numbers that each read as an encoded text), while nobody else is served."""
THREADS = min(4, os.cpu_count() or 1)
"""Large bodies looked at in one moment: the rest waits, so that small ones need not wait for all of them."""


CLAIM_SECONDS = 5.0
"""How long the end of a stream waits until what it made is kept: as long as SQLite waits for another process."""


class Gateway(Fence):
    """The enforcement addon. ``policy`` may be replaced between exchanges; an exchange keeps the one it began with."""

    name = "tidegate"

    def __init__(
        self,
        policy: Policy,
        recorder: Recorder,
        verifier: Verifier,
        credentials: Mapping[str, Secret],
        replay_caller: Caller | None = None,
    ) -> None:
        super().__init__(policy, verifier)
        self.recorder = recorder
        self.credentials = credentials
        self.replay_caller = replay_caller
        self.extractor = Extractor()
        self.ner: Pool | None = None
        self.ownership: Ownership | None = None
        self.counting: Callable[[ExchangeRecord], None] | None = None
        self.revocations: Revocations | None = None
        self.budgeting: Budgeting | None = None
        self.holding: Holding | None = None
        self.sockets: dict[str, LiveSocket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(THREADS, "tidegate-inspection")
        self._lines: list[tuple[int, str]] = []
        self.vault = Vault(lambda: secrets.token_bytes(32))
        self._sweeping: asyncio.TimerHandle | None = None
        egress.harden(self)

    # ── requests ─────────────────────────────────────────────────────────────

    @guarded
    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Route, identify and admit before the body is read."""
        exchange = self._open(flow)
        exchange.crossing.sessions = self._sessions
        # a reload changes neither policy nor credentials under an exchange, nor who tells what its tokens mean
        exchange.credentials, exchange.verifier = self.credentials, self.verifier
        known = self.replay_caller if flow.is_replay == "request" else None
        request = flow.request
        fields, origin = edits.fields(request.headers), edits.origin(flow, self.policy)
        http1 = not (request.is_http2 or request.is_http3)
        head = Head(request.method, request.path, fields, origin, http1, edits.peer(flow))
        edits.hide_credentials(flow.request)
        event = steps.HeadArrived(head, known, now=time.time())
        if flow.is_replay is None and not self.entrance.idle(self.policy, proxied=edits.is_proxied(flow)):
            return self._enter(exchange, event)
        return self._arrived(exchange, event)

    def _enter(self, exchange: Exchange, event: steps.HeadArrived) -> Awaitable[None] | None:
        """Ask whom the client's connection speaks for, before anything else."""
        flow, entrance, now = exchange.flow, self.entrance, time.time()
        client, token = flow.client_conn.id, None
        tunnelled = entrance.has_tunnel(client)
        if edits.is_proxied(flow):
            token = (
                entrance.inside(self.policy, client) if tunnelled else entrance.shown(self.policy, event.head.headers)
            )
        if isinstance(token, str):
            exchange.token = token
            answer = exchange.verifier.cached(token, now)
            if answer is None:
                return self._enter_later(exchange, event, token)
            return self._arrived(exchange, replace(event, standing=by_token(answer, tunnelled=tunnelled)))
        if token is not None:
            return self._arrived(exchange, replace(event, standing=token))
        found = entrance.by_peer(self.policy, entrance.certified(client, event.head.peer), now)
        if isinstance(found, Denial):
            return self._arrived(exchange, replace(event, unknown_peer=found))
        return self._arrived(exchange, replace(event, standing=found))

    async def _enter_later(self, exchange: Exchange, event: steps.HeadArrived, token: str) -> None:
        answer = await exchange.verifier.identify(token, time.time())
        tunnelled = self.entrance.has_tunnel(exchange.flow.client_conn.id)
        waiting = self._arrived(exchange, replace(event, standing=by_token(answer, tunnelled=tunnelled)))
        if waiting is not None:
            await waiting

    def _arrived(self, exchange: Exchange, event: steps.HeadArrived) -> Awaitable[None] | None:
        step = exchange.crossing.receive(event)
        if isinstance(event.standing, Denial):
            exchange.last = self.entrance.has_tunnel(exchange.flow.client_conn.id)
            exchange.refuse()
            return None
        if isinstance(step, steps.Identify):
            exchange.token = step.token
            caller = exchange.verifier.cached(step.token, time.time(), step.shown)
            if caller is None:
                return self._identify(exchange, step)
            step = exchange.crossing.receive(steps.CallerKnown(caller))
        self._admitted(exchange, step)
        return None

    async def _identify(self, exchange: Exchange, step: steps.Identify) -> None:
        caller = await exchange.verifier.identify(step.token, time.time(), step.shown)
        self._admitted(exchange, exchange.crossing.receive(steps.CallerKnown(caller)))

    def _admitted(self, exchange: Exchange, step: steps.Step) -> None:
        if isinstance(step, steps.ReadBody):
            announced = exchange.flow.request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > step.limit:
                step = exchange.crossing.receive(steps.Stopped(judging.too_large(step.limit)))
        if isinstance(step, steps.Refuse):
            exchange.refuse()

    @guarded
    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Judge the body; what may go on is recorded, then made ready to send."""
        exchange = self.exchanges[flow.id]
        exchange.request_bytes = len(flow.request.raw_content or b"")
        if exchange.crossing.stage is Stage.OVER:
            flow.request.data.content = b""  # refused on its head: nobody may see what follows it
            exchange.refuse()
            return None
        if exchange.crossing.stage is Stage.PASSING:
            exchange.clear()
            return None
        event = steps.BodyArrived(flow.request.raw_content or b"", exchange.masked_before)
        return self._judge(exchange, event)

    def _judge(self, exchange: Exchange, event: steps.BodyArrived) -> Awaitable[None] | None:
        if exchange.tee is not None:
            exchange.tee.sent(event.data)
        if exchange.request_bytes > THREAD_BYTES:
            return self._judge_aside(exchange, event)
        step = exchange.crossing.receive(event)
        if isinstance(step, steps.Extract | steps.LookUp):
            return self._judge_on(exchange, event, step)
        return self._judged(exchange, step)

    async def _judge_aside(self, exchange: Exchange, event: steps.BodyArrived) -> None:
        await self._judge_on(exchange, event, await self._aside(exchange, event))

    async def _judge_on(self, exchange: Exchange, event: steps.BodyArrived, step: steps.Step) -> None:
        """Judge a body once what it asks about is known: whose the stored things are, what is in its attachments."""
        while isinstance(step, steps.Extract | steps.LookUp):
            if isinstance(step, steps.LookUp):
                event = replace(event, owners=await self._owners(exchange, step.stored))
            else:
                event = replace(event, extracted=await self.extractor.extract(step.attachments))
            if exchange.crossing.stage is not Stage.BODY:  # it was stopped meanwhile
                exchange.refuse()
                return
            # what was extracted may be larger than the body
            large = exchange.request_bytes > THREAD_BYTES or event.extracted is not None
            step = await self._aside(exchange, event) if large else exchange.crossing.receive(event)
        waiting = self._judged(exchange, step)
        if waiting is not None:
            await waiting

    async def _owners(self, exchange: Exchange, asked: tuple[Stored, ...]) -> Owners | None:
        """Find out which of these are the caller's; where nobody can tell, the exchange ends."""
        crossing = exchange.crossing
        assert self.ownership is not None
        assert crossing.route is not None
        assert crossing.caller is not None
        try:
            found: Owners = await asyncio.wrap_future(
                self.ownership.find(crossing.route.connection.name, crossing.caller, asked)
            )
        except StateError:
            if crossing.stage is not Stage.OVER:
                crossing.receive(steps.Stopped(LOST, Outcome.FAILED))
            return None
        return found

    async def _aside(self, exchange: Exchange, event: Lookable) -> steps.Step:
        """Take a large body: it is looked at in a thread, and counts only if nothing has ended the exchange by then."""
        crossing, stage = exchange.crossing, exchange.crossing.stage
        looked = await asyncio.get_running_loop().run_in_executor(self._threads, crossing.look, event)
        if crossing.stage is not stage:
            assert crossing.denial is not None
            return steps.Refuse(crossing.denial)
        if not exchange.flow.client_conn.connected and not exchange.flow.is_replay:
            return crossing.receive(steps.Stopped(CLIENT_GONE, Outcome.ABORTED))
        return crossing.receive(looked)

    def _judged(self, exchange: Exchange, step: steps.Step) -> Awaitable[None] | None:
        exchange.flow.request.data.content = exchange.crossing.masked_body
        if isinstance(step, steps.Refuse):
            exchange.refuse()
            return None
        if isinstance(step, steps.AskModel):
            return self._ask_model(exchange, step)
        if isinstance(step, steps.Spend):
            return self._spend(exchange, step)
        if isinstance(step, steps.Hold):
            return self._ask_people(exchange, step)
        if exchange.strict:
            return self._keep_intent(exchange)
        self._send(exchange, exchange.crossing.receive(steps.IntentKept(kept=True)))
        return None

    async def _ask_people(self, exchange: Exchange, hold: steps.Hold) -> None:
        """Have a request wait for people; go on with what they say, or judge it anew by a policy that is new."""
        assert self.holding is not None
        crossing, loop = exchange.crossing, asyncio.get_running_loop()
        large = exchange.request_bytes > THREAD_BYTES
        shown = await loop.run_in_executor(self._threads, crossing.shown) if large else crossing.shown()
        said = await self.holding.held(exchange, hold, lambda: self.policy, shown)
        caller = await self._still(exchange)
        if isinstance(caller, Denial) and crossing.stage is Stage.HOLD:
            crossing.receive(steps.Stopped(caller))
        if isinstance(caller, Denial) or crossing.stage is not Stage.HOLD:  # or it was stopped meanwhile
            await self.holding.unsent(exchange)
            exchange.refuse()
            return
        if said is None:
            await self._begin_again(exchange, caller)
            return
        if large and isinstance(said, steps.Decided) and said.denial is None:
            step = await self._aside(exchange, said)
        else:
            step = crossing.receive(said)
        waiting = self._judged(exchange, step)
        if waiting is not None:
            await waiting
        if exchange.crossing.stage is Stage.OVER:  # before its client knows, and comes again
            await self.holding.unsent(exchange)

    async def _still(self, exchange: Exchange) -> Caller | Denial:
        """Say who it is that has waited for people: the token may have been taken back meanwhile."""
        before = exchange.crossing.caller
        assert before is not None
        if exchange.token is None:
            return before
        now = await self.verifier.again(exchange.token, time.time())
        same = isinstance(now, Caller) and (now.identity, now.subject) == (before.identity, before.subject)
        return now if same or isinstance(now, Denial) else NO_LONGER_KNOWN

    async def _begin_again(self, exchange: Exchange, caller: Caller) -> None:
        """Judge a held request by the policy now in force, from its head on."""
        head, event = exchange.again(self.policy)
        crossing = exchange.crossing
        crossing.sessions, exchange.credentials = self._sessions, self.credentials
        known = {each.name for each in self.policy.identities or ()}
        if caller.identity not in known:
            step: steps.Step = crossing.receive(steps.Stopped(NO_LONGER_KNOWN))
        else:
            step = crossing.receive(steps.HeadArrived(head, caller, now=time.time()))
        if not isinstance(step, steps.ReadBody):
            exchange.refuse()
            return
        waiting = self._judge(exchange, event)
        if waiting is not None:
            await waiting

    async def _ask_model(self, exchange: Exchange, ask: steps.AskModel) -> None:
        """Judge a request once the local model has read it, or not in time."""
        pool = self.ner
        if pool is not None and pool.ner == ask.ner:
            answer = await pool.ask(ask.texts)
            said = steps.ModelSaid(answer.spans, answer.unread)
        else:  # a reload put another model in force after this request was judged
            said = steps.ModelSaid(unread=Unread.FAILED)
        if exchange.crossing.stage is not Stage.NER:  # it was stopped meanwhile
            exchange.refuse()
            return
        large = exchange.request_bytes > THREAD_BYTES and bool(said.spans)
        step = await self._aside(exchange, said) if large else exchange.crossing.receive(said)
        waiting = self._judged(exchange, step)
        if waiting is not None:
            await waiting

    async def _spend(self, exchange: Exchange, step: steps.Spend) -> None:
        """Go on with a request once what it costs was taken out of its budgets."""
        denial = spending.LOST if self.budgeting is None else await self.budgeting.take(exchange, step.order)
        if exchange.crossing.stage is not Stage.BUDGET:  # it was stopped meanwhile
            self._settle(exchange)
            exchange.refuse()
            return
        waiting = self._judged(exchange, exchange.crossing.receive(steps.Spent(denial)))
        if waiting is not None:
            await waiting

    def _settle(self, exchange: Exchange) -> None:
        if self.budgeting is not None and exchange.held is not None:
            self.budgeting.settle(exchange)

    async def _keep_intent(self, exchange: Exchange) -> None:
        try:
            await self.recorder.intent(exchange.record())
            kept = True
        except RecordingError:
            kept = False
        self._send(exchange, exchange.crossing.receive(steps.IntentKept(kept=kept)))

    def _send(self, exchange: Exchange, step: steps.Step) -> None:
        if not isinstance(step, steps.Send):
            exchange.refuse()
            return
        connection = step.clearance.verdict.grant.route.connection
        if connection.credential is not None and connection.name not in exchange.credentials:
            exchange.crossing.receive(steps.Stopped(NO_CREDENTIAL))
            exchange.refuse()
            return
        if connection.name in exchange.credentials:
            exchange.expect_no_echo(exchange.credentials[connection.name].reveal())
        edits.write_request(exchange.flow, step)
        exchange.clear(step.clearance)
        exchange.meter = AnswerMeter(exchange.limits, time.monotonic())
        self._watch(exchange.meter.due())

    # ── answers ──────────────────────────────────────────────────────────────

    @guarded
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Decide how an answer crosses, before the client has seen any of it."""
        exchange = self.exchanges[flow.id]
        assert flow.response is not None
        if exchange.crossing.stage is Stage.OVER:
            return
        if exchange.crossing.stage is Stage.PASSING:
            flow.response.stream = True
            exchange.release()
            return
        if exchange.meter is not None:
            exchange.meter.began(time.monotonic())
            self._watch(exchange.meter.due())
        if exchange.echo:
            edits.drop_fields_with(flow.response, exchange.echo)
        head = steps.AnswerBegan(flow.response.status_code, edits.fields(flow.response.headers))
        step = exchange.crossing.receive(head)
        if exchange.crossing.call is not None:
            names = grpc_calls.status_names(head.headers)
            exchange.status_fields = tuple(pair for pair in head.headers if pair[0] in names)
        most = exchange.limits.bytes
        announced = flow.response.headers.get("content-length", "")
        if isinstance(step, steps.Buffer) and announced.isdecimal() and int(announced) > most:
            step = exchange.crossing.receive(steps.Stopped(limit(Reason.ANSWER_TOO_LARGE)))
        if isinstance(step, steps.Refuse):
            flow.error = Error(Error.KILLED_MESSAGE)  # the egress then refuses the client and stops the upstream
        elif isinstance(step, steps.OpenSocket):
            edits.write_answer_head(flow.response, step.drop, exchange.id, streamed=True, http1=False)
            self._tell_rates(exchange)
        elif isinstance(step, (steps.Stream, steps.Buffer)):
            streamed = isinstance(step, steps.Stream)
            http1 = not flow.request.is_http2
            edits.write_answer_head(flow.response, step.drop, exchange.id, streamed=streamed, http1=http1)
            self._tell_rates(exchange)
            if streamed:
                flow.response.stream = functools.partial(self._relay, exchange)
                exchange.release()

    @staticmethod
    def _tell_rates(exchange: Exchange) -> None:
        if exchange.rate_fields and exchange.flow.response is not None:
            told = () if exchange.crossing.shape.grpc else exchange.rate_fields
            edits.write_rate_fields(exchange.flow.response, told)

    def _relay(self, exchange: Exchange, chunk: bytes) -> list[bytes]:
        """Take a chunk of a streamed answer (``b""`` at its end); return what may leave. Never raises, never empty."""
        crossing = exchange.crossing
        if crossing.stage is not Stage.STREAM:
            return []
        try:
            passed = exchange.meter.received(len(chunk), time.monotonic()) if exchange.meter else None
            if exchange.tee is not None and passed is None:
                exchange.tee.answered(chunk)
            if passed is not None:
                step = crossing.receive(steps.Stopped(limit(passed)))
                data = step.data if isinstance(step, steps.Emit) else b""
            else:
                data = self._advance(exchange, chunk)
            shown = exchange.shown(exchange.emitted(data), last=crossing.outcome is not None)
        except Exception as bug:
            log.error("tidegate failed in a stream: %s", type(bug).__name__)
            step = crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            shown = exchange.emitted(step.data if isinstance(step, steps.Emit) else b"")
        if crossing.outcome is not None and chunk:
            self._cut(exchange)
        if exchange.meter is not None and exchange.meter.limits.held is not None:
            self._hold(exchange, exchange.meter)
        return shown

    def _advance(self, exchange: Exchange, chunk: bytes) -> bytes:
        """Take a chunk of a stream; return what may leave. What it makes is kept first, and its end waits for that."""
        crossing = exchange.crossing
        data = self._settled(exchange, at_end=not chunk) if exchange.claims else b""
        if crossing.stage is not Stage.STREAM:
            return data
        step = crossing.receive(steps.AnswerChunk(chunk) if chunk else steps.AnswerEnded())
        if isinstance(step, steps.Claim):
            if step.made:
                self._claim(exchange, step.made)
            return data + self._settled(exchange, at_end=not chunk)
        return data + step.data if isinstance(step, steps.Emit) else data

    def _claim(self, exchange: Exchange, made: tuple[Stored, ...]) -> Future[None]:
        """Have it kept that the caller made these; go on with a stream as soon as it is."""
        crossing, loop = exchange.crossing, asyncio.get_running_loop()
        assert self.ownership is not None
        assert crossing.route is not None
        assert crossing.caller is not None
        done = self.ownership.claim(crossing.route.connection.name, crossing.caller, made, exchange.shown_model())
        exchange.claims.append(done)

        def tell(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is gone waits for nothing
                loop.call_soon_threadsafe(self._resume, exchange)

        done.add_done_callback(tell)
        return done

    def _settled(self, exchange: Exchange, *, at_end: bool) -> bytes:
        """Return what of a stream waited for claims that are kept by now; at its end they are waited for."""
        if at_end:  # mostly done long since; a stream that is over in one piece waits for the disk
            wait(exchange.claims, CLAIM_SECONDS)
        if not at_end and not all(each.done() for each in exchange.claims):
            return b""
        claims, exchange.claims = exchange.claims, []
        kept = all(each.done() and each.exception() is None for each in claims)
        step = exchange.crossing.receive(steps.Claimed(kept))
        return step.data if isinstance(step, steps.Emit) else b""

    def _resume(self, exchange: Exchange) -> None:
        """Have the connection ask for what waited."""
        ready = exchange.claims and all(each.done() for each in exchange.claims)
        handler = self._handler(exchange.flow)
        if ready and handler is not None and exchange.crossing.stage is Stage.STREAM:
            exchange.later(egress.resume(handler, exchange.flow))

    def _hold(self, exchange: Exchange, meter: AnswerMeter) -> None:
        """Watch how long what is held back has waited."""
        meter.holds(exchange.crossing.stuck, time.monotonic())
        if exchange.crossing.stage is Stage.STREAM:
            self._watch(meter.due())

    def overdue(self, flow: http.HTTPFlow) -> tuple[bytes, bool]:
        """Mask what has been held back for too long; return what leaves, and whether that ends the answer."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or exchange.meter is None or exchange.crossing.stage is not Stage.STREAM:
            return b"", False
        if exchange.claims:  # nothing leaves before these are kept, which they soon are
            exchange.meter.holds((), time.monotonic())
            self._hold(exchange, exchange.meter)
            return b"", False
        stuck = exchange.meter.overdue(time.monotonic())
        crossing = exchange.crossing
        try:
            step = crossing.receive(steps.HeldTooLong(stuck))
            data = step.data if isinstance(step, steps.Emit) else b""
            shown = exchange.shown(exchange.emitted(data), last=crossing.outcome is not None)
        except Exception as bug:
            log.error("tidegate failed over held text: %s", type(bug).__name__)
            step = crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            shown = exchange.emitted(step.data if isinstance(step, steps.Emit) else b"")
        exchange.meter.holds((), time.monotonic())  # what cannot leave even so waits anew
        self._hold(exchange, exchange.meter)
        return b"".join(shown), crossing.outcome is not None

    @guarded
    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Mask a whole answer. The evidence is sealed once the answer is on its way (``over``), unless it is strict."""
        exchange = self.exchanges[flow.id]
        assert flow.response is not None
        trailers, flow.response.trailers = flow.response.trailers, None
        if trailers is not None:
            exchange.status_fields += edits.fields(trailers)
        if exchange.crossing.stage in (Stage.WHOLE, Stage.STREAM):  # STREAM: another addon's reply, no callable saw it
            data = flow.response.raw_content or b""
            if exchange.tee is not None and len(data) <= exchange.limits.bytes:
                exchange.tee.answered(data)
            if len(data) > exchange.limits.bytes:
                step = exchange.crossing.receive(steps.Stopped(limit(Reason.ANSWER_TOO_LARGE)))
            elif len(data) > THREAD_BYTES and exchange.crossing.stage is Stage.WHOLE:
                return self._answer_aside(exchange, data)
            else:
                step = exchange.crossing.whole(data)
            if isinstance(step, steps.LookUp | steps.Claim):
                return self._answer_on(exchange, data, step)
            exchange.show(self._answered(exchange, step))
        elif exchange.crossing.stage is Stage.PASSING:
            exchange.crossing.receive(steps.AnswerEnded())
        elif exchange.crossing.stage is Stage.SOCKET:
            self._open_socket(exchange)
        if exchange.crossing.stage is not Stage.SOCKET:
            self._complete(exchange)
        return None

    async def _answer_aside(self, exchange: Exchange, data: bytes) -> None:
        await self._answer_on(exchange, data, await self._aside(exchange, steps.AnswerWhole(data)))

    async def _answer_on(self, exchange: Exchange, data: bytes, step: steps.Step) -> None:
        """Go on with a whole answer once it is known whose what it lists is, and kept whose what it makes is."""
        crossing = exchange.crossing
        if isinstance(step, steps.LookUp):
            event = steps.AnswerWhole(data, await self._owners(exchange, step.stored))
            if crossing.stage is not Stage.WHOLE:
                step = steps.Nothing()
            else:
                step = await self._aside(exchange, event) if len(data) > THREAD_BYTES else crossing.receive(event)
        if isinstance(step, steps.Claim):
            if step.made:
                self._claim(exchange, step.made)
            results = await asyncio.gather(*map(asyncio.wrap_future, exchange.claims), return_exceptions=True)
            kept = all(each is None for each in results)
            exchange.claims = []
            step = steps.Nothing() if crossing.stage is Stage.OVER else crossing.receive(steps.Claimed(kept))
        body = self._answered(exchange, step)
        if crossing.tokens is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, exchange.show, body)
        self._complete(exchange)

    def _complete(self, exchange: Exchange) -> None:
        """Let a gRPC call have its status; seal the evidence before the answer leaves, where the policy wants it so."""
        response = exchange.flow.response
        if exchange.crossing.call is not None and response is not None and not exchange.refused:
            response.trailers = exchange.end_call(())
        if exchange.strict:
            self._seal(exchange)

    def _answered(self, exchange: Exchange, step: steps.Step) -> bytes:
        """Put a whole answer, or the refusal in its place, on the flow; return the body of the answer."""
        if isinstance(step, steps.Emit):
            assert exchange.flow.response is not None
            body = b"".join(exchange.emitted(step.data))
            edits.write_answer_body(exchange.flow.response, body)
            exchange.release()
            return body
        exchange.refuse()
        return b""

    def _open_socket(self, exchange: Exchange) -> None:
        """Let the client have its WebSocket, if the proxy is going to make one."""
        flow = exchange.flow
        assert flow.response is not None
        if flow.websocket is None or exchange.crossing.status != flow.response.status_code:
            self._fail(exchange)
            exchange.refuse()
            return
        flow.response.data.content = b""
        live = self.sockets[flow.id] = LiveSocket(exchange, THREAD_BYTES, self._cut, self.extractor)
        if self.budgeting is not None and exchange.held is not None:
            live.pays = self.budgeting.go_on
        exchange.release()

    @guarded
    def tidegate_socket(self, said: Said) -> Awaitable[None] | None:
        """Judge what a peer did on a WebSocket: nothing is sent but what this puts on ``said``."""
        socket = self.socket(said.flow)
        return None if socket is None else socket.take(said)

    @guarded
    async def tidegate_call(self, spoken: Spoken) -> None:
        """Judge what a client says in a call in which both sides speak: the first messages as the body of a request."""
        exchange = self.exchanges[spoken.flow.id]
        crossing = exchange.crossing
        exchange.request_bytes += len(spoken.data)
        room = crossing.grant.request_bytes if crossing.grant is not None else 0
        if spoken.waiting > grpc_calls.AHEAD * room and crossing.stage is not Stage.OVER:
            crossing.receive(steps.Stopped(judging.too_large(room)))
            return
        if spoken.first:
            if crossing.stage is Stage.BODY:
                waiting = self._judge(exchange, steps.BodyArrived(spoken.data))
                if waiting is not None:
                    await waiting
            if crossing.stage is Stage.SENT and not exchange.refused:
                spoken.released = crossing.masked_body
            return
        if crossing.stage not in (Stage.SENT, Stage.STREAM):
            return
        event = steps.MoreSaid(spoken.data, time.time())
        step = await self._more(exchange, event)
        if isinstance(step, steps.Extract):
            event = replace(event, extracted=await self.extractor.extract(step.attachments))
            step = await self._more(exchange, event)
        if isinstance(step, steps.Relay):
            spoken.released = exchange.heard(b"".join(step.up), time.monotonic())

    async def _more(self, exchange: Exchange, event: steps.MoreSaid) -> steps.Step:
        if exchange.crossing.stage is Stage.OVER:  # it was stopped meanwhile
            return steps.Nothing()
        if len(event.data) > THREAD_BYTES or event.extracted is not None:
            return await self._aside(exchange, event)
        return exchange.crossing.receive(event)

    @guarded
    def error(self, flow: http.HTTPFlow) -> None:
        """Seal an exchange that ended without an answer, or in the middle of one."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None:
            if flow.id in self.tunnels or not flow.live:
                return
            exchange = self._open(flow)
        if exchange.crossing.stage is not Stage.OVER:
            step = exchange.crossing.receive(_lost(exchange))
            data = step.data if isinstance(step, steps.Emit) else b""
            exchange.farewell = b"".join(exchange.shown(exchange.emitted(data), last=True))
        if exchange.crossing.denial is not None and flow.error is not None:
            flow.error.msg = exchange.crossing.denial.message  # mitmproxy's own text may quote what a peer sent
        flow.request.data.content = exchange.crossing.masked_body
        edits.hide_credentials(flow.request)
        self._seal(exchange)

    # ── what the egress asks ─────────────────────────────────────────────────

    def outgoing(self, flow: http.HTTPFlow, request: http.Request) -> http.Request | None:
        """Return the copy to send if the request is still what was cleared, with the connection's credential on it."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or not exchange.is_cleared(request):
            return None
        exchange.sent = True
        route = exchange.crossing.route
        if route is None or route.connection.credential is None:
            return request
        secret = exchange.credentials[route.connection.name]
        return edits.with_credential(request, route.connection.credential.header, secret.reveal())

    def shown(self, flow: http.HTTPFlow, response: http.Response) -> bytes | None:
        """Return the body that the client gets in place of the one on the flow: with values where that has tokens."""
        exchange = self.exchanges.get(flow.id)
        return None if exchange is None else exchange.for_client(response)

    def released(self, flow: http.HTTPFlow, response: http.Response) -> bool:
        """Say whether an answer may reach the client: the gate let exactly this one go."""
        if flow.id in self.tunnels and flow.request.method == "CONNECT":
            self.tunnels.discard(flow.id)
            return response.status_code == 200
        exchange = self.exchanges.get(flow.id)
        return exchange is not None and exchange.is_released(response)

    def arrived(self, flow: http.HTTPFlow, size: int) -> None:
        """Measure bytes of an answer that is being collected; those of a stream are measured where they are relayed."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or exchange.meter is None or exchange.crossing.stage is not Stage.WHOLE:
            return
        exchange.crossing.came += size
        passed = exchange.meter.received(size, time.monotonic())
        if passed is not None:
            self._end(exchange, passed)

    def left(self, flow: http.HTTPFlow) -> None:
        """Note that the client has reset the stream of an exchange; its connection may go on."""
        exchange = self.exchanges.get(flow.id)
        if exchange is not None:
            exchange.abandoned = True

    def refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """Return the words for an exchange that ends before its answer began."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None:  # no hook of ours has seen it: another addon halted the chain
            exchange = self._open(flow)
            edits.hide_credentials(flow.request)
        if exchange.crossing.denial is None:
            self._fail(exchange)
        return exchange.refusal()

    def ending(self, flow: http.HTTPFlow) -> http.Headers | None:
        """Return the trailers that may end an answer; they are a gRPC call's, and were looked at."""
        exchange = self.exchanges.get(flow.id)
        return None if exchange is None else exchange.end_call(())

    def hasty(self, flow: http.HTTPFlow) -> bool:
        """Say whether a request is refused already, and its client may never end it: a gRPC call."""
        exchange = self.exchanges.get(flow.id)
        return exchange is not None and exchange.refused and exchange.crossing.shape.grpc

    def live(self, flow: http.HTTPFlow) -> int:
        """Return how many bytes a message may have, of a call whose client may speak at any time; 0 for all others."""
        exchange = self.exchanges.get(flow.id)
        crossing = exchange.crossing if exchange is not None else None
        if crossing is None or crossing.call is None or not crossing.call.live or crossing.grant is None:
            return 0
        return crossing.grant.request_bytes if crossing.stage is Stage.BODY else 0

    def farewell(self, flow: http.HTTPFlow) -> bytes:
        """Return the last words for a stream whose upstream broke off: the dialect's own error event."""
        exchange = self.exchanges.get(flow.id)
        return exchange.farewell if exchange is not None else b""

    def resumed(self, flow: http.HTTPFlow) -> list[bytes]:
        """Return what of a stream waited until what it made was kept."""
        exchange = self.exchanges.get(flow.id)
        if exchange is None or not exchange.claims or exchange.crossing.stage is not Stage.STREAM:
            return []
        try:
            data = self._settled(exchange, at_end=False)
            shown = exchange.shown(exchange.emitted(data), last=exchange.crossing.outcome is not None)
        except Exception as bug:
            log.error("tidegate failed in a stream: %s", type(bug).__name__)
            step = exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            shown = exchange.emitted(step.data if isinstance(step, steps.Emit) else b"")
        if exchange.crossing.outcome is not None:
            self._cut(exchange)
        return shown

    def socket(self, flow: http.HTTPFlow) -> LiveSocket | None:
        """Return who judges the messages of a WebSocket."""
        return self.sockets.get(flow.id)

    def over(self, flow: http.HTTPFlow) -> None:
        """Forget an exchange: the HTTP layer is done with it."""
        self.sockets.pop(flow.id, None)
        exchange = self.exchanges.pop(flow.id, None)
        if exchange is not None:
            if exchange.crossing.stage is Stage.SOCKET:  # the relay cut it, because the gate failed under it
                exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
            try:
                self._seal(exchange)
            except Exception as bug:
                log.error("tidegate failed to seal an exchange: %s", type(bug).__name__)
                self.recorder.lose()
            exchange.stop_watching()
            if exchange.used and self.holding is not None:
                exchange.later(self.holding.unsent(exchange))

    def stop(self) -> None:
        """Seal what is still open, because the process is about to end."""
        self.extractor.close()
        for exchange in list(self.exchanges.values()):
            if exchange.crossing.stage is not Stage.OVER:
                exchange.crossing.receive(steps.Stopped(STOPPING, Outcome.ABORTED))
            self._seal(exchange)
        self._say()

    def close_state(self) -> None:
        """Close the control store. May be called again."""
        if self.revocations is not None:
            self.revocations.close()
        if self.budgeting is not None:
            self.budgeting.close()
        if self.ownership is not None:
            self.ownership.control.close()

    # ── parts ────────────────────────────────────────────────────────────────

    def deny_bug(self, hook: str, data: Any, bug: Exception) -> None:
        """Refuse what a hook was asked about, because the hook failed."""
        log.error("tidegate failed in %s: %s", hook, type(bug).__name__)
        try:
            self._refuse_bug(hook, data)
        except Exception as worse:
            log.error("tidegate failed to refuse after %s: %s", hook, type(worse).__name__)

    def _refuse_bug(self, hook: str, data: Any) -> None:
        if isinstance(data, server_hooks.ServerConnectionHookData):
            data.server.error = BROKEN
        elif isinstance(data, http.HTTPFlow):
            exchange = self.exchanges.get(data.id) or self._open(data)
            self._fail(exchange)
            data.request.data.content = b""
            edits.hide_credentials(data.request)
            if hook in ("responseheaders", "error"):
                data.error = Error(Error.KILLED_MESSAGE)
                exchange.crossing.status = BUG.status if hook == "responseheaders" else exchange.crossing.status
            else:
                exchange.refuse()
            if hook == "http_connect":
                self._seal(exchange)  # no other hook follows a refused CONNECT
        elif isinstance(data, Spoken):
            data.released = None  # the relay then ends the call
            self._fail(self.exchanges[data.flow.id])
        elif isinstance(data, Said):
            data.released = None  # the relay then asks for the last words, and ends the WebSocket
            socket = self.socket(data.flow)
            if socket is not None:
                socket.stop(BUG, Outcome.FAILED)
        elif hasattr(data, "client_conn"):
            self.tcp_start(data)

    def _fail(self, exchange: Exchange) -> None:
        """End an exchange as a bug; what was sealed of it is sealed again."""
        exchange.revoke()
        exchange.crossing.receive(steps.Stopped(BUG, Outcome.FAILED))
        exchange.sealed = False

    def _cut(self, exchange: Exchange, data: bytes = b"", code: int = POLICY, reason: str = "") -> None:
        handler = self._handler(exchange.flow)
        if handler is not None:  # None in a client replay: what follows is swallowed
            exchange.later(egress.cut(handler, exchange.flow, data, code, reason))

    def _watch(self, due: float) -> None:
        """Look at the time limits of all answers at ``due``, or earlier: one timer serves all of them."""
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        waiting = [
            each
            for each in self.exchanges.values()
            if each.meter is not None and each.crossing.stage in (Stage.SENT, Stage.STREAM, Stage.WHOLE)
        ]
        for each in waiting:
            assert each.meter is not None
            passed = each.meter.passed(now)
            if passed is None and each.meter.overdue(now):
                self._remind(each)
            elif passed is None:
                self._watch(each.meter.due())
            else:
                self._guarded_end(each, passed)

    def _remind(self, exchange: Exchange) -> None:
        """Have the HTTP layer ask for text that is overdue, in turn with what else happens to the stream."""
        handler = self._handler(exchange.flow)
        if handler is not None:
            exchange.later(egress.remind(handler, exchange.flow))

    def _sessions(self, who: Who, limits: TokenLimits) -> Session:
        """Return a caller's tokens; what nobody asks for in time is forgotten."""
        found = self.vault.session(who, limits, time.monotonic())
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_at(found.due, self._sweep)
        return found

    def _sweep(self) -> None:
        due = self.vault.sweep(time.monotonic())
        self._sweeping = None if due is None else asyncio.get_running_loop().call_at(due, self._sweep)

    def _guarded_end(self, exchange: Exchange, passed: Reason) -> None:
        """End an exchange for a limit; a bug in that ends it as a bug, and no other."""
        try:
            self._end(exchange, passed)
        except Exception as bug:
            log.error("tidegate failed at a limit: %s", type(bug).__name__)
            self._fail(exchange)
            self._cut(exchange)

    def _end(self, exchange: Exchange, passed: Reason) -> None:
        """End an exchange that broke a limit: with a refusal, or in a stream with the dialect's error event."""
        step = exchange.crossing.receive(steps.Stopped(limit(passed)))
        data = step.data if isinstance(step, steps.Emit) else b""
        self._cut(exchange, b"".join(exchange.shown(exchange.emitted(data), last=True)))

    def _seal(self, exchange: Exchange) -> None:
        if exchange.sealed:
            return
        exchange.sealed = True
        exchange.stop_watching()
        if exchange.held is not None:
            self._settle(exchange)
        record = exchange.record()
        originals = {} if exchange.tee is None else exchange.tee.originals()
        self.recorder.seal(record, exchange.state(), exchange.cut(), originals)
        if self.counting is not None:
            self.counting(record)
        flagged = any(each.stage == "media" and each.result == OnUnknown.FLAG for each in record.decisions)
        self._lines.append((logging.WARNING if flagged else logging.INFO, exchange.line(record, exchange.tokens)))
        if len(self._lines) == 1:  # said once the answer is on its way: nobody waits for the log
            asyncio.get_running_loop().call_soon(self._say)

    def _say(self) -> None:
        """Write the log lines of exchanges that are over."""
        lines, self._lines = self._lines, []
        for level, line in lines:
            log.log(level, line)


def _lost(exchange: Exchange) -> steps.Stopped:
    """Say who ended an exchange early: who broke the protocol, who sent too much, or who left."""
    flow, crossing = exchange.flow, exchange.crossing
    message = flow.error.msg if flow.error else ""
    reading = crossing.stage in (Stage.HEAD, Stage.CALLER, Stage.BODY)
    if message.startswith("Request body exceeds") and crossing.grant is not None:
        return steps.Stopped(judging.too_large(crossing.grant.request_bytes))
    if message.startswith("Response body exceeds"):
        return steps.Stopped(limit(Reason.ANSWER_TOO_LARGE))
    if reading and message == egress.TRAILERS:
        return steps.Stopped(NOT_HTTP)
    reset = exchange.abandoned or (not exchange.sent and message.startswith(egress.RESET))  # then it was no upstream
    if reset or "lient disconnected" in message or not flow.client_conn.connected:
        return steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
    if BROKEN in message:
        return steps.Stopped(BUG, Outcome.FAILED)
    return steps.Stopped(NOT_HTTP) if reading else steps.Stopped(UPSTREAM_FAILED, Outcome.FAILED)
