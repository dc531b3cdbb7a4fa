"""A WebSocket as a pure machine: its handshake, the messages of both sides, and that no cut of an answer shows more."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.documents import PNG, archive
from tests.test_split_invariance import expected, said
from tests.wire import CARD, KEY, MAIL, Said, answer, engine, events_of, every, read, responses, run, sse
from tidegate import headers
from tidegate.crossing import Crossing
from tidegate.dialects.load import parse_dialect
from tidegate.inspection.attachments import extract
from tidegate.inspection.cache import DiskCache
from tidegate.model import Action, Caller, Denial, Direction, Grant, Head, OnUnknown, Outcome, Reason, Scanned
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy
from tidegate.sockets import GOING_AWAY, MESSAGES, POLICY, WAITING, Socket, accepted, fits, opening, wanted
from tidegate.steps import (
    AnswerBegan,
    BodyArrived,
    CallerKnown,
    ClientSaid,
    Extract,
    Form,
    HeadArrived,
    IntentKept,
    OpenSocket,
    Refuse,
    Relay,
    Send,
    Stage,
    Stopped,
    UpstreamSaid,
)

ROOT = Path(__file__).resolve().parents[1]
PATH = "/openai/v1/responses"
SECRET = "AKIA" + "Z7QK4WJX2MVT5R3P"
CLIENT_KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.2
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = {"upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": CLIENT_KEY}
ALICE = Caller("local", "alice", frozenset({"local:dev"}))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(ROOT / "rules" / "policy.yaml", engine_cache=DiskCache())


def head(*more: tuple[str, str], method: str = "GET", path: str = PATH, http1: bool = True, **changes: str) -> Head:
    fields = {"authorization": "Bearer t", **HANDSHAKE, **{name.replace("_", "-"): v for name, v in changes.items()}}
    return Head(method, path, (*((k, v) for k, v in fields.items() if v), *more), None, http1)


# ── the handshake ────────────────────────────────────────────────────────────────────────────────────────────────────

HEADS = {
    "plain request": (Head("POST", PATH, (), None), False),
    "h2c": (Head("GET", PATH, (("upgrade", "h2c"),), None), False),
    "websocket": (head(), True),
    "case of the protocol": (head(upgrade="WebSocket"), True),
    "compression offered": (head(("sec-websocket-extensions", "permessage-deflate")), True),
    "connect": (Head("CONNECT", "h:1", (), None), Reason.PROTOCOL),
    "another protocol": (head(upgrade="mystery"), Reason.PROTOCOL),
    "one of two protocols": (head(upgrade="websocket, mystery"), Reason.PROTOCOL),
    "two fields": (head(("upgrade", "h2c")), Reason.PROTOCOL),
    "POST": (head(method="POST"), Reason.PROTOCOL),
    "HTTP/2": (head(http1=False), Reason.PROTOCOL),
    "another version": (head(sec_websocket_version="8"), Reason.PROTOCOL),
    "no version": (head(sec_websocket_version=""), Reason.PROTOCOL),
    "no key": (head(sec_websocket_key=""), Reason.PROTOCOL),
    "two keys": (head(("sec-websocket-key", CLIENT_KEY)), Reason.PROTOCOL),
    "short key": (head(sec_websocket_key="dGhl"), Reason.PROTOCOL),
    "odd key": (head(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ=!"), Reason.PROTOCOL),
    "subprotocol": (head(("sec-websocket-protocol", "realtime")), Reason.PROTOCOL),
    "a key as a subprotocol": (
        head(("sec-websocket-protocol", "realtime, openai-insecure-api-key.ek_1")),
        Reason.CALLER_MISSING,
    ),
    "a key as a second subprotocol": (
        head(("sec-websocket-protocol", "realtime"), ("sec-websocket-protocol", "base64url.bearer.x")),
        Reason.CALLER_MISSING,
    ),
}


@pytest.mark.parametrize(("asked", "found"), HEADS.values(), ids=HEADS.keys())
def test_what_a_head_asks_for(asked: Head, found: bool | Reason) -> None:
    said_ = wanted(asked)
    assert (said_.reason if isinstance(said_, Denial) else said_) == found


ANSWERS = {
    "as it should be": ((("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", ACCEPT)), True),
    "case": ((("upgrade", "WebSocket"), ("sec-websocket-accept", ACCEPT)), True),
    "no proof": ((("upgrade", "websocket"),), False),
    "wrong proof": ((("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT.lower())), False),
    "another protocol": ((("upgrade", "h2c"), ("sec-websocket-accept", ACCEPT)), False),
    "no protocol": ((("sec-websocket-accept", ACCEPT),), False),
    "an extension": (
        (("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT), ("sec-websocket-extensions", "x")),
        False,
    ),
    "a subprotocol": (
        (("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT), ("sec-websocket-protocol", "x")),
        False,
    ),
}


@pytest.mark.parametrize(("fields", "fine"), ANSWERS.values(), ids=ANSWERS.keys())
def test_only_the_websocket_that_was_asked_for_is_opened(fields: tuple[tuple[str, str], ...], fine: bool) -> None:
    assert accepted(head(), fields) is fine


def test_a_handshake_offers_no_extension() -> None:
    fields = (("user-agent", "x"), ("sec-websocket-key", "k"), ("sec-websocket-extensions", "permessage-deflate"))
    assert opening((*fields, ("sec-websocket-version", "13"))) == (
        ("user-agent", "x"),
        ("sec-websocket-key", "k"),
        ("sec-websocket-version", "13"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
    )


def test_a_subprotocol_crosses_on_no_request() -> None:
    assert headers.upstream([("sec-websocket-protocol", "openai-insecure-api-key.ek_1"), ("x-mine", "1")]) == [
        ("x-mine", "1")
    ]


def test_an_endpoint_is_a_socket_or_it_is_not(policy: Policy) -> None:
    endpoints = policy.dialects["openai"].endpoints
    socket, chat = endpoints["responses_socket"], endpoints["chat"]
    refused = [fits(socket, asked=False), fits(chat, asked=True)]
    assert all(each is not None and each.reason is Reason.PROTOCOL for each in refused)
    assert fits(socket, asked=True) is None
    assert fits(chat, asked=False) is None


# ── as stages of an exchange ─────────────────────────────────────────────────────────────────────────────────────────

OPENED = (("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", ACCEPT))


def crossed(policy: Policy, asked: Head, caller: Caller = ALICE) -> tuple[Crossing, object]:
    exchange = Crossing(policy, "ex_1")
    step: object = exchange.receive(HeadArrived(asked, caller))
    if not isinstance(step, Refuse):
        step = exchange.receive(BodyArrived(b""))
    if not isinstance(step, Refuse):
        step = exchange.receive(IntentKept(kept=True))
    return exchange, step


def test_a_handshake_passes_every_stage(policy: Policy) -> None:
    exchange, step = crossed(policy, head(("x-mine", "1"), ("sec-websocket-extensions", "permessage-deflate")))
    assert isinstance(step, Send)
    assert dict(step.fields) == {**HANDSHAKE, "connection": "Upgrade", "x-mine": "1"}
    opened = exchange.receive(AnswerBegan(101, (*OPENED, ("set-cookie", "a=b"))))
    assert isinstance(opened, OpenSocket)
    assert {"set-cookie", "sec-websocket-accept", "upgrade", "connection"} & opened.drop == {"set-cookie"}
    assert exchange.stage is Stage.SOCKET


REFUSED_HEADS = {
    "another endpoint": (head(path="/openai/v1/models"), Reason.PROTOCOL),
    "no endpoint": (head(path="/openai/v1/realtimes"), Reason.NO_ENDPOINT),
    "another dialect": (head(path="/anthropic/v1/messages"), Reason.NO_ENDPOINT),
    "plain GET": (Head("GET", PATH, (("authorization", "Bearer t"),), None), Reason.PROTOCOL),
    "a secret in a header": (head(("x-note", SECRET)), Reason.FINDING),
    "a secret as its key": (head(sec_websocket_key=f"{SECRET}/g=="), Reason.FINDING),
}


@pytest.mark.parametrize(("asked", "reason"), REFUSED_HEADS.values(), ids=REFUSED_HEADS.keys())
def test_a_handshake_that_is_refused(policy: Policy, asked: Head, reason: Reason) -> None:
    _, step = crossed(policy, asked)
    assert isinstance(step, Refuse)
    assert step.denial.reason is reason


def test_a_handshake_with_a_body_is_refused(policy: Policy) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(HeadArrived(head(), ALICE))
    step = exchange.receive(BodyArrived(b"{}"))
    assert isinstance(step, Refuse)
    assert step.denial.reason is Reason.BODY_MALFORMED


def test_a_caller_without_a_grant_gets_no_socket(policy: Policy) -> None:
    exchange = Crossing(policy, "ex_1")
    exchange.receive(HeadArrived(head()))
    step = exchange.receive(CallerKnown(Caller("local", "mallory")))
    assert isinstance(step, Refuse)
    assert step.denial.reason is Reason.NOT_GRANTED


@pytest.mark.parametrize("fields", [(), (("upgrade", "websocket"),)], ids=["no protocol", "no proof"])
def test_a_101_that_opens_something_else_is_refused(policy: Policy, fields: tuple[tuple[str, str], ...]) -> None:
    exchange, _ = crossed(policy, head())
    step = exchange.receive(AnswerBegan(101, fields))
    assert isinstance(step, Refuse)
    assert step.denial.reason is Reason.UPSTREAM_PROTOCOL


def test_a_request_inside_a_request_is_refused(policy: Policy) -> None:
    exchange, _ = crossed(policy, head())
    exchange.receive(AnswerBegan(101, OPENED))
    step = exchange.receive(asks(response={"model": "other", "input": [1, 2, 3]}))
    assert isinstance(step, Relay)
    assert not step.up
    assert errors(step) == ["body_opaque"]


def test_the_whole_life_of_a_socket_is_one_exchange(policy: Policy) -> None:
    exchange, _ = crossed(policy, head())
    exchange.receive(AnswerBegan(101, OPENED))
    assert exchange.receive(asks(f"why does {SECRET} fail")) != Relay()
    assert isinstance(exchange.receive(asks("mail me")), Relay)
    for event in events("to jane.doe@example.com"):
        assert isinstance(exchange.receive(event), Relay)
    step = exchange.receive(ClientSaid(Form.END, b"", 0.0))
    assert step == Relay(close=1000)
    assert (exchange.stage, exchange.outcome) == (Stage.OVER, Outcome.DENIED)
    assert exchange.denial is not None
    assert exchange.denial.reason is Reason.FINDING
    assert [(f.rule, f.where) for f in exchange.prompt_findings] == [("secrets.aws-access-key", "message 1: $.input")]
    assert {f.rule for f in exchange.answer_findings} == {"pii.email"}
    assert [(d.stage, d.result, d.detail) for d in exchange.decisions][-2:] == [
        ("inspect", "deny", "message 1"),
        ("inspect", "allow", "message 2"),
    ]


def test_a_limit_ends_it_with_the_dialects_error(policy: Policy) -> None:
    exchange, _ = crossed(policy, head())
    exchange.receive(AnswerBegan(101, OPENED))
    exchange.receive(asks("hello"))
    denial = Denial(Reason.ANSWER_IDLE, 502, "Too slow.")
    step = exchange.receive(Stopped(denial))
    assert isinstance(step, Relay)
    assert step.close == POLICY
    assert errors(step) == ["answer_idle"]
    assert (exchange.outcome, exchange.denial) == (Outcome.DENIED, denial)


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


def asks(text: str = "hello", now: float = 0.0, **more: object) -> ClientSaid:
    body = {"type": "response.create", "model": "m", "input": text, **more}
    return ClientSaid(Form.TEXT, json.dumps(body).encode(), now)


def tells(event: object) -> UpstreamSaid:
    return UpstreamSaid(Form.TEXT, event if isinstance(event, bytes) else json.dumps(event).encode())


def events(text: str, size: int = 4) -> list[UpstreamSaid]:
    return [tells(event) for _, event in responses(Said(text), every(size))]


def errors(step: Relay) -> list[str]:
    found = [json.loads(each) for each in step.down]
    assert all(each["type"] == "error" and "ex_1" in each["error"]["message"] for each in found)
    return [each["error"]["code"] for each in found]


def open_socket(policy: Policy, caller: Caller = ALICE, action: Action = Action.REDACT, **limits: int) -> Socket:
    """A socket whose rules are the few of the stream tests."""
    rules = {rule.id for rule in engine().rules}
    prompts = dict.fromkeys(rules, Action.REDACT) | {"t.key": Action.BLOCK}
    decisions = {Direction.PROMPT: prompts, Direction.RESPONSE: dict.fromkeys(rules, action)}
    few = replace(policy, engine=engine(), decisions=decisions)
    exchange = Crossing(policy, "ex_1")
    exchange.receive(HeadArrived(head(), caller))
    assert exchange.grant is not None
    dialect = policy.dialects["openai"]
    grant: Grant = replace(exchange.grant, **limits)
    return Socket(few, dialect, dialect.endpoints["responses_socket"], grant, "ex_1")


def gives(socket: Socket, said_: Iterable[UpstreamSaid]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in said_:
        step = socket.upstream(each)
        assert step.close is None
        found += [json.loads(data) for data in step.down]
    return found


def text_of(found: Iterable[dict[str, Any]]) -> str:
    return "".join(each["delta"] for each in found if each["type"] == "response.output_text.delta")


def test_a_message_goes_up_as_it_was_judged(policy: Policy) -> None:
    socket = open_socket(policy)
    step = socket.client(asks(f"write to {MAIL}"))
    assert (step.down, step.close) == ((), None)
    assert [json.loads(each) for each in step.up] == [
        {"type": "response.create", "model": "m", "input": "write to [REDACTED:mail]"}
    ]
    assert (socket.busy, socket.turns) == (True, 1)
    assert socket.asked is not None
    assert socket.asked.model == "m"


KEPT = {
    "secret": (asks(f"use {KEY}"), "finding"),
    "pictures": (asks("x", input=[{"content": [{"image_url": "x"}]}]), "body_opaque"),
    "another's answers": (asks(previous_response_id=["resp_9"]), "body_opaque"),
    "another's answer": (asks(previous_response_id="resp_9"), "body_opaque"),
    "several at once": (asks(stream_id="a"), "body_opaque"),
    "second copies": (asks(top_logprobs=3), "second_copy"),
    "no model's name": (asks(model=3), "body_malformed"),
}


@pytest.mark.parametrize(("message", "code"), KEPT.values(), ids=KEPT.keys())
def test_a_refused_message_is_answered_and_the_socket_stays(policy: Policy, message: ClientSaid, code: str) -> None:
    socket = open_socket(policy)
    step = socket.client(message)
    assert (step.up, step.close, errors(step)) == ((), None, [code])
    assert json.loads(step.down[0])["status"] in (400, 403)
    assert KEY.encode() not in step.down[0]
    assert socket.client(asks()).up
    assert socket.denial is not None


def test_a_document_in_a_message_is_read_first(policy: Policy) -> None:
    """The message comes a second time, with what was read; only then is anything counted."""
    socket = open_socket(policy)
    data = base64.b64encode(archive({"a.txt": KEY})).decode()
    message = asks(input=[{"role": "user", "content": [{"type": "input_file", "file_data": data}]}])
    step = socket.client(message)
    assert isinstance(step, Extract)
    assert (socket.decisions, socket.prompt_findings, socket.busy) == ([], [], False)
    answered = socket.client(replace(message, extracted=tuple(map(extract, step.attachments))))
    assert isinstance(answered, Relay)
    assert errors(answered) == ["finding"]
    place = "message 1: $.input[0].content[0].file_data (zip: a.txt)"
    assert {each.where for each in socket.prompt_findings} == {place}


@pytest.mark.parametrize(("rule", "up"), [(OnUnknown.BLOCK, False), (OnUnknown.FLAG, True), (OnUnknown.PASS, True)])
def test_a_picture_in_a_message_follows_the_connection(policy: Policy, rule: OnUnknown, *, up: bool) -> None:
    prefixes = tuple((path, replace(each, on_unknown=rule)) for path, each in policy.routes.prefixes)
    socket = open_socket(replace(policy, routes=replace(policy.routes, prefixes=prefixes)))
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    message = asks(input=[{"role": "user", "content": [{"type": "input_image", "image_url": url}]}])
    step = socket.client(message)
    assert isinstance(step, Relay)
    assert [json.loads(each) for each in step.up] == ([json.loads(message.data)] if up else [])
    assert socket.scanned is Scanned.PARTLY
    assert (socket.decisions[0].stage, socket.decisions[0].result) == ("media", rule if up else "deny")


def test_a_model_that_is_not_granted_is_refused(policy: Policy) -> None:
    socket = open_socket(policy)
    rule = replace(socket._grant.allows[0], models=("gpt-*",))
    socket._grant = replace(socket._grant, allows=(rule,))
    assert errors(socket.client(asks())) == ["model_denied"]
    assert socket.client(asks(model="gpt-5")).up


ENDS = {
    "binary": (ClientSaid(Form.BINARY, asks().data, 0.0), "protocol"),
    "odd ping": (ClientSaid(Form.CONTROL, b"", 0.0), "protocol"),
    "not JSON": (ClientSaid(Form.TEXT, b"hello", 0.0), "body_malformed"),
    "not an object": (ClientSaid(Form.TEXT, b"[]", 0.0), "body_malformed"),
    "a key twice": (ClientSaid(Form.TEXT, b'{"type":"response.create","type":"x"}', 0.0), "body_malformed"),
    "no type": (ClientSaid(Form.TEXT, b'{"model":"m"}', 0.0), "protocol"),
    "a type that is no text": (ClientSaid(Form.TEXT, b'{"type":["response.create"]}', 0.0), "protocol"),
    "steering": (asks(type="response.steer"), "protocol"),
    "another API's": (asks(type="session.update"), "protocol"),
    "too large": (asks("x" * 3000), "body_too_large"),
}


@pytest.mark.parametrize(("message", "code"), ENDS.values(), ids=ENDS.keys())
def test_what_is_no_message_of_the_api_ends_the_socket(policy: Policy, message: ClientSaid, code: str) -> None:
    socket = open_socket(policy, request_bytes=2000)
    step = socket.client(message)
    assert (step.up, step.close, errors(step)) == ((), POLICY, [code])
    assert socket.outcome is Outcome.DENIED


def test_a_token_that_expires_ends_the_socket(policy: Policy) -> None:
    socket = open_socket(policy, replace(ALICE, expires=100.0))
    assert socket.client(asks(now=99.0)).up
    step = socket.client(asks(now=100.0))
    assert (step.close, errors(step)) == (POLICY, ["token_expired"])


ODD_EVENTS = {
    "binary": (UpstreamSaid(Form.BINARY, b"{}"), "upstream_protocol"),
    "odd ping": (UpstreamSaid(Form.CONTROL, b""), "upstream_protocol"),
    "not JSON": (tells(b"hello"), "answer_malformed"),
    "not an object": (tells([1]), "answer_malformed"),
    "a key twice": (tells(b'{"type":"response.created","a":1,"a":2}'), "answer_malformed"),
    "no type": (tells({"delta": "x"}), "upstream_protocol"),
    "a type that is no text": (tells({"type": ["response.created"]}), "upstream_protocol"),
    "unknown type": (tells({"type": "session.created"}), "upstream_protocol"),
    "too large": (tells({"type": "response.created", "x": "x" * 4_200_000}), "answer_too_large"),
}


@pytest.mark.parametrize(("event", "code"), ODD_EVENTS.values(), ids=ODD_EVENTS.keys())
def test_what_cannot_be_inspected_ends_the_socket(policy: Policy, event: UpstreamSaid, code: str) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    step = socket.upstream(event)
    assert (step.up, step.close, errors(step)) == ((), POLICY, [code])


def test_a_clean_event_keeps_its_bytes(policy: Policy) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    data = b'{ "type":"response.created" , "response":{"id":"resp_1"} }'
    assert socket.upstream(tells(data)).down == (data,)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_an_answer_is_masked_live(policy: Policy, size: int) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    found = gives(socket, events(f"mail {MAIL} card {CARD}.", size))
    assert text_of(found) == "mail [REDACTED:mail] card [REDACTED:card]."
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "mail [REDACTED:mail] card [REDACTED:card]."
    assert MAIL not in json.dumps(found)
    assert (socket.busy, socket.held) == (False, 0)
    assert {finding.rule for finding in socket.answer_findings} == {"t.mail", "t.card"}


def test_what_is_held_leaves_when_the_answer_is_over(policy: Policy) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    created, *_, completed = responses(Said("x"), every(9))
    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    found = gives(socket, map(tells, (created[1], {"type": "response.output_text.delta", **at, "delta": "sk-AbC"})))
    assert text_of(found) == ""
    assert socket.held == 6
    assert text_of(gives(socket, [tells(completed[1])])) == "sk-AbC"


def test_the_next_answer_begins_with_fresh_channels(policy: Policy) -> None:
    socket = open_socket(policy)
    for number in range(3):
        socket.client(asks())
        found = gives(socket, events(f"say {number} sk-AbCd"))
        assert text_of(found) == f"say {number} sk-AbCd"
        assert [each["sequence_number"] for each in found] == list(range(len(found)))
    assert socket.turns == 3


def test_an_answer_that_the_policy_blocks_ends_the_socket(policy: Policy) -> None:
    socket = open_socket(policy, action=Action.BLOCK)
    socket.client(asks())
    step = Relay()
    for each in events(f"it is {CARD} ok"):
        step = socket.upstream(each)
        assert CARD.encode() not in b"".join(step.down)
        if step.close is not None:
            break
    assert (step.close, errors(step)) == (POLICY, ["answer_finding"])


def test_what_is_asked_too_early_waits_for_its_turn(policy: Policy) -> None:
    socket = open_socket(policy)
    assert len(socket.client(asks("one")).up) == 1
    assert socket.client(asks(f"two {KEY}")) == Relay()
    assert socket.client(asks("three")) == Relay()
    assert socket.client(asks("four")) == Relay()
    steps = [socket.upstream(each) for each in events("x")]
    assert [step.up for step in steps[:-1]] == [()] * (len(steps) - 1)
    last = steps[-1]
    assert [json.loads(each)["type"] for each in last.down] == ["response.completed", "error"]
    assert [json.loads(each)["input"] for each in last.up] == ["three"]
    assert [json.loads(each)["input"] for each in [socket.upstream(e) for e in events("y")][-1].up] == ["four"]
    assert socket.turns == 3


def test_too_many_waiting_messages_end_the_socket(policy: Policy) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    steps = [socket.client(asks()) for _ in range(WAITING + 1)]
    assert [step.close for step in steps] == [None] * WAITING + [POLICY]
    large = open_socket(policy, request_bytes=2000)
    large.client(asks())
    assert large.client(asks("x" * 1500)) == Relay()
    assert large.client(asks("x" * 1500)).close == POLICY


def test_the_number_of_messages_is_bounded(policy: Policy) -> None:
    socket = open_socket(policy)
    socket._heard = MESSAGES
    assert errors(socket.client(asks())) == ["protocol"]


def test_an_answer_of_this_socket_may_be_continued(policy: Policy) -> None:
    socket = open_socket(policy)
    assert errors(socket.client(asks(previous_response_id="resp_1"))) == ["body_opaque"]
    socket.client(asks())
    gives(socket, events("hello"))
    step = socket.client(asks(previous_response_id="resp_1"))
    assert json.loads(step.up[0])["previous_response_id"] == "resp_1"
    other = open_socket(policy)
    assert errors(other.client(asks(previous_response_id="resp_1"))) == ["body_opaque"]


def test_an_answer_nobody_asked_for_may_not_be_continued(policy: Policy) -> None:
    socket = open_socket(policy)
    gives(socket, [tells({"type": "response.created", "response": {"id": "resp_7"}})])
    assert errors(socket.client(asks(previous_response_id="resp_7"))) == ["body_opaque"]


def test_the_id_of_an_own_answer_is_inspected_all_the_same(policy: Policy) -> None:
    socket = open_socket(policy)
    socket.client(asks())
    gives(socket, [tells({"type": "response.created", "response": {"id": KEY}}), *events("x")[-1:]])
    assert errors(socket.client(asks(previous_response_id=KEY))) == ["finding"]


def test_what_comes_unasked_is_inspected_too(policy: Policy) -> None:
    socket = open_socket(policy)
    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    delta = {"type": "response.output_text.delta", **at}
    assert text_of(gives(socket, [tells({**delta, "delta": f"{MAIL} sk-Ab"})])) == "[REDACTED:mail] "
    step = socket.client(asks())
    assert text_of(json.loads(each) for each in step.down) == "sk-Ab"
    assert len(step.up) == 1


PARTINGS = {
    "client, idle": (False, False, Form.END, Outcome.ANSWERED, None, 1000),
    "upstream, idle": (True, False, Form.END, Outcome.ANSWERED, None, 1000),
    "client, in an answer": (False, True, Form.END, Outcome.ABORTED, Reason.CLIENT_GONE, 1000),
    "upstream, in an answer": (True, True, Form.END, Outcome.FAILED, Reason.UPSTREAM_FAILED, POLICY),
}


@pytest.mark.parametrize(
    ("upstream", "busy", "form", "outcome", "reason", "code"), PARTINGS.values(), ids=PARTINGS.keys()
)
def test_who_leaves_and_when(
    policy: Policy, upstream: bool, busy: bool, form: Form, outcome: Outcome, reason: Reason | None, code: int
) -> None:
    socket = open_socket(policy)
    if busy:
        socket.client(asks())
        gives(socket, events(f"card {CARD[:8]}")[:5])
    step = socket.upstream(UpstreamSaid(form, b"")) if upstream else socket.client(ClientSaid(form, b"", 0.0))
    assert (step.close, socket.outcome) == (code, outcome)
    assert (socket.denial.reason if socket.denial else None) == reason
    assert CARD[:8].encode() not in b"".join(step.down)


def test_a_socket_that_has_had_its_time_is_closed_without_an_error(policy: Policy) -> None:
    socket = open_socket(policy)
    assert socket.rest() == Relay(close=GOING_AWAY)
    assert (socket.outcome, socket.denial) == (Outcome.ANSWERED, None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer_=said, size=st.integers(1, 12))
def test_any_cut_reads_like_the_whole_and_like_a_stream(policy: Policy, answer_: Said, size: int) -> None:
    wire = responses(answer_, every(size))
    socket = open_socket(policy)
    socket.client(asks())
    out = gives(socket, [tells(event) for _, event in wire])
    assert read("responses", sse([(each["type"], each) for each in out])) == expected(answer_, engine())
    gate = answer("responses")
    assert out == [event for _, event in events_of(run(gate, sse(wire)))]
    assert socket.held == 0


# ── the dialect ──────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = """\
dialect: small
version: 1
error:
  body: {message: "${message}"}
  event: {message: "${message}"}
  message: {message: "${message}"}
  types: {other: bad}
