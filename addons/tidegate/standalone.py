"""The gate inside the user's own mitmdump or mitmweb: ``mitmdump -s addons/gateway.py --set
tidegate=rules/policy.yaml``.

There the user's options, scripts and addons run beside the gate. Options that would let traffic around it are set where
they may be, refused where they may not, and vetoed when they change; if the gate is unloaded, the process ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from tidegate import egress
from tidegate.building import Gate, build_gate
from tidegate.panel import announce
from tidegate.policy.policy import PolicyError
from tidegate.reloading import Reloader

EXIT_UNLOADED = 70
"""Exit status when the gate is taken away from a running proxy (EX_SOFTWARE of sysexits.h)."""

REQUIRED: dict[str, tuple[object, str]] = {
    "connection_strategy": ("lazy", "an eager connection reaches the upstream before the caller is known"),
    "rawtcp": (False, "raw TCP carries what nobody inspects"),
    "websocket": (True, "without it an upgrade becomes an uninspected pipe"),
    "onboarding": (False, "it answers on a host name of its own, beside the gate"),
    "flow_detail": (0, "it prints addresses and bodies"),
    "store_streamed_bodies": (False, "the gate keeps what it emitted; a second copy is not redacted"),
    "keep_host_header": (False, "the gate sets the host of each connection"),
    "server_replay_extra": ("kill", "an unmatched request of a replay would be forwarded"),
    "server_replay_reuse": (True, "an emptied replay would forward"),
}
"""Options the gate sets when it is loaded, and keeps."""

FORBIDDEN: dict[str, tuple[object, str]] = {
    "stream_large_bodies": (None, "bodies above it would go upstream uninspected"),
    "ignore_hosts": ([], "ignored hosts pass without any hook"),
    "allow_hosts": ([], "hosts outside it pass without any hook"),
    "tcp_hosts": ([], "raw TCP carries what nobody inspects"),
    "udp_hosts": ([], "raw UDP carries what nobody inspects"),
    "map_remote": ([], "it changes the address after the gate has decided"),
    "map_local": ([], "it answers in place of the upstream, after the gate"),
    "modify_body": ([], "it changes bodies after the gate has inspected them"),
    "modify_headers": ([], "it changes header fields after the gate has inspected them"),
    "stickyauth": (None, "it repeats one caller's credential for others"),
    "stickycookie": (None, "it repeats one caller's cookies for others"),
    "proxyauth": (None, "it keeps passwords in the flows; callers are known by their token"),
    "save_stream_file": (None, "it writes an unsealed copy of every flow"),
    "hardump": ("", "it writes an unsealed copy of every flow"),
    "validate_inbound_headers": (True, "without it requests can be smuggled"),
    "ssl_insecure": (False, "without it nobody knows who the upstream is"),
    "proxy_debug": (False, "it logs what connections carry"),
}
"""Options that must stay as they are; another value is refused at start and vetoed later."""

PRIVATE = frozenset({"proxyauth", "modify_headers", "modify_body", "map_remote", "map_local"})
"""Options whose values may hold a secret: a message says only that there is one."""


class Standalone:
    """The addon of ``addons/gateway.py``: loads the policy, keeps the options, and holds the gate as a sub-addon."""

    name = "tidegate_standalone"

    def __init__(self) -> None:
        self.gate: Gate | None = None
        self.addons: list[object] = []
        self._settled = False
        self._started = False
        self._reloader: Reloader | None = None

    def load(self, loader: Loader) -> None:
        """Add the one option."""
        loader.add_option("tidegate", str, "rules/policy.yaml", "The tidegate policy file.")

    def configure(self, updated: Set[str]) -> None:
        """Load or reload the policy, and refuse every option that would let traffic around the gate."""
        settling = not self._settled
        if settling:
            self._settled = True
            ctx.options.update(**{name: value for name, (value, _) in REQUIRED.items() if _known(name)})
        _veto(FORBIDDEN.items())
        _veto(REQUIRED.items())
        if self.gate is None or ("tidegate" in updated and not settling):  # setting the others has loaded it already
            self._adopt(Path(ctx.options.tidegate))

    def _adopt(self, path: Path) -> None:
        try:
            if self.gate is None:
                self.gate = build_gate(path)
                self.addons.append(ctx.master.addons.register(self.gate.addon))  # unknown to it, removal stops halfway
            else:
                self.gate.reload_now(path)
        except PolicyError as error:
            raise exceptions.OptionsError(str(error)) from None
        if self._reloader is not None and self._started:
            self._reloader.stop()
            self._reloader = Reloader(self.gate, path)
            self._reloader.start()
        self.gate.adopted = self._limit
        self._limit()

    def _limit(self) -> None:
        assert self.gate is not None
        changed = {name: value for name, value in self.gate.options().items() if getattr(ctx.options, name) != value}
        if changed:
            ctx.options.update(**changed)

    async def running(self) -> None:
        """Refuse misspelt options, start the verifier, and tell what is in force."""
        if ctx.options.deferred:
            names = ", ".join(sorted(ctx.options.deferred))
            sys.stderr.write(f"tidegate: --set names options that nobody knows: {names}\n")
            os._exit(1)
        if self._started:  # mitmproxy tells a script twice
            return
        self._started = True
        assert self.gate is not None
        try:
            await self.gate.start()
        except PolicyError as error:  # raised here it would be logged, and the proxy would go on
            sys.stderr.write(f"tidegate: {error}\n")
            os._exit(1)
        self._reloader = Reloader(self.gate, Path(ctx.options.tidegate))
        self._reloader.start()
        announce(
            self.gate.addon.policy,
            modes=list(ctx.options.mode),
            problems=self.gate.problems,
            web=ctx.master.addons.get("webaddon") is not None,
        )

    def done(self) -> None:
        """End the process if the gate is unloaded while the proxy goes on: traffic would pass uninspected."""
        egress.harden(None)
        if self._reloader is not None:
            self._reloader.stop()
        if self.gate is not None:
            self.gate.addon.stop()
            if self.gate.addon.ner is not None:
                self.gate.addon.ner.kill()
            self.gate.addon.recorder.close()
            self.gate.addon.close_state()
        if not ctx.master.should_exit.is_set():
            sys.stderr.write("tidegate: the gate was unloaded while the proxy was running; stopping the proxy.\n")
            sys.stderr.flush()
            os._exit(EXIT_UNLOADED)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value in (None, [], "") else str(value)


def _known(name: str) -> bool:
    return name in ctx.options


def _veto(entries: Iterable[tuple[str, tuple[object, str]]]) -> None:
    """Raise ``OptionsError`` for each option that has not the one value the gate works with."""
    faults = []
    for name, (value, because) in entries:
        found: Any = getattr(ctx.options, name, value) if _known(name) else value
        same = not found if not value and not isinstance(value, bool) else found == value
        if not same:
            shown = "a value" if name in PRIVATE else _text(found)
            faults.append(f"option {name}: found {shown}; accepted: {_text(value)} ({because})")
    if faults:
        raise exceptions.OptionsError("; ".join(faults))
