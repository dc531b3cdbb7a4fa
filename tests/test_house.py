"""The repository itself: its layout, its lock files, its scripts, and what must be in no file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tidegate

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "requirements.lock", ROOT / "tests" / "requirements.lock")
SCRIPTS = ("run", "test", "check", "demo", "bench")
TOP = {
    ".ci",
    ".gitignore",
    ".pre-commit-hooks.yaml",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "addons",
    "docs",
    "pyproject.toml",
    "recordings",
    "requirements.lock",
    "rules",
    "scripts",
    "tests",
}
# Written in parts, so that this file passes its own test.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|Users/\w+|home/\w+|opt/(?:pypi|wheels)[\w-]*)" + r"/[\w.]")
REGISTRY = re.compile("|".join(("pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.org", "deb" + r"\.debian")))
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;\\]+)(?P<marker> ; [^\\]+)? \\$")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?$")


def tracked() -> list[Path]:
    """Return the files under version control, or every file where there is no git."""
    ran = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip("not a git checkout: nobody knows which files belong to it")
    return [ROOT / name for name in ran.stdout.split("\0") if name and (ROOT / name).is_file()]


def pins(lock: Path) -> dict[tuple[str, str], str]:
    """Return each pin's version by name and marker."""
    found = (PIN.match(line) for line in lock.read_text().splitlines())
    return {(pin["name"], pin["marker"] or ""): pin["version"] for pin in found if pin}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_top_level_is_what_the_design_says():
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} - {".gitattributes", ".editorconfig"} == TOP


def test_no_file_names_a_machine_or_a_registry():
    seen = []
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="replace")
        seen += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in MACHINE_PATH.finditer(text)]
        seen += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in REGISTRY.finditer(text)]
    assert seen == []


@pytest.mark.parametrize("lock", LOCKS, ids=["run", "test"])
def test_locks_hold_names_versions_and_hashes_only(lock):
    odd = [line for line in lock.read_text().splitlines() if not PIN.match(line) and not HASH.match(line)]
    assert odd == []
    text = lock.read_text()
    assert len(re.findall(r"^[a-z]", text, re.MULTILINE)) == len(pins(lock)), "a pin is there twice"
    assert not re.search(r"\\\n[a-z]", text), "a pin without a hash"


def test_the_test_lock_is_the_run_lock_and_more():
    run, test = ({(name, version) for (name, _), version in pins(lock).items()} for lock in LOCKS)
    assert run < test


@pytest.mark.parametrize(("lock", "extra"), [(LOCKS[0], None), (LOCKS[1], "test")], ids=["run", "test"])
def test_locks_cover_what_pyproject_asks_for(lock, extra):
    asked = [*project()["project"]["dependencies"], *project()["dependency-groups"]["build"]]
    asked += project()["project"]["optional-dependencies"][extra] if extra else []
    names = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower().replace("_", "-") for each in asked}
    assert names <= {name for name, _ in pins(lock)}


def test_mitmproxy_is_held_below_12_3():
    assert "mitmproxy>=12.2.3,<12.3" in project()["project"]["dependencies"]
    assert pins(LOCKS[0])["mitmproxy", ""].startswith("12.2.")


@pytest.mark.parametrize("script", [*(f"scripts/{name}" for name in SCRIPTS), ".ci/run"])
def test_scripts_run_from_anywhere_and_stop_at_the_first_error(script):
    path = ROOT / script
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n#")
    assert "set -euo pipefail" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_ci_calls_check_and_test_and_nothing_else_of_ours():
    assert re.findall(r"^scripts/\w+", (ROOT / ".ci/run").read_text(), re.MULTILINE) == [
        "scripts/check",
        "scripts/test",
    ]


def test_versions_agree():
    assert project()["project"]["version"] == tidegate.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_says_what_it_is():
    bare = []
    for path in sorted((ROOT / "addons").rglob("*.py")):
        text = path.read_text()
        if text.strip() and not text.startswith('"""'):
            bare.append(str(path.relative_to(ROOT)))
    assert bare == []


# ------------------------------------------------------------------------------------------------ finding a Python


def find_python(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``find_python`` of the set-up where PATH holds only what ``home/bin`` holds."""
    for tool in ("bash", "dirname", "sort"):
        where = next(Path(folder) / tool for folder in ("/bin", "/usr/bin") if (Path(folder) / tool).exists())
        (home / "bin" / tool).symlink_to(where)
    return subprocess.run(
        [str(home / "bin" / "bash"), "-c", f". {ROOT}/scripts/_setup.sh; find_python"],
        env={"PATH": str(home / "bin"), "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def home(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.13"):  # as a pyenv shim does for a version that is not chosen
        shim = tmp_path / "bin" / name
        shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
        shim.chmod(0o755)
    return tmp_path


def fake(path: Path, version: tuple[int, int]) -> None:
    """Make a wrapper that answers as this interpreter, or as one that is too old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n' if version >= (3, 12) else "#!/bin/sh\nexit 1\n")
    path.chmod(0o755)


def test_a_shim_that_does_not_run_is_passed_over(home):
    fake(home / "bin" / "python3.12", (3, 12))
    assert find_python(home).stdout.strip() == str(home / "bin" / "python3.12")


def test_the_newest_of_pyenv_is_taken(home):
    for version in ((3, 9), (3, 12), (3, 13)):
        fake(home / ".pyenv" / "versions" / "{}.{}.1".format(*version) / "bin" / "python", version)
    assert find_python(home).stdout.strip() == str(home / ".pyenv/versions/3.13.1/bin/python")


def test_a_named_python_wins(home):
    fake(home / "mine", (3, 13))
    fake(home / "bin" / "python3.12", (3, 12))
    assert find_python(home, PYTHON=str(home / "mine")).stdout.strip() == str(home / "mine")


def test_without_a_python_the_message_says_how_to_get_one(home):
    fake(home / ".pyenv" / "versions" / "3.11.4" / "bin" / "python", (3, 11))
    ran = find_python(home)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "needs Python 3.12 or newer, and found none that runs" in ran.stderr
    assert "PYTHON=/path/to/python3.13" in ran.stderr
