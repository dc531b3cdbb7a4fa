"""People sign in to the pages: at an OpenID Connect provider (code with PKCE), or with an access token they hold.

Either way it is an access token that says who they are, checked as on the data path, and the pages know one kind of
caller. The token stays here; the browser gets a name for it in a cookie.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tidegate.admin.doors import Door, Public, Signed, Visit, cookie_name, cookie_of, fields, rights_of
from tidegate.admin.rendering import back_to, bare, page
from tidegate.admin.sessions import LIFETIME, UNDER_WAY_SECONDS
from tidegate.identity.credential import CredentialError, resolve
from tidegate.identity.fetching import FetchError, discover, fetch
from tidegate.identity.segments import json_object
from tidegate.model import Denial
from tidegate.policy.policy import OidcIdentity, Policy, SamlIdentity, SignInClient

CALLBACK = "/sign-in/callback"
FORM_BYTES = 20 * 1024
"""An access token may have 16 KiB (``claims.TOKEN_BYTES``)."""
_OPEN = "it shows how to sign in, and asks a provider or the verifier who somebody is"


async def choose(visit: Visit) -> Response:
    """Show the ways to sign in."""
    return _choices(visit, back_to(visit.request.query_params.get("back", "/")))


async def with_token(visit: Visit) -> Response:
    """Sign in somebody who shows an access token."""
    form = visit.form
    return await _sign_in(visit, form.get("token", "").strip(), back_to(form.get("back", "/")))


async def at_provider(visit: Visit) -> Response:
    """Send somebody to a provider, and remember that they left.

    A link and no form: a page may not post to another host, not even where an answer leads there.
    """
    services, policy, asked_for = visit.services, visit.services.policy(), visit.request.query_params
    back = back_to(asked_for.get("back", "/"))
    client = policy.admin.sign_in.get(asked_for.get("identity", ""))
    identity = _identity(policy, client)
    if client is None or identity is None:
        return _choices(visit, back, "There is no such way to sign in.", 400)
    try:
        address = (await asyncio.to_thread(discover, identity)).get("authorization_endpoint")
    except FetchError as why:
        return _choices(visit, back, f"The provider of {identity.name} cannot be asked: {why}.", 503)
    if not isinstance(address, str) or "#" in address or not address.startswith(("https://", "http://")):
        return _choices(visit, back, f"The provider of {identity.name} names no place to sign in.", 503)
    state, begun = services.sessions.leave(identity.name, back, services.now())
    asked = {
        **client.parameters,
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": _own(visit.request, policy) + CALLBACK,
        "scope": " ".join(client.scopes),
        "state": state,
        "code_challenge": challenge(begun.verifier),
        "code_challenge_method": "S256",
    }
    answer = RedirectResponse(f"{address}{'&' if '?' in address else '?'}{urlencode(asked)}", 303)
    _set(answer, policy, f"{cookie_name(policy)}-left", begun.browser, int(UNDER_WAY_SECONDS))
    return answer


async def come_back(visit: Visit) -> Response:
    """Take somebody back from a provider, with the code that is worth a token."""
    services, policy = visit.services, visit.services.policy()
    said = fields(visit.request.url.query)
    browser = cookie_of(visit.request, f"{cookie_name(policy)}-left") or ""
    begun = services.sessions.come_back(said.get("state", ""), browser, services.now())
    if begun is None:
        return _choices(visit, "/", "This sign-in was not begun here, or is too old; begin again.", 400)
    client = policy.admin.sign_in.get(begun.identity)
    identity = _identity(policy, client)
    if client is None or identity is None or said.get("iss", identity.issuer) != identity.issuer:
        return _choices(visit, begun.back, "The answer is of another provider; begin again.", 400)
    if not said.get("code"):
        return _choices(visit, begun.back, "The provider did not sign you in.", 403)
    redirect = _own(visit.request, policy) + CALLBACK
    try:
        token = await asyncio.to_thread(_redeem, identity, client, said["code"], begun.verifier, redirect)
    except (FetchError, CredentialError) as why:
        return _choices(visit, begun.back, f"The provider of {identity.name} gave no token: {why}.", 502)
    return await _sign_in(visit, token, begun.back)


async def sign_out(visit: Visit) -> Response:
    """End the session."""
    policy = visit.services.policy()
    name = cookie_name(policy)
    visit.services.sessions.close(cookie_of(visit.request, name) or "")
    answer = RedirectResponse("/sign-in", 303)
    _set(answer, policy, name, "", 0)
    return answer


def challenge(verifier: str) -> str:
    """Return what a provider is told of a verifier (RFC 7636, S256)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


