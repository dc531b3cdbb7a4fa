"""Tokens that were taken back: the store, its copy in memory, two processes, and a store that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.clock import Clock
from tests.e2e.harness import policy
from tests.test_building import flow
from tests.tokens import ISSUER, NOW, claims, identity, public, rsa, sign
from tidegate.building import build_gate
from tidegate.cli import main
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.places import CHECKOUT
from tidegate.state import revocations as module
from tidegate.state.control import Control, StateError
from tidegate.state.revocations import TRUSTED_SECONDS, Revocations


@pytest.fixture
def store(control: Control, monkeypatch: pytest.MonkeyPatch) -> Iterator[Revocations]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    found = Revocations(control, lambda: NOW)
    found.start()
    yield found
    found.close()


def until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_token(store: Revocations) -> None:
    assert store.covers(ISSUER, "t1", "alice", NOW) is False
    entry = store.revoke_token(ISSUER, "t1", made_by="root", why="lost laptop").result(10)
    assert store.covers(ISSUER, "t1", "alice", NOW) is True, "it counts by the time the caller is told"
    assert store.covers(ISSUER, "t2", "alice", NOW) is False
    assert store.covers(ISSUER, None, "alice", NOW) is False
    assert store.covers("https://other.example.com", "t1", "alice", NOW) is False
    assert store.revoke_token(ISSUER, "t1", made_by="eve").result(10) == entry
    (kept,) = store.all().result(10)
    assert (kept.jti, kept.made_by, kept.why, kept.made) == ("t1", "root", "lost laptop", NOW)
    assert store.undo(entry).result(10) is True
    assert store.covers(ISSUER, "t1", "alice", NOW) is False
    assert store.undo(entry).result(10) is False


@pytest.mark.parametrize(
    ("issued", "covered"),
    [(NOW - 1, True), (NOW, True), (NOW + 1, False), (None, True)],
    ids=["before", "same", "after", "unknown"],
)
def test_a_subject_up_to_a_moment(store: Revocations, issued: float | None, covered: bool) -> None:
    store.revoke_subject(ISSUER, "alice", made_by="root").result(10)
    store.revoke_subject(ISSUER, "alice", made_by="root", before=NOW - 100).result(10)  # the later moment counts
    assert store.covers(ISSUER, "any", "alice", issued) is covered
    assert store.covers(ISSUER, "any", "bob", issued) is False
    assert store.covers("https://other.example.com", "any", "alice", issued) is False


def test_another_process(store: Revocations, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tidegate.state.control import Control; "
        "from tidegate.state.revocations import Revocations; c = Control(Path(sys.argv[1])); c.start(); "
        "Revocations(c).revoke_token(sys.argv[2], 't1', made_by='other').result(10); c.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "control.db"), ISSUER], check=True, timeout=60)
    until(lambda: store.covers(ISSUER, "t1", "alice", NOW))


def test_a_copy_that_was_not_compared_says_that_nobody_knows(control: Control) -> None:
    clock = Clock(1000.0)
    store = Revocations(control, lambda: NOW, clock)
    assert store.covers(ISSUER, "t1", "alice", NOW) is None, "before it was read"
    store._look()
    clock.now += TRUSTED_SECONDS
    assert store.covers(ISSUER, "t1", "alice", NOW) is False
    clock.now += 0.1
    assert store.covers(ISSUER, "t1", "alice", NOW) is None
    store._look()
    assert store.covers(ISSUER, "t1", "alice", NOW) is False


def test_a_store_that_cannot_be_read_and_comes_back(
    store: Revocations, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = Revocations._read

    def broken(*_: object) -> None:
        raise StateError("control.db: cannot be read: SQLITE_IOERR")

    monkeypatch.setattr(store, "_read", broken)
    until(lambda: store.covers(ISSUER, "t1", "alice", NOW) is None)
    assert "SQLITE_IOERR; until it can be read, tokens are answered with 503" in caplog.text
    monkeypatch.setattr(store, "_read", right.__get__(store))
    until(lambda: store.covers(ISSUER, "t1", "alice", NOW) is False)


def test_a_look_that_comes_too_late_changes_nothing(control: Control) -> None:
    clock = Clock(1000.0)
    store = Revocations(control, lambda: NOW, clock)
    early = store._read(control._reader)
    clock.now += 1
    store.revoke_token(ISSUER, "t1", made_by="root").result(10)
    store._take(*early)
    assert store.covers(ISSUER, "t1", "alice", NOW) is True


def test_closed(store: Revocations) -> None:
    store.close()
    assert store.covers(ISSUER, "t1", "alice", NOW) is None


def test_entries_of_tokens_that_ended_go(store: Revocations, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIDY_SECONDS", 0.0)
    store.revoke_token(ISSUER, "old", made_by="root", expires=NOW - module.ENDED_SECONDS - 1)
    store.revoke_token(ISSUER, "new", made_by="root", expires=NOW - module.ENDED_SECONDS + 1)
    store.revoke_token(ISSUER, "for ever", made_by="root").result(10)
    until(lambda: {each.jti for each in store.all().result(10)} == {"new", "for ever"})


def test_a_write_that_fails_is_told(control: Control) -> None:
    store = Revocations(control)
    store.start()
    store.close()
    control.close()
    with pytest.raises(StateError):
        store.revoke_token(ISSUER, "t1", made_by="root").result(10)


# ── in the verifier ──────────────────────────────────────────────────────────


async def test_the_verifier_asks_each_time(store: Revocations) -> None:
    gate = Verifier([identity()], [KeySource(identity(), lambda _: public(rsa()))], store.covers)
    token = sign(claims(jti="t1"))
    assert isinstance(await gate.identify(token, NOW), Caller)
    entry = store.revoke_token(ISSUER, "t1", made_by="root").result(10)
    for answer in (gate.cached(token, NOW), await gate.identify(token, NOW)):
        assert isinstance(answer, Denial)
        assert (answer.reason, answer.status) == (Reason.TOKEN_REVOKED, 401)
    store.undo(entry).result(10)
    assert isinstance(gate.cached(token, NOW), Caller)
    store.close()
    for each in (token, sign(claims(jti="t2"))):
        unknown = await gate.identify(each, NOW)
        assert isinstance(unknown, Denial)
        assert (unknown.reason, unknown.status) == (Reason.STATE_UNAVAILABLE, 503)


# ── the command ──────────────────────────────────────────────────────────────


@pytest.fixture
def path(tmp_path: Path) -> Path:
    oidc = {"name": "corp", "oidc": {"issuer": ISSUER, "audience": "tidegate", "groups": "$.groups"}}
    return policy(tmp_path, "http://127.0.0.1:9", identity=[oidc], bindings=None)


def run(path: Path, *words: object) -> Result:
    return CliRunner().invoke(main, ["revoke", "--policy", str(path), *map(str, words)])


def test_revoke_list_undo(path: Path) -> None:
    assert run(path, "--list").stdout == "Nothing is revoked.\n"
    assert "entry 1" in run(path, "--issuer", "corp", "--jti", "t1", "--reason", "lost").stdout
    moment = "2026-01-31T00:00:00Z"
    assert run(path, "--issuer", ISSUER, "--subject", "alice", "--before", moment).exit_code == 0
    shown = run(path, "--list").stdout
    assert "jti t1" in shown
    assert "all of alice up to 2026-01-31 00:00:00Z" in shown
    assert "lost" in shown
    first = json.loads(run(path, "--list", "--json").stdout.splitlines()[-1])
    assert (first["issuer"], first["jti"], first["why"]) == (ISSUER, "t1", "lost")
    assert run(path, "--undo", 1).exit_code == 0
    assert "jti t1" not in run(path, "--list").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "found none; accepted: exactly one of --jti, --subject, --list and --undo."),
        (("--list", "--undo", "1"), "found --list and --undo; accepted: exactly one"),
        (("--jti", "x"), "--issuer: found nothing; accepted: an issuer's address, or an identity"),
        (("--jti", "x", "--issuer", "crop"), "--issuer: found 'crop'; accepted:"),
        (("--jti", "x", "--issuer", "corp", "--before", "now"), "--before: accepted together with --subject."),
        (("--subject", "x", "--issuer", "corp", "--before", "now"), "--before: found 'now'; accepted: a moment"),
        (("--undo", "7"), "--undo: found no entry 7; `tidegate revoke --list` shows them."),
    ],
    ids=["nothing", "two", "no issuer", "unknown issuer", "before alone", "before", "undo"],
)  # fmt: skip
def test_what_the_command_does_not_accept(path: Path, words: tuple[str, ...], message: str) -> None:
    done = run(path, *words)
    assert done.exit_code != 0
    assert message in " ".join(done.stderr.split())


def test_a_file_that_is_no_control_store(path: Path) -> None:
    (path.parent / "control.db").write_bytes(b"not a database, though it is long enough to be looked at" * 40)
    done = run(path, "--list")
    assert done.exit_code == 1
    assert "cannot be opened as a control store" in done.stderr


# ── in the gate ──────────────────────────────────────────────────────────────


def small(folder: Path, name: str = "policy.yaml", **changes: object) -> Path:
    """A policy that loads in a moment."""
    if not (folder / "small").exists():
        (folder / "small").symlink_to(CHECKOUT / "tests" / "data" / "packs")
    actions = {"secrets": "block", "pii": "redact"}
    connection = {"name": "openai", "dialect": "openai", "upstream": "http://127.0.0.1:9", "serve": {"path": "/openai"}}
    return policy(
        folder, "http://127.0.0.1:9", name=name, packs=["small/*.yaml"], dialects=["dialects/openai.yaml"],
        connections=[connection],
        inspection={"prompt": actions, "response": {**actions, "secrets": "redact"}}, **changes,
    )  # fmt: skip


TWO = [{"name": name, "static": {"tokens": f"{name}.yaml"}} for name in ("local", "other")]


async def test_the_gate_asks_and_a_reload_changes_nothing_of_it(tmp_path: Path) -> None:
    first = small(tmp_path)
    gate = build_gate(first)
    before = gate.addon.verifier
    assert gate.addon.revocations is not None
    assert before.revoked == gate.addon.revocations.covers
    await gate.start()
    await gate.reload(small(tmp_path, "second.yaml", identity=TWO))
    after = gate.addon.verifier
    assert after is not before
    assert after.revoked == gate.addon.revocations.covers
    assert after.proofs is before.proofs, "a proof that was shown is not shown again after a reload"
    await gate.close()
    assert gate.addon.revocations.covers(ISSUER, "t1", "alice", NOW) is None


@pytest.mark.parametrize("broken", [False, True])
async def test_a_look_that_breaks_lets_nobody_through(tmp_path: Path, broken: bool) -> None:
    bindings = [{"groups": ["corp:ml-eng"], "roles": ["dev"]}]
    oidc = {"name": "corp", "oidc": {"issuer": ISSUER, "audience": "tidegate", "groups": "$.groups"}}
    gate = build_gate(small(tmp_path, identity=[oidc], bindings=bindings))

    def breaks(*_: object) -> bool:
        raise RuntimeError

    who = identity()
    asked = breaks if broken else gate.addon.verifier.revoked
    gate.addon.verifier = Verifier([who], [KeySource(who, lambda _: public(rsa()))], asked)
    now = time.time()
    passing = flow(sign(claims(exp=now + 600, iat=now)))
    if waiting := gate.addon.requestheaders(passing):
        await waiting
    if waiting := gate.addon.request(passing):
        await waiting
    answer = passing.response
    assert (answer is not None and answer.status_code == 503) is broken
    await gate.close()
