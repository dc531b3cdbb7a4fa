"""The routes that sign people in by SAML 2.0, in a browser and from a terminal, and the grants that go with them.

A browser: ``/saml/login`` sends it to the provider, which has it post the answer to ``/saml/acs``; that believes the
answer and sends the browser to ``/saml/finish``, where the cookie of the first step is asked (an answer that another
browser brought on its way is nobody's here), and a button shows the token. The token is in no address, ever.

A terminal: ``/saml/device`` gives it a code and an address for its user, who signs in as above and says that the code
is that of their terminal; the terminal asks ``/token`` meanwhile (RFC 8628).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response

from tidegate.admin.answers import refused, told
from tidegate.admin.doors import Door, Public, Visit, cookie_of
from tidegate.admin.forms import oauth_error, read_form
from tidegate.admin.issuer import CannotIssue
from tidegate.admin.rendering import CONTENT_SECURITY, bare
from tidegate.admin.signing_in import new_code, typed_code
from tidegate.admin.tokens import FORM_BYTES, GRANTS, granted
from tidegate.identity import saml
from tidegate.identity.saml_document import SamlReason, SamlRefused
from tidegate.state.control import StateError
from tidegate.state.logins import INTERVAL, SECONDS, Login, Waits

BEARER = "urn:ietf:params:oauth:grant-type:saml2-bearer"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"

_BEGINS = "whoever wants to sign in is not known yet; the provider will say who it is"
_SIGNED = "the answer is believed by the provider's signature alone"
_ASKED = "the cookie of the browser that began is asked, and gives what its provider said"


def cookie(url: str) -> tuple[str, str]:
    """Return name and path of the cookie of a sign-in: with https a name that no neighbouring host can set."""
    return ("__Host-tidegate-login", "/") if url.startswith("https:") else ("tidegate_login", "/saml")


def message(status: int, title: str, text: str, links: Sequence[tuple[str, str]] = ()) -> Response:
    """Return a page with one sentence."""
    return bare("message.html", title, status=status, text=text, links=links)


async def metadata(visit: Visit) -> Response:
    """Describe this gateway to a provider."""
    signing = visit.services.signing_in
    chosen = _chosen(visit)
    if isinstance(chosen, Response):
        return chosen
    entity_id = signing.entity_id(signing.files[chosen].identity)
    return Response(saml.our_metadata(entity_id, signing.acs), media_type="application/samlmetadata+xml")


async def login(visit: Visit) -> Response:
    """Send a browser to the provider."""
    chosen = _chosen(visit)
    if isinstance(chosen, Response):
        return chosen
    code = visit.request.query_params.get("code")
    signing = visit.services.signing_in
    try:
        if code is not None:
            code = typed_code(code)
            if not await asyncio.wrap_future(signing.logins.waits(code)):
                text = "No terminal waits under this code. It may have waited for too long: let it ask again."
                return message(404, "Unknown code", text, [("Type it again", "/saml/device")])
        begun = await signing.begin(chosen, code)
    except StateError:
        return _unkept()
    if begun is None:
        return message(503, "Not possible now", "The identity provider's metadata cannot be used; tell your operator.")
    answer = RedirectResponse(begun.address, 302)
    secure = signing.url.startswith("https:")
    name, path = cookie(signing.url)
    answer.set_cookie(
        name, begun.cookie, max_age=int(2 * SECONDS), path=path, secure=secure, httponly=True, samesite="lax"
    )
    return answer


async def acs(visit: Visit) -> Response:
    """Take a provider's answer, which a browser brings (assertion consumer service)."""
    form = read_form(visit)
    try:
        if form is None or "SAMLResponse" not in form:
            raise SamlRefused(SamlReason.MALFORMED)
        await visit.services.signing_in.answered(form["SAMLResponse"], form.get("RelayState", ""))
    except SamlRefused as why:
        text = "The identity provider's answer was not accepted. Begin again; if it happens again, tell your operator."
        if why.reason is SamlReason.OVERAGE:
            text = "You are in too many groups for your identity provider to list them; tell your operator."
        return message(403, "Not signed in", text, [("Begin again", "/saml/login")])
    except StateError:
        return _unkept()
    return RedirectResponse("/saml/finish", 303)


