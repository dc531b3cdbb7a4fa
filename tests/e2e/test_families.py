"""Unmodified clients of other APIs through a running gate: intact, masked whole and live, refused in their words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.families import Families, stream
from tests.e2e.harness import CREDENTIAL, Process, policy, tidegate_run, token
from tests.wire import message_piece
from tidegate.evidence import queries

boto3 = pytest.importorskip("boto3")
genai = pytest.importorskip("google.genai")
ollama = pytest.importorskip("ollama")

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
BEARER = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
ROLES = {
    "dev": {
        "allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}],
        "deny": [{"tools": ["bash"]}],
    }
}


@dataclass
class Setting:
    """A running gate, its upstream, and the token its caller has."""

    gate: Process
    upstream: Families
    token: str

    def row(self, words: str = "") -> dict[str, Any]:
        """Return the exchange whose id stands in ``words``, or the newest, once it is sealed."""
        until = time.monotonic() + 5
        while True:
            rows = [dict(row) for row in queries.list_flows(self.gate.cwd / "recording.db", limit=20)]
            found = next((row for row in rows if row["id"] in words or not words), None)
            if found and (found["outcome"] not in {None, "open"} or time.monotonic() > until):
                return found
            assert time.monotonic() < until, words
            time.sleep(0.05)

    def crossed(self, before: int) -> list[Any]:
        """Return what reached the upstream since ``before``; it has the gate's credential and no other."""
        sent = self.upstream.requests[before:]
        assert self.token not in str(sent)
        return sent


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("families")
    with Families() as upstream:
        key = {"header": "x-goog-api-key", "value": "${env:TIDEGATE_TEST_CREDENTIAL}"}
        names = {"bedrock": {**BEARER}, "gemini": key, "ollama": {**BEARER}}
        connections = [
            {"name": name, "dialect": name, "upstream": upstream.url, "serve": {"path": f"/{name}"}, "credential": own}
            for name, own in names.items()
        ]
        written = policy(folder, upstream.url, connections=connections, roles=ROLES)
        secret = token(folder)
        with tidegate_run(written) as gate:
            yield Setting(gate, upstream, secret)


def masked(text: str) -> None:
    assert "jane.doe" not in text
    assert not re.search(r"4111|(?:1111)", text), text
    assert "[REDACTED:" in text
    assert text.endswith("Plan: gold")


def live(setting: Setting, arrived: list[tuple[float, str]], model: str = "good-model") -> None:
    masked("".join(text for _, text in arrived))
    assert len([text for _, text in arrived if text]) > 5
    assert arrived[-1][0] - arrived[0][0] > 0.05, "all deltas came at once: the answer was not live"
    row = setting.row()
    assert (row["outcome"], row["status"], row["streamed"], row["model"]) == ("answered", 200, 1, model)


# ── Ollama ───────────────────────────────────────────────────────────────────────────────────────────────────────────

