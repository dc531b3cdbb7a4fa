"""Why a request is allowed or denied: which binding, rule and condition decided, and what would have to change. Pure.

The decision itself is the crossing's own; the trace beside it asks every rule of the policy by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tidegate import calls
from tidegate.crossing import Crossing
from tidegate.dialects import body as bodies
from tidegate.dialects.asking import asked
from tidegate.dialects.spec import Endpoint
from tidegate.dialects.wanted import complete
from tidegate.identity import conditions, permission
from tidegate.identity.names import named, refused
from tidegate.identity.rulesets import covers_model, denies_model
from tidegate.judging import NOTHING, situation_of
from tidegate.model import (
    AllowRule,
    Asked,
    Caller,
    Decision,
    Denial,
    DenyRule,
    Head,
    Route,
    RuleMode,
    Situation,
    Window,
)
from tidegate.policy.conditions import DAYS
from tidegate.policy.policy import Policy
from tidegate.policy.schema import AllowDoc, BindingDoc, DenyDoc, Document
from tidegate.steps import AskModel, BodyArrived, Extract, HeadArrived, LookUp, ReadBody, Refuse

WANTED = frozenset({"called", "choices", "modalities"})


@dataclass(frozen=True, slots=True)
class Ruled:
    """What one rule says of the request. ``condition`` is the key of the first condition that did not hold.

    ``found`` and ``accepted`` belong to it. Without a condition the rule applies: it allows, or denies.
    """

    rule: str
    role: str
    line: int
    kind: str
    mode: str
    bound: bool
    condition: str = ""
    found: str = ""
    accepted: str = ""
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """The decision on one request and how it came about. ``open`` says what could not be told without sending it."""

    allowed: bool
    reason: str | None
    message: str
    connection: str | None
    endpoint: str | None
    model: str | None
    decisions: tuple[Decision, ...]
    roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rules: tuple[Ruled, ...] = ()
    changes: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _About:
    caller: Caller
    situation: Situation
    asked: Asked
    size: int
    bound: frozenset[str] = field(default_factory=frozenset)


def explain(policy: Policy, document: Document, head: Head, caller: Caller, data: bytes, now: float) -> Explained:
    """Judge a request as the gate would at a Unix time, and say why. Nothing is sent, looked up or recorded."""
    crossing = Crossing(policy, "explained")
    step = crossing.receive(HeadArrived(head, caller, now=now))
    told: list[str] = []
    if isinstance(step, ReadBody):
        step = crossing.receive(BodyArrived(data))
        if isinstance(step, LookUp):
            told.append("whether the stored things it names are the caller's own is known to the gate that runs")
        elif isinstance(step, Extract):
            told.append("its attachments were not opened: what they hold may still refuse it")
        elif isinstance(step, AskModel):
            told.append("the local model was not asked: what it finds may still refuse it")
    denial = crossing.denial if isinstance(step, Refuse) else None
    found = Explained(
        allowed=denial is None,
        reason=None if denial is None else denial.reason,
        message="" if denial is None else denial.message,
        connection=crossing.route.connection.name if crossing.route else None,
        endpoint=crossing.route.endpoint if crossing.route else None,
        model=None,
        decisions=tuple(crossing.decisions),
        open=tuple(told),
    )
    return (
        found if crossing.route is None else _traced(found, policy, document, head, (crossing.route, caller, data, now))
    )


def _traced(
    found: Explained, policy: Policy, document: Document, head: Head, about: tuple[Route, Caller, bytes, float]
) -> Explained:
    """Add what every rule says, at the endpoint that is really asked."""
    route, caller, data, now = about
    endpoint, what = _asked(policy, route, data)
    name = endpoint.name
    roles = permission.roles_of(policy, caller)
    here = _About(caller, situation_of(head, route, now), what, len(data), frozenset(roles))
    rules = tuple(_rules(policy, document, route.connection.name, endpoint, here))
    by = tuple(
        (role, tuple(each.node.key for each in document.bindings if _gives(policy, each, role, caller)))
        for role in roles
    )
    return Explained(
        allowed=found.allowed, reason=found.reason, message=found.message, connection=found.connection, endpoint=name,
        model=what.model, decisions=found.decisions, roles=by, rules=rules,
        changes=() if found.allowed else tuple(_changes(rules, document)), open=found.open,
    )  # fmt: skip


def _asked(policy: Policy, route: Route, data: bytes) -> tuple[Endpoint, Asked]:
    """Read what a body asks for; of one that cannot be read, nothing is known."""
    endpoint = policy.dialects[route.connection.dialect].endpoints[route.endpoint]
    unknown = Asked(None, False, (), None)
    if not data:
        return endpoint, NOTHING
    value = bodies.strict_json(data)
    if endpoint.calls is not None and not isinstance(value, Denial):
        said = calls.messages(endpoint, value)
        if isinstance(said, Denial):
            return endpoint, unknown
        endpoint, value = said[0].endpoint, said[0].value
    if not isinstance(value, dict):
        return endpoint, unknown
    what = asked(endpoint, value, route.model)
    if not isinstance(what, Denial):
        what = complete(what, endpoint, value, WANTED)
    return endpoint, unknown if isinstance(what, Denial) else what


def _gives(policy: Policy, binding: BindingDoc, role: str, caller: Caller) -> bool:
    """Whether it is this binding that gives a caller a role."""
    if role not in {node.value for node in binding.roles}:
        return False
    if binding.claims:
        filed = (
            each
            for name, value in caller.claims
            for each in policy.permissions.claims.get((caller.identity, name, value), ())
        )
        return any(each.claims == binding.claims and role in each.roles and each.binds(caller) for each in filed)
    subjects = {f"{caller.identity}:{caller.subject}", f"{caller.identity}:*"}
    names = {str(node.value) for node in binding.groups} & caller.groups
    return bool(names) or bool(subjects & {str(node.value) for node in binding.subjects})


# ── rules ────────────────────────────────────────────────────────────────────


def _rules(policy: Policy, document: Document, connection: str, endpoint: Endpoint, about: _About) -> Iterable[Ruled]:
    places = policy.permissions.places.get((connection, endpoint.name), {})
    for name, role in document.roles.items():
        place = places.get(name)
        known = {} if place is None else {rule.id: rule for rule in (*place.allows, *place.denies, *place.observing)}
        for kind, docs in (("allow", role.allow), ("deny", role.deny)):
            for doc in docs:
                yield _ruled(policy, name, kind, doc, known.get(doc.node.key), connection, endpoint.name, about)


def _ruled(  # noqa: PLR0913, PLR0917 - each is another part of the trace
    policy: Policy,
    role: str,
    kind: str,
    doc: AllowDoc | DenyDoc,
    rule: AllowRule | DenyRule | None,
    connection: str,
    endpoint: str,
    about: _About,
) -> Ruled:
    condition = found = accepted = ""
    limit = False
    if rule is None:
        condition, found, accepted = _elsewhere(policy, doc, connection, endpoint)
    elif isinstance(rule, AllowRule):
        missing = _uncovered(rule, about) or _exceeded(rule, about)
        limit = missing is not None and _uncovered(rule, about) is None
        condition, found, accepted = missing or ("", "", "")
    else:
        condition, found, accepted = _spared(rule, about) or ("", "", "")
    return Ruled(
        doc.node.key,
        role,
        doc.node.line,
        kind,
        str(doc.more.mode),
        role in about.bound,
        condition,
        found,
        accepted,
        limit,
    )


Missing = tuple[str, str, str]
"""Key of a condition, what was found, what is accepted."""


def _elsewhere(policy: Policy, doc: AllowDoc | DenyDoc, connection: str, endpoint: str) -> Missing:
    if doc.more.mode is RuleMode.OFF:
        return "mode", "off", "enforce"
    labels = {f"label:{each}" for each in policy.connections[connection].labels}
    names = [str(node.value) for node in doc.connections or ()]
    if names and not {connection, "*", *labels} & set(names):
        return "connections", connection, ", ".join(names)
    names = [str(node.value) for node in doc.endpoints or ()]
    if names and not {endpoint, "*"} & set(names):
        return "endpoints", endpoint, ", ".join(names)
    return "endpoints", endpoint, "an endpoint where requests have what the rule asks about"


def _head(rule: AllowRule | DenyRule, about: _About) -> Missing | None:
    if rule.head is None:
        return None
    if isinstance(rule, DenyRule) and conditions.denies(rule.head, about.caller, about.situation):
        return None
    kind = conditions.failed(rule.head, about.caller, about.situation)
    return None if kind is None else (kind.value, *_situated(kind, rule, about))


def _situated(kind: conditions.Failed, rule: AllowRule | DenyRule, about: _About) -> tuple[str, str]:
    head, situation = rule.head, about.situation
    assert head is not None
    if kind is conditions.Failed.WINDOW:
        now = situation.now
        told = [_clock(now, each) for each in head.windows] if now is not None else ["no time"]
        return " or ".join(dict.fromkeys(told)), " or ".join(map(_window, head.windows))
    if kind is conditions.Failed.SOURCE:
        return situation.source or "no address", ", ".join(map(str, head.sources))
    if kind is conditions.Failed.STRENGTH:
        return ", ".join(sorted(about.caller.strength)) or "nothing of how the caller signed in", " or ".join(
            head.strength
        )
    if kind is conditions.Failed.AGE:
        since = about.caller.authenticated
        if since is None or situation.now is None:
            return "nothing of when the caller signed in", f"at most {head.max_age:g} s ago"
        return f"{situation.now - since:.0f} s ago", f"at most {head.max_age:g} s ago"
    return f"{situation.method} {situation.path}", ", ".join(" ".join(filter(None, each)) for each in head.addresses)


def _window(window: Window) -> str:
    days = "every day" if len(window.days) == len(DAYS) else ", ".join(DAYS[each] for each in sorted(window.days))
    hours = "-".join(f"{each // 60:02}:{each % 60:02}" for each in (window.start, window.end))
    return f"{days} {hours} {window.zone}"


def _clock(now: float, window: Window) -> str:
    local = datetime.fromtimestamp(now, UTC).astimezone(window.zone)
    return f"{DAYS[local.weekday()]} {local:%H:%M} {window.zone}"


def _uncovered(rule: AllowRule, about: _About) -> Missing | None:
    what = about.asked
    missing = _head(rule, about)
    if missing is not None:
        return missing
    if not covers_model(rule, what.model):
        return "models", what.model or "no model", ", ".join(rule.models or ())
    if rule.stream is not None and rule.stream is not what.stream:
        return "stream", str(what.stream).lower(), str(rule.stream).lower()
    if rule.modalities is not None and not (what.modalities is not None and what.modalities <= rule.modalities):
        return "modalities", _list(what.modalities), _list(rule.modalities)
    return None


def _exceeded(rule: AllowRule, about: _About) -> Missing | None:
    what = about.asked
    for key, allowed, names in (("tools", rule.tools, what.tools), ("called", rule.called, what.called)):
        odd = [each for each in names or () if allowed is not None and not named(allowed, each)]
        if allowed is not None and (names is None or odd):
            return f"limits.{key}", ", ".join(odd) or "unknown", ", ".join(allowed)
    if rule.choices is not None and (what.choices is None or what.choices > rule.choices):
        return "limits.choices", str(what.choices or "unknown"), f"at most {rule.choices}"
    tokens = rule.max_output_tokens
    if tokens is not None and (what.max_output is None or what.max_output > tokens):
        return "limits.max_output_tokens", str(what.max_output or "no limit"), f"at most {tokens}"
    if rule.body is not None and about.size > rule.body:
        return "limits.body", f"{about.size} bytes", f"at most {rule.body}"
    return None


def _spared(rule: DenyRule, about: _About) -> Missing | None:
    """Return why a deny rule does not concern the request."""
    what = about.asked
    missing = _head(rule, about)
    if missing is not None:
        return missing
    if rule.unless is not None and conditions.failed(rule.unless, about.caller, about.situation) is None:
        return "unless", "a call that comes as it asks", "any other"
    if not denies_model(rule, what.model):
        return "models", what.model or "", ", ".join(rule.models or ())
    if rule.stream is not None and rule.stream is not what.stream:
        return "stream", str(what.stream).lower(), str(rule.stream).lower()
    if rule.modalities is not None and what.modalities is not None and what.modalities.isdisjoint(rule.modalities):
        return "modalities", _list(what.modalities), _list(rule.modalities)
    for key, denied, names in (("tools", rule.tools, what.tools), ("called", rule.called, what.called)):
        if denied is not None and names is not None and not any(refused(denied, each) for each in names):
            return key, ", ".join(names) or "none", ", ".join(denied)
    for key, most, asks in (
        ("max_output_tokens", rule.above_tokens, what.max_output),
        ("choices", rule.above_choices, what.choices),
        ("body", rule.above_body, about.size),
    ):
        if most is not None and asks is not None and asks <= most:
            return f"above.{key}", str(asks), f"more than {most}"
    return None


def _list(names: Iterable[str] | None) -> str:
    return "unknown" if names is None else ", ".join(sorted(names))


# ── what would have to change ────────────────────────────────────────────────


def _changes(rules: Sequence[Ruled], document: Document) -> Iterable[str]:
    """Say what would let the request pass, nearest first: the request, the caller's roles, or a rule."""
    denying = [
        each for each in rules if each.kind == "deny" and each.bound and not each.condition and each.mode == "enforce"
    ]
    for each in denying:
        yield f"{each.rule} (line {each.line}) denies it: change it, or take the role {each.role} from the caller"
    near = [each for each in rules if each.kind == "allow" and each.mode == "enforce"]
    for each in near:
        if each.bound and each.limit:
            yield f"{each.rule} covers it, but {each.condition} found {each.found}; accepted: {each.accepted}"
    if any(each.bound and not each.condition for each in near):
        return
    for each in near:
        if each.bound and each.condition and not each.limit:
            yield f"{each.rule} does not cover it: {each.condition} found {each.found}; accepted: {each.accepted}"
    for each in near:
        if not each.bound and not each.condition:
            yield f"{each.rule} would allow it: bind the role {each.role} to the caller"
    if not document.roles:
        yield "the policy has no roles, so nobody may do anything"
