"""Who made what is stored at a provider: a caller may name only his own.

The first who is told of a name owns it, for good: that another answer shows it later changes nothing. An id is kept as
a hash, because an upstream writes it and may write anything into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tidegate.model import Caller, Owners, Stored
from tidegate.state.control import Control

NAME_BYTES = 20
"""Enough that no two names of even 2**40 ever collide (2**-80), and that nobody finds one that collides with another's
(2**80 hashes)."""

REMEMBERED = 4096
"""Claims that are known to be kept, so that nothing is written for them again: about a megabyte."""

DELETED_AT_ONCE = 20_000
"""Rows that one pass over what is too old deletes: under a tenth of a second, for others wait."""


class Ownership:
    """The part of the control store that knows owners. ``retain`` is in seconds; ``now`` a clock in Unix seconds."""

    def __init__(self, path: Path, retain: float, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._retain = retain
        self._kept: dict[Hashable, None] = {}
        self.control = Control(path, (self._tidy,))

    def claim(self, connection: str, caller: Caller, made: Sequence[Stored], model: str | None) -> Future[None]:
        """Keep that a caller made these; the future resolves once it is on the disk, or has a ``StateError``."""
        names = [(name(connection, each), each.kind) for each in made]
        at = int(self._now())

        def work(db: Any) -> None:
            who = (caller.identity, caller.subject)
            db.execute("INSERT INTO owner (identity, subject) VALUES (?, ?) ON CONFLICT DO NOTHING", who)
            (owner,) = db.execute("SELECT id FROM owner WHERE identity = ? AND subject = ?", who).fetchone()
            db.executemany(
                "INSERT INTO owned (name, owner, connection, kind, model, made) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET model = excluded.model "
                "WHERE owner = excluded.owner AND excluded.model IS NOT NULL AND model IS NOT excluded.model",
                [(key, owner, connection, kind, model, at) for key, kind in names],
            )

        key = (connection, caller.identity, caller.subject, model, frozenset(made))
        if key in self._kept:  # as when an answer is fetched again and again until it is there
            done: Future[None] = Future()
            done.set_result(None)
            return done
        future = self.control.write(work)
        future.add_done_callback(lambda done: self._note(key) if done.exception() is None else None)
        return future

    def _note(self, key: Hashable) -> None:
        """Remember a claim that is kept, and forget the oldest."""
        self._kept[key] = None
        while len(self._kept) > REMEMBERED:
            with contextlib.suppress(KeyError, RuntimeError):  # another thread may have forgotten it
                del self._kept[next(iter(self._kept))]

    def find(self, connection: str, caller: Caller, asked: Sequence[Stored]) -> Future[Owners]:
        """Find out which of these a caller made; the future has those that are his, or a ``StateError``."""
        names = [(each, name(connection, each)) for each in asked]
        oldest = int(self._now() - self._retain)

        def work(db: Any) -> Owners:
            own = {}
            for each, key in names:
                row = db.execute(
                    "SELECT owned.model FROM owned JOIN owner ON owner.id = owned.owner "
                    "WHERE name = ? AND identity = ? AND subject = ? AND made >= ?",
                    (key, caller.identity, caller.subject, oldest),
                ).fetchone()
                if row is not None:
                    own[each] = row[0]
            return Owners(own)

        return self.control.read(work)

    def _tidy(self, db: Any) -> None:
        oldest = int(self._now() - self._retain)
        db.execute(
            "DELETE FROM owned WHERE name IN (SELECT name FROM owned WHERE made < ? LIMIT ?)", (oldest, DELETED_AT_ONCE)
        )


def name(connection: str, stored: Stored) -> bytes:
    """Return what stands for a stored thing: no two differ only in where one part ends and the next begins."""
    digest = hashlib.blake2b(digest_size=NAME_BYTES, person=b"tidegate owned")
    for part in (connection, stored.kind, stored.id):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
