"""scripts/bench --detection: what it counts, on made-up corpora, and that it says so where there are none."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.places import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "_bench_detection.py"
ENTITIES = CHECKOUT / "scripts" / "_bench_entities.py"
TOKEN = "ghp_" + "Zq3vT8bLw0xNf5RkYc7HsJ2mPdUaEg1i4oBu"

ROWS = {
    "gitleaks": [
        {"id": "1", "kind": "secret", "label": "gh", "text": TOKEN, "scope": "rule", "expect": True},
        {"id": "2", "kind": "secret", "label": "gh", "text": "nothing", "scope": "rule", "expect": True},
        {"id": "3", "kind": "secret", "label": "gh", "text": TOKEN, "scope": "global", "expect": True},
        {"id": "4", "kind": "benign", "label": "gh", "text": TOKEN, "scope": "rule", "expect": False},
        {"id": "5", "kind": "benign", "label": "other", "text": TOKEN, "scope": "rule", "expect": False},
    ],
    "titus": [
        {"label": "named", "text": "password: 'c0rrect-Horse!9'", "scope": "rule", "expect": True},
        {"label": "named", "text": "password = 'an0ther-Horse!8'", "scope": "rule", "expect": False},
        {"label": "shop", "text": "acme.myshopify.com", "scope": "rule", "expect": True},
        {"label": "shop", "text": "acme2.myshopify.com", "scope": "rule", "expect": False},
    ],
    "benign_lookalikes": [
        {"id": "1", "kind": "benign", "label": "prose", "text": "a word", "scope": "global", "expect": False},
        {"id": "2", "kind": "benign", "label": "mail", "text": "jane@acme.de", "scope": "global", "expect": False},
        {"id": "3", "kind": "benign", "label": "net", "text": "at 10.0.0.1", "scope": "global", "expect": False},
        {
            "id": "benign-00194",
            "kind": "benign",
            "label": "mail",
            "text": "j@acme.de",
            "scope": "global",
            "expect": False,
        },
    ],
    "presidio_research": [
        {
            "id": "1",
            "text": "jane@acme.de is Jane",
            "spans": [{"entity": "EMAIL_ADDRESS", "start": 0, "end": 12}, {"entity": "PERSON", "start": 16, "end": 20}],
        }
    ],
    "presidio_tests": [
        {"id": "1", "label": "EMAIL_ADDRESS", "text": "jane@acme.de", "expect": True},
        {"id": "2", "label": "EMAIL_ADDRESS", "text": "jim@acme.de", "expect": False},
        {"id": "3", "label": "US_SSN", "text": "jim@acme.de", "expect": False},
        {"id": "4", "label": "US_SSN", "text": "536904399", "expect": True},
        {"id": "5", "label": "IP_ADDRESS", "text": "host 10.0.0.1", "expect": True},
        {"id": "6", "label": "IP_ADDRESS", "text": "host 8.8.8.8", "expect": True},
        {"id": "7", "label": "IP_ADDRESS", "text": "host 9.9.9.9", "expect": True},
        {"id": "8", "label": "IP_ADDRESS", "text": "host 9.9.9.9", "expect": False},
        {"id": "9", "label": "NEW_ENTITY", "text": "nothing", "expect": True},
    ],
    "obfuscated": [
        {"id": "1", "kind": "secret", "label": "gh", "obfuscation": "plain", "plain": TOKEN, "text": f"use {TOKEN}"},
        {"id": "2", "kind": "secret", "label": "gh", "obfuscation": "gone", "plain": TOKEN, "text": "use it"},
        {"id": "3", "kind": "secret", "label": "no", "obfuscation": "gone", "plain": "unknown", "text": "use it"},
    ],
}


def bench(*words: str, corpora: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / "_bench.py"), "--detection", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"TIDEGATE_CORPORA": str(corpora)},
        timeout=170,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("detection", "attachments"):
        (folder / name).mkdir()
    for name, rows in ROWS.items():
        (folder / "detection" / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "attachments" / "note.txt").write_text("x")
    return folder


def test_without_corpora_it_says_so(tmp_path: Path) -> None:
    ran = bench(corpora=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.startswith("bench: the detection corpora are not here")


def test_made_up_corpora_are_counted(folder: Path) -> None:
    ran = bench("--json", "--hostile", "3", "--seed", "1", corpora=folder)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    line = next(each for each in found["secrets"] if each["source"] == "gitleaks")
    assert (line["rule_rows"], line["rule_recall"], line["global_rows"], line["global_recall"]) == (2, 0.5, 1, 1.0)
    assert (line["negatives"], line["own_rule_flags"], line["any_rule_flags"]) == (2, 1, 2)
    assert (line["provider_rule_flags"], line["enforced_recall"]) == (1, 0.6667)
    line = next(each for each in found["secrets"] if each["source"] == "titus")
    assert (line["own_rule_flags"], line["provider_rule_flags"], line["any_rule_flags"]) == (2, 0, 2)
    assert (line["rule_recall"], line["enforced_recall"]) == (1.0, 0.5)
    benign = found["benign"]
    assert (benign["rows"], benign["flagged"], benign["recorded"], benign["secrets_rate"]) == (4, 2, 3, 0.0)
    assert (sum(benign["true"].values()), benign["rate_without_true"]) == (1, 0.25)
    assert [each["class"] for each in found["benign"]["by_class"] if each["flagged"]] == ["mail"]
    sentences = {each["entity"]: each["recall"] for each in found["pii"]["sentences"]}
    assert sentences == {"EMAIL_ADDRESS": 1.0, "PERSON": 0.0}
    tests = {each["entity"]: (each["found"], each["flagged"]) for each in found["pii"]["tests"]}
    assert tests == {"EMAIL_ADDRESS": (1, 1), "IP_ADDRESS": (2, 0), "NEW_ENTITY": (0, 0), "US_SSN": (0, 0)}
    entities = {each["entity"]: each for each in found["pii"]["tests"]}
    assert (entities["US_SSN"]["bare"], entities["US_SSN"]["any"], entities["US_SSN"]["recall_told"]) == (1, 1, None)
    assert (entities["IP_ADDRESS"]["rows"], entities["IP_ADDRESS"]["acted"], entities["IP_ADDRESS"]["torn"]) == (
        2,
        1,
        2,
    )
    groups = {name: each["rows"] for name, each in found["pii"]["tests_total"].items()}
    assert groups == {"checked": 4, "named": 0, "uncovered": 0, "unsorted": 1}
    techniques = {each["technique"]: (each["rows"], each["found"]) for each in found["obfuscated"]}
    assert techniques == {"plain": (1, 1), "gone": (1, 0)}
    assert [each["file"] for each in found["attachments"]] == ["note.txt"]
    sizes = ["4 KB", "100 KB", "1 MB", "100 KB, only the last turn new"]
    assert [each["size"] for each in found["speed"]] == sizes
    assert all(0 < each[f"{cpu}p50_ms"] <= each[f"{cpu}max_ms"] for each in found["speed"] for cpu in ("", "cpu_"))
    assert found["hostile"]["inputs"] == 3
    assert base64.b64encode(TOKEN.encode()).decode() not in ran.stdout
    assert TOKEN not in ran.stdout


def test_the_tables_are_put_between_the_marks_of_a_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    ran = bench("--markdown", "--hostile", "3", "--write", str(page), corpora=folder)
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- measured -->\n")
    assert text.endswith("<!-- /measured -->\nafter\n")
    assert "old" not in text
    assert "| gitleaks | 2 | 50.0% | 1 | 100.0% | 66.7% | 2 | 1 (50.0%) | 1 (50.0%) | 2 |" in text
    assert "### Secrets" in ran.stdout


def test_an_entity_is_in_one_group_with_a_reason() -> None:
    groups = runpy.run_path(str(ENTITIES))["GROUPS"]
    entities = [entity for reasons in groups.values() for entity in reasons]
    assert len(entities) == len(set(entities))
    assert all(reason for reasons in groups.values() for reason in reasons.values())
