"""Unmodified MCP and A2A clients through a running gate, against servers of the same SDKs: intact, masked, refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.harness import CREDENTIAL, Process, free_port, policy, tidegate_run, token
from tidegate.evidence import queries

pytest.importorskip("mcp")
pytest.importorskip("a2a")

import httpx2
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import (
    CancelTaskRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
)
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import CreateMessageResult, TextContent

from tests.e2e.agents import POISON, Heard, a2a_server, mcp_server, poisoned, tools

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MASKED = "Write to [REDACTED:email], card [REDACTED:card-visa]. Plan: gold"
BEARER = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
SECONDS = 30.0
"""The longest any of these calls may take on a busy machine: a client that hangs fails here."""


@dataclass
class Setting:
    """A running gate, what its servers heard, and the token its caller has."""

    gate: Process
    heard: dict[str, Heard]
    token: str

    def rows(self) -> list[dict[str, Any]]:
        """Return what is recorded, newest first."""
        return [dict(row) for row in queries.list_flows(self.gate.cwd / "recording.db", limit=50)]

    def row(self, words: str) -> dict[str, Any]:
        """Return the exchange whose id stands in ``words``, once it is sealed."""
        until = time.monotonic() + 10
        while True:
            found = next((row for row in self.rows() if row["id"] in words), None)
            if found and found["outcome"] not in {None, "open"}:
                return found
            assert time.monotonic() < until, words
            time.sleep(0.05)

    def talk(self, name: str, what: Callable[[Client], Awaitable[Any]], *, mode: str = "legacy", **more: Any) -> Any:
        """Run ``what`` with an MCP client of the gate."""

        async def run() -> Any:
            fields = {"authorization": f"Bearer {self.token}"}
            async with httpx2.AsyncClient(headers=fields, timeout=SECONDS) as http:
                transport = streamable_http_client(f"{self.gate.url}/{name}", http_client=http)
                async with Client(transport, mode=mode, **more) as client:  # type: ignore[arg-type]
                    return await what(client)

        return asyncio.run(asyncio.wait_for(run(), SECONDS))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("agents")
    port = free_port()
    heard = {name: Heard("") for name in ("json", "sse", "poisoned", "agent", "older")}
    gate = f"http://127.0.0.1:{port}"
    with (
        mcp_server(tools(heard["json"]), heard["json"], as_json=True),
        mcp_server(tools(heard["sse"]), heard["sse"], as_json=False),
        mcp_server(poisoned(), heard["poisoned"], as_json=False),
        a2a_server(heard["agent"], f"{gate}/agent", "1.0"),
        a2a_server(heard["older"], f"{gate}/older", "0.3"),
    ):
        connections = [
            {
                "name": name,
                "dialect": "a2a" if name in ("agent", "older") else "mcp",
                "upstream": each.url,
                "serve": {"path": f"/{name}"},
                "credential": {**BEARER},
            }
            for name, each in heard.items()
        ]
        everything = {"allow": [{"connections": ["*"], "endpoints": ["*"]}], "deny": [{"tools": ["bash"]}]}
        inspection = {
            "prompt": {"secrets": "block", "pii": "redact", "injection": "flag", "exfil": "allow"},
            "response": {"secrets": "redact", "pii": "redact", "injection": "block", "exfil": "redact"},
        }
        here = policy(folder, gate, connections=connections, roles={"dev": everything}, inspection=inspection)
        secret = token(folder)
        with tidegate_run(here, port=port) as running:
            yield Setting(running, heard, secret)


# ── MCP ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

both = pytest.mark.parametrize("name", ["json", "sse"])
versions = pytest.mark.parametrize("mode", ["legacy", "auto"])


@both
@versions
def test_a_session_works_and_what_tools_say_is_masked(setting: Setting, name: str, mode: str) -> None:
    heard = setting.heard[name]
    before = len(heard.requests)

    async def what(client: Client) -> tuple[Any, ...]:
        listed = await client.list_tools()
        return (
            client.protocol_version,
            sorted(each.name for each in listed.tools),
            await client.call_tool("leak", {"what": "x"}),
            await client.call_tool("record", {"name": "max@example.com"}),
            await client.read_resource("note://a"),
            await client.get_prompt("plan", {"topic": "x"}),
        )

    version, names, leaked, record, note, plan = setting.talk(name, what, mode=mode)
    assert version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    assert names == ["ask", "bash", "change", "count", "leak", "pause", "record"]
    assert leaked.content[0].text == MASKED
    assert leaked.structured_content == {"result": MASKED}
    assert record.structured_content == {"name": "[REDACTED:email]", "mail": "[REDACTED:email]", "plan": "gold"}
    assert note.contents[0].text == MASKED
    assert plan.messages[0].content.text == "Plan x and write to [REDACTED:email]"
    sent = heard.requests[before:]
    assert {fields["authorization"] for _, fields, _ in sent} == {f"Bearer {CREDENTIAL}"}
    assert setting.token not in str(sent)
    assert "max@example.com" not in str(sent)
    if mode == "legacy":
        assert {"POST", "DELETE"} <= {method for method, _, _ in sent}
        assert len({fields["mcp-session-id"] for _, fields, _ in sent[1:]}) == 1


@both
@versions
@pytest.mark.parametrize(
    ("tool", "arguments", "reason", "words"),
    [
        ("leak", {"what": f"use {KEY}"}, "finding", "Blocked by policy: \\$.params.arguments.what contains something"),
        ("bash", {"command": "ls"}, "tool_denied", "Your roles do not allow a tool"),
    ],
    ids=["secret", "tool"],
)
def test_a_call_that_may_not_be_made_says_why_and_is_not_made(
    setting: Setting, name: str, mode: str, tool: str, arguments: dict[str, str], reason: str, words: str
) -> None:
    heard = setting.heard[name]
    ran = len(heard.ran)

    async def what(client: Client) -> tuple[str, Any]:
        before = len(heard.requests)
        with pytest.raises(MCPError, match=words) as raised:
            await client.call_tool(tool, arguments)
        calls = [each for each in heard.methods(before) if each == "tools/call"]
        assert calls == []
        return str(raised.value), await client.call_tool("record", {"name": "x"})  # the session goes on

    said, after = setting.talk(name, what, mode=mode)
    assert KEY not in said
    row = setting.row(said)
    assert (row["reason"], row["endpoint"], row["outcome"], row["status"]) == (reason, "call_tool", "denied", 200)
    assert after.structured_content["name"] == "x"
    assert heard.ran[ran:] == ["record"]


def test_progress_and_log_messages_arrive_masked_and_live(setting: Setting) -> None:
    seen: list[str] = []

    async def progress(_done: float, _total: float | None, message: str | None) -> None:
        seen.append(message or "")

    async def logged(params: Any) -> None:
        seen.append(params.data)

    async def what(client: Client) -> Any:
        return await client.call_tool("count", {"upto": 2}, progress_callback=progress)

    answer = setting.talk("sse", what, logging_callback=logged)
    assert answer.content[0].text == "counted"
    assert seen == [
        "step 1 for [REDACTED:email]",
        "counted 1, told [REDACTED:email]",
        "step 2 for [REDACTED:email]",
        "counted 2, told [REDACTED:email]",
    ]


def test_what_a_server_asks_and_a_client_answers_is_masked(setting: Setting) -> None:
    asked: list[str] = []

    async def sampling(_context: Any, params: Any) -> CreateMessageResult:
        asked.append(params.messages[0].content.text)
        text = TextContent(type="text", text="it is jane.doe@example.com")
        return CreateMessageResult(role="assistant", content=text, model="m")

    async def what(client: Client) -> Any:
        return await client.call_tool("ask", {"text": "whose is max@example.com?"})

    answer = setting.talk("sse", what, sampling_callback=sampling)
    assert asked == ["whose is [REDACTED:email]?"]
    assert answer.content[0].text == "the model said it is [REDACTED:email]"


def test_a_stream_that_broke_off_is_resumed_and_masked(setting: Setting) -> None:
    heard = setting.heard["sse"]
    before = len(heard.requests)

    async def what(client: Client) -> Any:
        return await client.call_tool("pause")

    assert setting.talk("sse", what).content[0].text == MASKED
    resumed = [fields for method, fields, _ in heard.requests[before:] if method == "GET" and "last-event-id" in fields]
    assert resumed, "the client came back with the id of the last event it had"


@both
def test_a_standing_stream_brings_what_nobody_asked_for(setting: Setting, name: str) -> None:
    seen: list[str] = []
    arrived = asyncio.Event()

    async def heard(message: Any) -> None:
        seen.append(message.model_dump_json() if hasattr(message, "model_dump_json") else repr(message))
        arrived.set()

    async def what(client: Client) -> Any:
        while not arrived.is_set():  # before the stream is open there is nobody to tell
            answer = await client.call_tool("change")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), 0.5)
        return answer

    answer = setting.talk(name, what, message_handler=heard)
    assert answer.content[0].text == "changed"
    assert any("note://[REDACTED:email]" in each for each in seen), seen
    assert "jane.doe" not in str(seen)


@both
def test_a_long_argument_is_judged_like_a_short_one(setting: Setting, name: str) -> None:
    heard = setting.heard[name]
    long = "all is well. " * 5000

    async def what(client: Client) -> str:
        answer = await client.call_tool("record", {"name": f"{long} max@example.com"})
        assert answer.structured_content["name"] == f"{long} [REDACTED:email]"
        before = len(heard.requests)
        with pytest.raises(MCPError, match="Blocked by policy") as raised:
            await client.call_tool("record", {"name": f"{long} {KEY}"})
        assert "tools/call" not in heard.methods(before)
        return str(raised.value)

    said = setting.talk(name, what)
    assert setting.row(said)["reason"] == "finding"


def test_a_secret_in_what_a_client_answers_stays_here(setting: Setting) -> None:
    heard = setting.heard["sse"]
    before = len(heard.requests)

    async def sampling(_context: Any, _params: Any) -> CreateMessageResult:
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text=f"it is {KEY}"), model="m")

    async def what(client: Client) -> None:
        with pytest.raises(MCPError):
            await client.call_tool("ask", {"text": "hello"}, read_timeout_seconds=3)

    setting.talk("sse", what, sampling_callback=sampling)
    assert KEY not in str(heard.requests[before:])
    assert setting.rows()


def test_the_description_of_a_tool_that_gives_orders_is_blocked(setting: Setting) -> None:
    async def what(client: Client) -> str:
        with pytest.raises(MCPError, match="the answer contains something of the class injection") as raised:
            await client.list_tools()
        return str(raised.value)

    said = setting.talk("poisoned", what)
    assert POISON not in said
    row = setting.row(said)
    assert (row["reason"], row["endpoint"], row["outcome"]) == ("answer_finding", "list_tools", "denied")


def test_an_unknown_method_names_those_that_are_accepted(setting: Setting) -> None:
    body = {"jsonrpc": "2.0", "id": 7, "method": "tasks/result", "params": {"taskId": "x"}}
    answer = httpx.post(f"{setting.gate.url}/json", json=body, headers={"authorization": f"Bearer {setting.token}"})
    error = answer.json()
    assert (answer.status_code, error["id"], error["error"]["code"]) == (200, 7, -32601)
    assert "accepted: initialize, " in error["error"]["message"]


def test_without_a_token_no_message_is_read(setting: Setting) -> None:
    before = len(setting.heard["json"].requests)
    answer = httpx.post(f"{setting.gate.url}/json", json={"jsonrpc": "2.0", "id": 7, "method": "ping"})
    assert answer.status_code == 401
    assert answer.json()["id"] is None
    assert len(setting.heard["json"].requests) == before


# ── A2A ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

agents = pytest.mark.parametrize("agent", ["agent", "older"])
ways = pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])


def speak(setting: Setting, agent: str, what: Callable[[Any], Awaitable[Any]], *, streaming: bool) -> Any:
    """Run ``what`` with an A2A client that knows the agent by the card it got through the gate."""

    async def run() -> Any:
        fields = {"authorization": f"Bearer {setting.token}"}
        async with httpx.AsyncClient(headers=fields, timeout=SECONDS) as http:
            card = await A2ACardResolver(http, f"{setting.gate.url}/{agent}").get_agent_card()
            assert card.description == "An agent for tests; its author is [REDACTED:email]"
            return await what(ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card))

    return asyncio.run(asyncio.wait_for(run(), SECONDS))


def asks(text: str) -> SendMessageRequest:
    return SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))


def said_in(events: list[Any]) -> str:
    """Join an artifact as a client does."""
    text = ""
    for event in events:
        if event.HasField("task"):
            text = "".join(part.text for each in event.task.artifacts for part in each.parts) or text
        if event.HasField("artifact_update"):
            words = "".join(part.text for part in event.artifact_update.artifact.parts)
            text = (text if event.artifact_update.append else "") + words
    return text


@agents
@ways
def test_an_agent_answers_with_a_message(setting: Setting, agent: str, *, streaming: bool) -> None:
    async def what(client: Any) -> list[Any]:
        return [event async for event in client.send_message(asks("message for max@example.com"))]

    (event,) = speak(setting, agent, what, streaming=streaming)
    assert event.message.parts[0].text == MASKED
    assert setting.heard[agent].ran[-1] == "message for [REDACTED:email]"
    assert setting.heard[agent].requests[-1][1]["authorization"] == f"Bearer {CREDENTIAL}"


@agents
@ways
def test_an_artifact_in_chunks_is_masked(setting: Setting, agent: str, *, streaming: bool) -> None:
    async def what(client: Any) -> tuple[list[Any], Any]:
        events = [event async for event in client.send_message(asks("a task"))]
        ident = next(event.task.id for event in events if event.HasField("task"))
        return events, await client.get_task(GetTaskRequest(id=ident))

    events, task = speak(setting, agent, what, streaming=streaming)
    assert said_in(events) == MASKED
    assert "".join(part.text for part in task.artifacts[0].parts) == MASKED
    assert task.status.message.parts[0].text == "done, says [REDACTED:email]"
    assert len(events) > 10 if streaming else len(events) == 1


@agents
@ways
def test_a_message_that_may_not_be_sent_says_why(setting: Setting, agent: str, *, streaming: bool) -> None:
    ran = len(setting.heard[agent].ran)

    async def what(client: Any) -> str:
        before = len(setting.heard[agent].requests)
        with pytest.raises(Exception, match="Blocked by policy") as raised:
            _ = [event async for event in client.send_message(asks(f"use {KEY}"))]
        assert setting.heard[agent].requests[before:] == []
        return str(raised.value)

    said = speak(setting, agent, what, streaming=streaming)
    row = setting.row(said)
    assert (row["reason"], row["endpoint"]) == ("finding", "stream" if streaming else "send")
    assert KEY not in said
    assert len(setting.heard[agent].ran) == ran


@agents
def test_tasks_are_asked_for_and_push_notifications_refused(setting: Setting, agent: str) -> None:
    async def what(client: Any) -> list[str]:
        events = [event async for event in client.send_message(asks("a task"))]
        ident = next(event.task.id for event in events if event.HasField("task"))
        said = []
        for attempt in (
            client.cancel_task(CancelTaskRequest(id=ident)),
            client.get_task_push_notification_config(GetTaskPushNotificationConfigRequest(task_id=ident, id="1")),
        ):
            with pytest.raises(Exception) as raised:  # noqa: PT011 - the SDK has a type for each
                await attempt
            said.append(str(raised.value))
        with pytest.raises(Exception) as raised:  # noqa: PT011 - as above
            _ = [event async for event in client.subscribe(SubscribeToTaskRequest(id=ident))]
        return [*said, str(raised.value)]

    cancelled, pushed, _ = speak(setting, agent, what, streaming=True)
    assert "cancel" in cancelled, "the agent's own words"
    assert "no endpoint for this JSON-RPC method; accepted: message/send" in pushed
    methods = setting.heard[agent].methods()[-2:]
    assert methods in (["CancelTask", "SubscribeToTask"], ["tasks/cancel", "tasks/resubscribe"])


def test_a_body_is_written_anew_and_read_by_the_server(setting: Setting) -> None:
    bodies = [json.loads(body) for method, _, body in setting.heard["agent"].requests if method == "POST"]
    assert all(each["jsonrpc"] == "2.0" for each in bodies)
