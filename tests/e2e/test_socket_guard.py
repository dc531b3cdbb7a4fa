"""A bug anywhere on the way of a WebSocket's messages: nothing passes that was not judged, and both ends are closed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.break_hook import CANARY
from tests.e2e.harness import free_port
from tests.e2e.socket_peer import SocketUpstream, answer
from tests.e2e.test_guard import small_policy, wait_until_ready
from tests.e2e.test_socket import Rig, ask, end_of, hear, text_of, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "tok_abcdef012345"
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", params=["mitmdump", "tidegate run"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("socket-guard")
    with SocketUpstream() as upstream:
        policy, token, port = small_policy(folder, upstream.url), harness.token(folder), free_port()
        script = HERE / "break_hook.py"
        if request.param == "mitmdump":
            manager = harness.mitm("mitmdump", policy, "-s", str(script), port=port)
        else:
            command = [sys.executable, script, "run", "--policy", policy, "--listen", f"127.0.0.1:{port}"]
            manager = harness.started([*command, "--confdir", folder / "ca", "--mode", "reverse"], port, folder)
        with manager as process:
            wait_until_ready(process)
            yield Rig(process, upstream, token, "", 0)


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.upstream.reset()
    return running


@contextlib.contextmanager
def order(rig: Rig, name: str, **content: object) -> Iterator[None]:
    path, fresh = rig.gate.cwd / name, rig.gate.cwd / f"{name}.new"
    fresh.write_text(json.dumps(content))
    fresh.rename(path)
    try:
        yield
    finally:
        path.unlink()


CLIENT = [
    ("Gateway.tidegate_socket", ("before", "after", "later")),
    ("LiveSocket.take", ("before", "after")),
    ("LiveSocket.heard", ("before", "after")),
    ("Socket.client", ("before", "after")),
    ("Gateway.socket", ("before", "after")),
    ("Engine.find_many", ("before",)),
]
UPSTREAM = [
    ("Gateway.tidegate_socket", ("before", "after", "later")),
    ("LiveSocket.take", ("before", "after")),
    ("LiveSocket.heard", ("before", "after")),
    ("LiveSocket.kept", ("before", "after")),
    ("Socket.upstream", ("before", "after")),
    ("Gateway.socket", ("before",)),
    ("Exchange.said", ("before", "after")),
]


def cases(places: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, str]]:
    return [(place, when) for place, whens in places for when in whens]


@pytest.mark.parametrize("error", ["RuntimeError", "AddonHalt"])
@pytest.mark.parametrize(("place", "when"), cases(CLIENT))
def test_a_bug_about_a_clients_message_cuts_the_socket(rig: Rig, place: str, when: str, error: str) -> None:
    with rig.open() as socket:
        quiet = len(rig.gate.log)
        with order(rig, "break.json", place=place, when=when, error=error):
            ask(socket, f"use {KEY}")
            events, closed = end_of(socket)
        assert closed == 1008
    assert [each["error"]["code"] for each in events] in (["bug"], [])
    assert rig.upstream.messages == []
    wait_for(lambda: rig.upstream.closed)
    assert KEY.encode() not in rig.upstream.data
    assert rig.row(socket)["outcome"] in ("failed", "denied")
    assert CANARY not in rig.gate.log[quiet:]
    assert KEY not in rig.gate.log[quiet:]


@pytest.mark.parametrize("error", ["RuntimeError", "AddonHalt"])
@pytest.mark.parametrize(("place", "when"), cases(UPSTREAM))
def test_a_bug_about_an_upstreams_message_cuts_the_socket(rig: Rig, place: str, when: str, error: str) -> None:
    rig.upstream.plays = rig.upstream.sends(answer("x")[0], hang=True)
    with rig.open() as socket:
        quiet = len(rig.gate.log)
        ask(socket)
        assert json.loads(socket.recv(timeout=5))["type"] == "response.created"
        with order(rig, "break.json", place=place, when=when, error=error):
            event = {"type": "response.output_text.delta", "delta": f"the key is {KEY} ."}
            rig.upstream.push(json.dumps(event))
            events, closed = end_of(socket)
        assert closed == 1008
    assert KEY not in json.dumps(events)
    assert [each["error"]["code"] for each in events if each["type"] == "error"] in (["bug"], [])
    wait_for(lambda: rig.upstream.closed)
    assert rig.row(socket)["outcome"] in ("failed", "denied")
    assert CANARY not in rig.gate.log[quiet:]
    assert KEY not in rig.gate.log[quiet:]


@pytest.mark.parametrize("error", ["RuntimeError", "AddonHalt"])
@pytest.mark.parametrize("when", ["before", "after", "later"])
@pytest.mark.parametrize("hook", ["requestheaders", "request", "responseheaders", "response"])
def test_a_bug_in_the_handshake_opens_no_socket(rig: Rig, hook: str, when: str, error: str) -> None:
    rig.upstream.greeting = [json.dumps({"type": "response.created", "note": KEY})]
    with order(rig, "break.json", place=f"Gateway.{hook}", when=when, error=error):
        assert rig.refused() == (503, "bug")
    assert bool(rig.upstream.heads) == hook.startswith("response")
    wait_for(lambda: rig.upstream.closed == len(rig.upstream.heads))


@pytest.mark.parametrize("place", ["Gateway.over", "Gateway._seal", "Exchange.state", "Exchange.line"])
def test_a_bug_at_the_end_shows_nothing(rig: Rig, place: str) -> None:
    rig.upstream.plays = rig.upstream.says(f"the key is {KEY}.")
    with order(rig, "break.json", place=place, when="before", error="RuntimeError"):
        with rig.open() as socket:
            ask(socket)
            assert text_of(hear(socket)) == "the key is [REDACTED:token]."
        wait_for(lambda: rig.upstream.closed)
    assert KEY not in rig.gate.log
    assert CANARY not in rig.gate.log
    with rig.open() as socket:
        ask(socket)
        assert "REDACTED" in text_of(hear(socket))
