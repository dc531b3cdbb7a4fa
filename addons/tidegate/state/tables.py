"""The tables of the control store, as steps from one format to the next. A released step is never changed."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("tidegate-state")


@migrations()
def state_1(db: Database) -> None:
    """Create what says who made what at a provider.

    ``owner`` is a caller as every later part will know it. ``owned.name`` stands for connection, kind and id
    (``ownership.name``); the model is the one that was asked for, as the log shows it.
    """
    db.execute(
        "CREATE TABLE owner (id INTEGER PRIMARY KEY, identity TEXT NOT NULL, subject TEXT NOT NULL, "
        "UNIQUE (identity, subject)) STRICT"
    )
    db.execute(
        "CREATE TABLE owned (name BLOB PRIMARY KEY, owner INTEGER NOT NULL REFERENCES owner (id), "
        "connection TEXT NOT NULL, kind TEXT NOT NULL, model TEXT, made INTEGER NOT NULL) STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX owned_made ON owned (made)")


@migrations()
def budgets_1(db: Database) -> None:
    """Create the counters of budgets, what open requests hold of them, and which processes are alive.

    A counter's ``slots`` are pairs of step and amount as JSON, and amounts are text where they may be larger than what
    SQLite counts with (money is counted in millionths of a millionth).
    """
    db.execute(
        "CREATE TABLE budget_counter (name BLOB PRIMARY KEY, budget TEXT NOT NULL, who TEXT NOT NULL, "
        'metric TEXT NOT NULL, most TEXT NOT NULL, "window" REAL NOT NULL, slots TEXT NOT NULL, '
        "touched REAL NOT NULL) STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE TABLE budget_owner (name TEXT PRIMARY KEY, until REAL NOT NULL) STRICT, WITHOUT ROWID")
    db.execute(
        'CREATE TABLE budget_hold (exchange TEXT NOT NULL, counter BLOB NOT NULL, owner TEXT NOT NULL, "window" REAL '
        "NOT NULL, step INTEGER NOT NULL, back TEXT NOT NULL, PRIMARY KEY (exchange, counter)) STRICT, WITHOUT ROWID"
    )
    db.execute(
        "CREATE TABLE budget_seat (exchange TEXT NOT NULL, counter BLOB NOT NULL, owner TEXT NOT NULL, "
        "budget TEXT NOT NULL, who TEXT NOT NULL, most INTEGER NOT NULL, "
        "PRIMARY KEY (exchange, counter)) STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX budget_seat_counter ON budget_seat (counter)")
    db.execute(
        "CREATE TABLE budget_reset (id INTEGER PRIMARY KEY, at REAL NOT NULL, budget TEXT NOT NULL, who TEXT, "
        '"by" TEXT NOT NULL, counters INTEGER NOT NULL) STRICT'
    )
