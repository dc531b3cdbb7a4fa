"""Requests that wait for people, with the unmodified SDKs, a real gate, and people at a terminal of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import yaml
from sqlite_utils.utils import sqlite3

from tests.approval_rules import INSPECTION, few_rules
from tests.e2e.break_hook import CANARY
from tests.e2e.grpc_peer import Peer, infer_request
from tests.e2e.harness import (
    BIN,
    Process,
    Received,
    Upstream,
    chat_sse,
    free_port,
    http_answer,
    mitm,
    policy,
    started,
    tidegate_run,
    token,
)
from tests.protos import SERVICE, descriptors, open_inference
from tidegate.approvals.machine import Refusal
from tidegate.approvals.spec import Answer, Person, State
from tidegate.desk import as_json
from tidegate.state import approvals as store
from tidegate.state.control import Control

pytestmark = pytest.mark.e2e

CARD = "4111 1111 1111 1111"
ASK = f"Charge {CARD} please."
ROLES = {
    "dev": {
        "allow": [
            {"connections": ["*"], "endpoints": ["*"], "models": ["sample-*", "good-*"]},
            {"connections": ["*"], "endpoints": ["*"], "models": ["big-*"], "approve": "model"},
        ]
    }
}
BINDINGS = [{"groups": ["local:dev", "local:boss"], "roles": ["dev"]}]
APPROVALS = {
    "pii": {"approvers": ["local:boss"], "decide_within": "5m", "break_glass": ["local:firemen"]},
    "model": {
        "approvers": ["local:boss"],
        "reason": "required",
        "on_client_gone": "cancel",
        "decide_within": "4s",
        "when": {"tools": ["launch"]},
    },
    "pending": {"per_caller": 60, "in_all": 600},
    "owners": {"local:robot": ["local:bob"]},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "sample-small",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}

MESSAGE_SSE = [
    f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()
    for each in (
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    )
]


@dataclass
class Office:
    """A gate, its upstream, and the people."""

    gate: Process
    upstream: Upstream
    policy: Path
    tokens: dict[str, str]
    peer: Peer | None = None

    def run(self, *words: str, who: str = "bob", ok: bool = True) -> str:
        """Run ``tidegate approvals`` as somebody; return what it printed."""
        done = subprocess.run(
            [str(BIN / "tidegate"), "approvals", *words, "--policy", str(self.policy)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TIDEGATE_TOKEN": self.tokens.get(who, ""), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        assert CARD not in done.stdout + done.stderr
        return done.stdout if ok else done.stderr

    def items(self) -> list[dict[str, Any]]:
        """Read all items straight from the store, newest first."""
        path = self.policy.parent / "control.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return [as_json(each, time.time()) for each in store.listed(db)]

    def ids(self) -> set[str]:
        return {each["id"] for each in self.items()}

    def expired(self, ids: set[str]) -> bool:
        """Say whether these are over; whoever lists items notices that their time is up."""
        self.run("list", who="")
        return {each["state"] for each in self.items() if each["id"] in ids} == {"expired"}

    def pending(self, known: AbstractSet[str] = frozenset()) -> str:
        """Wait until there is a pending item that was not known; return its id."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = [each["id"] for each in self.items() if each["state"] == "pending" and each["id"] not in known]
            if found:
                return str(found[0])
            time.sleep(0.05)
        raise AssertionError(self.items())

    def state(self, approval: str) -> str:
        return next(str(each["state"]) for each in self.items() if each["id"] == approval)

    def openai(self, who: str = "alice", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.gate.url}/openai/v1", api_key=self.tokens[who], **{"timeout": 300, **more}
        )

    def anthropic(self, who: str = "alice") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"{self.gate.url}/anthropic", api_key=self.tokens[who], timeout=300)

    @property
    def hits(self) -> int:
        return len(self.upstream.requests)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("approvals")
    with Upstream() as upstream, Peer() as peer:
        upstream.says(http_answer(json.dumps(MESSAGE).encode()), "/v1/messages")
        few_rules(folder)
        changes = {"inspection": INSPECTION, "roles": ROLES, "bindings": BINDINGS, "approvals": APPROVALS}
        path = policy(folder, upstream.url, **changes)
        document = yaml.safe_load(path.read_text())
        (folder / "set.binpb").write_bytes(open_inference())
        models = {"name": "models", "dialect": "open-inference-grpc", "descriptors": "set.binpb", "upstream": peer.url}
        document["connections"].append({**models, "serve": {"path": "/"}})
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        groups = {
            "alice": ("dev",),
            "bob": ("boss",),
            "carol": ("boss", "dev"),
            "dave": ("dev",),
            "robot": ("dev",),
            "fay": ("dev", "firemen"),
        }
        tokens = {name: token(folder, name, found) for name, found in groups.items()}
        port = free_port()
        command = [sys.executable, Path(__file__).with_name("break_hook.py"), "run", "--policy", path]
        command += ["--listen", f"127.0.0.1:{port}", "--confdir", folder / "ca"]
        with started(command, port, folder) as gate:
            yield Office(gate, upstream, path, tokens, peer)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "sample-small", "messages": [{"role": "user", "content": text}], **more}


