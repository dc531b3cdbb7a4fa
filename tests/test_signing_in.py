"""Signing in by SAML: a browser, a terminal, an assertion for a token; what another browser or a second try gets."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests import admin as a
from tests import saml as s
from tests.clock import Clock
from tidegate.admin import saml as routes
from tidegate.admin import wiring
from tidegate.admin.app import build
from tidegate.identity.own import FLOOR, PATIENCE, OwnKeys
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller
from tidegate.state import logins
from tidegate.state.control import Control
from tidegate.state.logins import Login, Logins, Settled, Waits
from tidegate.state.revocations import Revocations
from tidegate.state.signing import SigningKeys

EMAIL = "alice@example.org"
ALICE = Caller("adfs", EMAIL, frozenset({"adfs:ml-eng", "adfs:ops"}))


def kept_in(folder: Path) -> bytes:
    """Return the control store's files."""
    return b"".join([each.read_bytes() for each in folder.glob("control.db*")])


@pytest.fixture
def clock() -> Clock:
    return Clock(s.NOW)


@pytest.fixture
def policy(tmp_path: Path) -> Any:
    (tmp_path / "adfs.xml").write_bytes(s.metadata())
    identity = replace(s.IDENTITY, metadata=str(tmp_path / "adfs.xml"))
    return a.policy(identities=(identity,))


@pytest.fixture
def verifier(policy: Any, control: Control, clock: Clock) -> Verifier:
    return Verifier(policy.identities, own=OwnKeys(policy, SigningKeys(control), clock, clock))


@pytest.fixture
def app(policy: Any, control: Control, verifier: Verifier, clock: Clock) -> Any:
    given = {"verifier": verifier, "logins": Logins(control, clock), "revocations": Revocations(control), "now": clock}
    return build(wiring.DOORS, a.services(policy, **given))


@pytest.fixture
def browser(app: Any) -> httpx.AsyncClient:
    return a.client(app)


async def begin(browser: httpx.AsyncClient, **query: str) -> str:
    """Begin to sign in; return the id of the request."""
    answer = await browser.get("/saml/login", params=query)
    assert answer.status_code == 302, answer.text
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    (login,) = asked["RelayState"]
    return login


def delivered(login: str, **changes: Any) -> dict[str, str]:
    """What the provider has the browser post."""
    raw = s.written(s.response(s.signed(s.assertion(request=login, **changes)), request=login))
    return {"SAMLResponse": base64.b64encode(raw).decode(), "RelayState": login}


def shown(page: str) -> str:
    found = re.search(r'<pre class="token"[^>]*>([^<]+)</pre>', page)
    assert found is not None, page
    return found[1]


async def test_a_browser_signs_in_and_is_shown_its_token_once(browser: httpx.AsyncClient, verifier: Verifier) -> None:
    login = await begin(browser)
    cookie = browser.cookies.jar
    (kept,) = list(cookie)
    assert (kept.name, kept.path) == ("__Host-tidegate-login", "/")
    assert (kept.secure, kept.has_nonstandard_attr("HttpOnly")) == (True, True)
    assert kept.get_nonstandard_attr("SameSite") == "lax"
    # a page of the provider's posts it
    foreign = {"origin": "https://idp.example", "sec-fetch-site": "cross-site"}
    answer = await browser.post("/saml/acs", data=delivered(login, session=1200), headers=foreign)
    assert (answer.status_code, answer.headers["location"]) == (303, "/saml/finish")
    asks = await browser.get("/saml/finish")
    assert EMAIL in asks.text
    assert "ml-eng, ops" in asks.text
    assert "eyJ" not in asks.text
    evil = await browser.post("/saml/finish", data={"answer": "yes"}, headers={"origin": "https://evil.example"})
    assert evil.status_code == 403
    answer = await browser.post("/saml/finish", data={"answer": "yes"}, headers={"origin": a.URL})
    assert answer.headers["cache-control"] == "no-store"
    assert "<script" not in answer.text
    token = shown(answer.text)
    caller = await verifier.identify(token, s.NOW)
    assert a.who(caller) == a.who(replace(ALICE, expires=s.NOW + 1200)), "the session's own end"
    again = await browser.post("/saml/finish", data={"answer": "yes"})
    assert again.status_code == 403
    for each in (answer, asks, again):
        assert token not in str(each.url)
        assert "<script" not in each.text


