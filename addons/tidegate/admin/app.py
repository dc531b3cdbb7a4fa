"""Builds the application of the admin listener out of its doors, behind one shield.

In order, for every request: the ``Host`` must be ours (a page of another name that was made to resolve here is refused:
DNS rebinding), another site's page may not post, the door's rule admits, the body is within the door's limit. Whatever
is answered, errors too, carries the secure header fields.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.admin.answers import SECURE, TLS, refused
from tidegate.admin.doors import FIELDS, Door, Needs, Public, Signed, TooManyFields, Visit, admit, session_of
from tidegate.admin.rendering import turned_away
from tidegate.admin.services import Services
from tidegate.model import Caller, Denial
from tidegate.policy.policy import Policy

log = logging.getLogger("tidegate")

LOCAL = frozenset({"localhost"})
BODY_SECONDS = 15.0
"""For half a megabyte at most; whoever is slower holds one of the listener's connections."""


class Shield:
    """What stands before every route: the ``Host`` check, and the header fields on whatever is answered."""

    def __init__(self, app: ASGIApp, policy: Callable[[], Policy]) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything that is not HTTP is refused by not being answered."""
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        admin = self.policy().admin
        fields = {**SECURE, **(TLS if admin.url.startswith("https:") else {})}

        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in fields.items():
                    if name not in headers:
                        headers[name] = value
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        own = {urlsplit(admin.url).hostname or "localhost"} | LOCAL | admin.hosts
        if len(hosts) != 1 or not known_host(hosts[0].decode("latin-1"), own):
            answer = refused(421, "unknown_host", "This listener does not answer to that name; see admin.url.")
            await answer(scope, receive, shielded)
            return
        await self.app(scope, receive, shielded)


def known_host(host: str, own: Iterable[str]) -> bool:
    """Say whether a ``Host`` is one of ours, or an address in digits, which no other site can make resolve to here."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port
        if not name or parts.netloc != host or parts.username is not None:
            return False
        if name.lower() in own:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def build(doors: Sequence[Door], services: Services) -> ASGIApp:
    """Build the application. Raises ``TypeError`` for a door without a rule, and for two on one method and path."""
    seen: set[tuple[str, str]] = set()
    for door in doors:
        if not isinstance(door.rule, Public | Needs | Signed):
            raise TypeError(f"{door.method} {door.path} has no rule that says who may go through")
        if (door.method, door.path) in seen:
            raise TypeError(f"{door.method} {door.path} is there twice")
        seen.add((door.method, door.path))
    routes = [Route(door.path, _Endpoint(door, services).serve, methods=[door.method]) for door in doors]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    app.router.redirect_slashes = False  # an answer to a path that no door has
    return Shield(app, services.policy)


class _Endpoint:
    """One door as Starlette calls it."""

    def __init__(self, door: Door, services: Services) -> None:
        self.door = door
        self.services = services

    async def serve(self, request: Request) -> Response:
        """Admit a request or not, serve it, count it, and write down what changed something."""
        caller: Caller | Denial | None = None
        try:
            caller = await self._admitted(request)
            answer = await self._answer(request, caller)
        except (HTTPException, ClientDisconnect):
            raise
        except TooManyFields:
            answer = refused(400, "too_many_fields", f"A form or a query may have {FIELDS} fields.")
        except Exception as bug:  # noqa: BLE001 - a bug is an answer without its text, and nothing is let through
            log.error("the admin listener failed in %s: %s", self.door.path, type(bug).__name__)
            answer = refused(500, "bug", "The admin listener failed; its log names the kind of failure.")
        self.services.metrics.requests.labels(self.door.path, str(answer.status_code)).inc()
        if self.door.method != "GET":
            self._say(caller, answer.status_code)
        return answer

    async def _admitted(self, request: Request) -> Caller | Denial | None:
        return await admit(self.door.rule, request, self.services)

    async def _answer(self, request: Request, caller: Caller | Denial | None) -> Response:
        if self.door.method != "GET" and not self.door.foreign and not _same_site(request):
            return refused(403, "foreign_page", "A page of another site may not post here.")
        person = isinstance(self.door.rule, Signed)
        if isinstance(caller, Denial):
            if person:
                return turned_away(request, self.services, caller)
            return refused(caller.status, caller.reason, caller.message)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request, self.door.body)
        except TimeoutError:
            return refused(408, "body_too_slow", f"The body has to be here within {BODY_SECONDS:g} seconds.")
        if body is None:
            return refused(413, "body_too_large", f"The body may have {self.door.body} bytes here.")
        session = session_of(request, self.services) if person else None
        visit = Visit(request, self.services, caller, body, session)
        if person and self.door.method != "GET" and not (session and session.owns(visit.form.get("csrf", ""))):
            return refused(403, "foreign_page", "This form is not of a page of yours; load the page again.")
        return await self.door.serve(visit)

    def _say(self, caller: Caller | Denial | None, status: int) -> None:
        """Write the log line of a call that may have changed something; a token or a body is never in it."""
        who = f"{caller.identity}:{caller.subject}" if isinstance(caller, Caller) else None
        reason = caller.reason if isinstance(caller, Denial) else None
        line = {"event": "admin", "route": self.door.path, "caller": who, "status": status, "reason": reason}
        log.info(json.dumps(line))


def _same_site(request: Request) -> bool:
    """Say whether a request comes from a page of ours, or from no page: browsers say so in ``Origin``."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers["host"].lower()


async def _body(request: Request, most: int) -> bytes | None:
    """Read a body; ``None`` if it is larger than it may be."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            return None
    return bytes(data)


async def _http_error(_: Request, error: Exception) -> Response:
    """Answer what Starlette itself refuses: a path or a method that no door has."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code, message = {
        404: ("no_route", "There is nothing at this path."),
        405: ("no_method", "This path has other methods."),
    }.get(status, ("refused", "The request was refused."))
    return refused(status, code, message)


_HANDLERS = {HTTPException: _http_error}
