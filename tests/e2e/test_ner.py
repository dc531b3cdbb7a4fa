"""Names in prompts, by a real gate with a real local model: masked before they are sent, or not read in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Upstream, chat, mitm, policy, post, tidegate_run, token
from tests.e2e.wiring import CHAT, KEY, Stage
from tests.ner_model import make
from tidegate.evidence.queries import show

pytestmark = pytest.mark.e2e

ACTIONS = {
    "prompt": {
        "secrets": "block",
        "injection": "flag",
        "exfil": "allow",
        "pii": "redact",
        "names": "redact",
        "addresses": "block",
    },
    "response": {
        "secrets": "redact",
        "injection": "allow",
        "exfil": "redact",
        "pii": "redact",
        "names": "allow",
        "addresses": "allow",
    },
}


def inspection(**more: object) -> dict[str, object]:
    labels = {"PER": "names", "LOC": "addresses"}
    return {**ACTIONS, "ner": {"folder": "model", "labels": labels, "budget": "30s", **more}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ner")
    make(folder / "model")
    with Upstream() as upstream:
        path, access = policy(folder, upstream.url, inspection=inspection()), token(folder)
        with tidegate_run(path) as gate:
            yield Stage(gate, upstream, access)


@pytest.fixture
def stage(running: Stage) -> Stage:
    running.fresh()
    return running


def decisions(stage: Stage, exchange: str) -> list[tuple[str, str]]:
    """Return what a sealed exchange tells of the model: result and detail."""
    stage.record(exchange)
    found = show(stage.database, exchange)["decisions"]
    return [(each["result"], each["detail"]) for each in found if each["stage"] == "ner"]


def workers(stage: Stage) -> list[int]:
    """Return the worker processes of a gate."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            words = (each / "cmdline").read_bytes()
            parent = (each / "stat").read_text().rpartition(")")[2].split()[1]
            if b"tidegate.inspection.ner.worker" in words and int(parent) == stage.gate.process.pid:
                found.append(int(each.name))
    return found


def test_a_name_is_masked_before_the_upstream_sees_it(stage: Stage) -> None:
    prose = "some words about the quarter and its figures. " * 40
    reply = stage.ask(post(CHAT, chat(f"{prose}Please write to Alice Johnson and to zaphod. {prose}"), stage.auth))
    assert reply.status == 200
    (request,) = stage.upstream.requests
    said = json.loads(request.body)["messages"][0]["content"]
    assert said == f"{prose}Please write to [REDACTED:names] and to [REDACTED:names]. {prose}"
    for name in (b"lice", b"ohnson", b"aphod"):
        assert name not in stage.upstream.data
    row = stage.record(reply.id)
    assert row["outcome"] == "answered"
    assert [result for result, _ in decisions(stage, reply.id)] == ["redact"]
    assert "reads prompts (LOC: addresses, PER: names; 30000 ms, late: block, 1 worker)" in stage.gate.log
    assert not any(name in stage.gate.log for name in ("ohnson", "aphod"))


def test_a_class_that_is_blocked_is_refused_and_the_sentence_holds_no_name(stage: Stage) -> None:
    reply = stage.ask(post(CHAT, chat("a flat in Berlin"), stage.auth))
    assert (reply.status, reply.code) == (403, "finding")
    assert "ner.addresses" in reply.body.decode()
    assert "erlin" not in reply.body.decode()
    assert stage.upstream.requests == []


def test_what_the_rules_block_is_blocked_without_the_model(stage: Stage) -> None:
    reply = stage.ask(post(CHAT, chat(f"Alice has {KEY}"), stage.auth))
    assert (reply.status, reply.code) == (403, "finding")
    assert decisions(stage, reply.id) == []


