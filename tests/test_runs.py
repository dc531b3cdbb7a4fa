"""An encoded run in a stream waits for its end, and leaves masked if what it says holds a finding."""

from __future__ import annotations

import base64
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, FAMILIES, KEY, MAIL, PEM, Said, answer, as_sent, engine, every, read, run, stream_of
from tidegate.model import Action
from tidegate.streams.channels import HeldCaps
from tidegate.streams.redactor import Kept, Masked, Noted, Redactor, short_name
from tidegate.streams.runs import TOO_LONG, RunRedactor, hides

CAP = 80
SAID = base64.b64encode(f"the key is {KEY}".encode()).decode()
HEX = f"mail {MAIL}".encode().hex()
PLAIN = base64.b64encode(b"nothing to see here, move along").decode()


def channel(action: Action = Action.REDACT) -> RunRedactor:
    decide = lambda _: action  # noqa: E731
    return RunRedactor(Redactor(engine(), decide, short_name), engine(), decide, CAP)


def said(parts: list[str], action: Action = Action.REDACT) -> tuple[str, list[tuple[str, int, int]]]:
    text = channel(action)
    out = [piece for part in parts for piece in text.feed(part)] + text.end()
    assert text.held == 0
    hits = [(hit.rule.id, hit.start, hit.length) for hit in out if isinstance(hit, Masked | Noted)]
    return "".join(piece.text for piece in out), hits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"here: {SAID} end", "here: [REDACTED:key] end"),
        (f"{HEX}", "[REDACTED:mail]"),
        (f"{PLAIN} and {SAID}.", f"{PLAIN} and [REDACTED:key]."),
        ("x" * CAP + " ok", "x" * CAP + " ok"),
        ("x" * (CAP + 1) + " ok", "[REDACTED:encoded-run] ok"),
        ("x" * (5 * CAP) + "= ok", "[REDACTED:encoded-run]= ok"),
        (f"{CARD} {MAIL} plain", "[REDACTED:card] [REDACTED:mail] plain"),
        ("internationalization is a word", "internationalization is a word"),
    ],
)
def test_a_run_is_masked_as_a_whole(text: str, expected: str) -> None:
    assert said([text])[0] == expected
    assert said(list(text)) == said([text])
    assert hides(engine(), lambda _: Action.REDACT, text, CAP) == ("[REDACTED" in expected and CARD not in text)


def test_what_is_only_flagged_leaves() -> None:
    out, hits = said([f"a {SAID} b"], Action.FLAG)
    assert out == f"a {SAID} b"
    assert [hit[0] for hit in hits] == ["t.key"]


def test_a_run_longer_than_the_cap_is_recorded_as_such() -> None:
    assert said(list("x" * 300))[1] == [(TOO_LONG, 0, CAP)]


FRAGMENTS = [
    SAID,
    HEX,
    PLAIN,
    KEY,
    CARD,
    PEM,
    MAIL,
    " ",
    "=",
    "\n",
    "abc",
    "x" * CAP,
    "é",
    "a-b",
    "-----BEGIN KEY-----",
]


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join), at=st.lists(st.integers(0, 400), max_size=12)
)
def test_every_cut_gives_what_the_whole_gives(text: str, at: list[int]) -> None:
    places = [0, *sorted(min(each, len(text)) for each in at), len(text)]
    whole = said([text])
    for parts in ([text[a:b] for a, b in pairwise(places)], list(text)):
        assert said(parts) == whole
    text_ = channel()
    for part in list(text):
        text_.feed(part)
        assert text_.held <= CAP + 400  # the open run, and the longest match of these rules


def test_held_too_long_a_run_is_masked_to_its_end() -> None:
    text = channel()
    out = [*text.feed(f"a {SAID[:12]}"), *text.expire()]
    assert text.held == 0
    out += [*text.feed(SAID[12:] + " b"), *text.end()]
    assert re.fullmatch(r"a \[REDACTED:[a-z-]+\] b", "".join(piece.text for piece in out))
    assert TOO_LONG in {piece.rule.id for piece in out if isinstance(piece, Masked | Noted)}
    assert any(isinstance(piece, Kept) for piece in out)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [1, 4, 30])
def test_in_every_family_and_in_its_repeats(name: str, size: int) -> None:
    whole = as_sent(name, Said(f"see {SAID} now", f"I think {HEX}."))
    gate = answer(name, caps=HeldCaps(runs=CAP))
    out = run(gate, stream_of(name, whole, every(size)))
    assert gate.denial is None
    assert read(name, out).text == "see [REDACTED:key] now"
    assert read(name, out).thinking in ("I think [REDACTED:mail].", "")
    assert SAID[:10].encode() not in out
    assert HEX[:10].encode() not in out


def test_without_the_key_nothing_is_decoded() -> None:
    assert SAID in read("chat", run(answer("chat"), stream_of("chat", Said(f"see {SAID} now")))).text
