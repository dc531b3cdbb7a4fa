"""From the token a client shows to a ``Caller``: pure. The clock and the keys are arguments.

Law: nothing a token says counts before its signature is checked, except to choose *which* configured issuer checks it.
joserfc checks the signature; it also lets through repeated JSON keys, foreign token types and header fields that name a
key, so all of those are checked here. The order of the checks is the order of the reasons in docs/identity.md.

Every fault of a token has one public sentence, so that a client cannot probe; the reason goes into the evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from joserfc import jws
from joserfc.errors import JoseError

from tidegate.identity.groups import Unread, is_name, qualified, read_groups, select, texts
from tidegate.identity.jwks import ALGORITHMS, REGISTRY, KeySet
from tidegate.identity.proof import Binding, binding
from tidegate.identity.segments import SHAPE, json_object, json_segment, number
from tidegate.model import Caller, Denial, Reason, Standing
from tidegate.policy.policy import Bound, OidcIdentity, OnOverage

TOKEN_BYTES = 16 * 1024  # an RS256 token with 200 Entra group ids is 11.2 KB
VALUE_CHARACTERS = 512  # of a claim that is carried along
VALUES = 200  # of all of them
REFUSED_TYPES = frozenset({"logout+jwt", "secevent+jwt", "dpop+jwt"})  # RFC 8725 section 3.11: other purposes
REFUSED_HEADERS = frozenset({"crit", "b64", "jku", "x5u", "jwk"})  # a token brings no rules and no key of its own

PLACEHOLDER = "tidegate"
"""What to give an SDK that demands an API key where the connection says who calls: it stands for no token at all."""

_PLACES = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_MISSING = "Give an access token as the API key (Authorization: Bearer, x-api-key, api-key or x-goog-api-key)."
_REFUSED = "The access token was not accepted; get a new one and try again."

TWO_CALLERS = Denial(
    Reason.CALLER_AMBIGUOUS,
    401,
    f"The request and its proxy connection show tokens of different callers; use one, or the API key {PLACEHOLDER}.",
)

Claims = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Verified:
    """Who holds a token, and what is asked again each time it is shown: is it revoked, is it shown by its holder?

    ``issued`` is ``iat``. ``until`` is when it ends, leeway included. ``bound`` is what its holder has to show with it.

    ``named`` is the token's ``sub`` where that is not the caller's subject. ``also`` are issuer, ``jti`` and subject of
    the token that this one was given for (``issuing``).
    """

    caller: Caller
    issuer: str
    jti: str | None
    issued: float | None
    until: float
    bound: Binding | None
    named: str | None = None
    also: tuple[str, str | None, str] | None = None


@dataclass(frozen=True, slots=True)
class Overage:
    """A good token whose groups have to be asked for elsewhere: the caller in it has none yet."""

    verified: Verified


@dataclass(frozen=True, slots=True)
class Peeked:
    """A token taken apart but not believed. ``issuer`` chooses who checks it, and nothing else."""

    token: str = field(repr=False)
    header: Claims = field(repr=False)
    issuer: str


@dataclass(frozen=True, slots=True)
class Token:
    """The token of a request; ``dpop`` where the client says that a proof comes with it (RFC 9449, 7.1)."""

    text: str = field(repr=False)
    dpop: bool = False


def credentials(headers: Iterable[tuple[str, str]]) -> Token | Denial:
    """Find the one token among the header fields (lower-case names) in which SDKs send their API key.

    The same field twice, or two fields that differ, are ambiguous; the query and Basic credentials are never looked at.
    """
    found: dict[str, str] = {}
    dpop = False
    for name, field_value in headers:
        if name not in _PLACES:
            continue
        if name in found:
            return Denial(Reason.CALLER_AMBIGUOUS, 401, f"The header {name} was sent twice; send one access token.")
        if name == "authorization":
            scheme, _, rest = field_value.strip().partition(" ")
            dpop = scheme.lower() == "dpop"
            found[name] = rest.strip() if dpop or scheme.lower() == "bearer" else ""
        else:
            found[name] = field_value.strip()
    tokens = set(found.values())
    if len(tokens) > 1:
        names = ", ".join(sorted(found))
        return Denial(
            Reason.CALLER_AMBIGUOUS, 401, f"The headers {names} carry different values; send one access token."
        )
    token = next(iter(tokens), "")
    return Token(token, dpop) if token else Denial(Reason.CALLER_MISSING, 401, _MISSING)


def is_absent(found: Token | Denial) -> bool:
    """Say whether a request has no token of its own, so that its connection may speak for it."""
    return found.reason is Reason.CALLER_MISSING if isinstance(found, Denial) else found.text == PLACEHOLDER


def contradicts(caller: Caller, standing: Standing) -> bool:
    """Say whether a request's own token is another caller's than the one its tunnel was opened with."""
    tunnel = standing.caller
    return standing.by_token and (caller.identity, caller.subject) != (tunnel.identity, tunnel.subject)


def refused(reason: Reason) -> Denial:
    """Return the denial of a token: one sentence for every reason."""
    return Denial(reason, 401, _REFUSED)


def overage() -> Denial:
    """Return the denial of a caller whose groups nobody lists."""
    message = "Your access token has too many groups to list them; ask for one with fewer groups."
    return Denial(Reason.GROUPS_OVERAGE, 403, message)


def peek(token: str) -> Peeked | Denial:
    """Take a token apart: size, shape, strict JSON in header and payload, and the issuer it claims."""
    if len(token) > TOKEN_BYTES:
        return refused(Reason.TOKEN_TOO_LARGE)
    if not SHAPE.fullmatch(token):
        return refused(Reason.TOKEN_MALFORMED)
    header_part, payload_part, _ = token.split(".")
    header, payload = json_segment(header_part), json_segment(payload_part)
    if header is None or payload is None:
        return refused(Reason.TOKEN_MALFORMED)
    issuer = payload.get("iss")
    return Peeked(token, header, issuer) if isinstance(issuer, str) else refused(Reason.TOKEN_ISSUER)


def verify(peeked: Peeked, identity: OidcIdentity, keys: KeySet, now: float) -> Verified | Overage | Denial:
    """Check a token against the issuer it claims; ``now`` is Unix time in seconds.

    Denies with the first reason that applies, in the order of docs/identity.md. ``KEY_UNKNOWN`` may be worth a look at
    the provider's current keys, and one more try.
    """
    header = peeked.header
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in identity.algorithms or algorithm not in ALGORITHMS:
        return refused(Reason.TOKEN_ALG)
    kid = header.get("kid")
    if REFUSED_HEADERS & set(header) or not isinstance(kid, str | None):
        return refused(Reason.TOKEN_HEADER)
    kind = header.get("typ", "")
    if not isinstance(kind, str) or kind.lower() in REFUSED_TYPES or kind.lower() not in identity.types:
        return refused(Reason.TOKEN_TYPE)
    key = keys.key(kid)
    if key is None:
        return refused(Reason.KEY_UNKNOWN)
    if not key.serves(algorithm):
        return refused(Reason.TOKEN_ALG)
    try:
        signed = jws.deserialize_compact(peeked.token.encode(), key.jose, registry=REGISTRY)
    except (JoseError, ValueError, TypeError):
        return refused(Reason.TOKEN_SIGNATURE)
    claims = json_object(signed.payload)
    if claims is None:
        return refused(Reason.TOKEN_MALFORMED)
    return check_claims(claims, identity, now)


def introspected(data: bytes, identity: OidcIdentity, now: float) -> Verified | Overage | Denial:
    """Check what a provider answered about an opaque token (RFC 7662, 2.2), as if a token said it.

    ``iss`` may be absent: the provider that was asked is the issuer. So may ``sub`` where a client got the token for
    itself: it is then the subject, as in RFC 9068, 2.2. Audience and end are asked for all the same.
    """
    claims = json_object(data)
    if claims is None or claims.get("active") is not True:
        return refused(Reason.TOKEN_INACTIVE)
    kind = claims.get("token_type", "bearer")
    if not isinstance(kind, str) or kind.lower() not in ("bearer", "dpop"):
        return refused(Reason.TOKEN_TYPE)
    itself = {"sub": claims["client_id"]} if "client_id" in claims else {}
    return check_claims({"iss": identity.issuer, **itself, **claims}, identity, now)


def check_claims(claims: Claims, identity: OidcIdentity, now: float) -> Verified | Overage | Denial:
    """Check what a provider says of a token, and name its caller."""
    if claims.get("iss") != identity.issuer:
        return refused(Reason.TOKEN_ISSUER)
    if claims.get("token_use", "access") != "access" or claims.get("typ", "Bearer") != "Bearer" or "at_hash" in claims:
        return refused(Reason.TOKEN_TYPE)  # an ID or refresh token: Cognito and nanoidp, Keycloak, OpenID Connect Core
    audiences = texts(claims.get("aud"))
    if audiences is None or not audiences & identity.audiences:
        return refused(Reason.TOKEN_AUDIENCE)
    reason = _client(claims, identity, len(audiences)) or _times(claims, identity, now)
    if reason is not None:
        return refused(reason)
    subject, jti = claims.get("sub"), claims.get("jti")
    if not isinstance(subject, str) or not is_name(subject) or not isinstance(jti, str | None):
        return refused(Reason.TOKEN_CLAIM)  # a jti that is no text could never be revoked
    reason = _tenant(claims, identity) or _age(claims, identity, now)
    if reason is not None:
        return refused(reason)
    bound = binding(claims["cnf"]) if "cnf" in claims else None
    if bound is None and ("cnf" in claims or identity.bound is Bound.REQUIRED):
        return refused(Reason.TOKEN_BOUND)  # bound to something unknown, or not bound where it must be
    ends, at = number(claims.get("exp")) or 0.0, _authenticated(claims)
    until = ends if identity.max_age is None or at is None else min(ends, at + identity.max_age)
    caller = Caller(
        identity.name, subject, expires=until, strength=_strength(claims), authenticated=at,
        claims=_carried(claims, identity),
    )  # fmt: skip
    issued = number(claims.get("iat"))
    found = Verified(caller, identity.issuer, jti, issued, until + identity.leeway, bound)
    return _grouped(found, read_groups(claims, identity), identity)


def from_userinfo(data: bytes, found: Overage, identity: OidcIdentity) -> Verified | Denial:
    """Take the groups that a token left out from the provider's userinfo (OpenID Connect Core, 5.3.2)."""
    claims = json_object(data)
    if claims is None or claims.get("sub") != found.verified.caller.subject:
        return overage()
    groups = read_groups(claims, identity)
    if isinstance(groups, Unread) or not groups:
        return overage()  # none of them is not what "too many" means
    return replace(found.verified, caller=replace(found.verified.caller, groups=groups))


