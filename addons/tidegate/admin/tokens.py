"""The routes of the token service: tokens for what another identity vouches for, our keys, and taking tokens back.

There are no client secrets: what is shown in the body is the credential, and whoever shows it gets a token for the very
caller it stands for, which lives no longer than it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response

from tidegate.admin.answers import refused, told
from tidegate.admin.doors import Door, Needs, Public, Visit
from tidegate.admin.forms import oauth_error, read_form
from tidegate.admin.issuer import CannotIssue, Issued
from tidegate.admin.services import Services
from tidegate.dialects.body import strict_json
from tidegate.identity.claims import TOKEN_BYTES
from tidegate.identity.issuing import Source, payload
from tidegate.identity.static import PREFIX
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import (
    AdminRight,
    CertificateIdentity,
    Identity,
    OidcIdentity,
    SamlIdentity,
    SourceIdentity,
    StaticIdentity,
)

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"

FORM_BYTES = 512 * 1024
"""An assertion may have 256 KiB, and base64url makes a third more of it."""

_SHOWN = "what is shown in the body is the credential: a provider's token, an assertion, a device code"
_KEYS = "public keys and addresses, which is what they are there for"

Grant = Callable[[Visit, Mapping[str, str]], Awaitable[Response]]
GRANTS: dict[str, Grant] = {}
"""By ``grant_type``; other modules of this package add theirs."""


async def token(visit: Visit) -> Response:
    """Give out a token (RFC 6749 section 3.2)."""
    form = read_form(visit)
    if form is None:
        return oauth_error("invalid_request", "A form is needed (application/x-www-form-urlencoded), each field once.")
    if not visit.services.tokens.url:
        return oauth_error("invalid_request", "This gateway gives out no tokens: its policy has no admin.url.", 404)
    grant = GRANTS.get(form.get("grant_type", ""))
    if grant is None:
        return oauth_error("unsupported_grant_type", f"Accepted grant types: {', '.join(sorted(GRANTS))}.")
    try:
        return await grant(visit, form)
    except CannotIssue as why:
        if why.passing:
            return oauth_error("temporarily_unavailable", str(why), 503)
        return oauth_error("invalid_grant", str(why))


def granted(issued: Issued, **more: str) -> Response:
    """Return a token (RFC 6749 section 5.1)."""
    body = {"access_token": issued.token, "token_type": "Bearer", "expires_in": issued.seconds, **more}
    answer = told(body)
    answer.headers["pragma"] = "no-cache"
    return answer


async def exchange(visit: Visit, form: Mapping[str, str]) -> Response:
    """Exchange the token of an OpenID Connect identity for one of ours (RFC 8693): CI jobs, service accounts."""
    services = visit.services
    subject_token = form.get("subject_token", "")
    if form.get("subject_token_type") not in (ACCESS_TOKEN, JWT) or not subject_token:
        return oauth_error(
            "invalid_request", f"subject_token is needed, and subject_token_type {JWT} or {ACCESS_TOKEN}."
        )
    if form.get("requested_token_type", ACCESS_TOKEN) not in (ACCESS_TOKEN, JWT):
        return oauth_error("invalid_request", f"requested_token_type may be {ACCESS_TOKEN} or {JWT}.")
    if "actor_token" in form or "actor_token_type" in form:
        return oauth_error("invalid_request", "Nobody may act for somebody else here.")
    if any(form.get(name, services.tokens.url).rstrip("/") != services.tokens.url for name in ("audience", "resource")):
        return oauth_error("invalid_target", "Tokens of this gateway are for this gateway alone.")
    if len(subject_token) > TOKEN_BYTES:
        return oauth_error("invalid_request", "The subject token was not accepted.")
    claims = payload(subject_token)
    if "cnf" in claims:  # ours are bearer tokens: it would be worth more than what it was given for
        return oauth_error("invalid_request", "A token that is bound to its sender's key cannot be exchanged.")
    caller = await services.identify(subject_token)
    if isinstance(caller, Denial):
        if caller.status == 503:
            return oauth_error("temporarily_unavailable", caller.message, 503)
        return oauth_error("invalid_request", "The subject token was not accepted.")
    identity = next((each for each in services.policy().identities or () if each.name == caller.identity), None)
    if not isinstance(identity, OidcIdentity) or claims.get("iss") != identity.issuer:
        return oauth_error("invalid_request", "Only the token of an OpenID Connect identity can be exchanged.")
    jti = claims.get("jti")
    source = Source(identity.issuer, jti if isinstance(jti, str) else None)
    issued = await services.tokens.issue(caller, "token-exchange", until=caller.expires, source=source)
    return granted(issued, issued_token_type=ACCESS_TOKEN)


GRANTS[EXCHANGE] = exchange


async def jwks(visit: Visit) -> Response:
    """Publish our keys (RFC 7517)."""
    try:
        return Response(await visit.services.tokens.published(), media_type="application/jwk-set+json")
    except CannotIssue as why:
        return refused(503 if why.passing else 404, "no_keys", str(why))


async def metadata(visit: Visit) -> Response:
    """Describe the token service (RFC 8414; OpenID Connect Discovery reads the same document)."""
    url = visit.services.tokens.url
    if not url:
        return refused(404, "no_keys", "This gateway gives out no tokens: its policy has no admin.url.")
    device = {"device_authorization_endpoint": f"{url}/saml/device"} if visit.services.signing_in.files else {}
    return told(
        {
            "issuer": url,
            **device,
            "token_endpoint": f"{url}/token",
            "jwks_uri": f"{url}/jwks",
            "revocation_endpoint": f"{url}/revoke",
            "grant_types_supported": sorted(GRANTS),
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "id_token_signing_alg_values_supported": ["EdDSA"],
            "subject_types_supported": ["public"],
        }
    )


async def revoke(visit: Visit) -> Response:
    """Take back the token that is shown (RFC 7009): whoever holds it may end it. An unknown one is no fault.

    No proof is asked of a bound one: whoever finds such a token can end it, which is all that it is good for alone.
    """
    form = read_form(visit)
    shown = form.get("token") if form is not None else None
    if not shown:
        return oauth_error("invalid_request", "A form with the field token is needed.")
    if shown.startswith(PREFIX):
        return oauth_error("unsupported_token_type", "A static token ends when its entry is deleted.")
    tokens = visit.services.tokens
    found = await tokens.verified(shown)
    if isinstance(found, Denial):
        if found.status == 503:
            return oauth_error("temporarily_unavailable", found.message, 503)
        return told({})
    if found.jti is None:
        return oauth_error("unsupported_token_type", "This token has no jti, so it cannot be taken back by itself.")
    caller = found.caller
    by = f"{caller.identity}:{caller.subject}"
    kept = await tokens.revoke_token(found.issuer, found.jti, by=by, why="by its holder", expires=caller.expires)
    return told({}) if kept else oauth_error("temporarily_unavailable", "The revocation could not be kept.", 503)


async def revoke_others(visit: Visit) -> Response:
    """Take back a token by its ``jti``, or every token of a subject; whose it is says ``issuer`` or ``identity``."""
    asked = strict_json(visit.body)
    values = asked if isinstance(asked, dict) and all(isinstance(each, str) for each in asked.values()) else {}
    whose = sorted(set(values) & {"issuer", "identity"})
    what = sorted(set(values) & {"jti", "subject"})
    if len(whose) != 1 or len(what) != 1 or set(values) - {"issuer", "identity", "jti", "subject", "reason"}:
        message = "A JSON object of texts is needed: issuer or identity, jti or subject, and perhaps reason."
        return refused(400, Reason.BODY_MALFORMED, message)
    services, (name,), (kind,) = visit.services, whose, what
    meant = _by_identity(services, values[name]) if name == "identity" else _by_issuer(services, values[name])
    if isinstance(meant, Response):
        return meant
    issuer, text = meant[0], meant[1] + values[kind] if kind == "subject" else values[kind]
    assert isinstance(visit.caller, Caller)
    by, why = f"{visit.caller.identity}:{visit.caller.subject}", values.get("reason", "")
    if kind == "jti":
        kept = await services.tokens.revoke_token(issuer, text, by=by, why=why)
    else:
        kept = await services.tokens.revoke_subject(issuer, text, by=by, why=why)
    if not kept:
        return refused(503, Reason.STATE_UNAVAILABLE, "The revocation could not be kept; try again.")
    return told({"revoked": {"issuer": issuer, kind: text}})


_UNREVOKED: Mapping[type[Identity], str] = {
    StaticIdentity: "A static token ends when its entry is deleted from the identity's file.",
    SourceIdentity: "Callers of this identity show no token: take their networks out of the policy.",
    CertificateIdentity: "Callers of this identity show no token: have the certificate end, or take its authority out.",
}
"""What to do about identities whose callers show nothing that an entry could be found for."""


def _by_identity(services: Services, name: str) -> tuple[str, str] | Response:
    """Return who issues the tokens of an identity's callers, and what stands before the subject in them."""
    known = {each.name: each for each in services.policy().identities or ()}
    found = known.get(name)
    if found is None:
        return refused(404, "no_identity", f"The policy has no such identity; it has: {', '.join(sorted(known))}.")
    if isinstance(found, OidcIdentity):
        return found.issuer, ""
    if isinstance(found, SamlIdentity):  # its callers show our tokens
        return services.tokens.url, f"{found.name}:"
    return refused(400, "not_revocable", _UNREVOKED[type(found)])


def _by_issuer(services: Services, given: str) -> tuple[str, str] | Response:
    """Return the issuer that is meant; an address need not be in the policy, since it may have been."""
    known = {each.name: each.issuer for each in services.policy().identities or () if isinstance(each, OidcIdentity)}
    if given not in known and "://" not in given:
        names = ", ".join(sorted(known)) or "none"
        message = f"issuer is an issuer's address, or an identity of the policy with one: {names}."
        return refused(400, Reason.BODY_MALFORMED, message)
    return known.get(given, given), ""


DOORS = (
    Door("POST", "/token", Public(_SHOWN), token, body=FORM_BYTES),
    Door(
        "POST", "/revoke", Public("whoever holds a token may end it, and nothing else"), revoke, body=TOKEN_BYTES + 1024
    ),
    Door("POST", "/v1/tokens/revoke", Needs(AdminRight.REVOKE), revoke_others, body=8192),
    Door("GET", "/jwks", Public(_KEYS), jwks),
    Door("GET", "/.well-known/openid-configuration", Public(_KEYS), metadata),
    Door("GET", "/.well-known/oauth-authorization-server", Public(_KEYS), metadata),
)
