"""An upstream with the APIs of servers and providers that have their own, each below a path of its name."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.e2e.families import LEAK, THOUGHT, cut, stream
from tests.e2e.harness import CREDENTIAL, Received, Upstream, http_answer, policy, tidegate_run, token
from tests.e2e.test_families import BEARER, Setting, masked

HELLO = "Hello back, friend."
SSE = "text/event-stream"
ARGUMENTS = json.dumps({"to": "jane.doe@example.com", "subject": "hi"})
VECTOR = [0.015991924, -0.1588247]
SCORES = {"violence": 4.6174091039574705e-06, "hate": 0.000123456}

type Answer = tuple[object, str, Iterable[bytes]]
"""A whole answer, the media type of a stream, and its pieces."""


class Natives(Upstream):
    """Answers by path: whole, or as a stream where the request or its path asks for one."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._speak

    async def _speak(self, received: Received, writer: asyncio.StreamWriter) -> None:
        _, name, path = received.path.split("/", 2)
        text = LEAK if b"leak" in received.body else HELLO
        body = json.loads(received.body) if received.body else {}
        whole, kind, pieces = SPEAK[name](f"/{path}", body, text)
        asked = body.get("stream") or path.endswith("generate_stream")
        if pieces and asked:
            await stream(writer, kind, pieces)
        else:
            writer.write(http_answer(json.dumps(whole).encode()))


def sse(events: Iterable[object], *, space: str = " ", named: str = "") -> list[bytes]:
    """Write server-sent events; ``named``: the field that names one."""
    out = []
    for event in events:
        name = f"event: {event[named]}\n" if named and isinstance(event, dict) else ""
        out.append(f"{name}data:{space}{event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
    return out


def lines(events: Iterable[object]) -> list[bytes]:
    return [json.dumps(event).encode() + b"\n" for event in events]


def cohere(path: str, body: dict, text: str) -> Answer:
    """Both versions: lines of JSON, and server-sent events."""
    meta = {"api_version": {"version": path[2]}, "billed_units": {"input_tokens": 3}}
    match path:
        case "/v1/chat":
            calls = [{"name": "send_mail", "parameters": json.loads(ARGUMENTS)}] if body.get("tools") else []
            whole = {
                "text": text,
                "generation_id": "g1",
                "finish_reason": "COMPLETE",
                "meta": meta,
                "tool_calls": calls,
            }
            whole["chat_history"] = [{"role": "CHATBOT", "message": text}]
            events = [{"event_type": "text-generation", "text": part} for part in cut(text)]
            calls_ = [{"index": 0, "parameters": part} for part in cut(ARGUMENTS)] if calls else []
            events += [{"event_type": "tool-calls-chunk", "tool_call_delta": each} for each in calls_]
            events.append({"event_type": "stream-end", "finish_reason": "COMPLETE", "response": whole})
            return whole, "application/stream+json", lines({"is_finished": False, **event} for event in events)
        case "/v1/generate":
            whole = {"id": "1", "prompt": body["prompt"], "generations": [{"id": "2", "text": text}], "meta": meta}
            events = [{"event_type": "text-generation", "text": part, "is_finished": False} for part in cut(text)]
            end = {"finish_reason": "COMPLETE", "response": whole}
            events.append({"event_type": "stream-end", "is_finished": True, **end})
            return whole, "application/stream+json", lines(events)
        case "/v2/chat":
            message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            whole = {"id": "1", "message": message, "finish_reason": "COMPLETE"}
            at = {"type": "content-delta", "index": 0}
            events = [{"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text"}}}}]
            events += [{**at, "delta": {"message": {"content": {"text": part}}}} for part in cut(text)]
            events.append({"type": "content-end", "index": 0})
            events.append({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}})
            return whole, SSE, [*sse(events, named="type"), *sse(["[DONE]"])]
        case "/v1/embed" | "/v2/embed":
            found = {"float": [VECTOR]} if path == "/v2/embed" else [VECTOR]
            kind = "embeddings_by_type" if path == "/v2/embed" else "embeddings_floats"
            return {"response_type": kind, "id": "1", "embeddings": found, "texts": body["texts"], "meta": meta}, "", ()
        case "/v1/classify":
            one = {"id": "1", "input": body["inputs"][0], "prediction": text, "predictions": [text]}
            return {"id": "1", "classifications": [{**one, "confidences": [0.9123456], "labels": {}}]}, "", ()
        case "/v1/tokenize":
            return {"tokens": [1627, 204231], "token_strings": ["hel", "lo"], "meta": meta}, "", ()
        case _:
            found = {"index": 0, "relevance_score": 0.9871234, "document": {"text": text}}
            return {"id": "1", "results": [found], "meta": meta}, "", ()


