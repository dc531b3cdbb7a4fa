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


@migrations()
def saml_1(db: Database) -> None:
    """Create what signing in by SAML has to remember (``logins``). Times are Unix seconds; secrets are hashed."""
    db.execute(
        "CREATE TABLE saml_login (id TEXT PRIMARY KEY, identity TEXT NOT NULL, browser BLOB NOT NULL UNIQUE, "
        "user_code TEXT, made REAL NOT NULL, caller TEXT, until REAL) STRICT"
    )
    db.execute("CREATE INDEX saml_login_made ON saml_login (made)")
    db.execute("CREATE TABLE saml_seen (name BLOB PRIMARY KEY, ends REAL NOT NULL) STRICT, WITHOUT ROWID")
    db.execute("CREATE INDEX saml_seen_ends ON saml_seen (ends)")
    db.execute(
        "CREATE TABLE saml_device (code BLOB PRIMARY KEY, user_code TEXT NOT NULL UNIQUE, made REAL NOT NULL, "
        "asked REAL NOT NULL, denied INTEGER NOT NULL, caller TEXT, until REAL) STRICT"
    )


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


@migrations()
def approvals_2(db: Database) -> None:
    """Say of each receiver of steps how far it is, and which gate tells it the next ones, until when (Unix seconds)."""
    db.execute(
        "CREATE TABLE approval_teller (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, owner TEXT NOT NULL, "
        "until REAL NOT NULL) STRICT, WITHOUT ROWID"
    )
    for name in ("evidence", "letters"):
        db.execute("INSERT INTO approval_teller SELECT ?, seq, '', 0.0 FROM approval_told", (name,))
    db.execute("DROP TABLE approval_told")
