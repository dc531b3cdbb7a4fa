"""An upstream that speaks several APIs: it says back what it is told, or leaks, live and whole, as each has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from tests.e2e.harness import Received, Upstream, http_answer
from tests.wire import chunk_piece, compact, message_piece

LEAK = "Jane pays with 4111 1111 1111 1111, mail jane.doe@example.com. Plan: gold"
"""What the model says when somebody asks it to leak."""

THOUGHT = "The card is 4111 1111 1111 1111."
SIGNATURE = "c2lnbmF0dXJl" * 8
SIZE = 4  # characters in a delta
PAUSE = 0.01  # seconds after one


class Families(Upstream):
    """Answers by path."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._speak

    async def _speak(self, received: Received, writer: asyncio.StreamWriter) -> None:
        body = json.loads(received.body) if received.body else {}
        path = received.path.partition("?")[0]
        if path.startswith("/api/"):
            await self._ollama(path, body, writer)
        elif path.startswith("/model/"):
            await self._bedrock(path.rpartition("/")[2], body, writer)
        elif "/models" in path:
            await self._gemini(received.path, body, writer)
        else:
            writer.write(http_answer(b"{}", status="404 Not Found"))

    async def _ollama(self, path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        base = {"model": body.get("model"), "created_at": "2026-08-07T06:08:14.947137Z"}
        end = {"done": True, "done_reason": "stop", "total_duration": 572052292, "eval_count": 102}

        def message(**said: object) -> dict:
            return {"message": {"role": "assistant", "content": "", **said}}

        match path:
            case "/api/chat":
                call = {"function": {"name": "send_mail", "arguments": {"to": "jane.doe@example.com", "subject": "hi"}}}
                calls = {"tool_calls": [call]} if body.get("tools") else {}
                text = reply(body["messages"][-1]["content"])
                whole = {**base, **message(content=text, thinking=THOUGHT, **calls), **end}
                events = [*(message(thinking=part) for part in cut(THOUGHT)), message(**calls)]
                events += [message(content=part) for part in cut(text)]
                events.append({**message(), **end})
            case "/api/generate":
                text = reply(body["prompt"])
                whole = {**base, "response": text, **end, "context": [105, 2364, 107]}
                events = [{"response": part, "done": False} for part in cut(text)]
                events.append({"response": "", **end, "context": [105, 2364, 107]})
            case "/api/embed":
                whole, events = {"model": body["model"], "embeddings": [[0.015991924, -0.1588247]]}, []
            case "/api/tags":
                whole, events = {"models": [{"name": "m:latest", "model": "m:latest", "size": 815319791}]}, []
            case "/api/show":
                whole = {"license": "Ask jane.doe@example.com.", "model_info": {"general.architecture": "gemma3"}}
                events = []
            case _:
                whole, events = {"version": "0.12.0"}, []
        if events and body.get("stream", True):
            lines = (json.dumps({**base, "done": False, **event}).encode() + b"\n" for event in events)
            await stream(writer, "application/x-ndjson", lines)
        else:
            writer.write(http_answer(json.dumps(whole).encode(), content_type="application/json; charset=utf-8"))

    async def _gemini(self, path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        def chunk(*parts: dict, **more: object) -> dict:
            candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **more}
            return {"candidates": [candidate], "modelVersion": "m", "responseId": "r1"}

        path, _, query = path.partition("?")
        if not body or path.endswith((":countTokens", "Contents", ":embedContent")):
            answer = {"models": [{"name": "models/m"}], "totalTokens": 7, "embeddings": [{"values": [0.0159919]}]}
            writer.write(http_answer(json.dumps(answer).encode()))
            return
        call = {"functionCall": {"name": "send_mail", "args": {"to": "jane.doe@example.com", "subject": "hi"}}}
        calls = [{**call, "thoughtSignature": SIGNATURE}] if body.get("tools") else []
        text = reply(body["contents"][-1]["parts"][0]["text"])
        thoughts = [{"text": part, "thought": True} for part in cut(THOUGHT)]
        if path.endswith(":generateContent"):
            whole = chunk({"text": THOUGHT, "thought": True}, {"text": text}, *calls, finishReason="STOP")
            writer.write(http_answer(json.dumps(whole).encode(), content_type="application/json; charset=UTF-8"))
            return
        events = [chunk(part) for part in (*thoughts, *({"text": part} for part in cut(text)[:-1]))]
        events.append(chunk({"text": cut(text)[-1]}, *calls, finishReason="STOP"))
        if "alt=sse" in query:
            pieces = (f"data: {json.dumps(event)}\r\n\r\n".encode() for event in events)
            await stream(writer, "text/event-stream", pieces)
        else:
            starts = ["[", *(",\r\n" for _ in events[1:])]
            array = [(start + json.dumps(event)).encode() for start, event in zip(starts, events, strict=True)]
            await stream(writer, "application/json; charset=UTF-8", [*array, b"]\n"])

    async def _bedrock(self, operation: str, body: dict, writer: asyncio.StreamWriter) -> None:
        said = body["messages"][-1]["content"][0]["text"] if "messages" in body else "count"
        text, arguments = reply(said), json.dumps({"to": "jane.doe@example.com", "subject": "hi"})
        calls = bool(body.get("toolConfig") or body.get("tools"))
        call = {"name": "send_mail", "toolUseId": "tooluse_1"}
        match operation:
            case "count-tokens":
                whole: dict = {"inputTokens": 7}
            case "converse":
                content = [{"text": text}, *([{"toolUse": {**call, "input": json.loads(arguments)}}] if calls else [])]
                message = {"role": "assistant", "content": content}
                usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
                whole = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {}}
            case "invoke":
                content = [{"type": "text", "text": text}]
                whole = {"id": "msg_1", "type": "message", "role": "assistant", "content": content}
            case _:
                converse = operation == "converse-stream"
                events = _converse_events(text, arguments if calls else "") if converse else _invoke_events(text)
                await stream(writer, "application/vnd.amazon.eventstream", events)
                return
        writer.write(http_answer(json.dumps(whole).encode()))


