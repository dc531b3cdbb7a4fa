"""Evidence of a real gate: sealed originals, checkpoints outside, a proof after kill -9, no canary in any file."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.e2e.harness import Upstream, chat, chat_sse, policy, post, raw, tidegate_run, token
from tidegate.evidence import queries
from tidegate.evidence.files import Files
from tidegate.evidence.notes import parse_many
from tidegate.evidence.sealing import make_auditor
from tidegate.evidence.unsealing import open_original
from tidegate.evidence.verify import key_beside, verify

pytestmark = pytest.mark.e2e

CHAT = "/openai/v1/chat/completions"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"


def test_a_gate_s_evidence_holds(tmp_path: Path) -> None:
    private, public = make_auditor()
    recording = {
        "mode": "strict", "keep": "redacted", "path": "rec/tidegate.db", "originals": "sealed", "auditor": public,
        "checkpoints": {"every": "250ms", "sink": {"file": "notes"}},
    }  # fmt: skip
    path = tmp_path / "rec" / "tidegate.db"
    with Upstream() as upstream:
        written = policy(tmp_path, upstream.url, recording=recording)
        bearer = f"authorization: Bearer {token(tmp_path)}"
        with tidegate_run(written) as gate:
            assert raw(gate.port, post(CHAT, chat("the harbour is open"), bearer)).startswith(b"HTTP/1.1 200")
            assert KEY.encode() not in raw(gate.port, post(CHAT, chat(f"use {KEY}"), bearer))
            upstream.streams(chat_sse(f"it is {CARD} ok", size=8))
            assert CARD.encode() not in raw(gate.port, post(CHAT, chat("x", stream=True), bearer))
            deadline = time.monotonic() + 20
            while len(queries.list_flows(path, outcome="open")) or not (tmp_path / "notes").exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(0.6)  # a checkpoint over the last of them
            bundle = tmp_path / "all.zip"
            command = [Path(sys.executable).with_name("tidegate"), "export", "--caller", "alice", "--recording", path]
            subprocess.run([*command, "--out", bundle], check=True, timeout=60)
            while not any(row for row in _events(path) if row[0] == "export"):  # the running gate takes it up
                assert time.monotonic() < deadline + 20
                time.sleep(0.1)
            gate.process.kill()
            gate.process.wait(5)
        report = verify(path, key_beside(Files(path)), [tmp_path / "notes"])
        assert report.faults == []
        assert len(parse_many((tmp_path / "notes").read_text())) >= 2
        with tidegate_run(written) as gate:
            assert raw(gate.port, post(CHAT, chat("again"), bearer)).startswith(b"HTTP/1.1 200")
    assert verify(path, None, [tmp_path / "notes"]).faults == []
    with zipfile.ZipFile(bundle) as opened:
        opened.extract("verify.py", tmp_path)
    command = [sys.executable, "-I", tmp_path / "verify.py", bundle, "--key", key_beside(Files(path)).vkey]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    for file in (*path.parent.iterdir(), bundle, tmp_path / "notes"):
        data = file.read_bytes()
        assert KEY.encode() not in data, file
        assert CARD.encode() not in data, file
        assert b"harbour" not in data or file == bundle, file
    flows = queries.list_flows(path, caller="alice", limit=100)
    blocked = next(row for row in flows if row["outcome"] == "denied")
    assert KEY.encode() in open_original(path, blocked["id"], "prompt", private)[1]
    streamed = next(row for row in flows if row["streamed"])
    answer = open_original(path, streamed["id"], "response", private)[1]
    assert b"data: " in answer
    with queries.reading(path) as db:
        marks = next(iter(db["chunk"].rows_where("exchange = ?", [streamed["id"]])))["marks"]
    assert marks.count("[") > 3


def _events(path: Path) -> list[tuple[str, str]]:
    with queries.reading(path) as db:
        return [(row["kind"], row["detail"]) for row in db["event"].rows]
