"""An upstream that keeps things for one account: behind its one credential it gives everybody what anybody stored."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator

from tests.e2e.families import LEAK, cut
from tests.e2e.harness import Received, Upstream, http_answer

PAUSE = 0.01
SILENCE = 8.0
"""How long it says nothing after its first event where it is asked ``slowly``."""


FOUND = {"file_id": "f", "filename": "f.txt", "score": 0.5, "content": [{"type": "text", "text": LEAK}]}


class Account(Upstream):
    """``kept`` is everything that was stored, by id; ``named`` how many ids were given out."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._speak
        self.kept: dict[str, dict] = {}
        self.named = 0

    def new(self, prefix: str, **fields: object) -> dict:
        self.named += 1
        made = {"id": f"{prefix}_{self.named:012x}z", "created_at": 1774963808, **fields}
        self.kept[str(made["id"])] = made
        return made

    async def _speak(self, received: Received, writer: asyncio.StreamWriter) -> None:
        body = json.loads(received.body) if received.body.startswith(b"{") else {}  # an upload is a form
        path, _, query = received.path.partition("?")
        parts = path.removeprefix("/v1/").split("/")
        known = [each for each in parts if each in self.kept]
        if body.get("stream") or "stream=true" in query:
            await self._stream(parts, body, writer)
        elif path.endswith(("/results", "/content")):
            lines = b"".join(json.dumps(each).encode() + b"\n" for each in self._lines(parts))
            writer.write(http_answer(lines, content_type="application/x-jsonl"))
        elif (answer := self._answer(received.method, parts, body, known)) is None:
            writer.write(http_answer(b'{"error":{"message":"nothing"}}', status="404 Not Found"))
        else:
            writer.write(http_answer(json.dumps(answer).encode()))

    def _lines(self, parts: list[str]) -> list[dict]:
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
        message |= {"stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
        message["content"] = [{"type": "text", "text": LEAK}]
        if parts[-1] == "results":
            return [{"custom_id": str(n), "result": {"type": "succeeded", "message": message}} for n in range(3)]
        body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": LEAK}}]}
        return [{"id": f"b_{n}", "custom_id": str(n), "response": {"status_code": 200, "body": body}} for n in range(3)]

    def _answer(self, method: str, parts: list[str], body: dict, known: list[str]) -> dict | None:
        if method == "DELETE":
            return {"id": known[-1], "object": f"{parts[0]}.deleted", "type": "message_batch_deleted", "deleted": True}
        if method == "GET":
            return self._get(parts, known)
        here = "/".join("*" if each in known else each for each in parts)
        make = self._makers().get(here)
        return None if make is None else make(known, body)

    def _makers(self) -> dict[str, Callable[[list[str], dict], dict]]:
        return {
            "responses": lambda _, body: self._response(body),
            "responses/*/cancel": lambda known, _: self.kept[known[0]] | {"status": "cancelled"},
            "conversations": lambda *_: self.new("conv", object="conversation", metadata={}),
            "conversations/*/items": lambda *_: {"object": "list", "data": self._items(), "has_more": False},
            "files": lambda *_: self._file("batch"),
            "batches": lambda _, body: self._batch(body),
            "batches/*/cancel": lambda known, _: self.kept[known[0]] | {"status": "cancelling"},
            "vector_stores": lambda *_: self.new("vs", object="vector_store", name="notes", status="completed"),
            "vector_stores/*/search": lambda *_: {"object": "vector_store.search_results.page", "data": [FOUND]},
            "assistants": lambda _, body: self.new("asst", object="assistant", model=body["model"], tools=[]),
            "threads": lambda *_: self.new("thread", object="thread", metadata={}),
            "threads/*/messages": lambda known, _: self.new("msg", object="thread.message", thread_id=known[0]),
            "threads/runs": lambda _, body: self._started(None, body),
            "threads/*/runs": lambda known, body: self._started(known[0], body),
            "messages/batches": lambda *_: self._message_batch(),
            "messages/batches/*/cancel": lambda known, _: self.kept[known[0]] | {"processing_status": "canceling"},
        }

    def _items(self) -> list[dict]:
        return [self.new("msg", type="message", role="user", status="completed", content=[]) for _ in "ab"]

    def _file(self, purpose: str) -> dict:
        return self.new("file", object="file", purpose=purpose, filename="a.jsonl", bytes=9, status="processed")

    def _get(self, parts: list[str], known: list[str]) -> dict | None:
        if known and parts[-1] == known[-1]:
            return self.kept[known[-1]]
        kinds = {"files": "file", "batches": "batch", "vector_stores": "vs", "assistants": "asst"}
        prefix = "msgbatch" if parts == ["messages", "batches"] else kinds.get(parts[-1])
        if prefix is not None:
            entries = [each for name, each in self.kept.items() if name.startswith(f"{prefix}_")]
        elif parts[-1] in ("input_items", "items"):
            part = {"type": "input_text", "text": LEAK}
            entries = [{"id": "msg_1", "type": "message", "role": "user", "status": "completed", "content": [part]}]
        elif parts[-1] == "messages":
            text = [{"type": "text", "text": {"value": LEAK, "annotations": []}}]
            entries = [{"id": "msg_1", "object": "thread.message", "role": "assistant", "content": text}]
        else:
            return None
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        return {"object": "list", "data": entries, "has_more": True, **ends}

    def _response(self, body: dict) -> dict:
        text = {"type": "output_text", "text": LEAK, "annotations": []}
        item = self.new("msg", type="message", role="assistant", status="completed", content=[text])
        more = {"status": "queued" if body.get("background") else "completed", "store": body.get("store", True)}
        return self.new(
            "resp", object="response", model=body["model"], output=[item], parallel_tool_calls=True, tools=[], **more
        )

    def _batch(self, body: dict) -> dict:
        file = self._file("batch_output")
        asked = {key: body[key] for key in ("input_file_id", "endpoint", "completion_window")}
        return self.new("batch", object="batch", status="completed", output_file_id=file["id"], **asked)

    def _message_batch(self) -> dict:
        made = self.new("msgbatch", type="message_batch", processing_status="ended")
        made |= {"created_at": "2026-08-19T14:44:51Z", "expires_at": "2026-08-20T14:44:51Z"}
        made["results_url"] = f"{self.url}/v1/messages/batches/{made['id']}/results"
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        made["request_counts"] = counts
        return made

    def _started(self, thread: str | None, body: dict) -> dict:
        thread = thread or self.new("thread", object="thread")["id"]
        known = {"assistant_id": body.get("assistant_id"), "thread_id": thread, "status": "queued", "tools": []}
        return self.new("run", object="thread.run", model="sample-small", instructions="", **known)

    async def _stream(self, parts: list[str], body: dict, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head)
        events = self._response_events(body) if parts[0] == "responses" else self._run_events(parts, body)
        for name, event in events:
            data = f"event: {name}\ndata: {json.dumps(event) if event is not None else '[DONE]'}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(SILENCE if body.get("input") == "slowly" and name.endswith("created") else PAUSE)
        writer.write(b"0\r\n\r\n")

    def _response_events(self, body: dict) -> Iterator[tuple[str, dict]]:
        whole = self._response({"model": "sample-small", **body})
        yield "response.created", {"type": "response.created", "response": whole | {"output": []}}
        at = {"item_id": whole["output"][0]["id"], "output_index": 0, "content_index": 0}
        for piece in cut(LEAK):
            yield "response.output_text.delta", {"type": "response.output_text.delta", **at, "delta": piece}
        yield "response.output_text.done", {"type": "response.output_text.done", **at, "text": LEAK}
        yield "response.completed", {"type": "response.completed", "response": whole}

    def _run_events(self, parts: list[str], body: dict) -> Iterator[tuple[str, dict | None]]:
        run = self._started(next((each for each in parts if each in self.kept), None), body)
        yield "thread.run.created", run
        message = {"id": "msg_777777777777", "object": "thread.message", "role": "assistant"}
        message |= {"thread_id": run["thread_id"], "attachments": [], "metadata": {}, "created_at": 1774963808}
        yield "thread.message.created", {**message, "content": [], "status": "in_progress"}
        ids = {"object": "thread.message.delta", "id": message["id"]}
        for piece in cut(LEAK):
            part = {"index": 0, "type": "text", "text": {"value": piece, "annotations": []}}
            yield "thread.message.delta", {**ids, "delta": {"content": [part]}}
        text = [{"type": "text", "text": {"value": LEAK, "annotations": []}}]
        yield "thread.message.completed", {**message, "content": text, "status": "completed"}
        yield "thread.run.completed", run | {"status": "completed"}
        yield "done", None


def ids(text: str) -> set[str]:
    """Return every id that a text holds."""
    return set(re.findall(r"\b[a-z]+_[0-9a-f]{12}z\b", text))
