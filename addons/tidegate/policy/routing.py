"""From a request head to a connection and an endpoint of its dialect: pure, and strict about the path.

A path that a client, this gate and an upstream could read in different ways is refused, never normalised (RFC 3986
section 6; request smuggling by encoded slashes and dot segments).

Reverse: the longest connection prefix wins. Explicit and transparent: the origin must be exactly an upstream's. Where
two connections share an upstream, the one whose dialect knows the endpoint is taken; if both do, nobody can say which
permissions and credential apply, so the request is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.dialects.addresses import asked_for, closed, match, model_named, stored_in
from tidegate.dialects.spec import Dialect
from tidegate.model import Connection, Denial, Head, Origin, Reason, Route
from tidegate.policy.policy import Policy, Routes, Unlisted

PATH_BYTES = 2048  # longer than any endpoint of the known APIs, with room for model names in a path
QUERY_BYTES = 1024  # inference APIs put an api-version or a flag here; text for a model belongs in the body

_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+)+/?|/")
# Encoded: slash, backslash, dot, percent (double encoding), semicolon, and every control character.
_TRAP = re.compile(r"%(?:2[fFeE5]|5[cC]|3[bB]|[01][0-9A-Fa-f]|7[fF])|/\.{1,2}(?:/|$)")
_QUERY = re.compile(r"[A-Za-z0-9._~!$'()*+,;=:@/?&%-]*")
_QUERY_CREDENTIAL = re.compile(r"(?:^|[&;?])(?:key|api[_-]?key|access_token|token)=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pass:
    """A host the policy does not list, which it says may pass untouched."""

    origin: Origin


def route(policy: Policy, head: Head) -> Route | Pass | Denial:
    """Find where a request head leads.

    Returns a ``Route`` whose ``path`` is what goes upstream (base path, path, query); ``Pass`` for an unlisted host
    under ``unlisted: pass``; or a ``Denial``.
    """
    origin = head.origin
    if origin is not None:
        origin = Origin(origin.scheme, origin.host.lower().rstrip("."), origin.port)
        if origin not in policy.routes.origins:
            return _unlisted(policy, origin)
    path, mark, query = head.path.partition("?")
    denial = _strange(path, query)
    if denial is not None:
        return denial
    found = _by_prefix(policy, head, path) if origin is None else _by_origin(policy, head, origin, path)
    if isinstance(found, Denial):
        return found
    connection, endpoint, below = found
    known = policy.dialects[connection.dialect].endpoints[endpoint]
    model = model_named(known, below)
    if query and (known.socket is not None or known.asked.query):
        told = asked_for(known, query)
        if isinstance(told, Denial):
            return told
        model = told if model is None else model
    upstream = f"{connection.upstream_path}{below}" or "/"  # at a connection's own address there may be no path at all
    return Route(connection, endpoint, f"{upstream}{mark}{query}", model, stored_in(known, below))


def routes(connections: Iterable[Connection]) -> Routes:
    """Index connections for ``route``."""
    known = tuple(connections)
    prefixes = [(each.prefix, each) for each in known if each.prefix is not None]
    prefixes.sort(key=lambda pair: len(pair[0]), reverse=True)
    origins: dict[Origin, tuple[Connection, ...]] = {}
    for each in known:
        origins[each.upstream] = (*origins.get(each.upstream, ()), each)
    return Routes(tuple(prefixes), origins, frozenset(origin.host for origin in origins))


def _unlisted(policy: Policy, origin: Origin) -> Pass | Denial:
    """Deny or pass a host no connection names; another port of a listed host never passes."""
    if policy.unlisted is Unlisted.PASS and origin.host not in policy.routes.hosts:
        return Pass(origin)
    return Denial(Reason.UNLISTED_HOST, 403, "This host is not listed in the gateway's policy.")


@functools.lru_cache(maxsize=256)
def _strange(path: str, query: str) -> Denial | None:
    """Refuse a path or query that has more than one reading, or that carries a credential."""
    if len(path) > PATH_BYTES or not _PATH.fullmatch(path) or _TRAP.search(path):
        return Denial(Reason.PROTOCOL, 400, "The request path is not written in its plain form, so it was refused.")
    if len(query) > QUERY_BYTES or not _QUERY.fullmatch(query) or "%25" in query:
        return Denial(Reason.PROTOCOL, 400, "The query of the request is too long or holds unusual characters.")
    if _QUERY_CREDENTIAL.search(query):
        return Denial(Reason.CALLER_MISSING, 401, "Give the access token in a header, never in the address.")
    return None


def _below(prefix: str, path: str) -> str | None:
    """Return what follows a prefix on a segment boundary (nothing, at the prefix itself), or ``None``."""
    if not path.startswith(prefix):
        return None
    rest = path[len(prefix) :]
    return rest if not rest or rest.startswith("/") else None


def _by_prefix(policy: Policy, head: Head, path: str) -> tuple[Connection, str, str] | Denial:
    """Reverse mode: the longest prefix decides the connection, and only that one is asked for the endpoint."""
    for prefix, connection in policy.routes.prefixes:
        below = _below(prefix, path)
        if below is None:
            continue
        endpoint = match(policy.dialects[connection.dialect], head.method, below)
        if endpoint is None and not below:
            continue  # most APIs have nothing at their connection's own address
        if endpoint is None:
            return _no_endpoint(connection, policy.dialects[connection.dialect], below)
        return connection, endpoint.name, below
    # who calls is not known yet, so the paths that are served are not named
    return Denial(Reason.NO_CONNECTION, 404, "No connection of the gateway's policy is served under this path.")


def _by_origin(policy: Policy, head: Head, origin: Origin, path: str) -> tuple[Connection, str, str] | Denial:
    """Explicit and transparent: of the connections to this upstream, exactly one must know the endpoint."""
    found: list[tuple[Connection, str, str]] = []
    candidates = policy.routes.origins[origin]
    for connection in candidates:
        below = _below(connection.upstream_path, path)
        endpoint = None if below is None else match(policy.dialects[connection.dialect], head.method, below)
        if endpoint is not None and below is not None:
            found.append((connection, endpoint.name, below))
    longest = max((len(connection.upstream_path) for connection, _, _ in found), default=0)
    found = [each for each in found if len(each[0].upstream_path) == longest]
    if len(found) == 1:
        return found[0]
    if not found:
        below = _below(candidates[0].upstream_path, path)
        return _no_endpoint(candidates[0], policy.dialects[candidates[0].dialect], below or "")
    return Denial(
        Reason.NO_CONNECTION,
        404,
        "This address belongs to several connections of the gateway's policy; use a path of one.",
    )


def _no_endpoint(connection: Connection, dialect: Dialect, below: str) -> Denial:
    """Say that the dialect does not describe this method and path, and why if it says so."""
    because = closed(dialect, below)
    if because is not None:
        return Denial(
            Reason.NO_ENDPOINT, 404, f"The connection {connection.name} does not serve this address: {because}."
        )
    return Denial(
        Reason.NO_ENDPOINT, 404, f"The connection {connection.name} has no endpoint for this method and path."
    )
