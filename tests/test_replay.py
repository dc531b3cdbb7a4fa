"""Flows into a recording, out of it, and through mitmproxy's own engines, in real processes."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.io import tnetstring
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.test import tflow
from rich.console import Console
from sqlite_utils.utils import sqlite3

from tests.e2e.harness import BIN, ROOT, free_port, wait_for_port
from tidegate import headers
from tidegate.evidence import queries
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.model import Action, Finding, Outcome, Reason
from tidegate.policy.policy import Keep
from tidegate.replay import show
from tidegate.replay.flows import client_form, encode, load_recording, safe_state
from tidegate.replay.send import ReplayRefused, Sent, send, table
from tidegate.replay.serve import canonical, covers, serve

CANARY = "canary-4f1c9d2e"
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "PYTHONUNBUFFERED": "1"}
SSE = b'event: a\ndata: {"x": 1}\n\n: comment\n\ndata: [DONE]\n\n'


def made(
    *, body: bytes = b'{"model":"m","q":"hi"}', answer: bytes = b'{"ok":true}', reverse: bool = True, **more: Any
) -> Any:
    """Make a flow as the gate leaves it: routed, masked, answered."""
    flow = tflow.tflow(resp=True)
    flow.client_conn.proxy_mode = ProxyMode.parse("reverse:http://unset.invalid" if reverse else "regular")
    flow.request.scheme, flow.request.host, flow.request.port = "https", "api.example.com", 443
    flow.request.method, flow.request.path = "POST", more.get("path", "/v1/chat")
    flow.request.raw_content, flow.response.raw_content = body, answer
    flow.response.headers["content-type"] = more.get("kind", "application/json")
    return flow


def kept(flow: Any, exchange: str = "ex_1", path: str = "/openai/v1/chat", **more: Any) -> dict[str, Any]:
    reverse = isinstance(flow.client_conn.proxy_mode, ReverseMode)
    target = ("http", "unset.invalid", 80) if reverse else ("https", "api.example.com", 443)
    state = safe_state(flow, Keep.REDACTED, exchange, path, target, **more)
    assert state is not None
    return state


def recording(path: Path, *states: dict[str, Any] | None, **columns: Any) -> Path:
    recorder = Recorder(path, encode)
    recorder.start()
    for at, state in enumerate(states, 1):
        known = {"method": "POST", "path": "/openai/v1/chat", "outcome": Outcome.ANSWERED, "status": 200} | columns
        recorder.seal(ExchangeRecord(f"ex_{at}", at, **known), state)
    recorder.close()
    return path


# ── what is kept ─────────────────────────────────────────────────────────────

SECRET_FIELDS = (
    "authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "x-auth-request-user",
    "x-amz-security-token", "ocp-apim-subscription-key", "X-My-Secret",
)  # fmt: skip


def test_no_credential_is_in_a_kept_state() -> None:
    flow = made()
    flow.backup()
    for name in (*SECRET_FIELDS, *headers.CREDENTIALS):
        flow.request.headers[name] = f"Bearer {CANARY}"
    for name in ("set-cookie", "authorization", "www-authenticate"):
        flow.response.headers[name] = CANARY
    flow.request.path = f"/v1/chat?key={CANARY}&alt=sse&access_token={CANARY}"
    flow.metadata["proxyauth"] = ("me", CANARY)
    flow.metadata["other"] = object()
    flow.comment = flow.marked = CANARY
    flow.client_conn.sni = flow.server_conn.sni = CANARY
    flow.client_conn.peername = (CANARY, 1)
    flow.request.trailers = flow.response.trailers = flow.request.headers
    flow.error = tflow.terr(CANARY)
    flow.backup(force=True)
    blob = encode(kept(flow, path=flow.request.path))
    assert CANARY.encode() not in blob
    assert b"alt=sse" in blob
    assert b"backup;0:~" in blob


def test_an_uninspected_head_keeps_only_plain_fields() -> None:
    flow = made()
    flow.request.headers["x-note"] = CANARY
    flow.request.headers["user-agent"] = "sdk/1"
    blob = encode(kept(flow, path=f"/openai?q={CANARY}", inspected=False))
    assert CANARY.encode() not in blob
    assert b"sdk/1" in blob


def test_a_policy_that_keeps_nothing_gets_nothing() -> None:
    assert safe_state(made(), Keep.NONE, "ex_1") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
    | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(alphabet="ab.", max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_the_encoder_writes_what_mitmproxy_reads(value: Any) -> None:
    assert tnetstring.loads(encode(value)) == tnetstring.loads(tnetstring.dumps(value))


def test_the_encoder_refuses_what_mitmproxy_refuses() -> None:
    with pytest.raises(ValueError, match="unserializable"):
        encode({"a": object()})


# ── out of a recording ───────────────────────────────────────────────────────


def test_a_flow_comes_back_in_routed_form(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.db", kept(made()), reason=Reason.FINDING, caller="alice", identity="corp")
    (flow,) = load_recording(path)
    assert (flow.request.url, flow.request.raw_content) == (
        "https://api.example.com/v1/chat",
        b'{"model":"m","q":"hi"}',
    )
    assert flow.response is not None
    assert flow.response.raw_content == b'{"ok":true}'
    assert flow.comment == "answered: finding, corp:alice"
    assert not flow.live


@pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "direct"])
def test_client_form_is_how_the_client_asked(tmp_path: Path, reverse: bool) -> None:
    asked = "/openai/v1/chat" if reverse else "/v1/chat"
    path = recording(tmp_path / "r.db", kept(made(reverse=reverse), path=asked))
    (flow,) = load_recording(path)
    client_form(flow)
    assert isinstance(flow.client_conn.proxy_mode, ReverseMode) is reverse
    where = ("http", "unset.invalid", 80) if reverse else ("https", "api.example.com", 443)
    assert (flow.request.scheme, flow.request.host, flow.request.port, flow.request.path) == (*where, asked)


def test_a_masked_body_has_its_own_length_and_no_encoding(tmp_path: Path) -> None:
    flow = made()
    flow.request.headers["content-encoding"] = "gzip"
    flow.request.headers["content-length"] = "9999"
    (loaded,) = load_recording(recording(tmp_path / "r.db", kept(flow)))
    client_form(loaded)
    assert "content-encoding" not in loaded.request.headers
    assert loaded.request.headers["content-length"] == str(len(b'{"model":"m","q":"hi"}'))


def test_blobs_are_a_file_that_mitmproxy_reads(tmp_path: Path) -> None:
    from mitmproxy.io import read_flows_from_paths

    (tmp_path / "x.mitm").write_bytes(encode(kept(made())) + encode(kept(made(reverse=False))))
    assert len(read_flows_from_paths([tmp_path / "x.mitm"])) == 2


@pytest.mark.parametrize("blob", [encode({"version": 99}), b"garbage", b"", encode({"version": 21, "type": "http"})])
def test_a_state_nobody_can_read_is_one_sentence(tmp_path: Path, blob: bytes) -> None:
    path = recording(tmp_path / "r.db", kept(made()))
    db = sqlite3.connect(path)
    db.execute("UPDATE flow_state SET state = ?, format = 99", [blob])
    db.commit()
    db.close()
    with pytest.raises(RecordingError, match=r"exchange ex_1 holds a flow of format 99; accepted: format 21 or older"):
        load_recording(path)


def test_show_has_the_bodies_and_no_value(tmp_path: Path) -> None:
    found = Finding("secrets.aws", "secrets", "$.q", 3, 23, Action.REDACT)
    flow = made(body=b'{"q":"my [REDACTED:aws] \\u001b[31mred"}', answer=SSE)
    path = recording(tmp_path / "r.db", kept(flow), prompt_findings=(found,), streamed=True, model="\x1b[2Jm")
    whole = show.details(path, "ex_")
    assert json.loads(json.dumps(whole))["response"]["body"] == SSE.decode()
    console = Console(record=True, width=160)
    console.print(show.view(whole))
    text = console.export_text()
    for expected in ("[REDACTED:aws]", "$.q", "3-23", "data: [DONE]", "streamed"):
        assert expected in text
    assert "\x1b" not in text


def test_show_says_that_no_bodies_were_kept(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.db", None)
    console = Console(record=True)
    console.print(show.view(show.details(path, "ex_1")))
    assert "No bodies were kept." in console.export_text()


# ── matching ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("recorded", "live", "same"),
    [
        ("plain", "plain", True),
        ("plain", "other", False),
        ("[REDACTED:card]", "4111 1111", True),
        ("pay [REDACTED:card] now", "pay 4111 now", True),
        ("pay [REDACTED:card] now", "pay 4111 later", False),
        ("pay [REDACTED] now", "pay it now", True),
        ("[REDACTED:a][REDACTED:b]", "", True),
        ("a[REDACTED:a]a", "a", False),
        ("a [REDACTED:x] b [REDACTED:y] c", "a 1 b 2 b 3 c", True),
        ("a [REDACTED:x] b [REDACTED:y] c", "a 1 c", False),
    ],
)
def test_a_placeholder_stands_for_any_text(recorded: str, live: str, same: bool) -> None:
    assert covers(recorded, live) is same


@given(st.lists(st.text(alphabet="ab", max_size=3), min_size=1, max_size=4), st.text(alphabet="ab", max_size=10))
def test_covering_is_what_a_pattern_would_say(pieces: list[str], live: str) -> None:
    pattern = ".*".join(map(re.escape, pieces))
    assert covers("[REDACTED:x]".join(pieces), live) is bool(re.fullmatch(pattern, live))


@pytest.mark.parametrize("body", [b"", b"text", b"\xff", b'{"a":', b"[" * 100_000])
def test_what_is_no_json_is_its_own_spelling(body: bytes) -> None:
    assert canonical(body) == body


def test_json_has_one_spelling() -> None:
    assert canonical(b'{"b": 1, "a":"\\u00e9"}') == canonical('{"a":"é","b":1}'.encode())


# ── the engines, in processes of their own ───────────────────────────────────


@contextlib.contextmanager
def process(*command: str | Path, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENV, cwd=ROOT
    ) as running:
        try:
            if port is not None:
                wait_for_port(port, running)
            yield running
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()


def ask(url: str, body: bytes | None = None, **fields: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in fields.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read(), dict(refused.headers)


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers every POST with what it was sent, and counts."""

    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body))
        answer = b'{"got":' + body + b"}"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("set-cookie", f"session={CANARY}")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    handler = type("Handler", (Echo,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, handler.seen
        server.shutdown()


SERVE = """
    import asyncio, sys
    from pathlib import Path
    from tidegate.replay.flows import load_recording
    from tidegate.replay.serve import serve

    asyncio.run(serve(load_recording(Path(sys.argv[1])), port=int(sys.argv[2]), ignore_content=len(sys.argv) > 3))
"""


@pytest.mark.e2e
def test_serve_answers_from_the_recording_and_sends_nothing(tmp_path: Path) -> None:
    masked = made(body=b'{"model":"m","q":"my card is [REDACTED:card]."}', answer=b'{"masked":1}')
    stream = made(body=b'{"model":"m","stream":true}', answer=SSE, kind="text/event-stream")
    stream.response.headers["transfer-encoding"] = "chunked"
    broken = made(body=b'{"model":"m","q":"broke off"}')
    broken.error = tflow.terr()
    direct = made(body=b'{"q":"direct"}', answer=b'{"direct":1}', reverse=False)
    path = recording(
        tmp_path / "r.db", kept(made()), kept(masked), kept(stream), kept(broken), kept(direct, path="/v1/chat")
    )
    port = free_port()
    with process(sys.executable, "-c", textwrap.dedent(SERVE), path, str(port), port=port):
        url = f"http://127.0.0.1:{port}/openai/v1/chat"
        for _ in range(2):  # as often as asked
            status, body, fields = ask(url, b'{"q": "hi", "model": "m"}', authorization="Bearer x")
            assert (status, body, fields["x-tidegate-replayed"]) == (200, b'{"ok":true}', "ex_1")
        assert ask(url, b'{"model":"m","q":"my card is 4111 1111 1111 1111."}')[:2] == (200, b'{"masked":1}')
        assert ask(url, b'{"model":"m","stream":true}')[:2] == (200, SSE)
        assert ask(f"http://127.0.0.1:{port}/v1/chat", b'{"q":"direct"}')[:2] == (200, b'{"direct":1}')
        for place, question in (
            ("/openai/v1/chat", b'{"q":"other"}'),
            ("/other", b'{"model":"m","q":"hi"}'),
            ("/openai/v1/chat", b'{"model":"m","q":"broke off"}'),
            ("/openai/v1/chat", None),
        ):
            status, body, fields = ask(f"http://127.0.0.1:{port}{place}", question)
            assert status == 404
            assert json.loads(body)["error"]["code"] == "replay_unmatched"
            assert fields["x-should-retry"] == "false"


@pytest.mark.e2e
def test_serve_can_ignore_bodies_and_opens_no_connection(tmp_path: Path, echo: Any) -> None:
    upstream, seen = echo
    flow = made(path="/v1/chat")
    flow.request.scheme, flow.request.host, flow.request.port = "http", "127.0.0.1", upstream
    path, port = recording(tmp_path / "r.db", kept(flow)), free_port()
    with process(sys.executable, "-c", textwrap.dedent(SERVE), path, str(port), "any", port=port):
        assert ask(f"http://127.0.0.1:{port}/openai/v1/chat", b'{"anything":1}')[:2] == (200, b'{"ok":true}')
        assert ask(f"http://127.0.0.1:{port}/else", b"{}", host=f"127.0.0.1:{upstream}")[0] == 404
    assert seen == []


async def test_serve_refuses_to_start_with_nothing_to_say() -> None:
    with pytest.raises(RecordingError, match="found no recorded answer with a body"):
        await serve([])


SEND = """
    import asyncio, json, sys, dataclasses
    from pathlib import Path
    from tidegate.replay.flows import load_recording
    from tidegate.replay.send import send
    from mitmproxy.proxy.mode_specs import ReverseMode
    from mitmproxy import http

    class Gate:
        name = "gate"
        def requestheaders(self, flow):
            assert flow.is_replay == "request"
            flow.comment = f"{type(flow.client_conn.proxy_mode).__name__} {flow.request.path}"
        def request(self, flow):
            if b"refuse" in flow.request.raw_content:
                flow.response = http.Response.make(403, b"{}", {"x-tidegate-exchange": "ex_new"})
                return
            flow.request.path = flow.request.path + "#" + flow.comment.split()[0]
            flow.request.scheme, flow.request.host, flow.request.port = "http", "127.0.0.1", int(sys.argv[2])

    flows = load_recording(Path(sys.argv[1]))
    sent = asyncio.run(send(flows, Gate(), live=True, seconds=20))
    print(json.dumps([dataclasses.asdict(each) for each in sent]))
"""


@pytest.mark.e2e
def test_send_crosses_the_gate_in_the_form_the_client_used(tmp_path: Path, echo: Any) -> None:
    upstream, seen = echo
    path = recording(
        tmp_path / "r.db",
        kept(made(answer=b'{"got":{"model":"m","q":"hi"}}'), "ex_1"),
        kept(made(reverse=False), "ex_2", path="/v1/chat"),
        kept(made(body=b'{"q":"refuse"}'), "ex_3"),
        kept(made(body=None), "ex_4"),
    )
    command = [sys.executable, "-c", textwrap.dedent(SEND), str(path), str(upstream)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENV, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert [(each["exchange"], each["status"], each["same"]) for each in sent] == [
        ("ex_1", 200, True),
        ("ex_2", 200, False),
        ("ex_3", 403, False),
        ("ex_4", None, None),
    ]
    assert sent[2]["sent_as"] == "ex_new"
    assert sent[3]["error"] == "Can't replay flow with missing content."
    assert [place for place, _ in seen] == ["/openai/v1/chat#ReverseMode", "/v1/chat#RegularMode"]


def test_the_table_of_a_replay_says_what_changed() -> None:
    console = Console(record=True, width=140)
    gone = Sent("ex_2", None, 200, None, None, "no answer in time")
    console.print(table([Sent("ex_1", "ex_9", 200, 403, False), gone]))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[1:] == ["ex_1 ex_9 200 403 another", "ex_2 - 200 - no answer in time"]


async def test_send_refuses_without_the_word(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.db", kept(made()))
    with pytest.raises(ReplayRefused) as error:
        await send(load_recording(path), object())
    assert str(error.value) == (
        "replay send sends recorded requests to the model provider again; accepted: --live, when that is meant"
    )


@pytest.mark.e2e
def test_recorder_records_in_a_plain_mitmdump(tmp_path: Path, echo: Any) -> None:
    upstream, _ = echo
    port, path = free_port(), tmp_path / "plain.db"
    options = ["--mode", f"reverse:http://127.0.0.1:{upstream}@{port}", "--set", f"confdir={tmp_path}"]
    script = ["-s", ROOT / "addons" / "recorder.py", "--set", f"recording={path}"]
    with process(BIN / "mitmdump", "-q", "--listen-host", "127.0.0.1", *options, *script, port=port):
        status, body, _ = ask(
            f"http://127.0.0.1:{port}/v1/x?key={CANARY}", b'"hello"', authorization=f"Bearer {CANARY}"
        )
        assert (status, body) == (200, b'{"got":"hello"}')
        time.sleep(0.2)
        living = b"".join(each.read_bytes() for each in tmp_path.glob("plain.db*"))  # the -wal too
    assert b"hello" in living
    assert CANARY.encode() not in living + b"".join(each.read_bytes() for each in tmp_path.glob("plain.db*"))
    (row,) = queries.list_flows(path)
    assert (row["outcome"], row["status"], row["path"], row["connection"]) == ("answered", 200, "/v1/x", "127.0.0.1")
    (flow,) = load_recording(path)
    assert flow.request.raw_content == b'"hello"'


@pytest.mark.e2e
def test_recorder_refuses_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database" * 500)
    script = ["-s", ROOT / "addons" / "recorder.py", "--set", f"recording={tmp_path / 'x.db'}"]
    with process(BIN / "mitmdump", "-p", str(free_port()), "--set", f"confdir={tmp_path}", *script) as running:
        output = running.communicate(timeout=30)[0].decode()
    assert running.returncode == 1
    assert "cannot be opened as a recording" in output


@pytest.mark.e2e
def test_a_recording_opens_in_mitmweb(tmp_path: Path) -> None:
    path, port = recording(tmp_path / "r.db", kept(made()), kept(made(answer=SSE)), caller="alice"), free_port()
    web = ["--set", "web_open_browser=false", "--set", f"web_port={port}", "--set", "web_password=pass"]
    script = [
        "--no-server",
        "-s",
        ROOT / "addons" / "replay.py",
        "--set",
        f"recording={path}",
        "--set",
        f"confdir={tmp_path}",
    ]
    with process(BIN / "mitmweb", *web, *script, port=port):
        shown: list[Any] = []
        for _ in range(50):
            shown = json.loads(ask(f"http://127.0.0.1:{port}/flows", authorization="Bearer pass")[1])
            if len(shown) == 2:
                break
            time.sleep(0.1)
    assert [(each["request"]["host"], each["request"]["path"], each["comment"]) for each in shown] == [
        ("api.example.com", "/v1/chat", "answered, alice")
    ] * 2


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("/nowhere/r.db", "found no file; accepted: a recording made by tidegate"),
        ("", "accepted: --set recording=PATH"),
    ],
)
def test_a_viewer_without_a_recording_says_so(tmp_path: Path, option: str, said: str) -> None:
    given = ["--set", f"recording={option}"] if option else []
    web = ["--set", "web_open_browser=false", "--set", f"web_port={free_port()}", "--set", f"confdir={tmp_path}"]
    with process(BIN / "mitmweb", "--no-server", *web, "-s", ROOT / "addons" / "replay.py", *given) as running:
        output = running.communicate(timeout=30)[0].decode()
    assert running.returncode == 1
    assert said in " ".join(output.split())
