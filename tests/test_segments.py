"""Segments: closed, hashed, proven, deleted by age while their hashes stay; a full disk; remote file systems."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_utils.utils import sqlite3

from tidegate.evidence import ledger as ledgers
from tidegate.evidence import queries, segments
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.log import Cadence
from tidegate.evidence.opening import Tiles
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.stats import stats
from tidegate.evidence.store import Recorder
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.summaries import activity, rule_hits
from tidegate.evidence.verify import verify
from tidegate.model import Action, Finding, Outcome

FLIPS = int(os.environ.get("TIDEGATE_CAMPAIGN_FLIPS", "150"))


def record(name: str, outcome: Outcome | None = None) -> ExchangeRecord:
    return ExchangeRecord(name, 1_000_000, "POST", "/x", identity="corp", caller="alice", outcome=outcome)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ledgers, "TEND", 0.0)
    return tmp_path / "rec" / "tidegate.db"


def fill(path: Path, many: int, first: int = 0, **settings: object) -> None:
    """Record exchanges, one commit each, so that every one may close a segment."""

    async def run() -> None:
        made = Settings(private=True, cadence=Cadence(leaves=7), **settings)
        recorder = Recorder(path, lambda state: repr(state).encode(), settings=made)
        recorder.start()
        for at in range(first, first + many):
            await recorder.intent(record(f"ex_{at:04}"))
            recorder.seal(record(f"ex_{at:04}", Outcome.ANSWERED), {"said": f"text {at}" * 40})
        recorder.close()

    asyncio.run(run())


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if each.suffix == ".db")


def test_a_large_segment_is_closed_and_the_next_one_goes_on(path: Path) -> None:
    fill(path, 140, segment_bytes=110_000)
    closed = Tiles(Files(path).tiles)
    rows = closed.rows()
    assert len(rows) >= 2
    assert names(path)[0] == "tidegate-00002.db"
    for row in rows:
        file = Files(path).segment(row["number"])
        assert stat.S_IMODE(file.stat().st_mode) == 0o440
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert not Path(f"{file}-wal").exists()
    closed.close()
    report = verify(path)
    assert report.faults == []
    assert report.sound
    listed = queries.list_flows(path, limit=200)
    assert [row["id"] for row in listed] == [f"ex_{at:04}" for at in reversed(range(140))]
    assert {row["outcome"] for row in listed} == {"answered"}
    assert {row["caller"] for row in listed} == {"alice"}
    assert len(queries.states(path)) == 140
    assert queries.show(path, "ex_0001")["outcome"] == "answered"
    assert queries.list_flows(path, outcome="open") == []


@pytest.fixture
def seam(path: Path) -> Path:
    """A recording of three segments: each exchange but the last ends in the segment after its intent."""
    found = (Finding("pii.email", "pii", "$.x", 0, 9, Action.FLAG),)

    def crossed(name: str, at: int, **more: object) -> ExchangeRecord:
        basis = record(name)
        return replace(basis, started_us=at * 1_000_000, prompt_findings=found, connection="openai", **more)

    async def run() -> None:
        made = Settings(private=True, segment_bytes=1 << 40)
        recorder = Recorder(path, lambda state: repr(state).encode(), settings=made)
        recorder.start()
        for at in range(1, 4):
            if at > 1:
                before = f"ex_{(at - 1) * 1000:011x}"
                ended = crossed(before, at - 1, outcome=Outcome.ANSWERED, duration_us=at * 1000, first_byte_us=at)
                recorder.seal(ended, None)
            await recorder.intent(crossed(f"ex_{at * 1000:011x}", at))
            await asyncio.sleep(0.2)
            if at < 3:
                recorder._ledger.settings = replace(made, segment_bytes=1)  # the writer looks at it after each commit
                recorder.event("policy", "x")
                await asyncio.sleep(0.2)
                recorder._ledger.settings = made
        recorder.close()

    asyncio.run(run())
    return path


def test_what_crosses_the_seam_of_two_segments_is_counted_once(seam: Path) -> None:
    assert len(Files(seam).segments()) == 3
    done = activity(seam, 0, 4_000_000, 4)
    assert [dict(each) for each in done.bars] == [{}, {"answered": 1}, {"answered": 1}, {"open": 1}]
    assert done.classes == {("pii", "flag"): 3}
    assert done.connections == {("openai", "answered"): 2, ("openai", "open"): 1}
    assert (done.first_byte_us, done.duration_us) == ((3, 3), (3000, 3000))
    assert [(each["rule"], each["many"], each["exchanges"]) for each in rule_hits(seam, 0)] == [("pii.email", 3, 3)]
    summed = stats(seam)
    assert (summed["exchanges"], summed["outcome"], summed["rule"]) == (3, {"answered": 2, "open": 1}, {"pii.email": 3})
    assert dict(activity(seam, 2_000_000, 4_000_000, 2).outcomes) == {"answered": 1, "open": 1}


def test_sums_do_not_need_the_first_segment(seam: Path) -> None:
    seam.unlink()
    assert dict(activity(seam, 0, 4_000_000, 4).outcomes) == {"answered": 2, "open": 1}
    assert rule_hits(seam, 0)[0]["many"] == 3
    assert stats(seam)["exchanges"] == 3


def test_segments_that_were_over_before_are_not_looked_at(seam: Path) -> None:
    since = time.time_ns() // 1000 + 60_000_000
    with queries.parts(seam, since) as found:
        assert len(found) == 1
    with queries.parts(seam, since - 3_600_000_000) as found:
        assert len(found) == 3


def test_an_old_segment_is_closed(path: Path) -> None:
    fill(path, 3, segment_age=0.001)
    assert len(names(path)) > 2
    assert verify(path).faults == []


def test_a_closed_segment_is_taken_up_after_a_stop(path: Path) -> None:
    for at in range(4):
        fill(path, 20, at * 20, segment_bytes=110_000)
    report = verify(path)
    assert report.faults == []
    assert len(queries.list_flows(path, limit=200)) == 80


def test_every_bit_of_a_closed_segment_counts(path: Path) -> None:
    fill(path, 40, segment_bytes=110_000)
    data, chosen = path.read_bytes(), random.Random(3)
    path.chmod(0o600)
    for _ in range(FLIPS):
        at = chosen.randrange(len(data))
        path.write_bytes(data[:at] + bytes((data[at] ^ 1 << chosen.randrange(8),)) + data[at + 1 :])
        assert verify(path).faulty, at
    path.write_bytes(data)
    assert verify(path).faults == []


def test_what_was_kept_long_enough_goes_and_the_log_stays_provable(path: Path) -> None:
    fill(path, 40, segment_bytes=110_000)
    before = Tiles(Files(path).tiles).rows()
    fill(path, 5, 40, segment_bytes=110_000, retain=0.001)
    assert not path.exists()
    rows = Tiles(Files(path).tiles).rows()
    assert [row["deleted_us"] is not None for row in rows[: len(before)]] == [True] * len(before)
    report = verify(path)
    assert report.faults == []
    assert report.sound
    assert any("deleted segments: the log has their hashes" in each for each in report.unproven)
    fill(path, 5, 45, segment_bytes=110_000)
    assert verify(path).faults == []
    assert not path.exists()  # no name is used twice


def test_a_segment_that_is_missing_without_a_word_is_found(path: Path) -> None:
    fill(path, 140, segment_bytes=110_000)
    middle = Files(path).segment(2)
    middle.unlink()
    assert any("segment 2 is missing" in each for each in verify(path).faults)


def test_a_legal_hold_keeps_every_segment(path: Path) -> None:
    fill(path, 20, segment_bytes=110_000)
    subjects = Subjects(Files(path).keys)
    subjects.hold("corp:alice", "case 7", "corp:alice")
    subjects.close()
    fill(path, 5, 40, segment_bytes=110_000, retain=0.001)
    assert path.exists()


def test_a_reader_delays_the_closing_and_breaks_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "PATIENCE", 0.05)
    fill(path, 1)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM leaf").fetchone()
    fill(path, 40, 1, segment_bytes=110_000)
    reader.close()
    assert verify(path).faults == []
    fill(path, 1, 50)
    rows = Tiles(Files(path).tiles).rows()
    assert rows[0]["number"] == 1
    assert verify(path).faults == []


async def test_a_full_disk_gives_the_ballast_back_and_is_told(path: Path) -> None:
    recorder = Recorder(path, lambda _: b"x" * 100_000, settings=Settings(ballast=1 << 20))
    recorder.start()
    assert Files(path).ballast.stat().st_size == 1 << 20
    await recorder.intent(record("ex_1"))
    db = recorder._ledger.db
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0]}")
    recorder._ledger.ballast.roomy = lambda: False
    recorder.seal(record("ex_big", Outcome.ANSWERED), {})
    for _ in range(200):
        await asyncio.sleep(0.05)
        if not Files(path).ballast.exists():
            break
    assert not Files(path).ballast.exists()
    recorder._ledger.db.execute("PRAGMA max_page_count=1000000")
    await recorder.intent(record("ex_2"))
    recorder.close()
    db = sqlite3.connect(path)
    assert ("full", "the disk is full; the ballast was given back") in db.execute(
        "SELECT kind, detail FROM event"
    ).fetchall()
    db.close()
    assert verify(path).faults == []


MOUNTS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    "30 22 0:40 / /srv/share rw - nfs4 server:/export rw,vers=4.2\n"
    "31 22 0:41 / /srv/over rw - overlay overlay rw,lowerdir=/a,upperdir=/srv/share/up,workdir=/w\n"
    "32 22 0:42 / /srv/local rw - overlay overlay rw,lowerdir=/a,upperdir=/var/up,workdir=/w\n"
    "33 22 0:43 / /srv/with\\040space rw - cifs //server/x rw\n"
)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", None), ("/srv/local/x", None), ("/srv/share/x", "nfs4"), ("/srv/over", "overlay over nfs4"),
        ("/srv/with space", "cifs"), ("/srv/sharex", None),
    ],
)  # fmt: skip
def test_a_network_file_system_is_refused(tmp_path: Path, folder: str, kind: str | None) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    path = Path(folder) / "tidegate.db"
    if kind is None:
        segments.refuse_remote(path, tmp_path / "mounts")
        return
    with pytest.raises(RecordingError, match=f"found a file system of the kind {kind}; accepted: a local one"):
        segments.refuse_remote(path, tmp_path / "mounts")


def test_the_log_tells_of_every_closed_and_deleted_segment(path: Path) -> None:
    fill(path, 40, segment_bytes=110_000)
    fill(path, 5, 40, segment_bytes=110_000, retain=0.001)
    told: dict[str, set[int]] = {}
    for _, file in Files(path).segments():
        db = sqlite3.connect(file)
        for kind, detail in db.execute("SELECT kind, detail FROM event WHERE kind IN ('segment', 'deleted')"):
            told.setdefault(kind, set()).add(json.loads(detail)["number"])
        db.close()
    assert told["deleted"]
    assert told["segment"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tidegate.evidence.opening import Tiles
tiles = Tiles(Path(sys.argv[1]), create=True)
tiles._db.execute("PRAGMA cache_size=2")
tiles._db.execute("BEGIN IMMEDIATE")
for number in range(400):
    tiles._db.execute("INSERT OR REPLACE INTO tile VALUES (0, ?, ?)", [number % 60, b"new" * 3000])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_process_left_half_done_when_it_was_killed_is_undone_by_whoever_reads(tmp_path: Path) -> None:
    path = tmp_path / "tidegate.db.tiles"
    tiles = Tiles(path, create=True)
    tiles.take([(0, number, b"old" * 3000) for number in range(50)], (1, 0, 5, b"", "sha", 1))
    tiles.close()
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").exists(), "else this shows nothing"
    tiles = Tiles(path)
    assert tiles.fetch(0, 1) == b"old" * 3000
    assert tiles.fetch(0, 55) is None
    assert [row["number"] for row in tiles.rows()] == [1]
    tiles.close()
