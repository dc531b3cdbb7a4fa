"""``tidegate setup``: what is written for each client, that a second time changes nothing, and that undo is exact."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.cli import main
from tidegate.setup.clients import NAMES
from tidegate.setup.editing import NotEditable, edit_json, edit_toml, merged, without_secrets
from tidegate.setup.files import Change, Kept, SetupError

Run = Callable[..., Result]
WRITTEN = [name for name in NAMES if name != "cursor"]
FILES = {"claude-code": ".claude/settings.json", "codex": ".codex/config.toml"}
CA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ca.pem").write_text(CA)
    return tmp_path


def run(home: Path, *words: str, **more: Any) -> Result:
    return CliRunner().invoke(main, ["setup", *words, "--ca", str(home / "ca.pem")], **more)


def snapshot(home: Path) -> dict[str, tuple[bytes, int]]:
    files = (each for each in home.rglob("*") if each.is_file() and "hypothesis" not in str(each))
    return {str(each.relative_to(home)): (each.read_bytes(), stat.S_IMODE(each.stat().st_mode)) for each in files}


def target(home: Path, client: str) -> Path:
    return home / FILES.get(client, f".config/tidegate/{client}.sh")


@pytest.mark.parametrize("mode", ["reverse", "explicit"])
@pytest.mark.parametrize("client", WRITTEN)
def test_write_again_and_undo(home: Path, client: str, mode: str) -> None:
    before = snapshot(home)
    first = run(home, client, "--mode", mode, "--yes")
    assert first.exit_code == 0, first.output
    written = snapshot(home)
    again = run(home, client, "--mode", mode)
    assert (again.exit_code, "nothing to change" in again.output) == (0, True)
    assert snapshot(home) == written
    assert run(home, client, "--undo").exit_code == 0
    assert snapshot(home) == before
    assert [each for each in home.iterdir() if each.is_dir() and each.name != ".config"] == []
    assert "written nothing" in run(home, client, "--undo").output


@pytest.mark.parametrize("client", NAMES)
def test_print_never_writes(home: Path, client: str) -> None:
    before = snapshot(home)
    for mode in ("reverse", "explicit"):
        found = run(home, client, "--mode", mode, "--print")
        assert found.exit_code == 0
        assert found.stdout
    assert snapshot(home) == before


@pytest.mark.parametrize("client", WRITTEN)
def test_the_other_mode_leaves_nothing_of_the_first(home: Path, client: str) -> None:
    run(home, client, "--mode", "explicit", "--yes")
    explicit = target(home, client).read_bytes()
    run(home, client, "--mode", "reverse", "--yes")
    assert b"HTTPS_PROXY" not in target(home, client).read_bytes()
    run(home, client, "--mode", "explicit", "--yes")
    assert target(home, client).read_bytes() == explicit


def test_claude_code(home: Path) -> None:
    file = home / ".claude" / "settings.json"
    file.parent.mkdir()
    file.write_text('{\n    "model": "opus",\n    "env": {"ANTHROPIC_API_KEY": "sk-verysecret", "A": "ä"}\n}')
    file.chmod(0o640)
    found = run(home, "claude-code", "--yes", "--gateway", "https://gate.example.com", "--identity", "corp")
    assert "verysecret" not in found.output
    settings = json.loads(file.read_text())
    assert settings["apiKeyHelper"].endswith("login --print --identity corp --valid-for 330")
    assert settings["env"] == {
        "ANTHROPIC_API_KEY": "sk-verysecret",
        "A": "ä",
        "CLAUDE_CODE_API_KEY_HELPER_TTL_MS": "300000",
        "ANTHROPIC_BASE_URL": "https://gate.example.com/anthropic",
        "NODE_EXTRA_CA_CERTS": str(home / "ca.pem"),
    }
    assert file.read_text().startswith('{\n    "model": "opus"')
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_codex(home: Path) -> None:
    file = home / ".codex" / "config.toml"
    file.parent.mkdir()
    file.write_text('# mine\nmodel_provider = "openai" # was\nmodel = "gpt-5"\n\n[tui] # a table\nx = 1')
    run(home, "codex", "--yes")
    found = tomllib.loads(file.read_text())
    assert found["model_provider"] == "tidegate"
    provider = found["model_providers"]["tidegate"]
    assert provider["base_url"] == "http://127.0.0.1:8080/openai/v1"
    assert (provider["wire_api"], provider["auth"]["args"]) == ("responses", ["login", "--print"])
    assert file.read_text().startswith("# mine\n")
    assert "[tui] # a table\nx = 1\n" in file.read_text()


def test_a_shell_reads_what_is_written(home: Path) -> None:
    helper = home / "bin" / "tidegate"
    helper.parent.mkdir()
    helper.write_text('#!/bin/sh\n[ "$*" = "login --print" ] && echo tok\n')
    helper.chmod(0o755)
    environment = {**os.environ, "PATH": f"{helper.parent}:{os.environ['PATH']}"}
    wanted = {
        ("openai",): {"OPENAI_BASE_URL": "http://127.0.0.1:8080/openai/v1", "OPENAI_API_KEY": "tok"},
        ("anthropic",): {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8080/anthropic", "ANTHROPIC_API_KEY": "tok"},
        ("env", "--mode", "explicit", "--proxy-token"): {
            "HTTPS_PROXY": "http://tidegate:tok@127.0.0.1:8080",
            "OPENAI_API_KEY": "tidegate",
            "NODE_USE_ENV_PROXY": "1",
        },
    }
    for words, variables in wanted.items():
        assert run(home, *words, "--yes", env=environment).exit_code == 0
        script = f". {target(home, words[0])} && env"
        found = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
        assert {f"{name}={value}" for name, value in variables.items()} <= set(found.splitlines())
    bundle = (home / ".config" / "tidegate" / "env-ca.pem").read_text()
    assert bundle.endswith(CA)
    assert bundle.count("BEGIN CERTIFICATE") > 50, "what the machine trusts goes on being trusted"


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("claude-code", '{"a": 1, // comment\n}'),
        ("claude-code", "[]"),
        ("claude-code", '{"a": 1, "a": 2}'),
        ("claude-code", '{"env": 7}x'),
        ("claude-code", b"\xff{}"),
        ("codex", "a = "),
        (
            "codex",
            'x = """\n[model_providers]\nmodel_provider = "no"\n"""\n[model_providers.tidegate]\nname = "other"\n',
        ),
        ("codex", 'model_providers = {tidegate = {name = "other"}}\n'),
    ],
)
def test_what_cannot_be_changed_without_harm_is_left_alone(home: Path, client: str, text: str | bytes) -> None:
    file = target(home, client)
    file.parent.mkdir()
    data = text if isinstance(text, bytes) else text.encode()
    file.write_bytes(data)
    found = run(home, client, "--yes")
    assert found.exit_code == 1
    assert f"{file}: cannot be changed without harm: it " in found.output
    assert file.read_bytes() == data


def test_a_file_that_was_changed_since_is_not_overwritten(home: Path) -> None:
    file = target(home, "claude-code")
    run(home, "claude-code", "--yes")
    mine = file.read_text().replace("{", '{"mine": 1,', 1)
    file.write_text(mine)
    for words in (("--undo",), ("--yes", "--mode", "explicit")):
        found = run(home, "claude-code", *words)
        assert found.exit_code == 1
        assert "was changed since tidegate wrote it" in found.output
        assert file.read_text() == mine
    assert run(home, "claude-code", "--undo", "--force").exit_code == 0
    assert not file.exists()


def test_a_link_stays_a_link(home: Path) -> None:
    real = home / "dotfiles" / "claude.json"
    real.parent.mkdir()
    real.write_text("{}")
    file = target(home, "claude-code")
    file.parent.mkdir()
    file.symlink_to(real)
    run(home, "claude-code", "--yes")
    assert file.is_symlink()
    assert "apiKeyHelper" in real.read_text()
    run(home, "claude-code", "--undo")
    assert (file.is_symlink(), real.read_text()) == (True, "{}")


def test_nobody_to_ask_and_a_no(home: Path) -> None:
    found = run(home, "openai")
    assert (found.exit_code, "nobody is there to ask" in found.output) == (1, True)
    assert not target(home, "openai").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--gateway", "http://user:verysecret@gate"),
        ("--gateway", "ftp://gate"),
        ("--gateway", "http://gate/path"),
        ("--gateway", "http://gate:x"),
        ("--openai-path", "/a b"),
        ("--openai-path", "/$(id)"),
        ("--proxy-token",),
    ],
)
def test_what_is_no_address(home: Path, words: tuple[str, ...]) -> None:
    found = run(home, "openai", "--yes", *words)
    assert found.exit_code == 2
    assert "verysecret" not in found.output
    assert not target(home, "openai").exists()


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────

NAME = st.text("abcdefgh-_\"'é ", min_size=1, max_size=6)
SCALAR = st.one_of(st.text(max_size=12), st.integers(-1000, 1000), st.booleans())
TREE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAME, inner, max_size=3)), max_leaves=8
)
OBJECT = st.dictionaries(NAME | st.sampled_from(["env", "apiKeyHelper"]), TREE, max_size=4)
NEW = {"apiKeyHelper": "x --print", "env": {"A": "1"}}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(OBJECT, st.sampled_from([None, 2, "\t"]))
def test_json_keeps_everything_else(old: dict[str, Any], indent: int | str | None) -> None:
    text = json.dumps(old, indent=indent, ensure_ascii=False)
    changed = edit_json(text, NEW)
    assert json.loads(changed) == merged(old, NEW)
    assert list(json.loads(changed))[: len(old)] == list(old)
    assert edit_json(changed, NEW) == changed


@given(st.text("ab=[]#\"'\n .1{}", max_size=60))
def test_toml_is_proven_or_refused(text: str) -> None:
    new = {"model_provider": "t", "model_providers": {"t": {"name": "t", "auth": {"command": "c"}}}}
    try:
        changed = edit_toml(text, new)
    except NotEditable:
        return
    assert tomllib.loads(changed) == merged(tomllib.loads(text), new)
    assert edit_toml(changed, new) == changed
    for line in text.splitlines():
        assert line in changed.splitlines()


FILE = st.one_of(st.none(), st.binary(max_size=40))


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15, deadline=None)
@given(st.lists(st.tuples(FILE, st.binary(max_size=40), st.binary(max_size=40)), min_size=1, max_size=3))
def test_undo_restores_bytes(rows: list[tuple[bytes | None, bytes, bytes]]) -> None:
    """However often something is written: what comes back is what was there before the first time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept, paths = Kept(folder / "kept"), [folder / "new" / f"file{at}" for at in range(len(rows))]
        for path, (before, _, _) in zip(paths, rows, strict=True):
            if before is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(before)
        state = snapshot(folder)
        kept.apply([Change(path, row[0], row[1]) for path, row in zip(paths, rows, strict=True)])
        kept.apply([Change(path, row[1], row[2]) for path, row in zip(paths, rows, strict=True)])
        assert [path.read_bytes() for path in paths] == [row[2] for row in rows]
        assert kept.undo(force=False) == paths
        assert snapshot(folder) == state
        assert (folder / "new").exists() is any(row[0] is not None for row in rows)


def test_undo_is_all_or_nothing(tmp_path: Path) -> None:
    kept, one, two = Kept(tmp_path / "kept"), tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    kept.apply([Change(one, b"1", b"a"), Change(two, None, b"b")])
    two.write_bytes(b"mine")
    with pytest.raises(SetupError, match="was changed since"):
        kept.undo(force=False)
    assert (one.read_bytes(), two.read_bytes()) == (b"a", b"mine")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('  "ANTHROPIC_API_KEY": "sk-1",', '  "ANTHROPIC_API_KEY": (not shown)'),
        ("-api_token = 'x'", "-api_token = (not shown)"),
        ('+  "apiKeyHelper": "tidegate login --print"', '+  "apiKeyHelper": "tidegate login --print"'),
        (' "model": "opus"', ' "model": "opus"'),
    ],
)
def test_a_difference_shows_no_secret(line: str, shown: str) -> None:
    assert without_secrets(line) == shown
