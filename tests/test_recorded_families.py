"""Recorded exchanges of the families that are no OpenAI or Anthropic API, each through the real dialect code.

The readers here know the APIs and nothing of the dialects: they say where a person's words and a model's words stand.
"""

from __future__ import annotations

import base64
import copy
import functools
import gzip
import json
import random
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.wire import KEY, RECORDED, always, dialect, engine, messages_of
from tidegate.dialects.addresses import match, model_named
from tidegate.dialects.asking import asked
from tidegate.dialects.body import strict_json
from tidegate.dialects.spec import Dialect, Endpoint, refused
from tidegate.inspection import media
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import parse_pack
from tidegate.model import Action, Denial
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.redactor import redact, short_name

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


CONVERSE = Family("bedrock", converse_asks, converse_says, aws_messages, converse_channels)
INVOKE = Family("bedrock", invoke_asks, invoke_says, aws_messages, invoke_channels)


def counted_asks(body: dict) -> Texts:
    yield from converse_asks(body["input"].get("converse") or {})


OLLAMA = Family("ollama", ollama_asks, ollama_says, lines, ollama_channels)
GEMINI = Family("gemini", gemini_asks, gemini_says, array_or_events, gemini_channels)
FAMILIES = {
    "gemini.generate": GEMINI, "gemini.stream": GEMINI, "gemini.embed": GEMINI, "count_tokens gemini": GEMINI,
    "bedrock.converse": CONVERSE, "bedrock.converse-stream": CONVERSE,
    "bedrock.invoke": INVOKE, "bedrock.invoke-stream": INVOKE,
    "count_tokens bedrock": Family("bedrock", counted_asks, converse_says),
    "cohere.chat-v2": Family("cohere", cohere_asks, cohere_says, named_events, cohere_channels),
    "ollama.chat": OLLAMA, "ollama.generate": OLLAMA, "ollama.embed": OLLAMA,
}  # fmt: skip


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


@functools.cache
def rows() -> tuple[Row, ...]:
    found = []
    with gzip.open(RECORDED, "rt", encoding="utf-8") as opened:
        for line in opened:
            row = json.loads(line)
            provider = {"vertex": "gemini"}.get(row["provider"], row["provider"])
            api = f"{row['api']} {provider}" if row["api"] == "count_tokens" else row["api"]
            if api in FAMILIES:
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


pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not on this machine")
APIS = pytest.mark.parametrize("api", FAMILIES)


def of(api: str) -> Iterator[Row]:
    yield from (row for row in rows() if row.api == api)


def bodies(api: str) -> Iterator[tuple[Row, dict]]:
    for row in of(api):
        body = strict_json(row.request) if row.request else None
        if isinstance(body, dict) and row.endpoint is not None:
            yield row, body


_PROFILE = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2F"
NO_ENDPOINT: dict[str, set[str]] = {
    "bedrock.converse": {f"{_PROFILE}mi1dadi0g15f/converse", f"{_PROFILE}1arbu5hu2sjr/converse"},
    "bedrock.invoke": {f"{_PROFILE}otnfa2ysixqd/invoke"},
}
"""Requests whose path is no endpoint, by API: an encoded slash in a path is refused everywhere."""

REFUSED: dict[str, dict[str, int]] = {
    "gemini.generate": {
        "uses $['cachedContent','cached_content']": 1,
        "uses $.tools[*]['fileSearch','file_search']": 2,
        "asks for $['generationConfig','generation_config'].logprobs": 3,
    },
    "bedrock.converse": {
        "asks for $.guardrailConfig.trace": 1,
    },
    "bedrock.converse-stream": {"asks for $.guardrailConfig.trace": 2},
    "bedrock.invoke": {"uses $.messages[*].content[*].type": 2},
    "count_tokens bedrock": {"uses $.input.invokeModel": 2},
    "gemini.embed": {"uses $.requests..['inlineData','inline_data','fileData','file_data']": 1},
}
"""How many requests are refused, by API and by what they hold."""


@APIS
def test_every_request_has_its_endpoint(api: str) -> None:
    missed = {row.path for row in of(api) if row.endpoint is None}
    assert missed == NO_ENDPOINT.get(api, set())


@APIS
def test_only_what_cannot_be_read_is_refused(api: str) -> None:
    counts: Counter[str] = Counter()
    passed = 0
    for row, body in bodies(api):
        assert row.endpoint is not None
        denial = refused(row.endpoint, body, redacting=True)
        what = asked(row.endpoint, body, model_named(row.endpoint, row.path))
        if denial is not None:
            counts[denial.message.partition(":")[0].removeprefix("The request ")] += 1
        elif isinstance(what, Denial):
            counts[what.message] += 1
        else:
            assert what.model is not None, row.id
            assert not row.streamed or what.stream, row.id
            passed += 1
    assert counts == REFUSED.get(api, {})
    assert passed


