"""Reads forms and tells errors as OAuth 2.0 does (RFC 6749 sections 3.2 and 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.responses import JSONResponse, Response

from tidegate.admin.doors import Visit

FORM = "application/x-www-form-urlencoded"
FIELDS = 20


def read_form(visit: Visit) -> Mapping[str, str] | None:
    """Read a form whose fields are there once each; ``None`` if it is none."""
    if visit.request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return None
    try:
        pairs = parse_qsl(
            visit.body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=FIELDS,
        )
    except ValueError:
        return None
    found = dict(pairs)
    return found if len(found) == len(pairs) else None


def oauth_error(code: str, description: str, status: int = 400) -> Response:
    """Return an error of the token service; ``description`` quotes nothing of the request."""
    headers = {"retry-after": "2"} if status == 503 else {}
    return JSONResponse({"error": code, "error_description": description}, status, headers)
