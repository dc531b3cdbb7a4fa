"""Asks an identity provider over HTTP: documents, and answers to questions. Blocks; run it in a thread.

Laws: https only (http to loopback where the policy says so), the provider's certificate is checked, no redirect to
another host, none at all for a question; the environment's proxies are not used; an answer has a limit in bytes and
time. What was received is in no message.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO
from urllib.parse import urlsplit

from tidegate.identity.segments import json_object
from tidegate.policy.policy import OidcIdentity

DOCUMENT_BYTES = 512 * 1024  # 100 RSA-8192 keys with certificates stay below
TIMEOUT = 10.0  # seconds without a byte
DEADLINE = 20.0  # seconds for a whole document
REDIRECTS = 3


class FetchError(Exception):
    """A provider's document could not be had. Says what is wrong, never what was received."""


def discover(identity: OidcIdentity) -> Mapping[str, object]:
    """Fetch the provider's discovery document (OpenID Connect Discovery, 4). Raises ``FetchError``."""
    document = json_object(fetch(identity, identity.discovery_url))
    if document is None:
        raise FetchError("its discovery document is not a JSON object")
    if document.get("issuer") != identity.issuer:
        raise FetchError("its discovery document names another issuer")
    return document


def _allowed(address: str, insecure: bool) -> bool:
    """Whether an address may be asked: https, or http to loopback where the policy says so."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return False
    if parts.username is not None or not host or not address.isprintable() or " " in address:
        return False
    return parts.scheme == "https" or (
        insecure and parts.scheme == "http" and host in {"127.0.0.1", "::1", "localhost"}
    )


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only on the same scheme, host and port."""

    max_redirections = REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Build the next request, or refuse it."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            fp.close()
            raise FetchError("it redirects to another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: what was asked holds a token."""

    def redirect_request(self, _: urllib.request.Request, fp: IO[bytes], *__: object) -> None:
        """Refuse."""
        fp.close()
        raise FetchError("it redirects a question")


def _opener(ca: str | None, redirects: urllib.request.HTTPRedirectHandler) -> urllib.request.OpenerDirector:
    """Build an opener that knows http and https and nothing else: no proxies, no cookies, no file: or ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        redirects,
    ):
        opener.add_handler(handler)
    return opener


def fetch(
    identity: OidcIdentity,
    address: str,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Fetch one document, or ask one question: with ``data`` (a form) or ``headers``. Raises ``FetchError``."""
    if not _allowed(address, identity.insecure_http):
        raise FetchError("an address of it is not https")
    until = time.monotonic() + DEADLINE
    request = urllib.request.Request(  # noqa: S310 - _allowed
        address, data, {"accept": "application/json", **(headers or {})}
    )
    redirects = _SameHost() if data is None and headers is None else _NoRedirect()
    try:
        with _opener(identity.ca, redirects).open(request, timeout=TIMEOUT) as answer:
            if answer.status != 200:
                raise FetchError(f"it answered with status {answer.status}")
            found = bytearray()
            while chunk := answer.read1(65536):
                found += chunk
                if len(found) > DOCUMENT_BYTES:
                    raise FetchError(f"its answer is longer than {DOCUMENT_BYTES} bytes")
                if time.monotonic() > until:
                    raise FetchError(f"its answer took longer than {DEADLINE:.0f} seconds")
            return bytes(found)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"it answered with status {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FetchError(f"it could not be reached: {type(reason).__name__}") from None
