"""The rules of all roles of a caller on one endpoint, put together once and indexed by model. Pure but for its memo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tidegate.identity.names import named, refused
from tidegate.model import AllowRule, DenyRule

if TYPE_CHECKING:
    from tidegate.policy.policy import Place

INDEXED = 12
"""Rules from which on they are looked up by model: below it, asking each of them costs less."""
MODELS = 1024
"""Models remembered of one set of rules; providers list fewer. A client that invents names cannot make it grow."""


class Left(NamedTuple):
    """The rules that are left when the head of a request is known."""

    allows: tuple[AllowRule, ...]
    denies: tuple[DenyRule, ...]
    observing: tuple[AllowRule | DenyRule, ...]


@dataclass(slots=True, eq=False)
class RuleSet:
    """What roles say about one endpoint of one connection. ``refused``: a deny rule that asks for nothing more.

    ``conditional``: some rule asks for more of the head than connection and endpoint. ``widest`` is the largest body
    that a rule allows, ``None`` where one has no such limit. ``asks`` holds one rule for each different thing that is
    asked of the head: what holds for it holds for all that ask the same.
    """

    roles: tuple[str, ...]
    allows: tuple[AllowRule, ...]
    denies: tuple[DenyRule, ...]
    observing: tuple[AllowRule | DenyRule, ...]
    refused: bool
    conditional: bool = field(init=False)
    widest: int | None = field(init=False)
    large: bool = field(init=False)
    asks: tuple[AllowRule | DenyRule, ...] = field(init=False)
    _groups: dict[int, int] = field(init=False)
    _left: dict[tuple[bool, ...], Left] = field(init=False, default_factory=dict)
    _models: dict[str | None, tuple[frozenset[int], frozenset[int]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.conditional = bool(self.observing) or any(rule.head is not None for rule in self.allows)
        self.conditional = self.conditional or any(
            rule.head is not None or rule.unless is not None for rule in self.denies
        )
        self.widest = widest(self.allows)
        distinct: dict[object, int] = {}
        asks: list[AllowRule | DenyRule] = []
        self._groups = {}
        for rule in (*self.allows, *self.denies, *self.observing):
            unless = None if isinstance(rule, AllowRule) else rule.unless
            if rule.head is None and unless is None:
                continue
            at = distinct.setdefault((type(rule), rule.head, unless), len(asks))
            if at == len(asks):
                asks.append(rule)
            self._groups[id(rule)] = at
        self.asks = tuple(asks)
        self.large = len(self.allows) + len(self.denies) > INDEXED

    def left(self, held: tuple[bool, ...]) -> Left:
        """Return the rules that are left where what ``asks`` ask holds or not, one after the other."""
        known = self._left.get(held)
        if known is None:
            if len(self._left) >= MODELS:
                self._left.clear()
            groups = self._groups
            known = self._left[held] = Left(
                tuple(rule for rule in self.allows if id(rule) not in groups or held[groups[id(rule)]]),
                tuple(rule for rule in self.denies if id(rule) not in groups or held[groups[id(rule)]]),
                tuple(rule for rule in self.observing if id(rule) not in groups or held[groups[id(rule)]]),
            )
        return known

    def for_model(self, model: str | None) -> tuple[frozenset[int], frozenset[int]]:
        """Return the ``id()`` of each allow rule that covers a model, and of each deny rule that may deny it."""
        known = self._models.get(model)
        if known is None:
            known = (
                frozenset(id(rule) for rule in self.allows if covers_model(rule, model)),
                frozenset(id(rule) for rule in self.denies if denies_model(rule, model)),
            )
            if len(self._models) >= MODELS:
                self._models.clear()
            self._models[model] = known
        return known


def joined(roles: Iterable[str], places: Mapping[str, Place]) -> RuleSet:
    """Put the rules of roles together, in the order of the roles' names."""
    found = [(role, places[role]) for role in roles if role in places]
    return RuleSet(
        roles=tuple(role for role, _ in found),
        allows=tuple(rule for _, place in found for rule in place.allows),
        denies=tuple(rule for _, place in found for rule in place.denies),
        observing=tuple(rule for _, place in found for rule in place.observing),
        refused=any(place.refused for _, place in found),
    )


def covers_model(rule: AllowRule, model: str | None) -> bool:
    """Whether an allow rule covers a model; one that is not named is covered only where models do not count."""
    return rule.models is None or (model is not None and named(rule.models, model))


def denies_model(rule: DenyRule, model: str | None) -> bool:
    """Whether a deny rule may concern a model; one that is not named meets every condition."""
    return rule.models is None or model is None or refused(rule.models, model)


def widest(allows: Iterable[AllowRule]) -> int | None:
    """Return the largest body that any of the rules allows; ``None`` where one sets no limit, or there is none."""
    bodies = [rule.body for rule in allows]
    return None if None in bodies or not bodies else max(each for each in bodies if each is not None)