async def _sign_in(visit: Visit, token: str, back: str) -> Response:
    services, policy = visit.services, visit.services.policy()
    if policy.identities is None:
        return _choices(visit, back, "This policy names no identity, so nobody can sign in.", 403)
    caller = await services.identify(token) if token else None
    if caller is None or isinstance(caller, Denial):
        return _choices(visit, back, "That token was not accepted." if caller is None else caller.message, 401)
    name, _ = services.sessions.open(token, services.now())
    target = back
    if back == "/" and not rights_of(policy, caller):
        target = "/welcome"
    answer = RedirectResponse(target, 303)
    _set(answer, policy, cookie_name(policy), name, int(LIFETIME))
    _set(answer, policy, f"{cookie_name(policy)}-left", "", 0)
    return answer


async def welcome(visit: Visit) -> Response:
    """Tell somebody who has signed in and has no right on these pages what is missing."""
    return page(visit, "welcome.html", "Signed in")


def _redeem(identity: OidcIdentity, client: SignInClient, code: str, verifier: str, redirect: str) -> str:
    """Trade a code for an access token. Blocks. Raises ``FetchError`` and ``CredentialError``."""
    address = discover(identity).get("token_endpoint")
    if not isinstance(address, str):
        raise FetchError("its discovery document names no token_endpoint")
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect,
        "client_id": client.client_id,
        "code_verifier": verifier,
    }
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if client.client_secret is not None:
        secret = resolve(client.client_secret, f"sign_in of {identity.name}").reveal()
        pair = f"{urlencode({'': client.client_id})[1:]}:{urlencode({'': secret})[1:]}"  # RFC 6749, 2.3.1
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    answer = json_object(fetch(identity, address, urlencode(form).encode(), headers))
    token = None if answer is None else answer.get("access_token")
    if not isinstance(token, str):
        raise FetchError("its answer holds no access token")
    return token


def _identity(policy: Policy, client: SignInClient | None) -> OidcIdentity | None:
    if client is None:
        return None
    found = (each for each in policy.identities or () if isinstance(each, OidcIdentity))
    return next((each for each in found if hmac.compare_digest(each.name, client.identity)), None)


def _own(request: Request, policy: Policy) -> str:
    """Return the address of this listener: the policy's, or else the one that was asked, which was checked."""
    return policy.admin.url or f"http://{request.headers['host']}"


def _choices(visit: Visit, back: str, problem: str = "", status: int = 200) -> Response:
    policy = visit.services.policy()
    return bare(
        "sign_in.html",
        "Sign in",
        status=status,
        back=back,
        problem=problem,
        providers=list(policy.admin.sign_in),
        saml=[each.name for each in policy.identities or () if isinstance(each, SamlIdentity)],
        open=policy.identities is not None,
    )


def _set(answer: Response, policy: Policy, name: str, value: str, seconds: int) -> None:
    secure = policy.admin.url.startswith("https:")
    answer.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")


DOORS = (
    Door("GET", "/sign-in", Public(_OPEN), choose),
    Door("POST", "/sign-in", Public(_OPEN), with_token, body=FORM_BYTES),
    Door("GET", "/sign-in/provider", Public(_OPEN), at_provider),
    Door("GET", CALLBACK, Public(_OPEN), come_back),
    Door("GET", "/welcome", Signed(), welcome),
    Door("POST", "/sign-out", Signed(), sign_out, body=FORM_BYTES),
)
