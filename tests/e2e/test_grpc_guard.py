"""A bug anywhere on the way of a gRPC call: its client gets an error, and nothing passes that was not judged."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

from tests.e2e import harness  # noqa: E402
from tests.e2e.break_hook import CANARY  # noqa: E402
from tests.e2e.grpc_peer import Peer, infer_request, said  # noqa: E402
from tests.e2e.harness import free_port  # noqa: E402
from tests.e2e.test_grpc import KEY, Setting, Talking, loaded, masked, reaching, texts, written  # noqa: E402

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", params=["mitmdump", "tidegate run"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("grpc-guard")
    with Peer() as peer:
        policy, token, port = written(folder, peer.url), harness.token(folder), free_port()
        script = HERE / "break_hook.py"
        if request.param == "mitmdump":
            manager = harness.mitm("mitmdump", policy, "-s", str(script), port=port)
        else:
            command = [sys.executable, script, "run", "--policy", policy, "--listen", f"127.0.0.1:{port}"]
            manager = harness.started([*command, "--confdir", folder / "ca", "--mode", "reverse"], port, folder)
        with manager as gate, reaching(port) as channel:
            found = Setting(gate, peer, token, channel)
            loaded(found)
            yield found


@contextlib.contextmanager
def order(setting: Setting, **content: object) -> Iterator[None]:
    path, fresh = setting.gate.cwd / "break.json", setting.gate.cwd / "break.json.new"
    fresh.write_text(json.dumps(content))
    fresh.rename(path)
    try:
        yield
    finally:
        path.unlink()


def fails(setting: Setting, act: Any, place: str, when: str) -> None:
    """Run what must fail while a place is broken; whatever arrived on either side has nothing of what is masked."""
    before, quiet = len(setting.peer.messages), len(setting.gate.log)
    with order(setting, place=place, when=when, error="RuntimeError"), pytest.raises(grpc.RpcError) as failed:
        act()
    assert "jane" not in str(failed.value)
    assert KEY not in str(setting.peer.messages[before:])
    told = setting.gate.log[quiet:]
    assert CANARY not in told
    assert "RuntimeError" in told


WHOLE = [
    "Gateway.requestheaders",
    "Gateway.request",
    "Gateway.responseheaders",
    "Gateway.response",
    "Gateway.ending",
    "Crossing._judge",
    "Crossing._masked",
    "Crossing.trailers",
    "Exchange.end_call",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", WHOLE)
def test_a_bug_in_a_call_ends_it(setting: Setting, place: str, when: str) -> None:
    fails(setting, lambda: setting.infer(infer_request("leak")), place, when)
    masked(texts(setting.infer(infer_request("leak")))[0])


FIRST = [("Gateway.tidegate_call", "before"), ("Gateway.tidegate_call", "after"), ("Gateway.tidegate_call", "later"),
         ("Crossing._judge", "before"), ("Gateway.outgoing", "before"),
         ("GrpcAnswer.feed", "before"), ("GrpcAnswer.feed", "after")]  # fmt: skip


@pytest.mark.parametrize(("place", "when"), FIRST)
def test_a_bug_about_the_first_message_ends_the_call(setting: Setting, place: str, when: str) -> None:
    def act() -> None:
        call = Talking(setting)
        call.ask(infer_request("leak"))
        try:
            call.until_final()
        finally:
            call.ask(None)

    fails(setting, act, place, when)


LATER = [("Gateway.tidegate_call", "before"), ("Gateway.tidegate_call", "after"), ("Crossing._judge_more", "before"),
         ("Crossing._judge_more", "after"), ("Exchange.heard", "before")]  # fmt: skip


@pytest.mark.parametrize(("place", "when"), LATER)
def test_a_bug_about_a_later_message_ends_the_call(setting: Setting, place: str, when: str) -> None:
    call = Talking(setting)
    call.ask(infer_request("hello"))
    assert call.until_final()[0] == "You said: hello"
    before = len(setting.peer.messages)

    def act() -> None:
        call.ask(infer_request("one more"))
        try:
            list(call.answers)
        finally:
            call.ask(None)

    fails(setting, act, place, when)
    assert [said(each) for each in setting.peer.messages[before:]] == []


def test_a_gate_that_does_not_know_a_call_lets_nothing_of_it_through(setting: Setting) -> None:
    """Where the gate cannot say that both sides may speak, the request is collected whole like any other."""
    before = len(setting.peer.calls)
    call = Talking(setting)
    with order(setting, place="Gateway.live", when="before", error="RuntimeError"):
        call = Talking(setting)
        call.ask(infer_request(f"key {KEY}"), None)
        with pytest.raises(grpc.RpcError):
            list(call.answers)
    assert len(setting.peer.calls) == before
