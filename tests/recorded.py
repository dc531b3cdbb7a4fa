"""The recorded exchanges, and readers of their APIs that know nothing of the dialects.

A reader says where a person's words and a model's words stand: in a request, in a whole answer, in an event.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import random
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.wire import RECORDED, always, dialect, engine, messages_of
from tidegate.dialects.addresses import match
from tidegate.dialects.spec import Dialect, Endpoint
from tidegate.inspection.engine import Engine
from tidegate.model import Action
from tidegate.streams.answers import AnswerHead, StreamedAnswer

type Texts = Iterator[tuple[dict | list, str | int]]
"""Places of words: what holds them, and the key or index."""


@dataclass(frozen=True)
class Family:
    """One API of the corpus: its dialect, and readers of requests, of whole answers and of stream events."""

    dialect: str
    asks: Callable[[dict], Texts]
    says: Callable[[dict], Texts]
    events: Callable[[bytes], list[dict]] = lambda _: []
    channels: Callable[[dict], Iterator[tuple[object, str]]] = lambda _: iter(())


# ── what the APIs look like ──────────────────────────────────────────────────────────────────────────────────────────


def field(holder: dict, *names: str) -> Texts:
    yield from ((holder, name) for name in names if isinstance(holder.get(name), str) and holder[name])


def ollama_asks(body: dict) -> Texts:
    for message in body.get("messages") or ():
        yield from field(message, "content")
    yield from field(body, "prompt", "input")


def ollama_says(body: dict) -> Texts:
    yield from field(body.get("message") or {}, "content", "thinking")
    yield from field(body, "response", "thinking", "error")


def ollama_channels(event: dict) -> Iterator[tuple[object, str]]:
    for holder, name in ollama_says(event):
        yield name, holder[name]


def lines(stream: bytes) -> list[dict]:
    return [json.loads(line) for line in stream.split(b"\n") if line.strip()]


def parts(content: object, *more: str) -> Texts:
    for part in (content.get("parts") or ()) if isinstance(content, dict) else ():
        yield from field(part, "text", *more)


def gemini_asks(body: dict) -> Texts:
    for content in body.get("contents") or ():
        yield from parts(content)
        for part in content.get("parts") or ():
            for name in ("functionResponse", "function_response"):
                yield from field((part.get(name) or {}).get("response") or {}, "result", "output", "content")
    for name in ("systemInstruction", "system_instruction", "content"):
        yield from parts(body.get(name))
    for request in body.get("requests") or ():
        yield from parts(request.get("content"))
    if isinstance(body.get("generateContentRequest"), dict):
        yield from gemini_asks(body["generateContentRequest"])


def gemini_says(body: dict) -> Texts:
    for candidate in body.get("candidates") or ():
        yield from parts(candidate.get("content"))
        for part in (candidate.get("content") or {}).get("parts") or ():
            yield from field(part.get("executableCode") or {}, "code")
            yield from field(part.get("codeExecutionResult") or {}, "output")
            yield from field((part.get("functionCall") or {}).get("args") or {}, "city", "location", "name")
    yield from field(body.get("error") or {}, "message")


def gemini_channels(event: dict) -> Iterator[tuple[object, str]]:
    for candidate in event.get("candidates") or ():
        for part in (candidate.get("content") or {}).get("parts") or ():
            if "text" in part:
                yield (candidate.get("index", 0), part.get("thought", False)), part["text"]


def array_or_events(stream: bytes) -> list[dict]:
    if stream.startswith(b"["):
        return json.loads(stream)
    blocks = stream.decode().replace("\r\n", "\n").split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block.strip()]


def converse_texts(blocks: object) -> Texts:
    for block in blocks if isinstance(blocks, list) else ():
        yield from field(block, "text")
        yield from field((block.get("reasoningContent") or {}).get("reasoningText") or {}, "text")
        yield from converse_texts((block.get("toolResult") or {}).get("content"))
        yield from converse_texts((block.get("citationsContent") or {}).get("content"))


def converse_asks(body: dict) -> Texts:
    yield from converse_texts(body.get("system"))
    for message in body.get("messages") or ():
        yield from converse_texts(message.get("content"))


def converse_says(body: dict) -> Texts:
    yield from converse_texts((body.get("output") or {}).get("message", {}).get("content"))
    yield from field(body, "message")


def converse_channels(event: dict) -> Iterator[tuple[object, str]]:
    delta, index = event.get("delta") or {}, event.get("contentBlockIndex")
    for name, part in (
        ("text", delta.get("text")),
        ("thinking", (delta.get("reasoningContent") or {}).get("text")),
    ):
        if part is not None:
            yield (index, name), part


def invoke_asks(body: dict) -> Texts:
    """Anthropic's, Amazon's, Meta's, Cohere's, AI21's and Mistral's own bodies."""
    yield from field(body, "prompt", "inputText", "message", "query", "system")
    for message in (*(body.get("messages") or ()), *(body.get("chat_history") or ())):
        yield from field(message, "content", "message")
        for block in message["content"] if isinstance(message.get("content"), list) else ():
            yield from field(block, "text")
    for holder in (body.get("texts"), body.get("documents")):
        for index, text in enumerate(holder or ()):
            if isinstance(text, str):
                yield holder, index
    yield from field(body.get("singleEmbeddingParams", {}).get("text", {}), "value")


def invoke_says(body: dict) -> Texts:
    yield from field(body, "completion", "generation", "text", "message")
    yield from converse_texts(body.get("content"))
    yield from converse_texts((body.get("output") or {}).get("message", {}).get("content"))
    for name in ("outputs", "results", "generations", "choices"):
        for each in body.get(name) or ():
            yield from field(each, "text", "outputText")


def invoke_channels(event: dict) -> Iterator[tuple[object, str]]:
    index = event.get("index")
    delta = event.get("delta") or {}
    nova = event.get("contentBlockDelta") or {}
    for name, part in (
        ("text", delta.get("text")),
        ("thinking", delta.get("thinking")),
        ("completion", event.get("completion")),
        ("generation", event.get("generation")),
        ("outputText", event.get("outputText")),
        (("nova", nova.get("contentBlockIndex")), (nova.get("delta") or {}).get("text")),
    ):
        if part is not None:
            yield (index, name), part


def aws_messages(stream: bytes) -> list[dict]:
    return [event for _, event in messages_of(stream)]


def cohere_asks(body: dict) -> Texts:
    for message in body.get("messages") or ():
        yield from field(message, "content", "tool_plan")
        yield from converse_texts(message.get("content"))


def cohere_says(body: dict) -> Texts:
    message = body.get("message") or {}
    if isinstance(message, dict):
        yield from field(message, "tool_plan")
        yield from converse_texts(message.get("content"))


def cohere_channels(event: dict) -> Iterator[tuple[object, str]]:
    message = (event.get("delta") or {}).get("message") or {}
    content = message.get("content") or {}
    for name, part in (
        ("plan", message.get("tool_plan")),
        ((event.get("index"), "text"), content.get("text")),
        ((event.get("index"), "thinking"), content.get("thinking")),
    ):
        if isinstance(part, str):
            yield name, part


def named_events(stream: bytes) -> list[dict]:
    lines_ = stream.decode().replace("\r\n", "\n").split("\n")
    return [json.loads(line[6:]) for line in lines_ if line.startswith("data: {")]


def chat_asks(body: dict) -> Texts:
    """OpenAI's chat, completions and what resembles them; Anthropic's messages too."""
    for message in listed(body.get("messages")):
        yield from field(message, "content")
        for part in listed(message.get("content")):
            yield from field(part, "text", "thinking")
            yield from content_texts(part.get("content"))
    yield from field(body, "prompt", "suffix", "input", "system", "instructions")
    for name in ("prompt", "input", "system", "texts"):
        yield from strings(body.get(name))
        for part in listed(body.get(name)):
            yield from field(part, "text", "content", "output")
            yield from content_texts(part.get("content"))


def listed(value: object) -> list[dict]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def strings(value: object) -> Texts:
    if isinstance(value, list):
        yield from ((value, index) for index, each in enumerate(value) if isinstance(each, str) and each)


def content_texts(content: object) -> Texts:
    for part in listed(content):
        yield from field(part, "text")


def chat_says(body: dict) -> Texts:
    for choice in listed(body.get("choices")):
        yield from field(choice, "text")
        message = choice.get("message") or {}
        yield from field(message, "content", "reasoning", "reasoning_content", "refusal")
        yield from content_texts(message.get("content"))
    yield from field(body, "message", "detail")
    yield from field(body["error"] if isinstance(body.get("error"), dict) else {}, "message")
    yield from field(body, "error")


def chat_channels(event: dict) -> Iterator[tuple[object, str]]:
    for choice in listed(event.get("choices")):
        delta = choice.get("delta") or {}
        for name in ("content", "reasoning", "reasoning_content", "refusal"):
            if isinstance(delta.get(name), str):
                yield (choice.get("index"), name), delta[name]
        for part in listed(delta.get("content")):
            if isinstance(part.get("text"), str):
                yield (choice.get("index"), "part"), part["text"]
        if isinstance(choice.get("text"), str):
            yield (choice.get("index"), "text"), choice["text"]


def responses_says(body: dict) -> Texts:
    for item in listed(body.get("output")):
        yield from field(item, "output", "code")
        yield from content_texts(item.get("content"))
        yield from content_texts(item.get("summary"))
    yield from field(body["error"] if isinstance(body.get("error"), dict) else {}, "message")


_SPOKEN = ("response.output_text.delta", "response.refusal.delta", "response.reasoning_text.delta")


def responses_channels(event: dict) -> Iterator[tuple[object, str]]:
    kind = event.get("type")
    if kind in _SPOKEN:
        yield (kind, event.get("output_index"), event.get("content_index")), event["delta"]
    elif kind == "response.reasoning_summary_text.delta":
        yield (kind, event.get("output_index"), event.get("summary_index")), event["delta"]


def messages_says(body: dict) -> Texts:
    for block in listed(body.get("content")):
        yield from field(block, "text", "thinking")
    yield from field(body, "completion")
    yield from field(body.get("error") or {}, "message")


def messages_channels(event: dict) -> Iterator[tuple[object, str]]:
    delta = event.get("delta") or {}
    for name in ("text", "thinking"):
        if isinstance(delta.get(name), str):
            yield (event.get("index"), name), delta[name]
    if isinstance(event.get("completion"), str):
        yield "completion", event["completion"]


def cohere1_asks(body: dict) -> Texts:
    yield from field(body, "message", "prompt", "query", "preamble")
    for turn in listed(body.get("chat_history")):
        yield from field(turn, "message")
    for document in listed(body.get("documents")):
        yield from field(document, "text", "snippet")
    yield from strings(body.get("documents"))
    yield from strings(body.get("texts"))


def cohere1_says(body: dict) -> Texts:
    yield from field(body, "text", "message")
    for each in (*listed(body.get("generations")), *listed(body.get("chat_history")), *listed(body.get("citations"))):
        yield from field(each, "text", "message")
    for each in (*listed(body.get("results")), *listed(body.get("data"))):
        yield from field(each, "document")
        yield from field(each["document"] if isinstance(each.get("document"), dict) else {}, "text")
    yield from strings(body.get("texts"))


def cohere1_channels(event: dict) -> Iterator[tuple[object, str]]:
    if event.get("event_type") == "text-generation":
        yield event.get("index"), event["text"]


def predict_asks(body: dict) -> Texts:
    for instance in listed(body.get("instances")):
        yield from field(instance, "content", "title")


def error_says(body: dict) -> Texts:
    yield from field(body.get("error") or {}, "message")


def interactions_asks(body: dict) -> Texts:
    yield from field(body, "input", "system_instruction")
    yield from content_texts(body.get("input"))


def interactions_says(body: dict) -> Texts:
    for step in listed(body.get("steps")):
        yield from content_texts(step.get("content"))


def interactions_channels(event: dict) -> Iterator[tuple[object, str]]:
    delta = event.get("delta") or {}
    for name, text in (("text", delta.get("text")), ("summary", (delta.get("content") or {}).get("text"))):
        if isinstance(text, str):
            yield (event.get("index"), name), text


CONVERSE = Family("bedrock", converse_asks, converse_says, aws_messages, converse_channels)
INVOKE = Family("bedrock", invoke_asks, invoke_says, aws_messages, invoke_channels)


def counted_asks(body: dict) -> Texts:
    yield from converse_asks(body["input"].get("converse") or {})


OLLAMA = Family("ollama", ollama_asks, ollama_says, lines, ollama_channels)
GEMINI = Family("gemini", gemini_asks, gemini_says, array_or_events, gemini_channels)
CHAT = Family("openai", chat_asks, chat_says, named_events, chat_channels)
MISTRAL = Family("mistral", chat_asks, chat_says, named_events, chat_channels)
MESSAGES = Family("anthropic", chat_asks, messages_says, named_events, messages_channels)
COHERE = Family("cohere", cohere1_asks, cohere1_says, lines, cohere1_channels)
FAMILIES = {
    "openai.chat": CHAT, "openai.chat mistral": MISTRAL, "openai.completions": CHAT, "cohere.chat-v1 writer": CHAT,
    "openai.responses": Family("openai", chat_asks, responses_says, named_events, responses_channels),
    "openai.embeddings": Family("openai", chat_asks, chat_says),
    "openai.embeddings mistral": Family("mistral", chat_asks, chat_says),
    "openai.embeddings ollama": OLLAMA,
    "openai.moderations": Family("openai", chat_asks, error_says),
    "rerank openrouter": Family("openai", cohere1_asks, cohere1_says),
    "rerank voyage": Family("openai", cohere1_asks, cohere1_says),
    "anthropic.messages": MESSAGES, "anthropic.complete": MESSAGES, "count_tokens anthropic": MESSAGES,
    "vertex.rawPredict": MESSAGES,
    "gemini.generate": GEMINI, "gemini.stream": GEMINI, "gemini.embed": GEMINI, "count_tokens gemini": GEMINI,
    "vertex.predict": Family("gemini", predict_asks, error_says),
    "gemini.interactions": Family("gemini", interactions_asks, interactions_says, named_events, interactions_channels),
    "bedrock.converse": CONVERSE, "bedrock.converse-stream": CONVERSE,
    "bedrock.invoke": INVOKE, "bedrock.invoke-stream": INVOKE,
    "count_tokens bedrock": Family("bedrock", counted_asks, converse_says),
    "cohere.chat-v2": Family("cohere", cohere_asks, cohere_says, named_events, cohere_channels),
    "cohere.chat-v1": COHERE, "cohere.generate": COHERE, "cohere.embed": COHERE, "rerank": COHERE,
    "ollama.chat": OLLAMA, "ollama.generate": OLLAMA, "ollama.embed": OLLAMA,
    "hf.models": Family("tgi", lambda body: field(body, "inputs"), lambda body: field(body, "error")),
}  # fmt: skip
"""By the API of a row and, where it speaks another dialect there, its provider."""


# ── the corpus ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One exchange."""

    id: str
    api: str
    method: str
    path: str
    request: bytes
    answer: bytes
    status: int
    label: str
    streamed: bool

    @property
    def family(self) -> Family:
        return FAMILIES[self.api]

    @property
    def dialect(self) -> Dialect:
        return dialect(self.family.dialect)

    @property
    def endpoint(self) -> Endpoint | None:
        return match(self.dialect, self.method, self.path)

    def answered(self, decide: Action, rules: Engine | None = None, chance: random.Random | None = None) -> bytes:
        """Let the streamed answer cross, cut anywhere."""
        assert self.endpoint is not None
        gate = StreamedAnswer(
            self.endpoint, self.dialect.error, rules or engine(), always(decide), "ex-1", AnswerHead(self.label, 200)
        )
        chance = chance or random.Random(self.id)
        at = sorted({0, len(self.answer), *(chance.randrange(len(self.answer) + 1) for _ in range(20))})
        out = b"".join(gate.feed(self.answer[a:b]) for a, b in pairwise(at)) + gate.end()
        assert gate.denial is None, (self.id, gate.denial)
        return out


