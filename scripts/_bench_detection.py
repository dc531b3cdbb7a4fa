"""Measure detection: recall, false findings and speed of the shipped packs on the detection corpora.

The corpora are not part of the repository: ``TIDEGATE_CORPORA`` names their folder, else ``../shared/corpora`` beside
the checkout is taken. Everything goes through ``inspect_text``, as ``tidegate scan`` does. A row of secrets counts as
found when any rule of the class secrets finds anything in it; personal data when a finding overlaps the labelled span.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import platform
import random
import statistics
import string
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from _bench_entities import GROUPS, TRUE, contradicted, group, is_bare

from tidegate.inspection.bodies import inspect_request
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.findings import TextFinding, inspect_text
from tidegate.inspection.rules import Severity, parse_pack
from tidegate.inspection.scoring import Scorer
from tidegate.model import Direction
from tidegate.places import CHECKOUT, shipped_packs
from tidegate.policy.loading import load as load_policy
from tidegate.policy.loading import load_packs

SECRETS = ("noseyparker", "titus", "kingfisher", "gitleaks", "detect_secrets")
# What the rules of an entity are called here, where the words of the entity's own name do not say it.
NAMES = {
    "ABA_ROUTING_NUMBER": "us-bank-routing", "CREDIT_CARD": "card-", "PHONE": "phone", "PHONE_NUMBER": "phone",
    "CRYPTO": "crypto-", "IP_ADDRESS": "ip-address ipv6-address private-ip", "DATE_TIME": "date-", "IBAN_CODE": "iban",
    "US_SSN": "us-ssn", "EMAIL_ADDRESS": "email",
    "AU_ABN": "au-abn au-business tax-number", "DE_TAX_ID": "de-steuer-id tax-number",
    "IT_VAT_CODE": "it-partita-iva tax-number",
}  # fmt: skip
KEYWORDS = (
    "ignore previous instructions", "ignore all previous", "ignore the above", "ignore your instructions",
    "disregard previous", "disregard all", "disregard the above", "forget previous instructions",
    "forget all previous", "forget your instructions", "forget everything", "new instructions", "override",
    "system prompt", "initial prompt", "your instructions", "reveal your", "repeat everything above",
    "repeat the words above", "developer mode", "dan mode", "do anything now", "jailbreak", "you are now",
    "pretend you are", "pretend to be", "act as", "roleplay", "stay in character", "no restrictions",
    "without restrictions", "unfiltered", "no ethical", "bypass", "secret key", "[system]", "<|im_start|>",
    "system:", "admin mode", "debug mode", "sudo mode", "you have no rules", "never refuse",
)  # fmt: skip
# First words of the rules that name no provider: what they find by its surroundings may well be another's secret.
GENERAL = {
    "ansible", "authorization", "basic", "bearer", "chpasswd", "cisco", "cli", "client", "connection", "credential",
    "curl", "database", "dotnet", "env", "generic", "gradle", "identified", "jdbc", "jwk", "jwt", "ldap", "netntlm",
    "netrc", "openssl", "otp", "password", "pgp", "pgpass", "powershell", "private", "putty", "rdp", "relay", "rsa",
    "secret", "service", "sk", "smb", "snmp", "sql", "sshpass", "ssh2", "tenant", "uri", "url", "wifi", "xml",
}  # fmt: skip
MARKER = "AKIATESTKEY1234567890"
WRAPPED = "Please use {} when you call the service and tell nobody."

type Row = dict[str, Any]
type Inspect = Callable[[str], Sequence[TextFinding]]


def corpora() -> Path | None:
    """Return the folder with detection/ and attachments/, if there is one."""
    folder = Path(os.environ.get("TIDEGATE_CORPORA") or CHECKOUT.parent / "shared" / "corpora")
    return folder if (folder / "detection").is_dir() else None


def load(folder: Path, name: str) -> list[Row]:
    """Read one file of rows; no rows where it is absent."""
    path = folder / "detection" / f"{name}.jsonl"
    # bytes: as a str, a line would end at every U+2028 inside a text
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def part(hit: int, of: int) -> float | None:
    """Return a rate, or nothing."""
    return round(hit / of, 4) if of else None


# ------------------------------------------------------------------------------------------------ what is found


def classes(findings: Iterable[TextFinding]) -> set[str]:
    return {each.rule.cls for each in findings}


def secrets(folder: Path, inspect: Inspect) -> list[Row]:
    """Recall by source and scope, and the negatives of a rule on which that rule fires.

    The rules that find something in the positives of a label are that label's own; a negative counts as flagged when
    one of them fires on it. Some of them name no provider (``token = ...``) or are only recorded: what they find in a
    negative may be a secret of another kind, so the negatives flagged by a provider's own rule are counted apart, too.
    """
    found = []
    observed: set[str] = set()
    for name in SECRETS:
        rows = load(folder, name)
        spans = [[each.rule for each in inspect(row["text"]) if each.rule.cls == "secrets"] for row in rows]
        fired = [{rule.id for rule in each} for each in spans]
        observed |= {rule.id for each in spans for rule in each if rule.observe}
        own: dict[str, set[str]] = defaultdict(set)
        for row, ids in zip(rows, fired, strict=True):
            if row.get("expect"):
                own[row["label"]] |= ids
        line: Row = {"source": name}
        for scope in ("rule", "global"):
            here = [bool(ids) for row, ids in zip(rows, fired, strict=True) if row["expect"] and row["scope"] == scope]
            line |= {f"{scope}_rows": len(here), f"{scope}_recall": part(sum(here), len(here))}
        enforced = [bool(ids - observed) for row, ids in zip(rows, fired, strict=True) if row["expect"]]
        line["enforced_recall"] = part(sum(enforced), len(enforced))
        negatives = [(row, ids) for row, ids in zip(rows, fired, strict=True) if not row["expect"]]
        flagged = sum(bool(ids & own[row["label"]]) for row, ids in negatives)
        line |= {"negatives": len(negatives), "own_rule_flags": flagged, "own_rate": part(flagged, len(negatives))}
        named = sum(any(names_provider(rule, observed) for rule in ids & own[row["label"]]) for row, ids in negatives)
        line |= {"provider_rule_flags": named, "provider_rate": part(named, len(negatives))}
        line["any_rule_flags"] = sum(bool(ids) for _, ids in negatives)
        found.append(line)
    return found


def names_provider(rule: str, observed: AbstractSet[str]) -> bool:
    """Tell whether a rule belongs to one provider's format, by its name, and is enforced."""
    return rule not in observed and rule.partition(".")[2].partition("-")[0] not in GENERAL


