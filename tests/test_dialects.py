"""Dialects as data: what loads, what is refused and how it is said, and what the shipped ones see of real traffic."""

from __future__ import annotations

import base64
import collections
import dataclasses
import gzip
import json
import random
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.dialects import calling, composition, counting, load, messages, methods, streaming
from tidegate.dialects.addresses import match, model_named
from tidegate.dialects.asking import asked
from tidegate.dialects.body import strict_json
from tidegate.dialects.fields import LeafKind
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Delta, Dialect, is_exempt, is_source, refused, role_of
from tidegate.model import Asked, Denial, Reason, Role

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "corpora" / "wire-dev.jsonl.gz"


def shipped(name: str) -> Dialect:
    file = ROOT / "rules" / "dialects" / f"{name}.yaml"
    dialect, faults = parse_dialect(file.read_text(encoding="utf-8"), file.name)
    assert faults == ()
    assert dialect is not None
    return dialect


OPENAI, ANTHROPIC, OLLAMA = shipped("openai"), shipped("anthropic"), shipped("ollama")
GEMINI, BEDROCK = shipped("gemini"), shipped("bedrock")
SIGNATURE = base64.b64encode(random.Random(1).randbytes(240)).decode()

# loading ──────────────────────────────────────────────────────────────────────

SMALL = """\
dialect: small
version: 1
shapes:
  sealed: {alphabet: base64, least: 8, most: 16}
error:
  body: {error: "${message}"}
  event: {error: "${message}"}
  types: {400: bad_request, other: api_error}
endpoints:
  chat:
    methods: [POST]
    paths: [/v1/chat, /d/*/chat]
    asked:
      model: [$.model]
      tools: [{each: "$.tools[*]", named: {"": name}}]
    request:
      - {path: "$.messages[*]", role_from: role, roles: {user: user}}
      - {path: $.signature, exempt: [sealed], because: signed}
    deny: [{path: $.ids, because: token ids}]
    refuse: [{path: $.echo, unless: [false], because: the prompt again}]
    answer:
      - {path: $.text, role: assistant}
    stream:
      deltas: [{path: $.delta, key: [index]}]
      flush: [{path: $.stop, key: [index]}]
"""


def faults_of(text: str) -> list[str]:
    dialect, faults = parse_dialect(text, "small.yaml")
    assert (dialect is None) == bool(faults)
    return [str(fault) for fault in faults]