async def test_another_browser_gets_nothing_of_an_answer(app: Any, browser: httpx.AsyncClient) -> None:
    """Sign-in forgery: mallory begins, and has alice's browser deliver the answer; or the other way round."""
    login = await begin(browser)
    async with a.client(app) as other:
        answer = await other.post("/saml/acs", data=delivered(login))
        assert answer.status_code == 303
        assert (await other.get("/saml/finish")).status_code == 403
        other.cookies.set("__Host-tidegate-login", "x" * 43, path="/")
        assert (await other.post("/saml/finish", data={"answer": "yes"})).status_code == 403
    assert (await browser.get("/saml/finish")).status_code == 200


async def test_a_neighbour_can_put_no_cookie_over_that_of_the_sign_in(browser: httpx.AsyncClient) -> None:
    """What a subdomain of the same site can set is another name, or makes two of one."""
    login = await begin(browser)
    assert (await browser.post("/saml/acs", data=delivered(login))).status_code == 303
    ((name, value),) = browser.cookies.items()
    for kept, status in ((f"{name}={value}; \xa0{name}=evil", 200), (f"{name}={value}; {name}=evil", 403)):
        answer = await browser.get("/saml/finish", headers={"cookie": kept.encode("latin-1")})
        assert answer.status_code == status


def test_without_https_the_cookie_has_another_name() -> None:
    assert routes.cookie("http://127.0.0.1:9443") == ("tidegate_login", "/saml"), "__Host- would need Secure"


async def test_an_answer_counts_once_and_only_for_its_request(
    app: Any, browser: httpx.AsyncClient, clock: Clock
) -> None:
    login = await begin(browser)
    form = delivered(login)
    for broken in (
        {**form, "RelayState": "_other"},
        {"RelayState": login},
        {**form, "SAMLResponse": "%%%"},
        {**delivered("_other"), "RelayState": login},
        delivered(login, now=s.NOW - 400),
    ):
        assert (await browser.post("/saml/acs", data=broken)).status_code == 403
    assert (await browser.post("/saml/acs", data=form)).status_code == 303
    assert (await browser.post("/saml/acs", data=form)).status_code == 403, "InResponseTo counts once"
    second = await begin(browser)
    raw = base64.b64decode(form["SAMLResponse"])
    assert (await browser.post("/saml/acs", data={**form, "RelayState": second})).status_code == 403
    assert s.REQUEST.encode() not in raw
    late = await begin(browser)
    clock.now += logins.SECONDS + 1
    assert (await browser.post("/saml/acs", data=delivered(late, now=clock.now))).status_code == 403


async def test_an_assertion_is_believed_once_by_all_processes(control: Control, clock: Clock, tmp_path: Path) -> None:
    other = Control(tmp_path / "control.db")
    other.start()
    try:
        both = Logins(control, clock), Logins(other, clock)
        both[0].begin("_1", "adfs", "cookie-1", None).result(10)
        both[0].begin("_2", "adfs", "cookie-2", None).result(10)
        results = [
            both[n].settle(Login(f"_{n + 1}", "adfs", None), ALICE, None, assertion="_a", ends=s.NOW + 300).result(10)
            for n in range(2)
        ]
        assert results == [Settled.BELIEVED, Settled.REPLAYED]
        assert both[1].believe("adfs", "_a", s.NOW + 300).result(10) is False
        assert both[1].believe("corp", "_a", s.NOW + 300).result(10) is True, "another provider's ids are its own"
        assert both[1].done("cookie-1").result(10).caller == ALICE
        assert both[1].done("cookie-2").result(10) is None
    finally:
        other.close()


async def test_sign_ins_are_bounded_and_hold_no_secret(
    control: Control, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "MOST", 20)
    kept = Logins(control, clock)
    for number in range(60):
        clock.now += 0.001
        kept.begin(f"_{number}", "adfs", f"cookie-CANARY-{number}", None).result(10)
        kept.wait(f"device-CANARY-{number}", f"CODE-{number}").result(10)

    def counts(db: Any) -> list[int]:
        return [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("saml_login", "saml_device")]

    assert max(control.read(counts).result(10)) == 20
    assert kept.begun("_59").result(10) is not None
    assert kept.begun("_0").result(10) is None
    assert b"CANARY" not in kept_in(tmp_path)


# ── terminals ────────────────────────────────────────────────────────────────────────────────────────────────────


async def asked(client: httpx.AsyncClient, code: str) -> httpx.Response:
    return await client.post("/token", data={"grant_type": routes.DEVICE, "device_code": code})


