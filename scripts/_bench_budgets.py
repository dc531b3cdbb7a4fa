"""Measure what a budget adds to a request: the same gate with and without, back to back, and the reading of usage.

The budgeted gate counts requests, tokens, spending and concurrency of each caller, with limits that are never reached:
every request takes from four counters and is settled. ``gate`` records with ``mode: best_effort``, where the budget's
commit is the only one that a request waits for; ``strict`` waits for the recording's too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _bench

KINDS = (("gate", "best_effort", False), ("gate+budget", "best_effort", True))
STRICT = (("strict", "strict", False), ("strict+budget", "strict", True))
CONNECTIONS = (1, 16)
EVENTS = 2_000
BUDGET = {"requests": "100000000/1h", "tokens": "1000000000/1h", "spend": "1000000/1d", "concurrent": 10000}
PRICES = "version: 1\ncurrency: USD\nmodels: [{models: ['*'], input: 1, output: 10}]\n"


def policy(folder: Path, issuer: int, target: int, mode: str, *, budget: bool) -> Path:
    """Write the policy of the full gate, with a budget or without."""
    import yaml

    folder.mkdir()
    path = _bench.write_policy(folder, issuer, target, mode)
    if budget:
        document = yaml.safe_load(path.read_text())
        document["roles"]["dev"]["allow"][0]["limits"] = {"budgets": ["bench"]}
        path.write_text(yaml.safe_dump(document | {"budgets": {"bench": BUDGET}, "prices": "prices.yaml"}))
        (folder / "prices.yaml").write_text(PRICES)
    return path


@contextlib.contextmanager
def gates(kinds: tuple[tuple[str, str, bool], ...]) -> Iterator[tuple[list[_bench.Proxy], str]]:
    """Start the upstream and the gates; yields them and the caller's token."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        folder = Path(name)
        children, target, issuer_port = _bench.Children(folder), _bench.free_port(), _bench.free_port()
        server, token = _bench.issuer(issuer_port)
        try:
            children.start("upstream", target, sys.executable, _bench.__file__, "upstream", "--port", target)
            found = []
            for kind, mode, budget in kinds:
                port = _bench.free_port()
                path = policy(folder / kind, issuer_port, target, mode, budget=budget)
                words = ("run", "--policy", path, "--listen", f"127.0.0.1:{port}", "--confdir", folder / "ca")
                process = children.start(kind, port, Path(sys.executable).parent / "tidegate", *words)
                found.append(_bench.Proxy(kind, port, "/openai/v1/chat/completions", process))
            yield found, token
        finally:
            children.stop()
            server.shutdown()
            server.server_close()


def measure(options: argparse.Namespace, found: list[_bench.Proxy], token: str) -> list[_bench.Cell]:
    """Run all rounds, interleaved."""
    cells = {(c, p.name): _bench.Cell("4 KB", c, p.name, []) for c in CONNECTIONS for p in found}
    salts = itertools.count(0, 10_000_000)
    for _, connections, proxy in itertools.product(range(options.rounds), CONNECTIONS, found):
        command = [sys.executable, _bench.__file__, "load", "--port", proxy.port, "--path", proxy.path]
        command += ["--size", 4_000, "--connections", connections, "--seconds", options.seconds]
        command += ["--salt", next(salts), "--token", token]
        before = proxy.cpu()
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
        if ran.returncode:
            raise SystemExit(f"bench: {proxy.name} failed a request:\n{ran.stderr[-2000:]}")
        one = _bench.Measured(**json.loads(ran.stdout))
        one.cpu = (proxy.cpu() - before) / one.sent
        cells[connections, proxy.name].rounds.append(one)
    return list(cells.values())


def added(cells: list[_bench.Cell], connections: int, kind: str, what: str) -> float:
    """Return what a budget adds: the median over the rounds, each pair taken in the same round."""
    pick = {each.proxy: each.rounds for each in cells if each.connections == connections}
    pairs = zip(pick[f"{kind}+budget"], pick[kind], strict=True)
    return round(statistics.median(getattr(a, what) - getattr(b, what) for a, b in pairs), 3)


def reading() -> dict[str, float]:
    """Return the microseconds for each event of a streamed answer, without and with the reading of its tokens."""
    from tidegate.dialects.load import parse_dialect
    from tidegate.inspection.engine import build
    from tidegate.limits.usage import Meter
    from tidegate.model import Action
    from tidegate.streams.answers import AnswerHead, StreamedAnswer

    path = _bench.ROOT / "rules" / "dialects" / "openai.yaml"
    dialect, _ = parse_dialect(path.read_text(), path.name)
    assert dialect is not None
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]
    stream = b"".join(b"data: %s\n\n" % json.dumps({**chunk, "choices": choices}).encode() for _ in range(EVENTS))
    took: dict[bool, list[float]] = {False: [], True: []}
    engine = build((), None)
    for _, metered in itertools.product(range(5), (False, True)):
        head = AnswerHead("text/event-stream", 200)
        answer = StreamedAnswer(dialect.endpoints["chat"], dialect.error, engine, lambda _: Action.ALLOW, "ex_1", head)
        answer.meter = Meter(dialect.usage.counts["chat"]) if metered else None
        began = time.perf_counter()
        answer.feed(stream)
        took[metered].append((time.perf_counter() - began) * 1e6 / EVENTS)
    return {"without": round(min(took[False]), 2), "with": round(min(took[True]), 2)}


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench --budgets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure, and print what a budget adds."""
    options = arguments(words)
    found: dict[str, Any] = {"added_ms": {}, "usage_us_per_event": reading()}
    cells: list[_bench.Cell] = []
    for kinds in (KINDS, STRICT):
        with gates(kinds) as (proxies, token):
            cells += measure(options, proxies, token)
    for kind, connections in itertools.product(("gate", "strict"), CONNECTIONS):
        figures = {what: added(cells, connections, kind, what) for what in ("p50", "p99", "cpu")}
        found["added_ms"][f"{kind}, c{connections}"] = figures
    if options.json:
        print(json.dumps(found | {"measured": [asdict(each) for each in cells]}))
        return
    for cell in cells:
        told = ", ".join(f"{what} {cell.median(what):.2f} ms" for what in ("p50", "p99", "cpu"))
        print(f"{cell.proxy:>14}, {cell.connections:>2} connections: {cell.median('rate'):6.0f} req/s, {told}")
    for name, figures in found["added_ms"].items():
        told = ", ".join(f"{what} {value:+.2f} ms" for what, value in figures.items())
        print(f"a budget adds ({name}): {told}")
    usage = found["usage_us_per_event"]
    print(f"an event of a stream: {usage['without']} us, with its tokens read {usage['with']} us")
