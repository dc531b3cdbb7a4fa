"""The dialects of servers and providers with an API of their own: addresses, what they refuse, what is media."""

from __future__ import annotations

import base64

import pytest

from tests import wire_natives
from tests.wire import FORMS, KEY, ROOT, Said, always, answer, dialect, engine, events_of, every, pieces, sse
from tidegate.dialects.addresses import match, model_named
from tidegate.dialects.asking import asked
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import is_of, refused
from tidegate.inspection import media
from tidegate.inspection.bodies import Inspected, inspect_answer
from tidegate.judging import barred
from tidegate.model import Action, Asked, Denial, Head, Reason
from tidegate.streams.channels import REPEATED

NAMES = sorted(path.stem for path in (ROOT / "rules" / "dialects").glob("*.yaml"))

# addresses ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "method", "path", "endpoint", "model"),
    [
        ("cohere", "POST", "/v1/chat", "chat_v1", None),
        ("cohere", "POST", "/v2/chat", "chat", None),
        ("cohere", "POST", "/v1/embed-jobs", None, None),
        ("cohere", "POST", "/v1/datasets", None, None),
        ("mistral", "POST", "/v1/fim/completions", "fim", None),
        ("mistral", "POST", "/v1/chat/moderations", "moderations", None),
        ("mistral", "POST", "/v1/conversations", None, None),
        ("mistral", "GET", "/v1/libraries", None, None),
        ("mistral", "POST", "/v1/files", None, None),
        ("vllm", "POST", "/score", "rerank", None),
        ("vllm", "POST", "/v1/chat/completions", None, None),
        ("vllm", "POST", "/sleep", None, None),
        ("llamacpp", "POST", "/completion", "completion", None),
        ("llamacpp", "GET", "/props", "properties", None),
        ("llamacpp", "POST", "/props", None, None),
        ("llamacpp", "GET", "/slots", None, None),
        ("llamacpp", "POST", "/slots/0", None, None),
        ("tgi", "POST", "/", "either", None),
        ("tgi", "POST", "", "either", None),
        ("tgi", "POST", "//", None, None),
        ("tgi", "POST", "/models/a/b", "either", None),
        ("tgi", "GET", "/metrics", None, None),
        ("kserve", "POST", "/v2/models/m/infer", "infer", "m"),
        ("kserve", "POST", "/v2/models/m/versions/3/infer", "infer", "m"),
        ("kserve", "POST", "/v2/models/m/generate_stream", "stream", "m"),
        ("kserve", "GET", "/v2/models/m/ready", "health", "m"),
        ("kserve", "GET", "/v2", "metadata", None),
        ("kserve", "POST", "/v2/models/m/versions/3/4/infer", None, None),
        ("kserve", "POST", "/v2/repository/index", None, None),
        ("kserve", "POST", "/v2/systemsharedmemory/region/r/register", None, None),
        ("tfserving", "POST", "/v1/models/m:predict", "predict", "m"),
        ("tfserving", "POST", "/v1/models/m/versions/12:predict", "predict", "m"),
        ("tfserving", "POST", "/v1/models/m/labels/stable:regress", "classify", "m"),
        ("tfserving", "GET", "/v1/models/m/versions/12/metadata", "models", "m"),
        ("tfserving", "POST", "/v1/models/m/versions/:predict", None, None),
        ("tfserving", "POST", "/v1/models/m/versions/1:2:predict", None, None),
        ("tfserving", "POST", "/v1/models/m/versions/..:predict", None, None),
        ("tfserving", "POST", "/v1/models/m/versions/1%2F:predict", None, None),
        ("tfserving", "POST", "/v1/models/m/versions/1", None, None),
        ("tfserving", "POST", "/v1/models/m:train", None, None),
        ("torchserve", "POST", "/predictions/m/1.0", "predict", "m"),
        ("torchserve", "POST", "/models", None, None),
        ("openai", "POST", "/v1/moderations", "moderations", None),
        ("anthropic", "POST", "/v1/complete", "complete", None),
        (
            "anthropic",
            "POST",
            "/v1/projects/p/locations/l/publishers/anthropic/models/claude-x@20250101:streamRawPredict",
            "raw_predict",
            "claude-x@20250101",
        ),
        (
            "anthropic",
            "POST",
            "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict",
            "count_tokens",
            None,
        ),
        ("gemini", "POST", "/v1/projects/p/locations/l/publishers/google/models/m:predict", "predict", "m"),
        ("gemini", "POST", "/v1beta/interactions", "interactions", None),
        ("gemini", "GET", "/v1beta/interactions/v1_1", None, None),
    ],
)
def test_addresses(name: str, method: str, path: str, endpoint: str | None, model: str | None) -> None:
    found = match(dialect(name), method, path)
    assert (found and found.name) == endpoint
    assert found is None or model_named(found, path) == model