def test_the_small_dialect_loads() -> None:
    assert faults_of(SMALL) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            "dialect: small\nversion: 1",
            "dialect: small\nversion: 2",
            "small.yaml:2: version: found 2; accepted: 1",
            id="version",
        ),
        pytest.param(
            "dialect: small",
            "dialekt: small",
            "small.yaml:1: dialekt: found an unknown key; accepted: the keys dialect, version, description, shapes, "
            "error, endpoints, closed, usage, rate_headers",
        ),
        pytest.param(
            "    deny:",
            "    methods: [POST]\n    deny:",
            "small.yaml:19: endpoints.chat.methods: found the key twice; accepted: each key once",
            id="key-twice",
        ),
        pytest.param(
            'path: "$.messages[*]"',
            'path: "$.messages[?(@.role)]"',
            "small.yaml:17: endpoints.chat.request[0].path: found not a JSONPath expression (JsonPathLexerError); "
            "accepted: a JSONPath expression of $, .name, .'quoted name', [n], [*], * and ..",
            id="no-jsonpath",
        ),
        pytest.param(
            "path: $.text",
            'path: "$.text[-1]"',
            "small.yaml:22: endpoints.chat.answer[0].path: found index, which is outside the subset; "
            "accepted: a JSONPath expression of $, .name, .'quoted name', [n], [*], * and ..",
            id="outside-the-subset",
        ),
        pytest.param(
            'path: "$.messages[*]"',
            'path: "$..messages[*]"',
            "small.yaml:17: endpoints.chat.request[0].path: found .. in the path; "
            "accepted: a path of fixed depth, since role_from looks at one object",
            id="role-from-without-depth",
        ),
        pytest.param(
            "role: assistant",
            "role: robot",
            "small.yaml:22: endpoints.chat.answer[0].role: found 'robot'; accepted: system or user or assistant or "
            "tool_result or tool_definition or metadata or other",
            id="role",
        ),
        pytest.param(
            "exempt: [sealed], because: signed",
            "exempt: [sealed]",
            "small.yaml:18: endpoints.chat.request[1].because: found nothing; accepted: the reason, in a few words",
            id="exempt-without-a-reason",
        ),
        pytest.param(
            "exempt: [sealed]",
            "exempt: [open]",
            "small.yaml:18: endpoints.chat.request[1].exempt[0]: found 'open'; accepted: a shape of this file: sealed",
            id="unknown-shape",
        ),
        pytest.param(
            "exempt: [sealed]",
            "exempt: []",
            "small.yaml:18: endpoints.chat.request[1].exempt: found an empty list; accepted: a list of shapes: sealed",
            id="no-shape",
        ),
        pytest.param(
            "exempt: [sealed]",
            "exempt: true",
            "small.yaml:18: endpoints.chat.request[1].exempt: found true; accepted: a list of shapes: sealed",
            id="request-exempt-like-an-answer",
        ),
        pytest.param(
            "alphabet: base64",
            "alphabet: base63",
            "small.yaml:4: shapes.sealed.alphabet: found 'base63'; accepted: base64, base64url, id or digits",
            id="alphabet",
        ),
        pytest.param(
            "most: 16",
            "most: 7",
            "small.yaml:4: shapes.sealed.most: found 7; accepted: a length of 8 or more, the least of this shape",
            id="shape-that-nothing-fits",
        ),
        pytest.param(
            'body: {error: "${message}"}',
            'body: {error: "${text}"}',
            "small.yaml:6: error.body.error: found an unknown place in a template; accepted: ${message}, ${reason}, "
            "${type}, ${id}, ${status} or ${call}",
            id="template",
        ),
        pytest.param(
            ", other: api_error",
            "",
            "small.yaml:8: error.types: found no key other; accepted: a type for every other status too",
            id="no-other-type",
        ),
        pytest.param(
            "400: bad",
            "200: bad",
            "small.yaml:8: error.types.200: found the key 200; accepted: an HTTP status from 400 to 599, or other",
            id="status",
        ),
        pytest.param(
            "[POST]",
            "[GRAB]",
            "small.yaml:11: endpoints.chat.methods: found [GRAB]; accepted: a list of GET, POST, PUT, PATCH or DELETE",
            id="method",
        ),
        pytest.param(
            "/v1/chat,",
            "'/v1/chat?beta=true',",
            "small.yaml:11: endpoints.chat.paths: found [/v1/chat?beta=true, /d/*/chat]; "
            "accepted: a list with a path such as /v1/models/*, without a query",
            id="path-with-query",
        ),
        pytest.param(
            "deny: [{path: $.ids, because: token ids}]",
            "deny: [{path: $.ids, because: token ids, kinds: [float]}]",
            "small.yaml:19: endpoints.chat.deny[0].kinds: found [float]; "
            "accepted: a list of string, number, boolean, object, list or numbers",
            id="kind",
        ),
        pytest.param(
            "{path: $.text, role: assistant}",
            "{path: $.text}",
            "small.yaml:22: endpoints.chat.answer[0]: found a path that says nothing; "
            "accepted: one of role, role_from, roles, source, exempt, drop or because",
            id="says-nothing",
        ),
        pytest.param(
            "flush: [{path: $.stop, key: [index]}]",
            "flush: [{key: [index]}]",
            "small.yaml:25: endpoints.chat.stream.flush[0]: found neither path nor when; "
            "accepted: path or when, since every event would flush",
            id="flush-always",
        ),
        pytest.param(
            "      deltas: [{path: $.delta, key: [index]}]\n",
            "",
            "small.yaml:24: endpoints.chat.stream.deltas: found nothing; accepted: a list with at least one delta",
            id="no-deltas",
        ),
        pytest.param(
            "    stream:",
            "  again: {like: chat}\n  chat2:\n    like: nobody\n    methods: [POST]\n    paths: [/x]\n    stream:",
            "small.yaml:25: endpoints.chat2.like: found 'nobody'; "
            "accepted: the name of an endpoint of this file that has no like itself",
            id="like-nobody",
        ),
        pytest.param(
            "    deny:",
            "    media: [{data: [url]}]\n    deny:",
            "small.yaml:19: endpoints.chat.media[0].path: found nothing; accepted: a JSONPath expression of $, .name, "
            ".'quoted name', [n], [*], * and ..",
            id="media-without-a-path",
        ),
        pytest.param(
            "    deny:",
            "    media: [{path: $.a, kinds: [text]}]\n    deny:",
            "small.yaml:19: endpoints.chat.media[0].kinds: found [text]; "
            "accepted: a list of string, number, boolean, object, list or numbers",
            id="media-kind",
        ),
        pytest.param(
            "    deny:",
            "    media: [{path: $.a, data: url}]\n    deny:",
            "small.yaml:19: endpoints.chat.media[0].data: found 'url'; "
            "accepted: a list of field names joined by dots, such as source.data, or . itself",
            id="media-data",
        ),
        pytest.param(
            "    deny:",
            "    media: [{path: $.a, when: [image]}]\n    deny:",
            "small.yaml:19: endpoints.chat.media[0].when: found a list; accepted: a mapping",
            id="media-when",
        ),
        pytest.param(
            "    deny:",
            "    media: [{path: $.a, because: 3}]\n    deny:",
            "small.yaml:19: endpoints.chat.media[0].because: found 3; accepted: the reason, in a few words",
            id="media-because",
        ),
        pytest.param(
            "version: 1",
            "version: 1\nclosed: [{paths: [x], because: a key}]",
            "small.yaml:3: closed[0].paths: found [x]; "
            "accepted: a list with a path such as /v1/models/*, without a query",
            id="closed-path",
        ),
        pytest.param(
            "version: 1",
            "version: 1\nclosed: [{paths: [/x]}]",
            "small.yaml:3: closed[0].because: found nothing; accepted: the reason, in a few words",
            id="closed-without-a-reason",
        ),
    ],
)
def test_each_fault_is_said_in_one_sentence(old: str, new: str, message: str) -> None:
    assert SMALL.count(old) == 1, "the table must change exactly one place"
    assert message in faults_of(SMALL.replace(old, new))


def test_all_faults_at_once() -> None:
    text = SMALL.replace("version: 1", "version: 3").replace("role: assistant", "role: robot").replace("$.ids", "ids")
    assert sorted(fault.split(": found")[0] for fault in faults_of(text)) == [
        "small.yaml:19: endpoints.chat.deny[0].path",
        "small.yaml:22: endpoints.chat.answer[0].role",
        "small.yaml:2: version",
    ]


def test_one_path_has_one_owner() -> None:
    text = SMALL + "  other:\n    methods: [POST]\n    paths: [/v1/chat]\n"
    assert faults_of(text) == [
        "small.yaml:27: endpoints.other: found POST /v1/chat, which chat has too; accepted: each method and path once"
    ]


@pytest.mark.parametrize("text", ["", "[]", "a", "a: [", "{}"], ids=repr)
def test_what_is_no_dialect_is_a_fault(text: str) -> None:
    assert faults_of(text)


FRAMING_KEY = (
    "small.yaml:24: endpoints.chat.stream.framing: found {}; accepted: a list of sse, ndjson, array, eventstream, text"
)


@pytest.mark.parametrize("found", ["[sse, morse]", "[]", "[json]"])
def test_a_framing_that_there_is_not(found: str) -> None:
    text = SMALL.replace("stream:\n", f"stream:\n      framing: {found}\n")
    assert FRAMING_KEY.format("an empty list" if found == "[]" else found) in faults_of(text)