class Chair:
    """Somebody who decides from this process: another one than the gate's, on the same store."""

    def __init__(self, office: Office) -> None:
        self.control = Control(office.policy.parent / "control.db")
        self.control.start()

    def votes(self, approval: str, answer: Answer, reason: str = "", who: str = "bob") -> object:
        person = Person("local", who, frozenset({"local:boss"}))
        found = self.control.write(lambda db: store.vote(db, approval, person, answer, reason, time.time())).result(10)
        return found.state if isinstance(found, store.Item) else found


@pytest.fixture(scope="module")
def chair(office: Office) -> Iterator[Chair]:
    chair = Chair(office)
    yield chair
    chair.control.close()


def test_an_approved_request_passes_and_the_sdk_does_not_notice(office: Office) -> None:
    before, known = office.hits, office.ids()
    with office.openai() as client, ThreadPoolExecutor(1) as aside:
        asked = aside.submit(client.chat.completions.create, **said(ASK))
        approval = office.pending(known)
        assert office.hits == before
        shown = office.run("show", approval[:10])
        assert "local:alice" in shown
        assert "[REDACTED:" in shown
        assert approval in office.run("list")
        assert "nobody decides on his own request" in office.run("approve", approval, who="alice", ok=False)
        assert "in none of the groups" in office.run("approve", approval, who="dave", ok=False)
        assert "TIDEGATE_TOKEN" in office.run("approve", approval, who="", ok=False)
        assert office.hits == before
        assert "is approved" in office.run("approve", approval, "--reason", "a test card")
        answer = asked.result(60)
    assert answer.choices[0].message.content == "hello"
    assert office.hits == before + 1
    assert CARD.encode() in office.upstream.requests[-1].body
    assert "x-tidegate" not in str(office.upstream.requests[-1].headers)
    assert office.state(approval) == "consumed"
    told = json.loads(office.run("show", approval, "--json"))
    assert [each["what"] for each in told["history"]] == ["ask", "vote yes", "approved", "use"]
    assert "[REDACTED:" in told["request"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("family", ["openai", "anthropic"])
def test_both_sdks_wait_for_a_yes(office: Office, chair: Chair, family: str, stream: bool) -> None:
    before, known = office.hits, office.ids()
    text = f"{ASK} {family} {stream}"
    if stream:
        office.upstream.streams(
            chat_sse("hello") if family == "openai" else MESSAGE_SSE,
            path="/v1/chat/completions" if family == "openai" else "/v1/messages",
        )

    def ask() -> str:
        if family == "openai":
            with office.openai() as client:
                answer = client.chat.completions.create(**said(text, stream=stream))
                if not stream:
                    return str(answer.choices[0].message.content)
                return "".join(each.choices[0].delta.content or "" for each in answer)
        with office.anthropic() as client:
            if not stream:
                return str(client.messages.create(**said(text, max_tokens=9)).content[0].text)
            with client.messages.stream(**said(text, max_tokens=9)) as events:
                return "".join(events.text_stream)

    try:
        with ThreadPoolExecutor(1) as aside:
            asked = aside.submit(ask)
            approval = office.pending(known)
            time.sleep(1)  # longer than any answer takes
            assert (office.hits, asked.done()) == (before, False)
            assert chair.votes(approval, Answer.YES) is State.APPROVED
            assert asked.result(60) == "hello"
    finally:
        office.upstream.answers.pop("/v1/chat/completions", None)
        office.upstream.says(http_answer(json.dumps(MESSAGE).encode()), "/v1/messages")
    assert office.hits == before + 1


@pytest.mark.parametrize("family", ["openai", "anthropic"])
def test_both_sdks_read_who_declined_and_why_and_do_not_ask_again(office: Office, chair: Chair, family: str) -> None:
    before, known = office.hits, office.ids()

    def ask() -> Any:
        if family == "openai":
            with office.openai() as client, pytest.raises(openai.PermissionDeniedError) as caught:
                client.chat.completions.create(**said(f"{ASK} no {family}"))
            return caught.value
        with office.anthropic() as client, pytest.raises(anthropic.PermissionDeniedError) as refused:
            client.messages.create(**said(f"{ASK} no {family}", max_tokens=9))
        return refused.value

    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(ask)
        approval = office.pending(known)
        assert chair.votes(approval, Answer.NO, "use the sandbox") is State.DENIED
        error = asked.result(60)
    assert "local:bob has declined this request" in str(error)
    assert "use the sandbox" in str(error)
    assert error.response.headers["x-tidegate-approval"] == approval
    assert error.response.headers["x-should-retry"] == "false"
    assert (
        error.body["error"]["code"] == "approval_denied" if family == "anthropic" else error.code == "approval_denied"
    )
    again = ask()  # at once, without a new item
    assert again.response.headers["x-tidegate-approval"] == approval
    assert (office.hits, office.ids()) == (before, known | {approval})


def test_time_up_says_so_and_the_retry_passes_once_it_is_approved(office: Office, chair: Chair) -> None:
    before, known = office.hits, office.ids()
    with office.openai(timeout=2) as client:
        began = time.monotonic()
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(**said(f"{ASK} late"))
        assert time.monotonic() - began < 2  # the SDK did not time out and try again
        assert caught.value.code == "approval_pending"
        approval = caught.value.response.headers["x-tidegate-approval"]
        assert office.ids() == known | {approval}
        assert chair.votes(approval, Answer.YES) is State.APPROVED
        assert client.chat.completions.create(**said(f"{ASK} late")).choices[0].message.content == "hello"
    assert office.hits == before + 1


def test_a_token_that_is_gone_when_the_answer_comes_sends_nothing(office: Office, chair: Chair) -> None:
    before, known = office.hits, office.ids()
    file = office.policy.parent / "tokens.yaml"
    office.tokens["eve"] = token(office.policy.parent, "eve")
    with office.openai("eve") as client, ThreadPoolExecutor(1) as aside:
        asked = aside.submit(client.chat.completions.create, **said(f"{ASK} eve"))
        approval = office.pending(known)
        document = yaml.safe_load(file.read_text())
        document["tokens"] = [each for each in document["tokens"] if each["name"] != "eve"]
        file.write_text(yaml.safe_dump(document))
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert chair.votes(approval, Answer.YES) is State.APPROVED
        with pytest.raises(openai.AuthenticationError):
            asked.result(60)
    assert office.hits == before
    assert office.state(approval) == "approved"  # given back, and nobody is left who could use it


def test_async_answers_at_once_and_the_approved_retry_passes_once(office: Office, chair: Chair) -> None:
    before = office.hits
    with office.openai(default_headers={"x-tidegate-approval": "async"}) as client:
        for _ in range(2):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                client.chat.completions.create(**said(f"{ASK} async"))
            assert caught.value.code == "approval_pending"
        approval = caught.value.response.headers["x-tidegate-approval"]
        chair.votes(approval, Answer.YES)
        client.chat.completions.create(**said(f"{ASK} async"))
        with pytest.raises(openai.PermissionDeniedError):  # the yes is used up
            client.chat.completions.create(**said(f"{ASK} async"))
        with pytest.raises(openai.PermissionDeniedError):  # nor is it for another request
            client.chat.completions.create(**said(f"{ASK} async", temperature=1))
    assert office.hits == before + 1


async def test_a_client_that_leaves_keeps_its_item_or_not_as_the_policy_says(office: Office, chair: Chair) -> None:
    before, known = office.hits, office.ids()

    async def leave(**more: Any) -> None:
        """Ask with the SDK, and stop waiting once there is something to decide on."""
        url = f"{office.gate.url}/openai/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=office.tokens["alice"], timeout=300) as client:
            asking = asyncio.create_task(client.chat.completions.create(**more))
            await asyncio.to_thread(office.pending, known)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    await leave(**said(f"{ASK} gone"))
    kept = office.pending(known)
    await asyncio.sleep(0.5)
    assert office.state(kept) == "pending"
    chair.votes(kept, Answer.YES)
    await asyncio.sleep(0.5)
    assert (office.hits, office.state(kept)) == (before, "approved")  # nobody waits, so nothing is sent
    await leave(**said("hello", model="big-1"), extra_headers={"x-tidegate-reason": "a test"})
    wait_until(lambda: any(each["state"] == "cancelled" for each in office.items()))
    assert office.hits == before


def test_a_reason_is_asked_for_and_what_nobody_decides_on_expires(office: Office) -> None:
    before, known = office.hits, office.ids()
    with office.openai() as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(**said("hello", model="big-2"))
        assert caught.value.code == "approval_reason"
        assert office.ids() == known
        reason = {"x-tidegate-reason": f"charge {CARD}"}
        with pytest.raises(openai.PermissionDeniedError) as late:
            client.chat.completions.create(**said("hello", model="big-2"), extra_headers=reason)
    assert late.value.code in {"approval_pending", "approval_expired"}
    wait_until(lambda: office.expired(office.ids() - known))
    assert [each["reason"] for each in office.items() if each["id"] not in known] == ["[REDACTED]"]
    assert office.hits == before


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_of_fifty_copies_of_one_request_exactly_one_passes(office: Office, chair: Chair) -> None:
    before, known = office.hits, office.ids()
    body = said(f"{ASK} fifty")
    headers = {"authorization": f"Bearer {office.tokens['alice']}", "x-stainless-read-timeout": "24"}

    def ask(_: int) -> tuple[int, str]:
        answer = httpx.post(f"{office.gate.url}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    with ThreadPoolExecutor(60) as pool:
        copies = [pool.submit(ask, number) for number in range(40)]
        approval = office.pending(known)
        time.sleep(2)
        voters = [pool.submit(chair.votes, approval, Answer.YES, "", f"boss{number}") for number in range(10)]
        assert {each.result(60) for each in voters} == {State.APPROVED, Refusal.OVER}
        got = [each.result(60) for each in copies]
    passed = [each for each in got if each[0] == 200]
    assert len(passed) == 1
    # a copy that is so late that the yes is used up asks anew
    assert {code for status, code in got if status != 200} <= {"approval_used", "approval_pending"}
    assert office.hits == before + 1


def test_an_owner_does_not_decide_for_his_program_and_a_fireman_breaks_the_glass(office: Office, chair: Chair) -> None:
    known = office.ids()
    headers = {"x-tidegate-approval": "async"}
    with office.openai("robot", default_headers=headers) as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**said(f"{ASK} robot"))
    approval = office.pending(known)
    assert chair.votes(approval, Answer.YES) is Refusal.OWNER
    assert chair.votes(approval, Answer.YES, who="carol") is State.APPROVED
    before = office.hits
    glass = {"x-tidegate-approval": "break-glass", "x-tidegate-reason": "the warehouse is on fire"}
    for who, text, code in (
        ("alice", "glass", "approval_denied"),
        ("fay", "AKIA" + "Z7QK4WJX2MVT5R3P", "finding"),  # never over a hard deny
    ):
        with office.openai(who, default_headers=glass) as client, pytest.raises(openai.PermissionDeniedError) as no:
            client.chat.completions.create(**said(f"{ASK} {text}"))
        assert no.value.code == code
    assert office.hits == before
    with office.openai("fay", default_headers=glass) as client:
        client.chat.completions.create(**said(f"{ASK} glass"))
    assert office.hits == before + 1
    assert '"event": "break_glass"' in office.gate.log
    assert "glass broken" in office.run("list")
    broken = next(each["id"] for each in office.items() if each["review"] == "open")
    office.run("review", broken, "--reason", "seen", who="carol")
    assert "glass broken" not in office.run("list")


def test_a_socket_that_would_need_approval_is_told_so(office: Office) -> None:
    import websockets.sync.client

    before, data = office.hits, len(office.upstream.data)
    url = office.gate.url.replace("http", "ws") + "/openai/v1/responses"
    office.upstream.does(accept_socket, "/v1/responses")
    headers = {"authorization": f"Bearer {office.tokens['alice']}"}
    with websockets.sync.client.connect(url, additional_headers=headers, proxy=None) as socket:
        socket.send(json.dumps({"type": "response.create", "model": "sample-small", "input": ASK}))
        assert "approval_impossible" in str(socket.recv(timeout=20))
    assert office.hits == before + 1  # the handshake alone
    assert CARD.encode() not in office.upstream.data[data:]


async def accept_socket(received: Received, writer: Any) -> None:
    import base64
    import hashlib

    key = received.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-accept: {accept}\r\n\r\n".encode()
    )


