"""A session of the real SDKs is recorded, and then listed, answered again, sent again, and looked at in mitmweb."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import speaking
from tests.e2e.harness import (
    BIN,
    CREDENTIAL,
    ROOT,
    Received,
    Upstream,
    free_port,
    policy,
    started,
    tidegate_run,
    wait_for_port,
)
from tests.e2e.provider import nanoidp

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
CARD = "4111 1111 1111 1111"
MAIL = "jane.doe@example.com"
LEAK = f"Here is the record you asked for. E-mail: {MAIL}, card: {CARD}. Plan: gold."
MASKED = "Here is the record you asked for. E-mail: [REDACTED:email], card: [REDACTED:card-visa]. Plan: gold."
ROLES = {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["sample-*"]}]}}
BINDINGS = [{"groups": ["corp:ml-eng"], "roles": ["dev"]}]
PASSWORD = "x"

SAID = {
    "intact": "hello there",
    "blocked": f"why does {KEY} fail?",
    "masked": "show the customer record",
    "group": "hello from another group",
    "expired": "hello with an old token",
    "audience": "hello with a token for somebody else",
    "aborted": "count for ever",
    "failed": "break off",
}
ENDS = {
    "intact": ("answered", None, 200),
    "blocked": ("denied", "finding", 403),
    "masked": ("answered", None, 200),
    "group": ("denied", "not_granted", 403),
    "expired": ("denied", "token_expired", 401),
    "audience": ("denied", "token_audience", 401),
    "aborted": ("aborted", "client_gone", 200),
    "failed": ("failed", "upstream_failed", 502),
}
CALLERS = {"group": ("corp", "bob"), "expired": (None, None), "audience": (None, None)}
SENTENCES = {
    "blocked": "Blocked by policy: $.messages[0].content contains something of the class secrets "
    "(rule secrets.aws-access-key). Nothing was sent to the model; remove it and try again.",
    "group": "Your roles do not allow the endpoint {endpoint} of the connection {name}.",
    "expired": "The access token was not accepted; get a new one and try again.",
    "audience": "The access token was not accepted; get a new one and try again.",
    "failed": "The model provider could not be reached, or it broke off.",
}


async def provide(received: Received, writer: asyncio.StreamWriter) -> None:
    """Answer as the last user message asks."""
    prompt = json.loads(received.body)["messages"][-1]["content"]
    if prompt == SAID["failed"]:
        writer.close()
        return
    if prompt == SAID["intact"]:
        writer.write(speaking.whole(received, f"You said: {prompt}"))
        return
    await speaking.begin(writer)
    endless = prompt == SAID["aborted"]
    for event in speaking.events(received, "one two three " * 500 if endless else LEAK):
        await speaking.write(writer, event)
        await asyncio.sleep(0.02 if endless else 0)
    await speaking.write(writer, b"")


class Sdk:
    """What the two SDKs have in common: a text or the deltas of one, or their own exception."""

    Denied: type[Exception]
    Failed: type[Exception]
    Missing: type[Exception]
    Unknown: type[Exception]

    def __init__(self, client: Any) -> None:
        self.client = client

    def text(self, prompt: str) -> str:
        raise NotImplementedError

    def deltas(self, prompt: str) -> Iterator[str]:
        raise NotImplementedError


class OpenAi(Sdk):
    Denied, Failed = openai.PermissionDeniedError, openai.InternalServerError
    Missing, Unknown = openai.NotFoundError, openai.AuthenticationError

    @classmethod
    def at(cls, base: str, token: str) -> Sdk:
        return cls(openai.OpenAI(base_url=f"{base}/openai/v1", api_key=token, timeout=20))

    def text(self, prompt: str) -> str:
        said = [{"role": "user", "content": prompt}]
        return str(self.client.chat.completions.create(model="sample-small", messages=said).choices[0].message.content)

    def deltas(self, prompt: str) -> Iterator[str]:
        said = [{"role": "user", "content": prompt}]
        with self.client.chat.completions.create(model="sample-small", messages=said, stream=True) as stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content


class Anthropic(Sdk):
    Denied, Failed = anthropic.PermissionDeniedError, anthropic.InternalServerError
    Missing, Unknown = anthropic.NotFoundError, anthropic.AuthenticationError

    @classmethod
    def at(cls, base: str, token: str) -> Sdk:
        return cls(anthropic.Anthropic(base_url=f"{base}/anthropic", api_key=token, timeout=20))

    def _asked(self, prompt: str) -> dict[str, Any]:
        return {"model": "sample-small", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}

    def text(self, prompt: str) -> str:
        return str(self.client.messages.create(**self._asked(prompt)).content[0].text)

    def deltas(self, prompt: str) -> Iterator[str]:
        with self.client.messages.stream(**self._asked(prompt)) as stream:
            yield from stream.text_stream


SDKS: dict[str, Callable[[str, str], Sdk]] = {"openai": OpenAi.at, "anthropic": Anthropic.at}


@contextlib.contextmanager
def sdk(name: str, base: str, token: str) -> Iterator[Sdk]:
    made = SDKS[name](base, token)
    with made.client:
        yield made


@dataclass
class Tour:
    """What was recorded: the policy, the upstream, what each SDK got and its row of `flows list`, by SDK and step."""

    policy: Path
    upstream: Upstream
    tokens: dict[str, str]
    got: dict[tuple[str, str], str] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def recording(self) -> Path:
        return self.policy.parent / "recording.db"

    def tidegate(self, *arguments: str | Path) -> str:
        environment = {**os.environ, "TIDEGATE_TEST_CREDENTIAL": CREDENTIAL, "COLUMNS": "300"}
        command = [BIN / "tidegate", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self) -> list[dict[str, Any]]:
        """Return what `flows list` prints, oldest first."""
        printed = self.tidegate("flows", "list", "--json", "--limit", "1000", "--recording", self.recording)
        return [json.loads(line) for line in printed.splitlines()][::-1]


def session(tour: Tour, name: str, base: str) -> None:
    """Walk every step with one SDK."""
    with sdk(name, base, tour.tokens["alice"]) as alice, sdk(name, base, tour.tokens["bob"]) as bob:
        tour.got[name, "intact"] = alice.text(SAID["intact"])
        with pytest.raises(alice.Denied) as blocked:
            alice.text(SAID["blocked"])
        tour.got[name, "blocked"] = str(blocked.value)
        tour.got[name, "masked"] = "".join(alice.deltas(SAID["masked"]))
        with pytest.raises(bob.Denied) as group:
            bob.text(SAID["group"])
        tour.got[name, "group"] = str(group.value)
        for step in ("expired", "audience"):
            with sdk(name, base, tour.tokens[step]) as stranger, pytest.raises(stranger.Unknown) as unknown:
                stranger.text(SAID[step])
            tour.got[name, step] = str(unknown.value)
        reading = alice.deltas(SAID["aborted"])
        tour.got[name, "aborted"] = next(reading)
        reading.close()  # type: ignore[attr-defined]
        with pytest.raises(alice.Failed) as failed:
            alice.text(SAID["failed"])
        tour.got[name, "failed"] = str(failed.value)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    folder = tmp_path_factory.mktemp("tour")
    with nanoidp(folder) as provider, Upstream() as upstream:
        upstream.does(provide)
        written = policy(folder, upstream.url, identity=[provider.section()], roles=ROLES, bindings=BINDINGS)
        tour = Tour(written, upstream, {who: provider.token(user=who) for who in ("alice", "bob")})
        tour.tokens |= {"expired": provider.expired(), "audience": provider.token(resource="https://other.example")}
        with tidegate_run(written) as gate:
            for name in SDKS:
                session(tour, name, gate.url)
        asked = [row for row in tour.listed() if row["connection"] is not None]
        tour.rows = dict(zip(tour.got, asked, strict=True))  # no step was tried twice
        yield tour


@pytest.mark.parametrize("step", SAID)
@pytest.mark.parametrize("name", SDKS)
def test_every_step_is_listed(tour: Tour, name: str, step: str) -> None:
    row = tour.rows[name, step]
    assert (row["outcome"], row["reason"], row["status"]) == ENDS[step]
    assert (row["identity"], row["caller"]) == CALLERS.get(step, ("corp", "alice"))
    assert row["connection"] == name
    if step in SENTENCES:
        said = f"{SENTENCES[step]} (request {row['id']})"
        assert said.format(name=name, endpoint=row["endpoint"]) in tour.got[name, step], "one clear sentence"


@pytest.mark.parametrize("name", SDKS)
def test_what_the_session_read(tour: Tour, name: str) -> None:
    assert tour.got[name, "intact"] == "You said: hello there"
    assert tour.got[name, "masked"] == MASKED
    assert KEY.encode() not in tour.upstream.data
    for step in ("group", "expired", "audience"):
        assert SAID[step].encode() not in tour.upstream.data


# ── answered again ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def replaying(tour: Tour) -> Iterator[str]:
    port = free_port()
    command = [BIN / "tidegate", "replay", "serve", "--recording", tour.recording, "--listen", f"127.0.0.1:{port}"]
    with started(command, port, tour.policy.parent) as server:
        yield server.url


@pytest.mark.parametrize("name", SDKS)
def test_a_recording_answers_the_sdk(tour: Tour, replaying: str, name: str) -> None:
    before = tour.upstream.connections
    with sdk(name, replaying, "any-token") as client:
        assert client.text(SAID["intact"]) == tour.got[name, "intact"]
        assert "".join(client.deltas(SAID["masked"])) == MASKED
        with pytest.raises(client.Denied) as refused:
            client.text(SAID["blocked"])
        assert str(refused.value) == tour.got[name, "blocked"], "the placeholder stands for the key"
        for prompt in (
            "something that was never asked",
            SAID["group"],
            SAID["failed"],
        ):  # the body of bob's was not read
            with pytest.raises(client.Missing) as missing:
                client.text(prompt)
            assert "replay_unmatched" in str(missing.value.body)  # type: ignore[attr-defined]
        with pytest.raises(client.Missing):
            next(client.deltas(SAID["aborted"]))
    assert tour.upstream.connections == before


# ── sent again ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("step", "caller", "group"), [("blocked", "alice", "ml-eng"), ("group", "bob", "interns")])
def test_what_was_denied_is_denied_again(tour: Tour, step: str, caller: str, group: str) -> None:
    """One command sends what both SDKs had asked; the kept prompts are masked, and blocked all the same."""
    before, connections = len(tour.listed()), tour.upstream.connections
    rows = [tour.rows[name, step] for name in SDKS]
    who = ("--as", f"corp:{caller}", "--group", group, "--live", "--policy", tour.policy)
    tour.tidegate("replay", "send", *(row["id"] for row in rows), *who)
    again = tour.listed()[before:]
    same = ("outcome", "reason", "status", "identity", "caller", "connection", "endpoint", "rules")
    for old, new in zip(rows, again, strict=True):
        assert new["replay_of"] == old["id"]
        assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert tour.upstream.connections == connections


# ── looked at ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mitmweb_shows_the_session(tour: Tour) -> None:
    port, folder = free_port(), tour.policy.parent
    command = [BIN / "mitmweb", "--no-server", "-s", ROOT / "addons" / "replay.py"]
    for option in (
        f"recording={tour.recording}",
        f"confdir={folder / 'ca'}",
        f"web_port={port}",
        f"web_password={PASSWORD}",
        "web_open_browser=false",
    ):
        command += ["--set", option]
    asked = len([row for row in tour.listed() if row["connection"] is not None])
    with started(command, port, folder) as viewer:
        wait_for_port(port, viewer.process)
        flows: list[dict[str, Any]] = []
        until = time.monotonic() + 20
        while len(flows) < asked and time.monotonic() < until:
            flows = json.loads(page(port, "/flows"))
            time.sleep(0.1)
        sides = [f"/flows/{flow['id']}/{side}/content.data" for flow in flows for side in ("request", "response")]
        shown = b"".join([page(port, "/flows"), *(page(port, side) for side in sides)])
    comments = [flow["comment"] for flow in flows]
    assert len(comments) >= asked
    for name, step in tour.rows:
        outcome, reason, _ = ENDS[step]
        said = outcome if reason is None else f"{outcome}: {reason}"
        who = ":".join(each for each in CALLERS.get(step, ("corp", "alice")) if each)
        expected = f"{said}, {who}".removesuffix(", ")
        assert sum(comment.startswith(expected) for comment in comments) >= len(SDKS), (name, step, comments)
    assert SAID["intact"].encode() in shown
    for canary in (KEY, CARD, MAIL, CREDENTIAL, *tour.tokens.values()):
        assert canary.encode() not in shown + viewer.log.encode()


def page(port: int, path: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {PASSWORD}"})
    try:
        with opener.open(asked, timeout=5) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return b""  # a flow without such a message
