"""Every way of cutting gives one answer, at scale: planted examples, exhaustive cuts, an outside judge, every ending.

By default about 20,000 splits. ``TIDEGATE_CAMPAIGN=20 pytest tests/test_stream_campaign.py`` plants twenty times as
many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from chunk_invariance import assert_chunk_invariant

from tests.test_split_invariance import expected, shipped
from tests.wire import (
    CARD,
    FAMILIES,
    KEY,
    MAIL,
    PEM,
    Said,
    answer,
    as_sent,
    engine,
    every,
    pieces,
    read,
    run,
    stream_of,
)
from tidegate.inspection.rules import Rule
from tidegate.model import Denial, Reason
from tidegate.streams.framing import Frame

ROUNDS = int(os.environ.get("TIDEGATE_CAMPAIGN", "1"))
PROSE = (
    "the report lists orders that left our harbour last week before noon and says which of them still wait for a crane "
    "so read its first page twice\nand write two lines; it is é plain, and Größe costs nothing."
)
WORDS = PROSE.split(" ")
FIXED = [
    f"a {CARD} b",
    f"{KEY}{MAIL}",
    f"x {PEM} y",
    f'"password": "{KEY}"',
    f"{CARD} {CARD}é{MAIL}",
    "-----BEGIN KEY-----\nab",
]
names = pytest.mark.parametrize("name", FAMILIES)


@cache
def planted() -> tuple[tuple[Rule, str], ...]:
    """Return every example of every rule that streams are searched with."""
    return tuple((rule, example) for rule in shipped()[0] if rule.score is None for example in rule.match)


def anyhow(said: str, chance: random.Random) -> list[str]:
    """Cut a text into pieces of many sizes."""
    found, at = [], 0
    while at < len(said):
        size = chance.choice((1, 2, 3, 5, 8, 13, 40))
        found.append(said[at : at + size])
        at += size
    return found


@names
def test_examples_at_random_places(name: str) -> None:
    """Plant each example once in some family; in the campaign, in many places of all of them."""
    every_rule = shipped()[1]
    number = list(FAMILIES).index(name)
    for turn in range(ROUNDS):
        chance = random.Random(f"{name} {turn}")
        for rule, example in planted()[(number + turn) % len(FAMILIES) :: len(FAMILIES)]:
            words = chance.choices(WORDS, k=chance.randint(0, 12))
            words.insert(chance.randint(0, len(words)), example)
            text = " ".join(words)
            whole = as_sent(name, Said(text))
            stream = stream_of(name, whole, lambda said, chance=chance: anyhow(said, chance))
            gate = answer(name, rules=every_rule)
            out = run(gate, stream, [chance.randrange(len(stream)) for _ in range(4)])
            assert gate.denial is None, rule.id
            assert read(name, out) == expected(whole, every_rule), (rule.id, turn)


@names
def test_every_cut_of_the_bytes_in_two(name: str) -> None:
    """The judge is ``chunk-invariance``, which knows nothing of this code."""
    stream = stream_of(name, Said(f"is {CARD} ok"), every(9))
    whole = b"".join(fed(name, [stream]))
    assert CARD[:6].encode() not in whole
    assert assert_chunk_invariant(lambda chunks: fed(name, chunks), lambda _: whole, stream) >= len(stream)


def fed(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    gate = answer(name)
    yield from map(gate.feed, chunks)
    yield gate.end()


@names
@pytest.mark.parametrize("text", FIXED, ids=["card", "key and mail", "marker", "value", "touching", "open marker"])
def test_every_cut_of_the_text_in_two(name: str, text: str) -> None:
    def streamed(chunks: Iterable[str]) -> str:
        cut = list(chunks)
        return read(name, run(answer(name), stream_of(name, Said(text), lambda _: cut))).text

    def whole(_: str) -> str:
        return expected(Said(text), engine()).text

    assert assert_chunk_invariant(streamed, whole, text) >= len(text)


STOP = Denial(Reason.ANSWER_IDLE, 502, "The answer took too long.")


@names
def test_an_end_at_every_frame(name: str) -> None:
    """Stopped from outside, nothing held leaves; where the upstream ends, what leaves is the text so far, masked."""
    text = f"see {CARD} and {KEY} now"
    sent = pieces(name, FAMILIES[name](as_sent(name, Said(text)), every(3)))
    for count in range(len(sent) + 1):
        stopped, ended = answer(name), answer(name)
        out = b"".join(stopped.feed(piece) for piece in sent[:count])
        held = stopped.held
        last = stopped.stop(STOP)
        assert stopped.denial is STOP
        assert b"too long" in last or (count == len(sent) and not last)  # an array that is closed stays so
        assert stopped.feed(sent[count] if count < len(sent) else b"x") == b""
        assert stopped.end() == b""
        said = _said(name, out + last)
        assert expected(Said(text), engine()).text.startswith(said), count
        assert held <= len(CARD) + len(KEY)
        whole = b"".join(ended.feed(piece) for piece in sent[:count]) + ended.end()
        if ended.denial is None and count:
            so_far = _said(name, b"".join(sent[:count]))
            assert _said(name, whole) == expected(Said(so_far), engine()).text, count


def _said(name: str, stream: bytes) -> str:
    """Read what a client has so far; an array that is not closed is closed first."""
    try:
        return read(name, stream).text
    except (AssertionError, ValueError, KeyError):
        return read(name, stream.rstrip(b"\r\n, ") + b"]").text if name == "gemini array" else ""


def test_frames_hide_their_text() -> None:
    assert CARD not in repr(Frame(CARD.encode(), None, CARD))
