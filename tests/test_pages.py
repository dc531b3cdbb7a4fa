"""The pages of the admin listener, as a browser calls them: who sees what, and what a stranger's text becomes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests import admin as a
from tidegate.admin import approving, entering, pages
from tidegate.admin.app import build
from tidegate.admin.charts import Bar, bars
from tidegate.admin.doors import Signed
from tidegate.admin.rendering import NAVIGATION, back_to, marked
from tidegate.admin.sessions import IDLE, Sessions
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.store import Recorder
from tidegate.evidence.summaries import activity, rule_hits
from tidegate.exchange import new_id
from tidegate.model import Action, Direction, Finding, Outcome, Reason
from tidegate.policy.policy import AdminRight, Keep, RecordingMode

NOW = 1_800_000_000.0
HOSTILE = "<script>alert('CANARY')</script>"


def an_id(at_us: int, number: int) -> str:
    return f"ex_{at_us // 1000:011x}{number:010x}"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hours of exchanges, the last of them hostile in every text that a client or a model can write."""
    where = tmp_path_factory.mktemp("pages") / "tidegate.db"
    recorder = Recorder(where, lambda _: b"")
    recorder.start()
    for number in range(30):
        at = int(NOW * 1e6) - (number * 6 + 1) * 60_000_000
        found = Finding("pii.email", "pii", "$.messages[0].content", 0, 9, Action.REDACT)
        recorder.seal(
            ExchangeRecord(
                an_id(at, number), at, "POST", "/openai/v1/chat/completions", identity="corp", caller="alice",
                connection="openai", endpoint="chat", model="m", status=200, first_byte_us=1000 * number,
                duration_us=2000 * number, outcome=Outcome.ANSWERED if number % 3 else Outcome.DENIED,
                reason=None if number % 3 else Reason.FINDING, answer_findings=(found,) if number % 2 else (),
            ),
            None,
        )  # fmt: skip
    at = int(NOW * 1e6) - 1_000_000
    recorder.seal(
        ExchangeRecord(
            an_id(at, 99), at, HOSTILE, "/" + HOSTILE, identity="corp", caller=HOSTILE, connection="openai",
            endpoint="chat", model=HOSTILE, outcome=Outcome.FAILED,
        ),
        None,
    )  # fmt: skip
    recorder.close()
    return where


@pytest.fixture
def the_policy(recording: Path) -> Any:
    rights = {"operator": frozenset(AdminRight), "watcher": frozenset({AdminRight.OVERVIEW})}
    rule = SimpleNamespace(id="pii.email", observe=True)
    return a.policy(
        recording=SimpleNamespace(path=str(recording), mode=RecordingMode.STRICT, keep=Keep.REDACTED),
        admin=SimpleNamespace(url=a.URL, hosts=frozenset(), rights=rights, sign_in={}),
        engine=SimpleNamespace(rules=(rule, SimpleNamespace(id="pii.card", observe=False))),
        actions={("pii", Direction.RESPONSE): Action.REDACT},
        connections={},
    )


def app(policy: Any, **changes: Any) -> Any:
    doors = (*entering.DOORS, *pages.DOORS)
    values = {"sessions": Sessions(), "changed": lambda: "same", "now": lambda: NOW, **changes}
    return build(doors, a.services(policy, **values))


async def signed_in(the_app: Any, name: str = "ops") -> httpx.AsyncClient:
    here = a.client(the_app)
    answer = await here.post("/sign-in", data={"token": f"tg_{name}", "back": "/"}, headers={"origin": a.URL})
    assert answer.status_code == 303
    return here


def csrf_of(page: str) -> str:
    return re.search(r'name="csrf" value="([^"]+)"', page)[1]


# ── signing in ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", [each for each in pages.DOORS if isinstance(each.rule, Signed)], ids=lambda d: d.path)
async def test_who_is_not_signed_in_sees_no_page_and_comes_back_to_it(the_policy: Any, door: Any) -> None:
    path = door.path.replace("{exchange}", "ex_1")
    answer = await a.client(app(the_policy)).get(path, params={"span": "7d"})
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/sign-in?back={path}%3Fspan%3D7d"
    assert answer.text == ""


