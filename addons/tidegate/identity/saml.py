"""From a signed SAML 2.0 assertion to a ``Caller``; metadata of a provider, ours, and requests to sign in. Pure.

Times are Unix seconds and arguments. Profiles section 4.1.4 (browser sign-in) and RFC 7522 (exchange) name the checks.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from lxml import etree

from tidegate.identity.groups import GROUPS, NAME_CHARACTERS, RESERVED
from tidegate.identity.saml_document import (
    ASSERTION,
    ASSERTIONS,
    BYTES,
    PROTOCOL,
    RESPONSE,
    XMLDSIG,
    SamlReason,
    SamlRefused,
    parse,
    signed_assertion,
)
from tidegate.model import Caller
from tidegate.policy.policy import SamlIdentity

METADATA = "urn:oasis:names:tc:SAML:2.0:metadata"
REDIRECT = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect"
POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
SUCCESS = "urn:oasis:names:tc:SAML:2.0:status:Success"
TRANSIENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"
OVERAGE = "http://schemas.microsoft.com/claims/groups.link"

_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z")  # SAML core section 1.3.3: in UTC
_SA = f"{{{ASSERTIONS}}}"
_MD = f"{{{METADATA}}}"
_HARMLESS = {f"{_SA}AudienceRestriction", f"{_SA}OneTimeUse", f"{_SA}ProxyRestriction"}
"""Conditions whose meaning is kept here: every assertion is used once."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What a provider's metadata says: its name, where a browser signs in, and the certificates it signs with.

    ``until`` is when it ends (``validUntil``), if it says so.
    """

    issuer: str
    sign_in: str
    certificates: tuple[x509.Certificate, ...]
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What an assertion must say: for whom it is, where it was to be delivered, and which request it answers.

    ``request`` is ``None`` where nobody asked for it (RFC 7522).
    """

    audiences: frozenset[str]
    recipient: str
    request: str | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Somebody signed in. ``assertion`` is its id, to be believed once until ``ends``; ``until`` ends the session."""

    caller: Caller
    assertion: str
    ends: float
    until: float | None


def read_response(raw: bytes, provider: Provider, identity: SamlIdentity, expected: Expected, now: float) -> SignedIn:
    """Read the answer to a request to sign in. Raises ``SamlRefused``."""
    root = parse(raw)
    seen = signed_assertion(root, provider.certificates, now)
    # what is not signed may refuse, and nothing is taken from it
    if root.tag != RESPONSE:
        raise SamlRefused(SamlReason.STRUCTURE)
    status = root.find(f"{{{PROTOCOL}}}Status/{{{PROTOCOL}}}StatusCode")
    if status is None or status.get("Value") != SUCCESS:
        raise SamlRefused(SamlReason.STATUS)
    if root.get("Destination", expected.recipient) != expected.recipient:
        raise SamlRefused(SamlReason.DESTINATION)
    if root.get("InResponseTo", expected.request) != expected.request:
        raise SamlRefused(SamlReason.REQUEST)
    issuer = root.find(f"{_SA}Issuer")
    if issuer is not None and _text(issuer) != provider.issuer:
        raise SamlRefused(SamlReason.ISSUER)
    return _read(seen, provider, identity, expected, now)


def read_assertion(raw: bytes, provider: Provider, identity: SamlIdentity, expected: Expected, now: float) -> SignedIn:
    """Read an assertion by itself (RFC 7522). Raises ``SamlRefused``."""
    root = parse(raw)
    if root.tag != ASSERTION:
        raise SamlRefused(SamlReason.STRUCTURE)
    return _read(signed_assertion(root, provider.certificates, now), provider, identity, expected, now)


def claimed_issuer(raw: bytes) -> str:
    """Return the issuer an assertion claims, which chooses who checks it, and nothing else. Raises ``SamlRefused``."""
    issuer = parse(raw).find(f"{_SA}Issuer")
    if issuer is None:
        raise SamlRefused(SamlReason.ISSUER)
    return _text(issuer)


def _read(seen: etree._Element, provider: Provider, identity: SamlIdentity, expected: Expected, now: float) -> SignedIn:
    """Check what a provider signed, and name its caller."""
    issuer = seen.find(f"{_SA}Issuer")
    if seen.get("Version") != "2.0" or issuer is None or _text(issuer) != provider.issuer:
        raise SamlRefused(SamlReason.ISSUER)
    ends = max(_confirmed(seen, identity, expected, now), _conditions(seen, identity, expected, now))
    statements = seen.findall(f"{_SA}AuthnStatement")
    if len(statements) != 1:
        raise SamlRefused(SamlReason.STATEMENT)
    until = _moment(statements[0].get("SessionNotOnOrAfter"))
    if until is not None and until <= now:
        raise SamlRefused(SamlReason.EXPIRED)
    context = statements[0].find(f"{_SA}AuthnContext/{_SA}AuthnContextClassRef")
    strength = frozenset() if context is None or not _fits(_text(context)) else frozenset({_text(context)})
    caller = Caller(
        identity.name,
        _subject(seen, identity),
        _groups(seen, identity),
        until,
        strength,
        _moment(statements[0].get("AuthnInstant")),
    )
    found = seen.get("ID", "")
    if not found:
        raise SamlRefused(SamlReason.STRUCTURE)
    return SignedIn(caller, found, ends + identity.leeway, until)


def _confirmed(seen: etree._Element, identity: SamlIdentity, expected: Expected, now: float) -> float:
    """Check the one bearer confirmation; return when it ends."""
    bearer = [each for each in seen.findall(f"{_SA}Subject/{_SA}SubjectConfirmation") if each.get("Method") == BEARER]
    data = bearer[0].find(f"{_SA}SubjectConfirmationData") if len(bearer) == 1 else None
    if data is None:
        raise SamlRefused(SamlReason.SUBJECT)
    if data.get("Recipient") != expected.recipient:
        raise SamlRefused(SamlReason.RECIPIENT)
    if data.get("InResponseTo") != expected.request:
        raise SamlRefused(SamlReason.REQUEST)
    ends = _moment(data.get("NotOnOrAfter"))
    if ends is None or ends + identity.leeway <= now:
        raise SamlRefused(SamlReason.EXPIRED)
    begins = _moment(data.get("NotBefore"))
    if begins is not None and begins > now + identity.leeway:
        raise SamlRefused(SamlReason.NOT_YET)
    return ends


def _conditions(seen: etree._Element, identity: SamlIdentity, expected: Expected, now: float) -> float:
    """Check the conditions, of which the audience is required; return when they end."""
    found = seen.findall(f"{_SA}Conditions")
    if len(found) != 1 or any(each.tag not in _HARMLESS for each in found[0]):
        raise SamlRefused(SamlReason.CONDITION)
    restrictions = found[0].findall(f"{_SA}AudienceRestriction")
    for each in restrictions:
        if not {_text(one) for one in each.findall(f"{_SA}Audience")} & expected.audiences:
            raise SamlRefused(SamlReason.AUDIENCE)
    if not restrictions:
        raise SamlRefused(SamlReason.AUDIENCE)
    begins, ends = _moment(found[0].get("NotBefore")), _moment(found[0].get("NotOnOrAfter"))
    if begins is not None and begins > now + identity.leeway:
        raise SamlRefused(SamlReason.NOT_YET)
    if ends is not None and ends + identity.leeway <= now:
        raise SamlRefused(SamlReason.EXPIRED)
    return ends if ends is not None else now


def _subject(seen: etree._Element, identity: SamlIdentity) -> str:
    """Return who it is: the NameID, or the one value of the attribute that the policy names."""
    if identity.subject is not None:
        values = _values(seen, identity.subject)
        name = values[0] if len(values) == 1 else ""
    else:
        ids = seen.findall(f"{_SA}Subject/{_SA}NameID")
        name = _text(ids[0]) if len(ids) == 1 and ids[0].get("Format") != TRANSIENT else ""
    if not _fits(name):
        raise SamlRefused(SamlReason.SUBJECT)
    return name


def _groups(seen: etree._Element, identity: SamlIdentity) -> frozenset[str]:
    """Read the groups, every value of every attribute of that name; one that left them out is not "no groups"."""
    if identity.groups is None:
        return frozenset()
    if _attributes(seen, OVERAGE):
        raise SamlRefused(SamlReason.OVERAGE)
    found = set(_values(seen, identity.groups))
    if len(found) > GROUPS or not all(map(_fits, found)):
        raise SamlRefused(SamlReason.GROUPS)
    return frozenset(f"{identity.name}:{each}" for each in found)


def _attributes(seen: etree._Element, name: str) -> list[etree._Element]:
    return [each for each in seen.findall(f"{_SA}AttributeStatement/{_SA}Attribute") if each.get("Name") == name]


def _values(seen: etree._Element, name: str) -> list[str]:
    return [_text(value) for each in _attributes(seen, name) for value in each.findall(f"{_SA}AttributeValue")]


def _text(element: etree._Element) -> str:
    """Return the whole text of an element: ``.text`` would end at the first comment."""
    return "".join(element.itertext()).strip()


def _fits(name: str) -> bool:
    """Say whether a subject or group can be shown and stored as it is, as for those in other tokens."""
    return 0 < len(name) <= NAME_CHARACTERS and name.isprintable() and not name.lower().startswith(RESERVED)


def _moment(text: str | None) -> float | None:
    """Read a moment; one that is no moment in UTC is refused."""
    if text is None:
        return None
    found = _INSTANT.fullmatch(text)
    try:
        if found is not None:
            moment = dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC)
            return moment.timestamp() + float(found[2] or 0)
    except ValueError:
        pass
    raise SamlRefused(SamlReason.MALFORMED)


# ── metadata and requests ────────────────────────────────────────────────────────────────────────────────────────


def read_metadata(raw: bytes, issuer: str | None, now: float) -> Provider | str:
    """Read a provider's metadata; what is wrong with it, in a few words, where it cannot be used."""
    try:
        root = parse(raw) if len(raw) <= 16 * BYTES else None
    except SamlRefused as why:
        root = None
        if why.reason is SamlReason.TOO_LARGE:
            return f"more than {BYTES // 1024} KiB"
    if root is None or root.getroottree().docinfo.doctype:
        return "no XML document, or one with a DTD"
    entities = [each for each in root.iter(f"{_MD}EntityDescriptor") if each.find(f"{_MD}IDPSSODescriptor") is not None]
    chosen = [each for each in entities if issuer is None or each.get("entityID") == issuer]
    if len(chosen) != 1:
        return f"{len(chosen)} identity providers{'' if issuer is None else ' of that issuer'}"
    descriptor = chosen[0].find(f"{_MD}IDPSSODescriptor")
    try:
        ends = [_moment(each.get("validUntil")) for each in (descriptor, *descriptor.iterancestors())]
    except SamlRefused:
        return "a validUntil that is no moment"
    until = min((each for each in ends if each is not None), default=None)
    if until is not None and until <= now:
        return "metadata that has ended (validUntil)"
    services = [
        each.get("Location", "")
        for each in descriptor.findall(f"{_MD}SingleSignOnService")
        if each.get("Binding") == REDIRECT
    ]
    if not services or not _is_address(services[0]):
        return "no https address for signing in by HTTP-Redirect"
    certificates = _certificates(descriptor)
    if not certificates:
        return "no signing certificate with an RSA key of 2048 bits or more, or an EC key"
    return Provider(chosen[0].get("entityID", ""), services[0], certificates, until)


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return False
    local = parts.scheme == "http" and host in {"127.0.0.1", "::1", "localhost"}
    return bool(host) and (parts.scheme == "https" or local) and address.isascii() and address.isprintable()