def benign(folder: Path, inspect: Inspect, plainly: Inspect) -> Row:
    """Benign look-alikes that are flagged: by class of look-alike, by severity, with decoding and without.

    Flagged is what the default policy would act on; rules that only observe are counted as recorded.
    """
    rows = load(folder, "benign_lookalikes")
    order = list(Severity)
    labels: dict[str, Row] = {}
    levels, rules, plain, recorded, true = Counter[str](), Counter[str](), 0, 0, Counter[str]()
    for row in rows:
        every = [each for each in inspect(row["text"]) if each.rule.cls != "injection"]
        findings = [each for each in every if acts(each)]
        recorded += bool(every)
        why = TRUE.get(str(row["id"]).removeprefix("benign-"))
        true.update([why] if findings and why else [])
        line = labels.setdefault(
            row["label"], {"class": row["label"], "rows": 0, "flagged": 0, "secrets": 0, "rules": []}
        )
        line["rows"] += 1
        line["flagged"] += bool(findings)
        line["secrets"] += "secrets" in classes(findings)
        line["rules"] = sorted({*line["rules"], *(each.rule.id for each in findings)})
        rules.update({each.rule.id for each in findings})
        for level in order[: max((order.index(each.rule.severity) + 1 for each in findings), default=0)]:
            levels[str(level)] += 1
        plain += any(each.rule.cls != "injection" and acts(each) for each in plainly(row["text"]))
    flagged = sum(line["flagged"] for line in labels.values())
    return {
        "rows": len(rows),
        "flagged": flagged,
        "rate": part(flagged, len(rows)),
        "recorded": recorded,
        "true": dict(true),
        "rate_without_true": part(flagged - sum(true.values()), len(rows)),
        "by_severity_from": {str(level): part(levels[str(level)], len(rows)) for level in order},
        "secrets_rate": part(sum(line["secrets"] for line in labels.values()), len(rows)),
        "rate_without_decoding": part(plain, len(rows)),
        "rules": dict(rules.most_common()),
        "by_class": sorted(labels.values(), key=lambda line: (-line["flagged"] / line["rows"], line["class"])),
    }


