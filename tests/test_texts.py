"""Texts as JSON writes them, with their escapes undone."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tidegate.dialects.body import dump
from tidegate.streams.texts import _unescaped

ESCAPED = st.text(
    st.sampled_from(["\\", '"', "\n", "\t", "\r", "\b", "\f", "u", "x", "n", "0", "é", "😀", "\x7f", "/"])
)


@given(ESCAPED | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_the_escapes_of_a_text_are_undone(text: str) -> None:
    assert _unescaped(dump(text)) == f'"{text}"'.encode()


@given(st.text(st.sampled_from(["\\", '"', "\n", "u", "0", "\x00", "\x1b", "é"])))
def test_the_escapes_of_control_characters_stay(text: str) -> None:
    kept = {at: json.dumps(at)[1:-1] for at in ("\x00", "\x1b")}
    assert _unescaped(dump(text)) == f'"{"".join(kept.get(each, each) for each in text)}"'.encode()
