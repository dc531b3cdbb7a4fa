"""However a stream ends, at whichever frame: evidence is written, nothing held leaves, and memory stays bounded.

``TIDEGATE_CAMPAIGN=1`` streams 100 MB where the default is 20.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import Received, Upstream, chat, chat_sse, policy, post, tidegate_run, token
from tests.e2e.wiring import CHAT, Reply, Stage
from tests.wire import FAMILIES, FORMS, Said, every, pieces

pytestmark = pytest.mark.e2e

CARD = "4111111111111111"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
TEXT = f"see {CARD} now. "
MEGABYTES = 100 if os.environ.get("TIDEGATE_CAMPAIGN") else 20
RSS = 420
"""MB that the process may have after streams of any length; 250 to 320 of them are rules and Python."""

MESSAGE = [{"role": "user", "content": "hi"}]
TURN = {"parts": [{"text": "hi"}]}
REQUESTS = {
    "chat": (CHAT, {"model": "m", "messages": MESSAGE, "stream": True}),
    "ollama": ("/ollama/api/chat", {"model": "m", "messages": MESSAGE}),
    "gemini array": ("/gemini/v1beta/models/m:streamGenerateContent", {"contents": [TURN]}),
    "converse": (
        "/bedrock/model/m/converse-stream",
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    ),
}
"""A stream in each framing: its path and a request for it."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ends")
    with Upstream() as upstream:
        connections = [
            {"name": name, "dialect": name, "upstream": upstream.url, "serve": {"path": f"/{name}"}}
            for name in ("openai", "ollama", "gemini", "bedrock")
        ]
        limits = {"response": {"bytes": "512MiB", "idle": "2s", "first_byte": "30s"}}
        recording = {"mode": "strict", "keep": "none", "path": "recording.db"}
        inspection = {
            "prompt": dict.fromkeys(("secrets", "pii", "injection", "exfil"), "allow"),
            "response": {"secrets": "block", "pii": "redact", "injection": "allow", "exfil": "redact"},
        }
        path = policy(
            folder, upstream.url, connections=connections, limits=limits, recording=recording, inspection=inspection
        )
        access = token(folder)
        with tidegate_run(path) as gate:
            yield Stage(gate, upstream, access)


@pytest.fixture
def stage(running: Stage) -> Stage:
    running.fresh()
    return running


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(label: str, more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {label}\r\n{more}transfer-encoding: chunked\r\n\r\n".encode()


def asked(stage: Stage, name: str) -> bytes:
    path, body = REQUESTS[name]
    return post(path, json.dumps(body).encode(), stage.auth)


def frames(name: str) -> list[bytes]:
    return pieces(name, FAMILIES[name](Said(TEXT), every(5)))


def sends(stage: Stage, name: str, parts: Sequence[bytes], ending: str) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head(FORMS[name].label) + b"".join(chunk(part) for part in parts))
        await writer.drain()
        await asyncio.sleep(0.1)
        if ending == "reset":
            link = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif ending == "closed":
            writer.close()
        else:
            await asyncio.sleep(30)

    stage.upstream.does(answer)


def nothing_of_the_card(body: bytes) -> None:
    assert b"4111" not in body
    assert b"11111" not in body


@pytest.mark.parametrize("ending", ["closed", "reset"])
@pytest.mark.parametrize("name", REQUESTS)
def test_an_upstream_that_breaks_off_at_any_frame(stage: Stage, name: str, ending: str) -> None:
    every_frame = frames(name)
    for count in range(1, len(every_frame)):
        sends(stage, name, every_frame[:count], ending)
        with stage.client() as client:
            client.socket.settimeout(30)
            reply = client.ask(asked(stage, name))
        nothing_of_the_card(reply.body)
        assert stage.record(reply.id, 15)["outcome"] == "failed", count


@pytest.mark.parametrize("name", REQUESTS)
def test_an_upstream_that_stalls_inside_a_value(stage: Stage, name: str) -> None:
    """That the upstream is cut then, ``test_limits`` shows."""
    sends(stage, name, frames(name)[:3], "silent")
    with stage.client() as client:
        client.socket.settimeout(30)
        reply = client.ask(asked(stage, name))
    nothing_of_the_card(reply.body)
    assert stage.record(reply.id, 15)["reason"] == "answer_idle"


