"""A request that waits for people, as mitmproxy sees it: nothing is sent, and a bare resume is no approval.

The hook of the request waits, so that no other addon sees the request before somebody has decided. In mitmweb it looks
intercepted, with a comment; what is edited there is not sent, for what is sent is what was judged.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from mitmproxy import ctx, http
from mitmproxy.hooks import UpdateHook

from tidegate import steps
from tidegate.approvals.notify import Notifier
from tidegate.approvals.spec import Ask, State
from tidegate.desk import Desk, Ending
from tidegate.endings import CLIENT_GONE, STOPPING
from tidegate.exchange import Exchange
from tidegate.model import Denial, Outcome, Reason
from tidegate.policy.policy import Policy
from tidegate.state.approvals import Asked, Item
from tidegate.state.control import StateError

log = logging.getLogger("tidegate")

MARK = ":hourglass:"

NO_STORE = Denial(
    Reason.STATE_UNAVAILABLE,
    503,
    "The gateway cannot keep approvals now, so it does not send what needs one.",
)
REPLAYED = Denial(Reason.APPROVAL_PENDING, 403, "This request needs approval, and nobody is asked about a replay.")
CHANGED = "the policy has changed"


class Waiting:
    """A held flow, as the desk looks at it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def gone(self) -> bool:
        """Say whether the client has left, or has reset its stream."""
        return self._exchange.abandoned or not self._exchange.flow.client_conn.connected

    def killed(self) -> bool:
        """Say whether somebody ended the flow in mitmweb; one that was resumed there is held again."""
        flow = self._exchange.flow
        if flow.error is not None:
            return True
        if not flow.intercepted:
            flow.intercept()
            flow.comment = f"{flow.comment.partition(' (')[0]} (resuming is no approval)"
            self._exchange.later(show(flow))
        return False


class Holding:
    """Holds requests until people have decided. ``notifier`` writes to those people."""

    def __init__(self, desk: Desk, notifier: Notifier) -> None:
        self.desk = desk
        self.notifier = notifier

    async def held(
        self, exchange: Exchange, step: steps.Hold, policy: Callable[[], Policy], shown: bytes | None
    ) -> steps.Decided | steps.Stopped | None:
        """Return what people say of a request; ``None`` where the policy has changed and it must be judged again.

        ``shown`` is the body as an approver may see it.
        """
        if exchange.flow.is_replay:
            return self._said(REPLAYED)
        ask = replace(step.ask, shown=shown)
        exchange.crossing.masked_body = exchange.crossing.masked_body if shown is not None else b""
        exchange.flow.request.data.content = exchange.crossing.masked_body
        try:
            asked = await self.desk.ask(ask)
            if asked.item is None:
                return self._said(_not_kept(asked, ask))
            if asked.over:
                return await self._refused(asked.item)
            if not asked.usable:
                ended = await self._wait(exchange, asked.item, 0.0 if ask.at_once else step.seconds)
                if ended is Ending.TIME_UP and (await self.desk.latest(asked.item)).state is not State.PENDING:
                    ended = Ending.DECIDED  # in the last moment, or never: then it has expired
                if ended is not Ending.DECIDED:
                    return await self._ended(ended, asked.item, ask)
            if Waiting(exchange).gone():
                await self.desk.left(asked.item, ask)
                return steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
            if policy().sha256 != ask.policy_sha:
                await self.desk.end(asked.item, State.SUPERSEDED, "tidegate", CHANGED)
                return None
            used = await self.desk.use(asked.item, ask)
            if used is None:
                return await self._refused(asked.item)
            exchange.used = used.id
            return self._said(None, used)
        except StateError:
            return self._said(NO_STORE)

    async def unsent(self, exchange: Exchange) -> None:
        """Give an approval back whose exchange has ended before anything was sent; once, whoever notices."""
        used, exchange.used = exchange.used, ""
        if not used or exchange.sent:
            return
        exchange.revoke()
        try:
            await self.desk.give_back(used)
        except StateError as why:
            log.error("approvals: %s stays used, though its request was not sent: %s", used, why)

    async def _wait(self, exchange: Exchange, item: Item, seconds: float) -> Ending:
        if seconds <= 0:
            return Ending.TIME_UP
        flow = exchange.flow
        line = flow.request.data.method, flow.request.data.http_version
        flow.comment, flow.marked = f"held for approval {item.id}: {', '.join(item.labels)}", MARK
        flow.intercept()
        await show(flow)
        try:
            return await self.desk.wait(item, seconds, Waiting(exchange))
        finally:
            if flow.error is not None and exchange.crossing.stage is steps.Stage.HOLD:
                flow.error = None  # a kill in mitmweb would leave the client without an answer
            flow.request.data.method, flow.request.data.http_version = line  # all else is written anew
            flow.comment, flow.marked = f"was held for approval {item.id}", ""
            flow.resume()
            await show(flow)

    async def _ended(self, ended: Ending, item: Item, ask: Ask) -> steps.Decided | steps.Stopped:
        if ended is Ending.GONE:
            await self.desk.left(item, ask)
            return steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
        if ended is Ending.STOPPED:
            return steps.Stopped(STOPPING, Outcome.ABORTED)
        if ended is Ending.KILLED:
            return self._said(_KILLED, item)
        return self._said(pending(item), item)

    async def _refused(self, item: Item) -> steps.Decided:
        """Say politely why there is no right to send."""
        latest = next(iter(await self.desk.find(item.id)), item)
        _, history = await self.desk.history(item.id)
        last = next((each for each in reversed(history) if each.what == latest.state), None)
        by, why = (last.actor, self.desk.plain(last.reason)) if last is not None else ("", "")
        return self._said(refusal(latest, by, why), latest)

    def _said(self, denial: Denial | None, item: Item | None = None) -> steps.Decided:
        detail = ", ".join(item.labels) if item is not None else ""
        return steps.Decided(denial, item.id if item is not None else "", self.desk.now(), detail)


