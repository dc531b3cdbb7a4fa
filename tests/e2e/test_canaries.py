"""Secrets planted in every kind of exchange are looked for wherever a gate inside mitmweb leaves anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.break_hook import CANARY as BUG
from tests.e2e.harness import (
    BIN,
    CREDENTIAL,
    ROOT,
    Process,
    Upstream,
    chat,
    chat_sse,
    free_port,
    http_answer,
    mitm,
    policy,
    post,
    raw,
    recorded,
    started,
    token,
    wait_for_port,
)

pytestmark = pytest.mark.e2e

CHAT = "/openai/v1/chat/completions"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"
PASSWORD = "x"


def exchanges(gate: Process, upstream: Upstream, secret: str) -> dict[str, bytes]:
    """Let one exchange of each kind cross; return the answers."""
    bearer = f"authorization: Bearer {secret}"
    answers = {
        "plain": raw(gate.port, post(CHAT, chat("hi"), bearer)),
        "blocked": raw(gate.port, post(CHAT, chat(f"use {KEY}"), bearer)),
        "malformed": raw(gate.port, post(CHAT, b'{"x": ' + KEY.encode(), bearer)),
    }
    upstream.streams(chat_sse(f"it is {CARD} ok", size=40))
    answers["stream"] = raw(gate.port, post(CHAT, chat("x", stream=True), bearer))
    upstream.streams(chat_sse(f"it is {CARD} ok", size=40)[:2], end=False)
    answers["left"] = raw(gate.port, post(CHAT, chat("x", stream=True), bearer), seconds=1.5)
    refusal = {"error": {"message": f"you said {KEY}, {CARD}"}}
    upstream.says(http_answer(json.dumps(refusal).encode(), status="400 Bad Request"))
    answers["error"] = raw(gate.port, post(CHAT, chat("x"), bearer))
    return answers


def web(port: int) -> bytes:
    """Return all that mitmweb's page could show: the list of flows, and what each of them holds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path: str) -> bytes:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {PASSWORD}"}
        )
        try:
            with opener.open(asked, timeout=5) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return b""  # a flow without such a message

    shown = get("/flows")
    flows = json.loads(shown)
    assert len(flows) >= 6
    sides = (f"/flows/{flow['id']}/{side}/content.data" for flow in flows for side in ("request", "response"))
    return shown + b"".join(map(get, sides))


def commands(folder: Path) -> bytes:
    """Return what the commands print about a recording."""

    def run(*arguments: str) -> str:
        command = [BIN / "tidegate", "flows", *arguments, "--recording", folder / "recording.db"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=True)
        return done.stdout + done.stderr

    listed = run("list", "--json")
    rows = [json.loads(line) for line in listed.splitlines()]
    blocked = next(row["id"] for row in rows if row["reason"] == "finding")
    broken = next(row["id"] for row in rows if row["reason"] == "body_malformed")
    return (listed + run("show", blocked) + run("show", blocked, "--json") + run("show", broken)).encode()


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, bytes]]]:
    folder = tmp_path_factory.mktemp("canaries")
    with Upstream() as upstream:
        written, secret, port = policy(folder, upstream.url), token(folder), free_port()
        options = ("--no-web-open-browser", "--set", f"web_port={port}", "--set", f"web_password={PASSWORD}")
        with mitm("mitmweb", written, *options) as gate:
            wait_for_port(port, gate.process)
            found = exchanges(gate, upstream, secret)
            assert found["blocked"].startswith(b"HTTP/1.1 403")
            assert found["malformed"].startswith(b"HTTP/1.1 400")
            assert b"it is" in found["stream"] or b"[REDACTED" in found["stream"]
            found["page"] = web(port)
            found["living file"] = recorded(folder)
        found["file"] = recorded(folder)
        found["log"] = gate.log.encode()
        found["commands"] = commands(folder)
        assert CREDENTIAL.encode() in upstream.data, "the credential was in play"
        assert KEY.encode() not in upstream.data
        assert secret.encode() not in upstream.data
        yield secret, found


SINKS = ["plain", "blocked", "malformed", "stream", "left", "error", "page", "living file", "file", "log", "commands"]


@pytest.mark.parametrize("sink", SINKS)
def test_no_canary_is_found(sinks: tuple[str, dict[str, bytes]], sink: str) -> None:
    secret, found = sinks
    assert found[sink], "an empty sink proves nothing"
    planted = {"token": secret, "credential": CREDENTIAL, "key": KEY, "card": CARD}
    assert [name for name, canary in planted.items() if canary.encode() in found[sink]] == []


# ── bugs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

BREAKS = [
    *((f"Gateway.{hook}", when) for hook in ("requestheaders", "request") for when in ("before", "after", "later")),
    *((f"Gateway.{hook}", when) for hook in ("responseheaders", "response") for when in ("before", "after", "later")),
    *((place, "before") for place in ("Engine.find_many", "Verifier.cached", "Exchange.record", "Exchange.state")),
    *((place, "before") for place in ("Recorder.intent", "Recorder.seal", "Exchange.line", "Gateway.released")),
    *((place, when) for place in ("StreamedAnswer.feed", "StreamedAnswer.end") for when in ("before", "after")),
]


@pytest.fixture(scope="module")
def bugs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Let everything break while secrets cross; the text of each bug holds all that was in flight."""
    folder, port = tmp_path_factory.mktemp("bugs"), free_port()
    with Upstream() as upstream:
        written, secret = policy(folder, upstream.url), token(folder)
        script = ROOT / "tests" / "e2e" / "break_hook.py"
        command = [sys.executable, script, "run", "--policy", written, "--listen", f"127.0.0.1:{port}"]
        bearer, order = f"authorization: Bearer {secret}", folder / "break.json"
        answers = b""
        with started([*command, "--confdir", folder / "ca"], port, folder) as gate:
            for place, when in BREAKS:
                order.write_text(json.dumps({"place": place, "when": when, "error": "RuntimeError"}))
                answers += raw(port, post(CHAT, chat(f"use {KEY}"), bearer), seconds=1.5)
                upstream.says(http_answer(json.dumps({"choices": [], "leak": f"it is {CARD}"}).encode()))
                answers += raw(port, post(CHAT, chat("hi"), bearer), seconds=1.5)
                upstream.streams(chat_sse(f"it is {CARD} ok", size=40), pause=0)
                answers += raw(port, post(CHAT, chat("hi", stream=True), bearer), seconds=1.5)
                order.unlink()
        found = {"answers": answers, "log": gate.log.encode()}
        found["file"] = recorded(folder)
        assert gate.log.count("RuntimeError") >= len(BREAKS), "every place broke"
        assert answers.count(b'"bug"') >= len(BREAKS)
        assert CREDENTIAL.encode() in upstream.data, "the credential was in play"
        assert KEY.encode() not in upstream.data
        yield secret, found


@pytest.mark.parametrize("sink", ["answers", "log", "file"])
def test_no_canary_is_found_after_a_bug(bugs: tuple[str, dict[str, bytes]], sink: str) -> None:
    secret, found = bugs
    assert found[sink], "an empty sink proves nothing"
    planted = {"token": secret, "credential": CREDENTIAL, "key": KEY, "card": CARD, "bug": BUG}
    assert [name for name, canary in planted.items() if canary.encode() in found[sink]] == []
