"""An approver in a real Chromium: a request waits, somebody looks, it passes or not; the SDK notices nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import openai
import pytest

from tests.conftest import SampleModel
from tests.e2e import harness as h
from tests.e2e.browsing import Browser, Page, chromium

pytestmark = pytest.mark.e2e

MAIL = "bob.hostile@acme-corp.io"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@dataclass
class Setting:
    gate: h.Process
    url: str
    browser: Browser
    model: SampleModel
    pool: ThreadPoolExecutor
    alice: str
    boss: str

    def ask(self, text: str) -> Future[str]:
        """Have the real SDK ask, in a thread: it waits for its answer."""
        client = openai.OpenAI(base_url=f"{self.gate.url}/openai/v1", api_key=self.alice, max_retries=0)

        def work() -> str:
            said = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(model="sample-small", messages=said)  # type: ignore[arg-type]
            return answer.choices[0].message.content or ""

        return self.pool.submit(work)

    def page(self, token: str, **options: object) -> Page:
        page = self.browser.open(**options)
        page.do("goto", url=self.url + "/approvals")
        page.do("fill", at="#token", text=token)
        page.do("click", at="form.narrow button")
        page.do("wait", at="form.who")
        return page


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, sample_model: SampleModel) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("approver")
    inspection = {
        "prompt": {"secrets": "block", "pii": "approve", "injection": "flag", "exfil": "allow"},
        "response": {"secrets": "redact", "pii": "redact", "injection": "allow", "exfil": "redact"},
    }
    approvals = {"pii": {"approvers": ["local:boss"]}}
    path, port = h.policy(folder, sample_model.url, inspection=inspection, approvals=approvals), h.free_port()
    alice, boss = h.token(folder, "alice", ("dev",)), h.token(folder, "carol", ("boss",))
    with chromium() as browser, h.tidegate_run(path, "--admin", f":{port}") as gate, ThreadPoolExecutor(4) as pool:
        yield Setting(gate, f"http://127.0.0.1:{port}", browser, sample_model, pool, alice, boss)


def waits(page: Page) -> None:
    """Wait until the list shows a request, by itself."""
    page.do("wait", at="a.button")


def test_a_request_passes_when_somebody_says_yes(setting: Setting) -> None:
    page, before = setting.page(setting.boss), setting.model.hits()
    asked = setting.ask(f"Write to {MAIL} {SCRIPT}")
    waits(page)
    page.do("click", at="a.button")
    page.do("wait", at="#reason")
    shown = page.do("text", at="main")
    assert "local:alice" in shown
    assert "pii.email" in shown
    assert MAIL not in shown
    assert page.do("count", at="mark") >= 1
    assert page.do("count", at="main script, main img") == 0
    assert setting.model.hits() == before
    page.do("fill", at="#reason", text="a customer's own wish")
    page.do("click", at="button[value=approve]")
    assert asked.result(30)
    assert setting.model.hits() == before + 1
    assert page.do("said") == []


def test_a_request_is_refused_when_somebody_says_no_and_nothing_is_sent(setting: Setting) -> None:
    page, before = setting.page(setting.boss), setting.model.hits()
    asked = setting.ask(f"Send everything to {MAIL}")
    waits(page)
    page.do("click", at="a.button")
    page.do("wait", at="#reason")
    page.do("click", at="button[value=deny]")
    page.do("wait", at=".trouble")
    assert "a reason is needed" in page.do("text", at=".trouble")
    page.do("fill", at="#reason", text="use the anonymised export")
    page.do("click", at="button[value=deny]")
    with pytest.raises(openai.PermissionDeniedError) as denied:
        asked.result(30)
    assert "use the anonymised export" in str(denied.value)
    assert setting.model.hits() == before


def test_two_tabs_and_a_session_that_has_ended(setting: Setting) -> None:
    page, before = setting.page(setting.boss), setting.model.hits()
    asked = setting.ask(f"Ask {MAIL} about the two tabs")
    waits(page)
    page.do("click", at="a.button")
    page.do("wait", at="#reason")
    other = page.beside("the other tab")
    other.do("goto", url=page.do("url"))
    page.do("forget")
    page.do("click", at="button[value=approve]")
    time.sleep(1)
    assert not asked.done(), "without a session nothing is decided"
    again = setting.page(setting.boss)
    again.do("goto", url=other.do("url").replace("/sign-in?back=", ""))
    again.do("click", at="button[value=approve]")
    assert asked.result(30)
    assert setting.model.hits() == before + 1


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_the_pages_have_no_serious_fault(setting: Setting, look: str) -> None:
    size = {"width": 390 if look == "narrow" else 1200, "height": 800}
    page = setting.page(setting.boss, colorScheme="dark" if look == "dark" else "light", viewport=size)
    asked = setting.ask(f"Tell {MAIL} how it looks, {look}")
    waits(page)
    for at in ("/approvals", ""):
        if not at:
            page.do("click", at="a.button")
            page.do("wait", at="#reason")
        found = [each for each in page.do("axe") if each["impact"] in ("serious", "critical")]
        assert found == [], json.dumps(found)
        assert page.do("run", code="document.documentElement.scrollWidth - innerWidth") <= 0
    page.do("fill", at="#reason", text="no")
    page.do("click", at="button[value=deny]")
    with pytest.raises(openai.PermissionDeniedError):
        asked.result(30)
