"""The recording: durable intents, complete seals, counted losses, and faults that are never hidden."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from tidegate.evidence import opening, store
from tidegate.evidence.records import COLUMNS, ExchangeRecord, RecordingError, bare_path
from tidegate.evidence.store import Recorder
from tidegate.model import Action, Decision, Finding, Outcome, Reason

MASKED = Finding("secrets.aws-access-key", "secrets", "$.messages[0].content", 5, 25, Action.REDACT)


def record(name: str = "ex_1", **more: object) -> ExchangeRecord:
    return ExchangeRecord(**{"id": name, "started_us": 1_000_000, "method": "POST", "path": "/openai/v1/chat"} | more)


def rows(path: Path, sql: str) -> list[tuple]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rec" / "tidegate.db"


@pytest.fixture
def recorder(path: Path) -> Iterator[Recorder]:
    made = Recorder(path, lambda state: repr(state).encode())
    made.start()
    yield made
    made.close()


async def test_an_intent_is_there_when_it_resolves(recorder: Recorder, path: Path) -> None:
    await recorder.intent(record(prompt_findings=(MASKED,)))
    assert rows(path, "SELECT id, outcome, findings FROM exchange") == [("ex_1", None, 1)]
    assert rows(path, "SELECT rule FROM finding") == [("secrets.aws-access-key",)]


async def test_what_happens_outside_of_exchanges_is_kept_too(recorder: Recorder, path: Path) -> None:
    await asyncio.gather(*[recorder.note("approval", f"step {number}") for number in range(300)])
    kept = rows(path, "SELECT detail FROM event WHERE kind = 'approval'")
    assert kept == [(f"step {number}",) for number in range(300)]
    recorder.close()
    with pytest.raises(RecordingError, match="closed"):
        recorder.note("approval", "late")


async def test_a_seal_completes_the_row(recorder: Recorder, path: Path) -> None:
    await recorder.intent(record(prompt_findings=(MASKED,)))
    found = Finding("pii.email", "pii", "stream:choices", 0, 9, Action.FLAG)
    end = record(
        outcome=Outcome.ANSWERED, status=200, prompt_findings=(MASKED,), answer_findings=(found,),
        decisions=(Decision("route", "allow", None, "openai/chat"), Decision("answer", "redact", Reason.FINDING)),
    )  # fmt: skip
    recorder.seal(end, {"kept": 1})
    recorder.close()
    assert rows(path, "SELECT outcome, status, findings FROM exchange") == [("answered", 200, 2)]
    assert rows(path, 'SELECT seq, direction, rule, "where", start, "end", action FROM finding ORDER BY seq') == [
        (0, "prompt", "secrets.aws-access-key", "$.messages[0].content", 5, 25, "redact"),
        (1, "response", "pii.email", "stream:choices", 0, 9, "flag"),
    ]
    assert rows(path, "SELECT stage, result, reason, detail FROM decision ORDER BY seq") == [
        ("route", "allow", None, "openai/chat"),
        ("answer", "redact", "finding", ""),
    ]
    assert rows(path, "SELECT exchange, format, state FROM flow_state") == [("ex_1", 21, b"{'kept': 1}")]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_kept_without_an_intent(recorder: Recorder, path: Path, outcome: Outcome) -> None:
    recorder.seal(record(outcome=outcome), None)
    recorder.close()
    assert rows(path, "SELECT outcome FROM exchange") == [(outcome.value,)]


async def test_a_late_intent_does_not_undo_a_seal(recorder: Recorder, path: Path) -> None:
    recorder.seal(record(outcome=Outcome.ABORTED), None)
    await asyncio.sleep(store.LINGER * 3)
    await recorder.intent(record())
    assert rows(path, "SELECT outcome FROM exchange") == [("aborted",)]


def test_tables_are_strict_and_columns_are_as_listed(recorder: Recorder, path: Path) -> None:
    tables = dict(rows(path, "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"))
    assert {name for name, strict in tables.items() if strict} >= {
        "exchange",
        "finding",
        "decision",
        "flow_state",
        "event",
    }
    assert [name for _, name, *_ in rows(path, "PRAGMA table_info(exchange)")] == list(COLUMNS)


def test_the_connection_is_durable(recorder: Recorder) -> None:
    asked = {
        name: recorder._ledger.db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "journal_mode", "secure_delete")
    }
    assert asked == {"synchronous": 2, "journal_mode": "wal", "secure_delete": 1}


def test_files_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        made = Recorder(path, lambda _: b"")
        made.start()
        made.seal(record(), None)
        time.sleep(store.LINGER * 4)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
        made.close()
    finally:
        os.umask(before)
    assert set(modes) == {f"tidegate.db{end}" for end in ("", "-wal", "-shm", ".lock", ".key", ".keys", ".checkpoint")}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_many_wait_for_one_commit(recorder: Recorder) -> None:
    commits: list[int] = []
    original = recorder._commit
    recorder._commit = lambda *args: (commits.append(len(args[0])), original(*args))[1]
    await asyncio.gather(*(recorder.intent(record(f"ex_{at}")) for at in range(600)))
    assert sum(commits) == 600
    assert max(commits) <= store.BATCH
    assert len(commits) < 30


async def test_a_seal_does_not_wait_for_company_for_long(recorder: Recorder, path: Path) -> None:
    recorder.seal(record(), None)
    await asyncio.sleep(store.LINGER * 5)
    assert rows(path, "SELECT count(*) FROM exchange") == [(1,)]


async def test_another_writer_gives_an_error_and_then_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PRAGMAS", (*(p for p in opening.PRAGMAS if "busy" not in p), "busy_timeout=10"))
    recorder = Recorder(path, lambda _: b"")
    recorder.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder.seal(record("ex_sealed"), None)
    with pytest.raises(RecordingError, match="SQLITE_BUSY"):
        await recorder.intent(record("ex_refused"))
    other.execute("ROLLBACK")
    other.close()
    await recorder.intent(record("ex_later"))
    recorder.close()
    assert {name for (name,) in rows(path, "SELECT id FROM exchange")} == {"ex_sealed", "ex_later"}
    assert recorder.dropped == 0


async def test_a_full_disk_gives_an_error_and_is_survived(recorder: Recorder, path: Path) -> None:
    await recorder.intent(record("ex_1"))
    pages = recorder._ledger.db.execute("PRAGMA page_count").fetchone()[0]
    recorder._ledger.db.execute(f"PRAGMA max_page_count={pages}")
    recorder.encode = lambda _: b"x" * 100_000
    recorder.seal(record("ex_big"), {})
    await asyncio.sleep(store.LINGER * 2)  # from then on a seal that cannot be written holds up what comes after it
    with pytest.raises(RecordingError, match="SQLITE_FULL"):
        await recorder.intent(record("ex_2"))
    recorder._ledger.db.execute("PRAGMA max_page_count=1000000")
    await recorder.intent(record("ex_3"))
    recorder.close()
    assert {name for (name,) in rows(path, "SELECT id FROM exchange")} == {"ex_1", "ex_3", "ex_big"}


class Broken:
    """A connection whose commits fail as they do when the disk fails."""

    in_transaction = False

    def __init__(self, real: object) -> None:
        self.real, self.calls = real, 0

    def execute(self, sql: str) -> object:
        self.calls += 1
        error = sqlite3.OperationalError("disk I/O error with a secret path")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    def close(self) -> None:
        self.real.close()


async def test_a_failed_sync_is_final(recorder: Recorder, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = recorder._ledger.db = Broken(recorder._ledger.db)
    with pytest.raises(RecordingError, match="SQLITE_IOERR_FSYNC"):
        await recorder.intent(record())
    calls = broken.calls
    with pytest.raises(RecordingError, match="recording has stopped: SQLITE_IOERR_FSYNC"):
        recorder.intent(record())
    recorder.seal(record(), None)
    recorder.close()
    assert broken.calls == calls  # never again on this handle
    assert recorder.dropped == 1
    assert "secret path" not in caplog.text


async def test_a_bug_in_a_row_does_not_hang_who_waits(recorder: Recorder) -> None:
    with pytest.raises(RecordingError, match="not recorded"):
        await asyncio.wait_for(recorder.intent(record(status=2**70)), 5)


def test_a_state_that_cannot_be_encoded_costs_the_bodies_only(recorder: Recorder, path: Path) -> None:
    def refuse(_: dict) -> bytes:
        raise ValueError("not serialisable")

    recorder.encode = refuse
    recorder.seal(record(), {"bad": object()})
    recorder.close()
    assert recorder.stripped == 1
    assert rows(path, "SELECT id FROM exchange") == [("ex_1",)]
    assert rows(path, "SELECT detail FROM event WHERE kind = 'gap'") == [("0 dropped, 1 without bodies",)]


async def test_intents_are_refused_when_too_many_wait(path: Path) -> None:
    recorder = Recorder(path, lambda _: b"", capacity=(3, 10_000_000))
    recorder.start()
    hold = threading.Event()
    original = recorder._commit
    recorder._commit = lambda *args: (hold.wait(5), original(*args))[1]
    waiting = [recorder.intent(record("ex_0"))]
    await asyncio.sleep(0.05)
    waiting += [recorder.intent(record(f"ex_{at}")) for at in range(1, 4)]
    with pytest.raises(RecordingError, match="too many"):
        recorder.intent(record("ex_9"))
    for at in range(10):
        recorder.seal(record(f"ex_s{at}"), None)
    hold.set()
    await asyncio.gather(*waiting)
    recorder.close()
    assert recorder.dropped == 4  # seals have twice the room
    assert rows(path, "SELECT detail FROM event WHERE kind = 'gap'") == [("4 dropped, 0 without bodies",)]


def test_bodies_are_left_out_when_too_many_bytes_wait(path: Path) -> None:
    recorder = Recorder(path, lambda _: b"state", capacity=(100, 50_000))
    recorder.start()
    for at in range(10):
        recorder.seal(record(f"ex_{at}", request_bytes=20_000), {})
    recorder.close()
    assert recorder.stripped >= 7
    assert rows(path, "SELECT count(*) FROM exchange") == [(10,)]
    assert rows(path, "SELECT count(*) FROM flow_state")[0][0] == 10 - recorder.stripped


def test_close_drains(recorder: Recorder, path: Path) -> None:
    for at in range(2000):
        recorder.seal(record(f"ex_{at}"), {})
    recorder.close()
    recorder.close()
    assert rows(path, "SELECT count(*) FROM exchange") == [(2000,)]
    assert [kind for (kind,) in rows(path, "SELECT kind FROM event")] == ["start", "stop"]
    recorder.seal(record("ex_late"), None)
    assert recorder.dropped == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "gpt-\ud800"), ("path", "/v1/\udcff"), ("caller", "caf\u00e9\udc80"), ("method", "G\udc80T")],
)
def test_what_cannot_be_written_as_text_is_written_as_escapes(
    recorder: Recorder, path: Path, field: str, value: str
) -> None:
    recorder.seal(record(**{field: value}), None)
    recorder.close()
    assert "\\u" in rows(path, f"SELECT {field} FROM exchange")[0][0]


def test_a_path_with_a_finding_is_not_repeated(recorder: Recorder, path: Path) -> None:
    found = Finding("secrets.x", "secrets", "path", 4, 24, Action.BLOCK)
    recorder.seal(record(path="/v1/AKIASECRETSECRET", prompt_findings=(found,)), None)
    recorder.close()
    assert rows(path, "SELECT path FROM exchange") == [("[REDACTED]",)]


@pytest.mark.parametrize(
    ("given", "kept"), [("/a/b?key=SECRET", "/a/b"), ("/a", "/a"), ("/" + "x" * 900, "/" + "x" * 511)]
)
def test_paths_are_bare(given: str, kept: str) -> None:
    assert bare_path(given) == kept


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "notes.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE notes (text)")
    db.close()
    with pytest.raises(RecordingError, match="found a database of something else; accepted: a recording"):
        Recorder(other, lambda _: b"").start()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot be opened as a recording"):
        Recorder(tmp_path / "file" / "tidegate.db", lambda _: b"").start()


def test_an_old_sqlite_refuses_a_second_writer(recorder: Recorder, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SAFE_SQLITE", (99, 0, 0))
    with pytest.raises(RecordingError, match="found another process recording into it"):
        Recorder(path, lambda _: b"").start()


def test_a_recording_is_taken_up_again(recorder: Recorder, path: Path) -> None:
    recorder.seal(record("ex_1"), None)
    recorder.close()
    again = Recorder(path, lambda _: b"")
    again.start()
    again.seal(record("ex_2"), None)
    again.close()
    assert rows(path, "SELECT id FROM exchange ORDER BY id") == [("ex_1",), ("ex_2",)]


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from tidegate.evidence.records import ExchangeRecord
    from tidegate.evidence.store import Recorder

    async def main():
        recorder = Recorder(Path(sys.argv[1]), lambda state: b"x" * 3000)
        recorder.start()
        async def one(worker):
            at = 0
            while True:
                name = f"ex_{worker}_{at}"
                await recorder.intent(ExchangeRecord(name, 1, "POST", "/x"))
                sys.stdout.write(name + "\\n"); sys.stdout.flush()
                recorder.seal(ExchangeRecord(name, 1, "POST", "/x"), {})
                at += 1
        await asyncio.gather(*(one(worker) for worker in range(8)))
    asyncio.run(main())
"""