def _converse_events(text: str, arguments: str) -> list[bytes]:
    def delta(index: int, said: dict) -> bytes:
        event = {"contentBlockIndex": index, "delta": said, "p": "abcdefgh"}
        return message_piece("contentBlockDelta", compact(event))

    def event(kind: str, **fields: object) -> bytes:
        return message_piece(kind, compact({**fields, "p": "abc"}))

    events = [event("messageStart", role="assistant"), *(delta(0, {"text": part}) for part in cut(text))]
    events.append(event("contentBlockStop", contentBlockIndex=0))
    if arguments:
        start = {"toolUse": {"name": "send_mail", "toolUseId": "tooluse_1"}}
        events.append(event("contentBlockStart", contentBlockIndex=1, start=start))
        events += [delta(1, {"toolUse": {"input": part}}) for part in cut(arguments)]
        events.append(event("contentBlockStop", contentBlockIndex=1))
    return [*events, event("messageStop", stopReason="end_turn"), event("metadata", usage={"inputTokens": 1})]


def _invoke_events(text: str) -> list[bytes]:
    at = {"type": "content_block_delta", "index": 0}
    events: list[dict] = [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]
    events += [{**at, "delta": {"type": "text_delta", "text": part}} for part in cut(text)]
    return [chunk_piece(event) for event in (*events, {"type": "content_block_stop", "index": 0})]


def reply(text: str) -> str:
    """Say what a model says to this."""
    return LEAK if "leak" in text else f"You said: {text}"


def cut(text: str) -> list[str]:
    """Cut a text into deltas."""
    return [text[at : at + SIZE] for at in range(0, len(text), SIZE)]


async def stream(writer: asyncio.StreamWriter, kind: str, pieces: Iterable[bytes]) -> None:
    """Answer with chunks, with a pause after each."""
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    for piece in pieces:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(PAUSE)
    writer.write(b"0\r\n\r\n")
