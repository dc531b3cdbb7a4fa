"""Tokens of this gateway: what is in them, who signs them, and whom they name. Pure; times are Unix seconds.

A token stands for somebody another identity has vouched for. ``sub`` and every group carry that identity's name
(``adfs:alice``, ``adfs:ml-eng``), and name it only once: ``named`` takes a verified token back to the very caller that
it was made for, and refuses one whose groups are not all of the subject's identity.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidegate.dialects.body import strict_json
from tidegate.identity.claims import TOKEN_BYTES, Verified, refused
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import OidcIdentity

NAME = "tidegate"
"""The name of our own issuer where it stands among the identities; no identity of a policy may have it."""

AHEAD = 3600.0
"""How long a key is published before it signs, so that nobody who keeps our keys for a while meets an unknown one."""
KEPT = 3600.0 + 300.0
"""How long a key is kept after it last signed: the longest lifetime of a token, and the widest leeway for clocks."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """One Ed25519 key. ``private`` is its 32 bytes."""

    kid: str
    made: float
    private: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """What a token was given for: the issuer and ``jti`` of another token, which may be revoked there."""

    issuer: str
    jti: str | None


def signer(keys: Sequence[OwnKey], now: float) -> OwnKey:
    """Choose the key that signs: the newest that has been published for long enough, or else the oldest."""
    published = [each for each in keys if each.made + AHEAD <= now]
    if published:
        return max(published, key=lambda each: each.made)
    return min(keys, key=lambda each: each.made)


def is_due(keys: Sequence[OwnKey], now: float, rotate: float) -> bool:
    """Say whether it is time for a new key."""
    return not keys or max(each.made for each in keys) + rotate - AHEAD <= now


def is_over(keys: Sequence[OwnKey], now: float) -> tuple[OwnKey, ...]:
    """Return the keys whose tokens have all ended."""
    known = sorted(keys, key=lambda each: each.made)
    return tuple(old for old, new in itertools.pairwise(known) if new.made + AHEAD + KEPT <= now)


def published(keys: Sequence[OwnKey]) -> bytes:
    """Write the public keys as a JWKS document (RFC 7517, RFC 8037)."""
    entries = []
    for each in sorted(keys, key=lambda key: key.made):
        public = _private(each).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        entries.append(
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": each.kid, "x": _segment(public)}
        )
    return json.dumps({"keys": entries}).encode()


def mint(key: OwnKey, issuer: str, caller: Caller, *, now: float, until: float, jti: str, source: Source | None) -> str:
    """Sign a token for a caller (RFC 9068). ``until`` is its end. Raises ``ValueError`` if it would be too large."""
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": issuer,
        "sub": f"{caller.identity}:{caller.subject}",
        "client_id": caller.identity,
        "iat": int(now),
        "exp": int(until),
        "jti": jti,
        "groups": sorted(caller.groups),
    }
    if caller.strength:
        claims["amr"] = sorted(caller.strength)
    if caller.authenticated is not None:
        claims["auth_time"] = int(caller.authenticated)
    if caller.claims:
        claims["said"] = sorted(map(list, caller.claims))
    if source is not None:
        claims["source"] = {"iss": source.issuer, "jti": source.jti}
    head = _segment(json.dumps({"alg": "EdDSA", "typ": "at+jwt", "kid": key.kid}).encode())
    signed = f"{head}.{_segment(json.dumps(claims).encode())}"
    token = f"{signed}.{_segment(_private(key).sign(signed.encode()))}"
    if len(token) > TOKEN_BYTES:
        raise ValueError("the token would be too large")
    return token


def identity(issuer: str) -> OidcIdentity:
    """Return our own issuer as an identity, so that its tokens go through the same checks as everybody's."""
    return OidcIdentity(
        name=NAME,
        issuer=issuer,
        audiences=frozenset({issuer}),
        groups="$.groups",
        algorithms=frozenset({"EdDSA"}),
        allowed_clients=None,
        discovery_url="",
        max_lifetime=KEPT,
        leeway=60.0,
        types=frozenset({"at+jwt"}),
        insecure_http=False,
    )


def named(verified: Verified, token: str, identities: frozenset[str]) -> Verified | Denial:
    """Name the caller a token of ours was made for. ``identities`` are those of the policy in force.

    The token is verified, so what its payload says was said by us; still nothing is taken that does not fit.
    """
    whose, colon, subject = verified.caller.subject.partition(":")
    groups = frozenset(each.removeprefix(f"{NAME}:") for each in verified.caller.groups)
    if not colon or not subject or whose not in identities or not all(each.startswith(f"{whose}:") for each in groups):
        return refused(Reason.TOKEN_CLAIM)
    claims = payload(token)
    said = claims.get("said", [])
    pairs = [(pair[0], pair[1]) for pair in said if _is_pair(pair)] if isinstance(said, list) else []
    source = claims.get("source")
    origin = source.get("iss") if isinstance(source, dict) else None
    jti = source.get("jti") if isinstance(source, dict) else None
    caller = replace(verified.caller, identity=whose, subject=subject, groups=groups, claims=frozenset(pairs))
    also = (origin, jti if isinstance(jti, str) else None, subject) if isinstance(origin, str) else None
    return replace(verified, caller=caller, named=verified.caller.subject, also=also)


def payload(token: str) -> dict[str, object]:
    """Read the payload of a token that somebody else has verified; empty if it is none."""
    part = [*token.split("."), ""][1]
    try:
        value = strict_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def _private(key: OwnKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.private)


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
