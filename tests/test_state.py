"""The control store and who made what: two processes, a kill, a full inbox, files that are something else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils.utils import sqlite3

from tests.clock import Clock
from tidegate.model import Caller, Stored
from tidegate.state import control
from tidegate.state.control import Control, StateError
from tidegate.state.ownership import Ownership, name

ALICE, BOB = Caller("local", "alice"), Caller("local", "bob")
DAY = 86400.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000_000.0)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Ownership]:
    found = Ownership(tmp_path / "below" / "control.db", 10 * DAY, clock)
    found.control.start()
    yield found
    found.control.close()


def own(store: Ownership, caller: Caller, *asked: Stored, connection: str = "openai") -> dict[Stored, str | None]:
    return dict(store.find(connection, caller, asked).result(10).own)


def claim(store: Ownership, caller: Caller, *made: Stored, model: str | None = None) -> None:
    store.claim("openai", caller, made, model).result(10)


FILE, THREAD = Stored("file", "file-1"), Stored("thread", "file-1")


def test_what_a_caller_made_is_his_and_nobody_elses(store: Ownership) -> None:
    claim(store, ALICE, FILE, model="m")
    assert own(store, ALICE, FILE, THREAD) == {FILE: "m"}
    assert own(store, BOB, FILE) == {}
    assert own(store, Caller("corp", "alice"), FILE) == {}
    assert own(store, ALICE, FILE, connection="other") == {}


def test_the_first_who_is_told_a_name_owns_it(store: Ownership) -> None:
    claim(store, ALICE, FILE, model="m")
    claim(store, BOB, FILE, model="n")
    assert own(store, ALICE, FILE) == {FILE: "m"}
    assert own(store, BOB, FILE) == {}


def test_its_owner_may_give_it_another_model_and_none_takes_nothing_away(store: Ownership) -> None:
    claim(store, ALICE, FILE, model="m")
    claim(store, ALICE, FILE, model="n")
    claim(store, ALICE, FILE)
    assert own(store, ALICE, FILE) == {FILE: "n"}


def test_what_is_too_old_is_nobodys_and_deleted(store: Ownership, clock: Clock, tmp_path: Path) -> None:
    claim(store, ALICE, FILE)
    clock.now += 10 * DAY
    assert own(store, ALICE, FILE) == {FILE: None}
    clock.now += 2
    assert own(store, ALICE, FILE) == {}
    store.control.close()
    again = Ownership(tmp_path / "below" / "control.db", 10 * DAY, clock)
    again.control.start()
    again.claim("openai", BOB, (THREAD,), None).result(10)  # after what is done at the start
    assert again.control.read(lambda db: db.execute("SELECT count(*) FROM owned").fetchone()[0]).result(10) == 1
    again.control.close()


def test_no_two_things_have_the_same_name() -> None:
    names = {name(a, Stored(b, c)) for a in ("x", "xy", "") for b in ("x", "y", "") for c in ("x", "yx", "", "\ud800")}
    assert len(names) == 36
    assert {len(each) for each in names} == {20}


kinds = st.sampled_from(("file", "thread"))
things = st.builds(Stored, kinds, st.text(max_size=3))
claims = st.lists(st.tuples(st.sampled_from((ALICE, BOB)), st.lists(things, max_size=4)), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claims)
def test_it_is_a_table_of_first_owners(tmp_path_factory: pytest.TempPathFactory, history: list) -> None:
    found = Ownership(tmp_path_factory.mktemp("state") / "control.db", DAY)
    found.control.start()
    first: dict[Stored, Caller] = {}
    futures = []
    for caller, made in history:
        futures.append(found.claim("openai", caller, made, None))
        for each in made:
            first.setdefault(each, caller)
    for each in futures:
        each.result(10)
    for caller in (ALICE, BOB):
        assert set(own(found, caller, *first)) == {each for each, owner in first.items() if owner is caller}
    found.control.close()


def test_the_file_is_its_owners_alone_and_names_no_id(store: Ownership, tmp_path: Path) -> None:
    claim(store, ALICE, Stored("file", "file-CANARY"))
    folder = tmp_path / "below"
    assert oct(folder.stat().st_mode)[-3:] == "700"
    for each in folder.iterdir():
        assert oct(each.stat().st_mode)[-3:] == "600", each
        assert b"CANARY" not in each.read_bytes()


def test_names_do_not_show_in_a_repr() -> None:
    assert "CANARY" not in repr(Stored("file", "file-CANARY"))


# ── other processes, and the end of this one ─────────────────────────────────────────────────────────────────────────

CHILD = """
    import sys
    from pathlib import Path
    from tidegate.model import Caller, Stored
    from tidegate.state.ownership import Ownership
    store = Ownership(Path(sys.argv[1]), 86400.0)
    store.control.start()
    print("ready", flush=True)
    for line in sys.stdin:
        who, name = line.split()
        store.claim("openai", Caller("local", who), (Stored("file", name),), None).result(30)
        print(name, flush=True)
