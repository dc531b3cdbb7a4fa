"""Unmodified clients of Cohere and Mistral through a running gate: intact, masked, refused in their words."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.natives import HELLO, intact, live, served
from tests.e2e.test_families import KEY, Setting, masked

pytestmark = pytest.mark.e2e

MODEL = "good-model"
MASKED_ARGUMENTS = {"to": "[REDACTED:email]", "subject": "hi"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with served(tmp_path_factory.mktemp("natives")) as found:
        yield found


@pytest.fixture
def http(setting: Setting) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {setting.token}"}
    with httpx.Client(base_url=setting.gate.url, headers=headers, timeout=20) as client:
        yield client


# ── Cohere ───────────────────────────────────────────────────────────────────────────────────────────────────────────

SEND = {"name": "send_mail", "description": "sends", "parameter_definitions": {"to": {"type": "str"}}}


@pytest.fixture(scope="module")
def cohere_sdk() -> Any:
    return pytest.importorskip("cohere")


@pytest.fixture
def first(setting: Setting, cohere_sdk: Any) -> Iterator[Any]:
    with httpx.Client(timeout=20) as own:
        yield cohere_sdk.Client(setting.token, base_url=f"{setting.gate.url}/cohere", max_retries=0, httpx_client=own)


@pytest.fixture
def second(setting: Setting, cohere_sdk: Any) -> Iterator[Any]:
    with httpx.Client(timeout=20) as own:
        yield cohere_sdk.ClientV2(setting.token, base_url=f"{setting.gate.url}/cohere", max_retries=0, httpx_client=own)


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_cohere_answers_are_intact(setting: Setting, first: Any, second: Any) -> None:
    before = len(setting.upstream.requests)
    assert first.chat(message="hello", model=MODEL).text == HELLO
    events = list(first.chat_stream(message="hello", model=MODEL))
    assert "".join(each.text for each in events if each.event_type == "text-generation") == HELLO
    assert events[-1].response.text == HELLO
    assert first.generate(prompt="hello", model=MODEL).generations[0].text == HELLO
    pieces = first.generate_stream(prompt="hello", model=MODEL)
    assert "".join(each.text for each in pieces if each.event_type == "text-generation") == HELLO
    assert first.embed(texts=["hello"], model=MODEL).embeddings == [[0.015991924, -0.1588247]]
    assert first.rerank(query="q", documents=["a"], model=MODEL).results[0].relevance_score == 0.9871234
    examples = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert first.classify(inputs=["hello"], examples=examples, model=MODEL).classifications[0].prediction == HELLO
    assert first.tokenize(text="hello", model=MODEL, offline=False).tokens == [1627, 204231]
    assert second.chat(messages=says("hello"), model=MODEL).message.content[0].text == HELLO
    found = second.embed(texts=["hello"], model=MODEL, input_type="classification", embedding_types=["float"])
    assert found.embeddings.float_ == [[0.015991924, -0.1588247]]
    assert second.rerank(query="q", documents=["a"], model=MODEL).results[0].index == 0
    intact(setting, before, 11)


def test_cohere_whole_answers_are_masked(first: Any, second: Any) -> None:
    answer = first.chat(message="leak", model=MODEL, tools=[SEND])
    masked(answer.text)
    masked(answer.chat_history[0].message)
    assert answer.tool_calls[0].parameters == MASKED_ARGUMENTS
    masked(first.generate(prompt="leak", model=MODEL).generations[0].text)
    masked(second.rerank(query="leak", documents=["a"], model=MODEL).results[0].document["text"])
    masked(second.chat(messages=says("leak"), model=MODEL).message.content[0].text)


def test_cohere_streams_are_masked_live(setting: Setting, first: Any, second: Any) -> None:
    arrived = [(time.monotonic(), each) for each in first.chat_stream(message="leak", model=MODEL, tools=[SEND])]
    live(setting, [(at, each.text) for at, each in arrived if each.event_type == "text-generation"])
    calls = [each.tool_call_delta.parameters for _, each in arrived if each.event_type == "tool-calls-chunk"]
    assert json.loads("".join(calls)) == MASKED_ARGUMENTS
    masked(arrived[-1][1].response.text)
    pieces = [(time.monotonic(), each) for each in first.generate_stream(prompt="leak", model=MODEL)]
    live(setting, [(at, each.text) for at, each in pieces if each.event_type == "text-generation"])
    said = [(time.monotonic(), each) for each in second.chat_stream(messages=says("leak"), model=MODEL)]
    live(setting, [(at, each.delta.message.content.text) for at, each in said if each.type == "content-delta"])


@pytest.mark.parametrize("version", ["v1", "v1-stream", "v2", "v2-stream"])
@pytest.mark.parametrize(
    ("model", "text", "tool", "reason"),
    [
        (MODEL, f"use {KEY}", "send_mail", "finding"),
        ("bad-model", "hello", "send_mail", "model_denied"),
        (MODEL, "hello", "bash", "tool_denied"),
    ],
    ids=["finding", "model", "tool"],
)
def test_cohere_reads_why_it_was_refused(  # noqa: PLR0917 - pytest's
    setting: Setting,
    cohere_sdk: Any,
    first: Any,
    second: Any,
    model: str,
    text: str,
    tool: str,
    reason: str,
    version: str,
) -> None:
    before = len(setting.upstream.requests)
    old = {"message": text, "model": model, "tools": [{**SEND, "name": tool}]}
    described = {"name": tool, "parameters": {"type": "object", "properties": {}}}
    new = {"messages": says(text), "model": model, "tools": [{"type": "function", "function": described}]}
    ask, body = {
        "v1": (first.chat, old), "v1-stream": (first.chat_stream, old),
        "v2": (second.chat, new), "v2-stream": (second.chat_stream, new),
    }[version]  # fmt: skip
    with pytest.raises(cohere_sdk.ForbiddenError) as raised:
        list(ask(**body))
    sentence = raised.value.body["message"]
    assert setting.row(sentence)["reason"] == reason
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


def test_cohere_reads_why_its_answer_was_cut(setting: Setting, first: Any) -> None:
    piece = b'{"is_finished":false,"event_type":"text-generation","text":"Hi! "}\n'
    setting.upstream.streams([piece, b"garbage\n"], path="/cohere/v1/chat")
    try:
        events = list(first.chat_stream(message="hello", model=MODEL))
    finally:
        del setting.upstream.answers["/cohere/v1/chat"]
    assert (events[-1].event_type, events[-1].finish_reason) == ("stream-end", "ERROR")
    assert "malformed" in events[-1].response.text
    assert setting.row(events[-1].response.text)["reason"] == "answer_malformed"


def test_cohere_stored_text_and_connectors_are_refused(setting: Setting, cohere_sdk: Any, first: Any) -> None:
    before = len(setting.upstream.requests)
    for more in ({"conversation_id": "c1"}, {"connectors": [{"id": "web-search"}]}):
        with pytest.raises(cohere_sdk.BadRequestError) as raised:
            first.chat(message="hello", model=MODEL, **more)
        assert setting.row(str(raised.value))["reason"] == "body_opaque"
    with pytest.raises(cohere_sdk.BadRequestError, match="token ids"):
        first.detokenize(tokens=[1, 2], model=MODEL, offline=False)
    assert setting.crossed(before) == []


# ── Mistral ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MAIL = {"type": "function", "function": {"name": "send_mail", "parameters": {"type": "object"}}}


@pytest.fixture
def mistral(setting: Setting) -> Iterator[Any]:
    sdk = pytest.importorskip("mistralai.client")
    with sdk.Mistral(setting.token, server_url=f"{setting.gate.url}/mistral") as client:
        yield client


def deltas(stream: Any) -> Iterator[tuple[float, Any]]:
    for event in stream:
        for choice in event.data.choices:
            yield time.monotonic(), choice.delta


def texts(content: Any) -> tuple[str, str]:
    """Return the text and the thinking of a content."""
    if not isinstance(content, list):
        return content or "", ""
    text = "".join(part.text for part in content if part.type == "text")
    return text, "".join(each.text for part in content if part.type == "thinking" for each in part.thinking)


def test_mistral_answers_are_intact(setting: Setting, mistral: Any) -> None:
    before = len(setting.upstream.requests)
    content = mistral.chat.complete(model=MODEL, messages=says("hello")).choices[0].message.content
    assert texts(content)[0] == HELLO
    with mistral.chat.stream(model=MODEL, messages=says("hello")) as stream:
        assert "".join(texts(each.content)[0] for _, each in deltas(stream)) == HELLO
    assert mistral.fim.complete(model=MODEL, prompt="def f(", suffix=")").choices[0].message.content == HELLO
    assert mistral.agents.complete(agent_id="good-agent", messages=says("hi")).choices[0].message.content == HELLO
    assert mistral.embeddings.create(model=MODEL, inputs=["hello"]).data[0].embedding == [0.015991924, -0.1588247]
    assert mistral.classifiers.moderate(model=MODEL, inputs=["hi"]).results[0].category_scores["hate"] == 0.000123456
    document = "data:text/plain;base64," + base64.b64encode(b"hello there").decode()
    read = mistral.ocr.process(model=MODEL, document={"type": "document_url", "document_url": document})
    assert read.pages[0].markdown == HELLO
    assert mistral.models.list().data == []
    intact(setting, before, 8)


def test_mistral_whole_answers_are_masked(mistral: Any) -> None:
    message = mistral.chat.complete(model=MODEL, messages=says("leak"), tools=[MAIL]).choices[0].message
    text, thinking = texts(message.content)
    masked(text)
    assert thinking == "The card is [REDACTED:card-visa]."
    assert json.loads(message.tool_calls[0].function.arguments) == MASKED_ARGUMENTS
    masked(mistral.fim.complete(model=MODEL, prompt="leak").choices[0].message.content)
    document = "data:text/plain;base64," + base64.b64encode(b"hello there").decode()
    source = {"type": "document_url", "document_url": document, "document_name": "leak"}
    masked(mistral.ocr.process(model=MODEL, document=source).pages[0].markdown)


def test_mistral_streams_are_masked_live(setting: Setting, mistral: Any) -> None:
    with mistral.chat.stream(model=MODEL, messages=says("leak"), tools=[MAIL]) as stream:
        arrived = list(deltas(stream))
    assert "".join(texts(each.content)[1] for _, each in arrived) == "The card is [REDACTED:card-visa]."
    (call,) = [call for _, each in arrived for call in each.tool_calls or ()]
    assert json.loads(call.function.arguments) == MASKED_ARGUMENTS
    live(setting, [(at, texts(each.content)[0]) for at, each in arrived])
    with mistral.fim.stream(model=MODEL, prompt="leak") as stream:
        live(setting, [(at, texts(each.content)[0]) for at, each in deltas(stream)])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "text", "tool", "reason"),
    [
        (MODEL, f"use {KEY}", "send_mail", "finding"),
        ("bad-model", "hello", "send_mail", "model_denied"),
        (MODEL, "hello", "bash", "tool_denied"),
    ],
    ids=["finding", "model", "tool"],
)
def test_mistral_reads_why_it_was_refused(
    setting: Setting, mistral: Any, model: str, text: str, tool: str, reason: str, *, stream: bool
) -> None:
    errors = pytest.importorskip("mistralai.client.errors")
    before = len(setting.upstream.requests)
    described = {"type": "function", "function": {"name": tool, "parameters": {"type": "object"}}}
    ask = mistral.chat.stream if stream else mistral.chat.complete
    with pytest.raises(errors.SDKError) as raised:
        ask(model=model, messages=says(text), tools=[described])
    assert setting.row(raised.value.body)["reason"] == reason
    assert raised.value.status_code == 403
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


def test_a_document_for_mistral_is_read_before_it_is_sent(setting: Setting, mistral: Any, http: httpx.Client) -> None:
    errors = pytest.importorskip("mistralai.client.errors")
    before = len(setting.upstream.requests)
    document = "data:text/plain;base64," + base64.b64encode(f"my key is {KEY}".encode()).decode()
    with pytest.raises(errors.SDKError) as raised:
        mistral.ocr.process(model=MODEL, document={"type": "document_url", "document_url": document})
    assert setting.row(raised.value.body)["reason"] == "finding"
    with pytest.raises(errors.SDKError, match="not scanned"):
        mistral.ocr.process(model=MODEL, document={"type": "document_url", "document_url": "https://a.example/x.pdf"})
    assert "no endpoint" in http.post("/mistral/v1/conversations", json={"model": MODEL, "inputs": "hello"}).text
    assert setting.crossed(before) == []


def test_mistral_reads_why_its_answer_was_cut(setting: Setting, mistral: Any) -> None:
    errors = pytest.importorskip("mistralai.client.errors")
    chunk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Hi! "}, "finish_reason": None}]}
    pieces = [b"data: " + json.dumps(chunk).encode() + b"\n\n", b"data: garbage\n\n"]
    setting.upstream.streams(pieces, path="/mistral/v1/chat/completions")
    try:
        with (
            pytest.raises(errors.ResponseValidationError) as raised,
            mistral.chat.stream(model=MODEL, messages=says("hello")) as stream,
        ):
            list(stream)
    finally:
        del setting.upstream.answers["/mistral/v1/chat/completions"]
    assert "malformed" in raised.value.body
    assert setting.row(raised.value.body)["reason"] == "answer_malformed"


# ── what else the larger providers have ──────────────────────────────────────────────────────────────────────────────


def test_anthropic_at_vertex(setting: Setting) -> None:
    sdk = pytest.importorskip("anthropic")
    url = f"{setting.gate.url}/anthropic/v1"
    place = {"region": "us-east5", "project_id": "p", "access_token": setting.token}
    said = [{"role": "user", "content": "leak"}]
    with sdk.AnthropicVertex(base_url=url, max_retries=0, **place) as client:
        before = len(setting.upstream.requests)
        hello = client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "hello"}])
        assert hello.content[0].text == HELLO
        (sent,) = setting.crossed(before)
        assert sent.path.endswith(f"/publishers/anthropic/models/{MODEL}:rawPredict")
        masked(client.messages.create(model=MODEL, max_tokens=9, messages=said).content[0].text)
        with client.messages.stream(model=MODEL, max_tokens=9, messages=said) as stream:
            live(setting, [(time.monotonic(), text) for text in stream.text_stream])
        before = len(setting.upstream.requests)
        with pytest.raises(sdk.PermissionDeniedError):
            client.messages.create(model="bad-model", max_tokens=9, messages=said)
        assert setting.crossed(before) == []


def test_anthropic_completions(setting: Setting, http: httpx.Client) -> None:
    def ask(text: str, **more: object) -> dict[str, object]:
        return {"json": {"model": MODEL, "max_tokens_to_sample": 9, "prompt": text, **more}}

    path = "/anthropic/v1/complete"
    assert http.post(path, **ask("hello")).json()["completion"] == HELLO
    masked(http.post(path, **ask("leak")).json()["completion"])
    with http.stream("POST", path, **ask("leak", stream=True)) as answer:
        lines = [(time.monotonic(), line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    live(setting, [(at, json.loads(line)["completion"]) for at, line in lines])
    before = len(setting.upstream.requests)
    refused = http.post(path, **ask(f"use {KEY}"))
    assert (refused.status_code, setting.row(refused.text)["reason"]) == (403, "finding")
    assert setting.crossed(before) == []


def test_openai_moderations_and_rerank(setting: Setting, http: httpx.Client) -> None:
    sdk = pytest.importorskip("openai")
    with sdk.OpenAI(api_key=setting.token, base_url=f"{setting.gate.url}/openai/v1", max_retries=0) as client:
        assert client.moderations.create(model=MODEL, input="hello").results[0].category_scores.hate == 0.000123456
        before = len(setting.upstream.requests)
        with pytest.raises(sdk.PermissionDeniedError, match="Blocked by policy"):
            client.moderations.create(model=MODEL, input=["a", f"use {KEY}"])
        assert setting.crossed(before) == []
    body = {"model": MODEL, "query": "leak", "documents": ["a"]}
    masked(http.post("/openai/v1/rerank", json=body).json()["data"][0]["document"])


def test_gemini_interactions_and_predict(setting: Setting, http: httpx.Client) -> None:
    path, key = "/gemini/v1beta/interactions", {"x-goog-api-key": setting.token}
    del http.headers["authorization"]

    def ask(**body: object) -> httpx.Response:
        return http.post(path, json={"model": MODEL, **body}, headers=key)

    assert ask(input="hello").json()["steps"][0]["content"][0]["text"] == HELLO
    masked(ask(input="leak").json()["steps"][0]["content"][0]["text"])
    body = {"model": MODEL, "input": [{"type": "text", "text": "leak"}], "stream": True}
    with http.stream("POST", path, json=body, headers=key) as answer:
        lines = [(time.monotonic(), line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    events = [(at, json.loads(line)) for at, line in lines]
    live(setting, [(at, event["delta"]["text"]) for at, event in events if "delta" in event])
    before = len(setting.upstream.requests)
    for refused in ({"input": f"use {KEY}"}, {"input": "a", "previous_interaction_id": "v1_1"}):
        assert ask(**refused).status_code in {400, 403}
    assert setting.crossed(before) == []
    predict = f"/gemini/v1/projects/p/locations/l/publishers/google/models/{MODEL}:predict"
    found = http.post(predict, json={"instances": [{"content": "hello"}]}, headers=key).json()
    assert found["predictions"][0]["embeddings"]["values"] == [0.015991924, -0.1588247]
