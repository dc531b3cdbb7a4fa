"""What the stream tests share: a few rules, the shipped dialects, and both ends of a made-up wire.

``FAMILIES`` are the upstreams: an answer becomes events, its texts cut as told; ``pieces`` writes them in their frames.
``read`` is a client: it knows the standard and the channels, and nothing of the code under test.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests import wire_natives
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Dialect, Endpoint
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import Rule, parse_pack
from tidegate.model import Action
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.channels import HeldCaps

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT.parent / "shared" / "corpora" / "wire-dev.jsonl.gz"

KEY = "sk-AbCd1234EfGh5678"
MAIL = "jane.doe@example.co"
CARD = "4111111111111111"
PEM = "-----BEGIN KEY-----\nMIIB\nxyz\n-----END KEY-----"

PACK = r"""
pack: t
class: secrets
version: 1
rules:
  - {id: key, description: a, severity: low, pattern: '\bsk-[A-Za-z0-9]{8,20}\b', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
  - {id: mail, description: a, severity: low, pattern: '[a-z0-9.]{1,20}@[a-z0-9]{1,20}\.[a-z]{2,6}', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
  - {id: card, description: a, severity: low, pattern: '\b[0-9]{16}\b', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
  - {id: password, description: a, severity: low, pattern: '"password": ?"(?P<value>[^"]{3,40})"', match: [a, b], pass: [a, b], references: ["https://example.com/"]}
  - {id: pem, description: a, severity: low, pattern: '-----BEGIN KEY-----', end: '-----END KEY-----', max: 400, match: [a, b], pass: [a, b], references: ["https://example.com/"]}
"""  # noqa: E501 - one rule a line


@cache
def engine() -> Engine:
    rules, faults = parse_pack(PACK, "t.yaml")
    assert not faults
    return build(rules, None)


@cache
def dialect(name: str) -> Dialect:
    found, faults = parse_dialect((ROOT / "rules" / "dialects" / f"{name}.yaml").read_text(), name)
    assert found is not None, faults
    return found


def always(action: Action) -> Callable[[Rule], Action]:
    return lambda _: action


def endpoint(name: str) -> Endpoint:
    form = FORMS[name]
    return dialect(form.dialect).endpoints[form.endpoint]


def answer(
    name: str,
    decide: Action | Callable[[Rule], Action] = Action.REDACT,
    rules: Engine | None = None,
    caps: HeldCaps | None = None,
) -> StreamedAnswer:
    chosen = always(decide) if isinstance(decide, Action) else decide
    shape, head = dialect(FORMS[name].dialect).error, AnswerHead(FORMS[name].label)
    return StreamedAnswer(endpoint(name), shape, rules or engine(), chosen, "ex-1", head, caps)


def run(gate: StreamedAnswer, stream: bytes, cuts: Sequence[int] = ()) -> bytes:
    """Feed a stream cut at these positions; return all that came out."""
    at = [0, *sorted(cuts), len(stream)]
    return b"".join(gate.feed(stream[a:b]) for a, b in pairwise(at)) + gate.end()


# ── the upstream ─────────────────────────────────────────────────────────────────────────────────────────────────────

type Event = tuple[str | None, object]
type Cut = Callable[[str], list[str]]


@dataclass(frozen=True)
class Said:
    """An answer: text, reasoning, and the JSON source of each tool call's arguments."""

    text: str = ""
    thinking: str = ""
    tools: tuple[str, ...] = ()


def whole(text: str) -> list[str]:
    return [text]


def every(size: int) -> Cut:
    return lambda text: [text[i : i + size] for i in range(0, len(text), size)]


def sse(events: Iterable[Event]) -> bytes:
    out = []
    for name, data in events:
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=True)
        out.append((f"event: {name}\n" if name else "") + f"data: {text}\n\n")
    return "".join(out).encode()


def chat(said: Said, cut: Cut = whole) -> list[Event]:
    def chunk(delta: dict, finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return None, {
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1743636562, "model": "m",
            "choices": [choice], "obfuscation": "q7Zp",
        }  # fmt: skip

    def call(index: int, **function: str) -> dict:
        return {"tool_calls": [{"index": index, "function": function}]}

    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"reasoning_content": part}) for part in cut(said.thinking)]
    events += [chunk({"content": part}) for part in cut(said.text)]
    for index, source in enumerate(said.tools):
        opening = {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        }
        events.append(chunk({"tool_calls": [opening]}))
        events += [chunk(call(index, arguments=part)) for part in cut(source)]
    return [*events, chunk({}, "stop"), (None, "[DONE]")]