def mistral(path: str, body: dict, text: str) -> Answer:
    base = {"id": "cmpl-1", "object": "chat.completion", "model": "m", "created": 1743636562}
    match path:
        case "/v1/chat/completions" | "/v1/agents/completions" | "/v1/fim/completions":
            call = {"id": "D681PevKs", "index": 0, "function": {"name": "send_mail", "arguments": ARGUMENTS}}
            calls = {"tool_calls": [call]} if body.get("tools") else {}
            thinking = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}
            parts: object = [thinking, {"type": "text", "text": text}] if path == "/v1/chat/completions" else text
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": parts, **calls}}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}

            def chunk(delta: dict, finish: str | None = None) -> dict:
                return {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

            said = [{"content": [{**thinking, "thinking": [{"type": "text", "text": p}]}]} for p in cut(THOUGHT)]
            said = said if path == "/v1/chat/completions" else []
            events = [chunk(each) for each in (*said, *({"content": part} for part in cut(text)))]
            return {**base, "choices": [choice], "usage": usage}, SSE, sse([*events, chunk(calls, "stop"), "[DONE]"])
        case "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": VECTOR}]
            return {**base, "object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}, "", ()
        case "/v1/ocr":
            page = {"index": 0, "markdown": text, "images": [], "dimensions": None}
            return {"model": "m", "pages": [page], "usage_info": {"pages_processed": 1}}, "", ()
        case "/v1/models":
            return {"object": "list", "data": []}, "", ()
        case _:
            return {"id": "1", "model": "m", "results": [{"categories": {}, "category_scores": SCORES}]}, "", ()


def vllm(path: str, _: dict, text: str) -> Answer:
    match path:
        case "/tokenize":
            return {"count": 2, "max_model_len": 4096, "tokens": [1627, 204231]}, "", ()
        case "/classify":
            return {"id": "1", "data": [{"index": 0, "label": text, "probs": [0.1234567]}]}, "", ()
        case "/pooling":
            return {"id": "1", "data": [{"index": 0, "object": "pooling", "data": [VECTOR]}]}, "", ()
        case "/score":
            return {"id": "1", "data": [{"index": 0, "object": "score", "score": 0.1234567}]}, "", ()
        case _:
            document = {"index": 0, "document": {"text": text}, "relevance_score": 0.1234567}
            return {"id": "1", "model": "m", "results": [document]}, "", ()


def llamacpp(path: str, body: dict, text: str) -> Answer:
    match path:
        case "/completion" | "/infill":
            timings = {"predicted_ms": 411.527}
            end = {"index": 0, "content": "", "stop": True, "stop_type": "eos", "timings": timings}
            whole = {**end, "content": text, "prompt": body["prompt"], "tokens": []}
            events = [{"index": 0, "content": part, "tokens": [204231], "stop": False} for part in cut(text)]
            return whole, SSE, sse([*events, {**end, "prompt": body["prompt"]}])
        case "/apply-template":
            return {"prompt": f"<|user|>{text}"}, "", ()
        case "/embedding":
            return [{"index": 0, "embedding": [VECTOR]}], "", ()
        case "/health":
            return {"status": "ok"}, "", ()
        case _:
            return {"tokens": [1627, 204231]}, "", ()


def tgi(path: str, _: dict, text: str) -> Answer:
    if path in ("/tokenize", "/info"):
        return [{"id": 204231, "text": "hello", "start": 0, "stop": 5}] if path == "/tokenize" else {}, "", ()
    tokens = [{"id": 204231, "text": part, "logprob": -0.1234567, "special": False} for part in cut(text)]
    events: list[dict] = [
        {"index": at, "token": token, "generated_text": None, "details": None} for at, token in enumerate(tokens)
    ]
    events[-1] |= {"generated_text": text, "details": {"finish_reason": "length", "generated_tokens": 9, "seed": None}}
    details = {"finish_reason": "length", "generated_tokens": 9, "seed": 7242342342342, "prefill": [], "tokens": tokens}
    return [{"generated_text": text, "details": details}], SSE, sse(events, space="")


def kserve(path: str, _: dict, text: str) -> Answer:
    base = {"model_name": "good-model", "model_version": "1"}
    if path.endswith("/infer"):
        tensor = {"name": "out", "datatype": "BYTES", "shape": [1, 2], "data": [[text, "ok"]]}
        return {**base, "id": "1", "outputs": [tensor]}, "", ()
    if "generate" in path:
        events = [{**base, "text_output": part} for part in cut(text)]
        return {**base, "text_output": text}, f"{SSE}; charset=utf-8", sse(events)
    return {"ready": True}, "", ()


def tfserving(path: str, _: dict, text: str) -> Answer:
    if path.endswith(":predict"):
        return {"predictions": [{"answer": text, "score": 0.1234567}]}, "", ()
    if path.endswith(":classify"):
        return {"results": [[[text, 0.1234567]]]}, "", ()
    return {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}, "", ()


def torchserve(path: str, _: dict, text: str) -> Answer:
    return {"status": "Healthy"} if path == "/ping" else [{"answer": text}], "", ()


def anthropic(path: str, body: dict, text: str) -> Answer:
    """The older completions, and messages as Vertex AI serves them."""
    if path == "/v1/complete":
        base = {"type": "completion", "id": "compl_1", "model": "m", "log_id": "compl_1", "stop": None}
        events = [{**base, "completion": part, "stop_reason": None} for part in cut(text)]
        events.append({**base, "completion": "", "stop_reason": "stop_sequence"})
        return {**base, "completion": text, "stop_reason": "stop_sequence"}, SSE, sse(events, named="type")
    whole = {"id": "msg_vrtx_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    usage = {"input_tokens": 3, "output_tokens": 1}
    at = {"type": "content_block_delta", "index": 0}
    events = [{"type": "message_start", "message": {**whole, "content": [], "usage": usage}}]
    events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    events += [{**at, "delta": {"type": "text_delta", "text": part}} for part in cut(text)]
    events += [{"type": "content_block_stop", "index": 0}, {"type": "message_stop"}]
    return {**whole, "content": [{"type": "text", "text": text}], "usage": usage}, SSE, sse(events, named="type")


def openai(path: str, _: dict, text: str) -> Answer:
    flags = {"categories": {}, "category_scores": SCORES, "category_applied_input_types": {}, "flagged": False}
    if path == "/v1/moderations":
        return {"id": "modr-1", "model": "m", "results": [flags]}, "", ()
    document = {"index": 0, "document": text, "relevance_score": 0.7123456}
    return {"object": "list", "data": [document], "model": "m", "usage": {"total_tokens": 3}}, "", ()


def gemini(path: str, body: dict, text: str) -> Answer:
    if path.endswith(":predict"):
        return {"predictions": [{"embeddings": {"values": VECTOR}}]}, "", ()
    base = {"id": "v1_1", "status": "completed", "object": "interaction", "model": "m"}
    base |= {"created": "2026-06-05T17:35:35Z", "updated": "2026-06-05T17:35:35Z"}
    steps = [{"type": "model_output", "content": [{"type": "text", "text": text}]}]
    at = {"event_type": "step.delta", "index": 0}
    events: list[dict] = [{"event_type": "interaction.created", "interaction": {**base, "status": "in_progress"}}]
    events.append({"event_type": "step.start", "index": 0, "step": {"type": "model_output"}})
    events += [{**at, "delta": {"type": "text", "text": part}} for part in cut(text)]
    events += [{"event_type": "step.stop", "index": 0}, {"event_type": "interaction.completed", "interaction": base}]
    return {**base, "steps": steps}, SSE, [*sse(events, named="event_type"), b"event: done\ndata: [DONE]\n\n"]


SPEAK: dict[str, Callable[[str, dict, str], Answer]] = {
    "cohere": cohere, "mistral": mistral, "vllm": vllm, "llamacpp": llamacpp, "tgi": tgi, "kserve": kserve,
    "tfserving": tfserving, "torchserve": torchserve, "anthropic": anthropic, "openai": openai, "gemini": gemini,
}  # fmt: skip


# ── the gate in front of it ──────────────────────────────────────────────────────────────────────────────────────────

NAMELESS = ["llamacpp", "tgi"]
"""Whose requests name no model."""

ROLES = {
    "dev": {
        "allow": [
            {"connections": [name for name in SPEAK if name not in NAMELESS], "endpoints": ["*"], "models": ["good-*"]},
            {"connections": NAMELESS, "endpoints": ["*"]},
        ],
        "deny": [{"tools": ["bash"]}],
    }
}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Setting]:
    """Start the upstream and a gate with a connection for each of its APIs."""
    with Natives() as upstream:
        connections = [
            {
                "name": name,
                "dialect": name,
                "upstream": f"{upstream.url}/{name}",
                "serve": {"path": f"/{name}"},
                "credential": {**BEARER},
            }
            for name in SPEAK
        ]
        written = policy(folder, upstream.url, connections=connections, roles=ROLES)
        secret = token(folder)
        with tidegate_run(written) as gate:
            yield Setting(gate, upstream, secret)  # type: ignore[arg-type]  # another upstream of the same kind


def live(setting: Setting, arrived: list[tuple[float, str]]) -> None:
    masked("".join(text for _, text in arrived))
    assert len([text for _, text in arrived if text]) > 5
    assert arrived[-1][0] - arrived[0][0] > 0.05, "all deltas came at once: the answer was not live"
    row = setting.row()
    assert (row["status"], row["streamed"]) == (200, 1)
    assert row["outcome"] in {"answered", "aborted"}, "some SDKs hang up at [DONE], before the end of the answer"


def intact(setting: Setting, before: int, number: int) -> None:
    sent = setting.crossed(before)
    assert len(sent) == number
    assert {each.headers["authorization"] for each in sent} == {f"Bearer {CREDENTIAL}"}
