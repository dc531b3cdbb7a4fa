"""Unmodified SDKs through a real gate: files, batches, speech, pictures, Azure's addresses, and streamed plain text."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import struct
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.documents import PNG, docx, run
from tests.e2e.families import LEAK, cut, stream
from tests.e2e.harness import CREDENTIAL, Process, Received, Upstream, http_answer, policy, tidegate_run, token
from tidegate.dialects.forms import Part, read
from tidegate.evidence import queries
from tidegate.model import Denial

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MASKED = "Jane pays with [REDACTED:card-visa], mail [REDACTED:email]. Plan: gold"
MP3 = b"ID3\x04\0\0\0\0\0\x23TSSE\0\0\0\x0f" + bytes(range(256)) * 8
FILE = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch"}
STORED = {
    "id": "file_1",
    "type": "file",
    "filename": "a",
    "mime_type": "text/plain",
    "size_bytes": 3,
    "created_at": "2026-01-01T00:00:00Z",
}
BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "in_progress",
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
}
SAFE = {"hate": {"filtered": False, "severity": "safe"}}


def speech() -> bytes:
    """Make a short WAV: a tone."""
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(8000)
        made.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i / 5))) for i in range(4000)))
    return out.getvalue()


class Provider(Upstream):
    """Answers as OpenAI and Azure do, by path; says what leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._speak

    async def _speak(self, received: Received, writer: asyncio.StreamWriter) -> None:
        path = received.path.partition("?")[0].rpartition("/v1")[2].rpartition("/deployments/sample-small")[2]
        path = path.removeprefix("/torchserve")
        match path:
            case "/files":
                answer = STORED if "anthropic" in received.path else FILE
                writer.write(http_answer(json.dumps(answer).encode()))
            case "/messages/batches":
                writer.write(http_answer(json.dumps(BATCH).encode()))
            case "/predictions/sample-small":
                await stream(writer, "text/plain", [each.encode() for each in cut(f"é {LEAK}")])
            case "/audio/transcriptions":
                await self._transcribe(received, writer)
            case "/audio/speech":
                await stream(writer, "audio/mpeg", [MP3[at : at + 500] for at in range(0, len(MP3), 500)])
            case "/images/generations" | "/images/edits":
                answer = {"created": 1, "data": [{"b64_json": "iVBORw0KGgo=", "revised_prompt": LEAK}]}
                writer.write(http_answer(json.dumps(answer).encode()))
            case "/chat/completions":
                await self._chat(json.loads(received.body), writer)
            case _:
                writer.write(http_answer(b"{}", status="404 Not Found"))

    async def _transcribe(self, received: Received, writer: asyncio.StreamWriter) -> None:
        fields = {each.name: each.data for each in parts(received)}
        if fields.get("stream") == b"true":
            events = [{"type": "transcript.text.delta", "delta": piece} for piece in cut(LEAK)]
            events.append({"type": "transcript.text.done", "text": LEAK})
            await stream(writer, "text/event-stream", (f"data: {json.dumps(each)}\n\n".encode() for each in events))
        elif fields.get("response_format") == b"srt":
            srt = f"1\n00:00:00,000 --> 00:00:04,000\n{LEAK}\n"
            writer.write(http_answer(srt.encode(), content_type="text/plain; charset=utf-8"))
        else:
            writer.write(http_answer(json.dumps({"text": LEAK}).encode()))

    async def _chat(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        base = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o-2024-08-06"}
        filters = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "content_filter_results": SAFE}
            choice["message"] = {"role": "assistant", "content": LEAK, "refusal": None}
            answer = {**base, "object": "chat.completion", "choices": [choice], **filters}
            writer.write(http_answer(json.dumps(answer).encode()))
            return
        head = {**base, "object": "chat.completion.chunk"}
        events: list[dict[str, Any]] = [{**head, "id": "", "model": "", "choices": [], **filters}]
        for piece in cut(LEAK):
            choice = {"index": 0, "delta": {"content": piece}, "content_filter_results": SAFE, "finish_reason": None}
            events.append({**head, "choices": [choice]})
        events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        lines = [f"data: {json.dumps(each)}\n\n".encode() for each in events]
        await stream(writer, "text/event-stream", [*lines, b"data: [DONE]\n\n"])


def parts(received: Received) -> tuple[Part, ...]:
    found = read(received.body, received.headers["content-type"])
    assert not isinstance(found, Denial), found.message
    return found


