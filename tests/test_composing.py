"""Bodies inside of bodies: batches in JSON, batches in files of lines, and the answers of both."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import docx, run
from tests.wire import always, dialect
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.inspection.attachments import extract
from tidegate.inspection.bodies import Inspected
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.composed import Judge, inspect_whole
from tidegate.inspection.tokens import TOKEN, TokenLimits, Vault
from tidegate.model import Action, Caller, Direction, Head, OnUnknown, Owners, Reason, Scanned, Stored
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "rules" / "policy.yaml"
ALICE = Caller("local", "alice", frozenset({"local:dev"}))
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"
BATCHES = "/anthropic/v1/messages/batches"
FILES = "/openai/v1/files"
MARK = "mark-1"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The default policy, which masks PII in prompts, for callers who may use models that begin with good."""
    document = yaml.safe_load(RULES.read_text())
    document["inspection"]["prompt"] |= {"secrets": "block", "pii": "redact"}
    document["inspection"]["packs"] = [str(RULES.parent / "packs")]
    document["roles"] = {
        "dev": {
            "allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}],
            "deny": [{"tools": ["bash"]}],
        },
        "narrow": {"allow": [{"connections": ["*"], "endpoints": ["files", "embeddings"], "models": ["good-*"]}]},
    }
    document["bindings"] = [
        {"groups": ["local:dev"], "roles": ["dev"]},
        {"groups": ["local:narrow"], "roles": ["narrow"]},
    ]
    folder = tmp_path_factory.mktemp("composing")
    for each in ("packs", "dialects"):
        (folder / each).symlink_to(RULES.parent / each, target_is_directory=True)
    document["inspection"].pop("packs")
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return load(path, engine_cache=DiskCache())


def with_rule(policy: Policy, rule: OnUnknown) -> Policy:
    prefixes = tuple((path, replace(each, on_unknown=rule)) for path, each in policy.routes.prefixes)
    return replace(policy, routes=replace(policy.routes, prefixes=prefixes))


def crossed(
    policy: Policy, body: bytes, path: str, label: str = "application/json", caller: Caller = ALICE
) -> tuple[Crossing, steps.Step]:
    """Bring a request to its judgement, reading its attachments in this process."""
    exchange = Crossing(policy, "ex_1")
    fields = (("authorization", "Bearer x"), ("content-type", label))
    exchange.receive(steps.HeadArrived(Head("POST", path, fields, None)))
    exchange.receive(steps.CallerKnown(caller))
    event = steps.BodyArrived(body)
    step = exchange.receive(event)
    if isinstance(step, steps.Extract):
        step = exchange.receive(replace(event, extracted=tuple(map(extract, step.attachments))))
    return exchange, step


def sent(exchange: Crossing) -> steps.Send:
    step = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(step, steps.Send)
    return step


def refusal(step: steps.Step) -> tuple[str, str]:
    assert isinstance(step, steps.Refuse)
    return step.denial.reason.value, step.denial.message


# ── JSON: requests[*].params ─────────────────────────────────────────────────────────────────────────────────────────


def params(text: str, **more: object) -> dict[str, object]:
    return {"model": "good-one", "max_tokens": 5, "messages": [{"role": "user", "content": text}], **more}


def batch(*every: dict[str, object]) -> bytes:
    return json.dumps({"requests": [{"custom_id": f"r{i}", "params": each} for i, each in enumerate(every)]}).encode()


def test_a_clean_batch_is_sent_as_it_is(policy: Policy) -> None:
    body = batch(params("hello"), params("there"))
    exchange, step = crossed(policy, body, BATCHES)
    assert isinstance(step, steps.KeepIntent)
    assert json.loads(sent(exchange).clearance.verdict.body) == json.loads(body)
    assert exchange.asked is not None
    assert (exchange.asked.model, exchange.asked.max_output) == ("good-one", 5)
    assert exchange.scanned is Scanned.WHOLE


