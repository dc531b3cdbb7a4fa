"""What an approval is bound to: a keyed hash of the exact request, so that a changed one is another. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from tidegate.approvals.spec import Person

KEY_BYTES = 32

MEANING = ("content-", "anthropic-", "openai-", "x-goog-")
"""Prefixes of header fields that say how a provider reads a body. Others differ between a request and its retry."""
LENGTH = "content-length"


def bound(
    caller: Person, connection: str, line: tuple[str, str], fields: Iterable[tuple[str, str]], body: bytes
) -> tuple[bytes, ...]:
    """Return the parts of a request that its approval covers. ``line`` is its method and its path with the query.

    The body is the one that was received: tokens in what would be sent differ from session to session.
    """
    told = sorted(f"{name}: {value}" for name, value in fields if name.startswith(MEANING) and name != LENGTH)
    texts = (caller.identity, caller.subject, connection, *line, "\n".join(told))
    return (*(each.encode("utf-8", "surrogateescape") for each in texts), body)


def fingerprint(key: bytes, parts: Sequence[bytes]) -> bytes:
    """Hash a request, whatever policy is in force. No two sets of parts give the same input."""
    return _mac(key, b"request", parts)


def digest(key: bytes, parts: Sequence[bytes], policy_sha: str) -> bytes:
    """Hash a request and the policy it was judged by: what is approved is this and nothing else."""
    return _mac(key, b"approval", (*parts, policy_sha.encode()))


def _mac(key: bytes, what: bytes, parts: Sequence[bytes]) -> bytes:
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in (what, *parts):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()