@dataclass
class Setting:
    """A running gate with a connection for each word of on_unknown, and its upstream."""

    gate: Process
    upstream: Provider
    token: str
    open: contextlib.ExitStack

    def openai(self, rule: str) -> Any:
        client = openai.OpenAI(base_url=f"{self.gate.url}/openai-{rule}/v1", api_key=self.token, timeout=30)
        return self.open.enter_context(client)

    def anthropic(self) -> Any:
        client = anthropic.Anthropic(base_url=f"{self.gate.url}/anthropic", api_key=self.token, timeout=30)
        return self.open.enter_context(client)

    def azure(self, rule: str = "block", **more: str) -> Any:
        client = openai.AzureOpenAI(
            azure_endpoint=f"{self.gate.url}/openai-{rule}",
            api_key=self.token,
            api_version="2024-10-21",
            timeout=30,
            **more,
        )
        return self.open.enter_context(client)

    def recorded(self, **expected: object) -> None:
        """Wait until the newest exchange is recorded with these columns."""
        until = time.monotonic() + 20
        while True:
            rows = [dict(row) for row in queries.list_flows(self.gate.cwd / "recording.db", limit=1)]
            found = {name: row[name] for row in rows for name in expected}
            if found == expected:
                return
            assert time.monotonic() < until, (found, expected)
            time.sleep(0.05)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("uploads")
    with Provider() as upstream, contextlib.ExitStack() as clients:
        connections = [
            {
                "name": f"openai-{rule}",
                "dialect": "openai",
                "upstream": f"{upstream.url}/{rule}",
                "serve": {"path": f"/openai-{rule}"},
                "on_unknown": rule,
                "credential": {"header": "api-key", "value": "${env:TIDEGATE_TEST_CREDENTIAL}"},
            }
            for rule in ("block", "flag", "pass")
        ]
        connections += [
            {"name": name, "dialect": name, "upstream": f"{upstream.url}/{name}", "serve": {"path": f"/{name}"}}
            for name in ("anthropic", "torchserve")
        ]
        roles = {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["sample-*", "gpt-*"]}]}}
        written = policy(folder, upstream.url, connections=connections, roles=roles)
        access = token(folder)
        with tidegate_run(written) as gate:
            yield Setting(gate, upstream, access, clients)


@pytest.fixture
def fresh(setting: Setting) -> Setting:
    setting.upstream.requests.clear()
    return setting


def refused(call: Any, *, status: int = 400, code: str = "body_opaque") -> str:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    assert (error.value.status_code, error.value.code) == (status, code)
    return str(error.value)


# ── speech and pictures ──────────────────────────────────────────────────────────────────────────────────────────────


def test_speech_is_refused_unless_the_connection_lets_it_pass(fresh: Setting) -> None:
    given = {"model": "gpt-4o-transcribe", "file": ("a.wav", speech())}
    told = refused(lambda: fresh.openai("block").audio.transcriptions.create(**given))
    assert "$.file was not scanned: it is or holds sound or video" in told
    assert fresh.upstream.requests == []
    fresh.recorded(outcome="denied", reason="body_opaque", scanned="partly scanned")
    for rule in ("flag", "pass"):
        assert fresh.openai(rule).audio.transcriptions.create(**given).text == MASKED
        (sent,) = fresh.upstream.requests
        fresh.upstream.requests.clear()
        assert {each.name: each.data for each in parts(sent)} == {"model": b"gpt-4o-transcribe", "file": speech()}
        assert sent.headers["api-key"] == CREDENTIAL
        told = {"outcome": "answered", "scanned": "partly scanned", "model": "gpt-4o-transcribe"}
        fresh.recorded(connection=f"openai-{rule}", **told)


def test_a_prompt_beside_speech_is_inspected(fresh: Setting) -> None:
    audio = fresh.openai("pass").audio.transcriptions
    given = {"model": "gpt-4o-transcribe", "file": ("a.wav", speech())}
    told = refused(lambda: audio.create(**given, prompt=f"the key is {KEY}"), status=403, code="finding")
    assert KEY not in told
    assert fresh.upstream.requests == []
    audio.create(**given, prompt="ask jane.doe@example.com", response_format="srt")
    fields = {each.name: each.data for each in parts(fresh.upstream.requests[-1])}
    assert fields["prompt"] == b"ask [REDACTED:email]"


