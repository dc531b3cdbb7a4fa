"""Resolves the names in a policy file, finds what contradicts itself, and builds the tables of the ``Policy``. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.model import ACTING, Action, Connection, Direction, Mode, OnUnknown
from tidegate.policy.approvals import link_approvals
from tidegate.policy.budgets import check_attached
from tidegate.policy.policy import Permissions, Place, Unlisted
from tidegate.policy.reader import Reader
from tidegate.policy.role_actions import Inspections, linked
from tidegate.policy.roles import addressed, bound, connected, covered_by, placed, reads, situated, told
from tidegate.policy.schema import ACTIONS, AllowDoc, DenyDoc, Document
from tidegate.policy.source import Node
from tidegate.policy.upstreams import ConnectionDoc, LimitsDoc, merge

if TYPE_CHECKING:
    from tidegate.approvals.spec import Approvals
    from tidegate.dialects.spec import Dialect
    from tidegate.inspection.rules import Rule

ANONYMOUS = "none:anyone"
ALL = "*"
SHOWN = 5
"""Rules that a warning names; of the shipped packs 27 only observe, which fills a screen."""


@dataclass(frozen=True, slots=True)
class Linked:
    """The parts of a policy that depend on names elsewhere in the file."""

    connections: Mapping[str, Connection]
    permissions: Permissions
    actions: Mapping[tuple[str, Direction], Action]
    decisions: Mapping[Direction, Mapping[str, Action]]
    warnings: tuple[str, ...]
    inspections: Inspections | None
    approvals: Approvals | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the policy's other files gave. ``whole`` is false where one had a fault: then a name may be missing."""

    dialects: Mapping[str, Dialect]
    rules: Sequence[Rule]
    whole: bool


def link(reader: Reader, document: Document, parts: Parts) -> Linked:
    """Resolve a document against its dialects and rules; faults go to the reader."""
    dialects, rules = parts.dialects, parts.rules
    connections = _connections(reader, document, parts)
    _addresses(reader, document)
    permissions = _permissions(reader, document, connections, dialects)
    attached = [each for role in document.roles.values() for rule in role.allow for each in rule.budgets]
    unused = check_attached(reader, document.budgets, attached)
    actions = _actions(reader, document, parts)
    wanted = {
        "classes": [cls for (cls, way), act in actions.items() if way is Direction.PROMPT and act is Action.APPROVE],
        "rules": [rule.id for rule in rules],
    }
    approvals = link_approvals(reader, document, wanted, whole=parts.whole)
    masked = {cls for each in approvals.redacted for cls in each.when.classes}

    scored = frozenset(rule.cls for rule in rules) - {rule.cls for rule in rules if rule.score is None}

    def decide(some: Mapping[tuple[str, Direction], Action]) -> Mapping[Direction, Mapping[str, Action]]:
        return {each: _decisions(document.mode, some, rules, each, masked) for each in Direction}

    return Linked(
        connections=connections,
        permissions=permissions,
        actions=actions,
        decisions=decide(actions),
        warnings=(
            *unused,
            *_warnings(document, rules, actions),
            *_shared(document, connections, permissions, dialects),
        ),
        inspections=linked(reader, document, actions, decide, scored),
        approvals=approvals.made if document.mode is Mode.ENFORCE else None,
    )


def _connections(reader: Reader, document: Document, parts: Parts) -> dict[str, Connection]:
    merge(reader, LimitsDoc(), document.limits)
    found: dict[str, Connection] = {}
    for each in document.connections:
        request_bytes, answer = merge(reader, document.limits, each.limits)
        dialect = each.dialect.value if each.dialect is not None and isinstance(each.dialect.value, str) else ""
        if each.dialect is not None and dialect and dialect not in parts.dialects and parts.whole:
            reader.fault(each.dialect, _one_of(parts.dialects, "a dialect that is loaded"))
        if each.name in found:
            reader.fault(each.node, "each name once", found=f"a second connection named {each.name}")
            continue
        if not each.name or each.upstream is None:
            continue
        found[each.name] = Connection(
            name=each.name,
            dialect=dialect,
            upstream=each.upstream,
            upstream_path=each.upstream_path,
            prefix=each.prefix,
            credential=each.credential,
            request_bytes=request_bytes,
            answer=answer,
            on_unknown=each.on_unknown,
            encoded_runs=document.encoded_runs if each.encoded_runs is None else each.encoded_runs,
            labels=each.labels,
        )
    return found


