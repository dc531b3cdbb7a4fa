"""What the gate reads from a flow and writes to it: the shapes of mitmproxy's messages, kept out of the hooks."""

from __future__ import annotations

import ipaddress
import socket

from cryptography.hazmat.primitives.serialization import Encoding
from mitmproxy import http
from mitmproxy.net.http import status_codes
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, UpstreamMode

from tidegate import headers
from tidegate.inspection.engine import Engine
from tidegate.judging import readings
from tidegate.limits import rate_fields
from tidegate.model import Origin, Peer
from tidegate.policy.policy import Policy
from tidegate.steps import Send

_CREDENTIALS = frozenset(name.encode() for name in headers.CREDENTIALS)


def fields(message: http.Headers) -> tuple[tuple[str, str], ...]:
    """Return header fields with lower-case names, in order, repeats kept; bytes that are not UTF-8 as surrogates."""
    return tuple((k.decode("latin-1").lower(), v.decode("utf-8", "surrogateescape")) for k, v in message.fields)


def origin(flow: http.HTTPFlow, policy: Policy) -> Origin | None:
    """Say where the client's connection leads; ``None`` on a reverse listener, where the path decides.

    A transparent listener knows an address. The name in SNI or ``Host`` is the client's word, and it is taken only to
    choose among the policy's connections: the gate then connects to that name itself and verifies its certificate.
    """
    request = flow.request
    if isinstance(flow.client_conn.proxy_mode, ReverseMode):
        return None
    found = Origin(request.scheme, request.host.lower(), request.port)
    if found in policy.routes.origins:
        return found
    name = flow.client_conn.sni or request.host_header or ""
    host = name.rsplit(":", 1)[0] if name.rpartition(":")[2].isdecimal() else name
    claimed = Origin(request.scheme, host.lower(), request.port)
    return claimed if claimed in policy.routes.origins else found


def is_proxied(flow: http.HTTPFlow) -> bool:
    """Say whether the client knows that it speaks to a proxy: only then does it show a token to one."""
    return isinstance(flow.client_conn.proxy_mode, RegularMode | UpstreamMode)


def peer(flow: http.HTTPFlow) -> Peer:
    """Say who is at the other end of the client's connection."""
    shown = flow.client_conn.certificate_list
    der = shown[0].to_cryptography().public_bytes(Encoding.DER) if shown else None
    return Peer(flow.client_conn.peername[0], der)


def hide_credentials(request: http.Request) -> None:
    """Take the client's credentials out before any other addon, page or recording can see them."""
    kept = tuple(pair for pair in request.headers.fields if pair[0].lower() not in _CREDENTIALS)
    if len(kept) != len(request.headers.fields):
        request.headers.fields = kept


def hide_findings(request: http.Request, engine: Engine) -> None:
    """Take out the path and the header fields in which a rule finds something, before a refused request is recorded."""
    if engine.find_many([readings(request.path)]):
        request.path = "/[REDACTED]"
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.fields]
    found = engine.find_many([f"{name}: {value}" for name, value in pairs])
    if found:
        request.headers.fields = tuple(pair for at, pair in enumerate(request.headers.fields) if at not in found)


def authority(upstream: Origin) -> bytes:
    """Return the name of an upstream as a request gives it: without the port that its scheme implies."""
    host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
    return (
        host if upstream.port == (443 if upstream.scheme == "https" else 80) else f"{host}:{upstream.port}"
    ).encode()


def write_request(flow: http.HTTPFlow, step: Send) -> None:
    """Make a flow's request exactly what was cleared; the credential is not on it and never will be."""
    verdict, request, data = step.clearance.verdict, flow.request, flow.request.data
    upstream = verdict.grant.route.connection.upstream
    data.scheme, data.host, data.port = upstream.scheme.encode(), upstream.host, upstream.port
    data.path = verdict.grant.route.path.encode()
    data.authority = authority(upstream) if request.is_http2 else b""
    kept = [] if request.is_http2 else [(b"host", authority(upstream))]
    kept += [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in step.fields]
    kept.append((b"accept-encoding", b"identity"))
    if step.measured and (verdict.body or request.method in ("POST", "PUT", "PATCH")):
        kept.append((b"content-length", str(len(verdict.body)).encode()))
    data.headers = http.Headers(kept)
    data.trailers = None
    data.content = verdict.body


def with_credential(request: http.Request, name: str, value: str) -> http.Request:
    """Return a copy of a request with one more header field, for the wire alone."""
    sent, data = object.__new__(http.Request), object.__new__(http.RequestData)
    vars(sent).update(vars(request), data=data)
    vars(data).update(vars(request.data))
    data.headers = http.Headers()
    data.headers.fields = (*request.data.headers.fields, (name.encode(), value.encode()))
    return sent


def write_answer_head(
    response: http.Response, drop: frozenset[str], exchange: str, *, streamed: bool, http1: bool
) -> None:
    """Prepare an answer's head: fewer fields, our exchange id, and no length that masking would make wrong."""
    lost = drop | {"content-length", "content-encoding", "transfer-encoding"} if streamed else drop
    kept = [pair for pair in response.headers.fields if pair[0].decode("latin-1").lower() not in lost]
    if streamed and http1:
        kept.append((b"transfer-encoding", b"chunked"))
    kept.append((b"x-tidegate-exchange", exchange.encode()))
    response.headers.fields = tuple(kept)
    response.data.reason = status_codes.RESPONSES.get(
        response.status_code, ""
    ).encode()  # the upstream's words are a channel
    response.trailers = None


def trailers(found: tuple[tuple[str, str], ...]) -> http.Headers:
    """Make trailers."""
    return http.Headers([(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in found])


def write_rate_fields(response: http.Response, found: tuple[tuple[str, str], ...]) -> None:
    """Tell what is left of the caller's budgets, in place of what the upstream says of the gate's own account."""
    kept = [pair for pair in response.headers.fields if not rate_fields.own(pair[0].decode("latin-1").lower())]
    response.headers.fields = (*kept, *((name.encode(), value.encode()) for name, value in found))


def drop_fields_with(response: http.Response, text: bytes) -> None:
    """Leave out the header fields of an answer that hold ``text``."""
    response.headers.fields = tuple(pair for pair in response.headers.fields if text not in pair[1])


def write_answer_body(response: http.Response, body: bytes) -> None:
    """Give a whole answer its masked body, and the header fields that describe it."""
    kept: list[tuple[bytes, bytes]] = []
    length: bytes | None = b"%d" % len(body)
    for name, value in response.headers.fields:
        plain = name.lower()
        if plain == b"content-length":
            if length is not None:
                kept.append((name, length))
            length = None
        elif plain not in (b"content-encoding", b"transfer-encoding"):
            kept.append((name, value))
    if body and length is not None:
        kept.append((b"content-length", length))
    response.headers.fields = tuple(kept)
    response.data.content = body


def refusal(status: int, fields: tuple[tuple[str, str], ...], body: bytes) -> http.Response:
    """Make the answer that carries a denial."""
    return http.Response.make(status, body, http.Headers([(k.encode(), v.encode()) for k, v in fields]))


def is_local(host: str) -> bool:
    """Say whether a host is this machine or a network of its own: where ``unlisted: pass`` must not lead (SSRF)."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return not ipaddress.ip_address(name).is_global
    except ValueError:
        pass
    try:
        return not ipaddress.IPv4Address(socket.inet_aton(name)).is_global  # 127.1, 0x7f000001, 2130706433
    except OSError:
        return "." not in name or name.endswith((".localhost", ".local", ".internal"))