@pytest.mark.parametrize("path", ["/v1/x*", "/v1/**", "/v1/*{model}", "/v1/{model}*", "/v1//", "//"])
def test_a_place_in_an_address_that_cannot_be(path: str) -> None:
    text = (ROOT / "rules" / "dialects" / "torchserve.yaml").read_text()
    _, faults = parse_dialect(text.replace("/predictions/{model}/*", path), "t.yaml")
    assert any("accepted: a list with a path such as /v1/models/*, without a query" in str(each) for each in faults)


# what is refused ──────────────────────────────────────────────────────────────

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
TENSOR = {"name": "in", "shape": [1], "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("name", "endpoint", "body"),
    [
        ("cohere", "chat_v1", {"message": "a", "conversation_id": "c"}),
        ("cohere", "chat_v1", {"message": "a", "connectors": [{"id": "web-search"}]}),
        ("cohere", "generate", {"prompt": "a", "preset": "p"}),
        ("cohere", "tokenize", {"tokens": [1]}),
        ("cohere", "embeddings", {"texts": [[1, 2]]}),
        ("mistral", "chat", {"messages": [{"content": [[1, 2]]}]}),
        ("mistral", "chat", {"tools": [{"type": "document_library", "library_ids": ["l"]}]}),
        ("mistral", "fim", {"prompt": [1]}),
        ("mistral", "embeddings", {"input": [[1, 2]]}),
        ("vllm", "pooling", {"input": [1]}),
        ("vllm", "pooling", {"input": [[1]]}),
        ("vllm", "pooling", {"input": "a", "encoding_format": "bytes"}),
        ("vllm", "pooling", {"data": {"ids": [1]}}),
        ("vllm", "rerank", {"text_1": [1], "text_2": "a"}),
        ("vllm", "tokenize", {"tokens": [1]}),
        ("llamacpp", "completion", {"prompt": [12, "a"]}),
        ("llamacpp", "completion", {"prompt": [["a", 12]]}),
        ("llamacpp", "completion", {"prompt": {"prompt_string": [12]}}),
        ("llamacpp", "infill", {"input_prefix": [12]}),
        ("llamacpp", "embeddings", {"content": [1, 2]}),
        ("llamacpp", "tokenize", {"tokens": [1]}),
        ("tgi", "generate", {"inputs": [1]}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "datatype": "INT32", "data": [1]}]}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "data": [[1]]}]}),
        ("kserve", "infer", {"inputs": [{"name": "in", "data": [1]}]}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "data": ["eA=="], "parameters": {"content_type": "base64"}}]}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "r"}}]}),
        ("kserve", "infer", {"inputs": [], "outputs": [{"name": "o", "parameters": {"shared_memory_region": "r"}}]}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "parameters": {"binary_data_size": 9}}]}),
        ("kserve", "infer", {"inputs": [], "outputs": [{"name": "o", "parameters": {"binary_data": True}}]}),
        ("kserve", "infer", {"inputs": [], "parameters": {"binary_data_output": True}}),
        ("kserve", "generate", {"input_ids": [1, 2]}),
        ("kserve", "stream", {"text_input": [[1]]}),
        ("tfserving", "predict", {"instances": [1, 2]}),
        ("tfserving", "predict", {"instances": [{"ids": [1, 2]}]}),
        ("tfserving", "predict", {"inputs": {"ids": [[1, 2]]}}),
        ("tfserving", "classify", {"examples": [{"ids": [1, 2]}]}),
        ("torchserve", "predict", {"ids": [1]}),
        ("torchserve", "predict", {"a": {"b": [{"ids": [[1]]}]}}),
        ("gemini", "predict", {"instances": [{"ids": [1]}]}),
        ("gemini", "interactions", {"input": "a", "previous_interaction_id": "v1_1"}),
        ("gemini", "interactions", {"input": "a", "background": True}),
        ("gemini", "interactions", {"input": "a", "tools": [{"type": "mcp_server", "url": "https://a.example"}]}),
        ("openai", "moderations", {"input": [1]}),
        ("openai", "rerank", {"documents": [[1]]}),
        ("anthropic", "complete", {"prompt": [1]}),
    ],
)
def test_what_rules_cannot_read_is_refused(name: str, endpoint: str, body: dict) -> None:
    denial = refused(dialect(name).endpoints[endpoint], body, redacting=False)
    assert denial is not None
    assert denial.reason is Reason.BODY_OPAQUE


