"""Rules of roles that are sound and yet do nothing, or not what their writer can have meant. Pure.

A notice changes nothing: the policy decides as it says. Each names the place, what was found, and what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tidegate.identity.names import overlap, plain, within
from tidegate.model import AllowRule, Connection, DenyRule, Modality, RuleMode
from tidegate.policy.policy import OidcIdentity, Permissions, StaticIdentity
from tidegate.policy.source import Node

if TYPE_CHECKING:
    from tidegate.dialects.spec import Dialect, Endpoint
    from tidegate.policy.schema import AllowDoc, DenyDoc, Document

At = tuple[str, str]
Rule = AllowRule | DenyRule


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a reader of the policy should know."""

    file: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.text}"


@dataclass(slots=True)
class _Lint:
    file: str
    document: Document
    connections: Mapping[str, Connection]
    dialects: Mapping[str, Dialect]
    permissions: Permissions
    found: list[Notice] = field(default_factory=list)
    places: dict[str, dict[At, Rule]] = field(default_factory=dict)

    def say(self, node: Node, text: str, key: str | None = None) -> None:
        self.found.append(Notice(f"{self.file}:{node.line}", key or node.key, text))

    def endpoints(self, rule: str) -> Iterator[Endpoint]:
        for connection, endpoint in self.places.get(rule, {}):
            yield self.dialects[self.connections[connection].dialect].endpoints[endpoint]

    def allows(self) -> Iterator[tuple[str, AllowDoc]]:
        for name, role in self.document.roles.items():
            for rule in role.allow:
                if rule.more.mode is RuleMode.ENFORCE:
                    yield name, rule

    def denies(self) -> Iterator[tuple[str, DenyDoc]]:
        for name, role in self.document.roles.items():
            for rule in role.deny:
                if rule.more.mode is RuleMode.ENFORCE:
                    yield name, rule


def lint(
    file: str,
    document: Document,
    connections: Mapping[str, Connection],
    dialects: Mapping[str, Dialect],
    permissions: Permissions,
) -> tuple[Notice, ...]:
    """Look for unreachable, shadowed and contradictory rules, in the order of the file."""
    here = _Lint(file, document, connections, dialects, permissions)
    for at, roles in permissions.places.items():
        for place in roles.values():
            rules: Iterable[Rule] = (*place.allows, *place.denies, *place.observing)
            for rule in rules:
                here.places.setdefault(rule.id, {})[at] = rule
    _bindings(here)
    _connections(here)
    for name, allow in here.allows():
        _never(here, name, allow)
        _shadowed(here, name, allow)
        _denied_elsewhere(here, name, allow)
        _pointless(here, allow)
    for name, deny in here.denies():
        _denies_nothing(here, deny)
        _twice(here, name, deny)
    return tuple(sorted(here.found, key=lambda each: (int(each.file.rpartition(":")[2]), each.key)))


# ── roles, bindings, connections ─────────────────────────────────────────────


def _bindings(here: _Lint) -> None:
    bound = {str(node.value) for each in here.document.bindings for node in each.roles}
    for name, role in here.document.roles.items():
        if name not in bound:
            here.say(role.node, "the role is bound to nobody")
        rules = [*(each.more.mode for each in role.allow), *(each.more.mode for each in role.deny)]
        if name in bound and rules and RuleMode.ENFORCE not in rules:
            here.say(role.node, "none of its rules is in force, so whoever is bound to it may do nothing by it")
    seen: dict[tuple[object, ...], Node] = {}
    for each in here.document.bindings:
        who = (_values(each.groups), _values(each.subjects), frozenset(each.claims), _values(each.roles))
        first = seen.setdefault(who, each.node)
        if first is not each.node:
            here.say(each.node, f"the same as {first.key}")
        static = _static(here, _identities_of(each.groups, each.subjects))
        named = {str(each.identity.value)} if each.identity else set(here.document.identities.nodes)
        missing = sorted({name for name, _ in each.claims} - _carried(here, named))
        if each.claims and _static(here, named):
            here.say(each.node, "static tokens carry no claims, so it binds nobody")
        elif missing:
            here.say(each.node, f"its identity does not carry {', '.join(missing)} (oidc.carry), so it binds nobody")
        elif static:
            _weak(here, each.roles)


def _carried(here: _Lint, names: set[str]) -> set[str]:
    """Return the claims that callers of these identities have."""
    every = here.document.identities.all or ()
    return {claim for each in every if isinstance(each, OidcIdentity) and each.name in names for claim in each.carry}


