"""Measure stock mitmdump, slim mitmproxy without the gate, and the full gate on the same requests, back to back.

Everything runs on this machine as processes of its own: a bare upstream, the proxies, one load generator at a
time. Rounds are interleaved (stock, slim, gate, strict, stock ...), no two requests are alike, and every answer is
checked. The full gate has an OIDC caller, every shipped rule and dialect, masking in both directions, and recording. It
runs twice: ``gate`` records with ``mode: best_effort``, ``strict`` waits for the disk before it sends. Compare ratios,
not absolutes; processor time for each request is the figure that a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"4 KB": 4_000, "100 KB": 100_000}
CONNECTIONS = (1, 16)
WARM_UP = 0.4  # seconds before the clock runs
START = 90.0  # seconds for a proxy to listen; the gate may compile its rules first
NONCE = b"@nonce@@"  # replaced in every message of every request
SAID = "The quarterly figures are in the shared folder; the summary on the first page is the one to read."


# ------------------------------------------------------------------------------------------------ the upstream


class Upstream(asyncio.Protocol):
    """Answers every request with about 450 bytes of chat completion, as fast as Python can."""

    numbers = itertools.count()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            _, _, rest = head.partition(b"content-length:")
            whole = end + 4 + int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self.buffer) < whole:
                return
            del self.buffer[:whole]
            self.transport.write(answer(word(next(self.numbers))))


def word(number: int) -> str:
    """Spell a number in eight letters, which no rule takes for anything."""
    letters = []
    for _ in range(8):
        number, letter = divmod(number, 26)
        letters.append(chr(97 + letter))
    return "".join(letters)


def answer(nonce: str) -> bytes:
    """Make a whole HTTP response."""
    message = {"role": "assistant", "content": f"{SAID} ({nonce})", "refusal": None, "annotations": []}
    body = {
        "id": f"chatcmpl-{nonce}",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "bench-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 24, "total_tokens": 924},
    }
    payload = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


async def upstream(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=256)
    await server.serve_forever()


# ------------------------------------------------------------------------------------------------ the load


@dataclass
class Measured:
    """One run of the load generator; times in milliseconds, ``cpu`` of the proxy for each request (0 if unknown)."""

    sent: int
    requests: int
    seconds: float
    rate: float
    p50: float
    p99: float
    cpu: float = 0.0


def bodies(size: int) -> list[bytes]:
    """Make 64 different chat requests of about ``size`` bytes, each with places for a nonce."""
    chance = random.Random(size)
    text = "the model reads a report and writes two lines about orders shipped from our harbour last week before noon"
    words = text.split()
    turns = max(4, size // 5000)
    made = []
    for _ in range(64):
        share = (size - 200) // turns - 60
        texts = []
        for _ in range(turns):
            said = NONCE.decode()
            while len(said) < share:
                said += " " + chance.choice(words) + chance.choices(("", ",", ".", "\n"), (12, 2, 1, 1))[0]
            texts.append(said)
        roles = ["system", *itertools.islice(itertools.cycle(("user", "assistant")), turns - 1)]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        body = {"model": "bench-model", "messages": messages, "max_tokens": 500}
        made.append(json.dumps(body, separators=(",", ":")).encode())  # compact, as the SDKs write it
    return made


async def read_answer(reader: asyncio.StreamReader) -> None:
    """Read one response and check that it is the upstream's, whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"not a 200: {head[:60]!r} {(await reader.read(400))!r}")
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
    if not json.loads(body)["choices"][0]["message"]["content"].startswith(SAID):
        raise RuntimeError("the answer is not the upstream's")


