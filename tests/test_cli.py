"""The command line: what a person is told when something is wrong, and that nothing ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.e2e.harness import policy
from tidegate.cli import main


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy(
        tmp_path_factory.mktemp("cli"),
        "http://127.0.0.1:9",
        connections=[
            {"name": "openai", "dialect": "openai", "upstream": "http://127.0.0.1:9", "serve": {"path": "/openai"}},
        ],
    )


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_login_prints_a_token_on_stdout_and_the_rest_on_stderr(path: Path) -> None:
    done = run("login", "--policy", path, "--static", "alice", "--days", 3)
    assert done.exit_code == 0
    assert done.stdout.startswith("tg_")
    assert done.stdout.count("\n") == 1
    assert "Token of local:alice, groups dev. It is not shown again." in done.stderr
    assert done.stdout.strip() not in (path.parent / "tokens.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--static", "bad name!"),
            "name: found 'bad name!'; accepted: a name of lower-case letters, digits and hyphens",
        ),
        (
            ("--static", "bob", "--group", "local:dev"),
            "groups: found 'local:dev'; accepted: a group without the identity's name",
        ),
        (("--static", "bob", "--identity", "corp"), "found 0 static identities to choose from; it has: local."),
    ],
    ids=["name", "qualified-group", "identity"],
)
def test_login_says_in_one_sentence_what_is_wrong(path: Path, words: tuple[str, ...], message: str) -> None:
    done = run("login", "--policy", path, *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_check_counts_what_it_found_sound(path: Path) -> None:
    done = run("check", "--policy", path)
    assert done.exit_code == 0
    assert f"{path} is sound: 1 connections, " in done.stdout


def test_check_reports_all_faults_at_once(path: Path) -> None:
    broken = path.with_name("broken.yaml")
    broken.write_text(path.read_text().replace("version: 1", "version: 2").replace("dialect: openai", "dialect: opnai"))
    done = run("check", "--policy", broken)
    assert done.exit_code == 1
    assert "version" in done.stderr
    assert "opnai" in done.stderr
    assert done.stderr.endswith("faults; nothing was started or changed.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("flows", "list", "--recording", "nowhere.db"),
            "nowhere.db: found no file; accepted: a recording made by tidegate",
        ),
        (
            ("replay", "serve", "--recording", "nowhere.db"),
            "nowhere.db: found no file; accepted: a recording made by tidegate",
        ),
        (("run", "--listen", "8080"), "found '8080'; accepted: HOST:PORT, as in 127.0.0.1:8080"),
        (("replay", "send", "--as", "alice"), "found 'alice'; accepted: identity:name, as in local:alice"),
        (("run", "--policy", "nowhere.yaml"), "nowhere.yaml: the file: found No such file or directory"),
    ],
    ids=["list", "serve", "listen", "as", "policy"],
)
def test_what_cannot_be_is_one_sentence(words: tuple[str, ...], message: str) -> None:
    done = run(*words)
    assert done.exit_code in (1, 2)
    assert message in done.stderr.replace("\n", " ").replace("  ", " ")
    assert done.exception is None or isinstance(done.exception, SystemExit)