def test_a_grpc_call_waits_within_its_deadline(office: Office, chair: Chair) -> None:
    grpc = pytest.importorskip("grpc")
    assert office.peer is not None
    method = descriptors().method(f"{SERVICE}/ModelInfer")
    assert method is not None
    metadata = [("authorization", f"Bearer {office.tokens['alice']}")]
    with grpc.insecure_channel(f"127.0.0.1:{office.gate.port}") as channel, ThreadPoolExecutor(1) as aside:
        infer = channel.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.answer.FromString,
        )
        known, before = office.ids(), len(office.peer.calls)
        asked = aside.submit(infer, infer_request(f"{ASK} grpc"), metadata=metadata, timeout=60)
        approval = office.pending(known)
        assert len(office.peer.calls) == before
        assert "[REDACTED:" in json.loads(office.run("show", approval, "--json"))["request"]
        chair.votes(approval, Answer.YES)
        assert asked.result(60)
        assert len(office.peer.calls) == before + 1
        with pytest.raises(grpc.RpcError) as caught:
            infer(infer_request(f"{ASK} grpc late"), metadata=metadata, timeout=4)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # not DEADLINE_EXCEEDED
        assert "approval_pending" in caught.value.details()
        assert "x-tidegate-approval" in dict(caught.value.trailing_metadata())
        assert len(office.peer.calls) == before + 1


