"""What is recorded of an exchange: the record, the rows it becomes, and the schema that holds them.

No column holds a text that was inspected: findings are (rule, class, where, span), decisions name things of the policy.
The bodies, as the policy keeps them, are in the flow state alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database, Migrations

from tidegate.model import Decision, Direction, Finding, Outcome, Reason, Scanned

APPLICATION_ID = 0x74696465
"""``tide``: what ``file`` and other tools read from the head of the SQLite file."""

FLOW_FORMAT = 21
"""The version of mitmproxy's flow state that is written; its ``compat`` migrates older ones (mitmproxy 12.2)."""


class RecordingError(Exception):
    """The recording could not be opened, or a record did not reach the disk. The text names the file and the cause."""


@dataclass(frozen=True, slots=True)
class ExchangeRecord:
    """One exchange as it is known so far. Times are microseconds: wall clock since 1970, or from the start where said.

    ``path`` is the client's path without its query (``bare_path``). ``outcome`` is ``None`` while the exchange is open.
    ``first_byte_us`` and ``duration_us`` count from the start, and come from a monotonic clock. ``request_bytes`` is
    what the client sent, ``response_bytes`` what it was given. ``replay_of`` is the exchange this one repeats.
    ``scanned``: how much of what the client sent the rules have seen; ``None`` where it was refused before that.
    Tokens are ``None`` where the policy does not count them; ``tokens_estimated``: the answer did not tell all of them.
    ``cost`` is in the currency of the price table, ``None`` where that has no price.
    """

    id: str
    started_us: int
    method: str
    path: str
    ended_us: int | None = None
    first_byte_us: int | None = None
    duration_us: int | None = None
    identity: str | None = None
    caller: str | None = None
    connection: str | None = None
    endpoint: str | None = None
    model: str | None = None
    outcome: Outcome | None = None
    reason: Reason | None = None
    status: int | None = None
    mode: str = "enforce"
    policy_sha: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    streamed: bool = False
    scanned: Scanned | None = None
    replay_of: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    tokens_estimated: bool | None = None
    cost: float | None = None
    prompt_findings: tuple[Finding, ...] = ()
    answer_findings: tuple[Finding, ...] = ()
    decisions: tuple[Decision, ...] = ()


COLUMNS = (
    "id", "started_us", "ended_us", "first_byte_us", "duration_us", "identity", "caller", "connection", "endpoint",
    "model", "method", "path", "outcome", "reason", "status", "mode", "policy_sha", "request_bytes", "response_bytes",
    "streamed", "findings", "replay_of", "scanned", "input_tokens", "output_tokens", "cached_tokens",
    "tokens_estimated", "cost",
)  # fmt: skip
"""The columns of table ``exchange``, in order. ``findings`` counts the rows of table ``finding``."""

_FIRST = COLUMNS[:22]
"""Those of the first format."""

_SETTLED = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])

INSERT_INTENT = (
    f"INSERT INTO exchange ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 - our own names
)
INSERT_SEAL = INSERT_INTENT.replace("DO NOTHING", f"DO UPDATE SET {_SETTLED}")
INSERT_FINDING = "INSERT OR REPLACE INTO finding VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_DECISION = "INSERT OR REPLACE INTO decision VALUES (?, ?, ?, ?, ?, ?)"
INSERT_STATE = "INSERT OR REPLACE INTO flow_state (exchange, format, state, salt, key) VALUES (?, ?, ?, ?, ?)"
INSERT_EVENT = "INSERT INTO event VALUES (?, ?, ?)"
INSERT_LEAF = "INSERT INTO leaf VALUES (?, ?)"
INSERT_TILE = "INSERT INTO tile VALUES (?, ?, ?)"
INSERT_NOTE = "INSERT INTO checkpoint VALUES (?, ?, ?)"
INSERT_CHUNKS = "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)"
INSERT_ORIGINAL = "INSERT OR REPLACE INTO original VALUES (?, ?, ?, ?, ?)"

migrations = Migrations("tidegate")


@migrations()
def recording_1(db: Database) -> None:
    """Create the tables of the first format.

    Ids sort by time, so ``exchange`` needs no index for its order. ``WITHOUT ROWID`` spares a second tree for each key,
    and with it a page in every commit.
    """
    integers = {"started_us", "ended_us", "first_byte_us", "duration_us", "status", "request_bytes", "response_bytes"}
    integers |= {"streamed", "findings"}
    needed = {"id", "started_us", "method", "path", "mode", "policy_sha", "streamed", "findings"}
    columns = [
        f"{name} {'INTEGER' if name in integers else 'TEXT'}{' NOT NULL' if name in needed else ''}" for name in _FIRST
    ]
    db.execute(f"CREATE TABLE exchange ({', '.join(columns)}, PRIMARY KEY (id)) STRICT, WITHOUT ROWID")
    db.execute(
        "CREATE TABLE finding (exchange TEXT NOT NULL, seq INTEGER NOT NULL, direction TEXT NOT NULL, "
        'rule TEXT NOT NULL, class TEXT NOT NULL, "where" TEXT NOT NULL, start INTEGER NOT NULL, '
        '"end" INTEGER NOT NULL, '
        "action TEXT NOT NULL, PRIMARY KEY (exchange, seq)) STRICT, WITHOUT ROWID"
    )
    db.table("finding").create_index(["rule"])
    db.execute(
        "CREATE TABLE decision (exchange TEXT NOT NULL, seq INTEGER NOT NULL, stage TEXT NOT NULL, "
        "result TEXT NOT NULL, reason TEXT, detail TEXT NOT NULL, PRIMARY KEY (exchange, seq)) STRICT, WITHOUT ROWID"
    )
    state: dict[str, Any] = {"exchange": str, "format": int, "state": bytes}
    db.table("flow_state").create(state, pk="exchange", not_null=set(state), strict=True)
    event: dict[str, Any] = {"at_us": int, "kind": str, "detail": str}
    db.table("event").create(event, not_null=set(event), strict=True)