def _certificates(descriptor: etree._Element) -> tuple[x509.Certificate, ...]:
    found = []
    for each in descriptor.findall(f"{_MD}KeyDescriptor"):
        if each.get("use", "signing") != "signing":
            continue
        for certificate in each.iter(f"{{{XMLDSIG}}}X509Certificate"):
            try:
                data = base64.b64decode("".join(_text(certificate).split()), validate=True)
                read = x509.load_der_x509_certificate(data)
                key = read.public_key()
            except ValueError:
                continue
            if isinstance(key, ec.EllipticCurvePublicKey) or (
                isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048
            ):
                found.append(read)
    return tuple(found)


def sign_in_address(provider: Provider, *, request: str, now: float, entity_id: str, acs: str, state: str) -> str:
    """Return where to send a browser to sign in (bindings section 3.4): an AuthnRequest, deflated, in the query."""
    root = etree.Element(
        f"{{{PROTOCOL}}}AuthnRequest",
        nsmap={"samlp": PROTOCOL, "saml": ASSERTIONS},
        ID=request,
        Version="2.0",
        IssueInstant=dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        Destination=provider.sign_in,
        AssertionConsumerServiceURL=acs,
        ProtocolBinding=POST,
    )
    etree.SubElement(root, f"{_SA}Issuer").text = entity_id
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(etree.tostring(root)) + packer.flush()
    query = urlencode({"SAMLRequest": base64.b64encode(packed).decode(), "RelayState": state})
    return f"{provider.sign_in}{'&' if '?' in provider.sign_in else '?'}{query}"


