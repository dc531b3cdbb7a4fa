"""scripts/bench --approvals prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tidegate.places import CHECKOUT


@pytest.mark.e2e
def test_a_short_run() -> None:
    script = CHECKOUT / "scripts" / "_bench_approvals.py"
    command = [sys.executable, str(script), "--held", "5", "--seconds", "0.2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name]["count"] for name in ("release_ms", "release_by_another_process_ms")] == [5, 5]
    assert all(found[f"others_{when}_ms"]["p99"] > 0 for when in ("before", "while_held", "after"))