async def finish(visit: Visit) -> Response:
    """Say who signed in, and ask what to do."""
    found = await _done(visit, take=False)
    if isinstance(found, Response):
        return found
    assert found.caller is not None
    groups = sorted(each.partition(":")[2] for each in found.caller.groups)
    who = found.caller
    return bare(
        "saml_finish.html",
        "You are signed in",
        code=found.user_code,
        identity=who.identity,
        subject=who.subject,
        groups=groups,
    )


async def finished(visit: Visit) -> Response:
    """Show the token, or let the terminal have it."""
    form = read_form(visit)
    if form is None or form.get("answer") not in ("yes", "no"):
        return message(400, "Not understood", "The form was not complete.")
    try:
        await visit.services.tokens.ready()  # before the sign-in is used up
    except CannotIssue as why:
        return _unissued(why)
    found = await _done(visit, take=True)
    if isinstance(found, Response):
        return found
    assert found.caller is not None
    signing = visit.services.signing_in
    if found.user_code is not None:
        allowed = form["answer"] == "yes"
        try:
            waited = await asyncio.wrap_future(signing.logins.give(found.user_code, found, allowed=allowed))
        except StateError:
            return _unkept()
        if not waited:
            return message(404, "Too late", "The terminal does not wait any more. Let it ask again.")
        text = "Go back to your terminal; you may close this page." if allowed else "The terminal gets nothing."
        return message(200, "Done" if allowed else "Refused", text)
    try:
        issued = await visit.services.tokens.issue(found.caller, "saml", until=found.until)
    except CannotIssue as why:
        return _unissued(why)
    who, minutes = found.caller, issued.seconds // 60
    return bare(
        "saml_token.html",
        "Your token",
        token=issued.token,
        minutes=minutes,
        identity=who.identity,
        subject=who.subject,
        url=signing.url,
    )


async def device_page(visit: Visit) -> Response:
    """Ask for the code of a terminal."""
    names = sorted(visit.services.signing_in.files)
    if not names:
        return message(404, "Not here", "The policy of this gateway has no SAML identity.")
    answer = bare("saml_device.html", "Sign a terminal in", identities=names)
    # the form leads on to a provider, which some browsers count as its action
    files = visit.services.signing_in.files.values()
    origins = {urlsplit(each.sign_in)[:2] for file in files if (each := file.provider()) is not None}
    allowed = " ".join(["'self'", *sorted(f"{scheme}://{host}" for scheme, host in origins)])
    policy = CONTENT_SECURITY.replace("form-action 'self'", f"form-action {allowed}")
    answer.headers["content-security-policy"] = policy
    return answer


async def device(visit: Visit) -> Response:
    """Give a terminal a code for itself and one for its user (RFC 8628 section 3.2)."""
    signing = visit.services.signing_in
    form = read_form(visit) if visit.body else {}
    if form is None:
        return oauth_error("invalid_request", "A form is needed, or no body.")
    name = form.get("identity")
    if not signing.files or not signing.url or (name is not None and name not in signing.files):
        known = ", ".join(sorted(signing.files)) or "none"
        return oauth_error("invalid_request", f"The policy has these SAML identities: {known}.", 404)
    secret, code = secrets.token_urlsafe(32), new_code()
    try:
        await asyncio.wrap_future(signing.logins.wait(secret, code))
    except StateError:
        return oauth_error("temporarily_unavailable", "The request could not be kept.", 503)
    query = f"code={code}" + (f"&identity={name}" if name is not None else "")
    body = {
        "device_code": secret,
        "user_code": code,
        "verification_uri": f"{signing.url}/saml/device",
        "verification_uri_complete": f"{signing.url}/saml/login?{query}",
        "expires_in": int(SECONDS),
        "interval": int(INTERVAL),
    }
    return told(body)


# ── grants ───────────────────────────────────────────────────────────────────────────────────────────────────────

