"""A door is one route with the rule that says who may go through it. There is no route without one.

Law: what no rule admits is denied. A rule that is missing or of an unknown kind cannot be built into the app, and
``admit`` denies it all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from tidegate.admin.sessions import Session
from tidegate.crossing import ANONYMOUS
from tidegate.identity import claims
from tidegate.identity.permission import roles_of
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import AdminRight, Policy

if TYPE_CHECKING:
    from tidegate.admin.services import Services


@dataclass(frozen=True, slots=True)
class Public:
    """Whoever reaches the listener. ``why`` says what makes that harmless."""

    why: str


@dataclass(frozen=True, slots=True)
class Needs:
    """A verified caller, one of whose roles has the right; ``None``: whoever it is, what he sees is his."""

    right: AdminRight | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """A person who has signed in with a browser, and one of whose roles has the right; ``None``: whoever it is."""

    right: AdminRight | None = None


Rule = Public | Needs | Signed


FIELDS = 100
"""No form of ours has ten, and no provider sends back as many."""


class TooManyFields(Exception):
    """A form or a query that is none of a page of ours, nor of a provider."""


def fields(text: str) -> dict[str, str]:
    """Read a form or a query: its fields, each with its last value. Raises ``TooManyFields``."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS))
    except ValueError:
        raise TooManyFields from None


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that was admitted. ``caller`` is ``None`` where nobody had to be known; ``body`` is read whole.

    ``session`` is there where a person has signed in.
    """

    request: Request
    services: Services
    caller: Caller | None
    body: bytes = field(repr=False)
    session: Session | None = None

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form, each with its last value. Raises ``TooManyFields``."""
        return fields(self.body.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Door:
    """One method on one path. ``body`` is the most bytes it takes; ``foreign``: other sites' pages may post to it."""

    method: str
    path: str
    rule: Rule
    serve: Callable[[Visit], Awaitable[Response]]
    body: int = 0
    foreign: bool = False


async def admit(rule: Rule, request: Request, services: Services) -> Caller | Denial | None:
    """Decide on a request: ``None`` lets anybody in, a caller is admitted by name."""
    if isinstance(rule, Public):
        return None
    if not isinstance(rule, Needs | Signed):
        return _denied()  # type: ignore[unreachable]  # law: the unknown is denied
    policy = services.policy()
    signed = isinstance(rule, Signed)
    caller = await (_person(request, services) if signed else _caller(policy, request, services))
    if isinstance(caller, Denial):
        return caller
    if rule.right is None:
        return caller
    return caller if rule.right in rights_of(policy, caller) else _denied()


def session_of(request: Request, services: Services) -> Session | None:
    """Return the session whose cookie a browser sent: one, and of the name that fits the listener's address."""
    name = cookie_of(request, cookie_name(services.policy()))
    return None if name is None else services.sessions.find(name, services.now())


def cookie_of(request: Request, name: str) -> str | None:
    """Return the value of a cookie that a browser sent under exactly this name, and once (RFC 6265 section 4.2.1).

    Starlette takes every blank that Unicode knows off a name: ``\\xa0__Host-x``, which any neighbour can set, is
    ``__Host-x`` to it. Of two with one name nobody can say whose they are.
    """
    pairs = (pair.strip(" \t").partition("=") for text in request.headers.getlist("cookie") for pair in text.split(";"))
    found = [value for key, equals, value in pairs if equals and key == name]
    return found[0] if len(found) == 1 else None


def cookie_name(policy: Policy) -> str:
    """Return the cookie's name: with https one that no neighbouring host can set (RFC 6265bis, ``__Host-``)."""
    return "__Host-tidegate" if policy.admin.url.startswith("https:") else "tidegate-admin"


async def _person(request: Request, services: Services) -> Caller | Denial:
    """Find out who signed in; the token behind it is verified anew, so what has ended it ends the session."""
    session = session_of(request, services)
    if session is None:
        return NOT_SIGNED_IN
    return await services.identify(session.token)


def rights_of(policy: Policy, caller: Caller) -> frozenset[AdminRight]:
    """Return what a caller's roles allow on the admin listener."""
    rights: Mapping[str, frozenset[AdminRight]] = policy.admin.rights
    return frozenset().union(*(rights.get(role, frozenset()) for role in roles_of(policy, caller)))


async def _caller(policy: Policy, request: Request, services: Services) -> Caller | Denial:
    """Find out who asks, by the same tokens and the same checks as on the data path."""
    if policy.identities is None:
        return ANONYMOUS
    token = claims.credentials((name.lower(), value) for name, value in request.headers.items())
    if isinstance(token, Denial):
        return token
    return claims.refused(Reason.TOKEN_PROOF) if token.dpop else await services.identify(token.text)


NOT_SIGNED_IN = Denial(Reason.CALLER_MISSING, 401, "Sign in to see this page.")


def _denied() -> Denial:
    return Denial(Reason.NOT_GRANTED, 403, "Your roles do not allow this on the admin listener.")
