"""Refusals, read by the real SDKs: their own exception, one clear sentence, the request id, and exactly one try."""

from __future__ import annotations

import json
from pathlib import Path

import anthropic
import httpx
import httpx2  # what the anthropic SDK is built on, and comes with
import openai
import pytest

from tidegate.dialects.errors import GENERIC, render, render_event
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import ErrorShape
from tidegate.model import Denial, Reason
from tidegate.streams.sse import Sse

RULES = Path(__file__).resolve().parents[1] / "rules" / "dialects"
DENIED = Denial(Reason.FINDING, 403, "The prompt holds an AWS access key.")
SENTENCE = "The prompt holds an AWS access key. (request req_7F3)"


def shape(name: str) -> ErrorShape:
    dialect, faults = parse_dialect((RULES / f"{name}.yaml").read_text(), f"{name}.yaml")
    assert dialect is not None, faults
    return dialect.error


OPENAI = pytest.mark.parametrize("form", [shape("openai"), GENERIC], ids=["openai", "generic"])
ANTHROPIC = pytest.mark.parametrize("form", [shape("anthropic"), GENERIC], ids=["anthropic", "generic"])
STATUSES = pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 429, 500, 502, 503, 504])


type Answer = tuple[int, dict[str, str], bytes]


def refusal(form: ErrorShape, denial: Denial) -> Answer:
    headers, body = render(form, denial, "req_7F3")
    return denial.status, dict(headers), body


def stream(form: ErrorShape, before: bytes) -> Answer:
    last = Sse().refusal(render_event(form, DENIED, "req_7F3"), form.event_name)
    return 200, {"content-type": "text/event-stream"}, before + last


def openai_client(answer: Answer, tries: list[int]) -> openai.OpenAI:
    def handle(_: httpx.Request) -> httpx.Response:
        tries.append(1)
        return httpx.Response(answer[0], headers=answer[1], content=answer[2])

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return openai.OpenAI(api_key="k", base_url="http://gate.test/v1", http_client=http)


def anthropic_client(answer: Answer, tries: list[int]) -> anthropic.Anthropic:
    def handle(_: httpx2.Request) -> httpx2.Response:
        tries.append(1)
        return httpx2.Response(answer[0], headers=answer[1], content=answer[2])

    http = httpx2.Client(transport=httpx2.MockTransport(handle))
    return anthropic.Anthropic(api_key="k", base_url="http://gate.test", http_client=http)


@OPENAI
@STATUSES
def test_openai_sdk_reads_a_refusal_and_tries_once(form: ErrorShape, status: int) -> None:
    tries: list[int] = []
    client = openai_client(refusal(form, Denial(Reason.FINDING, status, DENIED.message)), tries)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.status_code == status
    assert SENTENCE in str(caught.value)
    assert caught.value.request_id == "req_7F3"
    assert caught.value.code == "finding"
    assert caught.value.type
    assert tries == [1]


def test_openai_sdk_raises_its_own_class_for_the_status() -> None:
    client = openai_client(refusal(shape("openai"), DENIED), [])
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.responses.create(model="m", input="hi")
    assert caught.value.type == "permission_error"


@ANTHROPIC
@STATUSES
def test_anthropic_sdk_reads_a_refusal_and_tries_once(form: ErrorShape, status: int) -> None:
    tries: list[int] = []
    client = anthropic_client(refusal(form, Denial(Reason.FINDING, status, DENIED.message)), tries)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.status_code == status
    assert SENTENCE in str(caught.value)
    assert caught.value.request_id == "req_7F3"
    assert tries == [1]


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHAT_BEFORE = [
    b"",
    b"data: "
    + json.dumps(CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]}).encode()
    + b"\n\n",
]


@OPENAI
@pytest.mark.parametrize("before", CHAT_BEFORE, ids=["at-once", "after-text"])
def test_openai_sdk_reads_a_refusal_in_mid_stream(form: ErrorShape, before: bytes) -> None:
    tries: list[int] = []
    client = openai_client(stream(form, before), tries)
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))
    assert SENTENCE in str(caught.value)
    assert tries == [1]


@OPENAI
def test_openai_sdk_reads_a_refusal_in_a_responses_stream(form: ErrorShape) -> None:
    client = openai_client(stream(form, b""), [])
    with pytest.raises(openai.APIError) as caught:
        list(client.responses.create(model="m", input="hi", stream=True))
    assert SENTENCE in str(caught.value)


@ANTHROPIC
def test_anthropic_sdk_reads_a_refusal_in_mid_stream(form: ErrorShape) -> None:
    tries: list[int] = []
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    before = b"event: content_block_start\ndata: " + json.dumps(start).encode() + b"\n\n"
    client = anthropic_client(stream(form, before), tries)
    with pytest.raises(anthropic.APIError) as caught:
        list(client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}], stream=True))
    assert SENTENCE in str(caught.value)
    assert tries == [1]


def test_templates_fill_every_place_and_keep_types() -> None:
    form = ErrorShape(
        body={"a": ["${status}", "${status}: ${message} ${id}"], "b": None, "c": "${type}/${reason}", "d": "$ {x}"},
        event="${message}",
        event_name=None,
        types={0: "other", 429: "slow"},
    )
    denial = Denial(Reason.OUTPUT_LIMIT, 429, 'say "no" ${id}\n')
    headers, body = render(form, denial, "r")
    assert json.loads(body) == {
        "a": [429, '429: say "no" ${id}\n r'],
        "b": None,
        "c": "slow/output_limit",
        "d": "$ {x}",
    }
    assert dict(headers) == {
        "content-type": "application/json",
        "cache-control": "no-store",
        "x-request-id": "r",
        "request-id": "r",
        "x-should-retry": "false",
    }
    assert render_event(form, denial, "r") == b'"say \\"no\\" ${id}\\n"'
