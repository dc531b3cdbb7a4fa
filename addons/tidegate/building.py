"""Put the parts of a running gate together, and take them apart again: the one place that knows all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.evidence.starting import start_recorder
from tidegate.gateway import Gateway
from tidegate.identity.credential import resolve_all
from tidegate.identity.verifier import Verifier
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.ner.pool import NerError, Pool
from tidegate.model import Caller, Fault
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, PolicyError
from tidegate.replay.flows import encode
from tidegate.state.control import StateError
from tidegate.state.ownership import Ownership


@dataclass(slots=True)
class Gate:
    """A gate and what it stands on: ``start`` before traffic, ``close`` after. ``problems`` are sentences to show."""

    addon: Gateway
    problems: tuple[str, ...]

    async def start(self) -> None:
        """Fetch the keys of the issuers, and start the local model. Raises ``PolicyError`` if it cannot be loaded."""
        await self.start_model()
        await self.addon.verifier.start()

    async def start_model(self) -> None:
        """Start the processes of the local model, if there is one. Raises ``PolicyError`` if it cannot be loaded."""
        if self.addon.ner is None:
            return
        try:
            await self.addon.ner.start()
        except NerError as why:
            accepted = "a token classification model that onnxruntime runs"
            raise PolicyError((Fault(self.addon.policy.file, "inspection.ner", str(why), accepted),)) from None

    async def close(self) -> None:
        """Stop fetching keys and the local model, and write what is still to be recorded."""
        self.addon.stop()
        if self.addon.ner is not None:
            await self.addon.ner.close()
        await self.addon.verifier.close()
        self.addon.recorder.close()
        self.addon.close_state()

    def reload(self, path: Path) -> None:
        """Put another policy in force for the exchanges to come; the old one stays if the new one has a fault.

        A new local model loads meanwhile: until it has, requests are late. Raises ``PolicyError``.
        """
        policy = load(path, engine_cache=DiskCache())
        old, verifier = self.addon.verifier, Verifier(policy.identities)
        self.addon.credentials, self.problems = resolve_all(policy.connections.values())
        self.addon.verifier, self.addon.policy = verifier, policy
        for work in (verifier.start(), old.close(), *self._change_model(policy)):
            task = asyncio.get_running_loop().create_task(work)
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    def _change_model(self, policy: Policy) -> tuple[Coroutine[Any, Any, None], ...]:
        """Put the policy's local model in place of another that runs; return what is left to do."""
        old = self.addon.ner
        if policy.ner == (old.ner if old is not None else None):
            return ()
        self.addon.ner = _pool(policy)
        if self.addon.ner is not None:
            self.addon.ner.begin()
        return (old.close(),) if old is not None else ()

    def body_limit(self) -> int:
        """Return the bytes above which mitmproxy itself may end a message: more than any connection accepts."""
        connections = self.addon.policy.connections.values()
        return max(max(each.request_bytes, each.answer.bytes) for each in connections) + 1024 * 1024


def _pool(policy: Policy) -> Pool | None:
    return Pool(policy.ner) if policy.ner is not None else None


_tasks: set[asyncio.Task[None]] = set()


def build_gate(path: Path, *, replay_caller: Caller | None = None) -> Gate:
    """Load a policy and make the gate for it.

    Raises ``PolicyError`` with every fault, and ``RecordingError`` if the recording cannot be opened.
    """
    policy = load(path, engine_cache=DiskCache())
    credentials, problems = resolve_all(policy.connections.values())
    recorder = start_recorder(policy.recording, encode)
    recorder.event("policy", f"sha256 {policy.sha256}")
    gateway = Gateway(policy, recorder, Verifier(policy.identities), credentials, replay_caller)
    gateway.ner = _pool(policy)
    gateway.ownership = Ownership(Path(policy.state.path), policy.state.retain)
    try:
        gateway.ownership.control.start()
    except StateError as why:
        recorder.close()
        raise PolicyError((Fault(policy.file, "state.path", str(why), "a control store, or no file yet"),)) from None
    return Gate(gateway, problems)
