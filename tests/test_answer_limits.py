"""An answer against its limits, on a clock of the test's own."""

from __future__ import annotations

import pytest

from tidegate.limits.answer import AnswerMeter
from tidegate.model import AnswerLimits, Reason

LIMITS = AnswerLimits(bytes=100, first_byte=5, idle=3, duration=20)


def test_the_first_byte_is_due_until_the_answer_began() -> None:
    meter = AnswerMeter(LIMITS, 10.0)
    assert meter.due() == 15.0
    assert meter.passed(14.9) is None
    assert meter.passed(15.0) is Reason.ANSWER_FIRST_BYTE
    meter.began(14.0)
    assert meter.passed(15.0) is None


def test_idle_counts_from_the_last_byte() -> None:
    meter = AnswerMeter(LIMITS, 0.0)
    meter.began(1.0)
    assert meter.received(10, 3.5) is None
    assert meter.due() == 6.5
    assert meter.passed(6.4) is None
    assert meter.passed(6.5) is Reason.ANSWER_IDLE


def test_duration_ends_even_a_busy_answer() -> None:
    meter = AnswerMeter(LIMITS, 0.0)
    meter.began(0.0)
    for second in range(1, 20):
        assert meter.received(1, float(second)) is None
    assert meter.due() == 20.0
    assert meter.received(1, 20.0) is Reason.ANSWER_DURATION


@pytest.mark.parametrize(
    ("sizes", "broken"), [([100], None), ([101], Reason.ANSWER_TOO_LARGE), ([60, 41], Reason.ANSWER_TOO_LARGE)]
)
def test_bytes_add_up(sizes: list[int], broken: Reason | None) -> None:
    meter = AnswerMeter(LIMITS, 0.0)
    meter.began(0.0)
    found = [meter.received(size, 0.5) for size in sizes]
    assert found[-1] is broken
    assert all(each is None for each in found[:-1])
