"""What people ask a recording."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from rich.console import Console
from sqlite_utils.utils import sqlite3

from tidegate.evidence import queries
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.model import Action, Decision, Finding, Outcome, Reason, Scanned
from tidegate.replay import show

HOUR = 3_600_000_000


def finding(rule: str) -> Finding:
    return Finding(rule, rule.partition(".")[0], "$.messages[0].content", 0, 20, Action.REDACT)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("queries") / "tidegate.db"
    recorder = Recorder(where, lambda _: b"")
    recorder.start()
    common = {"method": "POST", "path": "/openai/v1/chat/completions", "connection": "openai", "endpoint": "chat"}
    for each in (
        ExchangeRecord(
            "ex_0a", 1 * HOUR, caller="alice", identity="corp", outcome=Outcome.ANSWERED,
            scanned=Scanned.PARTLY, **common,
        ),
        ExchangeRecord(
            "ex_0b", 2 * HOUR, caller="bob", identity="corp", outcome=Outcome.DENIED, reason=Reason.FINDING, status=403,
            prompt_findings=(finding("secrets.aws"), finding("secrets.aws")),
            decisions=(Decision("route", "allow", None, "openai/chat"), Decision("inspect", "deny", Reason.FINDING)),
            **common,
        ),
        ExchangeRecord("ex_1c", 3 * HOUR, model="\x1b[31mred\u202e", **{**common, "connection": "anthropic"}),
        ExchangeRecord(
            "ex_1d", 4 * HOUR, caller="alice", identity="adfs", outcome=Outcome.ABORTED, duration_us=1500,
            answer_findings=(finding("pii.mail"),), **common,
        ),
    ):  # fmt: skip
        recorder.seal(each, None)
    recorder.close()
    return where


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["ex_1d", "ex_1c", "ex_0b", "ex_0a"]),
        ({"limit": 2}, ["ex_1d", "ex_1c"]),
        ({"outcome": "denied"}, ["ex_0b"]),
        ({"outcome": "open"}, ["ex_1c"]),
        ({"caller": "alice"}, ["ex_1d", "ex_0a"]),
        ({"caller": "corp:alice"}, ["ex_0a"]),
        ({"connection": "anthropic"}, ["ex_1c"]),
        ({"rule": "secrets.aws"}, ["ex_0b"]),
        ({"rule": "secrets.aw"}, []),
        ({"since": "1970-01-01T03:00"}, ["ex_1d", "ex_1c"]),
        ({"since": "1970-01-01T03:00", "outcome": "aborted"}, ["ex_1d"]),
        ({"outcome": "' OR 1=1 --"}, []),
    ],
    ids=str,
)
def test_filters(path: Path, filters: dict, found: list[str]) -> None:
    assert [row["id"] for row in queries.list_flows(path, **filters)] == found


def test_rules_are_counted(path: Path) -> None:
    assert [row["rules"] for row in queries.list_flows(path)] == [{"pii.mail": 1}, {}, {"secrets.aws": 2}, {}]


def test_the_table_names_what_happened_and_steers_no_terminal(path: Path) -> None:
    console = Console(record=True, width=200)
    console.print(queries.table(queries.list_flows(path)))
    text = console.export_text()
    for expected in ("denied: finding", "secrets.aws x2", "corp:bob", "openai/chat", "open", "1.5"):
        assert expected in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_show_has_decisions_and_findings(path: Path) -> None:
    found = queries.show(path, "ex_0b")
    assert found["decisions"] == [
        {"stage": "route", "result": "allow", "reason": None, "detail": "openai/chat"},
        {"stage": "inspect", "result": "deny", "reason": "finding", "detail": ""},
    ]
    assert found["finding_list"][0] == {
        "direction": "prompt", "rule": "secrets.aws", "class": "secrets", "where": "$.messages[0].content",
        "start": 0, "end": 20, "action": "redact",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("ex_0", "found several exchanges that begin with 'ex_0'; accepted: more of the id"),
        ("ex_9", "found no exchange 'ex_9'; accepted: the beginning of an id of `flows list`"),
        ("%", "found no exchange '%'; accepted: the beginning of an id of `flows list`"),
    ],
)
def test_an_id_must_name_one_exchange(path: Path, prefix: str, message: str) -> None:
    with pytest.raises(RecordingError) as error:
        queries.show(path, prefix)
    assert str(error.value) == f"{path}: {message}"


def test_bodies_that_were_not_kept_are_named(path: Path) -> None:
    assert queries.states(path) == []
    with pytest.raises(RecordingError, match="found no bodies for ex_0a; accepted: an exchange that kept them"):
        queries.states(path, ["ex_0a"])


def test_a_look_changes_nothing(path: Path) -> None:
    with queries.reading(path) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.conn.execute("DELETE FROM exchange")


@pytest.mark.parametrize("make", ["nothing", "text", "other"])
def test_what_is_no_recording_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.db"
    if make == "text":
        path.write_text("not a database at all, but long enough to have a header" * 20)
    if make == "other":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE t (x)")
        db.close()
    said = {"nothing": "found no file", "text": "cannot be read as a recording", "other": "something else"}[make]
    with pytest.raises(RecordingError, match=said):
        queries.list_flows(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", 8200), ("2h", 2800), ("1d", 10_000 - 86_400), ("90s", 9910), ("1970-01-02", 86_400),
        ("1970-01-01T01:00:00+01:00", 0), (" 1h ", 6400),
    ],
)  # fmt: skip
def test_since(text: str, expected: int) -> None:
    assert queries.since_us(text, now=10_000) == expected * 1_000_000


@pytest.mark.parametrize("text", ["", "soon", "2y", "-1h", "2026-13-01"])
def test_since_refuses(text: str) -> None:
    with pytest.raises(RecordingError) as error:
        queries.since_us(text)
    assert str(error.value) == (
        f"--since: found {text!r}; accepted: an age such as 30m, 2h or 3d, or a date such as 2026-11-01"
    )


def test_how_much_was_scanned_is_shown(path: Path) -> None:
    rows = {row["id"]: row["scanned"] for row in queries.list_flows(path)}
    assert rows == {"ex_0a": "partly scanned", "ex_0b": None, "ex_1c": None, "ex_1d": None}
    console = Console(width=200, file=io.StringIO())
    console.print(queries.table(queries.list_flows(path), 200))
    assert console.file.getvalue().count("partly scanned") == 1  # type: ignore[attr-defined]
    console.print(show.view(show.details(path, "ex_0a")))
    assert console.file.getvalue().count("partly scanned") == 2  # type: ignore[attr-defined]


def test_an_older_recording_gets_the_column_and_keeps_its_rows(tmp_path: Path) -> None:
    where = tmp_path / "old.db"
    recorder = Recorder(where, lambda _: b"")
    recorder.start()
    recorder.seal(ExchangeRecord("ex_1", HOUR, "GET", "/"), None)
    recorder.close()
    with contextlib.closing(sqlite3.connect(where, isolation_level=None)) as db:
        db.execute("ALTER TABLE exchange DROP COLUMN scanned")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'recording_2'")
    assert [queries.table([row], 200).row_count for row in queries.list_flows(where)] == [1], "read only, as it is"
    again = Recorder(where, lambda _: b"")
    again.start()
    again.seal(ExchangeRecord("ex_2", HOUR, "GET", "/", scanned=Scanned.WHOLE), None)
    again.close()
    assert [(row["id"], row["scanned"]) for row in queries.list_flows(where)] == [("ex_2", "scanned"), ("ex_1", None)]