def own_rule(entity: str, rule: str) -> bool:
    """Tell whether a rule, by its name, is one for an entity."""
    name = rule.partition(".")[2]
    if entity in NAMES:
        return any(name.startswith(start) for start in NAMES[entity].split())
    return name.startswith(entity.lower().replace("_", "-")) or set(entity.lower().split("_")) <= set(name.split("-"))


def pii(folder: Path, inspect: Inspect) -> Row:
    """Personal data by entity: spans in sentences, and the recognizers' own examples with their negatives.

    A span is found when a finding overlaps it, an example when anything is found in it; ``acted`` leaves out rules that
    only observe. A negative counts as flagged when a rule named like the entity fires, and ``any`` when any rule does.
    """
    spans: dict[str, Counter[str]] = defaultdict(Counter)
    for row in load(folder, "presidio_research"):
        found = [each for each in inspect(row["text"]) if each.rule.cls == "pii"]
        for span in row.get("spans") or ():
            here = [each for each in found if each.start < span["end"] and each.end > span["start"]]
            spans[span["entity"]] += Counter(rows=1, found=bool(here), acted=any(map(acts, here)))
    tests: dict[str, Counter[str]] = defaultdict(Counter)
    rows = load(folder, "presidio_tests")
    torn = contradicted(rows)
    for row in rows:
        here = [each for each in inspect(row["text"]) if each.rule.cls == "pii"]
        if (row["label"], row["text"]) in torn:
            tests[row["label"]]["torn"] += 1
        elif not row["expect"]:
            own = any(own_rule(row["label"], each.rule.id) for each in here)
            tests[row["label"]] += Counter(negatives=1, flagged=own, any=bool(here))
        elif is_bare(row["text"]):
            tests[row["label"]] += Counter(rows=1, found=bool(here), acted=any(map(acts, here)), bare=1)
        else:
            tests[row["label"]] += Counter(rows=1, found=bool(here), acted=any(map(acts, here)), told=bool(here))
    lines = [entity_line(entity, counts) for entity, counts in sorted(tests.items())]
    return {
        "sentences": [entity_line(entity, counts) for entity, counts in sorted(spans.items())],
        "tests": lines,
        "tests_total": {name: total(lines, name) for name in (*GROUPS, "unsorted")},
    }


def acts(finding: TextFinding) -> bool:
    """Tell whether the default policy (rules/policy.yaml) acts on a finding: on every severity, but not on observe."""
    return not finding.rule.observe


COUNTED = ("rows", "found", "acted", "bare", "told", "negatives", "flagged", "any", "torn")


def entity_line(entity: str, counts: Counter[str]) -> Row:
    """Return what was counted for an entity, with its group and the reason for it."""
    name, why = group(entity)
    return {"entity": entity, "group": name, "why": why, **rates({key: counts[key] for key in COUNTED})}


def total(lines: Sequence[Row], name: str) -> Row:
    """Sum the lines of a group."""
    return rates({key: sum(line[key] for line in lines if line["group"] == name) for key in COUNTED})


def rates(counts: Row) -> Row:
    """Add rates to counts; ``recall_told`` leaves out rows that are a bare number."""
    return counts | {
        "recall": part(counts["found"], counts["rows"]),
        "recall_told": part(counts["told"], counts["rows"] - counts["bare"]),
        "rate": part(counts["flagged"], counts["negatives"]),
    }


def first_pass(texts: Iterable[str], scorer: Scorer) -> list[Row]:
    """Time the scan for hints alone, in microseconds of CPU, on benign texts cut to one size; the best of three."""
    joined = "\n".join(texts).encode("utf-8", "surrogatepass")
    found = []
    for name, size in (("4 KB", 4096), ("100 KB", 102_400)):
        times = []
        for at in range(0, len(joined) - size, size):
            part, best = joined[at : at + size], math.inf
            for _ in range(3):
                began = time.thread_time()
                scorer.hits(part)
                best = min(best, time.thread_time() - began)
            times.append(best * 1e6)
        if times:
            times.sort()
            p50, p99 = (round(times[min(int(len(times) * share), len(times) - 1)], 1) for share in (0.5, 0.99))
            found.append({"size": name, "texts": len(times), "p50_us": p50, "p99_us": p99})
    return found


