"""Who holds this token? The shell around ``claims``: keys are fetched, answers remembered, static tokens looked up.

The data path asks ``cached`` first, which never waits. What it remembers is bound to a keyed hash of the token and to
the very key set that checked it: other keys, the token's end, and ``CACHE_SECONDS`` each end what is remembered. Two
things are asked each time all the same: was the token revoked, and is a bound one shown by its holder?
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidegate.identity import claims
from tidegate.identity.claims import Overage, Verified
from tidegate.identity.jwks import KeySet
from tidegate.identity.keys import KeySource
from tidegate.identity.own import OwnKeys
from tidegate.identity.proof import ALONE, WINDOW, Shown, check_proof, fits_certificate
from tidegate.identity.questions import Questions
from tidegate.identity.segments import OPAQUE
from tidegate.identity.static import PREFIX, StaticTokens
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import Identity, OidcIdentity, StaticIdentity

CACHE_SECONDS = 300.0  # what the provider changes about a caller is seen after five minutes at the latest
CACHE_CALLERS = 10_000  # about 5 MB
REFUSED_SECONDS = 5.0  # long enough for a retry storm, short enough for a token that just became valid
INACTIVE_SECONDS = 10.0  # an opaque token that is not valid rarely becomes so
REFUSED_TOKENS = 1_000
PROOFS = 100_000  # proofs of two minutes: more than one core could check in that time

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
    source: KeySource | None = None
    keys: KeySet | None = None


@dataclass(slots=True)
class Proofs:
    """The proofs that were shown, each until it is too old to be shown again. Outlives a policy."""

    _seen: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def first(self, once: bytes, now: float) -> bool:
        """Say whether a proof is shown for the first time, and remember it; never where memory is full."""
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if once in self._seen or len(self._seen) >= PROOFS:
            return False
        self._seen[once] = now + 2 * WINDOW  # its clock may be ahead by as much as another's is behind
        return True


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
        oidc = [each for each in known if isinstance(each, OidcIdentity)]
        if sources is None:
            sources = [KeySource(each) for each in oidc]
        self._sources: dict[str, KeySource] = {source.identity.issuer: source for source in sources}
        self._identities = {each.name: each for each in (*oidc, *(source.identity for source in sources))}
        self._own = own
        if own is not None:
            self._sources[own.identity.issuer] = own
        self._questions = {name: Questions(each) for name, each in self._identities.items()}
        asked = (each for each in oidc if each.introspection is not None)
        self._opaque = sorted(asked, key=_prefix, reverse=True)  # the longest prefix that fits wins
        self._static = tuple(StaticTokens(each) for each in known if isinstance(each, StaticIdentity))
        self.proofs = Proofs()
        self._asking: dict[bytes, asyncio.Task[Verified | Denial]] = {}
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
        for each in self._questions.values():
            each.close()

    @property
    def sources(self) -> tuple[KeySource, ...]:
        """The providers' keys, for health and messages."""
        return tuple(self._sources.values())

    @property
    def own(self) -> OwnKeys | None:
        """The keys of this gateway's own tokens, where it gives any out."""
        return self._own

    def cached(self, token: str, now: float, shown: Shown = ALONE) -> Caller | Denial | None:
        """Answer at once, or ``None``: then ``identify`` has to be awaited. Static tokens always have an answer."""
        if token.startswith(PREFIX):
            return claims.refused(Reason.TOKEN_PROOF) if shown.dpop else self._lookup(token, now)
        known = self._known(self._digest(token), now)
        return None if known is None else self._asked(token, known, now, shown)

    async def identify(self, token: str, now: float, shown: Shown = ALONE) -> Caller | Denial:
        """Verify a token; its provider is asked where keys are missing, or where the token alone does not say enough.

        Without ``shown``, a token counts as shown with nothing else: one that is bound to its sender is refused.
        """
        known = self.cached(token, now, shown)
        if known is not None:
            return known
        answer = await self._verify(token, now)
        return self._asked(token, answer, now, shown)

    async def verified(self, token: str, now: float) -> Verified | Denial:
        """Check what a token says, and nothing around it: not whether it was taken back, not who shows it.

        That is no reason to let anybody in. It is enough for taking the token back.
        """
        known = self._known(self._digest(token), now)
        return await self._verify(token, now) if known is None else known

    async def again(self, token: str, now: float) -> Caller | Denial:
        """Say whose a token is by now, for a request that was admitted with it, proof and all, and has waited since."""
        return self._lookup(token, now) if token.startswith(PREFIX) else self._in_force(await self.verified(token, now))

    async def _verify(self, token: str, now: float) -> Verified | Denial:
        """Verify a token that nothing is known of."""
        opaque = self._opaque and self._asked_about(token)
        if opaque:
            return await self._once(token, self._introspect(opaque, token, now))
        peeked = claims.peek(token)
        if isinstance(peeked, Denial):
            return self._remember(token, _Known(peeked, now + REFUSED_SECONDS))
        source = self._sources.get(peeked.issuer)
        if source is None:
            return self._remember(token, _Known(claims.refused(Reason.TOKEN_ISSUER), now + REFUSED_SECONDS))
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
        if isinstance(answer, Overage):
            return await self._once(token, self._fill(answer, source, keys, token, now))
        if self._own is not None and source is self._own and isinstance(answer, Verified):
            answer = self._own.named(answer, token)
        return self._remember(token, _known(answer, now, source=source, keys=keys))

    def _asked_about(self, token: str) -> OidcIdentity | None:
        """Find the provider that has to be asked about a token, because the token says nothing by itself."""
        if len(token) > claims.TOKEN_BYTES or not OPAQUE.fullmatch(token):
            return None
        for each in self._opaque:
            prefix = _prefix(each)
            if token.startswith(prefix) and (prefix or _is_opaque(token)):
                return each
        return None

    async def _introspect(self, identity: OidcIdentity, token: str, now: float) -> Verified | Denial:
        data = await self._questions[identity.name].introspect(token)
        if data is None:
            return _UNAVAILABLE
        answer = claims.introspected(data, identity, now)
        if isinstance(answer, Overage):
            return await self._fill(answer, None, None, token, now)
        return self._remember(token, _known(answer, now, identity))

    async def _fill(
        self, found: Overage, source: KeySource | None, keys: KeySet | None, token: str, now: float
    ) -> Verified | Denial:
        """Ask for the groups that a token left out. Nobody goes on without them."""
        identity = self._identities[found.verified.caller.identity]
        data = await self._questions[identity.name].userinfo(token)
        if data is None:
            return _UNAVAILABLE
        answer = claims.from_userinfo(data, found, identity)
        return self._remember(token, _known(answer, now, identity if source is None else None, source, keys))

    async def _once(self, token: str, work: Coroutine[Any, Any, Verified | Denial]) -> Verified | Denial:
        """Have the provider asked once about a token, however many wait for the answer."""
        digest = self._digest(token)
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.ensure_future(work)
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        else:
            work.close()
        return await asyncio.shield(task)

    def _known(self, digest: bytes, now: float) -> Verified | Denial | None:
        for memory in (self._callers, self._refused):
            known = memory.get(digest)
            if known is None:
                continue
            if now < known.until and (known.source is None or known.source.keys is known.keys):
                memory.move_to_end(digest)
                return known.answer
            del memory[digest]
        return None

    def _remember(self, token: str, known: _Known) -> Verified | Denial:
        """Keep an answer, and forget the one that was asked for longest ago."""
        accepted = isinstance(known.answer, Verified)
        memory, most = (self._callers, CACHE_CALLERS) if accepted else (self._refused, REFUSED_TOKENS)
        memory[self._digest(token)] = known
        if len(memory) > most:
            memory.popitem(last=False)
        return known.answer

    def _asked(self, token: str, answer: Verified | Denial, now: float, shown: Shown) -> Caller | Denial:
        """Ask what may have changed since a token was verified, and whether its holder shows it."""
        found = self._in_force(answer)
        if isinstance(answer, Denial) or isinstance(found, Denial):
            return found
        if answer.bound is not None or shown.dpop:
            reason = self._unproven(token, answer, now, shown)
            if reason is not None:
                return claims.refused(reason)
        return found

    def _in_force(self, answer: Verified | Denial) -> Caller | Denial:
        """Ask whether a verified token was taken back since."""
        if isinstance(answer, Denial):
            return answer
        if self.revoked is not None:
            revoked = self.revoked(answer.issuer, answer.jti, answer.named or answer.caller.subject, answer.issued)
            if revoked is False and answer.also is not None:
                revoked = self.revoked(*answer.also, answer.issued)
            if revoked is not False:
                return _UNKNOWABLE if revoked is None else claims.refused(Reason.TOKEN_REVOKED)
        return answer.caller

    def _unproven(self, token: str, answer: Verified, now: float, shown: Shown) -> Reason | None:
        """Say why a token is not shown by its holder: a bound one without proof, or a proof that is none."""
        bound, head = answer.bound, shown.head
        x5t = None if bound is None else bound.x5t
        if x5t is not None and not fits_certificate(x5t, None if head is None else head.peer.certificate):
            return Reason.TOKEN_BOUND
        jkt = None if bound is None else bound.jkt
        if jkt is None:
            return Reason.TOKEN_PROOF if shown.dpop else None  # a proof that binds nothing (RFC 9449, 7.1)
        if not shown.dpop or head is None:
            return Reason.TOKEN_BOUND
        addresses = self._identities[answer.caller.identity].addresses
        proof = check_proof(token, jkt, head, addresses, now)
        return None if proof is not None and self.proofs.first(proof, now) else Reason.TOKEN_PROOF

    def _digest(self, token: str) -> bytes:
        """Hash a token under this process's key: memory holds no token, and no hash that others could compare.

        The key goes first, as nobody is ever told a hash that he could lengthen. It is most of what a token that is
        remembered costs, and processors know SHA-256.
        """
        return hashlib.sha256(self._secret + token.encode("utf-8", "surrogatepass")).digest()

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


def _known(
    answer: Verified | Denial,
    now: float,
    asked: OidcIdentity | None = None,
    source: KeySource | None = None,
    keys: KeySet | None = None,
) -> _Known:
    """Say how long an answer holds; ``asked`` is the provider that gave it, if no keys did."""
    opaque = asked.introspection if asked is not None else None
    if isinstance(answer, Denial):
        return _Known(answer, now + (REFUSED_SECONDS if opaque is None else INACTIVE_SECONDS), source, keys)
    return _Known(answer, min(now + (CACHE_SECONDS if opaque is None else opaque.cache), answer.until), source, keys)


def _is_opaque(token: str) -> bool:
    peeked = claims.peek(token)
    return isinstance(peeked, Denial) and peeked.reason is Reason.TOKEN_MALFORMED


def _prefix(identity: OidcIdentity) -> str:
    return "" if identity.introspection is None else identity.introspection.prefix
