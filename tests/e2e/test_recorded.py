"""What crosses a real gate is recorded without a secret, shown, answered again and sent again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tests.e2e.harness import (
    BIN,
    CREDENTIAL,
    Upstream,
    chat,
    chat_sse,
    free_port,
    http_answer,
    policy,
    post,
    raw,
    recorded,
    started,
    tidegate_run,
    token,
)
from tidegate.evidence import queries
from tidegate.replay import show
from tidegate.replay.flows import load_recording

pytestmark = pytest.mark.e2e

CHAT = "/openai/v1/chat/completions"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"
SESSION = "session=CANARY-cookie-51c2"


@dataclass
class Crossed:
    """A gate that has run: its policy, the token it knew, the answers it gave by name, and its upstream."""

    policy: Path
    token: str
    answers: dict[str, bytes]
    upstream: Upstream

    @property
    def recording(self) -> Path:
        return self.policy.parent / "recording.db"

    def tidegate(self, *arguments: str, code: int = 0) -> str:
        where = ("--policy", self.policy) if "send" in arguments else ("--recording", self.recording)
        command = [BIN / "tidegate", *arguments, *where]
        environment = {**os.environ, "TIDEGATE_TEST_CREDENTIAL": CREDENTIAL, "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def listed(self, *arguments: str) -> list[dict]:
        return [json.loads(line) for line in self.tidegate("flows", "list", "--json", *arguments).splitlines()]


def body_of(answer: bytes) -> bytes:
    """Return an answer's body, without the framing of chunks."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    plain = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        plain, body = plain + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return plain


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossed]:
    folder = tmp_path_factory.mktemp("recorded")
    with Upstream() as upstream:
        written = policy(folder, upstream.url)
        secret = token(folder)
        answers = {}
        with tidegate_run(written) as gate:
            time.sleep(0.2)
            fields = (f"authorization: Bearer {secret}", f"cookie: {SESSION}")
            answers["plain"] = raw(gate.port, post(CHAT, chat("hello"), *fields))
            answers["masked"] = raw(gate.port, post(CHAT, chat(f"my card is {CARD}, ok?"), *fields))
            answers["blocked"] = raw(gate.port, post(CHAT, chat(f"use {KEY}"), *fields))
            answers["nobody"] = raw(gate.port, post(CHAT, chat(f"see {CARD}"), "authorization: Bearer tg_wrong-CANARY"))
            upstream.streams(chat_sse(f"It is {CARD}."), path="/v1/chat/completions")
            answers["stream"] = raw(gate.port, post(CHAT, chat("leak", stream=True), *fields))
            upstream.says(http_answer(b'{"a":1}', extra=f"set-cookie: {SESSION}\r\n"), path="/v1/chat/completions")
            living = recorded(folder)
            assert b"exchange" in living
        upstream.answers.clear()
        yield Crossed(written, secret, answers, upstream)


def test_every_outcome_is_listed(crossed: Crossed) -> None:
    found = [(each["outcome"], each["reason"], each["status"], each["streamed"]) for each in crossed.listed()]
    probe = [each for each in found if each[1] != "no_connection"]
    assert probe[::-1] == [
        ("answered", None, 200, 0),
        ("answered", None, 200, 0),
        ("denied", "finding", 403, 0),
        ("denied", "token_unknown", 401, 0),
        ("answered", None, 200, 1),
    ]


def test_findings_are_listed_by_rule_and_place(crossed: Crossed) -> None:
    (blocked,) = crossed.listed("--outcome", "denied", "--caller", "local:alice")
    (rule,) = blocked["rules"]
    assert [each["id"] for each in crossed.listed("--rule", rule)] == [blocked["id"]]
    shown = crossed.tidegate("flows", "show", blocked["id"])
    assert rule in shown
    assert "$.messages[0].content" in shown
    assert KEY not in shown


def test_no_secret_is_in_the_file(crossed: Crossed) -> None:
    data = recorded(crossed.recording.parent)
    assert b"hello" in data
    for secret in (crossed.token, CREDENTIAL, KEY, CARD, SESSION, "tg_wrong-CANARY"):
        assert secret.encode() not in data


def test_nothing_shown_holds_a_secret(crossed: Crossed) -> None:
    assert '"finding_list"' in crossed.tidegate("flows", "show", crossed.listed()[0]["id"], "--json")
    for row in queries.list_flows(crossed.recording):
        details = show.details(crossed.recording, row["id"])
        console = Console(record=True, width=200)
        console.print(show.view(details))
        shown = json.dumps(details) + console.export_text()
        assert row["id"] in shown
        for secret in (crossed.token, CREDENTIAL, KEY, CARD, SESSION):
            assert secret not in shown


def test_a_recording_answers_the_same_client(crossed: Crossed) -> None:
    port = free_port()
    command = [BIN / "tidegate", "replay", "serve", "--recording", crossed.recording, "--listen", f"127.0.0.1:{port}"]
    before = len(crossed.upstream.data)
    with started(command, port, crossed.policy.parent):
        for name, body in (
            ("plain", chat("hello")),
            ("masked", chat(f"my card is {CARD}, ok?")),
            ("stream", chat("leak", stream=True)),
        ):
            answer = raw(port, post(CHAT, body, "authorization: Bearer whatever"))
            assert answer.startswith(b"HTTP/1.1 200"), name
            assert body_of(answer) == body_of(crossed.answers[name]), name
        other = raw(port, post(CHAT, chat("something else")))
        assert other.startswith(b"HTTP/1.1 404")
        assert b"replay_unmatched" in other
    assert len(crossed.upstream.data) == before


def test_sending_again_crosses_the_gate(crossed: Crossed) -> None:
    plain = next(each for each in crossed.listed()[::-1] if each["outcome"] == "answered")
    before = len(crossed.upstream.requests)
    refused = crossed.tidegate("replay", "send", plain["id"], "--as", "local:replayer", "--group", "dev", code=1)
    assert "--live" in refused
    assert len(crossed.upstream.requests) == before
    crossed.tidegate("replay", "send", plain["id"], "--as", "local:replayer", "--group", "dev", "--live")
    assert len(crossed.upstream.requests) == before + 1
    sent = crossed.upstream.requests[-1]
    assert json.loads(sent.body)["messages"][0]["content"] == "hello"
    assert sent.headers["authorization"] == f"Bearer {CREDENTIAL}"
    newest = crossed.listed("--limit", "1")[0]
    assert (newest["replay_of"], newest["caller"], newest["outcome"]) == (plain["id"], "replayer", "answered")
    crossed.tidegate("replay", "send", plain["id"], "--as", "local:stranger", "--live")
    assert crossed.listed("--limit", "1")[0]["reason"] == "not_granted"
    assert len(crossed.upstream.requests) == before + 1


def test_what_a_viewer_loads_is_the_routed_form(crossed: Crossed) -> None:
    shown = [(flow.request.url, flow.comment) for flow in load_recording(crossed.recording)]
    assert (f"{crossed.upstream.url}/v1/chat/completions", "answered, local:alice") in shown
