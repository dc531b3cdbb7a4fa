"""Recorded sessions of OpenAI Realtime and Gemini Live, each through a real two-way socket."""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.live import LIVE, asks, joined, opened, tells
from tests.test_recorded_families import common_words, rule
from tests.wire import KEY, RECORDED, always
from tidegate.model import Action, OnUnknown, Outcome, Scanned
from tidegate.steps import Relay
from tidegate.streams.redactor import redact, short_name

APIS = {"openai.realtime-ws": "realtime", "gemini.live-ws": "live"}
pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not on this machine")


@dataclass(frozen=True)
class Session:
    """What a client and an upstream said in one recorded session."""

    id: str
    family: str
    client: tuple[dict[str, Any], ...]
    upstream: tuple[dict[str, Any], ...]

    @property
    def clean(self) -> list[bytes]:
        return [json.dumps(event).encode() for event in self.upstream]


@cache
def sessions() -> tuple[Session, ...]:
    found = []
    with gzip.open(RECORDED) as lines:
        for line in lines:
            row = json.loads(line)
            if row["api"] in APIS:
                said = (tuple(map(json.loads, row[side]["body"].split("\n"))) for side in ("request", "response"))
                found.append(Session(row["id"], APIS[row["api"]], *said))
    return tuple(found)


BOTH = pytest.mark.parametrize("family", ["realtime", "live"])


def of(family: str) -> Iterator[Session]:
    yield from (each for each in sessions() if each.family == family)


def test_the_corpus_has_sessions_of_both() -> None:
    assert Counter(each.family for each in sessions()) == {"realtime": 23, "live": 8}


@BOTH
def test_clean_sessions_come_out_as_they_went_in(family: str) -> None:
    """The client's messages as JSON, the upstream's byte for byte. Sound passes, and is told of."""
    spoken = 0
    for session in of(family):
        socket = opened(family, action=Action.REDACT, on_unknown=OnUnknown.FLAG, rules=rule("nothing", "~~[0-9]{4}~~"))
        for message in session.client:
            step = socket.client(asks(message))
            assert isinstance(step, Relay)
            assert (step.down, step.close) == ((), None), (session.id, step)
            assert [json.loads(each) for each in step.up] == [message], session.id
        out = [data for event in session.clean for data in socket.upstream(tells(event)).down]
        assert out == session.clean, session.id
        assert socket.held == 0
        assert socket.denial is None
        assert not socket.busy, session.id
        spoken += socket.scanned is Scanned.PARTLY
    assert spoken == {"realtime": 12, "live": 8}[family]


REFUSED = {
    "realtime": Counter({"client asks for sound": 5, "upstream speaks": 7, "text alone": 11}),
    "live": Counter({"client asks for sound": 8}),
}
"""What is refused first where a connection blocks what cannot be scanned, by number of sessions. Seven sessions ask
for nothing, and their provider (x.ai) speaks by itself."""


@BOTH
def test_spoken_sessions_are_refused_by_default(family: str) -> None:
    counts: Counter[str] = Counter()
    for session in of(family):
        socket = opened(family)
        first = "text alone"
        for message in session.client:
            step = socket.client(asks(message))
            assert isinstance(step, Relay)
            if not step.up:
                first = "client asks for sound"
                break
        if first == "text alone":
            for event in session.clean:
                if socket.upstream(tells(event)).close is not None:
                    first = "upstream speaks"
                    break
        counts[first] += 1
    assert counts == REFUSED[family]


def words_of(value: object) -> Iterator[tuple[Any, Any]]:
    """Find the places of a person's words in a message."""
    if isinstance(value, dict):
        for name, child in value.items():
            if name in ("text", "instructions", "output", "transcript") and isinstance(child, str) and child:
                yield value, name
            else:
                yield from words_of(child)
    elif isinstance(value, list):
        for child in value:
            yield from words_of(child)


@BOTH
def test_what_people_say_is_found_in_every_message(family: str) -> None:
    seen = 0
    for session in of(family):
        for index, message in enumerate(session.client):
            for number in range(len(list(words_of(message)))):
                planted = copy.deepcopy(message)
                holder, name = list(words_of(planted))[number]
                holder[name] = f"{holder[name]} {KEY} "
                socket = opened(family, on_unknown=OnUnknown.FLAG)
                socket._model = "m"  # the setup came before
                step = socket.client(asks(planted))
                assert isinstance(step, Relay)
                assert not step.up, (session.id, index)
                assert KEY not in step.reason
                assert KEY.encode() not in b"".join(step.down)
                assert [each.rule for each in socket.prompt_findings] == ["t.key"]
                seen += 1
    assert seen > {"realtime": 60, "live": 20}[family]


@BOTH
def test_what_models_say_is_masked_as_one_text(family: str) -> None:
    """Every channel reads like the redaction of its whole text, and so do its repeats."""
    masked = 0
    for session in of(family):
        socket = opened(family, common_words(), on_unknown=OnUnknown.FLAG, prompts=Action.ALLOW)
        out: list[dict[str, Any]] = []
        turns: list[dict[object, str]] = [{}]
        got: list[dict[object, str]] = [{}]
        for event in session.upstream:
            events = [json.loads(data) for data in socket.upstream(tells(event)).down]
            out += events
            turns[-1] = merged(turns[-1], joined(family, [event]))
            got[-1] = merged(got[-1], joined(family, events))
            if (event.get("serverContent") or {}).get("turnComplete"):
                turns.append({})
                got.append({})
        for before, after in zip(turns, got, strict=True):
            expected = {
                key: redact(common_words(), always(Action.REDACT), short_name, text)[0] for key, text in before.items()
            }
            assert after == expected, session.id
            masked += expected != before
        if family == "realtime":
            repeats(out)
    assert masked


def merged(one: dict[object, str], other: dict[object, str]) -> dict[object, str]:
    return {key: one.get(key, "") + other.get(key, "") for key in {**one, **other}}


def repeats(events: list[dict[str, Any]]) -> None:
    """Check that what is said again at the end of a text is what its deltas said."""
    texts: dict[object, str] = {}
    names = ("response_id", "item_id", "output_index", "content_index")
    for event in events:
        kind, _, what = event["type"].rpartition(".")
        key = (kind, *(event.get(name) for name in names))
        if what == "delta" and not kind.endswith("audio"):
            texts[key] = texts.get(key, "") + event["delta"]
        elif what == "done" and key in texts:
            whole = next(event[name] for name in ("text", "transcript", "arguments") if name in event)
            assert whole == texts[key]


@BOTH
def test_a_session_may_end_between_answers(family: str) -> None:
    for session in of(family):
        socket = opened(family, on_unknown=OnUnknown.FLAG, prompts=Action.ALLOW, action=Action.ALLOW)
        for message in session.client:
            socket.client(asks(message))
        for event in session.clean:
            socket.upstream(tells(event))
        assert socket.turns > 0
        socket.rest()
        assert socket.outcome is Outcome.ANSWERED


assert set(LIVE) >= set(APIS.values())
