"""Read JSONPath expressions and word lists out of a dialect's YAML. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidegate.dialects.fields import SUBSET, ExpressionError, Trie, steps
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

EXPRESSION = f"a JSONPath expression of {SUBSET}"
REASON = "the reason, in a few words"


def compiled[T](reader: Reader, paths: list[tuple[Node, T]], skip: Callable[[T], bool] | None = None) -> Trie[T]:
    """Compile expressions into a trie; one that is none, or outside the subset, is a fault at its own key path."""
    good: list[tuple[str, T]] = []
    for node, payload in paths:
        try:
            steps(str(node.value))
            good.append((str(node.value), payload))
        except ExpressionError as error:
            reader.fault(node, EXPRESSION, str(error))
    try:
        return Trie(good, skip=skip)
    except ExpressionError as error:
        reader.fault(paths[0][0], "fewer paths with .. among them", str(error))
        return Trie([])


def plain(node: Node) -> object:
    """Turn a node back into a JSON value."""
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    return node.value


def paths(reader: Reader, node: Node | None) -> Trie[str]:
    """Read a list of expressions; a missing one selects nothing."""
    found = reader.texts(node, f"a list with {EXPRESSION}")
    return compiled(reader, [(text, str(text.value)) for text in found])


def words(reader: Reader, node: Node | None, accepted: str) -> tuple[str, ...]:
    """Read a list of texts; a missing one is empty."""
    return tuple(str(each.value) for each in reader.texts(node, accepted))
