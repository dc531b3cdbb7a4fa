"""``tidegate rules``: what is listed, shown, tried, counted and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_scanning import PACK, TOKEN, run


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "house.yaml"
    path.write_text(PACK)
    return path


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ((), ["house.acme-token", "house.acme-name"]),
        (("--class", "pii"), ["house.acme-name"]),
        (("--severity", "high"), ["house.acme-token"]),
        (("--class", "other"), []),
    ],
    ids=["all", "class", "severity", "none"],
)
def test_rules_are_listed_by_what_is_asked_for(pack: Path, words, ids) -> None:
    done = run("rules", "list", "--pack", pack, "--json", *words)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ids
    assert all(each in run("rules", "list", "--pack", pack, *words).stdout for each in ids)


def test_a_shipped_pack_is_chosen_by_its_name() -> None:
    done = run("rules", "list", "--pack", "pii", "--json")
    assert {json.loads(line)["pack"] for line in done.stdout.splitlines()} == {"pii"}


def test_a_rule_is_shown_with_everything(pack: Path) -> None:
    done = run("rules", "show", "acme-token", "--pack", pack)
    for part in ("house.acme-token", "high", "\\bacme_[a-z0-9]{12}\\b", "https://acme.test/docs", TOKEN, "acme_short"):
        assert part in done.stdout
    shown = json.loads(run("rules", "show", "house.acme-token", "--pack", pack, "--json").stdout)
    assert shown["match"][0] == TOKEN


def test_a_rule_that_is_not_there_is_said_so(pack: Path) -> None:
    done = run("rules", "show", "nothing", "--pack", pack)
    assert done.exit_code == 1
    assert "found no rule nothing; accepted: an id that `tidegate rules list` shows." in done.stderr


def test_examples_are_run(pack: Path, tmp_path: Path) -> None:
    done = run("rules", "test", "--pack", pack)
    assert (done.exit_code, done.stdout) == (0, "2 rules, 8 examples: all hold\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text(PACK.replace("acme_short", TOKEN))
    done = run("rules", "test", "--pack", broken)
    assert done.exit_code == 1
    assert "rules[acme-token].pass[0]: found an example that fires its rule" in done.stderr
    assert TOKEN not in done.output


@pytest.mark.parametrize(("text", "code"), [(f"a {TOKEN}", 0), ("a", 1)], ids=["finds", "finds-nothing"])
def test_a_rule_is_tried_on_a_text(pack: Path, text: str, code: int) -> None:
    for words, stdin in ((["--text", text], None), (["--text", "-"], text)):
        done = run("rules", "test", "--pack", pack, "--rule", "acme-token", *words, stdin=stdin)
        assert done.exit_code == code
        assert TOKEN not in done.output
        assert ("1:3 (characters 2 to 19): a [REDACTED:acme-token]" in done.stdout) is (code == 0)


def test_a_hint_is_tried_on_a_text_even_where_it_would_not_be_enough() -> None:
    done = run("rules", "test", "--pack", "injection", "--rule", "play-a-role", "--text", "Act as a pirate.")
    assert done.exit_code == 0
    assert "injection.play-a-role finds something at 1:1" in done.stdout


def test_a_hint_is_shown_with_its_score() -> None:
    shown = json.loads(run("rules", "show", "play-a-role", "--pack", "injection", "--json").stdout)
    assert (shown["score"], shown["threshold"]) == (0.3, 0.5)


def test_rule_and_text_belong_together(pack: Path) -> None:
    done = run("rules", "test", "--pack", pack, "--text", "x")
    assert done.exit_code == 2
    assert "found one of --rule and --text" in done.stderr


def test_rules_are_counted(pack: Path) -> None:
    found = json.loads(run("rules", "stats", "--pack", pack, "--json").stdout)
    assert found["rules"] == 2
    assert found["examples"] == 8
    assert {"pack": "house", "class": "pii", "severity": "low", "rules": 1} in found["counts"]
    assert "house" in run("rules", "stats", "--pack", pack).stdout


ROWS = [
    {"class": "secrets", "label": "acme", "text": TOKEN, "expect": True},
    {"class": "secrets", "label": "acme", "text": "acme_other", "expect": True},
    {"class": "secrets", "label": "acme", "text": f"not a token {TOKEN}", "expect": False},
    {"kind": "secret", "label": "acme", "text": f"{TOKEN} login-abcd"},
    {"kind": "benign", "label": "acme", "text": TOKEN, "scope": "rule", "expect": False},
    {"kind": "benign", "label": "prose", "text": "login-abcd", "expect": False},
]


def test_recall_and_precision_are_measured_by_class_and_label(pack: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"id": n, **row}) for n, row in enumerate(ROWS)))
    found = json.loads(run("rules", "bench", path, "--pack", pack, "--json").stdout)
    assert found["classes"]["secrets"] == {
        "expected": 3, "found": 2, "recall": 2 / 3, "clean": 2, "flagged": 1, "precision": 2 / 3,
    }  # fmt: skip
    assert found["classes"]["pii"]["flagged"] == 1
    labels = {(each["class"], each["label"]): each for each in found["labels"]}
    assert labels["benign", "acme"]["flagged"] == 1
    assert labels["benign", "prose"]["clean"] == 1
    assert "0.667" in run("rules", "bench", path, "--pack", pack).stdout


def test_rows_that_cannot_be_read_are_said_so(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": 1}')
    done = run("rules", "bench", tmp_path / "bad.jsonl", "--pack", pack)
    assert done.exit_code == 1
    assert "bad.jsonl:1: found another value" in done.stderr
    assert "cannot be read" in run("rules", "bench", tmp_path / "none.jsonl", "--pack", pack).stderr
