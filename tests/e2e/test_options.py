"""Options that would let traffic around the gate: refused at start, refused while it runs, named in one sentence."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Process, Upstream, chat, free_port, post, raw
from tests.e2e.test_guard import CHAT, small_policy, wait_until_ready
from tests.e2e.test_unload import web

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

FORBIDDEN: dict[str, object] = {
    "stream_large_bodies": "1",
    "map_remote": ["|//unset.invalid|//127.0.0.1"],
    "map_local": ["|/openai|/etc/hostname"],
    "modify_body": ["|~q|hello|changed"],
    "modify_headers": ["|~q|x-added|SECRET-HEADER-VALUE"],
    "ignore_hosts": ["."],
    "allow_hosts": ["nothing"],
    "tcp_hosts": ["."],
    "udp_hosts": ["."],
    "stickyauth": ".",
    "stickycookie": ".",
    "save_stream_file": "flows.mitm",
    "hardump": "flows.har",
    "proxyauth": "name:SECRET-PASSWORD",
    "validate_inbound_headers": False,
    "ssl_insecure": True,
}
"""Found wrong both at start and later."""

SET = {
    "rawtcp": True, "connection_strategy": "eager", "store_streamed_bodies": True, "keep_host_header": True,
}  # fmt: skip
"""Set by the gate at start, whatever the user's file says; a later change is refused."""


@dataclass
class Web:
    process: Process
    page: int
    upstream: Upstream
    token: str


@pytest.fixture(scope="module")
def mitmweb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder, page = tmp_path_factory.mktemp("options"), free_port()
    with Upstream() as upstream:
        policy, token = small_policy(folder, upstream.url), harness.token(folder)
        more = ["--set", "web_open_browser=false", "--web-port", str(page), "--set", "web_password=page-password"]
        more += [part for name, value in SET.items() for part in ("--set", f"{name}={str(value).lower()}")]
        with harness.mitm("mitmweb", policy, *more) as process:
            wait_until_ready(process)
            yield Web(process, page, upstream, token)


@pytest.mark.parametrize(("name", "value"), (FORBIDDEN | SET).items(), ids=FORBIDDEN | SET)
def test_a_change_in_mitmweb_is_refused_and_undone(mitmweb: Web, name: str, value: object) -> None:
    before = options(mitmweb)
    status, message = web(mitmweb.page, "PUT", "/options", {name: value})
    assert status == 400
    assert message.startswith(f"option {name}: found "), message
    assert "; accepted: " in message
    assert "SECRET" not in message
    assert options(mitmweb) == before
    good = post(CHAT, chat("hello"), f"authorization: Bearer {mitmweb.token}")
    assert raw(mitmweb.process.port, good).startswith(b"HTTP/1.1 200 ")


def options(mitmweb: Web) -> dict[str, object]:
    _, text = web(mitmweb.page, "GET", "/options", {})
    return {name: option["value"] for name, option in json.loads(text).items()}


def test_the_gate_sets_what_it_needs(mitmweb: Web) -> None:
    found = options(mitmweb)
    assert {name: found[name] for name in SET} == {
        "rawtcp": False, "connection_strategy": "lazy", "store_streamed_bodies": False, "keep_host_header": False,
    }  # fmt: skip


def settings() -> list[str]:
    words: list[str] = []
    for name, value in FORBIDDEN.items():
        for each in value if isinstance(value, list) else [value]:
            words += ["--set", f"{name}={str(each).lower() if isinstance(each, bool) else each}"]
    return words


def refused_start(folder: Path, *command: str | Path) -> str:
    """Run something that must end by itself before it serves; return what it printed."""
    with harness.started(command, 0, folder, wait=False) as process:
        try:
            assert process.wait(60) not in (0, None)
        except subprocess.TimeoutExpired:
            pytest.fail("it started")
        return process.log


def mitmdump_command(folder: Path, *more: str) -> list[str | Path]:
    policy = small_policy(folder, "http://127.0.0.1:9")
    harness.token(folder)
    return [
        harness.BIN / "mitmdump", "-s", harness.ROOT / "addons" / "gateway.py", "--set", f"tidegate={policy}",
        "--mode", f"regular@{free_port()}", "--set", f"confdir={folder / 'ca'}", *more,
    ]  # fmt: skip


def test_a_start_with_forbidden_options_is_refused_and_names_each(tmp_path: Path) -> None:
    printed = refused_start(tmp_path, *mitmdump_command(tmp_path, *settings()))
    for name in FORBIDDEN:
        assert f"option {name}: found " in printed, name
    assert "SECRET" not in printed


def test_a_misspelt_option_stops_mitmdump(tmp_path: Path) -> None:
    printed = refused_start(tmp_path, *mitmdump_command(tmp_path, "--set", "tidegat=policy.yaml", "--set", "typo=1"))
    assert "--set names options that nobody knows: tidegat, typo" in printed


def test_a_misspelt_option_stops_tidegate_run(tmp_path: Path) -> None:
    policy = small_policy(tmp_path, "http://127.0.0.1:9")
    command = [harness.BIN / "tidegate", "run", "--policy", policy, "--listen", f"127.0.0.1:{free_port()}"]
    printed = refused_start(tmp_path, *command, "--set", "typo=1")
    assert "--set typo: found an option that nobody knows; accepted: " in printed