def test_a_value_in_one_of_many_becomes_the_token_of_the_session(policy: Policy) -> None:
    found = policy.decisions[Direction.PROMPT]
    prompt = {rule: Action.TOKENISE if act is Action.REDACT else act for rule, act in found.items()}
    tokenising = replace(policy, tokens=TokenLimits(), decisions={**policy.decisions, Direction.PROMPT: prompt})
    vault = Vault(lambda: bytes(32))
    exchange = Crossing(tokenising, "ex_1")
    exchange.sessions = lambda who, limits: vault.session(who, limits, 0)
    fields = (("authorization", "Bearer x"), ("content-type", "application/json"))
    exchange.receive(steps.HeadArrived(Head("POST", BATCHES, fields, None)))
    exchange.receive(steps.CallerKnown(ALICE))
    exchange.receive(steps.BodyArrived(batch(params("hello"), params(f"pay {CARD}"), params(f"again {CARD}"))))
    up = json.loads(sent(exchange).clearance.verdict.body)
    said = [each["params"]["messages"][0]["content"] for each in up["requests"]]
    token = said[1].removeprefix("pay ")
    assert TOKEN.fullmatch(token)
    assert said == ["hello", f"pay {token}", f"again {token}"]
    assert exchange.tokens is not None
    assert exchange.tokens.session.value(token) == CARD


def test_a_finding_in_one_of_many_is_masked_where_it_stands(policy: Policy) -> None:
    exchange, _ = crossed(policy, batch(params("hello"), params(f"pay {CARD}"), params("bye")), BATCHES)
    body = json.loads(sent(exchange).clearance.verdict.body)
    texts = [each["params"]["messages"][0]["content"] for each in body["requests"]]
    assert texts == ["hello", "pay [REDACTED:card-visa]", "bye"]
    assert [each.where for each in exchange.prompt_findings] == ["$.requests[1].params.messages[0].content"]