def test_a_killed_worker_fails_its_request_and_the_next_one_is_answered(stage: Stage) -> None:
    (pid,) = workers(stage)
    os.kill(pid, signal.SIGSTOP)
    with stage.client() as client:
        client.send(post(CHAT, chat("the worker dies under Bob"), stage.auth))
        time.sleep(1.5)  # until the question is with the worker
        os.kill(pid, signal.SIGKILL)
        reply = client.ask()
    assert (reply.status, reply.code) == (503, "ner_unread")
    row = stage.record(reply.id)
    assert (row["outcome"], row["reason"]) == ("denied", "ner_unread")
    assert decisions(stage, reply.id) == [("deny", "failed")]
    assert stage.upstream.requests == []
    reply = stage.ask(post(CHAT, chat("another one reads of Bob"), stage.auth))
    assert reply.status == 200
    assert b"another one reads of [REDACTED:names]" in stage.upstream.data
    assert workers(stage) != [pid]
    assert b"the worker dies" not in stage.upstream.data


def test_a_client_that_leaves_while_it_is_read_ends_its_own_exchange_only(stage: Stage) -> None:
    before = stage.ask(post(CHAT, chat("hello"), stage.auth)).id
    stage.record(before)
    (pid,) = workers(stage)
    os.kill(pid, signal.SIGSTOP)
    with stage.client() as client:
        client.send(post(CHAT, chat("Bob leaves early"), stage.auth))
        time.sleep(1.0)
    time.sleep(0.3)
    os.kill(pid, signal.SIGCONT)
    row = stage.after(before)
    assert (row["outcome"], row["reason"]) == ("aborted", "client_gone")
    assert b"Bob" not in stage.upstream.data
    assert stage.ask(post(CHAT, chat("Bob stays"), stage.auth)).status == 200
    assert "failed" not in stage.gate.log.rpartition(before)[2]


@pytest.mark.parametrize(("late", "status", "sent"), [("block", 503, 0), ("flag", 200, 1), ("allow", 200, 1)])
def test_a_request_that_is_not_read_in_time_has_its_own_verdict(
    tmp_path: Path, late: str, status: int, sent: int
) -> None:
    make(tmp_path / "model")
    with Upstream() as upstream:
        path = policy(tmp_path, upstream.url, inspection=inspection(budget="0.001ms", late=late))
        access = token(tmp_path)
        with tidegate_run(path) as gate:
            stage = Stage(gate, upstream, access)
            reply = stage.ask(post(CHAT, chat("greet Bob"), stage.auth))
            assert reply.status == status
            assert len(upstream.requests) == sent
            verdict = {"block": "deny"}.get(late, late)
            assert decisions(stage, reply.id) == [(verdict, "late")]
            assert ("ner.unread" in gate.log) is (late == "flag")
            assert "greet" not in gate.log


def test_the_workers_end_with_the_gate(tmp_path: Path) -> None:
    make(tmp_path / "model")
    with Upstream() as upstream:
        path, access = policy(tmp_path, upstream.url, inspection=inspection(workers=2)), token(tmp_path)
        with mitm("mitmdump", path) as gate:
            stage = Stage(gate, upstream, access)
            found = workers(stage)
            assert len(found) == 2
            reply = stage.ask(post(CHAT, chat("greet Bob"), stage.auth))
            assert reply.status == 200
            assert b"greet [REDACTED:names]" in upstream.data
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < end:
            time.sleep(0.05)
        assert workers(stage) == []


@pytest.mark.parametrize("start", ["run", "mitmdump"])
def test_a_model_that_cannot_be_loaded_is_no_start(tmp_path: Path, start: str) -> None:
    make(tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_text("nothing that onnxruntime knows")
    path = policy(tmp_path, "http://127.0.0.1:9", inspection=inspection())
    begun = tidegate_run(path, wait=False) if start == "run" else mitm("mitmdump", path, wait=False)
    with begun as gate:
        assert gate.wait(60) != 0
        assert "inspection.ner: found the model cannot be loaded (" in gate.log
        assert "accepted: a token classification model that onnxruntime runs" in gate.log
