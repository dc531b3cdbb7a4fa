"""One client of one identity provider: its endpoints, and the tokens it gives (RFC 6749, 8414, 8628, 7009, 9207)."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tidegate.login.web import Answer, LoginError, Unreachable, get, is_allowed, post

UNKNOWN_LIFE = 300.0
"""Seconds that a token counts for whose end nobody tells."""
TOKEN_CHARACTERS = 16 * 1024
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
_ERRORS = frozenset({
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
    "invalid_scope", "invalid_target", "access_denied", "expired_token", "server_error", "temporarily_unavailable",
    "authorization_pending", "slow_down", "login_required", "consent_required", "interaction_required",
})  # fmt: skip
"""What a provider may call its refusal. Other words are not repeated: they could hold anything."""


@dataclass(frozen=True, slots=True)
class Client:
    """What a person has to know once: the provider, and as which client this machine asks it.

    ``secret_file`` holds the secret of a client that must have one (Google's); ``extra`` goes into each request that
    asks for a token (``audience``, ``resource``).
    """

    issuer: str
    client_id: str
    scope: str
    secret_file: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def identified(self) -> dict[str, str]:
        """Return the form fields that say which client asks. Raises ``LoginError``."""
        if self.secret_file is None:
            return {"client_id": self.client_id}
        path = Path(self.secret_file)
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise LoginError(f"{path}: others may read the client's secret; make its mode 0600.", person=True)
            return {"client_id": self.client_id, "client_secret": path.read_text(encoding="utf-8").strip()}
        except OSError as error:
            why = error.strerror or "an error"
            raise LoginError(f"{path}: the client's secret cannot be read: {why}.", person=True) from None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a provider takes which request; ``None`` where it has no such thing."""

    token: str
    authorization: str | None
    device: str | None
    revocation: str | None
    names_issuer: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a provider gave. ``expires`` is a Unix time in seconds."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires: float
    obtained: float
    id_token: str | None = field(default=None, repr=False)


def discover(issuer: str) -> Endpoints:
    """Read what a provider says of itself: as OpenID Connect does, else as RFC 8414 has it."""
    if not is_allowed(issuer):
        raise LoginError("--issuer: accepted: an https address (http only to this machine).", person=True)
    parts = urlsplit(issuer)
    inserted = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path.rstrip('/')}"
    for address in (issuer.rstrip("/") + "/.well-known/openid-configuration", inserted):
        found = get(address)
        if found.status == 200 and found.body:
            return _endpoints(issuer, found)
    raise LoginError(f"{issuer} publishes no configuration (/.well-known/openid-configuration).", person=True)


def _endpoints(issuer: str, found: Answer) -> Endpoints:
    if found.text("issuer") != issuer:
        raise LoginError(f"{issuer} names another issuer in its configuration; give exactly that.", person=True)
    token = found.text("token_endpoint")
    if token is None:
        raise LoginError(f"{issuer} names no token endpoint.", person=True)
    return Endpoints(
        token,
        found.text("authorization_endpoint"),
        found.text("device_authorization_endpoint"),
        found.text("revocation_endpoint"),
        found.body.get("authorization_response_iss_parameter_supported") is True,
    )


def ask_for_tokens(client: Client, endpoint: str, fields: Mapping[str, str], clock: Callable[[], float]) -> Tokens:
    """Ask the token endpoint; raises ``Refused`` with the provider's word where it declines."""
    asked = clock()
    answer = post(endpoint, {**client.identified(), **client.extra, **fields})
    access = answer.text("access_token")
    if answer.status != 200 or access is None:
        raise Refused(error_of(answer), answer.status)
    kind = answer.text("token_type") or ""
    if len(access) > TOKEN_CHARACTERS or not access.isascii() or not access.isprintable() or " " in access:
        raise LoginError("The provider gave a token that is none.")
    if kind.lower() != "bearer":
        raise LoginError("The provider gave a token that is not a bearer token.")
    life = answer.number("expires_in")
    expires = asked + life if life is not None else _end(access) or asked + UNKNOWN_LIFE
    return Tokens(access, answer.text("refresh_token"), expires, asked, answer.text("id_token"))


class Refused(LoginError):
    """The provider declined; ``word`` is its reason (RFC 6749, 5.2), ``other`` where it is none of the known ones."""

    def __init__(self, word: str, status: int) -> None:
        super().__init__(f"The provider refused: {word} (status {status}).", person=True)
        self.word = word


def error_of(answer: Answer) -> str:
    """Return the reason of a refusal, if it is one of those that are known."""
    word = answer.text("error") or ""
    if word in _ERRORS:
        return word
    if answer.status >= 500 or answer.status == 429:
        raise Unreachable(f"The provider answered with status {answer.status}.")
    return "other"


def refresh(client: Client, endpoint: str, token: str, clock: Callable[[], float]) -> Tokens:
    """Trade a refresh token for new tokens; a provider that gives no new one lets the old one stand."""
    fields = {"grant_type": "refresh_token", "refresh_token": token}
    found = ask_for_tokens(client, endpoint, fields, clock)
    return Tokens(found.access, found.refresh or token, found.expires, found.obtained)


def revoke(client: Client, endpoint: str, token: str) -> None:
    """Tell the provider that a refresh token is not needed any more (RFC 7009)."""
    fields = {**client.identified(), "token": token, "token_type_hint": "refresh_token"}
    answer = post(endpoint, fields)
    if answer.status >= 300:
        raise LoginError(f"The provider did not take the token back (status {answer.status}).")


def claims(token: str) -> dict[str, object]:
    """Read what a JWT says, unverified: good for showing and for the end of our own copy, and for nothing else."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        value = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _end(token: str) -> float | None:
    found = claims(token).get("exp")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1e11 else None
