"""People in events: pseudonyms and keyed hashes in the log, nothing after an erasure, nothing in others' bundles."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from tests.test_approvals import CAROL, wanted
from tests.test_verify import record
from tidegate.approvals.spec import Answer
from tidegate.desk import Desk
from tidegate.evidence.bundle import Selection, export
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.store import Recorder
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.verify import verify
from tidegate.model import Outcome
from tidegate.state.control import Control

WORDS = "patient file 17"
OVER = {"approval": "apr_old", "what": "expired", "actor": "tidegate", "reason": "nobody decided in time"}


async def cross(recorder: Recorder, name: str, caller: str) -> None:
    await recorder.intent(record(name, caller=caller))
    recorder.seal(record(name, caller=caller, outcome=Outcome.ANSWERED), {"body": name})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording of zoe and alice, between whose exchanges carol has approved one of alice's."""
    path = tmp_path / "rec" / "tidegate.db"

    async def run() -> None:
        recorder = Recorder(path, lambda state: repr(state).encode(), settings=Settings(private=True))
        recorder.start()
        control = Control(tmp_path / "control.db")
        control.start()
        desk = Desk(control, recorder)
        await cross(recorder, "ex_1", "zoe")
        await cross(recorder, "ex_2", "alice")
        found = await desk.ask(wanted())
        assert found.item is not None
        await desk.decide(found.item.id, CAROL, Answer.YES, WORDS)
        await desk.close()
        await recorder.note("approval", json.dumps(OVER))
        await cross(recorder, "ex_3", "zoe")
        await cross(recorder, "ex_4", "alice")
        recorder.close()
        control.close()

    asyncio.run(run())
    return path


def steps(path: Path) -> Iterator[dict[str, str]]:
    db = sqlite3.connect(path)
    for (detail,) in db.execute("SELECT detail FROM event WHERE kind = 'approval' ORDER BY rowid"):
        yield json.loads(detail)
    db.close()


def test_an_approval_stands_in_the_log_under_pseudonyms_and_without_words(path: Path) -> None:
    found = list(steps(path))
    subjects = Subjects(Files(path).keys)
    alice, carol = (subjects.pseudonym(f"corp:{each}") for each in ("alice", "carol"))
    assert [(each["what"], each["actor"]) for each in found][:3] == [
        ("ask", alice), ("vote yes", carol), ("approved", carol),
    ]  # fmt: skip
    assert found[1]["reason"] == found[2]["reason"] == subjects.commitment("corp:carol", WORDS)
    assert found[3] == OVER, "the gate is no person"
    assert found[1]["reason"] != subjects.commitment("corp:alice", WORDS)
    subjects.close()
    for each in path.parent.glob("tidegate.db*"):
        assert WORDS.encode() not in each.read_bytes(), each
        assert each == Files(path).keys or b"corp:" not in each.read_bytes(), each
    assert verify(path).faults == []


@pytest.mark.parametrize("name", ["corp:alice", "corp:carol"])
def test_after_an_erasure_nothing_leads_from_the_log_to_the_name_or_the_words(path: Path, name: str) -> None:
    subjects = Subjects(Files(path).keys)
    before = subjects.pseudonym(name), subjects.commitment(name, WORDS)
    subjects.erase(name, "T-1")
    assert subjects.name(before[0]) is None
    assert (subjects.pseudonym(name), subjects.commitment(name, WORDS)) != before
    subjects.close()
    assert verify(path).faults == []


@pytest.mark.parametrize(
    ("selection", "many"),
    [
        pytest.param(Selection(caller="corp:zoe"), 0, id="another caller"),
        pytest.param(Selection(ids=("ex_1", "ex_3")), 0, id="another caller's exchanges"),
        pytest.param(Selection(caller="corp:alice"), 3, id="who asked"),
        pytest.param(Selection(ids=("ex_2", "ex_4")), 3, id="exchanges of who asked"),
        pytest.param(Selection(since_us=0), 4, id="everybody"),
    ],
)
def test_a_bundle_has_the_approvals_of_its_own_callers(path: Path, selection: Selection, many: int) -> None:
    with zipfile.ZipFile(io.BytesIO(export(path, selection))) as opened:
        lines = [json.loads(each) for each in opened.read("events.jsonl").decode().splitlines()]
    assert [each["event"] for each in lines if each["kind"] == "event"].count("approval") == many
    assert len([each for each in lines if each["kind"] != "event"]) in (4, 8)
