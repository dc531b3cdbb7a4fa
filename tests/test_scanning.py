"""What is read of files and rows, where a finding is said to be, and that no value is shown."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.documents import PNG, archive, docx, locked_pdf, pdf
from tests.documents import run as run_of
from tidegate import cli, scanning
from tidegate.inspection.engine import build
from tidegate.inspection.findings import inspect_text
from tidegate.inspection.rules import parse_pack

ROOT = Path(__file__).resolve().parents[1]
PACK = """
pack: house
class: secrets
version: 1
rules:
  - id: acme-token
    description: Acme access token
    severity: high
    pattern: '\\bacme_[a-z0-9]{12}\\b'
    references: [https://acme.test/docs]
    match: [acme_k3j5h2g8f1d4, 'x acme_z8x6c4v2b1n3']
    pass: [acme_short, acme]
  - id: acme-name
    class: pii
    description: Acme login name
    severity: low
    pattern: '\\blogin-[a-z]{4}\\b'
    references: [https://acme.test/docs]
    match: [login-abcd, 'x login-abce']
    pass: [login-, login]
"""
TOKEN = "acme_k3j5h2g8f1d4"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "house.yaml"
    path.write_text(PACK)
    return path


@pytest.fixture(scope="module")
def engine():
    rules, faults = parse_pack(PACK, "house.yaml")
    assert not faults
    return build(rules, None)


def run(*words: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words], input=stdin)


# ── places ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "places", "excerpt"),
    [
        (TOKEN, [(1, 1)], "[REDACTED:acme-token]"),
        (f"a\nbc {TOKEN} d\n", [(2, 4)], "bc [REDACTED:acme-token] d"),
        (f"größe\n\U0001f600 {TOKEN}", [(2, 3)], "\U0001f600 [REDACTED:acme-token]"),
        (f"{TOKEN} {TOKEN}\n{TOKEN}", [(1, 1), (1, 19), (2, 1)], None),
        (f"{'x' * 50} {TOKEN} {'y' * 50}", [(1, 52)], None),
        (f"\x1b[2J-{TOKEN}\x07\n", [(1, 6)], "·[2J-[REDACTED:acme-token]·"),
        (f"{TOKEN} login-abcd", [(1, 1), (1, 19)], "[REDACTED:acme-token] [REDACTED:acme-name]"),
    ],
    ids=["first", "line", "not-ascii", "several", "long-line", "terminal-codes", "milder"],
)
def test_a_finding_has_its_line_and_column_and_its_line_masked(engine, text, places, excerpt) -> None:
    found = scanning.locate(text, inspect_text(engine, text))
    assert [(each.line, each.column) for each in found] == places
    assert all("k3j5h2g8f1d4" not in each.excerpt and "abcd" not in each.excerpt for each in found)
    if excerpt is not None:
        assert found[0].excerpt == excerpt


@pytest.mark.parametrize("cut", range(0, 90, 7))
def test_an_excerpt_never_holds_a_part_of_a_value(engine, cut: int) -> None:
    text = "." * cut + " " + " ".join([TOKEN] * 6) + " ." * cut
    for each in scanning.locate(text, inspect_text(engine, text)):
        assert not {"k3j5", "h2g8", "f1d4"} & {each.excerpt[i : i + 4] for i in range(len(each.excerpt))}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        ("größe".encode(), "größe"),
        ("größe".encode("utf-16"), "größe"),
        (b"caf\xe9 x", "caf\udce9 x"),
        (b"MZ\0\0\1", None),
        (b"\xff\xfe\0", None),
    ],
    ids=["ascii", "utf-8", "utf-16", "latin-1", "binary", "half-utf-16"],
)
def test_what_counts_as_text(data: bytes, text: str | None) -> None:
    assert scanning.as_text(data) == text


# ── files ───────────────────────────────────────────────────────────────────


def test_folders_are_walked_without_git_and_without_links(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a.txt", ".git/config", "sub/.git/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    assert [path.relative_to(tmp_path).as_posix() for path in scanning.files([str(tmp_path)])] == ["a.txt", "b/two.txt"]


def test_findings_end_with_one_and_show_place_and_rule_but_no_value(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one\nkey: {TOKEN}\n")
    (tmp_path / "b.bin").write_bytes(b"\0" + TOKEN.encode())
    done = run("scan", "--pack", pack, tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path}/a.txt:2:6" in done.stdout
    assert "house.acme-token" in done.stdout
    assert "k3j5" not in done.output
    assert f"{tmp_path}/b.bin: skipped, a binary file" in done.stderr
    assert "1 findings in 1 of 1 file; 1 file skipped" in done.stderr


def test_nothing_found_ends_with_zero(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing here")
    done = run("scan", "--pack", pack, tmp_path / "a.txt")
    assert (done.exit_code, done.stdout) == (0, "")


def test_standard_input_is_scanned(pack: Path) -> None:
    done = run("scan", "--pack", pack, "-", stdin=f"x {TOKEN}")
    assert done.exit_code == 1
    assert "standard input:1:3" in done.stdout


def test_milder_rules_can_be_left_out(pack: Path) -> None:
    assert run("scan", "--pack", pack, "-", stdin="login-abcd").exit_code == 1
    assert run("scan", "--pack", pack, "--severity", "medium", "-", stdin="login-abcd").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-file",), "no-such-file: found nothing there; accepted: a file, a folder or - for standard input"),
        (("--pack", "no-such-pack", "."), "found no-such-pack; accepted: "),
        (("--pack", "no-such.yaml", "."), "found No such file or directory; accepted: a file that can be read"),
        (("--policy", "no-such.yaml", "."), "found No such file or directory; accepted: a file that can be read"),
    ],
    ids=["file", "pack", "pack-file", "policy"],
)
def test_errors_end_with_two_and_one_sentence(words, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("scan", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_file_that_is_too_large_is_an_error_and_the_rest_is_scanned(tmp_path: Path, pack: Path, monkeypatch) -> None:
    monkeypatch.setattr(scanning, "MAX_FILE", 30)
    (tmp_path / "a.txt").write_text("x" * 31)
    (tmp_path / "b.txt").write_text(TOKEN)
    done = run("scan", "--pack", pack, tmp_path)
    assert done.exit_code == 2
    assert "a.txt: found more than 30 bytes" in done.stderr
    assert "b.txt:1:1" in done.stdout


# ── documents ───────────────────────────────────────────────────────────────


def test_a_document_is_opened_and_its_part_named(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "report.docx").write_bytes(docx(run_of(TOKEN[:8]) + run_of(TOKEN[8:])))
    (tmp_path / "all.zip").write_bytes(archive({"notes/a.txt": f"one\nx {TOKEN}"}))
    done = run("scan", "--pack", pack, tmp_path)
    assert done.exit_code == 1
    assert "report.docx (word/document.xml):1:1" in done.stdout
    assert "all.zip (notes/a.txt):2:3" in done.stdout
    assert TOKEN not in done.output
    assert "findings in 2 of 2 files" in done.stderr


def test_a_document_on_standard_input_is_opened(pack: Path) -> None:
    done = run("scan", "--pack", pack, "-", stdin=pdf(TOKEN))
    assert done.exit_code == 1
    assert "standard input (page 1):1:1" in done.stdout


def test_what_of_a_document_cannot_be_read_is_said(tmp_path: Path, pack: Path) -> None:
    (tmp_path / "a.docx").write_bytes(docx(run_of(TOKEN), word_a__png=PNG))
    (tmp_path / "b.pdf").write_bytes(locked_pdf("x"))
    (tmp_path / "c.png").write_bytes(PNG)
    done = run("scan", "--pack", pack, tmp_path)
    assert done.exit_code == 1
    assert "a.docx: partly scanned: it is or holds a picture" in done.stderr
    assert "b.pdf: not scanned: it is or holds data that is encrypted" in done.stderr
    assert "c.png: skipped, a binary file" in done.stderr
    assert "1 findings in 1 of 1 file; 2 files skipped" in done.stderr


def test_a_data_url_is_opened_in_rows_and_texts(pack: Path) -> None:
    url = f"data:application/zip;base64,{base64.b64encode(archive({'a.txt': TOKEN})).decode()}"
    text = f"größe {url}, {url} and so on"
    done = run("scan", "--pack", pack, "--jsonl", stdin=json.dumps({"id": 1, "text": text}))
    found = json.loads(done.stdout)["findings"]
    assert [text[each["start"] : each["end"]] for each in found] == [url, url]
    assert {each["rule"] for each in found} == {"house.acme-token"}


# ── rows ────────────────────────────────────────────────────────────────────


def test_rows_are_answered_in_order_with_offsets_in_characters(pack: Path) -> None:
    texts = ["clean", f"größe \U0001f600 {TOKEN}", "", "\ud800 login-abcd"]
    lines = [json.dumps({"id": index, "text": text, "more": 1}) for index, text in enumerate(texts)]
    done = run("scan", "--pack", pack, "--jsonl", stdin="\n".join(lines) + "\n\n")
    assert done.exit_code == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["id"] for each in found] == [0, 1, 2, 3]
    assert found[1]["findings"] == [
        {
            "rule": "house.acme-token",
            "class": "secrets",
            "pack": "house",
            "severity": "high",
            "score": 1.0,
            "start": 8,
            "end": 25,
        }
    ]
    assert texts[1][8:25] == TOKEN
    assert [len(each["findings"]) for each in found] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "no JSON"),
        ("[1]", "another value"),
        ('{"text": "x"}', "another value"),
        ('{"id": 1, "text": 2}', "another"),
    ],
    ids=["broken", "list", "no-id", "number"],
)
def test_a_row_that_is_none_is_named_by_its_line(line: str, found: str, pack: Path) -> None:
    done = run("scan", "--pack", pack, "--jsonl", stdin='{"id": 1, "text": ""}\n' + line)
    assert done.exit_code == 2
    assert done.stdout == '{"id": 1, "findings": []}\n'
    assert f"standard input:2: found {found}" in done.stderr


# ── pre-commit ──────────────────────────────────────────────────────────────


def test_the_hook_runs_as_pre_commit_calls_it(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["language"]) == ("tidegate", "python")
    command, *words = shlex.split(hook["entry"])
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][command].partition(
        ":"
    )
    (tmp_path / "clean.py").write_text("x = 1\n")
    (tmp_path / "leak.py").write_text("KEY = 'ghp_" + "Zq3vT8bLw0xNf5RkYc7HsJ2mPdUaEg1i4oBu'\n")
    call = [sys.executable, "-c", f"from {module} import {function}; {function}()", *words]
    for names, code in ((["clean.py"], 0), (["clean.py", "leak.py"], 1)):
        ran = subprocess.run([*call, *names], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == code, ran.stderr
    assert "leak.py:1:8" in ran.stdout
    assert "Zq3v" not in ran.stdout + ran.stderr
