"""What ``tidegate run`` makes of its command line, before anything listens."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidegate.identity.static import StaticTokens
from tidegate.model import Reason
from tidegate.policy.policy import StaticIdentity
from tidegate.running import Settings, StartError, invite, listeners, mitmproxy_options


def settings(*options: str, modes: tuple[str, ...] = ("reverse",), host: str = "127.0.0.1") -> Settings:
    return Settings(Path("policy.yaml"), host, 8080, modes, "ca", options, sample_model=False)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["tcp_timeout=5"], "tcp_timeout", 5),
        (["http2=false"], "http2", False),
        (["ssl_verify_upstream_trusted_ca=ca.pem"], "ssl_verify_upstream_trusted_ca", "ca.pem"),
        (["certs=a.pem", "certs=b.pem"], "certs", ["a.pem", "b.pem"]),
    ],
    ids=["number", "boolean", "text", "list"],
)
def test_an_option_is_read_by_its_kind(given: list[str], name: str, value: Any) -> None:
    assert mitmproxy_options(settings(*given))[name] == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http2", "--set http2: found no value; accepted: NAME=VALUE."),
        (
            "tcp_timeot=5",
            "--set tcp_timeot: found an option that nobody knows; accepted: options of mitmproxy's core and TLS.",
        ),
        (
            "ignore_hosts=.*",
            "--set ignore_hosts: the gate sets this option itself (ignored hosts pass without any hook).",
        ),
        (
            "connection_strategy=eager",
            (
                "--set connection_strategy: the gate sets this option itself "
                "(an eager connection reaches the upstream before the caller is known)."
            ),
        ),
        ("tcp_timeout=soon", "--set tcp_timeout: Failed to parse option tcp_timeout: not an integer: soon"),
    ],
    ids=["no-value", "misspelt", "forbidden", "required", "not-a-number"],
)
def test_an_option_that_cannot_be_is_refused_in_one_sentence(given: str, message: str) -> None:
    with pytest.raises(StartError) as refused:
        mitmproxy_options(settings(given))
    assert str(refused.value) == message


def test_a_mode_that_cannot_be_is_refused_in_one_sentence() -> None:
    with pytest.raises(StartError) as refused:
        mitmproxy_options(settings(modes=("socks5",)))
    assert str(refused.value) == (
        "--mode: found socks5; accepted: reverse, regular, transparent or upstream:URL, each with an optional @PORT."
    )


@pytest.mark.parametrize(
    ("modes", "host", "told"),
    [
        (("reverse",), "127.0.0.1", ["127.0.0.1:8080 (reverse)"]),
        (("reverse", "regular@8081"), "::1", ["[::1]:8080 (reverse)", "[::1]:8081 (regular)"]),
        (("upstream:http://proxy:3128",), "127.0.0.1", ["127.0.0.1:8080 (upstream:http://proxy:3128)"]),
        (("upstream:http://me@proxy:3128",), "127.0.0.1", ["127.0.0.1:8080 (upstream:http://me@proxy:3128)"]),
    ],
    ids=["one", "two-ipv6", "upstream", "upstream-user"],
)
def test_each_mode_says_where_it_listens(modes: tuple[str, ...], host: str, told: list[str]) -> None:
    assert listeners(settings(modes=modes, host=host)) == told


def test_the_invitation_can_be_given_at_every_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = StaticIdentity("local", str(tmp_path / "tokens.yaml"))
    shown = []
    for _ in range(2):
        invite(SimpleNamespace(identities=(identity,)), settings())  # a policy with no more than it looks at
        shown.append(re.search(r"x-api-key: (\S+)'", capsys.readouterr().err)[1])
    known = StaticTokens(identity)
    first, second = (known.identify(token, 0.0) for token in shown)
    assert (second.subject, second.groups) == ("demo", {"local:dev"})
    assert first.reason is Reason.TOKEN_UNKNOWN