def _addresses(reader: Reader, document: Document) -> None:
    """Two connections must differ in their prefix, and in what a proxy sees: upstream, base path and dialect."""
    prefixes: dict[str, ConnectionDoc] = {}
    upstreams: dict[tuple[object, ...], ConnectionDoc] = {}
    for each in document.connections:
        if each.prefix is not None:
            first = prefixes.setdefault(each.prefix, each)
            if first is not each:
                reader.fault(
                    each.node,
                    "a path of its own for each connection",
                    found=f"the path {each.prefix or '/'} of the connection {first.name}",
                )
        if each.upstream is None or each.dialect is None:
            continue
        same = upstreams.setdefault((each.upstream, each.upstream_path, each.dialect.value), each)
        if same is not each:
            reader.fault(
                each.node,
                "connections that differ in upstream or dialect, so that a proxied request belongs to one of them",
                found=f"the upstream and dialect of the connection {same.name}",
            )


def _one_of(names: Iterable[str], otherwise: str) -> str:
    known = sorted(name for name in names if name)
    return " or ".join(known) if known else otherwise


def _chosen(reader: Reader, nodes: Sequence[Node] | None, known: Iterable[str], what: str) -> tuple[str, ...]:
    """Resolve a list of names; ``None`` and ``*`` are all of them, an unknown one is a fault."""
    names = sorted(set(known))
    if nodes is None or any(node.value == ALL for node in nodes):
        return tuple(names)
    for node in nodes:
        if node.value not in names:
            reader.fault(node, _one_of(names, f"the name of {what}"))
    return tuple(str(node.value) for node in nodes if node.value in names)


Covered = tuple[tuple[str, str], ...]
"""Connection and endpoint, each pair that a rule covers."""

_NO_PLACE = Place((), (), refused=False)


@dataclass(frozen=True, slots=True)
class _Roles:
    """What the rules of roles are resolved against. ``names`` also holds connections that are at fault."""

    reader: Reader
    connections: Mapping[str, Connection]
    dialects: Mapping[str, Dialect]
    names: frozenset[str]

    def places(self, rule: AllowDoc | DenyDoc) -> Covered:
        """List every connection and endpoint a rule covers. An endpoint that none of its connections has is a fault."""
        named = connected(self.reader, rule.connections, self.connections)
        chosen = _chosen(self.reader, named, self.names, "a connection")
        has = {
            name: {each.name for each in self.dialects[found.dialect].endpoints.values() if each.calls is None}
            for name in chosen
            if (found := self.connections.get(name)) is not None and found.dialect in self.dialects
        }
        if not has or len(has) < len(chosen):
            return ()  # a connection or its dialect is at fault, and that was said
        plain, by_address = addressed(self.reader, rule, {name: self._dialect(name) for name in has})
        endpoints = _chosen(self.reader, plain, set().union(*has.values()), "an endpoint")
        covered = ((name, endpoint) for name in chosen for endpoint in endpoints if endpoint in has[name])
        return tuple(dict.fromkeys((*covered, *(at for at in by_address if at[1] in has[at[0]]))))

    def _dialect(self, connection: str) -> Dialect:
        return self.dialects[self.connections[connection].dialect]

    def place(
        self,
        role: str,
        at: tuple[str, str],
        allowed: Sequence[tuple[AllowDoc, Covered]],
        denied: Sequence[tuple[DenyDoc, Covered]],
    ) -> Place:
        """Collect a role's rules on one endpoint.

        A token limit means nothing where the dialect counts no tokens. A condition on models means nothing where no
        request can name one: a list of models has no body to name it in, a form has no field for it, bodies inside of a
        body are asked one by one, and what is called by a message has no model unless the dialect says where. With any
        other body, an unknown model stays unknown. Nor does the approval of such a rule, which is one of its models.
        """
        endpoint = self.dialects[self.connections[at[0]].dialect].endpoints[at[1]]
        plain = endpoint.body and bool(endpoint.paths) and endpoint.made_of.may_name_model
        names = plain or bool(endpoint.asked.model.paths)
        allows = [rule for rule, covered in allowed if at in covered]
        return placed(role, endpoint, allows, [rule for rule, covered in denied if at in covered], names=names)

    def doors(self) -> Iterable[tuple[tuple[str, str], Covered]]:
        """List every address of calls, with what is called there: who may call anything there may come in."""
        for name, connection in self.connections.items():
            dialect = self.dialects.get(connection.dialect)
            for door in dialect.endpoints.values() if dialect is not None else ():
                if door.calls is not None:
                    inside = (*door.calls.methods.values(), *((door.calls.results,) if door.calls.results else ()))
                    yield (name, door.name), tuple((name, each) for each in dict.fromkeys(one.name for one in inside))

    def check(self, rule: AllowDoc, covered: Covered, denied: Sequence[tuple[DenyDoc, Covered]]) -> None:
        """Refuse an allow rule that can have no effect, and a body limit that its connections make pointless."""
        for deny, places in denied:
            if covered and covered_by(rule, deny) and set(covered) <= set(places):
                self.reader.fault(
                    rule.node,
                    "an allow rule of which the role's deny rules leave something",
                    found=f"a rule that {deny.node.key} denies",
                )
                break
        most = max((self.connections[name].request_bytes for name, _ in covered), default=0)
        if rule.body is not None and rule.body_node is not None and most and rule.body > most:
            self.reader.fault(rule.body_node, f"at most the connection's limit of {most} bytes")