endpoints:
  live:
    methods: [GET]
    paths: [/live]
    stream:
      event_type: type
      deltas: [{path: $.delta}]
      flush: [{when: [done]}]
    socket:
      messages: [ask]
      events: [text.*, done]
      ends: [done]
      continues: earlier
      names: answer.id
"""
FAULTS = {
    "no types": ("event_type: type", "event_type: null", "endpoints.live.socket: "),
    "another method": ("[GET]", "[POST]", "endpoints.live.socket: found [POST]; accepted: the method GET alone"),
    "no error": (
        '  message: {message: "${message}"}\n',
        "",
        "error: found no key message or close; accepted: a message or close",
    ),
    "nothing asked": ("messages: [ask]", "messages: []", "endpoints.live.socket.messages: found an empty list"),
    "an end that is no event": ("ends: [done]", "ends: [over]", "endpoints.live.socket.ends[0]: found over"),
    "any event": (
        "[text.*, done]",
        "['*', done]",
        "endpoints.live.socket.events: found *; accepted: event types",
    ),
    "a star inside": ("[text.*, done]", "['t*t', done]", "endpoints.live.socket.events: found t*t"),
    "half of two ways": (
        "      names: answer.id\n",
        "      names: answer.id\n      asks: [ask]\n",
        "socket.asks: found asks",
    ),
    "fields and types": ("      ends: [done]\n", "      ends: [done]\n      fields: true\n", "or fields: true"),
    "a mark without a path": ("ends: [done]", "ends: [{when: [done]}]", "socket.ends[0].path: found nothing"),
    "a mark of nothing": ("ends: [done]", "ends: [{when: [x], path: $.a}]", "socket.ends[0].when[0]: found x"),
    "half a chain": (
        "      names: answer.id\n",
        "",
        "socket.continues: found continues alone; accepted: continues",
    ),
    "unknown key": ("continues: earlier", "continue: earlier", "endpoints.live.socket"),
    "unknown place": ('  message: {message: "${message}"}', '  message: {message: "${mess}"}', "error.message.message"),
}


def test_a_small_socket_is_read() -> None:
    dialect, faults = parse_dialect(SMALL, "small.yaml")
    assert faults == ()
    assert dialect is not None
    socket = dialect.endpoints["live"].socket
    assert socket is not None
    assert (socket.messages, socket.names) == ({"ask"}, ("answer", "id"))
    assert [mark.when for mark in socket.ends] == [{"done"}]
    assert [socket.knows(kind) for kind in ("text.delta", "text.", "text", "done", "done2")] == [
        True, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said_"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_of_a_socket_is_said(old: str, new: str, said_: str) -> None:
    assert SMALL.count(old) == 1
    _, faults = parse_dialect(SMALL.replace(old, new), "small.yaml")
    assert any(said_ in str(fault) for fault in faults), [str(fault) for fault in faults]


def test_the_key_of_the_standard_is_answered_as_the_standard_says() -> None:
    assert base64.b64decode(CLIENT_KEY) == b"the sample nonce"


@pytest.mark.parametrize(
    ("ended", "close"), [({"aged": True}, 1001), ({"now": 2e9}, 1008)], ids=["the socket is old", "the token is"]
)
def test_a_question_that_waits_is_not_asked_when(policy: Policy, ended: dict[str, Any], close: int) -> None:
    socket = open_socket(policy, replace(ALICE, expires=1e9))
    assert socket.client(asks("one")).up
    assert not socket.client(asks("two")).up
    answer = events("hello")
    for event in answer[:-1]:
        socket.upstream(event)
    step = socket.upstream(replace(answer[-1], **ended))
    assert not step.up
    assert step.close == close


def test_what_a_socket_remembers_is_bounded(policy: Policy) -> None:
    socket = open_socket(policy)
    for _ in range(3):
        socket.client(asks(" ".join(f"{MAIL} {n}" for n in range(600))))
    assert len(socket.prompt_findings) == 1000


TWO_WAYS = """\
    socket:
      duplex: true
      binary: true
      fields: true
      parameters: [v]
      messages: [setup, ask]
      events: [ready, text, over]
      asks: [{path: $.ask.last, values: [true]}]
      begins: [text]
      ends: [{when: [over], path: $.over.all}]
      settings: [setup]
      settles: [ready]
