"""YAML text as a tree whose every value knows its key path and its line, so that a fault can point at it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tidegate.memo import Memo
from tidegate.model import Fault

DEPTH = 20  # a policy nests six deep

Value = str | int | float | bool | None | tuple["Node", ...] | Mapping[str, "Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a file: its key path (``connections[0].upstream``), its line (from 1), and what was written."""

    key: str
    line: int
    value: Value

    @property
    def found(self) -> str:
        """The value in a few words, for a message."""
        value = self.value
        if value is None:
            return "nothing"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return repr(value if len(value) <= 60 else value[:57] + "...")
        if isinstance(value, int | float):
            return str(value)
        return "a list" if isinstance(value, tuple) else "a mapping"


def _written(node: Node) -> list[Any]:
    """Turn a tree into a JSON value: the line of each node, and what it holds. Keys follow from where it stands."""
    value = node.value
    if isinstance(value, tuple):
        return [node.line, [_written(each) for each in value]]
    if isinstance(value, Mapping):
        return [node.line, {name: _written(each) for name, each in value.items()}]
    return [node.line, value]


def _read(stored: list[Any], key: str = "") -> Node:
    line, value = stored
    if isinstance(value, list):
        value = tuple([_read(each, f"{key}[{at}]") for at, each in enumerate(value)])
    elif isinstance(value, dict):
        value = {name: _read(each, f"{key}.{name}" if key else name) for name, each in value.items()}
    return Node(key, line, value)


TREES: Memo[Node] = Memo("tree", _written, _read)
"""The trees of texts in which nothing is at fault."""


def parse(text: str, file: str) -> tuple[Node | None, tuple[Fault, ...]]:
    """Read YAML text into a tree.

    Returns ``None`` and a fault when it is not YAML; otherwise the tree and a fault for each repeated key, alias and
    tag. Dates stay text. Keys are text as written (``on`` is the word, not a truth value).
    """
    known = TREES.get(text)
    if known is not None:
        return known, ()
    try:  # not libyaml's CSafeLoader: it is faster, and crashes the process on deep nesting
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "text that is not YAML"
        line = 1 if mark is None else mark.line + 1
        return None, (Fault(f"{file}:{line}", "the file", str(problem), "YAML"),)
    except (RecursionError, ValueError):
        return None, (Fault(file, "the file", "text that is not YAML", "YAML"),)
    if root is None:
        return None, (Fault(file, "the file", "nothing", "a mapping"),)
    tree = _Tree(loader, file)
    made = tree.node(root, "", 0)
    return (made if tree.faults else TREES.put(text, made)), tuple(tree.faults)


class _Tree:
    """Turns YAML nodes into ours and collects what must not be in the file."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self.faults: list[Fault] = []
        self._loader = loader
        self._file = file
        self._seen: set[int] = set()

    def _fault(self, node: yaml.Node, key: str, found: str, accepted: str) -> None:
        line = node.start_mark.line + 1
        self.faults.append(Fault(f"{self._file}:{line}", key or "the file", found, accepted))

    def node(self, node: yaml.Node, key: str, depth: int) -> Node:
        line = node.start_mark.line + 1
        if id(node) in self._seen:
            self._fault(node, key, "an alias", "the value, written out")
            return Node(key, line, None)
        self._seen.add(id(node))
        if depth > DEPTH:
            self._fault(node, key, "too many levels", f"at most {DEPTH} levels")
            return Node(key, line, None)
        if isinstance(node, yaml.MappingNode):
            return Node(key, line, self._mapping(node, key, depth))
        if isinstance(node, yaml.SequenceNode):
            items = (self.node(item, f"{key}[{at}]", depth + 1) for at, item in enumerate(node.value))
            return Node(key, line, tuple(items))
        return Node(key, line, self._scalar(node, key))

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        pairs: dict[str, Node] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self._fault(name_node, key, "a key that is not text", "text as keys")
                continue
            name = name_node.value
            below = f"{key}.{name}" if key else name
            if name in pairs:
                self._fault(name_node, below, "the key twice", "each key once")
                continue
            pairs[name] = self.node(value_node, below, depth + 1)
        return pairs

    def _scalar(self, node: yaml.Node, key: str) -> str | int | float | bool | None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in {"str", "int", "float", "bool", "null", "timestamp"}:
            self._fault(node, key, "a tag", "plain values")
            return None
        if kind in {"str", "timestamp"}:
            return str(node.value)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            return str(node.value)
        return value if isinstance(value, int | float | bool) else None