@pytest.mark.parametrize(
    ("name", "endpoint", "body"),
    [
        ("cohere", "generate", {"prompt": "a", "return_likelihoods": "ALL"}),
        ("mistral", "chat", {"prompt_logprobs": True}),
        ("mistral", "ocr", {"document": {}, "include_image_base64": True}),
        ("gemini", "predict", {"instances": [{"prompt": "a"}]}),
        ("gemini", "interactions", {"input": "a", "response_modalities": ["image"]}),
        ("gemini", "interactions", {"input": "a", "response_format": [{"type": "audio"}]}),
        ("llamacpp", "completion", {"prompt": "a", "n_probs": 2}),
        ("llamacpp", "infill", {"return_tokens": True}),
        ("tgi", "stream", {"inputs": "a", "parameters": {"top_n_tokens": 2}}),
        ("tgi", "either", {"inputs": "a", "parameters": {"decoder_input_details": True}}),
    ],
)
def test_second_copies_are_refused_where_answers_are_masked(name: str, endpoint: str, body: dict) -> None:
    denial = refused(dialect(name).endpoints[endpoint], body, redacting=True)
    assert denial is not None
    assert denial.reason is Reason.SECOND_COPY
    assert refused(dialect(name).endpoints[endpoint], body, redacting=False) is None


@pytest.mark.parametrize(
    ("name", "endpoint", "body"),
    [
        ("cohere", "chat_v1", {"message": "a", "connectors": [], "conversation_id": None}),
        ("llamacpp", "completion", {"prompt": ["a", "b"], "n_probs": 0, "n_predict": -1}),
        ("llamacpp", "completion", {"prompt": {"prompt_string": "a"}, "logit_bias": [[15043, 1.0]]}),
        ("tgi", "either", {"inputs": "a", "parameters": {"details": True, "stop": ["x"], "temperature": 0.5}}),
        ("kserve", "infer", {"inputs": [{**TENSOR, "data": [["a", "b"]]}], "parameters": {"temperature": 0.5}}),
        ("kserve", "generate", {"text_input": "a", "temperature": 0.5, "parameters": {"top_k": 3}}),
        ("tfserving", "predict", {"instances": [{"text": "a", "age": 46}], "signature_name": "s"}),
        ("torchserve", "predict", {"text": "a", "top": 3, "flags": [True]}),
    ],
)
def test_what_is_plain_text_passes(name: str, endpoint: str, body: dict) -> None:
    found = dialect(name).endpoints[endpoint]
    assert refused(found, body, redacting=True) is None
    assert not isinstance(asked(found, body), Denial)
    assert media.parts(found, body) == ()


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ([1], True),
        ([[["a", 1.5]]], True),
        ([], False),
        ([True], False),
        (["1"], False),
        ([{"a": 1}], False),
        (1, False),
    ],
)
def test_a_list_of_numbers(value: object, *, numbers: bool) -> None:
    assert is_of(value, {"numbers"}) is numbers


