"""What one start keeps for the next: taken back only for the very same files, and worth no less than making it anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tidegate.dialects import fields
from tidegate.inspection import closure
from tidegate.memo import Memo
from tidegate.policy import memory, source
from tidegate.policy.loading import load
from tidegate.policy.memory import MEMOS, remembering
from tidegate.policy.source import TREES, parse

ROOT = Path(__file__).parents[1]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4)
)


class Shelf:
    """A cache in memory. ``asked`` counts what was looked for and found."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts = 0

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data
        self.puts += 1


@given(trees)
def test_a_tree_that_is_taken_back_is_the_one_that_was_read(value: object) -> None:
    shelf, text = Shelf(), yaml.safe_dump({"top": value}, allow_unicode=True)
    with remembering(shelf, [text]):
        first = parse(text, "file")
    with remembering(shelf, [text]):
        again = parse(text, "file")
    assert repr(again) == repr(first)  # nan is not itself
    assert shelf.puts <= 1


def test_patterns_sketches_and_paths_are_taken_back_as_they_were() -> None:
    shelf = Shelf()
    ask = [
        lambda: closure.read(r"\bsk-(?P<value>[a-z]{4,40})\b"),
        lambda: closure.sketch("ignore .{0,40} rules"),
        lambda: fields.steps("$.a['b c'][0]..d[*]"),
    ]
    with remembering(shelf, ["x"]):
        first = [each() for each in ask]
    with remembering(shelf, ["x"]):
        assert [each() for each in ask] == first
    assert shelf.puts == 1


def test_what_was_made_of_other_files_is_not_taken_back() -> None:
    shelf = Shelf()
    with remembering(shelf, ["one"]):
        closure.read("abc")
    with remembering(shelf, ["two"]):
        assert closure.PATTERNS.get("abc") is None


def test_what_was_made_by_other_code_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    with remembering(shelf, ["one"]):
        closure.read("abc")
    monkeypatch.setattr(memory, "_code", lambda module: module.__name__.encode())
    with remembering(shelf, ["one"]):
        assert closure.PATTERNS.get("abc") is None


@pytest.mark.parametrize("broken", [b"", b"x", lambda data: data[:-1], lambda data: data[:40] + b"?" + data[41:]])
def test_what_was_kept_and_is_damaged_is_made_anew(broken: object) -> None:
    shelf = Shelf()
    with remembering(shelf, ["one"]):
        whole = closure.read("abc")
    ((key, data),) = shelf.kept.items()
    shelf.kept[key] = broken(data) if callable(broken) else broken
    with remembering(shelf, ["one"]):
        assert closure.PATTERNS.get("abc") is None
        assert closure.read("abc") == whole
    assert shelf.kept[key] == data


def test_nothing_is_held_when_a_load_is_over_also_one_that_fails() -> None:
    with pytest.raises(closure.PatternError), remembering(Shelf(), ["one"]):
        closure.read("abc") and closure.read("a*")
    assert all(not each.told() and not each.grown for each in MEMOS)


def test_a_text_with_a_fault_is_read_each_time() -> None:
    shelf = Shelf()
    for _ in range(2):
        with remembering(shelf, ["x"]):
            assert parse("a: 1\na: 2\n", "file")[1]
            assert TREES.get("a: 1\na: 2\n") is None


def test_a_long_text_is_known_by_its_hash() -> None:
    memo: Memo[str] = Memo("m", str, str)
    memo.put("x" * 300, "made")
    assert memo.get("x" * 300) == "made"
    assert memo.get("x" * 301) is None
    assert max(map(len, memo.told())) == 64


def test_a_policy_that_is_loaded_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    first = load(ROOT / "rules" / "policy.yaml", engine_cache=shelf)
    for name in ("_pattern",):
        monkeypatch.setattr(closure, name, None)
    monkeypatch.setattr(fields, "_steps", None)
    puts = shelf.puts
    again = load(ROOT / "rules" / "policy.yaml", engine_cache=shelf)
    assert shelf.puts == puts
    assert again.sha256 == first.sha256
    assert [each.id for each in again.engine.rules] == [each.id for each in first.engine.rules]
    assert again.dialects.keys() == first.dialects.keys()
    assert source.TREES.told() == {}