async def test_a_terminal_is_signed_in_by_its_user(
    app: Any, browser: httpx.AsyncClient, verifier: Verifier, clock: Clock
) -> None:
    async with a.client(app) as terminal:
        described = (await terminal.get("/.well-known/openid-configuration")).json()
        assert described["device_authorization_endpoint"] == f"{a.URL}/saml/device"
        asks = {"client_id": "tidegate", "scope": "openid"}  # as RFC 8628 has it; nobody needs them here
        given = (await terminal.post("/saml/device", data=asks)).json()
        assert re.fullmatch(r"[A-Z]{4}-[A-Z]{4}", given["user_code"])
        assert given["device_code"] not in json.dumps({**given, "device_code": ""})
        assert (await asked(terminal, given["device_code"])).json()["error"] == "authorization_pending"
        assert (await asked(terminal, given["device_code"])).json()["error"] == "slow_down"
        clock.now += 2
        page = await browser.get("/saml/device")
        assert "form-action 'self' https://idp.example" in page.headers["content-security-policy"]
        assert (await browser.get("/saml/login", params={"code": "WRNG-CODE"})).status_code == 404
        login = await begin(browser, code=given["user_code"].lower().replace("-", " "))
        await browser.post("/saml/acs", data=delivered(login))
        asks = await browser.get("/saml/finish")
        assert given["user_code"] in asks.text
        assert (await asked(terminal, given["device_code"])).json()["error"] == "authorization_pending", "not confirmed"
        answer = await browser.post("/saml/finish", data={"answer": "yes"})
        assert "Go back to your terminal" in answer.text
        assert "eyJ" not in answer.text
        clock.now += 2
        got = (await asked(terminal, given["device_code"])).json()
        assert got["expires_in"] == 3600
        caller = await verifier.identify(got["access_token"], clock.now)
        assert isinstance(caller, Caller)
        assert (caller.identity, caller.subject, caller.groups) == (ALICE.identity, ALICE.subject, ALICE.groups)
        assert (await asked(terminal, given["device_code"])).json()["error"] == "expired_token", "one token"


async def test_a_terminal_that_is_refused_unknown_or_late_gets_nothing(
    app: Any, browser: httpx.AsyncClient, clock: Clock
) -> None:
    async with a.client(app) as terminal:
        given = (await terminal.post("/saml/device", data={"identity": "adfs"})).json()
        assert given["verification_uri_complete"].endswith("&identity=adfs")
        login = await begin(browser, code=given["user_code"])
        await browser.post("/saml/acs", data=delivered(login))
        assert "Refused" in (await browser.post("/saml/finish", data={"answer": "no"})).text
        assert (await asked(terminal, given["device_code"])).json()["error"] == "access_denied"
        assert (await asked(terminal, "x")).json()["error"] == "expired_token"
        assert (await asked(terminal, "")).json()["error"] == "invalid_request"
        assert (await terminal.post("/saml/device", data={"identity": "nope"})).status_code == 404
        late = (await terminal.post("/saml/device")).json()
        clock.now += logins.SECONDS + 1
        assert (await asked(terminal, late["device_code"])).json()["error"] == "expired_token"


def test_a_code_cannot_be_given_twice(control: Control, clock: Clock) -> None:
    kept = Logins(control, clock)
    kept.wait("d1", "AAAA-BBBB").result(10)
    login = Login("_1", "adfs", "AAAA-BBBB", ALICE, None)
    assert kept.give("AAAA-BBBB", login, allowed=True).result(10) is True
    mallory = replace(login, caller=replace(ALICE, subject="mallory"))
    assert kept.give("AAAA-BBBB", mallory, allowed=True).result(10) is False
    found = kept.ask("d1").result(10)
    assert isinstance(found, Login)
    assert found.caller == ALICE
    assert kept.ask("d1").result(10) is Waits.GONE


# ── an assertion for a token ─────────────────────────────────────────────────────────────────────────────────────


def assertion(**changes: Any) -> str:
    values = {"recipient": s.TOKEN, "audience": s.TOKEN, "request": None, **changes}
    return base64.urlsafe_b64encode(s.written(s.signed(s.assertion(**values)))).rstrip(b"=").decode()


async def test_an_assertion_gives_one_token(app: Any, verifier: Verifier) -> None:
    form = {"grant_type": routes.BEARER, "assertion": assertion()}
    async with a.client(app) as client:
        answer = await client.post("/token", data=form)
        assert answer.status_code == 200, answer.text
        caller = await verifier.identify(answer.json()["access_token"], s.NOW)
        assert isinstance(caller, Caller)
        assert caller.subject == EMAIL
        for again in (form["assertion"], assertion(ident="_a2", issuer="https://x.example"), "", "%%%"):
            refused = await client.post("/token", data={**form, "assertion": again})
            assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Unreadable:
    """The store of the keys on a bad day."""

    def read(self) -> Any:
        raise OSError

    turn = read


