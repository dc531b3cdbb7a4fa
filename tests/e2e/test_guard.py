"""What a bug lets through: every hook of a running gate is broken, and nothing may pass that was not judged."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from tests.e2e import harness
from tests.e2e.break_hook import CANARY
from tests.e2e.harness import Process, Upstream, chat, chat_sse, free_port, http_answer, post, raw

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "tok_abcdef012345"
"""What the small pack of the tests calls a secret: blocked in prompts, masked in answers."""

CHAT = "/openai/v1/chat/completions"
HERE = Path(__file__).resolve().parent


def small_policy(folder: Path, upstream: str, **changes: object) -> Path:
    """Write a policy with the two rules of the small pack: it starts seconds earlier than one with every rule."""
    if not (folder / "packs").exists():
        (folder / "packs").mkdir()
        shutil.copy(harness.ROOT / "tests" / "data" / "packs" / "small.yaml", folder / "packs")
    actions = {"prompt": {"secrets": "block", "pii": "redact"}, "response": {"secrets": "redact", "pii": "redact"}}
    return harness.policy(folder, upstream, **{"inspection": actions, **changes})


@dataclass
class Rig:
    """A running gate with a reverse and an explicit listener, its upstream, and its recording."""

    process: Process
    upstream: Upstream
    folder: Path
    token: str
    explicit: int
    direct: int
    quiet: int = 0

    def ask(
        self, text: str = "hello", *headers: str, port: int | None = None, path: str = CHAT, **more: object
    ) -> bytes:
        """Send one chat request with the caller's token; return the answer's bytes."""
        message = post(path, chat(text, **more), f"authorization: Bearer {self.token}", *headers)
        return raw(port or self.process.port, message)

    def breaks(
        self, place: str, when: str = "before", error: str = "RuntimeError"
    ) -> contextlib.AbstractContextManager[None]:
        return self._order("break.json", {"place": place, "when": when, "error": error})

    def meddles(self, who: str, hooks: str, code: str) -> contextlib.AbstractContextManager[None]:
        return self._order("meddle.json", {"who": who, "hooks": hooks.split(), "code": code})

    @contextlib.contextmanager
    def _order(self, name: str, content: dict[str, object]) -> Iterator[None]:
        path, fresh = self.folder / name, self.folder / f"{name}.new"
        fresh.write_text(json.dumps(content))
        fresh.rename(path)
        try:
            yield
        finally:
            path.unlink()

    def reset(self) -> None:
        """Forget what the upstream saw, and let it answer in the plain way again."""
        self.upstream.default = self.upstream._json
        self.upstream.answers.clear()
        self.upstream.requests.clear()
        self.upstream.data = b""
        self.upstream.connections = 0
        self.quiet = len(self.process.log)

    @property
    def log(self) -> str:
        """What the process printed since the test began."""
        return self.process.log[self.quiet :]

    def recorded(self, answer: bytes, settled: str = "") -> tuple[str | None, str | None, int | None]:
        """Return outcome, reason and status of the exchange that an answer names, once sealed (as ``settled``)."""
        named = re.search(rb"ex_[0-9a-f]+", answer)
        assert named, answer
        end = time.monotonic() + 3
        row: tuple[str | None, str | None, int | None] = (None, None, None)
        while time.monotonic() < end and (row[0] is None or row[0] != (settled or row[0])):
            with contextlib.closing(sqlite3.connect(self.folder / "recording.db")) as recording:
                query = "SELECT outcome, reason, status FROM exchange WHERE id = ?"
                row = recording.execute(query, (named[0].decode(),)).fetchone() or row
            time.sleep(0.02)
        return row


def wait_until_ready(process: Process, seconds: float = 60.0) -> None:
    """Wait for the panel: mitmdump listens before it has loaded its scripts."""
    end = time.monotonic() + seconds
    while "recording" not in process.log:
        assert time.monotonic() < end, process.log
        assert process.process.poll() is None, process.log
        time.sleep(0.05)


@contextlib.contextmanager
def a_rig(program: str, folder: Path) -> Iterator[Rig]:
    with Upstream() as upstream:
        policy, token = small_policy(folder, upstream.url), harness.token(folder)
        port, explicit, direct = free_port(), free_port(), free_port() if program == "mitmdump" else 0
        script = HERE / "break_hook.py"
        if program == "mitmdump":
            more = ["-s", str(script), "-s", str(HERE / "meddler.py"), "--mode", f"regular@{explicit}"]
            more += ["--mode", f"reverse:{upstream.url}@{direct}"]
            manager = harness.mitm("mitmdump", policy, *more, port=port)
        else:
            command = [sys.executable, script, "run", "--policy", policy, "--listen", f"127.0.0.1:{port}"]
            command += ["--confdir", folder / "ca", "--mode", "reverse", "--mode", f"regular@{explicit}"]
            manager = harness.started(command, port, folder)
        with manager as process:
            wait_until_ready(process)
            yield Rig(process, upstream, folder, token, explicit, direct)


@pytest.fixture(scope="module", params=["mitmdump", "tidegate run"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with a_rig(request.param, tmp_path_factory.mktemp("guard")) as found:
        yield found


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.reset()
    return running


@pytest.fixture
def mitmdump(running: Rig) -> Rig:
    """The process in which other addons run beside the gate, and with listeners of its own."""
    assert running.direct, "a test with this fixture carries the mark that leaves the other program out"
    running.reset()
    return running


in_mitmdump = pytest.mark.parametrize("running", ["mitmdump"], indirect=True, scope="module")
"""``tidegate run`` loads no other addon, and has no listener with an upstream of its own."""


WHENS = ("before", "after", "later")
ERRORS = ("RuntimeError", "OptionsError", "AddonHalt")


def refused_as_a_bug(rig: Rig, answer: bytes) -> None:
    """The client reads one sentence, the recording says bug, and the log names no text of the bug."""
    assert answer.startswith(b"HTTP/1.1 503 "), answer
    assert b'"bug"' in answer
    assert KEY.encode() not in answer
    assert rig.recorded(answer, "failed")[1:] == ("bug", 503)
    assert CANARY not in rig.log


def said(answer: bytes) -> str:
    """The text of a streamed answer, however its deltas were cut."""
    return b"".join(re.findall(rb'"content": ?"([^"]*)"', answer)).decode()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_a_bug_before_sending_sends_nothing(rig: Rig, hook: str, when: str, error: str) -> None:
    with rig.breaks(f"Gateway.{hook}", when, error):
        answer = rig.ask("hello")
    refused_as_a_bug(rig, answer)
    assert rig.upstream.data == b""
    assert rig.ask().startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("hook", ["responseheaders", "response"])
def test_a_bug_in_an_answer_shows_nothing_of_it(rig: Rig, hook: str, when: str, error: str) -> None:
    rig.upstream.says(http_answer(json.dumps({"leak": KEY}).encode()))
    with rig.breaks(f"Gateway.{hook}", when, error):
        answer = rig.ask()
    refused_as_a_bug(rig, answer)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
def test_a_bug_in_the_head_of_a_stream_shows_nothing_of_it(rig: Rig, when: str, error: str) -> None:
    rig.upstream.streams(chat_sse(f"the key is {KEY}"), pause=0)
    with rig.breaks("Gateway.responseheaders", when, error):
        answer = rig.ask(stream=True)
    refused_as_a_bug(rig, answer)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["StreamedAnswer.feed", "AnswerMeter.received", "StreamedAnswer.end"])
def test_a_bug_in_a_stream_ends_it(rig: Rig, place: str, when: str, error: str) -> None:
    rig.upstream.streams(chat_sse(f"the key is {KEY}."), pause=0)
    with rig.breaks(place, when, error):
        answer = rig.ask(stream=True)
    assert KEY not in said(answer)
    assert b'"bug"' in answer
    assert answer.endswith(b"0\r\n\r\n")
    assert rig.recorded(answer)[:2] == ("failed", "bug")
    assert CANARY not in rig.log


@pytest.mark.parametrize("when", WHENS)
def test_a_bug_after_a_stream_changes_nothing_that_was_sent(rig: Rig, when: str) -> None:
    rig.upstream.streams(chat_sse(f"the key is {KEY}."), pause=0)
    with rig.breaks("Gateway.response", when):
        answer = rig.ask(stream=True)
    assert said(answer) == "the key is [REDACTED:token]."
    assert rig.recorded(answer, "failed")[1] == "bug"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
def test_a_bug_when_the_upstream_fails_is_still_a_refusal_and_recorded(rig: Rig, when: str, error: str) -> None:
    rig.upstream.says(b"not http at all\r\n\r\n")
    with rig.breaks("Gateway.error", when, error):
        answer = rig.ask()
    assert answer.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 502 "))
    assert rig.recorded(answer)[0] == "failed"
    assert rig.recorded(answer)[1] in ("bug", "upstream_failed")
    assert CANARY not in rig.log


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
def test_a_bug_at_connect_opens_no_tunnel(rig: Rig, when: str, error: str) -> None:
    with rig.breaks("Gateway.http_connect", when, error):
        answer = raw(rig.explicit, f"CONNECT 127.0.0.1:{rig.upstream.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    refused_as_a_bug(rig, answer)
    assert rig.upstream.connections == 0


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", WHENS)
def test_a_bug_at_the_fence_opens_no_connection(rig: Rig, when: str, error: str) -> None:
    with rig.breaks("Gateway.server_connect", when, error):
        answer = rig.ask()  # a new upstream connection for each client connection
    assert answer.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 502 "))
    assert rig.upstream.connections == 0
    assert rig.recorded(answer)[:2] == ("failed", "bug")
    assert CANARY not in rig.log


@pytest.mark.parametrize("when", WHENS)
def test_a_bug_in_choosing_a_layer_leaves_the_gate_in_force(rig: Rig, when: str) -> None:
    with rig.breaks("Gateway.next_layer", when):
        answer = rig.ask(KEY)
    assert b"HTTP/1.1 200 " not in answer
    assert rig.upstream.data == b""
    assert CANARY not in rig.log


REQUEST_PLACES = [
    "Gateway.outgoing", "Exchange.refuse", "Recorder.intent", "Engine.find_many", "Verifier.cached", "Exchange.record",
]  # fmt: skip
ANSWER_PLACES = [
    "Gateway.released",
    "AnswerMeter.began",
    "Engine.find_many",
    "Recorder.seal",
    "Exchange.state",
    "Exchange.line",
]


@pytest.mark.parametrize("error", ["RuntimeError", "AddonHalt"])
@pytest.mark.parametrize("place", [*REQUEST_PLACES, "Gateway._refuse_bug"])
def test_nothing_of_a_blocked_prompt_is_sent_whatever_breaks(rig: Rig, place: str, error: str) -> None:
    with rig.breaks(place, "before", error):
        answer = rig.ask(KEY)
    assert not answer.startswith(b"HTTP/1.1 200 "), answer
    assert rig.upstream.data == b""
    assert CANARY not in rig.log


@pytest.mark.parametrize("error", ["RuntimeError", "AddonHalt"])
@pytest.mark.parametrize("place", [*ANSWER_PLACES, "Gateway._refuse_bug", "Gateway._seal", "Gateway.over"])
def test_nothing_unmasked_is_shown_whatever_breaks(rig: Rig, place: str, error: str) -> None:
    rig.upstream.says(http_answer(json.dumps({"leak": KEY}).encode()))
    with rig.breaks(place, "before", error):
        answer = rig.ask()
    assert KEY.encode() not in answer
    assert CANARY not in rig.log


# ── other addons ─────────────────────────────────────────────────────────────────────────────────────────────────────

AFTER_US = [
    ("request", 'flow.request.content = b\'{"model": "sample-small", "messages": []}\''),
    ("request", "flow.request.path = '/v1/files'"),
    ("request", "flow.request.method = 'PUT'"),
    ("request", "flow.request.headers['x-added'] = 'after the gate'"),
    ("request", "flow.request.host = 'localhost'"),
    ("requestheaders", "flow.request.stream = True"),
]


@in_mitmdump
@pytest.mark.parametrize(("hook", "code"), AFTER_US)
def test_a_request_changed_after_the_gate_is_not_sent(mitmdump: Rig, hook: str, code: str) -> None:
    with mitmdump.meddles("late", hook, code):
        answer = mitmdump.ask()
    assert mitmdump.upstream.data == b""
    assert answer.startswith((b"HTTP/1.1 50", b"HTTP/1.1 400 ")), answer
    assert mitmdump.recorded(answer)[1] in (
        "bug",
        "upstream_failed",
        "protocol",
    )  # the egress, the fence, the client's part


@in_mitmdump
@pytest.mark.parametrize(
    "hooks", ["requestheaders", "request", "requestheaders request", "http_connect requestheaders request"]
)
def test_a_gate_that_is_skipped_sends_nothing(mitmdump: Rig, hooks: str) -> None:
    with mitmdump.meddles("early", hooks, "raise exceptions.AddonHalt"):
        answer = mitmdump.ask(KEY)
        explicit = mitmdump.ask(KEY, port=mitmdump.explicit, path=f"{mitmdump.upstream.url}/v1/chat/completions")
    assert mitmdump.upstream.data == b""
    assert not answer.startswith(b"HTTP/1.1 200 ")
    assert not explicit.startswith(b"HTTP/1.1 200 ")
    assert mitmdump.recorded(explicit, "failed")[1] == "bug"


@in_mitmdump
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "hooks", ["responseheaders", "response", "responseheaders response", "responseheaders response error"]
)
def test_an_answer_that_skipped_the_gate_is_not_shown(mitmdump: Rig, hooks: str, stream: bool) -> None:
    mitmdump.upstream.says(http_answer(json.dumps({"leak": KEY}).encode()))
    if stream:
        mitmdump.upstream.streams(chat_sse(f"the key is {KEY}.", size=99), pause=0)
    with mitmdump.meddles("early", hooks, "raise exceptions.AddonHalt"):
        answer = mitmdump.ask(stream=stream)
    assert KEY.encode() not in answer
    if hooks != "response" or not stream:
        assert mitmdump.recorded(answer, "failed")[1] == "bug"


@in_mitmdump
@pytest.mark.parametrize("who", ["early", "late"])
@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_reply_of_another_addon_is_masked(mitmdump: Rig, who: str, hook: str, kind: str) -> None:
    body = (
        json.dumps({"leak": KEY}).encode() if kind == "application/json" else b"".join(chat_sse(f"the key is {KEY}."))
    )
    code = f"flow.response = http.Response.make(200, {body!r}, {{'content-type': {kind!r}}})"
    with mitmdump.meddles(who, hook, code):
        answer = mitmdump.ask()
    assert KEY.encode() not in answer
    assert b"REDACTED" in answer or not answer.startswith(b"HTTP/1.1 200 "), answer
    assert mitmdump.upstream.data == b""


LATE_ANSWERS = [
    ("responseheaders", "flow.response.stream = True"),
    ("responseheaders", "flow.response.stream = lambda data: data"),
    ("response", "flow.response = http.Response.make(200, b'tok_abcdef012345')"),
]


@in_mitmdump
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("hook", "code"), LATE_ANSWERS)
def test_an_answer_taken_from_the_gate_is_not_shown(mitmdump: Rig, hook: str, code: str, stream: bool) -> None:
    mitmdump.upstream.says(http_answer(json.dumps({"leak": KEY}).encode()))
    if stream:
        mitmdump.upstream.streams(chat_sse(f"the key is {KEY}.", size=99), pause=0)
    with mitmdump.meddles("late", hook, code):
        answer = mitmdump.ask(stream=stream)
    assert KEY.encode() not in answer


@in_mitmdump
def test_a_refusal_that_is_taken_away_does_not_open_the_way(mitmdump: Rig) -> None:
    with mitmdump.meddles("late", "request", "flow.response = None"):
        answer = mitmdump.ask(KEY)
    assert mitmdump.upstream.data == b""
    assert answer.startswith(b"HTTP/1.1 403 ")


# ── before anybody is known, and the fence ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("listener", ["reverse", "explicit", "tunnel"])
def test_a_client_without_a_token_causes_no_connection(rig: Rig, listener: str) -> None:
    body = chat("hello")
    if listener == "reverse":
        answer = raw(rig.process.port, post(CHAT, body))
    elif listener == "explicit":
        answer = raw(rig.explicit, post(f"{rig.upstream.url}/v1/chat/completions", body))
    else:
        answer = through_a_tunnel(rig, post("/v1/chat/completions", body))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert rig.upstream.connections == 0


@in_mitmdump
def test_a_listener_with_an_upstream_of_its_own_asks_for_a_token_too(mitmdump: Rig) -> None:
    answer = raw(mitmdump.direct, post(CHAT, chat("hello")))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert mitmdump.upstream.connections == 0


def through_a_tunnel(rig: Rig, message: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", rig.explicit), timeout=5) as client:
        client.sendall(f"CONNECT 127.0.0.1:{rig.upstream.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(message)
        return client.recv(65536)


def test_what_is_not_http_in_a_tunnel_reaches_nobody(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.explicit), timeout=1) as client:
        client.sendall(f"CONNECT 127.0.0.1:{rig.upstream.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"\x00\x01binary " + KEY.encode() + b"\r\n\r\n")
        with contextlib.suppress(TimeoutError, ConnectionError):
            client.recv(65536)
    assert rig.upstream.data == b""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Upstream]:
    """Something that listens on this machine and that no policy names: a web page of mitmweb, a metadata service."""
    with Upstream() as found:
        yield found


@pytest.mark.parametrize("way", ["CONNECT", "absolute", "host"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "[::1]"])
def test_the_fence_keeps_clients_off_this_machine(rig: Rig, elsewhere: Upstream, way: str, host: str) -> None:
    elsewhere.connections = 0
    address = f"{host}:{elsewhere.port}"
    message = {
        "CONNECT": f"CONNECT {address} HTTP/1.1\r\nhost: {address}\r\n\r\n".encode(),
        "absolute": post(f"http://{address}/v1/chat/completions", chat("hi"), f"authorization: Bearer {rig.token}"),
        "host": post("/v1/chat/completions", chat("hi"), f"authorization: Bearer {rig.token}").replace(
            b"host: gate", f"host: {address}".encode()
        ),
    }[way]
    answer = raw(rig.process.port if way == "host" else rig.explicit, message)
    assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer
    assert elsewhere.connections == 0


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("host", ["169.254.169.254", "metadata.google.internal", "example.com"])
@pytest.mark.parametrize("way", ["CONNECT", "absolute"])
def test_the_fence_keeps_clients_off_unlisted_hosts(rig: Rig, way: str, host: str, port: int) -> None:
    message = f"CONNECT {host}:{port} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    if way == "absolute":
        message = f"GET http://{host}:{port}/latest/meta-data/ HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
    answer = raw(rig.explicit, message)
    assert answer.startswith(b"HTTP/1.1 403 "), answer
    assert rig.recorded(answer) == ("denied", "unlisted_host", 403)
