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
def revocations_1(db: Database) -> None:
    """Create the list of tokens that are no longer believed.

    A row names one token (``jti``) or every token of a subject up to a moment (``subject``, ``before``). Times are Unix
    seconds. ``expires``: when the token ends by itself, so that the row may go; none: it stays until it is undone.
    ``revoked_change`` counts every change, whoever makes it, so that a mirror sees with one row that it is out of date.
    """
    db.execute(
        "CREATE TABLE revoked (id INTEGER PRIMARY KEY AUTOINCREMENT, issuer TEXT NOT NULL, jti TEXT, subject TEXT, "
        "before REAL, expires REAL, made REAL NOT NULL, made_by TEXT NOT NULL, why TEXT NOT NULL, "
        "CHECK ((jti IS NULL) = (subject IS NOT NULL) AND (subject IS NULL) = (before IS NULL))) STRICT"
    )
    db.execute("CREATE UNIQUE INDEX revoked_token ON revoked (issuer, jti) WHERE jti IS NOT NULL")
    db.execute("CREATE TABLE revoked_change (number INTEGER NOT NULL) STRICT")
    db.execute("INSERT INTO revoked_change VALUES (0)")
    counted = "ON revoked BEGIN UPDATE revoked_change SET number = number + 1; END"
    db.execute("CREATE TRIGGER revoked_insert AFTER INSERT " + counted)
    db.execute("CREATE TRIGGER revoked_update AFTER UPDATE " + counted)
    db.execute("CREATE TRIGGER revoked_delete AFTER DELETE " + counted)


@migrations()
def signing_1(db: Database) -> None:
    """Create the keys of this gateway's own tokens: ``private`` is an Ed25519 key, ``made`` Unix seconds."""
    db.execute("CREATE TABLE signing_key (kid TEXT PRIMARY KEY, private BLOB NOT NULL, made REAL NOT NULL) STRICT")