@contextlib.contextmanager
def outage(verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the keys not be there for a while."""
    assert verifier.own is not None
    clock.now += PATIENCE + 1
    with monkeypatch.context() as broken:
        broken.setattr(verifier.own, "_keeper", Unreadable())
        yield
    clock.now += FLOOR


async def test_an_outage_of_the_keys_loses_no_sign_in(
    app: Any, browser: httpx.AsyncClient, verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = await begin(browser)
    assert (await browser.post("/saml/acs", data=delivered(login))).status_code == 303
    with outage(verifier, clock, monkeypatch):
        answer = await browser.post("/saml/finish", data={"answer": "yes"})
        assert (answer.status_code, "try again" in answer.text) == (503, True)
    assert shown((await browser.post("/saml/finish", data={"answer": "yes"})).text)


async def test_an_outage_of_the_keys_loses_no_terminal_and_no_assertion(
    app: Any, browser: httpx.AsyncClient, verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a.client(app) as terminal:
        code = (await terminal.post("/saml/device")).json()
        login = await begin(browser, code=code["user_code"])
        assert (await browser.post("/saml/acs", data=delivered(login))).status_code == 303
        assert "Done" in (await browser.post("/saml/finish", data={"answer": "yes"})).text
        form = {"grant_type": routes.BEARER, "assertion": assertion(ident="_a2")}
        with outage(verifier, clock, monkeypatch):
            for answer in (await asked(terminal, code["device_code"]), await terminal.post("/token", data=form)):
                assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        for answer in (await asked(terminal, code["device_code"]), await terminal.post("/token", data=form)):
            assert answer.status_code == 200, answer.text


async def test_what_a_provider_says_cannot_become_a_page(browser: httpx.AsyncClient) -> None:
    login = await begin(browser)
    hostile = "&lt;script&gt;alert(1)&lt;/script&gt;"
    await browser.post("/saml/acs", data=delivered(login, name=hostile, groups=[hostile]))
    page = (await browser.get("/saml/finish")).text
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2


async def test_several_identities_are_a_choice_and_none_is_no_route(
    policy: Any, control: Control, clock: Clock
) -> None:
    second = replace(policy.identities[0], name="okta")
    chosen = a.services(a.policy(identities=(*policy.identities, second)), logins=Logins(control, clock), now=clock)
    async with a.client(build(wiring.DOORS, chosen)) as client:
        page = await client.get("/saml/login", params={"code": "bcdf-ghjk"})
        assert (page.status_code, page.text.count('<a href="/saml')) == (300, 2)
        assert "identity=okta&amp;code=BCDF-GHJK" in page.text
        assert (await client.get("/saml/login", params={"identity": "okta"})).status_code == 302
        assert (await client.get("/saml/login", params={"identity": "<x>"})).status_code == 404
        assert "<select" in (await client.get("/saml/device")).text
        described = await client.get("/saml/metadata", params={"identity": "adfs"})
        assert f'entityID="{s.SP}"' in described.text
        assert s.ACS in described.text
    async with a.client(build(wiring.DOORS, a.services(logins=Logins(control, clock)))) as client:
        for path in ("/saml/login", "/saml/metadata", "/saml/device"):
            assert (await client.get(path)).status_code == 404


async def test_without_its_metadata_or_the_store_nobody_signs_in(
    app: Any, browser: httpx.AsyncClient, policy: Any, control: Control
) -> None:
    login = await begin(browser)
    control.close()
    assert (await browser.get("/saml/login")).status_code == 503
    assert (await browser.post("/saml/acs", data=delivered(login))).status_code == 503
    assert (await browser.get("/saml/finish")).status_code == 503
    assert (await browser.post("/saml/device")).status_code == 503
    Path(policy.identities[0].metadata).unlink()  # noqa: ASYNC240 - a test
    fresh = a.services(a.policy(identities=(replace(policy.identities[0]),)), logins=Logins(control, Clock(s.NOW)))
    async with a.client(build(wiring.DOORS, fresh)) as client:
        assert "metadata" in (await client.get("/saml/login")).text


async def test_refusals_are_counted_and_logged_without_what_was_said(
    browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tidegate")
    login = await begin(browser)
    await browser.post("/saml/acs", data=delivered(login, audience="https://x.example"))
    lines = [json.loads(each.message) for each in caplog.records if '"saml"' in each.message]
    assert lines == [{"event": "saml", "identity": "adfs", "result": "refused", "reason": "audience"}]
    assert EMAIL not in caplog.text
