"""What rules of roles may ask of a request beside connection, endpoint and model."""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests.test_oracle import Decider, tree
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Dialect
from tidegate.dialects.wanted import complete
from tidegate.identity.conditions import in_window
from tidegate.identity.permission import admit, permit, roles_of
from tidegate.judging import NOTHING
from tidegate.model import Asked, Caller, Denial, Grant, Modality, Reason, Route, Situation, Window
from tidegate.policy.linking import Parts, link
from tidegate.policy.reader import Reader
from tidegate.policy.schema import SECTIONS, read

ROOT = Path(__file__).resolve().parents[1]
ALICE = Caller("corp", "alice", frozenset({"corp:g"}))
BERLIN = "Europe/Berlin"


def dialect(name: str) -> Dialect:
    found, faults = parse_dialect((ROOT / "rules" / "dialects" / f"{name}.yaml").read_text(), name)
    assert found is not None, faults
    return found


OPENAI = dialect("openai")


def document(role: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "identity": [{"name": each, "static": {"tokens": f"{each}.yaml"}} for each in ("corp", "other")],
        "connections": [
            {"name": "a", "dialect": "openai", "upstream": "https://a.example", "labels": ["eu"]},
            {"name": "b", "dialect": "openai", "upstream": "https://b.example"},
        ],
        "roles": {"r": role},
        "bindings": [{"groups": ["corp:g"], "roles": ["r"]}],
        "inspection": {"prompt": {}, "response": {}},
        **more,
    }


def allowing(**keys: Any) -> dict[str, Any]:
    return document({"allow": [{"connections": ["*"], "endpoints": ["*"], **keys}]})


def denying(**keys: Any) -> dict[str, Any]:
    return document({"allow": [{"connections": ["*"], "endpoints": ["*"]}], "deny": [keys]})


def decided(
    written: dict[str, Any],
    what: Asked = NOTHING,
    who: Caller = ALICE,
    at: tuple[str, str] = ("a", "chat"),
    **situation: Any,
) -> Grant | Denial:
    here = Decider(written)
    route = Route(here.connections[at[0]], at[1], "/v1/x")
    grant = admit(here, route, who, Situation(**situation))  # type: ignore[arg-type]  # it has what is asked for
    return grant if isinstance(grant, Denial) else permit(grant, replace(what, model=what.model or "m"))


def reason(found: Grant | Denial) -> Reason | None:
    return found.reason if isinstance(found, Denial) else None


# ── on the head ──────────────────────────────────────────────────────────────


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def window(**keys: Any) -> Window:
    here = Decider(allowing(when={"zone": BERLIN, **keys}))
    ((rule,),) = [each.allows for each in here.permissions.places["a", "chat"].values()]
    assert rule.head is not None
    return rule.head.windows[0]


@pytest.mark.parametrize(
    ("keys", "moment", "inside"),
    [
        ({"hours": "08:00-18:00"}, "2026-11-27T08:00", True),
        ({"hours": "08:00-18:00"}, "2026-11-27T07:59", False),
        ({"hours": "08:00-18:00"}, "2026-11-27T17:59", True),
        ({"hours": "08:00-18:00"}, "2026-11-27T18:00", False),
        ({"hours": "08:00-24:00"}, "2026-11-27T23:59", True),
        ({"days": ["mon-fri"]}, "2026-11-27T12:00", True),
        ({"days": ["mon-fri"]}, "2026-11-28T12:00", False),
        ({"days": ["sat-mon"]}, "2026-11-30T00:00", True),
        ({"days": ["sat-mon"]}, "2026-12-01T00:00", False),
        ({"days": ["fri"], "hours": "22:00-06:00"}, "2026-11-28T05:59", True),
        ({"days": ["fri"], "hours": "22:00-06:00"}, "2026-11-28T22:00", False),
        ({"days": ["fri"], "hours": "22:00-06:00"}, "2026-11-27T05:00", False),
        ({"days": ["sun"], "hours": "22:00-06:00"}, "2026-11-30T01:00", True),
    ],
)
def test_windows(keys: dict[str, Any], moment: str, inside: bool) -> None:
    assert in_window(window(**keys), at(moment)) is inside


