"""The admin listener: no route without a rule, a shield before all of them, health, metrics, reload."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import admin as a
from tidegate.admin import app as app_module
from tidegate.admin import metrics as counted
from tidegate.admin import names, serving, wiring
from tidegate.admin.answers import SECURE, told
from tidegate.admin.app import build, known_host
from tidegate.admin.doors import Door, Needs, Public, Signed, Visit, admit
from tidegate.admin.metrics import Metrics
from tidegate.crossing import ANONYMOUS
from tidegate.evidence.records import ExchangeRecord
from tidegate.model import Action, Denial, Fault, Finding, Outcome, Reason
from tidegate.policy.policy import Admin, AdminRight, PolicyError

ROOT = Path(__file__).resolve().parents[1]
GUARDED = [door for door in wiring.DOORS if isinstance(door.rule, Needs)]
CANARY = "CANARY-9d2b"


def name_of(door: Door) -> str:
    return f"{door.method} {door.path}"


async def open_door(visit: Visit) -> Any:
    return told({"read": len(visit.body), "caller": visit.caller.subject if visit.caller else None})


async def broken(visit: Visit) -> Any:
    raise RuntimeError(CANARY)


DOORS = (
    Door("GET", "/open", Public("a test"), open_door),
    Door("POST", "/post", Public("a test"), open_door, body=10),
    Door("POST", "/foreign", Public("a test"), open_door, body=10, foreign=True),
    Door("GET", "/closed", Needs(AdminRight.RELOAD), open_door),
    Door("GET", "/broken", Public("a test"), broken),
)


# ── no route without a rule ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", wiring.DOORS, ids=name_of)
def test_every_route_says_who_may_come_in(door: Door) -> None:
    assert isinstance(door.rule, Public | Needs | Signed)
    if isinstance(door.rule, Public):
        assert len(door.rule.why) > 20, "what is open to everybody says why that is harmless"


def test_a_route_without_a_rule_or_with_an_unknown_one_cannot_be_built() -> None:
    for rule in (None, "public", True, object()):
        with pytest.raises(TypeError, match="no rule"):
            build([Door("GET", "/x", rule, open_door)], a.services())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="twice"):
        build([DOORS[0], DOORS[0]], a.services())


@pytest.mark.parametrize("rule", [None, "public", object()], ids=["none", "a word", "an object"])
async def test_an_unknown_rule_denies_although_it_should_not_be_there(rule: Any) -> None:
    answer = await admit(rule, None, a.services())  # type: ignore[arg-type]
    assert isinstance(answer, Denial)
    assert answer.status == 403


@pytest.mark.parametrize("door", GUARDED, ids=name_of)
async def test_guarded_routes_deny_by_default(door: Door) -> None:
    app = build(wiring.DOORS, a.services())
    async with a.client(app) as client:
        for headers, status, code in (
            ({}, 401, "caller_missing"),
            ({"authorization": "Bearer tg_nobody"}, 401, "token_unknown"),
            ({"authorization": "Basic b3BzOnB3"}, 401, "caller_missing"),
        ):
            answer = await client.request(door.method, door.path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert answer.headers["www-authenticate"] == "Bearer"
        if door.rule.right not in (AdminRight.METRICS, None):  # type: ignore[union-attr]
            answer = await client.request(door.method, door.path, headers=a.bearer("reader"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_granted")
        answer = await client.request(door.method, door.path, headers=a.bearer("ops"))
        assert answer.status_code not in {401, 403}


async def test_without_roles_nobody_may_do_anything() -> None:
    app = build(wiring.DOORS, a.services(a.policy(admin=Admin())))
    async with a.client(app, base_url="http://localhost") as client:
        for door in GUARDED:
            if door.rule.right is None:  # type: ignore[union-attr]
                continue
            answer = await client.request(door.method, door.path, headers=a.bearer("ops"))
            assert answer.status_code == 403


async def test_under_identity_none_the_one_caller_needs_the_right_too() -> None:
    permissions = a.policy().permissions
    rights = a.policy().admin.rights
    bound = type(permissions)({}, {"none:anyone": ("watcher",)}, {})
    app = build(wiring.DOORS, a.services(a.policy(identities=None, permissions=bound, admin=Admin(rights=rights))))
    assert ANONYMOUS.identity == "none"
    async with a.client(app, base_url="http://localhost") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post("/v1/policy/reload")).status_code == 403


# ── the shield ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/open", {}, 200),
        ("GET", "/nothing", {}, 404),
        ("GET", "/post", {}, 405),
        ("GET", "/closed", {}, 401),
        ("GET", "/broken", {}, 500),
        ("GET", "/open", {"host": "evil.example"}, 421),
        ("POST", "/post", {"origin": "https://evil.example"}, 403),
        ("TRACE", "/open", {}, 405),
    ],
)
async def test_every_answer_is_json_with_secure_headers(method: str, path: str, headers: Any, status: int) -> None:
    async with a.client(build(DOORS, a.services())) as client:
        answer = await client.request(method, path, headers=headers)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in SECURE} == dict(SECURE)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert "server" not in answer.headers
    if status != 200:
        assert set(answer.json()["error"]) == {"code", "message"}
    assert CANARY not in answer.text


async def test_a_bug_says_its_kind_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with a.client(build(DOORS, a.services())) as client:
        await client.get("/broken")
    assert "RuntimeError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("gate.example.com", True),
        ("GATE.example.com:9080", True),
        ("gate.internal", True),
        ("localhost:9080", True),
        ("127.0.0.1:9080", True),
        ("10.1.2.3", True),
        ("[::1]:9080", True),
        ("evil.example", False),
        ("gate.example.com.evil.example", False),
        ("evil.example:443@gate.example.com", False),
        ("gate.example.com@evil.example", False),
        ("gate.example.com/evil", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        (":80", False),
        ("[::1", False),
        ("localhost:x", False),
    ],
)
def test_only_names_of_ours_are_answered_to(host: str, known: bool) -> None:
    assert known_host(host, {"gate.example.com", "gate.internal", "localhost"}) is known


async def test_two_hosts_or_none_are_refused() -> None:
    app = build(DOORS, a.services())
    for hosts in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/open", "headers": hosts, "query_string": b""}
        await app(scope, receive, send)
        assert sent[0]["status"] == 421


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/post", {}, 200),
        ("/post", {"origin": a.URL}, 200),
        ("/post", {"origin": "null"}, 403),
        ("/post", {"origin": "https://gate.example.com.evil.example"}, 403),
        ("/post", {"sec-fetch-site": "cross-site"}, 403),
        ("/post", {"sec-fetch-site": "same-site"}, 403),
        ("/post", {"sec-fetch-site": "same-origin", "origin": a.URL}, 200),
        ("/foreign", {"origin": "https://idp.example", "sec-fetch-site": "cross-site"}, 200),
    ],
)
async def test_another_site_s_page_may_not_post(path: str, headers: Any, status: int) -> None:
    async with a.client(build(DOORS, a.services())) as client:
        assert (await client.post(path, headers=headers)).status_code == status


async def test_a_body_has_a_limit_announced_or_not() -> None:
    async def pieces() -> Any:
        for _ in range(11):
            yield b"x"

    async with a.client(build(DOORS, a.services())) as client:
        assert (await client.post("/post", content=b"x" * 10)).json()["read"] == 10
        assert (await client.post("/post", content=b"x" * 11)).status_code == 413
        assert (await client.post("/post", content=pieces())).status_code == 413
        assert (await client.request("GET", "/open", content=b"x")).status_code == 413


async def test_a_slow_body_and_a_path_that_is_nearly_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.05)

    async def never() -> Any:
        yield b"x"
        await asyncio.sleep(30)

    async with a.client(build(DOORS, a.services())) as client:
        assert (await client.post("/post", content=never())).status_code == 408
        for path in ("/open/", "//open", "/OPEN", "/open;x", "/%2e/open"):
            assert (await client.get(path)).status_code == 404, path


async def test_who_does_not_end_a_request_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    server = serving.AdminServer("127.0.0.1", 0)
    server.listen()
    whole = b"GET /open HTTP/1.1\r\nhost: localhost\r\n\r\n"

    def talk(*said: bytes) -> tuple[bytes, float]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
            heard = b""
            for each in said:
                peer.sendall(each)
                if each == whole:
                    heard += peer.recv(65536)
            begun = time.monotonic()
            while piece := peer.recv(65536):
                heard += piece
            return heard, time.monotonic() - begun

    async def idle() -> None:
        await asyncio.Event().wait()

    try:
        server.start(build(DOORS, a.services()), idle)
        for said, answers in (((), 0), ((whole[:20],), 0), ((whole, whole[:20]), 1)):
            heard, seconds = await asyncio.to_thread(talk, *said)
            assert heard.count(b"200 OK") == answers
            assert seconds < 4, "earlier than uvicorn's keep-alive"
    finally:
        server.stop()


# ── health, metrics, reload ──────────────────────────────────────────────────────────────────────────────────────


async def test_readiness_names_what_is_not_fit() -> None:
    app = build(wiring.DOORS, a.services(ready=a.always({"policy": True, "recording": False}), alive=a.always(False)))
    async with a.client(app) as client:
        ready, alive = await client.get("/readyz"), await client.get("/healthz")
    assert (ready.status_code, alive.status_code) == (503, 503)
    assert ready.json() == {
        "status": "not ready",
        "checks": {"policy": True, "recording": False},
        "policy": "ab" * 32,
    }


async def test_a_reload_with_faults_tells_them_and_one_without_tells_the_hash() -> None:
    async def fails() -> tuple[str, ...]:
        raise PolicyError((Fault("p.yaml:3", "mode", "'shadow'", "enforce or observe"),))

    async with a.client(build(wiring.DOORS, a.services(reload=fails))) as client:
        answer = await client.post("/v1/policy/reload", headers=a.bearer("ops"))
    assert answer.status_code == 422
    assert answer.json()["error"]["faults"] == [
        {"file": "p.yaml:3", "key": "mode", "found": "'shadow'", "accepted": "enforce or observe"}
    ]
    async with a.client(build(wiring.DOORS, a.services(reload=a.always(("mind this",))))) as client:
        answer = await client.post("/v1/policy/reload", headers=a.bearer("ops"))
    assert answer.json() == {
        "policy": {"file": "policy.yaml", "sha256": "ab" * 32, "before": "ab" * 32},
        "warnings": ["mind this"],
    }


def record(**changes: Any) -> ExchangeRecord:
    values = {
        "id": "x",
        "started_us": 1,
        "method": "POST",
        "path": f"/v1/{CANARY}",
        "connection": "openai",
        "endpoint": "chat",
        "caller": CANARY,
        "identity": "corp",
        "model": "gpt-5",
        "outcome": Outcome.ANSWERED,
        "status": 200,
        "duration_us": 1_500_000,
        "first_byte_us": 30_000,
        "streamed": True,
        "request_bytes": 100,
        "response_bytes": 300,
        **changes,
    }
    return ExchangeRecord(**values)


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    return {
        (each.name, *each.labels.values()): each.value
        for family in text_string_to_metric_families(page.decode())
        for each in family.samples
    }


def test_what_crossed_is_counted_from_its_record() -> None:
    found = Finding("pii.email", "pii", "messages[0]", 1, 5, Action.REDACT)
    metrics = Metrics()
    metrics.sealed(record(prompt_findings=(found, found)))
    metrics.sealed(record(outcome=Outcome.DENIED, reason=Reason.FINDING, status=403, model="gpt-secret"))
    page = metrics.page("ab", "enforce", {"corp": True})
    seen = samples(page)
    assert seen[names.EXCHANGES + "_total", "openai", "chat", "answered", ""] == 1
    assert seen[names.EXCHANGES + "_total", "openai", "chat", "denied", "finding"] == 1
    assert seen[names.DECISIONS + "_total", "openai", "redact", "pii.email"] == 2
    assert seen[names.REDACTIONS + "_total", "prompt", "pii.email"] == 2
    assert seen[names.REQUEST_BYTES + "_total", "openai"] == 200
    assert seen[names.DURATION + "_sum", "gpt-5", "gpt-5", ""] == 1.5
    assert seen[names.DURATION + "_count", "gpt-5", "gpt-5", ""] == 1
    assert seen[names.FIRST_TOKEN + "_bucket", "gpt-5", "gpt-5", "", "0.04"] == 1
    assert seen[names.KEYS_FAILING, "corp"] == 1
    assert seen[names.POLICY, "enforce", "ab"] == 1
    assert CANARY.encode() not in page, "no path, no caller, no text"
    assert b"gpt-secret" not in page, "a model nobody answered for gets no label"


def test_models_that_nobody_serves_make_no_labels() -> None:
    metrics = Metrics()
    for number in range(3 * counted.MODELS_MOST):
        metrics.sealed(record(model=f"flood-{number}", status=404))
        metrics.sealed(record(model=f"real-{number}"))
    metrics.sealed(record(model="x" * 200))
    page = metrics.page("ab", "enforce", {})
    assert b"flood-" not in page
    assert len(re.findall(rb"request_duration_seconds_count\{", page)) == counted.MODELS_MOST + 1
    assert samples(page)[names.DURATION + "_count", "other", "other", ""] == 5 * counted.MODELS_MOST + 1


def test_what_waits_to_be_counted_is_bounded() -> None:
    metrics = Metrics()
    one = record()
    for _ in range(counted.QUEUE + 5):
        metrics.sealed(one)
    assert samples(metrics.page("ab", "enforce", {}))[names.EXCHANGES + "_total", "openai", "chat", "answered", ""] == (
        counted.QUEUE
    )


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_route_right_and_metric_is_documented() -> None:
    text = (ROOT / "docs" / "admin.md").read_text()
    assert set(re.findall(r"(?m)^\| `((?:GET|POST) [^`]+)` \|", text)) == {name_of(door) for door in wiring.DOORS}
    for door in wiring.DOORS:
        row = re.search(rf"(?m)^\| `{re.escape(name_of(door))}` \| ([^|]+) \|", text)
        assert row is not None
        right = None if isinstance(door.rule, Public) else door.rule.right
        known = {Public: "everybody", Signed: "who has signed in", Needs: "who has a token"}[type(door.rule)]
        who = f"`{right}`" if right else known
        assert row[1].strip() == who
    listed = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert {
        each.removesuffix("_total") for each in re.findall(r"(?m)^\| `((?:tidegate|gen_ai)_\w+)` \|", text)
    } == listed
    assert all(f"`{right}`" in text for right in AdminRight)
