"""Masked streams as the real SDKs accumulate them: empty deltas, made-up deltas, cut answers."""

from __future__ import annotations

import json

import anthropic
import httpx
import httpx2
import openai
import pytest

from tests.wire import CARD, FAMILIES, KEY, MAIL, Said, answer, every, run, sse
from tidegate.model import Action

ANSWER = Said(f"Write to {MAIL}, key {KEY}", f"I know {CARD}", (json.dumps({"card": CARD}),))
TEXT, THOUGHT = "Write to [REDACTED:mail], key [REDACTED:key]", "I know [REDACTED:card]"
ARGUMENTS = {"card": "[REDACTED:card]"}
HI = [{"role": "user", "content": "hi"}]
SIZES = pytest.mark.parametrize("size", [1, 4, 100], ids="deltas of {}".format)


def body(name: str, size: int, action: Action) -> bytes:
    stream = sse(FAMILIES[name](ANSWER, every(size)))
    return run(answer(name, action), stream, range(0, len(stream), 97))


def openai_client(name: str, size: int, action: Action = Action.REDACT) -> openai.OpenAI:
    reply = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body(name, size, action))
    client = httpx.Client(transport=httpx.MockTransport(lambda _: reply))
    return openai.OpenAI(api_key="x", base_url="http://gate/v1", http_client=client, max_retries=0)


def anthropic_client(size: int, action: Action = Action.REDACT) -> anthropic.Anthropic:
    reply = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body("messages", size, action))
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: reply))
    return anthropic.Anthropic(api_key="x", base_url="http://gate", http_client=client, max_retries=0)


@SIZES
def test_openai_chat(size: int) -> None:
    with (
        openai_client("chat", size) as client,
        client.chat.completions.stream(model="m", messages=HI) as stream,
    ):
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", TEXT)
    (call,) = message.tool_calls
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_0", "f", ARGUMENTS)


@SIZES
def test_openai_responses(size: int) -> None:
    with openai_client("responses", size) as client, client.responses.stream(model="m", input="hi") as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert response.output_text == TEXT
    assert json.loads(response.output[2].arguments) == ARGUMENTS
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == TEXT
    assert "".join(e.delta for e in events if e.type == "response.reasoning_summary_text.delta") == THOUGHT


@SIZES
def test_openai_completions(size: int) -> None:
    with openai_client("completions", size) as client:
        chunks = list(client.completions.create(model="m", prompt="hi", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT


@SIZES
def test_anthropic_messages(size: int) -> None:
    with (
        anthropic_client(size) as client,
        client.messages.stream(model="m", max_tokens=9, messages=HI) as stream,
    ):
        thought, text, call = stream.get_final_message().content
    assert (thought.thinking, thought.signature, text.text, call.input) == (THOUGHT, "", TEXT, ARGUMENTS)


def test_openai_reads_why_a_chat_was_cut() -> None:
    with openai_client("chat", 4, Action.BLOCK) as client:
        chunks = client.chat.completions.create(model="m", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="Blocked by policy"):
            list(chunks)


def test_openai_reads_why_a_completion_was_cut() -> None:
    with openai_client("completions", 4, Action.BLOCK) as client:
        chunks = client.completions.create(model="m", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="Blocked by policy"):
            list(chunks)


def test_openai_reads_why_a_response_was_cut() -> None:
    with openai_client("responses", 4, Action.BLOCK) as client:
        events = client.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="Blocked by policy"):
            list(events)


def test_anthropic_reads_why_an_answer_was_cut() -> None:
    with anthropic_client(4, Action.BLOCK) as client:
        events = client.messages.create(model="m", max_tokens=9, messages=HI, stream=True)
        with pytest.raises(anthropic.APIError, match="Blocked by policy"):
            list(events)
