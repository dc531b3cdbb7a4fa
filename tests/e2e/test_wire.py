"""What lets traffic around an addon in mitmproxy, done to a real process: each way is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import brotli  # type: ignore[import-untyped]
import h2.config
import h2.connection
import pytest
import zstandard

from tests.e2e.harness import (
    ANSWER,
    CREDENTIAL,
    Received,
    Upstream,
    chat,
    chat_sse,
    free_port,
    http_answer,
    mitm,
    policy,
    post,
    recorded,
    tidegate_run,
    token,
)
from tests.e2e.wiring import CARD, CHAT, KEY, MAIL, MESSAGES, Reply, Stage

pytestmark = pytest.mark.e2e

SAID = "unseen-words-of-the-upstream"
QUICK = 3.0
"""Seconds within which a client must have its answer: mitmproxy by itself would leave it hanging."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("wire")
    with Upstream() as upstream:
        path = policy(folder, upstream.url, limits={"request": {"bytes": "1MiB"}})
        access, regular = token(folder), free_port()
        with tidegate_run(path, "--mode", "reverse", "--mode", f"regular@{regular}") as gate:
            stage = Stage(gate, upstream, access, regular)
            yield stage
            stage.fresh()
        everything = b"".join(stage.seen)
        assert access.encode() not in everything, "the client's credential went upstream"
        assert CREDENTIAL.encode() in everything
        assert CREDENTIAL not in gate.log
        assert access not in gate.log
        assert KEY not in gate.log
        data = recorded(folder)
        for each in (CREDENTIAL, access, KEY, MAIL):
            assert each.encode() not in data


@pytest.fixture
def stage(running: Stage) -> Stage:
    running.fresh()
    return running


def answer(text: str) -> bytes:
    """A whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({**ANSWER, "choices": [choice]}).encode()


def refused(stage: Stage, reply: Reply, status: int, code: str) -> None:
    """The client reads the dialect's error, and nothing at all was sent upstream."""
    assert (reply.status, reply.code) == (status, code)
    assert stage.upstream.data == b""
    row = stage.record(reply.id)
    assert (row["outcome"], row["reason"], row["status"]) == ("denied", code, status)


# ── other protocols ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_raw_tcp_after_connect_reaches_nobody(stage: Stage) -> None:
    with stage.client(stage.regular) as client:
        target = f"127.0.0.1:{stage.upstream.port}"
        opened = client.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "CONNECT")
        assert opened.status == 200
        client.send(b"\x00\x01raw bytes with " + KEY.encode() + b"\n" * 3)
        client.rest(1.0)
    assert stage.upstream.data == b""
    assert stage.upstream.connections == 0


def test_a_greeting_from_the_server_side_is_not_awaited(stage: Stage) -> None:
    """Protocols in which the server speaks first make a proxy connect upstream to hear it."""
    with stage.client(stage.regular) as client:
        target = f"127.0.0.1:{stage.upstream.port}"
        client.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "CONNECT")
        assert client.rest(1.0) == b""
    assert stage.upstream.connections == 0


def test_tls_that_carries_no_http_reaches_nobody(stage: Stage) -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with stage.client(stage.regular) as client:
        target = f"127.0.0.1:{stage.upstream.port}"
        client.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "CONNECT")
        client.secure(trusting, "127.0.0.1")
        client.send(b"\x05\x01\x00 not http " + KEY.encode() + b"\r\n\r\n")
        client.rest(1.0)
    assert stage.upstream.data == b""
    assert stage.upstream.connections == 0


@pytest.mark.parametrize("protocol", ["websocket", "mystery", "h2c, mystery", "TLS/1.2"])
def test_a_client_that_asks_for_another_protocol_is_refused(stage: Stage, protocol: str) -> None:
    reply = stage.ask(post(CHAT, chat("hi"), stage.auth, "connection: upgrade", f"upgrade: {protocol}"))
    assert reply.status == 400
    assert reply.code == "protocol"
    assert stage.upstream.data == b""


def test_an_upgrade_to_h2c_is_not_passed_on(stage: Stage) -> None:
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    reply = stage.ask(post(CHAT, chat("hi"), stage.auth, *offer))
    assert reply.said == "hello"
    assert not {"upgrade", "http2-settings", "connection"} & set(stage.upstream.requests[0].headers)


