"""A streamed answer is masked while it is made: text leaves at once, and what might become a finding never does.

The upstream waits for the client: it goes on only when the client has read what it said before. An answer that is
held to its end would never be begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e import speaking
from tests.e2e.harness import Received, Upstream, policy, tidegate_run, token

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

BEFORE = "Here is what you asked for, word by word, and nothing of it is anything that has to be hidden from you. "
MAIL, CARD = "zq.wvx@kjhq-mail.org", "4111 1111 1111 1111"
AFTER = " So much for that; the rest of the answer is as plain as its beginning was, and goes on for a while. The end."
TEXT = f"{BEFORE}Mail: {MAIL}, card: {CARD}.{AFTER}"
MASKED = f"{BEFORE}Mail: [REDACTED:email], card: [REDACTED:card-visa].{AFTER}"
HELD = 24
"""More characters than plain words are ever held back for; the text before and after the secrets is longer."""
PATIENCE = 5.0
PARTS = {each[at : at + 4] for each in (MAIL, CARD) for at in range(len(each) - 3)} - {"mail"}
"""Every piece of four characters of what must not be shown, so no delta of it either."""


@dataclass
class Conversation:
    """What the two ends have done so far. ``stalled`` is what the upstream had said when it waited in vain."""

    read: str = ""
    chunks: list[bytes] = field(default_factory=list)
    stalled: list[str] = field(default_factory=list)
    ended: float = 0.0
    first: float = 0.0

    async def provide(self, received: Received, writer: asyncio.StreamWriter) -> None:
        """Say one event after the other, each when the client has all but ``HELD`` characters of the plain text."""
        await speaking.begin(writer)
        events = speaking.events(received, TEXT)
        started = next(index for index, event in enumerate(events) if b'"Here"' in event)
        for index, event in enumerate(events):
            await speaking.write(writer, event)
            said = TEXT[: max(0, index - started + 1) * 4]
            if len(said) <= len(BEFORE) or len(said) > len(TEXT) - len(AFTER) + HELD:
                await self._until_read(said)
        self.ended = time.monotonic()
        await speaking.write(writer, b"")

    async def _until_read(self, said: str) -> None:
        shown = said if len(said) <= len(BEFORE) else MASKED[: len(said) - len(TEXT) + len(MASKED)]
        until = time.monotonic() + PATIENCE
        while len(self.read) < len(shown) - HELD and not self.stalled:
            if time.monotonic() > until:
                self.stalled.append(said)
            await asyncio.sleep(0.001)


class Tapped(httpx2.SyncByteStream):
    """Notes every chunk of an answer's body as it came."""

    def __init__(self, body: httpx2.SyncByteStream, chunks: list[bytes]) -> None:
        self._body, self._chunks = body, chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            self._chunks.append(chunk)
            yield chunk

    def close(self) -> None:
        self._body.close()


class Tap(httpx2.HTTPTransport):
    def __init__(self, chunks: list[bytes]) -> None:
        super().__init__()
        self._chunks = chunks

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        assert isinstance(answer.stream, httpx2.SyncByteStream)
        answer.stream = Tapped(answer.stream, self._chunks)
        return answer


@dataclass(frozen=True)
class Gate:
    url: str
    token: str
    upstream: Upstream

    @contextlib.contextmanager
    def openai(self, talk: Conversation) -> Iterator[Any]:
        inner = httpx2.Client(transport=Tap(talk.chunks), timeout=30)
        with openai.OpenAI(base_url=f"{self.url}/openai/v1", api_key=self.token, http_client=inner) as client:
            yield client

    @contextlib.contextmanager
    def anthropic(self, talk: Conversation) -> Iterator[Any]:
        inner = httpx2.Client(transport=Tap(talk.chunks), timeout=30)
        with anthropic.Anthropic(base_url=f"{self.url}/anthropic", api_key=self.token, http_client=inner) as client:
            yield client


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder: Path = tmp_path_factory.mktemp("live")
    with Upstream() as upstream:
        written = policy(folder, upstream.url)
        secret = token(folder)
        with tidegate_run(written) as running:
            yield Gate(running.url, secret, upstream)


SAID = [{"role": "user", "content": "hi"}]


def chat(gate: Gate, talk: Conversation) -> Iterator[str]:
    with gate.openai(talk) as client:
        for chunk in client.chat.completions.create(model="sample-small", messages=SAID, stream=True):
            yield chunk.choices[0].delta.content or ""


def completions(gate: Gate, talk: Conversation) -> Iterator[str]:
    with gate.openai(talk) as client:
        for chunk in client.completions.create(model="sample-small", prompt="hi", stream=True):
            yield chunk.choices[0].text


def responses(gate: Gate, talk: Conversation) -> Iterator[str]:
    with gate.openai(talk) as client:
        for event in client.responses.create(model="sample-small", input="hi", stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta
            elif event.type == "response.completed":
                assert event.response.output_text == MASKED


def messages(gate: Gate, talk: Conversation) -> Iterator[str]:
    with (
        gate.anthropic(talk) as client,
        client.messages.stream(model="sample-small", max_tokens=100, messages=SAID) as stream,
    ):
        yield from stream.text_stream
        assert stream.get_final_text() == MASKED


@pytest.mark.parametrize("deltas", [chat, completions, responses, messages])
def test_a_stream_is_masked_live(gate: Gate, deltas: Any) -> None:
    talk = Conversation()
    gate.upstream.does(talk.provide)
    for delta in deltas(gate, talk):
        talk.first = talk.first or (time.monotonic() if delta else 0.0)
        talk.read += delta
        assert not [part for part in PARTS if part in talk.read]
    assert talk.stalled == [], "text that holds no secret did not leave until the upstream went on"
    assert talk.read == MASKED
    assert 0 < talk.first < talk.ended, "the client read the first delta before the upstream ended"
    assert len(talk.chunks) > 20
    for chunk in talk.chunks:
        assert not [part for part in PARTS if part.encode() in chunk]
