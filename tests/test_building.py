"""A gate is put together, and its policy replaced under traffic."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from mitmproxy import http
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import tflow

from tests.e2e import harness as h
from tests.ner_model import make
from tidegate.building import build_gate
from tidegate.evidence.store import Recorder
from tidegate.inspection.ner.pool import Pool
from tidegate.model import Reason
from tidegate.policy.policy import PolicyError
from tidegate.replay.flows import encode

BODY = json.dumps({"model": "sample-small", "messages": [{"role": "user", "content": "hello"}]}).encode()


def flow(token: str, body: bytes = BODY) -> http.HTTPFlow:
    made = tflow.tflow()
    made.client_conn.proxy_mode = ProxyMode.parse("reverse:http://unset.invalid")
    fields = [
        (b"host", b"gate"),
        (b"authorization", b"Bearer " + token.encode()),
        (b"content-type", b"application/json"),
    ]
    made.request = http.Request.make("POST", "http://gate/openai/v1/chat/completions", body, http.Headers(fields))
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
            await gate.reload(second)
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


def with_model(folder: Path, name: str, model: str) -> Path:
    """Write a policy whose local model reads names in prompts."""
    actions = {"secrets": "block", "pii": "redact", "injection": "flag", "exfil": "allow"}
    inspection = {
        "prompt": {**actions, "names": "redact"},
        "response": {**actions, "names": "allow"},
        "ner": {"folder": model, "labels": {"PER": "names"}, "budget": "30s"},
    }
    return h.policy(folder, "http://127.0.0.1:9", name=name, inspection=inspection)


async def test_a_reload_changes_the_local_model_and_ends_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "one", words={"alice": "B-PER"})
    make(tmp_path / "two", words={"bob": "B-PER"})
    paths = {each: with_model(tmp_path, f"{each}.yaml", each) for each in ("one", "two")}
    gate, token = build_gate(paths["one"]), h.token(tmp_path)
    await gate.start()

    async def sent(text: str) -> http.HTTPFlow:
        made = flow(token, h.chat(text))
        for hook in (gate.addon.requestheaders, gate.addon.request):
            if waiting := hook(made):
                await waiting
        return made

    def said(made: http.HTTPFlow) -> str:
        return json.loads(made.request.content)["messages"][0]["content"]

    assert said(await sent("alice and bob")) == "[REDACTED:names] and bob"
    first = gate.addon.ner
    assert isinstance(first, Pool)
    (pid,) = first.pids
    await gate.reload(paths["one"])
    assert gate.addon.ner is first  # the same model goes on
    os.kill(pid, signal.SIGSTOP)  # the question is with the old model when it goes
    waiting = asyncio.ensure_future(sent("a question to the old model, of alice"))
    await asyncio.sleep(0.2)
    await gate.reload(paths["two"])
    old = await waiting
    assert old.response is not None
    assert json.loads(old.response.content)["error"]["code"] == Reason.NER_UNREAD
    assert said(await sent("alice and bob")) == "alice and [REDACTED:names]"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await gate.close()


def responses(token: str, **more: object) -> http.HTTPFlow:
    made = flow(token, json.dumps({"model": "sample-small", "input": "hello", **more}).encode())
    made.request.path = "/openai/v1/responses"
    return made


def reason(made: http.HTTPFlow) -> str:
    assert made.response is not None
    return str(json.loads(made.response.content or b"")["error"]["code"])


async def asked(gate: object, made: http.HTTPFlow) -> http.HTTPFlow:
    for hook in (gate.addon.requestheaders, gate.addon.request):  # type: ignore[attr-defined]
        if waiting := hook(made):
            await waiting
    return made


async def test_where_nobody_can_tell_whose_it_is_nothing_is_sent_or_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, token = h.policy(tmp_path, "http://127.0.0.1:9"), h.token(tmp_path)
    monkeypatch.setenv("TIDEGATE_TEST_CREDENTIAL", "credential")
    gate = build_gate(written)
    await gate.start()
    assert gate.addon.ownership is not None
    assert reason(await asked(gate, responses(token, previous_response_id="resp_1"))) == "not_owner"
    made = await asked(gate, responses(token))
    assert made.response is None
    gate.addon.ownership.control.failed = "the disk is gone"
    made.response = http.Response.make(200, b"", {"content-type": "application/json"})
    gate.addon.responseheaders(made)
    made.response.content = b'{"id": "resp_1", "object": "response", "output": []}'
    await gate.addon.response(made)
    assert reason(made) == "state_unavailable"
    assert b"resp_1" not in made.response.content
    gate.addon.close_state()
    refused = await asked(gate, responses(token, previous_response_id="resp_1"))
    assert reason(refused) == "state_unavailable"
    assert gate.addon.outgoing(refused, refused.request) is None
    plain = await asked(gate, flow(token))
    assert gate.addon.outgoing(plain, plain.request) is not None, "who names nothing stored is not concerned"
    await gate.close()


def test_a_control_store_that_is_something_else_is_told_before_anything_listens(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    written = h.policy(tmp_path, "http://127.0.0.1:9", state={"path": "text.db"})
    with pytest.raises(PolicyError) as caught:
        build_gate(written)
    (fault,) = caught.value.faults
    assert str(fault).startswith(f"{written}: state.path: found {tmp_path / 'text.db'}: cannot be opened")
    assert str(fault).endswith("; accepted: a control store, or no file yet")
    again = Recorder(tmp_path / "recording.db", encode)
    again.start()  # the recording was let go
    again.close()
