"""A crossing under a policy with a local model: when it is asked, about what, and what becomes of its answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.ner_model import make
from tests.test_crossing import ALICE, CHAT, JSON, KEY, head, refused
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.endings import CLIENT_GONE
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.ner.spec import Late, NerSpan, Unread
from tidegate.model import Action, Decision, Direction, Mode, Outcome, Reason, Role
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy
from tidegate.steps import Stage

ROOT = Path(__file__).resolve().parents[1]
MAIL = "jane.doe@example.com"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The default policy, which redacts names in prompts and flags addresses."""
    folder = tmp_path_factory.mktemp("rules")
    for each in ("packs", "dialects"):
        (folder / each).symlink_to(ROOT / "rules" / each, target_is_directory=True)
    make(folder / "model")
    document = yaml.safe_load((ROOT / "rules" / "policy.yaml").read_text())
    document["inspection"]["ner"] = {"folder": "model", "labels": {"PER": "names", "LOC": "addresses"}}
    document["inspection"]["prompt"] |= {"names": "redact", "addresses": "flag"}
    document["inspection"]["response"] |= {"names": "allow", "addresses": "allow"}
    (folder / "policy.yaml").write_text(yaml.safe_dump(document))
    return load(folder / "policy.yaml", engine_cache=DiskCache())


def acting(policy: Policy, **actions: Action) -> Policy:
    """Give classes other actions in prompts."""
    changed = {f"ner.{cls}": action for cls, action in actions.items()}
    prompt = {**policy.decisions[Direction.PROMPT], **changed}
    return replace(policy, decisions={**policy.decisions, Direction.PROMPT: prompt})


def late(policy: Policy, verdict: Late, **more: object) -> Policy:
    assert policy.ner is not None
    return replace(policy, ner=replace(policy.ner, late=verdict), **more)  # type: ignore[arg-type]


def body(*messages: tuple[str, str], **more: object) -> bytes:
    said = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"model": "m", "messages": said, **more}).encode()


def asked(policy: Policy, data: bytes) -> tuple[Crossing, steps.Step]:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head(CHAT), ALICE))
    return exchange, exchange.receive(steps.BodyArrived(data))


def said(text: str, *found: tuple[str, str]) -> dict[str, tuple[NerSpan, ...]]:
    return {text: tuple(NerSpan(cls, text.index(part), text.index(part) + len(part)) for part, cls in found)}


def content(step: steps.Step, exchange: Crossing) -> Sequence[str]:
    assert isinstance(step, steps.KeepIntent)
    assert exchange.verdict is not None
    return [each["content"] for each in json.loads(exchange.verdict.body)["messages"]]


TEXT = "Alice of Berlin wrote"
FOUND = said(TEXT, ("Alice", "names"), ("Berlin", "addresses"))


def test_what_the_rules_let_through_is_read_before_the_intent(policy: Policy) -> None:
    exchange, step = asked(policy, body(("user", TEXT)))
    assert isinstance(step, steps.AskModel)
    assert exchange.stage is Stage.NER
    assert (step.ner, TEXT in step.texts) == (policy.ner, True)
    assert exchange.masked_body == b""  # what was not judged is kept nowhere
    after = exchange.receive(steps.ModelSaid(FOUND))
    assert content(after, exchange) == ["[REDACTED:names] of Berlin wrote"]
    assert [
        (each.rule, each.cls, each.where, each.start, each.end, each.action) for each in exchange.prompt_findings
    ] == [
        ("ner.names", "names", "$.messages[0].content", 0, 5, Action.REDACT),
        ("ner.addresses", "addresses", "$.messages[0].content", 9, 15, Action.FLAG),
    ]
    assert Decision("ner", "redact", None, f"texts read: {len(step.texts)}") in exchange.decisions
    assert exchange.decisions[-1] == Decision("inspect", "redact")
    assert isinstance(exchange.receive(steps.IntentKept(kept=True)), steps.Send)
    exchange.receive(steps.AnswerBegan(200, JSON))
    answer = exchange.receive(steps.AnswerWhole(json.dumps({"choices": [{"message": {"content": TEXT}}]}).encode()))
    assert isinstance(answer, steps.Emit)
    assert TEXT in answer.data.decode()  # answers are not read, and a prompt's findings are the prompt's


def test_nothing_found_changes_nothing(policy: Policy) -> None:
    exchange, _ = asked(policy, body(("user", "hello there")))
    step = exchange.receive(steps.ModelSaid())
    assert content(step, exchange) == ["hello there"]
    assert exchange.prompt_findings == ()
    assert [each.result for each in exchange.decisions if each.stage == "ner"] == ["allow"]


def test_findings_of_rules_and_of_the_model_lie_side_by_side_and_over_each_other(policy: Policy) -> None:
    text = f"{MAIL} is Jane Doe, at {MAIL} of Doe"
    span = NerSpan("names", text.index(f"at {MAIL}"), text.index(f"at {MAIL}") + 11)
    exchange, _ = asked(policy, body(("user", text)))
    step = exchange.receive(steps.ModelSaid({text: (*said(text, ("Jane Doe", "names"))[text], span)}))
    (masked,) = content(step, exchange)
    assert masked.startswith("[REDACTED:email] is [REDACTED:names], ")
    assert "jane" not in masked.lower()
    assert "doe@" not in masked


