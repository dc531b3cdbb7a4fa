"""Put the parts of a running gate together, and take them apart again: the one place that knows all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidegate import reloaded
from tidegate.approvals.notify import Notifier
from tidegate.approving import plain
from tidegate.budgeting import Budgeting
from tidegate.desk import Desk, letter
from tidegate.evidence.starting import start_recorder
from tidegate.gateway import Gateway
from tidegate.holding import Holding
from tidegate.identity.credential import Secret, resolve_all
from tidegate.identity.own import OwnKeys
from tidegate.identity.verifier import Verifier
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.ner.pool import NerError, Pool
from tidegate.model import Caller, Fault
from tidegate.policy.loading import load
from tidegate.policy.policy import Bound, OidcIdentity, Policy, PolicyError
from tidegate.reloaded import Reloaded
from tidegate.replay.flows import encode
from tidegate.state.approvals import Item, Step
from tidegate.state.control import Control, StateError
from tidegate.state.ownership import Ownership
from tidegate.state.revocations import Revocations
from tidegate.state.signing import SigningKeys


@dataclass(slots=True)
class Gate:
    """A gate and what it stands on: ``start`` before traffic, ``close`` after. ``problems`` are sentences to show."""

    addon: Gateway
    problems: tuple[str, ...]
    signing: SigningKeys | None = None
    adopted: Callable[[], None] = lambda: None
    _reloading: asyncio.Lock | None = field(init=False, repr=False, default=None)

    async def start(self) -> None:
        """Fetch the keys of the issuers, and start the local model. Raises ``PolicyError`` if it cannot be loaded."""
        await self.start_model()
        await self.addon.verifier.start()
        if self.addon.holding is not None:
            self.addon.holding.notifier.start()
            await self.addon.holding.desk.start()

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
        if self.addon.holding is not None:
            await self.addon.holding.desk.close()
            await asyncio.to_thread(self.addon.holding.notifier.close)
        if self.addon.ner is not None:
            await self.addon.ner.close()
        await self.addon.verifier.close()
        self.addon.recorder.close()
        self.addon.close_state()

    async def reload(self, path: Path, cause: str = "call") -> Reloaded:
        """Put another policy in force for the exchanges to come; the old one stays if the new one has a fault.

        It is read and compiled beside the event loop, and nothing changes before all of it is there. Both are told and
        recorded, with ``cause``. Raises ``PolicyError``.
        """
        if self._reloading is None:
            self._reloading = asyncio.Lock()
        async with self._reloading:
            try:
                policy = await asyncio.to_thread(load, path, engine_cache=DiskCache())
                credentials = await asyncio.to_thread(resolve_all, policy.connections.values())
            except PolicyError as error:
                reloaded.refuse(self.addon, error, cause)
                raise
            verifier = self._verifier(policy)
            if verifier is not self.addon.verifier:
                with contextlib.suppress(TimeoutError):  # whoever comes first would wait for the keys
                    await asyncio.wait_for(asyncio.shield(_kept(verifier.start())), KEYS)
            return self._adopt(policy, credentials, verifier, cause)

    def reload_now(self, path: Path, cause: str = "option") -> Reloaded:
        """Do as ``reload`` for who cannot wait; everybody else does meanwhile."""
        try:
            policy = load(path, engine_cache=DiskCache())
        except PolicyError as error:
            reloaded.refuse(self.addon, error, cause)
            raise
        verifier = self._verifier(policy)
        if verifier is not self.addon.verifier:
            _kept(verifier.start())
        return self._adopt(policy, resolve_all(policy.connections.values()), verifier, cause)

    def _verifier(self, policy: Policy) -> Verifier:
        """Return the verifier for a policy: the one that runs, with its keys, where the identities are the same."""
        before, running = self.addon.policy, self.addon.verifier
        if (policy.identities, policy.admin.url) == (before.identities, before.admin.url):
            return running
        verifier = self.verifier_for(policy)
        verifier.proofs = running.proofs  # a proof counts once, whatever the policy
        return verifier

    def _adopt(
        self,
        policy: Policy,
        credentials: tuple[Mapping[str, Secret], tuple[str, ...]],
        verifier: Verifier,
        cause: str,
    ) -> Reloaded:
        """Change everything at once, between two events of the loop."""
        before, old = self.addon.policy, self.addon.verifier
        policy, kept = reloaded.fixed(before, policy)
        self.addon.credentials, self.problems = credentials
        self.addon.verifier, self.addon.policy = verifier, policy
        for work in (*((old.close(),) if old is not verifier else ()), *self._change_model(policy)):
            _kept(work)
        found = Reloaded(cause, before.sha256, policy.sha256, kept)
        reloaded.tell(self.addon, found, self.problems)
        self.adopted()
        return found

    def _change_model(self, policy: Policy) -> tuple[Coroutine[Any, Any, None], ...]:
        """Put the policy's local model in place of another that runs; return what is left to do."""
        old = self.addon.ner
        if policy.ner == (old.ner if old is not None else None):
            return ()
        self.addon.ner = _pool(policy)
        if self.addon.ner is not None:
            self.addon.ner.begin()
        return (old.close(),) if old is not None else ()

    @property
    def control(self) -> Control:
        """The control store; ``build_gate`` has opened it."""
        assert self.addon.ownership is not None
        return self.addon.ownership.control

    def verifier_for(self, policy: Policy) -> Verifier:
        """Make a verifier for a policy; each event loop that verifies tokens needs one of its own."""
        own = OwnKeys(policy, self.signing) if policy.admin.url and self.signing is not None else None
        return Verifier(policy.identities, revoked=self.addon.verifier.revoked, own=own)

    def options(self) -> dict[str, Any]:
        """Return the options of mitmproxy that follow from the policy; what it does not need is the user's to say."""
        policy = self.addon.policy
        bound = any(isinstance(each, OidcIdentity) and each.bound is Bound.REQUIRED for each in policy.identities or ())
        asks = bound or self.addon.entrance.peers(policy).certificates
        return {"body_size_limit": str(self.body_limit()), **({"request_client_cert": True} if asks else {})}

    def body_limit(self) -> int:
        """Return the bytes above which mitmproxy itself may end a message: more than any connection accepts."""
        connections = self.addon.policy.connections.values()
        return max(max(each.request_bytes, each.answer.bytes) for each in connections) + 1024 * 1024


