"""Break one place of a running gate on demand: a mitmproxy script (``-s``), or a command in front of ``tidegate``.

The file ``break.json`` in the working directory says what breaks: ``place`` (``Gateway.request``), ``when``
(``before``, ``after``, or ``later`` in what is awaited) and ``error`` (of ``ERRORS``). Without it nothing breaks.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mitmproxy import exceptions, http

CANARY = "text-of-a-bug-CANARY-51c0"

ERRORS: dict[str, type[Exception]] = {
    "RuntimeError": RuntimeError,
    "OptionsError": exceptions.OptionsError,
    "AddonHalt": exceptions.AddonHalt,
    "KeyError": KeyError,
    "AssertionError": AssertionError,
}

HOOKS = (
    "http_connect",
    "next_layer",
    "server_connect",
    "requestheaders",
    "request",
    "responseheaders",
    "response",
    "error",
    "tidegate_socket",
    "tidegate_call",
)
KEEPER = (
    "outgoing", "shown", "released", "refusal", "farewell", "over", "socket", "ending", "live", "_refuse_bug", "_relay",
    "_seal",
)  # fmt: skip

PLACES = (
    *(f"tidegate.gateway:Gateway.{name}" for name in (*HOOKS, *KEEPER)),
    "tidegate.exchange:Exchange.refuse",
    "tidegate.exchange:Exchange.refusal",
    "tidegate.exchange:Exchange.record",
    "tidegate.exchange:Exchange.said",
    "tidegate.exchange:Exchange.state",
    "tidegate.exchange:Exchange.heard",
    "tidegate.exchange:Exchange.end_call",
    "tidegate.exchange:Exchange.shown",
    "tidegate.exchange:Exchange.show",
    "tidegate.inspection.tokens:Session.token",
    "tidegate.inspection.tokens:Session.value",
    "tidegate.exchange:Exchange.line",
    "tidegate.evidence.store:Recorder.intent",
    "tidegate.evidence.store:Recorder.seal",
    *(f"tidegate.entrance:Entrance.{name}" for name in ("idle", "shown", "inside", "has_tunnel", "opened", "left")),
    "tidegate.identity.verifier:Verifier.cached",
    "tidegate.identity.verifier:Verifier.identify",
    "tidegate.inspection.engine:Engine.find_many",
    "tidegate.streams.answers:StreamedAnswer.feed",
    "tidegate.streams.answers:StreamedAnswer.end",
    "tidegate.streams.grpc_answers:GrpcAnswer.feed",
    "tidegate.streams.grpc_answers:GrpcAnswer.end",
    "tidegate.socket_gate:LiveSocket.take",
    "tidegate.socket_gate:LiveSocket.heard",
    "tidegate.socket_gate:LiveSocket.kept",
    "tidegate.crossing:Crossing._judge",
    "tidegate.crossing:Crossing._masked",
    "tidegate.crossing:Crossing._judge_more",
    "tidegate.crossing:Crossing.trailers",
    "tidegate.crossing:Crossing._hold",
    "tidegate.crossing:Crossing.shown",
    "tidegate.crossing:Crossing._as_approved",
    "tidegate.desk:Desk.ask",
    "tidegate.desk:Desk.wait",
    "tidegate.desk:Desk.use",
    "tidegate.holding:Holding.held",
    "tidegate.sockets:Socket.client",
    "tidegate.sockets:Socket.upstream",
    "tidegate.limits.answer:AnswerMeter.began",
    "tidegate.limits.answer:AnswerMeter.received",
)


def order() -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(Path("break.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def at_hand(given: Any) -> str:
    """Write out what a hook was given: the text of a bug may well hold a body, or a header field."""
    flow = getattr(given, "flow", given)
    if not isinstance(flow, http.HTTPFlow):
        return repr(given)
    answer = flow.response
    parts = [flow.request.path, flow.request.headers, flow.request.raw_content]
    return " ".join(map(str, parts if answer is None else [*parts, answer.headers, answer.raw_content]))


def breaking(place: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``original`` with the order looked up at each call."""

    @functools.wraps(original)
    def run(*given: Any, **named: Any) -> Any:
        asked = order()
        if asked.get("place") != place:
            return original(*given, **named)
        bug = ERRORS[asked["error"]](f"{CANARY}: {' '.join(map(at_hand, given))}")
        if asked["when"] == "before":
            raise bug
        result = original(*given, **named) if asked["when"] == "after" else None
        if asked["when"] == "later" or inspect.isawaitable(result):
            return fail(result, bug)
        raise bug

    async def fail(first: Any, bug: Exception) -> None:
        if first is not None:
            await first
        await asyncio.sleep(0)
        raise bug

    return run


def install() -> None:
    """Put every place under the order. A guarded hook breaks inside its guard."""
    for place in PLACES:
        module, _, dotted = place.partition(":")
        owner, name = dotted.split(".")
        holder = getattr(importlib.import_module(module), owner)
        found = getattr(holder, name)
        inside = [
            cell
            for cell in (found.__closure__ or () if hasattr(found, "__wrapped__") else ())
            if getattr(cell.cell_contents, "__name__", "") == name
        ]
        if inside:
            inside[0].cell_contents = breaking(dotted, inside[0].cell_contents)
        else:
            changed = breaking(dotted, found)
            plain = isinstance(inspect.getattr_static(holder, name), staticmethod)
            setattr(holder, name, staticmethod(changed) if plain else changed)


addons: list[object] = []

if __name__ != "tests.e2e.break_hook":  # a test that only wants the names is left whole
    install()

if __name__ == "__main__":
    from tidegate.cli import main

    main()