def test_values_belong_to_a_path() -> None:
    text = SMALL.replace("{path: $.stop, key: [index]}", "{when: [end], values: [true]}")
    assert faults_of(text) == [
        "small.yaml:25: endpoints.chat.stream.flush[0].values: found values without a path; accepted: values of a path"
    ]


@pytest.mark.parametrize(
    ("body", "stream", "output"),
    [
        ({"model": "m"}, True, None),
        ({"model": "m", "stream": True}, True, None),
        ({"model": "m", "stream": False, "options": {"num_predict": 5}}, False, 5),
        ({"model": "m", "stream": None, "options": {"num_predict": -1}}, True, None),
        ({"model": "m", "options": {"num_predict": -2}}, True, None),
    ],
)
def test_ollama_streams_unless_told_otherwise(body: dict, *, stream: bool, output: int | None) -> None:
    assert asked(OLLAMA.endpoints["chat"], body) == Asked("m", stream, (), output)


@pytest.mark.parametrize("found", ["a.*.b", "*"])
def test_events_are_types_or_beginnings_of_types(found: str) -> None:
    text = SMALL.replace("stream:\n", f'stream:\n      events: [x, "{found}"]\n')
    accepted = "event types, with * at the end of one alone"
    assert faults_of(text) == [f"small.yaml:24: endpoints.chat.stream.events: found {found}; accepted: {accepted}"]


def test_what_nobody_can_read_is_told_apart_from_what_is_denied() -> None:
    text = SMALL.replace("because: token ids}", "because: token ids, unread: true}")
    found, _ = parse_dialect(text, "small.yaml")
    assert found is not None
    chat = found.endpoints["chat"]
    unread: list[tuple[str, str]] = []
    assert refused(chat, {"ids": [1], "text": "x"}, redacting=True, unread=unread) is None
    assert unread == [("$.ids", "token ids")]
    assert refused(chat, {"ids": [1]}, redacting=True) is not None, "who does not ask what is unread refuses it"
    assert refused(chat, {"ids": [1], "echo": True}, redacting=True, unread=[]) is not None
    assert faults_of(SMALL.replace("because: token ids}", "because: token ids, unread: 1}")) == [
        "small.yaml:19: endpoints.chat.deny[0].unread: found 1; accepted: true or false"
    ]
    assert faults_of(SMALL.replace("    asked:\n", "    unread: 1\n    asked:\n")) == [
        "small.yaml:13: endpoints.chat.unread: found 1; accepted: the reason, in a few words"
    ]


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
    tables = {
        name: value
        for module in (calling, composition, counting, load, messages, methods, streaming)
        for name, value in vars(module).items()
        if name.endswith("_KEYS")
    }
    assert len(tables) >= 10
    missing = {key for keys in tables.values() for key in keys if f"`{key}`" not in page}
    assert missing == set()


# which endpoint ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dialect", "method", "path", "name"),
    [
        (OPENAI, "POST", "/v1/chat/completions", "chat"),
        (OPENAI, "POST", "/chat/completions", "chat"),
        (OPENAI, "POST", "/v1/responses", "responses"),
        (OPENAI, "POST", "/v1/responses/compact", "responses"),
        (OPENAI, "POST", "/v1/completions", "completions"),
        (OPENAI, "POST", "/v1/embeddings", "embeddings"),
        (OPENAI, "GET", "/v1/models", "models"),
        (OPENAI, "GET", "/v1/models/gpt-4.1:mini", "models"),
        (ANTHROPIC, "POST", "/v1/messages", "messages"),
        (ANTHROPIC, "POST", "/v1/messages/count_tokens", "count_tokens"),
        (ANTHROPIC, "GET", "/v1/models/claude-x", "models"),
        (OPENAI, "GET", "/v1/chat/completions", None),
        (OPENAI, "post", "/v1/chat/completions", None),
        (OPENAI, "POST", "/v1/chat/completions/", None),
        (OPENAI, "POST", "/v1//chat/completions", None),
        (OPENAI, "POST", "//v1/chat/completions", None),
        (OPENAI, "POST", "/v1/chat/../chat/completions", None),
        (OPENAI, "POST", "/v1/Chat/completions", None),
        (OPENAI, "POST", "/v1/chat/completions?x=1", None),
        (OPENAI, "POST", "/v1/chat%2Fcompletions", None),
        (OPENAI, "GET", "/v1/models/..", None),
        (OPENAI, "GET", "/v1/models/", None),
        (OPENAI, "GET", "/v1/models/a%2e", None),
        (OPENAI, "GET", "/v1/models/a/b", None),
        (OPENAI, "GET", "/v1/responses/resp_1", "stored_responses"),
        (OPENAI, "POST", "/v1/responses/resp_1", None),
        (OPENAI, "POST", "/v1/threads/runs", "thread_and_run"),
        (OPENAI, "POST", "/v1/threads/thread_1", "threads"),
        (OPENAI, "POST", "/v1/files", "files"),
        (OPENAI, "DELETE", "/v1/models/m", None),
        (ANTHROPIC, "POST", "/v1/messages/batches", "message_batches"),
        (OPENAI, "POST", "", None),
    ],
)
def test_match(dialect: Dialect, method: str, path: str, name: str | None) -> None:
    found = match(dialect, method, path)
    assert (None if found is None else found.name) == name


VERTEX = "/v1beta1/projects/p/locations/us-east5/publishers/google/models"


