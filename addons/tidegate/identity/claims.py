"""From the token a client shows to a ``Caller``: pure. The clock and the keys are arguments.

Law: nothing a token says counts before its signature is checked, except to choose *which* configured issuer checks it.
joserfc checks the signature; it also lets through repeated JSON keys, foreign token types and header fields that name a
key, so all of those are checked here. The order of the checks is the order of the reasons in docs/identity.md.

Every fault of a token has one public sentence, so that a client cannot probe; the reason goes into the evidence.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from tidegate.dialects.body import strict_json
from tidegate.dialects.fields import ExpressionError, Trie
from tidegate.identity.jwks import ALGORITHMS, KeySet
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import OidcIdentity

if TYPE_CHECKING:
    from joserfc._rfc7515.model import JWSAlgModel

TOKEN_BYTES = 16 * 1024  # an RS256 token with 200 Entra group ids is 11.2 KB
GROUPS = 1000  # more than any provider lists before it says "too many"
NAME_CHARACTERS = 512  # of a subject or a group; Kubernetes' and GitHub's subjects stay under 300
RESERVED = "tidegate:"
REFUSED_TYPES = frozenset({"logout+jwt", "secevent+jwt", "dpop+jwt"})  # RFC 8725 section 3.11: other purposes

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # fullmatch: ``$`` would let a newline through
_PLACES = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_MISSING = "Give an access token as the API key (Authorization: Bearer, x-api-key, api-key or x-goog-api-key)."
_REFUSED = "The access token was not accepted; get a new one and try again."

Claims = Mapping[str, object]


class _Registry(JWSRegistry):
    """joserfc's registry without its limits (ours come first) and its warnings about names that RFC 9864 renames."""

    max_header_length = TOKEN_BYTES
    max_payload_length = TOKEN_BYTES
    max_signature_length = TOKEN_BYTES

    def get_alg(self, name: str) -> JWSAlgModel:
        """Return an algorithm of ours; the token's was compared with the issuer's list before."""
        if name not in ALGORITHMS:
            raise KeyError(name)
        return self.algorithms[name]


