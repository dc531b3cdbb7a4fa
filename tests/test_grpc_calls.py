"""gRPC calls through the crossing: what of a request goes on, what is refused and why, and how a call ends."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.grpc_peer import TALK_DIALECT, TALK_PROTO, infer_request, piece_text
from tests.e2e.harness import policy as write_policy
from tests.protos import ROOT, SERVICE, described, descriptors, open_inference
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.dialects.errors import grpc_message, render
from tidegate.dialects.protobuf import pack
from tidegate.inspection.cache import DiskCache
from tidegate.model import Action, Caller, Denial, Direction, Head, Outcome, Reason, Scanned
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, PolicyError
from tidegate.steps import Stage
from tidegate.streams.grpc import Deframer, frame

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MAIL = "jane.doe@example.com"
ALICE = Caller("local", "alice", frozenset({"local:dev"}))
GRPC = (("content-type", "application/grpc"), ("te", "trailers"))
ROLES = {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}]}}
STREAM = f"{SERVICE}/ModelStreamInfer"
INFER = f"{SERVICE}/ModelInfer"


def document(folder: Path, *, small: bool = False, **changes: Any) -> Path:
    (folder / "set.binpb").write_bytes(open_inference())
    (folder / "talk.binpb").write_bytes(described(TALK_PROTO))
    (folder / "talk.yaml").write_text(TALK_DIALECT)
    models = {
        "name": "models",
        "dialect": "open-inference-grpc",
        "descriptors": "set.binpb",
        "upstream": "http://127.0.0.1:1",
        "serve": {"path": "/"},
        **changes,
    }
    flags = {
        **models,
        "name": "flags",
        "upstream": "http://127.0.0.1:2",
        "serve": {"path": "/flag"},
        "on_unknown": "flag",
    }
    talk = {**models, "name": "talk", "upstream": "http://127.0.0.1:3", "serve": {"path": "/talks"}}
    talk |= {"dialect": "talk", "descriptors": "talk.binpb", "on_unknown": "flag"}
    more: dict[str, Any] = {}
    if small:  # for what is asked about the connections alone
        (folder / "small.yaml").write_text((ROOT / "tests" / "data" / "packs" / "small.yaml").read_text())
        actions = {"secrets": "block", "pii": "redact"}
        more = {"packs": ["small.yaml"], "inspection": {"prompt": actions, "response": dict(actions)}}
    connections = [{key: value for key, value in each.items() if value is not None} for each in (models, flags, talk)]
    return write_policy(
        folder, "", connections=connections, roles=ROLES, dialects=["dialects/*.yaml", "talk.yaml"], **more
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load(document(tmp_path_factory.mktemp("calls")), engine_cache=DiskCache())


def begun(policy: Policy, path: str = INFER, *fields: tuple[str, str], http1: bool = False) -> tuple[Crossing, Any]:
    exchange = Crossing(policy, "ex_1")
    head = Head("POST", path, (("authorization", "Bearer x"), *(fields or GRPC)), None, http1)
    return exchange, exchange.receive(steps.HeadArrived(head))


def judged(policy: Policy, data: bytes, path: str = INFER, *fields: tuple[str, str]) -> tuple[Crossing, steps.Step]:
    exchange, step = begun(policy, path, *fields)
    assert isinstance(step, steps.Identify)
    assert isinstance(exchange.receive(steps.CallerKnown(ALICE)), steps.ReadBody)
    return exchange, exchange.receive(steps.BodyArrived(data))


def sent(policy: Policy, data: bytes, path: str = INFER) -> tuple[Crossing, steps.Send]:
    exchange, step = judged(policy, data, path)
    assert isinstance(step, steps.KeepIntent), step
    step = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(step, steps.Send)
    return exchange, step


def refused(step: steps.Step, reason: Reason) -> Denial:
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is reason
    return step.denial


def written(*messages: Any) -> bytes:
    return b"".join(frame(each.SerializeToString()) for each in messages)


HEADS = {
    "another content type": ((("content-type", "application/json"),), False),
    "gRPC-Web": ((("content-type", "application/grpc-web"),), False),
    "gRPC with JSON": ((("content-type", "application/grpc+json"),), False),
    "none": ((("x", "y"),), False),
    "two": ((("content-type", "application/grpc"), ("content-type", "application/grpc")), False),
    "HTTP/1": (GRPC, True),
    "a content encoding": ((*GRPC, ("content-encoding", "gzip")), False),
}


@pytest.mark.parametrize(("fields", "http1"), HEADS.values(), ids=HEADS)
def test_only_grpc_over_http2_is_a_call(policy: Policy, fields: tuple[tuple[str, str], ...], http1: bool) -> None:
    refused(begun(policy, INFER, *fields, http1=http1)[1], Reason.PROTOCOL)


def test_a_method_that_no_endpoint_is_is_refused_as_a_status(policy: Policy) -> None:
    exchange, step = begun(policy, f"{SERVICE}/RepositoryModelLoad")
    denial = refused(step, Reason.NO_ENDPOINT)
    assert exchange.shape.grpc
    fields = dict(render(exchange.shape, denial, "ex_1")[0])
    assert (fields["grpc-status"], fields["content-type"]) == ("12", "application/grpc")
    assert fields["grpc-retry-pushback-ms"] == "-1"
    assert "ex_1" in fields["grpc-message"]


CODES = {
    400: "3",
    401: "16",
    403: "7",
    404: "12",
    413: "8",
    415: "12",
    429: "8",
    499: "1",
    502: "14",
    503: "14",
    504: "4",
}


@pytest.mark.parametrize(("status", "code"), [*CODES.items(), (418, "13")])
def test_the_status_of_a_refusal(policy: Policy, status: int, code: str) -> None:
    shape = policy.dialects["open-inference-grpc"].error
    fields, body = render(shape, Denial(Reason.BUG, status, "Größe: 100 %"), "ex_1")
    assert dict(fields)["grpc-status"] == code
    assert dict(fields)["grpc-message"].startswith("Gr%C3%B6%C3%9Fe: 100 %25 (reason bug")
    assert body == b""


def test_a_message_of_a_status_is_ascii() -> None:
    assert grpc_message("a\nb\x7f~ %") == "a%0Ab%7F~ %25"


def test_what_is_sent_is_plain_and_says_so(policy: Policy) -> None:
    message = infer_request("hello")
    data = gzip.compress(message.SerializeToString())
    fields = (*GRPC, ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"), ("grpc-timeout", "1S"))
    exchange, step = judged(policy, b"\1" + struct.pack(">I", len(data)) + data, INFER, *fields)
    assert isinstance(step, steps.KeepIntent)
    send = exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(send, steps.Send)
    assert send.clearance.verdict.body == written(message)
    assert set(send.fields) == {
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-accept-encoding", "identity"),
        ("grpc-timeout", "1S"),
    }
    assert not send.measured
    assert (exchange.asked and exchange.asked.model, exchange.scanned) == ("good-model", Scanned.WHOLE)


def unknown(text: str) -> bytes:
    """Write a request with one more field than the descriptors know."""
    return frame(infer_request("hello").SerializeToString() + b"\xf2\x3f" + bytes([len(text)]) + text.encode())


def tokens() -> Any:
    request = infer_request("hello", raw=False)
    request.inputs.add(name="ids", datatype="INT64").contents.int64_contents.extend([1, 2, 3])
    return request


def shared() -> Any:
    request = infer_request("hello", raw=False)
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return request


def misnamed() -> Any:
    request = infer_request("hello")
    request.raw_input_contents.append(pack([KEY.encode()]))
    return request


REFUSED = {
    "a secret": (written(infer_request(f"key {KEY}")), Reason.FINDING),
    "a secret in a name": (written(infer_request("hello", name=KEY)), Reason.FINDING),
    "another model": (written(infer_request("hello", model="other")), Reason.MODEL_DENIED),
    "no model": (written(infer_request("hello", model="")), Reason.MODEL_DENIED),
    "token ids": (written(tokens()), Reason.BODY_OPAQUE),
    "shared memory": (written(shared()), Reason.BODY_OPAQUE),
    "raw data of no tensor": (written(misnamed()), Reason.BODY_OPAQUE),
    "an unknown field": (unknown("hello"), Reason.BODY_OPAQUE),
    "two messages": (written(infer_request("a"), infer_request("b")), Reason.BODY_MALFORMED),
    "no message": (b"", Reason.BODY_MALFORMED),
    "half a message": (written(infer_request("a"))[:-1], Reason.BODY_MALFORMED),
    "something else": (frame(b"\xff\xff"), Reason.BODY_MALFORMED),
    "an unknown coding": (b"\1\0\0\0\1x", Reason.BODY_ENCODING),
    "a message that is too large": (b"\0\xff\xff\xff\xff", Reason.BODY_TOO_LARGE),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_requests_that_go_nowhere(policy: Policy, data: bytes, reason: Reason) -> None:
    exchange, step = judged(policy, data)
    denial = refused(step, reason)
    assert KEY not in denial.message
    assert exchange.masked_body == b"" or KEY.encode() not in exchange.masked_body
    assert exchange.outcome is Outcome.DENIED


def test_a_question_without_a_model_takes_nothing_else(policy: Policy) -> None:
    sent(policy, frame(b""), f"{SERVICE}/ServerLive")
    refused(judged(policy, frame(b"\x0a\x01x"), f"{SERVICE}/ServerLive")[1], Reason.BODY_OPAQUE)


def test_what_is_not_scanned_may_be_flagged_and_is_kept(policy: Policy) -> None:
    for data in (unknown("hello"), written(tokens())):
        exchange, send = sent(policy, data, f"/flag{INFER}")
        assert send.clearance.verdict.body == data
        assert exchange.scanned is Scanned.PARTLY
    exchange, _ = sent(policy, written(infer_request("hello")), f"/flag{INFER}")
    assert exchange.scanned is Scanned.WHOLE


def test_what_would_be_tokenised_in_an_unknown_field_is_refused(policy: Policy) -> None:
    actions = dict.fromkeys(policy.decisions[Direction.PROMPT], Action.TOKENISE)
    tokenising = replace(policy, decisions={**policy.decisions, Direction.PROMPT: actions})
    _exchange, step = judged(tokenising, unknown(MAIL), f"/flag{INFER}")
    assert "$, unknown field 1022" in refused(step, Reason.FINDING).message


@pytest.mark.parametrize("text", [KEY, MAIL])
def test_a_finding_in_an_unknown_field_refuses_even_what_is_flagged(policy: Policy, text: str) -> None:
    _exchange, step = judged(policy, unknown(text), f"/flag{INFER}")
    denial = refused(step, Reason.FINDING)
    assert "$, unknown field 1022" in denial.message
    assert text not in denial.message


def test_masked_messages_keep_what_the_descriptors_do_not_know(policy: Policy) -> None:
    request = infer_request(f"mail {MAIL} now")
    extra = b"\xf2\x3f\x05hello"
    _, send = sent(policy, frame(request.SerializeToString() + extra), f"/flag{INFER}")
    (data,) = Deframer("", 1 << 20).feed(send.clearance.verdict.body)
    assert data.endswith(extra)
    (text,) = piece_text(type(request).FromString(data))
    assert text.startswith("mail [REDACTED:")
    assert text.endswith("] now")


def asked(*prompts: str) -> bytes:
    method = descriptors(TALK_PROTO).method("/talk.Talk/Collect")
    assert method is not None
    kind: Any = method.request
    return written(*(kind(model="good-model", prompt=each) for each in prompts))


def test_many_messages_are_judged_together(policy: Policy) -> None:
    exchange, send = sent(policy, asked("one", f"mail {MAIL}"), "/talks/talk.Talk/Collect")
    assert len(Deframer("", 1 << 20).feed(send.clearance.verdict.body)) == 2
    assert [each.where for each in exchange.prompt_findings] == ["message 2: $.prompt"]
    _, step = judged(policy, asked("one", KEY, "three"), "/talks/talk.Talk/Collect")
    assert "message 2: $.prompt" in refused(step, Reason.FINDING).message


# ── a call in which both sides speak ─────────────────────────────────────────────────────────────────────────────────


def live(policy: Policy) -> Crossing:
    exchange, _ = sent(policy, written(infer_request("hello")), STREAM)
    assert isinstance(exchange.receive(steps.AnswerBegan(200, GRPC[:1])), steps.Stream)
    return exchange


def test_more_messages_go_up_when_they_were_judged(policy: Policy) -> None:
    exchange = live(policy)
    step = exchange.receive(steps.MoreSaid(written(infer_request(f"mail {MAIL}"), infer_request("b")), 0.0))
    assert isinstance(step, steps.Relay)
    assert len(Deframer("", 1 << 20).feed(step.up[0])) == 2
    assert MAIL.encode() not in step.up[0]
    assert [each.where for each in exchange.prompt_findings] == ["message 2: $.inputs[0].raw_input_contents[0].text"]
    assert exchange.heard == 3
    assert exchange.stage is Stage.STREAM


def test_a_message_that_is_refused_ends_the_call(policy: Policy) -> None:
    exchange = live(policy)
    assert exchange.receive(steps.MoreSaid(written(infer_request(KEY)), 0.0)) == steps.Emit(b"", last=True)
    assert exchange.denial is not None
    assert (exchange.denial.reason, exchange.outcome) == (Reason.FINDING, Outcome.DENIED)
    assert dict(exchange.trailers((("grpc-status", "0"),)))["grpc-status"] == "7"


def test_a_call_ends_with_its_token(policy: Policy) -> None:
    exchange, _step = begun(policy, STREAM)
    exchange.receive(steps.CallerKnown(Caller("local", "alice", frozenset({"local:dev"}), expires=100.0)))
    exchange.receive(steps.BodyArrived(written(infer_request("hello"))))
    exchange.receive(steps.IntentKept(kept=True))
    assert isinstance(exchange.receive(steps.MoreSaid(written(infer_request("a")), 99.0)), steps.Relay)
    denial = refused(exchange.receive(steps.MoreSaid(written(infer_request("a")), 100.0)), Reason.TOKEN_EXPIRED)
    assert denial.status == 401


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "content_type"), [(503, "application/grpc"), (200, "text/html"), (200, "application/grpc+json")]
)
def test_an_answer_that_is_no_grpc_is_refused(policy: Policy, status: int, content_type: str) -> None:
    exchange, _ = sent(policy, written(infer_request("hello")))
    step = exchange.receive(steps.AnswerBegan(status, (("content-type", content_type),)))
    assert exchange.shape.grpc
    refused(step, Reason.UPSTREAM_PROTOCOL)


def test_the_head_of_an_answer_loses_what_holds_something(policy: Policy) -> None:
    exchange, _ = sent(policy, written(infer_request("hello")))
    fields = (*GRPC[:1], ("x-bin", "amFuZS5kb2VAZXhhbXBsZS5jb20"), ("y-bin", "aGk"), ("grpc-encoding", "gzip"))
    step = exchange.receive(steps.AnswerBegan(200, fields))
    assert isinstance(step, steps.Buffer)
    assert {"x-bin", "grpc-encoding", "grpc-status", "grpc-message"} <= step.drop
    assert "y-bin" not in step.drop


# ── policies ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CAN_BE_READ = "what protoc --include_imports --descriptor_set_out writes"
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no set": ({"descriptors": None}, "found nothing", "the path of a descriptor set, relative to this file"),
    "no file": ({"descriptors": "none.binpb"}, "none.binpb: No such file or directory", "a file that can be read"),
    "no set in the file": ({"descriptors": "talk.yaml"}, "talk.yaml: a file that is no descriptor set", CAN_BE_READ),
    "a number": ({"descriptors": 7}, "found 7", "the path of a descriptor set, relative to this file"),
    "another dialect": ({"dialect": "openai"}, "found 'set.binpb'", "descriptors for a dialect of gRPC methods alone"),
    "other methods": (
        {"dialect": "talk"},
        "no method /talk.Talk/Tell, which the endpoint tell is",
        "a set with its methods",
    ),
}


@pytest.mark.parametrize(("changes", "found", "accepted"), FAULTS.values(), ids=FAULTS)
def test_a_policy_with_a_fault(tmp_path: Path, changes: dict[str, Any], found: str, accepted: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load(document(tmp_path, small=True, **changes), engine_cache=DiskCache())
    told = [str(each) for each in caught.value.faults if each.key.startswith("connections[0].descriptors")]
    assert told, caught.value.faults
    assert found in told[0]
    assert told[0].endswith(f"accepted: {accepted}")


def test_the_digest_of_a_policy_covers_its_descriptors(tmp_path: Path) -> None:
    path = document(tmp_path, small=True)
    before = load(path, engine_cache=DiskCache()).sha256
    (tmp_path / "set.binpb").write_bytes(open_inference() + b"\xf2\x3f\x01x")
    assert load(path, engine_cache=DiskCache()).sha256 != before
