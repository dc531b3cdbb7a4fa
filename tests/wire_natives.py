"""More upstreams of a made-up wire (``tests.wire``): servers with an API of their own, and older APIs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.wire import Cut, Event, Said


def cohere1(said: Said, cut: Cut) -> list[Event]:
    """Version 1 of the API: lines of JSON; the last one has all of it again."""
    texts: list[dict] = [{"event_type": "text-generation", "text": part} for part in cut(said.text)]
    for index, source in enumerate(said.tools):
        texts.append({"event_type": "tool-calls-chunk", "tool_call_delta": {"index": index, "name": "f"}})
        deltas = [{"index": index, "parameters": part} for part in cut(source)]
        texts += [{"event_type": "tool-calls-chunk", "tool_call_delta": delta} for delta in deltas]
    end = {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": {"text": said.text}}
    return [(None, {"is_finished": each is end, **each}) for each in [{"event_type": "stream-start"}, *texts, end]]


def triton(said: Said, cut: Cut) -> list[Event]:
    """A model with two outputs, which it names itself; both in one event as long as there are two."""
    base = {"model_name": "m", "model_version": "1"}
    texts, thoughts = cut(said.text), cut(said.thinking)
    events = []
    for at in range(max(len(texts), len(thoughts))):
        both = {"text_output": texts[at : at + 1], "reasons": thoughts[at : at + 1]}
        events.append((None, {**base, **{name: part[0] for name, part in both.items() if part}}))
    return events


def llamacpp(said: Said, cut: Cut) -> list[Event]:
    events: list[dict] = [{"index": 0, "content": part, "tokens": [7], "stop": False} for part in cut(said.text)]
    end = {"index": 0, "content": "", "tokens": [], "stop": True, "model": "m", "prompt": "hi", "stop_type": "eos"}
    return [(None, each) for each in [*events, {**end, "timings": {"predicted_ms": 411.5}}]]


def tgi(said: Said, cut: Cut) -> list[Event]:
    parts = cut(said.text) or [""]
    token = {"id": 1627, "logprob": -0.1, "special": False}
    events: list[dict] = [
        {"index": at, "token": {**token, "text": part}, "generated_text": None, "details": None}
        for at, part in enumerate(parts)
    ]
    events[-1] |= {"generated_text": said.text, "details": {"finish_reason": "length", "generated_tokens": 9}}
    return [(None, each) for each in events]


def interactions(said: Said, cut: Cut) -> list[Event]:
    events: list[dict] = [{"event_type": "interaction.created", "interaction": {"id": "v1_1", "model": "m"}}]
    steps: list[tuple[dict, list[dict]]] = []
    if said.thinking:
        sign = {"type": "thought_signature", "signature": "c2lnbmF0dXJl" * 8}
        parts = [{"type": "thought_summary", "content": {"type": "text", "text": part}} for part in cut(said.thinking)]
        steps.append(({"type": "thought"}, [*parts, sign]))
    if said.text:
        steps.append(({"type": "model_output"}, [{"type": "text", "text": part} for part in cut(said.text)]))
    for source in said.tools:
        call = {"type": "function_call", "name": "f", "id": "call_1"}
        steps.append((call, [{"type": "arguments_delta", "arguments": part} for part in cut(source)]))
    for index, (step, deltas) in enumerate(steps):
        events.append({"event_type": "step.start", "index": index, "step": step})
        events += [{"event_type": "step.delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"event_type": "step.stop", "index": index})
    events.append({"event_type": "interaction.completed", "interaction": {"id": "v1_1", "usage": {"total_tokens": 3}}})
    return [*((event["event_type"], event) for event in events), ("done", "[DONE]")]


NATIVES: dict[str, Callable[[Said, Cut], list[Event]]] = {
    "cohere1": cohere1, "triton": triton, "llamacpp": llamacpp, "tgi": tgi, "interactions": interactions,
}  # fmt: skip


def deltas_of(name: str, event: dict) -> list[tuple[str | int, str]]:
    """Read the deltas of an event, as a client of this API does."""
    match name:
        case "cohere1":
            call = event.get("tool_call_delta", {})
            tool = [(call["index"], call["parameters"])] if "parameters" in call else []
            return [("text", event.get("text", "")), *tool]
        case "triton":
            return [("text", event.get("text_output", "")), ("thinking", event.get("reasons", ""))]
        case "llamacpp":
            return [("text", event["content"])]
        case "tgi":
            return [("text", event["token"]["text"])]
        case _:
            delta = event.get("delta", {})
            tool = [(event["index"], delta["arguments"])] if "arguments" in delta else []
            summary = delta.get("content", {}).get("text", "")
            return [("text", delta.get("text", "")), ("thinking", summary), *tool]
