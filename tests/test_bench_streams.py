"""scripts/bench --streams: what it reads of a corpus, what it measures, and which aims it says are missed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wire import Said, every, stream_of
from tidegate.places import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "_bench_streams.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("_bench_streams", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_bench_streams"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["_bench_streams"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    text = "Here is a plain answer, and jane.doe@example.com is in it. " * 3
    made = [
        ("openai.chat", "https://api.openai.com/v1/chat/completions", "text/event-stream", "chat", 200),
        ("ollama.chat", "http://127.0.0.1/api/chat", "application/x-ndjson", "ollama", 200),
        ("openai.chat", "https://api.openai.com/v1/chat/completions", "text/event-stream", "chat", 500),
        ("elsewhere.chat", "https://example.org/chat", "text/event-stream", "chat", 200),
    ]
    rows = [
        {
            "id": f"row-{number}",
            "api": api,
            "request": {"method": "POST", "url": url},
            "response": {
                "status": status,
                "streaming": True,
                "content_type": label,
                "body": stream_of(name, Said(text), every(4)).decode(),
            },
        }
        for number, (api, url, label, name, status) in enumerate(made)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_recorded_streams_are_measured_delta_by_delta(bench, corpus: Path) -> None:
    found = bench.in_process(corpus, 1, lambda _: None)
    assert found["streams"] == 2
    assert found["redactor"]["deltas"] == found["redactor_without_these"]["deltas"] > 80
    assert found["opened_by_any_word"] == ["pii.email"]
    assert found["redactor"]["mean_held"] > found["redactor_without_these"]["mean_held"]
    assert "pii.email" in found["redactor"]["held_by"]
    assert found["event"]["events"] > 80
    assert found["event"]["p99_us"] >= found["event"]["p50_us"] > 0
    json.dumps(found)


def test_missed_aims_are_named(bench) -> None:
    good = {"mean_held": 0.5, "p50_held": 0, "p50_us": 10.0, "p99_us": 100.0}
    assert bench.missed({"redactor": good, "redactor_without_these": good}) == []
    slow = {**good, "p99_us": 501.0}
    live = {"live streams": 0.4, "full streams": 0.9}
    told = bench.missed({"redactor": slow, "redactor_without_these": good, "processes": live})
    assert told == [
        "microseconds per delta, p99: 501.0, the aim is 500.0",
        "streams per core against stock, live: 0.4, the aim is 0.8",
    ]


def test_without_a_corpus_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--corpus", tmp_path / "none.jsonl"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no recorded streams at" in ran.stderr