async def one_connection(options: argparse.Namespace, made: list[bytes], offset: int, took: list[float]) -> None:
    """Send requests one after another on one kept connection until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", options.port, limit=1 << 20)
    head = (
        f"POST {options.path} HTTP/1.1\r\nhost: 127.0.0.1:{options.port}\r\naccept: application/json\r\n"
        "accept-encoding: gzip, deflate\r\ncontent-type: application/json\r\nuser-agent: bench/1.0\r\n"
        f"authorization: Bearer {options.token}\r\nx-stainless-lang: python\r\ncontent-length: "
    ).encode()
    begin = time.perf_counter() + WARM_UP
    end = begin + options.seconds
    for number in itertools.count(offset, options.connections):
        body = made[number % len(made)].replace(NONCE, word(number + options.salt).encode())
        started = time.perf_counter()
        if started >= end:
            break
        writer.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        await read_answer(reader)
        options.sent += 1
        if started >= begin:
            took.append(time.perf_counter() - started)
    writer.close()


async def load(options: argparse.Namespace) -> Measured:
    """Load one proxy."""
    took: list[float] = []
    options.sent = 0
    made = bodies(options.size)
    async with asyncio.timeout(options.seconds + WARM_UP + 30), asyncio.TaskGroup() as group:
        for offset in range(options.connections):
            group.create_task(one_connection(options, made, offset, took))
    took.sort()
    p50, p99 = (1000 * took[int(len(took) * part)] for part in (0.5, 0.99))
    return Measured(options.sent, len(took), options.seconds, len(took) / options.seconds, p50, p99)


# ------------------------------------------------------------------------------------------------ the proxies


def slim(port: int, target: int, folder: str) -> None:
    """Run tidegate's own master with no gate in it."""
    from tidegate import master

    async def run() -> None:
        settings = {
            "mode": [f"reverse:http://127.0.0.1:{target}"],
            "listen_host": "127.0.0.1",
            "listen_port": port,
            "confdir": folder,
            "connection_strategy": "lazy",
        }
        await master.serve(master.build(settings))

    asyncio.run(run())


def issuer(port: int) -> tuple[HTTPServer, str]:
    """Serve discovery and keys of a local issuer, and sign one access token with it."""
    from joserfc import jwk, jwt

    key = jwk.RSAKey.generate_key(2048, {"kid": "bench", "use": "sig", "alg": "RS256"})
    address = f"http://127.0.0.1:{port}"
    pages = {
        "/.well-known/openid-configuration": {"issuer": address, "jwks_uri": f"{address}/keys"},
        "/keys": {"keys": [key.as_dict(private=False)]},
    }

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = json.dumps(pages.get(self.path, {})).encode()
            self.send_response(200 if self.path in pages else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    now = int(time.time())
    claims = {
        "iss": address,
        "aud": "tidegate",
        "sub": "alice",
        "client_id": "bench",
        "jti": "bench",
        "groups": ["dev"],
    }
    token = jwt.encode({"alg": "RS256", "kid": "bench", "typ": "at+jwt"}, claims | {"iat": now, "exp": now + 3600}, key)
    return server, token


def write_policy(folder: Path, issuer_port: int, target: int, mode: str) -> Path:
    """Write a policy of the full gate: shipped packs, dialects and actions, an OIDC caller, recording in ``mode``."""
    import yaml

    shipped = yaml.safe_load((ROOT / "rules" / "policy.yaml").read_text())
    for part in ("packs", "dialects"):
        shutil.copytree(ROOT / "rules" / part, folder / part, dirs_exist_ok=True)
    oidc = {
        "issuer": f"http://127.0.0.1:{issuer_port}",
        "audience": "tidegate",
        "groups": "$.groups",
        "insecure_http": True,
    }
    bench = {
        "name": "bench",
        "dialect": "openai",
        "upstream": f"http://127.0.0.1:{target}",
        "serve": {"path": "/openai"},
        "credential": {"header": "authorization", "value": "Bearer ${env:BENCH_UPSTREAM_KEY}"},
    }
    policy = {
        "version": 1,
        "identity": [{"name": "corp", "oidc": oidc}],
        "connections": [bench],
        "roles": {"dev": {"allow": [{"connections": ["bench"], "endpoints": ["chat"], "models": ["bench-*"]}]}},
        "bindings": [{"groups": ["corp:dev"], "roles": ["dev"]}],
        "inspection": shipped["inspection"],
        "recording": {"mode": mode, "keep": "redacted", "path": str(folder / f"{mode}.db")},
    }
    path = folder / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    return path


@dataclass(frozen=True)
class Proxy:
    """A proxy under test: where it listens and what the client sends to it."""

    name: str
    port: int
    path: str
    process: int

    def cpu(self) -> float:
        """Return the processor time used so far, in milliseconds; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Children:
    """The processes that were started here; each is ended by its id, whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, port: int, *command: object) -> int:
        """Start a process and wait until it listens; returns its id."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as sink:
            env = os.environ | {"BENCH_UPSTREAM_KEY": "bench-upstream-key"}
            words = [str(each) for each in command]
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, cwd=self.folder
            )
        self.running.append((name, process))
        end = time.monotonic() + START
        while time.monotonic() < end:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return process.pid
            time.sleep(0.1)
        raise SystemExit(f"bench: {name} did not start; its last words:\n{log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """End all of them."""
        for _, process in self.running:
            process.terminate()
        for _, process in self.running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def proxies(options: argparse.Namespace) -> Iterator[tuple[list[Proxy], str]]:
    """Start the upstream and the proxies; yields them and the caller's token."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as name:
        folder = Path(name)
        children = Children(folder)
        me, bin_ = (sys.executable, str(Path(__file__).resolve())), Path(sys.executable).parent
        target, ports, issuer_port = free_port(), [free_port() for _ in range(4)], free_port()
        server, token = issuer(issuer_port)
        try:
            children.start("upstream", target, *me, "upstream", "--port", target)
            stock = ("-q", "--listen-host", "127.0.0.1", "--listen-port", ports[0], "--set", f"confdir={folder}/ca")
            path, found = "/v1/chat/completions", []
            command: tuple[object, ...] = (bin_ / "mitmdump", *stock, "--mode", f"reverse:http://127.0.0.1:{target}")
            found.append(Proxy("stock", ports[0], path, children.start("stock", ports[0], *command)))
            command = (*me, "slim", "--port", ports[1], "--target", target, "--folder", folder / "ca")
            found.append(Proxy("slim", ports[1], path, children.start("slim", ports[1], *command)))
            if not options.without_gate:
                for kind, mode, port in (("gate", "best_effort", ports[2]), ("strict", "strict", ports[3])):
                    policy = write_policy(folder, issuer_port, target, mode)
                    listen = ("--listen", f"127.0.0.1:{port}", "--confdir", folder / "ca")
                    command = (bin_ / "tidegate", "run", "--policy", policy, *listen)
                    found.append(Proxy(kind, port, f"/openai{path}", children.start(kind, port, *command)))
            yield found, token
        finally:
            children.stop()
            server.shutdown()
            server.server_close()


