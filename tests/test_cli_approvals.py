"""``tidegate approvals`` on a control store, without a gate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.e2e.harness import policy, token
from tidegate.approvals.digest import bound
from tidegate.approvals.spec import Approval, Ask, Need, Person
from tidegate.cli import main
from tidegate.identity import issuing
from tidegate.model import Caller
from tidegate.state import approvals as store
from tidegate.state.control import Control
from tidegate.state.revocations import Revocations
from tidegate.state.signing import SigningKeys

ALICE = Person("local", "alice", frozenset({"local:dev"}))
EVIL = "\x1b]0;owned\x07[red]not markup[/red]"


@dataclass
class Terminal:
    policy: Path
    control: Control
    tokens: dict[str, str]

    def run(self, *words: str, who: str | None = None, given: str | None = None) -> Result:
        env = {"TIDEGATE_TOKEN": self.tokens.get(who or "", ""), "COLUMNS": "200"}
        return CliRunner(env=env).invoke(main, ["approvals", *words, "--policy", str(self.policy)], input=given)

    def ask(self, body: bytes, shown: bytes | None = b'{"text": "[REDACTED:pii.email]"}', **more: Any) -> str:
        entry = Approval("pii", ("local:boss",), **more)
        wanted = Ask(
            ALICE, "openai", "chat", "POST", "/v1/chat/completions", "gpt-5", (Need(entry, ("class pii",)),),
            (("pii.email", "pii", "$.messages[0].content", "approve"),), EVIL, "0" * 64,
            bound=bound(ALICE, "openai", ("POST", "/"), (), body), shown=shown,
        )  # fmt: skip
        item = self.control.write(lambda db: store.ask(db, wanted, time.time())).result(10).item
        return str(item.id)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    path = policy(tmp_path, "http://127.0.0.1:9")
    names = {"alice": ("dev",), "bob": ("boss",), "carol": ("boss",)}
    control = Control(tmp_path / "control.db")
    control.start()
    yield Terminal(path, control, {name: token(tmp_path, name, groups) for name, groups in names.items()})
    control.close()


def test_nothing_waits(terminal: Terminal) -> None:
    assert terminal.run("list").output == "Nothing waits for approval.\n"
    assert terminal.run("list", "--all").output == "No approvals yet.\n"
    shown = terminal.run("show", "apr_1")
    assert (shown.exit_code, shown.output) == (
        1,
        "Error: apr_1: found no approval; accepted: an id from `tidegate approvals list`.\n",
    )


def test_a_request_is_looked_at_and_declined(terminal: Terminal) -> None:
    approval = terminal.ask(b"1")
    (line,) = terminal.run("list", "--json").output.splitlines()
    told = json.loads(line)
    assert (told["id"], told["state"], told["caller"], told["why"]) == (
        approval, "pending", "local:alice", ["pii class pii"],
    )  # fmt: skip
    assert 890 < told["left"] <= 900
    shown = terminal.run("show", approval[:9]).output
    for word in ("local:alice", "pii.email", "[REDACTED:pii.email]", "pii: 1 of local:boss", "[red]not markup[/red]"):
        assert word in shown
    assert "\x1b]" not in shown + terminal.run("list").output
    assert "Missing option '--reason'" in terminal.run("deny", approval, who="bob").output
    done = terminal.run("deny", approval, "--reason", "use\x1b[31m the sandbox", who="bob")
    assert done.output == f"{approval} is denied; recorded as decided by local:bob.\n"
    told = json.loads(terminal.run("show", approval, "--json").output)
    assert told["votes"][0]["reason"] == "use [31m the sandbox"
    assert [each["what"] for each in told["history"]] == ["ask", "vote no", "denied"]
    again = terminal.run("approve", approval, who="carol")
    assert again.output == f"Error: {approval}: it has been decided, or its time is up.\n"


def test_who_decides_must_say_who_he_is(terminal: Terminal) -> None:
    approval = terminal.ask(b"1")
    assert "found no token; accepted: a token" in terminal.run("approve", approval).output
    wrong = terminal.run("approve", approval, "--token", "tg_nobody")
    assert wrong.exit_code == 1
    assert "tg_nobody" not in wrong.output
    own = terminal.run("approve", approval, who="alice")
    assert own.output == f"Error: {approval}: nobody decides on his own request.\n"
    given = terminal.run("approve", approval, "--token", "-", given=f"{terminal.tokens['bob']}\n")
    assert given.output == f"{approval} is approved; recorded as decided by local:bob.\n"


def test_own_tokens_decide_until_they_are_taken_back(terminal: Terminal) -> None:
    url = "https://gate.example"
    path = policy(terminal.policy.parent, "http://127.0.0.1:9", admin={"url": url})
    assert path == terminal.policy
    now = time.time()
    (key,) = SigningKeys(terminal.control).turn(now, 86400.0).result(10)
    bob = Caller("local", "bob", frozenset({"local:boss"}))
    shown = issuing.mint(key, url, bob, now=now, until=now + 600, jti="j1", source=None)
    approval = terminal.ask(b"1")
    done = terminal.run("approve", approval, "--token", shown)
    assert done.output == f"{approval} is approved; recorded as decided by local:bob.\n"
    Revocations(terminal.control).revoke_token(url, "j1", made_by="root").result(10)
    for deed in ("approve", "deny", "revoke", "review"):
        refused = terminal.run(deed, approval, "--token", shown, "--reason", "a thief's")
        assert (refused.exit_code, "(token_revoked)" in refused.output) == (1, True), refused.output
    assert json.loads(terminal.run("show", approval, "--json").output)["state"] == "approved"


def test_a_quorum_and_a_yes_that_is_taken_back(terminal: Terminal) -> None:
    approval = terminal.ask(b"1", quorum=2)
    first = terminal.run("approve", approval, who="bob")
    assert first.output == f"{approval} still needs others; recorded as decided by local:bob.\n"
    assert "you have voted on it already" in terminal.run("approve", approval, who="bob").output
    assert "is approved" in terminal.run("approve", approval, who="carol").output
    assert "approved" in terminal.run("list").output
    told = json.loads(terminal.run("revoke", approval, "--reason", "own", "--json", who="bob").output)
    assert (told["state"], told["by"]) == ("revoked", "local:bob")
    approval = terminal.ask(b"2")
    assert "is approved" in terminal.run("approve", approval, who="carol").output
    assert "is revoked" in terminal.run("revoke", approval, "--reason", "a mistake", who="carol").output


def test_watch_tells_what_happens(terminal: Terminal) -> None:
    approval = terminal.ask(b"1", shown=None)
    assert "cannot be shown" in terminal.run("show", approval).output
    lines = terminal.run("watch", "--seconds", "0.1").output.splitlines()
    assert lines == [f"{approval} pending: local:alice asks, pii class pii"]
    assert terminal.run("watch", "--seconds", "0.1", "--json").output == ""


def test_a_policy_with_faults_is_told(terminal: Terminal) -> None:
    terminal.policy.write_text("version: 1\n")
    done = terminal.run("list")
    assert done.exit_code == 1
    assert "nothing was started or changed" in done.output
