"""A gate is put together, and its policy replaced under traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import tflow

from tests.e2e import harness as h
from tidegate.building import build_gate

BODY = json.dumps({"model": "sample-small", "messages": [{"role": "user", "content": "hello"}]}).encode()


def flow(token: str) -> http.HTTPFlow:
    made = tflow.tflow()
    made.client_conn.proxy_mode = ProxyMode.parse("reverse:http://unset.invalid")
    fields = [
        (b"host", b"gate"),
        (b"authorization", b"Bearer " + token.encode()),
        (b"content-type", b"application/json"),
    ]
    made.request = http.Request.make("POST", "http://gate/openai/v1/chat/completions", BODY, http.Headers(fields))
    return made


async def test_an_exchange_keeps_the_credentials_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, token = h.policy(tmp_path, "http://127.0.0.1:9"), h.token(tmp_path)
    second = h.policy(tmp_path, "http://127.0.0.1:9", name="second.yaml")
    monkeypatch.setenv("TIDEGATE_TEST_CREDENTIAL", "old-credential")
    gate = build_gate(first)
    await gate.start()
    before, after = flow(token), flow(token)
    for each in (before, after):
        if each is after:
            monkeypatch.setenv("TIDEGATE_TEST_CREDENTIAL", "new-credential")
            gate.reload(second)
        if waiting := gate.addon.requestheaders(each):
            await waiting
    sent = []
    for each in (before, after):
        if waiting := gate.addon.request(each):
            await waiting
        copy = gate.addon.outgoing(each, each.request)
        sent.append(copy.headers["authorization"])
        assert "authorization" not in each.request.headers
    await gate.close()
    assert sent == ["Bearer old-credential", "Bearer new-credential"]
