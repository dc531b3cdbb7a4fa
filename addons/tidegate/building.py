"""Put the parts of a running gate together, and take them apart again: the one place that knows all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tidegate.evidence.store import Recorder
from tidegate.gateway import Gateway
from tidegate.identity.credential import resolve_all
from tidegate.identity.verifier import Verifier
from tidegate.inspection.cache import DiskCache
from tidegate.model import Caller
from tidegate.policy.loading import load
from tidegate.replay.flows import encode


@dataclass(slots=True)
class Gate:
    """A gate and what it stands on: ``start`` before traffic, ``close`` after. ``problems`` are sentences to show."""

    addon: Gateway
    problems: tuple[str, ...]

    async def start(self) -> None:
        """Fetch the keys of the issuers."""
        await self.addon.verifier.start()

    async def close(self) -> None:
        """Stop fetching keys, and write what is still to be recorded."""
        self.addon.stop()
        await self.addon.verifier.close()
        self.addon.recorder.close()

    def reload(self, path: Path) -> None:
        """Put another policy in force for the exchanges to come; the old one stays if the new one has a fault.

        Raises ``PolicyError``.
        """
        policy = load(path, engine_cache=DiskCache())
        old, verifier = self.addon.verifier, Verifier(policy.identities)
        self.addon.credentials, self.problems = resolve_all(policy.connections.values())
        self.addon.verifier, self.addon.policy = verifier, policy
        for work in (verifier.start(), old.close()):
            task = asyncio.get_running_loop().create_task(work)
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    def body_limit(self) -> int:
        """Return the bytes above which mitmproxy itself may end a message: more than any connection accepts."""
        connections = self.addon.policy.connections.values()
        return max(max(each.request_bytes, each.answer.bytes) for each in connections) + 1024 * 1024


_tasks: set[asyncio.Task[None]] = set()


def build_gate(path: Path, *, replay_caller: Caller | None = None) -> Gate:
    """Load a policy and make the gate for it.

    Raises ``PolicyError`` with every fault, and ``RecordingError`` if the recording cannot be opened.
    """
    policy = load(path, engine_cache=DiskCache())
    credentials, problems = resolve_all(policy.connections.values())
    recorder = Recorder(Path(policy.recording.path), encode)
    recorder.start()
    return Gate(Gateway(policy, recorder, Verifier(policy.identities), credentials, replay_caller), problems)