@pytest.mark.parametrize("status", ["101 Switching Protocols", "103 Early Hints", "102 Processing"])
def test_an_informational_answer_is_refused(stage: Stage, status: str) -> None:
    head = f"HTTP/1.1 {status}\r\nconnection: upgrade\r\nupgrade: mystery\r\nlink: <{SAID}>\r\n\r\n".encode()
    stage.upstream.says(head + b"\x00" + SAID.encode() + http_answer(answer(SAID)))
    with stage.client() as client:
        reply = client.ask(post(CHAT, chat("hi"), stage.auth))
        left = client.rest(0.3)
    assert (reply.status, reply.code) == (502, "upstream_protocol")
    assert SAID.encode() not in reply.body + left
    assert SAID not in str(reply.headers)
    assert stage.record(reply.id)["reason"] == "upstream_protocol"


# ── encodings ────────────────────────────────────────────────────────────────────────────────────────────────────────

Squeeze = Callable[[bytes], bytes]


def bare_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ENCODINGS: list[tuple[str, Squeeze]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("br", brotli.compress),
    ("zstd", zstd),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    ("identity", bytes),
]
IDS = ["gzip", "x-gzip", "br", "zstd", "deflate-zlib", "deflate-bare", "stacked", "identity"]


@pytest.mark.parametrize(("name", "squeeze"), ENCODINGS, ids=IDS)
def test_a_key_in_a_compressed_prompt_is_found(stage: Stage, name: str, squeeze: Squeeze) -> None:
    reply = stage.ask(post(CHAT, squeeze(chat(f"why does {KEY} fail?")), stage.auth, f"content-encoding: {name}"))
    refused(stage, reply, 403, "finding")


@pytest.mark.parametrize(("name", "squeeze"), ENCODINGS, ids=IDS)
def test_a_compressed_prompt_goes_upstream_plain_and_masked(stage: Stage, name: str, squeeze: Squeeze) -> None:
    reply = stage.ask(post(CHAT, squeeze(chat(f"write to {MAIL}")), stage.auth, f"content-encoding: {name}"))
    assert reply.said == "hello"
    [sent] = stage.upstream.requests
    assert json.loads(sent.body)["messages"][0]["content"] == "write to [REDACTED:email]"
    assert "content-encoding" not in sent.headers


BOMB = b'{"model":"sample-small","messages":[{"role":"user","content":"' + b"a" * 40_000_000 + b'"}]}'