def test_a_class_that_is_blocked_stops_the_request(policy: Policy) -> None:
    exchange, _ = asked(acting(policy, names=Action.BLOCK), body(("user", TEXT)))
    denial = refused(exchange.receive(steps.ModelSaid(FOUND)))
    assert denial.reason is Reason.FINDING
    assert "$.messages[0].content" in denial.message
    assert "ner.names" in denial.message
    assert "Alice" not in denial.message
    assert b"Alice" not in exchange.masked_body


def test_a_class_that_is_allowed_is_not_found(policy: Policy) -> None:
    exchange, _ = asked(acting(policy, addresses=Action.ALLOW), body(("user", TEXT)))
    step = exchange.receive(steps.ModelSaid(FOUND))
    assert content(step, exchange) == ["[REDACTED:names] of Berlin wrote"]
    assert [each.cls for each in exchange.prompt_findings] == ["names"]


def test_what_the_rules_refuse_is_not_read(policy: Policy) -> None:
    exchange, step = asked(policy, body(("user", f"Alice has {KEY}")))
    assert refused(step).reason is Reason.FINDING
    assert exchange.stage is Stage.OVER


def test_without_the_section_there_is_no_such_stage(policy: Policy) -> None:
    _, step = asked(replace(policy, ner=None), body(("user", TEXT)))
    assert isinstance(step, steps.KeepIntent)


def test_only_some_roles_are_read_and_each_text_once(policy: Policy) -> None:
    assert policy.ner is not None
    users = replace(policy, ner=replace(policy.ner, roles=frozenset({Role.USER})))
    tool = {"type": "function", "function": {"name": "f", "description": "asks Alice", "parameters": {}}}
    _, step = asked(users, body(("system", "You are Bob"), ("user", "twice"), ("user", "twice"), tools=[tool]))
    assert isinstance(step, steps.AskModel)
    assert [text for text in step.texts if text not in ("role", "content", "user")] == ["twice"]
    _, step = asked(policy, body(("system", "You are Bob"), ("user", "twice"), tools=[tool], odd={"field": "Zaphod"}))
    assert isinstance(step, steps.AskModel)
    assert {"You are Bob", "twice", "Zaphod"} <= set(step.texts)  # what no path names is read too
    assert "asks Alice" not in step.texts


UNREADABLE = {"numbers": "12345678", "no two letters": "a 1 b", "data": "QWxpY2U" * 40}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_prose_is_not_read(policy: Policy, text: str) -> None:
    _, step = asked(policy, body(("user", text), ("user", "prose")))
    assert isinstance(step, steps.AskModel)
    assert text not in step.texts


def test_nothing_to_read_is_nothing_to_ask(policy: Policy) -> None:
    assert policy.ner is not None
    tools = replace(policy, ner=replace(policy.ner, roles=frozenset({Role.TOOL_RESULT})))
    exchange, step = asked(tools, body(("user", TEXT)))
    assert isinstance(step, steps.KeepIntent)
    assert [each.stage for each in exchange.decisions] == ["route", "caller", "grant", "inspect"]


