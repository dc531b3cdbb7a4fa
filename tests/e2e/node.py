"""Packages of npm for tests: installed once, outside of the repository, at exact versions."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate-tests"


def node_modules(name: str, *packages: str) -> Path:
    """Install packages (``NAME@VERSION``) into a folder of their own; return it.

    Skips where there is no node; under ``CI`` that is a failure.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("node and npm")
    folder = HOME / f"{name}-{'-'.join(sorted(packages)).replace('@', '_').replace('/', '_')}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes of one test run
        if not (folder / "done").exists():
            _install(folder, packages)
            (folder / "done").touch()
    return folder


def _install(folder: Path, packages: tuple[str, ...]) -> None:
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    if done.returncode:
        missing(f"npm packages ({packages[0]} ...: {done.stderr.strip().splitlines()[-1:]})")


def missing(what: str) -> None:
    """Skip for want of something; fail where everything should be there."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}, and CI has to have it")
    pytest.skip(f"needs {what}")
