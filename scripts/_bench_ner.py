"""Measure a local model as the gate runs it: what it finds, what it takes for names by mistake, and what it costs.

Everything goes through the worker process of ``tidegate.inspection.ner.pool``. The sentences are those of the corpus
``detection/presidio_research.jsonl`` (see ``_bench_detection``), which is not part of the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _bench_detection import corpora

from tidegate.inspection.ner.pool import NerError, Pool
from tidegate.inspection.ner.spec import Ner, NerSpan
from tidegate.policy.ner import read_ner
from tidegate.policy.ner_files import open_ner
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node, parse

ENTITIES = ("PERSON=names", "LOCATION=addresses", "GPE=addresses", "ADDRESS=addresses", "STREET_ADDRESS=addresses")
SIZES = (1_000, 4_000, 16_000)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench --ner", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="the model's folder, as inspection.ner.folder names it")
    parser.add_argument("--file", default="model.onnx", help="the ONNX file below it")
    parser.add_argument("--label", action="append", default=[], metavar="LABEL=CLASS", help="as inspection.ner.labels")
    parser.add_argument("--entity", action="append", metavar="ENTITY=CLASS", help="what the corpus calls a class")
    parser.add_argument("--threshold", type=float, default=0.5, help="as inspection.ner.threshold")
    return parser.parse_args(words)


def opened(options: argparse.Namespace) -> Ner:
    """Open a model as a policy does; ends the program with the faults of one that is not usable."""
    labels = dict(each.split("=", 1) for each in options.label)
    section = {"folder": str(options.folder.resolve()), "file": options.file, "labels": labels, "budget": "1h"}
    text = json.dumps({**section, "threshold": options.threshold})
    root, _ = parse(text, "the command line")
    reader = Reader("the command line")
    doc = read_ner(reader, Node("ner", 1, root.value) if root is not None else None)
    found = open_ner("the command line", doc, Path())
    if found.ner is None:
        sys.exit("\n".join(map(str, (*reader.faults, *found.faults))))
    return found.ner


def clock(pid: int) -> float:
    """Return the processor time of a process in seconds; Linux tells it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


async def measured(options: argparse.Namespace) -> None:
    folder = corpora()
    if folder is None:
        sys.exit("no corpora: TIDEGATE_CORPORA names their folder")
    lines = (folder / "detection" / "presidio_research.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line]
    pool = Pool(opened(options))
    began = time.perf_counter()
    try:
        await pool.start()
    except NerError as why:
        sys.exit(f"inspection.ner: {why}")
    (pid,) = pool.pids
    loaded = time.perf_counter() - began
    print(f"loaded in {loaded:.1f} s, {memory(pid)} MB resident")
    try:
        texts = [str(row["text"]) for row in rows]
        found = (await pool.ask(texts)).spans
        recall(rows, found, dict(each.split("=", 1) for each in options.entity or ENTITIES))
        prose = " ".join(texts)
        for size in SIZES:
            cost = []
            for number in range(5):
                before = clock(pid)
                await pool.ask([f"{number} {prose[number * size :][:size]}"])
                cost.append((clock(pid) - before) * 1000)
            best = f"{min(cost) / size * 1000:.0f} per 1,000 at best"
            print(f"{size:>6} characters: {statistics.median(cost):.0f} ms of one core ({best})")
        print(f"then {memory(pid)} MB resident")
    finally:
        await pool.close()


def recall(rows: Sequence[dict[str, Any]], found: Mapping[str, tuple[NerSpan, ...]], entities: dict[str, str]) -> None:
    """Print, for each entity, which of its spans a finding of its class touches, and which are covered whole."""
    spans: Counter[str] = Counter()
    touched: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    outside = total = quiet = fired = 0
    for row in rows:
        text = str(row["text"])
        labelled, own = row.get("spans") or [], found.get(text, ())
        total += len(own)
        outside += sum(not any(a.start < b["end"] and b["start"] < a.end for b in labelled) for a in own)
        if not labelled:
            quiet += 1
            fired += bool(own)
        for each in labelled:
            cls = entities.get(each["entity"])
            if cls is None:
                continue
            start, end = each["start"], each["end"]
            covered = {at for one in own if one.cls == cls for at in range(one.start, one.end)}
            spans[each["entity"]] += 1
            touched[each["entity"]] += any(at in covered for at in range(start, end))
            whole[each["entity"]] += all(at in covered for at in range(start, end) if text[at].isalnum())
    print("| entity | spans | touched | covered whole |\n| --- | --- | --- | --- |")
    for entity, count in sorted(spans.items()):
        print(f"| {entity} | {count} | {touched[entity] / count:.1%} | {whole[entity] / count:.1%} |")
    print(
        f"{outside} of {total} findings touch nothing that is labelled; {fired} of {quiet} rows without any are flagged"
    )


def main(words: Sequence[str]) -> None:
    asyncio.run(measured(arguments(words)))
