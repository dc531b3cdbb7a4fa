"""Budgets through real gates: what passes, what is refused and how it is told, and what is recorded."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tests.e2e.harness import ANSWER, Upstream, chat_sse, http_answer, policy, tidegate_run, token
from tidegate.cli import main
from tidegate.evidence import queries

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

PRICES = """\
version: 1
currency: USD
models:
  - {models: ["sample-*"], input: 1, cached: 0.5, output: 10}
"""


QUICK: dict[str, Any] = {
    "packs": ["packs/injection.yaml"],
    "dialects": ["dialects/openai.yaml", "dialects/anthropic.yaml"],
    "inspection": {"prompt": {"injection": "flag"}, "response": {"injection": "allow"}},
}
"""A gate with few rules starts soon, and here nothing is about rules."""


def write(folder: Path, url: str, budgets: Mapping[str, object], name: str = "policy.yaml", **changes: object) -> Path:
    rule = {"connections": ["*"], "endpoints": ["*"], "models": ["*"], "limits": {"budgets": list(budgets)}}
    (folder / "prices.yaml").write_text(PRICES)
    roles = {"dev": {"allow": [rule]}}
    return policy(folder, url, name=name, budgets=dict(budgets), prices="prices.yaml", roles=roles, **QUICK, **changes)


def role(budget: str) -> dict[str, object]:
    rule = {"connections": ["*"], "endpoints": ["*"], "models": ["*"], "limits": {"budgets": [budget]}}
    return {"allow": [rule]}


def ask(url: str, secret: str, text: str = "hi", **more: object) -> httpx.Response:
    body = {"model": "sample-small", "messages": [{"role": "user", "content": text}], "max_tokens": 10, **more}
    return httpx.post(
        f"{url}/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {secret}"}, timeout=60
    )


def answer(prompt: int, completion: int, cached: int = 0) -> bytes:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return http_answer(
        json.dumps({**ANSWER, "usage": usage}).encode(), extra="x-ratelimit-remaining-requests: 9999\r\n"
    )


def rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return what is recorded once so many exchanges are sealed, oldest first."""
    until = time.monotonic() + 15
    while True:
        found = [dict(row) for row in queries.list_flows(folder / "recording.db", limit=1000)]
        if (len(found) >= count and all(row["outcome"] for row in found)) or time.monotonic() > until:
            return found[::-1]
        time.sleep(0.1)


@dataclass
class Setting:
    """A gate with several roles, each with budgets of its own kind."""

    url: str
    folder: Path
    upstream: Upstream
    policy: Path
    tokens: dict[str, str] = field(default_factory=dict)

    def openai(self, group: str) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/openai/v1", api_key=self.tokens[group], timeout=20, max_retries=0)

    def anthropic(self, group: str) -> Any:
        return anthropic.Anthropic(
            base_url=f"{self.url}/anthropic", api_key=self.tokens[group], timeout=20, max_retries=0
        )

    def settled(self, budget: str, metric: str, used: float) -> None:
        """Wait until a budget says that so much of it is used."""
        until, found = time.monotonic() + 15, None
        while time.monotonic() < until:
            found = {(row["budget"], row["metric"]): row["used"] for row in listed(self.policy)}
            if found.get((budget, metric), 0) == used:
                return
            time.sleep(0.1)
        raise AssertionError(f"{budget} {metric}: {found}")


def listed(path: Path, *options: str) -> list[dict[str, Any]]:
    found = CliRunner().invoke(main, ["budgets", "list", "--policy", str(path), "--json", *options])
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.output.splitlines()]


