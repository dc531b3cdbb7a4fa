"""The order of an exchange, as a pure state machine: events in, actions out. No I/O, no clock, no await.

    HEAD ──▶ CALLER ──▶ BODY ──▶ BUDGET ──▶ INTENT ──▶ SENT ──▶ STREAM ──▶ OVER
      │        │         │├▶ NER ─▶┤│          │        ├─────▶ WHOLE ──▶ OVER
      │        │         │└▶ HOLD ▶┘│          │        │        └▶ CLAIM ─▶┤
      │        │         │    │     │          │        └─────▶ SOCKET ─▶ OVER
      ├▶ PASSING (unlisted: pass)   │          │
      └────────┴─────────┴────┴─────┴──────────┴── every refusal ───────▶ OVER

``HOLD`` is for requests that people have to approve, after ``NER`` if that is asked too; ``BUDGET`` is for those whose
rules have budgets. All others go straight on to ``INTENT``.

Each stage takes the product of the one before it (``Route -> Caller -> Grant -> Verdict -> Clearance``), so an
uninspected request has nothing to carry a credential. An event that does not belong to the stage is a bug and raises
``OutOfOrder``; whoever drives the machine answers a bug with ``Stopped``. Refusals are values: the action ``Refuse``.

A WebSocket is one exchange: its handshake passes these stages, and at ``SOCKET`` each message is judged (``sockets``).
This is the only place where the order is written and the only place where the stage changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from tidegate import approving, asking, calls, grpc_calls, headers, sockets, spending
from tidegate.approvals.holding import hold_for
from tidegate.approvals.spec import Ask
from tidegate.claiming import LOST, Claims, Looked
from tidegate.composing import judge_body
from tidegate.dialects import body as bodies
from tidegate.dialects import ownership
from tidegate.dialects.counting import RateHeaders
from tidegate.dialects.errors import GENERIC, GRPC, NO_CALLS, Calls, render, render_status
from tidegate.dialects.spec import Dialect, Endpoint, ErrorShape, FramingKind
from tidegate.duplex import Duplex
from tidegate.identity import claims, permission
from tidegate.identity.proof import Shown
from tidegate.inspection import media
from tidegate.inspection.bodies import MALFORMED, Inspected, inspect_answer
from tidegate.inspection.composed import Judge, inspect_whole
from tidegate.inspection.ner.spec import Ner, Unread
from tidegate.inspection.tokens import Counts, Session, TokenLimits, Who
from tidegate.judging import (
    NAMES,
    NOTHING,
    Judged,
    Unopened,
    Unowned,
    again,
    barred,
    beside,
    inspect,
    judge,
    parse,
    permit,
    situation_of,
    too_large,
    whose,
    worst,
)
from tidegate.limits.budgets import Order
from tidegate.limits.prices import Price
from tidegate.limits.usage import Meter, Usage
from tidegate.model import (
    ACTING,
    NOWHERE,
    Action,
    Asked,
    Caller,
    Clearance,
    Decision,
    Denial,
    Direction,
    Finding,
    Grant,
    Head,
    Outcome,
    Owners,
    Reason,
    Route,
    Scanned,
    Standing,
    Stored,
    Verdict,
)
from tidegate.policy.policy import Policy
from tidegate.policy.role_actions import seen_by
from tidegate.policy.routing import Pass, route
from tidegate.steps import (
    AnswerBegan,
    AnswerChunk,
    AnswerEnded,
    AnswerWhole,
    AskModel,
    BodyArrived,
    Buffer,
    CallerKnown,
    Claim,
    Claimed,
    ClientSaid,
    Decided,
    Emit,
    Event,
    Extract,
    Forward,
    HeadArrived,
    HeldTooLong,
    Hold,
    Identify,
    IntentKept,
    KeepIntent,
    LookUp,
    ModelSaid,
    MoreSaid,
    Nothing,
    OpenSocket,
    OutOfOrder,
    ReadBody,
    Refuse,
    Relay,
    Send,
    SocketRested,
    Spend,
    Spent,
    Stage,
    Step,
    Stopped,
    Stream,
    UpstreamSaid,
)
from tidegate.streams import framings, grpc
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.channels import HeldCaps
from tidegate.streams.grpc_answers import STATUS, Answering, GrpcAnswer, masked_trailers, whole_answer
from tidegate.streams.opaque import OpaqueAnswer
from tidegate.streams.restoring import RestoredStream, restored_whole
from tidegate.streams.tokenising import Tokens
from tidegate.streams.unpacking import Unpacker, can_undo

JSON = "application/json"

Lookable = BodyArrived | MoreSaid | ModelSaid | Decided | AnswerWhole
"""Events that bring much to look at."""
type Sessions = Callable[[Who, TokenLimits], Session]
"""Gives a caller's session of tokens, as it is at this time."""

ANONYMOUS = Caller(identity="none", subject="anyone")
"""The caller of every request under ``identity: none``. Bindings name it as the subject ``none:anyone``."""