@migrations()
def recording_2(db: Database) -> None:
    """Say of an exchange how much of what the client sent was scanned; of older ones nobody knows."""
    db.execute("ALTER TABLE exchange ADD COLUMN scanned TEXT")


@migrations()
def recording_3(db: Database) -> None:
    """Add to findings what hints come to: the score, and the sentence that explains it by rule ids."""
    db.execute("ALTER TABLE finding ADD COLUMN score REAL")
    db.execute("ALTER TABLE finding ADD COLUMN hints TEXT")


@migrations()
def usage_1(db: Database) -> None:
    """Say of an exchange how many tokens it took and what they cost, where the policy counts them."""
    for name in ("input_tokens", "output_tokens", "cached_tokens", "tokens_estimated"):
        db.execute(f"ALTER TABLE exchange ADD COLUMN {name} INTEGER")
    db.execute("ALTER TABLE exchange ADD COLUMN cost REAL")


@migrations()
def log_1(db: Database) -> None:
    """Create the log: leaves, which nothing may change, its full tiles and checkpoints, and where it had come to.

    ``segment`` has one row: the number of this file, its first leaf, and the edge of the tree before it. ``chunk``
    holds how a body was cut, in pieces of [microseconds, bytes]; ``original`` what only the auditor's key opens.
    """
    db.execute("CREATE TABLE leaf (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL) STRICT")
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER leaf_{verb.lower()} BEFORE {verb} ON leaf "
            "BEGIN SELECT RAISE(ABORT, 'the log only grows'); END"
        )
    db.execute(
        "CREATE TABLE tile (level INTEGER NOT NULL, number INTEGER NOT NULL, hashes BLOB NOT NULL, "
        "PRIMARY KEY (level, number)) STRICT"
    )
    db.execute("CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, note TEXT NOT NULL) STRICT")
    db.execute(
        "CREATE TABLE segment (number INTEGER PRIMARY KEY, first INTEGER NOT NULL, edge BLOB NOT NULL, "
        "earlier INTEGER NOT NULL, closed INTEGER NOT NULL DEFAULT 0) STRICT"
    )
    db.execute("ALTER TABLE flow_state ADD COLUMN salt BLOB")
    db.execute("ALTER TABLE flow_state ADD COLUMN key TEXT")
    db.execute(
        "CREATE TABLE chunk (exchange TEXT NOT NULL, direction TEXT NOT NULL, marks TEXT NOT NULL, "
        "PRIMARY KEY (exchange, direction)) STRICT, WITHOUT ROWID"
    )
    db.execute(
        "CREATE TABLE original (exchange TEXT NOT NULL, direction TEXT NOT NULL, key TEXT, wrapped BLOB NOT NULL, "
        "data BLOB NOT NULL, PRIMARY KEY (exchange, direction)) STRICT"
    )


def bare_path(path: str) -> str:
    """Return a path without its query, whose values may be anything; at most 512 characters (routing takes 2,048)."""
    return path.partition("?")[0][:512]


def exchange_row(record: ExchangeRecord) -> tuple[object, ...]:
    """Return the values of ``COLUMNS``. A path in which a rule fired is not repeated."""
    findings = len(record.prompt_findings) + len(record.answer_findings)
    path = "[REDACTED]" if any(each.where == "path" for each in record.prompt_findings) else bare_path(record.path)
    return (
        record.id, record.started_us, record.ended_us, record.first_byte_us, record.duration_us,
        _text(record.identity), _text(record.caller), record.connection, record.endpoint, _text(record.model),
        _text(record.method), _text(path),
        record.outcome, record.reason, record.status, record.mode, record.policy_sha, record.request_bytes,
        record.response_bytes, int(record.streamed), findings, record.replay_of, record.scanned,
        record.input_tokens, record.output_tokens, record.cached_tokens, record.tokens_estimated, record.cost,
    )  # fmt: skip


def finding_rows(record: ExchangeRecord) -> Iterator[tuple[object, ...]]:
    """Return the rows of table ``finding``."""
    seq = 0
    for direction, findings in (
        (Direction.PROMPT, record.prompt_findings),
        (Direction.RESPONSE, record.answer_findings),
    ):
        for each in findings:
            where = _text(each.where)
            told = (None, None) if each.score is None else (each.score.total, str(each.score))
            yield record.id, seq, direction, each.rule, each.cls, where, each.start, each.end, each.action, *told
            seq += 1


def decision_rows(record: ExchangeRecord) -> Iterator[tuple[object, ...]]:
    """Return the rows of table ``decision``."""
    for seq, each in enumerate(record.decisions):
        yield record.id, seq, each.stage, each.result, each.reason, _text(each.detail)


def _text(value: str | None) -> str | None:
    """Make a text storable: lone surrogates, which a client can send, become their escapes."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()