@pytest.mark.parametrize(
    ("path", "name", "model"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "generate", "gemini-2.5-flash"),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", "stream", "gemini-2.5-flash"),
        (f"{VERTEX}/gemini-2.5-pro:streamGenerateContent", "stream", "gemini-2.5-pro"),
        ("/v1beta1/publishers/google/models/gemini-2.5-pro:countTokens", "count_tokens", "gemini-2.5-pro"),
        ("/v1beta/models/m@001:batchEmbedContents", "embeddings", "m@001"),
        ("/v1beta/models/:generateContent", None, None),
        ("/v1beta/models/..:generateContent", None, None),
        ("/v1beta/models/a:b:generateContent", None, None),
        ("/v1beta/models/a%3Ab:generateContent", None, None),
        ("/v1beta/models/a%3AgenerateContent", None, None),
        ("/v1beta/models/a%2Fb:generateContent", None, None),
        ("/v1beta/models/a%20b:generateContent", None, None),
        ("/v1beta/models/a:generateContent/x", None, None),
        ("/v1beta/models/a:predict", None, None),
        ("/v1beta/tunedModels/a:generateContent", None, None),
        ("/v1beta/cachedContents", None, None),
        ("/upload/v1beta/files", None, None),
    ],
)
def test_a_path_may_name_the_model(path: str, name: str | None, model: str | None) -> None:
    found = match(GEMINI, "POST", path)
    assert (found and found.name) == name
    assert found is None or model_named(found, path) == model


HAIKU = "us.anthropic.claude-haiku-4-5-20251001-v1:0"


@pytest.mark.parametrize(
    ("path", "name", "model"),
    [
        (f"/model/{HAIKU}/converse", "converse", HAIKU),
        (f"/model/{HAIKU.replace(':', '%3A')}/converse-stream", "converse_stream", HAIKU),
        (f"/model/{HAIKU.replace(':', '%3a')}/invoke", "invoke", HAIKU),
        (f"/model/{HAIKU}/invoke-with-response-stream", "invoke_stream", HAIKU),
        ("/model/m/count-tokens", "count_tokens", "m"),
        ("/model/a%2Fb/converse", None, None),
        ("/model/a%3Ab%20/converse", None, None),
        ("/model//converse", None, None),
        ("/model/m/async-invoke", None, None),
        ("/guardrail/g/version/1/apply", None, None),
    ],
)
def test_a_bedrock_path_names_its_model(path: str, name: str | None, model: str | None) -> None:
    found = match(BEDROCK, "POST", path)
    assert (found and found.name) == name
    assert found is None or model_named(found, path) == model


@pytest.mark.parametrize(
    ("endpoint", "body", "tools", "output"),
    [
        ("converse", {"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}, {"cachePoint": {}}]}}, ("f",), None),
        ("converse_stream", {"toolConfig": {"tools": [{"systemTool": {"name": "ground"}}]}}, ("ground",), None),
        ("converse", {"toolConfig": {"tools": [{"newKind": {}}]}}, ("newKind",), None),
        ("converse", {"toolConfig": {"tools": [{"toolSpec": {}}]}}, None, None),
        (
            "converse",
            {"inferenceConfig": {"maxTokens": 5}, "additionalModelRequestFields": {"max_tokens": 900}},
            (),
            900,
        ),
        ("converse", {"additionalModelRequestFields": {"tools": [{"type": "b_1", "name": "b"}]}}, ("b_1", "b"), None),
        ("invoke", {"tools": [{"name": "f"}], "max_tokens": 7}, ("f",), 7),
        ("invoke_stream", {"textGenerationConfig": {"maxTokenCount": 8}}, (), 8),
        ("invoke", {"model": "other"}, None, None),
    ],
)  # fmt: skip
def test_what_bedrock_is_asked(endpoint: str, body: dict, tools: tuple[str, ...] | None, output: int | None) -> None:
    found = asked(BEDROCK.endpoints[endpoint], body, "m")
    expected = Asked("m", "stream" in endpoint, tools, output) if tools is not None else None
    assert (found if isinstance(found, Asked) else None) == expected


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("converse", {"additionalModelRequestFields": {"messages": []}}),
        ("invoke", {"messages": [{"content": [{"type": "image", "source": {"type": "base64"}}]}]}),
        ("invoke", {"messages": [{"content": [{"image": {"source": {"bytes": "AA"}}}]}]}),
        ("invoke_stream", {"inputImage": "AA"}),
        ("invoke", {"imageVariationParams": {"images": ["AA"]}}),
        ("invoke", {"prompt": [[1, 2]]}),
        ("count_tokens", {"input": {"invokeModel": {"body": "AA"}}}),
    ],
)
def test_what_bedrock_cannot_show_is_refused(endpoint: str, body: dict) -> None:
    denial = refused(BEDROCK.endpoints[endpoint], body, redacting=False)
    assert denial is not None
    assert denial.reason is Reason.BODY_OPAQUE


@pytest.mark.parametrize("path", ["/v1/{model}/{model}", "/v1/x{model}", "/v1/{model}{x}", "/v1/{Model}"])
def test_a_place_for_the_model_that_cannot_be(path: str) -> None:
    text = SMALL.replace("paths: [/v1/chat, /d/*/chat]", f'paths: ["{path}"]')
    accepted = "a list with a path such as /v1/models/*, without a query"
    assert faults_of(text) == [f"small.yaml:11: endpoints.chat.paths: found [{path}]; accepted: {accepted}"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "m"),
        ({"model": "models/m"}, "m"),
        ({"model": "m"}, "m"),
        ({"model": "models/other"}, None),
        ({"model": "tunedModels/m"}, None),
    ],
)
def test_a_body_may_not_name_another_model_than_its_path(body: dict, expected: str | None) -> None:
    found = asked(GEMINI.endpoints["generate"], body, "m")
    assert (found.model if isinstance(found, Asked) else None) == expected


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        ([{"functionDeclarations": [{"name": "f"}, {"name": "g"}]}], ("f", "g")),
        ([{"function_declarations": [{"name": "f"}], "google_search": {}}], ("googleSearch", "f")),
        ([{"urlContext": {}}, {"code_execution": {}}], ("urlContext", "codeExecution")),
        ([{"functionDeclarations": [{}]}], None),
        ([{"functionDeclarations": {"name": "f"}}], None),
        ({"functionDeclarations": [{"name": "f"}]}, None),
    ],
)
def test_tools_of_gemini_are_named_by_their_fields(tools: object, names: tuple[str, ...] | None) -> None:
    found = asked(GEMINI.endpoints["stream"], {"tools": tools}, "m")
    assert (found.tools if isinstance(found, Asked) else None) == names
    assert names is None or (isinstance(found, Asked) and found.stream)