def test_acknowledged_intents_survive_kill_9(path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "addons"}
        ) as process:
            told = [process.stdout.readline().strip() for _ in range(120)]
            process.send_signal(signal.SIGKILL)
            told += [line.strip() for line in process.stdout if line.endswith("\n")]
        stored = {name for (name,) in rows(path, "SELECT id FROM exchange")}
        assert len(told) >= 120
        assert set(told) <= stored
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        shutil.rmtree(path.parent)


def test_every_column_is_documented(recorder: Recorder, path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "recording.md").read_text()
    tables = rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")
    tables = sorted(name for (name,) in tables if not name.startswith(("_", "sqlite_")))
    assert " ".join(tables) == (
        "checkpoint chunk decision event exchange finding flow_state leaf original segment tile"
    )
    for table in tables:
        for _, column, *_ in rows(path, f"PRAGMA table_info({table})"):
            assert f"`{column}`" in page, f"docs/recording.md does not name {table}.{column}"


async def test_an_intent_does_not_wait_for_the_seals_before_it(recorder: Recorder, path: Path) -> None:
    slow = threading.Event()
    recorder.encode = lambda _: (slow.wait(10) and b"x") or b""
    recorder.seal(record("ex_1"), {})
    await asyncio.wait_for(recorder.intent(record("ex_2")), 5)
    assert {name for (name,) in rows(path, "SELECT id FROM exchange")} == {"ex_2"}
    slow.set()
    recorder.close()
    assert {name for (name,) in rows(path, "SELECT id FROM exchange")} == {"ex_1", "ex_2"}


@pytest.mark.parametrize("many", [1, 2, 63, 64, 65, 130, 257])
async def test_every_row_of_a_batch_of_any_size_is_kept(recorder: Recorder, path: Path, many: int) -> None:
    for number in range(many):
        recorder.seal(record(f"ex_{number:04}"), {})
    recorder.close()
    names = [f"ex_{number:04}" for number in range(many)]
    assert [name for (name,) in rows(path, "SELECT id FROM exchange ORDER BY id")] == names
    assert [name for (name,) in rows(path, "SELECT exchange FROM flow_state ORDER BY exchange")] == names


async def test_a_record_that_could_not_be_made_is_told_as_lost(recorder: Recorder, path: Path) -> None:
    recorder.lose()
    recorder.seal(record(outcome=Outcome.ANSWERED), None)
    recorder.close()
    assert rows(path, "SELECT detail FROM event WHERE kind = 'gap'") == [("1 dropped, 0 without bodies",)]
