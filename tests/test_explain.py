"""``tidegate explain`` and ``tidegate check``, and conditions where a whole exchange meets them."""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mitmproxy.test import tflow, tutils
from sqlite_utils.utils import sqlite3

from tidegate import steps
from tidegate.cli import main
from tidegate.crossing import Crossing
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.store import Recorder
from tidegate.model import Action, Caller, Decision, Direction, Head, Outcome, Peer, Reason
from tidegate.policy.loading import load
from tidegate.policy.policy import Keep, Policy
from tidegate.replay.flows import encode, safe_state

ROOT = Path(__file__).resolve().parents[1]
CHAT = "/openai/v1/chat/completions"
NIGHT, DAY = "2026-11-27T23:00+01:00", "2026-11-27T12:00+01:00"
POLICY = """
version: 1
identity:
  - name: corp
    oidc: {issuer: https://login.example.com, audience: tidegate, groups: $.groups}
connections:
  - {name: openai, dialect: openai, upstream: https://api.openai.com, serve: {path: /openai}, labels: [us]}
  - {name: mcp, dialect: mcp, upstream: https://mcp.example.com, serve: {path: /mcp}}
roles:
  engineer:
    allow:
      - connections: ["label:us"]
        endpoints: [chat]
        models: ["gpt-*"]
        modalities: [text]
        when: {days: [mon-fri], hours: "08:00-18:00", zone: Europe/Berlin}
        limits: {choices: 1, called: ["read_*"]}
    deny:
      - {tools: [bash]}
      - {connections: [openai], unless: {sources: [10.0.0.0/8]}}
      - {called: ["read_secret"], mode: observe}
  careful:
    allow:
      - {connections: [openai], endpoints: [chat], models: [careful]}
      - {connections: [mcp], endpoints: [session, call_tool], limits: {called: [search]}}
    inspection: {prompt: {pii: block}}
  spare:
    allow:
      - {connections: [openai], endpoints: [responses]}
bindings:
  - {groups: ["corp:ml-eng"], roles: [engineer]}
  - {claims: {department: [ops]}, roles: [careful]}
packs: [packs/*.yaml]
dialects: [dialects/openai.yaml, dialects/mcp.yaml]
inspection:
  prompt: {secrets: block, pii: redact}
  response: {secrets: redact, pii: flag}
recording: {path: recording.db}
"""


def line(part: str) -> int:
    return next(number for number, text in enumerate(POLICY.splitlines(), 1) if part in text)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    shutil.copytree(ROOT / "tests" / "data" / "packs", folder / "packs")
    (folder / "dialects").symlink_to(ROOT / "rules" / "dialects")
    (folder / "policy.yaml").write_text(POLICY)
    return folder / "policy.yaml"


@pytest.fixture(scope="module")
def policy(path: Path) -> Policy:
    return load(path)


def body(**more: Any) -> bytes:
    return json.dumps({"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}], **more}).encode()


# ── a whole exchange ─────────────────────────────────────────────────────────

ENGINEER = Caller("corp", "alice", frozenset({"corp:ml-eng"}))
CAREFUL = Caller("corp", "bob", claims=frozenset({("department", "ops")}))
NOON = 1_795_777_200.0  # 2026-11-27 12:00 in Berlin, a Friday


def crossed(
    policy: Policy,
    data: bytes,
    who: Caller = ENGINEER,
    now: float | None = NOON,
    source: str | None = "10.0.0.1",
    to: str = CHAT,
) -> tuple[Crossing, Reason | None]:
    exchange = Crossing(policy, "ex_1")
    head = Head("POST", to, (("content-type", "application/json"),), None, peer=Peer(source))
    step = exchange.receive(steps.HeadArrived(head, who, now=now))
    if isinstance(step, steps.ReadBody):
        step = exchange.receive(steps.BodyArrived(data))
    return exchange, step.denial.reason if isinstance(step, steps.Refuse) else None


CALLED = {
    "messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "read_secret"}}]}]
}
OTHER = {"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "write"}}]}]}
IMAGE = {
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a"}}]}]
}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "arguments": {}}}


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        (body(), {}, None),
        (body(), {"now": NOON + 8 * 3600}, Reason.TIME_DENIED),
        (body(), {"now": None}, Reason.TIME_DENIED),
        (body(), {"source": "192.168.0.1"}, Reason.SOURCE_DENIED),
        (body(), {"source": None}, Reason.SOURCE_DENIED),
        (body(n=2), {}, Reason.CHOICES_LIMIT),
        (body(n="x"), {}, Reason.BODY_MALFORMED),
        (body(**IMAGE), {}, Reason.MODALITY_DENIED),
        (body(**CALLED), {}, None),
        (body(**OTHER), {}, Reason.TOOL_DENIED),
        (json.dumps(CALL).encode(), {"who": CAREFUL, "to": "/mcp"}, None),
        (json.dumps({**CALL, "params": {"name": "rm"}}).encode(), {"who": CAREFUL, "to": "/mcp"}, Reason.TOOL_DENIED),
    ],
)
def test_an_exchange_meets_the_conditions(
    policy: Policy, data: bytes, more: dict[str, Any], expected: Reason | None
) -> None:
    assert crossed(policy, data, **more)[1] == expected