async def test_a_token_signs_in_and_stays_in_the_gate(the_policy: Any) -> None:
    the_app = app(the_policy)
    here = a.client(the_app)
    form = {"token": "tg_ops", "back": "/exchanges?rule=x"}
    answer = await here.post("/sign-in", data=form, headers={"origin": a.URL})
    assert (answer.status_code, answer.headers["location"]) == (303, "/exchanges?rule=x")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-tidegate=")
    for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
        assert word in cookie
    assert "tg_ops" not in str(answer.headers)
    page = await here.get("/")
    assert page.status_code == 200
    assert "local:ops" in page.text
    assert "tg_ops" not in page.text


@pytest.mark.parametrize(
    ("count", "statuses"), [(100, (401, 400, 403)), (101, (400, 400, 400)), (2000, (400, 400, 400))]
)
async def test_too_many_fields_are_no_bug(
    the_policy: Any, count: int, statuses: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    fields = "&".join(f"f{number}=1" for number in range(count))
    here = await signed_in(app(the_policy))
    answers = [
        await here.post("/sign-in", content=fields),
        await here.get(f"/sign-in/callback?{fields}"),
        await here.post("/sign-out", content=fields),
    ]
    assert tuple(each.status_code for each in answers) == statuses
    assert [("too_many_fields" in each.text) for each in answers] == [count > 100] * 3
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("token", ["", "wrong", "tg_ops\x00"])
async def test_what_is_no_token_opens_nothing(the_policy: Any, token: str) -> None:
    here = a.client(app(the_policy))
    answer = await here.post("/sign-in", data={"token": token}, headers={"origin": a.URL})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert token not in answer.text or not token


async def test_another_site_signs_nobody_in(the_policy: Any) -> None:
    here = a.client(app(the_policy))
    answer = await here.post("/sign-in", data={"token": "tg_ops"}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param("{mine}", 200, id="alone"),
        pytest.param("a=b;{mine};c", 200, id="among-others"),
        pytest.param("{mine}; \xa0{other}", 200, id="no-break-space"),
        pytest.param("{mine}; \x85{other}", 200, id="next-line"),
        pytest.param("\xa0{other}", 303, id="no-break-space-alone"),
        pytest.param("{mine}; {other}", 303, id="twice"),
        pytest.param("{mine}; {mine}", 303, id="twice-the-same"),
        pytest.param("{mine}\xa0", 303, id="another-value"),
        pytest.param("__host-{mine}", 303, id="another-name"),
    ],
)
async def test_a_session_is_that_of_its_very_cookie(the_policy: Any, sent: str, status: int) -> None:
    """A neighbouring host can set every name but ``__Host-``: what looks like it to a library is none."""
    the_app = app(the_policy)
    pairs = {}
    for name, who in (("mine", "ops"), ("other", "reader")):
        here = await signed_in(the_app, who)
        ((cookie, value),) = here.cookies.items()
        pairs[name] = f"{cookie}={value}"
    header = {"cookie": sent.format(**pairs).encode("latin-1")}
    answer = await a.client(the_app).get("/", headers=header)
    assert answer.status_code == status
    assert "local:reader" not in answer.text


async def test_what_ends_the_token_ends_the_session(the_policy: Any) -> None:
    tokens = dict(a.TOKENS)

    async def identify(token: str) -> Any:
        return tokens.get(token) or await a.identify("nobody")

    the_app = app(the_policy, identify=identify)
    here = await signed_in(the_app)
    assert (await here.get("/")).status_code == 200
    del tokens["tg_ops"]
    assert (await here.get("/")).status_code == 303


async def test_a_session_that_nobody_uses_ends(the_policy: Any) -> None:
    clock = [NOW]
    here = await signed_in(app(the_policy, now=lambda: clock[0]))
    clock[0] += IDLE + 1
    assert (await here.get("/")).status_code == 303


