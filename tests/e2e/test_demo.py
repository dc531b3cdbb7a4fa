"""The tour keeps its promises, and notices each one that is broken on purpose."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.e2e.harness import ROOT

pytestmark = pytest.mark.e2e


def tour(*options: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/_demo.py with the interpreter of the tests; scripts/demo only sets up and calls it."""
    command = [sys.executable, str(ROOT / "scripts" / "_demo.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=ROOT)


def marks(printed: str) -> dict[str, str]:
    """Return the mark of each promise in the list at the end."""
    return {name: mark for mark, name in re.findall(r"(?m)^ ([✓✗-])  (\S+)", printed.partition("What was promised")[2])}


def test_every_promise_holds() -> None:
    done = tour()
    assert done.returncode == 0, done.stdout + done.stderr
    found = marks(done.stdout)
    assert set(found.values()) == {"✓"}  # the SDKs are installed where tests run
    assert len(found) >= 17
    assert f"All {len(found)} promises hold." in done.stdout


@pytest.mark.parametrize(
    ("promise", "also"),
    [
        ("block", {"proxy", "sdks", "recorded", "canaries"}),
        ("mask-openai", {"mask-anthropic", "live", "tools", "proxy", "sdks", "recorded", "canaries"}),
        ("unlisted", {"recorded"}),
        ("check", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_promise_ends_the_tour_with_a_failure(promise: str, also: set[str]) -> None:
    done = tour("--break", promise)
    found = marks(done.stdout)
    assert found[promise] == "✗", done.stdout
    assert {name for name, mark in found.items() if mark == "✗"} <= {promise} | also
    assert done.returncode == 1
    assert "broken: " in done.stdout


def test_a_promise_that_does_not_exist_cannot_be_broken() -> None:
    done = tour("--break", "the-tide")
    assert done.returncode not in (0, None)
    assert "no such promise; there are: clean, block," in done.stderr