PLACES = (
    "Crossing._hold",
    "Crossing.shown",
    "Crossing._as_approved",
    "Desk.ask",
    "Desk.wait",
    "Desk.use",
    "Holding.held",
)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_breaks_sends_nothing(office: Office, chair: Chair, place: str) -> None:
    before, order = office.hits, office.policy.parent / "break.json"
    headers = {"x-tidegate-approval": "async"} if place != "Desk.wait" else {}
    text = f"{ASK} {place}"
    with office.openai(max_retries=0, default_headers=headers) as client:
        if place in {"Desk.use", "Crossing._as_approved"}:  # these come after the yes
            with pytest.raises(openai.PermissionDeniedError) as caught:
                client.chat.completions.create(**said(text))
            chair.votes(caught.value.response.headers["x-tidegate-approval"], Answer.YES)
        order.write_text(json.dumps({"place": place, "when": "before", "error": "RuntimeError"}))
        try:
            with pytest.raises(openai.InternalServerError) as broken:
                client.chat.completions.create(**said(text))
        finally:
            order.unlink()
    assert broken.value.code == "bug"
    assert office.hits == before
    assert CANARY not in office.gate.log


def test_killed_while_something_waits_it_is_there_after_the_restart_and_nothing_passed(
    office: Office, chair: Chair, tmp_path: Path
) -> None:
    few_rules(tmp_path)
    with Upstream() as upstream:
        path = policy(
            tmp_path, upstream.url, inspection=INSPECTION, roles=ROLES, bindings=BINDINGS, approvals=APPROVALS
        )
        tokens = {"alice": token(tmp_path, "alice")}
        with tidegate_run(path) as gate, ThreadPoolExecutor(1) as aside:
            first = Office(gate, upstream, path, tokens)
            client = first.openai(max_retries=0)
            asked = aside.submit(client.chat.completions.create, **said(ASK))
            approval = first.pending()
            gate.process.send_signal(signal.SIGKILL)
            gate.process.wait(10)
            with pytest.raises(openai.APIConnectionError):
                asked.result(60)
        assert upstream.requests == []
        with tidegate_run(path) as gate:
            second = Office(gate, upstream, path, tokens)
            assert second.state(approval) == "pending"
            there = Chair(second)
            with second.openai() as client, ThreadPoolExecutor(1) as aside:
                asked = aside.submit(client.chat.completions.create, **said(ASK))
                time.sleep(1)
                assert second.ids() == {approval}
                assert upstream.requests == []
                there.votes(approval, Answer.YES)
                assert asked.result(60).choices[0].message.content == "hello"
            there.control.close()
        assert len(upstream.requests) == 1
        with contextlib.closing(sqlite3.connect(tmp_path / "recording.db")) as db:
            told = [
                json.loads(row[0])["what"] for row in db.execute("SELECT detail FROM event WHERE kind = 'approval'")
            ]
        assert told == ["ask", "vote yes", "approved", "use"]
    for each in tmp_path.glob("*.db*"):
        assert CARD.encode() not in each.read_bytes(), each
    assert CARD not in gate.log