async def test_signing_out_needs_a_form_of_ones_own_and_then_nothing_is_left(the_policy: Any) -> None:
    the_app = app(the_policy)
    here, other = await signed_in(the_app), await signed_in(the_app)
    csrf, foreign = [csrf_of((await each.get("/")).text) for each in (here, other)]
    for wrong in ({}, {"csrf": foreign}, {"csrf": ""}):
        answer = await here.post("/sign-out", data=wrong, headers={"origin": a.URL})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_page")
    assert (await here.post("/sign-out", data={"csrf": csrf}, headers={"origin": a.URL})).status_code == 303
    assert (await here.get("/")).status_code == 303
    assert (await other.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("/exchanges?a=b", "/exchanges?a=b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\nb", "/"),
        ("/sign-in", "/"),
        ("/" + "x" * 3000, "/"),
        ("", "/"),
        ("/[", "/["),
        ("//[", "/"),
    ],
)
def test_signing_in_leads_to_a_page_of_ours(given: str, where: str) -> None:
    assert back_to(given) == where


# ── who sees what ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_right_shows_its_pages_and_no_others(the_policy: Any) -> None:
    here = await signed_in(app(the_policy), "reader")
    page = await here.get("/")
    assert page.status_code == 200
    assert 'href="/exchanges"' not in page.text.partition("</header>")[0]
    for path in ("/exchanges", "/exchanges/ex_1"):
        answer = await here.get(path)
        assert answer.status_code == 403
        assert "Your roles do not allow this" in answer.text


async def test_without_any_right_a_person_is_told_so(the_policy: Any) -> None:
    the_policy.admin.rights = {}
    here = a.client(app(the_policy))
    answer = await here.post("/sign-in", data={"token": "tg_ops"}, headers={"origin": a.URL})
    assert answer.headers["location"] == "/welcome"
    assert "None of your roles" in (await here.get("/welcome")).text
    assert (await here.get("/")).status_code == 403


def test_every_page_in_the_navigation_is_a_door_with_the_same_right() -> None:
    doors = {each.path: each.rule for each in (*pages.DOORS, *approving.DOORS)}
    assert {path: doors[path].right for path, _, _ in NAVIGATION} == {path: right for path, _, right in NAVIGATION}


# ── what they show ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/", "/?span=7d", "/exchanges", "/exchanges?caller=corp:alice", "/policy", "/health"])
async def test_no_text_of_a_stranger_becomes_markup(the_policy: Any, path: str) -> None:
    page = await (await signed_in(app(the_policy))).get(path)
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert re.findall(r"<script[^>]*>", page.text) == ['<script src="/static/app.js" defer>']
    assert not re.search(r"\son[a-z]+=|\sstyle=|javascript:", page.text)
    security = page.headers["content-security-policy"]
    assert "unsafe" not in security
    assert "script-src 'self'" in security


async def test_an_exchange_is_shown_with_all_that_was_written_escaped(the_policy: Any) -> None:
    here = await signed_in(app(the_policy))
    shown = (await here.get(f"/exchanges/{an_id(int(NOW * 1e6) - 1_000_000, 99)}")).text
    assert "&lt;script&gt;alert" in shown
    assert "<script>alert" not in shown
    assert "No bodies were kept" in shown
    assert (await here.get("/exchanges/ex_nothing")).status_code == 404


async def test_who_looks_at_an_exchange_is_told_to_the_log(the_policy: Any) -> None:
    told: list[tuple[str, str]] = []
    here = await signed_in(app(the_policy, noted=lambda kind, detail: told.append((kind, detail))))
    name = an_id(int(NOW * 1e6) - 1_000_000, 99)
    for path in ("/", "/exchanges", "/exchanges/ex_nothing", "/policy"):
        await here.get(path)
    assert told == []
    assert (await here.get(f"/exchanges/{name}")).status_code == 200
    assert told == [("read", f'{{"what": "page {name}", "actor": "local:ops"}}')]


@pytest.mark.parametrize(
    ("query", "rows"),
    [("", 31), ("outcome=denied", 10), ("rule=pii.email", 15), ("caller=corp:alice&outcome=answered", 20)],
)
async def test_exchanges_are_listed_by_what_is_asked(the_policy: Any, query: str, rows: int) -> None:
    page = await (await signed_in(app(the_policy))).get(f"/exchanges?{query}")
    assert page.text.count('<a href="/exchanges/ex_') == rows


async def test_a_time_that_is_none_is_said_to_be_none(the_policy: Any) -> None:
    page = await (await signed_in(app(the_policy))).get("/exchanges?since=yesterday")
    assert page.status_code == 400
    assert "accepted: an age such as" in page.text


