"""The pure parts of name recognition: labels, pieces of a text, and words that become spans."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.inspection.ner.spans import CHARS_PER_TOKEN, OVERLAP, Word, batches, joined, pieces, readable
from tidegate.inspection.ner.spec import NerSpan, begins, entities, entity

LABELS = {
    "nothing": ("O", "", False),
    "first of an entity": ("B-PER", "PER", True),
    "inside": ("I-PER", "PER", False),
    "a single token": ("S-LOC", "LOC", True),
    "a unit": ("U-LOC", "LOC", True),
    "the last": ("L-LOC", "LOC", False),
    "with an underscore": ("B_PER", "PER", True),
    "an entity of several words": ("I-GIVEN_NAME", "GIVEN_NAME", False),
    "without a prefix": ("PER", "PER", False),
}


@pytest.mark.parametrize(("label", "kind", "first"), LABELS.values(), ids=LABELS)
def test_a_label_is_a_prefix_and_an_entity(label: str, kind: str, first: bool) -> None:
    assert (entity(label), begins(label)) == (kind, first)


def test_entities_are_named_once() -> None:
    assert entities(("O", "B-PER", "I-PER", "LOC")) == ("LOC", "PER")


def words(text: str, *found: tuple[str, str, bool]) -> list[Word]:
    """Give the first occurrence of each text an entity, whose class is the same in lower case."""
    out = []
    for part, kind, first in found:
        at = text.index(part)
        out.append(Word(at, at + len(part), "names" if kind in ("GIVEN", "SUR", "PER") else "places", kind, first))
    return out


SPANS = {
    "one word": ("I am Alice.", [("Alice", "PER", True)], ["Alice"]),
    "two words of one entity": (
        "Alice Johnson",
        [("Alice", "PER", True), ("Johnson", "PER", False)],
        ["Alice Johnson"],
    ),
    "another entity of the same kind": ("Alice Bob", [("Alice", "PER", True), ("Bob", "PER", True)], ["Alice", "Bob"]),
    "two kinds of one class": (
        "Alice Johnson",
        [("Alice", "GIVEN", True), ("Johnson", "SUR", True)],
        ["Alice Johnson"],
    ),
    "two classes": ("Alice Berlin", [("Alice", "PER", True), ("Berlin", "LOC", True)], ["Alice", "Berlin"]),
    "a comma parts": ("Alice, Johnson", [("Alice", "PER", True), ("Johnson", "PER", False)], ["Alice", "Johnson"]),
    "an apostrophe does not": ("O'Neill", [("O", "PER", True), ("Neill", "PER", False)], ["O'Neill"]),
    "a hyphen does not": ("Jean-Luc", [("Jean", "PER", True), ("Luc", "PER", False)], ["Jean-Luc"]),
    "a word between": ("Alice and Johnson", [("Alice", "PER", True), ("Johnson", "PER", False)], ["Alice", "Johnson"]),
    "punctuation in the word": ('said "Alice", and', [('"Alice",', "PER", True)], ["Alice"]),
    "white space in the word": ("I am Alice", [(" Alice", "PER", True)], ["Alice"]),
    "nothing but punctuation": ("a ... b", [("...", "PER", True)], []),
}


@pytest.mark.parametrize(("text", "found", "expected"), SPANS.values(), ids=SPANS)
def test_words_join_to_spans(text: str, found: list[tuple[str, str, bool]], expected: list[str]) -> None:
    own = words(text, *found)
    for order in (own, own[::-1], own * 2):
        assert [text[each.start : each.end] for each in joined(text, order)] == expected


def test_what_two_windows_saw_of_one_name_is_one_span() -> None:
    text = "Alice Johnson"
    halves = [Word(0, 5, "names", "PER", True), Word(0, 13, "names", "PER", True), Word(6, 13, "names", "PER", True)]
    assert joined(text, halves) == (NerSpan("names", 0, 13),)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d" * 60, " ", "\n"]), max_size=200), st.integers(16, 24))
@example(["bb", " "] * 60, 16)
@example(["a", " ", "ccc", " "] * 60, 17)
def test_every_piece_stands_where_it_says_and_nothing_is_left_out(parts: list[str], length: int) -> None:
    text = "".join(parts)
    found = list(pieces(text, length))
    assert all(text[base : base + len(piece)] == piece for base, piece in found)
    assert found[0][0] == 0
    assert found[-1][0] + len(found[-1][1]) == len(text)
    assert all(len(piece) <= length * CHARS_PER_TOKEN for _, piece in found)
    short = length * CHARS_PER_TOKEN // OVERLAP // 2
    for word in re.finditer(r"\S+", text):
        if len(word[0]) <= short:
            assert any(base <= word.start() and word.end() <= base + len(piece) for base, piece in found)


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(16, 512))
def test_batches_hold_every_window_once_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    groups = list(batches(sizes, most))
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or max(sizes[index] for index in group) * len(group) <= most


def test_lone_surrogates_are_replaced_one_by_one() -> None:
    assert readable("a\ud800b\udfff") == "a\ufffdb\ufffd"
    assert readable("a\U0001f600b") == "a\U0001f600b"
