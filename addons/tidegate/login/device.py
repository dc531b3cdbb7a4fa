"""The device flow (RFC 8628): a code is shown here, and a person enters it in any browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.login.provider import DEVICE, Client, Refused, Tokens, ask_for_tokens, error_of
from tidegate.login.web import LoginError, Unreachable, is_allowed, post

INTERVAL = 5.0
SLOWER = 5.0
"""Seconds between two questions where the provider says nothing, and what ``slow_down`` adds (RFC 8628, 3.5)."""
LONGEST = 1800.0
_SENTENCES = {
    "access_denied": "The login was declined in the browser.",
    "expired_token": "The code was not entered in time; start again.",
}


@dataclass(frozen=True, slots=True)
class Code:
    """What a person needs: where to go, and what to enter there."""

    address: str
    user: str
    complete: str | None
    device: str = field(repr=False)
    interval: float
    expires_in: float


def begin(client: Client, endpoint: str) -> Code:
    """Ask the provider for a code."""
    answer = post(endpoint, {**client.identified(), **client.extra, "scope": client.scope})
    device, user = answer.text("device_code"), answer.text("user_code")
    address = answer.text("verification_uri") or answer.text("verification_url")  # Google's older name
    if answer.status != 200 or device is None or user is None or address is None:
        raise Refused(error_of(answer), answer.status)
    if not is_allowed(address) or len(user) > 64 or not user.isascii() or not user.isprintable():
        raise LoginError("The provider gave a code or an address that cannot be shown.")
    complete = answer.text("verification_uri_complete")
    return Code(
        address,
        user,
        complete if complete is not None and is_allowed(complete) else None,
        device,
        min(answer.number("interval") or INTERVAL, 60.0),
        min(answer.number("expires_in") or LONGEST, LONGEST),
    )


def wait(
    client: Client, endpoint: str, code: Code, *, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Tokens:
    """Ask until the person has decided. ``clock`` gives Unix seconds."""
    until, interval = clock() + code.expires_in, code.interval
    while clock() + interval < until:
        sleep(interval)
        try:
            fields = {"grant_type": DEVICE, "device_code": code.device}
            return ask_for_tokens(client, endpoint, fields, clock)
        except Unreachable:
            interval = min(interval * 2, 60.0)
        except Refused as refused:
            if refused.word == "slow_down":
                interval += SLOWER
            elif refused.word in _SENTENCES:
                raise LoginError(_SENTENCES[refused.word], person=True) from None
            elif refused.word != "authorization_pending":
                raise
    raise LoginError(_SENTENCES["expired_token"], person=True)
