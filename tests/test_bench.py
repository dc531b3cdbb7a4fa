"""scripts/bench: what it sends, what it reports, and one short real run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tidegate.places import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "_bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_bench"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["_bench"]


@pytest.mark.parametrize("size", [4_000, 100_000], ids=["4 KB", "100 KB"])
def test_requests_have_the_size_they_say_and_are_never_alike(bench, size):
    made = bench.bodies(size)
    assert all(abs(len(each) - size) < 0.1 * size for each in made)
    assert len(set(made)) == len(made)
    first, second = (made[0].replace(bench.NONCE, bench.word(n).encode()) for n in (1, 2))
    turns = zip(*(json.loads(each)["messages"] for each in (first, second)), strict=True)
    assert all(left["content"] != right["content"] for left, right in turns)


def test_the_answer_is_about_450_bytes(bench):
    head, _, body = bench.answer("abcdefgh").partition(b"\r\n\r\n")
    assert 400 < len(body) < 500
    assert f"content-length: {len(body)}".encode() in head


def cells(bench, **rates):
    made = []
    for size in bench.SIZES:
        for connections in bench.CONNECTIONS:
            for proxy, per_round in rates.items():
                rounds = [bench.Measured(120, 100, 1.0, float(rate), 2.0, 4.0, 0.5) for rate in per_round]
                made.append(bench.Cell(size, connections, proxy, rounds))
    return made


def test_ratios_are_taken_within_a_round(bench):
    made = cells(bench, stock=[100, 1000, 200], slim=[200, 1000, 400], gate=[150, 1500, 300])
    found = bench.report(SimpleNamespace(seconds=1, rounds=3), made)
    assert found["full_gate_vs_stock"] == {"c1": 1.5, "c16": 1.5}
    assert found["slim_vs_stock"] == {"c1": 2.0, "c16": 2.0}
    assert found["by_size"]["full_gate_vs_stock"]["100 KB, c16"] == {"rate": 1.5, "p50": 1.0, "p99": 1.0, "cpu": 1.0}
    json.dumps(found)


def test_without_the_gate_nothing_is_said_of_it(bench):
    found = bench.report(SimpleNamespace(seconds=1, rounds=1), cells(bench, stock=[100], slim=[200]))
    assert "full_gate_vs_stock" not in found


def listening_children(folder: str) -> list[str]:
    """Return the command lines of processes that work in ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            found.append(line)
    return found


@pytest.mark.e2e
def test_a_short_run_prints_one_object_and_leaves_nothing_behind(tmp_path):
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", "--rounds", "1", "--seconds", "0.3"],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert set(found["full_gate_vs_stock"]) == {"c1", "c16"}
    assert all(ratio > 0 for ratio in found["full_gate_vs_stock"].values())
    assert all(each["rounds"][0]["requests"] > 0 for each in found["measured"])
    assert list(tmp_path.iterdir()) == []
    assert listening_children(str(tmp_path)) == []
