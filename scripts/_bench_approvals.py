"""Measure approvals: how soon a held request goes on once it is approved, and what held requests cost the others.

The gate is a process of its own. Release is the time from just before the vote is given to the store until the request
arrives at the upstream, so it holds two commits to the disk: by a decision in the gate's process, as of its admin
listener, and by another process, as ``tidegate approvals`` is. The others are ordinary requests on one connection, one
after another, before anything is held, while it is, and afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    }
).encode()
ADDRESS = "person-{}@example-mail.com"
GAP = 0.01  # seconds from a release to the next decision
START = 90.0


@dataclass
class Scene:
    """Where everything is, and when what arrived."""

    folder: Path
    gate: int
    upstream: int
    token: str
    arrived: dict[int, float] = field(default_factory=dict)

    def request(self, text: str, number: int) -> bytes:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "seed": number}).encode()
        return (
            f"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {self.token}\r\nx-tidegate-reason: {number}\r\nx-stainless-read-timeout: 600\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body


def policy(folder: Path, upstream: int) -> Path:
    import yaml

    for name in ("packs", "dialects"):
        (folder / name).symlink_to(ROOT / "rules" / name, target_is_directory=True)
    prompt = {"secrets": "block", "pii": "approve", "injection": "flag", "exfil": "allow"}
    response = {"secrets": "redact", "pii": "redact", "injection": "allow", "exfil": "redact"}
    document = {
        "version": 1,
        "identity": [{"name": "local", "static": {"tokens": "tokens.yaml"}}],
        "connections": [
            {
                "name": "openai",
                "dialect": "openai",
                "upstream": f"http://127.0.0.1:{upstream}",
                "serve": {"path": "/openai"},
            }
        ],
        "roles": {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"]}]}},
        "bindings": [{"groups": ["local:dev"], "roles": ["dev"]}],
        "inspection": {"prompt": prompt, "response": response},
        "approvals": {"pii": {"approvers": ["local:boss"]}, "pending": {"per_caller": 10000, "in_all": 10000}},
        "recording": {"mode": "best_effort", "path": "recording.db"},
    }
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


# ------------------------------------------------------------------------------------------------ the gate's process


async def decide(desk: Any, gone: Callable[[int], bool]) -> list[list[float]]:
    """Approve everything that is pending, each once the one before has ``gone`` on; return which was when."""
    from tidegate.approvals.spec import Answer, Person, State

    boss = Person("local", "boss", frozenset({"local:boss"}))
    told = []
    for item in reversed(await desk.list((State.PENDING,), 10000)):
        await asyncio.sleep(GAP)
        began = time.monotonic()
        await desk.decide(item.id, boss, Answer.YES, "bench")
        told.append([int(item.reason), began])
        while not gone(int(item.reason)) and time.monotonic() < began + 10:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.002)
    return told


async def gate(path: Path, port: int) -> None:
    """Be the gate, and decide whenever a line comes in."""
    from tidegate import master
    from tidegate.building import build_gate

    built = build_gate(path)
    assert built.addon.holding is not None
    desk = built.addon.holding.desk
    options = {
        "mode": ["reverse:http://unset.invalid"],
        "listen_host": "127.0.0.1",
        "listen_port": port,
        "confdir": str(path.parent / "ca"),
        "connection_strategy": "lazy",
        "rawtcp": False,
        "body_size_limit": str(built.body_limit()),
    }
    slim = master.build(options, built.addon)
    await built.start()
    serving = asyncio.create_task(master.serve(slim))
    while await asyncio.to_thread(sys.stdin.readline):
        most, seen = desk.waiting, set[int]()

        def gone(number: int, most: int = most, seen: set[int] = seen) -> bool:
            seen.add(number)
            return bool(desk.waiting <= most - len(seen))

        print(json.dumps(await decide(desk, gone)), flush=True)
    slim.shutdown()
    await serving
    await built.close()


# ------------------------------------------------------------------------------------------------ everything else


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
    return head, await reader.readexactly(length)


async def serve(scene: Scene) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _, body = await read_message(reader)
                scene.arrived[json.loads(body)["seed"]] = time.monotonic()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", scene.upstream)


async def others(scene: Scene, seconds: float) -> dict[str, float]:
    """Send ordinary requests one after another; return how long they took, in milliseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.gate)
    took, end, number = [], time.perf_counter() + seconds, 10**9
    while (began := time.perf_counter()) < end or len(took) < 20:
        number += 1
        writer.write(scene.request(f"What is {number} plus one?", number))
        head, _ = await read_message(reader)
        assert b" 200 " in head[:20], head
        took.append(1000 * (time.perf_counter() - began))
    writer.close()
    return figures(took[len(took) // 10 :])


def figures(took: Sequence[float]) -> dict[str, float]:
    known = sorted(took)
    at = {name: known[min(len(known) - 1, int(len(known) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))}
    return {"count": len(known), **{name: round(value, 2) for name, value in at.items()}}


async def hold(scene: Scene, numbers: range) -> list[asyncio.Task[bytes]]:
    """Send requests that need approval, each on a connection of its own; return once all of them wait."""
    from tidegate.desk import Desk
    from tidegate.state.control import Control

    slots = asyncio.Semaphore(50)

    async def one(number: int) -> bytes:
        async with slots:
            reader, writer = await asyncio.open_connection("127.0.0.1", scene.gate)
            writer.write(scene.request(f"Write to {ADDRESS.format(number)} please.", number))
        head, _ = await read_message(reader)
        writer.close()
        return head.split(b"\r\n", 1)[0]

    tasks = [asyncio.create_task(one(number)) for number in numbers]
    control = Control(scene.folder / "control.db")
    control.start()
    desk = Desk(control)
    end = time.monotonic() + 100
    while True:
        from tidegate.approvals.spec import State

        waiting = len(await desk.list((State.PENDING,), 10000))
        if waiting == len(numbers):
            break
        assert time.monotonic() < end, f"{waiting} of {len(numbers)} wait"
        await asyncio.sleep(0.2)
    await desk.close()
    control.close()
    return tasks


async def from_outside(scene: Scene) -> list[list[float]]:
    """Decide in this process, which is not the gate's."""
    from tidegate.desk import Desk
    from tidegate.state.control import Control

    control = Control(scene.folder / "control.db")
    control.start()
    desk = Desk(control)
    try:
        return await decide(desk, lambda number: number in scene.arrived)
    finally:
        await desk.close()
        control.close()


def released(scene: Scene, told: list[list[float]]) -> dict[str, float]:
    return figures([1000 * (scene.arrived[int(number)] - began) for number, began in told])


async def measure(scene: Scene, process: subprocess.Popen[str], options: argparse.Namespace) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    server = await serve(scene)
    end = time.monotonic() + START
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", scene.gate)
            writer.close()
            break
        except OSError:
            assert process.poll() is None, "the gate has ended"
            assert time.monotonic() < end, "the gate does not listen"
            await asyncio.sleep(0.1)
    await others(scene, 0.3)
    before = await others(scene, options.seconds)
    waiting = await hold(scene, range(1, options.held + 1))
    held = await others(scene, options.seconds)
    process.stdin.write("decide\n")
    process.stdin.flush()
    told = json.loads(await asyncio.to_thread(process.stdout.readline))
    assert {b"HTTP/1.1 200 OK"} == set(await asyncio.gather(*waiting))
    inside = released(scene, told)
    after = await others(scene, options.seconds)
    many = min(options.held, 100)
    waiting = await hold(scene, range(100_001, 100_001 + many))
    told = await from_outside(scene)
    assert {b"HTTP/1.1 200 OK"} == set(await asyncio.gather(*waiting))
    server.close()
    return {
        "held": options.held,
        "release_ms": inside,
        "release_by_another_process_ms": released(scene, told),
        "others_before_ms": before,
        "others_while_held_ms": held,
        "others_after_ms": after,
    }


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bench(options: argparse.Namespace) -> dict[str, Any]:
    from tidegate.identity.static import create

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = Scene(folder, free_port(), free_port(), create(folder / "tokens.yaml", "alice", ("dev",)))
        path = policy(folder, scene.upstream)
        command = [sys.executable, __file__, "gate", "--port", str(scene.gate), "--policy", str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
        ) as process:
            try:
                return asyncio.run(measure(scene, process, options))
            finally:
                process.terminate()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --approvals", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("role", nargs="?", choices=["bench", "gate"], default="bench", help=argparse.SUPPRESS)
    parser.add_argument("--held", type=int, default=500, help="how many requests are held (default 500)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run of the others (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--policy", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.role == "gate":
        asyncio.run(gate(options.policy, options.port))
        return
    found = bench(options)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.held} requests held")
    for name, what in (
        ("release_ms", "release after a decision in the gate's process"),
        ("release_by_another_process_ms", "release after a decision of another process"),
        ("others_before_ms", "others, before anything is held"),
        ("others_while_held_ms", f"others, while {options.held} are held"),
        ("others_after_ms", "others, afterwards"),
    ):
        row = found[name]
        print(f"  {what:52} p50 {row['p50']:7.2f} ms   p99 {row['p99']:7.2f} ms   n {row['count']}")


if __name__ == "__main__":
    main(sys.argv[1:])
