"""Measure live masking: what a delta costs, what is held back, and whole streams through a gate beside stock mitmdump.

The deltas are those of recorded streams, one JSON exchange a line (``--corpus``). Redactor and events are measured in
this process, in processor time, warmed and interleaved; a delta's figure is its median over the rounds. Streams are
measured through processes: one that is both the upstream and the client, so that it knows when each event left, and
the proxies in between. Compare ratios, not absolutes; processor time is what a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "corpora" / "wire-dev.jsonl.gz"
FAMILIES = {"openai": "openai", "anthropic": "anthropic", "cohere": "cohere", "gemini": "gemini", "bedrock": "bedrock"}
FAMILIES |= {"ollama": "ollama"}
WORDS = (" harbour", " Orders", " last")
"""What opens a rule that any word can open: each of these alone could be the beginning of its match."""
AIMS = {
    "mean_held": 5.0, "mean_held_closed": 1.0, "median_held": 0, "p50_us": 60.0, "p99_us": 500.0, "streams": 0.8,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ recorded streams


@dataclass
class Stream:
    """One recorded stream: its API, its frames as they came, and the texts its channels were given."""

    name: str
    endpoint: Any
    shape: Any
    label: str
    frames: list[bytes]
    deltas: list[tuple[int, str]] = field(default_factory=list)


def streams(corpus: Path, policy_dialects: Any) -> Iterator[Stream]:
    """Read the streams of the corpus that a shipped dialect describes."""
    from tidegate.streams import framings

    opener = gzip.open if corpus.suffix == ".gz" else open
    with opener(corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            name, answer = row["api"].partition(".")[0], row["response"]
            dialect = policy_dialects.get(FAMILIES.get(name, ""))
            if dialect is None or not answer.get("streaming") or answer["status"] >= 300:
                continue
            endpoint = _endpoint(dialect, row["request"])
            body = _bytes(answer)
            if endpoint is None or endpoint.stream is None or not body:
                continue
            label = answer["content_type"].partition(";")[0].strip().lower()
            kind = framings.find(body, label, endpoint.stream.framings, final=True)
            if kind not in framings.MAKERS:
                continue
            framing = framings.MAKERS[kind]()
            frames = [frame.raw for frame in [*framing.feed(body), *framing.end()]]
            yield Stream(row["id"], endpoint, dialect.error, label, frames)


def _endpoint(dialect: Any, request: dict[str, Any]) -> Any:
    from tidegate.dialects.addresses import match

    path = urllib.parse.urlsplit(request["url"]).path.replace("<", "").replace(">", "")
    words = path.split("/")
    tries = ["/" + "/".join(words[at:]) for at in range(1, len(words))]
    tries += ["/v1" + each for each in tries]  # some servers leave out the version
    return next((found for each in tries if (found := match(dialect, request["method"], each)) is not None), None)


def _bytes(message: dict[str, Any]) -> bytes:
    body = message["body"]
    if message.get("body_encoding") == "base64":
        return base64.b64decode(body)
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else b""


# ------------------------------------------------------------------------------------------------ in this process


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which ``part`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def listen(found: Sequence[Stream], engine: Any, decide: Callable[[Any], Any]) -> None:
    """Send every stream through the gate once, and write down what text each of its channels is given."""
    from tidegate.streams.answers import AnswerHead, StreamedAnswer
    from tidegate.streams.redactor import Redactor
    from tidegate.streams.texts import Texts

    numbers: dict[int, int] = {}
    given: list[tuple[int, str]] = []
    kept: list[Redactor] = []  # so that no two have the same id

    class Listening(Redactor):
        def feed(self, text: str) -> Any:
            if text:
                kept.append(self)
                given.append((numbers.setdefault(id(self), len(numbers)), text))
            return super().feed(text)

    usual = Texts.redactor
    Texts.redactor = lambda self: Listening(self._engine, self._decide, _label)  # type: ignore[method-assign]
    try:
        for stream in found:
            gate = StreamedAnswer(stream.endpoint, stream.shape, engine, decide, "ex-1", AnswerHead(stream.label, 200))
            given.clear()
            for frame in stream.frames:
                gate.feed(frame)
            gate.end()
            stream.deltas = list(given)
    finally:
        Texts.redactor = usual  # type: ignore[method-assign]


def _label(rule: Any) -> str:
    return str(rule.id)


@dataclass
class Held:
    """What deltas cost in microseconds, and how many characters were held after each."""

    costs: list[float]
    held: list[int]
    by_rule: Counter[str] = field(default_factory=Counter)
    slow: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        none = sum(not each for each in self.held) / max(1, len(self.held))
        return {
            "deltas": len(self.held),
            "p50_us": round(percentile(self.costs, 0.5), 1),
            "p99_us": round(percentile(self.costs, 0.99), 1),
            "mean_us": round(statistics.fmean(self.costs), 1),
            "mean_held": round(statistics.fmean(self.held), 2),
            "p50_held": percentile(self.held, 0.5),
            "p99_held": percentile(self.held, 0.99),
            "max_held": max(self.held),
            "nothing_held": round(none, 3),
            "held_by": {rule: round(number / len(self.held), 3) for rule, number in self.by_rule.most_common(8)},
        }


def redactors(found: Sequence[Stream], engine: Any, decide: Callable[[Any], Any], rounds: int) -> Held:
    """Measure the redactors of all channels alone, delta by delta."""
    from tidegate.streams.redactor import Redactor

    clock = time.thread_time_ns
    costs: list[list[int]] = []
    held: list[int] = []
    by_rule: Counter[str] = Counter()
    for turn in range(rounds + 1):  # the first warms what is made on demand
        number = 0
        for stream in found:
            channels: dict[int, Redactor] = {}
            for channel, text in stream.deltas:
                redactor = channels.get(channel)
                if redactor is None:
                    redactor = channels[channel] = Redactor(engine, decide, _label)
                begin = clock()
                redactor.feed(text)
                took = clock() - begin
                if turn == 0:
                    costs.append([])
                    held.append(redactor.held)
                    for rule in _holding(redactor, engine):
                        by_rule[rule] += redactor.held
                else:
                    costs[number].append(took)
                number += 1
    return Held([statistics.median(each) / 1000 for each in costs], held, by_rule)


def _holding(redactor: Any, engine: Any) -> Iterator[str]:
    """Name the rules that hold back all that is held."""
    walk = redactor._walk  # noqa: SLF001 - what holds is nobody else's business
    if not redactor.held:
        return
    start = walk.free - walk.base
    for index in engine.live(walk.buffer[max(0, walk.limit - walk.base - 1) :]):
        compiled = engine.compiled[index]
        first = (compiled.begun or compiled.starts)(walk.buffer, max(0, start - compiled.longest), len(walk.buffer))
        if index in walk._masking and 0 <= first[0][0] <= start:  # noqa: SLF001 - the same
            yield compiled.rule.id


def opened_by_words(engine: Any, decide: Callable[[Any], Any]) -> set[str]:
    """Return the ids of the rules that any word can open."""
    from tidegate.model import Action

    found: Counter[str] = Counter()
    for word in WORDS:
        data = f"the{word}".encode()
        for index in engine.live(data):
            compiled = engine.compiled[index]
            hit = compiled.live.search(data, 3)
            if decide(compiled.rule) is not Action.ALLOW and hit and hit.start() <= 4:
                found[compiled.rule.id] += 1
    return {rule for rule, number in found.items() if number == len(WORDS)}


def events(found: Sequence[Stream], engine: Any, decide: Callable[[Any], Any], rounds: int) -> list[float]:
    """Measure whole events: frame read, parsed, walked, redacted, written."""
    from tidegate.streams.answers import AnswerHead, StreamedAnswer

    clock = time.thread_time_ns
    costs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for turn in range(rounds + 1):
        for at, stream in enumerate(found):
            gate = StreamedAnswer(stream.endpoint, stream.shape, engine, decide, "ex-1", AnswerHead(stream.label, 200))
            for number, frame in enumerate(stream.frames):
                begin = clock()
                gate.feed(frame)
                if turn:
                    costs[at, number].append(clock() - begin)
    return [statistics.median(each) / 1000 for each in costs.values()]


def in_process(corpus: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure redactor and events over all recorded streams, under the shipped policy."""
    from tidegate.inspection.cache import DiskCache
    from tidegate.model import Action, Direction
    from tidegate.policy.loading import load

    policy = load(ROOT / "rules" / "policy.yaml", engine_cache=DiskCache())
    engine, decide = policy.engine, policy.decide(Direction.RESPONSE)
    found = list(streams(corpus, policy.dialects))
    if not found:
        raise SystemExit(f"bench: {corpus} holds no stream of a shipped dialect")
    say(f"{len(found)} recorded streams")
    listen(found, engine, decide)
    opened = opened_by_words(engine, decide)

    def closed(rule: Any) -> Any:
        return Action.ALLOW if rule.id in opened else decide(rule)

    say("redactors, every rule")
    every = redactors(found, engine, decide, rounds)
    say(f"redactors, without {', '.join(sorted(opened)) or 'any'}")
    fewer = redactors(found, engine, closed, rounds)
    say("events")
    whole = events(found, engine, decide, max(1, rounds // 2))
    return {
        "streams": len(found),
        "rules": sum(decide(each.rule) is not Action.ALLOW for each in engine.compiled),
        "opened_by_any_word": sorted(opened),
        "redactor": every.report(),
        "redactor_without_these": fewer.report(),
        "event": {
            "events": len(whole),
            "p50_us": round(percentile(whole, 0.5), 1),
            "p99_us": round(percentile(whole, 0.99), 1),
            "mean_us": round(statistics.fmean(whole), 1),
        },
    }


# ------------------------------------------------------------------------------------------------ through processes


@dataclass
class Carried:
    """One run of streams through one proxy: milliseconds, and processor time of the proxy for each event in us."""

    streams: int
    events: int
    first: float
    p50: float
    p99: float
    rate: float
    cpu: float = 0.0


class Both:
    """The upstream and the clients in one process: it knows when an event left, and when it arrived."""

    def __init__(self, options: argparse.Namespace, recorded: list[list[bytes]]) -> None:
        self.options = options
        self.recorded = recorded
        self.sent: dict[int, list[float]] = {}
        self.first: list[float] = []
        self.took: list[float] = []
        self.streams = self.events = 0

    async def provide(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests on one connection with recorded streams, one event at a time."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                body = json.loads(await reader.readexactly(length))
                number = int(body["user"])
                times = self.sent[number] = []
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for event in self.recorded[number % len(self.recorded)]:
                    times.append(time.perf_counter())
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                    if self.options.pause:
                        await asyncio.sleep(self.options.pause)
                writer.write(b"0\r\n\r\n")

    async def client(self, offset: int, end: float) -> None:
        """Ask for one stream after the other on one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.options.port, limit=1 << 22)
        number = offset
        while time.perf_counter() < end:
            body = json.dumps(
                {
                    "model": "bench-model",
                    "stream": True,
                    "user": str(number),
                    "messages": [{"role": "user", "content": "hello"}],
                }
            ).encode()
            head = (
                f"POST {self.options.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.options.port}\r\n"
                f"authorization: Bearer {self.options.token}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await self._read(reader, number)
            number += self.options.connections
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, number: int) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not a 200: {head[:80]!r} {(await reader.read(400))!r}")
        seen, rest = 0, b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            rest += (await reader.readexactly(size + 2))[:-2]
            now = time.perf_counter()
            complete = rest.count(b"\n\n")
            rest = rest[rest.rfind(b"\n\n") + 2 :] if complete else rest
            for at in range(seen, seen + complete):
                times = self.sent[number]
                waited = 1000 * (now - times[min(at, len(times) - 1)])
                (self.took if at else self.first).append(waited)
            seen += complete
        await reader.readexactly(2)
        # Text that was held to the end of a channel leaves in an event of its own.
        if seen < len(self.recorded[number % len(self.recorded)]):
            raise RuntimeError(f"{seen} events arrived, and more left")
        self.streams += 1
        self.events += seen

    async def run(self) -> Carried:
        """Carry streams for as long as told."""
        server = await asyncio.start_server(self.provide, "127.0.0.1", self.options.target)
        begin = time.perf_counter()
        end = begin + self.options.seconds
        try:
            async with asyncio.timeout(self.options.seconds + 60), asyncio.TaskGroup() as group:
                for offset in range(self.options.connections):
                    group.create_task(self.client(offset, end))
        finally:
            server.close()
        seconds = time.perf_counter() - begin
        took = self.took or [0.0]
        return Carried(
            self.streams,
            self.events,
            statistics.median(self.first or [0.0]),
            percentile(took, 0.5),
            percentile(took, 0.99),
            self.streams / seconds,
        )


def chats(corpus: Path) -> list[list[bytes]]:
    """Return the recorded chat streams whose events end in an empty line, one event a piece."""
    from tidegate.inspection.cache import DiskCache
    from tidegate.policy.loading import load
    from tidegate.streams import sse

    policy = load(ROOT / "rules" / "policy.yaml", engine_cache=DiskCache())
    found = []
    for stream in streams(corpus, policy.dialects):
        whole = b"".join(stream.frames)
        if stream.label != "text/event-stream" or b"\r" in whole or "/v1/chat/completions" not in stream.endpoint.paths:
            continue
        parser = sse.Sse()
        pieces = [each.raw for each in parser.feed(whole) if each.data]
        if 20 <= len(pieces) <= 400 and b'"error"' not in whole and all(p.count(b"\n\n") == 1 for p in pieces):
            found.append(pieces)
    return found


def through_processes(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Carry the same streams through stock mitmdump and the gate, round by round."""
    import _bench

    found: dict[str, list[Carried]] = {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        folder = Path(name)
        children = _bench.Children(folder)
        target, stock_port, gate_port, issuer_port = (_bench.free_port() for _ in range(4))
        recorded = folder / "streams.json"
        recorded.write_text(json.dumps([[each.decode() for each in pieces] for pieces in chats(options.corpus)]))
        server, token = _bench.issuer(issuer_port)
        bin_ = Path(sys.executable).parent
        try:
            stock = (
                bin_ / "mitmdump", "-q", "--listen-host", "127.0.0.1", "--listen-port", stock_port,
                "--set", f"confdir={folder}/ca", "--set", "stream_large_bodies=1",
                "--mode", f"reverse:http://127.0.0.1:{target}",
            )  # fmt: skip
            path = "/v1/chat/completions"
            proxies = [_bench.Proxy("stock", stock_port, path, children.start("stock", stock_port, *stock))]
            policy = _bench.write_policy(folder, issuer_port, target, "best_effort")
            gate = (bin_ / "tidegate", "run", "--policy", policy, "--listen", f"127.0.0.1:{gate_port}")
            gate += ("--confdir", folder / "ca")
            started = children.start("gate", gate_port, *gate)
            proxies.append(_bench.Proxy("gate", gate_port, f"/openai{path}", started))
            say("warming")
            for proxy in proxies:
                _carry(proxy, ["--target", target, "--token", token, "--pause", 0, "--connections", 4, "--seconds", 2,
                               "--corpus", recorded])  # fmt: skip
            for turn in range(options.rounds):
                for kind, pause, connections in (("live", 0.01, 8), ("full", 0.0, 8)):
                    for proxy in proxies:
                        say(f"round {turn + 1}/{options.rounds}: {kind}, {proxy.name}")
                        how = ["--target", target, "--token", token, "--pause", pause, "--connections", connections]
                        one = _carry(proxy, [*how, "--seconds", options.seconds, "--corpus", recorded])
                        found.setdefault(f"{kind} {proxy.name}", []).append(one)
        finally:
            children.stop()
            server.shutdown()
            server.server_close()
    return _compared(found)


def _carry(proxy: Any, how: Sequence[object]) -> Carried:
    command = [sys.executable, __file__, "both", "--port", proxy.port, "--path", proxy.path, *how]
    before = proxy.cpu()
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180, check=False)
    if ran.returncode:
        raise SystemExit(f"bench: {proxy.name} failed a stream:\n{ran.stderr[-2000:]}")
    one = Carried(**json.loads(ran.stdout))
    one.cpu = 1000 * (proxy.cpu() - before) / max(1, one.events)
    return one


def _compared(found: dict[str, list[Carried]]) -> dict[str, Any]:
    """Return the medians by kind and proxy, and what the gate adds in the same rounds."""
    told: dict[str, Any] = {}
    for name, rounds in found.items():
        told[name] = {
            what: round(statistics.median(getattr(each, what) for each in rounds), 3)
            for what in ("first", "p50", "p99", "rate", "cpu")
        }
    for kind in sorted({name.partition(" ")[0] for name in found}):
        pairs = list(zip(found[f"{kind} gate"], found[f"{kind} stock"], strict=True))
        told[f"{kind} added"] = {
            what: round(statistics.median(getattr(a, what) - getattr(b, what) for a, b in pairs), 3)
            for what in ("first", "p50", "p99")
        }
        told[f"{kind} streams"] = round(statistics.median(b.cpu / (a.cpu or 1) for a, b in pairs), 3)
        told[f"{kind} rate"] = round(statistics.median(a.rate / (b.rate or 1) for a, b in pairs), 3)
    return told


# ------------------------------------------------------------------------------------------------ what is said


def missed(found: dict[str, Any]) -> list[str]:
    """Name the aims that the figures miss."""
    redactor, closed = found["redactor"], found["redactor_without_these"]
    told = [
        ("held on average", redactor["mean_held"], AIMS["mean_held"]),
        ("held on average without rules any word opens", closed["mean_held"], AIMS["mean_held_closed"]),
        ("held at the median delta without these", closed["p50_held"], AIMS["median_held"]),
        ("microseconds per delta, p50", redactor["p50_us"], AIMS["p50_us"]),
        ("microseconds per delta, p99", redactor["p99_us"], AIMS["p99_us"]),
    ]
    out = [f"{what}: {value}, the aim is {aim}" for what, value, aim in told if value > aim]
    for kind in ("live", "full"):
        if f"{kind} streams" in found.get("processes", {}):
            value = found["processes"][f"{kind} streams"]
            if value < AIMS["streams"]:
                out.append(f"streams per core against stock, {kind}: {value}, the aim is {AIMS['streams']}")
    return out


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title=f"{found['streams']} recorded streams, {found['rules']} rules; microseconds and characters")
    for heading in ("redactor", "deltas", "p50 us", "p99 us", "held: mean", "p50", "p99", "max", "nothing held"):
        table.add_column(heading, justify="left" if heading == "redactor" else "right")
    for name, key in (("every rule", "redactor"), ("without those any word opens", "redactor_without_these")):
        one = found[key]
        cells = [one[k] for k in ("deltas", "p50_us", "p99_us", "mean_held", "p50_held", "p99_held", "max_held")]
        table.add_row(name, *map(str, cells), f"{one['nothing_held']:.0%}")
    console.print(table)
    console.print(f"whole event: {found['event']['p50_us']} us p50, {found['event']['p99_us']} us p99")
    console.print(f"opened by any word: {', '.join(found['opened_by_any_word'])}")
    held = {**found["redactor_without_these"]["held_by"]}
    console.print(f"held by, without these: {', '.join(f'{rule} {number}' for rule, number in held.items())}")
    for name, value in found.get("processes", {}).items():
        console.print(f"{name}: {value}")
    for each in missed(found):
        console.print(f"missed: {each}")


def arguments(words: Iterable[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench --streams", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("role", nargs="?", choices=["bench", "both"], default="bench", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="recorded exchanges, one JSON object a line")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run through a proxy (default 3)")
    parser.add_argument("--without-processes", action="store_true", help="measure redactor and events only")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    for name, kind in (("port", int), ("target", int), ("connections", int), ("pause", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    for name in ("path", "token"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args(list(words))


def bench(options: argparse.Namespace) -> int:
    """Measure everything and say it."""
    if not options.corpus.exists():
        print(f"bench: no recorded streams at {options.corpus}; name others with --corpus", file=sys.stderr)
        return 2

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    found = in_process(options.corpus, options.rounds, say)
    if not options.without_processes:
        found["processes"] = through_processes(options, say)
    found["missed"] = missed(found)
    found["cores"] = os.cpu_count()
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


def main(words: Sequence[str]) -> int:
    """Run, or play the upstream and the clients."""
    options = arguments(words)
    if options.role == "both":
        recorded = [[each.encode() for each in pieces] for pieces in json.loads(options.corpus.read_text())]
        print(json.dumps(vars(asyncio.run(Both(options, recorded).run()))))
        return 0
    return bench(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
