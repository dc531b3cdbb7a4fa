"""A policy that changes while a real process serves requests: in force without a gap, or not at all."""

from __future__ import annotations

import contextlib
import signal
import sqlite3  # the file is read after the process has ended
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Process, Upstream, chat, policy, tidegate_run, token

pytestmark = pytest.mark.e2e

RULE = {"connections": ["*"], "endpoints": ["*"], "models": ["*"], "modalities": ["text"]}
ALWAYS = {"hours": "00:00-24:00", "zone": "Europe/Berlin"}
OPEN = {"dev": {"allow": [{**RULE, "sources": ["127.0.0.0/8"], "when": ALWAYS}]}}
CLOSED = {"dev": {"allow": [{**RULE, "sources": ["192.0.2.0/24"]}]}}
"""Both ask for what a real process must know of a request: its time, and where it comes from."""


class Load:
    """Requests without a pause, and what came of them."""

    def __init__(self, gate: Process, access: str) -> None:
        self.url, self.access = f"{gate.url}/openai/v1/chat/completions", access
        self.seen: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(30)

    def _run(self) -> None:
        fields = {"authorization": f"Bearer {self.access}", "content-type": "application/json"}
        with httpx.Client(headers=fields, timeout=30) as client:
            while not self._over.is_set():
                found = client.post(self.url, content=chat("hello"))
                self.seen[str(found.status_code) if found.is_success else found.json()["error"]["code"]] += 1
                time.sleep(0.05)

    def until(self, what: str) -> None:
        """Wait until nothing but this comes back."""

        def only() -> bool:
            before = self.seen.copy()
            time.sleep(0.3)
            return set(self.seen - before) == {what}

        eventually(only)


def eventually(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as found:
        yield found


def test_a_policy_changes_breaks_and_is_repaired_under_load(tmp_path: Path, upstream: Upstream) -> None:
    path, access = policy(tmp_path, upstream.url, roles=OPEN), token(tmp_path)
    with tidegate_run(path) as gate, Load(gate, access) as load:
        load.until("200")

        policy(tmp_path, upstream.url, roles=CLOSED)
        load.until("source_denied")
        reached = len(upstream.requests)

        sound = path.read_text()
        path.write_text(sound.replace("version: 1", "version: 7"))
        eventually(lambda: '"result": "refused"' in gate.log)
        load.until("source_denied")
        assert f"{path}:1: version: found 7; accepted: 1" in gate.log
        assert "the changed policy was NOT loaded" in gate.log
        assert len(upstream.requests) == reached

        policy(tmp_path, upstream.url, roles=OPEN, recording={"path": "other.db"})
        load.until("200")
        assert "recording.path stays" in gate.log

        gate.process.send_signal(signal.SIGHUP)
        eventually(lambda: '"cause": "SIGHUP"' in gate.log)
        load.until("200")
        assert gate.process.poll() is None
    assert set(load.seen) == {"200", "source_denied"}
    assert not (tmp_path / "other.db").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "recording.db")) as db:
        events = [row[0] for row in db.execute("SELECT detail FROM event WHERE kind = 'policy' ORDER BY rowid")]
    assert events.pop(0).startswith("sha256 ")  # it started with this one
    assert [each.partition(":")[0] for each in events] == [
        "reloaded (file)", "refused (file)", "reloaded (file)", "unchanged (SIGHUP)",
    ]  # fmt: skip
