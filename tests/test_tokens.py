"""Tokens and the memory behind them: one token a value, one value a token, this session alone, and not for ever."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_packs import RULES
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import build
from tidegate.inspection.rules import Rule
from tidegate.inspection.tokens import (
    BEGUN,
    KIND,
    LONGEST,
    MARGIN,
    TOKEN,
    Session,
    TokenLimits,
    Vault,
    Who,
    kind_of,
)

LIMITS = TokenLimits()
ALICE = Who("corp", "alice", "openai")
BOB = replace(ALICE, subject="bob")
MAIL = "jane.doe@acme-corp.com"


def vault(seed: int = 0) -> Vault:
    keys = itertools.count(seed)
    return Vault(lambda: next(keys).to_bytes(32, "big"))


def issued(session: Session, value: str = MAIL, name: str = "email") -> str:
    token = session.token(name, value)
    assert token is not None
    return token


# ── their form ───────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "email": "EMAIL",
    "card-visa": "CARDVISA",
    "phone-us-international": "PHONEUS",
    "us-ssn": "USSSN",
    "iban-lower-case": "IBANLOWER",
    "sql-query": "SKLKUERY",
    "4711": "VALUE",
    "": "VALUE",
    "x" * 40: "X" * KIND,
    "größe": "GR",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items(), ids=KINDS)
def test_a_token_names_its_rule(name: str, kind: str) -> None:
    assert kind_of(name).startswith(kind)
    token = issued(vault().session(ALICE, LIMITS, 0), name=name)
    assert TOKEN.fullmatch(token)
    assert token.startswith(f"XQ{kind_of(name)}")
    assert len(token) <= LONGEST


@given(st.text(max_size=40))
def test_whatever_a_rule_is_called_its_tokens_have_the_form(name: str) -> None:
    assert TOKEN.fullmatch(issued(vault().session(ALICE, LIMITS, 0), name=name))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([each.id.partition(".")[2] for each in RULES]), st.text(min_size=1))))
def test_no_token_is_in_another_and_each_has_one_value(pairs: list[tuple[str, str]]) -> None:
    session = vault().session(ALICE, LIMITS, 0)
    tokens = {value: issued(session, value, name) for name, value in pairs}
    assert len(set(tokens.values())) == len(tokens)
    assert all(session.value(token) == value for value, token in tokens.items())
    assert all(issued(session, value, "other") == token for value, token in tokens.items())
    for one, other in itertools.permutations(tokens.values(), 2):
        assert one not in other
    joined = "".join(tokens.values())
    assert TOKEN.findall(joined) == list(tokens.values()), "also where one follows another at once"


@given(st.integers(1, LONGEST))
def test_every_beginning_of_a_token_is_known_as_one(size: int) -> None:
    token = issued(vault().session(ALICE, LIMITS, 0), name="phone-us-international")
    for before in ("", "a", "X", "XQ", "XQEMAIL", "see "):
        found = BEGUN.search(before + token[:size])
        whole = size >= len(token)
        assert (found is None) is whole
        assert found is None or found.start() <= len(before)


def test_two_values_with_the_same_letters_get_different_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    session = vault().session(ALICE, LIMITS, 0)
    letters = session._letters
    monkeypatch.setattr(session, "_letters", lambda value, attempt: letters("same", attempt))
    tokens = [issued(session, value) for value in ("a@b.cc", "b@c.dd", "c@d.ee")]
    assert len(set(tokens)) == 3
    assert [session.value(each) for each in tokens] == ["a@b.cc", "b@c.dd", "c@d.ee"]
    assert [issued(session, value) for value in ("a@b.cc", "b@c.dd", "c@d.ee")] == tokens


CONTEXTS = [
    "{}", "Write to {} today.", "Call {} or {}.", "<{}>", '"{}"', "({})", "Name: {}, age 42", "{}@",
    "number {}", "a {}\nb {}\nc", "{}{}", "id={}",
]  # fmt: skip


def test_no_shipped_rule_takes_a_token_for_what_it_looks_for() -> None:
    engine = build(RULES, DiskCache())
    session = vault().session(ALICE, LIMITS, 0)
    names = sorted({rule.id.partition(".")[2] for rule in RULES})
    tokens = [issued(session, f"value {number} {name}", name) for name in names for number in range(5)]
    texts = [context.format(token, token) for token in tokens for context in CONTEXTS]
    found = engine.find_many(texts)
    assert {span.rule.id for spans in found.values() for span in spans} == set()


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_keeps_its_tokens_and_no_other_knows_them() -> None:
    kept = vault()
    alice = kept.session(ALICE, LIMITS, 0)
    token = issued(alice)
    assert kept.session(ALICE, LIMITS, 100) is alice
    others = [
        BOB,
        replace(ALICE, identity="adfs"),
        replace(ALICE, connection="anthropic"),
        replace(ALICE, name="conversation 2"),
    ]
    for who in others:
        other = kept.session(who, LIMITS, 100)
        assert other.value(token) is None
        assert issued(other) != token, "the key is another one"


ENDS = {
    "just in time": ([0, 49, 98], 147.9, True),
    "idle": ([0, 49, 98], 148.0, False),
    "never used": ([0], 50.0, False),
    "too old": ([0, 40, 80, 120, 160], 190.0, False),
}


@pytest.mark.parametrize(("uses", "now", "lives"), ENDS.values(), ids=ENDS)
def test_a_session_ends(uses: list[float], now: float, lives: bool) -> None:
    limits = TokenLimits(idle=50, lifetime=180)
    kept = vault()
    first = kept.session(ALICE, limits, uses[0])
    token = issued(first)
    for at in uses[1:]:
        assert kept.session(ALICE, limits, at) is first
    later = kept.session(ALICE, limits, now)
    assert (later is first) is lives
    assert (first.value(token) == MAIL) is lives, "what has ended is forgotten, also by who still holds it"
    assert (issued(later) == token) is lives


def test_a_sweep_ends_what_nobody_asks_for() -> None:
    limits = TokenLimits(idle=50, lifetime=180)
    kept = vault()
    alice, bob = kept.session(ALICE, limits, 0), kept.session(BOB, limits, 30)
    token = issued(alice)
    assert kept.sweep(49) == 50
    assert alice.value(token) == MAIL
    assert kept.sweep(50) == 80
    assert alice.value(token) is None
    assert alice.token("email", MAIL) is None, "and takes nothing more"
    assert len(kept) == 1
    assert kept.sweep(80) is None
    assert kept.size == 0
    assert repr(bob) == "<Session of 0 tokens>"


def test_the_limits_of_a_reloaded_policy_hold_at_once() -> None:
    kept = vault()
    token = issued(kept.session(ALICE, LIMITS, 0))
    assert kept.session(ALICE, TokenLimits(idle=10), 11).value(token) is None


def test_a_session_forgets_what_was_not_used_for_longest() -> None:
    session = vault().session(ALICE, TokenLimits(values=2), 0)
    one, two = issued(session, "a@b.cc"), issued(session, "b@c.dd")
    issued(session, "a@b.cc")
    issued(session, "c@d.ee")
    assert session.value(two) is None
    assert session.value(one) == "a@b.cc"
    assert issued(session, "b@c.dd") == two, "the key is the same, so is the token"


def test_memory_is_bounded() -> None:
    limits = TokenLimits(bytes=10_000, all_bytes=40_000)
    kept = vault()
    for number in range(50):
        session = kept.session(replace(ALICE, subject=str(number)), limits, 0)
        for other in range(50):
            session.token("email", f"{number}.{other}@acme-corp.com")
            assert session.size <= limits.bytes + MARGIN
            assert kept.size <= limits.all_bytes
    assert 0 < len(kept) < 10
    assert kept.size == sum(each.size for each in kept._sessions.values())
    assert session.token("x", "y" * 10_000) is None, "larger than all a session may keep"
    kept.sweep(1e9)
    assert kept.size == 0


def test_threads_agree_on_the_tokens_of_a_session() -> None:
    session, found = vault().session(ALICE, LIMITS, 0), []

    def work() -> None:
        found.append([session.token("email", f"{number}@acme.com") for number in range(300)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(each == found[0] for each in found)
    assert len(set(found[0])) == 300


def test_nothing_shows_a_value() -> None:
    kept = vault()
    session = kept.session(ALICE, LIMITS, 0)
    token = issued(session)
    shown = f"{session!r} {kept!r} {session} {kept}"
    assert MAIL not in shown
    assert token not in shown


# ── what comes back in the history ───────────────────────────────────────────────────────────────────────────────────

RULE: Rule = RULES[0]


def test_what_a_client_has_read_is_found_again() -> None:
    session = vault().session(ALICE, LIMITS, 0)
    token = session.token("phone", "78 651 450", RULE)
    assert token is not None
    assert session.recall("on 78 651 450.") == [], "before anybody has read it"
    session.give(token)
    assert session.has_given
    assert session.recall("on 78 651 450.") == [(3, 13, token, RULE)]
    assert session.recall("on 178 651 450 and 78 651 4500") == [], "parts of other words"


def test_a_short_value_is_not_looked_for_again() -> None:
    session = vault().session(ALICE, LIMITS, 0)
    token = session.token("cvv", "123", RULE)
    assert token is not None
    session.give(token)
    session.give("XQEMAILbcdfghjkmn")
    assert not session.has_given
