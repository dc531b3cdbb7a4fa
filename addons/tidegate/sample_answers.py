"""What the sample model says, and how that looks in each API, whole and streamed (``tidegate.sample_model``)."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MODEL = "sample-small"
EMBEDDING_MODEL = "sample-embedding"
RECORD = (
    "Here is the customer record you asked for (a made-up sample):\n"
    "Name: Jane Doe\nE-mail: jane.doe@example.com\nPhone: +1 415 555 0132\nCard: 4111 1111 1111 1111\nPlan: gold\n"
)
ARGUMENTS = '{"to": "jane.doe@example.com", "subject": "Your \\"gold\\" plan", "body": "Hello Jane,\\nthank you."}'
PIECE = 4  # characters per delta: the median of recorded OpenAI streams
ECHO = 2000  # characters of the prompt that are said back
DIMENSIONS = 16

type Json = dict[str, Any]


# ------------------------------------------------------------------------------------------------ what it says


@dataclass(frozen=True, slots=True)
class Said:
    """An answer in no API's shape: reasoning, text and a tool call, each of them perhaps missing."""

    reasoning: str | None
    text: str
    call: tuple[str, str] | None


def say(body: Json) -> Said:
    """Decide the answer from a request of any of the APIs."""
    prompt, answered = last_user_text(body)
    low = prompt.lower()
    leak = "customer record" in low
    reasoning = None
    if "think" in low or "step by step" in low or _wants_reasoning(body):
        reasoning = "They ask for a customer record. " + RECORD if leak else "A short question. I answer it kindly."
    tool = None if answered else _tool_to_call(body, asked="tool" in low)
    if tool:
        return Said(reasoning, "", (tool, ARGUMENTS))
    if leak:
        return Said(reasoning, RECORD, None)
    return Said(reasoning, f"Hello from the sample model, which is no real one. You said: {prompt[:ECHO]}", None)


def last_user_text(body: Json) -> tuple[str, bool]:
    """Return the last user text, and whether the conversation ends with a tool's result."""
    turns = body.get("messages", body.get("input", body.get("prompt", "")))
    if isinstance(turns, str):
        return turns, False
    answered = False
    for turn in reversed(turns if isinstance(turns, list) else []):
        if isinstance(turn, str):
            return turn, answered
        if turn.get("role") == "tool" or turn.get("type") == "function_call_output":
            answered = True
        if turn.get("role") != "user":
            continue
        content = turn.get("content", "")
        if isinstance(content, str):
            return content, answered
        answered = answered or any(part.get("type") == "tool_result" for part in content)
        if text := "".join(part.get("text", "") for part in content if isinstance(part, dict)):
            return text, answered
    return "", answered


def _wants_reasoning(body: Json) -> bool:
    thinking, effort = body.get("thinking"), body.get("reasoning_effort")
    enabled = isinstance(thinking, dict) and thinking.get("type") in {"enabled", "adaptive"}
    return enabled or bool(body.get("reasoning")) or effort not in {None, "none"}


def _tool_to_call(body: Json, *, asked: bool) -> str | None:
    tools = [t.get("function", t).get("name") for t in body.get("tools") or [] if isinstance(t, dict)]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        named = choice.get("function", choice).get("name")
        if named or choice.get("type") == "any":
            return named or next(iter(tools), None)
    forced = choice in {"required", "any"} if isinstance(choice, str) else False
    return next((name for name in tools if name), None) if asked or forced else None


def pieces(text: str) -> Iterator[str]:
    """Cut a text as a model's tokens would: a few characters each, always at the same places."""
    return (text[i : i + PIECE] for i in range(0, len(text), PIECE))