def _grouped(found: Verified, groups: frozenset[str] | Unread, identity: OidcIdentity) -> Verified | Overage | Denial:
    """Give the caller the groups; a provider that left them out is not "no groups"."""
    if groups is Unread.TOO_MANY:
        if identity.on_overage is OnOverage.USERINFO:
            return Overage(found)
        listed = identity.overage_groups.get(found.caller.subject)
        if identity.on_overage is OnOverage.DENY or listed is None:
            return overage()
        groups = qualified(listed, replace(identity, strip="", group_map=None))
    if isinstance(groups, Unread):
        return refused(Reason.TOKEN_CLAIM)
    return replace(found, caller=replace(found.caller, groups=groups))


def _client(claims: Claims, identity: OidcIdentity, audiences: int) -> Reason | None:
    """Check which client got the token: ``azp`` (OpenID Connect) or ``client_id`` (RFC 9068)."""
    party = claims.get("azp", claims.get("client_id"))
    if (audiences > 1 and not isinstance(claims.get("azp"), str)) or not isinstance(party, str | None):
        return Reason.TOKEN_CLIENT
    if identity.allowed_clients is not None and party not in identity.allowed_clients:
        return Reason.TOKEN_CLIENT
    return None


def _times(claims: Claims, identity: OidcIdentity, now: float) -> Reason | None:
    """Check ``exp`` (required), ``nbf``, ``iat``, ``auth_time`` and the lifetime that is left."""
    expires = number(claims.get("exp"))
    if expires is None or expires + identity.leeway <= now:
        return Reason.TOKEN_EXPIRED
    for name in ("nbf", "iat", "auth_time"):
        if name in claims:
            start = number(claims[name])
            if start is None or start > now + identity.leeway:
                return Reason.TOKEN_NOT_YET
    return Reason.TOKEN_LIFETIME if expires - now > identity.max_lifetime else None


