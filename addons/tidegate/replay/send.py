"""Send recorded requests again, through the gate of the policy in force, with mitmproxy's client replay.

The gate judges them as if they had just arrived: the caller is the one named for the replay, the connection's
credential is attached, the answers are masked, and every replay is an exchange of its own in the recording. Requests
are sent as they were kept: redacted.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mitmproxy import http
from mitmproxy.addons import clientplayback
from mitmproxy.flow import Error
from rich.table import Table
from rich.text import Text

from tidegate import master
from tidegate.evidence.queries import printable
from tidegate.evidence.records import RecordingError
from tidegate.replay.flows import EXCHANGE, client_form

SECONDS = 960.0
"""How long one replay may take: a minute more than the default limit of an answer's duration."""


class ReplayRefused(RecordingError):
    """A replay was asked for that would send, without the word that allows it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one recorded request. ``sent_as`` is the new exchange; ``status`` is ``None`` if it ended early.

    ``same`` says whether the body of the answer is the recorded one; ``None`` where either was not kept.
    """

    exchange: str
    sent_as: str | None
    before: int | None
    status: int | None
    same: bool | None
    error: str = ""


async def send(
    flows: Sequence[http.HTTPFlow],
    gate_addon: object,
    *,
    live: bool = False,
    settings: dict[str, Any] | None = None,
    seconds: float = SECONDS,
) -> list[Sent]:
    """Replay flows through ``gate_addon``, one after the other, and return what came of each, in order.

    ``gate_addon`` must have been made with an explicit caller for replays. ``settings`` are more mitmproxy options.
    Raises ``ReplayRefused`` without ``live``, because this sends to the model provider.
    """
    if not live:
        raise ReplayRefused(
            "replay send sends recorded requests to the model provider again; accepted: --live, when that is meant"
        )
    engine, ends = clientplayback.ClientPlayback(), Ends()
    options = {"server": False, "connection_strategy": "lazy", "rawtcp": False, **(settings or {})}
    slim = master.build(options, gate_addon, engine, ends)
    running = asyncio.create_task(slim.run())
    try:
        await asyncio.wait({running, asyncio.create_task(ends.ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return [await _one(flow, engine, ends, seconds) for flow in flows]
    finally:
        slim.shutdown()
        await running


async def _one(flow: http.HTTPFlow, engine: clientplayback.ClientPlayback, ends: Ends, seconds: float) -> Sent:
    exchange, recorded = str(flow.metadata.get(EXCHANGE, "")), flow.response
    before = None if recorded is None else recorded.status_code
    client_form(flow)
    flow.id, flow.error, flow.response = str(uuid.uuid4()), None, None
    reason = engine.check(flow)
    if reason:
        return Sent(exchange, None, before, None, None, reason)
    over = ends.watch(flow)
    engine.start_replay([flow])
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return Sent(exchange, None, before, None, None, "no answer in time")
    finally:
        ends.watched.pop(flow.id, None)
    answer, error = _ended(flow)
    if answer is None:
        return Sent(exchange, None, before, None, None, error)
    old, new = None if recorded is None else recorded.raw_content, answer.raw_content
    same = None if old is None or new is None else old == new
    sent_as = answer.headers.get("x-tidegate-exchange") or answer.headers.get("x-request-id")
    return Sent(exchange, sent_as, before, answer.status_code, same)


def _ended(flow: http.HTTPFlow) -> tuple[http.Response | None, str]:
    return flow.response, flow.error.msg if flow.error else Error.KILLED_MESSAGE


def table(results: Sequence[Sent]) -> Table:
    """Render what came of a replay for a terminal."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("recorded", "sent as", "status then", "status now", "answer"):
        view.add_column(name, overflow="fold")
    for each in results:
        answer = each.error or {True: "the same", False: "another", None: "not compared"}[each.same]
        then, now = (str(status or "-") for status in (each.before, each.status))
        view.add_row(each.exchange, Text(each.sent_as or "-"), then, now, Text(printable(answer)))
    return view


class Ends:
    """Tells when the engine may be used, and when each flow is over; it stands behind the gate."""

    name = "tidegate_ends"

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.watched: dict[str, asyncio.Event] = {}

    def watch(self, flow: http.HTTPFlow) -> asyncio.Event:
        """Return what is set when the flow is over."""
        return self.watched.setdefault(flow.id, asyncio.Event())

    def running(self) -> None:
        """Note that the engine has started."""
        self.ready.set()

    def response(self, flow: http.HTTPFlow) -> None:
        """Note that a flow has its answer."""
        if flow.id in self.watched:
            self.watched[flow.id].set()

    def error(self, flow: http.HTTPFlow) -> None:
        """Note that a flow ended without one."""
        self.response(flow)
