"""Login in this machine's browser: authorization code with PKCE on a loopback address (RFC 8252, 7636, 9207)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import secrets
import socketserver
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tidegate.login.provider import Client, Endpoints, Tokens, ask_for_tokens, claims
from tidegate.login.web import LoginError, is_allowed

PATIENCE = 300.0
"""Seconds that a person has in the browser."""
PATH = "/callback"
_PAGE = (
    b"<!doctype html><meta charset=utf-8><title>tidegate</title><body><h1>%s</h1><p>You can close this page and go back"
    b" to the terminal.</p></body>"
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The secrets of one login."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)

    @staticmethod
    def new() -> Attempt:
        """Make fresh ones."""
        return Attempt(*(secrets.token_urlsafe(32) for _ in range(3)))

    @property
    def challenge(self) -> str:
        """The S256 form of the verifier."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def login(
    client: Client,
    endpoints: Endpoints,
    *,
    port: int,
    show: Callable[[str], None],
    clock: Callable[[], float],
    patience: float = PATIENCE,
) -> Tokens:
    """Have ``show`` open an address in the browser, wait for it to come back here, and trade its code for tokens."""
    if endpoints.authorization is None or not is_allowed(endpoints.authorization):
        raise LoginError("The provider names no authorization endpoint; try --flow device.", person=True)
    attempt = Attempt.new()
    with _listener(port) as server:
        redirect = f"http://127.0.0.1:{server.server_address[1]}{PATH}"
        show(_address(client, endpoints.authorization, attempt, redirect))
        found = _wait(server, attempt, clock, patience)
    code = _code(found, client, endpoints)
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect}
    tokens = ask_for_tokens(client, endpoints.token, {**fields, "code_verifier": attempt.verifier}, clock)
    if tokens.id_token is not None:
        _check(tokens.id_token, client, attempt, clock())
    return tokens


def _address(client: Client, endpoint: str, attempt: Attempt, redirect: str) -> str:
    query = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect,
        "scope": client.scope,
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": attempt.challenge,
        "code_challenge_method": "S256",
        **client.extra,
    }
    return endpoint + ("&" if "?" in endpoint else "?") + urllib.parse.urlencode(query)


def _code(found: dict[str, list[str]], client: Client, endpoints: Endpoints) -> str:
    """Return the code that came back, if it came from the provider that was asked."""
    issuers = found.get("iss", [])
    if (issuers and issuers != [client.issuer]) or (endpoints.names_issuer and not issuers):
        raise LoginError("The answer in the browser came from another provider; nothing was sent there.")
    codes = found.get("code", [])
    if len(codes) != 1:
        word = found.get("error", ["other"])[0]
        declined = word == "access_denied"
        raise LoginError(
            "The login was declined in the browser." if declined else "The provider refused in the browser.",
            person=True,
        )
    return codes[0]


def _check(id_token: str, client: Client, attempt: Attempt, now: float) -> None:
    """Check that an ID token is of this very login. It came straight from the provider (OIDC Core 3.1.3.7)."""
    found = claims(id_token)
    audience, end = found.get("aud"), found.get("exp")
    nonce = found.get("nonce")
    if (
        found.get("iss") != client.issuer
        or not (audience == client.client_id or (isinstance(audience, list) and client.client_id in audience))
        or not isinstance(end, int | float)
        or end + 60 < now
        or not isinstance(nonce, str)
        or not hmac.compare_digest(nonce.encode(), attempt.nonce.encode())
    ):
        raise LoginError("The provider's ID token is not of this login; nothing was kept.")


class _Server(socketserver.TCPServer):
    allow_reuse_address = False
    found: dict[str, list[str]] | None = None
    state = ""


def _listener(port: int) -> _Server:
    try:
        return _Server(("127.0.0.1", port), _Page)
    except OSError as error:
        raise LoginError(f"--port {port}: {error.strerror or 'an error'}; choose another.", person=True) from None


def _wait(server: _Server, attempt: Attempt, clock: Callable[[], float], patience: float) -> dict[str, list[str]]:
    server.state = attempt.state
    until = clock() + patience
    while server.found is None:
        left = until - clock()
        if left <= 0:
            raise LoginError("Nobody logged in in the browser in time; start again.", person=True)
        server.timeout = min(left, 1.0)
        server.handle_request()
    return server.found


class _Page(http.server.BaseHTTPRequestHandler):
    """Takes the one request that has our state; whatever else asks here is told nothing."""

    server: _Server
    timeout = 5

    def do_GET(self) -> None:
        """Take the provider's answer."""
        parts = urllib.parse.urlsplit(self.path)
        try:
            query = urllib.parse.parse_qs(parts.query, max_num_fields=20)
        except ValueError:
            query = {}
        states = query.get("state", [])
        known = parts.path == PATH and len(states) == 1
        if not known or not hmac.compare_digest(states[0].encode(), self.server.state.encode()):
            self._say(404, b"Not found")
            return
        self.server.found = query
        self._say(200, b"Done" if "code" in query else b"Not logged in")

    def _say(self, status: int, title: bytes) -> None:
        body = _PAGE % title
        self.send_response_only(status)
        for name, value in (
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "default-src 'none'"),
            ("connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the address holds a code."""
