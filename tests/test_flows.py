"""`tidegate flows search | tail | stats | open | import`, over recordings made for it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mitmproxy import http
from mitmproxy.addons.savehar import SaveHar
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

from tidegate.cli import main
from tidegate.evidence import queries
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.store import Recorder
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.verify import verify
from tidegate.model import Action, Finding, Outcome, Reason
from tidegate.policy.policy import Keep
from tidegate.replay.flows import encode, safe_state

FOUND = Finding("pii.email", "pii", "$.messages[0].content", 5, 25, Action.REDACT)
WORDS = ("Harbour lights", "tide tables", "Tide of harbour")


def flow(text: str) -> http.HTTPFlow:
    made = tflow.tflow(resp=True)
    made.request.content = json.dumps({"content": text}).encode()
    made.response.content = f"answer about {text}".encode()
    return made


def add(path: Path, first: int, texts: tuple[str, ...]) -> None:
    async def run() -> None:
        recorder = Recorder(path, encode, settings=Settings(private=True))
        recorder.start()
        for at, text in enumerate(texts, first):
            record = ExchangeRecord(
                f"ex_{at}", at * 1_000_000, "POST", "/x", identity="corp", caller="alice" if at % 2 else "bob",
                connection="openai", endpoint="chat", model="sample", duration_us=at * 1000, request_bytes=10,
                outcome=Outcome.ANSWERED, prompt_findings=(FOUND,) * at,
            )  # fmt: skip
            recorder.seal(record, safe_state(flow(text), Keep.REDACTED, record.id))
        denied = ExchangeRecord(f"ex_9{first}", 1, "POST", "/x", outcome=Outcome.DENIED, reason=Reason.FINDING)
        recorder.seal(denied, None)
        recorder.close()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rec" / "tidegate.db"
    add(path, 1, WORDS)
    return path


def run(*words: str | Path) -> Any:
    done = CliRunner().invoke(main, [str(each) for each in words])
    assert done.exit_code == 0, done.output
    return done


def ids(done: Any) -> list[str]:
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("index", [(), ("--index",)], ids=["scan", "index"])
@pytest.mark.parametrize(
    ("text", "more", "found"),
    [
        ("harbour", (), ["ex_3", "ex_1"]), ("TIDE harbour", (), ["ex_3"]), ("tables", (), ["ex_2"]),
        ("nowhere", (), []), ("answer", ("--limit", "2"), ["ex_3", "ex_2"]), ("answer", ("--caller", "bob"), ["ex_2"]),
        ("answer", ("--caller", "corp:alice"), ["ex_3", "ex_1"]), ('tide" OR "x', (), []),
    ],
)  # fmt: skip
def test_search(path: Path, index: tuple[str, ...], text: str, more: tuple[str, ...], found: list[str]) -> None:
    assert ids(run("flows", "search", text, "--recording", path, "--json", *index, *more)) == found


def test_an_index_is_kept_up_and_goes_when_a_caller_is_erased(path: Path) -> None:
    run("flows", "search", "x", "--recording", path, "--index")
    add(path, 4, ("late lighthouse",))
    assert ids(run("flows", "search", "lighthouse", "--recording", path, "--json")) == ["ex_4"]
    assert b"Harbour" in Files(path).index.read_bytes()
    run("evidence", "erase", "corp:alice", "--yes", "--recording", path)
    assert not Files(path).index.exists()
    assert ids(run("flows", "search", "harbour", "--recording", path, "--json", "--index")) == []
    assert ids(run("flows", "search", "tide", "--recording", path, "--json")) == ["ex_2"]


def test_a_search_is_told_without_its_words(path: Path) -> None:
    run("flows", "search", "lighthouse", "--recording", path)
    subjects = Subjects(Files(path).keys)
    told = subjects.told()
    subjects.close()
    assert [(kind, detail.partition(" by ")[0]) for _, kind, detail in told] == [
        ("read", "flows search over 4 exchanges")
    ]


def test_stats(path: Path) -> None:
    found = json.loads(run("flows", "stats", "--recording", path, "--json").stdout)
    assert found["exchanges"] == 4
    assert found["outcome"] == {"answered": 3, "denied": 1}
    assert found["caller"] == {"alice": 2, "bob": 1}
    assert found["rule"] == {"pii.email": 6}
    assert found["ms"] == {"p50": 2.0, "p95": 3.0, "p99": 3.0}
    assert found["request_bytes"] == 30
    text = run("flows", "stats", "--recording", path).stdout
    assert "findings of" in text
    assert "pii.email" in text
    assert json.loads(run("flows", "stats", "--recording", path, "--since", "1d", "--json").stdout)["exchanges"] == 0


def test_tail(path: Path) -> None:
    assert ids(run("flows", "tail", "--once", "--json", "--recording", path)) == ["ex_1", "ex_2", "ex_3", "ex_91"]
    lines = run("flows", "tail", "--once", "--limit", "1", "--recording", path).stdout.splitlines()
    assert lines == ["00:00:00  ex_91  denied: finding"]


def test_tail_goes_on_with_what_comes(path: Path) -> None:
    command = [sys.executable, "-m", "tidegate", "flows", "tail", "--json", "--recording", str(path)]
    if not (Path(queries.__file__).parents[1] / "__main__.py").exists():
        command = [str(Path(sys.executable).with_name("tidegate")), *command[3:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen = [json.loads(process.stdout.readline())["id"] for _ in range(4)]
        add(path, 4, ("late",))
        seen += [json.loads(process.stdout.readline())["id"] for _ in range(2)]
        process.terminate()
    assert set(seen[4:]) == {"ex_4", "ex_94"}


@pytest.mark.parametrize("form", ["mitm", "har"])
def test_import(tmp_path: Path, form: str) -> None:
    source, into = tmp_path / f"flows.{form}", tmp_path / "in" / "imported.db"
    made = [flow(each) for each in WORDS]
    if form == "mitm":
        with source.open("wb") as file:
            for each in made:
                FlowWriter(file).add(each)
    else:
        source.write_text(json.dumps(SaveHar().make_har(made)))
    run("flows", "import", source, "--into", into)
    rows = queries.list_flows(into)
    assert [(row["mode"], row["outcome"], row["status"]) for row in rows] == [("import", "answered", 200)] * 3
    assert len(ids(run("flows", "search", "harbour", "--recording", into, "--json"))) == 2
    assert verify(into).faults == []
    source.write_text("no flows at all")
    bad = CliRunner().invoke(main, ["flows", "import", str(source), "--into", str(into)])
    assert bad.exit_code == 1
    assert "cannot be read as flows" in bad.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_open_shows_the_selection_in_mitmweb(path: Path) -> None:
    port = free_port()
    command = [str(Path(sys.executable).with_name("tidegate")), "flows", "open", "ex_2", "--recording", str(path)]
    command += ["--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = ""
        for line in process.stdout:
            if "token=" in line:
                address = next(word for word in line.split() if "token=" in word)
                break
        token = address.rpartition("token=")[2]
        deadline = time.monotonic() + 20
        found: list[Any] = []
        while not found and time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/flows?token={token}", timeout=10) as answer:
                found = json.load(answer)
        assert [each["comment"] for each in found] == ["answered, corp:bob, pii.email x2"]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
