"""A reload comes into force whole or not at all, is told and recorded, and is made beside the event loop."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils.utils import sqlite3

from tidegate import building
from tidegate.building import Gate, build_gate
from tidegate.policy.policy import PolicyError
from tidegate.reloading import Reloader

ROOT = Path(__file__).resolve().parents[1]
POLICY = """
version: 1
identity:
  - name: local
    static: {tokens: tokens.yaml}
connections:
  - {name: mcp, dialect: mcp, upstream: https://mcp.example.com, serve: {path: /mcp}}
roles:
  dev:
    allow:
      - {connections: [mcp], endpoints: ["*"]}
bindings:
  - {groups: ["local:dev"], roles: [dev]}
packs: [packs/*.yaml]
dialects: [dialects/mcp.yaml]
inspection:
  prompt: {secrets: block, pii: redact}
  response: {secrets: redact, pii: flag}
recording: {path: recording.db}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "data" / "packs", tmp_path / "packs")
    (tmp_path / "dialects").symlink_to(ROOT / "rules" / "dialects")
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path / "policy.yaml"


@pytest.fixture
async def gate(path: Path) -> AsyncIterator[Gate]:
    made = build_gate(path)
    await made.start()
    yield made
    await made.close()


def write(path: Path, text: str) -> None:
    path.write_text(text)


def touch(folder: Path) -> None:
    pack = next((folder / "packs").glob("*.yaml"))
    pack.write_text(pack.read_text() + "# changed\n")


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(each.message) for each in caplog.records if '"event": "policy"' in each.message]


def events(path: Path) -> list[str]:
    db = sqlite3.connect(path.with_name("recording.db"))
    found = [row[0] for row in db.execute("SELECT detail FROM event WHERE kind = 'policy' ORDER BY rowid")]
    db.close()
    return found


async def test_a_sound_policy_comes_into_force_and_a_broken_one_does_not(
    path: Path, gate: Gate, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "tidegate")
    first, verifier = gate.addon.policy, gate.addon.verifier
    write(path, POLICY.replace('["*"]', "[session]").replace("recording.db", "other.db"))
    done = await gate.reload(path, "call")
    second = gate.addon.policy
    assert (done.old, done.new, done.cause) == (first.sha256, second.sha256, "call")
    assert done.kept == (f"recording.path stays {path.parent / 'recording.db'} until the gate is started again",)
    assert second.recording.path == first.recording.path
    assert gate.addon.verifier is verifier  # with the keys it has

    write(path, POLICY.replace("version: 1", "version: 2").replace("[mcp]", "[mpc]"))
    with pytest.raises(PolicyError) as caught:
        await gate.reload(path, "file")
    assert len(caught.value.faults) == 2
    assert gate.addon.policy is second

    write(path, POLICY.replace("local", "here"))
    await gate.reload(path, "file")
    assert gate.addon.verifier is not verifier
    await gate.reload(path, "SIGHUP")
    assert [(each["result"], each["cause"]) for each in told(caplog)] == [
        ("reloaded", "call"), ("refused", "file"), ("reloaded", "file"), ("unchanged", "SIGHUP"),
    ]  # fmt: skip
    assert told(caplog)[1]["faults"][0] == f"{path}:2: version: found 2; accepted: 1"
    shown = capsys.readouterr().err
    assert "the changed policy was NOT loaded" in shown
    assert "recording.path stays" in " ".join(shown.split())
    await gate.close()
    third = gate.addon.policy
    assert events(path) == [
        f"sha256 {first.sha256}",
        f"reloaded (call): {first.sha256} -> {second.sha256}",
        f"refused (file): 2 faults, {second.sha256} stays in force",
        f"reloaded (file): {second.sha256} -> {third.sha256}",
        f"unchanged (SIGHUP): {third.sha256} -> {third.sha256}",
    ]


async def test_policies_are_read_beside_the_event_loop_one_after_the_other(
    path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, running, most, threads = building.load, [0], [0], set()

    def load(*args: Any, **more: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threads.add(threading.current_thread())
        time.sleep(0.05)
        try:
            return real(*args, **more)
        finally:
            running[0] -= 1

    monkeypatch.setattr(building, "load", load)
    await asyncio.gather(gate.reload(path), gate.reload(path), gate.reload(path))
    assert most == [1]
    assert threading.main_thread() not in threads


async def test_a_changed_file_is_reloaded_and_a_broken_one_watched_on(path: Path, gate: Gate) -> None:
    seen: list[str] = []
    gate.adopted = lambda: seen.append(gate.addon.policy.sha256)
    reloader = Reloader(gate, path, every=0.05)
    reloader.start()
    first = gate.addon.policy.sha256

    async def until(holds: Any) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0.02)

    try:
        await asyncio.sleep(0.3)
        assert not seen
        write(path, "version: [")
        await asyncio.sleep(0.5)
        assert not seen
        assert gate.addon.policy.sha256 == first
        write(path, POLICY + "mode: observe\n")
        await until(lambda: len(seen) == 1)
        touch(path.parent)
        await until(lambda: len(seen) == 2)
        assert len({first, *seen}) == 3
    finally:
        reloader.stop()
