"""The shape of a policy file: which keys there are, and what each accepts. Pure; the names in it are not yet resolved.

``SECTIONS`` is the whole list of keys; docs/policy.md describes each of them and a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.inspection.tokens import TokenLimits
from tidegate.inspection.urls import HOST
from tidegate.model import Action, Direction, Mode
from tidegate.policy.admin import ADMIN_SECTIONS, read_admin
from tidegate.policy.approvals import APPROVAL_SECTIONS, ApprovalsDoc, read_approvals
from tidegate.policy.budgets import BUDGET_SECTIONS, BudgetsDoc, read_budgets
from tidegate.policy.conditions import (
    CONDITION_SECTIONS,
    AllowMore,
    DenyMore,
    read_allow_more,
    read_claims,
    read_deny_more,
)
from tidegate.policy.entrances import ENTRANCE_SECTIONS, read_proxy
from tidegate.policy.identities import IDENTITY_SECTIONS, Identities, read_identities
from tidegate.policy.ner import NER_SECTIONS, NerDoc, read_ner
from tidegate.policy.policy import Admin, ProxyAuthentication, Unlisted
from tidegate.policy.proprietary import (
    PROPRIETARY_SECTIONS,
    AllowFileDoc,
    DetectorDoc,
    read_allow_files,
    read_detectors,
)
from tidegate.policy.reader import Reader
from tidegate.policy.recording import RECORDING_SECTIONS, RecordingDoc, read_recording
from tidegate.policy.source import Node
from tidegate.policy.tokens import TOKEN_SECTIONS, read_tokens
from tidegate.policy.upstreams import (
    CONNECTION_SECTIONS,
    ConnectionDoc,
    LimitsDoc,
    read_connection,
    read_limits,
    read_runs,
)

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "": (
        "version",
        "mode",
        "unlisted",
        "identity",
        "proxy",
        "connections",
        "roles",
        "bindings",
        "budgets",
        "prices",
        "packs",
        "dialects",
        "inspection",
        "approvals",
        "tokens",
        "limits",
        "recording",
        "state",
        "admin",
    ),
    **ADMIN_SECTIONS,
    **IDENTITY_SECTIONS,
    **ENTRANCE_SECTIONS,
    **CONNECTION_SECTIONS,
    **BUDGET_SECTIONS,
    "roles.NAME": ("allow", "deny", "inspection", "admin"),
    "roles.NAME.allow[]": (
        "connections",
        "endpoints",
        "models",
        "stream",
        "modalities",
        "when",
        "sources",
        "strength",
        "max_age",
        "limits",
        "approve",
        "mode",
    ),
    "roles.NAME.allow[].limits": ("max_output_tokens", "body", "tools", "called", "choices", "budgets"),
    "roles.NAME.deny[]": (
        "connections",
        "endpoints",
        "models",
        "tools",
        "called",
        "stream",
        "modalities",
        "above",
        "when",
        "sources",
        "unless",
        "mode",
    ),
    **CONDITION_SECTIONS,
    "bindings[]": ("identity", "groups", "subjects", "claims", "roles"),
    "inspection": ("prompt", "response", "hosts", "thresholds", "encoded_runs", "proprietary", "allow", "ner"),
    **NER_SECTIONS,
    **PROPRIETARY_SECTIONS,
    **APPROVAL_SECTIONS,
    **TOKEN_SECTIONS,
    **RECORDING_SECTIONS,
    "state": ("path", "retain"),
}


ACTIONS: Mapping[Direction, tuple[Action, ...]] = {
    Direction.PROMPT: tuple(Action),
    Direction.RESPONSE: tuple(each for each in Action if each not in (Action.TOKENISE, Action.APPROVE)),
}
"""What may be done with findings. A token is given back to who said its value: no answer holds anything to tokenise.
Nor is there a request that could wait for somebody's approval of an answer."""

PACKS = ("packs/*.yaml",)
DIALECTS = ("dialects/*.yaml",)
STATE_NAME = "control.db"
STATE_RETAIN = 400 * 86400.0
"""OpenAI keeps responses for 30 days, files until they are deleted; what nobody is known to own nobody can use."""
_NAMES = 'a list of names, or ["*"] for all of them'
_PATTERNS = "a list of names in which * stands for any text"


@dataclass(frozen=True, slots=True)
class AllowDoc:
    """An allow rule as written. Lists of nodes hold ``str``; ``None`` means the key is absent."""

    node: Node
    connections: tuple[Node, ...]
    endpoints: tuple[Node, ...]
    models: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    max_output_tokens: int | None
    body: int | None
    body_node: Node | None
    more: AllowMore
    budgets: tuple[Node, ...] = ()
    approve: Node | None = None


@dataclass(frozen=True, slots=True)
class DenyDoc:
    """A deny rule as written; an absent key covers everything."""

    node: Node
    connections: tuple[Node, ...] | None
    endpoints: tuple[Node, ...] | None
    models: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    more: DenyMore