def test_what_a_rule_that_observes_would_have_done_is_a_decision(policy: Policy) -> None:
    exchange, _ = crossed(policy, body(**CALLED))
    told = Decision("permission", "observe", None, "roles.engineer.deny[2]: would deny (tool_denied)")
    assert exchange.decisions.count(told) == 1
    exchange, reason = crossed(policy, body(n=2, **CALLED))
    assert reason is Reason.CHOICES_LIMIT  # denied anyway, so it would have changed nothing
    exchange, _ = crossed(policy, body())
    assert not [each for each in exchange.decisions if each.result == "observe"]


def test_a_role_that_is_stricter_blocks_what_the_policy_masks(policy: Policy) -> None:
    data = body(model="careful", messages=[{"role": "user", "content": "by Alice Example."}])
    strict = replace(policy)  # the rule only observes in the pack, so what it does is not told by a denial
    exchange, _ = crossed(strict, data, CAREFUL)
    assert exchange.policy is not strict
    assert exchange.policy.actions["pii", Direction.PROMPT] is Action.BLOCK
    assert policy.actions["pii", Direction.PROMPT] is Action.REDACT
    again, _ = crossed(strict, data, CAREFUL)
    assert again.policy is exchange.policy
    plain, _ = crossed(strict, body())
    assert plain.policy is strict


# ── explain ──────────────────────────────────────────────────────────────────


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(word) for word in words])


def explained(path: Path, data: bytes, *words: object) -> tuple[int, dict[str, Any]]:
    request = path.parent / "request.json"
    request.write_bytes(data)
    done = run("explain", "--policy", path, "--json", "--from", "10.0.0.1", "--at", DAY, *words, request)
    assert done.exit_code in (0, 3), done.output
    return done.exit_code, json.loads(done.stdout)


ALICE = ("--as", "alice", "--groups", "ml-eng")


def test_what_allows_is_named(path: Path) -> None:
    code, found = explained(path, body(), *ALICE)
    assert (code, found["allowed"], found["changes"]) == (0, True, [])
    assert found["roles"] == [["engineer", ["bindings[0]"]]]
    assert found["request"]["notes"] == [f"taken as POST {CHAT}; --to names another address"]
    rules = {each["rule"]: each for each in found["rules"]}
    assert rules["roles.engineer.allow[0]"]["condition"] == ""
    assert rules["roles.engineer.deny[0]"]["condition"] == "tools"
    assert rules["roles.engineer.deny[1]"]["condition"] == "unless"
    assert rules["roles.spare.allow[0]"] == {
        "rule": "roles.spare.allow[0]", "role": "spare", "line": line("[responses]"), "kind": "allow", "mode": "enforce", "bound": False,
        "condition": "endpoints", "found": "chat", "accepted": "responses", "limit": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words", "reason", "change"),
    [
        (body(), (*ALICE, "--at", NIGHT), "time_denied", "roles.engineer.allow[0] does not cover it: when found fri 23:00 Europe/Berlin; accepted: mon, tue, wed, thu, fri 08:00-18:00 Europe/Berlin"),
        (body(), (*ALICE, "--from", "192.168.0.1"), "source_denied", f"roles.engineer.deny[1] (line {line('unless')}) denies it: change it, or take the role engineer from the caller"),
        (body(n=3), ALICE, "choices_limit", "roles.engineer.allow[0] covers it, but limits.choices found 3; accepted: at most 1"),
        (body(model="o1"), ALICE, "model_denied", "roles.engineer.allow[0] does not cover it: models found o1; accepted: gpt-*"),
        (body(**IMAGE), ALICE, "modality_denied", "roles.engineer.allow[0] does not cover it: modalities found image, text; accepted: text"),
        (body(), ("--as", "bob"), "not_granted", "roles.engineer.allow[0] would allow it: bind the role engineer to the caller"),
        (body(), ("--as", "bob", "--claims", "department=ops"), "model_denied", "roles.engineer.allow[0] would allow it: bind the role engineer to the caller"),
        (body(), (*ALICE, "--to", "/openai/v1/responses"), "not_granted", "roles.spare.allow[0] would allow it: bind the role spare to the caller"),
    ],
)  # fmt: skip
def test_what_denies_is_named_and_what_would_change_it(
    path: Path, data: bytes, words: tuple[str, ...], reason: str, change: str
) -> None:
    code, found = explained(path, data, *words)
    assert (code, found["reason"]) == (3, reason)
    assert change in found["changes"]