# ------------------------------------------------------------------------------------------------ the comparison


@dataclass
class Cell:
    """What one proxy did at one size and one number of connections, over all rounds."""

    size: str
    connections: int
    proxy: str
    rounds: list[Measured]

    def median(self, what: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(getattr(each, what) for each in self.rounds)


def measure(options: argparse.Namespace, found: list[Proxy], token: str, say: Any) -> list[Cell]:
    """Run all rounds, interleaved."""
    cells = {(s, c, p.name): Cell(s, c, p.name, []) for s in SIZES for c in CONNECTIONS for p in found}
    salts = itertools.count(0, 10_000_000)
    for number in range(options.rounds):
        for (size, amount), connections in itertools.product(SIZES.items(), CONNECTIONS):
            for proxy in found:
                say(f"round {number + 1}/{options.rounds}: {size}, {connections} connection(s), {proxy.name}")
                command = [sys.executable, __file__, "load", "--port", proxy.port, "--path", proxy.path]
                command += ["--size", amount, "--connections", connections, "--seconds", options.seconds]
                command += ["--salt", next(salts), "--token", token]
                before = proxy.cpu()
                ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
                if ran.returncode:
                    raise SystemExit(f"bench: {proxy.name} failed a request:\n{ran.stderr[-2000:]}")
                one = Measured(**json.loads(ran.stdout))
                one.cpu = (proxy.cpu() - before) / one.sent
                cells[size, connections, proxy.name].rounds.append(one)
    return list(cells.values())


def ratio(cells: list[Cell], size: str, connections: int, left: str, right: str, what: str = "rate") -> float:
    """Return the median over the rounds of left by right, each pair taken in the same round."""
    pick = {each.proxy: each.rounds for each in cells if (each.size, each.connections) == (size, connections)}
    pairs = zip(pick[left], pick[right], strict=True)
    return round(statistics.median(getattr(a, what) / (getattr(b, what) or 1) for a, b in pairs), 3)


def report(options: argparse.Namespace, cells: list[Cell]) -> dict[str, Any]:
    """Return the one object of ``--json``."""
    import mitmproxy.version

    names = {each.proxy for each in cells}
    pairs = [
        ("full_gate_vs_stock", "gate", "stock"),
        ("full_gate_vs_slim", "gate", "slim"),
        ("strict_gate_vs_stock", "strict", "stock"),
        ("slim_vs_stock", "slim", "stock"),
    ]
    pairs = [each for each in pairs if {each[1], each[2]} <= names]
    found: dict[str, Any] = {
        key: {f"c{c}": ratio(cells, "4 KB", c, left, right) for c in CONNECTIONS} for key, left, right in pairs
    }
    found["by_size"] = {
        key: {
            f"{size}, c{c}": {what: ratio(cells, size, c, left, right, what) for what in ("rate", "p50", "p99", "cpu")}
            for size in SIZES
            for c in CONNECTIONS
        }
        for key, left, right in pairs
    }
    found["measured"] = [asdict(each) for each in cells]
    found["settings"] = {"seconds": options.seconds, "rounds": options.rounds, "warm_up": WARM_UP}
    found["machine"] = {
        "python": platform.python_version(),
        "mitmproxy": mitmproxy.version.VERSION,
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    return found


def show(cells: list[Cell]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="requests/s and latency; in brackets: against stock mitmdump in the same rounds")
    for heading in ("body", "conns", "proxy", "req/s", "p50 ms", "p99 ms", "CPU ms"):
        table.add_column(heading, justify="left" if heading in ("body", "proxy") else "right")
    last = None
    for cell in cells:
        place = (cell.size, cell.connections)
        if last not in (None, place):
            table.add_section()
        last = place
        by = {what: ratio(cells, *place, cell.proxy, "stock", what) for what in ("rate", "p50", "p99", "cpu")}
        numbers = [f"{cell.median('rate'):.0f} ({by['rate']:.2f}x)"]
        numbers += [f"{cell.median(what):.2f} ({by[what]:.2f}x)" for what in ("p50", "p99", "cpu")]
        table.add_row(cell.size, str(cell.connections), cell.proxy, *numbers)
    Console().print(table)


def bench(options: argparse.Namespace) -> None:
    """Run the whole comparison."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the children are ended as well
    steps = len(CONNECTIONS) * len(SIZES) * options.rounds * (2 if options.without_gate else 4)

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    say(f"about {10 + steps * (options.seconds + WARM_UP + 0.4):.0f} s")
    with proxies(options) as (found, token):
        cells = measure(options, found, token, say)
    if options.json:
        print(json.dumps(report(options, cells)))
    else:
        show(cells)


def arguments() -> argparse.Namespace:
    """Read the command line; the words upstream, slim and load are for the processes started from here."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "role", nargs="?", choices=["bench", "upstream", "slim", "load"], default="bench", help=argparse.SUPPRESS
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--detection", action="store_true", help="measure what the rules find instead (--detection -h)")
    parser.add_argument("--identity", action="store_true", help="measure what knowing a caller costs (--identity -h)")
    parser.add_argument("--ner", action="store_true", help="measure a local model instead (--ner -h)")
    parser.add_argument("--permissions", action="store_true", help="measure what a decision costs (--permissions -h)")
    parser.add_argument("--streams", action="store_true", help="measure live masking instead (--streams -h)")
    parser.add_argument("--budgets", action="store_true", help="measure what a budget adds instead (--budgets -h)")
    parser.add_argument("--approvals", action="store_true", help="measure held requests instead (--approvals -h)")
    parser.add_argument("--evidence", action="store_true", help="measure the recording instead (--evidence -h)")
    parser.add_argument("--without-gate", action="store_true", help="measure stock and slim mitmproxy only")
    for name, kind in (("port", int), ("target", int), ("folder", str), ("path", str), ("size", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    for name, kind in (("connections", int), ("salt", int), ("token", str)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


OTHERS = ("detection", "ner", "streams", "identity", "permissions", "budgets", "approvals", "evidence")
"""What else is measured, each by a script of its own."""


def main() -> None:
    """Run, or play one of the parts."""
    for name in OTHERS:
        if f"--{name}" in sys.argv[1:]:
            main_of = importlib.import_module(f"_bench_{name}").main
            sys.exit(main_of([word for word in sys.argv[1:] if word != f"--{name}"]))
    options = arguments()
    try:
        match options.role:
            case "upstream":
                asyncio.run(upstream(options.port))
            case "slim":
                slim(options.port, options.target, options.folder)
            case "load":
                print(json.dumps(asdict(asyncio.run(load(options)))))
            case _:
                bench(options)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
