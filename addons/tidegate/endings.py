"""Why an exchange ends from outside: a limit passed, a peer left, the process stops, a bug was caught."""

from __future__ import annotations

from tidegate.model import Denial, Reason

BUG = Denial(Reason.BUG, 503, "The gateway failed on this exchange and stopped it.")
UNLISTED = Denial(Reason.UNLISTED_HOST, 403, "This host is not listed in the gateway's policy.")
NOT_HTTP = Denial(Reason.PROTOCOL, 400, "The request is not written as HTTP allows, or it has trailers.")
CLIENT_GONE = Denial(Reason.CLIENT_GONE, 499, "The client left before its answer was complete.")
UPSTREAM_FAILED = Denial(Reason.UPSTREAM_FAILED, 502, "The model provider could not be reached, or it broke off.")
STOPPING = Denial(Reason.STOPPING, 503, "The gateway was stopped before this exchange was complete.")
NO_CREDENTIAL = Denial(
    Reason.CREDENTIAL_UNAVAILABLE, 503, "The gateway has no credential for this model provider right now."
)
NO_LONGER_KNOWN = Denial(
    Reason.NOT_GRANTED, 403, "The policy changed while this request waited, and it no longer knows who you are."
)

_LIMITS = {
    Reason.ANSWER_TOO_LARGE: "The answer is larger than this connection allows.",
    Reason.ANSWER_FIRST_BYTE: "The model provider did not begin to answer in the time this connection allows.",
    Reason.ANSWER_IDLE: "The model provider paused in its answer for longer than this connection allows.",
    Reason.ANSWER_DURATION: "The answer took longer than this connection allows.",
}


def limit(reason: Reason) -> Denial:
    """Refuse what broke a limit of an answer."""
    return Denial(reason, 504 if reason is Reason.ANSWER_FIRST_BYTE else 502, _LIMITS[reason])
