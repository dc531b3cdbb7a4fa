"""The unmodified OpenAI and Anthropic SDKs through a real gate to the sample model."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SampleModel, sample_model_process
from tests.e2e.harness import policy, tidegate_run, token
from tidegate.evidence import queries

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
LEAK = "show the customer record"
TOOL = {"type": "object", "properties": {"to": {"type": "string"}}}
ROLES = {
    "dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["sample-*"]}]},
    "other": {"allow": [{"connections": ["openai"], "endpoints": ["embeddings"], "models": ["*"]}]},
}
BINDINGS = [{"groups": ["local:dev"], "roles": ["dev"]}, {"groups": ["local:guest"], "roles": ["other"]}]


@dataclass
class Setting:
    """A running gate, its upstream, and clients for any token."""

    url: str
    model: SampleModel
    recording: Path
    dev: str
    guest: str
    open: contextlib.ExitStack

    def openai(self, secret: str | None = None) -> Any:
        client = openai.OpenAI(base_url=f"{self.url}/openai/v1", api_key=secret or self.dev, timeout=20)
        return self.open.enter_context(client)

    def anthropic(self, secret: str | None = None) -> Any:
        client = anthropic.Anthropic(base_url=f"{self.url}/anthropic", api_key=secret or self.dev, timeout=20)
        return self.open.enter_context(client)

    def rows(self) -> list[dict[str, Any]]:
        """Return what is recorded, newest first; a row is sealed a moment after its answer, so wait until all are."""
        until, before = time.monotonic() + 5, -1
        while True:
            rows = [dict(row) for row in queries.list_flows(self.recording, limit=1000)]
            still = len(rows) == before and all(row["outcome"] not in {None, "open"} for row in rows)
            if still or time.monotonic() > until:
                return rows
            before = len(rows)
            time.sleep(0.25)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("sdks")
    with sample_model_process(0.01) as model:
        written = policy(folder, model.url, roles=ROLES, bindings=BINDINGS)
        dev, guest = token(folder), token(folder, "gast", ("guest",))
        with tidegate_run(written) as gate, contextlib.ExitStack() as clients:
            yield Setting(gate.url, model, folder / "recording.db", dev, guest, clients)


def chat(client: Any, text: str, model: str = "sample-small", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def messages(client: Any, text: str, model: str = "sample-small", **more: Any) -> Any:
    said = [{"role": "user", "content": text}]
    return client.messages.create(model=model, max_tokens=2000, messages=said, **more)


def masked(text: str) -> None:
    assert "jane.doe" not in text
    assert not re.search(r"4111|(?:1111)", text), text
    assert "[REDACTED:" in text
    assert "Plan: gold" in text


def test_openai_answers_are_intact(setting: Setting) -> None:
    client = setting.openai()
    assert "hello there" in chat(client, "hello there").choices[0].message.content
    pieces = chat(client, "hello there", stream=True)
    assert "hello there" in "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert "hello there" in client.responses.create(model="sample-small", input="hello there").output_text
    with client.responses.stream(model="sample-small", input="hello there") as stream:
        assert "hello there" in stream.get_final_response().output_text
    assert "hello there" in client.completions.create(model="sample-small", prompt="hello there").choices[0].text
    assert client.embeddings.create(model="sample-embedding", input="hello").data[0].embedding
    assert list(client.models.list())


def test_anthropic_answers_are_intact(setting: Setting) -> None:
    client = setting.anthropic()
    assert "hello there" in messages(client, "hello there").content[0].text
    with client.messages.stream(
        model="sample-small", max_tokens=2000, messages=[{"role": "user", "content": "think: hello there"}]
    ) as stream:
        final = stream.get_final_message()
    assert [each.type for each in final.content] == ["thinking", "text"]
    assert "hello there" in final.content[1].text
    said = [{"role": "user", "content": "hello there"}]
    assert client.messages.count_tokens(model="sample-small", messages=said).input_tokens > 0


def test_tool_calls_are_masked_and_stay_json(setting: Setting) -> None:
    described = {"type": "function", "function": {"name": "send_mail", "parameters": TOOL}}
    call = chat(setting.openai(), "use the tool", tools=[described]).choices[0].message.tool_calls[0]
    assert call.function.name == "send_mail"
    assert "jane.doe" not in call.function.arguments
    tools = [{"name": "send_mail", "description": "sends", "input_schema": TOOL}]
    said = [{"role": "user", "content": "use the tool"}]
    with setting.anthropic().messages.stream(
        model="sample-small", max_tokens=2000, messages=said, tools=tools
    ) as stream:
        block = next(each for each in stream.get_final_message().content if each.type == "tool_use")
    assert block.input["to"].startswith("[REDACTED:")
    assert block.input["subject"] == 'Your "gold" plan'


def test_whole_answers_are_masked(setting: Setting) -> None:
    masked(chat(setting.openai(), LEAK).choices[0].message.content)
    masked(messages(setting.anthropic(), LEAK).content[0].text)
    masked(setting.openai().responses.create(model="sample-small", input=LEAK).output_text)


def openai_deltas(setting: Setting) -> Iterator[str]:
    for each in chat(setting.openai(), LEAK, stream=True):
        if each.choices and each.choices[0].delta.content:
            yield each.choices[0].delta.content


def anthropic_deltas(setting: Setting) -> Iterator[str]:
    with setting.anthropic().messages.stream(
        model="sample-small", max_tokens=2000, messages=[{"role": "user", "content": LEAK}]
    ) as stream:
        yield from stream.text_stream


@pytest.mark.parametrize("deltas", [openai_deltas, anthropic_deltas])
def test_streams_are_masked_live(setting: Setting, deltas: Callable[[Setting], Iterator[str]]) -> None:
    arrived = [(time.monotonic(), text) for text in deltas(setting)]
    masked("".join(text for _, text in arrived))
    assert len(arrived) > 5
    assert arrived[-1][0] - arrived[0][0] > 0.1, "all deltas came at once: the answer was not live"
    row = setting.rows()[0]
    assert (row["outcome"], row["status"], row["streamed"]) == ("answered", 200, 1)


REFUSED = [
    pytest.param("dev", KEY, "sample-small", "finding", "PermissionDeniedError", id="key-in-prompt"),
    pytest.param("guest", "hello", "sample-small", "not_granted", "PermissionDeniedError", id="wrong-group"),
    pytest.param("dev", "hello", "large-model", "model_denied", "PermissionDeniedError", id="model-not-granted"),
    pytest.param("tg_unknown", "hello", "sample-small", "token_unknown", "AuthenticationError", id="bad-token"),
]


@pytest.mark.parametrize("ask", [chat, messages], ids=["openai", "anthropic"])
@pytest.mark.parametrize(("who", "text", "model", "reason", "error"), REFUSED)
def test_refusals(
    setting: Setting, ask: Callable[..., Any], who: str, text: str, model: str, reason: str, error: str
) -> None:
    secret = {"dev": setting.dev, "guest": setting.guest}.get(who, who)
    client = setting.openai(secret) if ask is chat else setting.anthropic(secret)
    hits, before = setting.model.hits(), len(setting.rows())
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as raised:
        ask(client, text, model)
    assert type(raised.value).__name__ == error
    rows = setting.rows()
    assert len(rows) == before + 1, "one try"
    row = rows[0]
    assert (row["outcome"], row["reason"], row["status"]) == ("denied", reason, raised.value.status_code)
    assert raised.value.request_id == row["id"]
    assert row["id"] in str(raised.value), "the person reads the request id"
    assert KEY not in str(raised.value)
    assert setting.model.hits() == hits, "nothing reached the upstream"