def test_json_in_a_string_is_read_with_its_escapes_undone_and_masked_in_its_place(policy: Policy) -> None:
    source = json.dumps({"to": 'Alice "A" Johnson', "x": "é"})
    call = {"id": "call_abcdef", "type": "function", "function": {"name": "mail", "arguments": source}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    exchange, step = asked(policy, json.dumps({"model": "m", "messages": [message]}).encode())
    assert isinstance(step, steps.AskModel)
    (view,) = [text for text in step.texts if "Johnson" in text]
    assert "\\" not in view
    exchange.receive(steps.ModelSaid(said(view, ("Johnson", "names"))))
    assert exchange.verdict is not None
    arguments = json.loads(exchange.verdict.body)["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"to": 'Alice "A" [REDACTED:names]', "x": "é"}


def test_an_object_key_is_read_and_masked(policy: Policy) -> None:
    exchange, step = asked(policy, body(("user", "hi"), odd={"Alice Johnson": 1}))
    assert isinstance(step, steps.AskModel)
    exchange.receive(steps.ModelSaid(said("Alice Johnson", ("Alice Johnson", "names"))))
    assert exchange.verdict is not None
    assert json.loads(exchange.verdict.body)["odd"] == {"[REDACTED:names]": 1}


WHY = [Unread.LATE, Unread.BUSY, Unread.FAILED]


@pytest.mark.parametrize("why", WHY, ids=str)
def test_a_request_that_was_not_read_is_refused(policy: Policy, why: Unread) -> None:
    exchange, _ = asked(late(policy, Late.BLOCK), body(("user", TEXT), ("user", MAIL)))
    denial = refused(exchange.receive(steps.ModelSaid(unread=why)))
    assert (denial.reason, denial.status) == (Reason.NER_UNREAD, 503)
    assert exchange.decisions[-1] == Decision("ner", "deny", Reason.NER_UNREAD, why)
    assert [each.rule for each in exchange.prompt_findings] == ["pii.email"]
    assert exchange.masked_body == b""  # its names are not masked, so it is kept nowhere


@pytest.mark.parametrize("why", WHY, ids=str)
def test_or_flagged(policy: Policy, why: Unread) -> None:
    exchange, _ = asked(late(policy, Late.FLAG), body(("user", TEXT)))
    step = exchange.receive(steps.ModelSaid(unread=why))
    assert content(step, exchange) == [TEXT]
    assert Decision("ner", "flag", None, why) in exchange.decisions
    assert [(each.rule, each.action) for each in exchange.prompt_findings] == [("ner.unread", Action.FLAG)]


@pytest.mark.parametrize("why", WHY, ids=str)
def test_or_allowed_which_the_record_tells_all_the_same(policy: Policy, why: Unread) -> None:
    exchange, _ = asked(late(policy, Late.ALLOW), body(("user", TEXT)))
    step = exchange.receive(steps.ModelSaid(unread=why))
    assert content(step, exchange) == [TEXT]
    assert Decision("ner", "allow", None, why) in exchange.decisions
    assert exchange.prompt_findings == ()


def test_a_policy_that_observes_refuses_nothing(policy: Policy) -> None:
    exchange, _ = asked(late(policy, Late.BLOCK, mode=Mode.OBSERVE), body(("user", TEXT)))
    step = exchange.receive(steps.ModelSaid(unread=Unread.LATE))
    assert content(step, exchange) == [TEXT]
    assert Decision("ner", "flag", None, Unread.LATE) in exchange.decisions


@pytest.mark.parametrize("verdict", list(Late), ids=str)
def test_what_was_found_where_inspection_does_not_look_counts_as_unread(policy: Policy, verdict: Late) -> None:
    exchange, _ = asked(late(policy, verdict), body(("user", TEXT)))
    step = exchange.receive(steps.ModelSaid(said("Bob is in no text", ("Bob", "names"))))
    assert isinstance(step, steps.Refuse) is (verdict is Late.BLOCK)
    assert any(each.stage == "ner" and each.detail == "missed" for each in exchange.decisions)


def test_an_exchange_that_is_stopped_meanwhile_ends_at_that_stage(policy: Policy) -> None:
    exchange, _ = asked(policy, body(("user", TEXT)))
    assert refused(exchange.receive(steps.Stopped(CLIENT_GONE, Outcome.ABORTED))) is CLIENT_GONE
    assert exchange.decisions[-1] == Decision("ner", "deny", Reason.CLIENT_GONE)
    with pytest.raises(steps.OutOfOrder):
        exchange.receive(steps.ModelSaid())


def test_a_websocket_is_not_read_so_its_handshake_is_judged_as_late(policy: Policy) -> None:
    fields = (
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
    for verdict in Late:
        exchange = Crossing(late(policy, verdict), "ex_1")
        exchange.receive(steps.HeadArrived(head("/openai/v1/responses", "GET", *fields), ALICE))
        step = exchange.receive(steps.BodyArrived(b""))
        if verdict is Late.BLOCK:
            denial = refused(step)
            assert (denial.reason, denial.status) == (Reason.NER_UNREAD, 403)
        else:
            assert isinstance(step, steps.KeepIntent)
        assert any(each.stage == "ner" and each.detail == "socket" for each in exchange.decisions)


def test_a_request_without_a_body_has_nothing_to_read(policy: Policy) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head("/openai/v1/models", "GET"), ALICE))
    assert isinstance(exchange.receive(steps.BodyArrived(b"")), steps.KeepIntent)


def test_no_value_is_in_what_travels(policy: Policy) -> None:
    exchange, step = asked(policy, body(("user", TEXT)))
    assert "Alice" not in repr(step)
    assert "Alice" not in repr(steps.ModelSaid(FOUND))
    exchange.receive(steps.ModelSaid(FOUND))
    assert "Alice" not in repr(exchange.decisions) + repr(exchange.prompt_findings)


def test_a_form_and_the_bodies_inside_of_a_body_are_read_too(policy: Policy) -> None:
    inner = {"model": "m", "messages": [{"role": "user", "content": TEXT}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": inner}
    purpose = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + json.dumps(line).encode()
    label = ("content-type", "multipart/form-data; boundary=b")
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head("/openai/v1/files", "POST", label), ALICE))
    step = exchange.receive(steps.BodyArrived(purpose + file + b"\r\n--b--\r\n"))
    assert isinstance(step, steps.AskModel)
    assert TEXT in step.texts
    assert isinstance(exchange.receive(steps.ModelSaid(FOUND)), steps.KeepIntent)
    assert exchange.verdict is not None
    assert b"[REDACTED:names] of Berlin wrote" in exchange.verdict.body
    assert {each.where for each in exchange.prompt_findings} == {"$.file.lines[0].body.messages[0].content"}