@pytest.mark.parametrize(
    "body",
    [
        {"cached_content": "cachedContents/1"},
        {"tools": [{"file_search": {"file_search_store_names": ["x"]}}]},
        {"tools": [{"mcpServers": [{"name": "x"}]}]},
        {"tool_config": {"functionCallingConfig": {"stream_function_call_arguments": True}}},
    ],
)
def test_gemini_stored_text_and_remote_servers_are_refused(body: dict) -> None:
    denial = refused(GEMINI.endpoints["stream"], body, redacting=False)
    assert denial is not None
    assert denial.reason is Reason.BODY_OPAQUE


@pytest.mark.parametrize(
    "config",
    [
        {"responseLogprobs": True},
        {"response_logprobs": True},
        {"logprobs": 3},
        {"responseModalities": ["TEXT", "AUDIO"]},
        {"response_modalities": ["IMAGE"]},
        {"response_modalities": "AUDIO"},
        {"response_modalities": [3]},
    ],
)
def test_gemini_second_copies_are_refused(config: dict) -> None:
    body = {"generation_config": config}
    assert refused(GEMINI.endpoints["generate"], body, redacting=False) is None
    denial = refused(GEMINI.endpoints["generate"], body, redacting=True)
    assert denial is not None
    assert denial.reason is Reason.SECOND_COPY


def test_gemini_roles_in_both_spellings() -> None:
    body = {
        "system_instruction": {"parts": [{"text": "be brief"}]},
        "contents": [
            {"parts": [{"text": "a question"}]},
            {"role": "model", "parts": [{"text": "an answer", "thought_signature": SIGNATURE}]},
            {"role": "user", "parts": [{"function_response": {"response": {"x": "a result"}}}]},
        ],
        "tools": [{"function_declarations": [{"description": "does it"}]}],
        "unheard_of": "elsewhere",
    }
    endpoint = GEMINI.endpoints["generate"]
    found = roles(endpoint, body)
    assert {text: role.value for text, role in found.items() if " " in text or text == "elsewhere"} == {
        "be brief": "system", "a question": "user", "an answer": "assistant", "a result": "tool_result",
        "does it": "tool_definition", "elsewhere": "other",
    }  # fmt: skip
    assert [leaf.text for leaf in endpoint.request.walk(body) if is_exempt(leaf)] == [SIGNATURE]


# what is asked ────────────────────────────────────────────────────────────────

CHAT, RESPONSES = OPENAI.endpoints["chat"], OPENAI.endpoints["responses"]
COMPLETIONS, EMBEDDINGS = OPENAI.endpoints["completions"], OPENAI.endpoints["embeddings"]
MESSAGES = ANTHROPIC.endpoints["messages"]


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        pytest.param(CHAT, {}, Asked(None, False, (), None), id="empty"),
        pytest.param(
            CHAT,
            {"model": "m", "stream": True, "max_tokens": 5, "max_completion_tokens": 9},
            Asked("m", True, (), 9),
            id="the-larger-limit",
        ),
        pytest.param(CHAT, {"model": "m", "stream": None, "max_tokens": None}, Asked("m", False, (), None), id="nulls"),
        pytest.param(CHAT, {"model": "m", "models": ["m"]}, Asked("m", False, (), None), id="the-same-model-twice"),
        pytest.param(
            CHAT,
            {
                "tools": [
                    {"type": "function", "function": {"name": "search"}},
                    {"function": {"name": "untyped"}},
                    {"type": "custom", "custom": {"name": "shell"}},
                    {"type": "openrouter:web_search", "name": "search"},
                ],
                "functions": [{"name": "old"}],
            },
            Asked(None, False, ("search", "untyped", "shell", "openrouter:web_search", "old"), None),
            id="chat-tools",
        ),
        pytest.param(
            RESPONSES,
            {
                "tools": [
                    {"type": "function", "name": "f"},
                    {"type": "web_search"},
                    {"type": "mcp", "server_label": "wiki"},
                    {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "inner"}]},
                ],
                "input": [{"type": "mcp_list_tools", "tools": [{"name": "listed"}]}],
            },
            Asked(None, False, ("f", "web_search", "wiki", "n", "inner", "listed"), None),
            id="responses-tools",
        ),
        pytest.param(
            MESSAGES,
            {
                "max_tokens": 7,
                "tools": [{"name": "a"}, {"type": "custom", "name": "b"}, {"type": "bash_2", "name": "bash"}],
            },
            Asked(None, False, ("a", "b", "bash_2", "bash"), 7),
            id="a-built-in-tool-counts-under-type-and-name",
        ),
    ],
)
def test_asked(endpoint, body: dict, expected: Asked) -> None:
    found = asked(endpoint, body)
    assert isinstance(found, Asked)
    assert (found.model, found.stream, found.max_output) == (expected.model, expected.stream, expected.max_output)
    assert set(found.tools) == set(expected.tools)