@pytest.mark.parametrize("name", REQUESTS)
def test_an_upstream_that_falls_silent_behind_what_is_blocked_is_cut_within_a_second(stage: Stage, name: str) -> None:
    said = pieces(name, FAMILIES[name](Said(f"the key {KEY} and more"), lambda _: ["the key ", KEY, " and", " more"]))
    stage.upstream.says(head(FORMS[name].label) + b"".join(chunk(part) for part in said[:-1]))
    with stage.client() as client:
        client.socket.settimeout(30)
        reply = client.ask(asked(stage, name))
        told = time.monotonic()
        while stage.upstream.requests[0].connection not in stage.upstream.closed and time.monotonic() < told + 10:
            time.sleep(0.01)
        spent = time.monotonic() - told
    assert KEY[:12].encode() not in reply.body
    assert spent < 1.0
    assert stage.record(reply.id, 15)["reason"] == "answer_finding"


@pytest.mark.parametrize("name", REQUESTS)
def test_a_client_that_leaves_inside_a_value(stage: Stage, name: str) -> None:
    sends(stage, name, frames(name)[:3], "silent")
    before = stage.last()["id"] if name != next(iter(REQUESTS)) else ""
    with stage.client() as client:
        client.send(asked(stage, name))
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += client.socket.recv(65536)
    nothing_of_the_card(seen)
    row = stage.after(before, 20) if before else stage.last(20)
    assert row["outcome"] in ("aborted", "denied")


# ── compressed ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_compressed_stream_stays_live(stage: Stage) -> None:
    """Each event is flushed as a sync flush, and the upstream waits until the client has it before the next."""
    machine = zlib.compressobj(wbits=31)
    events = chat_sse(f"Here it is. Card: {CARD}. So much for that. ", size=6)
    arrived = 0

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head("text/event-stream", "content-encoding: gzip\r\n"))
        for number, event in enumerate(events):
            packed = machine.compress(event) + machine.flush(zlib.Z_SYNC_FLUSH)
            writer.write(chunk(packed[:3]) + chunk(packed[3:]))
            await writer.drain()
            for _ in range(1000):
                if arrived > number:
                    break
                await asyncio.sleep(0.01)
        writer.write(chunk(machine.flush()) + b"0\r\n\r\n")

    stage.upstream.does(answer)
    begun, body = time.monotonic(), b""
    with stage.client() as client:
        client.socket.settimeout(30)
        client.send(post(CHAT, chat("hi", stream=True), stage.auth))
        while b"\r\n0\r\n\r\n" not in body:
            body += client.socket.recv(65536)
            arrived = body.count(b"\n\n")
    assert time.monotonic() - begun < 10, "an event waited for the next one"
    assert b"content-encoding" not in body.partition(b"\r\n\r\n")[0].lower()
    nothing_of_the_card(body)
    assert b"REDACTED" in body


@pytest.mark.parametrize("broken", ["cut off", "trailing"])
def test_a_compressed_stream_that_is_broken_is_refused(stage: Stage, broken: str) -> None:
    data = zlib.compress(b"".join(chat_sse("some words of it. ")), wbits=31)
    data = data[:-3] if broken == "cut off" else data + b"more"

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head("text/event-stream", "content-encoding: gzip\r\n") + chunk(data) + b"0\r\n\r\n")

    stage.upstream.does(answer)
    reply = asks(stage)
    assert reply.error_code == "answer_malformed"
    assert stage.record(reply.id, 15)["reason"] == "answer_malformed"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def asks(stage: Stage) -> Reply:
    with stage.client() as client:
        client.socket.settimeout(240)
        return client.ask(post(CHAT, chat("hi", stream=True), stage.auth))


def rss(stage: Stage) -> int:
    """Return the resident memory of the gate, in MB."""
    status = Path(f"/proc/{stage.gate.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024


def test_ten_thousand_deltas_of_one_character(stage: Stage) -> None:
    events = chat_sse("x" * 10_000, size=1)
    streamed(stage, [b"".join(events[at : at + 50]) for at in range(0, len(events), 50)])
    assert rss(stage) < RSS


def test_a_long_stream(stage: Stage) -> None:
    event = chat_sse("word " * 3200, size=16_000)[1]
    count = MEGABYTES * 1_000_000 // len(event)
    streamed(stage, [event] * count)
    assert rss(stage) < RSS


def streamed(stage: Stage, parts: Sequence[bytes]) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head("text/event-stream"))
        for part in parts:
            writer.write(chunk(part))
            await writer.drain()
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    stage.upstream.does(answer)
    size = 0
    with stage.client() as client:
        client.socket.settimeout(240)
        client.send(post(CHAT, chat("hi", stream=True), stage.auth))
        tail = b""
        while b"\r\n0\r\n\r\n" not in tail:
            data = client.socket.recv(1 << 20)
            assert data, "the stream broke off"
            size += len(data)
            tail = (tail + data)[-64:]
    assert size > 0.9 * sum(map(len, parts))
