"""Sealed originals: the gate writes them, only the auditor opens them, and nobody once they are erased."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlite_utils.utils import sqlite3

from tidegate.cli import main
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.sealing import make_auditor, seal, unseal
from tidegate.evidence.store import Recorder
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.verify import verify
from tidegate.model import Outcome
from tidegate.policy.recording import auditor_text
from tidegate.tee import Tee

CANARY = b"AKIA-canary-0000"
MONTH = bytes(range(32))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, bytes]:
    import base64

    place = tmp_path / "auditor.key"
    done = CliRunner().invoke(main, ["evidence", "keygen", "--out", str(place)])
    assert done.exit_code == 0
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    again = CliRunner().invoke(main, ["evidence", "keygen", "--out", str(place)])
    assert "cannot be made" in again.stderr
    public = base64.b64decode(done.stdout.strip().partition(":")[2])
    assert auditor_text(public) == done.stdout.strip()
    return place, public


@pytest.fixture
def path(tmp_path: Path, keys: tuple[Path, bytes]) -> Path:
    path = tmp_path / "rec" / "tidegate.db"

    async def run() -> None:
        recorder = Recorder(path, lambda _: b"masked", settings=Settings(private=True, auditor=keys[1]))
        recorder.start()
        record = ExchangeRecord(
            "ex_1", 1_000_000, "POST", "/x", identity="corp", caller="alice", outcome=Outcome.ANSWERED, streamed=True
        )
        tee = Tee()
        tee.sent(b"prompt " + CANARY * 9)
        for piece in (b"answer ", CANARY, b""):
            tee.answered(piece)
        recorder.seal(record, {}, {"response": [(100, 7), (250, 9)]}, tee.originals())
        recorder.close()

    asyncio.run(run())
    return path


def test_nobody_finds_an_original_in_any_file(path: Path) -> None:
    for file in path.parent.iterdir():
        assert CANARY not in file.read_bytes(), file
        assert b"masked" not in file.read_bytes(), file


def test_the_auditor_opens_it_and_the_log_tells(path: Path, keys: tuple[Path, bytes]) -> None:
    command = ["evidence", "unseal", "ex_1", "--recording", str(path), "--key", str(keys[0])]
    assert CliRunner().invoke(main, command).stdout_bytes == b"prompt " + CANARY * 9
    answer = CliRunner().invoke(main, [*command, "--direction", "response"])
    assert answer.stdout_bytes == b"answer " + CANARY
    subjects = Subjects(Files(path).keys)
    assert [detail.partition(" by ")[0] for _, _, detail in subjects.told()] == ["ex_1 prompt", "ex_1 response"]
    subjects.close()


def test_another_key_opens_nothing(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    for text in (make_auditor()[0], "nonsense"):
        other.write_text(text)
        done = CliRunner().invoke(main, ["evidence", "unseal", "ex_1", "--recording", str(path), "--key", str(other)])
        assert done.exit_code == 1
        assert "does not open with this key" in done.stderr or "found no auditor's private key" in done.stderr


def test_what_was_erased_not_even_the_auditor_opens(path: Path, keys: tuple[Path, bytes]) -> None:
    subjects = Subjects(Files(path).keys)
    subjects.erase("corp:alice", "")
    subjects.close()
    done = CliRunner().invoke(main, ["evidence", "unseal", "ex_1", "--recording", str(path), "--key", str(keys[0])])
    assert "it was erased" in done.stderr
    assert verify(path).faults == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE original SET data = zeroblob(50)", "UPDATE original SET wrapped = zeroblob(50)",
        "UPDATE original SET direction = 'x' WHERE direction = 'prompt'", "DELETE FROM original",
        "UPDATE chunk SET marks = '[]'", "DELETE FROM chunk",
    ],
)  # fmt: skip
def test_the_log_commits_to_originals_and_chunks(path: Path, change: str) -> None:
    assert verify(path).faults == []
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute("SELECT marks FROM chunk").fetchall() == [("[[100,7],[250,9]]",)]
    db.execute(change)
    db.close()
    assert verify(path).faulty


def test_a_sealed_text_does_not_open_in_another_place() -> None:
    private, public = make_auditor()
    import base64
    from dataclasses import replace

    sealed = seal(base64.b64decode(public.partition(":")[2]), MONTH, "ex_1", "prompt", b"x")
    assert unseal(private, MONTH, sealed) == b"x"
    for moved in (replace(sealed, exchange="ex_2"), replace(sealed, direction="response")):
        with pytest.raises(RecordingError, match="does not open with this key"):
            unseal(private, MONTH, moved)
    with pytest.raises(RecordingError, match="does not open with this key"):
        unseal(private, bytes(32), sealed)


def test_without_an_auditor_no_original_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rec" / "tidegate.db"
    recorder = Recorder(path, lambda _: b"masked", settings=Settings(private=True))
    recorder.start()
    recorder.seal(ExchangeRecord("ex_1", 1, "POST", "/x", outcome=Outcome.DENIED), None, originals={"prompt": CANARY})
    recorder.close()
    assert verify(path).faults == []
    assert all(CANARY not in file.read_bytes() for file in path.parent.iterdir())
