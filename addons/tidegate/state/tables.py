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