MODEL = "good-model"
MAIL = {
    "type": "function",
    "function": {"name": "send_mail", "description": "sends", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def local(setting: Setting) -> Iterator[Any]:
    client = ollama.Client(f"{setting.gate.url}/ollama", headers={"authorization": f"Bearer {setting.token}"})
    yield client
    client.close()


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_ollama_answers_are_intact(setting: Setting, local: Any) -> None:
    before = len(setting.upstream.requests)
    assert local.chat(MODEL, says("hello there")).message.content == "You said: hello there"
    pieces = list(local.chat(MODEL, says("hello there"), stream=True))
    assert "".join(each.message.content for each in pieces) == "You said: hello there"
    assert (pieces[-1].done, pieces[-1].total_duration) == (True, 572052292)
    assert local.generate(MODEL, "hello there").response == "You said: hello there"
    assert "".join(each.response for each in local.generate(MODEL, "hi", stream=True)) == "You said: hi"
    assert local.embed(MODEL, "hello").embeddings == [[0.015991924, -0.1588247]]
    assert local.list().models[0].model == "m:latest"
    sent = setting.crossed(before)
    assert len(sent) == 6
    assert {each.headers["authorization"] for each in sent} == {f"Bearer {CREDENTIAL}"}


def test_ollama_whole_answers_are_masked(local: Any) -> None:
    answer = local.chat(MODEL, says("leak"), tools=[MAIL]).message
    masked(answer.content)
    assert answer.thinking == "The card is [REDACTED:card-visa]."
    assert answer.tool_calls[0].function.arguments == {"to": "[REDACTED:email]", "subject": "hi"}
    whole = local.generate(MODEL, "leak")
    masked(whole.response)
    assert not whole.context, "the same text as token ids"
    assert "jane.doe" not in local.show(MODEL).license


def test_ollama_streams_are_masked_live(setting: Setting, local: Any) -> None:
    pieces = [(time.monotonic(), each) for each in local.chat(MODEL, says("leak"), tools=[MAIL], stream=True)]
    assert "".join(each.message.thinking or "" for _, each in pieces) == "The card is [REDACTED:card-visa]."
    (call,) = [call for _, each in pieces for call in each.message.tool_calls or ()]
    assert call.function.arguments == {"to": "[REDACTED:email]", "subject": "hi"}
    live(setting, [(at, each.message.content or "") for at, each in pieces])
    pieces = [(time.monotonic(), each) for each in local.generate(MODEL, "leak", stream=True)]
    assert not pieces[-1][1].context
    live(setting, [(at, each.response) for at, each in pieces])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "text", "tool", "reason"),
    [
        (MODEL, f"use {KEY}", "send_mail", "finding"),
        ("bad-model", "hello", "send_mail", "model_denied"),
        (MODEL, "hello", "bash", "tool_denied"),
    ],
)
def test_ollama_reads_why_it_was_refused(
    setting: Setting, local: Any, model: str, text: str, tool: str, reason: str, *, stream: bool
) -> None:
    before = len(setting.upstream.requests)
    described = {**MAIL, "function": {**MAIL["function"], "name": tool}}
    with pytest.raises(ollama.ResponseError) as raised:
        list(local.chat(model, says(text), tools=[described], stream=stream))
    row = setting.row(raised.value.error)
    assert (raised.value.status_code, row["reason"]) == (403, reason)
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


def test_ollama_reads_why_its_answer_was_cut(setting: Setting, local: Any) -> None:
    setting.upstream.streams([b'{"message":{"role":"assistant","content":"Hi! "}}\n', b"garbage\n"], path="/api/chat")
    try:
        with pytest.raises(ollama.ResponseError, match="malformed") as raised:
            list(local.chat(MODEL, says("hello"), stream=True))
    finally:
        del setting.upstream.answers["/api/chat"]
    assert setting.row(raised.value.error)["reason"] == "answer_malformed"


def test_ollama_leaves_management_to_itself(local: Any) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        local.delete(MODEL)
    assert raised.value.status_code == 404


# ── Gemini ───────────────────────────────────────────────────────────────────────────────────────────────────────────

SEND = {"function_declarations": [{"name": "send_mail", "description": "sends"}]}


@pytest.fixture(params=["Gemini API", "Vertex AI"])
def google(request: pytest.FixtureRequest, setting: Setting) -> Iterator[Any]:
    options = {"base_url": f"{setting.gate.url}/gemini"}
    if request.param == "Gemini API":
        client = genai.Client(api_key=setting.token, http_options=options)
    else:
        credentials = pytest.importorskip("google.oauth2.credentials").Credentials(setting.token)
        client = genai.Client(
            vertexai=True, project="p", location="us-east5", credentials=credentials, http_options=options
        )
    yield client.models
    client.close()


def test_gemini_answers_are_intact(setting: Setting, google: Any) -> None:
    before = len(setting.upstream.requests)
    assert google.generate_content(model=MODEL, contents="hello there").text == "You said: hello there"
    pieces = list(google.generate_content_stream(model=MODEL, contents="hello there"))
    assert "".join(each.text or "" for each in pieces) == "You said: hello there"
    assert pieces[-1].candidates[0].finish_reason == "STOP"
    assert google.count_tokens(model=MODEL, contents="hello there").total_tokens == 7
    sent = setting.crossed(before)
    assert len(sent) == 3
    assert {each.headers["x-goog-api-key"] for each in sent} == {CREDENTIAL}
    assert not any("authorization" in each.headers for each in sent)


def test_gemini_whole_answers_are_masked(google: Any) -> None:
    answer = google.generate_content(model=MODEL, contents="leak", config={"tools": [SEND]})
    thought, text, call = answer.candidates[0].content.parts
    masked(text.text)
    assert thought.text == "The card is [REDACTED:card-visa]."
    assert call.function_call.args == {"to": "[REDACTED:email]", "subject": "hi"}
    assert call.thought_signature == b"signature" * 8