def _bytes(message: dict) -> bytes:
    body = message["body"]
    if message.get("body_encoding") == "base64":
        return base64.b64decode(body)
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else b""


def _below(api: str, method: str, path: str) -> str:
    """Return the path below a base path, which is unknown here: the first that is an endpoint.

    What its recorder took out of a path, such as ``<GOOGLE_CLOUD_PROJECT>``, was one plain word.
    """
    words = path.replace("<", "").replace(">", "").split("/")
    every = ["/" + "/".join(words[at:]) for at in range(1, len(words))]
    return next((each for each in every if match(dialect(FAMILIES[api].dialect), method, each)), path)


def api_of(row: dict) -> str:
    """Name the family of a row."""
    provider = {"vertex": "gemini"}.get(row["provider"], row["provider"])
    both = f"{row['api']} {provider}"
    return both if both in FAMILIES else row["api"]


@functools.cache
def rows() -> tuple[Row, ...]:
    found = []
    with gzip.open(RECORDED, "rt", encoding="utf-8") as opened:
        for line in opened:
            row = json.loads(line)
            if (api := api_of(row)) in FAMILIES:
                request, response = row["request"], row["response"]
                url = urllib.parse.urlsplit(request["url"])
                label = response["content_type"].partition(";")[0].strip().lower()
                streamed = bool(response.get("streaming")) and response["status"] < 300
                found.append(
                    Row(
                        row["id"], api, request["method"], _below(api, request["method"], url.path), _bytes(request),
                        _bytes(response), response["status"], label, streamed,
                    )
                )  # fmt: skip
    return tuple(found)
