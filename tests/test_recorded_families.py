"""Every recorded HTTP exchange, each through the real dialect code; what is left out is in ``NOT_SERVED``."""

from __future__ import annotations

import copy
import functools
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.recorded import FAMILIES, Row, api_of, rows
from tests.wire import KEY, RECORDED, always, engine
from tidegate.dialects.addresses import model_named
from tidegate.dialects.asking import asked
from tidegate.dialects.body import strict_json
from tidegate.dialects.spec import refused
from tidegate.inspection import media
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import Rule, parse_pack
from tidegate.model import Action, Denial
from tidegate.streams.redactor import redact, short_name

pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not on this machine")
APIS = pytest.mark.parametrize("api", FAMILIES)


def of(api: str) -> Iterator[Row]:
    yield from (row for row in rows() if row.api == api)


def bodies(api: str) -> Iterator[tuple[Row, dict]]:
    for row in of(api):
        body = strict_json(row.request) if row.request else None
        if isinstance(body, dict) and row.endpoint is not None:
            yield row, body


@dataclass(frozen=True)
class Left:
    """How many exchanges are an exception, and why."""

    number: int
    why: str


NOT_SERVED = {
    "a2a": Left(7, "JSON-RPC, no dialect of this table"),
    "batches": Left(10, "kept at the provider, to be fetched later"),
    "files": Left(14, "forms, and files kept at the provider"),
    "gemini.live-ws": Left(8, "a WebSocket"),
    "openai.assistants": Left(51, "kept at the provider, behind ids"),
    "openai.audio": Left(5, "forms, and answers in sound"),
    "openai.conversations": Left(3, "kept at the provider, behind ids"),
    "openai.images": Left(7, "forms, and answers in pictures"),
    "openai.realtime-rest": Left(3, "hands out a secret, or a description of a call, which lead past the gate"),
    "openai.realtime-ws": Left(23, "a WebSocket"),
    "replicate.predictions": Left(1, "an answer to be fetched later by an address of the provider"),
}
"""What is recorded and goes through no dialect here, by API: how many exchanges, and why."""


def test_every_exchange_is_served_or_has_a_reason_not_to_be() -> None:
    left: Counter[str] = Counter()
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if api_of(row) not in FAMILIES:
                left[row["api"]] += 1
    assert left == {api: each.number for api, each in NOT_SERVED.items()}
    assert len(rows()) + sum(left.values()) == 3615


_ARN = "an inference profile by its ARN has an encoded slash, which is refused everywhere"
NO_ENDPOINT = {
    "bedrock.converse": Left(2, _ARN),
    "bedrock.invoke": Left(1, _ARN),
}
"""Requests whose path is no endpoint, by API."""

NONE = Left(0, "")

_OWN_MODEL = "the address, which is not the API's own here, or the server chooses it"
UNNAMED = {
    "openai.completions": Left(2, _OWN_MODEL),
    "cohere.chat-v1": Left(1, _OWN_MODEL),
    "rerank": Left(1, _OWN_MODEL),
    "hf.models": Left(1, _OWN_MODEL),
}
"""Requests that name no model, by API: a role grants them only where it leaves ``models`` out."""

REFUSED: dict[str, dict[str, int]] = {
    "openai.chat": {
        "The request body is malformed: it names more than one model.": 1,
        "uses $.messages[*].content[*].file.file_id": 2,
    },
    "openai.completions": {"uses $.prompt[*]": 3},
    "openai.responses": {
        "uses $.conversation": 4,
        "uses $.previous_response_id": 8,
        "uses $.tools[*].vector_store_ids": 3,
        "uses $.input[*].content[*].file_id": 3,
        "uses $.input[*].output[*].file_id": 1,
        "uses $.tools[*].server_url": 4,
        "uses $.tools[*].container.file_ids": 1,
        "asks for $.include[*]": 1,
    },
    "openai.embeddings": {"uses $.input[*]": 7},
    "anthropic.messages": {
        "uses $.container": 2,
        "uses $.messages[*].content[*].content[*].source.file_id": 1,
        "uses $.messages[*].content[*].file_id": 2,
        "uses $.messages[*].content[*].source.file_id": 1,
    },
    "gemini.generate": {
        "uses $['cachedContent','cached_content']": 1,
        "uses $.tools[*]['fileSearch','file_search']": 2,
        "asks for $['generationConfig','generation_config'].logprobs": 3,
    },
    "gemini.embed": {"uses $.requests..['inlineData','inline_data','fileData','file_data']": 1},
    "gemini.interactions": {"uses $.background": 1},
    "bedrock.converse": {"asks for $.guardrailConfig.trace": 1},
    "bedrock.converse-stream": {"asks for $.guardrailConfig.trace": 2},
    "bedrock.invoke": {"uses $.messages[*].content[*].type": 2},
    "count_tokens bedrock": {"uses $.input.invokeModel": 2},
    "cohere.chat-v1": {"uses $.connectors": 1},
    "cohere.generate": {"The request body is malformed: the model is not a text.": 2},
}
"""How many requests are refused, by API and by what they hold."""