def _weak(here: _Lint, roles: Sequence[Node]) -> None:
    """Callers with static tokens have no sign-in that a rule could ask about."""
    only = {str(node.value) for node in roles} - _strong(here)
    for name, rule in here.allows():
        head = rule.more.head
        if name in only and head is not None and (head.strength or head.max_age is not None):
            text = "only callers with static tokens have the role, who never signed in as it asks: it never allows"
            if not any(each.key == rule.node.key and each.text == text for each in here.found):
                here.say(rule.node, text)


def _strong(here: _Lint) -> set[str]:
    """Name the roles that callers with another than a static token may have."""
    return {
        str(node.value)
        for each in here.document.bindings
        if not _static(here, _identities_of(each.groups, each.subjects))
        for node in each.roles
    }


def _identities_of(*nodes: Sequence[Node]) -> set[str]:
    return {str(node.value).partition(":")[0] for each in nodes for node in each}


def _static(here: _Lint, identities: set[str]) -> bool:
    """Whether all of these identities, and at least one, are files of static tokens."""
    static = {each.name for each in here.document.identities.all or () if isinstance(each, StaticIdentity)}
    return bool(identities) and identities <= static


def _values(nodes: Sequence[Node]) -> frozenset[str]:
    return frozenset(str(node.value) for node in nodes)


def _connections(here: _Lint) -> None:
    used = {at[0] for at, roles in here.permissions.places.items() if any(place.allows for place in roles.values())}
    for each in here.document.connections:
        if each.name and each.name not in used:
            here.say(each.node, f"no rule of any role allows anything of the connection {each.name}")


# ── allow rules ──────────────────────────────────────────────────────────────


def _never(here: _Lint, _role: str, rule: AllowDoc) -> None:
    """Find an allow rule that no request can meet."""
    odd = [each for each in rule.models or () if not plain(each.replace("*", "x"))]
    if odd:
        here.say(
            rule.node, "a pattern of models that no name of a model can match: it holds spaces or other characters"
        )
    if rule.more.modalities is not None and Modality.TEXT not in rule.more.modalities:
        here.say(rule.node, "every request has text, so without text in modalities it never allows")
    endpoints = list(here.endpoints(rule.node.key))
    if rule.more.stream and endpoints and not any(_streams(each) for each in endpoints):
        here.say(rule.node, "none of its endpoints streams, so with stream: true it never allows")
    if not endpoints:
        here.say(rule.node, "its connections have none of its endpoints, so it never allows")


def _streams(endpoint: Endpoint) -> bool:
    return endpoint.stream is not None or bool(endpoint.asked.stream.paths) or endpoint.asked.streams


def _shadowed(here: _Lint, role: str, rule: AllowDoc) -> None:
    """Find an allow rule of which another of the role does all."""
    others = [each for name, each in here.allows() if name == role and each is not rule]
    mine = here.places.get(rule.node.key, {})
    for other in others:
        theirs = here.places.get(other.node.key, {})
        if not mine or not mine.keys() <= theirs.keys():
            continue
        if not all(_does_all(rule_at, theirs[at]) for at, rule_at in mine.items()):
            continue
        twins = theirs.keys() == mine.keys() and all(_does_all(theirs[at], each) for at, each in mine.items())
        if twins and other.node.line > rule.node.line:
            continue  # of two that are the same the later one is told
        here.say(rule.node, f"has no effect: {other.node.key} allows all of it, and limits it as much")
        return


def _does_all(rule: Rule, other: Rule) -> bool:
    """Whether whatever one allow rule covers another covers too, with limits that are as tight."""
    if not isinstance(rule, AllowRule) or not isinstance(other, AllowRule):
        return False
    if other.models is not None and (rule.models is None or not within(rule.models, other.models)):
        return False
    if other.head not in (None, rule.head) or other.stream not in (None, rule.stream):
        return False
    if other.modalities is not None and (rule.modalities is None or not rule.modalities <= other.modalities):
        return False
    names = ((rule.tools, other.tools), (rule.called, other.called))
    numbers = (
        (rule.max_output_tokens, other.max_output_tokens),
        (rule.body, other.body),
        (rule.choices, other.choices),
    )
    return all(one is None or (two is not None and within(two, one)) for one, two in names) and all(
        most is None or (least is not None and least <= most) for most, least in numbers
    )