REFUSED: dict[str, tuple[dict[str, object], str, str]] = {
    "a secret": (params(f"key {KEY}"), "finding", "In $.requests[1].params: Blocked by policy: $.messages[0].content "),
    "a model": (params("x", model="bad"), "model_denied", "In $.requests[1].params: Your roles do not allow the model"),
    "a tool": (params("x", tools=[{"name": "bash"}]), "tool_denied", "In $.requests[1].params: Your roles do not"),
    "a stored container": (params("x", container="c1"), "body_opaque", "In $.requests[1].params: The request uses "),
    "token ids": (
        params("x", messages=[{"role": "user", "content": [[1, 2]]}]),
        "body_opaque",
        "In $.requests[1].params: $.messages[0].content[0] was not scanned: it is or holds token ids",
    ),
    "no object": ("text", "body_malformed", "In $.requests[1].params: the body is not a JSON object."),  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("bad", "reason", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_one_request_that_is_refused_refuses_all(
    policy: Policy, bad: dict[str, object], reason: str, message: str
) -> None:
    _, step = crossed(policy, batch(params("hello"), bad), BATCHES)
    told = refusal(step)
    assert told[0] == reason
    assert told[1].startswith(message), told[1]
    assert KEY not in told[1]


def test_the_endpoint_of_an_inner_request_must_be_granted_too(policy: Policy) -> None:
    narrow = Caller("local", "eve", frozenset({"local:narrow"}))
    _, step = crossed(policy, upload(line(body=chat("hello"))), FILES, LABEL, narrow)
    assert refusal(step) == (
        "not_granted",
        "In line 1 of the file: Your roles do not allow the endpoint chat of the connection openai.",
    )
    vector = line(url="/v1/embeddings", body={"model": "good-one", "input": "hello"})
    assert isinstance(crossed(policy, upload(vector), FILES, LABEL, narrow)[1], steps.KeepIntent)


def test_documents_in_inner_requests_are_read(policy: Policy) -> None:
    def with_file(text: str) -> dict[str, object]:
        import base64

        data = base64.b64encode(docx(run(text))).decode()
        source = {"type": "base64", "media_type": "application/octet-stream", "data": data}
        return params("", messages=[{"role": "user", "content": [{"type": "document", "source": source}]}])

    exchange, step = crossed(policy, batch(with_file("one"), params("x"), with_file("two")), BATCHES)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.scanned is Scanned.WHOLE
    exchange, step = crossed(policy, batch(with_file("one"), params("x"), with_file(KEY)), BATCHES)
    assert refusal(step)[1].startswith("In $.requests[2].params: Blocked by policy: ")
    assert [each.where for each in exchange.prompt_findings] == [
        "$.requests[2].params.messages[0].content[0].source.data (docx: word/document.xml)"
    ]
    _, step = crossed(policy, batch(with_file("one"), params("x", model="bad")), BATCHES)
    assert refusal(step)[0] == "model_denied", "before the document was read"


# ── lines in a file of a form ────────────────────────────────────────────────────────────────────────────────────────

LABEL = f"multipart/form-data; boundary={MARK}"


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(b"--mark-1\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        + b"--mark-1--\r\n"
    )


def text(name: str, value: str) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value.encode()


def file(
    data: bytes, filename: str = "a.jsonl", name: str = "file", label: str = "application/jsonl"
) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {label}', data


def line(**more: object) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", **more}).encode()


def chat(said: str, **more: object) -> dict[str, object]:
    return {"model": "good-one", "messages": [{"role": "user", "content": said}], **more}


def upload(*lines: bytes, purpose: str = "batch") -> bytes:
    return form(text("purpose", purpose), file(b"".join(each + b"\n" for each in lines)))


def parts_of(step: steps.Send) -> dict[str, bytes]:
    """Read what is sent with another parser: the standard library's."""
    from email import message_from_bytes
    from email.policy import HTTP

    label = dict(step.fields)["content-type"]
    mail = message_from_bytes(f"content-type: {label}\r\n\r\n".encode() + step.clearance.verdict.body, policy=HTTP)
    found = {}
    for part in mail.iter_parts():  # type: ignore[attr-defined]
        found[part.get_param("name", header="content-disposition")] = part.get_payload(decode=True)
    return found


def test_a_clean_batch_file_is_written_anew_and_equal(policy: Policy) -> None:
    body = upload(line(body=chat("hello")), line(url="/v1/embeddings", body={"model": "good-two", "input": "x"}))
    exchange, step = crossed(policy, body, FILES, LABEL)
    assert isinstance(step, steps.KeepIntent)
    going = sent(exchange)
    assert MARK.encode() not in going.clearance.verdict.body
    found = parts_of(going)
    assert found["purpose"] == b"batch"
    assert [json.loads(each) for each in found["file"].splitlines()] == [
        json.loads(line(body=chat("hello"))),
        json.loads(line(url="/v1/embeddings", body={"model": "good-two", "input": "x"})),
    ]
    assert exchange.asked is not None
    assert exchange.asked.model is None, "there are two"
    assert exchange.scanned is Scanned.WHOLE


def test_a_line_is_masked_in_place(policy: Policy) -> None:
    exchange, _ = crossed(policy, upload(line(body=chat("a")), line(body=chat(CARD), custom_id=CARD)), FILES, LABEL)
    lines = [json.loads(each) for each in parts_of(sent(exchange))["file"].splitlines()]
    assert lines[0] == json.loads(line(body=chat("a")))
    assert lines[1]["body"]["messages"][0]["content"] == lines[1]["custom_id"] == "[REDACTED:card-visa]"
    assert sorted(each.where for each in exchange.prompt_findings) == [
        "$.file.lines[1].body.messages[0].content",
        "$.file.lines[1].custom_id",
    ]


LINES: dict[str, tuple[bytes, str, str]] = {
    "a secret": (line(body=chat(KEY)), "finding", "In line 2 of the file: Blocked by policy: "),
    "a model": (line(body=chat("x", model="bad")), "model_denied", "In line 2 of the file: Your roles"),
    "an address that is none": (line(url="/v1/fine_tuning", body={}), "no_endpoint", "In line 2 of the file: it names no"),
    "an upload": (line(url="/v1/files", body={}), "no_endpoint", "In line 2 of the file: it names no"),
    "a socket": (line(url="/v1/responses", method="GET", body={}), "no_endpoint", "In line 2 of the file: it names no"),
    "no body": (line(), "body_malformed", "In line 2 of the file: it holds no request with a body."),
    "a body that is none": (line(body="x"), "body_malformed", "In line 2 of the file: the body is not a JSON object."),
    "no JSON": (b'{"a":', "body_malformed", "In line 2 of the file: it is not JSON."),
    "no object": (b"[]", "body_malformed", "In line 2 of the file: it is not a JSON object."),
    "a key twice": (b'{"a":1,"a":2}', "body_malformed", "In line 2 of the file: an object holds the same key twice."),
    "a model in the address": (
        line(url="/openai/deployments/good-one/chat/completions", body=chat("x")),
        "no_endpoint",
        "In line 2 of the file: it names no endpoint of the connection that it could ask.",
    ),
    "a stored answer by its address": (
        line(url="/v1/responses/resp_1/cancel", body={"model": "good-one"}),
        "no_endpoint",
        "In line 2 of the file: it names no endpoint of the connection that it could ask.",
    ),
}  # fmt: skip


def test_what_is_stored_may_be_named_in_a_line_by_who_made_it(policy: Policy) -> None:
    lines = [line(url="/v1/responses", body={"model": "good-one", "previous_response_id": each}) for each in ("a", "b")]
    body = upload(line(body=chat("x")), *lines)
    one, other = Stored("response", "a"), Stored("response", "b")
    for known, refused in (({one: None, other: None}, None), ({one: None}, "not_owner"), ({}, "not_owner")):
        exchange, step = crossed(policy, body, FILES, LABEL)
        assert step == steps.LookUp((one, other))
        step = exchange.receive(steps.BodyArrived(body, owners=Owners(known)))
        if refused is None:
            assert isinstance(step, steps.KeepIntent)
        else:
            assert refusal(step)[0] == refused
            assert refusal(step)[1].startswith("In line ")


@pytest.mark.parametrize(("bad", "reason", "message"), LINES.values(), ids=LINES.keys())
def test_a_line_that_is_refused_is_named(policy: Policy, bad: bytes, reason: str, message: str) -> None:
    exchange, step = crossed(policy, upload(line(body=chat("x")), bad), FILES, LABEL)
    told = refusal(step)
    assert told[0] == reason
    assert told[1].startswith(message), told[1]
    assert KEY not in told[1]
    assert KEY.encode() not in exchange.masked_body


def test_a_file_for_anything_else_is_read_as_a_document(policy: Policy) -> None:
    exchange, step = crossed(policy, form(text("purpose", "user_data"), file(b"hello")), FILES, LABEL)
    assert isinstance(step, steps.KeepIntent)
    assert parts_of(sent(exchange)) == {"purpose": b"user_data", "file": b"hello"}
    exchange, step = crossed(policy, form(text("purpose", "user_data"), file(KEY.encode())), FILES, LABEL)
    assert refusal(step)[0] == "finding"
    assert [each.where for each in exchange.prompt_findings] == ["$.file (text)"]
    _, step = crossed(policy, form(text("purpose", "user_data"), file(CARD.encode())), FILES, LABEL)
    assert "nothing can be masked inside a file" in refusal(step)[1]
    exchange, step = crossed(policy, form(text("purpose", "user_data"), file(docx(run(KEY)))), FILES, LABEL)
    assert [each.where for each in exchange.prompt_findings] == ["$.file (docx: word/document.xml)"]


@pytest.mark.parametrize("rule", OnUnknown)
def test_a_file_that_nobody_reads_follows_on_unknown(policy: Policy, rule: OnUnknown) -> None:
    body = form(text("purpose", "vision"), file(b"\x89PNG\r\n\x1a\n" + bytes(40), "a.png", label="image/png"))
    exchange, step = crossed(with_rule(policy, rule), body, FILES, LABEL)
    assert exchange.scanned is Scanned.PARTLY
    if rule is OnUnknown.BLOCK:
        assert refusal(step)[1].startswith("$.file was not scanned: it is or holds a picture. Nothing was sent to")
    else:
        assert parts_of(sent(exchange))["file"].startswith(b"\x89PNG")
        assert exchange.decisions[-2].result == rule


def test_names_of_files_and_fields_are_inspected(policy: Policy) -> None:
    _, step = crossed(policy, form(text("purpose", "user_data"), file(b"x", f"{KEY}.txt")), FILES, LABEL)
    assert "$.file.filename" in refusal(step)[1]
    _, step = crossed(policy, form(text("purpose", "user_data"), file(b"x", label=f"text/{KEY}")), FILES, LABEL)
    assert "$.file.content_type" in refusal(step)[1]
    _, step = crossed(policy, form(text(KEY, "x"), file(b"x")), FILES, LABEL)
    assert refusal(step)[0] == "finding"
    exchange, _ = crossed(policy, form(text("purpose", "user_data"), file(b"x", "jane.doe@example.com")), FILES, LABEL)
    assert b'filename="[REDACTED:email]"' in sent(exchange).clearance.verdict.body


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTENT = """
dialect: openai-like
version: 1
error: {body: {}, event: {}, types: {other: x}}
endpoints:
  chat:
    methods: [POST]
    paths: [/chat]
    answer:
      - {path: $.choices, role: assistant}
      - {path: "$.choices[*].logprobs", drop: true, because: again}
      - {path: $.id, exempt: true, because: random}
  content:
    methods: [GET]
    paths: ["/files/*"]
    body: false
    answers: [json, lines, text]
    answered:
      - {path: $.response.body, told_by: object, endpoints: {chat.completion: chat}}
      - {path: "$.data[*].result", endpoint: chat}
    answer:
      - {path: $.custom_id, role: metadata}
"""


@pytest.fixture(scope="module")
def inspect(policy: Policy) -> Callable[..., object]:
    from tidegate.dialects.load import parse_dialect

    found, faults = parse_dialect(CONTENT, "content.yaml")
    assert faults == ()
    assert found is not None

    def look(body: bytes, status: int = 200, action: Action = Action.REDACT) -> object:
        judge = Judge(found.endpoints, policy.engine, always(action))
        return inspect_whole(found.endpoints["content"], judge, body, status=status)

    return look


def result(said: str, **more: object) -> dict[str, object]:
    answer = {"id": KEY, "object": "chat.completion", "choices": [{"message": {"content": said}, "logprobs": [1]}]}
    return {"custom_id": "a", "response": {"status_code": 200, "body": answer | more}, "error": None}


def test_lines_of_answers_are_masked_each_by_its_inner_endpoint(inspect: Callable[..., object]) -> None:
    rows = [json.dumps(result("hello"), indent=None).encode(), json.dumps(result(f"key {KEY}")).encode()]
    found = inspect(b"\n".join(rows) + b"\n")
    assert isinstance(found, Inspected)
    first, second, end = found.body.split(b"\n")
    assert (first, end) == (rows[0], b""), "a clean line keeps its bytes"
    body = json.loads(second)["response"]["body"]
    assert body["choices"] == [{"message": {"content": "key [REDACTED:aws-access-key]"}, "logprobs": []}]
    assert body["id"] == KEY, "exempt by the inner endpoint"
    assert {each.where for each in found.findings} == {"line 2: $.response.body.choices[0].message.content"}


def test_what_is_around_inner_answers_is_masked_too(inspect: Callable[..., object]) -> None:
    rows = [json.dumps(result("a") | {"custom_id": KEY}).encode(), json.dumps({"error": {"message": KEY}}).encode()]
    found = inspect(b"\n".join(rows))
    assert isinstance(found, Inspected)
    first, second = map(json.loads, found.body.split(b"\n"))
    assert first["custom_id"] == second["error"]["message"] == "[REDACTED:aws-access-key]"
    assert first["response"] == result("a")["response"]


def test_an_inner_answer_of_an_unknown_kind_is_inspected_whole(inspect: Callable[..., object]) -> None:
    row = json.dumps(result("a", object="video")).encode()
    found = inspect(row)
    assert isinstance(found, Inspected)
    assert KEY.encode() not in found.body


def test_json_with_answers_in_a_list(inspect: Callable[..., object]) -> None:
    body = json.dumps({"data": [{"result": {"id": KEY, "choices": ["a"]}}, {"result": {"choices": [KEY]}}]}).encode()
    found = inspect(body)
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == {
        "data": [{"result": {"id": KEY, "choices": ["a"]}}, {"result": {"choices": ["[REDACTED:aws-access-key]"]}}]
    }
    assert [each.where for each in found.findings] == ["$.data[1].result.choices[0]"]


ODD = {
    "a broken line": (b'{"a": 1}\n{"b": \n', "answer_malformed"),
    "a line that is no object": (b'{"a": 1}\n{"b": 2}\n[]', "answer_malformed"),
    "no UTF-8": (b"\xff\xfe\x00", "answer_malformed"),
    "JSON that is none, with escapes": (b'{"a": "\\u0041', "answer_malformed"),
}


@pytest.mark.parametrize(("body", "reason"), ODD.values(), ids=ODD.keys())
def test_answers_that_cannot_be_read_are_refused(inspect: Callable[..., object], body: bytes, reason: str) -> None:
    assert inspect(body).reason.value == reason  # type: ignore[attr-defined]


def test_an_answer_that_is_blocked_is_refused(inspect: Callable[..., object]) -> None:
    for body in (json.dumps(result(KEY)).encode(), f"text {KEY}".encode(), json.dumps(result(KEY)).encode() + b"\n{}"):
        assert inspect(body, action=Action.BLOCK).reason is Reason.ANSWER_FINDING  # type: ignore[attr-defined]


def test_a_text_is_masked(inspect: Callable[..., object]) -> None:
    for before in ("", "[music] ", '"Well', "{", "\ufeff"):
        found = inspect(f"{before} key {KEY}\nend".encode())
        assert isinstance(found, Inspected)
        assert found.body.decode() == f"{before} key [REDACTED:aws-access-key]\nend"


SAID = st.lists(st.sampled_from(["hello", KEY, KEY[:9], "\n", '"', "\\", "é", "{}", " "]), max_size=4).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(SAID, min_size=1, max_size=5))
def test_lines_are_masked_like_answers_of_their_own(inspect: Callable[..., object], said: list[str]) -> None:
    """What stands in a line comes out as it would alone, whatever stands in the others."""
    rows = [json.dumps(result(each)).encode() for each in said]
    together = inspect(b"\n".join(rows))
    assert isinstance(together, Inspected)
    alone = [inspect(row) for row in rows]
    assert together.body == b"\n".join(each.body for each in alone)  # type: ignore[attr-defined]
    assert len(together.findings) == sum(len(each.findings) for each in alone)  # type: ignore[attr-defined]


def clean_lines() -> Iterator[bytes]:
    yield json.dumps(result("hello"), indent=None).encode()
    yield b'{ "odd" :  "spaces" , "n": 1.50 }\r'
    yield b""
    yield b'{"last": "\\u00e9"}'


def test_clean_lines_keep_every_byte(inspect: Callable[..., object]) -> None:
    body = b"\n".join(clean_lines())
    assert inspect(body) == Inspected(body, ())


FAULTS = {
    "neither": ("{path: $.x}", "endpoints.content.answered[0]: found the keys path; accepted: either endpoint, or told_by and endpoints"),
    "both": ("{path: $.x, endpoint: chat, told_by: a, endpoints: {b: chat}}", "endpoints.content.answered[0]: found the keys path, endpoint, told_by, endpoints; accepted: either endpoint, or told_by and endpoints"),
    "half": ("{path: $.x, told_by: a}", "endpoints.content.answered[0]: found the keys path, told_by; accepted: either endpoint, or told_by and endpoints"),
    "unknown": ("{path: $.x, endpoint: nobody}", "endpoints.content.answered[0]: found nobody; accepted: endpoints of this file"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_named(entry: str, message: str) -> None:
    from tidegate.dialects.load import parse_dialect

    written = CONTENT.replace('{path: "$.data[*].result", endpoint: chat}', "X").replace(
        "{path: $.response.body, told_by: object, endpoints: {chat.completion: chat}}", entry
    )
    _, faults = parse_dialect(written.replace("      - X\n", ""), "c.yaml")
    assert [str(each).partition(": ")[2] for each in faults] == [message]


KINDS = {
    "an unknown kind": ("bodies: [xml]", "endpoints.content.bodies: found [xml]; accepted: a list of json, form, text, data"),
    "an unknown kind of answer": ("answers: [data]", "endpoints.content.answers: found [data]; accepted: a list of json, lines, text"),
    "a form that is none": ("form: {lists: [a]}", "endpoints.content.form: found a form that is no body of this endpoint; accepted: form among the bodies"),
    "lines without a part": ("bodies: [form]\n    form: {lines: [{when: {a: [b]}}]}", "endpoints.content.form.lines[0].part: found nothing; accepted: the name of a file's field"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), KINDS.values(), ids=KINDS.keys())
def test_faults_of_kinds_are_named(entry: str, message: str) -> None:
    from tidegate.dialects.load import parse_dialect

    written = CONTENT.replace("answers: [json, lines, text]", entry)
    _, faults = parse_dialect(written, "c.yaml")
    assert [str(each).partition(": ")[2] for each in faults] == [message]


def test_the_shipped_dialects_have_what_is_tested_here() -> None:
    assert dialect("openai").endpoints["files"].made_of.inner.paths
    assert dialect("anthropic").endpoints["message_batches"].made_of.inner.paths
