"""The stage of the tour: processes in a folder of their own, the promises, and how they are told."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _demo_wire import Answer, ask
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tidegate.identity.static import create

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
LEAKS = ("jane.doe@example.com", "4111 1111 1111 1111", "415 555 0132")

console = Console(highlight=False, soft_wrap=True)


class Broken(Exception):
    """A promise that does not hold; the text says what was seen instead, never a secret."""


def must(holds: object, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


# ------------------------------------------------------------------------------------------------ the stage


@dataclass
class Tour:
    """What the promises share: where things run, who asks, and everything that came out anywhere."""

    folder: Path
    sabotage: str = ""
    gate: int = 0
    proxy: int = 0
    model: int = 0
    alice: str = ""
    mallory: str = ""
    credential: str = ""
    real: bool = False
    outputs: list[bytes] = field(default_factory=list)
    exchanges: dict[str, tuple[str, str]] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    @property
    def recording(self) -> Path:
        return self.folder / "recording.db"

    def broken(self, promise: str) -> bool:
        """Say whether this promise was to be broken on purpose (``--break``), to see that the tour notices."""
        return self.sabotage == promise

    def ask(self, path: str, body: Any, token: str | None, *, expect: str, **options: Any) -> Answer:
        """Ask the gate, and note the exchange with the ``outcome reason`` its recording must show."""
        answer = ask(options.pop("port", self.gate), path, body, token, **options)
        self.outputs.append(answer.raw)
        outcome, _, reason = expect.partition(" ")
        self.exchanges[answer.exchange] = (outcome, reason)
        return answer

    def hits(self) -> dict[str, Any]:
        """Return what the sample model has seen; looking does not count."""
        found: dict[str, Any] = ask(self.model, "/hits", None, None).json
        return found

    def tidegate(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the command line as a person would."""
        command = [str(BIN / "tidegate"), *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False, env=environment()
        )
        self.outputs.append((done.stdout + done.stderr).encode())
        return done


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "COLUMNS": "160", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def started(tour: Tour, name: str, command: Sequence[object], port: int, seconds: float = 60) -> Iterator[None]:
    """Run a process until the end of the block; its output goes to a file of the tour's folder."""
    path = tour.folder / f"{name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=tour.folder,
            env=environment(),
        )
        try:
            end = time.monotonic() + seconds
            while not listening(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"demo: {name} did not start:\n{path.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=0.5):
        return True
    return False


def write_policy(tour: Tour) -> None:
    """Write a policy with a credential and two kinds of callers; ``--break`` weakens it here."""
    for each in ("packs", "dialects"):
        (tour.folder / each).symlink_to(ROOT / "rules" / each, target_is_directory=True)
    secret = tour.folder / "upstream.key"
    secret.touch(0o600)
    secret.write_text(tour.credential)
    secrets = "flag" if tour.sabotage in ("block", "canaries") else "block"
    prompt = {"secrets": secrets, "pii": "redact", "injection": "flag", "exfil": "allow"}
    masks = (
        "flag"
        if tour.sabotage in ("mask-openai", "mask-anthropic", "tools", "proxy", "sdks", "real-mask")
        else "redact"
    )
    answer = {"secrets": "redact", "pii": masks, "injection": "allow", "exfil": "redact"}
    credential = {"header": "x-model-key", "value": f"${{file:{secret}}}"}
    upstream = f"http://{HOST}:{tour.model}"
    connections: list[dict[str, Any]] = [
        {"name": name, "dialect": name, "upstream": upstream, "serve": {"path": f"/{name}"}}
        for name in ("openai", "anthropic")
    ]
    if not tour.broken("credential"):
        for each in connections:
            each["credential"] = credential
    groups = ["local:dev", "local:guests"] if tour.broken("group") else ["local:dev"]
    if tour.real:
        prompt["pii"] = "flag"  # the prompt itself names a made-up person; only the answer is masked
    policy = {
        "version": 1,
        "unlisted": "pass" if tour.broken("unlisted") else "deny",
        "identity": [{"name": "local", "static": {"tokens": "tokens.yaml"}}],
        "connections": connections,
        "roles": {"developer": {"allow": [{"connections": ["*"], "endpoints": ["*"]}]}},
        "bindings": [{"groups": groups, "roles": ["developer"]}],
        "inspection": {"prompt": prompt, "response": answer},
        "recording": {"mode": "strict", "keep": "redacted", "path": "recording.db"},
    }
    tour.policy.write_text(json.dumps(policy, indent=1))  # JSON is YAML


@contextlib.contextmanager
def gate(tour: Tour) -> Iterator[None]:
    """Write the policy, make two tokens, and run the gate with a reverse and an explicit listener."""
    tour.gate, tour.proxy = free_ports(2)
    write_policy(tour)
    made = tour.tidegate("login", "--policy", tour.policy, "--static", "alice", "--group", "dev")
    must(made.returncode == 0, f"tidegate login failed: {made.stderr}")
    tour.alice = made.stdout.strip()
    tour.outputs.clear()  # a token is shown once, to the person who made it
    tour.mallory = create(tour.folder / "tokens.yaml", "mallory", ("guests",))
    command = [BIN / "tidegate", "run", "--policy", tour.policy, "--listen", f"{HOST}:{tour.gate}"]
    command += ["--mode", "reverse", "--mode", f"regular@{tour.proxy}", "--confdir", tour.folder / "ca"]
    with started(tour, "gate", command, tour.gate):
        yield


# ------------------------------------------------------------------------------------------------ the promises


Check = Callable[["Tour"], str]


@dataclass(frozen=True)
class Promise:
    name: str
    text: str
    check: Check
    after: bool = False
    needs: str = ""


def promise(promises: list[Promise], text: str, *, after: bool = False, needs: str = "") -> Callable[[Check], Check]:
    """Add a check to a tour. It returns what a person should see, and raises ``Broken``."""

    def add(check: Check) -> Check:
        promises.append(Promise(check.__name__.replace("_", "-"), text, check, after, needs))
        return check

    return add


Seen = tuple[Promise, str, str]
"""A promise, its mark, and what was seen."""


def outcome(tour: Tour, each: Promise) -> tuple[str, str]:
    """Check one promise; return its mark and what was seen."""
    missing = [name for name in each.needs.split() if importlib.util.find_spec(name) is None]
    if missing:
        return "-", f"not checked: {' and '.join(missing)} not installed here (./scripts/test installs them)"
    try:
        return "✓", each.check(tour)
    except Broken as seen:
        return "✗", str(seen)
    except Exception as bug:  # noqa: BLE001 - what cannot be checked does not hold
        return "✗", f"could not be checked: {type(bug).__name__}: {str(bug)[:200]}"


def walk(tour: Tour, promises: Sequence[Promise]) -> list[Seen]:
    """Check promises in their order, and tell each as it is seen."""
    found = []
    for each in promises:
        mark, seen = outcome(tour, each)
        colour = {"✓": "green", "✗": "red"}.get(mark, "yellow")
        console.print(f"[{colour}]{mark}[/] [bold]{each.text}[/]")
        console.print(f"  {escape(seen)}", style="dim" if mark == "✓" else "default")
        found.append((each, mark, seen))
    return found


def summary(found: Sequence[Seen]) -> int:
    """Print the list of promises; return the exit status."""
    table = Table(title="What was promised", title_justify="left", show_header=False, box=None, padding=(0, 1))
    for each, mark, _ in found:
        table.add_row(mark, each.name, each.text)
    console.print()
    console.print(table)
    broken = [each.name for each, mark, _ in found if mark == "✗"]
    skipped = sum(mark == "-" for _, mark, _ in found)
    if broken:
        console.print(f"\n[red]{len(broken)} of {len(found)} promises broken: {', '.join(broken)}[/]")
        return 1
    console.print(
        f"\n[green]All {len(found) - skipped} promises hold[/]" + (f" ({skipped} not checked)." if skipped else ".")
    )
    return 0