@dataclass
class Web:
    """A gate inside of mitmweb, and its API."""

    office: Office
    api: httpx.Client
    chair: Chair
    client: openai.OpenAI

    def flow(self) -> dict[str, Any]:
        """Wait until a flow is intercepted; return it."""
        wait_until(lambda: any(each["intercepted"] for each in self.api.get("/flows").json()))
        found: dict[str, Any] = next(each for each in self.api.get("/flows").json() if each["intercepted"])
        return found


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder, port = tmp_path_factory.mktemp("mitmweb"), free_port()
    few_rules(folder)
    options = ("--set", f"web_port={port}", "--set", "web_open_browser=false", "--set", "web_password=pw")
    headers = {"authorization": "Bearer pw", "cookie": "_mitmproxy_xsrf=x", "x-xsrftoken": "x"}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(Upstream())
        path = policy(folder, upstream.url, inspection=INSPECTION, roles=ROLES, bindings=BINDINGS, approvals=APPROVALS)
        tokens = {"alice": token(folder, "alice")}
        gate = stack.enter_context(mitm("mitmweb", path, *options))
        office = Office(gate, upstream, path, tokens)
        api = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20))
        client = stack.enter_context(office.openai(max_retries=0))
        client.chat.completions.create(**said("hello"))  # mitmweb listens before its scripts are there
        chair = Chair(office)
        stack.callback(chair.control.close)
        yield Web(office, api, chair, client)