def _permissions(
    reader: Reader, document: Document, connections: Mapping[str, Connection], dialects: Mapping[str, Dialect]
) -> Permissions:
    resolve = _Roles(reader, connections, dialects, frozenset(each.name for each in document.connections if each.name))
    places: dict[tuple[str, str], dict[str, Place]] = {}
    for name, role in document.roles.items():
        denied = [(rule, resolve.places(rule)) for rule in role.deny]
        allowed = [(rule, resolve.places(rule)) for rule in role.allow]
        for allow, covered in allowed:
            resolve.check(allow, covered, denied)
        for at in {at for _, covered in (*denied, *allowed) for at in covered}:
            places.setdefault(at, {})[name] = resolve.place(name, at, allowed, denied)
        for at, inside in resolve.doors():
            allows = [rule for each in inside for rule in places.get(each, {}).get(name, _NO_PLACE).allows]
            if allows:
                places.setdefault(at, {})[name] = Place(tuple(dict.fromkeys(allows)), (), refused=False)
    groups: dict[str, tuple[str, ...]] = {}
    subjects: dict[str, tuple[str, ...]] = {}
    claims = bound(reader, document)
    for binding in document.bindings:
        roles = _chosen(reader, binding.roles, document.roles, "a role")
        for kind, nodes, table in (("group", binding.groups, groups), ("subject", binding.subjects, subjects)):
            for node in nodes:
                if _qualified(reader, document, node, kind) and not binding.claims:
                    name = str(node.value)
                    table[name] = tuple(dict.fromkeys((*table.get(name, ()), *roles)))
    return Permissions(groups, subjects, places, claims, reads(places), situated(places))


def _qualified(reader: Reader, document: Document, node: Node, kind: str) -> bool:
    """Check that a group or subject carries the name of an identity."""
    identities = document.identities
    if identities.all is None:
        if kind == "subject" and node.value == ANONYMOUS:
            return True
        reader.fault(node, f"the subject {ANONYMOUS}, the only caller there is with identity: none")
        return False
    prefix, colon, rest = str(node.value).partition(":")
    names = sorted(identities.nodes)
    example = names[0] if names else "corp"
    if not colon or not rest:
        reader.fault(node, f'a {kind} with the name of its identity, such as "{example}:{prefix}"')
        return False
    if prefix not in identities.nodes:
        if identities.nodes:
            reader.fault(node, f"a {kind} of the identity {' or '.join(names)}")
        return False
    return True


