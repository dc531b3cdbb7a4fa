"""What a client says to a proxy of who calls: ``Proxy-Authorization`` (RFC 9110, 11.7.2). Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import replace

from tidegate.identity.claims import TOKEN_BYTES
from tidegate.model import Denial, Reason

FIELD = "proxy-authorization"

MISSING = Denial(
    Reason.CALLER_MISSING,
    407,
    "Give an access token to the proxy: as the password of http://user:TOKEN@host:port, or as a bearer token.",
)
AMBIGUOUS = Denial(Reason.CALLER_AMBIGUOUS, 407, "Proxy-Authorization was sent twice; send one access token.")
MALFORMED = Denial(
    Reason.TOKEN_MALFORMED, 407, "Proxy-Authorization is not understood; give the access token with Basic or Bearer."
)
SHARED = Denial(
    Reason.PROTOCOL, 400, "Open a tunnel with an access token over HTTP/1.1; over HTTP/2 many may share a connection."
)


def token(fields: Iterable[tuple[str, str]]) -> str | Denial | None:
    """Find the token: Basic has it as the password, whatever the user name, and Bearer as it is."""
    found = [value for name, value in fields if name == FIELD]
    if not found:
        return None
    if len(found) > 1:
        return AMBIGUOUS
    scheme, _, rest = found[0].strip().partition(" ")
    shown = rest.strip() if scheme.lower() == "bearer" else _password(rest.strip()) if scheme.lower() == "basic" else ""
    return shown or MALFORMED


def _password(credentials: str) -> str:
    if len(credentials) > 2 * TOKEN_BYTES:  # base64 makes a third more of it, a user name stands before it
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def by_proxy(denial: Denial) -> Denial:
    """Turn the denial of a token into that of a proxy: 407 in place of 401."""
    return replace(denial, status=407) if denial.status == 401 else denial
