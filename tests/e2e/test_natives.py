"""Clients of providers and servers with an API of their own, through a running gate: intact, masked, refused."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.harness import CREDENTIAL, policy, tidegate_run, token
from tests.e2e.natives import HELLO, SPEAK, Natives
from tests.e2e.test_families import BEARER, KEY, Setting, masked

pytestmark = pytest.mark.e2e

MODEL = "good-model"
MASKED_ARGUMENTS = {"to": "[REDACTED:email]", "subject": "hi"}
NAMELESS = ["llamacpp", "tgi"]
"""Whose requests name no model."""

ROLES = {
    "dev": {
        "allow": [
            {"connections": [name for name in SPEAK if name not in NAMELESS], "endpoints": ["*"], "models": ["good-*"]},
            {"connections": NAMELESS, "endpoints": ["*"]},
        ],
        "deny": [{"tools": ["bash"]}],
    }
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("natives")
    with Natives() as upstream:
        connections = [
            {
                "name": name,
                "dialect": name,
                "upstream": f"{upstream.url}/{name}",
                "serve": {"path": f"/{name}"},
                "credential": {**BEARER},
            }
            for name in SPEAK
        ]
        written = policy(folder, upstream.url, connections=connections, roles=ROLES)
        secret = token(folder)
        with tidegate_run(written) as gate:
            yield Setting(gate, upstream, secret)  # type: ignore[arg-type]  # another upstream of the same kind


@pytest.fixture
def http(setting: Setting) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {setting.token}"}
    with httpx.Client(base_url=setting.gate.url, headers=headers, timeout=20) as client:
        yield client


def live(setting: Setting, arrived: list[tuple[float, str]]) -> None:
    masked("".join(text for _, text in arrived))
    assert len([text for _, text in arrived if text]) > 5
    assert arrived[-1][0] - arrived[0][0] > 0.05, "all deltas came at once: the answer was not live"
    row = setting.row()
    assert (row["status"], row["streamed"]) == (200, 1)
    assert row["outcome"] in {"answered", "aborted"}, "some SDKs hang up at [DONE], before the end of the answer"


def intact(setting: Setting, before: int, number: int) -> None:
    sent = setting.crossed(before)
    assert len(sent) == number
    assert {each.headers["authorization"] for each in sent} == {f"Bearer {CREDENTIAL}"}


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


def test_mistral_raises_when_its_answer_was_cut(setting: Setting, mistral: Any) -> None:
    chunk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Hi! "}, "finish_reason": None}]}
    pieces = [b"data: " + json.dumps(chunk).encode() + b"\n\n", b"data: garbage\n\n"]
    setting.upstream.streams(pieces, path="/mistral/v1/chat/completions")
    try:
        with (
            pytest.raises(Exception, match="error"),
            mistral.chat.stream(model=MODEL, messages=says("hello")) as stream,
        ):
            list(stream)
    finally:
        del setting.upstream.answers["/mistral/v1/chat/completions"]
    assert setting.row()["reason"] == "answer_malformed"


# ── Text Generation Inference, by Hugging Face's own client ──────────────────────────────────────────────────────────


@pytest.fixture
def hugging(setting: Setting) -> Any:
    sdk = pytest.importorskip("huggingface_hub")
    return sdk.InferenceClient(f"{setting.gate.url}/tgi/", token=setting.token)


def test_tgi_answers_are_intact_and_masked(setting: Setting, hugging: Any) -> None:
    before = len(setting.upstream.requests)
    assert hugging.text_generation("hello") == HELLO
    assert "".join(hugging.text_generation("hello", stream=True)) == HELLO
    intact(setting, before, 2)
    masked(hugging.text_generation("leak"))
    found = hugging.text_generation("leak", details=True)
    masked(found.generated_text)
    assert not found.details.tokens
    live(setting, [(time.monotonic(), part) for part in hugging.text_generation("leak", stream=True)])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tgi_reads_why_it_was_refused(setting: Setting, hugging: Any, *, stream: bool) -> None:
    before = len(setting.upstream.requests)
    with pytest.raises(Exception, match="Blocked by policy") as raised:
        list(hugging.text_generation(f"use {KEY}", stream=stream))
    assert setting.row(str(raised.value))["reason"] == "finding"
    assert KEY not in str(raised.value)
    assert setting.crossed(before) == []


# ── servers without an SDK ───────────────────────────────────────────────────────────────────────────────────────────

TENSOR = {"name": "in", "datatype": "BYTES", "shape": [1, 1]}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm classify": ("/vllm/classify", {"model": MODEL, "input": "@"}),
    "vllm rerank": ("/vllm/v1/rerank", {"model": MODEL, "query": "q", "documents": ["@"]}),
    "llamacpp": ("/llamacpp/completion", {"prompt": "@", "n_predict": 9}),
    "llamacpp infill": ("/llamacpp/infill", {"prompt": "", "input_prefix": "@", "input_suffix": "x"}),
    "llamacpp template": ("/llamacpp/apply-template", {"messages": [{"role": "user", "content": "@"}]}),
    "tgi": ("/tgi/generate", {"inputs": "@", "parameters": {"max_new_tokens": 9}}),
    "kserve": (f"/kserve/v2/models/{MODEL}/infer", {"inputs": [{**TENSOR, "data": [["@"]]}]}),
    "kserve version": (f"/kserve/v2/models/{MODEL}/versions/3/infer", {"inputs": [{**TENSOR, "data": ["@"]}]}),
    "triton": (f"/kserve/v2/models/{MODEL}/generate", {"text_input": "@", "parameters": {"temperature": 0.1}}),
    "tfserving": (f"/tfserving/v1/models/{MODEL}:predict", {"instances": [{"text": "@"}]}),
    "tfserving version": (f"/tfserving/v1/models/{MODEL}/versions/2:predict", {"inputs": {"text": ["@"]}}),
    "tfserving label": (f"/tfserving/v1/models/{MODEL}/labels/stable:classify", {"examples": [{"text": "@"}]}),
    "torchserve": (f"/torchserve/predictions/{MODEL}", {"text": "@", "top": 3}),
    "torchserve version": (f"/torchserve/predictions/{MODEL}/1.0", {"text": "@"}),
}
"""Requests by name: their address, and their body with ``@`` in the place of the words."""

STREAMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llamacpp": ("/llamacpp/completion", {"prompt": "@", "stream": True}, "content"),
    "tgi": ("/tgi/generate_stream", {"inputs": "@"}, "token.text"),
    "tgi either": ("/tgi/", {"inputs": "@", "stream": True}, "token.text"),
    "triton": (f"/kserve/v2/models/{MODEL}/generate_stream", {"text_input": "@"}, "text_output"),
}


def about(body: dict[str, Any], text: str) -> dict[str, Any]:
    return json.loads(json.dumps(body).replace("@", text))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers_of_servers(setting: Setting, http: httpx.Client, name: str) -> None:
    path, body = WHOLE[name]
    before = len(setting.upstream.requests)
    assert HELLO in http.post(path, json=about(body, "hello")).text
    (sent,) = setting.crossed(before)
    assert json.loads(sent.body) == about(body, "hello")
    answer = http.post(path, json=about(body, "leak"))
    assert answer.status_code == 200
    assert "[REDACTED:card-visa]" in answer.text
    assert "jane.doe" not in answer.text
    assert "1111" not in answer.text
    assert isinstance(answer.json(), dict | list)
    before = len(setting.upstream.requests)
    refused = http.post(path, json=about(body, f"use {KEY}"))
    assert refused.status_code == 403
    assert KEY not in refused.text
    assert setting.row(refused.text)["reason"] == "finding"
    assert setting.crossed(before) == []


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_servers(setting: Setting, http: httpx.Client, name: str) -> None:
    path, body, field = STREAMS[name]

    def arrived(text: str) -> list[tuple[float, dict[str, Any]]]:
        with http.stream("POST", path, json=about(body, text)) as answer:
            assert answer.status_code == 200
            lines = [(time.monotonic(), line[5:].strip()) for line in answer.iter_lines() if line.startswith("data:")]
        return [(at, json.loads(line)) for at, line in lines]

    def said(event: dict[str, Any]) -> str:
        value: Any = event
        for part in field.split("."):
            value = value[part]
        return str(value)

    assert "".join(said(event) for _, event in arrived("hello")) == HELLO
    events = arrived("leak")
    live(setting, [(at, said(event)) for at, event in events])
    assert "204231" not in json.dumps([event for _, event in events]), "the same text as token ids"
    before = len(setting.upstream.requests)
    refused = http.post(path, json=about(body, f"use {KEY}"))
    assert (refused.status_code, setting.row(refused.text)["reason"]) == (403, "finding")
    assert setting.crossed(before) == []


def test_what_servers_say_of_themselves(setting: Setting, http: httpx.Client) -> None:
    before = len(setting.upstream.requests)
    paths = [
        "/llamacpp/health", "/tgi/info", "/kserve/v2/health/ready", f"/kserve/v2/models/{MODEL}/ready",
        f"/tfserving/v1/models/{MODEL}/metadata", "/torchserve/ping",
    ]  # fmt: skip
    assert [http.get(path).status_code for path in paths] == [200] * len(paths)
    assert http.post("/vllm/tokenize", json={"model": MODEL, "prompt": "hello"}).json()["tokens"] == [1627, 204231]
    assert http.post("/vllm/pooling", json={"model": MODEL, "input": "hello"}).status_code == 200
    assert http.post("/llamacpp/embedding", json={"content": "hello"}).json()[0]["index"] == 0
    intact(setting, before, len(paths) + 3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llamacpp ids": ("/llamacpp/completion", {"prompt": [1, 2]}, "body_opaque"),
    "llamacpp mixed": ("/llamacpp/completion", {"prompt": ["a", 12]}, "body_opaque"),
    "llamacpp probabilities": ("/llamacpp/completion", {"prompt": "a", "n_probs": 3}, "second_copy"),
    "llamacpp detokenize": ("/llamacpp/detokenize", {"tokens": [1, 2]}, "body_opaque"),
    "llamacpp slots": ("/llamacpp/slots", {}, "no_endpoint"),
    "vllm detokenize": ("/vllm/detokenize", {"model": MODEL, "tokens": [1]}, "body_opaque"),
    "vllm ids": ("/vllm/pooling", {"model": MODEL, "input": [1, 2]}, "body_opaque"),
    "tgi prompt again": (
        "/tgi/generate",
        {"inputs": "a", "parameters": {"decoder_input_details": True}},
        "second_copy",
    ),
    "kserve numbers": (
        f"/kserve/v2/models/{MODEL}/infer",
        {"inputs": [{"name": "in", "datatype": "INT64", "shape": [2], "data": [1, 2]}]},
        "body_opaque",
    ),
    "kserve shared memory": (
        f"/kserve/v2/models/{MODEL}/infer",
        {"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "r"}}]},
        "body_opaque",
    ),
    "kserve binary answer": (
        f"/kserve/v2/models/{MODEL}/infer",
        {"inputs": [{**TENSOR, "data": ["a"]}], "parameters": {"binary_data_output": True}},
        "body_opaque",
    ),
    "kserve other model": ("/kserve/v2/models/bad-model/infer", {"inputs": []}, "model_denied"),
    "kserve load": (f"/kserve/v2/repository/models/{MODEL}/load", {}, "no_endpoint"),
    "triton numbers": (f"/kserve/v2/models/{MODEL}/generate", {"input_ids": [1, 2]}, "body_opaque"),
    "tfserving numbers": (f"/tfserving/v1/models/{MODEL}:predict", {"instances": [[1, 2]]}, "body_opaque"),
    "tfserving picture": (
        f"/tfserving/v1/models/{MODEL}:predict",
        {"instances": [{"b64": base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()}]},
        "body_opaque",
    ),
    "tfserving key in base64": (
        f"/tfserving/v1/models/{MODEL}:predict",
        {"instances": [{"b64": base64.b64encode(f"my key: {KEY}".encode()).decode()}]},
        "finding",
    ),
    "tfserving other method": (f"/tfserving/v1/models/{MODEL}:train", {}, "no_endpoint"),
    "torchserve numbers": (f"/torchserve/predictions/{MODEL}", {"ids": [[1, 2]]}, "body_opaque"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_servers_are_not_asked(setting: Setting, http: httpx.Client, name: str) -> None:
    path, body, reason = REFUSED[name]
    before = len(setting.upstream.requests)
    answer = http.post(path, json=body)
    assert answer.status_code >= 400
    assert setting.row(answer.text)["reason"] == reason
    assert setting.crossed(before) == []


def test_tensors_in_binary_are_refused_in_a_sentence(setting: Setting, http: httpx.Client) -> None:
    before = len(setting.upstream.requests)
    head = json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": 9}}]}).encode()
    length = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    body = head + b"\x05\0\0\0hello"
    answer = http.post(f"/kserve/v2/models/{MODEL}/infer", content=body, headers=length)
    assert answer.status_code == 400
    assert "tensors in binary follow its JSON; send them as JSON data" in answer.json()["error"]
    assert setting.row(answer.text)["reason"] == "body_opaque"
    assert setting.crossed(before) == []
