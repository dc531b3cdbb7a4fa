"""Servers with an API of their own behind a running gate: intact, masked whole and live, refused in a sentence."""

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


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with served(tmp_path_factory.mktemp("natives")) as found:
        yield found


@pytest.fixture
def http(setting: Setting) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {setting.token}"}
    with httpx.Client(base_url=setting.gate.url, headers=headers, timeout=20) as client:
        yield client


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
