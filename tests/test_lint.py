"""Rules that are sound and do nothing: each kind is told at its place, and what is in order is not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_oracle import Decider
from tidegate.policy.lint import lint

ALLOW = {"connections": ["a", "b", "c"], "endpoints": ["chat"]}
TIGHT = {"connections": ["a"], "endpoints": ["chat"], "models": ["gpt-*"], "limits": {"max_output_tokens": 9}}
BOUND = [{"groups": ["corp:all"], "roles": ["r"]}]


def policy(allow: list[Any], deny: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    role = {"allow": allow, "deny": deny or []}
    return {
        "version": 1,
        "identity": more.get("identity", [{"name": "corp", "oidc": {"issuer": "https://i.example", "audience": "t"}}]),
        "connections": [
            {"name": each, "dialect": "openai", "upstream": f"https://{each}.example"} for each in ("a", "b", "c")
        ],
        "roles": {"r": role, **more.get("roles", {})},
        "bindings": more.get("bindings", BOUND),
        "inspection": {"prompt": {}, "response": {}},
    }


def notices(document: dict[str, Any]) -> list[str]:
    here = Decider(document)
    found = lint("p.yaml", here.written, here.connections, here.dialects, here.permissions)
    assert all(each.file == "p.yaml:1" for each in found)
    return [f"{each.key}: {each.text}" for each in found]


def changed(rule: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {**rule, **keys}


STATIC = [{"name": "corp", "static": {"tokens": "t.yaml"}}]
OTHER = {"s": {"allow": [], "deny": [{"connections": ["a", "b", "c"]}]}}
BOTH = [{"groups": ["corp:all"], "roles": ["r", "s"]}]
AT = "roles.r.allow"
CASES = [
    pytest.param(policy([ALLOW]), None, id="in order"),
    pytest.param(policy([ALLOW, TIGHT]), None, id="a tighter limit has an effect"),
    pytest.param(policy([ALLOW], bindings=[]), "roles.r: the role is bound to nobody", id="bound to nobody"),
    pytest.param(
        policy([changed(ALLOW, mode="off"), changed(ALLOW, mode="observe")]),
        "roles.r: none of its rules is in force, so whoever is bound to it may do nothing by it",
        id="no rule in force",
    ),
    pytest.param(policy([ALLOW], bindings=BOUND * 2), "bindings[1]: the same as bindings[0]", id="a binding twice"),
    pytest.param(
        policy([TIGHT]),
        "connections[1]: no rule of any role allows anything of the connection b",
        id="a connection for nobody",
    ),
    pytest.param(
        policy([ALLOW, changed(ALLOW, models=["gpt 4"])]),
        f"{AT}[1]: a pattern of models that no name of a model can match: it holds spaces or other characters",
        id="a model that cannot be",
    ),
    pytest.param(
        policy([ALLOW, changed(ALLOW, modalities=["image"])]),
        f"{AT}[1]: every request has text, so without text in modalities it never allows",
        id="no text",
    ),
    pytest.param(
        policy([ALLOW, changed(ALLOW, endpoints=["embeddings"], stream=True)]),
        f"{AT}[1]: none of its endpoints streams, so with stream: true it never allows",
        id="a stream of what never streams",
    ),
    pytest.param(
        policy([ALLOW, changed(ALLOW, models=["gpt-*"])]),
        f"{AT}[1]: has no effect: {AT}[0] allows all of it, and limits it as much",
        id="shadowed",
    ),
    pytest.param(
        policy([ALLOW, ALLOW]), f"{AT}[1]: has no effect: {AT}[0] allows all of it, and limits it as much", id="twice"
    ),
    pytest.param(
        policy([ALLOW], roles=OTHER, bindings=BOTH),
        f"{AT}[0]: whoever has the role has s too, and roles.s.deny[0] denies all of it",
        id="denied by a role they have with it",
    ),
    pytest.param(
        policy([ALLOW, changed(TIGHT, endpoints=["embeddings"])]),
        f"{AT}[1].limits.max_output_tokens: none of its endpoints has a limit of output tokens",
        id="tokens where none are counted",
    ),
    pytest.param(
        policy([ALLOW, changed(ALLOW, endpoints=["embeddings"], limits={"choices": 1})]),
        f"{AT}[1].limits.choices: none of its endpoints gives several answers",
        id="choices where there are none",
    ),
    pytest.param(
        policy([changed(ALLOW, sources=["0.0.0.0/0"])]),
        f"{AT}[0].sources: a network that is everywhere is no condition",
        id="everywhere",
    ),
    pytest.param(
        policy([changed(ALLOW, models=["gpt-*", "gpt-4"])]),
        f"{AT}[0].models: gpt-4 is covered by another entry",
        id="an entry within another",
    ),
    pytest.param(
        policy([changed(ALLOW, limits={"tools": ["bash", "read"]})], [{"tools": ["bash"]}]),
        f"{AT}[0].limits.tools: bash: roles.r.deny[0] denies it",
        id="a tool allowed and denied",
    ),
    pytest.param(
        policy([changed(ALLOW, models=["gpt-*"])], [{"models": ["o1-*"]}]),
        "roles.r.deny[0]: denies nothing: no rule of any role allows what it speaks of",
        id="a deny rule for nothing",
    ),
    pytest.param(policy([ALLOW], [{"models": ["o1-*"]}]), None, id="a deny rule for something"),
    pytest.param(
        policy([ALLOW], [{"models": ["o1-*"]}, {"models": ["o1-mini"]}]),
        "roles.r.deny[1]: has no effect: roles.r.deny[0] denies all of it",
        id="a deny rule within another",
    ),
    pytest.param(
        policy([changed(ALLOW, strength=["mfa"])], identity=STATIC),
        f"{AT}[0]: only callers with static tokens have the role, who never signed in as it asks: it never allows",
        id="static tokens have no strength",
    ),
    pytest.param(
        policy([ALLOW], identity=STATIC, bindings=[*BOUND, {"claims": {"a": ["b"]}, "roles": ["r"]}]),
        "bindings[1]: static tokens carry no claims, so it binds nobody",
        id="static tokens have no claims",
    ),
    pytest.param(
        policy([ALLOW], bindings=[*BOUND, {"claims": {"department": ["b"]}, "roles": ["r"]}]),
        "bindings[1]: its identity does not carry department (oidc.carry), so it binds nobody",
        id="claims that nobody carries",
    ),
]


@pytest.mark.parametrize(("document", "expected"), CASES)
def test_what_is_told(document: dict[str, Any], expected: str | None) -> None:
    found = notices(document)
    assert (expected in found) if expected is not None else not found