@pytest.mark.parametrize(
    ("name", "body", "status", "code"),
    [
        ("gzip", gzip.compress(BOMB), 413, "body_too_large"),
        ("gzip", gzip.compress(b" " * 1_000_000), 400, "body_encoding"),
        ("br", brotli.compress(BOMB, quality=4), None, None),
        ("zstd", zstd(BOMB), None, None),
        ("deflate", zlib.compress(BOMB), 413, "body_too_large"),
        ("gzip, gzip", gzip.compress(gzip.compress(BOMB)), None, None),
        ("gzip, gzip, gzip, gzip, gzip", gzip.compress(b"{}"), 415, "body_encoding"),
        ("compress", chat("hi"), 415, "body_encoding"),
        ("gzip", gzip.compress(chat("hi"))[:-9], 400, "body_encoding"),
        ("gzip", gzip.compress(chat("hi")) + b"tail", 400, "body_encoding"),
        ("br", brotli.compress(chat("hi"))[:-2], 400, "body_encoding"),
        ("zstd", zstd(chat("hi"))[:-2], 400, "body_encoding"),
        ("gzip", chat("hi"), 400, "body_encoding"),
    ],
    ids=[
        "gzip-bomb", "gzip-ratio", "br-bomb", "zstd-bomb", "deflate-bomb", "nested-bomb", "too-many-layers", "unknown",
        "gzip-cut", "gzip-tail", "br-cut", "zstd-cut", "gzip-lie",
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(
    stage: Stage, name: str, body: bytes, status: int | None, code: str | None
) -> None:
    begun = time.monotonic()
    reply = stage.ask(post(CHAT, body, stage.auth, f"content-encoding: {name}"))
    assert time.monotonic() - begun < QUICK
    refused(stage, reply, status or reply.status, code or reply.code)
    assert reply.code in ("body_encoding", "body_too_large")


@pytest.mark.parametrize(("name", "squeeze"), ENCODINGS, ids=IDS)
def test_a_compressed_answer_is_masked(stage: Stage, name: str, squeeze: Squeeze) -> None:
    body = squeeze(answer(f"the key is {KEY}, the card {CARD}"))
    stage.upstream.says(http_answer(body, extra=f"content-encoding: {name}\r\n"))
    reply = stage.ask(post(CHAT, chat("hi"), stage.auth))
    assert reply.said == "the key is [REDACTED:aws-access-key], the card [REDACTED:card-visa]"
    assert "content-encoding" not in reply.headers
    assert stage.upstream.requests[0].headers["accept-encoding"] == "identity"


def test_a_compressed_answer_that_is_cut_or_a_bomb_is_refused(stage: Stage) -> None:
    for body in (gzip.compress(answer("hi"))[:-5], gzip.compress(b" " * 50_000_000)):
        stage.upstream.says(http_answer(body, extra="content-encoding: gzip\r\n"))
        reply = stage.ask(post(CHAT, chat("hi"), stage.auth))
        assert (reply.status, reply.code) == (502, "answer_malformed")


@pytest.mark.parametrize("name", ["made-up", "gzip, made-up", "gzip, gzip, gzip, gzip, gzip"])
def test_a_stream_in_a_coding_nobody_knows_is_refused(stage: Stage, name: str) -> None:
    squeezed = gzip.compress(b"".join(chat_sse(f"{SAID} {KEY}")))
    stage.upstream.streams([squeezed], head=f"content-encoding: {name}\r\n")
    reply = stage.ask(post(CHAT, chat("hi", stream=True), stage.auth))
    assert (reply.status, reply.code) == (502, "upstream_protocol")
    assert squeezed[:10] not in reply.body


@pytest.mark.parametrize("name", ["gzip", "gzip, identity"])
def test_a_compressed_stream_is_undone_and_masked(stage: Stage, name: str) -> None:
    squeezed = gzip.compress(b"".join(chat_sse(f"{SAID} {KEY}")))
    stage.upstream.streams([squeezed[:40], squeezed[40:]], head=f"content-encoding: {name}\r\n")
    reply = stage.ask(post(CHAT, chat("hi", stream=True), stage.auth))
    assert reply.status == 200
    assert "content-encoding" not in reply.headers
    assert reply.said.startswith(SAID)
    assert KEY[4:].encode() not in reply.body
    assert "[REDACTED:" in reply.said


def test_a_stream_that_is_not_in_the_coding_it_names_is_cut(stage: Stage) -> None:
    squeezed = gzip.compress(b"".join(chat_sse(f"{SAID} {KEY}")))
    stage.upstream.streams([squeezed], head="content-encoding: br\r\n")
    reply = stage.ask(post(CHAT, chat("hi", stream=True), stage.auth))
    assert reply.error_code == "answer_malformed"
    assert squeezed[:10] not in reply.body


# ── lengths ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"{CARD} {CARD}", "[REDACTED:card-visa] [REDACTED:card-visa]"),
        ("a.very.long.name.of.somebody.else@mail.example.com", "[REDACTED:email]"),
        ("nothing", "nothing"),
    ],
    ids=["longer", "shorter", "same"],
)
@pytest.mark.parametrize("form", ["whole", "streamed", "stream-with-length"])
def test_lengths_agree_after_masking_on_one_connection(stage: Stage, text: str, masked: str, form: str) -> None:
    streamed = form != "whole"
    if form == "stream-with-length":
        stage.upstream.says(http_answer(b"".join(chat_sse(text)), content_type="text/event-stream"))
    elif streamed:
        stage.upstream.streams(chat_sse(text), pause=0.001)
    else:
        stage.upstream.says(http_answer(answer(text)))
    with stage.client() as client:
        for _ in range(3):
            reply = client.ask(post(CHAT, chat(text, stream=streamed), stage.auth))
            assert reply.status == 200
            assert reply.said == masked
            assert ("content-length" in reply.headers) is not streamed
        assert client.rest(0.2) == b""
    assert [json.loads(each.body)["messages"][0]["content"] for each in stage.upstream.requests] == [masked] * 3
    assert stage.upstream.data.count(b"POST ") == 3


