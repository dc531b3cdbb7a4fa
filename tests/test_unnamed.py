"""A field that no dialect names: what is cut over several events is not let through, and labels stay as they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, MAIL, Said, always, answer, chat, engine, run, sse
from tidegate.model import Action
from tidegate.streams.unnamed import BEGUN, MAX_PLACES, Unnamed


def events(pieces: list[str], **more: object) -> bytes:
    """Write a chat stream in which a field of the vendor's own carries these pieces, one an event."""
    made = chat(Said("hello"), list)
    first, rest = made[0], made[1:]
    out = [first]
    for piece in pieces:
        value = json.loads(json.dumps(first[1]))
        value["choices"][0]["delta"] = {"vendor_note": piece, **more}
        out.append((None, value))
    return sse([*out, *rest])


def notes(stream: bytes) -> list[str]:
    found = []
    for line in stream.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                found += [choice["delta"]["vendor_note"]] if "vendor_note" in choice["delta"] else []
    return found


@settings(max_examples=200, deadline=None)
@given(
    secret=st.sampled_from([KEY, CARD]),
    before=st.sampled_from(["", "the ", "it is said that the key "]),
    size=st.integers(1, 12),
)
def test_no_more_leaves_of_a_cut_value_than_its_beginning(secret: str, before: str, size: int) -> None:
    text = f"{before}{secret} and so on"
    gate = answer("chat")
    out = run(gate, events([text[at : at + size] for at in range(0, len(text), size)]))
    said = "".join(notes(out))
    shown = max(len(part) for part in _parts(secret) if part in said) if any(p in said for p in _parts(secret)) else 0
    assert shown <= max(size, BEGUN) + size
    assert shown < len(secret)
    assert said.startswith(before)
    assert said.endswith("so on")
    assert gate.denial is None
    assert any(finding.where.endswith("vendor_note") for finding in gate.findings)


def _parts(secret: str) -> list[str]:
    return [secret[:end] for end in range(1, len(secret) + 1)]


def test_equal_pieces_count_too() -> None:
    out = run(answer("chat"), events(["4111", "1111", "1111", "1111", " ok"]))
    assert notes(out) == ["4111", "[REDACTED:card]", "", "", " ok"]


def test_a_mail_address_cut_in_two_loses_its_end() -> None:
    out = run(answer("chat"), events([MAIL[:9], MAIL[9:], " ok"]))
    assert notes(out) == [MAIL[:9], "[REDACTED:mail]", " ok"]


@pytest.mark.parametrize(
    "pieces",
    [
        ["v1"] * 5,
        ["running", "running", "done"],
        ["2026-11-28T10:00:00Z", "2026-11-28T10:00:01Z"],
        ["0.10", "0.25", "0.99"],
        ["see https://example.org/a", "see https://example.org/b"],
        ["jane", "joe", "jim"],
    ],
)
def test_labels_leave_as_they_came(pieces: list[str]) -> None:
    gate = answer("chat")
    assert notes(run(gate, events(pieces))) == pieces
    assert gate.findings == ()


def test_a_blocked_value_ends_the_answer_when_it_is_whole() -> None:
    gate = answer("chat", Action.BLOCK)
    run(gate, events([KEY[:10], KEY[10:], " x"]))
    assert gate.denial is not None


def test_what_only_names_an_event_is_not_joined() -> None:
    made = events([CARD[:8], CARD[8:]]).replace(b"vendor_note", b"vendor_note_id")
    out = run(answer("chat"), made)
    assert CARD[8:].encode() in out


def test_places_are_bounded() -> None:
    follower = Unnamed(engine(), always(Action.REDACT))
    for number in range(MAX_PLACES + 1):
        follower.follow(number, CARD[:8])
    assert follower.follow(0, CARD[8:]) is None  # forgotten
    assert follower.follow(MAX_PLACES, CARD[8:]) is not None