MEDIA = {"gemini.generate": 73, "gemini.stream": 1, "bedrock.converse": 33, "cohere.chat-v2": 1}
"""How many requests hold media that are read or follow on_unknown, by API."""


@APIS
def test_media_of_recorded_requests_are_found(api: str) -> None:
    found = sum(bool(media.parts(row.endpoint, body)) for row, body in bodies(api) if row.endpoint is not None)
    assert found == MEDIA.get(api, 0)


@APIS
def test_what_people_say_is_found_in_every_request(api: str) -> None:
    seen = 0
    for row, body in bodies(api):
        assert row.endpoint is not None
        places = list(row.family.asks(body))
        for number in range(len(places)):
            planted = copy.deepcopy(body)
            holder, name = list(row.family.asks(planted))[number]
            holder[name] = f"{holder[name]} {KEY} "  # type: ignore[index]  # a key or an index of what holds it
            found = inspect_request(row.endpoint, engine(), always(Action.REDACT), planted)
            assert isinstance(found, Inspected)
            assert KEY.encode() not in found.body, (row.id, number)
            assert "t.key" in {each.rule for each in found.findings}, (row.id, number)
            seen += 1
    assert seen


@APIS
def test_what_models_say_is_found_in_every_whole_answer(api: str) -> None:
    for row in of(api):
        if row.streamed or row.endpoint is None or not row.answer.strip():
            continue
        clean = inspect_answer(row.endpoint, engine(), always(Action.ALLOW), row.answer, status=row.status)
        assert isinstance(clean, Inspected), row.id
        assert clean.body == row.answer, row.id
        value = json.loads(row.answer)
        for holder, name in list(row.family.says(value)):
            before = holder[name]  # type: ignore[index]  # a key or an index of what holds it
            holder[name] = f"{before} {KEY} "  # type: ignore[index]
            planted = json.dumps(value).encode()
            holder[name] = before  # type: ignore[index]
            found = inspect_answer(row.endpoint, engine(), always(Action.REDACT), planted, status=row.status)
            assert isinstance(found, Inspected)
            assert KEY.encode() not in found.body, (row.id, name)
            json.loads(found.body)


@APIS
def test_clean_streams_come_out_as_they_went_in(api: str) -> None:
    for row in of(api):
        if row.streamed and row.endpoint is not None:
            assert row.answered(Action.ALLOW) == row.answer, row.id


COPIES = {"ollama.generate": 2, "bedrock.converse-stream": 2, "bedrock.invoke-stream": 2}
"""Streams that a redacting gate changes although nothing is found, by API: token ids (``context``), traces."""


@APIS
def test_only_second_copies_leave_clean_streams_where_answers_are_masked(api: str) -> None:
    changed = 0
    for row in of(api):
        if row.streamed and row.endpoint is not None:
            out = row.answered(Action.REDACT, rule("nothing", "~~[0-9]{4}~~"))
            assert joined(row, out) == joined(row, row.answer), row.id
            changed += out != row.answer
    assert changed == COPIES.get(api, 0)


@functools.cache
def rule(name: str, pattern: str) -> Engine:
    rules, faults = parse_pack(
        f"pack: w\nclass: words\nversion: 1\nrules:\n  - {{id: {name}, description: a, severity: low, "
        f"pattern: '{pattern}', match: [a, b], pass: [a, b], references: [\"https://example.com/\"]}}\n",
        "w.yaml",
    )
    assert not faults
    return build(rules, None)


def common_words() -> Engine:
    """Make a rule that finds something in most answers, over the edges of deltas."""
    return rule("word", r"\b(?:the|and|you|for|of|is|a) \w{1,20}")


def joined(row: Row, stream: bytes) -> dict[object, str]:
    texts: dict[object, str] = {}
    for event in row.family.events(stream):
        for key, part in row.family.channels(event):
            texts[key] = texts.get(key, "") + part
    return texts


@APIS
def test_what_models_say_is_found_in_every_stream(api: str) -> None:
    masked = 0
    for row in of(api):
        if not row.streamed or row.endpoint is None:
            continue
        before = joined(row, row.answer)
        after = joined(row, row.answered(Action.REDACT, common_words()))
        expected = {
            key: redact(common_words(), always(Action.REDACT), short_name, text)[0] for key, text in before.items()
        }
        assert {key: text for key, text in after.items() if text} == {k: t for k, t in expected.items() if t}, row.id
        masked += sum(text != before[key] for key, text in expected.items())
    assert masked or not any(row.streamed for row in of(api))