def _tenant(claims: Claims, identity: OidcIdentity) -> Reason | None:
    """Check the claims that the policy lists values for: tenant, domain, organisation, repository."""
    for where, accepted in identity.claims:
        said: set[str] = set()
        for value in select(claims, where):
            said |= _values(value)
        if not said & accepted:
            return Reason.TOKEN_TENANT
    return None


def _age(claims: Claims, identity: OidcIdentity, now: float) -> Reason | None:
    """Check how long ago the caller proved who he is."""
    if identity.max_age is None:
        return None
    at = _authenticated(claims)
    return Reason.TOKEN_AGE if at is None or at + identity.max_age + identity.leeway <= now else None


def _authenticated(claims: Claims) -> float | None:
    return number(claims.get("auth_time", claims.get("iat")))


def _strength(claims: Claims) -> frozenset[str]:
    """Read how the caller proved who he is: ``acr`` and ``amr`` (RFC 8176)."""
    said = (texts(claims.get("acr")) or frozenset()) | (texts(claims.get("amr")) or frozenset())
    return frozenset(each for each in said if 0 < len(each) <= VALUE_CHARACTERS and each.isprintable())


def _carried(claims: Claims, identity: OidcIdentity) -> frozenset[tuple[str, str]]:
    """Read the claims that the policy wants to decide by. An e-mail address counts only where it was verified."""
    if not identity.carry:
        return frozenset()
    doubtful = _values(claims.get("email")) if claims.get("email_verified") is not True else set()
    found: list[tuple[str, str]] = []
    for where in identity.carry:
        left_out = doubtful if where == "email" or where.startswith("$") else set()
        for value in select(claims, where):
            found += [(where, each) for each in sorted(_values(value) - left_out)]
    fit = [pair for pair in found if 0 < len(pair[1]) <= VALUE_CHARACTERS and pair[1].isprintable()]
    return frozenset(fit[:VALUES])


def _values(value: object) -> set[str]:
    """Read a claim as texts: a text, a whole number, true or false, or a list of those; nothing else says anything."""
    found: set[str] = set()
    for each in value if isinstance(value, list) else (value,):
        if isinstance(each, bool):
            found.add(str(each).lower())
        elif isinstance(each, str | int):
            found.add(str(each))
    return found
