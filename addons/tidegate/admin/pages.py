"""The pages: what happens now, the exchanges, the policy and what it does, the gate's health.

They show what the recording holds and nothing else: bodies as they were kept, with every finding masked. They say
something new by themselves as long as they are open: ``/live`` tells when something has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response, StreamingResponse

from tidegate.admin.charts import Bar, bars, share
from tidegate.admin.doors import Door, Public, Signed, Visit, admit
from tidegate.admin.rendering import HERE, page
from tidegate.evidence import queries, summaries
from tidegate.evidence.records import RecordingError
from tidegate.model import Denial, Outcome
from tidegate.policy.policy import AdminRight
from tidegate.replay.show import details

SPANS = {"1h": (3600, 60), "24h": (86400, 72), "7d": (7 * 86400, 84)}
"""The times that can be looked at: seconds, and how many bars show them."""
LISTED = 100
LIVE_SECONDS = 2.0
LIVE_FOR = 900.0
"""After that a page asks again, and has to be let in again."""
FILES = {"icon.svg": "image/svg+xml", "app.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8"}
BODY_CHARACTERS = 200_000


async def now(visit: Visit) -> Response:
    """Show what crosses, what is refused and what is found, over a time of the reader's choice."""
    span = visit.request.query_params.get("span", "1h")
    seconds, steps = SPANS.get(span, SPANS["1h"])
    until = int(visit.services.now() * 1e6)
    found = await _asked(summaries.activity, _recording(visit), until - seconds * 1_000_000, until, steps)
    if isinstance(found, str):
        return page(visit, "trouble.html", "Now", status=503, problem=found)
    outcomes = found.outcomes
    drawn = [Bar(_clock(found.since_us + at * found.step_us, span), bar) for at, bar in enumerate(found.bars)]
    told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "no exchange"
    most = max([*found.refusals.values(), *found.classes.values()], default=0)
    return page(
        visit,
        "now.html",
        "Now",
        span=span if span in SPANS else "1h",
        spans=list(SPANS),
        chart=bars(drawn, f"Exchanges of the last {span}: {told}"),
        drawn=[bar for bar in drawn if bar.total],
        outcomes=[(name, outcomes.get(name, 0)) for name in (*Outcome, "open") if outcomes.get(name)],
        total=sum(outcomes.values()),
        refusals=list(found.refusals.items()),
        classes=list(found.classes.items()),
        connections=list(found.connections.items()),
        first_byte=found.first_byte_us,
        duration=found.duration_us,
        share=lambda count: share(count, most),
    )


async def exchanges(visit: Visit) -> Response:
    """List exchanges, newest first, by what they are asked for."""
    asked = visit.request.query_params
    wanted = {name: asked[name].strip() for name in _FILTERS if asked.get(name, "").strip()}
    found = await _asked(queries.list_flows, _recording(visit), limit=LISTED, **wanted)
    problem = found if isinstance(found, str) else ""
    return page(
        visit,
        "exchanges.html",
        "Exchanges",
        status=400 if problem else 200,
        wanted=wanted,
        outcomes=[*Outcome, "open"],
        connections=sorted(visit.services.policy().connections),
        rows=[] if isinstance(found, str) else [{**row, "who": queries.who(row)} for row in found],
        listed=LISTED,
        problem=problem,
    )


_FILTERS = ("caller", "connection", "outcome", "rule", "since")


async def exchange(visit: Visit) -> Response:
    """Show one exchange: as it was asked and forwarded, as it was answered, what was decided and found.

    That it was looked at, and by whom, is an event of the log.
    """
    wanted = visit.request.path_params["exchange"]
    found = await _asked(details, _recording(visit), wanted)
    if isinstance(found, str):
        return page(visit, "trouble.html", "No such exchange", status=404, problem=found)
    assert visit.caller is not None  # the door's rule
    read = {"what": f"page {found['id']}", "actor": f"{visit.caller.identity}:{visit.caller.subject}"}
    visit.services.noted("read", json.dumps(read, ensure_ascii=False))  # the ledger makes a pseudonym of the name
    title, whose = f"Exchange {found['id']}", queries.who(found)
    return page(visit, "exchange.html", title, row=found, bodies=_bodies(found), whose=whose)


