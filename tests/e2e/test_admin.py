"""The admin listener of a real process: health, readiness, metrics, reload, and who may not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SampleModel
from tests.e2e import harness as h

pytestmark = pytest.mark.e2e

ROLES = {
    "dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["*"]}]},
    "operator": {"admin": ["metrics", "reload", "revoke"]},
}
BINDINGS = [{"groups": ["local:dev"], "roles": ["dev"]}, {"groups": ["local:ops"], "roles": ["operator"]}]


@pytest.fixture
def gate(tmp_path: Path, sample_model: SampleModel) -> Iterator[tuple[h.Process, str]]:
    path = h.policy(tmp_path, sample_model.url, roles=ROLES, bindings=BINDINGS)
    port = h.free_port()
    with h.tidegate_run(path, "--admin", f":{port}") as running:
        yield running, f"http://127.0.0.1:{port}"


def ask(url: str, path: str, token: str = "", method: str = "GET") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.request(method, url + path, headers=headers, timeout=30, trust_env=False)


def until(found: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_process_from_start_to_stop(gate: tuple[h.Process, str], tmp_path: Path) -> None:
    running, url = gate
    dev, ops = h.token(tmp_path, "alice", ("dev",)), h.token(tmp_path, "bob", ("ops",))
    assert ask(url, "/healthz").json() == {"status": "alive"}
    until(lambda: ask(url, "/readyz").status_code == 200)
    before = ask(url, "/readyz").json()
    assert set(before["checks"].values()) == {True}

    assert ask(url, "/metrics").status_code == 401
    assert ask(url, "/metrics", dev).status_code == 403
    assert ask(url, "/v1/policy/reload", dev, "POST").status_code == 403
    assert running.log.count('"status": 403') >= 1, "who tried to change something is in the log"
    assert "evil" not in httpx.get(url + "/healthz", headers={"host": "evil.example"}, trust_env=False).text

    secret = "AKIA" + "Z7QK4WJX2MVT5R3P"
    for text in ("hello", f"why does {secret} not work?"):
        httpx.post(
            f"{running.url}/openai/v1/chat/completions",
            content=h.chat(text),
            headers={"authorization": f"Bearer {dev}", "content-type": "application/json"},
            timeout=30,
            trust_env=False,
        )

    def page() -> str:
        return ask(url, "/metrics", ops).text

    until(lambda: 'outcome="denied",reason="finding"' in page())
    answered = 'tidegate_exchanges_total{connection="openai",endpoint="chat",outcome="answered",reason=""} 1.0'
    until(lambda: answered in page())
    assert 'gen_ai_server_request_duration_seconds_count{gen_ai_original_model="sample-small"' in page()
    for word in (secret, dev, ops, "alice", "hello", h.CREDENTIAL):
        assert word not in page()
        assert word not in running.log or word == "alice"

    policy = tmp_path / "policy.yaml"
    sound = policy.read_text()
    policy.write_text(sound.replace("secrets: block", "secrets: refuse"))
    refused = ask(url, "/v1/policy/reload", ops, "POST")
    assert refused.status_code == 422
    assert "inspection.prompt.secrets" in refused.json()["error"]["faults"][0]["key"]
    assert ask(url, "/readyz").json()["policy"] == before["policy"], "the old policy stays"
    policy.write_text(sound.replace("secrets: block", "secrets: allow"))
    loaded = ask(url, "/v1/policy/reload", ops, "POST")
    assert loaded.status_code == 200, loaded.text
    after = ask(url, "/readyz").json()["policy"]
    assert after == loaded.json()["policy"]["sha256"] != before["policy"]
    assert loaded.json()["policy"]["before"] == before["policy"]

    running.stop()
    assert running.process.returncode == 0, running.log
    assert "Traceback" not in running.log
    with pytest.raises(httpx.ConnectError):
        ask(url, "/healthz")


def test_a_stopped_recorder_or_provider_is_not_ready(tmp_path: Path, sample_model: SampleModel) -> None:
    down = f"http://127.0.0.1:{h.free_port()}"
    oidc = {"issuer": down, "audience": "tidegate", "insecure_http": True}
    path = h.policy(tmp_path, sample_model.url, identity=[{"name": "corp", "oidc": oidc}], bindings=None)
    port = h.free_port()
    with h.tidegate_run(path, "--admin", f"127.0.0.1:{port}"):
        answer = ask(f"http://127.0.0.1:{port}", "/readyz")
        assert (answer.status_code, answer.json()["checks"]["keys"]) == (503, False)
        assert answer.json()["checks"]["recording"] is True
        assert ask(f"http://127.0.0.1:{port}", "/healthz").status_code == 200


def test_a_port_that_is_taken_is_one_sentence_and_another_address_is_loud(
    tmp_path: Path, sample_model: SampleModel
) -> None:
    path = h.policy(tmp_path, sample_model.url, roles=ROLES, bindings=BINDINGS)
    port = h.free_port()
    with h.tidegate_run(path, "--admin", f"0.0.0.0:{port}") as first:
        assert "can be reached from other machines" in first.log
        assert f"0.0.0.0:{port} (admin)" in first.log
        with h.tidegate_run(path, "--admin", f":{port}", wait=False) as second:
            assert second.wait(60) == 1
            assert f"--admin 127.0.0.1:{port}: Address already in use; choose another port." in second.log
            assert "Traceback" not in second.log
