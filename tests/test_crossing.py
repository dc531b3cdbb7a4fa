"""The order of an exchange, driven by hand: each stage's events and actions, and that no other order is possible."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.inspection.cache import DiskCache
from tidegate.model import Action, Caller, Denial, Direction, Finding, Head, Origin, Outcome, Reason
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy
from tidegate.steps import OutOfOrder, Stage

RULES = Path(__file__).resolve().parents[1] / "rules" / "policy.yaml"
ALICE = Caller("local", "alice", frozenset({"local:dev"}))
MALLORY = Caller("local", "mallory", frozenset({"local:visitors"}))
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"
CHAT = "/openai/v1/chat/completions"
JSON = (("content-type", "application/json"),)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(RULES, engine_cache=DiskCache())


def head(path: str = CHAT, method: str = "POST", *fields: tuple[str, str], origin: Origin | None = None) -> Head:
    return Head(method, path, (("authorization", "Bearer token"), *fields), origin)


def chat(text: str = "hello", **more: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def admitted(policy: Policy, *fields: tuple[str, str]) -> Crossing:
    exchange = Crossing(policy, "ex_1")
    assert isinstance(exchange.receive(steps.HeadArrived(head(CHAT, "POST", *fields))), steps.Identify)
    assert isinstance(exchange.receive(steps.CallerKnown(ALICE)), steps.ReadBody)
    return exchange


def sent(policy: Policy, body: bytes | None = None, *fields: tuple[str, str]) -> tuple[Crossing, steps.Send]:
    exchange = admitted(policy, *fields)
    assert isinstance(exchange.receive(steps.BodyArrived(body or chat())), steps.KeepIntent)
    step = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(step, steps.Send)
    return exchange, step


def refused(step: steps.Step) -> Denial:
    assert isinstance(step, steps.Refuse)
    return step.denial


def test_a_whole_exchange_passes_every_stage_once(policy: Policy) -> None:
    exchange, step = sent(policy, chat("hello"), ("x-custom", "1"), ("cookie", "a=b"), ("x-forwarded-user", "root"))
    assert step.clearance.exchange == "ex_1"
    assert json.loads(step.clearance.verdict.body) == json.loads(chat("hello"))
    assert step.fields == (("x-custom", "1"),)
    assert isinstance(exchange.receive(steps.AnswerBegan(200, JSON)), steps.Buffer)
    answer = exchange.receive(steps.AnswerWhole(b'{"choices": []}'))
    assert answer == steps.Emit(b'{"choices": []}', last=True)
    assert (exchange.stage, exchange.outcome) == (Stage.OVER, Outcome.ANSWERED)
    assert [(each.stage, each.result) for each in exchange.decisions] == [
        ("route", "allow"),
        ("caller", "allow"),
        ("grant", "allow"),
        ("inspect", "allow"),
        ("answer", "allow"),
    ]


HEADS = {
    "no connection": (head("/nowhere/v1/chat/completions"), Reason.NO_CONNECTION),
    "no endpoint": (head("/openai/v1/uploads"), Reason.NO_ENDPOINT),
    "wrong method": (head(CHAT, "PUT"), Reason.NO_ENDPOINT),
    "unlisted host": (head("/v1/messages", origin=Origin("https", "evil.example", 443)), Reason.UNLISTED_HOST),
    "upgrade": (head(CHAT, "GET", ("upgrade", "something")), Reason.PROTOCOL),
    "no token": (Head("POST", CHAT, (), None), Reason.CALLER_MISSING),
    "two tokens": (head(CHAT, "POST", ("x-api-key", "other")), Reason.CALLER_AMBIGUOUS),
    "dot segments": (head("/openai/../anthropic/v1/messages"), Reason.PROTOCOL),
}


@pytest.mark.parametrize(("arrived", "reason"), HEADS.values(), ids=HEADS.keys())
def test_a_head_that_leads_nowhere_is_refused(policy: Policy, arrived: Head, reason: Reason) -> None:
    exchange = Crossing(policy, "ex_1")
    assert refused(exchange.receive(steps.HeadArrived(arrived))).reason is reason
    assert exchange.stage is Stage.OVER
    assert exchange.outcome is Outcome.DENIED


@pytest.mark.parametrize(
    ("caller", "reason"),
    [
        (Denial(Reason.TOKEN_EXPIRED, 401, "no"), Reason.TOKEN_EXPIRED),
        (MALLORY, Reason.NOT_GRANTED),
        (Caller("local", "nobody"), Reason.NOT_GRANTED),
        (Caller("other", "alice", frozenset({"other:dev"})), Reason.NOT_GRANTED),
    ],
    ids=["bad token", "wrong group", "no group", "same group of another identity"],
)
def test_a_caller_without_a_grant_is_refused(policy: Policy, caller: Caller | Denial, reason: Reason) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head()))
    assert refused(exchange.receive(steps.CallerKnown(caller))).reason is reason


BODIES = {
    "secret": (chat(f"my key is {KEY}"), (), Reason.FINDING),
    "secret in an unnamed field": (chat(odd={"deep": [KEY]}), (), Reason.FINDING),
    "secret as an object key": (chat(metadata={KEY: "x"}), (), Reason.FINDING),
    "secret in a header": (chat(), (("x-note", KEY),), Reason.FINDING),
    "not JSON": (b"hello", (), Reason.BODY_MALFORMED),
    "not an object": (b"[]", (), Reason.BODY_MALFORMED),
    "duplicate keys": (b'{"model":"m","messages":[],"messages":[]}', (), Reason.BODY_MALFORMED),
    "invalid UTF-8": (b'{"model":"\xff","messages":[]}', (), Reason.BODY_MALFORMED),
    "not gzip": (chat(), (("content-encoding", "gzip"),), Reason.BODY_ENCODING),
    "unknown encoding": (chat(), (("content-encoding", "x-pack"),), Reason.BODY_ENCODING),
    "secret in gzip": (gzip.compress(chat(KEY)), (("content-encoding", "gzip"),), Reason.FINDING),
    "too large": (chat("x" * (9 * 1024 * 1024)), (), Reason.BODY_TOO_LARGE),
    "token ids": (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"x"}}]}]}',
        (),
        Reason.BODY_OPAQUE,
    ),
    "second copies": (chat(logprobs=True), (), Reason.SECOND_COPY),
}


@pytest.mark.parametrize(("body", "fields", "reason"), BODIES.values(), ids=BODIES.keys())
def test_a_body_that_may_not_travel_is_refused(
    policy: Policy, body: bytes, fields: tuple[tuple[str, str], ...], reason: Reason
) -> None:
    exchange = admitted(policy, *fields)
    denial = refused(exchange.receive(steps.BodyArrived(body)))
    assert denial.reason is reason
    assert KEY not in denial.message
    assert KEY.encode() not in exchange.masked_body
    assert exchange.verdict is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (f"{CHAT}?user=jane.doe%40example-mail.com", ()),
        (f"{CHAT}?card=4111%31111%31111%31111", ()),
        (CHAT, (("x-4111111111111111", "1"),)),
    ],
    ids=["escaped address", "escaped digits", "header name"],
)
def test_what_cannot_be_masked_is_refused(policy: Policy, path: str, fields: tuple[tuple[str, str], ...]) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head(path, "POST", *fields)))
    exchange.receive(steps.CallerKnown(ALICE))
    exchange.receive(steps.BodyArrived(chat()))
    assert refused(exchange.receive(steps.IntentKept(kept=True))).reason is Reason.FINDING
    assert all("4111" not in each.where for each in exchange.prompt_findings)


def test_personal_data_in_a_prompt_is_masked_and_sent(policy: Policy) -> None:
    exchange, step = sent(policy, chat("write to bob@example-mail.com"))
    assert b"bob@" not in step.clearance.verdict.body
    assert b"[REDACTED:email]" in step.clearance.verdict.body
    assert [f.action for f in exchange.prompt_findings] == [Action.REDACT]
    assert [f.where for f in exchange.prompt_findings] == ["$.messages[0].content"]


@pytest.mark.parametrize(
    ("rule", "action", "denied"),
    [
        ("secrets.aws-access-key", Action.REDACT, True),
        ("pii.email", Action.BLOCK, False),
        ("gone.rule", Action.BLOCK, False),
    ],
    ids=["blocked now", "only masked now", "no such rule any more"],
)
def test_what_a_kept_request_no_longer_holds_is_decided_again(
    policy: Policy, rule: str, action: Action, denied: bool
) -> None:
    before = Finding(rule, rule.partition(".")[0], "$.messages[0].content", 4, 24, action)
    exchange = admitted(policy)
    step = exchange.receive(steps.BodyArrived(chat("use [REDACTED:x]"), (before,)))
    if denied:
        assert refused(step).reason is Reason.FINDING
        assert rule in refused(step).message
    else:
        assert isinstance(step, steps.KeepIntent)
    known = policy.decisions[Direction.PROMPT].get(rule)
    assert exchange.prompt_findings == (() if known is None else (replace(before, action=known),))


def test_what_is_found_again_counts_once(policy: Policy) -> None:
    exchange = admitted(policy)
    before = Finding("pii.email", "pii", "$.messages[0].content", 9, 29, Action.REDACT)
    exchange.receive(steps.BodyArrived(chat("write to bob@example-mail.com"), (before,)))
    assert len(exchange.prompt_findings) == 1


def test_what_cannot_be_recorded_is_not_sent(policy: Policy) -> None:
    exchange = admitted(policy)
    exchange.receive(steps.BodyArrived(chat()))
    assert refused(exchange.receive(steps.IntentKept(kept=False))).reason is Reason.RECORDING_FAILED


def events_of(text: str) -> bytes:
    pieces = [{"choices": [{"index": 0, "delta": {"content": each}, "finish_reason": None}]} for each in text]
    pieces.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in pieces) + b"data: [DONE]\n\n"


def said(data: bytes) -> str:
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def test_a_stream_is_masked_while_it_runs(policy: Policy) -> None:
    exchange, _ = sent(policy, chat(stream=True))
    assert isinstance(exchange.receive(steps.AnswerBegan(200, (("content-type", "text/event-stream"),))), steps.Stream)
    out = b""
    for byte in events_of(f"pay {CARD} now"):
        step = exchange.receive(steps.AnswerChunk(bytes([byte])))
        assert isinstance(step, steps.Emit)
        out += step.data
    last = exchange.receive(steps.AnswerEnded())
    assert isinstance(last, steps.Emit)
    assert said(out + last.data) == "pay [REDACTED:card-visa] now"
    assert exchange.outcome is Outcome.ANSWERED
    assert [f.rule for f in exchange.answer_findings] == ["pii.card-visa"]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/google/v1beta/models/good-1:streamGenerateContent", {}, None),
        ("/google/v1beta/models/bad-1:generateContent", {}, Reason.MODEL_DENIED),
        ("/google/v1beta/models/good-1:generateContent", {"model": "models/bad-1"}, Reason.BODY_MALFORMED),
        ("/aws/model/good-1%3A0/converse-stream", {}, None),
        ("/aws/model/bad-1%3A0/converse", {}, Reason.MODEL_DENIED),
    ],
)
def test_a_model_in_the_path_needs_permission(
    tmp_path: Path, path: str, body: dict[str, object], reason: Reason | None
) -> None:
    for folder in ("packs", "dialects"):
        (tmp_path / folder).symlink_to(RULES.parent / folder)
    connections = [
        {"name": name, "dialect": dialect, "upstream": f"https://{name}.example.com", "serve": {"path": f"/{name}"}}
        for name, dialect in (("google", "gemini"), ("aws", "bedrock"))
    ]
    document = yaml.safe_load(RULES.read_text()) | {
        "connections": connections,
        "roles": {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}]}},
        "bindings": [{"groups": ["local:dev"], "roles": ["dev"]}],
    }
    written = tmp_path / "policy.yaml"
    written.write_text(yaml.safe_dump(document))
    exchange = Crossing(load(written, engine_cache=DiskCache()), "ex_1")
    exchange.receive(steps.HeadArrived(head(path), ALICE))
    step = exchange.receive(steps.BodyArrived(json.dumps(body).encode()))
    assert (refused(step).reason if isinstance(step, steps.Refuse) else None) is reason
    if reason is None:
        assert exchange.asked is not None
        assert exchange.asked.model in ("good-1", "good-1:0")
        assert exchange.asked.stream


LABELLED = {
    "a stream called JSON": ("application/json", True),
    "a stream called JSON that nobody asked for": ("application/json", False),
    "a stream called text": ("text/plain", True),
    "a stream without a type": ("", True),
}


@pytest.mark.parametrize(("label", "asked"), LABELLED.values(), ids=LABELLED.keys())
def test_a_stream_is_told_by_its_bytes(policy: Policy, label: str, *, asked: bool) -> None:
    exchange, _ = sent(policy, chat(stream=asked))
    step = exchange.receive(steps.AnswerBegan(200, (("content-type", label),) if label else ()))
    assert isinstance(step, steps.Stream if asked else steps.Buffer)
    step = exchange.whole(events_of(f"pay {CARD} now"))
    assert isinstance(step, steps.Emit)
    assert said(step.data) == "pay [REDACTED:card-visa] now"
    assert [(f.rule, f.where[:9]) for f in exchange.answer_findings] == [("pii.card-visa", "stream:$.")]
    assert (exchange.outcome, exchange.status) == (Outcome.ANSWERED, 200)


@pytest.mark.parametrize("label", ["text/event-stream", "application/json", "text/plain"])
@pytest.mark.parametrize("status", [200, 400])
def test_json_in_a_streams_place_is_inspected_as_a_whole(policy: Policy, label: str, status: int) -> None:
    exchange, _ = sent(policy, chat(stream=True))
    exchange.receive(steps.AnswerBegan(status, (("content-type", label),)))
    body = f' {{"error": {{"message": "\\u0020card {CARD} is odd"}} }}'.encode()
    step = exchange.whole(body)
    assert isinstance(step, steps.Emit)
    assert json.loads(step.data) == {"error": {"message": " card [REDACTED:card-visa] is odd"}}
    assert [f.where for f in exchange.answer_findings] == ["$.error.message"]


def test_what_is_no_stream_and_no_json_is_refused(policy: Policy) -> None:
    exchange, _ = sent(policy, chat(stream=True))
    exchange.receive(steps.AnswerBegan(200, (("content-type", "application/octet-stream"),)))
    step = exchange.receive(steps.AnswerChunk(f"the card is {CARD}\n\n".encode()))
    assert isinstance(step, steps.Emit)
    assert step.last
    assert CARD not in step.data.decode()
    assert b'"code":"answer_malformed"' in step.data
    assert exchange.denial is not None
    assert exchange.denial.reason is Reason.ANSWER_MALFORMED


ANSWERS = {
    "interim": (103, JSON),
    "redirect": (307, (("location", "http://elsewhere.example/"),)),
    "switching": (101, (("upgrade", "websocket"),)),
    "encoded stream": (200, (("content-type", "text/event-stream"), ("content-encoding", "compress"))),
}


@pytest.mark.parametrize(("status", "fields"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_cannot_be_inspected_is_refused(
    policy: Policy, status: int, fields: tuple[tuple[str, str], ...]
) -> None:
    exchange, _ = sent(policy)
    assert refused(exchange.receive(steps.AnswerBegan(status, fields))).reason is Reason.UPSTREAM_PROTOCOL


def test_an_answers_head_loses_what_would_lead_away_or_leak(policy: Policy) -> None:
    exchange, _ = sent(policy)
    step = exchange.receive(steps.AnswerBegan(200, (*JSON, ("x-debug", f"card {CARD}"), ("alt-svc", 'h3=":443"'))))
    assert isinstance(step, steps.Buffer)
    assert {"x-debug", "alt-svc", "set-cookie"} <= step.drop
    assert [f.where for f in exchange.answer_findings] == ["header x-debug"]


def test_a_limit_in_mid_stream_ends_it_with_the_dialects_error(policy: Policy) -> None:
    exchange, _ = sent(policy, chat(stream=True))
    exchange.receive(steps.AnswerBegan(200, (("content-type", "text/event-stream"),)))
    exchange.receive(steps.AnswerChunk(b"data: "))
    denial = Denial(Reason.ANSWER_IDLE, 502, "Too slow.")
    step = exchange.receive(steps.Stopped(denial))
    assert isinstance(step, steps.Emit)
    assert step.last
    assert b'"error"' in step.data
    assert exchange.denial is denial
    assert exchange.stage is Stage.OVER


def test_a_limit_before_the_answer_is_a_refusal(policy: Policy) -> None:
    exchange, _ = sent(policy)
    denial = Denial(Reason.ANSWER_FIRST_BYTE, 504, "Too slow.")
    assert refused(exchange.receive(steps.Stopped(denial))) is denial


EVENTS: list[steps.Event] = [
    steps.HeadArrived(head()),
    steps.CallerKnown(ALICE),
    steps.BodyArrived(chat()),
    steps.ModelSaid(),
    steps.Spent(),
    steps.Decided(None, "", 0.0),
    steps.IntentKept(kept=True),
    steps.AnswerBegan(200, JSON),
    steps.AnswerChunk(b"x"),
    steps.AnswerEnded(),
    steps.AnswerWhole(b"{}"),
    steps.Claimed(kept=True),
    steps.ClientSaid(steps.Form.TEXT, b"{}", 0.0),
    steps.UpstreamSaid(steps.Form.TEXT, b"{}"),
    steps.SocketRested(),
]
ALLOWED = {
    Stage.HEAD: {steps.HeadArrived},
    Stage.CALLER: {steps.CallerKnown},
    Stage.BODY: {steps.BodyArrived},
    Stage.NER: {steps.ModelSaid},
    Stage.BUDGET: {steps.Spent},
    Stage.HOLD: {steps.Decided},
    Stage.INTENT: {steps.IntentKept},
    Stage.SENT: {steps.AnswerBegan},
    Stage.STREAM: {steps.AnswerChunk, steps.AnswerEnded, steps.Claimed},
    Stage.WHOLE: {steps.AnswerWhole},
    Stage.CLAIM: {steps.Claimed},
    Stage.SOCKET: {steps.ClientSaid, steps.UpstreamSaid, steps.SocketRested},
    Stage.PASSING: {steps.AnswerEnded},
    Stage.OVER: set(),
}


@pytest.mark.parametrize("stage", list(Stage), ids=lambda stage: stage.name.lower())
def test_no_other_order_is_possible(policy: Policy, stage: Stage) -> None:
    for event in EVENTS:
        if type(event) not in ALLOWED[stage]:
            exchange = Crossing(policy, "ex_1")
            exchange.stage = stage
            with pytest.raises(OutOfOrder):
                exchange.receive(event)
            assert exchange.stage is stage


def test_a_look_changes_nothing_and_is_what_the_event_would_have_found(policy: Policy) -> None:
    body = steps.BodyArrived(chat("write to bob@example-mail.com"))
    exchange, other = admitted(policy), admitted(policy)
    looked = exchange.look(body)
    assert (exchange.stage, exchange.asked, exchange.prompt_findings) == (Stage.BODY, None, ())
    assert exchange.receive(looked) == other.receive(body)
    assert exchange.verdict == other.verdict
    for each in (exchange, other):
        each.receive(steps.IntentKept(kept=True))
        each.receive(steps.AnswerBegan(200, JSON))
    answer = steps.AnswerWhole(json.dumps({"choices": [{"message": {"content": "ask bob@example-mail.com"}}]}).encode())
    looked = exchange.look(answer)
    assert (exchange.stage, exchange.answer_findings) == (Stage.WHOLE, ())
    assert exchange.receive(looked) == other.receive(answer)
    assert exchange.answer_findings == other.answer_findings != ()


def test_what_was_looked_at_is_no_use_once_the_exchange_is_over(policy: Policy) -> None:
    exchange = admitted(policy)
    looked = exchange.look(steps.BodyArrived(chat()))
    exchange.receive(steps.Stopped(Denial(Reason.CLIENT_GONE, 499, "The client left."), Outcome.ABORTED))
    with pytest.raises(OutOfOrder):
        exchange.receive(looked)


def test_a_bug_after_the_end_still_denies(policy: Policy) -> None:
    exchange, _ = sent(policy)
    exchange.receive(steps.AnswerBegan(200, JSON))
    exchange.receive(steps.AnswerWhole(b"{}"))
    bug = Denial(Reason.BUG, 503, "A bug.")
    exchange.receive(steps.Stopped(bug, Outcome.FAILED))
    assert exchange.denial is bug
    assert exchange.outcome is Outcome.FAILED