async def policy(visit: Visit) -> Response:
    """Show the policy in force, and how often its rules fired."""
    in_force = visit.services.policy()
    span = visit.request.query_params.get("span", "24h")
    seconds, _ = SPANS.get(span, SPANS["24h"])
    hits = await _asked(summaries.rule_hits, _recording(visit), int((visit.services.now() - seconds) * 1e6))
    rules = {rule.id: rule.observe for rule in in_force.engine.rules}
    rows = [] if isinstance(hits, str) else [{**hit, "observed": rules.get(hit["rule"], False)} for hit in hits]
    return page(
        visit,
        "policy.html",
        "Policy",
        policy=in_force,
        actions=sorted((cls, str(way), str(act)) for (cls, way), act in in_force.actions.items()),
        rights={role: sorted(map(str, rights)) for role, rights in in_force.admin.rights.items()},
        hits=rows,
        fired={row["rule"] for row in rows},
        rules=sorted(rules),
        most=max((row["many"] for row in rows), default=0),
        share=share,
        span=span if span in SPANS else "24h",
        spans=list(SPANS),
        problem=hits if isinstance(hits, str) else "",
    )


async def health(visit: Visit) -> Response:
    """Show whether traffic may come, and what stands in its way."""
    services = visit.services
    checks, failing = await services.ready(), services.failing()
    services.metrics.drain()
    return page(
        visit,
        "health.html",
        "Health",
        checks=checks,
        failing=failing,
        warnings=list(services.policy().warnings),
        numbers=services.metrics.numbers(),
    )


async def live(visit: Visit) -> Response:
    """Say when something has changed, as server-sent events, for as long as the reader may see it."""

    async def told() -> AsyncIterator[str]:
        services, before = visit.services, ""
        until = services.now() + LIVE_FOR
        yield "retry: 2000\n\n"
        while services.now() < until:
            if isinstance(await admit(Signed(), visit.request, services), Denial):
                yield "event: over\ndata: signed out\n\n"
                return
            changed = services.changed()
            if changed != before:
                before = changed
                yield "event: changed\ndata: .\n\n"
            else:
                yield ": still here\n\n"
            await asyncio.sleep(LIVE_SECONDS)

    return StreamingResponse(told(), headers={"content-type": "text/event-stream"})


async def file(visit: Visit) -> Response:
    """Return a file of the pages: the style sheet or the script."""
    name = visit.request.path_params["name"]
    if name not in FILES:
        return page(visit, "trouble.html", "Not found", status=404, problem="There is no such file.")
    return FileResponse(HERE / "static" / name, headers={"content-type": FILES[name], "cache-control": "no-cache"})


async def _asked(work: Any, *values: Any, **named: Any) -> Any:
    """Ask the recording in a thread; a fault is its sentence."""
    try:
        return await asyncio.to_thread(work, *values, **named)
    except RecordingError as why:
        return str(why)


def _recording(visit: Visit) -> Path:
    return Path(visit.services.policy().recording.path)


def _clock(at_us: int, span: str) -> str:
    return queries.moment(at_us)[5:16] if span != "1h" else queries.moment(at_us)[11:16]


def _bodies(found: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, str]], str | None]]:
    """Return what was kept of an exchange, side by side: title, first line, header fields, body."""
    asked, answer = found["request"], found["response"]
    out = []
    if asked is not None:
        sent = found["outcome"] != Outcome.DENIED or str(found["reason"]).startswith("answer_")
        title, place = ("As forwarded", asked["sent_to"]) if sent else ("As asked, masked", asked["path"])
        out.append((title, f"{asked['method']} {place}", _pairs(asked), _shown(asked["body"])))
    if answer is not None:
        out.append(("As answered", str(answer["status"]), _pairs(answer), _shown(answer["body"])))
    said = found["messages"] or ()
    return [*out, *((f"Message of the {each['from']}", "", [], _shown(each["body"])) for each in said)]


def _pairs(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in message["headers"]]


def _shown(body: str | None) -> str | None:
    if body is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):  # events, or what is left of a broken answer: as it is
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return body if len(body) <= BODY_CHARACTERS else f"{body[:BODY_CHARACTERS]}\n… {len(body) - BODY_CHARACTERS} more"


DOORS = (
    Door("GET", "/", Signed(AdminRight.OVERVIEW), now),
    Door("GET", "/exchanges", Signed(AdminRight.EXCHANGES), exchanges),
    Door("GET", "/exchanges/{exchange}", Signed(AdminRight.EXCHANGES), exchange),
    Door("GET", "/policy", Signed(AdminRight.OVERVIEW), policy),
    Door("GET", "/health", Signed(AdminRight.OVERVIEW), health),
    Door("GET", "/live", Signed(), live),
    Door("GET", "/static/{name}", Public("a style sheet and a script, the same for everybody"), file),
)
