"""Acknowledged evidence survives a kill, and what cannot be recorded is not sent."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Upstream, chat, free_port, policy, post, raw, started, tidegate_run, token
from tidegate.evidence import queries

pytestmark = pytest.mark.e2e

CHAT = "/openai/v1/chat/completions"
LIMITED = """
import resource, signal, sys
from tidegate.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


def test_an_answered_exchange_survives_a_kill(tmp_path: Path) -> None:
    with Upstream() as upstream:
        written = policy(tmp_path, upstream.url)
        bearer = f"authorization: Bearer {token(tmp_path)}"
        with tidegate_run(written) as gate:
            assert raw(gate.port, post(CHAT, chat("hello"), bearer)).startswith(b"HTTP/1.1 200")
            gate.process.kill()
            gate.process.wait(5)
        rows = [row for row in queries.list_flows(tmp_path / "recording.db") if row["connection"] == "openai"]
        assert [(row["caller"], row["model"]) for row in rows] == [("alice", "sample-small")]
        with tidegate_run(written) as gate:
            assert raw(gate.port, post(CHAT, chat("again"), bearer)).startswith(b"HTTP/1.1 200")
        rows = [row for row in queries.list_flows(tmp_path / "recording.db") if row["connection"] == "openai"]
        assert len(rows) == 2
        with queries.reading(tmp_path / "recording.db") as file:
            assert file.execute("pragma integrity_check").fetchone() == ("ok",)


def test_what_cannot_be_recorded_is_not_sent(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    with Upstream() as upstream:
        written = policy(tmp_path, upstream.url)
        bearer = f"authorization: Bearer {token(tmp_path)}"
        (tmp_path / "limited.py").write_text(LIMITED)
        port, allowed = free_port(), 400_000
        command = [sys.executable, tmp_path / "limited.py", str(allowed), "run", "--policy", written]
        command += ["--listen", f"127.0.0.1:{port}", "--confdir", tmp_path / "ca"]
        with started(command, port, tmp_path):
            answer = b""
            for number in range(40):
                before = len(upstream.data)
                answer = raw(port, post(CHAT, chat(f"{number} " + "word " * 8000), bearer))
                if not answer.startswith(b"HTTP/1.1 200"):
                    break
            assert answer.startswith(b"HTTP/1.1 503"), answer[:300]
            assert b"recording_failed" in answer
            assert len(upstream.data) == before
