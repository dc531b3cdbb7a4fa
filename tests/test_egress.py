"""The last check before a byte leaves, and the options and addresses that could lead around it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wsproto.events
from mitmproxy import exceptions, hooks
from mitmproxy.addons import default_addons, dumper
from mitmproxy.test import taddons, tflow, tutils

from tidegate import edits, egress, socket_relay, standalone
from tidegate.fence import BROKEN
from tidegate.gateway import Gateway
from tidegate.policy.policy import Keep, Recording, RecordingMode, Unlisted
from tidegate.running import Settings, StartError, mitmproxy_options

CANARY = "CANARY-5d1e"
LIFE = {"load", "configure", "running", "done", "update"}

# ── the guard ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_hook_of_the_gate_is_guarded() -> None:
    found = {name for name in hooks.all_hooks if hasattr(Gateway, name)}
    assert not found & LIFE, "mitmproxy treats exceptions in these in its own way"
    assert {
        "http_connect",
        "server_connect",
        "requestheaders",
        "request",
        "responseheaders",
        "response",
        "error",
    } < found
    bare = {name for name in found if getattr(Gateway, name).__qualname__.startswith("guarded")}
    wrapped = {name for name in found if hasattr(getattr(Gateway, name), "__wrapped__")}
    assert wrapped == found
    assert not bare


class Listed:
    """As much of a gate as the fence and raw connections need."""

    def __init__(self, unlisted: Unlisted = Unlisted.DENY) -> None:
        origin = SimpleNamespace(scheme="https", host="api.example.com", port=443)
        routes = SimpleNamespace(origins={origin_key(origin): ()}, hosts=frozenset({"api.example.com"}))
        self.policy = SimpleNamespace(routes=routes, unlisted=unlisted)
        self.closed: list[object] = []

    _may_reach = Gateway._may_reach
    tcp_start = Gateway.tcp_start
    deny_bug = Gateway.deny_bug
    _refuse_bug = Gateway._refuse_bug

    def _handler(self, flow: Any) -> Any:
        return SimpleNamespace(transports={flow.client_conn: None}, close_connection=self.closed.append)


def origin_key(origin: SimpleNamespace) -> Any:
    from tidegate.model import Origin

    return Origin(origin.scheme, origin.host, origin.port)


@pytest.mark.parametrize(
    ("host", "port", "listed"),
    [
        ("api.example.com", 443, True),
        ("api.example.com", 80, False),
        ("api.example.com.", 443, False),
        ("evil-api.example.com", 443, False),
        ("169.254.169.254", 80, False),
        ("127.0.0.1", 8081, False),
    ],
)
def test_the_fence_knows_exactly_the_upstreams(host: str, port: int, listed: bool) -> None:
    assert Gateway._may_reach(Listed(), host, port) is listed  # type: ignore[arg-type]


LOCAL = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "[::1]",
    "::ffff:127.0.0.1",
    "[::ffff:169.254.169.254]",
    "169.254.169.254",
    "169.254.169.254.",
    "10.0.0.8",
    "192.168.1.1",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "db.internal",
    "metadata.google.internal",
    "metadata.google.internal.",
    "printer.local",
    "redis",
    "fe80::1%eth0",
    "[fd00:ec2::254]",
]


@pytest.mark.parametrize("host", LOCAL)
def test_an_unlisted_host_that_passes_is_never_this_machine_or_its_network(host: str) -> None:
    assert edits.is_local(host)
    assert not Gateway._may_reach(Listed(Unlisted.PASS), host, 80)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "[2606:4700::1111]", "local.example.com"])
def test_an_unlisted_host_passes_where_the_policy_says_so(host: str) -> None:
    assert Gateway._may_reach(Listed(Unlisted.PASS), host, 443)  # type: ignore[arg-type]
    assert not Gateway._may_reach(Listed(), host, 443)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["api.example.com", "api.example.com."])
def test_another_port_of_an_upstream_never_passes(host: str) -> None:
    assert not Gateway._may_reach(Listed(Unlisted.PASS), host, 8443)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_raw_connections_are_closed_and_blanked(kind: str) -> None:
    gate, flow = Listed(), (tflow.ttcpflow() if kind == "tcp" else tflow.tudpflow())
    getattr(Gateway, f"{kind}_start")(gate, flow)
    assert gate.closed == [flow.client_conn]
    getattr(Gateway, f"{kind}_message")(gate, flow)
    assert flow.messages[-1].content == b""


def test_a_bug_in_a_raw_message_closes_the_connection() -> None:
    gate, flow = Listed(), tflow.ttcpflow()
    flow.messages = []
    Gateway.tcp_message(gate, flow)
    assert gate.closed == [flow.client_conn]


def test_a_bug_at_the_fence_closes_it(caplog: pytest.LogCaptureFixture) -> None:
    from mitmproxy.proxy import server_hooks

    data = server_hooks.ServerConnectionHookData(server=tflow.tserver_conn(), client=tflow.tclient_conn())
    gate = Listed()
    gate._may_reach = None  # type: ignore[assignment,method-assign]
    data.server.address = ("api.example.com", 443)
    Gateway.server_connect(gate, data)
    assert data.server.error == BROKEN


# ── the keeper ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keeper() -> Iterator[None]:
    before = egress._keeper
    yield
    egress._keeper = before


@pytest.mark.parametrize("question", ["outgoing", "released", "refusal", "farewell", "over"])
def test_without_a_keeper_and_with_a_broken_one_the_answer_is_no(
    keeper: None, question: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise exceptions.AddonHalt(CANARY)

    egress._keeper = None
    assert not egress._ask(question, tflow.tflow())
    egress._keeper = SimpleNamespace(**{question: broken})  # type: ignore[assignment]
    assert not egress._ask(question, tflow.tflow())
    assert "AddonHalt" in caplog.text
    assert CANARY not in caplog.text


A_POLICY = SimpleNamespace(recording=Recording(RecordingMode.STRICT, Keep.REDACTED, "recording.db"))


def test_only_what_was_cleared_goes_out() -> None:
    from tidegate.exchange import Exchange

    flow = tflow.tflow(req=tutils.treq(content=b"body"))
    exchange = Exchange(A_POLICY, flow)  # type: ignore[arg-type]
    assert not exchange.is_cleared(flow.request)
    exchange.clear()
    assert exchange.is_cleared(flow.request)
    for change in (
        lambda r: setattr(r, "content", b"other"),
        lambda r: setattr(r, "host", "elsewhere"),
        lambda r: setattr(r, "port", 1),
        lambda r: setattr(r, "path", "/x"),
        lambda r: setattr(r, "method", "PUT"),
        lambda r: setattr(r, "scheme", "https"),
        lambda r: setattr(r, "authority", "x:1"),
        lambda r: r.headers.add("x", "y"),
    ):
        changed = flow.request.copy()
        change(changed)
        assert not exchange.is_cleared(changed)
    exchange.revoke()
    assert not exchange.is_cleared(flow.request)


def test_only_what_was_released_comes_in() -> None:
    from tidegate.exchange import Exchange

    flow = tflow.tflow(resp=True)
    exchange = Exchange(A_POLICY, flow)  # type: ignore[arg-type]
    assert not exchange.is_released(flow.response)
    exchange.release()
    assert exchange.is_released(flow.response)
    assert not exchange.is_released(flow.response.copy())
    flow.response.stream = True
    assert not exchange.is_released(flow.response)


# ── what crosses without a hook ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [wsproto.events.Ping, wsproto.events.Pong])
def test_a_ping_that_could_carry_text_closes_instead(kind: type[Any]) -> None:
    small = kind(payload=bytearray(b"12345678"))
    assert socket_relay._small(small) is small
    closing = socket_relay._small(kind(payload=bytearray(b"123456789")))
    assert isinstance(closing, wsproto.events.CloseConnection)
    assert not closing.reason


def test_a_close_reason_is_not_relayed() -> None:
    closing = socket_relay._small(wsproto.events.CloseConnection(code=1000, reason=CANARY))
    assert (closing.code, closing.reason) == (1000, None)


def test_what_the_proxy_core_logs_carries_no_data() -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, f"crashed: {CANARY}", None, sys.exc_info())
    assert egress._without_data(record)
    assert CANARY not in logging.Formatter().format(record)
    assert not egress._without_data(logging.LogRecord("x", logging.INFO, "", 1, CANARY, None, None))


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG: dict[str, object] = {
    "stream_large_bodies": "1",
    "ignore_hosts": ["."],
    "allow_hosts": ["x"],
    "tcp_hosts": ["."],
    "udp_hosts": ["."],
    "map_remote": ["|a|b"],
    "map_local": ["|a|/etc"],
    "modify_body": ["|a|b"],
    "modify_headers": ["|a|b"],
    "stickyauth": ".",
    "stickycookie": ".",
    "proxyauth": "any",
    "save_stream_file": "/nowhere/x",
    "hardump": "x.har",
    "validate_inbound_headers": False,
    "ssl_insecure": True,
    "proxy_debug": True,
    "connection_strategy": "eager",
    "rawtcp": True,
    "websocket": False,
    "onboarding": True,
    "flow_detail": 3,
    "store_streamed_bodies": True,
    "keep_host_header": True,
    "server_replay_extra": "forward",
    "server_replay_reuse": False,
}


def test_every_option_that_is_kept_has_a_wrong_value_here() -> None:
    assert set(WRONG) == set(standalone.FORBIDDEN) | set(standalone.REQUIRED)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Mitmproxy's options with those of every stock addon, and a gate that only keeps watch over them."""
    monkeypatch.setattr(standalone.Standalone, "_adopt", lambda self, path: None)
    with taddons.context(loadcore=False) as context:
        for addon in [*default_addons(), dumper.Dumper()]:
            if hasattr(addon, "load"):
                from mitmproxy.addonmanager import Loader

                addon.load(Loader(context.master))
        context.master.addons.add(standalone.Standalone())
        context.options.update(tidegate="x")
        yield context.options