@pytest.mark.parametrize(
    ("endpoint", "body", "what"),
    [
        (CHAT, {"model": 3}, "the model is not a text"),
        (CHAT, {"model": ["m"]}, "the model is not a text"),
        (CHAT, {"model": ""}, "the model is not a text"),
        (CHAT, {"model": "m", "models": ["m", "n"]}, "it names more than one model"),
        (MESSAGES, {"model": "m", "fallbacks": [{"model": "n"}]}, "it names more than one model"),
        (CHAT, {"stream": "true"}, "stream is neither true nor false"),
        (CHAT, {"stream": 1}, "stream is neither true nor false"),
        (CHAT, {"max_tokens": "5"}, "the limit of output tokens is not a whole number"),
        (CHAT, {"max_tokens": 5.0}, "the limit of output tokens is not a whole number"),
        (CHAT, {"max_tokens": True}, "the limit of output tokens is not a whole number"),
        (CHAT, {"max_tokens": -1}, "the limit of output tokens is not a whole number"),
        (CHAT, {"tools": ["search"]}, "$.tools[*] holds a tool without a name or of an unknown form"),
        (CHAT, {"tools": [{"type": "function"}]}, "$.tools[*] holds a tool without a name or of an unknown form"),
        (CHAT, {"tools": [{"type": 1}]}, "$.tools[*] holds a tool without a name or of an unknown form"),
        (
            CHAT,
            {"tools": [{"type": "function", "function": {"name": 1}}]},
            "$.tools[*] holds a tool without a name or of an unknown form",
        ),
    ],
)
def test_asked_refuses(endpoint, body: dict, what: str) -> None:
    assert asked(endpoint, body) == Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")


# what is refused ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        (COMPLETIONS, {"prompt": [12345, 2]}, "$.prompt[*]"),
        (COMPLETIONS, {"prompt": [[1], "x"]}, "$.prompt[*]"),
        (COMPLETIONS, {"prompt_embeds": "AA"}, "$.prompt_embeds"),
        (EMBEDDINGS, {"input": [[8134]]}, "$.input[*]"),
        (EMBEDDINGS, {"input": ["text", 5]}, "$.input[*]"),
        (CHAT, {"messages": [{"role": "user", "content": [1, 2]}]}, "$.messages[*].content[*]"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "$.previous_response_id"),
        (RESPONSES, {"conversation": {"id": "conv_1"}}, "$.conversation"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}, "$.input[*]"),
        (MESSAGES, {"mcp_servers": [{"url": "https://x.test"}]}, "$.mcp_servers"),
        (ANTHROPIC.endpoints["count_tokens"], {"mcp_servers": [{"url": "https://x.test"}]}, "$.mcp_servers"),
    ],
)
def test_what_rules_cannot_read_is_refused(endpoint, body: dict, path: str) -> None:
    denial = refused(endpoint, body, redacting=False)
    assert denial is not None
    assert (denial.reason, denial.status) == (Reason.BODY_OPAQUE, 400)
    assert denial.message.startswith(f"The request uses {path}: ")


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        (CHAT, {"logprobs": True}, "$.logprobs"),
        (CHAT, {"logprobs": 1}, "$.logprobs"),
        (CHAT, {"logprobs": "true"}, "$.logprobs"),
        (COMPLETIONS, {"logprobs": 0}, "$.logprobs"),
        (COMPLETIONS, {"echo": True}, "$.echo"),
        (COMPLETIONS, {"return_token_ids": True}, "$.return_token_ids"),
        (RESPONSES, {"include": ["x", "message.output_text.logprobs"]}, "$.include[*]"),
        (RESPONSES, {"top_logprobs": 5}, "$.top_logprobs"),
    ],
)
def test_second_copies_are_refused_where_answers_are_redacted(endpoint, body: dict, path: str) -> None:
    assert refused(endpoint, body, redacting=False) is None
    denial = refused(endpoint, body, redacting=True)
    assert denial is not None
    assert (denial.reason, denial.status) == (Reason.SECOND_COPY, 400)
    assert denial.message.startswith(f"The request asks for {path}: ")


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"logprobs": False, "top_logprobs": 0, "modalities": ["text"]}),
        (CHAT, {"logprobs": None, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        (COMPLETIONS, {"logprobs": None, "echo": False, "prompt": ["a", "b"]}),
        (RESPONSES, {"previous_response_id": None, "include": ["reasoning.encrypted_content"], "background": False}),
        (MESSAGES, {"mcp_servers": [], "messages": [{"content": [{"source": {"type": "text"}}]}]}),
    ],
)
def test_harmless_spellings_pass(endpoint, body: dict) -> None:
    assert refused(endpoint, body, redacting=True) is None


# roles and exemptions ─────────────────────────────────────────────────────────


def roles(endpoint, body: object) -> dict[str, Role]:
    return {leaf.text: role_of(leaf, body) for leaf in endpoint.request.walk(body) if leaf.kind is LeafKind.STRING}


def test_roles_of_a_chat() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a question", "role": "system"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "a result"},
            {"role": "stranger", "content": "who"},
            {"role": {"a": 1}, "content": "odd"},
        ],
        "tools": [{"function": {"description": "does it"}}],
        "metadata": {"k": "label"},
        "unheard_of": {"deep": ["elsewhere"]},
    }
    found = roles(CHAT, body)
    assert {text: found[text] for text in ("be brief", "a question", "{}", "a result", "who", "odd")} == {
        "be brief": Role.SYSTEM,
        "a question": Role.USER,
        "{}": Role.ASSISTANT,
        "a result": Role.TOOL_RESULT,
        "who": Role.OTHER,
        "odd": Role.OTHER,
    }
    assert (found["does it"], found["label"]) == (Role.TOOL_DEFINITION, Role.METADATA)
    assert found["elsewhere"] is Role.OTHER


def test_roles_by_type() -> None:
    responses = {
        "input": [
            {"type": "function_call_output", "role": "user", "output": "result"},
            {"role": "user", "content": "q"},
        ],
        "instructions": "be kind",
    }
    found = roles(RESPONSES, responses)
    assert (found["result"], found["q"], found["be kind"]) == (Role.TOOL_RESULT, Role.USER, Role.SYSTEM)
    assert roles(RESPONSES, {"input": "plain"}) == {"plain": Role.USER}
    messages = {
        "system": [{"type": "text", "text": "sys"}],
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "content": [{"text": "res"}]}, {"text": "q"}]}
        ],
    }
    found = roles(MESSAGES, messages)
    assert (found["sys"], found["res"], found["q"]) == (Role.SYSTEM, Role.TOOL_RESULT, Role.USER)