_REGISTRY = _Registry(strict_check_header=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """Who holds a token, and what has to be asked again each time it is shown: is it revoked? ``issued`` is ``iat``.

    ``named`` is the token's ``sub`` where that is not the caller's subject. ``also`` are issuer, ``jti`` and subject of
    the token that this one was given for (``issuing``).
    """

    caller: Caller
    issuer: str
    jti: str | None
    issued: float | None
    named: str | None = None
    also: tuple[str, str | None, str] | None = None


@dataclass(frozen=True, slots=True)
class Peeked:
    """A token taken apart but not believed. ``issuer`` chooses who checks it, and nothing else."""

    token: str = field(repr=False)
    header: Claims = field(repr=False)
    issuer: str


def credentials(headers: Iterable[tuple[str, str]]) -> str | Denial:
    """Find the one token among the header fields (lower-case names) in which SDKs send their API key.

    The same field twice, or two fields that differ, are ambiguous; the query and Basic credentials are never looked at.
    """
    found: dict[str, str] = {}
    for name, field_value in headers:
        if name not in _PLACES:
            continue
        if name in found:
            return Denial(Reason.CALLER_AMBIGUOUS, 401, f"The header {name} was sent twice; send one access token.")
        if name == "authorization":
            scheme, _, rest = field_value.strip().partition(" ")
            found[name] = rest.strip() if scheme.lower() == "bearer" else ""
        else:
            found[name] = field_value.strip()
    tokens = set(found.values())
    if len(tokens) > 1:
        names = ", ".join(sorted(found))
        return Denial(
            Reason.CALLER_AMBIGUOUS, 401, f"The headers {names} carry different values; send one access token."
        )
    token = next(iter(tokens), "")
    return token or Denial(Reason.CALLER_MISSING, 401, _MISSING)


def refused(reason: Reason) -> Denial:
    """Return the denial of a token: one sentence for every reason."""
    return Denial(reason, 401, _REFUSED)


def peek(token: str) -> Peeked | Denial:
    """Take a token apart: size, shape, strict JSON in header and payload, and the issuer it claims."""
    if len(token) > TOKEN_BYTES:
        return refused(Reason.TOKEN_TOO_LARGE)
    if not _SHAPE.fullmatch(token):
        return refused(Reason.TOKEN_MALFORMED)
    header_part, payload_part, _ = token.split(".")
    header, payload = _object(_decoded(header_part)), _object(_decoded(payload_part))
    if header is None or payload is None:
        return refused(Reason.TOKEN_MALFORMED)
    issuer = payload.get("iss")
    return Peeked(token, header, issuer) if isinstance(issuer, str) else refused(Reason.TOKEN_ISSUER)


def verify(peeked: Peeked, identity: OidcIdentity, keys: KeySet, now: float) -> Verified | Denial:
    """Check a token against the issuer it claims; ``now`` is Unix time in seconds.

    Denies with the first reason that applies, in the order of docs/identity.md. ``KEY_UNKNOWN`` may be worth a look at
    the provider's current keys, and one more try.
    """
    header = peeked.header
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in identity.algorithms or algorithm not in ALGORITHMS:
        return refused(Reason.TOKEN_ALG)
    kid = header.get("kid")
    if {"crit", "b64", "jku", "x5u", "jwk"} & set(header) or not isinstance(kid, str | None):
        return refused(Reason.TOKEN_HEADER)
    kind = header.get("typ", "")
    if not isinstance(kind, str) or kind.lower() in REFUSED_TYPES or kind.lower() not in identity.types:
        return refused(Reason.TOKEN_TYPE)
    key = keys.key(kid)
    if key is None:
        return refused(Reason.KEY_UNKNOWN)
    if not key.serves(algorithm):
        return refused(Reason.TOKEN_ALG)
    try:
        signed = jws.deserialize_compact(peeked.token.encode(), key.jose, registry=_REGISTRY)
    except (JoseError, ValueError, TypeError):
        return refused(Reason.TOKEN_SIGNATURE)
    claims = _object(signed.payload)
    if claims is None:
        return refused(Reason.TOKEN_MALFORMED)
    return _claims(claims, identity, now)


def _claims(claims: Claims, identity: OidcIdentity, now: float) -> Verified | Denial:
    """Check what a signed token says, and name its caller."""
    if claims.get("iss") != identity.issuer:
        return refused(Reason.TOKEN_ISSUER)
    if claims.get("token_use", "access") != "access" or claims.get("typ", "Bearer") != "Bearer" or "at_hash" in claims:
        return refused(Reason.TOKEN_TYPE)  # an ID or refresh token: Cognito and nanoidp, Keycloak, OpenID Connect Core
    audiences = _texts(claims.get("aud"))
    if audiences is None or not audiences & identity.audiences:
        return refused(Reason.TOKEN_AUDIENCE)
    reason = _client(claims, identity, len(audiences)) or _times(claims, identity, now)
    if reason is not None:
        return refused(reason)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _name(subject) or "cnf" in claims:
        return refused(Reason.TOKEN_CLAIM)  # cnf: a token bound to its sender's key is not a bearer token
    groups = _groups(claims, identity)
    if isinstance(groups, Denial):
        return groups
    jti = claims.get("jti")
    if not isinstance(jti, str | None):
        return refused(Reason.TOKEN_CLAIM)  # it could never be revoked
    caller = Caller(identity.name, subject, groups, _number(claims.get("exp")))
    return Verified(caller, identity.issuer, jti, _number(claims.get("iat")))


def _client(claims: Claims, identity: OidcIdentity, audiences: int) -> Reason | None:
    """Check which client got the token: ``azp`` (OpenID Connect) or ``client_id`` (RFC 9068)."""
    party = claims.get("azp", claims.get("client_id"))
    if (audiences > 1 and not isinstance(claims.get("azp"), str)) or not isinstance(party, str | None):
        return Reason.TOKEN_CLIENT
    if identity.allowed_clients is not None and party not in identity.allowed_clients:
        return Reason.TOKEN_CLIENT
    return None


def _times(claims: Claims, identity: OidcIdentity, now: float) -> Reason | None:
    """Check ``exp`` (required), ``nbf``, ``iat`` and the lifetime that is left."""
    expires = _number(claims.get("exp"))
    if expires is None or expires + identity.leeway <= now:
        return Reason.TOKEN_EXPIRED
    for name in ("nbf", "iat"):
        if name in claims:
            start = _number(claims[name])
            if start is None or start > now + identity.leeway:
                return Reason.TOKEN_NOT_YET
    return Reason.TOKEN_LIFETIME if expires - now > identity.max_lifetime else None


def _groups(claims: Claims, identity: OidcIdentity) -> frozenset[str] | Denial:
    """Read the groups and put the identity's name before each; a provider that left them out is not "no groups"."""
    if identity.groups is None:
        return frozenset()
    elsewhere = claims.get("_claim_names")
    if "hasgroups" in claims or (elsewhere is not None and (not isinstance(elsewhere, dict) or "groups" in elsewhere)):
        return Denial(
            Reason.GROUPS_OVERAGE,
            403,
            "Your access token has too many groups to list them; ask for one with fewer groups.",
        )
    found: set[str] = set()
    for selected in _path(identity.groups).select(claims):
        if selected.value is None:
            continue
        values = _texts(selected.value)
        if values is None:
            return refused(Reason.TOKEN_CLAIM)
        found |= values
    if len(found) > GROUPS or not all(_name(group) for group in found):
        return refused(Reason.TOKEN_CLAIM)
    return frozenset(f"{identity.name}:{group}" for group in found)


def groups_problem(path: str) -> bool:
    """Say whether a text is not a JSONPath that can select groups."""
    try:
        _path(path)
    except ExpressionError:
        return True
    return False


_paths: dict[str, Trie[None]] = {}


def _path(path: str) -> Trie[None]:
    """Compile a path once per process; policies hold a handful."""
    if path not in _paths:
        _paths[path] = Trie([(path, None)])
    return _paths[path]


def _texts(value: object) -> frozenset[str] | None:
    """Read a text or a list of texts; ``None`` for anything else."""
    if isinstance(value, str):
        return frozenset({value})
    if not isinstance(value, list):
        return None
    texts = [each for each in value if isinstance(each, str)]
    return frozenset(texts) if len(texts) == len(value) else None


def _number(value: object) -> float | None:
    """Read a finite number; ``true`` is none, nor is a number in a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _name(text: str) -> bool:
    """Say whether a subject or group can be shown and stored as it is, and is not one of ours."""
    return 0 < len(text) <= NAME_CHARACTERS and text.isprintable() and not text.lower().startswith(RESERVED)


def _decoded(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _object(data: bytes) -> dict[str, object] | None:
    value = strict_json(data)
    return value if isinstance(value, dict) else None
