"""`tidegate verify`: what is recorded is proven, and whatever is changed afterwards is found."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlite_utils.utils import sqlite3

from tidegate.cli import main
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.log import Cadence
from tidegate.evidence.queries import list_flows
from tidegate.evidence.records import COLUMNS, ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.evidence.verify import key_beside, verify
from tidegate.model import Action, Decision, Finding, Outcome, Reason

FLIPS = int(os.environ.get("TIDEGATE_CAMPAIGN_FLIPS", "150"))
"""Random bit flips per kind of file; the campaign of docs/evidence.md sets 10,000."""

FOUND = Finding("secrets.aws-access-key", "secrets", "$.messages[0].content", 5, 25, Action.REDACT)


def record(name: str, **more: object) -> ExchangeRecord:
    return ExchangeRecord(
        **{"id": name, "started_us": 1_000_000, "method": "POST", "path": "/openai/v1/chat", "identity": "corp"}
        | {"caller": "alice", "model": "sample", "policy_sha": "ab" * 32}
        | more
    )


async def fill(path: Path, many: int = 40, first: int = 0, **settings: Any) -> None:
    recorder = Recorder(path, lambda state: repr(state).encode(), settings=Settings(**settings))
    recorder.start()
    for at in range(first, first + many):
        name = f"ex_{at:04}"
        await recorder.intent(record(name, prompt_findings=(FOUND,) if at % 3 else ()))
        end = record(
            name, outcome=Outcome.ANSWERED, status=200, duration_us=5, streamed=bool(at % 2),
            prompt_findings=(FOUND,) if at % 3 else (), decisions=(Decision("route", "allow", None, "openai/chat"),),
            answer_findings=(Finding("pii.email", "pii", "stream:choices", 0, 9, Action.FLAG),) if at % 5 == 0 else (),
        )  # fmt: skip
        recorder.seal(end, {"body": f"text {at} " * 5})
    recorder.seal(record("ex_denied", outcome=Outcome.DENIED, reason=Reason.FINDING), None)
    await recorder.intent(record(f"ex_open_{first}"))
    recorder.event("policy", "sha256 " + "cd" * 32)
    recorder.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "rec" / "tidegate.db"
    asyncio.run(fill(path, private=True, cadence=Cadence(leaves=10)))
    return path


@pytest.fixture
def path(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept.parent, tmp_path / "rec")
    return tmp_path / "rec" / "tidegate.db"


def edit(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for each in ("DROP TRIGGER leaf_update", "DROP TRIGGER leaf_delete", *statements):
        db.execute(each)
    db.close()


def test_what_was_recorded_is_proven(path: Path) -> None:
    report = verify(path)
    assert report.faults == []
    assert report.sound
    assert report.leaves == 85
    assert report.proven[0].startswith("85 events are as they were signed")
    assert report.proven[1] == "the rows of 42 exchanges say what those events say"
    assert any("the key lies beside the recording" in each for each in report.unproven)
    assert any("--checkpoint" in each for each in report.unproven)


def test_with_a_key_and_a_checkpoint_from_elsewhere_nothing_is_left_open(path: Path) -> None:
    note = path.with_name("elsewhere")
    note.write_text(Files(path).note.read_text())
    report = verify(path, key_beside(Files(path)), [note])
    assert (report.faults, report.unproven) == ([], [])


SLEIGHTS: dict[str, tuple[str, ...]] = {
    "outcome": ("UPDATE exchange SET outcome = 'denied' WHERE id = 'ex_0003'",),
    "column emptied": ("UPDATE exchange SET status = NULL WHERE id = 'ex_0003'",),
    "caller": ("UPDATE exchange SET caller = '~other' WHERE id = 'ex_0003'",),
    "exchange deleted": ("DELETE FROM exchange WHERE id = 'ex_0003'",),
    "open exchange deleted": ("DELETE FROM exchange WHERE id = 'ex_open_0'",),
    "exchange added": (f"INSERT INTO exchange SELECT 'ex_x', {', '.join(COLUMNS[1:])} FROM exchange LIMIT 1",),
    "exchange renamed": ("UPDATE exchange SET id = 'ex_9' WHERE id = 'ex_0003'",),
    "finding moved": ("UPDATE finding SET start = start + 1 WHERE exchange = 'ex_0004' AND seq = 0",),
    "finding deleted": ("DELETE FROM finding WHERE exchange = 'ex_0004'",),
    "finding added": ("UPDATE finding SET exchange = 'ex_0003', seq = 9 WHERE exchange = 'ex_0004' AND seq = 0",),
    "decision": ("UPDATE decision SET result = 'deny' WHERE exchange = 'ex_0005'",),
    "decision deleted": ("DELETE FROM decision WHERE exchange = 'ex_0005'",),
    "body": ("UPDATE flow_state SET state = zeroblob(99) WHERE exchange = 'ex_0006'",),
    "body deleted": ("DELETE FROM flow_state WHERE exchange = 'ex_0006'",),
    "bodies swapped": (
        "UPDATE flow_state SET exchange = 'ex_x' WHERE exchange = 'ex_0006'",
        "UPDATE flow_state SET exchange = 'ex_0006' WHERE exchange = 'ex_0007'",
        "UPDATE flow_state SET exchange = 'ex_0007' WHERE exchange = 'ex_x'",
    ),
    "body under another key": ("UPDATE flow_state SET key = 'ff' WHERE exchange = 'ex_0006'",),
    "event row": ("UPDATE event SET detail = 'nothing' WHERE kind = 'policy'",),
    "event row added before": ("INSERT INTO event (rowid, at_us, kind, detail) VALUES (-5, 1, 'approval', '{}')",),
    "event row added after": ("INSERT INTO event VALUES (1, 'approval', '{}')",),
    "event row deleted": ("DELETE FROM event WHERE kind = 'policy'",),
    "leaf changed": ("UPDATE leaf SET payload = replace(payload, 'POST', 'LOST') WHERE seq = 9",),
    "leaf and row changed alike": (
        "UPDATE leaf SET payload = replace(payload, 'sample', 'simple')", "UPDATE exchange SET model = 'simple'",
    ),
    "leaf deleted": ("DELETE FROM leaf WHERE seq = 9",),
    "last leaf deleted": ("DELETE FROM leaf WHERE seq = 84",),
    "tail cut": ("DELETE FROM leaf WHERE seq > 70", "DELETE FROM checkpoint WHERE size > 70"),
    "leaf added": ("INSERT INTO leaf SELECT 85, payload FROM leaf WHERE seq = 5",
                   "INSERT INTO event VALUES (1, 'x', 'y')"),
    "leaves swapped": ("UPDATE leaf SET seq = 900 WHERE seq = 9", "UPDATE leaf SET seq = 9 WHERE seq = 11",
                       "UPDATE leaf SET seq = 11 WHERE seq = 900"),
    "checkpoint changed": ("UPDATE checkpoint SET note = replace(note, 'log', 'lag')",),
    "checkpoint under another size": ("UPDATE checkpoint SET size = size + 1000",),
    "older rows claimed": ("UPDATE segment SET earlier = 1",),
    "edge": ("UPDATE segment SET first = 1",),
}  # fmt: skip


@pytest.mark.parametrize("statements", SLEIGHTS.values(), ids=SLEIGHTS)
def test_every_sleight_of_hand_is_found(path: Path, statements: tuple[str, ...]) -> None:
    edit(path, *statements)
    report = verify(path)
    assert report.faulty
    assert not report.sound


def test_a_name_that_is_not_its_pseudonym_s_is_found_and_not_shown(path: Path) -> None:
    assert "every name is that of its pseudonym (callers: 1)" in verify(path).proven
    db = sqlite3.connect(Files(path).keys, isolation_level=None)
    db.execute("UPDATE subject SET name = 'corp:mallory'")
    (pseudonym,) = db.execute("SELECT pseudonym FROM subject").fetchone()
    db.close()
    report = verify(path)
    assert report.faults == [f"tidegate.db.keys: {pseudonym} is not the pseudonym of the name beside it"]
    assert list_flows(path, limit=1)[0]["caller"] == pseudonym
    assert list_flows(path, caller="corp:mallory") == []


def test_without_names_it_is_not_proven_who_the_callers_are(path: Path) -> None:
    Files(path).keys.unlink()
    report = verify(path)
    assert (report.sound, report.faults) == (True, [])
    said = "who the callers are: tidegate.db.keys, which has their names, is not here or cannot be read"
    assert said in report.unproven


def test_a_file_of_names_that_lacks_its_table_is_a_fault(path: Path) -> None:
    db = sqlite3.connect(Files(path).keys, isolation_level=None)
    db.execute("DROP TABLE subject")
    db.close()
    assert verify(path).faults == ["tidegate.db.keys: cannot be read: OperationalError"]


def test_a_log_that_was_rewritten_whole_is_found_by_a_checkpoint_from_elsewhere(path: Path, tmp_path: Path) -> None:
    note = tmp_path / "elsewhere"
    note.write_text(Files(path).note.read_text())
    key = Files(path).key.read_bytes()
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    Files(path).key.write_bytes(key)
    Files(path).key.chmod(0o600)
    asyncio.run(fill(path, many=60, private=True))  # the administrator has the key, and signs another history
    assert verify(path).sound
    report = verify(path, None, [note])
    assert report.faults == ["elsewhere: the first 85 events are not those that were signed"]


def test_an_older_copy_is_not_recorded_into(path: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    shutil.copy(path, older)
    asyncio.run(fill(path, many=3, first=100))
    shutil.copy(older, path)
    with pytest.raises(RecordingError, match="found a log of 85 events, but"):
        Recorder(path, lambda _: b"").start()
    report = verify(path)
    assert "was signed over" in report.faults[0]


def test_a_key_that_others_may_read_is_refused(path: Path) -> None:
    Files(path).key.chmod(0o644)
    with pytest.raises(RecordingError, match="found a key that others may read; accepted: mode 0600"):
        Recorder(path, lambda _: b"").start()


def test_a_lost_key_is_not_replaced(path: Path) -> None:
    Files(path).key.unlink()
    with pytest.raises(RecordingError, match="found no key, but a checkpoint"):
        Recorder(path, lambda _: b"").start()


def test_a_log_goes_on_after_a_restart(path: Path) -> None:
    for at in range(1, 4):
        asyncio.run(fill(path, many=70, first=at * 100))
    report = verify(path)
    assert report.faults == []
    assert report.leaves == 85 + 3 * (70 * 2 + 5)


def test_two_processes_write_one_log(path: Path) -> None:
    async def both() -> None:
        made = [Recorder(path, repr) for _ in range(2)]
        for each in made:
            each.start()
        for at in range(300):
            await made[at % 2].intent(record(f"ex_two_{at}"))
        for each in made:
            each.close()

    asyncio.run(both())
    report = verify(path)
    assert report.faults == []
    assert report.leaves == 85 + 300 + 4


TABLES = ("exchange", "finding", "decision", "flow_state", "event", "leaf", "checkpoint", "tile", "segment")


def contents(path: Path) -> list[Any]:
    """Everything a reader can get out of a segment, or nothing if it cannot be read."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]
    except (sqlite3.Error, OverflowError, UnicodeError):
        return []
    finally:
        db.close()