def _denied_elsewhere(here: _Lint, role: str, rule: AllowDoc) -> None:
    """Find an allow rule that is denied to everybody who has its role, by roles they have with it."""
    givers = [_values(each.roles) for each in here.document.bindings if role in _values(each.roles)]
    together = frozenset.intersection(*givers) - {role} if givers else frozenset()
    mine = here.places.get(rule.node.key, {})
    for name, deny in here.denies():
        theirs = here.places.get(deny.node.key, {})
        if (
            name in together
            and mine
            and all(at in theirs and _denies_all(each, theirs[at]) for at, each in mine.items())
        ):
            here.say(rule.node, f"whoever has the role has {name} too, and {deny.node.key} denies all of it")
            return


def _denies_all(rule: Rule, deny: Rule) -> bool:
    if not isinstance(deny, DenyRule) or deny.head is not None or deny.unless is not None:
        return False
    if DenyRule(deny.role, deny.models, None, deny.id) != deny:  # it asks for more than models
        return False
    return deny.models is None or (rule.models is not None and within(rule.models, deny.models))


def _pointless(here: _Lint, rule: AllowDoc) -> None:
    """Find limits that nothing can pass, and entries of lists that others cover."""
    endpoints = list(here.endpoints(rule.node.key))
    if rule.max_output_tokens is not None and endpoints and not any(each.asked.max_output.paths for each in endpoints):
        here.say(
            rule.node, "none of its endpoints has a limit of output tokens", f"{rule.node.key}.limits.max_output_tokens"
        )
    if rule.more.choices is not None and endpoints and not any(each.asked.choices.paths for each in endpoints):
        here.say(rule.node, "none of its endpoints gives several answers", f"{rule.node.key}.limits.choices")
    head = rule.more.head
    if head is not None and any(each.prefixlen == 0 for each in head.sources):
        here.say(rule.node, "a network that is everywhere is no condition", f"{rule.node.key}.sources")
    for key, names in (("models", rule.models), ("limits.tools", rule.tools), ("limits.called", rule.more.called)):
        for each in _covered(names or ()):
            here.say(rule.node, f"{each} is covered by another entry", f"{rule.node.key}.{key}")
    for name, deny in here.denies():
        common = here.places.get(rule.node.key, {}).keys() & here.places.get(deny.node.key, {}).keys()
        tools = [each for each in rule.tools or () if deny.tools is not None and within([each], deny.tools)]
        bare = deny.models is None and deny.more.head is None and deny.more.unless is None
        if tools and bare and name in rule.node.key.split(".") and common == here.places[rule.node.key].keys():
            here.say(rule.node, f"{', '.join(tools)}: {deny.node.key} denies it", f"{rule.node.key}.limits.tools")


def _covered(names: Sequence[str]) -> Iterator[str]:
    for at, each in enumerate(names):
        others = [*names[:at], *(other for other in names[at + 1 :] if other != each)]
        if within([each], others):
            yield each


# ── deny rules ───────────────────────────────────────────────────────────────


def _denies_nothing(here: _Lint, deny: DenyDoc) -> None:
    """Find a deny rule of which no allow rule of any role allows anything."""
    mine = here.places.get(deny.node.key, {})
    for _, allow in here.allows():
        theirs = here.places.get(allow.node.key, {})
        if any(at in theirs and _meet(each.models, theirs[at].models) for at, each in mine.items()):
            return
    here.say(deny.node, "denies nothing: no rule of any role allows what it speaks of")


def _meet(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    if one is None or other is None:
        return True
    return any(overlap(a.lower(), b.lower()) for a in one for b in other)


def _twice(here: _Lint, role: str, deny: DenyDoc) -> None:
    for name, other in here.denies():
        if other is deny:
            return
        mine, theirs = here.places.get(deny.node.key, {}), here.places.get(other.node.key, {})
        same = bool(mine) and all(at in theirs and _same_deny(each, theirs[at]) for at, each in mine.items())
        if name == role and same:
            here.say(deny.node, f"has no effect: {other.node.key} denies all of it")
            return


def _same_deny(rule: Rule, other: Rule) -> bool:
    if not isinstance(rule, DenyRule) or not isinstance(other, DenyRule):
        return False
    rest = replace(rule, models=other.models, tools=other.tools, id=other.id)
    models = other.models is None or (rule.models is not None and within(rule.models, other.models))
    tools = other.tools is None or (rule.tools is not None and within(rule.tools, other.tools))
    return models and tools and rest == other
