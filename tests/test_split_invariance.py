"""For every way to cut an answer, into deltas and into bytes, a client reads what redacting the whole text gives."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire import (
    CARD,
    FAMILIES,
    KEY,
    MAIL,
    PEM,
    RECORDED,
    ROOT,
    Said,
    always,
    answer,
    as_sent,
    engine,
    every,
    pieces,
    read,
    run,
    stream_of,
)
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import Rule, parse_pack
from tidegate.model import Action
from tidegate.streams.redactor import Redactor, redact, short_name
from tidegate.streams.source import JsonSource
from tidegate.streams.sse import Sse

FRAGMENTS = [
    KEY, MAIL, CARD, PEM, "sk-", "AbCd1234", "-----BEGIN KEY-----", "-----END KEY-----", "jane.doe", "@", ".co",
    "x", " ", "4111", "\n", '"', "\\", "é", "\U0001f600", "password", ":", ", ",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
values = st.dictionaries(st.sampled_from(["a", "password", "key"]), texts, max_size=3)
sources = st.builds(lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only), values, st.booleans())
said = st.builds(Said, texts, texts, st.lists(sources, max_size=2).map(tuple))


def expected(answer: Said, rules: Engine) -> Said:
    def text(part: str) -> str:
        return redact(rules, always(Action.REDACT), short_name, part)[0]

    def source(part: str) -> str:
        channel = JsonSource(Redactor(rules, always(Action.REDACT), short_name))
        return "".join(piece.text for piece in [*channel.feed(part), *channel.end()])

    return Said(text(answer.text), text(answer.thinking), tuple(map(source, answer.tools)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("name", FAMILIES)
@given(answer_=said, size=st.integers(1, 12), draw=st.data())
def test_any_cut_reads_like_the_whole(name: str, answer_: Said, size: int, draw: st.DataObject) -> None:
    whole = as_sent(name, answer_)
    stream = stream_of(name, whole, every(size))
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    gate = answer(name)
    out = run(gate, stream, cuts)
    assert gate.denial is None
    assert read(name, out) == expected(whole, engine())
    assert gate.held == 0
    for source in read(name, out).tools:
        json.loads(source)


@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", FAMILIES)
@given(answer_=said, size=st.integers(1, 12), draw=st.data())
def test_the_cut_of_the_bytes_changes_no_byte(name: str, answer_: Said, size: int, draw: st.DataObject) -> None:
    stream = stream_of(name, as_sent(name, answer_), every(size))
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert run(answer(name), stream, cuts) == run(answer(name), stream)


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", FAMILIES)
@given(answer_=said, size=st.integers(1, 12))
def test_what_is_held_is_bounded_and_nothing_leaves_that_is_masked_later(name: str, answer_: Said, size: int) -> None:
    whole = as_sent(name, answer_)
    final = expected(whole, engine())
    gate, out = answer(name), b""
    for piece in pieces(name, FAMILIES[name](whole, every(size))):
        out += gate.feed(piece)
        now = read(name, out)
        assert final.text.startswith(now.text)
        assert final.thinking.startswith(now.thinking)
        assert gate.held <= 6 * 64  # the longest match of these rules, in JSON source


# ── every rule that ships ────────────────────────────────────────────────────────────────────────────────────────────


@cache
def shipped() -> tuple[tuple[Rule, ...], Engine]:
    rules: list[Rule] = []
    for file in sorted((ROOT / "rules" / "packs").glob("*.yaml")):
        found, faults = parse_pack(file.read_text(), file.name)
        assert not faults
        rules += found
    return tuple(rules), build(rules, DiskCache())


@pytest.mark.parametrize("name", FAMILIES)
def test_examples_of_every_shipped_rule(name: str) -> None:
    rules, all_rules = shipped()
    chance = random.Random(name)
    for rule in (each for each in rules if each.score is None):  # hints take no part in streams
        text = " ".join(f"see {example} end" for example in rule.match)
        whole = as_sent(name, Said(text, tools=(json.dumps({"a": text}),)))
        stream = stream_of(name, whole, every(chance.choice([3, 12, 40])))
        gate = answer(name, rules=all_rules)
        out = run(gate, stream, [chance.randrange(len(stream)) for _ in range(5)])
        final = expected(whole, all_rules)
        assert gate.denial is None, rule.id
        assert read(name, out) == final, rule.id
        assert {finding.rule for finding in gate.findings} >= {rule.id}
        for span in all_rules.find_text(text):
            value = text[span.start : span.end]
            if len(value) > 5 and value not in final.text:
                assert value.encode() not in out, rule.id
                assert json.dumps(value)[1:-1].encode() not in out, rule.id


# ── recorded streams ─────────────────────────────────────────────────────────────────────────────────────────────────

APIS = {
    "openai.chat": "chat",
    "openai.completions": "completions",
    "openai.responses": "responses",
    "anthropic.messages": "messages",
}


def recorded(path: Path = RECORDED) -> Iterator[tuple[str, str, bytes]]:
    if not path.exists():
        pytest.skip("the recorded exchanges are not on this machine")
    with gzip.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            body = row["response"]["body"]
            if row["api"] in APIS and isinstance(body, str) and body.startswith(("data:", "event:", ":")):
                yield row["id"], APIS[row["api"]], body.encode()


def test_recorded_streams_come_out_as_they_went_in() -> None:
    chance = random.Random(0)
    seen = 0
    for row, name, stream in recorded():
        gate = answer(name, Action.ALLOW)
        out = run(gate, stream, [chance.randrange(len(stream) + 1) for _ in range(20)])
        assert gate.denial is None, row
        if not _ends_inside_an_escape(stream):  # half an escape waits for its other half, whatever the rules
            assert out == stream, row
        assert _channels(out, source=True) == _channels(stream, source=True), row
        seen += 1
    assert seen > 400


def test_recorded_streams_lose_nothing_but_mail_and_second_copies() -> None:
    chance = random.Random(1)
    for row, name, stream in recorded():
        gate = answer(name, lambda rule: Action.REDACT if rule.id == "t.mail" else Action.ALLOW)
        out = run(gate, stream, [chance.randrange(len(stream) + 1) for _ in range(20)])
        assert gate.denial is None, row
        assert _channels(out) == {
            key: redact(
                engine(), lambda rule: Action.REDACT if rule.id == "t.mail" else Action.ALLOW, short_name, text
            )[0]
            for key, text in _channels(stream).items()
        }, row


def _ends_inside_an_escape(stream: bytes) -> bool:
    return any(part.endswith("\\") for key, part in _parts(stream) if "arguments" in key)


def _channels(stream: bytes, *, source: bool = False) -> dict[str, str]:
    """Join the texts of a recorded stream by channel, tool arguments too where they are asked for."""
    texts: dict[str, str] = {}
    for key, part in _parts(stream):
        if source or "arguments" not in key:
            texts[key] = texts.get(key, "") + part
    return texts


def _parts(stream: bytes) -> Iterator[tuple[str, str]]:
    parser = Sse()
    for event in [*parser.feed(stream), *parser.end()]:
        if event.data and event.data != "[DONE]":
            for where, part in _said(json.loads(event.data)):
                if isinstance(part, str):
                    yield " ".join(map(str, where)), part


def _said(value: dict) -> Iterator[tuple[tuple[object, ...], object]]:
    indexes = [value.get(name) for name in ("type", "output_index", "content_index", "summary_index", "index")]
    delta = value.get("delta")
    if isinstance(delta, dict):
        yield (*indexes, "text"), delta.get("text")
        yield (*indexes, "thinking"), delta.get("thinking")
        yield (*indexes, "arguments"), delta.get("partial_json")
    else:
        yield tuple(indexes), delta
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        for name in ("content", "reasoning", "reasoning_content"):
            yield (choice.get("index"), name), delta.get(name)
        for call in delta.get("tool_calls") or ():
            yield (choice.get("index"), "arguments", call.get("index")), (call.get("function") or {}).get("arguments")
        yield (choice.get("index"), "text"), choice.get("text")
