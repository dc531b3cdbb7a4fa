"""JSONPath as data: many expressions become one automaton, and one walk over a body answers all of them.

Law: for every expression of the subset and every JSON value, ``Trie.select`` finds exactly what jsonpath-ng 1.16 finds.
The subset is ``$``, ``.name``, ``.'quoted name'``, ``['a', 'b']``, ``[n]`` with n >= 0, ``*`` and ``[*]`` (both mean
every child of an object or a list), and ``..`` before any of them. All else is an ``ExpressionError`` at load.

A walk never depends on the expressions for what it *visits*: every string, every object key and every number of six or
more digits becomes a ``Leaf``, named or not. Absence from the paths therefore exempts nothing.
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from jsonpath_ng.exceptions import JSONPathError
from jsonpath_ng.jsonpath import Child, Descendants, Fields, Index, JSONPath, Root, Wildcard
from jsonpath_ng.parser import parse

from tidegate.memo import Memo

Pointer = tuple[str | int, ...]

SUBSET = "$, .name, .'quoted name', [n], [*], * and .."
MIN_DIGITS = 6
"""Numbers with fewer digits hold nothing that a rule looks for: the shortest is a national id of seven digits."""
MAX_STATES = 10_000
"""The largest shipped trie has 56 expressions and 97 states; nested ``..`` can multiply them without end."""

# A key that could itself be what was found (a token, an address) must not travel in the place of a finding.
_PLAIN_KEY = re.compile(r"[a-z]{1,24}(?:_[a-z]{1,24}|[A-Z][a-z]{1,24}){0,4}")


class ExpressionError(ValueError):
    """An expression is no JSONPath, or outside the subset. The message says which part."""


class LeafKind(enum.StrEnum):
    """What a leaf was in the JSON text."""

    STRING = "string"
    KEY = "key"
    NUMBER = "number"


class Leaf[T](NamedTuple):
    """One text of a body: where it stands, what it says, and what the paths say about it.

    ``payloads`` belong to the expressions that name the leaf itself, in the order of the file; ``around`` to those that
    name an object or list around it, outermost first. A key has no payloads; its last pointer part is the key.
    ``parent`` is the object or list that holds it (``None`` for a body that is itself a string or number).
    """

    pointer: Pointer
    text: str
    kind: LeafKind
    payloads: tuple[T, ...]
    around: tuple[T, ...]
    parent: object

    def __repr__(self) -> str:  # a leaf may hold what was found
        return f"<Leaf {self.kind.value} of {len(self.text)} characters>"


class Selected[T](NamedTuple):
    """A value of any type that at least one expression names."""

    pointer: Pointer
    value: object
    payloads: tuple[T, ...]
    parent: object

    def __repr__(self) -> str:
        return f"<Selected at depth {len(self.pointer)}>"


@dataclass(frozen=True, slots=True)
class Step:
    """One part of an expression. Without names and indexes it means every child; ``deep`` means ``..`` before it."""

    names: tuple[str, ...] = ()
    indexes: tuple[int, ...] = ()
    deep: bool = False

    @property
    def wild(self) -> bool:
        """Whether the step takes every child."""
        return not self.names and not self.indexes

    def takes(self, key: str | int | None) -> bool:
        """Whether the step takes this child. ``None`` stands for a key that no expression spells out."""
        return self.wild or key in self.names or key in self.indexes


@dataclass(slots=True, eq=False)
class _State[T]:
    """What is known about a value from the path that leads to it."""

    own: tuple[T, ...]
    around: tuple[T, ...]
    skip: bool
    leads_on: bool
    names: dict[str, _State[T]] = field(default_factory=dict)
    indexes: dict[int, _State[T]] = field(default_factory=dict)
    other: _State[T] | None = None  # None only while the automaton is built


STEPS: Memo[tuple[Step, ...]] = Memo(
    "steps",
    lambda made: [[step.names, step.indexes, step.deep] for step in made],
    lambda stored: tuple(Step(tuple(names), tuple(indexes), deep) for names, indexes, deep in stored),
)


def steps(expression: str) -> tuple[Step, ...]:
    """Parse an expression into its steps.

    Raises:
        ExpressionError: no JSONPath, or not in the subset.
    """
    known = STEPS.get(expression)
    return STEPS.put(expression, _steps(expression)) if known is None else known


def _steps(expression: str) -> tuple[Step, ...]:
    try:
        with warnings.catch_warnings():  # what jsonpath-ng deprecates is outside our subset and refused below
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = parse(expression)
    except (JSONPathError, ValueError, TypeError, AttributeError) as error:
        raise ExpressionError(f"not a JSONPath expression ({type(error).__name__})") from None
    if not _rooted(tree):
        raise ExpressionError("an expression that does not begin with $")
    return tuple(_flatten(tree, deep=False, first=True))


def _rooted(tree: JSONPath) -> bool:
    while isinstance(tree, Child | Descendants):
        tree = tree.left
    return isinstance(tree, Root)


def _flatten(tree: JSONPath, *, deep: bool, first: bool) -> Iterator[Step]:
    match tree:
        case Root() if first:
            return
        case Child():
            yield from _flatten(tree.left, deep=deep, first=first)
            yield from _flatten(tree.right, deep=False, first=False)
        case Descendants():
            yield from _flatten(tree.left, deep=deep, first=first)
            yield from _flatten(tree.right, deep=True, first=False)
        case Wildcard():
            yield Step(deep=deep)
        case Fields():
            yield Step(names=tuple(tree.fields), deep=deep)
        case Index() if all(index >= 0 for index in tree.indices):
            yield Step(indexes=tuple(tree.indices), deep=deep)
        case _:
            raise ExpressionError(f"{type(tree).__name__.strip('_').lower()}, which is outside the subset")


class Trie[T]:
    """Expressions with a payload each, compiled for one walk. Immutable once built.

    ``skip`` says which payloads end the walk: a value named by such a payload is not entered and yields no leaf.
    """

    __slots__ = ("_by_name", "_root", "paths")

    def __init__(self, paths: Iterable[tuple[str, T]], *, skip: Callable[[T], bool] | None = None) -> None:
        self.paths = tuple(paths)
        self._root = _compile([(steps(text), payload) for text, payload in self.paths], skip)
        other = self._root.other
        self._by_name = not self._root.own and other is not None and not (other.own or other.leads_on)

    def __repr__(self) -> str:
        return f"<Trie of {len(self.paths)} paths>"

    def walk(self, value: object, known: AbstractSet[str] = frozenset()) -> Iterator[Leaf[T]]:
        """Visit every string, key and long number in document order, a key before its value.

        Keys, and strings that no expression names, are left out if they are in ``known``.
        """
        found: list[Leaf[T]] = []
        _visit(value, self._root, (), None, found, known)
        return iter(found)

    def select(self, value: object) -> Iterator[Selected[T]]:
        """Visit every value, of any type, that an expression names, in document order."""
        found: list[Selected[T]] = []
        if not (self._by_name and type(value) is dict and self._root.names.keys().isdisjoint(value)):
            _select(value, self._root, (), None, found)
        return iter(found)


def _compile[T](paths: list[tuple[tuple[Step, ...], T]], skip: Callable[[T], bool] | None) -> _State[T]:
    """Subset construction: a state is the set of (path, position) reached, and the payloads of the values around."""
    built: dict[tuple[frozenset[tuple[int, int]], tuple[int, ...]], _State[T]] = {}
    todo: list[tuple[frozenset[tuple[int, int]], tuple[int, ...]]] = []

    def state(active: frozenset[tuple[int, int]], around: tuple[int, ...]) -> _State[T]:
        key = (active, around)
        if key not in built:
            if len(built) >= MAX_STATES:
                raise ExpressionError(f"expressions that need more than {MAX_STATES} states together")
            own = tuple(paths[path][1] for path in _ended(active))
            built[key] = _State(
                own=own,
                around=tuple(paths[path][1] for path in around),
                skip=skip is not None and any(skip(payload) for payload in own),
                leads_on=any(at < len(paths[path][0]) for path, at in active),
            )
            todo.append(key)
        return built[key]

    def inside_of(active: frozenset[tuple[int, int]], around: tuple[int, ...]) -> tuple[int, ...]:
        return around + tuple(path for path in _ended(active) if path not in around)

    def _ended(active: frozenset[tuple[int, int]]) -> list[int]:
        return sorted(path for path, at in active if at == len(paths[path][0]))

    def after(active: frozenset[tuple[int, int]], key: str | int | None) -> frozenset[tuple[int, int]]:
        moved = set()
        for path, at in active:
            if at < len(paths[path][0]):
                step = paths[path][0][at]
                if step.takes(key):
                    moved.add((path, at + 1))
                if step.deep:
                    moved.add((path, at))
        return frozenset(moved)

    root = state(frozenset((path, 0) for path in range(len(paths))), ())
    while todo:
        active, around = todo.pop()
        here = built[active, around]
        inside = inside_of(active, around)
        pending = [paths[path][0][at] for path, at in active if at < len(paths[path][0])]
        here.names = {name: state(after(active, name), inside) for step in pending for name in step.names}
        here.indexes = {index: state(after(active, index), inside) for step in pending for index in step.indexes}
        here.other = state(after(active, None), inside)
    return root


def _visit[T](
    value: object, state: _State[T], pointer: Pointer, parent: object, found: list[Leaf[T]], known: AbstractSet[str]
) -> None:
    if state.skip:
        return
    if type(value) is str:
        if state.own or state.around or value not in known:
            found.append(Leaf(pointer, value, LeafKind.STRING, state.own, state.around, parent))
    elif type(value) is dict:
        _visit_members(value, state, pointer, found, known)
    elif type(value) is list:
        for index, child in enumerate(value):
            after = state.indexes.get(index) or state.other
            assert after is not None
            _visit(child, after, (*pointer, index), value, found, known)
    elif (text := _long_number(value)) is not None:
        found.append(Leaf(pointer, text, LeafKind.NUMBER, state.own, state.around, parent))


def _visit_members[T](
    value: dict[str, object], state: _State[T], pointer: Pointer, found: list[Leaf[T]], known: AbstractSet[str]
) -> None:
    for key, child in value.items():
        after = state.names.get(key) or state.other
        assert after is not None
        if key not in known:
            found.append(Leaf((*pointer, key), key, LeafKind.KEY, (), after.around, value))
        if type(child) is str:  # what most values are; a call for each would cost as much as the rest
            if not after.skip and (after.own or after.around or child not in known):
                found.append(Leaf((*pointer, key), child, LeafKind.STRING, after.own, after.around, value))
        elif child is not None:
            _visit(child, after, (*pointer, key), value, found, known)


def _select[T](value: object, state: _State[T], pointer: Pointer, parent: object, found: list[Selected[T]]) -> None:
    if state.own:
        found.append(Selected(pointer, value, state.own, parent))
    if not state.leads_on:
        return
    if type(value) is dict:
        for key, child in value.items():
            after = state.names.get(key) or state.other
            assert after is not None
            if after.own or (after.leads_on and type(child) in (dict, list)):
                _select(child, after, (*pointer, key), value, found)
    elif type(value) is list:
        for index, child in enumerate(value):
            after = state.indexes.get(index) or state.other
            assert after is not None
            if after.own or after.leads_on:
                _select(child, after, (*pointer, index), value, found)


def _long_number(value: object) -> str | None:
    if type(value) is int:
        return str(value) if abs(value) >= 10 ** (MIN_DIGITS - 1) else None
    if type(value) is float:
        text = repr(value)
        return text if sum(map(str.isdigit, text)) >= MIN_DIGITS else None
    return None


def where(pointer: Pointer) -> str:
    """Write a pointer for people and records: ``$.messages[0].content``.

    A key that is not a plain word is written as ``*``: clients choose keys, and a key may be the value that was found.
    """
    parts = ["$"]
    for part in pointer:
        if type(part) is int:
            parts.append(f"[{part}]")
        else:
            parts.append(f".{part}" if _PLAIN_KEY.fullmatch(str(part)) else ".*")
    return "".join(parts)


def replace(root: object, leaf: Leaf[object], text: str) -> None:
    """Put a text in a leaf's place, in place. Go through the leaves of a walk in REVERSE order, so keys change last.

    A number becomes a string; a key is renamed where it stands, with `` 2``, `` 3`` ... added where the name is taken.

    Raises:
        ValueError: the leaf is the root itself, which has no place to write to.
    """
    del root  # the leaf knows its parent; the root is part of the signature for callers that hold no leaf's parent
    parent = leaf.parent
    if isinstance(parent, list):
        parent[leaf.pointer[-1]] = text  # type: ignore[index]  # a list's pointer part is its index
    elif isinstance(parent, dict):
        if leaf.kind is LeafKind.KEY:
            _rename(parent, leaf.text, text)
        else:
            parent[leaf.pointer[-1]] = text
    else:
        raise ValueError("a body that is one bare string has no place to write to")


def _rename(holder: dict[str, object], old: str, new: str) -> None:
    name, count = new, 1
    while name in holder and name != old:
        count += 1
        name = f"{new} {count}"
    members = [(name if key == old else key, value) for key, value in holder.items()]
    holder.clear()
    holder.update(members)