def test_a_connection_goes_on_after_a_refusal(stage: Stage) -> None:
    with stage.client() as client:
        for _ in range(2):
            assert client.ask(post(CHAT, chat(KEY), stage.auth)).status == 403
            assert client.ask(post(CHAT, chat("hi"), stage.auth)).said == "hello"
        assert client.rest(0.2) == b""


def test_a_request_in_chunks_goes_upstream_with_one_length(stage: Stage) -> None:
    body = chat(f"write to {MAIL}")
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\ntransfer-encoding: chunked\r\n{stage.auth}\r\n\r\n".encode()
    with stage.client() as client:
        for _ in range(2):
            assert client.ask(head + pieces + b"0\r\n\r\n").said == "hello"
    for sent in stage.upstream.requests:
        assert "transfer-encoding" not in sent.headers
        assert MAIL.encode() not in sent.body


@pytest.mark.parametrize(
    "lines",
    [
        ("transfer-encoding: chunked",),
        ("content-length: 5",),
        ("transfer-encoding : chunked",),
        ("transfer-encoding: xchunked",),
    ],
    ids=["length-and-chunked", "two-lengths", "space-before-colon", "unknown-transfer-encoding"],
)
def test_a_request_with_two_lengths_is_refused(stage: Stage, lines: tuple[str, ...]) -> None:
    body = b"0\r\n\r\nPOST /x HTTP/1.1\r\nhost: evil\r\n\r\n"
    reply = stage.ask(post(CHAT, body, stage.auth, *lines))
    assert reply.status == 400
    assert stage.upstream.data == b""


# ── trailers, and other words beside the body ────────────────────────────────────────────────────────────────────────


def test_trailers_of_a_request_do_not_cross(stage: Stage) -> None:
    body = chat("hi")
    lines = f"host: gate\r\ntransfer-encoding: chunked\r\ntrailer: x-key\r\n{stage.auth}"
    data = f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n\r\n".encode() + b"%x\r\n%s\r\n0\r\nx-key: %s\r\n\r\n" % (
        len(body),
        body,
        KEY.encode(),
    )
    begun = time.monotonic()
    reply = stage.ask(data)
    assert time.monotonic() - begun < QUICK
    refused(stage, reply, 400, "protocol")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_trailers_of_an_answer_do_not_cross(stage: Stage, streamed: bool) -> None:
    kind = "text/event-stream" if streamed else "application/json"
    body = b"".join(chat_sse("hello there")[:-1]) if streamed else answer("hello there")
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\ntrailer: x-key\r\n\r\n".encode()
    stage.upstream.says(head + b"%x\r\n%s\r\n0\r\nx-key: %s\r\n\r\n" % (len(body), body, KEY.encode()))
    begun = time.monotonic()
    with stage.client() as client:
        reply = client.ask(post(CHAT, chat("hi", stream=streamed), stage.auth))
        left = client.rest(0.2)
    assert time.monotonic() - begun < QUICK
    assert KEY.encode() not in reply.body + left
    assert KEY not in str(reply.headers)
    assert reply.whole
    assert (reply.error_code if streamed else reply.code) == "upstream_failed"
    assert stage.record(reply.id)["outcome"] == "failed"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_header_fields_that_lead_away_or_leak_are_dropped(stage: Stage, streamed: bool) -> None:
    extra = (
        f'alt-svc: h3=":443"\r\nset-cookie: account=1\r\nx-debug: {KEY}\r\nx-ratelimit-limit-requests: 60\r\n'
        "trailer: x-key\r\nproxy-authenticate: Basic\r\n"
    )
    if streamed:
        stage.upstream.streams(chat_sse("hi"), head=extra, pause=0)
    else:
        stage.upstream.says(http_answer(answer("hi"), extra=extra))
    reply = stage.ask(post(CHAT, chat("hi", stream=streamed), stage.auth))
    assert reply.said == "hi"
    assert not {"alt-svc", "set-cookie", "x-debug", "trailer", "proxy-authenticate"} & set(reply.headers)
    assert reply.headers["x-ratelimit-limit-requests"] == "60"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_words_of_a_status_line_are_replaced(stage: Stage, streamed: bool) -> None:
    if streamed:
        body = b"".join(chat_sse("hi"))
        stage.upstream.says(http_answer(body, status=f"200 {KEY}", content_type="text/event-stream"))
    else:
        stage.upstream.says(http_answer(answer("hi"), status=f"200 {KEY}"))
    reply = stage.ask(post(CHAT, chat("hi", stream=streamed), stage.auth))
    assert (reply.status, reply.reason) == (200, "OK")


