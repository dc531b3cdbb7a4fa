"""Upstreams of two-way sockets on 127.0.0.1: OpenAI's Realtime API and Gemini's Live API, as far as the tests go."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

from websockets.asyncio.server import ServerConnection

from tests.e2e.socket_peer import Play, SocketUpstream
from tests.live import live, realtime
from tests.wire import Said, every

SOUND = base64.b64encode(random.Random(7).randbytes(1800)).decode()
"""What it sounds like when a model speaks."""


class LiveUpstream(SocketUpstream):
    """Speaks either API by the path that was asked for. ``text`` is what it answers to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "hello"
        self.spoken = False
        self.setups: list[dict[str, Any]] = []
        self.plays = self.talks()

    def reset(self) -> None:
        """Forget what was seen, and answer in the plain way again."""
        super().reset()
        self.text, self.spoken, self.setups, self.plays = "hello", False, [], self.talks()

    def talks(self) -> Play:
        """Take part in a conversation."""

        async def play(socket: ServerConnection, message: dict[str, Any]) -> None:
            if "type" in message:
                await self._realtime(socket, message)
            else:
                await self._live(socket, message)

        return play

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        session = {"type": "realtime", "id": "sess_1", "model": "gpt-realtime", "output_modalities": ["audio"]}
        created = {"type": "session.created", "event_id": "event_0", "session": session}
        self.greeting = () if "Bidi" in socket.request.path else (json.dumps(created),)
        await super()._serve(socket)

    async def _realtime(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        number = len(self.messages)
        match message["type"]:
            case "session.update":
                self.setups.append(message["session"])
                events = [{"type": "session.updated", "event_id": f"event_{number}", "session": message["session"]}]
            case "conversation.item.create":
                item = {"id": f"item_u{number}", **message["item"]}
                at = {"event_id": f"event_{number}", "previous_item_id": None, "item": item}
                events = [{"type": f"conversation.item.{each}", **at} for each in ("added", "done")]
            case "response.create":
                events = realtime(Said(self.text), every(3), number)
                if self.spoken:
                    at = {"response_id": f"resp_{number}", "item_id": "i", "output_index": 0, "content_index": 0}
                    sound = {"type": "response.output_audio.delta", "event_id": "event_s", **at, "delta": SOUND}
                    events[1:1] = [sound] * 3
            case _:
                events = []
        for event in events:
            await socket.send(json.dumps(event))

    async def _live(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        if "setup" in message:
            self.setups.append(message["setup"])
            events: list[dict[str, Any]] = [{"setupComplete": {}}]
        elif {"turn_complete", "turnComplete"} & {k for k, v in message.get("client_content", {}).items() if v}:
            events = live(Said(self.text, self.text if self.spoken else ""), every(3))
            if self.spoken:
                data = {"inlineData": {"mimeType": "audio/pcm;rate=24000", "data": SOUND}}
                events[1:1] = [{"serverContent": {"modelTurn": {"parts": [data]}}}] * 3
        else:
            events = []
        for event in events:
            await socket.send(json.dumps(event).encode())
            await asyncio.sleep(0.001)
