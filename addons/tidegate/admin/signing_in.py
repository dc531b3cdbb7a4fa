"""Signs people in through SAML providers: what the routes of ``saml`` work with."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tidegate.admin.metrics import Metrics
from tidegate.identity import saml
from tidegate.identity.saml import Expected, Provider, SignedIn
from tidegate.identity.saml_document import SamlReason, SamlRefused
from tidegate.identity.saml_file import MetadataFile
from tidegate.policy.policy import Identity, Policy, SamlIdentity
from tidegate.state.logins import Login, Logins, Settled

log = logging.getLogger("tidegate")

AT_ONCE = 4
"""Assertions looked at in a moment, each in a thread: one takes 1 to 3 ms, a hostile one more."""

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Of a code that people type: no vowels, so no words (RFC 8628 section 6.1). Eight of 20 letters are 34 bits."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that begins: where the browser goes, and what it is to keep."""

    address: str
    cookie: str = field(repr=False)


class SigningIn:
    """The SAML part of one admin listener; used in its loop."""

    def __init__(
        self, policy: Callable[[], Policy], logins: Logins, metrics: Metrics, now: Callable[[], float]
    ) -> None:
        self.logins = logins
        self._policy = policy
        self._metrics = metrics
        self._now = now
        self._for: tuple[Identity, ...] | None = None
        self._files: Mapping[str, MetadataFile] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    @property
    def url(self) -> str:
        """The address of this listener."""
        return self._policy().admin.url

    @property
    def acs(self) -> str:
        """Where providers have browsers deliver their answers."""
        return f"{self.url}/saml/acs"

    @property
    def files(self) -> Mapping[str, MetadataFile]:
        """The metadata of each SAML identity of the policy in force."""
        identities = self._policy().identities
        if self._for is not identities:
            known = [each for each in identities or () if isinstance(each, SamlIdentity)]
            self._for, self._files = identities, {each.name: MetadataFile(each, self._now) for each in known}
        return self._files

    def entity_id(self, identity: SamlIdentity) -> str:
        """Return our name as a provider knows it."""
        return identity.entity_id or f"{self.url}/saml/metadata"

    async def begin(self, identity: str, user_code: str | None) -> Begun | None:
        """Begin a sign-in; ``None`` where the provider's metadata cannot be used. Raises ``StateError``."""
        file = self.files[identity]
        provider = file.provider()
        if provider is None:
            return None
        login, cookie = f"_{secrets.token_hex(16)}", secrets.token_urlsafe(32)
        await asyncio.wrap_future(self.logins.begin(login, identity, cookie, user_code))
        address = saml.sign_in_address(
            provider,
            request=login,
            now=self._now(),
            entity_id=self.entity_id(file.identity),
            acs=self.acs,
            state=login,
        )
        return Begun(address, cookie)

    async def answered(self, response: str, state: str) -> Login:
        """Believe a provider's answer, or raise ``SamlRefused``; ``StateError`` where nobody can tell."""
        name = ""
        try:
            login = await asyncio.wrap_future(self.logins.begun(state))
            if login is None or login.identity not in self.files:
                raise SamlRefused(SamlReason.REQUEST)
            name = login.identity
            identity = self.files[name].identity
            expected = Expected(frozenset({self.entity_id(identity)}), self.acs, login.id)
            raw = saml.decoded(response)
            found = await self._aside(saml.read_response, raw, identity, expected)
            settled = await asyncio.wrap_future(
                self.logins.settle(login, found.caller, found.until, assertion=found.assertion, ends=found.ends)
            )
            if settled is not Settled.BELIEVED:
                raise SamlRefused(SamlReason.REPLAYED if settled is Settled.REPLAYED else SamlReason.REQUEST)
        except SamlRefused as why:
            self._say(name, why.reason)
            raise
        self._say(name, None)
        return login

    async def shown(self, assertion: str) -> SignedIn:
        """Believe an assertion that is shown for a token (RFC 7522), or raise ``SamlRefused``; ``StateError``."""
        name = ""
        try:
            raw = saml.decoded(assertion, url=True)
            issuer = await asyncio.to_thread(saml.claimed_issuer, raw)
            issuers = {
                provider.issuer: file for file in self.files.values() if (provider := file.provider()) is not None
            }
            if issuer not in issuers:
                raise SamlRefused(SamlReason.ISSUER)
            identity = issuers[issuer].identity
            name = identity.name
            endpoint = f"{self.url}/token"
            expected = Expected(frozenset({endpoint, self.entity_id(identity)}), endpoint, None)
            found = await self._aside(saml.read_assertion, raw, identity, expected)
            if not await asyncio.wrap_future(self.logins.believe(name, found.assertion, found.ends)):
                raise SamlRefused(SamlReason.REPLAYED)
        except SamlRefused as why:
            self._say(name, why.reason)
            raise
        self._say(name, None)
        return found

    async def _aside(
        self,
        read: Callable[[bytes, Provider, SamlIdentity, Expected, float], SignedIn],
        raw: bytes,
        identity: SamlIdentity,
        expected: Expected,
    ) -> SignedIn:
        """Read an assertion in a thread, a few at a time."""
        provider = self.files[identity.name].provider()
        if provider is None:
            raise SamlRefused(SamlReason.METADATA)
        async with self._turns:
            return await asyncio.to_thread(read, raw, provider, identity, expected, self._now())

    def _say(self, identity: str, reason: SamlReason | None) -> None:
        """Count and write down what became of an assertion; nothing of it is in the line."""
        if reason is not None:
            self._metrics.refused.labels(reason).inc()
        line = {"event": "saml", "identity": identity or None, "result": "refused" if reason else "believed"}
        log.log(logging.WARNING if reason else logging.INFO, json.dumps({**line, "reason": reason}))


def new_code() -> str:
    """Make a code that a person types."""
    letters = "".join(secrets.choice(LETTERS) for _ in range(8))
    return f"{letters[:4]}-{letters[4:]}"


def typed_code(text: str) -> str:
    """Read a code as people type it."""
    letters = "".join(each for each in text.upper() if each in LETTERS)
    return f"{letters[:4]}-{letters[4:]}"
