"""Spans that are asked many times: the answers are those of looking at each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.inspection.decoding.intervals import Intervals

span = st.tuples(st.integers(0, 30), st.integers(1, 9)).map(lambda each: (each[0], each[0] + each[1]))


def contains(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[0] and other[1] <= one[1]


@given(st.lists(span, max_size=12), span)
def test_every_answer_is_that_of_a_look_at_the_longest_spans(
    spans: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    kept = [each for each in spans if not any(contains(other, each) and other != each for other in spans)]
    intervals = Intervals(spans)
    assert intervals.nests(*asked) is any(contains(each, asked) or contains(asked, each) for each in kept)
    assert intervals.touches(*asked) is any(each[0] < asked[1] and asked[0] < each[1] for each in spans)
