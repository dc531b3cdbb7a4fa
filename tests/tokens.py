"""Signs access tokens, good and hostile, the way no library would."""

from __future__ import annotations

import base64
import functools
import json
import warnings
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tidegate.identity.jwks import KeySet, import_keys
from tidegate.policy.policy import OidcIdentity

ISSUER = "https://login.example.com"
NOW = 1_800_000_000.0


@functools.cache
def rsa(bits: int = 2048, name: str = "k1") -> RSAKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joserfc warns of the weak keys that are asked for
        return RSAKey.generate_key(bits, {"kid": name})


@functools.cache
def ec(curve: str = "P-256") -> ECKey:
    return ECKey.generate_key(curve, {"kid": "e1"})


@functools.cache
def okp() -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": "o1"})


def public(*keys: RSAKey | ECKey | OKPKey, **extra: Any) -> bytes:
    """Write a JWKS document; ``extra`` goes into each key."""
    return json.dumps({"keys": [{**key.as_dict(private=False), **extra} for key in keys]}).encode()


def keyset(*keys: RSAKey | ECKey | OKPKey) -> KeySet:
    found = import_keys(public(*(keys or (rsa(),))))
    assert found is not None
    return found


def identity(**changes: Any) -> OidcIdentity:
    values: dict[str, Any] = {
        "name": "corp",
        "issuer": ISSUER,
        "audiences": frozenset({"tidegate"}),
        "groups": "$.groups",
        "algorithms": frozenset({"RS256", "ES256", "EdDSA"}),
        "allowed_clients": None,
        "discovery_url": f"{ISSUER}/.well-known/openid-configuration",
        "max_lifetime": 86400.0,
        "leeway": 60.0,
        "types": frozenset({"at+jwt", "jwt"}),
        "insecure_http": False,
    }
    return OidcIdentity(**{**values, **changes})


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; a value of ``...`` removes the claim."""
    values = {
        "iss": ISSUER,
        "aud": "tidegate",
        "sub": "alice",
        "exp": NOW + 600,
        "iat": NOW - 10,
        "groups": ["ml-eng"],
        **changes,
    }
    return {name: value for name, value in values.items() if value is not ...}


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    payload: Mapping[str, Any] | bytes | None = None,
    header: Mapping[str, Any] | bytes | None = None,
    key: Any = None,
) -> str:
    """Sign any bytes under any header: texts that no library would write are the point."""
    key = key or rsa()
    if payload is None:
        payload = claims()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    fields = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt", **(header if isinstance(header, Mapping) else {})}
    fields = {name: value for name, value in fields.items() if value is not ...}
    head = header if isinstance(header, bytes) else json.dumps(fields).encode()
    signing = f"{segment(head)}.{segment(body)}"
    algorithm = jws.JWSRegistry.algorithms[
        {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519", "oct": "HS256"}[key.key_type]
    ]
    return f"{signing}.{segment(algorithm.sign(signing.encode(), key))}"
