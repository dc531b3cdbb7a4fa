"""What an upstream or a client could get past the gate beside the bodies: an echo, a redirect, a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import (
    CREDENTIAL,
    Process,
    Upstream,
    chat,
    http_answer,
    policy,
    post,
    raw,
    recorded,
    tidegate_run,
    token,
)

ECHOES = {
    "json": http_answer(json.dumps({"choices": [], "note": f"you sent {CREDENTIAL}"}).encode()),
    "error": http_answer(
        json.dumps({"error": {"message": f"bad key {CREDENTIAL}"}}).encode(), status="401 Unauthorized"
    ),
    "text": http_answer(f"bad key {CREDENTIAL}".encode(), status="500 Oops", content_type="text/plain"),
    "header": http_answer(b"{}", extra=f"x-request-id: {CREDENTIAL}\r\n"),
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Upstream, str]]:
    folder: Path = tmp_path_factory.mktemp("echo")
    with Upstream() as upstream:
        path = policy(folder, upstream.url)
        key = token(folder)
        with tidegate_run(path) as process:
            yield process, upstream, key


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
def test_an_echoed_credential_stops_here(gate: tuple[Process, Upstream, str], echo: bytes) -> None:
    process, upstream, key = gate
    upstream.says(echo)
    answer = raw(process.port, post("/openai/v1/chat/completions", chat("hello"), f"authorization: Bearer {key}"))
    assert answer.startswith(b"HTTP/1.1 ")
    assert upstream.requests[-1].headers["authorization"] == f"Bearer {CREDENTIAL}"
    assert CREDENTIAL.encode() not in answer
    assert CREDENTIAL.encode() not in recorded(process.cwd)
    assert CREDENTIAL not in process.log


def test_a_secret_named_as_the_model_is_kept_nowhere(gate: tuple[Process, Upstream, str]) -> None:
    process, upstream, key = gate
    secret = "AKIA" + "Z7QK4WJX2MVT5R3P"
    before = len(upstream.data)
    body = json.dumps({"model": secret, "messages": [{"role": "user", "content": "hello"}]}).encode()
    answer = raw(process.port, post("/openai/v1/chat/completions", body, f"authorization: Bearer {key}"))
    assert b" 403 " in answer.split(b"\r\n", 1)[0]
    assert len(upstream.data) == before
    assert secret not in process.log
    assert secret.encode() not in recorded(process.cwd)


def test_a_redirect_does_not_lead_around_the_gate(gate: tuple[Process, Upstream, str]) -> None:
    process, upstream, key = gate
    upstream.says(http_answer(b"", status="307 Temporary Redirect", extra="location: http://127.0.0.1:9/\r\n"))
    answer = raw(process.port, post("/openai/v1/chat/completions", chat("hello"), f"authorization: Bearer {key}"))
    assert b" 502 " in answer.split(b"\r\n", 1)[0]
    assert b"location" not in answer.lower()
