"""Documents and pictures from the unmodified SDKs through a real gate: found, not scanned, hostile."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import PNG, archive, docx, pdf, run, slow_docx, tarred
from tests.e2e.harness import Process, Upstream, chat, http_answer, policy, post, tidegate_run, token
from tests.e2e.wiring import Client, Reply, Stage

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MARK = "AKIATESTKEY1234567890"
MAIL = "jane.doe@example-mail.com"
CORPUS = Path(os.environ.get("TIDEGATE_CORPORA") or Path(__file__).resolve().parents[3] / "shared" / "corpora")
FILES = sorted((CORPUS / "attachments").glob("*"))
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "sample-small", "stop_reason": "end_turn",
           "stop_sequence": None, "content": [{"type": "text", "text": "fine"}],
           "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip


@dataclass
class Rig(Stage):
    """A gate with one connection for each word of on_unknown, in both dialects."""

    open: contextlib.ExitStack | None = None

    def openai(self, rule: str = "block") -> Any:
        assert self.open is not None
        client = openai.OpenAI(base_url=f"{self.gate.url}/openai-{rule}/v1", api_key=self.token, timeout=30)
        return self.open.enter_context(client)

    def anthropic(self, rule: str = "block") -> Any:
        assert self.open is not None
        client = anthropic.Anthropic(base_url=f"{self.gate.url}/anthropic-{rule}", api_key=self.token, timeout=30)
        return self.open.enter_context(client)

    def send(self, body: bytes, rule: str = "block", path: str = "v1/chat/completions", seconds: float = 40) -> Reply:
        with Client(self.gate.port, seconds=seconds) as client:
            return client.ask(post(f"/openai-{rule}/{path}", body, self.auth))


def connection(upstream: str, dialect: str, rule: str) -> dict[str, object]:
    return {
        "name": f"{dialect}-{rule}",
        "dialect": dialect,
        "upstream": f"{upstream}/{rule}",
        "serve": {"path": f"/{dialect}-{rule}"},
        "on_unknown": rule,
        "limits": {"request": {"bytes": "96MiB"}},
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("attachments")
    with Upstream() as upstream, contextlib.ExitStack() as clients:
        every = [connection(upstream.url, name, rule) for name in ("openai", "anthropic") for rule in RULES]
        written = policy(folder, upstream.url, connections=every)
        access = token(folder)
        with tidegate_run(written) as gate:
            yield Rig(gate, upstream, access, open=clients)


RULES = ("block", "flag", "pass")


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.fresh()
    for rule in RULES:
        running.upstream.says(http_answer(json.dumps(MESSAGE).encode()), f"/{rule}/v1/messages")
    return running


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask_openai(client: Any, data: bytes, api: str) -> Any:
    url = f"data:application/octet-stream;base64,{b64(data)}"
    if api == "chat":
        part: dict[str, object] = {"type": "file", "file": {"filename": "report", "file_data": url}}
        said = [{"role": "user", "content": [{"type": "text", "text": "read it"}, part]}]
        return client.chat.completions.create(model="sample-small", messages=said)
    given = [{"role": "user", "content": [{"type": "input_file", "filename": "report", "file_data": url}]}]
    return client.responses.create(model="sample-small", input=given)


def ask_anthropic(client: Any, data: bytes, kind: str = "document", media: str = "application/pdf") -> Any:
    part = {"type": kind, "source": {"type": "base64", "media_type": media, "data": b64(data)}}
    said = [{"role": "user", "content": [{"type": "text", "text": "read it"}, part]}]
    return client.messages.create(model="sample-small", max_tokens=100, messages=said)


def ask_picture(client: Any) -> Any:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(PNG)}"}}
    said = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, part]}]
    return client.chat.completions.create(model="sample-small", messages=said)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("kind", ["docx", "pdf"])
def test_a_key_in_a_document_is_blocked(rig: Rig, api: str, kind: str) -> None:
    data = docx(run(KEY[:7]) + run(KEY[7:])) if kind == "docx" else pdf(KEY)
    error = anthropic.PermissionDeniedError if api == "messages" else openai.PermissionDeniedError
    client = rig.anthropic("pass") if api == "messages" else rig.openai("pass")
    with pytest.raises(error) as caught:
        _ = ask_anthropic(client, data) if api == "messages" else ask_openai(client, data, api)
    inside = "docx: word/document.xml" if kind == "docx" else "pdf: page 1"
    place = {
        "chat": "$.messages[0].content[1].file.file_data",
        "responses": "$.input[0].content[0].file_data",
        "messages": "$.messages[0].content[1].source.data",
    }[api]
    assert f"{place} ({inside}) contains something of the class secrets" in str(caught.value)
    assert rig.upstream.data == b"", "zero bytes upstream"
    row = rig.record(caught.value.response.headers["x-request-id"])
    assert (row["outcome"], row["reason"], row["scanned"]) == ("denied", "finding", "scanned")
    assert KEY not in rig.gate.log


def test_what_would_be_masked_in_a_document_is_refused(rig: Rig) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="nothing can be masked inside a file"):
        ask_openai(rig.openai("pass"), docx(run(MAIL)), "chat")
    assert rig.upstream.data == b""


def test_a_clean_document_is_sent_as_it_is(rig: Rig) -> None:
    data = docx(run("hello"))
    assert ask_openai(rig.openai(), data, "chat").choices[0].message.content
    assert ask_anthropic(rig.anthropic(), pdf("hello")).content[0].text == "fine"
    sent = [json.loads(each.body)["messages"][0]["content"][1] for each in rig.upstream.requests]
    assert sent[0]["file"]["file_data"].endswith(b64(data))
    assert sent[1]["source"]["data"] == b64(pdf("hello"))
    assert rig.last()["scanned"] == "scanned"  # recorded before it was sent


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_follows_on_unknown(rig: Rig, rule: str) -> None:
    if rule == "block":
        with pytest.raises(openai.BadRequestError, match=r"image_url\.url was not scanned: it is or holds a picture"):
            ask_picture(rig.openai())
        client = rig.anthropic()
        with pytest.raises(anthropic.BadRequestError, match=r"source\.data was not scanned: it is or holds") as caught:
            ask_anthropic(client, PNG, "image", "image/png")
        assert rig.upstream.data == b""
        row = rig.record(caught.value.response.headers["x-request-id"])
        assert (row["reason"], row["scanned"]) == ("body_opaque", "partly scanned")
        return
    ask_picture(rig.openai(rule))
    ask_anthropic(rig.anthropic(rule), PNG, "image", "image/png")
    one, two = (json.loads(each.body)["messages"][0]["content"][1] for each in rig.upstream.requests)
    assert one["image_url"]["url"] == f"data:image/png;base64,{b64(PNG)}"
    assert two["source"]["data"] == b64(PNG)
    row = rig.last()
    assert (row["outcome"], row["scanned"]) == ("answered", "partly scanned")
    line = next(each for each in rig.gate.log.splitlines()[::-1] if row["id"] in each)
    assert '"scanned": "partly scanned"' in line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_text_of_every_corpus_attachment_is_found(rig: Rig, path: Path) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask_openai(rig.openai(), path.read_bytes(), "chat")
    assert "content[1].file.file_data (" in str(caught.value)
    assert rig.upstream.data == b""


# ── what is hostile ──────────────────────────────────────────────────────────


def with_file(data: bytes) -> bytes:
    part = {"type": "file", "file": {"file_data": b64(data)}}
    return json.dumps({"model": "sample-small", "messages": [{"role": "user", "content": [part]}]}).encode()


def meanwhile(rig: Rig, body: bytes, busy: Any = None) -> tuple[Reply, int]:
    """Send a body; until its answer is there, send small requests one after the other. Return both."""
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.append(rig.send(body)))
    asking.start()
    answered = 0
    while asking.is_alive():
        assert rig.send(chat("hello")).status == 200
        answered += 1
        if busy is not None:
            busy()
        time.sleep(0.02)
    asking.join()
    return replies[0], answered


def workers(gate: Process) -> list[int]:
    """The processes that the gate has started."""
    folder = Path(f"/proc/{gate.process.pid}/task")
    return [int(each) for task in folder.iterdir() for each in (task / "children").read_text().split()]


def test_a_parser_that_hangs_is_ended_and_others_are_answered(rig: Rig) -> None:
    reply, answered = meanwhile(rig, with_file(slow_docx()))
    assert reply.status == 400
    assert "data that took too long to read" in reply.json["error"]["message"]
    assert answered > 20, "of ten seconds"
    assert all(b"word" not in each.body for each in rig.upstream.requests)
    assert rig.send(with_file(docx(run("hello")))).status == 200, "the next document is read"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_a_worker_that_is_killed_ends_one_request(rig: Rig) -> None:
    killed: list[int] = []

    def kill() -> None:
        for each in workers(rig.gate) if not killed else ():
            killed.append(each)
            os.kill(each, signal.SIGKILL)

    reply, _ = meanwhile(rig, with_file(slow_docx()), kill)
    assert killed
    assert reply.status == 400
    assert "data on which its reader failed" in reply.json["error"]["message"]
    assert rig.send(with_file(docx(run("hello")))).status == 200


BOMBS = {
    "zip": archive({"a.txt": "0" * 50_000_000}),
    "zips in a zip": archive({f"{n}.zip": archive({"a.txt": "0" * 200_000}) for n in range(400)}),
    "pdf": pdf("x").replace(b"/Count 1", b"/Count 999999999").replace(b"/Kids[3 0 R]", b"/Kids[2 0 R]"),
    "tar": tarred({f"{n}": bytes(10) for n in range(10_001)}),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_denied(rig: Rig, data: bytes) -> None:
    reply = rig.send(with_file(data))
    assert (reply.status, reply.code) == (400, "body_opaque")
    assert rig.upstream.data == b""


def test_a_body_of_fifty_megabytes_is_read_beside_the_loop(rig: Rig) -> None:
    """Bytes that nobody knows, then a text ten times its archive: the gate goes on answering, and denies both."""
    reply, answered = meanwhile(rig, with_file(bytes([0, *range(128, 255)]) * 293_000))
    assert (reply.status, reply.code) == (400, "body_opaque")
    assert answered > 1
    text = "".join(f"line {number} of a long report\n" for number in range(1_000_000))
    reply, answered = meanwhile(rig, with_file(archive({"a.txt": text, "b.txt": KEY})))
    assert (reply.status, reply.code) == (403, "finding")
    assert answered > 1
