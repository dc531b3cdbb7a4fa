"""Sealing to the auditor: the gate can write and cannot read. HPKE with X25519 (RFC 9180), AES-256-GCM, zstd.

Each original has a key of its own, wrapped first to the auditor's public key, then under the caller's monthly key. So
the auditor's private key alone opens nothing that was erased, and the gate alone opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidegate.evidence.records import RecordingError
from tidegate.policy.recording import auditor_text

PRIVATE = "TIDEGATE-AUDITOR-PRIVATE-X25519:"
MOST = 1 << 30
"""Bytes that an original may grow to when it is opened; a gate's own limits are far below."""

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class Original:
    """A sealed original as it lies in the recording."""

    exchange: str
    direction: str
    wrapped: bytes
    data: bytes

    @property
    def bound(self) -> bytes:
        """What it is bound to: moved to another exchange it does not open."""
        return f"tidegate original {self.exchange} {self.direction}".encode()


def make_auditor() -> tuple[str, str]:
    """Make a pair of keys for an auditor: the private one for a file, the public one for the policy."""
    key = X25519PrivateKey.generate()
    private = PRIVATE + base64.b64encode(key.private_bytes_raw()).decode()
    return private, auditor_text(key.public_key().public_bytes_raw())


def seal(public: bytes, monthly: bytes, exchange: str, direction: str, plain: bytes) -> Original:
    """Seal an original. ``monthly`` is the caller's data key."""
    key, nonce, outer = os.urandom(32), os.urandom(12), os.urandom(12)
    bound = Original(exchange, direction, b"", b"").bound
    inner = _SUITE.encrypt(key, X25519PublicKey.from_public_bytes(public), info=bound)
    wrapped = outer + AESGCM(monthly).encrypt(outer, inner, bound)
    data = nonce + AESGCM(key).encrypt(nonce, zstandard.ZstdCompressor(level=3).compress(plain), bound)
    return Original(exchange, direction, wrapped, data)


def unseal(private: str, monthly: bytes, original: Original) -> bytes:
    """Open an original with the auditor's private key. Raises ``RecordingError``."""
    try:
        raw = base64.b64decode(private.strip().removeprefix(PRIVATE), validate=True)
        key = X25519PrivateKey.from_private_bytes(raw)
    except (binascii.Error, ValueError):
        raise RecordingError(
            "found no auditor's private key; accepted: what `tidegate evidence keygen` wrote"
        ) from None
    try:
        inner = AESGCM(monthly).decrypt(original.wrapped[:12], original.wrapped[12:], original.bound)
        dek = _SUITE.decrypt(inner, key, info=original.bound)
        plain = AESGCM(dek).decrypt(original.data[:12], original.data[12:], original.bound)
        return zstandard.ZstdDecompressor().decompress(plain, max_output_size=MOST)
    except (InvalidTag, ValueError, zstandard.ZstdError):
        raise RecordingError(f"exchange {original.exchange}: does not open with this key") from None