@pytest.mark.parametrize(
    ("name", "endpoint", "body"),
    [
        ("mistral", "ocr", {"document": {"document_url": "https://a.example/x.pdf"}}),
        ("mistral", "chat", {"messages": [{"content": [{"type": "input_audio", "input_audio": PNG}]}]}),
        ("mistral", "moderations", {"input": [[{"content": [{"image_url": {"url": PNG}}]}]]}),
        ("cohere", "parse", {"document": {"type": "image_url", "image_url": "https://a.example/x.png"}}),
        ("cohere", "embeddings", {"images": [f"data:image/png;base64,{PNG}"]}),
        ("cohere", "embeddings", {"inputs": [{"content": [{"image_url": {"url": "https://a.example/x.png"}}]}]}),
        ("vllm", "rerank", {"documents": {"content": [{"image_url": {"url": PNG}}]}}),
        ("llamacpp", "completion", {"prompt": {"prompt_string": "a", "multimodal_data": [PNG]}}),
        ("llamacpp", "completion", {"prompt": [{"prompt_string": "a", "multimodal_data": [PNG]}]}),
        ("tfserving", "predict", {"instances": [{"image": {"b64": PNG}}]}),
        ("tfserving", "predict", {"inputs": {"image": [{"b64": PNG}]}}),
        ("torchserve", "predict", {"data": {"b64": PNG}}),
        ("gemini", "predict", {"instances": [{"image": {"bytesBase64Encoded": PNG}}]}),
        ("gemini", "predict", {"instances": [{"image": {"gcsUri": "gs://b/x"}}]}),
        ("gemini", "interactions", {"input": [{"type": "image", "data": PNG}]}),
        (
            "gemini",
            "interactions",
            {"input": [{"type": "user_input", "content": [{"type": "audio", "uri": "gs://x"}]}]},
        ),
    ],
)
def test_media_are_found(name: str, endpoint: str, body: dict) -> None:
    assert media.parts(dialect(name).endpoints[endpoint], body)


def test_a_header_that_an_endpoint_does_not_take() -> None:
    infer = dialect("kserve").endpoints["infer"]
    head = Head("POST", "/v2/models/m/infer", (("inference-header-content-length", "9"),), None)
    denial = barred(infer, head)
    assert denial == Denial(
        Reason.BODY_OPAQUE,
        400,
        "The request has a header inference-header-content-length: tensors in binary follow its JSON; send them as "
        "JSON data.",
    )
    assert barred(infer, Head("POST", "/v2/models/m/infer", (("content-length", "9"),), None)) is None


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ("{name: Inference-Length, because: a}", "deny_headers[0].name"),
        ("{name: x-a}", "deny_headers[0].because"),
        ("{because: a}", "deny_headers[0].name"),
        ("{name: x-a, because: b, kind: c}", "deny_headers[0].kind"),
    ],
)
def test_a_header_to_refuse_is_named_in_lower_case(found: str, fault: str) -> None:
    text = (ROOT / "rules" / "dialects" / "torchserve.yaml").read_text()
    _, faults = parse_dialect(text.replace("    media:\n", f"    deny_headers: [{found}]\n    media:\n"), "t.yaml")
    assert any(fault in str(each) for each in faults), faults


