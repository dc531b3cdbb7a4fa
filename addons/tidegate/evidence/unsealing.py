"""Sealed originals out of a recording, for who has the auditor's private key."""

from __future__ import annotations

from pathlib import Path

from tidegate.evidence import queries
from tidegate.evidence.files import Files
from tidegate.evidence.names import names_of
from tidegate.evidence.records import RecordingError
from tidegate.evidence.sealing import Original, unseal


def open_original(path: Path, prefix: str, direction: str, private: str) -> tuple[str, bytes]:
    """Return the id of an exchange and its original of a direction. Raises ``RecordingError``."""
    exchange = queries.find(path, prefix)
    with names_of(Files(path)) as names:
        for _, file in reversed(Files(path).segments()):
            with queries.reading(file) as db:
                if "original" not in db.table_names():
                    continue
                for row in db["original"].rows_where("exchange = ? AND direction = ?", [exchange, direction]):
                    key = names.key(row["key"])
                    if key is None:
                        raise RecordingError(f"exchange {exchange}: it was erased, or the file of keys is not here")
                    sealed = Original(exchange, direction, row["wrapped"], row["data"])
                    return exchange, unseal(private, key, sealed)
    raise RecordingError(
        f"{path}: found no sealed original of exchange {exchange}; accepted: one recorded with originals: sealed"
    )