async def test_the_policy_says_what_fired_and_what_only_observes(the_policy: Any) -> None:
    page = (await (await signed_in(app(the_policy))).get("/policy")).text
    assert "observed only" in page
    assert "1 rules did not fire" in page
    assert the_policy.sha256 in page


async def test_a_recording_that_cannot_be_read_is_a_sentence(the_policy: Any, tmp_path: Path) -> None:
    the_policy.recording.path = str(tmp_path / "nothing.db")
    here = await signed_in(app(the_policy))
    for path, status in (("/", 503), ("/exchanges", 400), ("/policy", 200)):
        page = await here.get(path)
        assert page.status_code == status
        assert "found no file" in page.text


def test_what_was_masked_is_marked_and_the_rest_is_harmless() -> None:
    shown = marked("a [REDACTED:email] <b> \x1b[31m\u202e [REDACTED:<i>]")
    assert "<mark>[REDACTED:email]</mark>" in shown
    assert "&lt;b&gt;" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "<i>" not in shown


async def test_changes_are_told_while_the_reader_may_know_them(
    the_policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LIVE_SECONDS", 0.0)
    marks = iter(["one", "one", "two", "two"])
    tokens = dict(a.TOKENS)

    async def identify(token: str) -> Any:
        return tokens.get(token) or await a.identify("nobody")

    def changed() -> str:
        found = next(marks, None)
        if found is None:
            tokens.clear()
        return found or "three"

    here = await signed_in(app(the_policy, identify=identify, changed=changed))
    answer = await here.get("/live")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert re.findall(r"^event: (\w+)", answer.text, re.MULTILINE) == ["changed", "changed", "changed", "over"]


@pytest.mark.parametrize(("name", "kind"), [("app.css", "text/css"), ("app.js", "text/javascript"), ("x.js", "")])
async def test_files_are_those_of_the_pages_and_no_others(the_policy: Any, name: str, kind: str) -> None:
    answer = await a.client(app(the_policy)).get(f"/static/{name}")
    assert answer.status_code == (200 if kind else 404)
    if kind:
        assert answer.headers["content-type"].startswith(kind)
    assert (await a.client(app(the_policy)).get("/static/..%2Fpages.py")).status_code == 404


# ── what they are made of ────────────────────────────────────────────────────────────────────────────────────────


def test_a_time_is_summed_up_in_steps(recording: Path) -> None:
    until = int(NOW * 1e6)
    found = activity(recording, until - 3600 * 1_000_000, until, 60)
    assert sum(found.outcomes.values()) == 11
    assert found.outcomes == {"denied": 4, "answered": 6, "failed": 1}
    assert found.bars[-1] == {"denied": 1, "failed": 1}
    assert found.bars[59 - 6] == {"answered": 1}
    assert found.refusals == {"finding": 4}
    assert found.classes == {("pii", "redact"): 5}
    assert found.duration_us == (10_000, 16_000)
    everything = activity(recording, until - 86400 * 1_000_000, until, 10)
    assert sum(everything.outcomes.values()) == 31
    (hits,) = rule_hits(recording, 0)
    assert (hits["rule"], hits["direction"], hits["many"], hits["exchanges"]) == ("pii.email", "response", 15, 15)


def test_ids_begin_with_the_time_as_the_sums_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.exchange.time.time_ns", lambda: int(NOW * 1e9))
    assert new_id().startswith(an_id(int(NOW * 1e6), 0)[:14])


@pytest.mark.parametrize(
    "data",
    [[], [Bar("a", {})], [Bar("a", {"answered": 1}), Bar("<b>", {"denied": 10**9, "odd": 2})]],
    ids=["none", "empty", "some"],
)
def test_bars_stay_in_their_picture(data: list[Bar]) -> None:
    drawn = str(bars(data, 'told "so"'))
    assert 'aria-label="told &#34;so&#34;"' in drawn
    assert "<b>" not in drawn
    for y, height in re.findall(r'<rect [^>]*y="([\d.]+)"[^>]*height="([\d.]+)"', drawn):
        assert 0 <= float(y) <= 160
        assert float(height) <= 160
