"""OpenAI Realtime and Gemini Live through a real gate, with their own SDKs: masked live, refused in their words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.harness import CREDENTIAL, Process, policy, recorded, tidegate_run, token
from tests.e2e.live_peer import SOUND, LiveUpstream
from tests.e2e.test_modes import trusting
from tests.e2e.test_socket import LEAK, MASKED, end_of, wait_for
from tests.e2e.wiring import CARD, KEY, MAIL
from tidegate.evidence import queries

genai = pytest.importorskip("google.genai")
from google.genai import errors, types  # noqa: E402

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning:openai.*")]

MODEL = "good-1"
ROLES = {
    "dev": {
        "allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}],
        "deny": [{"tools": ["bash"]}],
    }
}
LIVE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"


@dataclass
class Setting:
    """A running gate, its upstream, and the token its caller has. The connections ``*-flag`` let speech pass."""

    gate: Process
    upstream: LiveUpstream
    token: str
    seen: list[str] = field(default_factory=list)

    def open(self, path: str, **more: Any) -> ClientConnection:
        """Open a WebSocket without an SDK."""
        options: dict[str, Any] = {"compression": None, "proxy": None, "open_timeout": 20, "close_timeout": 5, **more}
        fields = {"authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return connect(f"ws://127.0.0.1:{self.gate.port}{path}", additional_headers=fields, **options)

    def refused(self, path: str, **more: Any) -> tuple[int, str, str]:
        """Open a WebSocket that must be refused; return status, reason and sentence."""
        with pytest.raises(InvalidStatus) as refused, self.open(path, **more):
            pass
        body = json.loads(refused.value.response.body)["error"]
        reason = body["code"] if isinstance(body["code"], str) else body["details"][0]["reason"]
        return refused.value.response.status_code, reason, body["message"]

    def openai(self, connection: str = "openai") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gate.url}/{connection}/v1", api_key=self.token, max_retries=0)

    def gemini(self, connection: str = "gemini") -> Any:
        # the SDK makes wss of every address, so it comes over TLS
        address = f"https://127.0.0.1:{self.gate.port}/{connection}"
        ssl = {"ssl": trusting(self.gate.cwd)}
        return genai.Client(api_key=self.token, http_options={"base_url": address, "async_client_args": ssl})

    def row(self) -> dict[str, Any]:
        """Return the newest exchange once it is sealed."""
        until = time.monotonic() + 15
        while True:
            rows = [dict(row) for row in queries.list_flows(self.gate.cwd / "recording.db", limit=20)]
            if rows and rows[0]["id"] not in self.seen and rows[0]["outcome"] not in (None, "open"):
                self.seen.append(rows[0]["id"])
                return rows[0]
            assert time.monotonic() < until
            time.sleep(0.05)


@contextlib.contextmanager
def a_setting(folder: Path) -> Iterator[Setting]:
    with LiveUpstream() as upstream:

        def connection(name: str, dialect: str, header: str, prefix: str, rule: str) -> dict[str, object]:
            return {
                "name": name,
                "dialect": dialect,
                "upstream": f"{upstream.url}/{name}",
                "serve": {"path": f"/{name}"},
                "credential": {"header": header, "value": f"{prefix}${{env:TIDEGATE_TEST_CREDENTIAL}}"},
                "on_unknown": rule,
            }

        connections = [
            connection("openai", "openai", "authorization", "Bearer ", "block"),
            connection("openai-flag", "openai", "authorization", "Bearer ", "flag"),
            connection("gemini", "gemini", "x-goog-api-key", "", "block"),
            connection("gemini-flag", "gemini", "x-goog-api-key", "", "flag"),
        ]
        written = policy(folder, upstream.url, connections=connections, roles=ROLES)
        access = token(folder)
        with tidegate_run(written) as gate:
            wait_for(lambda: "recording" in gate.log, 60)
            yield Setting(gate, upstream, access)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with a_setting(tmp_path_factory.mktemp("live")) as setting:
        yield setting


@pytest.fixture
def here(running: Setting) -> Setting:
    running.upstream.reset()
    return running


def item(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


# ── OpenAI Realtime ──────────────────────────────────────────────────────────────────────────────────────────────────


async def until(connection: Any, *kinds: str) -> list[Any]:
    """Return what comes, up to an event of one of these types."""
    found: list[Any] = []
    async with asyncio.timeout(20):
        async for event in connection:
            found.append(event)
            if event.type in kinds:
                break
    return found


async def test_a_text_session_is_masked_live(here: Setting) -> None:
    here.upstream.text = LEAK
    async with here.openai().realtime.connect(model=MODEL) as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await until(connection, "session.updated")
        for _ in range(2):  # the same session goes on
            await connection.conversation.item.create(item=item(f"write to {MAIL}"))
            echo = await until(connection, "conversation.item.done")
            assert echo[-1].item.content[0].text == "write to [REDACTED:email]"
            await connection.response.create()
            events = await until(connection, "response.done")
            said = "".join(each.delta for each in events if each.type == "response.output_text.delta")
            assert said == MASKED
            assert next(each.text for each in events if each.type == "response.output_text.done") == MASKED
            assert events[-1].response.output[0].content[-1].text == MASKED
            told = json.dumps([each.to_dict() for each in events])
            assert MAIL not in told
            assert CARD not in told
    assert MAIL.encode() not in here.upstream.data
    assert here.upstream.heads[0]["authorization"] == f"Bearer {CREDENTIAL}"
    assert here.token not in str(here.upstream.heads)
    row = here.row()
    assert (row["outcome"], row["endpoint"], row["model"]) == ("answered", "realtime", MODEL)
    assert (row["scanned"], row["findings"] > 0) == ("scanned", True)


async def test_a_prompt_with_a_key_is_refused_and_the_session_goes_on(here: Setting) -> None:
    async with here.openai().realtime.connect(model=MODEL) as connection:
        await connection.conversation.item.create(item=item(f"use {KEY}"))
        refused = (await until(connection, "error"))[-1]
        assert (refused.error.code, refused.error.type) == ("finding", "permission_error")
        assert "Blocked by policy" in refused.error.message
        assert here.upstream.data == b""
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await connection.response.create()
        events = await until(connection, "response.done", "error")
        assert events[-1].type == "response.done"
    assert KEY.encode() not in here.upstream.data
    row = here.row()
    assert (row["outcome"], row["reason"]) == ("denied", "finding")


async def test_the_wrong_model_is_refused_at_the_opening(here: Setting) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with here.openai().realtime.connect(model="bad-1"):
            pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["error"]["code"] == "model_denied"
    assert here.upstream.heads == []


async def test_another_model_or_a_tool_later_is_refused(here: Setting) -> None:
    tool = {"type": "function", "name": "bash", "parameters": {"type": "object"}}
    async with here.openai().realtime.connect(model=MODEL) as connection:
        for session, code in (({"model": "good-2"}, "body_malformed"), ({"tools": [tool]}, "tool_denied")):
            await connection.send({"type": "session.update", "session": {"type": "realtime", **session}})  # type: ignore[misc]
            refused = (await until(connection, "error"))[-1]
            assert refused.error.code == code
    assert here.upstream.messages == []


async def test_speech_is_refused_by_default(here: Setting) -> None:
    async with here.openai().realtime.connect(model=MODEL) as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]})
        refused = (await until(connection, "error"))[-1]
        assert refused.error.code == "body_opaque"
        assert "spoken answers, which no text rule can read" in refused.error.message
        await connection.input_audio_buffer.append(audio=SOUND)
        refused = (await until(connection, "error"))[-1]
        assert refused.error.code == "body_opaque"
        assert here.upstream.data == b""
        here.upstream.spoken = True  # as it does by itself where nobody asked for text
        await connection.response.create()
        refused = (await until(connection, "error"))[-1]
        assert refused.error.code == "answer_opaque"
    row = here.row()
    assert (row["outcome"], row["reason"]) == ("denied", "answer_opaque")


async def test_speech_passes_where_the_connection_flags_it_and_the_record_says_so(here: Setting) -> None:
    here.upstream.spoken, here.upstream.text = True, LEAK
    async with here.openai("openai-flag").realtime.connect(model=MODEL) as connection:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]})
        for _ in range(20):
            await connection.input_audio_buffer.append(audio=SOUND)
        await connection.response.create()
        events = await until(connection, "response.done", "error")
        assert [each.delta for each in events if each.type == "response.output_audio.delta"] == [SOUND] * 3
        assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == MASKED
    assert len(here.upstream.messages) == 22
    row = here.row()
    assert (row["outcome"], row["scanned"]) == ("answered", "partly scanned")


def test_the_header_of_the_beta_passes_and_a_key_in_a_subprotocol_does_not(here: Setting) -> None:
    path = f"/openai/v1/realtime?model={MODEL}"
    with here.open(path, headers={"openai-beta": "realtime=v1"}) as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "session.created"
    assert here.upstream.heads[0]["openai-beta"] == "realtime=v1"
    here.row()
    heads = len(here.upstream.heads)
    offered: list[Any] = ["realtime", f"openai-insecure-api-key.{here.token}", "openai-beta.realtime-v1"]
    status, reason, message = here.refused(path, subprotocols=offered)
    assert (status, reason) == (401, "caller_missing")
    assert "never in a subprotocol" in message
    assert here.refused(path, subprotocols=["realtime"])[1] == "protocol"
    assert len(here.upstream.heads) == heads
    assert here.token.encode() not in recorded(here.gate.cwd)
    assert here.token not in here.gate.log


ADDRESSES = {
    "another parameter": (f"/openai/v1/realtime?model={MODEL}&call_id=rtc_1", 400, "protocol"),
    "two models": (f"/openai/v1/realtime?model={MODEL}&model=good-2", 400, "protocol"),
    "no model": ("/openai/v1/realtime", 403, "model_denied"),
    "a key": (f"/gemini{LIVE}?key=abc", 401, "caller_missing"),
}


@pytest.mark.parametrize(("path", "status", "reason"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_an_address_that_is_refused(here: Setting, path: str, status: int, reason: str) -> None:
    assert here.refused(path)[:2] == (status, reason)
    assert here.upstream.heads == []


async def test_what_goes_round_the_gate_is_refused_and_says_so(here: Setting) -> None:
    async with here.openai() as client:
        with pytest.raises(openai.NotFoundError, match="a key with which a client goes round this gateway"):
            await client.realtime.client_secrets.create(session={"type": "realtime", "model": MODEL})
        with pytest.raises(openai.NotFoundError, match="a key with which a client goes round this gateway"):
            await client.post("/realtime/sessions", cast_to=object, body={"model": MODEL})
        with pytest.raises(openai.PermissionDeniedError, match="The request names no model"):
            await client.realtime.calls.create(sdp="v=0")  # on_unknown decides on it where a role grants it
        with pytest.raises(openai.NotFoundError, match="goes round this gateway"):
            await client.realtime.calls.accept("rtc_1", type="realtime")
    assert here.upstream.heads == []


def test_a_message_in_pieces_is_one_message(here: Setting) -> None:
    whole = json.dumps({"type": "conversation.item.create", "item": item(f"use {KEY} ok")})
    with here.open(f"/openai/v1/realtime?model={MODEL}") as socket:
        socket.recv(timeout=10)
        socket.send([whole[at : at + 5] for at in range(0, len(whole), 5)])
        assert json.loads(socket.recv(timeout=10))["error"]["code"] == "finding"
        long = "é" * 9000 + "\U0001f600" * 3000
        socket.send(json.dumps({"type": "conversation.item.create", "item": item(long)}))
        assert json.loads(socket.recv(timeout=10))["item"]["content"][0]["text"] == long
    assert [each["item"]["content"][0]["text"] == long for each in here.upstream.messages] == [True]
    assert KEY.encode() not in here.upstream.data


# ── Gemini Live ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def session(here: Setting, connection: str = "gemini", model: str = MODEL, **config: Any) -> AsyncIterator[Any]:
    chosen: Any = {"response_modalities": ["TEXT"], **config}
    async with asyncio.timeout(30), here.gemini(connection).aio.live.connect(model=model, config=chosen) as opened:
        yield opened


async def turn(opened: Any, text: str) -> list[Any]:
    part = types.Content(role="user", parts=[types.Part(text=text)])
    await opened.send_client_content(turns=part, turn_complete=True)
    return [message async for message in opened.receive()]


async def test_a_live_text_session_is_masked(here: Setting) -> None:
    here.upstream.text = LEAK
    async with session(here, system_instruction=f"You answer {MAIL}.") as opened:
        for _ in range(2):
            messages = await turn(opened, f"write to {MAIL}")
            assert "".join(each.text or "" for each in messages) == MASKED
            told = str([each.model_dump() for each in messages])
            assert MAIL not in told
            assert CARD not in told
    assert MAIL.encode() not in here.upstream.data
    assert here.upstream.setups[0]["systemInstruction"]["parts"][0]["text"] == "You answer [REDACTED:email]."
    assert here.upstream.heads[0]["x-goog-api-key"] == CREDENTIAL
    assert here.token not in str(here.upstream.heads)
    row = here.row()
    assert (row["outcome"], row["endpoint"], row["model"]) == ("answered", "live", MODEL)
    assert (row["scanned"], row["findings"] > 0) == ("scanned", True)


async def test_a_live_prompt_with_a_key_closes_the_session_and_says_why(here: Setting) -> None:
    async with session(here) as opened:
        before = here.upstream.data
        with pytest.raises(errors.APIError, match="finding: Blocked by policy"):
            await turn(opened, f"use {KEY}")
    assert KEY.encode() not in here.upstream.data
    assert [*map(list, here.upstream.messages)] == [["setup"]]
    assert len(here.upstream.data) - len(before) <= 16  # a close frame
    row = here.row()
    assert (row["outcome"], row["reason"]) == ("denied", "finding")


async def test_a_key_in_the_setup_reaches_nobody(here: Setting) -> None:
    with pytest.raises(errors.APIError, match="finding: Blocked by policy"):
        async with session(here, system_instruction=f"use {KEY}"):
            pass
    assert here.upstream.messages == []
    assert KEY.encode() not in here.upstream.data
    assert len(here.upstream.data) <= 16


async def test_the_wrong_model_is_refused_at_the_setup(here: Setting) -> None:
    with pytest.raises(errors.APIError, match="model_denied: Your roles do not allow the model"):
        async with session(here, model="bad-1"):
            pass
    assert here.upstream.messages == []


async def test_a_tool_is_refused_at_the_setup(here: Setting) -> None:
    with pytest.raises(errors.APIError, match="tool_denied"):
        async with session(here, tools=[{"function_declarations": [{"name": "bash"}]}]):
            pass
    assert here.upstream.messages == []


async def test_live_speech_is_refused_by_default(here: Setting) -> None:
    with pytest.raises(errors.APIError, match=r"body_opaque: .*not scanned"):
        async with session(here, response_modalities=["AUDIO"]):
            pass
    assert here.upstream.messages == []
    async with session(here) as opened:
        await opened.send_realtime_input(audio=types.Blob(data=bytes(range(250)) * 9, mime_type="audio/pcm"))
        with pytest.raises(errors.APIError, match=r"body_opaque: .*not scanned"):
            await anext(opened.receive())
    assert [*map(list, here.upstream.messages)] == [["setup"]]
    here.upstream.spoken = True
    async with session(here) as opened:
        with pytest.raises(errors.APIError, match="answer_opaque"):
            await turn(opened, "hello")


async def test_live_speech_passes_where_the_connection_flags_it(here: Setting) -> None:
    here.upstream.spoken, here.upstream.text = True, LEAK
    async with session(here, "gemini-flag", response_modalities=["AUDIO"]) as opened:
        await opened.send_realtime_input(audio=types.Blob(data=bytes(range(250)) * 9, mime_type="audio/pcm"))
        messages = await turn(opened, "hello")
        heard = [each.data for each in messages if each.data]
        assert len(heard) == 3
        contents = [each.server_content for each in messages if each.server_content]
        spoken = [each.output_transcription.text for each in contents if each.output_transcription]
        assert "".join(spoken) == MASKED
    row = here.row()
    assert (row["outcome"], row["scanned"]) == ("answered", "partly scanned")


def test_json_in_binary_messages_is_read(here: Setting) -> None:
    here.upstream.text = LEAK
    with here.open(f"/gemini{LIVE}") as socket:
        socket.send(json.dumps({"setup": {"model": f"models/{MODEL}"}}).encode())
        first = socket.recv(timeout=10)
        assert (type(first), json.loads(first)) == (bytes, {"setupComplete": {}})
        part = {"parts": [{"text": f"use {KEY}"}], "role": "user"}
        socket.send(json.dumps({"client_content": {"turns": [part], "turn_complete": True}}).encode())
        events, code = end_of(socket)
        assert (events, code) == ([], 1008)
        assert (socket.close_reason or "").startswith("finding: Blocked by policy: ")
    assert len(here.upstream.messages) == 1