def _pool(policy: Policy) -> Pool | None:
    return Pool(policy.ner) if policy.ner is not None else None


KEYS = 10.0
"""Seconds that a reload waits for the keys of an issuer that is new; then it goes on without, and 503 is answered."""

_tasks: set[asyncio.Task[None]] = set()


def _kept(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run a coroutine beside; the event loop alone would forget it."""
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


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
    gateway.budgeting = Budgeting(gateway.ownership.control)
    try:
        gateway.ownership.control.start()
        gateway.revocations = Revocations(gateway.ownership.control)
        gateway.revocations.start()
        gateway.verifier.revoked = gateway.revocations.covers
    except StateError as why:
        gateway.close_state()
        recorder.close()
        raise PolicyError((Fault(policy.file, "state.path", str(why), "a control store, or no file yet"),)) from None
    notifier = Notifier(lambda: gateway.policy.approvals.notify if gateway.policy.approvals is not None else ())

    def notify(step: Step, item: Item) -> None:
        told = letter(step, item, gateway.policy.admin.url)
        if told is not None and gateway.policy.approvals is not None and gateway.policy.approvals.notify:
            notifier.tell(told)

    desk = Desk(gateway.ownership.control, recorder, None, lambda text: plain(gateway.policy.engine, text), notify)
    gateway.holding = Holding(desk, notifier)
    gate = Gate(gateway, problems, SigningKeys(gateway.ownership.control))
    gateway.verifier = gate.verifier_for(policy)
    return gate