def test_an_error_of_the_provider_is_masked_too(stage: Stage) -> None:
    body = json.dumps({"error": {"message": f"bad key {KEY}", "type": "x", "param": None, "code": None}}).encode()
    stage.upstream.says(http_answer(body, status=f"401 {KEY}"))
    reply = stage.ask(post(CHAT, chat("hi"), stage.auth))
    assert (reply.status, reply.reason) == (401, "Unauthorized")
    assert reply.json["error"]["message"] == "bad key [REDACTED:aws-access-key]"


# ── what two parsers read in two ways ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"sample-small","messages":[],"messages":[{"role":"user","content":"hi"}]}',
        b'{"model":"sample-small","messages":[{"role":"user","content":"a","content":"' + KEY.encode() + b'"}]}',
        b'{"model":"sample-small","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'\xef\xbb\xbf{"model":"sample-small","messages":[]}',
        b'{"model":"sample-small","messages":[]}{}',
        b'{"model":"sample-small","messages":[],"temperature":NaN}',
        b"[" * 5000 + b"]" * 5000,
        b"",
        b'"text"',
    ],
    ids=["top-key-twice", "inner-key-twice", "not-utf-8", "bom", "two-values", "nan", "deep", "empty", "no-object"],
)
def test_a_body_with_two_readings_is_refused(stage: Stage, body: bytes) -> None:
    refused(stage, stage.ask(post(CHAT, body, stage.auth)), 400, "body_malformed")


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("authorization: Bearer {t}", "authorization: Bearer {t}"), "caller_ambiguous"),
        (("authorization: Bearer {t}", "Authorization: Bearer other"), "caller_ambiguous"),
        (("authorization: Bearer {t}", "x-api-key: other"), "caller_ambiguous"),
        (("x-api-key: {t}", "api-key: other"), "caller_ambiguous"),
        (("authorization: Bearer other",), "token_malformed"),
        (("authorization: Basic {t}",), "caller_missing"),
        (("cookie: token={t}",), "caller_missing"),
        ((), "caller_missing"),
    ],
    ids=["twice", "twice-differing", "two-headers", "two-others", "unknown", "basic", "cookie", "none"],
)
def test_credentials_that_name_no_one_caller_are_refused(stage: Stage, lines: tuple[str, ...], code: str) -> None:
    reply = stage.ask(post(CHAT, chat("hi"), *(line.format(t=stage.token) for line in lines)))
    assert reply.status == 401
    assert reply.json["error"]["type"] == "authentication_error"
    assert stage.upstream.data == b""
    assert stage.record(reply.id)["reason"] == code


def test_every_credential_of_the_client_stays_here(stage: Stage) -> None:
    same = (stage.auth, f"x-api-key: {stage.token}", f"api-key: {stage.token}", f"x-goog-api-key: {stage.token}")
    reply = stage.ask(post(CHAT, chat("hi"), *same, f"cookie: s={stage.token}", f"x-forwarded-for: {stage.token}"))
    assert reply.said == "hello"
    [sent] = stage.upstream.requests
    assert sent.headers["authorization"] == f"Bearer {CREDENTIAL}"
    assert not {"x-api-key", "api-key", "x-goog-api-key", "cookie", "x-forwarded-for"} & set(sent.headers)
    assert stage.token.encode() not in stage.upstream.data
    assert CREDENTIAL not in str(reply.headers)


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        (CHAT, (f"x-note: {KEY}",)),
        (CHAT, (f"user-agent: tool {KEY}",)),
        (CHAT, ("x-note: a", f"x-note: {KEY}")),
        (CHAT, (f"accept-language: de;q={KEY}",)),
        (f"{CHAT}?note={KEY}", ()),
        (f"{CHAT}?api-version=1&{KEY}=1", ()),
        (CHAT, (f"content-type: application/json; note={KEY}",)),
    ],
    ids=["own-header", "user-agent", "header-twice", "usual-header", "query-value", "query-name", "content-type"],
)
def test_a_key_beside_the_body_is_found(stage: Stage, path: str, lines: tuple[str, ...]) -> None:
    refused(stage, stage.ask(post(path, chat("hi"), stage.auth, *lines)), 403, "finding")