@pytest.mark.parametrize(
    ("name", "endpoint", "body", "expected"),
    [
        ("mistral", "agents", {"agent_id": "ag:1", "stream": True}, Asked("ag:1", True, (), None)),
        ("cohere", "chat_v1", {"model": "m", "tools": [{"name": "f"}]}, Asked("m", False, ("f",), None)),
        ("llamacpp", "completion", {"prompt": "a", "n_predict": 9}, Asked(None, False, (), 9)),
        ("tgi", "stream", {"inputs": "a", "parameters": {"max_new_tokens": 9}}, Asked(None, True, (), 9)),
        ("tgi", "either", {"inputs": "a"}, Asked(None, False, (), None)),
        ("tgi", "generate", {"inputs": "a", "stream": True}, Asked(None, False, (), None)),
        ("kserve", "stream", {"text_input": "a"}, Asked(None, True, (), None)),
        ("gemini", "interactions", {"model": "models/m", "tools": [{"type": "google_search"}]}, None),
    ],
)
def test_what_is_asked(name: str, endpoint: str, body: dict, expected: Asked | None) -> None:
    expected = expected or Asked("m", False, ("google_search",), None)
    assert asked(dialect(name).endpoints[endpoint], body) == expected


# answers ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "endpoint", "said"),
    [
        (
            "tgi",
            "generate",
            b'{"generated_text":"@","details":{"tokens":[{"id":7,"text":"x"}],"prefill":[],"seed":1234567}}',
        ),
        (
            "tgi",
            "either",
            b'[{"generated_text":"@","details":{"tokens":[{"id":7,"text":"x"}],"prefill":[],"seed":null}}]',
        ),
        ("llamacpp", "completion", b'[{"content":"@","tokens":[7]},{"content":"b","tokens":[8]}]'),
        ("cohere", "generate", b'{"generations":[{"text":"@","token_likelihoods":[{"token":"x"}]}]}'),
    ],
)
def test_tokens_go_where_their_text_is_masked(name: str, endpoint: str, said: bytes) -> None:
    found = dialect(name).endpoints[endpoint]
    planted = said.replace(b"@", KEY.encode())
    masked = inspect_answer(found, engine(), always(Action.REDACT), planted, status=200)
    assert isinstance(masked, Inspected)
    assert KEY.encode() not in masked.body
    assert b"7" not in masked.body.replace(b"1234567", b"")
    assert b'"x"' not in masked.body
    clean = inspect_answer(found, engine(), always(Action.REDACT), said, status=200)
    assert isinstance(clean, Inspected)
    assert clean.body == said


def test_a_stream_that_repeats_all_it_has_said_is_ended() -> None:
    text = f"The key is {KEY}, the mail is jane.doe@example.com."
    events = [(None, {"model_name": "m", "text_output": text[:at]}) for at in range(9, len(text), 3)]
    gate = answer("triton")
    out = b"".join(gate.feed(piece) for piece in pieces("triton", events)) + gate.end()
    assert gate.denial is REPEATED
    assert b"sk-" not in out
    assert b"repeats in each event what it has said before" in out


def test_names_of_outputs_tell_their_channels_apart() -> None:
    said = [
        ("a", "sk-AbCd"),
        ("b", "xyz "),
        ("a", "1234EfGh5678 "),
        ("b", "jane.doe@exa"),
        ("a", "."),
        ("b", "mple.com "),
    ]
    events = [(None, {"model_name": "m", name: text}) for name, text in said]
    gate = answer("triton")
    out = b"".join(gate.feed(piece) for piece in pieces("triton", events)) + gate.end()
    joined = {"a": "", "b": ""}
    for _, event in FORMS["triton"].events(out):
        assert set(event) <= {"model_name", "a", "b"}
        for name in joined:
            joined[name] += event.get(name, "")
    assert joined == {"a": "[REDACTED:key] .", "b": "xyz [REDACTED:mail] "}


def test_cohere_of_version_1_in_server_sent_events() -> None:
    events = [(event["event_type"], event) for _, event in wire_natives.cohere1(Said(f"a {KEY} b"), every(3))]  # type: ignore[call-overload]
    gate = answer("cohere1")
    out = gate.feed(sse(events)) + gate.end()
    texts = [event for name, event in events_of(out) if name == "text-generation"]
    assert "".join(event["text"] for event in texts) == "a [REDACTED:key] b"  # type: ignore[call-overload]
    assert KEY.encode() not in out


@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_is_in_the_docs(name: str) -> None:
    page = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page
