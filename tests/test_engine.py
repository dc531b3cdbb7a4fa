"""Rules compiled: whole texts, many texts at once, the cache, threads, and rules that cannot be compiled."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching import POOL, engine, indexes, rule, spans, texts
from tidegate.inspection import scanner
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.closure import read
from tidegate.inspection.engine import RuleError, build, encode
from tidegate.inspection.rules import Severity

EVERYTHING = tuple(range(len(POOL)))


@settings(max_examples=1500, deadline=None)
@given(chosen=indexes, text=texts)
def test_matches_are_those_of_the_naive_reading(chosen: tuple[int, ...], text: str) -> None:
    found = [(span.start, span.end, span.rule.id) for span in engine(chosen).find(encode(text))]
    expected = [(start, cover, name) for start, _, name, cover in spans([POOL[i] for i in chosen], encode(text))]
    assert found == sorted(expected, key=lambda each: (each[0], -each[1], each[2]))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_can_be_searched(data: bytes) -> None:
    found = {span.rule.id for span in engine(EVERYTHING).find(data)}
    possible = {POOL[index].id for index in engine(EVERYTHING).candidates(data)}
    assert found <= possible


@settings(max_examples=400, deadline=None)
@given(many=st.lists(texts, max_size=5))
def test_many_texts_are_searched_like_each_alone(many: list[str]) -> None:
    rules = engine(EVERYTHING)
    alone = {index: rules.find_text(text) for index, text in enumerate(many)}
    assert rules.find_many(many) == {index: found for index, found in alone.items() if found}


@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_positions_in_characters(text: str) -> None:
    rules = engine(EVERYTHING)
    in_bytes = rules.find(encode(text))
    in_characters = rules.find_text(text)
    assert [(len(encode(text[: each.start])), len(encode(text[: each.end]))) for each in in_characters] == [
        (each.start, each.end) for each in in_bytes
    ]


def test_a_value_is_validated_and_masked_alone() -> None:
    rules = build([rule("pin", r"pin (?P<value>[0-9]{4})\b", validators=("luhn",))], None)
    assert [(span.start, span.end) for span in rules.find(b"pin 0000 pin 0059 pin 0058")] == [(13, 17)]


def test_the_most_severe_of_rules_that_match_the_same_comes_first() -> None:
    rules = build([rule("a", "[a-c]{3}"), rule("b", "abc", severity=Severity.CRITICAL), rule("c", "abcd")], None)
    assert [span.rule.id for span in rules.find(b"abcd")] == ["t.c", "t.b", "t.a"]


def test_one_rule_is_asked_alone() -> None:
    rules = build([rule("a", "a1"), rule("lead", "<", end=">", cap=24)], None)
    assert rules.fires("t.a", b"<a1>")
    assert not rules.fires("t.a", b"<b1>")


def test_no_rules_find_nothing() -> None:
    rules = build([], None)
    assert rules.find(b"anything") == ()
    assert rules.find_many(["anything"]) == {}


def test_an_overlong_pattern_becomes_a_coarse_filter() -> None:
    rules = build([rule("jwt", r"\beyJ[A-Za-z0-9_-]{8,100}\.eyJ[A-Za-z0-9_-]{8,520}\.[A-Za-z0-9_-]{20,360}")], None)
    text = f"x eyJ{'a' * 100}.eyJ{'b' * 520}.{'c' * 360}"
    assert [(span.start, span.end) for span in rules.find(text.encode())] == [(2, len(text))]
    assert rules.live(text.encode()) == (0,)
    assert rules.live(text[:-200].encode()) == (0,)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rule("star", "a*b"), "rule t.star cannot be compiled: it has a repeat without an upper bound"),
        (
            rule("marker", "a", end="^b"),
            "rule t.marker cannot be compiled: it uses at, which cannot be matched in a stream",
        ),
        (
            rule("check", "a", validators=("none",)),
            "rule t.check cannot be compiled: it names the unknown validator none",
        ),
        (
            rule("huge", "(?:(?:ab){1,100}c){1,200}"),
            "rule t.huge cannot be compiled: RE2 refuses its pattern or its closure (too large)",
        ),
    ],
    ids=lambda each: each.id if hasattr(each, "id") else None,
)
def test_a_rule_that_cannot_be_compiled_is_named(bad: object, message: str) -> None:
    with pytest.raises(RuleError) as refusal:
        build([rule("good", "abc"), bad], None)
    assert str(refusal.value) == message


# --------------------------------------------------------------------------------------------------- the cache


class Counting:
    """A cache in memory that counts what is put."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts = 0

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        self.kept[key] = data