def signed(signature: str) -> dict:
    return {
        "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": signature}]}]
    }


@pytest.mark.parametrize(
    ("signature", "exempt"),
    [
        (SIGNATURE, True),
        ("AKIAIOSFODNN7EXAMPLE", False),
        (SIGNATURE[:60], False),
        (f"{SIGNATURE} ", False),
        (f"{SIGNATURE[:80]} my key {SIGNATURE[80:]}", False),
        (SIGNATURE + "é", False),
        ("A" * 300_000, False),
        (base64.b64encode(b"the launch codes are 1234 and 5678, do not tell anybody else").decode(), False),
    ],
    ids=["signature", "key", "short", "space", "text-inside", "not-ascii", "long", "text-as-base64"],
)
def test_an_exempt_request_field_is_no_hiding_place(signature: str, *, exempt: bool) -> None:
    (leaf,) = [leaf for leaf in MESSAGES.request.walk(signed(signature)) if leaf.text == signature]
    assert is_exempt(leaf) is exempt


def test_a_key_is_never_exempt() -> None:
    keys = [leaf for leaf in MESSAGES.request.walk(signed(SIGNATURE)) if leaf.kind is LeafKind.KEY]
    assert "signature" in [leaf.text for leaf in keys]
    assert not any(is_exempt(leaf) for leaf in keys)


def test_json_source_is_known_on_both_ways() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    request = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    answer = {"choices": [{"message": {"tool_calls": [call]}}]}
    assert [leaf.text for leaf in CHAT.request.walk(request) if is_source(leaf)] == ['{"a":1}']
    assert [leaf.text for leaf in CHAT.answer.walk(answer) if is_source(leaf)] == ['{"a":1}']


def test_answers_leave_out_vectors_and_name_second_copies() -> None:
    body = {"data": [{"embedding": [0.123456] * 3}], "model": "m"}
    assert [leaf.text for leaf in EMBEDDINGS.answer.walk(body)] == ["data", "embedding", "model"]
    chat = {"choices": [{"logprobs": {"content": [{"token": "x"}]}, "message": {"content": "x"}}]}
    dropped = [found.pointer for found in CHAT.answer.select(chat) if any(one.drop for one in found.payloads)]
    assert dropped == [("choices", 0, "logprobs")]


# streams ──────────────────────────────────────────────────────────────────────


def deltas(endpoint, event: dict) -> list[tuple[str, bool]]:
    """Every text of an event that continues a channel, and whether it is JSON source."""
    kind = event.get(endpoint.stream.event_type or "")
    found = []
    for leaf in endpoint.stream.fields.walk(event):
        named = [one for one in leaf.payloads if isinstance(one, Delta) and (one.when is None or kind in one.when)]
        if named and leaf.kind is LeafKind.STRING:
            found.append((leaf.text, named[0].source))
    return found