def completions(said: Said, cut: Cut = whole) -> list[Event]:
    def chunk(text: str, finish: str | None = None) -> Event:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return None, {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1729072361,
            "model": "m",
            "choices": [choice],
        }

    return [*[chunk(part) for part in cut(said.text)], chunk("", "stop"), (None, "[DONE]")]


def responses(said: Said, cut: Cut = whole) -> list[Event]:
    events: list[dict] = []

    def add(kind: str, **fields: object) -> None:
        events.append({"type": kind, **fields, "sequence_number": len(events)})

    base = {"id": "resp_1", "object": "response", "created_at": 1776481268, "model": "m", "status": "in_progress"}
    add("response.created", response={**base, "output": []})
    output: list[dict] = []
    if said.thinking:
        at = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
        add("response.output_item.added", output_index=0, item={"id": "rs_1", "type": "reasoning", "summary": []})
        for part in cut(said.thinking):
            add("response.reasoning_summary_text.delta", **at, delta=part, obfuscation="q7Zp")
        add("response.reasoning_summary_text.done", **at, text=said.thinking)
        output.append({"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": said.thinking}]})
        add("response.output_item.done", output_index=0, item=output[-1])
    if said.text:
        index = len(output)
        at = {"item_id": "msg_1", "output_index": index, "content_index": 0}
        add("response.output_item.added", output_index=index, item={"id": "msg_1", "type": "message", "content": []})
        add("response.content_part.added", **at, part={"type": "output_text", "annotations": [], "text": ""})
        for part in cut(said.text):
            add("response.output_text.delta", **at, delta=part, logprobs=[], obfuscation="q7Zp")
        add("response.output_text.done", **at, text=said.text, logprobs=[])
        part = {"type": "output_text", "annotations": [], "text": said.text}
        add("response.content_part.done", **at, part=part)
        output.append({"id": "msg_1", "type": "message", "role": "assistant", "content": [part]})
        add("response.output_item.done", output_index=index, item=output[-1])
    for source in said.tools:
        index = len(output)
        item = {"id": f"fc_{index}", "type": "function_call", "call_id": f"call_{index}", "name": "f"}
        at = {"item_id": f"fc_{index}", "output_index": index}
        add("response.output_item.added", output_index=index, item={**item, "arguments": ""})
        for piece in cut(source):
            add("response.function_call_arguments.delta", **at, delta=piece, obfuscation="q7Zp")
        add("response.function_call_arguments.done", **at, arguments=source)
        output.append({**item, "arguments": source})
        add("response.output_item.done", output_index=index, item=output[-1])
    add("response.completed", response={**base, "status": "completed", "output": output})
    return [(event["type"], event) for event in events]


def messages(said: Said, cut: Cut = whole) -> list[Event]:
    usage = {"input_tokens": 3, "output_tokens": 1}
    events: list[dict] = [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "usage": usage,
            },
        }
    ]
    blocks: list[tuple[dict, list[dict]]] = []
    if said.thinking:
        deltas = [{"type": "thinking_delta", "thinking": part} for part in cut(said.thinking)]
        sign = {"type": "signature_delta", "signature": "c2lnbmF0dXJl" * 8}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, [*deltas, sign]))
    if said.text:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": part} for part in cut(said.text)]))
    for index, source in enumerate(said.tools):
        start = {"type": "tool_use", "id": f"toolu_{index}", "name": "f", "input": {}}
        blocks.append((start, [{"type": "input_json_delta", "partial_json": part} for part in cut(source)]))
    for index, (start, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage}
    )
    events.append({"type": "message_stop"})
    return [(event["type"], event) for event in events]


def ollama(said: Said, cut: Cut = whole) -> list[Event]:
    def line(done: bool = False, **message: str) -> Event:
        base = {"model": "m", "created_at": "2025-08-20T13:47:56.683511Z", "message": {"role": "assistant", **message}}
        return None, {**base, "done": done}

    events = [line(content="", thinking=part) for part in cut(said.thinking)]
    events += [line(content=part) for part in cut(said.text)]
    _, last = line(done=True, content="")
    return [*events, (None, {**last, "done_reason": "stop", "total_duration": 572052292})]


