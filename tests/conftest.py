"""What many tests start: the sample model as a real process, and a control store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.state.control import Control


@dataclass(frozen=True)
class SampleModel:
    """A running sample model; ``url`` ends without a slash and without ``/v1``."""

    url: str
    port: int

    def hits(self) -> int:
        return int(self.seen()["hits"])

    def seen(self) -> dict:
        """Return the count of requests and the outline of the last one."""
        with urllib.request.urlopen(f"{self.url}/hits", timeout=5) as answer:
            return json.load(answer)


@contextlib.contextmanager
def sample_model_process(delay: float = 0.0) -> Iterator[SampleModel]:
    """Start a sample model on a free port and stop it at the end."""
    command = [sys.executable, "-m", "tidegate.sample_model", "--port", "0", "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            line = process.stdout.readline()
            assert "http://" in line, "the sample model did not start"
            url = line.split()[-1]
            yield SampleModel(url, int(url.rsplit(":", 1)[1]))
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="session")
def sample_model() -> Iterator[SampleModel]:
    """The sample model, one for the whole run, without delays."""
    with sample_model_process() as running:
        yield running


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """A control store of the test's own, running."""
    control = Control(tmp_path / "control.db")
    control.start()
    yield control
    control.close()
