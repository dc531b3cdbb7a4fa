"""The keys that sign this gateway's tokens, in the control store, so that every process on it signs and checks alike.

They lie there in the clear: who reads the file can make tokens. It is 0600, like every file of the store.
"""

from __future__ import annotations

import secrets
from concurrent.futures import Future
from typing import Any

from tidegate.identity.issuing import OwnKey, is_due, is_over
from tidegate.state.control import Control


class SigningKeys:
    """The part of the control store that knows them."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def read(self) -> Future[tuple[OwnKey, ...]]:
        """Return the keys there are, or a ``StateError``."""
        return self._control.read(_all)

    def turn(self, now: float, rotate: float) -> Future[tuple[OwnKey, ...]]:
        """Make a key if one is due, delete those that are over, and return what there is then.

        In one transaction: of several processes that find a key due only the first makes one.
        """

        def work(db: Any) -> tuple[OwnKey, ...]:
            keys = _all(db)
            for each in is_over(keys, now):
                db.execute("DELETE FROM signing_key WHERE kid = ?", (each.kid,))
            if is_due(keys, now, rotate):
                row = (secrets.token_urlsafe(12), secrets.token_bytes(32), now)
                db.execute("INSERT INTO signing_key (kid, private, made) VALUES (?, ?, ?)", row)
            return _all(db)

        return self._control.write(work)


def _all(db: Any) -> tuple[OwnKey, ...]:
    rows = db.execute("SELECT kid, made, private FROM signing_key ORDER BY made, kid")
    return tuple(OwnKey(kid, made, bytes(private)) for kid, made, private in rows)