def flip(path: Path, at: int, bit: int) -> Callable[[], None]:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :])
    return lambda: (path.write_bytes(data), None)[1]


def test_every_flipped_bit_is_found_or_changes_nothing_that_can_be_read(path: Path) -> None:
    before, chosen, found = contents(path), random.Random(7), 0
    size = path.stat().st_size
    for _ in range(FLIPS):
        undo = flip(path, chosen.randrange(size), chosen.randrange(8))
        report = verify(path)
        found += bool(report.faulty)
        assert report.faulty or contents(path) == before
        undo()
    assert found > FLIPS // 4


def test_every_flipped_bit_of_a_checkpoint_is_found(path: Path) -> None:
    note = Files(path).note
    chosen = random.Random(7)
    for at in range(note.stat().st_size):
        undo = flip(note, at, chosen.randrange(8))
        report = verify(path, None, [note])
        assert report.faulty, at
        undo()


def test_a_recording_of_before_the_log_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old(path)
    report = verify(path)
    assert (report.sound, report.faults, report.proven) == (False, [], [])
    assert "1 exchanges that a version without a log has recorded" in report.unproven


def old(path: Path) -> None:
    """Make a recording as the last version without a log made it."""
    from sqlite_utils import Database

    from tidegate.evidence import records

    db = Database(sqlite3.connect(path, isolation_level=None))
    db.execute(f"PRAGMA application_id={records.APPLICATION_ID}")
    records.migrations.apply(db, stop_before="log_1")
    db.execute(
        "INSERT INTO exchange (id, started_us, method, path, mode, policy_sha, streamed, findings, outcome) "
        "VALUES ('ex_0', 1, 'GET', '/', 'enforce', '', 0, 0, 'answered')"
    )
    db.execute("INSERT INTO event VALUES (1, 'start', 'an old one'), (2, 'stop', '')")
    db.conn.close()