"""


def child(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    process = child(path)
    assert process.stdin is not None
    assert process.stdout is not None
    for at in range(20):
        process.stdin.write(f"alice file-{at}\n")
        assert process.stdout.readline() == f"file-{at}\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    process.stdin.close()
    process.stdout.close()
    found = Ownership(path, DAY)
    found.control.start()
    every = [Stored("file", f"file-{at}") for at in range(20)]
    assert set(own(found, ALICE, *every)) == set(every)
    found.control.close()


def test_two_processes_share_it(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    found = Ownership(path, DAY)
    found.control.start()
    process = child(path)
    assert process.stdin is not None
    assert process.stdout is not None
    for at in range(30):
        process.stdin.write(f"bob theirs-{at}\n")
        claim(found, ALICE, Stored("file", f"mine-{at}"), Stored("file", f"theirs-{at + 1}"))
        process.stdout.readline()
        assert own(found, BOB, Stored("file", f"theirs-{at}")) == ({Stored("file", "theirs-0"): None} if not at else {})
        assert own(found, ALICE, Stored("file", f"mine-{at}")) == {Stored("file", f"mine-{at}"): None}
    process.stdin.close()
    process.wait(20)
    process.stdout.close()
    found.control.close()


def test_many_ask_at_once(store: Ownership) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: claim(store, ALICE, Stored("file", f"f{at}")), range(300)))
    every = [Stored("file", f"f{at}") for at in range(300)]
    assert len(own(store, ALICE, *every)) == 300


# ── what cannot be used ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (a)")
    other.close()
    before = path.read_bytes()
    message = f"{path}: found a database of something else; accepted: a control store, or no file yet"
    with pytest.raises(StateError) as caught:
        Control(path).start()
    assert str(caught.value) == message
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no database at all, is it? " * 40)
    for each in (tmp_path / "text", tmp_path, tmp_path / "text" / "below"):
        with pytest.raises(StateError, match="cannot be opened as a control store"):
            Control(each).start()


def test_what_is_closed_or_too_full_refuses(store: Ownership, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CAPACITY", 0)
    with pytest.raises(StateError, match="too much is waiting"):
        claim(store, ALICE, FILE)
    monkeypatch.undo()
    store.control.close()
    store.control.close()
    for ask in (store.claim("openai", ALICE, (FILE,), None), store.find("openai", ALICE, (FILE,))):
        with pytest.raises(StateError, match="closed"):
            ask.result(10)


def test_a_failed_commit_keeps_nothing_and_a_disk_that_failed_is_not_used_again(store: Ownership) -> None:
    def fail(_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error CANARY")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    claim(store, ALICE, FILE)
    with pytest.raises(StateError) as caught:
        store.control.write(fail).result(10)
    assert "CANARY" not in str(caught.value)
    assert "SQLITE_IOERR_FSYNC" in str(caught.value)
    with pytest.raises(StateError, match="has stopped"):
        claim(store, ALICE, THREAD)
    assert own(store, ALICE, FILE, THREAD) == {FILE: None}


def test_a_passing_fault_is_not_the_end(store: Ownership) -> None:
    def busy(_: object) -> None:
        error = sqlite3.OperationalError("busy")
        error.sqlite_errorname = "SQLITE_BUSY"
        raise error

    with pytest.raises(StateError):
        store.control.write(busy).result(10)
    claim(store, ALICE, FILE)
    assert own(store, ALICE, FILE) == {FILE: None}


def test_who_no_longer_waits_does_not_stop_the_writer(store: Ownership) -> None:
    for _ in range(20):
        store.control.write(lambda _: None).cancel()
    claim(store, ALICE, FILE)
    assert own(store, ALICE, FILE) == {FILE: None}
