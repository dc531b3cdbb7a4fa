"""Measure the recording: what strict mode adds, rows a second, bytes for each exchange, how fast it is verified.

Made-up chats of a few kilobytes go through the recorder as a gate uses it: pseudonyms, bodies compressed and encrypted,
a signed log. Compare ratios, not absolutes: a disk's sync is most of what strict mode adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlite_utils.utils import sqlite3

from tidegate.evidence import queries
from tidegate.evidence.files import Files
from tidegate.evidence.index import Index
from tidegate.evidence.ledger import Settings
from tidegate.evidence.records import ExchangeRecord
from tidegate.evidence.store import BATCH, LINGER, Recorder
from tidegate.evidence.verify import verify
from tidegate.model import Action, Decision, Finding, Outcome
from tidegate.replay.flows import encode

SAID = "harbour keeper reads tables of tides and notes each ship that waits outside for water under its keel"
WORDS = SAID.split(" ")
FOUND = Finding("pii.email", "pii", "$.messages[1].content", 5, 25, Action.REDACT)
DECISIONS = tuple(
    Decision(stage, "allow", None, "openai/chat") for stage in ("route", "caller", "grant", "prompt", "answer")
)


def exchange(at: int, *, ended: bool) -> ExchangeRecord:
    """Make a record as a gate makes it."""
    return ExchangeRecord(
        f"ex_{at:021x}", 1_700_000_000_000_000 + at, "POST", "/openai/v1/chat/completions", identity="corp",
        caller=f"caller{at % 50}", connection="openai", endpoint="chat", model="sample", policy_sha="ab" * 32,
        request_bytes=4000, response_bytes=800, prompt_findings=(FOUND,) if at % 3 == 0 else (),
        outcome=Outcome.ANSWERED if ended else None, status=200 if ended else None, duration_us=1000 if ended else None,
        decisions=DECISIONS if ended else (),
    )  # fmt: skip


def state(chosen: random.Random) -> dict[str, Any]:
    """Make a flow state with a chat of about four kilobytes."""
    turns = [{"role": "user", "content": " ".join(chosen.choices(WORDS, k=180))} for _ in range(4)]
    said = {"choices": [{"message": {"role": "assistant", "content": " ".join(chosen.choices(WORDS, k=100))}}]}
    return {
        "request": json.dumps({"model": "sample", "messages": turns}).encode(),
        "response": json.dumps(said).encode(),
    }


def shares(took: list[float]) -> dict[str, float]:
    """Return median and tail in milliseconds."""
    took.sort()
    return {"p50": round(statistics.median(took) * 1000, 3), "p99": round(took[len(took) * 99 // 100] * 1000, 3)}


async def strict(recorder: Recorder, many: int, rate: float) -> dict[str, float]:
    """Measure how long an exchange waits for its intent, at a steady rate."""
    took, due = [], time.perf_counter()
    for at in range(many):
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        begun = time.perf_counter()
        await recorder.intent(exchange(at, ended=False))
        took.append(time.perf_counter() - begun)
    return shares(took)


def best_effort(recorder: Recorder, many: int) -> dict[str, float]:
    """Measure how long the event loop is kept by handing over a record."""
    chosen, took = random.Random(1), []
    for at in range(many):
        kept, record = state(chosen), exchange(10_000_000 + at, ended=True)
        begun = time.perf_counter()
        recorder.seal(record, kept)
        took.append(time.perf_counter() - begun)
        if at % BATCH == 0:
            time.sleep(LINGER)
    return shares(took)


def fill(recorder: Recorder, many: int) -> tuple[float, float]:
    """Write exchanges with bodies as fast as the disk takes them; return exchanges a second: of time, of processor."""
    chosen = random.Random(2)
    states = [state(chosen) for _ in range(200)]
    begun, worked = time.perf_counter(), time.process_time()
    for at in range(many):
        recorder.seal(exchange(20_000_000 + at, ended=True), states[at % 200])
        if at % BATCH == 0:
            recorder.drain()
    recorder.close()
    return many / (time.perf_counter() - begun), many / (time.process_time() - worked)


def timed(work: Any, times: int = 5) -> dict[str, float]:
    """Return the median milliseconds of some calls: of time, and of processor time."""
    took, worked = [], []
    for _ in range(times):
        begun, before = time.perf_counter(), time.process_time()
        work()
        took.append((time.perf_counter() - begun) * 1000)
        worked.append((time.process_time() - before) * 1000)
    return {"time": round(statistics.median(took), 1), "processor": round(statistics.median(worked), 1)}


NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + {step} FROM n WHERE i + {step} < {many})"


def large(folder: Path, many: int) -> dict[str, Any]:
    """Measure lists and filters over many exchanges, whose rows are made by SQLite itself."""
    path = folder / "large" / "tidegate.db"
    made = Recorder(path, encode)
    made.start()
    made.close()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    db.execute(
        f"{NUMBERS.format(step=1, many=many)} INSERT INTO exchange (id, started_us, method, path, mode, policy_sha, "
        "streamed, findings, outcome, caller, identity, connection, endpoint, model, status, request_bytes, "
        "response_bytes, duration_us) SELECT printf('ex_%021d', i), i * 1000000, 'POST', '/openai/v1/chat', "
        "'enforce', printf('%064d', 7), 0, i % 3 = 0, iif(i % 100 = 0, 'denied', 'answered'), 'c' || (i % 5000), "
        "'corp', 'openai', 'chat', 'm' || (i % 7), 200, 4000, 800, 1000 FROM n"
    )
    db.execute(
        f"{NUMBERS.format(step=3, many=many)} INSERT INTO finding SELECT printf('ex_%021d', i), 0, 'prompt', "
        "iif(i % 30000 = 0, 'rare', 'pii.email'), 'pii', 'x', 0, 1, 'redact', NULL, NULL FROM n"
    )
    db.close()
    asked: dict[str, dict[str, Any]] = {
        "list": {}, "outcome": {"outcome": "denied"}, "caller": {"caller": "c77"}, "nobody": {"caller": "nobody"},
        "rule": {"rule": "pii.email"}, "rare_rule": {"rule": "rare"},
    }  # fmt: skip
    return {
        f"{many:,} {name} ms": timed(lambda more=more: queries.list_flows(path, **more)) for name, more in asked.items()
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything once."""
    path = folder / "rec" / "tidegate.db"

    def started(at: Path) -> Recorder:
        made = Recorder(at, encode, settings=Settings(private=True))
        made.start()
        return made

    first = started(folder / "strict" / "tidegate.db")
    found: dict[str, Any] = {"strict_ms": asyncio.run(strict(first, options.requests, options.rate))}
    found["best_effort_ms"] = best_effort(first, options.requests)
    first.close()
    many = options.exchanges
    pace, worked_pace = fill(started(path), many)
    found["exchanges_a_second"] = round(pace)
    with queries.reading(path) as db:
        tables = ("exchange", "finding", "decision", "flow_state", "leaf")
        rows = sum(db.execute(f"SELECT count(*) FROM {each}").fetchone()[0] for each in tables)
    found["rows_a_second"] = round(pace * rows / many)
    found["rows_a_second_of_processor_time"] = round(worked_pace * rows / many)
    size = sum(file.stat().st_size for _, file in Files(path).segments())
    found["bytes_per_exchange"] = round(size / many)
    begun, worked = time.perf_counter(), time.process_time()
    report = verify(path)
    took, worked = time.perf_counter() - begun, time.process_time() - worked
    assert report.sound, report.faults
    found["leaves"] = report.leaves
    found["leaves_verified_a_second"] = round(report.leaves / took)
    found["leaves_verified_a_second_of_processor_time"] = round(report.leaves / worked)
    found["list_ms"] = timed(lambda: queries.list_flows(path))
    found["filter_ms"] = timed(lambda: queries.list_flows(path, caller="caller7", outcome="answered"))
    found["by_rule_ms"] = timed(lambda: queries.list_flows(path, rule="pii.email"))
    index = Index(folder / "index")
    index.add([(f"ex_{at:021x}", " ".join(WORDS), f"word{at}") for at in range(min(many, 100_000))])
    found["index_search_ms"] = timed(lambda: index.search("harbour keel word77", 20))
    index.close()
    if options.many:
        found |= large(folder, options.many)
    return found


def main(words: list[str]) -> int:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench --evidence", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--exchanges", type=int, default=20_000, help="recorded with bodies (default 20,000)")
    parser.add_argument("--requests", type=int, default=500, help="measured one by one (default 500)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of strict mode (default 200)")
    parser.add_argument("--many", type=int, default=0, help="list and filter so many exchanges too, such as 1000000")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        found = measure(options, Path(folder))
    if options.json:
        sys.stdout.write(f"{json.dumps(found)}\n")
        return 0
    view = Table("what", "measured", box=None, header_style="bold", pad_edge=False)
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,}"
        view.add_row(name.replace("_", " "), text)
    Console().print(view)
    return 0