@pytest.mark.parametrize(
    ("endpoint", "event", "expected"),
    [
        (CHAT, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}}]}, [("Hi", False)]),
        (
            CHAT,
            {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": '{"'}}]}}]},
            [('{"', True)],
        ),
        (RESPONSES, {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"}, [("Hi", False)]),
        (RESPONSES, {"type": "response.function_call_arguments.delta", "delta": '{"'}, [('{"', True)]),
        (RESPONSES, {"type": "response.of_tomorrow.delta", "delta": "new"}, [("new", False)]),
        (RESPONSES, {"type": "response.output_text.done", "text": "Hi"}, []),
        (
            MESSAGES,
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            [("Hi", False)],
        ),
        (MESSAGES, {"type": "content_block_delta", "delta": {"partial_json": '{"'}}, [('{"', True)]),
        (MESSAGES, {"type": "content_block_delta", "delta": {"signature": "x"}}, []),
    ],
)
def test_deltas(endpoint, event: dict, expected: list[tuple[str, bool]]) -> None:
    assert deltas(endpoint, event) == expected


def test_flush_selects_values_that_are_not_null() -> None:
    assert CHAT.stream is not None
    assert MESSAGES.stream is not None
    event = {"choices": [{"index": 0, "finish_reason": None}, {"index": 1, "finish_reason": "stop"}]}
    (flush,) = CHAT.stream.flushes
    assert flush.hits(event) == (("choices", 1, "finish_reason"),)
    assert MESSAGES.stream.flushes[0].hits({"type": "content_block_stop"}) == ((),)


def test_every_value_of_a_dialect_is_frozen() -> None:
    for endpoint in (*OPENAI.endpoints.values(), *ANTHROPIC.endpoints.values()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            endpoint.name = "x"  # type: ignore[misc]


# real traffic ─────────────────────────────────────────────────────────────────

FAMILIES = {
    "openai.chat": (OPENAI, CHAT),
    "openai.responses": (OPENAI, RESPONSES),
    "openai.completions": (OPENAI, COMPLETIONS),
    "openai.embeddings": (OPENAI, EMBEDDINGS),
    "anthropic.messages": (ANTHROPIC, MESSAGES),
}
LEAST_NAMED = {  # share of characters in strings that a path gives a role or exempts: request, answer
    "openai.chat": (0.999, 0.98),
    "openai.responses": (0.997, 0.91),  # the rest of answers is constants: status, truncation, effort
    "openai.completions": (1.0, 0.99),
    "openai.embeddings": (0.98, 0.45),  # 623 characters in all: without the vectors almost nothing is left
    "anthropic.messages": (0.999, 0.99),
}


def corpus() -> Iterator[dict]:
    if not CORPUS.exists():
        pytest.skip("the corpus of recorded exchanges is not on this machine")
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["api"] in FAMILIES:
                yield row


def bodies(direction: str) -> Iterator[tuple[str, object]]:
    for row in corpus():
        text = row[direction]["body"]
        if isinstance(text, str) and (value := read(text)) is not None:
            yield row["api"], value


def read(text: str) -> object:
    value = strict_json(text.encode("utf-8", "surrogatepass"))
    return None if isinstance(value, Denial) else value


def share_named(direction: str, side: str) -> dict[str, float]:
    total, named = collections.Counter[str](), collections.Counter[str]()
    for api, value in bodies(direction):
        for leaf in getattr(FAMILIES[api][1], side).walk(value):
            if leaf.kind is LeafKind.STRING:
                said = (*leaf.payloads, *leaf.around)
                total[api] += len(leaf.text)
                known = any(one.role or one.role_from or getattr(one, "drop", False) for one in said)
                named[api] += len(leaf.text) * (known or is_exempt(leaf))
    return {api: named[api] / total[api] for api in total}


def test_corpus_paths_name_nearly_all_text() -> None:
    requests, answers = share_named("request", "request"), share_named("response", "answer")
    for api, (request, answer) in LEAST_NAMED.items():
        assert requests[api] >= request, (api, requests[api])
        assert answers[api] >= answer, (api, answers[api])


def test_corpus_every_creating_request_has_its_endpoint() -> None:
    missed = collections.Counter[str]()
    for row in corpus():
        dialect, endpoint = FAMILIES[row["api"]]
        parts = urllib.parse.urlsplit(row["request"]["url"]).path.split("/")
        below = ("/" + "/".join(parts[at:]) for at in range(1, len(parts)))  # the upstream's base path is unknown
        if endpoint not in [match(dialect, row["request"]["method"], path) for path in below]:
            missed[row["request"]["method"]] += 1
    assert missed == {"GET": 8}, "stored responses fetched by id are another endpoint, nothing else"


def test_corpus_refuses_only_what_cannot_be_read() -> None:
    counts = collections.Counter[str]()
    for api, value in bodies("request"):
        endpoint = FAMILIES[api][1]
        if not isinstance(value, dict):
            continue
        denial = refused(endpoint, value, redacting=True)
        what = asked(endpoint, value)
        if denial is not None:
            counts[denial.reason.value] += 1
        elif isinstance(what, Denial):
            counts[what.message] += 1
        else:
            counts["passed"] += 1
    # opaque: 22 stored at the provider, 10 token ids, 4 remote servers; media: tests/test_media.py
    assert counts == {
        "passed": 2460,
        "body_opaque": 42,
        "second_copy": 1,
        "The request body is malformed: it names more than one model.": 1,
    }


def test_corpus_signatures_are_exempt_in_requests() -> None:
    names = ("signature", "encrypted_content", "encrypted_index", "thought_signature")
    inspected, exempt = 0, 0
    for api, value in bodies("request"):
        for leaf in FAMILIES[api][1].request.walk(value):
            if leaf.kind is LeafKind.STRING and leaf.pointer[-1] in names and leaf.text:
                exempt += is_exempt(leaf)
                inspected += not is_exempt(leaf)
    assert exempt > 200
    assert inspected == 3, "three of one provider begin with a UUID, which no shape allows: inspected, to be safe"


MISTRAL = shipped("mistral")
REMOTE = {"type": "mcp", "server_url": "https://evil.example"}
SHELL = {"type": "shell", "environment": {"container_id": "cntr_1"}}
PAST_THE_GATE = {
    "a batch by blob": (OPENAI, "batches", {"endpoint": "/x", "input_blob": "https://evil.example/in.jsonl"}),
    "answers to a blob": (OPENAI, "batches", {"input_file_id": "f", "output_folder": {"url": "https://evil.example"}}),
    "a server in an item": (OPENAI, "responses", {"input": [{"type": "additional_tools", "tools": [REMOTE]}]}),
    "a server in a tool": (OPENAI, "responses", {"tools": [{"type": "namespace", "tools": [REMOTE]}]}),
    "a container in an item": (OPENAI, "responses", {"input": [{"type": "additional_tools", "tools": [SHELL]}]}),
    "a container of an item": (OPENAI, "responses", {"input": [{"type": "shell_call", **SHELL}]}),
    "a skill": (OPENAI, "responses", {"tools": [{"container": {"skills": [{"skill_id": "skill_1"}]}}]}),
    "a server in a conversation": (
        OPENAI,
        "conversations",
        {"items": [{"type": "additional_tools", "tools": [REMOTE]}]},
    ),
    "settings of a call": (OPENAI, "realtime_calls", {"sdp": "v=0", "session": "{}"}),
    "an earlier spoken answer": (OPENAI, "chat", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
    "a file in Realtime": (OPENAI, "realtime", {"item": {"content": [{"type": "input_file", "file_id": "f"}]}}),
    "a file at Anthropic": (ANTHROPIC, "messages", {"messages": [{"content": [{"source": {"file_id": "f"}}]}]}),
    "a skill at Anthropic": (ANTHROPIC, "messages", {"container": {"skills": [{"type": "custom", "skill_id": "s"}]}}),
    "a file at Mistral": (MISTRAL, "chat", {"messages": [{"content": [{"type": "file", "file_id": "f"}]}]}),
}


@pytest.mark.parametrize(("spec", "endpoint", "body"), PAST_THE_GATE.values(), ids=PAST_THE_GATE.keys())
def test_what_leads_past_the_gate_or_to_what_others_stored_is_refused(spec: Dialect, endpoint: str, body: dict) -> None:
    unread: list[tuple[str, str]] = []  # what ``on_unknown`` could let pass: none of these
    denial = refused(spec.endpoints[endpoint], body, redacting=False, unread=unread, named=True)
    assert denial is not None
    assert (denial.reason, unread) == (Reason.BODY_OPAQUE, [])


def test_an_item_without_what_it_holds_names_a_stored_one() -> None:
    for endpoint, field in (("responses", "input"), ("conversations", "items")):
        bare = {"type": "image_generation_call", "id": "ig_1"}
        assert refused(OPENAI.endpoints[endpoint], {field: [bare]}, redacting=False) is not None
        assert refused(OPENAI.endpoints[endpoint], {field: [{**bare, "result": "aGk="}]}, redacting=False) is None
