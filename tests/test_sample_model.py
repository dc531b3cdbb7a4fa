"""The real SDKs against the sample model: what they read is what it said."""

from __future__ import annotations

import json

import anthropic
import httpx
import openai
import pytest

from tests.conftest import SampleModel
from tidegate.sample_answers import ARGUMENTS, MODEL, RECORD, last_user_text, pieces, say

LEAK = "Print the customer record, please."
THINK = "Think first. " + LEAK
FUNCTION = {"name": "send_mail", "description": "Send a mail", "parameters": {"type": "object", "properties": {}}}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def gpt(sample_model: SampleModel):
    with openai.OpenAI(base_url=f"{sample_model.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(sample_model: SampleModel):
    with anthropic.Anthropic(base_url=sample_model.url, api_key="none", max_retries=0) as client:
        yield client


# ------------------------------------------------------------------------------------------------ OpenAI


def test_chat_answers_and_echoes(gpt):
    answer = gpt.chat.completions.create(model="gpt-x", messages=user("Good morning"))
    assert answer.model == MODEL
    assert answer.choices[0].message.content.endswith("You said: Good morning")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_joins_to_the_whole(gpt):
    chunks = list(
        gpt.chat.completions.create(
            model="x", messages=user(THINK), stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == RECORD
    assert "jane.doe@example.com" in "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert len([delta for delta in deltas if delta.content]) == len(list(pieces(RECORD)))
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chat_calls_a_tool(gpt, stream):
    asked = {"model": "x", "messages": user("Use the tool."), "tools": [{"type": "function", "function": FUNCTION}]}
    if stream:
        with gpt.chat.completions.stream(**asked) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = gpt.chat.completions.create(**asked).choices[0].message
    call = message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("send_mail", json.loads(ARGUMENTS))


def test_completions(gpt):
    whole = gpt.completions.create(model="x", prompt=LEAK).choices[0].text
    streamed = gpt.completions.create(model="x", prompt=LEAK, stream=True)
    assert whole == RECORD == "".join(chunk.choices[0].text for chunk in streamed)


def test_responses_stream_repeats_what_its_deltas_said(gpt):
    assert gpt.responses.create(model="x", input=LEAK).output_text == RECORD
    with gpt.responses.stream(model="x", input=THINK, reasoning={"effort": "low"}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == RECORD
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == RECORD
    assert next(event.text for event in events if event.type == "response.output_text.done") == RECORD
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "jane.doe@example.com" in final.output[0].summary[0].text


def test_responses_call_a_tool(gpt):
    with gpt.responses.stream(model="x", input="Use the tool.", tools=[{"type": "function", **FUNCTION}]) as stream:
        call = stream.get_final_response().output[0]
    assert (call.type, call.name, call.arguments) == ("function_call", "send_mail", ARGUMENTS)


def test_embeddings_are_the_same_in_both_encodings(gpt):
    packed = gpt.embeddings.create(model="x", input=["one", "two"])
    plain = gpt.embeddings.create(model="x", input=["one", "two"], encoding_format="float")
    for left, right in zip(packed.data, plain.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding


# ------------------------------------------------------------------------------------------------ Anthropic


def test_messages_answer_and_count(claude):
    answer = claude.messages.create(model="claude-x", max_tokens=100, messages=user(LEAK))
    assert (answer.model, answer.content[0].text, answer.stop_reason) == (MODEL, RECORD, "end_turn")
    assert claude.messages.count_tokens(model="x", messages=user(LEAK)).input_tokens > 0


def test_messages_stream_thinking_then_text(claude):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with claude.messages.stream(model="x", max_tokens=2048, messages=user(LEAK), thinking=thinking) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == RECORD
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert "jane.doe@example.com" in final.content[0].thinking
    assert final.content[0].signature


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages_call_a_tool_and_take_its_result(claude, stream):
    tool = {"name": "send_mail", "description": "Send a mail", "input_schema": {"type": "object"}}
    asked = {"model": "x", "max_tokens": 100, "tools": [tool], "messages": user("Use the tool.")}
    if stream:
        with claude.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    use = answer.content[0]
    assert (use.type, use.input, answer.stop_reason) == ("tool_use", json.loads(ARGUMENTS), "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sent"}]}
    said = claude.messages.create(
        **asked | {"messages": [*asked["messages"], {"role": "assistant", "content": answer.content}, result]}
    )
    assert said.content[0].type == "text"


# ------------------------------------------------------------------------------------------------ itself


def test_every_answer_is_labelled_a_sample(sample_model):
    for method, path, body in [
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", {"messages": user("hi")}),
        ("POST", "/v1/messages", {"messages": user("hi"), "stream": True}),
        ("POST", "/v1/nothing", {}),
    ]:
        answer = httpx.request(method, sample_model.url + path, json=body)
        assert (answer.headers["x-sample-model"], answer.headers["server"]) == ("1", "tidegate-sample-model"), path


def test_models_are_listed_for_both(gpt, claude):
    assert [model.id for model in gpt.models.list()] == [model.id for model in claude.models.list()]
    assert all(model.id.startswith("sample-") for model in gpt.models.list())


def test_hits_count_requests_and_never_tell_a_header_value(sample_model):
    before = sample_model.hits()
    httpx.post(f"{sample_model.url}/v1/embeddings", json={"input": "x"}, headers={"authorization": "Bearer planted"})
    seen = sample_model.seen()
    assert seen["hits"] == before + 1
    assert "authorization" in seen["last"]["headers"]
    assert "planted" not in json.dumps(seen)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"messages": [1]}'], ids=["empty", "list", "cut", "odd"])
def test_what_is_no_request_is_400(sample_model, content):
    answer = httpx.post(f"{sample_model.url}/v1/chat/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_sdk_raises_what_it_should(gpt):
    with pytest.raises(openai.BadRequestError, match="sample model"):
        gpt.chat.completions.create(model="x", messages=[1])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "a"}, ("a", False)),
        ({"prompt": ["a", "b"]}, ("b", False)),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, ("a", False)),
        ({"messages": [*user("a"), {"role": "assistant", "content": "b"}]}, ("a", False)),
        ({"messages": [*user("a"), {"role": "tool", "content": "b"}]}, ("a", True)),
        ({}, ("", False)),
    ],
    ids=["string", "strings", "parts", "assistant-last", "tool-last", "nothing"],
)
def test_last_user_text(body, expected):
    assert last_user_text(body) == expected


def test_the_same_question_has_the_same_answer():
    assert say({"messages": user(THINK)}) == say({"messages": user(THINK)})
