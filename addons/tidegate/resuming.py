"""Clients that resume a TLS session while the gate asks for certificates.

OpenSSL ends such a handshake unless the server has named the context of its sessions, and mitmproxy does not. A session
holds the certificate that was verified when it began, so a resumed one is known by the same.
"""

from __future__ import annotations

from typing import Any

from mitmproxy.net import tls
from OpenSSL import SSL

CONTEXT = b"tidegate"


def harden() -> None:
    """Name the context of the sessions of all TLS contexts that mitmproxy makes from now on; once for the process."""
    make = tls._create_ssl_context
    if getattr(make, "tidegate_hardened", False):
        return

    def named(**options: Any) -> SSL.Context:
        context = make(**options)
        context.set_session_id(CONTEXT)  # of no meaning where we are the client
        return context

    named.tidegate_hardened = True  # type: ignore[attr-defined]
    tls._create_ssl_context = named
