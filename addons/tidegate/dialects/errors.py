"""Refusals in the shape that a family's SDK turns into its own exception, with one sentence and a request id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from tidegate.dialects.body import dump
from tidegate.dialects.spec import ErrorShape
from tidegate.model import Denial, Reason

PLACES = ("message", "reason", "type", "id", "status", "call")
"""What a template may name as ``${...}``."""

MAX_CLOSE = 123
"""Bytes of the reason in a close frame (RFC 6455, 5.5: 125 with the code)."""

_GENERIC_BODY = {
    "type": "error",
    "error": {"type": "${type}", "message": "${message} (request ${id})", "param": None, "code": "${reason}"},
    "request_id": "${id}",
}

RETRY_SECONDS = 60
"""The longest wait that both SDKs obey; after a longer one they come back too early, so they are told not to."""

GENERIC = ErrorShape(
    body=_GENERIC_BODY,
    event=_GENERIC_BODY,
    event_name="error",
    types={0: "api_error", 400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"},
)
"""For a refusal before any connection is known: the OpenAI and the Anthropic SDK both read it."""


GRPC = ErrorShape(body=None, event=None, event_name=None, types={0: ""}, grpc=True)
"""For a gRPC call: a status in the trailers, or in the head where there is nothing else (Trailers-Only)."""

_CODES = {400: 3, 401: 16, 403: 7, 404: 12, 413: 8, 415: 12, 429: 8, 499: 1, 502: 14, 503: 14, 504: 4}
"""The gRPC status of a refusal: INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED,
RESOURCE_EXHAUSTED, CANCELLED, UNAVAILABLE, DEADLINE_EXCEEDED; 13, INTERNAL, for any other."""
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def grpc_message(text: str) -> str:
    """Write a text as ``grpc-message`` has it: percent escapes for ``%`` and all that is not printable ASCII."""
    return quote(text, safe=_PRINTABLE, errors="replace")


def soon(denial: Denial) -> bool:
    """Say whether a client that waits as long as it is told should ask again."""
    return denial.retry_after is not None and denial.retry_after <= RETRY_SECONDS


def render_status(denial: Denial, request_id: str) -> tuple[tuple[str, str], ...]:
    """Write a refusal as the trailers of a gRPC call. The pushback below zero stops clients with a retry policy."""
    pushback = str(denial.retry_after * 1000) if soon(denial) and denial.retry_after else "-1"
    message = f"{denial.message} (reason {denial.reason.value}, request {request_id})"
    return (
        ("grpc-status", str(_CODES.get(denial.status, 13))),
        ("grpc-message", grpc_message(message)),
        ("grpc-retry-pushback-ms", pushback),
        ("x-request-id", request_id),
    )


@dataclass(frozen=True, slots=True)
class Calls:
    """The ids of the JSON-RPC calls that a refusal answers: of one message, or with ``batch`` of a list of them."""

    ids: tuple[str | int, ...] = ()
    batch: bool = False


NO_CALLS = Calls()


def status(shape: ErrorShape, denial: Denial, calls: Calls = NO_CALLS) -> int:
    """Return the HTTP status of a refusal: some families answer a call with an error and the status of an answer."""
    return shape.answered if calls.ids and shape.answered is not None else denial.status


def render(
    shape: ErrorShape, denial: Denial, request_id: str, calls: Calls = NO_CALLS
) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Write a refusal: headers and body. Of a batch each call gets its own error.

    ``x-should-retry: false`` stops both SDKs from trying again, unless there is soon room for what was refused;
    ``x-request-id`` is OpenAI's and ``request-id`` Anthropic's name of the same header.
    """
    if shape.grpc:
        accepted = (("grpc-accept-encoding", "identity,deflate,gzip"),) if denial.status == 415 else ()
        return (("content-type", "application/grpc"), *render_status(denial, request_id), *accepted), b""
    headers: tuple[tuple[str, str], ...] = (
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-request-id", request_id),
        ("request-id", request_id),
        ("x-should-retry", "true" if soon(denial) else "false"),
        *_challenge(denial),
        *(_CHALLENGES if denial.status == 407 else ()),
    )
    if denial.retry_after is not None:
        headers = (*headers, ("retry-after", str(denial.retry_after)))
    if calls.batch and calls.ids:
        bodies = [_fill(shape.body, _values(shape, denial, request_id, call)) for call in calls.ids]
        return headers, dump(bodies)
    return headers, dump(_fill(shape.body, _values(shape, denial, request_id, *calls.ids[:1])))


_CHALLENGES = (("proxy-authenticate", 'Basic realm="tidegate"'), ("proxy-authenticate", 'Bearer realm="tidegate"'))
"""What a proxy asks a client for (RFC 9110, 11.7.1): one field each, since some clients read only the first word."""


def _challenge(denial: Denial) -> tuple[tuple[str, str], ...]:
    """Say how a client identifies itself (RFC 6750, 3; RFC 9449, 7.1), without the reason for which it is not known."""
    if denial.status != 401:
        return ()
    if denial.reason in (Reason.TOKEN_BOUND, Reason.TOKEN_PROOF):
        return (("www-authenticate", 'DPoP error="invalid_token", algs="ES256 ES384 ES512 EdDSA PS256 RS256"'),)
    error = "" if denial.reason is Reason.CALLER_MISSING else ' error="invalid_token"'
    return (("www-authenticate", f"Bearer{error}"),)


def render_event(shape: ErrorShape, denial: Denial, request_id: str, call: str | int | None = None) -> bytes:
    """Write the event that ends an answer which has begun; its framing is put around it by ``streams``."""
    return dump(_fill(shape.event, _values(shape, denial, request_id, call)))


def render_message(shape: ErrorShape, denial: Denial, request_id: str) -> bytes:
    """Write a refusal as one message on a WebSocket."""
    return dump(_fill(shape.message, _values(shape, denial, request_id)))


def render_close(shape: ErrorShape, denial: Denial, request_id: str) -> str:
    """Write the reason with which a WebSocket is closed, in no more than the bytes that a close frame has for it."""
    text = str(_fill(shape.close, _values(shape, denial, request_id)))
    return text.encode()[:MAX_CLOSE].decode(errors="ignore")


def _values(shape: ErrorShape, denial: Denial, request_id: str, call: str | int | None = None) -> dict[str, object]:
    return {
        "message": denial.message,
        "reason": denial.reason.value,
        "type": shape.types.get(denial.status, shape.types[0]),
        "id": request_id,
        "status": denial.status,
        "call": call,
    }


def _fill(template: object, values: Mapping[str, object]) -> object:
    """Copy a template with its places filled. A string that is one place keeps the value's type."""
    if isinstance(template, dict):
        return {key: _fill(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_fill(item, values) for item in template]
    if not isinstance(template, str) or "${" not in template:
        return template
    if template[2:-1] in values and template == "${" + template[2:-1] + "}":
        return values[template[2:-1]]
    before, opened, after = template.partition("${")
    name, _, rest = after.partition("}")
    return before + str(values.get(name, opened)) + str(_fill(rest, values))