BUDGETS: dict[str, dict[str, object]] = {
    "two": {"requests": "2/1d"},
    "counted": {"tokens": "1000/1h", "requests": "50/1m"},
    "paid": {"spend": "0.001/1d"},
    "single": {"concurrent": 1},
    "quick": {"requests": "1/2s"},
    "claude": {"requests": "5/1m", "tokens": "100000/1m"},
    "hasty": {"tokens": "100000/1h"},
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("budgets")
    roles = {name: role(name) for name in BUDGETS}
    bindings = [{"groups": [f"local:{name}"], "roles": [name]} for name in BUDGETS]
    (folder / "prices.yaml").write_text(PRICES)
    with Upstream() as upstream:
        changes: dict[str, object] = {"budgets": BUDGETS, "prices": "prices.yaml", "roles": roles, "bindings": bindings}
        written = policy(folder, upstream.url, **changes, **QUICK)
        tokens = {name: token(folder, f"user-{name}", (name,)) for name in BUDGETS}
        with tidegate_run(written) as gate:
            yield Setting(gate.url, folder, upstream, written, tokens)


def test_the_sdk_raises_its_own_error_and_does_not_ask_again(setting: Setting) -> None:
    setting.upstream.says(answer(3, 4))
    client = openai.OpenAI(
        base_url=f"{setting.url}/openai/v1", api_key=setting.tokens["two"], timeout=20, max_retries=2
    )
    said = [{"role": "user", "content": "hi"}]
    first = client.chat.completions.with_raw_response.create(model="sample-small", messages=said)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers.get_list("x-ratelimit-remaining-requests") == ["1"]
    assert first.headers["ratelimit"].startswith('"two-requests";r=1;t=')
    assert first.headers["ratelimit-policy"] == '"two-requests";q=2;w=86400'
    client.chat.completions.create(model="sample-small", messages=said)
    before = len(setting.upstream.requests)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="sample-small", messages=said)
    assert refused.value.body["code"] == "budget_exhausted"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert 86000 < int(refused.value.response.headers["retry-after"]) < 90000
    assert len(setting.upstream.requests) == before


def test_the_sdk_waits_as_long_as_it_is_told_and_then_passes(setting: Setting) -> None:
    setting.upstream.says(answer(3, 4))
    url, secret = f"{setting.url}/openai/v1", setting.tokens["quick"]
    client = openai.OpenAI(base_url=url, api_key=secret, timeout=20, max_retries=4)
    said = [{"role": "user", "content": "hi"}]
    before = len(setting.upstream.requests)
    for _ in range(2):
        assert client.chat.completions.create(model="sample-small", messages=said).choices
    assert len(setting.upstream.requests) == before + 2
    denied = sum(
        each["reason"] == "rate_limited" and each["caller"] == "user-quick" for each in rows(setting.folder, 3)
    )
    assert denied >= 1


