"""Large bodies are looked at beside the loop: small requests go on meanwhile, and whoever leaves has ended it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.break_hook import CANARY
from tests.e2e.harness import ANSWER, Upstream, chat, free_port, http_answer, policy, post, started, token
from tests.e2e.wiring import CHAT, Client, Reply, Stage

pytestmark = pytest.mark.e2e

HOSTILE_BYTES = 2_000_000
LARGE_BYTES = 100_000


def hostile(size: int, seed: int = 5) -> str:
    """Make a text that is all candidates and no finding: numbers of a card's form with a wrong check digit."""
    chance = random.Random(seed)
    return " ".join(f"4{chance.randrange(10**15):015d}" for _ in range(size // 17))[:size]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("large")
    others = {"pii": "flag", "injection": "flag", "exfil": "allow"}
    inspection = {"prompt": {"secrets": "block", **others}, "response": {"secrets": "redact", **others}}
    with Upstream() as upstream:
        path, access, port = policy(folder, upstream.url, inspection=inspection), token(folder), free_port()
        script = Path(__file__).with_name("break_hook.py")
        command = [sys.executable, script, "run", "--policy", path, "--listen", f"127.0.0.1:{port}"]
        with started([*command, "--confdir", folder / "ca"], port, folder) as gate:
            yield Stage(gate, upstream, access)


@pytest.fixture
def stage(running: Stage) -> Stage:
    running.fresh()
    (running.gate.cwd / "break.json").unlink(missing_ok=True)
    return running


def ask(stage: Stage, body: bytes) -> Reply:
    with Client(stage.gate.port, seconds=120) as client:
        return client.ask(post(CHAT, body, stage.auth))


def small_ones_meanwhile(stage: Stage, large: Future[Reply]) -> None:
    """Ask small things one after the other: all of them are answered before the large one is."""
    for number in range(20):
        reply = ask(stage, chat(f"question {number}"))
        assert reply.status == 200
        assert not large.done(), f"the large one was over before small one {number}"


def test_small_requests_go_on_while_a_large_one_is_looked_at(stage: Stage) -> None:
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(ask, stage, chat(hostile(HOSTILE_BYTES)))
        time.sleep(0.3)
        small_ones_meanwhile(stage, large)
        assert large.result(120).status == 200
    assert sorted(len(each.body) > LARGE_BYTES for each in stage.upstream.requests) == [False] * 20 + [True]


def test_small_requests_go_on_while_a_large_answer_is_looked_at(stage: Stage) -> None:
    answer = {**ANSWER, "choices": [{"index": 0, "message": {"role": "assistant", "content": hostile(HOSTILE_BYTES)}}]}
    large_answer = http_answer(json.dumps(answer).encode())

    async def say(received: object, writer: object) -> None:
        large = b"large" in received.body  # type: ignore[attr-defined]
        writer.write(large_answer if large else http_answer(json.dumps(ANSWER).encode()))  # type: ignore[attr-defined]

    stage.upstream.does(say)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(ask, stage, chat("a large answer please"))
        time.sleep(0.3)
        small_ones_meanwhile(stage, large)
        assert len(large.result(120).body) >= HOSTILE_BYTES


def test_a_client_that_leaves_meanwhile_has_ended_it(stage: Stage) -> None:
    with Client(stage.gate.port) as client:  # its connection to the upstream is open already
        before = client.ask(post(CHAT, chat("hello"), stage.auth)).id
        client.send(post(CHAT, chat("left " + hostile(HOSTILE_BYTES)), stage.auth))
        time.sleep(0.3)
    row = stage.after(before, 60)
    assert (row["outcome"], row["reason"]) == ("aborted", "client_gone")
    assert ask(stage, chat("hello again")).status == 200
    assert b"left 4" not in stage.upstream.data


@pytest.mark.parametrize("direction", ["request", "answer"])
def test_an_error_in_the_thread_is_a_denial(stage: Stage, direction: str) -> None:
    large = hostile(LARGE_BYTES)
    if direction == "answer":
        stage.upstream.says(http_answer(json.dumps({**ANSWER, "padding": large}).encode()))
    place = {"place": f"Crossing.{'_judge' if direction == 'request' else '_masked'}", "when": "before"}
    (stage.gate.cwd / "break.json").write_text(json.dumps({**place, "error": "RuntimeError"}))
    reply = ask(stage, chat(large if direction == "request" else "hello"))
    assert (reply.status, reply.code) == (503, "bug")
    assert len(stage.upstream.requests) == (direction == "answer")
    assert large[:40] not in stage.gate.log
    assert CANARY not in stage.gate.log


def test_what_a_large_body_holds_is_still_found(stage: Stage) -> None:
    reply = ask(stage, chat(f"{hostile(LARGE_BYTES)} AKIA{'Z7QK4WJX2MVT5R3P'}"))
    assert (reply.status, reply.code) == (403, "finding")
    assert not stage.upstream.requests