def test_a_window_follows_the_clock_on_the_wall() -> None:
    found = window(hours="08:00-18:00")
    assert in_window(found, at("2026-07-01T06:30", "UTC"))  # summer: 08:30 in Berlin
    assert not in_window(found, at("2026-12-01T06:30", "UTC"))


HEADS = [
    pytest.param(allowing(when={"hours": "08:00-18:00", "zone": BERLIN}), "2026-11-27T19:00", Reason.TIME_DENIED, id="late"),
    pytest.param(allowing(when={"hours": "08:00-18:00", "zone": BERLIN}), "2026-11-27T09:00", None, id="in time"),
    pytest.param(allowing(when={"hours": "08:00-18:00", "zone": BERLIN}), None, Reason.TIME_DENIED, id="no clock"),
    pytest.param(
        allowing(when=[{"hours": "08:00-09:00", "zone": BERLIN}, {"hours": "19:00-20:00", "zone": BERLIN}]),
        "2026-11-27T19:00", None, id="one of several",
    ),
    pytest.param(denying(when={"days": ["fri"], "zone": BERLIN}), "2026-11-27T19:00", Reason.TIME_DENIED, id="deny"),
    pytest.param(denying(when={"days": ["sat"], "zone": BERLIN}), "2026-11-27T19:00", None, id="deny another day"),
    pytest.param(denying(when={"days": ["sat"], "zone": BERLIN}), None, Reason.TIME_DENIED, id="deny without a clock"),
    pytest.param(
        denying(unless={"when": {"days": ["fri"], "zone": BERLIN}}), "2026-11-27T19:00", None, id="unless on that day"
    ),
    pytest.param(
        denying(unless={"when": {"days": ["sat"], "zone": BERLIN}}), "2026-11-27T19:00", Reason.TIME_DENIED, id="unless"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("written", "moment", "expected"), HEADS)
def test_time(written: dict[str, Any], moment: str | None, expected: Reason | None) -> None:
    assert reason(decided(written, now=None if moment is None else at(moment))) == expected


@pytest.mark.parametrize(
    ("sources", "address", "inside"),
    [
        (["10.0.0.0/8"], "10.9.8.7", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.1.1.1", True),
        (["10.0.0.7"], "10.0.0.7", True),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32", "fe80::/10"], "fe80::1%eth0", True),
        (["2001:db8::/32"], "10.0.0.1", False),
        (["10.0.0.0/8"], None, False),
        (["10.0.0.0/8"], "unix", False),
    ],
)
def test_sources(sources: list[str], address: str | None, inside: bool) -> None:
    expected = None if inside else Reason.SOURCE_DENIED
    assert reason(decided(allowing(sources=sources), source=address)) == expected
    assert reason(decided(denying(unless={"sources": sources}), source=address)) == expected
    known = address not in (None, "unix")
    denied = Reason.SOURCE_DENIED if inside or not known else None
    assert reason(decided(denying(sources=sources), source=address)) == denied


@pytest.mark.parametrize(
    ("keys", "who", "expected"),
    [
        ({"strength": ["mfa", "phr"]}, {"strength": frozenset({"pwd", "mfa"})}, None),
        ({"strength": ["mfa"]}, {"strength": frozenset({"pwd"})}, Reason.STRENGTH_DENIED),
        ({"strength": ["mfa"]}, {}, Reason.STRENGTH_DENIED),
        ({"max_age": "1h"}, {"authenticated": 1000.0}, None),
        ({"max_age": "1h"}, {"authenticated": 1000.0 - 3601}, Reason.STRENGTH_DENIED),
        ({"max_age": "1h"}, {"authenticated": 1000.0 + 100}, None),
        ({"max_age": "1h"}, {"authenticated": 1000.0 + 301}, Reason.STRENGTH_DENIED),
        ({"max_age": "1h"}, {}, Reason.STRENGTH_DENIED),
    ],
)
def test_how_the_caller_signed_in(keys: dict[str, Any], who: dict[str, Any], expected: Reason | None) -> None:
    caller = replace(ALICE, **who)
    assert reason(decided(allowing(**keys), who=caller, now=1000.0)) == expected
    assert reason(decided(denying(unless=keys), who=caller, now=1000.0)) == expected


def test_the_sentence_names_what_is_missing_from_the_nearest_rule() -> None:
    rules = [
        {"connections": ["*"], "endpoints": ["*"], "sources": ["10.0.0.0/8"]},
        {"connections": ["*"], "endpoints": ["*"], "strength": ["mfa", "phr"]},
    ]
    found = decided(document({"allow": rules}), source="192.168.0.1")
    assert isinstance(found, Denial)
    assert found.message == "This asks for a stronger sign-in (mfa or phr); sign in that way and try again."


@pytest.mark.parametrize(
    ("endpoints", "where", "method", "path", "allowed"),
    [
        (["/v1/chat/completions"], "chat", "POST", "/v1/chat/completions", True),
        (["/v1/chat/completions"], "chat", "POST", "/chat/completions", False),
        (["*/chat/completions"], "chat", "POST", "/chat/completions", True),
        (["/v1/files*"], "stored_files", "GET", "/v1/files/f1", True),
        (["GET /v1/files*"], "stored_files", "DELETE", "/v1/files/f1", False),
        (["GET /v1/files*"], "stored_files", "GET", "/v1/files/f1", True),
        (["GET /v1/files/f1"], "stored_files", "GET", "/v1/files/%66%31", False),
        (["GET /v1/files/f1"], "stored_files", "GET", "/v1/files/F1", False),
        (["GET /v1/files*"], "stored_files", None, None, False),
        (["GET /v1/files*", "stored_files"], "stored_files", "DELETE", "/v1/files/f1", True),
    ],
)
def test_addresses(endpoints: list[str], where: str, method: str | None, path: str | None, allowed: bool) -> None:
    written = allowing(endpoints=endpoints)
    found = decided(written, at=("a", where), method=method, path=path)
    assert reason(found) == (None if allowed else Reason.NOT_GRANTED)


@pytest.mark.parametrize("path", ["/v1/files/f1", "/v1/files/%66%31", "/v1/files/F1", None])
def test_a_denied_address_is_denied_in_any_spelling(path: str | None) -> None:
    written = denying(endpoints=["DELETE /v1/files/f1"])
    assert reason(decided(written, at=("a", "stored_files"), method="DELETE", path=path)) is Reason.NOT_GRANTED
    assert reason(decided(written, at=("a", "stored_files"), method="GET", path="/v1/files/f1")) is None


def test_labels_stand_for_connections() -> None:
    written = document({"allow": [{"connections": ["label:eu"], "endpoints": ["chat"]}]})
    assert reason(decided(written)) is None
    assert reason(decided(written, at=("b", "chat"))) is Reason.NOT_GRANTED


# ── bindings ─────────────────────────────────────────────────────────────────

CLAIMS = {"identity": "corp", "claims": {"department": ["research", "ops"], "level": ["3"]}, "roles": ["r"]}


@pytest.mark.parametrize(
    ("binding", "who", "bound"),
    [
        (CLAIMS, {"claims": {("department", "ops"), ("level", "3")}}, True),
        (CLAIMS, {"claims": {("department", "ops"), ("department", "x"), ("level", "3")}}, True),
        (CLAIMS, {"claims": {("department", "ops")}}, False),
        (CLAIMS, {"claims": {("department", "sales"), ("level", "3")}}, False),
        (CLAIMS, {"claims": {("department", "ops"), ("level", "3")}, "identity": "other"}, False),
        ({**CLAIMS, "groups": ["corp:g"]}, {"claims": {("department", "ops"), ("level", "3")}}, True),
        ({**CLAIMS, "groups": ["corp:h"]}, {"claims": {("department", "ops"), ("level", "3")}}, False),
        ({**CLAIMS, "groups": ["corp:g"]}, {}, False),
        ({**CLAIMS, "subjects": ["corp:alice"]}, {"claims": {("department", "ops"), ("level", "3")}}, True),
        ({**CLAIMS, "subjects": ["corp:*"]}, {"claims": {("department", "ops"), ("level", "3")}}, True),
        ({**CLAIMS, "subjects": ["corp:bob"]}, {"claims": {("department", "ops"), ("level", "3")}}, False),
    ],
)
def test_claims(binding: dict[str, Any], who: dict[str, Any], bound: bool) -> None:
    written = document({"allow": [{"connections": ["*"], "endpoints": ["*"]}]}, bindings=[binding])
    caller = replace(ALICE, **{**who, "claims": frozenset(who.get("claims", ()))})
    assert roles_of(Decider(written), caller) == (("r",) if bound else ())  # type: ignore[arg-type]


# ── on the body ──────────────────────────────────────────────────────────────


def asking(body: dict[str, Any], endpoint: str = "chat", of: Dialect = OPENAI) -> Asked:
    found = complete(NOTHING, of.endpoints[endpoint], body, ("called", "choices", "modalities"))
    assert isinstance(found, Asked), found
    return found


def part(**keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "x", **keys}]}]}


