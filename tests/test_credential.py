from __future__ import annotations

import copy
import json
import os
import pickle
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity import credential
from tidegate.identity.credential import CredentialError, Secret, resolve, resolve_all
from tidegate.identity.reference import NotAReference, Reference, Source, parse
from tidegate.model import AnswerLimits, Connection, CredentialRef, Origin

VALUE = "sk-canary-4711"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(VALUE + "\n")
    path.chmod(0o600)
    return path


def helper(code: str) -> str:
    return "${exec:" + json.dumps([sys.executable, "-c", code]) + "}"


# ── templates ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("template", "word", "references"),
    [
        ("${env:KEY}", "", [(Source.ENV, ("KEY",))]),
        ("Bearer ${file:/run/key}", "Bearer ", [(Source.FILE, ("/run/key",))]),
        ("${systemd:openai.key}", "", [(Source.SYSTEMD, ("openai.key",))]),
        ('${exec:["/bin/x", "a}b"]}', "", [(Source.EXEC, ("/bin/x", "a}b"))]),
        ("Basic ${env:A}${env:B}", "Basic ", [(Source.ENV, ("A",)), (Source.ENV, ("B",))]),
    ],
)
def test_templates(template: str, word: str, references: list[tuple[Source, tuple[str, ...]]]) -> None:
    assert parse(template) == (word, tuple(Reference(*each) for each in references))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("sk-secret", "a literal value (not shown)"),
        ("", "a literal value (not shown)"),
        ("Bearer sk ${env:A}", "text beside the reference (not shown)"),
        ("abc${env:A}", "text beside the reference (not shown)"),
        ("${env:A} tail", "text beside the reference (not shown)"),
        ("${env}", "a reference without a source"),
        ("${ENV:A}", "a reference without a source"),
        ("${env:A", "a reference that is not closed"),
        ("${aws:A}", "the unknown source 'aws'"),
        ("${vault:kv/x}", "a vault: reference, which this version does not have"),
        ("${file:key}", "a file: reference without an absolute path"),
        ("${env:A-B}", "an env: reference that is not the name of a variable"),
        ("${env:}", "an env: reference that is not the name of a variable"),
        ("${systemd:..}", "a systemd: reference that is not the name of a credential"),
        ("${systemd:a/b}", "a systemd: reference that is not the name of a credential"),
        ("${exec:/bin/x}", 'an exec: reference without a list such as ["program", "argument"]'),
        ("${exec:[]}", 'an exec: reference without a list such as ["program", "argument"]'),
        ('${exec:["/bin/x"]', 'an exec: reference without a list such as ["program", "argument"]'),
        ('${exec:["x"]}', "an exec: reference whose program is not an absolute path, or that is not all text"),
        ('${exec:["/bin/x", 1]}', "an exec: reference whose program is not an absolute path, or that is not all text"),
    ],
)
def test_templates_that_are_none(template: str, why: str) -> None:
    with pytest.raises(NotAReference) as caught:
        parse(template)
    assert str(caught.value) == why


@given(st.text(alphabet='${}:envfilxc[]",/ aB', max_size=40))
def test_any_template_is_read_or_refused(template: str) -> None:
    try:
        word, references = parse(template)
    except NotAReference:
        return
    assert references
    assert template.startswith(word + "${")


# ── sources ──────────────────────────────────────────────────────────────────


def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TG_TEST_KEY", VALUE)
    assert resolve("Bearer ${env:TG_TEST_KEY}").reveal() == f"Bearer {VALUE}"


def test_file(file: Path) -> None:
    assert resolve(f"${{file:{file}}}").reveal() == VALUE


def test_systemd(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    assert resolve("${systemd:key}").reveal() == VALUE


def test_exec() -> None:
    assert resolve(helper(f"print('{VALUE}')")).reveal() == VALUE


def failing(template: str) -> str:
    with pytest.raises(CredentialError) as caught:
        resolve(template)
    return str(caught.value)


def test_failures(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TG_TEST_KEY", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    reference = f"${{file:{file}}}"
    assert failing("${env:TG_TEST_KEY}") == "${env:TG_TEST_KEY}: there is no value"
    assert failing("${file:/nowhere/x}") == "${file:/nowhere/x}: No such file or directory"
    assert failing("${file:/dev/null}") == "${file:/dev/null}: it is not a file"
    assert failing("${systemd:x}") == "${systemd:x}: this process was not started by systemd with credentials"
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        assert failing(reference) == f"{reference}: its mode is {mode:04o}; make it 0600 or 0400"
    file.chmod(0o600)
    for bad in (b"\xff\xfe", b"a\nb", b"a\x00b", "schlüssel".encode(), b"x" * 20_000):
        file.write_bytes(bad)
        assert failing(reference) == f"{reference}: the value is not one line of printable ASCII text"
    file.write_text(" \n")
    assert failing(reference) == f"{reference}: there is no value"
    assert failing(helper("raise SystemExit(3)")).endswith(": it ended with status 3")
    assert failing('${exec:["/nowhere/x"]}') == '${exec:["/nowhere/x"]}: No such file or directory'


def test_another_user_s_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if file.stat().st_uid != 0:
        assert failing(f"${{file:{file}}}").endswith("it belongs to another user")


def test_a_slow_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential, "EXEC_SECONDS", 0.2)
    assert failing(helper("import time; time.sleep(30)")).endswith(": it took longer than 0 seconds")


def test_a_helper_has_no_shell() -> None:
    template = "${exec:" + json.dumps([sys.executable, "-c", "import sys; print(sys.argv[1])", "$HOME;id"]) + "}"
    assert resolve(template).reveal() == "$HOME;id"


# ── rotation ─────────────────────────────────────────────────────────────────


def test_a_changed_file_is_read_again(file: Path) -> None:
    secret = resolve(f"Bearer ${{file:{file}}}")
    new = file.with_suffix(".new")
    new.write_text("second")
    new.chmod(0o600)
    new.replace(file)
    assert secret.reveal() == "Bearer second"


def test_the_last_good_value_stays(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = resolve(f"${{file:{file}}}", "openai")
    file.unlink()
    assert secret.reveal() == VALUE
    assert "credential openai:" in caplog.text
    assert VALUE not in caplog.text
    caplog.clear()
    assert secret.reveal() == VALUE
    assert not caplog.records, "one message for one change"
    time.sleep(0.01)
    file.write_text("third")
    file.chmod(0o600)
    assert secret.reveal() == "third"


# ── the holder ───────────────────────────────────────────────────────────────


@pytest.fixture
def secret(file: Path) -> Secret:
    return resolve(f"Bearer ${{file:{file}}}", "openai")


def test_it_shows_only_its_name(secret: Secret) -> None:
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        f"{secret:>40}",
        str([secret]),
    ):
        assert VALUE not in shown
        assert "<Secret openai>" in shown


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_it_is_not_copied(secret: Secret, attempt: object) -> None:
    with pytest.raises(TypeError, match="a secret is not copied or stored"):
        attempt(secret)  # type: ignore[operator]


def test_it_has_no_dictionary(secret: Secret) -> None:
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_resolve_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TG_TEST_KEY", raising=False)

    def connection(name: str, template: str | None) -> Connection:
        ref = None if template is None else CredentialRef("authorization", template)
        return Connection(name, "openai", Origin("https", "x.example", 443), "", None, ref, 1, AnswerLimits())

    found, problems = resolve_all(
        [connection("a", f"${{file:{file}}}"), connection("b", "${env:TG_TEST_KEY}"), connection("c", None)]
    )
    assert set(found) == {"a"}
    assert problems == ("connection b: ${env:TG_TEST_KEY}: there is no value",)
