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
def approvals_1(db: Database) -> None:
    """Create what keeps approvals: items, votes, and every step that an item ever took.

    ``approval.data`` and ``shown`` hold what an approver sees, never a value that was found. At most one item with a
    digest is open. ``approval_step`` is only added to; ``approval_told`` says up to which step the evidence has it.
    """
    db.execute("CREATE TABLE approval_key (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL) STRICT")
    db.execute(
        "CREATE TABLE approval (id TEXT PRIMARY KEY, digest BLOB NOT NULL, print BLOB NOT NULL, "
        "identity TEXT NOT NULL, subject TEXT NOT NULL, connection TEXT NOT NULL, policy TEXT NOT NULL, "
        "state TEXT NOT NULL, version INTEGER NOT NULL, scope TEXT NOT NULL, asked REAL NOT NULL, "
        "decide_by REAL NOT NULL, use_within REAL NOT NULL, use_by REAL, uses INTEGER NOT NULL, "
        "review TEXT, data TEXT NOT NULL, shown BLOB) STRICT"
    )
    db.execute("CREATE UNIQUE INDEX approval_open ON approval (digest) WHERE state IN ('pending', 'approved')")
    db.execute("CREATE INDEX approval_digest ON approval (digest, asked)")
    db.execute("CREATE INDEX approval_state ON approval (state, identity, subject)")
    db.execute("CREATE INDEX approval_asked ON approval (asked)")
    db.execute(
        "CREATE TABLE approval_vote (approval TEXT NOT NULL REFERENCES approval (id) ON DELETE CASCADE, "
        "identity TEXT NOT NULL, subject TEXT NOT NULL, groups TEXT NOT NULL, answer TEXT NOT NULL, "
        "reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (approval, identity, subject)) STRICT"
    )
    db.execute(
        "CREATE TABLE approval_step (seq INTEGER PRIMARY KEY AUTOINCREMENT, approval TEXT NOT NULL, at REAL NOT NULL, "
        "what TEXT NOT NULL, was TEXT NOT NULL, became TEXT NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL, "
        "policy TEXT NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX approval_step_of ON approval_step (approval)")
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER approval_step_{verb.lower()} BEFORE {verb} ON approval_step "
            "BEGIN SELECT RAISE(ABORT, 'approval_step is only added to'); END"
        )
    db.execute("CREATE TABLE approval_told (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL) STRICT")
    db.execute("INSERT INTO approval_told VALUES (1, 0)")