def test_a_person_reads_a_table(path: Path) -> None:
    (path.parent / "request.json").write_bytes(body(n=3))
    done = run("explain", "--policy", path, "--from", "10.0.0.1", "--at", DAY, *ALICE, path.parent / "request.json")
    assert done.exit_code == 3
    for words in ("choices_limit", "What would have to change", "engineer (by bindings[0])", "covers it, limit passed"):
        assert words in done.stdout


def test_a_recorded_exchange_is_explained_as_it_was_kept(path: Path) -> None:
    flow = tflow.tflow(req=tutils.treq(method=b"POST", path=b"/v1/chat/completions", content=body(n=3)))
    state = safe_state(flow, Keep.REDACTED, "ex_0abc", CHAT, ("http", "gate", 80))
    record = ExchangeRecord(
        "ex_0abc", 1, "POST", CHAT, identity="corp", caller="carol", connection="openai", endpoint="chat",
        outcome=Outcome.DENIED, reason=Reason.CHOICES_LIMIT, decisions=(Decision("grant", "allow", None, "engineer"),),
    )  # fmt: skip
    recorder = Recorder(path.parent / "recording.db", encode)
    recorder.start()
    recorder.seal(record, state)
    recorder.close()
    done = run("explain", "--policy", path, "--json", "--from", "10.0.0.1", "--at", DAY, "ex_0a")
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert (found["reason"], found["request"]["caller"]) == ("choices_limit", "corp:carol")
    assert found["request"]["groups"] == ["corp:ml-eng"]
    other = run("explain", "--policy", path, "--json", "--as", "dave", "ex_0a")
    assert json.loads(other.stdout)["reason"] == "not_granted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("request.json",), "--as"),
        (("--as", "x", "--claims", "a", "request.json"), "found a claim without a value; accepted: NAME=VALUE"),
        (("--as", "x", "--at", "noon", "request.json"), "found no time; accepted: 2026-11-28T22:00+01:00"),
        (("--groups", "g", "request.json"), "found no caller; accepted: --as NAME beside groups"),
        (("--as", "x", "ex_nothing"), "is no file, and no exchange can be read"),
        (("--as", "x", "list.json"), "found no address; accepted: --to /openai/v1/chat/completions"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(path: Path, words: tuple[str, ...], message: str) -> None:
    (path.parent / "request.json").write_bytes(body())
    (path.parent / "list.json").write_text("[]")
    named = [path.parent / word if word.endswith(".json") else word for word in words]
    done = run("explain", "--policy", path, *named)
    assert done.exit_code not in (0, 3)
    assert message in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


# ── check ────────────────────────────────────────────────────────────────────


def test_check_tells_notices_with_file_and_key(path: Path) -> None:
    done = run("check", "--policy", path)
    assert done.exit_code == 0
    assert f"notice: {path}:{line('spare:') + 1}: roles.spare: the role is bound to nobody" in done.stdout
    assert "attention: these rules of roles only observe" in done.stdout
    assert run("check", "--policy", path, "--strict").exit_code == 2
    told = json.loads(run("check", "--policy", path, "--json").stdout)
    assert {
        "file": f"{path}:{line('spare:') + 1}",
        "key": "roles.spare",
        "text": "the role is bound to nobody",
    } in told["notices"]


# ── the recording ────────────────────────────────────────────────────────────


def test_an_event_of_the_policy_is_recorded_without_an_exchange(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.db", encode)
    recorder.start()
    recorder.event("policy", "reloaded (file): a -> b")
    recorder.close()
    db = sqlite3.connect(tmp_path / "r.db")
    found = db.execute("SELECT kind, detail FROM event ORDER BY rowid").fetchall()
    db.close()
    assert [kind for kind, _ in found] == ["start", "policy", "stop"]
    assert found[1] == ("policy", "reloaded (file): a -> b")