def injection(folder: Path, inspect: Inspect, rules: Sequence[Any], scorer: Scorer | None = None) -> Row | None:
    """Recall of injection at 1 % false positives, beside a list of keywords; nothing without such rules."""
    if not any(rule.cls == "injection" for rule in rules):
        return None

    def score(text: str) -> float:
        return max((each.score for each in inspect(text) if each.rule.cls == "injection"), default=0.0)

    def words(text: str) -> float:
        lower = text.lower()
        return float(sum(each in lower for each in KEYWORDS))

    rows = {name: load(folder, name) for name in ("garak_injection", "purplellama", "bipia")}
    clean_texts = [row["text"] for each in rows.values() for row in each if row["kind"] == "benign"]
    found: Row = {"by_source": [], "first_pass": first_pass(clean_texts, scorer) if scorer is not None else []}
    for how, rate in (("rules", score), ("keywords", words)):
        scored = {name: [(row, rate(row["text"])) for row in each] for name, each in rows.items()}
        clean = sorted(at for each in scored.values() for row, at in each if row["kind"] == "benign")
        allowed = int(len(clean) * 0.01)
        threshold = clean[-allowed - 1] if clean else 0.0  # strictly above this at most 1 % of the benign rows lie
        found[how] = {"benign_rows": len(clean), "above": threshold, "false": sum(at > threshold for at in clean)}
        for name, each in scored.items():
            by_label: dict[str, list[bool]] = defaultdict(list)
            for row, at in each:
                if row["kind"] == "injection":
                    by_label[row["label"]].append(at > threshold)
            hits = [hit for label in by_label.values() for hit in label]
            largest = sorted(by_label.items(), key=lambda one: -len(one[1]))[:12]
            labels = {label: [sum(one), len(one)] for label, one in largest}
            found["by_source"].append(
                {"source": name, "how": how, "rows": len(hits), "recall": part(sum(hits), len(hits)), "labels": labels}
            )
    return found


def obfuscated(folder: Path, inspect: Inspect) -> list[Row]:
    """What is found in plain and found obfuscated, by technique; values not found in plain are left out."""
    plain: dict[str, set[str]] = {}
    lines: dict[str, Row] = {}
    for row in load(folder, "obfuscated"):
        value, kind = row["plain"], "secrets" if row["kind"] == "secret" else row["kind"]
        if value not in plain:
            plain[value] = classes((*inspect(value), *inspect(WRAPPED.format(value))))
        if kind not in plain[value]:
            continue
        line = lines.setdefault(row["obfuscation"], {"technique": row["obfuscation"], "rows": 0, "found": 0})
        line["rows"] += 1
        line["found"] += kind in classes(inspect(row["text"]))
    for line in lines.values():
        line["rate"] = part(line["found"], line["rows"])
    return sorted(lines.values(), key=lambda line: (line["rate"], line["technique"]))


def attachments(folder: Path) -> list[Row]:
    """Say of which attachments the marker's text is found, sent as a data: URL inside a text."""
    pack = f"""
pack: marker
class: secrets
version: 1
rules:
  - {{id: marker, description: The marker, severity: high, pattern: '{MARKER}', references: ['https://marker.test'],
     match: ['{MARKER}', 'x {MARKER}'], pass: ['x', 'y']}}
"""
    rules, faults = parse_pack(pack, "marker.yaml")
    assert not faults
    engine = build(rules, None)
    found = []
    for path in sorted((folder / "attachments").glob("*")):
        url = "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()
        found.append({"file": path.name, "found": bool(inspect_text(engine, f"See {url} for it."))})
    return found


# ------------------------------------------------------------------------------------------------ how fast


