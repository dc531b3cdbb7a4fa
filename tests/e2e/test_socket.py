"""The Responses API over WebSocket, through a real gate: what crosses, what is masked, what ends it, what stays."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import openai
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response
from websockets.sync.client import ClientConnection, connect

from tests.documents import archive
from tests.e2e.harness import BIN, CREDENTIAL, Process, free_port, mitm, policy, raw, recorded, tidegate_run, token
from tests.e2e.peers import authority
from tests.e2e.socket_peer import SocketUpstream, answer
from tests.e2e.test_modes import trusting
from tests.e2e.wiring import CARD, KEY, MAIL
from tidegate.evidence import queries

pytestmark = pytest.mark.e2e

PATH = "/openai/v1/responses"
LEAK = f"mail {MAIL} and card {CARD}."
MASKED = "mail [REDACTED:email] and card [REDACTED:card-visa]."


@dataclass
class Rig:
    """A running gate, its upstream, and two callers: one in the right group and one in another."""

    gate: Process
    upstream: SocketUpstream
    token: str
    stranger: str
    explicit: int

    def open(self, path: str = PATH, *, who: str | None = None, **more: Any) -> ClientConnection:
        """Open a WebSocket on the reverse listener."""
        options: dict[str, Any] = {"compression": None, "proxy": None, "open_timeout": 10, "close_timeout": 3, **more}
        headers = {"authorization": f"Bearer {who or self.token}", **options.pop("headers", {})}
        return connect(f"ws://127.0.0.1:{self.gate.port}{path}", additional_headers=headers, **options)

    def refused(self, *arguments: Any, **more: Any) -> tuple[int, str]:
        """Open a WebSocket that must be refused; return the status and the reason."""
        with pytest.raises(InvalidStatus) as refused, self.open(*arguments, **more):
            pass
        answer = refused.value.response
        return answer.status_code, json.loads(answer.body)["error"]["code"]

    def row(self, socket: ClientConnection | str, seconds: float = 5.0) -> dict[str, Any]:
        """Return the row of a socket's exchange as soon as it is sealed."""
        name = socket if isinstance(socket, str) else exchange_of(socket)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for row in queries.list_flows(self.gate.cwd / "recording.db", limit=100):
                if row["id"] == name and row["outcome"] not in {None, "open"}:
                    return row
            time.sleep(0.02)
        raise AssertionError(f"{name} was not sealed")

    def shown(self, name: str, *options: str) -> str:
        """Return what ``tidegate flows show`` prints."""
        command = [BIN / "tidegate", "flows", "show", name, "--recording", self.gate.cwd / "recording.db", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def exchange_of(socket: ClientConnection) -> str:
    assert socket.response is not None
    return socket.response.headers["x-tidegate-exchange"]


def ask(socket: ClientConnection, text: str = "hello", **more: object) -> None:
    socket.send(json.dumps({"type": "response.create", "model": "sample-small", "input": text, **more}))


def hear(socket: ClientConnection, seconds: float = 5.0) -> list[dict[str, Any]]:
    """Return the events of one answer."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] not in ("response.completed", "error"):
        found.append(json.loads(socket.recv(timeout=seconds)))
    return found


def text_of(events: Sequence[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def whole(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that are no deltas, without their numbers."""
    kept = [event for event in events if not event["type"].endswith(".delta")]
    return [{name: value for name, value in event.items() if name != "sequence_number"} for event in kept]


def end_of(socket: ClientConnection, seconds: float = 5.0) -> tuple[list[dict[str, Any]], int | None]:
    """Read to the end; return the events and the close code."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            found.append(json.loads(socket.recv(timeout=seconds)))
    return found, socket.close_code


def wait_for(met: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def a_rig(
    folder: Path,
    program: str = "tidegate run",
    context: ssl.SSLContext | None = None,
    options: Sequence[str] = (),
    **changes: object,
) -> Iterator[Rig]:
    with SocketUpstream(context) as upstream:
        written = policy(folder, upstream.url, **changes)
        access, stranger = token(folder), token(folder, "mallory", ("visitors",))
        explicit = free_port()
        if program == "tidegate run":
            started = tidegate_run(written, "--mode", "reverse", "--mode", f"regular@{explicit}", *options)
        else:
            started = mitm(program, written, "--mode", f"regular@{explicit}", *options)
        with started as gate:
            wait_for(lambda: "recording" in gate.log, 60)
            yield Rig(gate, upstream, access, stranger, explicit)


@pytest.fixture(scope="module", params=["tidegate run", "mitmdump"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with a_rig(tmp_path_factory.mktemp("socket"), request.param) as rig:
        yield rig


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.upstream.reset()
    return running


# ── what crosses ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clean_answer_is_what_the_upstream_said(rig: Rig) -> None:
    with rig.open() as socket:
        ask(socket, "hello", instructions="Be brief.")
        found = hear(socket)
    assert text_of(found) == "hello"
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    assert whole(found) == whole(answer("hello"))
    wait_for(lambda: rig.upstream.closed)
    assert [(each["type"], each["input"]) for each in rig.upstream.messages] == [("response.create", "hello")]
    row = rig.row(socket)
    assert (row["outcome"], row["reason"], row["status"]) == ("answered", None, 101)
    assert (row["endpoint"], row["model"], row["caller"]) == ("responses_socket", "sample-small", "alice")
    assert row["request_bytes"] > 50
    assert row["response_bytes"] > 500


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_is_masked_live(rig: Rig, size: int) -> None:
    rig.upstream.plays = rig.upstream.says(LEAK, size=size)
    with rig.open() as socket:
        for _ in range(2):
            ask(socket)
            events = hear(socket)
            assert text_of(events) == MASKED
            assert events[-1]["response"]["output"][0]["content"][0]["text"] == MASKED
            assert not {MAIL, CARD} & {json.dumps(event) for event in events}
            assert MAIL not in json.dumps(events)
            assert CARD not in json.dumps(events)
    assert rig.row(socket)["findings"] > 0


def test_a_stream_of_deltas_stays_live(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.says("one two three four", size=5, pause=0.2)
    with rig.open() as socket:
        ask(socket)
        times = []
        while True:
            event = json.loads(socket.recv(timeout=5))
            if event["type"] == "response.output_text.delta" and event["delta"]:
                times.append(time.monotonic())
            if event["type"] == "response.completed":
                break
        assert time.monotonic() - times[0] > 0.5


def test_nothing_of_a_blocked_prompt_goes_up(rig: Rig) -> None:
    with rig.open() as socket:
        ask(socket, f"use {KEY}")
        (error,) = hear(socket)
        assert (error["status"], error["error"]["code"]) == (403, "finding")
        assert exchange_of(socket) in error["error"]["message"]
        assert rig.upstream.data == b""
        ask(socket, "then this")
        assert text_of(hear(socket)) == "hello"
    assert [each["input"] for each in rig.upstream.messages] == ["then this"]
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("denied", "finding")


def test_a_document_in_a_message_is_read_and_the_socket_stays(rig: Rig) -> None:
    """Small and large: the one is first looked at in the loop, the other in a thread."""

    def given(text: str, filling: int) -> list[dict[str, object]]:
        data = base64.b64encode(archive({"a.txt": text, "b.txt": os.urandom(filling).hex()})).decode()
        return [{"role": "user", "content": [{"type": "input_file", "file_data": data}]}]

    with rig.open() as socket:
        for filling in (10, 300_000):
            ask(socket, input=given(f"use {KEY}", filling))
            (error,) = hear(socket)
            assert (error["status"], error["error"]["code"]) == (403, "finding")
            assert "content[0].file_data (zip: a.txt)" in error["error"]["message"]
            assert rig.upstream.data == b""
        ask(socket, input=[{"role": "user", "content": [{"image_url": "https://x.test/a.png"}]}])
        assert hear(socket)[0]["error"]["code"] == "body_opaque"
        for filling in (10, 300_000):
            ask(socket, input=given("hello", filling))
            assert text_of(hear(socket)) == "hello"
    assert len(rig.upstream.messages) == 2
    assert rig.row(socket)["scanned"] == "partly scanned"


def test_a_prompt_is_masked_on_its_way(rig: Rig) -> None:
    with rig.open() as socket:
        ask(socket, f"write to {MAIL}")
        hear(socket)
    assert rig.upstream.messages[0]["input"] == "write to [REDACTED:email]"


def test_the_credential_is_swapped(rig: Rig) -> None:
    with rig.open(headers={"cookie": "a=b", "x-forwarded-user": "root", "openai-beta": "x"}):
        pass
    head = rig.upstream.heads[0]
    assert head["authorization"] == f"Bearer {CREDENTIAL}"
    assert (head["upgrade"], head["connection"], head["openai-beta"]) == ("websocket", "Upgrade", "x")
    assert rig.token not in str(head)
    assert not {"cookie", "x-forwarded-user"} & {name.lower() for name in head}


def test_an_answer_may_be_continued_on_its_own_socket(rig: Rig) -> None:
    with rig.open() as socket:
        ask(socket)
        number = hear(socket)[-1]["response"]["id"]
        ask(socket, "and then", previous_response_id=number)
        assert hear(socket)[-1]["type"] == "response.completed"
    with rig.open() as other:
        ask(other, "and then", previous_response_id=number)
        assert hear(other)[0]["error"]["code"] == "body_opaque"


def test_a_large_message_is_judged_beside_the_loop_and_crosses_whole(rig: Rig) -> None:
    text = "words " * 100_000
    with rig.open() as socket:
        ask(socket, text)
        assert text_of(hear(socket)) == "hello"
        ask(socket, text + KEY)
        assert hear(socket)[0]["error"]["code"] == "finding"
    assert [each["input"] == text for each in rig.upstream.messages] == [True]
    assert KEY.encode() not in rig.upstream.data


def test_a_fragmented_message_is_one_message(rig: Rig) -> None:
    whole = json.dumps({"type": "response.create", "model": "m", "input": f"use {KEY} ok"})
    with rig.open() as socket:
        socket.send([whole[at : at + 5] for at in range(0, len(whole), 5)])
        assert hear(socket)[0]["error"]["code"] == "finding"
    assert rig.upstream.messages == []
    assert rig.upstream.data.count(b"") < 30  # a close frame, no message


def test_messages_asked_at_once_are_answered_in_turn(rig: Rig) -> None:
    with rig.open() as socket:
        for number in range(3):
            ask(socket, f"number {number}")
        for number in range(3):
            assert hear(socket)[-1]["response"]["id"] == f"resp_{number + 1}"
    assert [each["input"] for each in rig.upstream.messages] == ["number 0", "number 1", "number 2"]


def test_pings_cross_and_keep_the_socket(rig: Rig) -> None:
    with rig.open(ping_interval=0.1, ping_timeout=2) as socket:
        time.sleep(0.5)
        ask(socket)
        assert text_of(hear(socket)) == "hello"


# ── what ends a socket ───────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES: dict[str, tuple[Any, str]] = {
    "binary": (b'{"type": "response.create"}', "protocol"),
    "not JSON": ("hello", "body_malformed"),
    "unknown type": ('{"type": "session.update"}', "protocol"),
    "steering": ('{"type": "response.steer", "input": "x", "previous_response_id": "r"}', "protocol"),
    "a key twice": ('{"type": "response.create", "input": "a", "input": "b"}', "body_malformed"),
}


@pytest.mark.parametrize(("message", "code"), MESSAGES.values(), ids=MESSAGES.keys())
def test_what_is_no_message_of_the_api_ends_the_socket(rig: Rig, message: Any, code: str) -> None:
    with rig.open() as socket:
        socket.send(message)
        events, closed = end_of(socket)
    assert [each["error"]["code"] for each in events] == [code]
    assert closed == 1008
    assert rig.upstream.messages == []
    wait_for(lambda: rig.upstream.closed)
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("denied", code)


def test_a_large_ping_ends_the_socket(rig: Rig) -> None:
    with rig.open() as socket:
        socket.ping(b"this is a message")
        events, closed = end_of(socket)
    assert ([each["error"]["code"] for each in events], closed) == (["protocol"], 1008)
    assert b"this is" not in rig.upstream.data


EVENTS: dict[str, tuple[Any, str]] = {
    "binary": (b'{"type": "response.created"}', "upstream_protocol"),
    "not JSON": (f"the card {CARD}", "answer_malformed"),
    "unknown type": ({"type": "session.created", "card": CARD}, "upstream_protocol"),
    "no type": ({"card": CARD}, "upstream_protocol"),
}


@pytest.mark.parametrize(("event", "code"), EVENTS.values(), ids=EVENTS.keys())
def test_what_cannot_be_inspected_ends_the_socket(rig: Rig, event: Any, code: str) -> None:
    rig.upstream.plays = rig.upstream.sends(event, hang=True)
    with rig.open() as socket:
        ask(socket)
        events, closed = end_of(socket)
    assert [each["error"]["code"] for each in events] == [code]
    assert closed == 1008
    wait_for(lambda: rig.upstream.closed)
    assert rig.row(socket)["reason"] == code


def test_an_event_nobody_asked_for_is_inspected(rig: Rig) -> None:
    rig.upstream.greeting = [json.dumps({"type": "response.created", "note": LEAK})]
    with rig.open() as socket:
        assert json.loads(socket.recv(timeout=5))["note"] == MASKED


def test_the_reason_of_a_close_is_not_passed_on(rig: Rig) -> None:
    async def leave(socket: ServerConnection, _: dict[str, Any]) -> None:
        await socket.close(4000, f"card {CARD}")

    rig.upstream.plays = leave
    with rig.open() as socket:
        ask(socket)
        events, _ = end_of(socket)
    assert [each["error"]["code"] for each in events] == ["upstream_failed"]
    assert socket.close_reason == ""
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("failed", "upstream_failed")


def test_a_client_that_leaves_stops_the_upstream(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.sends(answer("x")[0], hang=True)
    with rig.open() as socket:
        ask(socket)
        socket.recv(timeout=5)
    wait_for(lambda: rig.upstream.closed)
    row = rig.row(socket)
    assert (row["outcome"], row["reason"]) == ("aborted", "client_gone")


def test_a_client_that_vanishes_stops_the_upstream(rig: Rig) -> None:
    socket = rig.open(legacy=True)
    ask(socket)
    hear(socket)
    socket.socket.shutdown(SHUT_RDWR)
    wait_for(lambda: rig.upstream.closed)
    assert rig.row(socket)["outcome"] == "answered"


# ── the handshake ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_group_is_denied_at_the_handshake(rig: Rig) -> None:
    assert rig.refused(who=rig.stranger) == (403, "not_granted")
    assert rig.refused(who="nonsense")[0] == 401
    assert rig.upstream.heads == []


def test_a_subprotocol_is_refused(rig: Rig) -> None:
    assert rig.refused(subprotocols=["realtime"]) == (400, "protocol")
    assert rig.upstream.heads == []


def test_compression_is_not_offered_upstream(rig: Rig) -> None:
    with rig.open(compression="deflate") as socket:
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        ask(socket)
        assert text_of(hear(socket)) == "hello"
    assert "sec-websocket-extensions" not in rig.upstream.heads[0]


@pytest.mark.parametrize("name", ["sec-websocket-extensions", "sec-websocket-protocol", "sec-websocket-accept"])
def test_an_upstream_that_switches_to_something_else_is_refused(rig: Rig, name: str) -> None:
    rig.upstream.extra = {name: "permessage-deflate"}
    assert rig.refused() == (502, "upstream_protocol")


@pytest.mark.parametrize("path", ["/openai/v1/models", "/openai/v1/chat/completions", "/openai/v1/realtimes"])
def test_an_upgrade_elsewhere_is_refused(rig: Rig, path: str) -> None:
    assert rig.refused(path)[0] in (400, 404)
    assert rig.upstream.heads == []


def test_a_plain_get_of_the_socket_is_refused(rig: Rig) -> None:
    head = f"GET {PATH} HTTP/1.1\r\nhost: gate\r\nauthorization: Bearer {rig.token}\r\n\r\n"
    answer = raw(rig.gate.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Upgrade: websocket" in answer
    assert rig.upstream.heads == []


def test_an_answer_without_a_socket_is_an_answer(rig: Rig) -> None:
    body = json.dumps({"error": {"message": f"no socket for {MAIL}"}}).encode()
    fields = Headers({"content-type": "application/json", "content-length": str(len(body))})
    rig.upstream.refusal = Response(429, "Slow down", fields, body)
    with pytest.raises(InvalidStatus) as refused, rig.open():
        pass
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body)["error"]["message"] == "no socket for [REDACTED:email]"
    row = rig.row(refused.value.response.headers["x-tidegate-exchange"])
    assert (row["outcome"], row["status"]) == ("answered", 429)


def test_a_secret_in_the_head_is_refused(rig: Rig) -> None:
    assert rig.refused(headers={"x-note": KEY}) == (403, "finding")
    assert rig.upstream.heads == []


# ── explicit, and the SDK ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_through_an_explicit_proxy(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.says(LEAK)
    address, proxy = f"ws://127.0.0.1:{rig.upstream.port}/v1/responses", f"http://127.0.0.1:{rig.explicit}"
    headers = {"authorization": f"Bearer {rig.token}"}
    with connect(address, additional_headers=headers, proxy=proxy, compression=None, close_timeout=3) as socket:
        ask(socket, f"use {KEY}")
        assert hear(socket)[0]["error"]["code"] == "finding"
        ask(socket)
        assert text_of(hear(socket)) == MASKED
    assert KEY.encode() not in rig.upstream.data
    assert rig.upstream.heads[0]["authorization"] == f"Bearer {CREDENTIAL}"
    assert rig.row(socket)["outcome"] == "denied"


@pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager:DeprecationWarning"
)  # the SDK's way
def test_the_sdk_of_openai(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.says(LEAK)
    client = openai.OpenAI(base_url=f"{rig.gate.url}/openai/v1", api_key=rig.token)
    with client.responses.connect() as connection:
        connection.send({"type": "response.create", "model": "sample-small", "input": "hello"})
        said = ""
        for event in connection:
            if event.type == "response.output_text.delta":
                said += event.delta
            if event.type == "response.completed":
                assert event.response.output_text == MASKED
                break
        assert said == MASKED
        connection.send({"type": "response.create", "model": "sample-small", "input": f"use {KEY}"})
        refused = connection.recv()
        assert refused.type == "error"
        assert refused.error.code == "finding"


@pytest.fixture(scope="module", params=["tidegate run", "mitmdump"])
def secure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """An upstream behind TLS that would rather speak HTTP/2."""
    folder = tmp_path_factory.mktemp("socket-tls")
    trust = authority(folder, "127.0.0.1")
    options = ("--set", f"ssl_verify_upstream_trusted_ca={trust.ca}")
    with a_rig(folder, request.param, trust.context(["h2", "http/1.1"]), options) as rig:
        rig.upstream.plays = rig.upstream.says(LEAK)
        yield rig


@pytest.mark.parametrize("offers", [None, ["http/1.1"], ["http/1.1", "h2"]], ids=["no ALPN", "h1", "h1 and h2"])
def test_explicit_over_tls(secure: Rig, offers: list[str] | None) -> None:
    context = trusting(secure.gate.cwd)
    if offers:
        context.set_alpn_protocols(offers)
    address, proxy = f"wss://127.0.0.1:{secure.upstream.port}/v1/responses", f"http://127.0.0.1:{secure.explicit}"
    headers = {"authorization": f"Bearer {secure.token}"}
    with connect(address, additional_headers=headers, proxy=proxy, ssl=context, close_timeout=3) as socket:
        ask(socket)
        assert text_of(hear(socket)) == MASKED
        ask(socket, f"use {KEY}")
        assert hear(socket)[0]["error"]["code"] == "finding"
    assert KEY.encode() not in secure.upstream.data


def test_reverse_to_an_upstream_over_tls(secure: Rig) -> None:
    with secure.open() as socket:
        ask(socket)
        assert text_of(hear(socket)) == MASKED


# ── what is recorded ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_socket_is_recorded_and_shown_masked(rig: Rig) -> None:
    rig.upstream.plays = rig.upstream.says(LEAK, size=40)
    with rig.open() as socket:
        ask(socket, f"write to {MAIL}")
        hear(socket)
        ask(socket, f"use {KEY}")
        hear(socket)
    name = exchange_of(socket)
    row = rig.row(socket)
    assert row["streamed"] == 1
    found = json.loads(rig.shown(name, "--json"))
    sides = [each["from"] for each in found["messages"]]
    assert (sides[0], sides.count("client"), sides[-1]) == ("client", 1, "upstream")
    assert json.loads(found["messages"][0]["body"])["input"] == "write to [REDACTED:email]"
    assert json.loads(found["messages"][-1]["body"])["error"]["code"] == "finding"
    assert {(each["where"], each["action"]) for each in found["finding_list"]} >= {
        ("message 1: $.input", "redact"),
        ("message 2: $.input", "block"),
    }
    assert [each["detail"] for each in found["decisions"] if each["detail"].startswith("message")] == [
        "message 1",
        "message 2",
    ]
    page = rig.shown(name)
    assert "[REDACTED:card-visa]" in page
    sinks = {"page": page, "json": json.dumps(found), "log": rig.gate.log}
    sinks["file"] = recorded(rig.gate.cwd).decode("latin-1")
    for sink, text in sinks.items():
        planted = (KEY, CARD, MAIL, CREDENTIAL, rig.token)
        assert [secret for secret in planted if secret in text] == [], sink
    lines = [
        json.loads(line[line.index("{") :]) for line in rig.gate.log.splitlines() if '{"event": "exchange"' in line
    ]
    (line,) = [each for each in lines if each["exchange"] == name]
    assert (line["outcome"], line["reason"], line["status"]) == ("denied", "finding", 101)


def test_a_credential_that_the_upstream_repeats_is_taken_out(rig: Rig) -> None:
    event = {"type": "response.created", "note": f"you are {CREDENTIAL}"}
    rig.upstream.plays = rig.upstream.sends(event, hang=True)
    with rig.open() as socket:
        ask(socket)
        assert json.loads(socket.recv(timeout=5))["note"] == "you are [REDACTED:credential]"
    assert CREDENTIAL not in json.dumps(rig.row(socket))


def test_without_bodies_no_message_is_kept(tmp_path: Path) -> None:
    recording = {"mode": "strict", "keep": "none", "path": "recording.db"}
    with a_rig(tmp_path, recording=recording) as rig:
        with rig.open() as socket:
            ask(socket, "words of a prompt")
            hear(socket)
        row = rig.row(socket)
        assert json.loads(rig.shown(row["id"], "--json"))["messages"] is None
        rig.gate.stop()
        assert b"words of a prompt" not in recorded(tmp_path)


class Page:
    """mitmweb's own interface, as a person signed in to its page would use it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        for name, value in (
            ("authorization", "Bearer page-password"),
            ("content-type", "application/json"),
            ("cookie", "_mitmproxy_xsrf=x"),
            ("x-xsrftoken", "x"),
        ):
            request.add_header(name, value)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()


