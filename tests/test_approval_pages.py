"""The pages and the HTTP API of approvals: who sees which request, who decides, and what a stranger's words become."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import admin as a
from tidegate.admin import approving, entering, pages
from tidegate.admin.app import build
from tidegate.admin.sessions import Sessions
from tidegate.approvals.digest import bound
from tidegate.approvals.spec import Approval, Ask, Need, Person, State
from tidegate.desk import Desk
from tidegate.model import Caller
from tidegate.policy.policy import AdminRight
from tidegate.state.approvals import Item
from tidegate.state.control import Control, StateError

EVIL = "<script>alert(1)</script>\x1b[31m"
ALICE = Person("local", "alice", frozenset({"local:dev"}))
PEOPLE = {
    "tg_alice": Caller("local", "alice", frozenset({"local:dev"})),
    "tg_boss": Caller("local", "boss", frozenset({"local:boss"})),
    "tg_chief": Caller("local", "chief", frozenset({"local:boss"})),
    "tg_other": Caller("local", "other", frozenset({"local:dev"})),
    "tg_audit": Caller("local", "audit", frozenset({"local:audit"})),
}


@dataclass
class Office:
    """A desk with a store behind it, and the application in front."""

    desk: Desk
    app: Any

    async def item(self, body: bytes = b"1", **more: Any) -> Item:
        entry = Approval("pii", ("local:boss",), **more)
        wanted = Ask(
            ALICE, "openai", "chat", "POST", "/v1/chat/completions", EVIL, (Need(entry, ("class pii",)),),
            (("pii.email", "pii", EVIL, "approve"),), EVIL, "0" * 64,
            bound=bound(ALICE, "openai", ("POST", "/"), (), body), shown=b'{"text": "[REDACTED:email] </pre><b>"}',
        )  # fmt: skip
        found = (await self.desk.ask(wanted)).item
        assert found is not None
        return found

    async def state(self, item: Item) -> State:
        return (await self.desk.find(item.id))[0].state

    async def person(self, name: str) -> httpx.AsyncClient:
        here = a.client(self.app)
        answer = await here.post("/sign-in", data={"token": f"tg_{name}"}, headers={"origin": a.URL})
        assert answer.status_code == 303
        return here


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    control = Control(tmp_path / "control.db")
    control.start()
    desk = Desk(control)

    async def identify(token: str) -> Any:
        return PEOPLE.get(token) or await a.identify("nobody")

    async def at(work: Callable[[Desk], Awaitable[Any]]) -> Any:
        return await work(desk)

    policy = a.policy()
    policy.permissions.groups["local:audit"] = ("auditor",)
    policy.admin.rights["auditor"] = frozenset({AdminRight.EXCHANGES})
    services = a.services(policy, identify=identify, desk=at, now=time.time, sessions=Sessions())
    yield Office(desk, build((*entering.DOORS, *pages.DOORS, *approving.DOORS), services))
    await desk.close()
    control.close()


def form(page: str, **fields: str) -> dict[str, str]:
    return {"csrf": re.search(r'name="csrf" value="([^"]+)"', page)[1], **fields}


async def press(here: httpx.AsyncClient, item: Item, **fields: str) -> httpx.Response:
    page = (await here.get(f"/approvals/{item.id}")).text
    return await here.post(f"/approvals/{item.id}", data=form(page, **fields), headers={"origin": a.URL})


async def test_an_approver_sees_what_waits_and_says_yes(office: Office) -> None:
    item = await office.item()
    boss = await office.person("boss")
    listed = (await boss.get("/approvals")).text
    assert item.id in listed
    assert "<strong>you</strong>" in listed
    shown = (await boss.get(f"/approvals/{item.id}")).text
    assert "<mark>[REDACTED:email]</mark>" in shown
    answer = await press(boss, item, do="approve", reason="fine")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/approvals/{item.id}")
    assert await office.state(item) is State.APPROVED
    after = (await boss.get(f"/approvals/{item.id}")).text
    assert "Take the yes back" in after
    assert "local:boss: <strong>yes</strong>, <q>fine</q>" in after


async def test_a_no_needs_a_reason(office: Office) -> None:
    item, boss = await office.item(), await office.person("boss")
    answer = await press(boss, item, do="deny", reason="  ")
    assert answer.status_code == 409
    assert "a reason is needed" in answer.text
    assert await office.state(item) is State.PENDING
    assert (await press(boss, item, do="deny", reason="no")).status_code == 303
    assert await office.state(item) is State.DENIED


@pytest.mark.parametrize("deed", ["approve", "deny", "break-glass", "revoke", "review", "", "consume"])
@pytest.mark.parametrize("name", ["alice", "audit"])
async def test_who_asked_or_audits_looks_and_decides_nothing(office: Office, name: str, deed: str) -> None:
    item, here = await office.item(), await office.person(name)
    page = (await here.get(f"/approvals/{item.id}")).text
    assert "You cannot decide on this" in page
    assert 'name="do"' not in page
    assert (await press(here, item, do=deed, reason="x" * 30)).status_code == 409
    assert await office.state(item) is State.PENDING


async def test_to_a_stranger_there_is_no_item(office: Office) -> None:
    item, other = await office.item(), await office.person("other")
    assert item.id not in (await other.get("/approvals")).text
    assert (await other.get(f"/approvals/{item.id}")).status_code == 404
    headers = {"authorization": "Bearer tg_other"}
    async with a.client(office.app) as api:
        assert (await api.get("/v1/approvals", headers=headers)).json() == {"approvals": []}
        assert (await api.get(f"/v1/approvals/{item.id}", headers=headers)).status_code == 404
        body = {"do": "approve", "reason": "x"}
        assert (await api.post(f"/v1/approvals/{item.id}", json=body, headers=headers)).status_code == 404
    assert await office.state(item) is State.PENDING


async def test_a_form_of_another_session_decides_nothing(office: Office) -> None:
    item, boss, chief = await office.item(), await office.person("boss"), await office.person("chief")
    foreign = form((await chief.get(f"/approvals/{item.id}")).text, do="approve")
    for data in (foreign, {"do": "approve"}):
        answer = await boss.post(f"/approvals/{item.id}", data=data, headers={"origin": a.URL})
        assert answer.status_code == 403
    evil = {"origin": "https://evil.example"}
    own = form((await boss.get(f"/approvals/{item.id}")).text, do="approve")
    assert (await boss.post(f"/approvals/{item.id}", data=own, headers=evil)).status_code == 403
    assert await office.state(item) is State.PENDING


async def test_the_same_page_in_two_tabs_votes_once(office: Office) -> None:
    item, boss = await office.item(quorum=2), await office.person("boss")
    assert (await press(boss, item, do="approve")).status_code == 303
    second = await press(boss, item, do="approve")
    assert second.status_code == 409
    assert "the first vote stands" in second.text
    assert await office.state(item) is State.PENDING
    assert (await press(await office.person("chief"), item, do="approve")).status_code == 303
    assert await office.state(item) is State.APPROVED


@pytest.mark.parametrize("path", ["/approvals", "/approvals/ID"])
async def test_no_word_of_a_stranger_becomes_markup(office: Office, path: str) -> None:
    item, boss = await office.item(), await office.person("boss")
    await press(boss, item, do="deny", reason=EVIL)
    page = (await boss.get(path.replace("ID", item.id))).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "</pre><b>" not in page
    assert "\x1b" not in page


async def test_the_api_tells_and_decides(office: Office) -> None:
    item = await office.item()
    boss = {"authorization": "Bearer tg_boss"}
    async with a.client(office.app) as api:
        assert (await api.get("/v1/approvals")).status_code == 401
        (one,) = (await api.get("/v1/approvals?state=pending", headers=boss)).json()["approvals"]
        assert (one["id"], one["state"], one["why"]) == (item.id, "pending", ["pii class pii"])
        assert (await api.get("/v1/approvals?state=odd", headers=boss)).status_code == 400
        told = (await api.get(f"/v1/approvals/{item.id}", headers=boss)).json()
        assert "[REDACTED:email]" in told["request"]
        assert [each["what"] for each in told["steps"]] == ["ask"]
        for wrong in (b"", b"[]", b'{"do": 1}', b'{"do": "consume"}', b'{"do": "approve", "reason": 1}', b"[" * 5000):
            answer = await api.post(f"/v1/approvals/{item.id}", content=wrong, headers=boss)
            assert answer.status_code == 400
        alice = {"authorization": "Bearer tg_alice"}
        own = await api.post(f"/v1/approvals/{item.id}", json={"do": "approve"}, headers=alice)
        assert (own.status_code, own.json()["error"]["message"]) == (403, "nobody decides on his own request.")
        done = await api.post(f"/v1/approvals/{item.id}", json={"do": "approve"}, headers=boss)
        assert (done.status_code, done.json()["state"]) == (200, "approved")
        again = await api.post(f"/v1/approvals/{item.id}", json={"do": "approve"}, headers=boss)
        assert again.status_code == 409


async def test_a_store_that_cannot_be_read_is_a_sentence(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    item, boss = await office.item(), await office.person("boss")

    def broken(*_: Any) -> Any:
        raise StateError("control.db: cannot be read")

    for name in ("list", "find", "history"):
        monkeypatch.setattr(office.desk, name, broken)
    for path in ("/approvals", f"/approvals/{item.id}"):
        page = await boss.get(path)
        assert page.status_code == 503
        assert "cannot be read" in page.text
    async with a.client(office.app) as api:
        headers = {"authorization": "Bearer tg_boss"}
        for path in ("/v1/approvals", f"/v1/approvals/{item.id}"):
            assert (await api.get(path, headers=headers)).status_code == 503