def generate(said: Said, cut: Cut = whole) -> list[Event]:
    def line(done: bool = False, **texts: str) -> Event:
        return None, {"model": "m", "created_at": "2025-08-20T13:47:56.683511Z", **texts, "done": done}

    events = [line(response="", thinking=part) for part in cut(said.thinking)]
    events += [line(response=part) for part in cut(said.text)]
    _, last = line(done=True, response="")
    return [*events, (None, {**last, "done_reason": "stop", "context": [105, 2364, 107]})]


def gemini(said: Said, cut: Cut = whole) -> list[Event]:
    """Two answers at once: the second is the first again, and its index is not 0, which is left out where it is."""

    def chunk(parts: list[dict], index: int = 0, **more: object) -> Event:
        candidate = {"content": {"parts": parts, "role": "model"}, **({"index": index} if index else {}), **more}
        return None, {"candidates": [candidate], "modelVersion": "m", "responseId": "r-1"}

    events: list[Event] = []
    for thought in cut(said.thinking):
        events += [chunk([{"text": thought, "thought": True}], index) for index in (0, 1)]
    for text in cut(said.text):
        half = len(text) // 2
        events += [chunk([{"text": text[:half]}, {"text": text[half:]}], index) for index in (0, 1)]
    sign = {"text": "", "thoughtSignature": "c2lnbmF0dXJl" * 8}
    _, last = chunk([sign], finishReason="STOP")
    return [*events, chunk([], 1, finishReason="STOP"), (None, {**last, "usageMetadata": {"totalTokenCount": 4}})]


def converse(said: Said, cut: Cut = whole) -> list[Event]:
    events: list[Event] = [("messageStart", {"role": "assistant", "p": "abcd"})]

    def add(index: int, deltas: list[dict]) -> None:
        at = {"contentBlockIndex": index, "p": "abcdefgh"}
        events.extend(("contentBlockDelta", {**at, "delta": delta}) for delta in deltas)
        events.append(("contentBlockStop", {"contentBlockIndex": index, "p": "ab"}))

    if said.thinking:
        sign = {"reasoningContent": {"signature": "c2lnbmF0dXJl" * 8}}
        add(0, [*({"reasoningContent": {"text": part}} for part in cut(said.thinking)), sign])
    if said.text:
        add(1, [{"text": part} for part in cut(said.text)])
    for index, source in enumerate(said.tools, 2):
        start = {"toolUse": {"name": "f", "toolUseId": f"tooluse_{index}"}}
        events.append(("contentBlockStart", {"contentBlockIndex": index, "start": start, "p": "ab"}))
        add(index, [{"toolUse": {"input": part}} for part in cut(source)])
    events.append(("messageStop", {"stopReason": "end_turn", "p": "abcdefghijk"}))
    return [*events, ("metadata", {"usage": {"inputTokens": 3}, "metrics": {"latencyMs": 411}, "p": "a"})]


def cohere(said: Said, cut: Cut = whole) -> list[Event]:
    events: list[dict] = [{"id": "r-1", "type": "message-start", "delta": {"message": {"role": "assistant"}}}]

    def block(index: int, field: str, text: str) -> None:
        start = {"type": "thinking" if field == "thinking" else "text", field: ""}
        events.append({"type": "content-start", "index": index, "delta": {"message": {"content": start}}})
        at = {"type": "content-delta", "index": index}
        events.extend({**at, "delta": {"message": {"content": {field: part}}}} for part in cut(text))
        events.append({"type": "content-end", "index": index})

    if said.thinking:
        block(0, "thinking", said.thinking)
    if said.text:
        block(1, "text", said.text)
    for index, source in enumerate(said.tools):
        call = {"id": f"f_{index}", "type": "function", "function": {"name": "f", "arguments": ""}}
        events.append({"type": "tool-call-start", "index": index, "delta": {"message": {"tool_calls": call}}})
        for part in cut(source):
            call = {"function": {"arguments": part}}
            events.append({"type": "tool-call-delta", "index": index, "delta": {"message": {"tool_calls": call}}})
        events.append({"type": "tool-call-end", "index": index})
    events.append({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}})
    return [*((event["type"], event) for event in events), (None, "[DONE]")]