def our_metadata(entity_id: str, acs: str) -> bytes:
    """Describe this gateway to a provider (metadata section 2.4.4)."""
    root = etree.Element(f"{_MD}EntityDescriptor", nsmap={None: METADATA}, entityID=entity_id)
    ours = etree.SubElement(
        root, f"{_MD}SPSSODescriptor", AuthnRequestsSigned="false", WantAssertionsSigned="true",
        protocolSupportEnumeration=PROTOCOL,
    )  # fmt: skip
    etree.SubElement(ours, f"{_MD}AssertionConsumerService", Binding=POST, Location=acs, index="0", isDefault="true")
    return bytes(etree.tostring(root, xml_declaration=True, encoding="UTF-8"))


def decoded(text: str, *, url: bool = False) -> bytes:
    """Decode the base64 of a form field, strictly. Raises ``SamlRefused``."""
    if len(text) > BYTES * 4 // 3 + 4096:
        raise SamlRefused(SamlReason.TOO_LARGE)
    plain = "".join(text.split())
    try:
        if url:
            return base64.b64decode(plain + "=" * (-len(plain) % 4), altchars=b"-_", validate=True)
        return base64.b64decode(plain, validate=True)
    except ValueError:
        raise SamlRefused(SamlReason.MALFORMED) from None


__all__: Sequence[str] = (
    "Expected", "Provider", "SamlReason", "SamlRefused", "SignedIn", "claimed_issuer", "decoded", "our_metadata",
    "read_assertion", "read_metadata", "read_response", "sign_in_address",
)  # fmt: skip
