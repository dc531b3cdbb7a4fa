"""Tokens that are bound to their sender: a DPoP proof (RFC 9449) or the client's certificate (RFC 8705). Pure.

Law: a bound token is worth nothing without what it is bound to, and a binding of an unknown kind is never met.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from joserfc import jws
from joserfc.errors import JoseError

from tidegate.identity.jwks import ALGORITHMS, REGISTRY, import_key
from tidegate.identity.segments import SHAPE, json_object, json_segment, number
from tidegate.model import Head

PROOF_BYTES = 8 * 1024  # one with an RSA-4096 key is 1.8 KB
WINDOW = 60.0  # seconds: how old a proof may be, and how far ahead its clock
JTI_CHARACTERS = 256  # a UUID has 36

_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")  # SHA-256 in base64url
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Binding:
    """What a token is bound to: the thumbprint of a key, of a certificate, or both."""

    jkt: str | None
    x5t: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """How a token was shown: under ``Authorization: DPoP`` or not, and with which request. Without one: by itself."""

    dpop: bool = False
    head: Head | None = None


ALONE = Shown()


def binding(confirmation: object) -> Binding | None:
    """Read the claim ``cnf``; ``None`` for one that is not understood as a whole."""
    if not isinstance(confirmation, dict) or not confirmation or set(confirmation) - {"jkt", "x5t#S256"}:
        return None
    if not all(isinstance(each, str) and _THUMBPRINT.fullmatch(each) for each in confirmation.values()):
        return None
    return Binding(confirmation.get("jkt"), confirmation.get("x5t#S256"))


def fits_certificate(x5t: str, certificate: bytes | None) -> bool:
    """Say whether a certificate (DER) is the one a token is bound to."""
    return certificate is not None and hmac.compare_digest(_sha256(certificate), x5t)


def check_proof(token: str, jkt: str, head: Head, addresses: Iterable[str], now: float) -> bytes | None:
    """Check the one proof in a request's ``dpop`` field against the token, its key, and the request itself.

    Returns what must not be seen again within two windows; ``None``: it proves nothing.
    """
    shown = [value for name, value in head.headers if name == "dpop"]
    if len(shown) != 1 or len(shown[0]) > PROOF_BYTES or not SHAPE.fullmatch(shown[0]):
        return None
    claims = _signed(shown[0], jkt)
    if claims is None or claims.get("htm") != head.method:
        return None
    address, hashed, jti = (claims.get(name) for name in ("htu", "ath", "jti"))
    if not isinstance(address, str) or not isinstance(hashed, str) or not isinstance(jti, str):
        return None
    issued = number(claims.get("iat"))
    if not 0 < len(jti) <= JTI_CHARACTERS or issued is None or abs(now - issued) > WINDOW:
        return None
    if not hmac.compare_digest(hashed.encode("utf-8", "replace"), _sha256(token.encode()).encode()):
        return None
    wanted = plain(address)
    if wanted is None or wanted not in {plain(each) for each in asked(head, addresses)}:
        return None
    return hashlib.blake2b(f"{jkt} {jti}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _signed(proof: str, jkt: str) -> Mapping[str, object] | None:
    """Return what a proof says, if the key in it is the one meant and signed it."""
    header = json_segment(proof.partition(".")[0])
    if header is None or header.get("typ") != "dpop+jwt" or {"crit", "b64", "jku", "x5u", "x5c"} & set(header):
        return None
    algorithm, written = header.get("alg"), header.get("jwk")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or not isinstance(written, dict):
        return None
    key = import_key(written)
    if key is None or not key.serves(algorithm) or not hmac.compare_digest(key.jose.thumbprint(), jkt):
        return None
    try:
        signed = jws.deserialize_compact(proof.encode(), key.jose, registry=REGISTRY)
    except (JoseError, ValueError, TypeError):
        return None
    return json_object(signed.payload)


def asked(head: Head, addresses: Iterable[str]) -> Sequence[str]:
    """Return the addresses a client may have meant: its proxied request's own, or the gate's with the path it asked."""
    path = head.path.partition("?")[0]
    if head.origin is None:
        return [address + path for address in addresses]
    host = f"[{head.origin.host}]" if ":" in head.origin.host else head.origin.host
    return [f"{head.origin.scheme}://{host}:{head.origin.port}{path}"]


def plain(address: str) -> str | None:
    """Write an address in its one form (RFC 3986, 6.2.2 and 6.2.3), without query and fragment; ``None``: it is none.

    A WebSocket's ``wss`` is ``https``: it begins as a request.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    scheme = {"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)
    if (
        scheme not in _PORTS
        or not host
        or parts.username is not None
        or not (address.isascii() and address.isprintable())
    ):
        return None
    path = re.sub(r"%([0-9A-Fa-f]{2})", _unescaped, parts.path or "/")
    return f"{scheme}://{host.lower()}:{port or _PORTS[scheme]}{path}"


def _unescaped(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    return chr(code) if code in _UNRESERVED else f"%{found[1].upper()}"


def _sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