def only_keys(rule: Rule) -> Action:
    """Mask what is planted, and nothing else that these texts may hold."""
    return Action.REDACT if rule.id == "t.key" else Action.ALLOW


GONE = {"signature", "logprobs", "logprobsResult", "context", "trace"}


def unsigned(value: object) -> object:
    """Leave out what belongs to a masked text and goes with it: its signature, and second copies of it."""
    if isinstance(value, dict):
        return {key: unsigned(each) for key, each in value.items() if key not in GONE}
    return [unsigned(each) for each in value] if isinstance(value, list) else value


@APIS
def test_every_request_has_its_endpoint(api: str) -> None:
    missed = sum(row.endpoint is None for row in of(api))
    assert missed == NO_ENDPOINT.get(api, NONE).number


@APIS
def test_only_what_cannot_be_read_is_refused(api: str) -> None:
    counts: Counter[str] = Counter()
    passed = unnamed = 0
    for row, body in bodies(api):
        assert row.endpoint is not None
        denial = refused(row.endpoint, body, redacting=True)
        what = asked(row.endpoint, body, model_named(row.endpoint, row.path))
        if denial is not None:
            counts[denial.message.partition(":")[0].removeprefix("The request ")] += 1
        elif isinstance(what, Denial):
            counts[what.message] += 1
        else:
            unnamed += what.model is None
            assert not row.streamed or what.stream, row.id
            passed += 1
    assert counts == REFUSED.get(api, {})
    assert unnamed == UNNAMED.get(api, NONE).number
    assert passed


MEDIA = {
    "openai.chat": 33, "openai.chat mistral": 4, "openai.responses": 19, "openai.moderations": 1,
    "anthropic.messages": 27, "gemini.generate": 73, "gemini.stream": 1, "gemini.interactions": 1,
    "bedrock.converse": 33, "cohere.chat-v2": 1,
}  # fmt: skip
"""How many requests hold media that are read or follow on_unknown, by API."""


@APIS
def test_media_of_recorded_requests_are_found(api: str) -> None:
    found = sum(bool(media.parts(row.endpoint, body)) for row, body in bodies(api) if row.endpoint is not None)
    assert found == MEDIA.get(api, 0)


@APIS
def test_clean_requests_say_the_same(api: str) -> None:
    for row, body in bodies(api):
        assert row.endpoint is not None
        before = copy.deepcopy(body)
        found = inspect_request(row.endpoint, engine(), always(Action.ALLOW), body)
        assert isinstance(found, Inspected)
        assert json.loads(found.body) == before, row.id


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
            found = inspect_request(row.endpoint, engine(), only_keys, planted)
            assert isinstance(found, Inspected)
            assert "t.key" in {each.rule for each in found.findings}, (row.id, number)
            masked = copy.deepcopy(body)
            holder, name = list(row.family.asks(masked))[number]
            holder[name] = f"{holder[name]} [REDACTED:key] "  # type: ignore[index]
            assert unsigned(json.loads(found.body)) == unsigned(masked), (row.id, number)
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
        value = strict_json(row.answer)
        if isinstance(value, Denial):  # an error may be a plain text
            assert row.status >= 400
            mark = f" {KEY} ".encode()
            found = inspect_answer(row.endpoint, engine(), always(Action.REDACT), row.answer + mark, status=row.status)
            assert isinstance(found, Inspected)
            assert KEY.encode() not in found.body
            continue
        for holder, name in list(row.family.says(value)):
            before = holder[name]  # type: ignore[index]  # a key or an index of what holds it
            holder[name] = f"{before} {KEY} "  # type: ignore[index]
            planted = json.dumps(value).encode()
            holder[name] = f"{before} [REDACTED:key] "  # type: ignore[index]
            masked = copy.deepcopy(value)
            holder[name] = before  # type: ignore[index]
            found = inspect_answer(row.endpoint, engine(), only_keys, planted, status=row.status)
            assert isinstance(found, Inspected)
            assert unsigned(json.loads(found.body)) == unsigned(masked), (row.id, name)


@APIS
def test_clean_streams_come_out_as_they_went_in(api: str) -> None:
    changed = []
    for row in of(api):
        if row.streamed and row.endpoint is not None:
            out = row.answered(Action.ALLOW)
            if out != row.answer:
                changed.append(row.id)
                assert joined(row, out) == joined(row, row.answer), row.id
    assert changed == HALF_ESCAPES.get(api, [])


HALF_ESCAPES = {"openai.chat": ["f442ddf03c5c9897"]}
"""Streams in which a delta of JSON source ends inside an escape, by API: its half waits for the other half."""

COPIES = {
    "openai.chat": 4, "cohere.chat-v1 writer": 5, "openai.responses": 1,
    "ollama.generate": 2, "bedrock.converse-stream": 2, "bedrock.invoke-stream": 2,
}  # fmt: skip
"""Streams that a redacting gate changes although nothing is found, by API: tokens, token ids (``context``), traces,
the answer so far beside each delta; and half an escape that waits."""


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
    assert masked or not any(row.streamed for row in of(api)) or api in FEW_WORDS


FEW_WORDS = {"anthropic.complete", "vertex.rawPredict"}
"""Whose recorded streams say a few words that this rule does not know."""