def unseen(size: int, chance: random.Random) -> str:
    """Make a text of about ``size`` characters: prose, code, numbers and ids, and a secret in one of five."""
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(400)]
    pieces: list[str] = []
    length = 0
    while length < size:
        match chance.randint(0, 19):
            case 0:
                piece = f'{{"id": "{chance.getrandbits(64):016x}", "created": {chance.randint(10**9, 2 * 10**9)}}}\n'
            case 1:
                name, value = chance.choices(words, k=2)
                piece = f"def {name}({value}: int) -> str:\n    return '{value}'\n"
            case 2:
                piece = f"{chance.randint(1, 99999)}.{chance.randint(0, 99):02d} "
            case _:
                piece = " ".join(chance.choices(words, k=12)) + chance.choice((". ", ", ", "\n"))
        pieces.append(piece)
        length += len(piece)
    if chance.random() < 0.2:
        token = "".join(chance.choices(string.ascii_letters + string.digits, k=36))
        pieces.insert(chance.randrange(len(pieces)), f"GITHUB_TOKEN=ghp_{token}\n")
    return "".join(pieces)[:size]


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of wall time and of processor time that something takes."""
    began, used = time.perf_counter(), time.thread_time()
    work()
    return (time.perf_counter() - began) * 1000, (time.thread_time() - used) * 1000


def timed(name: str, times: Sequence[tuple[float, float]]) -> Row:
    line: Row = {"size": name, "texts": len(times)}
    for prefix, each in zip(("", "cpu_"), zip(*times, strict=True), strict=True):
        ordered = sorted(each)
        worst = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
        for figure, value in (("p50", statistics.median(ordered)), ("p99", worst), ("max", ordered[-1])):
            line[f"{prefix}{figure}_ms"] = round(value, 3)
    return line


def speed(inspect: Inspect, seed: int) -> list[Row]:
    """Time texts that no one has seen before, each once, and conversations of which only the last turn is new."""
    chance = random.Random(seed)
    for _ in range(20):
        inspect(unseen(4_000, chance))  # the automata meet their bytes
    found = []
    for name, size, count in (("4 KB", 4_000, 500), ("100 KB", 100_000, 60), ("1 MB", 1_000_000, 12)):
        texts = [unseen(size, chance) for _ in range(count)]
        found.append(timed(name, [spent(lambda text=text: inspect(text)) for text in texts]))  # type: ignore[misc]
    return [*found, timed("100 KB, only the last turn new", turns(chance))]


def turns(chance: random.Random) -> list[tuple[float, float]]:
    """Judge request bodies as the gate does, under the shipped policy: each is one before it and a turn of 1 KB."""
    policy = load_policy(CHECKOUT / "rules" / "policy.yaml", engine_cache=DiskCache())
    endpoint = policy.dialects["openai"].endpoints["chat"]
    decide = policy.decide(Direction.PROMPT)

    def said(size: int) -> str:
        return next(text for text in iter(lambda: unseen(size, chance), "") if "ghp_" not in text)

    times = []
    for _ in range(12):
        messages = [{"role": "user", "content": said(chance.randint(500, 4_000))} for _ in range(46)]
        inspect_request(endpoint, policy.engine, decide, {"model": "m", "messages": list(messages)})
        for _ in range(4):
            messages += [{"role": "assistant", "content": said(800)}, {"role": "user", "content": said(200)}]
            body = {"model": "m", "messages": [dict(each) for each in messages]}
            times.append(
                spent(lambda body=body: inspect_request(endpoint, policy.engine, decide, body))  # type: ignore[misc]
            )
    return times


def adversarial(engine: Engine, count: int, seed: int) -> list[str]:
    """Make units to repeat: beginnings of what rules look for, and what costs a backtracking engine most."""
    chance = random.Random(seed)
    fixed = [
        "a",
        "0",
        "eyJ",
        "key_",
        "@",
        "a@",
        "a.",
        "-",
        "=",
        "\n",
        "-----BEGIN ",
        "4111 ",
        "1.",
        "::",
        "%41",
        "\\u0041",
    ]
    fixed += [
        "AKIA",
        "sk-",
        "ghp_",
        "xox",
        "password=",
        "token: ",
        "://a:b@",
        "\u200b",
        "\U0001f600",
        "AAAA",
        "41",
        "&#65;",
    ]
    heads = []
    for rule in engine.rules:
        for example in rule.match[:2]:
            heads += [
                example[: chance.randint(1, 40)],
                example[: max(1, len(example) // 2)],
                example + chance.choice(" ,x"),
            ]
    chance.shuffle(heads)
    units = [*fixed, *heads]
    while len(units) < count:
        units.append(chance.choice(heads)[:12] + chance.choice(fixed))
    return units[:count]


def hostile(engine: Engine, inspect: Inspect, count: int, seed: int) -> Row:
    """Take the processor time of each input at 8 KB and 32 KB: linear is four times as long."""

    def milliseconds(text: str) -> float:
        return min(spent(lambda: inspect(text))[1] for _ in range(2))

    worst: list[tuple[float, float, str]] = []
    for unit in adversarial(engine, count, seed):
        small, large = (unit * (size // len(unit) + 1) for size in (8_000, 32_000))
        short = milliseconds(small[:8_000])
        long = milliseconds(large[:32_000])
        worst.append((long / (4 * short), long, unit))
    slow = max(worst, key=lambda each: each[1])
    steep = [each for each in worst if each[1] > 1.0]  # below a millisecond the clock decides
    return {
        "inputs": len(worst),
        "slowest_ms_per_32_kb": round(slow[1], 2),
        "slowest_rules": sorted({each.rule.id for each in inspect((slow[2] * 100)[:2_000])}),
        "median_ms_per_32_kb": round(statistics.median(each[1] for each in worst), 3),
        "most_above_linear": round(max((each[0] for each in steep), default=1.0), 2),
    }


# ------------------------------------------------------------------------------------------------ put together


def measure(folder: Path, options: argparse.Namespace) -> Row:
    """Measure everything."""
    engine = load_packs(shipped_packs(), engine_cache=DiskCache(), detectors=False)

    def inspect(text: str) -> Sequence[TextFinding]:
        return inspect_text(engine, text)

    def plainly(text: str) -> Sequence[TextFinding]:
        return [TextFinding(each.rule, each.start, each.end) for each in engine.find_text(text)]

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    found: Row = {"rules": dict(Counter(rule.pack for rule in engine.rules)), "machine": machine()}
    for name, step in (
        ("secrets", lambda: secrets(folder, inspect)),
        ("benign", lambda: benign(folder, inspect, plainly)),
        ("pii", lambda: pii(folder, inspect)),
        ("injection", lambda: injection(folder, inspect, engine.rules, engine.scorer)),
        ("obfuscated", lambda: obfuscated(folder, inspect)),
        ("attachments", lambda: attachments(folder)),
        ("speed", lambda: speed(inspect, options.seed)),
        ("hostile", lambda: hostile(engine, inspect, options.hostile, options.seed)),
    ):
        say(name)
        found[name] = step()
    if options.peers:
        from _bench_peers import peers

        say("peers")
        found["peers"] = peers({name: load(folder, name) for name in (*SECRETS, "benign_lookalikes")}, inspect, say)
    return found


def machine() -> Row:
    return {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}


def detection(options: argparse.Namespace) -> int:
    """Measure and print; with no corpora, say so."""
    folder = corpora()
    if folder is None:
        print(
            "bench: the detection corpora are not here (TIDEGATE_CORPORA, or ../shared/corpora): nothing was measured."
        )
        return 0
    # a seed of its own for each run: texts that were timed before are no longer unseen
    options.seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    found = measure(folder, options)
    if options.json:
        print(json.dumps(found))
    else:
        from _bench_tables import document, show

        print(document(found)) if options.markdown else show(found)
        if options.write is not None:
            write(options.write, document(found))
    return 0


def write(path: Path, tables: str) -> None:
    """Put the tables between the two marks of a page."""
    begin, end = "<!-- measured -->\n", "<!-- /measured -->\n"
    head, _, rest = path.read_text("utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(head + begin + "\n" + tables + "\n" + end + tail, "utf-8")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench --detection", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/detection.md")
    parser.add_argument("--write", type=Path, help="put the tables between the marks of this page, too")
    parser.add_argument(
        "--peers", action="store_true", help="measure other scanners beside, in an environment of their own"
    )
    parser.add_argument("--seed", type=int, help="repeat the texts of an earlier run")
    parser.add_argument("--hostile", type=int, default=1000, help="how many adversarial inputs (default 1000)")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Measure, and print a table or JSON."""
    return detection(arguments(words))


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if word != "--detection"]))
