"""A gate that is taken away from a running proxy takes the proxy with it."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Process, Upstream, chat, free_port, post, raw
from tests.e2e.test_guard import CHAT, small_policy, wait_until_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHIM = harness.ROOT / "addons" / "gateway.py"


def ends_with_the_gate(process: Process, upstream: Upstream, message: bytes) -> None:
    """The process ends by itself with status 70, says why, and nothing sent meanwhile reaches the upstream."""
    end = time.monotonic() + 15
    while process.process.poll() is None and time.monotonic() < end:
        try:
            answer = raw(process.port, message, seconds=1)
        except OSError:
            break
        assert b"HTTP/1.1 200 " not in answer
    assert process.wait(10) == 70
    assert "the gate was unloaded" in process.log
    assert upstream.data == b""
    with pytest.raises(OSError, match="refused"):
        raw(process.port, message, seconds=1)


def save(script: Path, text: str) -> None:
    script.write_text(text)
    later = time.time() + 5  # editors may keep the second; the watcher compares times
    os.utime(script, (later, later))


SAVES: dict[str, Callable[[Path], None]] = {
    "syntax error": lambda script: save(script, "def broken(:\n"),
    "deleted": lambda script: script.unlink(),
}


@pytest.mark.parametrize("change", SAVES.values(), ids=SAVES)
def test_a_script_that_is_broken_or_deleted_ends_the_proxy(tmp_path: Path, change: Callable[[Path], None]) -> None:
    script = tmp_path / "gateway.py"
    shutil.copy(SHIM, script)
    with Upstream() as upstream:
        policy, token = small_policy(tmp_path, upstream.url), harness.token(tmp_path)
        with harness.mitm("mitmdump", policy, script=script, mode=f"reverse:{upstream.url}") as process:
            wait_until_ready(process)
            good = post(CHAT, chat("hello"), f"authorization: Bearer {token}")
            assert raw(process.port, good).startswith(b"HTTP/1.1 200 ")
            upstream.data = b""
            change(script)
            ends_with_the_gate(
                process, upstream, post(CHAT, chat("tok_abcdef012345"), f"authorization: Bearer {token}")
            )


def web(port: int, method: str, path: str, body: object) -> tuple[int, str]:
    """Ask mitmweb's own interface, as a person signed in to its page would."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), method=method)
    request.add_header("authorization", "Bearer page-password")
    request.add_header("content-type", "application/json")
    request.add_header("cookie", "_mitmproxy_xsrf=x")
    request.add_header("x-xsrftoken", "x")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_removing_the_script_in_mitmweb_ends_the_proxy(tmp_path: Path) -> None:
    with Upstream() as upstream:
        policy, token = small_policy(tmp_path, upstream.url), harness.token(tmp_path)
        page = free_port()
        more = ["--set", "web_open_browser=false", "--web-port", str(page), "--set", "web_password=page-password"]
        with harness.mitm("mitmweb", policy, *more, mode=f"reverse:{upstream.url}") as process:
            wait_until_ready(process)
            good = post(CHAT, chat("hello"), f"authorization: Bearer {token}")
            assert web(page, "PUT", "/options", {"tidegate": ""})[0] == 400
            assert raw(process.port, good).startswith(b"HTTP/1.1 200 ")
            upstream.data = b""
            blocked = post(CHAT, chat("tok_abcdef012345"), f"authorization: Bearer {token}")
            assert raw(process.port, blocked).startswith(b"HTTP/1.1 403 ")
            with pytest.raises(OSError, match=r"closed|reset|Remote"):
                web(page, "PUT", "/options", {"scripts": []})
            ends_with_the_gate(process, upstream, blocked)