def test_gemini_streams_are_masked_live(setting: Setting, google: Any) -> None:
    stream = google.generate_content_stream(model=MODEL, contents="leak", config={"tools": [SEND]})
    arrived = [(time.monotonic(), part) for each in stream for part in each.candidates[0].content.parts or ()]
    assert "".join(part.text for _, part in arrived if part.thought) == "The card is [REDACTED:card-visa]."
    (call,) = [part.function_call for _, part in arrived if part.function_call]
    assert call.args == {"to": "[REDACTED:email]", "subject": "hi"}
    live(setting, [(at, part.text) for at, part in arrived if part.text is not None and not part.thought])


def test_gemini_streams_as_an_array_are_masked_live(setting: Setting) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "leak"}]}], "tools": [SEND]}
    url = f"{setting.gate.url}/gemini/v1beta/models/{MODEL}:streamGenerateContent"
    arrived, raw = [], ""
    with httpx.stream("POST", url, json=body, headers={"x-goog-api-key": setting.token}, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("application/json")
        for piece in answer.iter_text():
            raw += piece
            arrived.append((time.monotonic(), piece))
    parts = [part for event in json.loads(raw) for part in event["candidates"][0]["content"]["parts"]]
    masked("".join(part["text"] for part in parts if "text" in part and not part.get("thought")))
    assert len(arrived) > 5
    assert arrived[-1][0] - arrived[0][0] > 0.05
    assert setting.row()["streamed"] == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "text", "tools", "reason"),
    [
        (MODEL, f"use {KEY}", SEND, "finding"),
        ("bad-model", "hello", SEND, "model_denied"),
        (MODEL, "hello", {"function_declarations": [{"name": "bash"}]}, "tool_denied"),
    ],
)
def test_gemini_reads_why_it_was_refused(
    setting: Setting, google: Any, model: str, text: str, tools: Any, reason: str, *, stream: bool
) -> None:
    before = len(setting.upstream.requests)
    ask = google.generate_content_stream if stream else google.generate_content
    with pytest.raises(genai.errors.ClientError) as raised:
        list(ask(model=model, contents=text, config={"tools": [tools]}))
    row = setting.row(raised.value.message)
    assert (raised.value.code, raised.value.status, row["reason"]) == (403, "PERMISSION_DENIED", reason)
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


def test_gemini_reads_why_its_answer_was_cut(setting: Setting) -> None:
    pieces = [b'data: {"candidates":[]}\n\n', b"data: garbage\n\n"]
    for version in ("v1", "v1beta"):
        setting.upstream.streams(pieces, path=f"/{version}/models/{MODEL}:streamGenerateContent?alt=sse")
    options = {"base_url": f"{setting.gate.url}/gemini"}
    with (
        genai.Client(api_key=setting.token, http_options=options) as client,
        pytest.raises(genai.errors.APIError, match="malformed") as raised,
    ):
        list(client.models.generate_content_stream(model=MODEL, contents="hello"))
    setting.upstream.answers.clear()
    assert setting.row(raised.value.message)["reason"] == "answer_malformed"


# ── Bedrock ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BEDROCK_MODEL = "good-model-v1:0"
TOOLS = {"tools": [{"toolSpec": {"name": "send_mail", "inputSchema": {"json": {"type": "object"}}}}]}


def bedrock(setting: Setting) -> Any:
    """Return the SDK's client: with a bearer token where the environment has one, else it signs its requests."""
    config = pytest.importorskip("botocore.config").Config(retries={"max_attempts": 1}, read_timeout=20)
    session = boto3.Session("AKIAIOSFODNN7EXAMPLE", "not-a-secret-key", region_name="us-east-1")
    url = f"https://localhost:{setting.gate.port}/bedrock"  # the SDK shows a bearer token to nobody without TLS
    ca = str(setting.gate.cwd / "ca" / "mitmproxy-ca-cert.pem")
    return session.client("bedrock-runtime", endpoint_url=url, verify=ca, config=config)


