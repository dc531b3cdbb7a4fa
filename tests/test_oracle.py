"""The same decisions as Cedar's own engine, over random policies and requests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Dialect
from tidegate.explaining import _About, _rules
from tidegate.identity.permission import admit, permit, roles_of
from tidegate.model import Asked, Caller, Denial, Modality, Route, Situation
from tidegate.policy.linking import Parts, _connections, _permissions
from tidegate.policy.reader import Reader
from tidegate.policy.schema import read
from tidegate.policy.source import Node

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "rules" / "dialects" / "openai.yaml").read_text()
DIALECT = parse_dialect(TEXT, "openai.yaml")[0]
assert DIALECT is not None
SMALL = replace(DIALECT, endpoints={name: DIALECT.endpoints[name] for name in ("chat", "completions")})
"""With the endpoints that are asked alone: rules need not be placed on the fifty others."""
POLICIES = 2000
CHUNKS = 8

CONNECTIONS = {"a": ["eu"], "b": ["eu", "prod"], "c": []}
ENDPOINTS = ["chat", "completions"]
MODELS = ["m1", "m2", "n1"]
MODEL_PATTERNS = ["*", "m*", "m1", "n1", "*2"]
TOOLS = ["t1", "t2", "t3"]
STRENGTHS = ["mfa", "pwd", "phr"]
SOURCES = ["10.1.2.3", "192.168.0.9", "2001:db8::7", None]
NETWORKS = ["10.0.0.0/8", "192.168.0.0/24", "2001:db8::/32"]
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
MONDAY = 1_767_571_200  # 2026-01-05 00:00 UTC
BODY = 100


def tree(value: Any, key: str = "") -> Node:
    """Turn plain values into what YAML would be read as."""
    if isinstance(value, Mapping):
        return Node(key, 1, {name: tree(each, f"{key}.{name}" if key else name) for name, each in value.items()})
    if isinstance(value, list):
        return Node(key, 1, tuple(tree(each, f"{key}[{at}]") for at, each in enumerate(value)))
    return Node(key, 1, value)


class Dice(random.Random):
    def some(self, values: list[Any], least: int = 1) -> list[Any]:
        return self.sample(values, self.randint(least, len(values)))

    def maybe(self, of: float = 0.35) -> bool:
        return self.random() < of


def window(dice: Dice) -> dict[str, Any]:
    start, end = dice.sample(range(24), 2)
    found: dict[str, Any] = {"zone": "UTC", "hours": f"{start:02}:00-{end:02}:30"}
    if dice.maybe(0.5):
        found["days"] = dice.some(DAYS)
    return found


def head(dice: Dice, *, strong: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if dice.maybe(0.2):
        found["when"] = window(dice)
    if dice.maybe(0.2):
        found["sources"] = dice.some(NETWORKS)
    if strong and dice.maybe(0.2):
        found["strength"] = dice.some(STRENGTHS)
    if strong and dice.maybe(0.2):
        found["max_age"] = f"{dice.randint(1, 4)}h"
    return found


def places(dice: Dice) -> dict[str, Any]:
    names = dice.choice([["*"], ["label:eu"], ["label:prod", "c"], dice.some(list(CONNECTIONS))])
    return {"connections": names, "endpoints": dice.choice([["*"], dice.some(ENDPOINTS)])}


def body(dice: Dice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if dice.maybe():
        found["models"] = dice.some(MODEL_PATTERNS)
    if dice.maybe(0.2):
        found["stream"] = dice.maybe(0.5)
    return found


def allow(dice: Dice) -> dict[str, Any]:
    found = {**places(dice), **body(dice), **head(dice, strong=True)}
    if dice.maybe(0.3):
        found["modalities"] = ["text", *dice.some(["image", "audio", "file"])]
    limits: dict[str, Any] = {}
    if dice.maybe(0.2):
        limits["max_output_tokens"] = dice.randint(1, 9)
    if dice.maybe(0.2):
        limits["choices"] = dice.randint(1, 3)
    if dice.maybe(0.2):
        limits["body"] = dice.choice([50, 150])
    for key in ("tools", "called"):
        if dice.maybe(0.2):
            limits[key] = dice.some(TOOLS)
    return {**found, **({"limits": limits} if limits else {}), "mode": mode(dice)}


def mode(dice: Dice) -> str:
    return dice.choice(["enforce"] * 8 + ["observe", "off"])


def deny(dice: Dice) -> dict[str, Any]:
    found = {**(places(dice) if dice.maybe(0.7) else {}), **body(dice), **head(dice, strong=False)}
    for key in ("tools", "called"):
        if dice.maybe(0.25):
            found[key] = dice.some(TOOLS)
    if dice.maybe(0.2):
        found["modalities"] = dice.some(["image", "audio", "file"])
    if dice.maybe(0.3):
        kinds = {"max_output_tokens": 5, "choices": 1, "body": 50}
        found["above"] = {name: kinds[name] for name in dice.some(list(kinds))}
    if dice.maybe(0.3) and (unless := head(dice, strong=True)):
        found["unless"] = unless
    return {**(found or {"tools": ["t1"]}), "mode": mode(dice)}


def policy(dice: Dice) -> dict[str, Any]:
    roles = {
        name: {"allow": [allow(dice) for _ in range(dice.randint(0, 3))], "deny": [deny(dice)] if dice.maybe() else []}
        for name in ("r1", "r2", "r3")
    }
    bindings: list[dict[str, Any]] = [
        {"groups": ["corp:g1"], "roles": dice.some(list(roles))},
        {"subjects": ["corp:alice"], "roles": dice.some(list(roles))},
        {"claims": {"team": dice.some(["x", "y"]), "level": ["1"]}, "roles": dice.some(list(roles))},
        {"groups": ["corp:g2"], "claims": {"team": ["x"]}, "roles": dice.some(list(roles))},
    ]
    return {
        "version": 1,
        "identity": [{"name": "corp", "static": {"tokens": "t.yaml"}}],
        "connections": [
            {
                "name": name,
                "dialect": "openai",
                "upstream": f"https://{name}.example",
                **({"labels": labels} if labels else {}),
            }
            for name, labels in CONNECTIONS.items()
        ],
        "roles": roles,
        "bindings": dice.some(bindings),
        "inspection": {"prompt": {}, "response": {}},
    }


def caller(dice: Dice, now: int) -> Caller:
    claims = {("team", dice.choice(["x", "y", "z"]))} if dice.maybe(0.8) else set()
    if dice.maybe(0.8):
        claims.add(("level", "1"))
    return Caller(
        "corp",
        dice.choice(["alice", "bob"]),
        frozenset(f"corp:{each}" for each in dice.some(["g1", "g2"], 0)),
        strength=frozenset(dice.some(STRENGTHS, 0)),
        authenticated=None if dice.maybe(0.2) else now - dice.randint(0, 5 * 3600),
        claims=frozenset(claims),
    )


def asked(dice: Dice) -> Asked:
    return Asked(
        dice.choice([*MODELS, None]),
        dice.maybe(0.5),
        tuple(dice.some(TOOLS, 0)),
        dice.choice([None, 1, 5, 6, 9]),
        tuple(dice.some(TOOLS, 0)) if dice.maybe(0.8) else None,
        dice.choice([1, 2, 3, None]),
        frozenset({Modality.TEXT, *map(Modality, dice.some(["image", "audio", "file"], 0))})
        if dice.maybe(0.8)
        else None,
    )


# ── Cedar ────────────────────────────────────────────────────────────────────


def texts(values: list[str]) -> str:
    return "[" + ", ".join(f'"{each}"' for each in values) + "]"


def known(name: str, condition: str, *, unknown: bool) -> str:
    """A condition on a field that may not be known: then it is ``unknown``."""
    return f"(!(context has {name}) || ({condition}))" if unknown else f"(context has {name} && ({condition}))"


def in_window(found: Mapping[str, Any]) -> str:
    days = [DAYS.index(each) for each in found.get("days", DAYS)]
    (sh, sm), (eh, em) = (map(int, each.split(":")) for each in found["hours"].split("-"))
    start, end = sh * 60 + sm, eh * 60 + em
    today = f"{days}.contains(context.day)"
    before = f"{[(each + 1) % 7 for each in days]}.contains(context.day)"
    if start < end:
        return f"({today} && context.minute >= {start} && context.minute < {end})"
    return f"(({today} && context.minute >= {start}) || ({before} && context.minute < {end}))"


def heads(rule: Mapping[str, Any], *, unknown: bool) -> list[str]:
    found = []
    if "when" in rule:
        found.append(known("minute", in_window(rule["when"]), unknown=unknown))
    if "sources" in rule:
        inside = " || ".join(f'ip(context.source).isInRange(ip("{each}"))' for each in rule["sources"])
        found.append(known("source", inside, unknown=unknown))
    if "strength" in rule:
        found.append(f"context.strength.containsAny({texts(rule['strength'])})")
    if "max_age" in rule:
        hours = int(rule["max_age"][:-1])
        found.append(known("age", f"context.age <= {hours * 3600}", unknown=unknown))
    return found


def bodies(rule: Mapping[str, Any], *, unknown: bool) -> list[str]:
    found = []
    if "models" in rule:
        like = " || ".join(f'context.model like "{each}"' for each in rule["models"])
        found.append(known("model", like, unknown=unknown))
    if "stream" in rule:
        found.append(f"context.stream == {str(rule['stream']).lower()}")
    return found


def where(rule: Mapping[str, Any]) -> list[str]:
    found = []
    names = rule.get("connections", ["*"])
    if "*" not in names:
        inside = [
            n for n, labels in CONNECTIONS.items() if n in names or {f"label:{each}" for each in labels} & set(names)
        ]
        found.append(f"{texts(inside)}.contains(context.connection)")
    if "*" not in rule.get("endpoints", ["*"]):
        found.append(f"{texts(rule['endpoints'])}.contains(context.endpoint)")
    return found


def rule_texts(role: str, rules: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    mine = f'principal in Role::"{role}"'
    found = [text for rule in rules["allow"] if rule["mode"] == "enforce" for text in allow_texts(mine, rule)]
    return [*found, *(deny_text(mine, rule) for rule in rules["deny"] if rule["mode"] == "enforce")]


def allow_texts(mine: str, rule: Mapping[str, Any]) -> list[str]:
    covers = [mine, *where(rule), *heads(rule, unknown=False), *bodies(rule, unknown=False)]
    if "modalities" in rule:
        inside = f"{texts(rule['modalities'])}.containsAll(context.modalities)"
        covers.append(known("modalities", inside, unknown=False))
    over = [
        f"forbid(principal, action, resource) when {{ {' && '.join([*covers, each])} }};"
        for each in limits(rule.get("limits", {}))
    ]
    return [f"permit(principal, action, resource) when {{ {' && '.join(covers)} }};", *over]


def deny_text(mine: str, rule: Mapping[str, Any]) -> str:
    meets = [mine, *where(rule), *heads(rule, unknown=True), *bodies(rule, unknown=True)]
    if "tools" in rule:
        meets.append(f"context.tools.containsAny({texts(rule['tools'])})")
    both = [name for name in ("called", "modalities") if name in rule]
    meets += [known(name, f"context.{name}.containsAny({texts(rule[name])})", unknown=True) for name in both]
    above = rule.get("above", {})
    if "max_output_tokens" in above:
        meets.append(known("tokens", f"context.tokens > {above['max_output_tokens']}", unknown=True))
    if "choices" in above:
        meets.append(known("choices", f"context.choices > {above['choices']}", unknown=True))
    if "body" in above:
        meets.append(f"context.body > {above['body']}")
    unless = heads(rule.get("unless", {}), unknown=False)
    tail = f" unless {{ {' && '.join(unless)} }}" if unless else ""
    return f"forbid(principal, action, resource) when {{ {' && '.join(meets)} }}{tail};"


def limits(given: Mapping[str, Any]) -> list[str]:
    found = []
    if "max_output_tokens" in given:
        found.append(known("tokens", f"context.tokens > {given['max_output_tokens']}", unknown=True))
    if "choices" in given:
        found.append(known("choices", f"context.choices > {given['choices']}", unknown=True))
    if "body" in given:
        found.append(f"context.body > {given['body']}")
    if "tools" in given:
        found.append(f"!({texts(given['tools'])}.containsAll(context.tools))")
    if "called" in given:
        found.append(known("called", f"!({texts(given['called'])}.containsAll(context.called))", unknown=True))
    return found


def roles_by_cedar(document: Mapping[str, Any], who: Caller) -> list[str]:
    """Which roles a caller has: bindings are policies of their own, asked one by one."""
    found = set()
    claims = dict(who.claims)
    for binding in document["bindings"]:
        holds = []
        if "groups" in binding:
            holds.append(f"context.groups.containsAny({texts(binding['groups'])})")
        if "subjects" in binding:
            holds.append(f"{texts(binding['subjects'])}.contains(context.subject)")
        for name, values in binding.get("claims", {}).items():
            holds.append(f"context.claims has {name} && {texts(values)}.contains(context.claims.{name})")
        text = f"permit(principal, action, resource) when {{ {' && '.join(holds)} }};"
        context = {"groups": sorted(who.groups), "subject": f"corp:{who.subject}", "claims": claims}
        if decide(text, context, []):
            found.update(binding["roles"])
    return sorted(found)


def decide(text: str, context: dict[str, Any], roles: list[str]) -> bool:
    request = {"principal": 'User::"u"', "action": 'Action::"ask"', "resource": 'Thing::"t"', "context": context}
    parents = [{"type": "Role", "id": each} for each in roles]
    entities = [{"uid": {"type": "User", "id": "u"}, "attrs": {}, "parents": parents}]
    result = cedarpy.is_authorized(request, text, entities)
    assert not result.diagnostics.errors, result.diagnostics.errors
    return bool(result.allowed)


def cedar(document: Mapping[str, Any], who: Caller, at: Route, what: Asked, situation: Situation) -> bool:
    text = "\n".join(each for role, rules in document["roles"].items() for each in rule_texts(role, rules))
    context: dict[str, Any] = {
        "connection": at.connection.name,
        "endpoint": at.endpoint,
        "stream": what.stream,
        "tools": list(what.tools),
        "body": BODY,
        "strength": sorted(who.strength),
    }
    optional = {
        "model": what.model,
        "tokens": what.max_output,
        "choices": what.choices,
        "called": None if what.called is None else list(what.called),
        "modalities": None if what.modalities is None else sorted(what.modalities),
        "source": situation.source,
        "minute": None if situation.now is None else int(situation.now) % 86400 // 60,
        "day": None if situation.now is None else (int(situation.now) - MONDAY) // 86400 % 7,
        "age": None if situation.now is None or who.authenticated is None else int(situation.now - who.authenticated),
    }
    context.update({name: value for name, value in optional.items() if value is not None})
    return bool(text) and decide(text, context, roles_by_cedar(document, who))


class Decider:
    """Has the permissions of one policy, and nothing else of it."""

    def __init__(self, document: Mapping[str, Any], dialect: Dialect | None = DIALECT) -> None:
        assert dialect is not None
        reader = Reader("policy.yaml")
        self.written = written = read(reader, tree(document))
        self.dialects = {"openai": dialect}
        parts = Parts({"openai": dialect}, (), whole=True)
        self.connections = _connections(reader, written, parts)
        self.permissions = _permissions(reader, written, self.connections, parts.dialects)
        useless = (
            "deny rules leave something",
            "connection's limit",
            "at least one rule",
        )  # told, and decided all the same
        odd = [str(each) for each in reader.faults if not any(part in str(each) for part in useless)]
        assert not odd, odd


def explained(here: Decider, who: Caller, at: Route, what: Asked, situation: Situation) -> bool:
    """What the trace of ``tidegate explain`` comes to, which asks every rule by itself."""
    bound = frozenset(roles_of(here, who))  # type: ignore[arg-type]  # as above
    endpoint = here.dialects["openai"].endpoints[at.endpoint]
    about = _About(who, situation, what, BODY, bound)
    ruled = [each for each in _rules(here, here.written, at.connection.name, endpoint, about) if each.bound]  # type: ignore[arg-type]
    counts = [each for each in ruled if each.mode == "enforce"]
    allows = [each for each in counts if each.kind == "allow" and (not each.condition or each.limit)]
    denied = any(each.kind == "deny" and not each.condition for each in counts)
    return bool(allows) and not denied and not any(each.limit for each in allows)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_same_decisions_as_cedar(chunk: int) -> None:
    allowed = 0
    for number in range(chunk, POLICIES, CHUNKS):
        dice = Dice(number)
        document = policy(dice)
        here = Decider(document, SMALL)
        now = MONDAY + dice.randint(0, 7 * 86400 - 1)
        who, what = caller(dice, now), asked(dice)
        at = Route(here.connections[dice.choice(list(CONNECTIONS))], dice.choice(ENDPOINTS), "/v1/x")
        situation = Situation(None if dice.maybe(0.1) else float(now), dice.choice(SOURCES), "POST", "/v1/x")
        grant = admit(here, at, who, situation)  # type: ignore[arg-type]  # of a policy it asks for the permissions alone
        found = grant if isinstance(grant, Denial) else permit(grant, what)
        ours = not isinstance(found, Denial) and found.request_bytes >= BODY
        theirs = cedar(document, who, at, what, situation)
        assert ours is theirs, (number, document, who, what, situation, found)
        assert explained(here, who, at, what, situation) is theirs, (number, document, who, what, situation)
        allowed += ours
    assert allowed > POLICIES // CHUNKS // 20, "too few are allowed to say anything"
