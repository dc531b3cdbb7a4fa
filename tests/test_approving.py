"""A request that needs approval, as the crossing sees it: what it says, what may be shown, what is sent, and when."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.approval_rules import INSPECTION, few_rules
from tests.documents import pdf
from tests.e2e.harness import policy as written
from tests.test_crossing import ALICE, CHAT, head
from tidegate import approving, steps
from tidegate.approvals.spec import Scope
from tidegate.crossing import Crossing
from tidegate.inspection.cache import DiskCache
from tidegate.judging import Judged
from tidegate.model import Action, Denial, Direction, Reason
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy
from tidegate.steps import Stage

MAIL = "jane.roe@example-mail.com"
ROLES = {
    "dev": {
        "allow": [
            {"connections": ["*"], "endpoints": ["*"], "models": ["m"]},
            {"connections": ["*"], "endpoints": ["*"], "models": ["big-*"], "approve": "spend"},
            {"connections": ["*"], "endpoints": ["message_batches", "list_message_batches"]},
        ]
    }
}
APPROVALS: dict[str, Any] = {
    "pii": {"approvers": ["local:boss"], "scope": "data"},
    "spend": {"approvers": ["local:money"], "when": {"tools": ["launch"], "output_tokens": 5000}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("approving")
    few_rules(folder)
    return folder


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    path = written(folder, "http://127.0.0.1:9", inspection=INSPECTION, roles=ROLES, approvals=APPROVALS)
    document = yaml.safe_load(path.read_text())
    document["connections"][0]["on_unknown"] = "block"
    return load(path, engine_cache=DiskCache())


def chat(text: str = "hello", **more: Any) -> bytes:
    said = {"model": "m", "max_completion_tokens": 10, "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(said).encode()


def judged(policy: Policy, body: bytes, *fields: tuple[str, str], path: str = CHAT) -> tuple[Crossing, steps.Step]:
    exchange = Crossing(policy, "ex_1")
    got = exchange.receive(steps.HeadArrived(head(path, "POST", ("content-type", "application/json"), *fields), ALICE))
    assert isinstance(got, steps.ReadBody), got
    step = exchange.receive(steps.BodyArrived(body))
    return exchange, step


def held(policy: Policy, body: bytes, *fields: tuple[str, str], path: str = CHAT) -> tuple[Crossing, steps.Hold]:
    exchange, step = judged(policy, body, *fields, path=path)
    assert isinstance(step, steps.Hold), step
    assert exchange.stage is Stage.HOLD
    return exchange, step


def sent(exchange: Crossing, decided: steps.Step | None = None) -> bytes:
    step = exchange.receive(steps.Decided(None, "apr_1", 0.0, "pii class pii"))
    assert isinstance(step, steps.KeepIntent)
    step = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(step, steps.Send)
    return step.clearance.verdict.body


def test_what_needs_nobody_passes_as_ever(policy: Policy) -> None:
    exchange, step = judged(policy, chat())
    assert (isinstance(step, steps.KeepIntent), exchange.ask) == (True, None)


def test_a_held_request_is_masked_until_it_is_approved_and_then_sent_as_it_was(policy: Policy) -> None:
    exchange, step = held(policy, chat(f"Write to {MAIL}."))
    assert step.ask.labels == ("pii class pii",)
    assert step.ask.scope is Scope.DATA
    assert MAIL.encode() not in exchange.masked_body
    assert exchange.verdict is not None
    assert MAIL.encode() not in exchange.verdict.body
    shown = exchange.shown()
    assert shown is not None
    assert MAIL.encode() not in shown
    assert MAIL not in repr(step)
    assert json.loads(sent(exchange)) == json.loads(chat(f"Write to {MAIL}."))
    assert {each.action for each in exchange.prompt_findings} == {Action.APPROVE}
    assert MAIL.encode() not in exchange.masked_body  # what is recorded
    assert ("hold", "approve", "apr_1 pii class pii") in [
        (each.stage, each.result, each.detail) for each in exchange.decisions
    ]


def test_what_was_looked_at_beside_the_loop_is_what_is_sent(policy: Policy) -> None:
    exchange, _ = held(policy, chat(f"Write to {MAIL}."))
    looked = exchange.look(steps.Decided(None, "apr_1", 0.0))
    assert exchange.stage is Stage.HOLD
    assert isinstance(exchange.receive(looked), steps.KeepIntent)
    assert exchange.verdict is not None
    assert MAIL.encode() in exchange.verdict.body


def test_a_refusal_ends_it(policy: Policy) -> None:
    exchange, _ = held(policy, chat(MAIL))
    denial = Denial(Reason.APPROVAL_DENIED, 403, "No.")
    assert exchange.receive(steps.Decided(denial, "apr_1", 0.0)) == steps.Refuse(denial)
    assert (exchange.stage, exchange.denial, exchange.approval) == (Stage.OVER, denial, "apr_1")


def test_a_token_that_ended_meanwhile_sends_nothing(policy: Policy) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head(), replace(ALICE, expires=1000.0)))
    assert isinstance(exchange.receive(steps.BodyArrived(chat(MAIL))), steps.Hold)
    step = exchange.receive(steps.Decided(None, "apr_1", 1000.0))
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.TOKEN_EXPIRED


def test_a_block_comes_before_any_question(policy: Policy) -> None:
    key = "AKIA" + "Z7QK4WJX2MVT5R3P"
    _, step = judged(policy, chat(f"{MAIL} {key}"), ("x-tidegate-approval", "break-glass"))
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.FINDING


def test_after_a_thousand_flags_a_finding_still_needs_approval(policy: Policy) -> None:
    flagged = {
        rule: Action.FLAG if act is Action.APPROVE and rule == "few.email" else act
        for rule, act in policy.decisions[Direction.PROMPT].items()
    }
    lax = replace(policy, decisions={**policy.decisions, Direction.PROMPT: flagged})
    many = " ".join(f"p{number}@example-mail.com" for number in range(1200))
    exchange, step = held(lax, chat(f"{many} 4111 1111 1111 1111"))
    assert step.ask.labels == ("pii class pii",)
    assert any(each.action is Action.APPROVE for each in exchange.prompt_findings)


NEEDS: Mapping[str, tuple[bytes, tuple[str, ...]]] = {
    "the permission's model": (chat(model="big-1"), ("spend permission",)),
    "a tool": (
        chat(tools=[{"type": "function", "function": {"name": "Launch", "parameters": {}}}]), ("spend tool launch",),
    ),
    "an amount": (chat(max_completion_tokens=5001), ("spend more than 5000 output tokens",)),
    "two at once": (chat(MAIL, model="big-1"), ("pii class pii", "spend permission")),
}  # fmt: skip


@pytest.mark.parametrize(("body", "labels"), NEEDS.values(), ids=NEEDS.keys())
def test_what_needs_approval(policy: Policy, body: bytes, labels: tuple[str, ...]) -> None:
    exchange, step = held(policy, body)
    assert step.ask.labels == labels
    assert json.loads(sent(exchange)) == json.loads(body)


def test_a_batch_needs_what_any_request_inside_it_needs(policy: Policy) -> None:
    def one(number: int, model: str, text: str) -> dict[str, Any]:
        params = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
        return {"custom_id": str(number), "params": params}

    path = "/anthropic/v1/messages/batches"
    _, step = held(policy, json.dumps({"requests": [one(1, "m", "a"), one(2, "big-1", "b")]}).encode(), path=path)
    assert step.ask.labels == ("spend permission",)
    body = json.dumps({"requests": [one(1, "m", "a"), one(2, "m", MAIL)]}).encode()
    exchange, step = held(policy, body, path=path)
    assert step.ask.labels == ("pii class pii",)
    assert MAIL.encode() not in exchange.masked_body + (exchange.shown() or b"")
    assert json.loads(sent(exchange)) == json.loads(body)


def test_an_attachment_is_not_shown_and_is_sent_as_it_is(policy: Policy) -> None:
    data = base64.b64encode(pdf(f"Write to {MAIL}")).decode()
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [file]}]}).encode()
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head(CHAT, "POST", ("content-type", "application/json")), ALICE))
    step = exchange.receive(steps.BodyArrived(body))
    if isinstance(step, steps.Extract):
        from tidegate.inspection.attachments import extract

        read = tuple(extract(each) for each in step.attachments)
        step = exchange.receive(steps.BodyArrived(body, extracted=read))
    assert isinstance(step, steps.Hold), step
    assert "pii class pii" in step.ask.labels
    assert exchange.shown() is None
    assert json.loads(sent(exchange)) == json.loads(body)


def test_approved_and_sent_masked_where_the_policy_says_so(folder: Path) -> None:
    approvals = {"pii": {"approvers": ["local:boss"], "send": "redacted"}}
    path = written(folder, "http://127.0.0.1:9", name="masked.yaml", inspection=INSPECTION, approvals=approvals)
    exchange, step = held(load(path, engine_cache=DiskCache()), chat(MAIL))
    assert step.ask.labels == ("pii class pii",)
    assert MAIL.encode() not in sent(exchange)


def test_a_policy_that_observes_asks_nobody(folder: Path) -> None:
    path = written(
        folder, "http://127.0.0.1:9", name="observe.yaml", mode="observe", inspection=INSPECTION,
        approvals={"pii": {"approvers": ["local:boss"]}},
    )  # fmt: skip
    exchange, step = judged(load(path, engine_cache=DiskCache()), chat(MAIL))
    assert isinstance(step, steps.KeepIntent)
    assert {each.action for each in exchange.prompt_findings} == {Action.FLAG}


def test_a_header_is_left_out_and_a_path_refused(policy: Policy) -> None:
    exchange, step = judged(policy, chat(), ("x-mail", MAIL))
    assert isinstance(step, steps.KeepIntent)
    step = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(step, steps.Send)
    assert "x-mail" not in dict(step.fields)
    _, step = judged(policy, chat(), path=f"{CHAT}?user={MAIL}")
    assert step == steps.Refuse(approving.PATH)


def test_reasons(policy: Policy) -> None:
    assert policy.approvals is not None
    strict = {name: replace(each, reason=True) for name, each in policy.approvals.entries.items()}
    asks = replace(policy, approvals=replace(policy.approvals, entries=strict))
    _, step = judged(asks, chat(MAIL))
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.APPROVAL_REASON
    assert "x-tidegate-reason" in step.denial.message
    _, hold = held(asks, chat(MAIL), ("x-tidegate-reason", "  a customer\t asked\x1b[31m "))
    assert hold.ask.reason == "a customer asked [31m"
    _, hold = held(asks, chat(MAIL), ("x-tidegate-reason", f"for {MAIL}"), ("x-tidegate-approval", "async"))
    assert (hold.ask.reason, hold.ask.at_once) == (approving.HIDDEN, True)


def test_how_long_it_waits(policy: Policy) -> None:
    assert held(policy, chat(MAIL), ("x-stainless-read-timeout", "60"))[1].seconds == 45.0
    assert held(policy, chat(MAIL))[1].seconds == 30.0


MESSAGES = {"data": chat(MAIL), "the permission's model": chat(model="big-1"), "nothing": chat()}


@pytest.mark.parametrize(("name", "body"), MESSAGES.items(), ids=MESSAGES.keys())
def test_a_message_in_the_middle_of_a_connection_is_refused(policy: Policy, name: str, body: bytes) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head(CHAT, "POST", ("content-type", "application/json")), ALICE))
    found = exchange.look(steps.BodyArrived(body))
    assert isinstance(found, steps.BodyArrived)
    assert isinstance(found.looked, Judged)
    endpoint = policy.dialects["openai"].endpoints["chat"]
    denial = approving.unheld(policy, endpoint, found.looked, len(body), None).denial
    assert denial is (None if name == "nothing" else approving.IMPOSSIBLE)


def test_a_call_of_a_tool_waits_like_any_request_also_in_a_list(folder: Path) -> None:
    connection = {"name": "mcp", "dialect": "mcp", "upstream": "http://127.0.0.1:9/mcp", "serve": {"path": "/mcp"}}
    approvals = {**APPROVALS, "spend": {"approvers": ["local:boss"], "when": {"tools": ["launch"]}}}
    roles = {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"]}]}}
    path = written(
        folder, "http://127.0.0.1:9", name="mcp.yaml", connections=[connection], inspection=INSPECTION,
        approvals=approvals, roles=roles,
    )  # fmt: skip
    loaded = load(path, engine_cache=DiskCache())

    def call(tool: str, number: int, **arguments: str) -> dict[str, Any]:
        params = {"name": tool, "arguments": arguments}
        return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}

    old = ("mcp-protocol-version", "2025-03-26")
    bodies = {
        "pii class pii": call("mail", 1, to=MAIL),
        "spend tool launch": [call("mail", 1, to="me"), call("launch", 2)],
    }
    for label, body in bodies.items():
        exchange, step = held(loaded, json.dumps(body).encode(), old, path="/mcp")
        assert step.ask.labels == (label,)
        assert MAIL.encode() not in (exchange.shown() or MAIL.encode())
        assert json.loads(sent(exchange)) == body
