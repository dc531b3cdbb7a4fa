"""What a policy says of approvals: ``approvals``, and what refers to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tidegate.approvals.spec import (
    IN_ALL,
    PER_CALLER,
    Approval,
    Approvals,
    Hours,
    OnGone,
    Scope,
    Sends,
    Target,
    Triggers,
)
from tidegate.policy.notifying import NOTIFY_SECTIONS, read_notify
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

if TYPE_CHECKING:
    from tidegate.policy.schema import Document

APPROVAL_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "approvals": ("pending", "owners", "notify"),
    "approvals.pending": ("per_caller", "in_all"),
    "approvals.NAME": (
        "approvers",
        "every_group",
        "quorum",
        "decide_within",
        "use_within",
        "scope",
        "reason",
        "on_client_gone",
        "send",
        "when",
        "break_glass",
        "max_age",
    ),
    "approvals.NAME.when": ("classes", "rules", "tools", "models", "output_tokens", "body", "hours"),
    "approvals.NAME.when.hours": ("outside", "days", "zone"),
    **NOTIFY_SECTIONS,
}
RESERVED = APPROVAL_SECTIONS["approvals"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST = 86400.0 * 7
"""Seconds that somebody may take to decide, or to use what was approved: what is older nobody remembers."""
_OUTSIDE = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_GROUPS = 'a list of groups such as "corp:data-stewards"'
_PATTERNS = "a list of names in which * stands for any text"
_ZONE = "a time zone such as Europe/Berlin or UTC"


@dataclass(frozen=True, slots=True)
class EntryDoc:
    """One entry as written, with the nodes that other parts of the policy are compared with."""

    node: Node
    entry: Approval
    groups: tuple[Node, ...]
    classes: tuple[Node, ...]
    rules: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ApprovalsDoc:
    """The section as written; ``node`` is ``None`` where there is none."""

    node: Node | None = None
    entries: Mapping[str, EntryDoc] = field(default_factory=dict)
    per_caller: int = PER_CALLER
    in_all: int = IN_ALL
    owners: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    notify: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkedApprovals:
    """What came of it. ``redacted`` are the entries after whose yes their findings are sent masked."""

    made: Approvals | None
    redacted: tuple[Approval, ...] = ()


def read_approvals(reader: Reader, node: Node | None) -> ApprovalsDoc:
    """Read ``approvals``. Faults go to the reader."""
    if node is None:
        return ApprovalsDoc()
    every = reader.entries(node)
    pending = reader.section(every["pending"], APPROVAL_SECTIONS["approvals.pending"]) if "pending" in every else {}
    accepted = "a whole number of pending approvals above zero"
    per_caller = reader.count(pending.get("per_caller"), accepted) or PER_CALLER
    in_all = reader.count(pending.get("in_all"), accepted) or max(per_caller, IN_ALL)
    if per_caller > in_all:
        reader.fault(pending.get("per_caller", node), f"at most the {in_all} in all")
    return ApprovalsDoc(
        node,
        {name: _entry(reader, name, each) for name, each in every.items() if name not in RESERVED},
        per_caller,
        in_all,
        {
            name: reader.texts(each, 'a list of subjects such as "corp:alice"')
            for name, each in reader.entries(every.get("owners")).items()
        },
        read_notify(reader, every.get("notify")),
    )


def _entry(reader: Reader, name: str, node: Node) -> EntryDoc:
    reader.name(Node(node.key, node.line, name))
    keys = reader.section(node, APPROVAL_SECTIONS["approvals.NAME"], {"approvers": _GROUPS})
    groups = reader.texts(keys.get("approvers"), _GROUPS)
    names = tuple(dict.fromkeys(str(each.value) for each in groups))
    every = reader.flag(keys.get("every_group"), default=False)
    least = len(names) if every else 1
    quorum = reader.count(keys.get("quorum"), "a whole number of people above zero") or least
    if quorum < least:
        reader.fault(keys["quorum"], f"at least {least}, one person for each group")
    when = reader.section(keys["when"], APPROVAL_SECTIONS["approvals.NAME.when"]) if "when" in keys else {}
    classes = reader.texts(when.get("classes"), "a list of classes")
    rules = reader.texts(when.get("rules"), "a list of rules such as proprietary.contracts")
    default = Approval(name, names)
    entry = Approval(
        name=name,
        groups=names,
        every=every,
        quorum=quorum,
        decide_within=_time(reader, keys.get("decide_within"), default.decide_within),
        use_within=_time(reader, keys.get("use_within"), default.use_within),
        scope=reader.choice(keys.get("scope"), Scope, default.scope),
        reason=_reason(reader, keys.get("reason")),
        on_gone=reader.choice(keys.get("on_client_gone"), OnGone, default.on_gone),
        sends=reader.choice(keys.get("send"), Sends, default.sends),
        when=Triggers(
            classes=tuple(str(each.value) for each in classes),
            rules=tuple(str(each.value) for each in rules),
            tools=tuple(str(each.value) for each in reader.texts(when.get("tools"), _PATTERNS)),
            models=tuple(str(each.value) for each in reader.texts(when.get("models"), _PATTERNS)),
            output_tokens=reader.count(when.get("output_tokens"), "a whole number of tokens above zero"),
            body=reader.bytes(when.get("body")),
            hours=_hours(reader, when.get("hours")),
        ),
        break_glass=tuple(str(each.value) for each in reader.texts(keys.get("break_glass"), _GROUPS)),
        max_age=reader.seconds(keys.get("max_age")),
    )
    glass = reader.items(keys.get("break_glass"))
    return EntryDoc(node, entry, (*groups, *(each for each in glass if isinstance(each.value, str))), classes, rules)


def _reason(reader: Reader, node: Node | None) -> bool:
    if node is None or node.value == "optional":
        return False
    if node.value != "required":
        reader.fault(node, "required or optional")
    return True


def _time(reader: Reader, node: Node | None, default: float) -> float:
    found = reader.seconds(node)
    if node is not None and found is not None and found > MOST:
        reader.fault(node, "at most 7d")
    return found or default


def _hours(reader: Reader, node: Node | None) -> Hours | None:
    if node is None:
        return None
    accepted = "hours in which nobody is asked, such as 08:00-18:00"
    keys = reader.section(node, APPROVAL_SECTIONS["approvals.NAME.when.hours"], {"outside": accepted, "zone": _ZONE})
    told = keys.get("outside")
    span = _OUTSIDE.fullmatch(told.value) if told is not None and isinstance(told.value, str) else None
    if told is not None and span is None:
        reader.fault(told, accepted)
    days = reader.texts(keys.get("days"), " or ".join(DAYS))
    for each in days:
        if each.value not in DAYS:
            reader.fault(each, " or ".join(DAYS))
    zone = str(keys["zone"].value) if "zone" in keys else "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        reader.fault(keys["zone"], _ZONE)
    start, end = ((int(span[1]) * 60 + int(span[2])), (int(span[3]) * 60 + int(span[4]))) if span else (0, 1)
    chosen = frozenset(DAYS.index(str(each.value)) for each in days if each.value in DAYS)
    return Hours(chosen or frozenset(range(7)), start, end, zone)


def link_approvals(
    reader: Reader, document: Document, wanted: Mapping[str, Sequence[str]], *, whole: bool
) -> LinkedApprovals:
    """Compare the section with the rest of the policy.

    ``wanted`` holds ``classes``, those whose action is ``approve``, and ``rules``, all there are; without ``whole`` a
    rule may be missing because its pack is at fault.
    """
    told = document.approvals
    names = sorted(told.entries)
    if told.node is not None and document.identities.all is None:
        reader.fault(told.node, "no approvals with identity: none, since nobody could be told apart")
    _groups(reader, document)
    _permissions(reader, document, names)
    entries = {name: _with_classes(each, told, wanted["classes"]) for name, each in told.entries.items()}
    _classes(reader, document, entries, wanted["classes"])
    used = {str(rule.approve.value) for role in document.roles.values() for rule in role.allow if rule.approve}
    for name, each in told.entries.items():
        for rule in each.rules:
            if rule.value not in wanted["rules"] and whole:
                reader.fault(rule, "the id of a rule that is loaded")
        if entries[name].when == Triggers() and name not in used:
            reader.fault(
                each.node,
                "something that needs it: when, a class of its name, or an allow rule's approve",
                "no trigger",
            )
    if not entries:
        return LinkedApprovals(None)
    owners = {name: tuple(str(each.value) for each in nodes) for name, nodes in told.owners.items()}
    return LinkedApprovals(
        Approvals(entries, told.per_caller, told.in_all, owners, told.notify),
        tuple(each for each in entries.values() if each.sends is Sends.REDACTED),
    )


def _with_classes(doc: EntryDoc, told: ApprovalsDoc, classes: Sequence[str]) -> Approval:
    """Give an entry the class of its name, if the policy wants approval for that and no entry names it."""
    named = {cls for each in told.entries.values() for cls in each.entry.when.classes}
    if doc.entry.name not in classes or doc.entry.name in named:
        return doc.entry
    when = replace(doc.entry.when, classes=(*doc.entry.when.classes, doc.entry.name))
    return replace(doc.entry, when=when)


def _classes(reader: Reader, document: Document, entries: Mapping[str, Approval], classes: Sequence[str]) -> None:
    """Each class whose action is ``approve`` belongs to one entry, and no other class does."""
    for cls in classes:
        mine = [name for name, each in entries.items() if cls in each.when.classes]
        if len(mine) != 1:
            reader.fault(
                document.inspection,
                f"approve, with one entry under approvals that is called {cls} or names it under when.classes",
                found=f"approve, and {len(mine)} entries for it",
                key=f"inspection.prompt.{cls}",
            )
    for each in document.approvals.entries.values():
        for node in each.classes:
            if node.value not in classes:
                reader.fault(node, "a class whose action under inspection.prompt is approve")


def _groups(reader: Reader, document: Document) -> None:
    """Check that approvers, and owners, carry the name of an identity."""
    known = sorted(document.identities.nodes)
    told = document.approvals
    nodes = [(each, "group") for doc in told.entries.values() for each in doc.groups]
    nodes += [(each, "subject") for owners in told.owners.values() for each in owners]
    if told.node is not None:
        nodes += [(Node(f"{told.node.key}.owners", told.node.line, name), "subject") for name in told.owners]
    for node, kind in nodes:
        prefix, _, rest = str(node.value).partition(":")
        if known and (prefix not in known or not rest):
            reader.fault(node, f'a {kind} with the name of its identity, such as "{known[0]}:{rest or prefix}"')


def _permissions(reader: Reader, document: Document, names: Sequence[str]) -> None:
    for role in document.roles.values():
        for rule in role.allow:
            if rule.approve is not None and rule.approve.value not in names:
                known = " or ".join(names) or "the name of an entry under approvals"
                reader.fault(rule.approve, known)