@dataclass(frozen=True, slots=True)
class RoleDoc:
    """A role as written. ``inspection`` is its section of that name."""

    allow: tuple[AllowDoc, ...]
    deny: tuple[DenyDoc, ...]
    node: Node
    inspection: Node | None


@dataclass(frozen=True, slots=True)
class BindingDoc:
    """A binding as written."""

    node: Node
    groups: tuple[Node, ...]
    subjects: tuple[Node, ...]
    roles: tuple[Node, ...]
    identity: Node | None = None
    claims: tuple[tuple[str, frozenset[str]], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A whole policy file, read but not yet linked. ``root`` is where faults about missing entries point."""

    root: Node
    mode: Mode
    unlisted: Unlisted
    identities: Identities
    proxy: ProxyAuthentication
    connections: tuple[ConnectionDoc, ...]
    roles: Mapping[str, RoleDoc]
    bindings: tuple[BindingDoc, ...]
    budgets: BudgetsDoc
    packs: tuple[str, ...]
    dialects: tuple[str, ...]
    inspection: Node
    actions: Mapping[Direction, Mapping[str, tuple[Action, Node]]]
    hosts: tuple[str, ...]
    thresholds: Mapping[str, tuple[float, Node]]
    encoded_runs: int
    detectors: tuple[DetectorDoc, ...]
    allow_files: tuple[AllowFileDoc, ...]
    ner: NerDoc | None
    approvals: ApprovalsDoc
    tokens: TokenLimits
    limits: LimitsDoc
    recording: RecordingDoc
    state_path: Node | None
    state_retain: float
    admin: Admin


def read(reader: Reader, root: Node) -> Document:
    """Read a policy's tree. Faults are in the reader; the document holds whatever could be understood."""
    top = reader.section(
        root,
        SECTIONS[""],
        {
            "version": "1",
            "identity": "a list of identities, or the word none to switch identity off",
            "connections": "a list of at least one connection",
            "inspection": "an action for each class of finding, under prompt and under response",
        },
    )
    version = top.get("version")
    if version is not None and (version.value != 1 or isinstance(version.value, bool)):
        reader.fault(version, "1")
    connections = top.get("connections")
    if connections is not None and connections.value == ():
        reader.fault(connections, "a list of at least one connection", found="an empty list")
    inspection = top.get("inspection", root)
    below = inspection.value if "inspection" in top and isinstance(inspection.value, Mapping) else {}
    state = reader.section(top["state"], SECTIONS["state"]) if "state" in top else {}
    identities = read_identities(reader, top.get("identity"))
    return Document(
        root=root,
        mode=reader.choice(top.get("mode"), Mode, Mode.ENFORCE),
        unlisted=reader.choice(top.get("unlisted"), Unlisted, Unlisted.DENY),
        identities=identities,
        proxy=read_proxy(reader, top.get("proxy"), top.get("identity")),
        connections=tuple(read_connection(reader, each) for each in reader.items(connections)),
        roles={name: _role(reader, node) for name, node in reader.entries(top.get("roles")).items()},
        bindings=tuple(_binding(reader, each) for each in reader.items(top.get("bindings"))),
        budgets=read_budgets(reader, top.get("budgets"), top.get("prices")),
        packs=_globs(reader, top.get("packs"), PACKS),
        dialects=_globs(reader, top.get("dialects"), DIALECTS),
        inspection=inspection,
        actions=_actions(reader, top.get("inspection")),
        hosts=_hosts(reader, below.get("hosts")),
        thresholds=_thresholds(reader, below.get("thresholds")),
        encoded_runs=read_runs(reader, below.get("encoded_runs")) or 0,
        detectors=read_detectors(reader, below.get("proprietary")),
        allow_files=read_allow_files(reader, below.get("allow")),
        ner=read_ner(reader, below.get("ner")),
        approvals=read_approvals(reader, top.get("approvals")),
        tokens=read_tokens(reader, top.get("tokens")),
        limits=read_limits(reader, top.get("limits")),
        recording=read_recording(reader, top.get("recording")),
        state_path=state.get("path") if reader.text(state.get("path"), "the path of an SQLite file") else None,
        state_retain=reader.seconds(state.get("retain")) or STATE_RETAIN,
        admin=read_admin(reader, top, identities),
    )


def _globs(reader: Reader, node: Node | None, default: tuple[str, ...]) -> tuple[str, ...]:
    found = reader.texts(node, "a list of paths relative to this file, in which * stands for any text")
    return tuple(str(each.value) for each in found) or default


def _patterns(reader: Reader, node: Node | None) -> tuple[str, ...] | None:
    if node is None:
        return None
    return tuple(str(each.value) for each in reader.texts(node, _PATTERNS))


def _role(reader: Reader, node: Node) -> RoleDoc:
    reader.name(Node(node.key, node.line, node.key.removeprefix("roles.")))
    section = reader.section(node, SECTIONS["roles.NAME"])
    allow = tuple(_allow(reader, each) for each in reader.items(section.get("allow"), "a list of rules"))
    deny = tuple(_deny(reader, each) for each in reader.items(section.get("deny"), "a list of rules"))
    if isinstance(node.value, Mapping) and not allow and not deny and not {"inspection", "admin"} & set(section):
        reader.fault(node, "at least one rule under allow or deny", found="no rule")
    return RoleDoc(allow, deny, node, section.get("inspection"))


def _allow(reader: Reader, node: Node) -> AllowDoc:
    section = reader.section(node, SECTIONS["roles.NAME.allow[]"], {"connections": _NAMES, "endpoints": _NAMES})
    limits = reader.section(section["limits"], SECTIONS["roles.NAME.allow[].limits"]) if "limits" in section else {}
    return AllowDoc(
        node=node,
        connections=reader.texts(section.get("connections"), _NAMES),
        endpoints=reader.texts(section.get("endpoints"), _NAMES),
        models=_patterns(reader, section.get("models")),
        tools=_patterns(reader, limits.get("tools")),
        max_output_tokens=reader.count(limits.get("max_output_tokens"), "a whole number of tokens above zero"),
        body=reader.bytes(limits.get("body")),
        body_node=limits.get("body"),
        more=read_allow_more(reader, section, limits),
        budgets=reader.texts(limits.get("budgets"), "a list of budgets"),
        approve=section.get("approve"),
    )


def _deny(reader: Reader, node: Node) -> DenyDoc:
    section = reader.section(node, SECTIONS["roles.NAME.deny[]"])
    if isinstance(node.value, Mapping) and not node.value:
        reader.fault(node, "at least one of connections, endpoints, models, tools, called ...", found="no condition")
    connections, endpoints = section.get("connections"), section.get("endpoints")
    return DenyDoc(
        node=node,
        connections=None if connections is None else reader.texts(connections, _NAMES),
        endpoints=None if endpoints is None else reader.texts(endpoints, _NAMES),
        models=_patterns(reader, section.get("models")),
        tools=_patterns(reader, section.get("tools")),
        more=read_deny_more(reader, section),
    )


def _binding(reader: Reader, node: Node) -> BindingDoc:
    section = reader.section(node, SECTIONS["bindings[]"], {"roles": "a list of roles"})
    if isinstance(node.value, Mapping) and not {"groups", "subjects", "claims"} & set(section):
        reader.fault(node, 'groups, subjects or claims, such as groups: ["corp:ml-eng"]', found="nobody to bind")
    return BindingDoc(
        node=node,
        groups=reader.texts(section.get("groups"), 'a list of groups such as "corp:ml-eng"'),
        subjects=reader.texts(section.get("subjects"), 'a list of subjects such as "corp:alice"'),
        roles=reader.texts(section.get("roles"), "a list of roles"),
        identity=section.get("identity"),
        claims=read_claims(reader, section.get("claims")),
    )


def _hosts(reader: Reader, node: Node | None) -> tuple[str, ...]:
    accepted = 'a list of hosts such as docs.example.com, or "*.example.com" for all below it'
    found = reader.texts(node, accepted)
    for each in found:
        if not HOST.fullmatch(str(each.value)):
            reader.fault(each, accepted)
    return tuple(str(each.value) for each in found)


def _thresholds(reader: Reader, node: Node | None) -> dict[str, tuple[float, Node]]:
    found: dict[str, tuple[float, Node]] = {}
    for cls, each in reader.entries(node).items():
        value = reader.share(each)
        if value is not None:
            found[cls] = value, each
    return found


def _actions(reader: Reader, node: Node | None) -> dict[Direction, dict[str, tuple[Action, Node]]]:
    found: dict[Direction, dict[str, tuple[Action, Node]]] = {}
    if node is None:
        return found
    section = reader.section(
        node, SECTIONS["inspection"], dict.fromkeys(("prompt", "response"), "an action for each class of finding")
    )
    for direction in Direction:
        if direction not in section or not isinstance(section[direction].value, Mapping):
            reader.entries(section.get(direction))
            continue
        found[direction] = {}
        for cls, action in reader.entries(section[direction]).items():
            found[direction][cls] = (_action(reader, action, direction), action)
    return found


def _action(reader: Reader, node: Node, direction: Direction) -> Action:
    known = ACTIONS[direction]
    if node.value in known:
        return Action(str(node.value))
    notes = {
        "approve": ", since only a request can wait for an approval",
        "tokenise": ", since only prompts can be tokenised",
    }
    reader.fault(node, " or ".join(known) + notes.get(str(node.value), ""))
    return Action.BLOCK