def _finds(cache: Counting) -> bool:
    return [(each.start, each.end) for each in build([rule("key", "abc")], cache).find(b"xabc")] == [(1, 4)]


def test_a_compiled_set_is_loaded_from_the_cache() -> None:
    cache = Counting()
    assert _finds(cache)
    assert _finds(cache)
    assert cache.puts == 5  # the matches, the closures and three scans for disguises, once


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: b"",
        lambda entry: entry[:40],
        lambda entry: entry[:-1],
        lambda entry: entry[:200] + bytes([entry[200] ^ 1]) + entry[201:],
        lambda entry: b"x" + entry,
        lambda entry: b"\0" * len(entry),
    ],
    ids=["empty", "short", "cut", "bit", "shifted", "zeros"],
)
def test_a_damaged_entry_is_compiled_anew(damage: object) -> None:
    cache = Counting()
    assert _finds(cache)
    cache.kept = {key: damage(entry) for key, entry in cache.kept.items()}
    assert _finds(cache)
    assert cache.puts == 10


def test_an_entry_under_another_key_is_compiled_anew() -> None:
    cache = Counting()
    assert _finds(cache)
    keys = list(cache.kept)
    cache.kept = {key: cache.kept[other] for key, other in zip(keys, [*keys[1:], keys[0]], strict=True)}
    assert _finds(cache)
    assert cache.puts == 10


def test_an_entry_that_hyperscan_refuses_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Counting()
    assert _finds(cache)
    forged = {key: scanner._digest(key, b"not a database") + b"not a database" for key in cache.kept}
    cache.kept = forged
    assert _finds(cache)
    assert cache.puts == 10


def test_the_cache_on_disk_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    cache = DiskCache(folder)
    assert cache.get("00") is None
    cache.put("00", b"data")
    assert cache.get("00") == b"data"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in folder.iterdir()] == ["00"]
    folder.chmod(0o777)
    assert cache.get("00") is None
    cache.put("11", b"data")
    folder.chmod(0o700)
    assert cache.get("11") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.put("00", b"data")
    assert cache.get("00") is None


@pytest.mark.parametrize(
    ("base", "inside"), [("{tmp}/x", "x/tidegate"), ("relative", ".cache/tidegate"), ("", ".cache/tidegate")]
)
def test_where_the_cache_is(base: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", base.format(tmp=tmp_path))
    DiskCache().put("00", b"data")
    assert (tmp_path / inside / "00").read_bytes() == b"data"


# --------------------------------------------------------------------------------------------------- scanners


def test_threads_share_an_engine() -> None:
    rules = engine(EVERYTHING)
    text = b"xab abc 18 <a> ab@c " * 20
    expected = rules.find(text)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(lambda _: rules.find(text), range(200)))


@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_without_hyperscan_the_answers_are_the_same(text: str) -> None:
    data = encode(text)
    known = engine(EVERYTHING)
    for fast, patterns in (
        (known._words, [read(each.rule.pattern).plain for each in known.compiled]),
        (known._closures, [each.live.pattern.decode() for each in known.compiled]),
    ):
        slow = scanner.Re2Scanner(patterns)
        assert sorted(fast.hits(data)) == slow.hits(data)


def test_an_engine_is_built_where_hyperscan_cannot_be_imported() -> None:
    program = (
        "import sys; sys.modules['hyperscan'] = None\n"
        "from tests.matching import rule\n"
        "from tidegate.inspection.engine import build\n"
        "print([(each.start, each.end) for each in build([rule('key', 'abc')], None).find(b'xabc')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[(1, 4)]"