@pytest.fixture
def aws(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", setting.token)
    client = bedrock(setting)
    yield client
    client.close()


def turn(text: str) -> dict[str, Any]:
    return {"modelId": BEDROCK_MODEL, "messages": [{"role": "user", "content": [{"text": text}]}]}


def claude(text: str) -> dict[str, Any]:
    said = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": said}
    return {"modelId": BEDROCK_MODEL, "body": json.dumps(body)}


def deltas(stream: Any) -> Iterator[tuple[float, dict[str, Any]]]:
    for event in stream:
        if "contentBlockDelta" in event:
            yield time.monotonic(), event["contentBlockDelta"]["delta"]


def test_bedrock_answers_are_intact(setting: Setting, aws: Any) -> None:
    before = len(setting.upstream.requests)
    assert aws.converse(**turn("hello there"))["output"]["message"]["content"] == [{"text": "You said: hello there"}]
    events = list(aws.converse_stream(**turn("hello there"))["stream"])
    assert "".join(text for _, each in deltas(events) for text in each.values()) == "You said: hello there"
    assert events[-1]["metadata"]["usage"] == {"inputTokens": 1}
    body = json.loads(aws.invoke_model(**claude("hello there"))["body"].read())
    assert body["content"] == [{"type": "text", "text": "You said: hello there"}]
    counted = {"modelId": BEDROCK_MODEL, "input": {"converse": {"messages": turn("hello")["messages"]}}}
    assert aws.count_tokens(**counted)["inputTokens"] == 7
    sent = setting.crossed(before)
    assert len(sent) == 4
    assert {each.headers["authorization"] for each in sent} == {f"Bearer {CREDENTIAL}"}


def test_bedrock_whole_answers_are_masked(aws: Any) -> None:
    text, call = aws.converse(**turn("leak"), toolConfig=TOOLS)["output"]["message"]["content"]
    masked(text["text"])
    assert call["toolUse"]["input"] == {"to": "[REDACTED:email]", "subject": "hi"}
    masked(json.loads(aws.invoke_model(**claude("leak"))["body"].read())["content"][0]["text"])


def test_bedrock_streams_are_masked_live(setting: Setting, aws: Any) -> None:
    arrived = list(deltas(aws.converse_stream(**turn("leak"), toolConfig=TOOLS)["stream"]))
    arguments = "".join(each["toolUse"]["input"] for _, each in arrived if "toolUse" in each)
    assert json.loads(arguments) == {"to": "[REDACTED:email]", "subject": "hi"}
    live(setting, [(at, each["text"]) for at, each in arrived if "text" in each], BEDROCK_MODEL)
    chunks = aws.invoke_model_with_response_stream(**claude("leak"))["body"]
    events = [(time.monotonic(), json.loads(each["chunk"]["bytes"])) for each in chunks]
    live(setting, [(at, each["delta"]["text"]) for at, each in events if "delta" in each], BEDROCK_MODEL)


@pytest.mark.parametrize("operation", ["converse", "converse_stream"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": turn(f"use {KEY}")["messages"]}, "finding"),
        ({"modelId": "bad-model-v1:0"}, "model_denied"),
        (
            {"toolConfig": {"tools": [{"toolSpec": {"name": "bash", "inputSchema": {"json": {"type": "object"}}}}]}},
            "tool_denied",
        ),
    ],
    ids=["finding", "model", "tool"],
)
def test_bedrock_reads_why_it_was_refused(
    setting: Setting, aws: Any, changes: dict[str, Any], reason: str, operation: str
) -> None:
    before = len(setting.upstream.requests)
    with pytest.raises(aws.exceptions.AccessDeniedException) as raised:
        getattr(aws, operation)(**{**turn("hello"), **changes})
    row = setting.row(str(raised.value))
    assert (row["reason"], row["status"]) == (reason, 403)
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


def test_bedrock_reads_why_its_answer_was_cut(setting: Setting, aws: Any) -> None:
    broken = message_piece("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"x"}}')
    pieces = [message_piece("messageStart", b'{"role":"assistant"}'), broken[:-1] + bytes([broken[-1] ^ 1])]

    async def cut(_: Any, writer: Any) -> None:
        await stream(writer, "application/vnd.amazon.eventstream", pieces)

    setting.upstream.does(cut, f"/model/{BEDROCK_MODEL.replace(':', '%3A')}/converse-stream")
    error = pytest.importorskip("botocore.exceptions").EventStreamError
    events = aws.converse_stream(**turn("hello"))["stream"]
    with pytest.raises(error, match="malformed") as raised:
        list(events)
    events.close()
    setting.upstream.answers.clear()
    assert "modelStreamErrorException" in str(raised.value)
    assert setting.row(str(raised.value))["reason"] == "answer_malformed"


def test_a_signed_request_has_no_token_to_show(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
    client, before = bedrock(setting), len(setting.upstream.requests)
    with pytest.raises(client.exceptions.AccessDeniedException) as raised:
        client.converse(**turn("hello"))
    client.close()
    assert setting.row(str(raised.value))["reason"] == "caller_missing"
    assert setting.crossed(before) == []
