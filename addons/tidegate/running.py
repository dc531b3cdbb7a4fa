"""``tidegate run``: the gate in its own slim master, and the sample model beside it if asked for."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions
from mitmproxy.addons import upstream_auth
from rich.console import Console

from tidegate import master
from tidegate.building import Gate, build_gate
from tidegate.identity.static import create
from tidegate.panel import announce
from tidegate.policy.oidc import LOOPBACK
from tidegate.policy.policy import Policy, StaticIdentity
from tidegate.reloading import Reloader
from tidegate.standalone import FORBIDDEN, REQUIRED

if TYPE_CHECKING:
    from tidegate.admin.wiring import Admin

SAMPLE_PORT = 8091
SWITCH_SECONDS = 0.0005
"""How soon the event loop gets the interpreter back from the recorder's thread; Python's 5 ms is an answer's time."""

NOWHERE = "reverse:http://unset.invalid"
"""The reverse listener has no upstream of its own: the connection's prefix decides, and what has none goes nowhere."""

MODES = {"reverse": NOWHERE, "regular": "regular", "transparent": "transparent"}


class StartError(Exception):
    """The gate cannot start; the text says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for. ``modes`` are words of ``MODES``, each with an optional ``@PORT``."""

    policy: Path
    host: str
    port: int
    modes: tuple[str, ...]
    confdir: str
    options: tuple[str, ...]
    sample_model: bool
    admin: tuple[str, int] | None = None


async def run(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Raises ``PolicyError`` or ``StartError`` before anything listens."""
    _log_to_stderr()
    given = mitmproxy_options(settings)
    gate = build_gate(settings.policy)
    with ExitStack() as stack:
        stack.callback(gate.addon.recorder.close)
        stack.callback(gate.addon.close_state)
        _check_port(settings)
        if settings.sample_model:
            stack.enter_context(sample_model(SAMPLE_PORT))
        extra = [upstream_auth.UpstreamAuth()] if any(mode.startswith("upstream:") for mode in settings.modes) else []
        try:
            slim = master.build({**given, **gate.options()}, gate.addon, *extra)
        except (exceptions.OptionsError, KeyError) as error:
            raise StartError(f"--set {_text(error)}") from None
        await gate.start()
        admin = _admin(settings, gate)
        if admin is not None:
            stack.callback(admin.stop)
        announce(gate.addon.policy, modes=listeners(settings), problems=(*gate.problems, *_exposed(settings)))
        if settings.sample_model:
            invite(gate.addon.policy, settings)
        gc.collect()
        gc.freeze()  # what is loaded now stays; the collector need not walk it at every turn
        gc.set_threshold(10_000, 20, 50)
        sys.setswitchinterval(SWITCH_SECONDS)
        gate.adopted = lambda: slim.options.update(**gate.options())
        reloader = Reloader(gate, settings.policy)
        reloader.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.soon, "SIGHUP")
        try:
            await master.serve(slim)
        finally:
            if admin is not None:
                admin.leave()
            reloader.stop()
            await gate.close()


def _admin(settings: Settings, gate: Gate) -> Admin | None:
    """Start the admin listener, if there is to be one. Raises ``StartError``."""
    if settings.admin is None:
        return None
    from tidegate.admin.serving import AdminServer, ListenError
    from tidegate.admin.wiring import Admin

    server = AdminServer(*settings.admin)
    try:
        server.listen()
        admin = Admin(gate, settings.policy, server)
        admin.start()
    except ListenError as error:
        server.stop()
        raise StartError(f"--admin {error}; choose another port.") from None
    return admin


def _exposed(settings: Settings) -> tuple[str, ...]:
    """Say loudly that others than this machine may reach the admin listener."""
    if settings.admin is None or settings.admin[0] in LOOPBACK:
        return ()
    host, port = settings.admin
    told = (
        f"--admin {host}:{port}: the admin listener can be reached from other machines, without TLS of its own; "
        "let only those in who need it, through a server with TLS (docs/admin.md)"
    )
    return (told,)


def listeners(settings: Settings) -> list[str]:
    """Say of each mode where it listens, as a person would type it."""
    found = []
    for each in settings.modes:
        name, _, port = each.rpartition("@")
        if not port.isdecimal():
            name, port = each, str(settings.port)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        found.append(f"{host}:{port} ({name})")
    if settings.admin is not None:
        host, port = settings.admin[0], str(settings.admin[1])
        found.append(f"{f'[{host}]' if ':' in host else host}:{port} (admin)")
    return found


def mitmproxy_options(settings: Settings) -> dict[str, Any]:
    """Return the options of the slim master; those the gate depends on cannot be given."""
    known = {
        name: value for name, (value, _) in REQUIRED.items() if name in ("connection_strategy", "rawtcp", "websocket")
    }
    given: dict[str, Any] = {
        **known,
        "mode": [_mode(each) for each in settings.modes],
        "listen_host": settings.host,
        "listen_port": settings.port,
        "confdir": settings.confdir,
    }
    texts: dict[str, list[str]] = {}
    for each in settings.options:
        name, equals, value = each.partition("=")
        if not equals:
            raise StartError(f"--set {each}: found no value; accepted: NAME=VALUE.")
        if name in FORBIDDEN or name in REQUIRED:
            raise StartError(f"--set {name}: the gate sets this option itself ({(FORBIDDEN | REQUIRED)[name][1]}).")
        texts.setdefault(name, []).append(value)
    return {**given, **{name: _value(name, values) for name, values in texts.items()}}


def _value(name: str, values: list[str]) -> Any:
    """Read the texts given for an option by its kind; mitmproxy knows the kinds."""
    from mitmproxy import options
    from mitmproxy.addonmanager import Loader
    from mitmproxy.addons import core, proxyserver, tlsconfig

    probe = options.Options()

    class Stub:
        options = probe

    for addon in (core.Core(), proxyserver.Proxyserver(), tlsconfig.TlsConfig()):
        if hasattr(addon, "load"):
            addon.load(Loader(Stub()))
    if name not in probe:
        raise StartError(
            f"--set {name}: found an option that nobody knows; accepted: options of mitmproxy's core and TLS."
        )
    try:
        return probe._parse_setval(probe._options[name], values)
    except exceptions.OptionsError as error:
        raise StartError(f"--set {name}: {error}") from None


def _mode(text: str) -> str:
    name, at, port = text.partition("@")
    if name in MODES:
        return MODES[name] + at + port
    if name.startswith("upstream:"):
        return text
    raise StartError(
        f"--mode: found {name}; accepted: {', '.join(MODES)} or upstream:URL, each with an optional @PORT."
    )


def _check_port(settings: Settings) -> None:
    """Say in one sentence that the port is taken, before the sample model and the panel come up."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartError(
                f"--listen {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}; choose another port."
            ) from None


