"""The admin listener on a gate in this process: what readiness looks at, and that no input makes it fail or let go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests import admin as a
from tests.e2e import harness as h
from tidegate.admin import wiring
from tidegate.admin.app import build
from tidegate.admin.doors import Door, Needs
from tidegate.admin.serving import AdminServer
from tidegate.admin.wiring import Admin
from tidegate.building import Gate, build_gate
from tidegate.evidence.files import Files
from tidegate.evidence.queries import reading
from tidegate.evidence.subjects import Subjects
from tidegate.policy.policy import PolicyError
from tidegate.state.control import Control
from tidegate.state.logins import Logins


@pytest.fixture(autouse=True)
def credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_TEST_CREDENTIAL", h.CREDENTIAL)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "few").symlink_to(h.ROOT / "tests" / "data" / "packs", target_is_directory=True)
    return h.policy(
        tmp_path,
        "http://127.0.0.1:9",
        admin={"url": "http://localhost:9080"},
        packs=["few/*.yaml"],
        dialects=["dialects/openai.yaml", "dialects/anthropic.yaml"],
        inspection={way: {"secrets": "block", "pii": "redact"} for way in ("prompt", "response")},
    )


@pytest.fixture
async def gate(policy: Path) -> AsyncIterator[Gate]:
    found = build_gate(policy)
    await found.start()
    yield found
    await found.close()


async def unfit(admin: Admin) -> set[str]:
    return {name for name, fit in (await admin.services.ready()).items() if not fit}


async def test_what_pages_note_is_an_event_of_the_recording_under_a_pseudonym(gate: Gate, policy: Path) -> None:
    admin = Admin(gate, policy, AdminServer("127.0.0.1", 0))
    admin.services.noted("read", '{"what": "page ex_1", "actor": "local:ops"}')
    path = gate.addon.recorder.path
    await gate.close()
    with reading(path) as db:
        (detail,) = db.execute("SELECT detail FROM event WHERE kind = 'read'").fetchone()
    subjects = Subjects(Files(path).keys)
    assert json.loads(detail) == {"what": "page ex_1", "actor": subjects.pseudonym("local:ops")}
    subjects.close()


async def test_readiness_looks_at_everything_that_traffic_needs(
    gate: Gate, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = Admin(gate, policy, AdminServer("127.0.0.1", 0))
    assert await unfit(admin) == set()
    assert await admin.services.alive()
    gate.addon.recorder.failed = "recording has stopped: SQLITE_IOERR"
    assert await unfit(admin) == {"recording"}
    gate.addon.recorder.failed = ""
    gate.addon.verifier._sources["x"] = SimpleNamespace(keys=None)  # type: ignore[assignment]
    assert await unfit(admin) == {"keys"}
    del gate.addon.verifier._sources["x"]
    monkeypatch.setattr(wiring, "PING_SECONDS", 0.1)
    stuck, admin._loop = admin._loop, asyncio.new_event_loop()
    assert await unfit(admin) == {"data_path"}
    assert not await admin.services.alive()
    admin._loop.close()
    assert not await admin.services.alive(), "a loop that has ended is no better"
    admin._loop = stuck
    gate.control.close()
    assert await unfit(admin) == {"state"}
    admin.leave()
    assert await unfit(admin) == {"state", "not_stopping"}


async def test_a_store_that_another_process_holds_is_not_ready(
    gate: Gate, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "COMMIT_SECONDS", 0.2)
    admin, held, free = Admin(gate, policy, AdminServer("127.0.0.1", 0)), threading.Event(), threading.Event()

    def hold() -> None:
        with other._alone():
            held.set()
            free.wait(20)

    other = Control(gate.control.path)
    other.start()
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert await unfit(admin) == {"state"}
    finally:
        free.set()
        thread.join()
        other.close()
    for _ in range(100):
        if not await unfit(admin):
            break
        await asyncio.sleep(0.1)
    assert await unfit(admin) == set()


async def test_it_serves_beside_the_gate_and_stops_before_it(gate: Gate, policy: Path) -> None:
    server = AdminServer("127.0.0.1", 0)
    server.listen()
    admin = Admin(gate, policy, server)
    assert gate.addon.counting is None, "without the listener nothing is counted"
    admin.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        assert gate.addon.counting is not None
    finally:
        await asyncio.to_thread(admin.stop)
    assert gate.addon.counting is None
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", server.port)


def rewrite(policy: Path, old: str, new: str) -> None:
    text = policy.read_text()
    assert old in text
    policy.write_text(text.replace(old, new))


async def test_a_reload_happens_on_the_data_path_s_loop(gate: Gate, policy: Path) -> None:
    admin = Admin(gate, policy, AdminServer("127.0.0.1", 0))
    before = gate.addon.policy
    rewrite(policy, "secrets: block", "secrets: refuse")
    with pytest.raises(PolicyError):
        await admin.services.reload()
    assert gate.addon.policy is before
    rewrite(policy, "secrets: refuse", "secrets: flag")
    await asyncio.to_thread(lambda: asyncio.run(_reloaded(admin)))
    assert gate.addon.policy.sha256 != before.sha256
    own = gate.addon.verifier.own
    assert own is not None, "the new verifier knows our own tokens too"


async def _reloaded(admin: Admin) -> None:
    await admin.services.reload()


async def test_the_page_of_a_gate_is_read_by_prometheus(gate: Gate, policy: Path) -> None:
    admin = Admin(gate, policy, AdminServer("127.0.0.1", 0))
    admin._watch()
    page = admin.services.metrics.page("ab", "enforce", admin.services.failing())
    families = {each.name: each.type for each in text_string_to_metric_families(page.decode())}
    assert families["tidegate_recording_dropped"] == "counter"
    assert families["tidegate_exchanges_open"] == "gauge"
    assert {"tidegate_recording_queue_bytes", "process_cpu_seconds"} <= set(families)


# ── any input ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    found = Control(tmp_path_factory.mktemp("state") / "control.db")
    found.start()
    yield found
    found.close()


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
FIELDS = st.sampled_from(
    [
        "grant_type",
        "subject_token",
        "subject_token_type",
        "assertion",
        "device_code",
        "token",
        "SAMLResponse",
        "RelayState",
        "answer",
        "identity",
        "code",
        "audience",
    ]
)
VALUES = WORDS | st.sampled_from([
    "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:saml2-bearer", "urn:ietf:params:oauth:token-type:jwt", "a.b.c", "yes", "PHhtbC8+",
])  # fmt: skip
FORMS = st.dictionaries(FIELDS, VALUES, max_size=6)
HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "cookie", "origin", "content-type", "sec-fetch-site"]),
    WORDS,
    max_size=3,
)


@pytest.mark.parametrize("door", wiring.DOORS, ids=lambda door: f"{door.method} {door.path}")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=FORMS, query=FORMS, headers=HEADERS, raw=st.none() | st.binary(max_size=200))
async def test_no_input_is_a_bug_or_a_way_in(
    store: Control, door: Door, form: dict[str, str], query: dict[str, str], headers: dict[str, str], raw: bytes | None
) -> None:
    app = build(wiring.DOORS, a.services(logins=Logins(store, lambda: 1.8e9)))
    async with a.client(app) as client:
        sent: dict[str, Any] = {} if door.method == "GET" else {"data": form} if raw is None else {"content": raw}
        answer = await client.request(door.method, door.path, params=query, headers=headers, **sent)
    assert answer.status_code != 500, answer.text
    assert answer.status_code < 500 or door.path == "/readyz"
    if isinstance(door.rule, Needs):
        assert answer.status_code in {401, 403}
    assert "access_token" not in answer.text.replace("token-type:access_token", "")
    assert "eyJ" not in answer.text