@pytest.mark.parametrize(("name", "value"), WRONG.items(), ids=WRONG)
def test_an_option_that_leads_around_the_gate_is_refused_and_undone(options: Any, name: str, value: object) -> None:
    before = getattr(options, name)
    with pytest.raises(exceptions.OptionsError, match=rf"^option {name}: found .+; accepted: .+ \(.+\)$"):
        options.update(**{name: value})
    assert getattr(options, name) == before


def test_an_option_that_does_no_harm_may_change(options: Any) -> None:
    options.update(tls_version_client_min="TLS1_3")
    assert options.tls_version_client_min == "TLS1_3"


@pytest.mark.parametrize("name", sorted(standalone.PRIVATE))
def test_a_refusal_does_not_repeat_what_may_be_a_secret(options: Any, name: str) -> None:
    value = [f"|a|{CANARY}"] if name != "proxyauth" else f"name:{CANARY}"
    with pytest.raises(exceptions.OptionsError) as refused:
        options.update(**{name: value})
    assert CANARY not in str(refused.value)


def settings(*given: str) -> Settings:
    return Settings(Path("p.yaml"), "127.0.0.1", 8080, ("reverse",), "ca", given, False)


@pytest.mark.parametrize("name", WRONG)
def test_tidegate_run_refuses_the_same_options(name: str) -> None:
    with pytest.raises(StartError, match=rf"^--set {name}: the gate sets this option itself \(.+\)\.$"):
        mitmproxy_options(settings(f"{name}=1"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("typo=1", "--set typo: found an option that nobody knows; accepted: options of mitmproxy's core and TLS."),
        (
            "tidegat=x",
            "--set tidegat: found an option that nobody knows; accepted: options of mitmproxy's core and TLS.",
        ),
        ("typo", "--set typo: found no value; accepted: NAME=VALUE."),
    ],
)
def test_tidegate_run_refuses_what_nobody_knows(given: str, says: str) -> None:
    with pytest.raises(StartError) as refused:
        mitmproxy_options(settings(given))
    assert str(refused.value) == says
