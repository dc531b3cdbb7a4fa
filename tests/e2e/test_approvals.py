"""Requests that wait for people, with the unmodified SDKs, a real gate, and people at a terminal of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from sqlite_utils.utils import sqlite3

from tests.e2e.harness import BIN, Process, Received, Upstream, chat_sse, http_answer, policy, tidegate_run, token

pytestmark = pytest.mark.e2e

CARD = "4111 1111 1111 1111"
ASK = f"Charge {CARD} please."
INSPECTION = {
    "prompt": {"secrets": "block", "pii": "approve", "injection": "flag", "exfil": "allow"},
    "response": {"secrets": "redact", "pii": "allow", "injection": "allow", "exfil": "allow"},
}
ROLES = {
    "dev": {
        "allow": [
            {"connections": ["*"], "endpoints": ["*"], "models": ["sample-*"]},
            {"connections": ["*"], "endpoints": ["*"], "models": ["big-*"], "approve": "model"},
        ]
    }
}
BINDINGS = [{"groups": ["local:dev", "local:boss"], "roles": ["dev"]}]
APPROVALS = {
    "pii": {"approvers": ["local:boss"], "decide_within": "5m", "break_glass": ["local:firemen"]},
    "model": {
        "approvers": ["local:boss"],
        "reason": "required",
        "on_client_gone": "cancel",
        "decide_within": "4s",
        "when": {"tools": ["launch"]},
    },
    "pending": {"per_caller": 60, "in_all": 600},
    "owners": {"local:robot": ["local:bob"]},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "sample-small",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


@dataclass
class Office:
    """A gate, its upstream, and the people."""

    gate: Process
    upstream: Upstream
    policy: Path
    tokens: dict[str, str]

    def run(self, *words: str, who: str = "bob", ok: bool = True) -> str:
        """Run ``tidegate approvals`` as somebody; return what it printed."""
        done = subprocess.run(
            [str(BIN / "tidegate"), "approvals", *words, "--policy", str(self.policy)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TIDEGATE_TOKEN": self.tokens[who], "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        assert CARD not in done.stdout + done.stderr
        return done.stdout if ok else done.stderr

    def items(self) -> list[dict[str, Any]]:
        """Read all items straight from the store, newest first."""
        from tidegate.desk import as_json
        from tidegate.state.approvals import listed

        path = self.policy.parent / "control.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return [as_json(each, time.time()) for each in listed(db)]

    def pending(self, known: set[str] = frozenset()) -> str:  # type: ignore[assignment]
        """Wait until there is a pending item that was not known; return its id."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = [each["id"] for each in self.items() if each["state"] == "pending" and each["id"] not in known]
            if found:
                return str(found[0])
            time.sleep(0.05)
        raise AssertionError(self.items())

    def state(self, approval: str) -> str:
        return next(str(each["state"]) for each in self.items() if each["id"] == approval)

    def openai(self, who: str = "alice", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gate.url}/openai/v1", api_key=self.tokens[who], **{"timeout": 60, **more})

    def anthropic(self, who: str = "alice") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"{self.gate.url}/anthropic", api_key=self.tokens[who], timeout=60)

    @property
    def hits(self) -> int:
        return len(self.upstream.requests)


def answers(received: Received) -> bytes:
    return json.dumps(MESSAGE).encode()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("approvals")
    with Upstream() as upstream:
        upstream.says(http_answer(json.dumps(MESSAGE).encode()), "/v1/messages")
        path = policy(folder, upstream.url, inspection=INSPECTION, roles=ROLES, bindings=BINDINGS, approvals=APPROVALS)
        groups = {
            "alice": ("dev",),
            "bob": ("boss",),
            "carol": ("boss", "dev"),
            "dave": ("dev",),
            "robot": ("dev",),
            "fay": ("dev", "firemen"),
        }
        tokens = {name: token(folder, name, found) for name, found in groups.items()}
        with tidegate_run(path) as gate:
            yield Office(gate, upstream, path, tokens)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "sample-small", "messages": [{"role": "user", "content": text}], **more}


def test_an_approved_request_passes_and_the_sdk_does_not_notice(office: Office) -> None:
    before, known = office.hits, {each["id"] for each in office.items()}
    with office.openai() as client, ThreadPoolExecutor(1) as aside:
        asked = aside.submit(client.chat.completions.create, **said(ASK))
        approval = office.pending(known)
        time.sleep(1)
        assert office.hits == before
        shown = office.run("show", approval[:8])
        assert "local:alice" in shown
        assert "[REDACTED:" in shown
        assert "still needs" not in office.run("approve", approval, "--reason", "a test card")
        answer = asked.result(20)
    assert answer.choices[0].message.content == "hello"
    assert office.hits == before + 1
    assert CARD.encode() in office.upstream.requests[-1].body
    assert office.state(approval) == "consumed"
