"""From the rules and bindings of a policy to those that decide: with every name resolved. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.identity.names import matches, overlap, within
from tidegate.model import AllowRule, Conditions, Connection, DenyRule, RuleMode
from tidegate.policy.policy import ClaimBinding, Place
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

if TYPE_CHECKING:
    from tidegate.dialects.spec import Dialect, Endpoint
    from tidegate.policy.schema import AllowDoc, DenyDoc, Document

LABEL = "label:"
"""What stands before a label where connections are named; a name has no colon."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def connected(
    reader: Reader, nodes: Sequence[Node] | None, connections: Mapping[str, Connection]
) -> tuple[Node, ...] | None:
    """Put the connections that have a label in the place of the label. One that none has is a fault."""
    if nodes is None:
        return None
    found: list[Node] = []
    for node in nodes:
        if not isinstance(node.value, str) or not node.value.startswith(LABEL):
            found.append(node)
            continue
        label = node.value.removeprefix(LABEL)
        named = [each.name for each in connections.values() if label in each.labels]
        known = sorted({each for one in connections.values() for each in one.labels})
        if not named:
            accepted = " or ".join(LABEL + each for each in known) or "the name of a connection, since none has labels"
            reader.fault(node, accepted)
        found += [Node(node.key, node.line, each) for each in named]
    return tuple(found)


def is_address(value: object) -> bool:
    """Whether an entry of ``endpoints`` is the pattern of an address: ``/v1/files*`` or ``GET /v1/files*``."""
    return isinstance(value, str) and "/" in value


def addressed(
    reader: Reader, rule: AllowDoc | DenyDoc, dialects: Mapping[str, Dialect]
) -> tuple[tuple[Node, ...] | None, tuple[tuple[str, str], ...]]:
    """Split the endpoints of a rule: the nodes with names, and the places that its patterns of addresses reach."""
    if rule.endpoints is None:
        return None, ()
    found: list[tuple[str, str]] = []
    for node in rule.endpoints:
        if not is_address(node.value):
            continue
        method, pattern = _address(node)
        if (method and method not in _METHODS) or not pattern.startswith(("/", "*")):
            reader.fault(node, "an address such as /v1/files* or GET /v1/files*, or the name of an endpoint")
            continue
        reached = [
            (name, endpoint.name)
            for name, dialect in dialects.items()
            for endpoint in dialect.endpoints.values()
            if endpoint.calls is None and _reaches(method, pattern, endpoint)
        ]
        if not reached:
            reader.fault(node, "an address that an endpoint of the rule's connections has")
        found += reached
    return tuple(node for node in rule.endpoints if not is_address(node.value)), tuple(found)


def _address(node: Node) -> tuple[str, str]:
    first, space, rest = str(node.value).partition(" ")
    return (first, rest.strip()) if space else ("", first)


def _reaches(method: str, pattern: str, endpoint: Endpoint) -> bool:
    return (not method or method in endpoint.methods) and any(overlap(pattern, _loose(path)) for path in endpoint.paths)


def _loose(path: str) -> str:
    """Return a path of a dialect as a pattern: its places are any text."""
    parts = []
    for part in path.split("/"):
        start, brace, rest = part.partition("{")
        parts.append(f"{start}*{rest.partition('}')[2]}" if brace else part)
    return "/".join(parts)


def _head_at(rule: AllowDoc | DenyDoc, endpoint: Endpoint) -> Conditions | None:
    """Return what a rule asks of the head at one endpoint: with its addresses, unless it names the endpoint too."""
    head = rule.more.head
    if rule.endpoints is None or any(node.value in ("*", endpoint.name) for node in rule.endpoints):
        return head
    addresses = tuple(_address(node) for node in rule.endpoints if is_address(node.value))
    pairs = [(method, path) for method in endpoint.methods for path in endpoint.paths]
    if all(any(_covers(each, pair) for each in addresses) for pair in pairs):
        return head
    return replace(head or Conditions(), addresses=addresses)


def _covers(address: tuple[str, str], pair: tuple[str, str]) -> bool:
    return address[0] in ("", pair[0]) and matches(address[1], _loose(pair[1]))


def placed(
    role: str, endpoint: Endpoint, allowed: Sequence[AllowDoc], denied: Sequence[DenyDoc], *, names: bool
) -> Place:
    """Make the rules of a role at one endpoint. ``names``: a request there can name a model.

    A limit that no request there can exceed, because the dialect knows no field for it, is none.
    """
    counts, chooses = bool(endpoint.asked.max_output.paths), bool(endpoint.asked.choices.paths)
    allows = [(rule.more.mode, _allow(role, rule, endpoint, names, counts, chooses)) for rule in allowed]
    denies = [
        (rule.more.mode, _deny(role, rule, endpoint))
        for rule in denied
        if (names or rule.models is None)
        and (counts or rule.more.above_tokens is None)
        and (chooses or rule.more.above_choices is None)
    ]
    every: list[tuple[RuleMode, AllowRule | DenyRule]] = [*allows, *denies]
    on = [rule for mode, rule in denies if mode is RuleMode.ENFORCE]
    return Place(
        allows=tuple(rule for mode, rule in allows if mode is RuleMode.ENFORCE),
        denies=tuple(on),
        refused=any(rule.bare and rule.head is None and rule.unless is None for rule in on),
        observing=tuple(rule for mode, rule in every if mode is RuleMode.OBSERVE),
    )


