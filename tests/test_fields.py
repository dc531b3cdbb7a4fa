"""The automaton must find what jsonpath-ng finds, and its walk must see every text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonpath_ng import parse

from tidegate.dialects.fields import ExpressionError, Leaf, LeafKind, Trie, replace, steps, where

NAMES = ["a", "b", "role", "x-y", "text here", "*", "0"]

scalars = st.none() | st.booleans() | st.integers(-9, 99_999_999) | st.floats(allow_nan=False) | st.text(max_size=4)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=25,
)


def written(name: str) -> str:
    return name if name.isalpha() else f"'{name}'"


parts = st.one_of(
    st.sampled_from(NAMES).map(lambda name: f".{written(name)}"),
    st.sampled_from(NAMES).map(lambda name: f"['{name}']"),
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True).map(
        lambda names: "[" + ",".join(f"'{name}'" for name in names) + "]"
    ),
    st.integers(0, 3).map(lambda index: f"[{index}]"),
    st.sampled_from(["[*]", ".*", "..*", "..[*]", "..[0]"]),
    st.sampled_from(NAMES).map(lambda name: f"..{written(name)}"),
)
expressions = st.lists(parts, max_size=5).map(lambda some: "$" + "".join(some))


def found_by_jsonpath(expression: str, document: object) -> set[tuple[str | int, ...]]:
    found = set()
    for match in parse(expression).find(document):
        pointer: list[str | int] = []
        at = match
        while at.context is not None:
            path = at.path
            pointer.append(path.indices[0] if hasattr(path, "indices") else path.fields[0])
            at = at.context
        found.add(tuple(reversed(pointer)))
    return found


@settings(max_examples=200, deadline=None)
@given(documents, st.lists(expressions, min_size=1, max_size=6))
def test_select_finds_what_jsonpath_ng_finds(document: object, some: list[str]) -> None:
    trie = Trie(list(zip(some, range(len(some)), strict=True)))
    found: dict[int, set[tuple[str | int, ...]]] = {index: set() for index in range(len(some))}
    for one in trie.select(document):
        for payload in one.payloads:
            found[payload].add(one.pointer)
    assert found == {index: found_by_jsonpath(text, document) for index, text in enumerate(some)}


def every_text(value: object) -> list[tuple[str, str]]:
    """All that a walk must see, by a second, plainer way."""
    if isinstance(value, str):
        return [("string", value)]
    if isinstance(value, dict):
        return [pair for key, child in value.items() for pair in [("key", key), *every_text(child)]]
    if isinstance(value, list):
        return [pair for child in value for pair in every_text(child)]
    text = repr(value)
    long = not isinstance(value, bool) and sum(character.isdigit() for character in text) >= 6
    return [("number", text)] if value is not None and long else []


@settings(max_examples=150, deadline=None)
@given(documents, st.lists(expressions, max_size=4))
def test_walk_sees_every_text_whatever_the_paths(document: object, some: list[str]) -> None:
    trie = Trie([(text, text) for text in some])
    assert [(leaf.kind.value, leaf.text) for leaf in trie.walk(document)] == every_text(document)


@settings(max_examples=150, deadline=None)
@given(documents, st.lists(expressions, min_size=1, max_size=4))
def test_walk_names_a_leaf_as_select_does(document: object, some: list[str]) -> None:
    trie = Trie([(text, at) for at, text in enumerate(some)])
    named = {one.pointer: one.payloads for one in trie.select(document)}
    for leaf in trie.walk(document):
        above = {payload for end in range(len(leaf.pointer)) for payload in named.get(leaf.pointer[:end], ())}
        assert set(leaf.around) == above
        assert leaf.payloads == (() if leaf.kind is LeafKind.KEY else named.get(leaf.pointer, ()))


def test_around_is_outermost_first() -> None:
    trie = Trie([("$.a.b", "inner"), ("$.a", "outer")])
    (leaf,) = [leaf for leaf in trie.walk({"a": {"b": {"c": "text"}}}) if leaf.kind is LeafKind.STRING]
    assert leaf.around == ("outer", "inner")


def test_skip_ends_the_walk_and_nothing_else() -> None:
    trie = Trie([("$.data[*].embedding", "vector")], skip=lambda payload: payload == "vector")
    body = {"data": [{"embedding": [0.123456789, "hidden"], "text": "seen"}]}
    assert [leaf.text for leaf in trie.walk(body)] == ["data", "embedding", "text", "seen"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        pytest.param("$.a[?(@.b == 1)]", "not a JSONPath expression (JsonPathLexerError)", id="filter"),
        pytest.param("$.a[1:2]", "slice, which is outside the subset", id="slice"),
        pytest.param("$.a[-1]", "index, which is outside the subset", id="negative"),
        pytest.param("$.a|$.b", "union, which is outside the subset", id="union"),
        pytest.param("$.a.`parent`", "parent, which is outside the subset", id="parent"),
        pytest.param("$.a where b", "where, which is outside the subset", id="where"),
        pytest.param("a.b", "an expression that does not begin with $", id="no-root"),
        pytest.param("$.a.$.b", "root, which is outside the subset", id="root-inside"),
        pytest.param("", "not a JSONPath expression (JsonPathParserError)", id="empty"),
        pytest.param("$.a[", "not a JSONPath expression (JsonPathParserError)", id="unclosed"),
    ],
)
def test_outside_the_subset(expression: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        steps(expression)
    assert str(caught.value) == message


def test_expressions_that_multiply_are_refused() -> None:
    some = [(f"$..a{n}..b{n}..c{n}", n) for n in range(9)]
    with pytest.raises(ExpressionError, match="more than 10000 states"):
        Trie(some)


@pytest.mark.parametrize(
    ("pointer", "text"),
    [
        ((), "$"),
        (("messages", 0, "content", 12, "text"), "$.messages[0].content[12].text"),
        (("extra_content", "thoughtSignature"), "$.extra_content.thoughtSignature"),
        (("AKIAIOSFODNN7EXAMPLE",), "$.*"),
        (("jane@example.com", "x"), "$.*.x"),
        (("metadata", "4111111111111111"), "$.metadata.*"),
        (("hunter two",), "$.*"),
        (("a" * 200,), "$.*"),
    ],
)
def test_where_never_repeats_a_key_that_could_be_a_value(pointer: tuple[str | int, ...], text: str) -> None:
    assert where(pointer) == text


def test_replace_in_reverse_order_rewrites_strings_numbers_and_keys() -> None:
    body = {"secret": ["one", {"secret": 123456}], "other": "two", "MASK": "kept"}
    leaves = [leaf for leaf in Trie([]).walk(body) if leaf.text != "kept" and leaf.text not in ("other", "MASK")]
    for leaf in reversed(leaves):
        replace(body, leaf, "MASK")
    assert json.dumps(body) == '{"MASK 2": ["MASK", {"MASK": "MASK"}], "other": "MASK", "MASK": "kept"}'


def test_replace_of_a_bare_text_has_no_place() -> None:
    (leaf,) = Trie([]).walk("text")
    with pytest.raises(ValueError, match="no place to write to"):
        replace("text", leaf, "MASK")


def test_repr_shows_no_text() -> None:
    leaf = Leaf((), "AKIAIOSFODNN7EXAMPLE", LeafKind.STRING, (), (), None)
    assert "AKIA" not in repr(leaf)
    assert "AKIA" not in repr(list(Trie([("$", 1)]).select("AKIAIOSFODNN7EXAMPLE")))