FAMILIES: dict[str, Callable[[Said, Cut], list[Event]]] = {
    "chat": chat, "completions": completions, "responses": responses, "messages": messages,
    "ollama": ollama, "generate": generate, "gemini": gemini, "gemini array": gemini,
    "converse": converse, "invoke": messages, "cohere": cohere, **wire_natives.NATIVES,
}  # fmt: skip


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────────────


def events_of(stream: bytes) -> list[Event]:
    """Split a stream whose lines end in LF; the last event must be complete."""
    assert stream.endswith(b"\n\n") or not stream
    events: list[Event] = []
    for block in stream.decode().split("\n\n")[:-1]:
        lines = block.split("\n")
        name = next((line[7:] for line in lines if line.startswith("event: ")), None)
        data = next(line[6:] for line in lines if line.startswith("data: "))
        events.append((name, data if data == "[DONE]" else json.loads(data)))
    return events


def lines_of(stream: bytes) -> list[Event]:
    assert stream.endswith(b"\n") or not stream
    return [(None, json.loads(line)) for line in stream.split(b"\n")[:-1]]


@dataclass(frozen=True)
class Form:
    """How a family is spoken: whose endpoint it is, and its events as bytes, one piece for each."""

    dialect: str
    endpoint: str
    label: str = "text/event-stream"
    pieces: Callable[[Sequence[Event]], list[bytes]] = lambda events: [sse([each]) for each in events]
    events: Callable[[bytes], list[Event]] = events_of