def test_a_page_shows_what_was_sent_and_injects_nothing(tmp_path: Path) -> None:
    port = free_port()
    options = ("--no-web-open-browser", "--set", f"web_port={port}", "--set", "web_password=page-password")
    with a_rig(tmp_path, "mitmweb", options=options) as rig, rig.open() as socket:
        page = Page(port)
        rig.upstream.plays = rig.upstream.says(LEAK, size=40)
        ask(socket, f"write to {MAIL}")
        hear(socket)
        ask(socket, f"use {KEY}")
        hear(socket)
        (flow,) = json.loads(page.ask("GET", "/flows")[1])
        shown = json.dumps(flow) + page.ask("GET", f"/flows/{flow['id']}/messages/content.data")[1]
        shown += page.ask("GET", f"/flows/{flow['id']}/messages/content/raw.json")[1]
        assert "REDACTED:email" in shown
        planted = (MAIL, CARD, KEY, CREDENTIAL, rig.token)
        assert [secret for secret in planted if secret in shown] == []
        told = len(rig.upstream.messages)
        for to_client in ("true", "false"):
            words = json.dumps({"type": "response.create", "input": KEY})
            command = {"arguments": ["@all", to_client, words]}
            page.ask("POST", "/commands/inject.websocket", command)
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.5)
        assert len(rig.upstream.messages) == told
        assert KEY.encode() not in rig.upstream.data
        ask(socket, "still here")
        assert text_of(hear(socket)) == MASKED
