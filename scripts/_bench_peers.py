"""Other scanners on the same rows: each is installed into an environment of its own, and never a dependency.

Run as a program inside that environment this file is the peer: rows of JSON in, one line of hits and times out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

INSTALL = {
    "detect-secrets": ["detect-secrets==1.5.0"],
    "presidio patterns": ["presidio-analyzer==2.2.366"],
    # its fork of detect-secrets takes the original's place
    "llm-guard secrets": ["bc-detect-secrets==1.5.52", "presidio-anonymizer==2.2.366", "structlog==26.1.0"],
}
# Without what it depends on: the models behind its other scanners want a torch that is not made for this Python.
ALONE = {"llm-guard secrets": ["llm-guard==0.3.10"]}
BUDGET = 60.0  # seconds for one scanner over all rows; what it did not reach is not counted


def peers(rows: dict[str, list[dict[str, Any]]], inspect: Callable[[str], object], say: Callable[[str], None]) -> list:
    """Return a line for tidegate and each peer: recall by source, benign rows flagged, milliseconds per 4 KB."""
    from _bench_detection import spent, unseen

    sample = [(name, row["text"], row.get("expect")) for name, each in rows.items() for row in each]
    sample = [each for each in sample if each[2] or each[0] == "benign_lookalikes"]
    import random
    import statistics

    chance = random.Random(time.time_ns())
    texts = [unseen(4_000, chance) for _ in range(60)]
    hits = [bool(inspect(text)) for _, text, _ in sample]
    own = {
        "scanner": "tidegate",
        **line(sample, hits),
        "ms": round(statistics.median(spent(partial(inspect, t))[0] for t in texts), 3),
    }
    found = [own]
    for name, packages in INSTALL.items():
        say(f"peer {name}")
        found.append({"scanner": name, **ask(name, packages, sample, texts)})
    return found


def line(sample: list[Any], hits: list[bool | None]) -> dict[str, Any]:
    """Count hits by source; rows a scanner did not reach are left out."""
    counts: dict[str, list[int]] = {}
    for (name, _, _), hit in zip(sample, hits, strict=True):
        if hit is not None:
            count = counts.setdefault(name, [0, 0])
            count[0] += hit
            count[1] += 1
    rates = {name: round(hit / of, 4) for name, (hit, of) in counts.items()}
    return {
        "benign": rates.pop("benign_lookalikes", None),
        "recall": rates,
        "rows": sum(each[1] for each in counts.values()),
    }


def ask(name: str, packages: list[str], sample: list[Any], texts: list[str]) -> dict[str, Any]:
    """Install a peer and run this file in its environment; say why where that fails."""
    folder = Path(tempfile.gettempdir()) / f"tidegate-peer-{name.split(maxsplit=1)[0]}"
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        made = subprocess.run([sys.executable, "-m", "venv", folder], capture_output=True, check=False)
        pip = [str(python), "-m", "pip", "install", "--quiet", *packages]
        made = made if made.returncode else subprocess.run(pip, capture_output=True, check=False, timeout=900)
        if name in ALONE and not made.returncode:
            pip[-len(packages) :] = ["--no-deps", *ALONE[name]]
            made = subprocess.run(pip, capture_output=True, check=False, timeout=900)
        if made.returncode:
            return {"why": "it does not install here"}
        (folder / "installed").write_text("")
    # rows in an order that meets every source early, since a slow scanner does not reach the end
    order = sorted(range(len(sample)), key=lambda index: (index * 2654435761) % 2**32)
    body = json.dumps({"peer": name, "rows": [sample[index][1] for index in order], "texts": texts})
    ran = subprocess.run([str(python), __file__], input=body, capture_output=True, text=True, check=False, timeout=900)
    if ran.returncode:
        return {"why": f"it does not run here ({ran.stderr.strip()[-200:]!r})"}
    answer = json.loads(ran.stdout.splitlines()[-1])
    hits: list[bool | None] = [None] * len(sample)
    for index, hit in zip(order, answer["hits"], strict=False):
        hits[index] = hit
    return {**line(sample, hits), "ms": answer["ms"]}


# ------------------------------------------------------------------------------------------------ inside the peer


def detect_secrets() -> Callable[[str], bool]:
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import default_settings

    def find(text: str) -> bool:
        with (
            tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", errors="replace") as file,
            default_settings(),
        ):
            file.write(text)
            file.flush()
            secrets = SecretsCollection()
            secrets.scan_file(file.name)
            return bool(secrets.json())

    return find


def presidio() -> Callable[[str], bool]:
    from presidio_analyzer import PatternRecognizer, RecognizerRegistry

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    patterns = [each for each in registry.recognizers if isinstance(each, PatternRecognizer)]
    return lambda text: any(
        found.score >= 0.5 for each in patterns for found in each.analyze(text, each.supported_entities, None) or ()
    )


def llm_guard() -> Callable[[str], bool]:
    import importlib.util
    import types

    spec = importlib.util.find_spec("llm_guard")
    assert spec is not None
    assert spec.submodule_search_locations
    top = spec.submodule_search_locations[0]
    for name, path in (("llm_guard", top), ("llm_guard.input_scanners", f"{top}/input_scanners")):
        module = types.ModuleType(name)  # without the imports of its __init__, which want torch
        module.__path__ = [path]
        sys.modules[name] = module
    from llm_guard.input_scanners.secrets import Secrets

    def find(text: str) -> bool:
        try:
            return not Secrets().scan(text)[1]  # a new one each time: it keeps what it found in earlier texts
        except Exception:  # noqa: BLE001 - it found a value that it cannot find again, and fails to mask it
            return True

    return find


def inside() -> None:
    """Answer one question from standard input."""
    question = json.loads(sys.stdin.read())
    made = {"detect-secrets": detect_secrets, "presidio patterns": presidio, "llm-guard secrets": llm_guard}
    find = made[question["peer"]]()

    def within(texts: list[str], seconds: float) -> Iterator[tuple[bool, float]]:
        end = time.monotonic() + seconds
        for text in texts:
            began = time.perf_counter()
            hit = find(text)
            yield hit, (time.perf_counter() - began) * 1000
            if time.monotonic() > end:
                return

    times = sorted(spent for _, spent in within(question["texts"], 10))
    hits = [hit for hit, _ in within(question["rows"], BUDGET)]
    print(json.dumps({"hits": hits, "ms": round(times[len(times) // 2], 3)}))


if __name__ == "__main__":
    inside()
