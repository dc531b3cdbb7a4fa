"""Events of a known form are not read again: what leaves is what would leave if each of them were."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire import CARD, FAMILIES, FORMS, KEY, MAIL, Said, answer, dialect, endpoint, run, stream_of
from tidegate import spending
from tidegate.limits.usage import Usage
from tidegate.streams.answers import StreamedAnswer
from tidegate.streams.moulds import MOULDS, TRIES, Moulds, Place

PLACE = Place(("delta", "text"), "some", (0, ()))
FIND = Moulds.find
EVENT = '{"type":"a","delta":{"text":"some"},"index":0}'

words = st.sampled_from(
    [KEY, MAIL, CARD, "some", "a", "sk-", "AbCd1234", " ", ":", ",", '"', "\\", "\n", "é", "index", "text", "tidegate"]
)


def metered(name: str) -> StreamedAnswer:
    gate = answer(name)
    gate.meter = spending.meter(dialect(FORMS[name].dialect), endpoint(name))
    return gate


def fed(gate: StreamedAnswer, stream: bytes, size: int) -> list[tuple[bytes, int, int, Usage, Usage]]:
    """Feed a stream in pieces; return after each what left, and what a client pays that leaves then."""
    meter, found = gate.meter, []
    assert meter is not None
    for at in range(0, len(stream) + size, size):
        out = gate.feed(stream[at : at + size]) if at < len(stream) else gate.end()
        totals = meter.total(90, complete=False), meter.total(90, complete=True)
        found.append((out, meter.pieces, meter.characters, *totals))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("name", FAMILIES)
@given(parts=st.lists(words, min_size=2, max_size=30), size=st.integers(1, 400))
def test_the_same_leaves_as_without(name: str, parts: list[str], size: int) -> None:
    def cut(text: str) -> list[str]:
        return parts if text == "".join(parts) else [text[at : at + 3] for at in range(0, len(text), 3)]

    stream = stream_of(name, Said("".join(parts), "".join(parts[::2]), (json.dumps({"a": parts[0]}),)), cut)
    known, reading = metered(name), metered(name)
    out = fed(known, stream, size)
    with mock.patch.object(Moulds, "find", return_value=None):
        assert out == fed(reading, stream, size)
    assert (known.findings, known.unread, known.held) == (reading.findings, reading.unread, reading.held)


@pytest.mark.parametrize("name", ["completions", "messages", "ollama", "cohere"])
def test_most_of_a_stream_is_known(name: str) -> None:
    stream = stream_of(name, Said(text="all of it is harmless " * 20), lambda text: text.split(" "))
    hits = 0

    def count(self: Moulds, data: str, event: str | None) -> object:
        nonlocal hits
        hits += (told := FIND(self, data, event)) is not None
        return told

    with mock.patch.object(Moulds, "find", count):
        run(answer(name), stream)
    assert hits > 60


def known(event: str = EVENT, place: Place = PLACE, name: str | None = None) -> Moulds:
    moulds = Moulds()
    moulds.learn(event, name, place)
    return moulds


@pytest.mark.parametrize("text", ["other", "é :,{}[]", " ", "\u4e2d\u6587"])
def test_another_text_in_the_same_place(text: str) -> None:
    assert known().find(EVENT.replace("some", text), None) == (PLACE, text)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (EVENT.replace("some", ""), None),
        (EVENT.replace("some", "\\n"), None),
        (EVENT.replace("some", "\\u0041"), None),
        (EVENT.replace("some", "\x07"), None),
        (EVENT.replace("some", '","text":"'), None),
        (EVENT.replace("some", 'a"},"delta":{"text":"b'), None),
        (EVENT.replace('"a"', '"b"'), None),
        (EVENT.replace("0", "1"), None),
        (EVENT + " ", None),
        (EVENT, "a"),
        ('{"type":"a","delta":{"text":"', None),
        ('{"type":"a","delta":{"text":"},"index":0}', None),
    ],
)
def test_what_must_be_read(event: str, name: str | None) -> None:
    assert known().find(event, name) is None


@pytest.mark.parametrize(
    ("event", "place"),
    [
        ('{"type":"some","delta":{"text":"some"}}', PLACE),
        ('{"some":1,"delta":{"text":"some"}}', PLACE),
        ('{"some":1,"delta":{"text":"s\\u006fme"}}', PLACE),
        ('{"delta":{"text":"s\\u006fme"},"x":["some"]}', PLACE),
        ('{"a":"b","delta":{"text":"\\u003a"}}', Place(("delta", "text"), ":", (0, ()))),
        ('{"delta":{"text":""}}', Place(("delta", "text"), "", (0, ()))),
        ('{"delta":{"text":"a\\nb"}}', Place(("delta", "text"), "a\nb", (0, ()))),
    ],
)
def test_what_makes_no_mould(event: str, place: Place) -> None:
    moulds = known(event, place)
    assert moulds.find(event, None) is None
    assert moulds.find(event.replace("some", "other"), None) is None


def test_as_many_as_speak_by_turns() -> None:
    moulds = Moulds()
    for index in range(MOULDS):
        place = Place(("delta", "text"), "some", (index, ()))
        moulds.learn(EVENT.replace("0", str(index)), None, place)
    assert moulds.find(EVENT.replace("some", "x"), None) == (PLACE, "x")
    moulds.learn(EVENT.replace("0", "99"), None, Place(("delta", "text"), "some", (99, ())))
    assert moulds.find(EVENT, None) is None
    moulds.clear()
    assert moulds.find(EVENT.replace("0", "99"), None) is None


def test_a_stream_whose_events_count_themselves_gives_up() -> None:
    moulds = Moulds()
    for number in range(TRIES + 1):
        moulds.learn(EVENT.replace("0", str(number)), None, PLACE)
    assert moulds.find(EVENT.replace("0", str(TRIES)), None) is None
    assert moulds.find(EVENT.replace("0", str(TRIES - 1)), None) is not None