async def show(flow: http.HTTPFlow) -> None:
    """Have mitmweb show a flow as it is now. Without a view nobody listens."""
    with contextlib.suppress(AttributeError):  # no master: a test drives the hook
        await ctx.master.addons.trigger_event(UpdateHook([flow]))


def pending(item: Item) -> Denial:
    """Say that nobody has decided yet, and what to do."""
    return Denial(
        Reason.APPROVAL_PENDING,
        403,
        f"This request needs approval {item.id} ({', '.join(each.name for each in item.demands)}) and nobody "
        "has decided yet. Nothing was sent to the model. Send the same request again once it is approved.",
    )


def refusal(item: Item, by: str, why: str) -> Denial:
    """Say who decided against a request and why, or what became of its approval."""
    words = f": {why}" if why else "."
    if item.state is State.DENIED:
        return Denial(Reason.APPROVAL_DENIED, 403, f"{by} has declined this request (approval {item.id}){words}"[:600])
    if item.state in (State.REVOKED, State.CANCELLED):
        verb = "taken back" if item.state is State.REVOKED else "cancelled"
        return Denial(
            Reason.APPROVAL_DENIED, 403, f"The approval {item.id} of this request was {verb} by {by}{words}"[:600]
        )
    if item.state is State.CONSUMED:
        return Denial(
            Reason.APPROVAL_USED,
            403,
            f"The approval {item.id} was for one request, and another copy of this one has used it.",
        )
    if item.state is State.PENDING:
        return pending(item)
    return Denial(
        Reason.APPROVAL_EXPIRED,
        403,
        f"The approval {item.id} of this request is no longer valid ({why or 'its time is up'}). "
        "Send it again to ask anew.",
    )


def _not_kept(asked: Asked, ask: Ask) -> Denial:
    if ask.break_glass:
        return Denial(Reason.APPROVAL_DENIED, 403, f"The glass stays whole: {asked.why}.")
    return Denial(
        Reason.APPROVAL_LIMIT, 429, f"This request needs approval, and {asked.why}; wait until some are decided."
    )


_KILLED = Denial(Reason.APPROVAL_DENIED, 403, "An operator ended this request while it waited for approval.")