def test_who_leaves_while_his_answer_is_collected_pays_for_the_bytes_that_came(setting: Setting) -> None:
    data = json.dumps({**ANSWER, "padding": "word " * 2000}).encode()
    setting.upstream.says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n" + data)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{setting.url}/openai/v1/chat/completions",
            json={"model": "sample-small", "messages": [{"role": "user", "content": "hi"}]},
            headers={"authorization": f"Bearer {setting.tokens['hasty']}"},
            timeout=2,
        )
    request = -(-len(setting.upstream.requests[-1].body) // 3)
    setting.settled("hasty", "tokens", request - (-len(data) // 4))


def test_tokens_are_held_and_then_settled_with_what_the_answer_tells(setting: Setting) -> None:
    setting.upstream.says(answer(20, 30))
    found = ask(setting.url, setting.tokens["counted"], max_tokens=500)
    assert found.status_code == 200
    assert int(found.headers["x-ratelimit-remaining-tokens"]) < 500
    setting.settled("counted", "tokens", 50)
    denied = ask(setting.url, setting.tokens["counted"], max_tokens=960)
    assert denied.status_code == 429
    assert denied.json()["error"]["code"] == "rate_limited"
    assert denied.headers["x-ratelimit-remaining-tokens"] == "950"
    never = ask(setting.url, setting.tokens["counted"], max_tokens=5000)
    assert never.json()["error"]["code"] == "rate_limited"
    assert "retry-after" not in never.headers
    setting.upstream.streams([*chat_sse("twelve chars")[:-1], usage_event(7, 3), b"data: [DONE]\n\n"])
    with setting.openai("counted").chat.completions.create(
        model="sample-small", max_tokens=20, stream=True, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        assert stream.response.headers["x-ratelimit-limit-tokens"] == "1000"
        assert "".join(each.choices[0].delta.content or "" for each in stream if each.choices) == "twelve chars"
    setting.settled("counted", "tokens", 60)


def usage_event(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "sample-small", "choices": []}
    return b"data: " + json.dumps({**event, "usage": usage}).encode() + b"\n\n"


def test_spending_is_counted_by_the_price_table(setting: Setting) -> None:
    setting.upstream.says(answer(100, 20, cached=40))
    assert ask(setting.url, setting.tokens["paid"], max_tokens=20).status_code == 200
    setting.settled("paid", "spend", 0.00028)  # 60 at 1, 40 at 0.5, 20 at 10 for a million
    found = ask(setting.url, setting.tokens["paid"], model="other")
    assert (found.status_code, found.json()["error"]["code"]) == (403, "model_unpriced")
    dear = ask(setting.url, setting.tokens["paid"], max_tokens=90)
    assert (dear.status_code, dear.json()["error"]["code"]) == (429, "budget_exhausted")
    row = next(each for each in rows(setting.folder, 1) if each["caller"] == "user-paid")
    told = (row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["tokens_estimated"], row["cost"])
    assert told == (100, 20, 40, 0, 0.00028)
    shown = CliRunner().invoke(main, ["flows", "show", row["id"], "--policy", str(setting.policy)]).output
    assert "100 in (40 of them cached), 20 out, cost 0.000280" in shown
    everything = CliRunner().invoke(main, ["flows", "list", "--policy", str(setting.policy)]).output
    assert " 100+20 " in everything


def test_anthropic_reads_its_own_header_fields(setting: Setting) -> None:
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "sample-small",
        "stop_reason": "end_turn",
    }
    whole = {**message, "stop_sequence": None, "content": [{"type": "text", "text": "hello"}], "usage": usage}
    setting.upstream.says(http_answer(json.dumps(whole).encode()))
    client, said = setting.anthropic("claude"), [{"role": "user", "content": "hi"}]
    raw = client.messages.with_raw_response.create(model="sample-small", max_tokens=10, messages=said)
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "4"
    assert raw.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    setting.settled("claude", "tokens", 25)
    for _ in range(4):
        client.messages.create(model="sample-small", max_tokens=10, messages=said)
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(model="sample-small", max_tokens=10, messages=said)
    assert refused.value.body["error"]["type"] == "rate_limit_error"


def test_a_client_that_leaves_pays_for_what_came(setting: Setting) -> None:
    setting.upstream.streams(chat_sse("word " * 20, size=5)[:-2], end=False)
    with (
        contextlib.suppress(httpx.HTTPError),
        httpx.stream(
            "POST",
            f"{setting.url}/openai/v1/chat/completions",
            json={
                "model": "sample-small",
                "stream": True,
                "max_tokens": 50,
                "messages": [{"role": "user", "content": "x"}],
            },
            headers={"authorization": f"Bearer {setting.tokens['single']}"},
            timeout=10,
        ) as stream,
    ):
        busy = ask(setting.url, setting.tokens["single"])
        assert (busy.status_code, busy.json()["error"]["code"]) == (429, "too_many_concurrent")
        assert busy.headers["x-should-retry"] == "true"
        for _ in zip(range(12), stream.iter_lines(), strict=False):
            pass
    until = time.monotonic() + 15
    setting.upstream.says(answer(3, 4))
    while (again := ask(setting.url, setting.tokens["single"])).status_code == 429 and time.monotonic() < until:
        time.sleep(0.1)
    assert again.status_code == 200
    left = next(each for each in rows(setting.folder, 1) if each["caller"] == "user-single" and each["streamed"])
    assert left["tokens_estimated"] == 1
    assert 1 <= left["output_tokens"] <= 25


def test_fifty_at_once_across_two_processes_pass_ten(tmp_path: Path) -> None:
    budgets = {"ten": {"requests": "10/1d", "per": "everyone"}}
    with Upstream() as upstream:
        first = write(tmp_path, upstream.url, budgets, state={"path": "shared.db"})
        recording = {"mode": "strict", "keep": "redacted", "path": "other.db"}
        second = write(tmp_path, upstream.url, budgets, "second.yaml", state={"path": "shared.db"}, recording=recording)
        secret = token(tmp_path)
        with (
            tidegate_run(first) as one,
            tidegate_run(second) as two,
            concurrent.futures.ThreadPoolExecutor(50) as threads,
        ):
            urls = [one.url, two.url] * 25
            found = [each.status_code for each in threads.map(lambda url: ask(url, secret), urls)]
        assert sorted(found) == [200] * 10 + [429] * 40
        assert len(upstream.requests) == 10


def test_a_killed_process_frees_its_seats_and_a_restart_keeps_the_counts(tmp_path: Path) -> None:
    budgets = {"seat": {"concurrent": 1, "requests": "3/1d"}}
    with Upstream() as upstream, concurrent.futures.ThreadPoolExecutor(2) as threads:
        written, secret = write(tmp_path, upstream.url, budgets), token(tmp_path)
        upstream.streams(chat_sse("never ends")[:2], end=False)
        with tidegate_run(written) as gate:
            threads.submit(lambda: contextlib.suppress(httpx.HTTPError) and _quietly(gate.url, secret))
            until = time.monotonic() + 15
            while not upstream.requests and time.monotonic() < until:
                time.sleep(0.05)
            gate.process.send_signal(signal.SIGKILL)
            gate.wait()
        age(tmp_path / "control.db")
        upstream.says(answer(3, 4))
        with tidegate_run(written) as gate:
            found = [ask(gate.url, secret).status_code for _ in range(3)]
        assert found == [200, 200, 429]


def _quietly(url: str, secret: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        ask(url, secret, stream=True)


def age(path: Path) -> None:
    """Let the time pass after which a silent process is dead."""
    from sqlite_utils.utils import sqlite3

    db = sqlite3.connect(path)
    db.execute("UPDATE budget_owner SET until = until - 60")
    db.commit()
    db.close()


def test_without_the_store_nothing_passes(tmp_path: Path) -> None:
    with Upstream() as upstream:
        written, secret = write(tmp_path, upstream.url, {"any": {"requests": "100/1m"}}), token(tmp_path)
        with tidegate_run(written) as gate:
            assert ask(gate.url, secret).status_code == 200
            before = len(upstream.requests)
            from sqlite_utils.utils import sqlite3

            db = sqlite3.connect(tmp_path / "control.db", isolation_level=None)
            db.execute("DROP TABLE budget_counter")
            db.close()
            found = ask(gate.url, secret)
            assert (found.status_code, found.json()["error"]["code"]) == (503, "state_unavailable")
            assert len(upstream.requests) == before


def completed(text: str, usage: Mapping[str, int]) -> Any:
    """Answer a message of the Responses API, and tell the tokens."""

    async def play(socket: Any, _: dict[str, Any]) -> None:
        from tests.e2e.socket_peer import answer as events

        for event in events(text):
            if event["type"] == "response.completed":
                event["response"]["usage"] = usage
            await socket.send(json.dumps(event))

    return play


def test_a_websocket_has_a_seat_and_pays_for_each_answer(tmp_path: Path) -> None:
    from tests.e2e import test_socket as sockets

    budgets = {"live": {"tokens": "600/1h", "requests": "100/1h", "concurrent": 1, "answer": 200}}
    with sockets.a_rig(tmp_path, budgets=budgets, roles={"dev": role("live")}, **QUICK) as rig:
        rig.upstream.plays = completed("hello", {"input_tokens": 150, "output_tokens": 100, "total_tokens": 250})
        with rig.open() as socket:
            assert socket.response is not None
            assert socket.response.headers["x-ratelimit-remaining-tokens"] == "400"
            assert rig.refused() == (429, "too_many_concurrent")
            for _ in range(2):
                sockets.ask(socket)
                assert sockets.text_of(sockets.hear(socket)) == "hello"
            events, code = sockets.end_of(socket)
        assert [(each["type"], each["error"]["code"]) for each in events] == [("error", "rate_limited")]
        assert code == 1008
        row = rig.row(socket)
        assert (row["reason"], row["input_tokens"], row["output_tokens"]) == ("rate_limited", 300, 200)
        until = time.monotonic() + 15
        while rig.refused() != (429, "rate_limited"):
            assert time.monotonic() < until
            time.sleep(0.1)
        used = {(each["metric"]): each["used"] for each in listed(tmp_path / "policy.yaml")}
        assert used == {"tokens": 500, "requests": 1}


def test_a_grpc_call_is_refused_with_its_own_status(tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from tests.e2e import test_grpc as calls
    from tests.protos import open_inference

    (tmp_path / "set.binpb").write_bytes(open_inference())
    with calls.Peer() as peer:
        connection = {"name": "models", "dialect": "open-inference-grpc", "descriptors": "set.binpb"}
        changes: dict[str, Any] = {
            **QUICK,
            "dialects": ["dialects/open-inference-grpc.yaml"],
            "connections": [{**connection, "upstream": peer.url, "serve": {"path": "/"}}],
            "budgets": {"two": {"requests": "2/1h", "tokens": "100000/1h"}},
            "roles": {"dev": role("two")},
        }
        written = policy(tmp_path, peer.url, **changes)
        secret = token(tmp_path)
        with tidegate_run(written) as gate, calls.reaching(gate.port) as channel:
            setting = calls.Setting(gate, peer, secret, channel)
            for _ in range(2):
                assert calls.texts(setting.infer(calls.infer_request("hello"))) == ["You said: hello"]
            with pytest.raises(grpc.RpcError) as refused:
                setting.infer(calls.infer_request("hello"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "(reason rate_limited, request ex_" in refused.value.details()
        told = [each["tokens_estimated"] for each in rows(tmp_path, 3) if each["outcome"] == "answered"]
        assert told == [1, 1]


def test_the_command_lists_gives_back_and_says_who_did(setting: Setting) -> None:
    setting.upstream.says(answer(3, 4))
    for _ in range(3):
        last = ask(setting.url, setting.tokens["two"])
    assert last.status_code == 429
    own = ["--policy", str(setting.policy)]
    run = CliRunner()
    shown = run.invoke(main, ["budgets", "list", "--budget", "two", *own]).output
    assert "caller=local:user-two" in shown
    assert "100%" in shown
    assert "2 in 1d" in shown
    lost = run.invoke(main, ["budgets", "reset", "two", "--holder", "caller=local:nobody", *own])
    assert lost.exit_code == 1
    assert "found nothing in use of the budget 'two' by 'caller=local:nobody'" in lost.output
    given = run.invoke(main, ["budgets", "reset", "two", "--holder", "caller=local:user-two", *own])
    assert given.output == "Given back: 1 counter of two.\n"
    assert ask(setting.url, setting.tokens["two"]).status_code == 200
    told = json.loads(run.invoke(main, ["budgets", "resets", "--json", *own]).output.splitlines()[0])
    assert (told["budget"], told["holder"], told["counters"]) == ("two", "caller=local:user-two", 1)
    assert "user-two" in run.invoke(main, ["budgets", "resets", *own]).output
    for words in (["list"], ["reset", "two"], ["resets"]):
        absent = run.invoke(main, ["budgets", *words, "--policy", str(setting.folder / "none.yaml")])
        assert absent.exit_code == 1