def test_transcripts_are_masked_in_every_form(fresh: Setting) -> None:
    audio = fresh.openai("flag").audio.transcriptions
    given = {"model": "gpt-4o-transcribe", "file": ("a.wav", speech())}
    assert audio.create(**given, response_format="srt") == f"1\n00:00:00,000 --> 00:00:04,000\n{MASKED}\n"
    events = list(audio.create(**given, stream=True))
    assert "".join(each.delta for each in events if each.type == "transcript.text.delta") == MASKED
    assert events[-1].text == MASKED
    fresh.recorded(outcome="answered", streamed=1)


def test_spoken_answers_cross_where_the_connection_lets_them(fresh: Setting) -> None:
    given = {"model": "gpt-4o-mini-tts", "voice": "alloy"}
    told = refused(lambda: fresh.openai("block").audio.speech.create(**given, input="hello"))
    assert "The answer could not be scanned: it would be speech" in told
    refused(lambda: fresh.openai("flag").audio.speech.create(**given, input=KEY), status=403, code="finding")
    assert fresh.upstream.requests == []
    assert fresh.openai("flag").audio.speech.create(**given, input="hello").content == MP3
    fresh.recorded(outcome="answered", endpoint="speech", scanned="partly scanned")
    with fresh.openai("pass").audio.speech.with_streaming_response.create(**given, input="hello") as answer:
        assert b"".join(answer.iter_bytes()) == MP3


def test_pictures(fresh: Setting) -> None:
    given = {"model": "gpt-image-1"}
    refused(lambda: fresh.openai("block").images.generate(**given, prompt="a cat"))
    refused(lambda: fresh.openai("flag").images.generate(**given, prompt=f"write {KEY}"), status=403, code="finding")
    assert fresh.upstream.requests == []
    (picture,) = fresh.openai("flag").images.generate(**given, prompt="a cat").data
    assert (picture.b64_json, picture.revised_prompt) == ("iVBORw0KGgo=", MASKED)
    edits = fresh.openai("flag").images
    edits.edit(**given, prompt="mail jane.doe@example.com", image=[("a.png", PNG), ("b.png", PNG)])
    found = parts(fresh.upstream.requests[-1])
    assert [each.data for each in found if each.name == "image[]"] == [PNG, PNG]
    assert {each.name: each.data for each in found}["prompt"] == b"mail [REDACTED:email]"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def line(text: str, model: str = "sample-small") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return (
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode() + b"\n"
    )


def test_a_batch_file_is_judged_line_by_line(fresh: Setting) -> None:
    files = fresh.openai("block").files
    assert files.create(file=("b.jsonl", line("hello") + line("there")), purpose="batch").id == "file-1"
    (sent,) = fresh.upstream.requests
    fields = {each.name: each for each in parts(sent)}
    assert fields["purpose"].data == b"batch"
    assert fields["file"].filename == "b.jsonl"
    sent_lines = [json.loads(each) for each in fields["file"].data.splitlines()]
    assert sent_lines == [json.loads(line("hello")), json.loads(line("there"))]
    fresh.recorded(outcome="answered", endpoint="files", scanned="scanned")
    fresh.upstream.requests.clear()
    told = refused(
        lambda: files.create(file=("b.jsonl", line("hello") + line(KEY)), purpose="batch"), status=403, code="finding"
    )
    assert "In line 2 of the file: Blocked by policy" in told
    assert KEY not in told
    bad = line("hello") + line("hello", "other-model")
    told = refused(lambda: files.create(file=("b.jsonl", bad), purpose="batch"), status=403, code="model_denied")
    assert "In line 2 of the file: Your roles do not allow the model" in told
    assert fresh.upstream.requests == []
    files.create(file=("b.jsonl", line("mail jane.doe@example.com")), purpose="batch")
    masked = json.loads({each.name: each.data for each in parts(fresh.upstream.requests[-1])}["file"])
    assert masked["body"]["messages"][0]["content"] == "mail [REDACTED:email]"


def test_a_document_with_a_secret_is_blocked(fresh: Setting) -> None:
    files = fresh.openai("flag").files
    for name, data in (("a.txt", f"key {KEY}".encode()), ("a.docx", docx(run(KEY)))):
        given = (name, data)
        refused(lambda given=given: files.create(file=given, purpose="user_data"), status=403, code="finding")
    assert fresh.upstream.requests == []
    large = docx(run("hello " * 40_000))
    assert files.create(file=("a.docx", large), purpose="user_data").id == "file-1"
    assert {each.name: each.data for each in parts(fresh.upstream.requests[-1])}["file"] == large
    fresh.recorded(outcome="answered", endpoint="files", scanned="scanned")