def _allow(role: str, rule: AllowDoc, endpoint: Endpoint, names: bool, counts: bool, chooses: bool) -> AllowRule:
    return AllowRule(
        role,
        rule.models if names else None,
        rule.tools,
        rule.max_output_tokens if counts else None,
        rule.body,
        rule.node.key,
        _head_at(rule, endpoint),
        rule.more.stream,
        rule.more.modalities,
        rule.more.called,
        rule.more.choices if chooses else None,
        tuple(str(each.value) for each in rule.budgets),
        str(rule.approve.value) if rule.approve is not None and (names or rule.models is None) else None,
    )


def _deny(role: str, rule: DenyDoc, endpoint: Endpoint) -> DenyRule:
    more = rule.more
    return DenyRule(
        role,
        rule.models,
        rule.tools,
        rule.node.key,
        _head_at(rule, endpoint),
        more.unless,
        more.stream,
        more.modalities,
        more.called,
        more.above_tokens,
        more.above_choices,
        more.above_body,
    )


def covered_by(allow: AllowDoc, deny: DenyDoc) -> bool:
    """Whether a deny rule denies whatever an allow rule covers, where both hold."""
    more = deny.more
    if (
        deny.tools is not None
        or RuleMode.ENFORCE not in (more.mode, allow.more.mode)
        or more.mode is not RuleMode.ENFORCE
    ):
        return False
    given = (more.head, more.unless, more.called, more.above_tokens, more.above_choices, more.above_body)
    if any(each is not None for each in given) or any(is_address(each.value) for each in deny.endpoints or ()):
        return False
    if more.stream is not None and more.stream is not allow.more.stream:
        return False
    if more.modalities is not None:
        return False
    return deny.models is None or (allow.models is not None and within(allow.models, deny.models))


def bound(reader: Reader, document: Document) -> dict[tuple[str, str, str], tuple[ClaimBinding, ...]]:
    """Collect the bindings that ask for claims; each belongs to one identity."""
    found: dict[tuple[str, str, str], tuple[ClaimBinding, ...]] = {}
    names = sorted(document.identities.nodes)
    for each in document.bindings:
        if not each.claims:
            if each.identity is not None:
                reader.fault(each.identity, "no identity without claims; groups and subjects carry its name")
            continue
        identity = str(each.identity.value) if each.identity is not None else names[0] if len(names) == 1 else ""
        if identity not in names:
            accepted = " or ".join(names) or "the name of an identity; with identity: none nobody has claims"
            reader.fault(
                each.identity or each.node, accepted, None if each.identity else "nothing", f"{each.node.key}.identity"
            )
            continue
        binding = ClaimBinding(
            identity,
            each.claims,
            frozenset(str(node.value) for node in each.groups),
            frozenset(str(node.value).removeprefix(f"{identity}:") for node in each.subjects),
            tuple(str(node.value) for node in each.roles),
        )
        _own(reader, identity, (*each.groups, *each.subjects))
        name, values = each.claims[0]
        for value in values:
            key = identity, name, value
            found[key] = (*found.get(key, ()), binding)
    return found


def _own(reader: Reader, identity: str, nodes: Iterable[Node]) -> None:
    for node in nodes:
        if not str(node.value).startswith(f"{identity}:"):
            reader.fault(node, f"one of the identity {identity}, whose claims the binding asks for")


def _rules(places: Mapping[tuple[str, str], Mapping[str, Place]]) -> Iterator[AllowRule | DenyRule]:
    for roles in places.values():
        for place in roles.values():
            yield from place.allows
            yield from place.denies
            yield from place.observing


def reads(places: Mapping[tuple[str, str], Mapping[str, Place]]) -> frozenset[str]:
    """Name what a body must be read for because some rule asks for it."""
    found: set[str] = set()
    for rule in _rules(places):
        choices = rule.choices if isinstance(rule, AllowRule) else rule.above_choices
        asked = {"called": rule.called, "choices": choices, "modalities": rule.modalities}
        found.update(name for name, value in asked.items() if value is not None)
    return frozenset(found)


def situated(places: Mapping[tuple[str, str], Mapping[str, Place]]) -> bool:
    """Say whether any rule asks for more of a head than its connection and endpoint."""
    return any(
        rule.head is not None or (isinstance(rule, DenyRule) and rule.unless is not None) for rule in _rules(places)
    )


def told(document: Document) -> Iterable[str]:
    """Say at start which rules of roles do not count."""
    modes: dict[RuleMode, list[str]] = {each: [] for each in RuleMode}
    for role in document.roles.values():
        for allow in role.allow:
            modes[allow.more.mode].append(allow.node.key)
        for deny in role.deny:
            modes[deny.more.mode].append(deny.node.key)
    observing, off = modes[RuleMode.OBSERVE], modes[RuleMode.OFF]
    if observing:
        yield f"these rules of roles only observe, they neither allow nor deny: {', '.join(observing)}"
    if off:
        yield f"these rules of roles are off: {', '.join(off)}"
