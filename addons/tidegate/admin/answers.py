"""What the admin listener answers with, and the header fields that go with all of it."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

SECURE: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",  # with no-referrer browsers say of our own forms that they come from nowhere
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer, whatever it is (OWASP's HTTP headers cheat sheet). No script runs in one, except in the pages: they
have a policy of their own (``rendering.CONTENT_SECURITY``), which takes the listener's one file of it."""

TLS: Mapping[str, str] = {"strict-transport-security": "max-age=31536000"}
"""Where the listener's address is https."""


def refused(status: int, code: str, message: str) -> Response:
    """Return an error as the API tells it: a code of ours and one sentence, which quotes nothing of the request."""
    more = {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"error": {"code": code, "message": message}}, status, more)


def told(value: Mapping[str, object], status: int = 200) -> Response:
    """Return a JSON object."""
    return JSONResponse(value, status)