def test_an_old_recording_is_taken_up_and_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old(path)
    asyncio.run(fill(path, many=2))
    report = verify(path)
    assert report.faults == []
    assert "1 exchanges that a version without a log has recorded" in report.unproven
    assert "2 rows of table event that a version without a log has written" in report.unproven


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM exchange WHERE id = 'ex_0'",
        "DELETE FROM event WHERE detail = 'an old one'",
        "INSERT INTO event (rowid, at_us, kind, detail) VALUES (-5, 1, 'approval', '{}')",
    ],
)
def test_what_an_old_recording_had_is_counted(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "old.db"
    old(path)
    asyncio.run(fill(path, many=2))
    edit(path, statement)
    assert verify(path).faulty


def test_the_command_tells_it_in_words_and_by_its_status(path: Path) -> None:
    run = CliRunner()
    good = run.invoke(main, ["verify", str(path)])
    assert good.exit_code == 0
    assert "proven  85 events are as they were signed: none changed, none removed" in good.stdout
    assert "not proven  that nobody has rewritten everything" in good.stdout
    key = run.invoke(main, ["evidence", "key", "--recording", str(path)]).stdout
    assert run.invoke(main, ["verify", str(path), "--key", key.strip()]).exit_code == 0
    edit(path, *SLEIGHTS["outcome"])
    bad = run.invoke(main, ["verify", str(path)])
    assert bad.exit_code == 1
    assert "CHANGED  tidegate.db: exchange ex_0003 is not as it was recorded" in bad.stdout
    none = run.invoke(main, ["verify", str(path.with_name("none.db"))])
    assert none.exit_code == 2
    assert "found no file; accepted: a recording made by tidegate" in none.stderr
    other = run.invoke(main, ["verify", str(path), "--key", "nonsense"])
    assert other.exit_code == 2
