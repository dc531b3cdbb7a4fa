"""scripts/bench --identity: it measures what it says, and a limit that is passed is told."""

from __future__ import annotations

import json
import subprocess
import sys

from tidegate.places import CHECKOUT

SCRIPTS = str(CHECKOUT / "scripts")
CODE = "import sys; sys.path.insert(0, {scripts!r}); import _bench_identity as b; {before}; b.main({words!r})"


def bench(*words: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = CODE.format(scripts=SCRIPTS, before=before, words=list(words))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_what_is_measured() -> None:
    done = bench("--rounds", "1", "--json", before="b.CACHED = b.FIRST = 1")
    found = json.loads(done.stdout)
    assert [each["name"].split(",")[0] for each in found] == [
        "a token that is remembered",
        *["first verification"] * 3,
        "a remembered token with its DPoP proof",
    ]
    assert all(0 < each["seconds"] < 1 for each in found)


def test_a_limit_that_is_passed() -> None:
    done = bench("--rounds", "1", before="b.LINES[:] = [b.Line('slow', 1e-9, b.LINES[-1].make)]")
    assert done.returncode == 1
    assert "limit 0 us: OVER" in done.stdout