class Crossing:
    """One exchange under one policy. After each event the attributes hold what is known so far, for the evidence."""

    def __init__(self, policy: Policy, exchange: str) -> None:
        self.policy = policy
        self.exchange = exchange
        self.stage = Stage.HEAD
        self.head: Head | None = None
        self.route: Route | None = None
        self.caller: Caller | None = None
        self.grant: Grant | None = None
        self.asked: Asked | None = None
        self.verdict: Verdict | None = None
        self.masked_body = b""
        self.prompt_findings: tuple[Finding, ...] = ()
        self.denial: Denial | None = None
        self.outcome: Outcome | None = None
        self.status: int | None = None
        self.decisions: list[Decision] = []
        self.answer_findings: tuple[Finding, ...] = ()
        self.streamed = False
        self.passing = False
        self.scanned: Scanned | None = None
        self.socket: sockets.Socket | None = None
        self.sessions: Sessions | None = None
        self.tokens: Tokens | None = None
        self.call: grpc_calls.Call | None = None
        self.heard = 0
        self.meter: Meter | None = None
        self.came = 0
        self.ask: Ask | None = None
        self.approval = ""
        self.received: BodyArrived | None = None
        self._told: ModelSaid | None = None
        self._admitted: Grant | None = None
        self._stream: StreamedAnswer | OpaqueAnswer | GrpcAnswer | None = None
        self._packed: Unpacker | None = None
        self._encodings: list[str] = []
        self._written_type: str | None = None
        self._answering: Answering | None = None
        self._unread: tuple[BodyArrived, Judged, tuple[str, ...]] | None = None
        self._calls = NO_CALLS
        self._claims = Claims()
        self._answer_head = AnswerHead()
        self._upstream: int | None = None
        self._has_tokens = True
        self._restoring: RestoredStream | None = None
        self._is_data = False
        self._standing: Standing | None = None
        self._now: float | None = None

    @property
    def shape(self) -> ErrorShape:
        """The form of a refusal that this caller's SDK understands."""
        if self.route is not None:
            return self._dialect().error
        return GRPC if self.head is not None and grpc_calls.is_call(self.head) else GENERIC

    @property
    def calls(self) -> Calls:
        """The JSON-RPC calls that a refusal answers."""
        return calls.answerable(self.policy.engine, self._calls)

    def receive(self, event: Event) -> Step:
        """Take one event, move to the next stage, and say what to do."""
        if isinstance(event, Stopped):
            return self._stopped(event)
        step = _ORDER.get((self.stage, type(event)))
        if step is None:
            raise OutOfOrder(f"{type(event).__name__} at {self.stage.name}")
        return step(self, event)

    def look(self, event: Lookable) -> Lookable:
        """Inspect what an event brings, without taking it; return the event that carries what was found.

        Changes nothing here, so a thread may do it while the exchange goes on, or ends.
        """
        if isinstance(event, BodyArrived):
            judged = self._judge(event, self.policy)
            looked = again(self.policy, judged, event.masked) if isinstance(judged, Judged) else judged
            return replace(event, looked=looked)
        if isinstance(event, ModelSaid):
            return replace(event, looked=self._with_told(event))
        if isinstance(event, MoreSaid):
            return replace(event, looked=self._judge_more(event))
        if isinstance(event, Decided):
            return replace(event, looked=self._as_approved())
        return replace(event, looked=self._masked(event))

    # request ─────────────────────────────────────────────────────────────────

    def _head(self, event: HeadArrived) -> Step:
        self.head, self._now = event.head, event.now
        if isinstance(event.standing, Denial):
            return self._refuse("caller", event.standing)
        upgrade = sockets.wanted(event.head)
        if isinstance(upgrade, Denial):
            return self._refuse("head", upgrade)
        found = route(self.policy, event.head)
        if isinstance(found, Denial):
            return self._refuse("route", found)
        if isinstance(found, Pass):
            return self._pass(event, upgrade=upgrade)
        self.route = found
        denial = sockets.fits(self._endpoint(), asked=upgrade)
        if denial is not None:
            return self._refuse("route", denial)
        if self._endpoint().grpc is not None:
            call = grpc_calls.called(self.policy, found, self._endpoint(), event.head)
            if isinstance(call, Denial):
                return self._refuse("route", call)
            self.call = call
        self._decide("route", "allow", f"{found.connection.name}/{found.endpoint}")
        return self._ask_who(event)

    def _pass(self, event: HeadArrived, *, upgrade: bool) -> Step:
        """Let a request through that is for no connection, on a host where this is allowed."""
        if event.unknown_peer is not None:
            return self._refuse("caller", event.unknown_peer)
        if upgrade:
            return self._refuse("route", sockets.NO_SWITCH)
        self._decide("route", "pass")
        self.scanned = Scanned.NOTHING
        self.stage = Stage.PASSING
        self.passing = True
        return Forward()

    def _ask_who(self, event: HeadArrived) -> Step:
        """Find who calls: by the token of the request, else by its connection."""
        assert not isinstance(event.standing, Denial)
        if event.caller is not None or self.policy.identities is None:
            return self._admit(event.caller or ANONYMOUS)
        token = claims.credentials(event.head.headers)
        if event.unknown_peer is not None and claims.is_absent(token):
            return self._refuse("caller", event.unknown_peer)
        if event.standing is not None and claims.is_absent(token):
            return self._admit(event.standing.caller)
        if isinstance(token, Denial):
            return self._refuse("caller", token)
        self._standing = event.standing
        self.stage = Stage.CALLER
        return Identify(token.text, Shown(token.dpop, event.head))

    def _caller(self, event: CallerKnown) -> Step:
        if isinstance(event.caller, Denial):
            return self._refuse("caller", event.caller)
        if self._standing is not None and claims.contradicts(event.caller, self._standing):
            return self._refuse("caller", claims.TWO_CALLERS)
        return self._admit(event.caller)

    def _admit(self, caller: Caller) -> Step:
        assert self.route is not None
        self.caller = caller
        self._decide("caller", "allow", caller.identity)
        situation = situation_of(self.head, self.route, self._now) if self.policy.permissions.situated else NOWHERE
        grant = permission.admit(self.policy, self.route, caller, situation)
        if isinstance(grant, Denial):
            return self._refuse("grant", grant)
        self.grant = self._admitted = grant
        self._decide("grant", "allow", ",".join(grant.roles))
        self.policy = seen_by(self.policy, grant)
        if self.policy.tokens is not None and self.sessions is not None:
            assert self.head is not None
            who = whose(caller, self.route.connection, self.head)
            self.tokens = Tokens(self.sessions(who, self.policy.tokens), Counts())
        self.stage = Stage.BODY
        return ReadBody(grant.request_bytes)

    def _body(self, event: BodyArrived) -> Step:
        judged = event.looked or self.look(event).looked
        if isinstance(judged, Unopened):
            return Extract(judged.attachments)
        if isinstance(judged, Unowned):
            return LookUp(judged.stored)
        assert isinstance(judged, Judged)
        if self.policy.approvals is not None:
            self.received = event
        self._calls, self.route = judged.calls, judged.grant.route
        if event.owners is not None and judged.stage != "owner":
            self._decide("owner", "allow", f"stored things named: {len(event.owners.own)}")
        if self.policy.ner is not None and judged.denial is None:
            return self._ask(self.policy.ner, event, judged)
        return self._judged(judged)

    def _ask(self, ner: Ner, event: BodyArrived, judged: Judged) -> Step:
        """Have the model read what the rules let through."""
        assert self.head is not None
        assert self.grant is not None
        if self._endpoint().socket is not None or (self.call is not None and self.call.live):
            return self._without_model(ner, judged, Unread.SOCKET)
        encodings = headers.values(self.head.headers, "content-encoding")
        endpoint, limit = self._endpoint(), self.grant.request_bytes
        if endpoint.body and not endpoint.made_of.asks_plainly:
            told = self._content_type()
            texts = asking.texts_within(ner, self.policy, endpoint, self.grant, event.data, encodings, told)
        else:
            parts = [event.data] if self.call is None else grpc_calls.as_json(self.call, event.data, limit)
            asked = (asking.texts(ner, endpoint, each, encodings, limit) for each in parts)
            texts = tuple(dict.fromkeys(itertools.chain.from_iterable(asked)))
        if not texts:
            return self._judged(judged)
        self._unread = event, judged, texts
        self.stage = Stage.NER
        return AskModel(ner, texts)

    def _model_said(self, event: ModelSaid) -> Step:
        assert self.policy.ner is not None
        assert self._unread is not None
        looked = event.looked or self._with_told(event)
        (_, judged, texts), self._unread, self._told = self._unread, None, event
        unread = event.unread
        if looked is not None:
            assert isinstance(looked, tuple)
            judged, unread = looked
        if unread is not None:
            return self._without_model(self.policy.ner, judged, unread)
        self._decide("ner", worst(asking.own(judged.findings)), f"texts read: {len(texts)}")
        return self._judged(judged)

    def _with_told(self, event: ModelSaid) -> tuple[Judged, Unread | None] | None:
        """Judge the body once more with what the model found in it; ``None`` where there is nothing to add."""
        assert self._unread is not None
        body = self._unread[0]
        if event.unread is not None or not event.spans:
            return None
        policy, told = asking.with_told(self.policy, event.spans)
        once_more = self._judge(body, policy)
        assert isinstance(once_more, Judged)
        judged = again(self.policy, once_more, body.masked)
        return judged, Unread.MISSED if judged.denial is None and any(each.missed for each in told) else None

    def _without_model(self, ner: Ner, judged: Judged, unread: Unread) -> Step:
        """Decide on a request that the model did not read, as the policy says."""
        result, findings, denial = asking.verdict(ner, self.policy.mode, unread)
        if denial is not None:
            self._scan(judged)
            self.asked, self.prompt_findings = judged.asked or self.asked, judged.findings
            return self._refuse("ner", denial, detail=unread)
        self._decide("ner", result, unread)
        return self._judged(replace(judged, findings=(*judged.findings, *findings)))

    def _judged(self, judged: Judged) -> Step:
        if judged.denial is None or not judged.denial.observed:
            self._observed(judged.grant.observed)
        self.asked = judged.asked or self.asked
        self._scan(judged)
        self.prompt_findings, self.masked_body = judged.findings, judged.body
        self._written_type = judged.content_type
        if judged.denial is not None:
            return self._refuse(judged.stage, judged.denial)
        assert judged.asked is not None
        self.grant = judged.grant
        self.heard = grpc.count(judged.body) if self.call is not None else 0
        self.verdict = Verdict(judged.grant, judged.asked, judged.body, judged.findings)
        self._decide("inspect", worst(judged.findings))
        if self.policy.approvals is not None and (held := self._hold(judged)) is not None:
            return held
        self.received = None
        return self._pay(self.verdict)

    def _hold(self, judged: Judged) -> Step | None:
        """Ask people, where the policy wants it; ``None``: it does not."""
        assert self.caller is not None
        assert self.head is not None
        assert self.received is not None
        endpoint = self._endpoint()
        if endpoint.socket is not None and not endpoint.asked.query:
            return None  # each message is asked about, with the model that it names
        needs = approving.needs(self.policy, endpoint, judged, len(self.received.data), self._now)
        if approving.is_unshowable(judged):
            return self._refuse("hold", approving.PATH)
        if not needs:
            return None
        if endpoint.socket is not None or (self.call is not None and self.call.live):
            return self._refuse("hold", approving.IMPOSSIBLE)
        ask = approving.make(self.policy, self.caller, self.head, judged, needs, data=self.received.data)
        if isinstance(ask, Denial):
            return self._refuse("hold", ask)
        self.ask = ask
        self.stage = Stage.HOLD
        return Hold(ask, hold_for(self.head.headers, ask.decide_within))

    def shown(self) -> bytes | None:
        """Return the body as an approver may see it; ``None`` where something in it cannot be masked.

        Changes nothing here, so a thread may do it.
        """
        judged = self._rejudged(approving.for_people(self.policy))
        if judged.denial is not None:
            return None
        if self.call is None or self.grant is None:
            return judged.body
        return b"\n".join(grpc_calls.as_json(self.call, judged.body, self.grant.request_bytes))

    def _as_approved(self) -> Judged:
        return self._rejudged(approving.as_approved(self.policy))

    def _rejudged(self, policy: Policy) -> Judged:
        """Judge the held request by another policy, with what the model said of it."""
        assert self.received is not None
        if self._told is not None and self._told.spans:
            policy, _ = asking.with_told(policy, self._told.spans)
        judged = self._judge(self.received, policy, self._admitted)
        assert isinstance(judged, Judged), "a body that was judged can be judged"
        return judged

    def _decided(self, event: Decided) -> Step:
        """Go on with what people have decided on."""
        assert self.ask is not None
        assert self.verdict is not None
        self.approval = event.approval
        expires = self.verdict.grant.caller.expires
        if event.denial is not None:
            return self._refuse("hold", event.denial, detail=event.approval)
        if expires is not None and event.now >= expires:
            return self._refuse("hold", claims.refused(Reason.TOKEN_EXPIRED), detail=event.approval)
        sent = event.looked or self._as_approved()
        assert isinstance(sent, Judged)
        if sent.denial is not None:
            return self._refuse(sent.stage, sent.denial, detail=event.approval)
        self.verdict = replace(self.verdict, body=sent.body)
        self._written_type = sent.content_type
        self._decide("hold", Action.APPROVE, f"{event.approval} {event.detail}")
        self.received = None
        return self._pay(self.verdict)

    def _pay(self, verdict: Verdict) -> Step:
        """Have what the request costs taken out of the budgets of its rules, if they have any."""
        policy = self.policy
        if policy.budgets or policy.prices is not None:
            self.meter = spending.meter(self._dialect(), self._endpoint())
        if policy.budgets:
            size = len(verdict.body)
            order = spending.order(policy, self._dialect(), verdict.grant, verdict.asked, size, verdict.findings)
            if isinstance(order, Denial):
                return self._refuse("budget", order)
            if order is not None:
                self.stage = Stage.BUDGET
                return Spend(order)
        self.stage = Stage.INTENT
        return KeepIntent()

    def _spent(self, event: Spent) -> Step:
        if event.denial is not None:
            return self._refuse("budget", event.denial)
        self._decide("budget", "allow")
        self.stage = Stage.INTENT
        return KeepIntent()

    @property
    def rate_headers(self) -> RateHeaders:
        """The header fields in which the caller's SDK reads what is left of its limits."""
        return self._dialect().rate_headers

    @property
    def usage(self) -> Usage | None:
        """The tokens that the exchange took so far; ``None`` where the policy does not ask.

        Whatever the client was told, it counts what the upstream has answered. Who ends a request before its answer
        began has had it read all the same; one that did not reach the upstream, or that it broke off, was not.
        """
        if self.meter is None or self.verdict is None or (self._upstream is None and self.outcome is None):
            return None
        if spending.free(self._dialect(), self._endpoint()):
            return None
        complete = self.outcome is Outcome.ANSWERED
        failed = self.outcome is Outcome.FAILED if self._upstream is None else self._upstream >= 300
        return self.meter.total(len(self.verdict.body), complete=complete, failed=failed)

    @property
    def price(self) -> Price | None:
        """The price of the model that was asked."""
        prices, model = self.policy.prices, self.asked.model if self.asked is not None else None
        return None if prices is None else prices.of(model, permission.matches)

    def used(self, order: Order) -> tuple[int, ...]:
        """Return what of each charge of an order was used."""
        taken, price = self.usage or Usage(0, 0), self.price
        return tuple(spending.used(each, taken, price) for each in order.charges)

    def _scan(self, judged: Judged) -> None:
        """Note how much of the request was scanned, and what the connection says of the rest."""
        if judged.media is None:
            self.scanned = Scanned.WHOLE if judged.stage == "inspect" else None
            return
        self.scanned = media.scanned(judged.media)
        if judged.denial is None and judged.media.unread:
            self._decide("media", judged.grant.route.connection.on_unknown, media.told(judged.media.unread))

    def _judge(self, event: BodyArrived, policy: Policy, admitted: Grant | None = None) -> Judged | Unopened | Unowned:
        """Decode and read a body, then judge it with the rest of its request."""
        data, grant, head = event.data, admitted or self.grant, self.head
        assert grant is not None
        assert head is not None
        endpoint = self._dialect().endpoints[grant.route.endpoint]
        if len(data) > grant.request_bytes:
            return Judged(grant, "body", too_large(grant.request_bytes))
        if endpoint.deny_headers and (denial := barred(endpoint, head)) is not None:
            return Judged(grant, "body", denial)
        plain = bodies.decode(data, headers.values(head.headers, "content-encoding"), grant.request_bytes)
        if isinstance(plain, Denial):
            return Judged(grant, "body", plain)
        if endpoint.calls is not None:
            return calls.judge(policy, endpoint, grant, plain, head, extracted=event.extracted, tokens=self.tokens)
        extra = beside(head, grant.route)
        if self.call is not None:
            return grpc_calls.judged(policy, self.call, grant, plain, extra=extra, extracted=event.extracted)
        if endpoint.body and endpoint.socket is None and not endpoint.made_of.asks_plainly:
            told = self._content_type()
            return judge_body(
                policy,
                endpoint,
                grant,
                plain,
                told,
                extra=extra,
                extracted=event.extracted,
                owners=event.owners,
                tokens=self.tokens,
            )
        if endpoint.body and endpoint.socket is None:
            value = parse(plain)
            if isinstance(value, Denial):
                return Judged(grant, "body", value)
            return judge(
                policy,
                endpoint,
                grant,
                value,
                plain,
                extra=extra,
                extracted=event.extracted,
                named=True,
                owners=event.owners,
                tokens=self.tokens,
            )
        return self._judge_bare(policy, endpoint, grant, plain, extra, event.owners)

    def _judge_bare(
        self,
        policy: Policy,
        endpoint: Endpoint,
        grant: Grant,
        plain: bytes,
        extra: Mapping[str, str],
        owners: Owners | None,
    ) -> Judged | Unopened | Unowned:
        """Judge a request that may have no body."""
        if plain:
            return Judged(grant, "body", NO_BODY)
        nothing = NOTHING
        if endpoint.socket is not None:
            if not endpoint.asked.query:  # who may use which model is asked of each message
                return inspect(policy, endpoint, grant, nothing, None, extra, tokens=self.tokens)
            nothing = replace(NOTHING, model=grant.route.model, max_output=0)
        permitted = permit(endpoint, grant, nothing, None, owners)
        if not isinstance(permitted, tuple):
            return permitted
        return inspect(policy, endpoint, *permitted, None, extra, tokens=self.tokens)

    def _content_type(self) -> str:
        """Return the media type of the request, empty where there is none, or several that could be meant."""
        assert self.head is not None
        told = [value for name, value in self.head.headers if name == "content-type"]
        return told[0] if len(told) == 1 else ""

    def _intent(self, event: IntentKept) -> Step:
        assert self.verdict is not None
        assert self.head is not None
        if not event.kept:
            return self._refuse(
                "record", Denial(Reason.RECORDING_FAILED, 503, "The gateway cannot record, so it does not send.")
            )
        self.stage = Stage.SENT
        masked = {f.where for f in self.verdict.findings if f.action is not Action.FLAG}
        if masked & {"path", NAMES, "header sec-websocket-key"}:
            return self._refuse("inspect", _UNMASKABLE)
        own = self.verdict.grant.route.connection.credential
        taken = own.header.lower() if own is not None else ""
        crossing = ((k, v) for k, v in headers.upstream(self.head.headers) if k != taken)
        fields = tuple((k, v) for k, v in crossing if f"header {k}" not in masked)
        if self._endpoint().socket is not None:
            fields = sockets.opening(fields)
        if self.call is not None:
            return Send(Clearance(self.verdict, self.exchange), grpc_calls.opening(fields), measured=False)
        if self._written_type is not None:
            fields = tuple(pair for pair in fields if pair[0] != "content-type")
            fields += (("content-type", self._written_type),)
        return Send(Clearance(self.verdict, self.exchange), fields)

    def _more(self, event: MoreSaid) -> Step:
        """Judge what a client says in a call that is under way; what is refused ends the call."""
        assert self.grant is not None
        expires = self.grant.caller.expires
        if expires is not None and event.now >= expires:
            return self._stopped(Stopped(grpc_calls.EXPIRED))
        judged = event.looked or self._judge_more(event)
        if isinstance(judged, Unopened):
            return Extract(judged.attachments)
        assert isinstance(judged, Judged)
        judged = approving.unheld(self.policy, self._endpoint(), judged, len(event.data), event.now)
        least = self.scanned
        self._scan(judged)
        self.scanned = least if least is Scanned.PARTLY else self.scanned
        room = max(0, grpc_calls.FINDINGS - len(self.prompt_findings))
        self.prompt_findings += judged.findings[:room]
        if judged.denial is not None:
            self._decide(judged.stage, "deny", reason=judged.denial.reason)
            return self._stopped(Stopped(judged.denial))
        self.heard += grpc.count(event.data)
        if self.heard > grpc_calls.MESSAGES:
            return self._stopped(Stopped(grpc_calls.TOO_MANY))
        return Relay(up=(judged.body,))

    def _judge_more(self, event: MoreSaid) -> Judged | Unopened:
        assert self.grant is not None
        assert self.call is not None
        return grpc_calls.judged(
            self.policy, self.call, self.grant, event.data, extracted=event.extracted, before=self.heard
        )

    # answer ──────────────────────────────────────────────────────────────────

    def _answer(self, event: AnswerBegan) -> Step:
        assert self.asked is not None
        self.status = self._upstream = event.status
        if event.status == 101 and self._endpoint().socket is not None:
            return self._open(event)
        if event.status < 200 or 300 <= event.status < 400:  # a redirect would lead the client past the gate
            return self._refuse("answer", _PROTOCOL)
        if self.call is not None:
            return self._call_answer(event, self.call)
        drop = self._inspect_head(event)
        content_type = ",".join(headers.values(event.headers, "content-type")).partition(";")[0].strip().lower()
        self._encodings = headers.values(event.headers, "content-encoding")
        readable = self._endpoint().stream is not None and can_undo(self._encodings)
        asked = self.asked.stream and event.status < 300
        if self._endpoint().unread and event.status < 300 and can_undo(self._encodings) and _is_opaque(content_type):
            return self._begin(OpaqueAnswer(self._plainly, self._words), drop)
        # the label of both whole answers and streams: where it cannot be a stream it may still be whole
        if content_type not in framings.LABELS and (not asked or (content_type == JSON and not readable)):
            self.stage = Stage.WHOLE
            self._has_tokens = not _is_opaque(content_type)
            return Buffer(drop)
        if not readable:
            return self._refuse("answer", _PROTOCOL)
        return self._begin(self._streamed(content_type, event.status), drop)

    def _begin(self, stream: StreamedAnswer | OpaqueAnswer | GrpcAnswer, drop: frozenset[str]) -> Step:
        """Let an answer pass in pieces, out of its content codings."""
        assert self.route is not None
        self._stream = stream
        self._packed = Unpacker(self._encodings, self.route.connection.answer.bytes)
        self.stage = Stage.STREAM
        self.streamed = True
        return Stream(drop)

    def _streamed(self, content_type: str, status: int) -> StreamedAnswer:
        assert self.route is not None
        decide = self.policy.decide(Direction.RESPONSE)
        head = self._answer_head = AnswerHead(content_type, status, self.route.connection.on_unknown)
        endpoint, engine, caps = self._endpoint(), self.policy.engine, self._caps()
        answer = StreamedAnswer(endpoint, self.shape, engine, decide, self.exchange, head, caps)
        answer.calls = self.calls
        answer.meter = self.meter
        return answer

    def _caps(self) -> HeldCaps:
        assert self.route is not None
        return HeldCaps(runs=self.route.connection.encoded_runs)

    def _words(self, denial: Denial) -> bytes:
        return render(self.shape, denial, self.exchange)[1]

    def _call_answer(self, event: AnswerBegan, call: grpc_calls.Call) -> Step:
        """Decide how the answer of a gRPC call crosses; what it says of its status is looked at with its trailers."""
        content_type = ",".join(headers.values(event.headers, "content-type")).partition(";")[0].strip().lower()
        if event.status != 200 or content_type not in grpc_calls.CONTENT_TYPES:
            return self._refuse("answer", _PROTOCOL)
        status = grpc_calls.status_names(event.headers)
        plain = tuple((name, value) for name, value in event.headers if name not in status)
        drop = self._inspect_head(replace(event, headers=plain)) | status | grpc_calls.OWN | self._odd_metadata(plain)
        self._answering = self._about(call, ",".join(headers.values(event.headers, "grpc-encoding")))
        if not call.method.server_streams:
            self.stage = Stage.WHOLE
            return Buffer(drop)
        return self._begin(GrpcAnswer(self._answering, self._caps()), drop)

    def _about(self, call: grpc_calls.Call, encoding: str) -> Answering:
        assert self.route is not None
        connection, decide = self.route.connection, self.policy.decide(Direction.RESPONSE)
        kind, endpoint = call.method.answer, call.endpoint
        limit, unknown = connection.answer.bytes, connection.on_unknown
        return Answering(kind, endpoint, self.policy.engine, decide, unknown, limit, encoding)

    def _odd_metadata(self, fields: tuple[tuple[str, str], ...]) -> frozenset[str]:
        """Name the binary metadata in which something is found, or that cannot be read."""
        coded = tuple((name, value) for name, value in fields if name.endswith("-bin"))
        kept, found = masked_trailers(coded, self.policy.engine, self.policy.decide(Direction.RESPONSE))
        self.answer_findings += tuple(replace(each, where=each.where.replace("trailer", "header", 1)) for each in found)
        return frozenset(name for name, value in coded if (name, value) not in kept)

    def trailers(self, fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Return what ends the answer of a gRPC call: the upstream's own trailers, masked, or the refusal."""
        if self.denial is not None:
            return render_status(self.denial, self.exchange)
        crossing = tuple((name, value) for name, value in fields if name not in headers.NOT_TO_CLIENT)
        kept, found = masked_trailers(crossing, self.policy.engine, self.policy.decide(Direction.RESPONSE))
        self.answer_findings += found
        self._decide("status", dict(kept)[STATUS])
        return kept

    def _open(self, event: AnswerBegan) -> Step:
        assert self.head is not None
        assert self.grant is not None
        drop = self._inspect_head(event) - {"upgrade"}
        if not sockets.accepted(self.head, event.headers) or "sec-websocket-accept" in drop:
            return self._refuse("answer", _PROTOCOL)
        duplex = (spec := self._endpoint().socket) is not None and spec.duplex
        kind = Duplex if duplex else sockets.Socket
        self.socket = kind(self.policy, self._dialect(), self._endpoint(), self.grant, self.exchange, self.tokens)
        self.socket.meter = self.meter
        self.stage = Stage.SOCKET
        self.streamed = True
        return OpenSocket(drop)

    def _inspect_head(self, event: AnswerBegan) -> frozenset[str]:
        """Return the header fields of an answer that must not reach the client."""
        fields = [(name, value) for name, value in event.headers if not headers.is_plain(name, value)]
        texts = [*(value for _, value in fields), *(name for name, _ in fields)]
        found = self.policy.engine.find_many(texts) if fields else {}
        decide = self.policy.decide(Direction.RESPONSE)
        drop = set(headers.NOT_TO_CLIENT)
        for index, spans in found.items():
            name = fields[index % len(fields)][0]
            where = f"header {name}" if index < len(fields) and index + len(fields) not in found else NAMES
            for span in spans:
                action = decide(span.rule)
                if action is not Action.ALLOW:
                    self.answer_findings += (Finding(span.rule.id, span.rule.cls, where, span.start, span.end, action),)
                if action in ACTING:
                    drop.add(name)
        return frozenset(drop)

    def _chunk(self, event: AnswerChunk) -> Step:
        assert self._stream is not None
        if self._claims.ending is not None:
            return Emit(b"")
        assert self._packed is not None
        came = self._packed.feed(event.data)
        if self.meter is not None and self.call is not None:
            self.meter.characters += len(came.data)  # a gRPC call: nobody knows where it would tell its tokens
        data = self._stream.feed(came.data)
        if came.denial is not None:
            data += self._stream.stop(came.denial)
        return self._let_go(data)

    @property
    def stuck(self) -> frozenset[object]:
        """Name the texts of a streamed answer that are held back: the same name means the same text."""
        return frozenset() if self._stream is None or self.stage is not Stage.STREAM else self._stream.stuck

    def _held_too_long(self, event: HeldTooLong) -> Step:
        assert self._stream is not None
        return Emit(b"") if self._claims.ending is not None else self._let_go(self._stream.expire(event.stuck))

    def _ended(self, event: AnswerEnded) -> Step:
        assert self._stream is not None
        if self._claims.ending is not None:
            return Claim(())
        assert self._packed is not None
        unfinished = self._packed.end()
        data = self._stream.end() if unfinished is None else self._stream.stop(unfinished)
        return self._let_go(data, Outcome.FAILED if event.cut else Outcome.ANSWERED)

    def _let_go(self, data: bytes, ending: Outcome | None = None) -> Step:
        """Let a piece of a stream leave, once what it makes is kept as the caller's.

        With ``ending`` it is the last; so it is after a denial, and then it already ends with the dialect's own error
        event.
        """
        denial: Denial | None = None
        assert self._stream is not None
        if self._stream.denial is not None:
            ending, denial = Outcome.DENIED, self._stream.denial
        claims, made = self._claims, self._stream.made
        fresh = claims.fresh(made) if made else ()
        made.clear()
        if not fresh and not claims.waiting:
            return Emit(data) if ending is None else self._break_off(data, ending, denial)
        claims.waiting = True
        claims.held += data
        claims.ending = None if ending is None else (ending, denial)
        return Claim(fresh) if fresh or ending is not None else Emit(b"")

    def _break_off(self, data: bytes, ending: Outcome, denial: Denial | None) -> Step:
        if denial is not None:
            self._decide("answer", "deny", reason=denial.reason)
            self.denial = denial
        self._close(ending)
        return Emit(data, last=True)

    def _claimed(self, event: Claimed) -> Step:
        """Go on with a stream of which everything that it made is kept, or not."""
        assert self._stream is not None
        if not event.kept:
            return self._break_off(self._stream.stop(LOST), Outcome.FAILED, LOST)
        data, ending = self._claims.kept(), self._claims.ending
        return Emit(data) if ending is None else self._break_off(data, *ending)

    def _client_said(self, event: ClientSaid) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.client(event))

    def _upstream_said(self, event: UpstreamSaid) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.upstream(event))

    def _rested(self, _event: SocketRested) -> Step:
        assert self.socket is not None
        return self._relayed(self.socket.rest())

    def _relayed(self, step: Relay | Extract) -> Step:
        assert self.socket is not None
        if isinstance(step, Extract):
            return step
        self.scanned = self.socket.scanned
        self.asked = self.socket.asked or self.asked
        if step.close is not None:
            self.denial = self.socket.denial
            self.decisions.extend(self.socket.decisions)
            self._close(self.socket.outcome or Outcome.FAILED)
        return step

    def _whole(self, event: AnswerWhole) -> Step:
        found = event.looked or self.look(event).looked
        self.came = max(self.came, len(event.data))
        if isinstance(found, Denial):
            self._count_refused(event.data)
            return self._refuse("answer", found)
        if isinstance(found, Unowned):
            return LookUp(found.stored)
        assert isinstance(found, Looked)
        self.came = 0
        if found.meter is not None:
            self.meter = found.meter
        elif self.meter is not None and not found.answer.unread:
            self.meter.whole(found.answer.body)
        if found.made:
            self._claims.whole = found
            self.stage = Stage.CLAIM
            return Claim(found.made)
        return self._answered(found)

    def _answered(self, found: Looked) -> Step:
        self._unscanned(found.answer.unread)
        self._is_data = any(place == media.ANSWER for place, _ in found.answer.unread)
        self.answer_findings += found.answer.findings
        self._decide("answer", worst(found.answer.findings))
        self._close(Outcome.ANSWERED)
        return Emit(found.answer.body, last=True)

    def _count_refused(self, data: bytes) -> None:
        """Count the tokens of a whole answer that the client does not get."""
        assert self.route is not None
        if self.meter is None or self._answering is not None:
            return
        plain = bodies.decode(data, self._encodings, self.route.connection.answer.bytes)
        if isinstance(plain, Denial):
            return
        self.came = 0
        if media.opaque(plain) is None:
            self.meter.whole(plain)

    def _whole_claimed(self, event: Claimed) -> Step:
        assert self._claims.whole is not None
        return self._answered(self._claims.whole) if event.kept else self._refuse("answer", LOST, Outcome.FAILED)

    def _masked(self, event: AnswerWhole) -> Looked | Denial | Unowned:
        """Decode the whole body of an answer, leave in its lists what is the caller's own, and mask it."""
        assert self.route is not None
        assert self.status is not None
        if self._answering is not None:
            told = whole_answer(self._answering, event.data)
            return told if isinstance(told, Denial) else Looked(told)
        plain = bodies.decode(event.data, self._encodings, self.route.connection.answer.bytes)
        if isinstance(plain, Denial):
            return replace(plain, reason=Reason.ANSWER_MALFORMED, status=502)
        endpoint = self._endpoint()
        made: tuple[Stored, ...] = ()
        if self.status < 300 and (endpoint.lists.paths or endpoint.makes.paths or endpoint.local.paths):
            owned = self._owned(plain, event.owners)
            if not isinstance(owned, tuple):
                return owned
            plain, made = owned
        found = self._looked(plain)
        return found if isinstance(found, Denial) else replace(found, made=(*made, *found.made))

    def _plainly(self, data: bytes) -> Inspected | Denial:
        found = self._looked(data)
        return found if isinstance(found, Denial) else found.answer

    def _looked(self, plain: bytes) -> Looked | Denial:
        """Inspect a whole answer, decoded, of whatever kind it is."""
        assert self.route is not None
        assert self.status is not None
        decide = self.policy.decide(Direction.RESPONSE)
        made, meter = tuple[Stored, ...](), None
        endpoint, engine = self._endpoint(), self.policy.engine
        found: Inspected | Denial
        if endpoint.made_of.answers_plainly:
            found = inspect_answer(endpoint, engine, decide, plain, status=self.status)
        else:
            found = inspect_whole(endpoint, Judge(self._dialect().endpoints, engine, decide), plain, status=self.status)
        stream = endpoint.stream
        if found == MALFORMED and stream is not None:
            told = self._unannounced(plain)
            if plain[:1] == b"\0" and FramingKind.EVENTSTREAM in stream.framings:
                return told  # messages that are broken
            found, made, meter = (told, (), None) if isinstance(told, Denial) else (told.answer, told.made, told.meter)
        if found == MALFORMED and (why := media.opaque(plain)) is not None:
            found = Inspected(plain, (), ((media.ANSWER, why),))
        if isinstance(found, Denial):
            return found
        return media.withheld(found.unread, self.route.connection.on_unknown) or Looked(found, made, meter)

    def _owned(self, plain: bytes, owners: Owners | None) -> tuple[bytes, tuple[Stored, ...]] | Denial | Unowned:
        """Return an answer without what is listed of others, and what it makes. What is no JSON is judged later."""
        endpoint, value = self._endpoint(), bodies.strict_json(plain)
        if isinstance(value, Denial):
            return (plain, ()) if not endpoint.lists.paths else MALFORMED
        if endpoint.lists.paths:
            listed = ownership.listed(endpoint, value)
            if isinstance(listed, Denial):
                return listed
            if owners is None:
                return Unowned(listed)
            ownership.keep_own(endpoint, value, owners)
        if endpoint.local.paths:
            assert self.route is not None
            ownership.make_local(endpoint, value, self.route.connection)
        if endpoint.lists.paths or endpoint.local.paths:
            plain = bodies.dump(value)
        return plain, ownership.made(endpoint, value)

    def _unannounced(self, plain: bytes) -> Looked | Denial:
        """Take a whole answer that is no JSON for the stream that its bytes may be, whatever its label says."""
        assert self.status is not None
        stream = self._streamed(JSON, self.status)
        stream.meter = None if self.meter is None else spending.meter(self._dialect(), self._endpoint())
        body = stream.feed(plain) + stream.end()
        told = Inspected(body, stream.findings, tuple(stream.unread))
        return stream.denial or Looked(told, tuple(stream.made), stream.meter)

    def _unscanned(self, unread: Sequence[tuple[str, str]]) -> None:
        """Note what nobody has read of an answer, and that the connection lets that pass."""
        if unread:
            assert self.route is not None
            self.scanned = Scanned.PARTLY
            self._decide("media", self.route.connection.on_unknown, f"answer {media.told(unread)}")

    # for this caller alone ───────────────────────────────────────────────────

    @property
    def told_tokens(self) -> tuple[Decision, ...]:
        """What is recorded of the tokens of this exchange: how many, never which."""
        told = {} if self.tokens is None else self.tokens.counts.told()
        if not any(told.values()):
            return ()
        return (
            Decision("tokens", Action.TOKENISE, None, ", ".join(f"{name}: {count}" for name, count in told.items())),
        )

    def restore(self, data: bytes, *, last: bool) -> bytes | None:
        """Put values back in what an ``Emit`` said, on its way to the client; ``None`` where nothing is tokenised.

        ``last``: the answer ends with it. What is emitted is what is recorded; this is what only the client sees.
        """
        if self.tokens is None:
            return None
        if self.call is not None:  # the messages of a gRPC call hold no tokens
            return data
        if isinstance(self._stream, OpaqueAnswer):  # data, or one text
            return data if self._stream.unread else restored_whole(self._endpoint(), self.tokens, data)
        if not self.streamed:
            return data if self._is_data else self._restored_whole(data)
        if self._restoring is None:
            self._restoring = RestoredStream(
                self._endpoint(), self.shape, self.tokens, self.exchange, self._answer_head
            )
        said = self._restoring.feed(data) if data else b""
        if last and self.denial is None:  # after an error event nothing may follow
            said += self._restoring.end()
        assert self._restoring.denial is None  # what was masked can be read
        return said

    def _restored_whole(self, data: bytes) -> bytes:
        assert self.tokens is not None
        endpoint = self._endpoint()
        plainly = endpoint.stream is not None and endpoint.made_of.answers_plainly
        if not plainly or not isinstance(bodies.strict_json(data), Denial):
            return restored_whole(endpoint, self.tokens, data)
        stream = RestoredStream(endpoint, self.shape, self.tokens, self.exchange, AnswerHead(JSON, self.status or 200))
        return stream.feed(data) + stream.end()

    # endings ─────────────────────────────────────────────────────────────────

    def _passed(self, _event: AnswerEnded) -> Step:
        self._close(Outcome.ANSWERED)
        return Nothing()

    def whole(self, data: bytes) -> Step:
        """Take an answer that is there in one piece, at whichever stage its head left the exchange."""
        if self.stage is Stage.WHOLE:
            return self.receive(AnswerWhole(data))
        first = self.receive(AnswerChunk(data))
        if self.stage is Stage.OVER:
            return first
        last = self.receive(AnswerEnded())
        if isinstance(first, Claim) or isinstance(last, Claim):
            early = first.data if isinstance(first, Emit) else b""
            self._claims.held[:0] = early
            return Claim(tuple(name for step in (first, last) if isinstance(step, Claim) for name in step.made))
        assert isinstance(first, Emit)
        assert isinstance(last, Emit)
        return Emit(first.data + last.data, last=True)

    def _stopped(self, event: Stopped) -> Step:
        """End the exchange from outside: in mid-stream with the dialect's error event, else with a refusal."""
        if self.stage is Stage.OVER:
            self.denial = self.denial or event.denial
            self.outcome = event.outcome
            return Nothing()
        if self.stage is Stage.STREAM and self._stream is not None:
            self._decide("answer", "deny", reason=event.denial.reason)
            self.denial = event.denial
            data = self._stream.stop(event.denial)
            self._close(event.outcome)
            return Emit(data, last=True)
        if self.stage is Stage.SOCKET and self.socket is not None:
            return self._relayed(self.socket.stop(event.denial, event.outcome))
        return self._refuse(self.stage.name.lower(), event.denial, event.outcome)

    def _refuse(self, stage: str, denial: Denial, outcome: Outcome = Outcome.DENIED, detail: str = "") -> Step:
        self._decide(stage, "deny", detail, reason=denial.reason)
        self._observed(denial.observed)
        self.denial = denial
        self.status = denial.status
        self._close(outcome)
        return Refuse(denial)

    def _observed(self, told: tuple[str, ...]) -> None:
        """Note what rules of roles that only observe would have changed."""
        for each in told:
            self._decide("permission", "observe", each)

    def _close(self, outcome: Outcome) -> None:
        if self.meter is not None and self._has_tokens:
            self.meter.characters += self.came
        if self._stream is not None:
            self._unscanned(self._stream.unread)
            self.answer_findings += tuple(self._stream.findings)
        if self.socket is not None:
            self.prompt_findings += tuple(self.socket.prompt_findings)
            self.answer_findings += self.socket.answer_findings
        self.outcome = outcome
        self.stage = Stage.OVER

    def _decide(self, stage: str, result: str, detail: str = "", *, reason: Reason | None = None) -> None:
        self.decisions.append(Decision(stage, result, reason, detail))

    def _dialect(self) -> Dialect:
        assert self.route is not None
        return self.policy.dialects[self.route.connection.dialect]

    def _endpoint(self) -> Endpoint:
        assert self.route is not None
        return self._dialect().endpoints[self.route.endpoint]