def tokens(text: str) -> int:
    """Count tokens as this server does: one for each piece."""
    return -(-len(text) // PIECE)


def prompt_tokens(body: Json) -> int:
    """Count the tokens of the last user text."""
    return tokens(last_user_text(body)[0])


# ------------------------------------------------------------------------------------------------ in each API's shape


@dataclass(slots=True)
class Api:
    """One API: how a whole answer looks, and the events of a streamed one as (event name or None, object)."""

    number: int
    body: Json
    said: Said
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> Json:
        """Return the answer as one object."""
        raise NotImplementedError

    def events(self) -> Iterator[tuple[str | None, Json]]:
        """Yield the answer as events."""
        raise NotImplementedError

    done: str | None = None

    @property
    def answer_tokens(self) -> int:
        said = self.said
        return tokens((said.reasoning or "") + said.text + (said.call[1] if said.call else ""))


class Chat(Api):
    """OpenAI chat completions."""

    done = "[DONE]"

    def _frame(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"chatcmpl-sample-{self.number}",
            "object": kind,
            "created": self.created,
            "model": MODEL,
            "choices": choices,
        }

    def _usage(self) -> Json:
        asked, said = self.prompt_tokens, self.answer_tokens
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def _finish(self) -> str:
        return "tool_calls" if self.said.call else "stop"

    def whole(self) -> Json:
        message: Json = {"role": "assistant", "content": self.said.text or None, "refusal": None}
        if self.said.reasoning:
            message["reasoning_content"] = self.said.reasoning
        if self.said.call:
            name, arguments = self.said.call
            function = {"name": name, "arguments": arguments}
            message["tool_calls"] = [{"id": f"call_sample_{self.number}", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish()}
        return {**self._frame("chat.completion", [choice]), "usage": self._usage()}

    def _chunk(self, delta: Json, finish: str | None = None) -> tuple[None, Json]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return None, self._frame("chat.completion.chunk", [choice])

    def events(self) -> Iterator[tuple[str | None, Json]]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        for piece in pieces(self.said.reasoning or ""):
            yield self._chunk({"reasoning_content": piece})
        for piece in pieces(self.said.text):
            yield self._chunk({"content": piece})
        if self.said.call:
            name, arguments = self.said.call
            function = {"name": name, "arguments": ""}
            call = {"index": 0, "id": f"call_sample_{self.number}", "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
            for piece in pieces(arguments):
                yield self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield self._chunk({}, self._finish())
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield None, {**self._frame("chat.completion.chunk", []), "usage": self._usage()}


class Completions(Chat):
    """OpenAI completions, the older kind."""

    def _text(self, text: str, finish: str | None) -> Json:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return {**self._frame("text_completion", [choice]), "id": f"cmpl-sample-{self.number}"}

    def whole(self) -> Json:
        return {**self._text(self.said.text, "stop"), "usage": self._usage()}

    def events(self) -> Iterator[tuple[str | None, Json]]:
        for piece in pieces(self.said.text):
            yield None, self._text(piece, None)
        yield None, self._text("", "stop")


class Responses(Api):
    """OpenAI responses: each text comes as deltas and three more times whole."""

    def _response(self, status: str, output: list[Json]) -> Json:
        asked, said = self.prompt_tokens, self.answer_tokens
        usage = {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": tokens(self.said.reasoning or "")},
            "total_tokens": asked + said,
        }
        return {
            "id": f"resp_sample_{self.number}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.get("instructions"),
            "metadata": {},
            "model": MODEL,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": self.body.get("tools") or [],
            "top_p": 1.0,
            "usage": usage if status == "completed" else None,
        }

    def _items(self) -> list[Json]:
        items: list[Json] = []
        if self.said.reasoning:
            summary = [{"type": "summary_text", "text": self.said.reasoning}]
            items.append({"id": f"rs_sample_{self.number}", "type": "reasoning", "summary": summary})
        if self.said.call:
            name, arguments = self.said.call
            ids = {"id": f"fc_sample_{self.number}", "call_id": f"call_sample_{self.number}"}
            call = {"type": "function_call", "status": "completed", "name": name, "arguments": arguments}
            items.append({**ids, **call})
        else:
            content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": self.said.text}]
            message = {"type": "message", "status": "completed", "role": "assistant", "content": content}
            items.append({"id": f"msg_sample_{self.number}", **message})
        return items

    def whole(self) -> Json:
        return self._response("completed", self._items())

    def events(self) -> Iterator[tuple[str | None, Json]]:
        items = self._items()
        plan: list[Json] = [{"type": f"response.{t}", "response": self._response("in_progress", [])} for t in STARTS]
        for index, item in enumerate(items):
            opened = {**item, **_EMPTIED[item["type"]], "status": "in_progress"}
            plan.append({"type": "response.output_item.added", "output_index": index, "item": opened})
            plan.extend({**event, "item_id": item["id"], "output_index": index} for event in _item_events(item))
            plan.append({"type": "response.output_item.done", "output_index": index, "item": item})
        plan.append({"type": "response.completed", "response": self._response("completed", items)})
        for number, event in enumerate(plan):
            yield event["type"], {**event, "sequence_number": number}


STARTS = ("created", "in_progress")
_EMPTIED: Mapping[str, Json] = {
    "reasoning": {"summary": []},
    "message": {"content": []},
    "function_call": {"arguments": ""},
}


def _item_events(item: Json) -> Iterator[Json]:
    """Yield what comes between an output item's first and last event."""
    if item["type"] == "function_call":
        yield from _deltas("response.function_call_arguments", item["arguments"], {})
        end = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": "response.function_call_arguments.done", **end}
        return
    if item["type"] == "reasoning":
        part, place = item["summary"][0], {"summary_index": 0}
        prefix, parts = "response.reasoning_summary_text", "response.reasoning_summary_part"
    else:
        part, place = item["content"][0], {"content_index": 0}
        prefix, parts = "response.output_text", "response.content_part"
    extra: Json = {"logprobs": []} if item["type"] == "message" else {}
    yield {"type": f"{parts}.added", "part": {**part, "text": ""}, **place}
    yield from _deltas(prefix, part["text"], {**place, **extra})
    yield {"type": f"{prefix}.done", "text": part["text"], **place, **extra}
    yield {"type": f"{parts}.done", "part": part, **place}


def _deltas(prefix: str, text: str, extra: Json) -> Iterator[Json]:
    """Yield deltas, padded to one size as the provider does against an observer of sizes."""
    for piece in pieces(text):
        yield {"type": f"{prefix}.delta", "delta": piece, "obfuscation": "x" * (16 - len(piece)), **extra}


class Messages(Api):
    """Anthropic messages."""

    def _blocks(self) -> list[tuple[Json, list[Json]]]:
        """Return each content block as it ends, with the deltas that fill it."""
        said, blocks = self.said, []
        if said.reasoning:
            deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(said.reasoning)]
            deltas.append({"type": "signature_delta", "signature": SIGNATURE})
            blocks.append(({"type": "thinking", "thinking": said.reasoning, "signature": SIGNATURE}, deltas))
        if said.call:
            name, arguments = said.call
            use = {"type": "tool_use", "id": f"toolu_sample_{self.number}", "name": name}
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(arguments)]]
            blocks.append(({**use, "input": json.loads(arguments)}, deltas))
        else:
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(said.text)]
            blocks.append(({"type": "text", "text": said.text}, deltas))
        return blocks

    def _message(self, content: list[Json], stop: str | None, output_tokens: int) -> Json:
        return {
            "id": f"msg_sample_{self.number}",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": output_tokens},
        }

    def _stop(self) -> str:
        return "tool_use" if self.said.call else "end_turn"

    def whole(self) -> Json:
        return self._message([block for block, _ in self._blocks()], self._stop(), self.answer_tokens)

    def events(self) -> Iterator[tuple[str | None, Json]]:
        for event in self._plan():
            yield event["type"], event

    def _plan(self) -> Iterator[Json]:
        yield {"type": "message_start", "message": self._message([], None, 1)}
        for index, (block, deltas) in enumerate(self._blocks()):
            emptied = {key: EMPTY_BLOCK.get(key, value) for key, value in block.items()}
            yield {"type": "content_block_start", "index": index, "content_block": emptied}
            if index == 0:
                yield {"type": "ping"}
            for delta in deltas:
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        delta = {"stop_reason": self._stop(), "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": self.answer_tokens}}
        yield {"type": "message_stop"}


SIGNATURE = base64.b64encode(b"a sample signature, not a real one").decode()
EMPTY_BLOCK: Mapping[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}


def embeddings(body: Json) -> Json:
    """Return deterministic vectors, as numbers or base64 as asked."""
    asked = body.get("input", "")
    texts: Sequence[Any] = asked if isinstance(asked, list) else [asked]
    data = []
    for index, text in enumerate(texts):
        digest = hashlib.sha256(str(text).encode()).digest()
        vector = [byte / 255 for byte in digest[:DIMENSIONS]]
        packed = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()
        shape = packed if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shape})
    used = sum(tokens(str(text)) for text in texts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage}


def models() -> Json:
    """Return the list of models with the fields of both APIs."""
    born = "2026-01-01T00:00:00Z"
    both = {
        "object": "model",
        "created": 1767225600,
        "owned_by": "tidegate-sample",
        "type": "model",
        "created_at": born,
    }
    data = [{"id": name, "display_name": f"{name} (a sample)", **both} for name in (MODEL, EMBEDDING_MODEL)]
    return {"object": "list", "data": data, "has_more": False, "first_id": MODEL, "last_id": EMBEDDING_MODEL}