def json_line(event: Event) -> bytes:
    return json.dumps(event[1], separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def lines(endpoint: str, dialect: str = "ollama", label: str = "application/x-ndjson") -> Form:
    return Form(dialect, endpoint, label, lambda events: list(map(json_line, events)), lines_of)


def array_pieces(events: Sequence[Event]) -> list[bytes]:
    written = [json.dumps(event, indent=1, ensure_ascii=False).encode() for _, event in events]
    start = [(b"\n,\r\n" if number else b"[") + each for number, each in enumerate(written)]
    return [*start, b"\n]\n" if written else b"[]"]


def array_of(stream: bytes) -> list[Event]:
    """Read an array as far as it has come."""
    text, found = stream.decode().strip(), []
    assert text[:1] in ("", "[")
    text = text[1:].lstrip()
    while text and text != "]":
        event, end = json.JSONDecoder().raw_decode(text)
        found.append((None, event))
        text = text[end:].lstrip()
        assert text[:1] in ("", ",", "]")
        text = text.removeprefix(",").lstrip()
    return found


EVENTSTREAM = "application/vnd.amazon.eventstream"


def message_piece(kind: str | None, payload: bytes, **more: str) -> bytes:
    """Write one message of an event stream."""
    head = b""
    fields = {"content-type": "application/json", "message-type": "event", **more}
    fields = fields if kind is None else {"event-type": kind, **fields}
    for name, value in fields.items():
        head += bytes([len(name) + 1]) + b":" + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    start = struct.pack(">II", len(head) + len(payload) + 16, len(head))
    message = start + struct.pack(">I", zlib.crc32(start)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chunk_piece(event: object) -> bytes:
    """Write one message that holds an event of a model's own API."""
    return message_piece("chunk", compact({"bytes": base64.b64encode(compact(event)).decode(), "p": "abcdefgh"}))


def messages_of(stream: bytes) -> list[Event]:
    """Read an event stream as the AWS SDK does, which checks both checksums; an exception is an event of its name."""
    from botocore.eventstream import EventStreamBuffer

    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    found: list[Event] = []
    for message in buffer:
        kind = message.headers.get(":event-type") or message.headers.get(":exception-type")
        value = json.loads(message.payload)
        found.append((kind, json.loads(base64.b64decode(value["bytes"])) if "bytes" in value else value))
    assert not buffer._data, "the last message must be whole"
    return found


FORMS = {
    "chat": Form("openai", "chat"), "completions": Form("openai", "completions"),
    "responses": Form("openai", "responses"), "messages": Form("anthropic", "messages"),
    "ollama": lines("chat"), "generate": lines("generate"),
    "gemini": Form("gemini", "stream"), "cohere": Form("cohere", "chat"),
    "converse": Form(
        "bedrock", "converse_stream", EVENTSTREAM,
        lambda events: [message_piece(name, compact(event)) for name, event in events], messages_of,
    ),
    "invoke": Form(
        "bedrock", "invoke_stream", EVENTSTREAM, lambda events: [chunk_piece(event) for _, event in events], messages_of
    ),
    "gemini array": Form("gemini", "stream", "application/json", array_pieces, array_of),
    "cohere1": lines("chat_v1", "cohere", "application/stream+json"), "triton": Form("kserve", "stream"),
    "llamacpp": Form("llamacpp", "completion"), "tgi": Form("tgi", "stream"),
    "interactions": Form("gemini", "interactions"),
}  # fmt: skip


def pieces(name: str, events: Sequence[Event]) -> list[bytes]:
    """Write events as this family sends them."""
    return FORMS[name].pieces(events)


def stream_of(name: str, said: Said, cut: Cut = whole) -> bytes:
    """Write a whole answer as this family sends it."""
    return b"".join(pieces(name, FAMILIES[name](said, cut)))


def as_sent(name: str, said: Said) -> Said:
    """Return what a family can say of an answer in deltas: some have no tools, or send their arguments as objects."""
    match name:
        case "completions" | "llamacpp" | "tgi":
            return Said(said.text)
        case "cohere1":
            return Said(said.text, "", said.tools)
        case "chat" | "responses" | "messages" | "converse" | "invoke" | "cohere" | "interactions":
            return said
        case _:
            return Said(said.text, said.thinking)


def read(name: str, stream: bytes) -> Said:
    """Read an answer as a client does: the deltas of each channel, joined."""
    texts: dict[str, str] = {}
    tools: dict[int, str] = {}
    for _, event in FORMS[name].events(stream):
        if not isinstance(event, dict):
            continue
        for channel, part in _deltas(name, event):
            if isinstance(channel, int):
                tools[channel] = tools.get(channel, "") + part
            else:
                texts[channel] = texts.get(channel, "") + part
    return Said(texts.get("text", ""), texts.get("thinking", ""), tuple(tools[index] for index in sorted(tools)))


def _deltas(name: str, event: dict) -> list[tuple[str | int, str]]:
    match name:
        case _ if name in wire_natives.NATIVES:
            return wire_natives.deltas_of(name, event)
        case "cohere":
            message = event.get("delta", {}).get("message", {})
            content = message.get("content", {})
            call = message.get("tool_calls", {}).get("function", {})
            tool = [(event["index"], call["arguments"])] if "arguments" in call else []
            return [("text", content.get("text", "")), ("thinking", content.get("thinking", "")), *tool]
        case "converse":
            delta = event.get("delta", {})
            tool = [(event["contentBlockIndex"], delta["toolUse"]["input"])] if "toolUse" in delta else []
            thinking = delta.get("reasoningContent", {}).get("text", "")
            return [("text", delta.get("text", "")), ("thinking", thinking), *tool]
        case "gemini" | "gemini array":
            candidates = [each for each in event.get("candidates", ()) if each.get("index") == 1]
            parts = [part for each in candidates for part in each["content"]["parts"]]
            return [("thinking" if part.get("thought") else "text", part["text"]) for part in parts]
        case "ollama":
            message = event.get("message", {})
            return [("text", message.get("content", "")), ("thinking", message.get("thinking", ""))]
        case "generate":
            return [("text", event.get("response", "")), ("thinking", event.get("thinking", ""))]
        case "completions":
            return [("text", choice["text"]) for choice in event["choices"]]
        case "chat":
            found: list[tuple[str | int, str]] = []
            for choice in event["choices"]:
                delta = choice["delta"]
                found += [("thinking", delta.get("reasoning_content") or ""), ("text", delta.get("content") or "")]
                found += [
                    (call["index"], call["function"].get("arguments", "")) for call in delta.get("tool_calls", ())
                ]
            return found
        case "responses":
            channel = {
                "response.reasoning_summary_text.delta": "thinking", "response.output_text.delta": "text",
                "response.function_call_arguments.delta": event.get("output_index"),
            }.get(event["type"])  # fmt: skip
            return [] if channel is None else [(channel, event["delta"])]
        case _:
            delta = event.get("delta", {})
            channel = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": event.get("index")}
            channel = channel.get(delta.get("type"))
            part = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            return [] if channel is None else [(channel, part)]
