"""Which header fields cross. Names are lower case."""

from __future__ import annotations

from collections.abc import Iterable

CREDENTIALS = frozenset(
    {"authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie", "x-amz-security-token"}
    | {"dpop"}  # the proof that a token is its sender's
    | {"sec-websocket-protocol"}  # where browsers put a key; no subprotocol crosses
)
"""Where a client puts what proves who it is. None of it goes upstream or into a recording."""

CLAIMED = (
    "x-forwarded-",
    "x-tidegate-",
    "x-real-ip",
    "forwarded",
    "via",
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-goog-iap-",
)
"""Prefixes of fields by which proxies tell who the caller is. A client's own are lies or leaks."""

SESSION = "x-tidegate-session"
"""What a client calls its conversation: tokens of one are not restored in another. It does not go upstream."""

NOT_UPSTREAM = frozenset({
    "te", "trailer", "upgrade", "http2-settings", "expect", "accept-encoding", "content-encoding",
    "transfer-encoding", "content-length", "keep-alive", "proxy-connection", "connection", "host",
    "x-http-method-override", "x-method-override", "x-http-method", "x-amz-date", "x-amz-content-sha256",
})  # fmt: skip
"""Fields of one hop (RFC 9110, 7.6.1), those the gate sets (it names the upstream, forwards plain bodies and asks for
plain ones), those that would make another request of the one that was judged, and parts of an AWS signature, which fits
the client's request alone."""

NOT_TO_CLIENT = frozenset(
    {"alt-svc", "location", "content-location", "refresh", "link", "set-cookie", "set-cookie2", "trailer", "upgrade"}
    | {"http2-settings", "keep-alive", "proxy-authenticate", "x-tidegate-exchange"}
)
"""Some lead the client past the gate; the upstream's cookies belong to the gate; the exchange's id is its own word."""


def upstream(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields of a request that may go upstream, without anybody's credentials."""
    return [
        (name, value)
        for name, value in fields
        if name not in CREDENTIALS and name not in NOT_UPSTREAM and not name.startswith(CLAIMED)
    ]


def values(fields: Iterable[tuple[str, str]], name: str) -> list[str]:
    """Return the comma-separated members of every field called ``name``, in order, stripped, empty ones left out."""
    return [part for key, value in fields if key == name for raw in value.split(",") if (part := raw.strip())]


def is_plain(name: str, value: str) -> bool:
    """Say whether a field has one of the few values that HTTP itself prescribes, and so holds no text."""
    return value in _PLAIN.get(name, ()) or (name == "content-length" and value.isdecimal() and len(value) < 12)


_PLAIN = {
    "content-type": ("application/json", "application/json; charset=utf-8", "text/event-stream"),
    "connection": ("keep-alive", "close"),
    "transfer-encoding": ("chunked",),
}