def test_a_bare_resume_in_mitmweb_is_no_approval_and_what_is_edited_is_not_sent(web: Web) -> None:
    office, api, before = web.office, web.api, web.office.hits
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(web.client.chat.completions.create, **said(ASK))
        approval = office.pending()
        flow = web.flow()
        assert approval in flow["comment"]
        assert CARD not in api.get(f"/flows/{flow['id']}/request/content.data").text
        assert api.post(f"/flows/{flow['id']}/resume").status_code == 200
        wait_until(lambda: "no approval" in api.get("/flows").json()[-1]["comment"])
        assert api.get("/flows").json()[-1]["intercepted"]
        edit = {"request": {"content": '{"model": "evil"}', "method": "DELETE"}}
        assert api.put(f"/flows/{flow['id']}", json=edit).status_code == 200
        time.sleep(0.5)
        assert (office.hits, asked.done()) == (before, False)
        web.chair.votes(approval, Answer.YES)
        assert asked.result(60).choices[0].message.content == "hello"
    sent = office.upstream.requests[-1]
    assert office.hits == before + 1
    assert (sent.method, json.loads(sent.body)["model"]) == ("POST", "sample-small")
    assert CARD.encode() in sent.body


def test_a_kill_in_mitmweb_is_a_refusal(web: Web) -> None:
    before = web.office.hits
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(web.client.chat.completions.create, **said(f"{ASK} killed"))
        flow = web.flow()
        web.api.post(f"/flows/{flow['id']}/kill")
        with pytest.raises(openai.PermissionDeniedError, match="An operator ended this request"):
            asked.result(60)
    assert web.office.hits == before


