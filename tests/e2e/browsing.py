"""A real Chromium, driven from Python: one node process that takes a line of JSON for each deed."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.node import missing, node_modules

SCRIPT = Path(__file__).with_name("browser.mjs")
PACKAGES = ("playwright-core@1.65.1", "axe-core@4.14.1")


class Page:
    """One page of a browser; each call waits until it is done, and raises what the browser says."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name

    def do(self, deed: str, **more: Any) -> Any:
        """Have something done; see ``browser.mjs``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": deed, "page": self._name, **more}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise AssertionError(f"{deed} {more}: {answer['error']}")
        return answer["value"]

    def beside(self, name: str) -> Page:
        """Open another tab of the same browser."""
        page = Page(self._process, name)
        self.do("tab", name=name, beside=self._name)
        return page


class Browser:
    """A running Chromium. Each page that is opened has cookies of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._opened = 0

    def open(self, **options: Any) -> Page:
        """Open a page; ``options`` are those of playwright's ``newContext``."""
        self._opened += 1
        page = Page(self._process, f"page {self._opened}")
        page.do("open", name=page._name, options=options)
        return page


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser and end it. Skips where there is none; under ``CI`` that is a failure."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("chromium")
    command = ["node", str(SCRIPT), str(node_modules("browser", *PACKAGES)), str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["value"] == "ready"
            yield Browser(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
