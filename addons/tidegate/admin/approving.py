"""The pages and the HTTP API of approvals: who asks what, why it waits, how long is left; yes or no, with a reason.

Whoever decides does so as the person who signed in; who may decide on an item, the item itself says. A link to one of
these pages has no power: it shows something only to who is signed in, and a decision is a form of that session.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.responses import RedirectResponse, Response

from tidegate.admin.answers import refused, told
from tidegate.admin.doors import Door, Needs, Signed, Visit, rights_of
from tidegate.admin.rendering import page
from tidegate.approvals.machine import Refusal, is_over, may_vote, needs
from tidegate.approvals.spec import Answer, Person, State
from tidegate.approving import REASON_CHARACTERS, line
from tidegate.desk import Desk, as_json, left
from tidegate.model import Caller
from tidegate.policy.policy import AdminRight
from tidegate.state.approvals import Item
from tidegate.state.control import StateError

FORM_BYTES = 16 * 1024
RECENT = 50

type Deed = Callable[[Desk, str, Person, str], Awaitable[Item | Refusal]]

DEEDS: Mapping[str, Deed] = {
    "approve": lambda desk, item, who, why: desk.decide(item, who, Answer.YES, why),
    "deny": lambda desk, item, who, why: desk.decide(item, who, Answer.NO, why),
    "revoke": lambda desk, item, who, why: desk.revoke(item, who, why),
    "review": lambda desk, item, who, why: desk.review(item, who, why),
    "break-glass": lambda desk, item, who, why: desk.break_glass(item, who, why),
}
"""What a person can do to an item."""


async def waiting(visit: Visit) -> Response:
    """List what waits for a decision that this person may see, and what has been decided."""
    try:
        pending = await visit.services.desk(lambda desk: desk.list((State.PENDING,)))
        recent = await visit.services.desk(lambda desk: desk.list(limit=RECENT))
    except StateError as why:
        return page(visit, "trouble.html", "Approvals", status=503, problem=str(why))
    now = visit.services.now()
    return page(
        visit,
        "approvals.html",
        "Approvals",
        pending=[_row(visit, item, now) for item in reversed(pending) if _sees(visit, item)],
        recent=[_row(visit, item, now) for item in recent if item.state is not State.PENDING and _sees(visit, item)],
    )


async def one(visit: Visit) -> Response:
    """Show one item: who asks what of which model, why it waits, the request with every finding masked, its history."""
    return await _shown(visit)


async def decide(visit: Visit) -> Response:
    """Do what a form says."""
    form = visit.form
    done = await _done(visit, form.get("do", ""), form.get("reason", ""))
    if isinstance(done, Item):
        return RedirectResponse(f"/approvals/{done.id}", 303)
    return await _shown(visit, problem=str(done), status=503 if isinstance(done, StateError) else 409)


async def api_list(visit: Visit) -> Response:
    """Return the items that the caller may see, newest first, as JSON; ``state`` chooses."""
    wanted = visit.request.query_params.get("state", "")
    if wanted and wanted not in list(State):
        return refused(400, "bad_request", f"state: accepted: {', '.join(State)}.")
    states = (State(wanted),) if wanted else ()
    try:
        found = await visit.services.desk(lambda desk: desk.list(states))
    except StateError as why:
        return refused(503, "state_unavailable", f"{why}.")
    now = visit.services.now()
    return told({"approvals": [as_json(item, now) for item in found if _sees(visit, item)]})


async def api_one(visit: Visit) -> Response:
    """Return one item with its votes and steps."""
    try:
        item = await _item(visit)
        if item is None:
            return refused(404, "no_approval", f"{Refusal.UNKNOWN}.")
        said, happened = await visit.services.desk(lambda desk: desk.history(item.id))
    except StateError as why:
        return refused(503, "state_unavailable", f"{why}.")
    votes = [{"who": each.person.name, "answer": each.answer, "reason": each.reason, "at": each.at} for each in said]
    steps = [asdict(each) for each in happened]
    shown = _body(item.shown)
    return told({**as_json(item, visit.services.now()), "request": shown, "votes": votes, "steps": steps})


async def api_decide(visit: Visit) -> Response:
    """Do something to an item: JSON with ``do`` (approve, deny, revoke, review, break-glass) and ``reason``."""
    try:
        asked = json.loads(visit.body)
        deed, reason = asked["do"], asked.get("reason", "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return refused(400, "bad_request", "Accepted: a JSON object with do and reason.")
    if not isinstance(deed, str) or not isinstance(reason, str) or deed not in DEEDS:
        return refused(400, "bad_request", f"do: accepted: {', '.join(DEEDS)}; reason: a text.")
    done = await _done(visit, deed, reason)
    if isinstance(done, Item):
        return told(as_json(done, visit.services.now()))
    status = _STATUS.get(done, 403) if isinstance(done, Refusal) else 503
    return refused(status, "not_decided", f"{done}.")


_STATUS = {Refusal.UNKNOWN: 404, Refusal.OVER: 409, Refusal.VOTED: 409}


# ── inside ───────────────────────────────────────────────────────────────────


async def _shown(visit: Visit, *, problem: str = "", status: int = 200) -> Response:
    try:
        item = await _item(visit)
        if item is None:
            return page(visit, "trouble.html", "No such approval", status=404, problem=str(Refusal.UNKNOWN))
        said, happened = await visit.services.desk(lambda desk: desk.history(item.id))
    except StateError as why:
        return page(visit, "trouble.html", "Approvals", status=503, problem=str(why))
    now, person = visit.services.now(), _person(visit.caller)
    return page(
        visit,
        "approval.html",
        f"Approval {item.id}",
        status=status,
        item=item,
        row=_row(visit, item, now),
        votes=said,
        steps=happened,
        body=_body(item.shown),
        refusal=may_vote(item.demands, item.asker, item.owners, person, now),
        over=is_over(item.state),
        problem=problem,
        reason_most=REASON_CHARACTERS,
    )


async def _done(visit: Visit, deed: str, reason: str) -> Item | Refusal | StateError:
    """Do something to an item as the person who is signed in."""
    work, person, words = DEEDS.get(deed), _person(visit.caller), line(reason)
    try:
        item = await _item(visit)
        if work is None or item is None:
            return Refusal.UNKNOWN
        if deed == "deny" and not words:
            return Refusal.WORDLESS
        done: Item | Refusal = await visit.services.desk(lambda desk: work(desk, item.id, person, words))
    except StateError as why:
        return why
    return done


async def _item(visit: Visit) -> Item | None:
    """Return the item of the address, if this person may see it: to everybody else there is none."""
    wanted = visit.request.path_params["approval"]
    found = await visit.services.desk(lambda desk: desk.find(wanted))
    item = next((each for each in found if each.id == wanted), None)
    return item if item is not None and _sees(visit, item) else None


def _sees(visit: Visit, item: Item) -> bool:
    """Approvers see what they may decide on, askers what they asked, auditors everything."""
    person = _person(visit.caller)
    if person.name == item.asker.name or person.name in item.owners:
        return True
    groups = {group for each in item.demands for group in (*each.groups, *each.break_glass)}
    if person.groups & groups:
        return True
    assert visit.caller is not None
    return AdminRight.EXCHANGES in rights_of(visit.services.policy(), visit.caller)


def _person(caller: Caller | None) -> Person:
    assert caller is not None
    return Person(caller.identity, caller.subject, caller.groups, caller.authenticated)


def _row(visit: Visit, item: Item, now: float) -> dict[str, Any]:
    person = _person(visit.caller)
    seconds = int(left(item, now) or 0)
    return {
        "item": item,
        "mine": may_vote(item.demands, item.asker, item.owners, person, now) is None,
        "left": f"{seconds // 60}:{seconds % 60:02}" if item.state is State.PENDING else "",
        "needs": needs(item.demands),
    }


def _body(shown: bytes | None) -> str | None:
    if shown is None:
        return None
    text = shown.decode("utf-8", "replace")
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


DOORS = (
    Door("GET", "/approvals", Signed(), waiting),
    Door("GET", "/approvals/{approval}", Signed(), one),
    Door("POST", "/approvals/{approval}", Signed(), decide, body=FORM_BYTES),
    Door("GET", "/v1/approvals", Needs(), api_list),
    Door("GET", "/v1/approvals/{approval}", Needs(), api_one),
    Door("POST", "/v1/approvals/{approval}", Needs(), api_decide, body=FORM_BYTES),
)
