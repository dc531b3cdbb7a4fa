"""What the tests of two-way sockets share: an open one, what both sides say, and what a client reads out of it.

The readers know the APIs and nothing of the dialects: they say where a person's words and a model's words stand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tests.wire import ROOT, Cut, Said, dialect, engine, whole
from tidegate.duplex import Duplex
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import Engine
from tidegate.model import (
    Action,
    AllowRule,
    AnswerLimits,
    Caller,
    Connection,
    Direction,
    Grant,
    OnUnknown,
    Origin,
    Route,
)
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy
from tidegate.steps import ClientSaid, Form, Relay, UpstreamSaid

ALICE = Caller("local", "alice", frozenset({"local:dev"}))
ANY = AllowRule("dev", ("*",), ("*",), None, None)


@cache
def shipped_policy() -> Policy:
    return load(ROOT / "rules" / "policy.yaml", engine_cache=DiskCache())


def opened(
    family: str,
    rules: Engine | None = None,
    *,
    action: Action = Action.REDACT,
    prompts: Action = Action.REDACT,
    on_unknown: OnUnknown = OnUnknown.BLOCK,
    allow: AllowRule = ANY,
    model: str | None = None,
    caller: Caller = ALICE,
) -> Duplex:
    """Open a socket of a family, with a few rules: ``t.key`` is blocked in prompts unless they are allowed."""
    form = LIVE[family]
    rules = rules or engine()
    named = [rule.id for rule in rules.rules]
    asking = dict.fromkeys(named, prompts)
    if prompts is not Action.ALLOW and "t.key" in asking:
        asking["t.key"] = Action.BLOCK
    decisions = {Direction.PROMPT: asking, Direction.RESPONSE: dict.fromkeys(named, action)}
    policy = replace(shipped_policy(), engine=rules, decisions=decisions)
    upstream = Origin("https", "live.test", 443)
    limits = AnswerLimits()
    connection = Connection("c", form.dialect, upstream, "", "/c", None, 8 * 2**20, limits, on_unknown)
    route = Route(connection, form.endpoint, "/x", form.model if model is None else model or None)
    grant = Grant(route, caller, ("dev",), (allow,), (), None, connection.request_bytes)
    found = dialect(form.dialect)
    return Duplex(policy, found, found.endpoints[form.endpoint], grant, "ex_1")


def asks(message: object, now: float = 0.0, *, binary: bool = False) -> ClientSaid:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return ClientSaid(Form.BINARY if binary else Form.TEXT, data, now)


def tells(event: object, *, binary: bool = False) -> UpstreamSaid:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    return UpstreamSaid(Form.BINARY if binary else Form.TEXT, data)


def sent(socket: Duplex, message: object, **more: Any) -> Relay:
    step = socket.client(asks(message, **more))
    assert isinstance(step, Relay)
    return step


def heard(socket: Duplex, events: Iterable[object]) -> list[dict[str, Any]]:
    """Give a socket what an upstream says; return what its client gets."""
    found: list[dict[str, Any]] = []
    for event in events:
        step = socket.upstream(tells(event))
        assert step.close is None, step.down or step.reason
        found += [json.loads(data) for data in step.down]
    return found


# ── the upstreams ────────────────────────────────────────────────────────────────────────────────────────────────────


PARTS = {"text": "text", "transcript": "audio"}


def realtime(said: Said, cut: Cut = whole, number: int = 1, *, beta: bool = False) -> list[dict[str, Any]]:
    """Return the events of one response; its reasoning is the transcript of what it speaks."""
    events: list[dict[str, Any]] = []

    def add(kind: str, **fields: object) -> None:
        events.append({"type": kind, "event_id": f"event_{number}_{len(events)}", **fields})

    response = {"object": "realtime.response", "id": f"resp_{number}", "status": "in_progress", "output": []}
    add("response.created", response=response)
    output: list[dict[str, Any]] = []

    def item(fields: dict[str, Any], parts: list[tuple[str, str, str, str]]) -> None:
        index, name = len(output), f"item_{number}_{len(output)}"
        at = {"response_id": f"resp_{number}", "item_id": name, "output_index": index}
        add("response.output_item.added", response_id=f"resp_{number}", output_index=index, item={"id": name, **fields})
        for place, (kind, ended, field, text) in enumerate(parts):
            here = at if field == "arguments" else {**at, "content_index": place}
            for part in cut(text):
                add(kind, **here, delta=part, obfuscation="q7Zp")
            add(ended, **here, **{field: text})
            if field != "arguments":
                add("response.content_part.done", **here, part={"type": PARTS[field], field: text})
        content = [{"type": f"output_{PARTS[field]}", field: text} for *_, field, text in parts if field in PARTS]
        output.append({"id": name, **fields, **({"content": content} if content else {})})
        if not content:
            output[-1]["arguments"] = parts[0][3]
        add("response.output_item.done", response_id=f"resp_{number}", output_index=index, item=output[-1])
        add("conversation.item.done", previous_item_id=None, item=output[-1])

    text, spoken = ("text", "audio_transcript") if beta else ("output_text", "output_audio_transcript")
    if said.thinking or said.text:
        parts = [(f"response.{spoken}.delta", f"response.{spoken}.done", "transcript", said.thinking)]
        parts += [(f"response.{text}.delta", f"response.{text}.done", "text", said.text)]
        item({"type": "message", "role": "assistant"}, parts)
    for index, source in enumerate(said.tools):
        kind = "response.function_call_arguments"
        fields = {"type": "function_call", "call_id": f"call_{index}", "name": "f"}
        item(fields, [(f"{kind}.delta", f"{kind}.done", "arguments", source)])
    add("response.done", response={**response, "status": "completed", "output": output})
    return events


def beta(said: Said, cut: Cut = whole, number: int = 1) -> list[dict[str, Any]]:
    return realtime(said, cut, number, beta=True)


def live(said: Said, cut: Cut = whole, number: int = 1) -> list[dict[str, Any]]:
    """Return the messages of one turn; its reasoning is the transcript of what it speaks. Calls come whole."""
    del number  # turns have none
    spoken = [{"outputTranscription": {"text": part}} for part in cut(said.thinking)]
    written = [{"modelTurn": {"parts": [{"text": part}], "role": "model"}} for part in cut(said.text)]
    over = {"serverContent": {"turnComplete": True}, "usageMetadata": {"totalTokenCount": 187}}
    return [*({"serverContent": each} for each in (*spoken, *written, {"generationComplete": True})), over]


@dataclass(frozen=True)
class Family:
    """One API: where it is described, what its upstream says, and where a client finds the words in an event."""

    dialect: str
    endpoint: str
    model: str | None
    events: Callable[..., list[dict[str, Any]]]
    channels: Callable[[dict[str, Any]], Iterator[tuple[object, str]]]


def realtime_channels(event: dict[str, Any]) -> Iterator[tuple[object, str]]:
    kind = event["type"]
    if kind.endswith(".delta") and not kind.endswith("audio.delta"):
        names = ("response_id", "item_id", "output_index", "content_index")
        yield (kind, *(event.get(name) for name in names)), event["delta"]


def live_channels(event: dict[str, Any]) -> Iterator[tuple[object, str]]:
    content = event.get("serverContent") or {}
    for part in (content.get("modelTurn") or {}).get("parts") or ():
        if "text" in part:
            yield ("text", part.get("thought", False)), part["text"]
    for name in ("outputTranscription", "inputTranscription"):
        if "text" in (content.get(name) or {}):
            yield name, content[name]["text"]


LIVE = {
    "realtime": Family("openai", "realtime", "gpt-realtime", realtime, realtime_channels),
    "beta": Family("openai", "realtime", "gpt-realtime", beta, realtime_channels),
    "live": Family("gemini", "live", None, live, live_channels),
}


def joined(family: str, events: Iterable[dict[str, Any]]) -> dict[object, str]:
    """Join the texts that a client reads, by channel; empty ones are left out."""
    texts: dict[object, str] = {}
    for event in events:
        for key, part in LIVE[family].channels(event):
            texts[key] = texts.get(key, "") + part
    return {key: text for key, text in texts.items() if text}
