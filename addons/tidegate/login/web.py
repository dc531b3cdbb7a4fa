"""Speaks to an identity provider: JSON answers, https, no redirects, no cookies. Raises ``LoginError`` in one sentence.

The environment's proxies are not used: where programs are pointed at the gate, the proxy *is* the gate.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

TIMEOUT = 20.0
ANSWER_BYTES = 512 * 1024
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class LoginError(Exception):
    """A login cannot go on; the text says why, in one sentence, and holds no token. ``person``: someone has to act."""

    def __init__(self, text: str, *, person: bool = False) -> None:
        super().__init__(text)
        self.person = person


class Unreachable(LoginError):
    """The provider did not answer; another try may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said: an HTTP status and a JSON object."""

    status: int
    body: Mapping[str, object] = field(repr=False)

    def text(self, name: str) -> str | None:
        """Return a member that is a text and not empty."""
        value = self.body.get(name)
        return value if isinstance(value, str) and value else None

    def number(self, name: str) -> float | None:
        """Return a member that is a number above zero; some providers write it as a text."""
        value = self.body.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) < 12:
            value = int(value)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def is_allowed(address: str) -> bool:
    """Say whether an address may be asked or shown: https, or http to this machine; no user, nothing unprintable."""
    try:
        parts = urllib.parse.urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or not address.isascii() or not address.isprintable() or " " in address:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)


def get(address: str) -> Answer:
    """Fetch a document."""
    return _ask(address, None)


def post(address: str, fields: Mapping[str, str]) -> Answer:
    """Send a form."""
    return _ask(address, urllib.parse.urlencode(fields).encode())


def _ask(address: str, body: bytes | None) -> Answer:
    if not is_allowed(address):
        raise LoginError("The provider names an address that is not https; nothing was sent there.")
    request = urllib.request.Request(address, body, {"accept": "application/json"})  # noqa: S310 - is_allowed
    try:
        with _opener().open(request, timeout=TIMEOUT) as answer:
            return _read(answer.status, answer.read(ANSWER_BYTES + 1))
    except urllib.error.HTTPError as error:
        with error:
            return _read(error.code, error.read(ANSWER_BYTES + 1))
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        host = urllib.parse.urlsplit(address).netloc
        raise Unreachable(f"The provider at {host} could not be reached: {type(why).__name__}.") from None


def _read(status: int, data: bytes) -> Answer:
    try:
        value = json.loads(data) if len(data) <= ANSWER_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        if status >= 500 or status == 429:
            raise Unreachable(f"The provider answered with status {status}.")
        return Answer(status, {})
    return Answer(status, value)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow none: a form holds codes and tokens."""


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _NoRedirects(),
    ):
        opener.add_handler(handler)
    return opener