def test_anthropic_batches_are_judged_request_by_request(fresh: Setting) -> None:
    def asks(text: str, model: str = "sample-small") -> Any:
        params = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
        return {"custom_id": "a", "params": params}

    batches = fresh.anthropic().messages.batches
    for bad, code in ((asks(KEY), "finding"), (asks("x", "other"), "model_denied")):
        with pytest.raises(anthropic.PermissionDeniedError) as error:
            batches.create(requests=[asks("hello"), bad])
        assert error.value.body["error"]["code"] == code
        assert "In $.requests[1].params: " in str(error.value)
        assert KEY not in str(error.value)
    assert fresh.upstream.requests == []
    assert batches.create(requests=[asks("hello"), asks("mail jane.doe@example.com")]).id == "msgbatch_1"
    sent = json.loads(fresh.upstream.requests[-1].body)["requests"]
    assert [each["params"]["messages"][0]["content"] for each in sent] == ["hello", "mail [REDACTED:email]"]
    fresh.recorded(outcome="answered", endpoint="message_batches", model="sample-small", scanned="scanned")


def test_anthropic_files_are_read(fresh: Setting) -> None:
    files = fresh.anthropic().beta.files
    with pytest.raises(anthropic.PermissionDeniedError):
        files.upload(file=("a.txt", f"key {KEY}".encode(), "text/plain"))
    assert fresh.upstream.requests == []
    assert files.upload(file=("a.txt", b"hello", "text/plain")).id == "file_1"
    assert [(each.name, each.filename, each.data) for each in parts(fresh.upstream.requests[-1])] == [
        ("file", "a.txt", b"hello")
    ]


# ── plain text ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_streamed_plain_text_is_masked_live(fresh: Setting) -> None:
    url, head = f"{fresh.gate.url}/torchserve/predictions/sample-small", {"authorization": f"Bearer {fresh.token}"}
    with httpx.Client(timeout=30) as client:
        with client.stream("POST", url, headers=head, content=b"mail jane.doe@example.com") as answer:
            arrived = [(time.monotonic(), piece) for piece in answer.iter_raw()]
        assert b"".join(piece for _, piece in arrived).decode() == f"é {MASKED}"
        assert arrived[-1][0] - arrived[0][0] > 0.05, "it came at once: the answer was not live"
        assert fresh.upstream.requests[-1].body == b"mail [REDACTED:email]"
        fresh.recorded(outcome="answered", endpoint="predict", streamed=1)
        assert client.post(url, headers=head, content=f"key {KEY}".encode()).status_code == 403
        odd = client.post(url, headers={**head, "content-type": "multipart/form-data; boundary=x"}, content=b"--x\r\n")
        assert (odd.status_code, len(fresh.upstream.requests)) == (400, 1)


# ── Azure ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SAID = [{"role": "user", "content": "leak for jane.doe@example.com"}]


@pytest.mark.parametrize("deployment", [{}, {"azure_deployment": "sample-small"}], ids=["by model", "by deployment"])
def test_azure_is_masked_whole_and_live(fresh: Setting, deployment: dict[str, str]) -> None:
    client = fresh.azure(**deployment)
    model = "ignored" if deployment else "sample-small"
    answer = client.chat.completions.create(model=model, messages=SAID)
    assert answer.choices[0].message.content == MASKED
    assert answer.choices[0].content_filter_results == SAFE
    (sent,) = fresh.upstream.requests
    assert sent.path == "/block/openai/deployments/sample-small/chat/completions?api-version=2024-10-21"
    assert sent.headers["api-key"] == CREDENTIAL
    assert json.loads(sent.body)["messages"][0]["content"] == "leak for [REDACTED:email]"
    fresh.recorded(outcome="answered", model="sample-small")
    arrived = [
        (time.monotonic(), each.choices[0].delta.content or "")
        for each in client.chat.completions.create(model=model, messages=SAID, stream=True)
        if each.choices
    ]
    assert "".join(text for _, text in arrived) == MASKED
    assert arrived[-1][0] - arrived[0][0] > 0.05, "all deltas came at once: the answer was not live"


def test_azure_deployments_need_a_grant(fresh: Setting) -> None:
    client = fresh.azure(azure_deployment="other")
    refused(
        lambda: client.chat.completions.create(model="sample-small", messages=SAID), status=403, code="model_denied"
    )
    assert fresh.upstream.requests == []
