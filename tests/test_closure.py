"""The closure of a pattern matches exactly the beginnings of its matches, and whole matches."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matching import POOL
from tidegate.inspection.closure import PatternError, read
from tidegate.inspection.patterns import compile_re2


@pytest.mark.parametrize(
    ("pattern", "closure"),
    [
        ("abc", "a(?:bc?)?"),
        ("a{20,40}", "a{1,40}"),
        ("a{2}b", "a{1,2}|a{2}b"),
        ("(?:ab){1,3}", "(?:ab){0,2}ab?"),
        ("(?:ab|c)d", "ab?|c|(?:ab|c)d"),
        (r"\bab\b", r"\bab?"),
        (r"a\b@", r"a(?:\b\x40)?"),
        ("(?P<value>a)b", "ab?"),
        ("a{0}b", "b"),
        ("a?b", "a|a?b"),
    ],
    ids=lambda each: each,
)
def test_the_closure_of(pattern: str, closure: str) -> None:
    assert read(pattern).closure.replace("(?:b(?:c)?)?", "(?:bc?)?").replace("(?:b)?", "b?") == closure


@pytest.mark.parametrize("pattern", [each.pattern for each in POOL] + [each.end for each in POOL if each.end])
def test_a_closure_matches_every_beginning_of_a_match_and_nothing_else(pattern: str) -> None:
    known = read(pattern)
    live = compile_re2(rf"\A(?:{known.closure})\z")
    alphabet, length = (b"abcxX1@<> ", 4) if known.longest <= 4 else (b"ab@1", 6)
    words = [bytes(word) for size in range(1, length + 1) for word in product(alphabet, repeat=size)]
    python = re.compile(pattern.encode())
    whole = {word for word in words if python.fullmatch(word)}
    begins = {word[:end] for word in whole for end in range(1, len(word) + 1)}
    accepted = {word for word in words if live.search(word)}
    assert begins <= accepted
    if known.longest <= 4 and not re.search(r"\\[bBx]", pattern):
        assert accepted == begins


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"\s", "\v", False),
        (r"\S", "\v", True),
        (".", "\n", False),
        ("(?s:.)", "\n", True),
        ("(?i)k[^A]", "Kb", True),
        ("(?i)k[^A]", "Ka", False),
        (r"(?i:\xe0)", "\xc0", False),
        (r"\w", "\xe9", False),
        (r"[\d_]", "_", True),
        ("(?i:a(?-i:b))", "Ab", True),
        ("(?i:a(?-i:b))", "AB", False),
    ],
)
def test_classes_mean_what_re2_means(pattern: str, text: str, matches: bool) -> None:
    assert (compile_re2(read(pattern).plain).fullmatch(text.encode("latin-1")) is not None) is matches


@pytest.mark.parametrize(
    ("pattern", "shortest", "longest"), [("a?bc{2,5}", 3, 7), ("ab|c", 1, 2), (r"\b(?:ab){2,1000}", 4, 2000)]
)
def test_widths_count_bytes(pattern: str, shortest: int, longest: int) -> None:
    known = read(pattern)
    assert (known.shortest, known.longest) == (shortest, longest)


def test_long_repeats_are_written_as_re2_accepts_them() -> None:
    known = read("[a-c]{0,1024}x")
    assert compile_re2(known.plain).fullmatch(b"a" * 1024 + b"x")
    assert not compile_re2(known.plain).fullmatch(b"a" * 1025 + b"x")
    assert compile_re2(rf"(?:{known.closure})\z").fullmatch(b"a" * 1024)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a*", "it has a repeat without an upper bound"),
        ("a{0,3}", "it can match the empty text"),
        (r"\b", "it can match the empty text"),
        (r"(?:\b){2}a", "it repeats something without a width"),
        ("^a", "it uses at, which cannot be matched in a stream"),
        ("a(?=b)", "it uses assert, which cannot be matched in a stream"),
        (r"(a)\1", "it uses groupref, which cannot be matched in a stream"),
        ("(?>a)b", "it uses atomic_group, which cannot be matched in a stream"),
        ("(a", "not a regular expression that tidegate can read"),
        ("\u20ac", "it names a character that is not a byte"),
        (r"\u20ac", "it names a character that is not a byte"),
        ("\xe9", "it names a character that is not a byte"),
        (r"[^\x00-\xff]", "it has a class without members"),
    ],
)
def test_what_cannot_be_matched_in_a_stream_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(PatternError) as refusal:
        read(pattern)
    assert str(refusal.value) == why


LOOSENED = {
    r"\b[a-c](?:[a-c.]{0,40}[a-c])?@[ab]{2,30}\b": r"\x40[a-b]{2,30}\b",
    r"[a-z]{1,40}@(?:b{9}|c)": r"\x40(?:b{9}|c)",
    r"\b(?:aa1{12}|(?:bc|cb)1{12,14}|dd1{13}e?|ee1{12}|fe1{12}|ge1{12}|he1{30}|ie1{12}z)\b": r"\b[a-i][a-e]1{10}",
    r"x(?:a{12}|b{13}|c{14}|ad{12}|e{15}|f{16}|g{17}|h{18,20})y": (
        r"x(?:a{12}|b{12}|c{12}|ad{11}|e{12}|f{12}|g{12}|h{12})"
    ),
}


@pytest.mark.parametrize(("pattern", "loose"), LOOSENED.items())
def test_a_wide_head_and_large_choices_are_loosened(pattern: str, loose: str) -> None:
    assert read(pattern).loose == loose


@pytest.mark.parametrize("pattern", ["[a-c]{1,30}@a", "(?:ab|c){1,40}@a", "(?:a|b|c|d|e|f|g|h)[0-9]{20}", "a{1,40}b|c"])
def test_other_patterns_are_kept_as_they_are(pattern: str) -> None:
    known = read(pattern)
    assert known.loose == known.plain


@given(
    st.sampled_from([*LOOSENED, *(each.pattern for each in POOL)]).flatmap(
        lambda p: st.tuples(st.just(p), st.from_regex(p.encode()))
    )
)
def test_every_match_contains_a_match_of_the_looser_pattern(example: tuple[str, bytes]) -> None:
    pattern, text = example
    known = read(pattern)
    if compile_re2(known.plain).search(text):
        assert compile_re2(known.loose).search(text)


def test_a_choice_of_too_many_rows_is_kept_as_it_is() -> None:
    word = "(?:ab|cd|ef|gh|ij|kl|mn|op)"
    pattern = "|".join(f"{letter}q{word * 7}" for letter in "abcdefgh")
    known = read(f"k(?:{pattern})")
    assert known.loose == known.plain