PNG, PDF = "data:image/png;base64,AAAA", "data:application/pdf;base64,AAAA"
MODALITIES = [
    ("openai", "chat", {"messages": [{"role": "user", "content": "hi"}]}, ""),
    ("openai", "chat", part(image_url={"url": PNG}), "image"),
    ("openai", "chat", part(image_url={"url": "https://x.example/a"}), "image"),
    ("openai", "chat", part(input_audio={"data": "AAAA", "format": "wav"}), "audio"),
    ("openai", "chat", part(video_url={"url": "https://x"}), "video"),
    ("openai", "chat", part(file={"file_data": PDF}), "file"),
    ("openai", "chat", part(file={"file_id": "file-1"}), "file"),
    ("openai", "chat", {"modalities": ["text", "audio"]}, "audio"),
    ("openai", "chat", {"modalities": ["smell"]}, "other"),
    ("openai", "responses", {"input": [{"content": [{"type": "input_image", "image_url": PNG}]}]}, "image"),
    ("openai", "image_generations", {"prompt": "x"}, "image"),
    ("openai", "speech", {"input": "x"}, "audio"),
    ("anthropic", "messages", {"messages": [{"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]}, "image"),
    ("anthropic", "messages", {"messages": [{"content": [{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}]}]}, "file"),
    ("gemini", "generate", {"contents": [{"parts": [{"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}]}]}, "video"),
    ("gemini", "generate", {"contents": [{"parts": [{"inline_data": {"mime_type": "audio/wav", "data": "AAAA"}}]}]}, "audio"),
    ("gemini", "generate", {"contents": [{"parts": [{"inlineData": {"data": "AAAA"}}]}]}, "other"),
    ("gemini", "generate", {"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}}, "image"),
    ("bedrock", "converse", {"messages": [{"content": [{"image": {"format": "png", "source": {"bytes": "AAAA"}}}]}]}, "image"),
    ("bedrock", "converse", {"messages": [{"content": [{"video": {"source": {"s3Location": {"uri": "s3://a"}}}}]}]}, "video"),
    ("ollama", "chat", {"messages": [{"content": "x", "images": ["AAAA"]}]}, "image"),
    ("mistral", "chat", {"messages": [{"content": [{"type": "document_url", "document_url": "https://x"}]}]}, "file"),
]  # fmt: skip


@pytest.fixture(scope="module")
def dialects() -> dict[str, Dialect]:
    return {name: dialect(name) for name in {each[0] for each in (*MODALITIES, *CALLED, *CHOICES)}}


@pytest.mark.parametrize(("name", "endpoint", "body", "expected"), MODALITIES)
def test_modalities(
    dialects: dict[str, Dialect], name: str, endpoint: str, body: dict[str, Any], expected: str
) -> None:
    found = asking(body, endpoint, dialects[name]).modalities
    assert found == {Modality.TEXT, *([Modality(expected)] if expected else [])}


CALLED = [
    ("openai", "chat", {"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}]}, ("f",)),
    ("openai", "chat", {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, ("f",)),
    ("openai", "chat", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, ("f",)),
    ("openai", "chat", {"tool_choice": "auto", "function_call": "none"}, ()),
    ("openai", "chat", {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "function", "function": {"name": "f"}}]}}}, ("f",)),
    ("openai", "chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}, ()),
    ("openai", "responses", {"input": [{"type": "function_call", "name": "f"}, {"type": "message"}, {"type": "web_search_call"}]}, ("f", "web_search_call")),
    ("openai", "responses", {"input": "text", "tool_choice": {"type": "function", "name": "g"}}, ("g",)),
    ("anthropic", "messages", {"messages": [{"content": [{"type": "tool_use", "name": "f"}, {"type": "text"}]}]}, ("f",)),
    ("anthropic", "messages", {"messages": [{"content": "text"}], "tool_choice": {"type": "tool", "name": "g"}}, ("g",)),
    ("gemini", "generate", {"contents": [{"parts": [{"functionCall": {"name": "f"}}, {"functionResponse": {"name": "g"}}]}]}, ("f", "g")),
    ("bedrock", "converse", {"messages": [{"content": [{"toolUse": {"name": "f"}}]}], "toolConfig": {"toolChoice": {"tool": {"name": "g"}}}}, ("f", "g")),
    ("ollama", "chat", {"messages": [{"tool_calls": [{"function": {"name": "f"}}]}]}, ("f",)),
    ("mcp", "call_tool", {"params": {"name": "f"}}, ("f",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "endpoint", "body", "expected"), CALLED)
def test_tools_called(
    dialects: dict[str, Dialect], name: str, endpoint: str, body: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert asking(body, endpoint, dialects[name]).called == expected


CHOICES = [
    ("openai", "chat", {"n": 3}, 3),
    ("openai", "chat", {"n": None}, 1),
    ("openai", "completions", {"n": 2, "best_of": 5}, 5),
    ("gemini", "generate", {"generation_config": {"candidateCount": 2}}, 2),
    ("cohere", "generate", {"num_generations": 4}, 4),
    ("anthropic", "messages", {"n": 9}, 1),
]


@pytest.mark.parametrize(("name", "endpoint", "body", "expected"), CHOICES)
def test_choices(dialects: dict[str, Dialect], name: str, endpoint: str, body: dict[str, Any], expected: int) -> None:
    assert asking(body, endpoint, dialects[name]).choices == expected


@pytest.mark.parametrize(
    "body",
    [
        {"n": "many"}, {"n": 1.5}, {"n": True}, {"n": -1}, {"n": [1]},
        {"messages": [{"tool_calls": [{"type": "function"}]}]},
        {"messages": [{"tool_calls": ["f"]}]},
        {"messages": [{"tool_calls": [{"type": 7}]}]},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_cannot_be_read_is_malformed(body: dict[str, Any]) -> None:
    found = complete(NOTHING, OPENAI.endpoints["chat"], body, ("called", "choices"))
    assert isinstance(found, Denial)
    assert found.reason is Reason.BODY_MALFORMED


IMAGE = frozenset({Modality.TEXT, Modality.IMAGE})
BODIES = [
    pytest.param(allowing(stream=False), {"stream": True}, Reason.STREAM_DENIED, id="streamed"),
    pytest.param(allowing(stream=True), {"stream": False}, Reason.STREAM_DENIED, id="whole"),
    pytest.param(allowing(stream=True), {"stream": True}, None, id="as allowed"),
    pytest.param(denying(stream=True), {"stream": True}, Reason.STREAM_DENIED, id="stream denied"),
    pytest.param(allowing(modalities=["text"]), {"modalities": IMAGE}, Reason.MODALITY_DENIED, id="picture"),
    pytest.param(allowing(modalities=["text", "image"]), {"modalities": IMAGE}, None, id="picture allowed"),
    pytest.param(allowing(modalities=["text", "image"]), {"modalities": None}, Reason.MODALITY_DENIED, id="unknown"),
    pytest.param(denying(modalities=["image"]), {"modalities": IMAGE}, Reason.MODALITY_DENIED, id="picture denied"),
    pytest.param(denying(modalities=["audio"]), {"modalities": IMAGE}, None, id="sound denied"),
    pytest.param(denying(modalities=["audio"]), {"modalities": None}, Reason.MODALITY_DENIED, id="unknown denied"),
    pytest.param(allowing(limits={"choices": 2}), {"choices": 2}, None, id="choices at the limit"),
    pytest.param(allowing(limits={"choices": 2}), {"choices": 3}, Reason.CHOICES_LIMIT, id="choices above it"),
    pytest.param(allowing(limits={"choices": 2}), {"choices": None}, Reason.CHOICES_LIMIT, id="choices unknown"),
    pytest.param(denying(above={"choices": 2}), {"choices": 3}, Reason.CHOICES_LIMIT, id="choices denied"),
    pytest.param(denying(above={"choices": 2}), {"choices": 2}, None, id="choices not denied"),
    pytest.param(allowing(limits={"called": ["f*"]}), {"called": ("f1",)}, None, id="called"),
    pytest.param(allowing(limits={"called": ["f*"]}), {"called": ("f1", "g")}, Reason.TOOL_DENIED, id="one called"),
    pytest.param(allowing(limits={"called": ["f*"]}), {"called": None}, Reason.TOOL_DENIED, id="called unknown"),
    pytest.param(denying(called=["g"]), {"called": ("G",)}, Reason.TOOL_DENIED, id="called denied"),
    pytest.param(denying(called=["g"]), {"called": ()}, None, id="none called"),
    pytest.param(denying(above={"max_output_tokens": 5}), {"max_output": 6}, Reason.OUTPUT_LIMIT, id="tokens denied"),
    pytest.param(denying(above={"max_output_tokens": 5}), {"max_output": None}, Reason.OUTPUT_LIMIT, id="no number"),
    pytest.param(denying(models=["x"], above={"max_output_tokens": 5}), {"max_output": 6}, None, id="of another model"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "what", "expected"), BODIES)
def test_bodies(written: dict[str, Any], what: dict[str, Any], expected: Reason | None) -> None:
    assert reason(decided(written, replace(NOTHING, **what))) == expected


def test_a_deny_rule_on_large_bodies_is_a_limit_of_what_else_it_asks_for() -> None:
    written = denying(models=["m*"], above={"body": "1KiB"})
    found = decided(written, replace(NOTHING, model="m1"))
    assert isinstance(found, Grant)
    assert found.request_bytes == 1024
    found = decided(written, replace(NOTHING, model="n1"))
    assert isinstance(found, Grant)
    assert found.request_bytes > 1024


# ── modes ────────────────────────────────────────────────────────────────────

ANY = {"connections": ["*"], "endpoints": ["*"]}
OBSERVED = [
    pytest.param({"allow": [ANY], "deny": [{"tools": ["f"], "mode": "observe"}]}, None, "roles.r.deny[0]: would deny (tool_denied)", id="deny"),
    pytest.param({"allow": [ANY], "deny": [{"connections": ["a"], "mode": "observe"}]}, None, "roles.r.deny[0]: would deny (not_granted)", id="deny on the head"),
    pytest.param({"allow": [ANY], "deny": [{"tools": ["g"], "mode": "observe"}]}, None, None, id="deny another"),
    pytest.param({"allow": [ANY], "deny": [{"tools": ["f"], "mode": "off"}]}, None, None, id="off"),
    pytest.param({"allow": [{**ANY, "models": ["x"]}, {**ANY, "mode": "observe"}]}, Reason.MODEL_DENIED, "roles.r.allow[1]: would allow", id="allow"),
    pytest.param({"allow": [{**ANY, "mode": "observe"}]}, Reason.NOT_GRANTED, "roles.r.allow[0]: would let the head pass", id="allow on the head"),
    pytest.param({"allow": [{**ANY, "mode": "off"}]}, Reason.NOT_GRANTED, None, id="allow off"),
    pytest.param({"allow": [ANY, {**ANY, "limits": {"tools": ["x"]}, "mode": "observe"}]}, None, "roles.r.allow[1]: would deny (tool_denied)", id="a tighter limit"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "expected", "told"), OBSERVED)
def test_a_rule_that_observes_changes_nothing_and_is_told(
    role: dict[str, Any], expected: Reason | None, told: str | None
) -> None:
    found = decided(document(role), replace(NOTHING, tools=("f",)))
    assert reason(found) == expected
    assert found.observed == (() if told is None else (told,))


def test_each_start_says_which_rules_do_not_count() -> None:
    role = {"allow": [ANY, {**ANY, "mode": "off"}], "deny": [{"tools": ["f"], "mode": "observe"}]}
    reader = Reader("p.yaml")
    found = link(reader, read(reader, tree(document(role))), Parts({"openai": OPENAI}, (), whole=True))
    assert "these rules of roles are off: roles.r.allow[1]" in found.warnings
    assert "these rules of roles only observe, they neither allow nor deny: roles.r.deny[0]" in found.warnings


# ── what is wrong ────────────────────────────────────────────────────────────

FAULTS = [
    (allowing(when={"hours": "8-18", "zone": "UTC"}), "roles.r.allow[0].when.hours: found '8-18'; accepted: hours such as"),
    (allowing(when={"hours": "08:00-08:00", "zone": "UTC"}), "roles.r.allow[0].when.hours: found '08:00-08:00'"),
    (allowing(when={"hours": "08:00-18:00"}), "roles.r.allow[0].when.zone: found nothing; accepted: a time zone"),
    (allowing(when={"zone": "Mars/Base"}), "roles.r.allow[0].when.zone: found 'Mars/Base'"),
    (allowing(when={"zone": "../../etc/passwd", "days": ["mon"]}), "roles.r.allow[0].when.zone: found '../../etc/passwd'"),
    (allowing(when={"zone": "UTC"}), "roles.r.allow[0].when: found neither; accepted: days or hours"),
    (allowing(when={"days": ["monday"], "zone": "UTC"}), "roles.r.allow[0].when.days[0]: found 'monday'"),
    (allowing(when=[]), "roles.r.allow[0].when: found an empty list"),
    (allowing(sources=["10.0.0.1/8"]), "roles.r.allow[0].sources[0]: found '10.0.0.1/8'"),
    (allowing(modalities=["smell"]), "roles.r.allow[0].modalities[0]: found 'smell'; accepted: text or image"),
    (allowing(stream="yes"), "roles.r.allow[0].stream: found 'yes'; accepted: true or false"),
    (allowing(mode="maybe"), "roles.r.allow[0].mode: found 'maybe'; accepted: enforce or observe or off"),
    (allowing(max_age=0), "roles.r.allow[0].max_age: found 0"),
    (allowing(limits={"choices": 0}), "roles.r.allow[0].limits.choices: found 0"),
    (denying(modalities=["text"]), "roles.r.deny[0].modalities: found text; accepted: modalities beside text"),
    (denying(above={}), "roles.r.deny[0].above: found no limit"),
    (denying(unless={}), "roles.r.deny[0].unless: found no condition"),
    (denying(strength=["mfa"]), "roles.r.deny[0].strength: found an unknown key"),
    (allowing(connections=["label:us"]), "roles.r.allow[0].connections[0]: found 'label:us'; accepted: label:eu"),
    (allowing(endpoints=["FETCH /v1/files"]), "roles.r.allow[0].endpoints[0]: found 'FETCH /v1/files'; accepted: an address"),
    (allowing(endpoints=["/v9/nothing"]), "roles.r.allow[0].endpoints[0]: found '/v9/nothing'; accepted: an address that"),
    (document({"allow": [ANY]}, bindings=[{"claims": {"a": ["b"]}, "roles": ["r"]}]), "bindings[0].identity: found nothing; accepted: corp or other"),
    (document({"allow": [ANY]}, bindings=[{**CLAIMS, "groups": ["other:g"]}]), "bindings[0].groups[0]: found 'other:g'; accepted: one of the identity corp"),
    (document({"allow": [ANY]}, bindings=[{"identity": "corp", "groups": ["corp:g"], "roles": ["r"]}]), "bindings[0].identity: found 'corp'; accepted: no identity without claims"),
    (document({"allow": [ANY]}, bindings=[{"identity": "corp", "claims": {}, "roles": ["r"]}]), "bindings[0].claims: found a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "message"), FAULTS, ids=[each[1].partition(": found")[0] for each in FAULTS])
def test_faults(written: dict[str, Any], message: str) -> None:
    reader = Reader("p.yaml")
    link(reader, read(reader, tree(written)), Parts({"openai": OPENAI}, (), whole=True))
    assert [str(each) for each in reader.faults if message in str(each)], [str(each) for each in reader.faults]


# ── data classes, and what the documents say ─────────────────────────────────

BASE = {"prompt": {"pii": "redact", "secrets": "block"}, "response": {"pii": "redact", "secrets": "redact"}}
STRICT = {"allow": [ANY], "inspection": {"prompt": {"pii": "block"}}}
LOOSE = {"allow": [ANY], "inspection": {"loosen": {"prompt": {"pii": "flag"}, "response": {"pii": "allow"}}}}
ONLY_STRICT = {"inspection": {"response": {"pii": "block"}}}
PLAIN = {"allow": [ANY]}


def actions(roles: dict[str, Any]) -> dict[str, str]:
    written = document({}, roles=roles, inspection=BASE, bindings=[{"groups": ["corp:g"], "roles": list(roles)}])
    reader = Reader("p.yaml")
    found = link(reader, read(reader, tree(written)), Parts({"openai": OPENAI}, (), whole=False))
    assert not reader.faults, reader.faults
    assert found.inspections is not None
    letting = tuple(name for name, role in roles.items() if "allow" in role)
    return {f"{way}.{cls}": action for (cls, way), action in found.inspections.actions(tuple(roles), letting).items()}


@pytest.mark.parametrize(
    ("roles", "prompt", "response"),
    [
        ({"a": STRICT}, "block", "redact"),
        ({"a": LOOSE}, "flag", "allow"),
        ({"a": LOOSE, "b": PLAIN}, "redact", "redact"),
        ({"a": LOOSE, "b": STRICT}, "block", "redact"),
        ({"a": LOOSE, "b": ONLY_STRICT}, "flag", "block"),
        ({"a": PLAIN, "b": ONLY_STRICT}, "redact", "block"),
    ],
)
def test_of_the_actions_of_roles_the_strictest_counts(roles: dict[str, Any], prompt: str, response: str) -> None:
    found = actions(roles)
    assert (found["prompt.pii"], found["response.pii"]) == (prompt, response)
    assert (found["prompt.secrets"], found["response.secrets"]) == ("block", "redact")


@pytest.mark.parametrize(
    ("inspection", "message"),
    [
        ({"prompt": {"pii": "flag"}}, "prompt.pii: found 'flag'; accepted: block: stricter than the policy's redact; milder"),
        ({"loosen": {"prompt": {"pii": "block"}}}, "loosen.prompt.pii: found 'block'; accepted: allow or flag or tokenise: milder"),
        ({"response": {"secrets": "tokenise"}}, "response.secrets: found 'tokenise'; accepted: block"),
        ({"prompt": {"names": "block"}}, "prompt.names: found an unknown class; accepted: the classes of the loaded packs"),
        ({"answer": {}}, "inspection.answer: found an unknown key; accepted: the keys prompt, response, loosen"),
        ({}, "inspection: found no action; accepted: actions under prompt, response or loosen"),
    ],
)  # fmt: skip
def test_faults_of_the_actions_of_roles(inspection: dict[str, Any], message: str) -> None:
    reader = Reader("p.yaml")
    written = document({"allow": [ANY], "inspection": inspection}, inspection=BASE)
    link(reader, read(reader, tree(written)), Parts({"openai": OPENAI}, (), whole=False))
    assert [each for each in map(str, reader.faults) if message in each], list(map(str, reader.faults))


def shown() -> list[dict[str, Any]]:
    text = (ROOT / "docs" / "permissions.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("example", shown(), ids=lambda each: next(iter(each)))
def test_the_examples_of_the_document_are_sound(example: dict[str, Any]) -> None:
    roles = dict.fromkeys(("engineer", "agent"), PLAIN)
    written = document({}, inspection=BASE, **{"roles": roles, **example})
    written["identity"] = [{"name": each, "static": {"tokens": f"{each}.yaml"}} for each in ("corp", "ci")]
    written["connections"][1]["labels"] = ["prod"]
    written["connections"].append({"name": "github-mcp", "dialect": "mcp", "upstream": "https://m.example"})
    if "bindings" not in example:
        written["bindings"] = []
    reader = Reader("p.yaml")
    link(reader, read(reader, tree(written)), Parts({"openai": OPENAI, "mcp": dialect("mcp")}, (), whole=False))
    assert not reader.faults, list(map(str, reader.faults))


def test_the_document_speaks_of_every_condition() -> None:
    text = (ROOT / "docs" / "permissions.md").read_text()
    keys = {key for name, each in SECTIONS.items() if name.startswith(("roles.", "bindings")) for key in each}
    assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()
