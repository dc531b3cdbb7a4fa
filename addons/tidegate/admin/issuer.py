"""Gives out this gateway's own tokens, and takes tokens back: what the routes of the token service work with."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tidegate.admin.metrics import Metrics
from tidegate.identity import issuing
from tidegate.identity.claims import Verified
from tidegate.identity.issuing import Source
from tidegate.identity.own import OwnKeys
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial
from tidegate.policy.policy import Policy
from tidegate.state.control import StateError
from tidegate.state.revocations import Revocations

log = logging.getLogger("tidegate")


class CannotIssue(Exception):
    """No token can be given out. ``passing``: it may work in a moment. The text is for the client."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token, and the seconds it lives."""

    token: str = field(repr=False)
    seconds: int


class Tokens:
    """The token service of one admin listener; used in its loop."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        verifier: Callable[[], Awaitable[Verifier]],
        revocations: Revocations | None,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._verifier = verifier
        self._revocations = revocations
        self._metrics = metrics
        self._now = now

    @property
    def url(self) -> str:
        """The issuer of our tokens; empty where the policy has no ``admin.url``, and no token is given out."""
        return self._policy().admin.url

    async def ready(self) -> None:
        """See that a token can be given out now; asked before anything is used up for one. Raises ``CannotIssue``."""
        await self._keys()

    async def issue(self, caller: Caller, grant: str, *, until: float | None, source: Source | None = None) -> Issued:
        """Make a token for a caller whom the grant has proven. It ends with ``until`` at the latest.

        Raises ``CannotIssue``.
        """
        own = await self._keys()
        now = self._now()
        end = now + self._policy().admin.lifetime
        end = end if until is None else min(end, until)
        if end - now < 1:
            raise CannotIssue("What was shown has ended.")
        jti = secrets.token_urlsafe(16)
        key = issuing.signer(own.signing, now)
        try:
            token = issuing.mint(key, self.url, caller, now=now, until=end, jti=jti, source=source)
        except ValueError:
            raise CannotIssue("The caller has too many groups for a token.") from None
        self._metrics.issued.labels(grant, caller.identity).inc()
        who = f"{caller.identity}:{caller.subject}"
        line = {"event": "token", "grant": grant, "caller": who, "jti": jti, "kid": key.kid, "seconds": int(end - now)}
        log.info(json.dumps(line))
        return Issued(token, int(end - now))

    async def published(self) -> bytes:
        """Return our public keys as a JWKS document. Raises ``CannotIssue``."""
        return issuing.published((await self._keys()).signing)

    async def verified(self, token: str) -> Verified | Denial:
        """Say what a token that is to be taken back says, without the proof that a bound one needs elsewhere."""
        return await (await self._verifier()).verified(token, self._now())

    async def revoke_token(self, issuer: str, jti: str, *, by: str, why: str, expires: float | None = None) -> bool:
        """Take back one token; says whether that is kept."""
        if self._revocations is None:
            return False
        return await self._kept(self._revocations.revoke_token(issuer, jti, made_by=by, why=why, expires=expires))

    async def revoke_subject(self, issuer: str, subject: str, *, by: str, why: str) -> bool:
        """Take back every token of a subject up to now; says whether that is kept."""
        if self._revocations is None:
            return False
        return await self._kept(self._revocations.revoke_subject(issuer, subject, made_by=by, why=why))

    @staticmethod
    async def _kept(done: object) -> bool:
        try:
            await asyncio.wrap_future(done)  # type: ignore[arg-type]
        except StateError as error:
            log.error("a token could not be revoked: %s", error)
            return False
        return True

    async def _keys(self) -> OwnKeys:
        own = (await self._verifier()).own
        if own is None:
            raise CannotIssue("This gateway gives out no tokens: its policy has no admin.url.")
        if own.keys is None:
            await own.refresh()
        if own.keys is None:
            raise CannotIssue("The keys cannot be read at the moment; try again in a few seconds.", passing=True)
        return own