@contextmanager
def sample_model(port: int) -> Iterator[None]:
    """Run the built-in sample model as a process of its own until the gate stops."""
    command = [sys.executable, "-m", "tidegate.sample_model", "--port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def invite(policy: Policy, settings: Settings) -> None:
    """Print three lines to try: a block, a live-masked stream, and a whole answer."""
    static = next((each for each in policy.identities or () if isinstance(each, StaticIdentity)), None)
    if static is None:
        return
    token = create(Path(static.tokens), "demo", ("dev",), anew=True)
    base = f"http://{settings.host}:{settings.port}"
    console = Console(stderr=True)
    console.print(
        "Try it against the sample model (its answers are made up; the token is new at every start):", style="bold"
    )
    for title, path, header, body in _invitations():
        console.print(f"[green]# {title}[/]")
        line = f"curl -sN {base}{path} -H '{header}{token}' -H 'content-type: application/json' -d '{body}'"
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _invitations() -> Sequence[tuple[str, str, str, str]]:
    key = "AKIA" + "Z7QK4WJX2MVT5R3P"
    return (
        (
            "blocked: the prompt holds an access key, and nothing of it reaches the model",
            "/openai/v1/chat/completions",
            "authorization: Bearer ",
            f'{{"model":"sample-small","messages":[{{"role":"user","content":"Why does {key} not work?"}}]}}',
        ),
        (
            "masked live: the sample model leaks a customer record, token by token",
            "/openai/v1/chat/completions",
            "authorization: Bearer ",
            '{"model":"sample-small","stream":true,"messages":[{"role":"user","content":"The customer record?"}]}',
        ),
        (
            "the same through the Anthropic dialect, as a whole answer",
            "/anthropic/v1/messages",
            "x-api-key: ",
            '{"model":"sample-small","max_tokens":200,"messages":[{"role":"user","content":"The customer record?"}]}',
        ),
    )


def _log_to_stderr() -> None:
    """Send the gate's own log, one JSON object a line, to stderr; everything else only from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging._srcfile = None  # nor is the place in the code (Logging HOWTO, Optimization)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # not in the line, so not asked for
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # the same; typeshed does not know it
    own = logging.getLogger("tidegate")
    own.setLevel(logging.INFO)
    own.addHandler(handler)
    own.propagate = False  # mitmproxy's handlers would format each line again


def _text(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
