"""Who holds this token? The shell around ``claims``: keys are fetched, answers remembered, static tokens looked up.

The data path asks ``cached`` first, which never waits. What it remembers is bound to a keyed hash of the token and to
the very key set that checked it: other keys, the token's end, and ``CACHE_SECONDS`` each end what is remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tidegate.identity import claims
from tidegate.identity.claims import Verified
from tidegate.identity.jwks import KeySet
from tidegate.identity.keys import KeySource
from tidegate.identity.own import OwnKeys
from tidegate.identity.static import PREFIX, StaticTokens
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import Identity, OidcIdentity, StaticIdentity

CACHE_SECONDS = 300.0  # what the provider changes about a caller is seen after five minutes at the latest
CACHE_CALLERS = 10_000  # about 5 MB
REFUSED_SECONDS = 5.0  # long enough for a retry storm, short enough for a token that just became valid
REFUSED_TOKENS = 1_000

_UNAVAILABLE = Denial(
    Reason.IDP_UNAVAILABLE, 503, "The identity provider cannot be asked at the moment; try again in a few seconds."
)


_UNKNOWABLE = Denial(
    Reason.STATE_UNAVAILABLE, 503, "The gateway cannot find out whether the access token was revoked; try again."
)

Revoked = Callable[[str, str | None, str, float | None], bool | None]
"""Says of an issuer, ``jti``, subject and ``iat`` whether that token is revoked; ``None``: nobody can tell."""


class _Known(NamedTuple):
    """What was found out about a token, until when it holds, and the keys it depends on."""

    answer: Verified | Denial
    until: float
    source: KeySource | None
    keys: KeySet | None


class Verifier:
    """Verifies tokens against the identities of one policy. ``start`` it before use, ``close`` it after.

    Times are Unix seconds, given by the caller. With ``identities`` ``None`` (identity: none) every token is refused:
    whoever asks is expected not to. ``revoked`` is asked about every token each time, and costs nothing.
    """

    def __init__(
        self,
        identities: Sequence[Identity] | None,
        sources: Sequence[KeySource] | None = None,
        revoked: Revoked | None = None,
        own: OwnKeys | None = None,
    ) -> None:
        known = tuple(identities or ())
        if sources is None:
            sources = [KeySource(each) for each in known if isinstance(each, OidcIdentity)]
        self._sources: dict[str, KeySource] = {source.identity.issuer: source for source in sources}
        self._own = own
        if own is not None:
            self._sources[own.identity.issuer] = own
        self._static = tuple(StaticTokens(each) for each in known if isinstance(each, StaticIdentity))
        self.revoked = revoked
        self._secret = secrets.token_bytes(32)
        self._callers: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, _Known] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load every provider's keys, then keep them fresh in the background. A provider that is down is no error."""
        await asyncio.gather(*(source.refresh() for source in self._sources.values()))
        self._tasks = [asyncio.create_task(self._keep_fresh(source)) for source in self._sources.values()]

    async def close(self) -> None:
        """Stop the background work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    @property
    def sources(self) -> tuple[KeySource, ...]:
        """The providers' keys, for health and messages."""
        return tuple(self._sources.values())

    @property
    def own(self) -> OwnKeys | None:
        """The keys of this gateway's own tokens, where it gives any out."""
        return self._own

    def cached(self, token: str, now: float) -> Caller | Denial | None:
        """Answer at once, or ``None``: then ``identify`` has to be awaited. Static tokens always have an answer."""
        if token.startswith(PREFIX):
            return self._lookup(token, now)
        digest = self._digest(token)
        for memory in (self._callers, self._refused):
            known = memory.get(digest)
            if known is None:
                continue
            if now < known.until and (known.source is None or known.source.keys is known.keys):
                memory.move_to_end(digest)
                return self._asked(known.answer)
            del memory[digest]
        return None

    async def identify(self, token: str, now: float) -> Caller | Denial:
        """Verify a token, asking its provider for keys when they are missing or the token's key is not among them."""
        known = self.cached(token, now)
        if known is not None:
            return known
        peeked = claims.peek(token)
        if isinstance(peeked, Denial):
            return self._remember(token, _Known(peeked, now + REFUSED_SECONDS, None, None))
        source = self._sources.get(peeked.issuer)
        if source is None:
            return self._remember(token, _Known(claims.refused(Reason.TOKEN_ISSUER), now + REFUSED_SECONDS, None, None))
        if source.keys is None:
            await source.refresh()
        keys = source.keys
        if keys is None:
            return _UNAVAILABLE
        answer = claims.verify(peeked, source.identity, keys, now)
        if isinstance(answer, Denial) and answer.reason is Reason.KEY_UNKNOWN:
            await source.refresh()
            keys = source.keys or keys
            answer = claims.verify(peeked, source.identity, keys, now)
            if isinstance(answer, Denial) and answer.reason is Reason.KEY_UNKNOWN and source.failing:
                return _UNAVAILABLE  # the key may be new, and nobody can tell
        if self._own is not None and source is self._own and isinstance(answer, Verified):
            answer = self._own.named(answer, token)
        until = now + REFUSED_SECONDS
        if isinstance(answer, Verified) and answer.caller.expires is not None:
            until = min(now + CACHE_SECONDS, answer.caller.expires + source.identity.leeway)
        return self._remember(token, _Known(answer, until, source, keys))

    def _remember(self, token: str, known: _Known) -> Caller | Denial:
        """Keep an answer, and forget the one that was asked for longest ago."""
        accepted = isinstance(known.answer, Verified)
        memory, most = (self._callers, CACHE_CALLERS) if accepted else (self._refused, REFUSED_TOKENS)
        memory[self._digest(token)] = known
        if len(memory) > most:
            memory.popitem(last=False)
        return self._asked(known.answer)

    def _asked(self, answer: Verified | Denial) -> Caller | Denial:
        """Ask what may have changed since a token was verified."""
        if isinstance(answer, Denial):
            return answer
        if self.revoked is not None:
            revoked = self.revoked(answer.issuer, answer.jti, answer.named or answer.caller.subject, answer.issued)
            if revoked is False and answer.also is not None:
                revoked = self.revoked(*answer.also, answer.issued)
            if revoked is not False:
                return _UNKNOWABLE if revoked is None else claims.refused(Reason.TOKEN_REVOKED)
        return answer.caller

    def _digest(self, token: str) -> bytes:
        """Hash a token under this process's key: memory holds no token, and no hash that others could compare."""
        return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16, key=self._secret).digest()

    def _lookup(self, token: str, now: float) -> Caller | Denial:
        denial: Denial | None = None
        for each in self._static:
            answer = each.identify(token, now)
            if isinstance(answer, Caller):
                return answer
            if denial is None or answer.reason is not Reason.TOKEN_UNKNOWN:
                denial = answer
        return denial or claims.refused(Reason.TOKEN_UNKNOWN)

    async def _keep_fresh(self, source: KeySource) -> None:
        while True:
            await asyncio.sleep(max(1.0, source.due))
            await source.refresh()