def _actions(reader: Reader, document: Document, parts: Parts) -> dict[tuple[str, Direction], Action]:
    """Every class of the loaded packs needs an action in both directions, and no other class may have one.

    A class of hints alone has nothing to redact.
    """
    classes = {rule.cls for rule in parts.rules}
    scored = classes - {rule.cls for rule in parts.rules if rule.score is None}
    _thresholds(reader, document, parts)
    found: dict[tuple[str, Direction], Action] = {}
    for direction, actions in document.actions.items():
        for cls, (action, node) in actions.items():
            found[cls, direction] = action
            if cls not in classes and parts.whole:
                reader.fault(
                    node,
                    f"the classes of the loaded packs: {', '.join(sorted(classes)) or 'there are none'}",
                    found="an unknown class",
                )
            elif cls in scored and action in (Action.TOKENISE, Action.REDACT):
                reader.fault(node, "allow or flag or block, since a score has no place that could be redacted")
        for cls in sorted(classes - set(actions)):
            accepted = " or ".join(ACTIONS[direction])
            reader.fault(document.inspection, accepted, found="nothing", key=f"inspection.{direction}.{cls}")
    return found


def _thresholds(reader: Reader, document: Document, parts: Parts) -> None:
    scored = sorted({rule.cls for rule in parts.rules if rule.score is not None})
    for cls, (_, node) in document.thresholds.items():
        if cls not in scored and parts.whole:
            accepted = f"the classes of scored rules: {', '.join(scored) or 'there are none'}"
            reader.fault(node, accepted, found="a threshold of another class")


def _decisions(
    mode: Mode,
    actions: Mapping[tuple[str, Direction], Action],
    rules: Sequence[Rule],
    direction: Direction,
    masked: Collection[str],
) -> dict[str, Action]:
    """Give each rule its action; a rule or policy that observes turns what would act into a flag.

    ``masked`` are classes that need approval, and are sent masked even so.
    """
    found: dict[str, Action] = {}
    for rule in rules:
        action = actions.get((rule.cls, direction), Action.BLOCK)
        if rule.score is not None and action in (Action.TOKENISE, Action.REDACT):
            action = Action.FLAG  # other rules of its class can be masked, a score cannot
        if action is Action.APPROVE and rule.cls in masked and rule.score is None:
            action = Action.REDACT
        acts = action in ACTING
        found[rule.id] = Action.FLAG if acts and (rule.observe or mode is Mode.OBSERVE) else action
    return found


def _shared(
    document: Document,
    connections: Mapping[str, Connection],
    permissions: Permissions,
    dialects: Mapping[str, Dialect],
) -> Iterable[str]:
    """Say where callers that nobody tells apart share what they store at a provider."""
    if document.identities.all is not None:
        return
    for connection in connections.values():
        known = dialects[connection.dialect].endpoints if connection.dialect in dialects else {}
        granted = sorted(
            name for name, each in known.items() if each.makes.paths and _is_allowed(permissions, connection, name)
        )
        if granted:
            yield (
                f"connection {connection.name}: identity: none: whatever is stored through "
                f"{', '.join(granted)} belongs to everybody who reaches this port"
            )


def _is_allowed(permissions: Permissions, connection: Connection, endpoint: str) -> bool:
    return any(role.allows for role in permissions.places.get((connection.name, endpoint), {}).values())


def _warnings(
    document: Document, rules: Sequence[Rule], actions: Mapping[tuple[str, Direction], Action]
) -> tuple[str, ...]:
    """Say what a reader of the start panel must know."""
    found: list[str] = []
    if document.mode is Mode.OBSERVE:
        found.append("mode: observe: findings are recorded, nothing is redacted or blocked")
    if document.identities.all is None:
        found.append("identity: none: every client is let in as one anonymous caller")
        if Action.TOKENISE in actions.values():
            found.append("identity: none: what one client has tokenised is restored for any that names its token")
    if document.unlisted is Unlisted.PASS:
        found.append("unlisted: pass: hosts that no connection names are not inspected")
    found.extend(
        f"connection {each.name}: on_unknown: {each.on_unknown}: what cannot be inspected is sent to the model"
        for each in document.connections
        if each.on_unknown is not OnUnknown.BLOCK
    )
    found.extend(told(document))
    observed = sorted(rule.id for rule in rules if rule.observe)
    if observed and document.mode is Mode.ENFORCE:
        more = f" and {len(observed) - SHOWN} more (tidegate rules list tells)" if len(observed) > SHOWN else ""
        found.append(f"these rules only observe: {', '.join(observed[:SHOWN])}{more}")
    found.extend(
        f"connection {each.name}: an env: credential can be read by every process of this user"
        for each in document.connections
        if each.credential is not None and "${env:" in each.credential.template
    )
    return tuple(found)
