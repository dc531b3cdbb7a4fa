"""Faults of the disk at every call: what was acknowledged is there, what was not is told, and the log still verifies.

Each trial fails the i-th statement that the writer runs, i = 1, 2, ... ``TIDEGATE_CAMPAIGN_FAULTS`` says how many.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from tidegate.evidence import ledger as ledgers
from tidegate.evidence.ledger import Settings
from tidegate.evidence.log import Cadence
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.evidence.verify import verify
from tidegate.model import Outcome

FAULTS = int(os.environ.get("TIDEGATE_CAMPAIGN_FAULTS", "25"))
KILLS = int(os.environ.get("TIDEGATE_CAMPAIGN_KILLS", "2"))


class Failing:
    """A connection whose i-th statement fails, as it does when the disk does; what it had begun may stay open."""

    def __init__(self, real: object, at: int, name: str) -> None:
        self.real, self.left, self.name, self.fired = real, at, name, False

    def execute(self, sql: str, *more: object) -> object:
        self.left -= 1
        if self.left == 0:
            self.fired = True
            error = sqlite3.OperationalError("disk")
            error.sqlite_errorname = self.name
            raise error
        return self.real.execute(sql, *more)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


async def run(path: Path, at: int, name: str) -> tuple[set[str], bool]:
    """Record with the ``at``-th statement failing; return what was acknowledged, and whether the fault fired."""
    recorder = Recorder(path, lambda _: b"body" * 50, settings=Settings(private=True, cadence=Cadence(leaves=3)))
    recorder.start()
    await recorder.intent(ExchangeRecord("ex_first", 1, "POST", "/x", caller="alice"))
    failing = recorder._ledger.db = Failing(recorder._ledger.db, at, name)
    kept: set[str] = {"ex_first"}
    for number in range(6):
        exchange = f"ex_{number}"
        try:
            await asyncio.wait_for(recorder.intent(ExchangeRecord(exchange, 1, "POST", "/x", caller="alice")), 20)
        except RecordingError:
            continue
        kept.add(exchange)
        recorder.seal(ExchangeRecord(exchange, 1, "POST", "/x", caller="alice", outcome=Outcome.ANSWERED), {})
    recorder.close()
    return kept, failing.fired


@pytest.mark.parametrize("name", ["SQLITE_IOERR_FSYNC", "SQLITE_FULL"])
async def test_a_fault_at_any_statement_loses_nothing_that_was_acknowledged(tmp_path: Path, name: str) -> None:
    fired = 0
    for at in range(1, FAULTS + 1):
        path = tmp_path / str(at) / "tidegate.db"
        kept, hit = await run(path, at, name)
        fired += hit
        db = sqlite3.connect(path)
        there = {each for (each,) in db.execute("SELECT id FROM exchange")}
        db.close()
        assert kept <= there, at
        assert verify(path).faults == [], at
        again = Recorder(path, lambda _: b"")  # and the next start takes it up
        again.start()
        await again.intent(ExchangeRecord("ex_again", 1, "POST", "/x"))
        again.close()
        assert verify(path).faults == [], at
    assert fired == FAULTS


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from tidegate.evidence import ledger
    from tidegate.evidence.ledger import Settings
    from tidegate.evidence.log import Cadence
    from tidegate.evidence.records import ExchangeRecord
    from tidegate.evidence.store import Recorder
    from tidegate.model import Outcome
    ledger.TEND = 0.0

    async def main():
        settings = Settings(private=True, cadence=Cadence(leaves=5), segment_bytes=120_000)
        recorder = Recorder(Path(sys.argv[1]), lambda state: b"x" * 3000, settings=settings)
        recorder.start()
        async def one(worker):
            at = 0
            while True:
                name = f"ex_{sys.argv[2]}_{worker}_{at}"
                await recorder.intent(ExchangeRecord(name, 1, "POST", "/x", caller="alice"))
                sys.stdout.write(name + "\\n"); sys.stdout.flush()
                recorder.seal(ExchangeRecord(name, 1, "POST", "/x", caller="alice", outcome=Outcome.ANSWERED), {})
                at += 1
        await asyncio.gather(*(one(worker) for worker in range(8)))
    asyncio.run(main())
"""


def test_the_log_goes_on_after_kill_9_while_segments_close(tmp_path: Path) -> None:
    path = tmp_path / "rec" / "tidegate.db"
    told: set[str] = set()
    for round_ in range(KILLS):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(round_)]
        environment = {**os.environ, "PYTHONPATH": "addons"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            told |= {process.stdout.readline().strip() for _ in range(150)}
            process.send_signal(signal.SIGKILL)
            told |= {line.strip() for line in process.stdout if line.endswith("\n")}
        stored: set[str] = set()
        for each in sorted(path.parent.glob("*.db")):
            db = sqlite3.connect(each)
            stored |= {name for (name,) in db.execute("SELECT id FROM exchange")}
            db.close()
        assert told <= stored
        report = verify(path)
        assert report.faults == [], round_
    assert len(list(path.parent.glob("*.db"))) > 1
    assert ledgers.TEND == 1.0


async def test_a_writer_that_has_stopped_does_not_spin(tmp_path: Path) -> None:
    cadence = Cadence(every=0.01)
    recorder = Recorder(tmp_path / "rec" / "tidegate.db", lambda _: b"", settings=Settings(cadence=cadence))
    recorder.start()
    await recorder.intent(ExchangeRecord("ex_1", 1, "POST", "/x"))
    recorder._ledger.db = Failing(recorder._ledger.db, 1, "SQLITE_IOERR_FSYNC")
    with pytest.raises(RecordingError):
        await recorder.intent(ExchangeRecord("ex_2", 1, "POST", "/x"))
    turns: list[int] = []
    original = recorder._turn
    recorder._turn = lambda intents: (turns.append(1), original(intents))[1]
    await asyncio.sleep(0.3)
    assert len(turns) < 5
    recorder.close()
