"""A provider's public keys: which of them are fit to check a signature. Pure.

joserfc takes RSA keys of 1024 bits, an exponent of 3, two keys with one ``kid``, keys with their private part, and any
``use`` until it is tried; none of that enters.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from tidegate.dialects.body import strict_json

if TYPE_CHECKING:
    from joserfc._rfc7515.model import JWSAlgModel

KEYS = 100  # the largest public sets (multi-tenant providers in rotation) hold about 20
RSA_BITS = range(2048, 8193)  # below is breakable (NIST SP 800-131A); above is a way to burn our time
RSA_EXPONENTS = range(65537, 2**32, 2)  # NIST SP 800-56B asks for more than 2**16; above 32 bits burns our time
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
_PUBLIC = frozenset({"kty", "kid", "use", "alg", "key_ops", "n", "e", "crv", "x", "y"})

ALGORITHMS: Mapping[str, tuple[str, frozenset[str]]] = {  # algorithm: key type, curves
    **{f"{family}{bits}": ("RSA", frozenset({""})) for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
    "Ed25519": ("OKP", frozenset({"Ed25519"})),
}
"""Every algorithm a policy may accept: signatures by a private key. Never HS* (shared key), never none."""

SIGNED_BYTES = 16 * 1024
"""The most that any part of a signed text may have; every caller has a limit of its own below it."""


class _Registry(JWSRegistry):
    """joserfc's registry without its limits (ours come first) and its warnings about names that RFC 9864 renames."""

    max_header_length = SIGNED_BYTES
    max_payload_length = SIGNED_BYTES
    max_signature_length = SIGNED_BYTES

    def get_alg(self, name: str) -> JWSAlgModel:
        """Return an algorithm of ours; the header's was compared with what is accepted before."""
        if name not in ALGORITHMS:
            raise KeyError(name)
        return self.algorithms[name]


REGISTRY = _Registry(strict_check_header=False)

JoseKey = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key. ``curve`` is empty for RSA; ``alg`` is the only algorithm it may serve, where it says so."""

    kty: str
    curve: str
    alg: str | None
    jose: JoseKey = field(repr=False)

    def serves(self, algorithm: str) -> bool:
        """Say whether a signature of this algorithm can be this key's."""
        kty, curves = ALGORITHMS.get(algorithm, ("", frozenset()))
        return self.kty == kty and self.curve in curves and self.alg in (None, algorithm)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one provider. ``only`` is the key that a token without a ``kid`` means: the set's one key, or none.

    ``print`` identifies the content, so that fetching the same keys again is no change.
    """

    by_kid: Mapping[str, VerificationKey]
    only: VerificationKey | None
    print: str

    def key(self, kid: str | None) -> VerificationKey | None:
        """Find the key a token names."""
        return self.only if kid is None else self.by_kid.get(kid)


def import_keys(data: bytes) -> KeySet | None:
    """Read a JWKS document; ``None`` when it is not one or holds no key that is fit for use.

    A key is skipped when it is for encryption, weak, not public alone, of an unknown type, or shares its ``kid``.
    """
    document = strict_json(data)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > KEYS:
        return None
    usable = [(entry, key) for entry in entries if isinstance(entry, dict) and (key := import_key(entry)) is not None]
    kids = [kid for entry in entries if isinstance(entry, dict) and isinstance(kid := entry.get("kid"), str)]
    by_kid = {entry["kid"]: key for entry, key in usable if kids.count(entry.get("kid", "")) == 1}
    lone = len(entries) == 1 and len(usable) == 1
    usable = [(entry, key) for entry, key in usable if entry.get("kid") in by_kid or lone]
    if not usable:
        return None
    content = sorted(json.dumps({k: v for k, v in e.items() if k in _PUBLIC}, sort_keys=True) for e, _ in usable)
    return KeySet(by_kid, usable[0][1] if lone else None, "\n".join(content))


def import_key(entry: Mapping[str, object]) -> VerificationKey | None:
    """Import one key, or ``None`` for one that is not fit to check signatures, or whose private part is public."""
    operations = entry.get("key_ops")
    if _PRIVATE & set(entry):
        return None
    if entry.get("use", "sig") != "sig" or (operations is not None and not _lists(operations, "verify")):
        return None
    alg, kid = entry.get("alg"), entry.get("kid")
    if not isinstance(alg, str | None) or not isinstance(kid, str | None) or kid == "":
        return None
    public: dict[str, str | list[str]] = {}
    public.update({name: value for name, value in entry.items() if name in _PUBLIC and isinstance(value, str)})
    try:
        match entry.get("kty"):
            case "RSA":
                if _bits(public.get("n")) not in RSA_BITS:  # before joserfc sees it, which only warns
                    return None
                rsa = RSAKey.import_key(public)
                exponent = rsa.public_key.public_numbers().e
                return VerificationKey("RSA", "", alg, rsa) if exponent in RSA_EXPONENTS else None
            case "EC":
                return VerificationKey("EC", str(public.get("crv")), alg, ECKey.import_key(public))
            case "OKP":
                return VerificationKey("OKP", str(public.get("crv")), alg, OKPKey.import_key(public))
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return None


def _lists(value: object, word: str) -> bool:
    return isinstance(value, list) and word in value


def _bits(number: object) -> int:
    """Count the bits of a number in base64url (RFC 7518 section 6.3.1.1)."""
    text = number if isinstance(number, str) else ""
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))).bit_length()
