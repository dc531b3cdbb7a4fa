"""Where a pattern matches: what RE2's own search says, whatever part of the text a look or a scan takes in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching import POOL, engine, indexes, texts
from tidegate.inspection import engine as engines
from tidegate.inspection import spans
from tidegate.inspection.closure import read
from tidegate.inspection.engine import encode
from tidegate.inspection.patterns import compile_re2

MORE = (
    "[a-c]{1,3}1?(?P<value>[ab]{0,4}[1x][abx1]{0,6})@{0,2}",  # a head that many lengths fit
    r"\b[ab]{2,3}(?:[abc]{2} ?){2}1?\b",
    "(?:a{3}|b{2,5}c){2}",
    r"a\B.{0,5}\bc",
)
PATTERNS = (*(each.pattern for each in POOL), *MORE)


@pytest.fixture(params=[1, 2048], ids=["looks of one byte", "looks as shipped"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "FIRST_LOOK", request.param)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_match_is_what_one_search_over_everything_finds(pattern: str) -> None:
    known = read(pattern)
    value = known.named != known.plain
    tried = spans.compile_spans(known, value=value)
    whole = compile_re2(known.named)

    @settings(max_examples=150, deadline=None)
    @given(text=texts, start=st.integers(0, 20))
    def holds(text: str, start: int) -> None:
        data = encode(text)
        hit = whole.search(data, start)
        expected = None
        if start < len(data) and hit is not None:
            inside = hit.span(1) if value and hit.start(1) < hit.end(1) else hit.span()
            expected = (*hit.span(), *inside)
        assert tried.search(data, start, len(data)) == expected

    holds()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_match_before_an_end_may_grow_beyond_it(pattern: str) -> None:
    known = read(pattern)
    tried = spans.compile_spans(known, value=False)

    @settings(max_examples=100, deadline=None)
    @given(text=texts, end=st.integers(0, 30))
    def holds(text: str, end: int) -> None:
        data = encode(text)
        end = min(end, len(data))
        found, whole = tried.search(data, 0, end), tried.search(data, 0, len(data))
        if whole is not None and whole[1] <= end:
            assert found == whole
        assert found is None or found == tried.search(data, found[0], len(data))

    holds()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_opening_is_found_wherever_a_match_starts(pattern: str) -> None:
    known = read(pattern)
    exact, opening = compile_re2(known.plain), compile_re2(rf"(?:{known.opening})", longest=False)

    @settings(max_examples=100, deadline=None)
    @given(text=texts, start=st.integers(0, 20))
    def holds(text: str, start: int) -> None:
        data = encode(text)
        if hit := exact.match(data, start):
            assert opening.match(data, hit.start()) is not None

    holds()


@settings(max_examples=500, deadline=None)
@given(chosen=indexes, many=st.lists(texts, min_size=1, max_size=6), block=st.integers(1, 40))
def test_scans_of_parts_find_what_one_scan_finds(chosen: tuple[int, ...], many: list[str], block: int) -> None:
    data = encode(" ".join(many))
    rules = engine(chosen)
    expected = rules.find(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "BLOCK", block)
        assert rules.find(data) == expected
        places = rules.places(data)
    assert set(places) <= set(rules.candidates(data)) | set(places)
    for ranges in places.values():
        assert all(0 <= start < stop <= len(data) for start, stop in ranges)
        assert all(first[1] < second[0] for first, second in pairwise(ranges))
