"""The admin pages in a real Chromium: who signs in sees what crossed, live, and no text of a stranger does anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.conftest import SampleModel
from tests.e2e import harness as h
from tests.e2e.browsing import Browser, Page, chromium
from tests.e2e.provider import nanoidp

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> \u202e \x1b[31m"
ROLES = {
    "dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["*"]}]},
    "auditor": {"admin": ["overview", "exchanges"]},
    "watcher": {"admin": ["overview"]},
}
BINDINGS = [
    {"groups": ["local:dev"], "roles": ["dev"]},
    {"groups": ["local:audit"], "roles": ["auditor"]},
    {"groups": ["local:watch"], "roles": ["watcher"]},
]
WIDE = """[...document.querySelectorAll("body *")]
    .filter((each) => !each.closest(".wide, pre, svg, .skip, .unseen"))
    .filter((each) => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map((each) => each.outerHTML.slice(0, 100))"""
PAGES = ("/", "/exchanges", "/policy", "/health")


@dataclass
class Setting:
    gate: h.Process
    url: str
    browser: Browser
    dev: str
    audit: str
    watch: str

    def ask(self, text: str) -> None:
        httpx.post(
            f"{self.gate.url}/openai/v1/chat/completions",
            content=h.chat(text),
            headers={"authorization": f"Bearer {self.dev}", "content-type": "application/json"},
            timeout=30,
            trust_env=False,
        )

    def page(self, token: str, **options: object) -> Page:
        page = self.browser.open(**options)
        page.do("goto", url=self.url + "/")
        page.do("fill", at="#token", text=token)
        page.do("click", at="form.narrow button")
        page.do("wait", at="form.who")
        return page


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, sample_model: SampleModel) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("pages")
    path, port = h.policy(folder, sample_model.url, roles=ROLES, bindings=BINDINGS), h.free_port()
    tokens = [h.token(folder, name, (group,)) for name, group in (("al", "dev"), ("au", "audit"), ("wa", "watch"))]
    with chromium() as browser, h.tidegate_run(path, "--admin", f":{port}") as gate:
        made = Setting(gate, f"http://127.0.0.1:{port}", browser, *tokens)
        for text in ("hello", HOSTILE, f"why does {KEY} not work?"):
            made.ask(text)
        yield made


def test_who_signs_in_sees_what_crossed_and_nothing_that_was_found(setting: Setting) -> None:
    page = setting.page(setting.audit)
    assert "denied" in page.do("text", at="main")
    page.do("goto", url=setting.url + "/exchanges")
    assert page.do("count", at="tbody tr") >= 3
    page.do("click", at="tbody tr:nth-child(1) a")
    page.do("wait", at=".sides")
    shown = page.do("text", at="main")
    assert "secrets.aws-access-key" in shown
    assert KEY not in shown
    assert page.do("count", at="mark") >= 1
    assert page.do("said") == []


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_pages_have_no_serious_fault_for_who_cannot_see_or_point(setting: Setting, look: str) -> None:
    size = {"width": 390 if look == "narrow" else 1200, "height": 800}
    page = setting.page(setting.audit, colorScheme="dark" if look == "dark" else "light", viewport=size)
    for path in PAGES:
        page.do("goto", url=setting.url + path)
        found = [each for each in page.do("axe") if each["impact"] in ("serious", "critical")]
        assert found == [], path
        wide = page.do("run", code=WIDE)
        assert wide == [], f"{path} is wider than the screen"
        assert page.do("run", code="document.documentElement.scrollWidth - innerWidth") <= 0


def test_no_text_of_a_stranger_runs(setting: Setting) -> None:
    page = setting.page(setting.audit)
    page.do("said")
    for path in (*PAGES, "/exchanges?caller=%3Cscript%3Ealert(3)%3C/script%3E", "/sign-in?back=javascript:alert(4)"):
        page.do("goto", url=setting.url + path)
    rows = page.do("goto", url=setting.url + "/exchanges") and page.do("count", at="tbody tr")
    for at in range(1, rows + 1):
        page.do("goto", url=setting.url + "/exchanges")
        page.do("click", at=f"tbody tr:nth-child({at}) a")
        page.do("wait", at=".facts")
        assert page.do("count", at="main img, main script") == 0
    assert [each for each in page.do("said") if each.startswith(("dialog", "error"))] == []


def test_a_page_follows_what_happens(setting: Setting) -> None:
    page = setting.page(setting.watch)
    before = int(page.do("text", at=".figures dd").replace(",", ""))
    time.sleep(2.5)
    setting.ask("one more")
    end = time.monotonic() + 30
    while int(page.do("text", at=".figures dd").replace(",", "")) == before:
        assert time.monotonic() < end, "the page did not follow"
        time.sleep(0.3)


def test_people_sign_in_at_their_provider(setting: Setting, tmp_path: Path, sample_model: SampleModel) -> None:
    port = h.free_port()
    url, secret = f"http://127.0.0.1:{port}", tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    (tmp_path / "idp").mkdir()
    with nanoidp(tmp_path / "idp", f"{url}/sign-in/callback") as provider:
        client = {"identity": "corp", "client_id": "tg-cli", "client_secret": f"${{file:{secret}}}"}
        path = h.policy(
            tmp_path,
            sample_model.url,
            identity=[provider.section()],
            admin={"url": url, "sign_in": [client]},
            roles={"lead": {"admin": ["overview"]}},
            bindings=[{"groups": ["corp:ml-eng"], "roles": ["lead"]}],
        )
        with h.tidegate_run(path, "--admin", f":{port}"):
            page = setting.browser.open()
            page.do("goto", url=f"{url}/policy")
            page.do("click", at="a.button")
            page.do("wait", at="[name=username]")
            assert page.do("url").startswith(provider.url)
            page.do("fill", at="[name=username]", text="alice")
            page.do("fill", at="[name=password]", text="pw")
            page.do("click", at="[type=submit]")
            page.do("wait", at="form.who")
            assert page.do("url") == f"{url}/policy"
            assert "corp:alice" in page.do("text", at="header")

            # a code that another browser brings is nobody's
            other = setting.browser.open()
            other.do("goto", url=f"{url}/sign-in/provider?identity=corp")
            state = parse_qs(urlsplit(other.do("url")).query)["state"][0]
            thief = setting.browser.open()
            assert thief.do("goto", url=f"{url}/sign-in/callback?code=x&state={state}") == 400
            assert "not begun here" in thief.do("text", at="main")


def test_a_right_that_is_missing_is_a_sentence(setting: Setting) -> None:
    page = setting.page(setting.watch)
    assert page.do("goto", url=setting.url + "/exchanges") == 403
    assert "Your roles do not allow this" in page.do("text", at="main")


def test_signing_out_in_one_tab_ends_the_other(setting: Setting) -> None:
    page = setting.page(setting.audit)
    other = page.beside("second")
    assert other.do("goto", url=setting.url + "/policy") == 200
    page.do("click", at="form.who button")
    page.do("wait", at="#token")
    other.do("goto", url=setting.url + "/policy")
    assert "/sign-in?back=/policy" in other.do("url")


def test_a_form_of_another_site_does_nothing(setting: Setting) -> None:
    page = setting.page(setting.audit)
    code = f"""
        const form = document.body.appendChild(document.createElement("form"));
        form.method = "post"; form.action = "{setting.url}/sign-out"; form.submit();
    """
    evil = page.beside("evil")
    with h.Upstream() as elsewhere:
        elsewhere.says(h.http_answer(b"<!doctype html><title>evil</title>", content_type="text/html"))
        evil.do("goto", url=elsewhere.url.replace("127.0.0.1", "localhost") + "/")
        evil.do("run", code=code)
        time.sleep(1)
    assert page.do("goto", url=setting.url + "/policy") == 200


def test_the_cookie_is_for_the_gate_alone(setting: Setting) -> None:
    page = setting.page(setting.audit)
    (cookie,) = (each for each in page.do("cookies") if each["name"] == "tidegate-admin")
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert setting.audit not in str(page.do("cookies"))
    page.do("forget")
    page.do("goto", url=setting.url + "/")
    assert page.do("count", at="#token") == 1


def test_with_a_keyboard_alone(setting: Setting) -> None:
    page = setting.page(setting.audit)
    page.do("press", key="Tab")
    assert page.do("run", code="document.activeElement.className") == "skip"
    for _ in range(3):
        page.do("press", key="Tab")
    page.do("press", key="Enter")
    page.do("wait", at="h1")
    assert page.do("url").startswith(setting.url + "/")