def test_a_personal_datum_in_the_address_is_refused_and_not_recorded(stage: Stage) -> None:
    reply = stage.ask(post(f"{CHAT}?user={MAIL}", chat("hi"), stage.auth, f"x-user: {MAIL}"))
    refused(stage, reply, 403, "finding")


def test_a_personal_datum_in_a_header_is_left_out(stage: Stage) -> None:
    assert stage.ask(post(CHAT, chat("hi"), stage.auth, f"x-user: {MAIL}", "x-other: fine")).said == "hello"
    [sent] = stage.upstream.requests
    assert "x-user" not in sent.headers
    assert sent.headers["x-other"] == "fine"


# ── peers that break off ─────────────────────────────────────────────────────────────────────────────────────────────


def breaks_off(data: bytes) -> Callable[[Received, asyncio.StreamWriter], object]:
    async def write(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()

    return write


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BEGUN = b"".join(chat_sse("hello there, friend")[:4])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        http_answer(answer("hi"))[:-20],
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{",
        f"{SAID}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}" + SAID.encode(),
        b"\x16\x03\x01" + SAID.encode() * 20,
    ],
    ids=["before-head", "in-head", "in-body", "in-chunk", "no-http", "two-lengths", "tls-record"],
)
def test_an_upstream_that_breaks_off_is_told_as_an_error(stage: Stage, data: bytes) -> None:
    stage.upstream.does(breaks_off(data))  # type: ignore[arg-type]
    begun = time.monotonic()
    reply = stage.ask(post(CHAT, chat("hi"), stage.auth))
    assert time.monotonic() - begun < QUICK
    assert (reply.status, reply.code) == (502, "upstream_failed")
    assert SAID.encode() not in reply.body
    row = stage.record(reply.id)
    assert (row["outcome"], row["reason"]) == ("failed", "upstream_failed")
    assert SAID not in stage.gate.log


def test_an_upstream_that_is_not_there_is_told_as_an_error(tmp_path: Path, stage: Stage) -> None:
    stage.upstream.does(breaks_off(b""))  # type: ignore[arg-type]
    reply = stage.ask(post(MESSAGES, json.dumps({"model": "m", "max_tokens": 5, "messages": []}).encode(), stage.auth))
    assert reply.status == 502
    assert reply.json["type"] == "error"
    assert reply.json["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    "data",
    [
        STREAM_HEAD + b"%x\r\n%s\r\n" % (len(BEGUN), BEGUN),
        STREAM_HEAD + b"%x\r\n%s\r\nZZ\r\n" % (len(BEGUN), BEGUN) + SAID.encode(),
    ],
    ids=["closed", "garbage"],
)
def test_a_stream_that_breaks_off_ends_with_an_error_event(stage: Stage, data: bytes) -> None:
    stage.upstream.does(breaks_off(data))  # type: ignore[arg-type]
    with stage.client() as client:
        reply = client.ask(post(CHAT, chat("hi", stream=True), stage.auth))
        assert client.rest(0.2) == b""
    assert reply.status == 200
    assert reply.whole
    assert reply.said.startswith("hello")
    assert reply.error_code == "upstream_failed"
    assert SAID.encode() not in reply.body
    row = stage.record(reply.id)
    assert (row["outcome"], row["reason"]) == ("failed", "upstream_failed")


def test_a_client_that_leaves_stops_the_upstream(stage: Stage) -> None:
    stopped: list[float] = []

    async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        try:
            for piece in chat_sse("x" * 3000, size=1):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            stopped.append(time.monotonic())
            raise

    stage.upstream.does(endless)
    with stage.client() as client:
        client.send(post(CHAT, chat("hi", stream=True), stage.auth))
        assert client.socket.recv(1000)
    left = time.monotonic()
    while not stopped and time.monotonic() - left < QUICK:
        time.sleep(0.02)
    assert stopped, "the upstream went on generating"
    row = stage.last()
    assert (row["outcome"], row["reason"], row["streamed"]) == ("aborted", "client_gone", 1)