_WAITING: Mapping[Waits, tuple[str, str]] = {
    Waits.PENDING: ("authorization_pending", "Nobody has signed in under the code yet."),
    Waits.SLOWER: ("slow_down", "Ask less often."),
    Waits.DENIED: ("access_denied", "Whoever signed in refused the terminal."),
    Waits.GONE: ("expired_token", "Nothing waits under this code any more."),
}


async def device_grant(visit: Visit, form: Mapping[str, str]) -> Response:
    """Give a terminal its token, once somebody has signed in for it (RFC 8628 section 3.4)."""
    if not form.get("device_code"):
        return oauth_error("invalid_request", "device_code is needed.")
    await visit.services.tokens.ready()  # before what waits under the code is used up
    try:
        found = await asyncio.wrap_future(visit.services.signing_in.logins.ask(form["device_code"]))
    except StateError:
        return oauth_error("temporarily_unavailable", "The request could not be looked up.", 503)
    if isinstance(found, Waits):
        return oauth_error(*_WAITING[found])
    assert found.caller is not None
    if found.caller.identity not in visit.services.signing_in.files:
        return oauth_error("invalid_grant", "The identity is not in the policy any more.")
    return granted(await visit.services.tokens.issue(found.caller, "device", until=found.until))


async def assertion_grant(visit: Visit, form: Mapping[str, str]) -> Response:
    """Give a token for an assertion (RFC 7522)."""
    await visit.services.tokens.ready()  # before the assertion counts as shown
    try:
        found = await visit.services.signing_in.shown(form.get("assertion", ""))
    except SamlRefused:
        return oauth_error("invalid_grant", "The assertion was not accepted.")
    except StateError:
        return oauth_error("temporarily_unavailable", "The assertion could not be looked up.", 503)
    return granted(await visit.services.tokens.issue(found.caller, "saml2-bearer", until=found.until))


GRANTS[DEVICE] = device_grant
GRANTS[BEARER] = assertion_grant


def _chosen(visit: Visit) -> str | Response:
    """Return the SAML identity that is meant."""
    names = sorted(visit.services.signing_in.files)
    asked = visit.request.query_params.get("identity")
    if asked is None and len(names) == 1:
        return names[0]
    if asked in names:
        return str(asked)
    if not names:
        return message(404, "Not here", "The policy of this gateway has no SAML identity.")
    code = visit.request.query_params.get("code")
    more = "" if code is None else f"&code={typed_code(code)}"
    links = [(f"Sign in with {each}", f"{visit.request.url.path}?identity={each}{more}") for each in names]
    return message(404 if asked else 300, "Sign in", "Choose how.", links)


async def _done(visit: Visit, *, take: bool) -> Login | Response:
    """Find the sign-in that this browser began, once it is answered."""
    logins = visit.services.signing_in.logins
    shown = cookie_of(visit.request, cookie(visit.services.signing_in.url)[0]) or ""
    try:
        found = await asyncio.wrap_future(logins.take(shown) if take else logins.done(shown))
    except StateError:
        return _unkept()
    if found is None or found.identity not in visit.services.signing_in.files:
        text = "This browser has no sign-in that waits: it was begun elsewhere, took too long, or has given its token."
        return message(403, "Not signed in", text, [("Begin again", "/saml/login")])
    return found


def _unissued(why: CannotIssue) -> Response:
    return message(503 if why.passing else 403, "No token", str(why))


def _unkept() -> Response:
    return refused(503, "state_unavailable", "The sign-in could not be kept; try again in a few seconds.")


DOORS = (
    Door("GET", "/saml/login", Public(_BEGINS), login),
    Door("POST", "/saml/acs", Public(_SIGNED), acs, body=FORM_BYTES, foreign=True),
    Door("GET", "/saml/finish", Public(_ASKED), finish),
    Door("POST", "/saml/finish", Public(_ASKED), finished, body=1024),
    Door("GET", "/saml/metadata", Public("our own name and address, for the provider to read"), metadata),
    Door("GET", "/saml/device", Public("a form that leads to signing in"), device_page),
    Door("POST", "/saml/device", Public(_BEGINS), device, body=1024),
)
