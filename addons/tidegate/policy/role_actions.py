"""What roles change of the actions on findings: stricter for whoever has the role, looser only where it says so. Pure.

Law: of all that holds for a caller the strictest counts. A role's ``inspection`` is never milder than the policy's;
what is milder stands under ``loosen``, and counts only where every role that lets the caller in is at least as mild.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tidegate.identity.permission import roles_of
from tidegate.model import Action, Direction, Grant
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

if TYPE_CHECKING:
    from tidegate.inspection.tokens import TokenLimits
    from tidegate.policy.policy import Policy
    from tidegate.policy.schema import Document

Actions = Mapping[tuple[str, Direction], Action]
_ORDER = list(Action)
VARIANTS = 512
"""Sets of actions remembered; roles with actions of their own are few, and so are their combinations."""


@dataclass(frozen=True, slots=True)
class RoleActions:
    """The actions of one role, by class and direction."""

    strict: Actions
    loose: Actions


@dataclass(slots=True, eq=False)
class Inspections:
    """The roles that have actions of their own. ``decide`` gives each rule its action, ``tokens`` are the policy's."""

    roles: Mapping[str, RoleActions]
    base: Actions
    decide: Callable[[Actions], Mapping[Direction, Mapping[str, Action]]] = field(repr=False)
    tokens: TokenLimits
    _variants: dict[tuple[object, ...], Actions] = field(init=False, repr=False, default_factory=dict)
    _policies: dict[frozenset[object], Policy] = field(init=False, repr=False, default_factory=dict)

    def widest(self) -> Actions:
        """Return the strictest action that any caller can have, for what must be ready for all of them."""
        found = dict(self.base)
        for each in self.roles.values():
            for at, action in each.strict.items():
                found[at] = _stricter(found[at], action)
        return found

    def actions(self, all_roles: tuple[str, ...], letting: tuple[str, ...]) -> Actions:
        """Return the actions for a caller with ``all_roles``, of which ``letting`` let the request in."""
        key = tuple(name for name in all_roles if name in self.roles), tuple(letting)
        known = self._variants.get(key)
        if known is None:
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            known = self._variants[key] = self._actions(*key)
        return known

    def variant(self, policy: Policy, actions: Actions) -> Policy:
        """Return a policy with other actions. One whose engine is for one request alone is not remembered."""
        key = frozenset(actions.items())
        known = self._policies.get(key)
        if known is not None and known.engine is policy.engine:
            return known
        decisions = self.decide(actions)
        tokens = self.tokens if Action.TOKENISE in decisions[Direction.PROMPT].values() else None
        made = replace(policy, actions=actions, decisions=decisions, tokens=tokens)
        if known is None and len(self._policies) < VARIANTS:
            self._policies[key] = made
        return made

    def _actions(self, own: tuple[str, ...], letting: tuple[str, ...]) -> Actions:
        found: dict[tuple[str, Direction], Action] = {}
        none = RoleActions({}, {})
        for at, action in self.base.items():
            milder = [self.roles.get(name, none).loose.get(at, action) for name in letting] or [action]
            stricter = [self.roles[name].strict.get(at, Action.ALLOW) for name in own]
            found[at] = max((*milder, *stricter), key=_ORDER.index)
        return found if found != self.base else self.base


def seen_by(policy: Policy, grant: Grant) -> Policy:
    """Return the policy with the actions that hold for the caller of a grant; the same one for the same actions."""
    own = policy.inspections
    if own is None:
        return policy
    letting = tuple(sorted({rule.role for rule in grant.allows}))
    actions = own.actions(roles_of(policy, grant.caller), letting)
    return policy if actions == policy.actions else own.variant(policy, actions)


def linked(
    reader: Reader,
    document: Document,
    base: Actions,
    decide: Callable[[Actions], Mapping[Direction, Mapping[str, Action]]],
    scored: frozenset[str],
) -> Inspections | None:
    """Read the ``inspection`` sections of roles; ``None`` where none has one. ``scored`` classes cannot be masked."""
    found: dict[str, RoleActions] = {}
    for name, role in document.roles.items():
        if role.inspection is None:
            continue
        section = reader.section(role.inspection, ("prompt", "response", "loosen"))
        if not section:
            reader.fault(role.inspection, "actions under prompt, response or loosen", found="no action")
        below = reader.section(section["loosen"], ("prompt", "response")) if "loosen" in section else {}
        read = _Reading(reader, base, scored)
        found[name] = RoleActions(read.both(section, stricter=True), read.both(below, stricter=False))
    return Inspections(found, base, decide, document.tokens) if found else None


@dataclass(frozen=True, slots=True)
class _Reading:
    reader: Reader
    base: Actions
    scored: frozenset[str]

    def both(self, section: Mapping[str, Node], *, stricter: bool) -> Actions:
        """Read the actions of both directions, each of which must differ from the policy's in the right direction."""
        found: dict[tuple[str, Direction], Action] = {}
        for way in Direction:
            for cls, node in self.reader.entries(section.get(way)).items():
                at = cls, way
                if at not in self.base:
                    known = ", ".join(sorted({each for each, _ in self.base}))
                    self.reader.fault(node, f"the classes of the loaded packs: {known}", found="an unknown class")
                    continue
                accepted = self.accepted(at, stricter=stricter)
                if node.value in accepted:
                    found[at] = Action(str(node.value))
                    continue
                word = "stricter" if stricter else "milder"
                hint = "; milder ones stand under loosen" if stricter else ""
                self.reader.fault(
                    node, f"{' or '.join(accepted) or 'none'}: {word} than the policy's {self.base[at]}{hint}"
                )
        return found

    def accepted(self, at: tuple[str, Direction], *, stricter: bool) -> tuple[Action, ...]:
        cls, way = at
        order, here = _ORDER, _ORDER.index(self.base[at])
        found = order[here + 1 :] if stricter else order[:here]
        masked = (Action.TOKENISE, Action.REDACT) if cls in self.scored else ()
        masked = (*masked, Action.APPROVE)  # who approves a class is the policy's, and the same for every role
        return tuple(
            each for each in found if each not in masked and (each is not Action.TOKENISE or way is Direction.PROMPT)
        )


def _stricter(one: Action, other: Action) -> Action:
    return max(one, other, key=_ORDER.index)
