"""Who has signed in to the pages, and who is still at a provider."""

from __future__ import annotations

import itertools

from tidegate.admin.sessions import IDLE, LIFETIME, SESSIONS, UNDER_WAY, UNDER_WAY_SECONDS, Sessions

NOW = 1_800_000_000.0


def sessions() -> Sessions:
    numbers = itertools.count()
    return Sessions(lambda: f"letters-{next(numbers)}")


def test_a_session_is_found_by_its_cookie_alone() -> None:
    known = sessions()
    name, session = known.open("token", NOW)
    assert known.find(name, NOW) is session
    assert known.find(name + "x", NOW) is None
    assert known.find(session.csrf, NOW) is None
    known.close(name)
    assert known.find(name, NOW) is None


def test_a_session_ends_when_nobody_uses_it_and_after_a_day_of_work_anyway() -> None:
    known = sessions()
    name, _ = known.open("token", NOW)
    assert known.find(name, NOW + IDLE) is None
    name, _ = known.open("token", NOW)
    at = NOW
    while at + IDLE - 1 < NOW + LIFETIME:
        at += IDLE - 1
        assert known.find(name, at) is not None
    assert known.find(name, NOW + LIFETIME) is None


def test_there_is_room_for_so_many_and_the_one_not_used_for_longest_goes() -> None:
    known = sessions()
    names = [known.open("token", NOW)[0] for _ in range(SESSIONS)]
    assert known.find(names[0], NOW) is not None
    known.open("token", NOW)
    assert known.find(names[0], NOW) is not None
    assert known.find(names[1], NOW) is None


def test_a_form_is_of_this_session_or_refused() -> None:
    known = sessions()
    (_, one), (_, other) = known.open("token", NOW), known.open("token", NOW)
    assert one.owns(one.csrf)
    assert not one.owns(other.csrf)
    assert not one.owns("")
    assert not one.owns("\udcff")


def test_somebody_comes_back_once_in_the_browser_that_left_and_in_time() -> None:
    known = sessions()
    state, left = known.leave("corp", "/exchanges", NOW)
    assert known.come_back(state, "another browser", NOW) is None
    assert known.come_back("another state", left.browser, NOW) is None
    assert known.come_back(state, left.browser, NOW) is left
    assert known.come_back(state, left.browser, NOW) is None
    state, left = known.leave("corp", "/", NOW)
    assert known.come_back(state, left.browser, NOW + UNDER_WAY_SECONDS) is None
    first, left = known.leave("corp", "/", NOW)
    for _ in range(UNDER_WAY):
        known.leave("corp", "/", NOW)
    assert known.come_back(first, left.browser, NOW) is None


def test_nothing_secret_is_shown() -> None:
    known = sessions()
    _, session = known.open("CANARY", NOW)
    _, left = known.leave("corp", "/", NOW)
    shown = repr(session) + repr(left)
    assert "CANARY" not in shown
    assert session.csrf not in shown
    assert left.verifier not in shown
    assert left.browser not in shown