"""


def test_a_socket_of_two_ways_is_read() -> None:
    text = SMALL.partition("    socket:")[0].replace("event_type: type", "unique: id") + TWO_WAYS
    text = text.replace("flush: [{when: [done]}]", "flush: [{path: $.over, same: {id: over.id}, again: true}]")
    dialect, faults = parse_dialect(text, "small.yaml")
    assert faults == ()
    assert dialect is not None
    endpoint = dialect.endpoints["live"]
    assert endpoint.socket is not None
    assert endpoint.stream is not None
    socket, stream = endpoint.socket, endpoint.stream
    assert (socket.duplex, socket.binary, socket.fields, socket.parameters) == (True, True, True, {"v"})
    assert (socket.settings, socket.settles, stream.unique) == ({"setup"}, {"ready"}, "id")
    assert (stream.flushes[0].same, stream.flushes[0].again) == ({"id": ("over", "id")}, True)
    asked = [{"ask": {"last": True}}, {"ask": {"last": False}}, {"ask": {}}]
    assert [socket.asks[0].fits(("ask",), each) for each in asked] == [True, False, False]
    assert [socket.ends[0].fits((kind,), {"over": {"all": 0}}) for kind in ("over", "text")] == [True, False]


@pytest.mark.parametrize(
    ("old", "new", "said_"),
    [
        ("asks: [{path: $.ask.last", "asks: [{when: [tell], path: $.ask.last", "socket.asks[0].when[0]: found tell"),
        ("begins: [text]", "begins: [txt]", "socket.begins[0]: found txt; accepted: types that are among events"),
        (
            "settings: [setup]",
            "settings: [set]",
            "socket.settings[0]: found set; accepted: types that are",
        ),
        ("fields: true", "fields: false", "a stream beside it, with event_type, which tells the type"),
        ("parameters: [v]", "parameters: v", "socket.parameters: found 'v'"),
    ],
)
def test_each_fault_of_a_socket_of_two_ways_is_said(old: str, new: str, said_: str) -> None:
    text = SMALL.partition("    socket:")[0].replace("event_type: type", "unique: id") + TWO_WAYS
    assert text.count(old) == 1
    _, faults = parse_dialect(text.replace(old, new), "small.yaml")
    assert any(said_ in str(fault) for fault in faults), [str(fault) for fault in faults]


def test_unread_is_for_sockets_alone() -> None:
    keep = "      keep: [{path: $.sound, unread: true, because: sound}]\n    socket:"
    alone = SMALL.partition("    socket:")[0] + keep.partition("    socket:")[0]
    assert parse_dialect(SMALL.replace("    socket:", keep), "small.yaml")[1] == ()
    _, faults = parse_dialect(alone, "small.yaml")
    assert "unread in the stream of a socket alone" in str(faults[0])


def test_a_refusal_closes_a_socket_of_a_family_without_errors(policy: Policy) -> None:
    socket = open_socket(policy)
    socket._shape = replace(socket._shape, message=None, close="${reason}: ${message}")
    step = socket.client(asks(f"use {KEY}"))
    assert isinstance(step, Relay)
    assert (step.up, step.down, step.close) == ((), (), POLICY)
    assert step.reason.startswith("finding: Blocked by policy: $.input")


@pytest.mark.parametrize("rule", [OnUnknown.FLAG, OnUnknown.PASS])
def test_unknown_events_follow_the_connection_and_unknown_questions_do_not(policy: Policy, rule: OnUnknown) -> None:
    prefixes = tuple((path, replace(each, on_unknown=rule)) for path, each in policy.routes.prefixes)
    socket = open_socket(replace(policy, routes=replace(policy.routes, prefixes=prefixes)))
    (out,) = gives(socket, [tells({"type": "session.created", "note": f"to {MAIL}!"})])
    assert out["note"] == "to [REDACTED:mail]!"
    assert socket.scanned is Scanned.PARTLY
    step = socket.client(asks(type="response.steer"))
    assert isinstance(step, Relay)
    assert errors(step) == ["protocol"]