def test_a_policy_that_comes_while_a_request_waits_judges_it_again(web: Web) -> None:
    office, before, known = web.office, web.office.hits, web.office.ids()
    stricter = {**INSPECTION, "prompt": {**INSPECTION["prompt"], "pii": "block"}}
    without = {name: each for name, each in APPROVALS.items() if name != "pii"}
    changes: dict[str, Any] = {"inspection": stricter, "approvals": without, "roles": ROLES, "bindings": BINDINGS}
    path = policy(office.policy.parent, office.upstream.url, name="stricter.yaml", **changes)
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(web.client.chat.completions.create, **said(f"{ASK} changed"))
        approval = office.pending(known)
        assert web.api.put("/options", json={"tidegate": str(path)}).status_code == 200
        assert web.chair.votes(approval, Answer.YES) is State.APPROVED
        with pytest.raises(openai.PermissionDeniedError, match="Blocked by policy"):
            asked.result(60)
    assert office.hits == before


def test_a_yes_is_not_used_up_by_a_request_that_is_not_sent(tmp_path: Path) -> None:
    roles = json.loads(json.dumps(ROLES))
    roles["dev"]["allow"][0]["limits"] = {"budgets": ["one"]}
    few_rules(tmp_path)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(Upstream())
        changes = {"inspection": INSPECTION, "roles": roles, "bindings": BINDINGS, "approvals": APPROVALS}
        path = policy(tmp_path, upstream.url, **changes, budgets={"one": {"requests": "1/1h"}})
        office = Office(stack.enter_context(tidegate_run(path)), upstream, path, {"alice": token(tmp_path, "alice")})
        chair = Chair(office)
        stack.callback(chair.control.close)
        client = stack.enter_context(office.openai(max_retries=0))
        client.chat.completions.create(**said("hello"))
        with ThreadPoolExecutor(1) as aside:
            asked = aside.submit(client.chat.completions.create, **said(ASK))
            approval = office.pending()
            chair.votes(approval, Answer.YES)
            with pytest.raises(openai.RateLimitError):
                asked.result(60)
        assert (office.state(approval), office.hits) == ("approved", 1)
        reset = [str(BIN / "tidegate"), "budgets", "reset", "one", "--policy", str(path)]
        subprocess.run(reset, check=True, capture_output=True, timeout=60)
        assert client.chat.completions.create(**said(ASK)).choices[0].message.content == "hello"
        assert (office.state(approval), office.hits, len(office.ids())) == ("consumed", 2, 1)