_ORDER: Mapping[tuple[Stage, type], Callable[[Crossing, Any], Step]] = cast(
    "Mapping[tuple[Stage, type], Callable[[Crossing, Any], Step]]",
    {
        (Stage.HEAD, HeadArrived): Crossing._head,
        (Stage.CALLER, CallerKnown): Crossing._caller,
        (Stage.BODY, BodyArrived): Crossing._body,
        (Stage.NER, ModelSaid): Crossing._model_said,
        (Stage.BUDGET, Spent): Crossing._spent,
        (Stage.HOLD, Decided): Crossing._decided,
        (Stage.INTENT, IntentKept): Crossing._intent,
        (Stage.SENT, AnswerBegan): Crossing._answer,
        (Stage.SENT, MoreSaid): Crossing._more,
        (Stage.STREAM, MoreSaid): Crossing._more,
        (Stage.STREAM, AnswerChunk): Crossing._chunk,
        (Stage.STREAM, AnswerEnded): Crossing._ended,
        (Stage.STREAM, Claimed): Crossing._claimed,
        (Stage.STREAM, HeldTooLong): Crossing._held_too_long,
        (Stage.WHOLE, AnswerWhole): Crossing._whole,
        (Stage.CLAIM, Claimed): Crossing._whole_claimed,
        (Stage.SOCKET, ClientSaid): Crossing._client_said,
        (Stage.SOCKET, UpstreamSaid): Crossing._upstream_said,
        (Stage.SOCKET, SocketRested): Crossing._rested,
        (Stage.PASSING, AnswerEnded): Crossing._passed,
    },
)


def _is_opaque(label: str) -> bool:
    """Say whether a media type is one of data that are no text."""
    return label.startswith(("audio/", "image/", "video/")) or label == "application/octet-stream"


_PROTOCOL = Denial(Reason.UPSTREAM_PROTOCOL, 502, "The upstream answered in a form that the gateway cannot inspect.")
NO_BODY = Denial(Reason.BODY_MALFORMED, 400, "This endpoint takes no request body.")
_UNMASKABLE = Denial(Reason.FINDING, 403, "Blocked by policy: the address or a header name holds what may not be sent.")
