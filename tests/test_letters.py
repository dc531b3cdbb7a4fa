"""Letters about approvals: what they say and do not say, who signed them, and what becomes of one that fails."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate.approvals import letters
from tidegate.approvals.letters import Form, Letter, Occasion
from tidegate.approvals.machine import Demand
from tidegate.approvals.notify import Notifier, NotSent, name_of, send
from tidegate.approvals.spec import Mail, Person, Webhook
from tidegate.desk import letter

ASKED = Letter(
    Occasion.ASKED, "apr_1", "pending", "corp:<alice>", "openai", "gpt & co", ("pii class pii",), "corp:boss",
    "corp:<alice>", 1_800_000_000.0, 1_800_000_900.0, "https://gate.example.com/approvals/apr_1",
)  # fmt: skip


@dataclass
class Receiver:
    """A web server that answers as it is told and keeps what it got."""

    url: str
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=20)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    here: Receiver

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            here.got.append(({k.lower(): v for k, v in self.headers.items()}, data))
            status = here.answers.pop(0) if here.answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("location", here.url)
            self.send_header("content-length", "0")
            self.end_headers()
            here.arrived.release()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        here = Receiver(f"http://127.0.0.1:{server.server_port}/secret-path-CANARY")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield here
        server.shutdown()


@pytest.fixture
def hook(receiver: Receiver, tmp_path: Path) -> Webhook:
    for name, text in (("url", receiver.url), ("key", "whsec_" + base64.b64encode(b"k" * 24).decode())):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    url, key = (f"${{file:{tmp_path / name}}}" for name in ("url", "key"))
    return Webhook(url, key, Form.PLAIN, frozenset(Occasion))


def test_a_letter_is_signed_as_the_standard_says(receiver: Receiver, hook: Webhook) -> None:
    send(ASKED, hook, "msg_1")
    ((fields, data),) = receiver.got
    signed = b".".join([fields["webhook-id"].encode(), fields["webhook-timestamp"].encode(), data])
    mac = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
    assert (fields["webhook-id"], fields["webhook-signature"]) == ("msg_1", f"v1,{mac}")
    told = json.loads(data)
    assert told["type"] == "approval.asked"
    assert told["data"]["approval"] == "apr_1"
    assert told["title"] == "corp:<alice> asks for approval of a request to openai"


def test_slack_gets_blocks_in_which_nothing_of_a_name_has_a_meaning() -> None:
    told = json.loads(letters.body(replace(ASKED, caller="corp:<!channel>"), Form.SLACK))
    text = told["blocks"][0]["text"]
    assert (text["type"], text["verbatim"]) == ("mrkdwn", True)
    assert "<!channel>" not in json.dumps(told)
    assert "&lt;!channel&gt;" in text["text"]
    assert "Model: gpt &amp; co" in text["text"]
    assert told["blocks"][1]["elements"][0]["url"] == ASKED.link
    assert len(json.loads(letters.body(replace(ASKED, link=""), Form.SLACK))["blocks"]) == 1


def test_teams_gets_an_adaptive_card() -> None:
    (attached,) = json.loads(letters.body(ASKED, Form.TEAMS))["attachments"]
    assert attached["contentType"] == "application/vnd.microsoft.card.adaptive"
    card = attached["content"]
    assert (card["type"], card["actions"][0]["url"]) == ("AdaptiveCard", ASKED.link)
    assert "Decides: corp:boss, within 15 min" in [each["text"] for each in card["body"]]


def test_a_mail_has_one_subject_line_whatever_a_name_holds() -> None:
    message = letters.mail(replace(ASKED, caller="a\r\nBcc: x@example.com"), "gate@example.com", ("b@example.com",))
    assert message["Bcc"] is None
    assert message["To"] == "b@example.com"
    assert "Id: apr_1" in message.get_content()


def test_a_receiver_that_fails_is_tried_again_with_the_same_name(receiver: Receiver, hook: Webhook) -> None:
    receiver.answers = [500, 429, 204]
    notifier = Notifier(lambda: (hook,), waits=(0.01,) * 5)
    notifier.start()
    notifier.tell(ASKED)
    receiver.wait(3)
    notifier.close()
    assert len(receiver.got) == 3
    names = {fields["webhook-id"] for fields, _ in receiver.got}
    assert names == {name_of(ASKED, hook)}, "another gate, or another try, has the same"
    assert not names & {name_of(replace(ASKED, step=1), hook), name_of(ASKED, replace(hook, url="env:OTHER"))}


@pytest.mark.parametrize(("status", "why"), [(400, "it answered with status 400"), (302, "it redirects")])
def test_a_receiver_that_refuses_is_not(
    receiver: Receiver, hook: Webhook, status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [status]
    notifier = Notifier(lambda: (hook,), waits=(0.01,) * 5)
    notifier.start()
    notifier.tell(ASKED)
    receiver.wait(1)
    notifier.close()
    assert len(receiver.got) == 1
    assert f"a letter about apr_1 was not delivered: {why}" in caplog.text
    assert "CANARY" not in caplog.text


def test_it_is_given_up_in_the_end_and_the_others_get_theirs(
    receiver: Receiver, hook: Webhook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "away").write_text("http://127.0.0.1:9/CANARY")
    (tmp_path / "away").chmod(0o600)
    away = replace(hook, url=f"${{file:{tmp_path / 'away'}}}")
    notifier = Notifier(lambda: (away, hook), waits=(0.01, 0.01))
    notifier.start()
    notifier.tell(ASKED)
    notifier.tell(replace(ASKED, approval="apr_2"))
    receiver.wait(2)
    end = time.monotonic() + 20
    while caplog.text.count("was not delivered") < 2 and time.monotonic() < end:
        time.sleep(0.01)
    notifier.close()
    assert {json.loads(data)["data"]["approval"] for _, data in receiver.got} == {"apr_1", "apr_2"}
    assert "it could not be reached: ConnectionRefusedError" in caplog.text
    assert "CANARY" not in caplog.text


def test_what_waits_for_another_try_when_the_gate_stops_is_told(
    receiver: Receiver, hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500]
    notifier = Notifier(lambda: (hook,))
    notifier.start()
    notifier.tell(ASKED)
    receiver.wait(1)
    notifier.close()
    assert "a letter about apr_1 was not delivered" in caplog.text


def test_only_who_wants_to_know_is_told(receiver: Receiver, hook: Webhook) -> None:
    notifier = Notifier(lambda: (replace(hook, events=frozenset({Occasion.DECIDED})),))
    notifier.start()
    notifier.tell(ASKED)
    notifier.tell(replace(ASKED, event=Occasion.DECIDED, approval="apr_2"))
    receiver.wait(1)
    notifier.close()
    assert [json.loads(data)["data"]["approval"] for _, data in receiver.got] == ["apr_2"]


@pytest.mark.parametrize("address", ["http://example.com/x", "ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_an_address_that_is_not_https_gets_nothing(hook: Webhook, tmp_path: Path, address: str) -> None:
    (tmp_path / "url").write_text(address)
    with pytest.raises(NotSent, match="its address is not https"):
        send(ASKED, hook, "msg_1")


def test_a_mail_goes_out_by_a_server_on_this_machine() -> None:
    said: list[bytes] = []

    class Server(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                said.append(line)
                if line.upper().startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    while (part := self.rfile.readline()) != b".\r\n":
                        said.append(part)
                self.wfile.write(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 ok\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = Mail(
            "127.0.0.1", server.server_address[1], "gate@x.org", ("a@x.org",), None, None, frozenset(Occasion)
        )
        send(ASKED, target, "msg_1")
        server.shutdown()
    text = b"".join(said).decode()
    assert "rcpt to:<a@x.org>" in text.lower()
    assert "Subject: [tidegate] corp:<alice> asks for approval" in text


def item(**more: Any) -> Any:
    demand = Demand("pii", ("corp:a", "corp:b"), every=False, quorum=2, max_age=None, break_glass=())
    values = {
        "id": "apr_1", "asker": Person("corp", "alice"), "connection": "openai", "model": None,
        "labels": ("pii class pii",), "demands": (demand,), "decide_by": 900.0, **more,
    }  # fmt: skip
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("what", "became", "event"),
    [
        ("ask", "pending", Occasion.ASKED),
        ("break glass", "pending", Occasion.GLASS),
        ("approved", "approved", Occasion.DECIDED),
        ("expired", "expired", Occasion.DECIDED),
        ("vote yes", "pending", None),
        ("use", "consumed", None),
        ("superseded", "superseded", None),
    ],
)
def test_steps_that_people_are_told_of(what: str, became: str, event: Occasion | None) -> None:
    step = SimpleNamespace(seq=1, what=what, became=became, actor="corp:bob", at=0.0)
    found = letter(step, item(), "https://gate.example.com")
    assert (found.event if found else None) == event
    if found is not None:
        assert found.needs == "2 people of corp:a or corp:b"
        assert found.link == "https://gate.example.com/approvals/apr_1"