def test_a_client_that_resets_its_stream_is_recorded_as_gone(stage: Stage) -> None:
    before = stage.ask(post(CHAT, chat("hi"), stage.auth)).id
    stage.upstream.streams(chat_sse("x" * 300), pause=0.02)
    body = chat("hi", stream=True)
    talk = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    talk.initiate_connection()
    fields = [(":method", "POST"), (":path", CHAT), (":scheme", "http"), (":authority", "gate")]
    fields += [("content-type", "application/json"), ("authorization", f"Bearer {stage.token}")]
    talk.send_headers(1, fields)
    talk.send_data(1, body, end_stream=True)
    with stage.client() as client:
        client.send(talk.data_to_send())
        time.sleep(0.3)
        talk.reset_stream(1, error_code=8)
        client.send(talk.data_to_send())
        row = stage.after(before)
    assert (row["outcome"], row["reason"]) == ("aborted", "client_gone")


def test_a_client_that_leaves_behind_requests_sent_ahead_keeps_no_connection_open(stage: Stage) -> None:
    message = post(CHAT, chat("hi"), stage.auth)
    for _ in range(20):
        with stage.client() as client:
            client.send(message * 5)
            time.sleep(0.02)
    end = time.monotonic() + QUICK
    while stage.upstream.open and time.monotonic() < end:
        time.sleep(0.02)
    assert stage.upstream.open == 0
    row = stage.last()
    assert (row["outcome"], row["reason"]) in {("answered", None), ("aborted", "client_gone")}


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_a_request_that_is_too_large_is_refused(stage: Stage, chunked: bool, path: str) -> None:
    body = chat("word " * 250_000)
    data = post(path, body, stage.auth)
    if chunked:
        head = f"POST {path} HTTP/1.1\r\nhost: gate\r\ntransfer-encoding: chunked\r\n{stage.auth}\r\n\r\n".encode()
        data = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    reply = stage.ask(data)
    assert reply.status == 413
    kind = "invalid_request_error" if path == CHAT else "request_too_large"
    assert reply.json["error"]["type"] == kind
    assert stage.upstream.data == b""
    assert stage.record(reply.id)["reason"] == "body_too_large"


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_request_beyond_all_bounds_is_refused_before_it_is_read(stage: Stage, chunked: bool) -> None:
    size = 40_000_000
    head = f"POST {CHAT} HTTP/1.1\r\nhost: gate\r\n{stage.auth}\r\n".encode()
    data = (
        head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % size
        if chunked
        else head + b"content-length: %d\r\n\r\n" % size
    )
    before = stage.last()["id"]
    with stage.client() as client:
        with contextlib.suppress(OSError):
            client.send(data + b" " * size)
        with contextlib.suppress(OSError):
            reply = client.ask()
            assert reply.status == 413
    row = stage.after(before)
    assert (row["outcome"], row["reason"], row["status"]) == ("denied", "body_too_large", 413)
    assert stage.upstream.data == b""


# ── a bug of our own ─────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = """
from tidegate.standalone import Standalone
from tidegate.streams.answers import StreamedAnswer

feed = StreamedAnswer.feed

def broken_feed(self, chunk):
    if b"STUMBLE" in chunk:
        raise RuntimeError(chunk.decode())
    return feed(self, chunk)


StreamedAnswer.feed = broken_feed
addons = [Standalone()]
"""


def test_a_bug_inside_a_stream_ends_it(tmp_path: Path) -> None:
    script = tmp_path / "broken_gate.py"
    script.write_text(BROKEN)
    with Upstream() as upstream:
        path, access = policy(tmp_path, upstream.url), token(tmp_path)
        with mitm("mitmdump", path, script=script) as gate:
            stage = Stage(gate, upstream, access)
            upstream.streams([*chat_sse("hello, ")[:4], b": STUMBLE " + SAID.encode() + b"\n\n", *chat_sse(SAID)])
            with stage.client() as client:
                reply = client.ask(post(CHAT, chat("hi", stream=True), stage.auth))
                assert client.rest(0.2) == b""
            assert reply.whole
            assert SAID.encode() not in reply.body
            assert reply.error_code == "bug"
            row = stage.record(reply.id)
            assert (row["outcome"], row["reason"]) == ("failed", "bug")
            assert stage.ask(post(CHAT, chat("hi"), stage.auth)).status == 200
        assert SAID not in gate.log
