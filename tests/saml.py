"""A SAML provider of our own: writes assertions, good and hostile, and signs them as any provider would."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from lxml import etree
from signxml import XMLSigner, methods
from signxml.algorithms import CanonicalizationMethod

from tidegate.identity.saml import Expected, Provider
from tidegate.policy.policy import SamlIdentity

NOW = 1_800_000_000.0
IDP, SP = "https://idp.example/metadata", "https://gate.example.com/saml/metadata"
ACS, TOKEN = "https://gate.example.com/saml/acs", "https://gate.example.com/token"
REQUEST = "_request-1"
P, A = "urn:oasis:names:tc:SAML:2.0:protocol", "urn:oasis:names:tc:SAML:2.0:assertion"
DS = "http://www.w3.org/2000/09/xmldsig#"
NS = {"p": P, "a": A, "ds": DS}
EVIL = "mallory@example.org"
EXCLUSIVE = CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0


@functools.cache
def key(name: str = "idp", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@functools.cache
def certificate(name: str = "idp", days: int = 36500, bits: int = 2048) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(
        subject, subject, key(name, bits).public_key(), 1, start, start + dt.timedelta(days)
    )
    return builder.sign(key(name, bits), hashes.SHA256())


def pem(name: str = "idp") -> tuple[bytes, str]:
    private = key(name, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate(name).public_bytes(serialization.Encoding.PEM).decode()


PROVIDER = Provider(IDP, "https://idp.example/sso", (certificate(),))
IDENTITY = SamlIdentity("adfs", "adfs.xml", None, None, "groups", None, 60.0)
EXPECTED = Expected(frozenset({SP}), ACS, REQUEST)
SHOWN = Expected(frozenset({SP, TOKEN}), TOKEN, None)


def instant(seconds: float, base: float = NOW) -> str:
    return dt.datetime.fromtimestamp(base + seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def assertion(
    name: str = "alice@example.org",
    *,
    ident: str = "_a1",
    issuer: str = IDP,
    groups: Sequence[str] = ("ml-eng", "ops"),
    recipient: str = ACS,
    audience: str = SP,
    request: str | None = REQUEST,
    now: float = NOW,
    session: float | None = None,
    kind: str = "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress",
) -> etree._Element:
    """Write a good assertion; what is broken about it, the test breaks."""
    answers = f' InResponseTo="{request}"' if request else ""
    until = f' SessionNotOnOrAfter="{instant(session, now)}"' if session is not None else ""
    values = "".join(f"<a:AttributeValue>{each}</a:AttributeValue>" for each in groups)
    return etree.fromstring(
        f'<a:Assertion xmlns:a="{A}" ID="{ident}" Version="2.0" IssueInstant="{instant(0, now)}">'
        f"<a:Issuer>{issuer}</a:Issuer>"
        f'<a:Subject><a:NameID Format="{kind}">{name}</a:NameID>'
        f'<a:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer">'
        f'<a:SubjectConfirmationData Recipient="{recipient}" NotOnOrAfter="{instant(300, now)}"{answers}/>'
        f"</a:SubjectConfirmation></a:Subject>"
        f'<a:Conditions NotBefore="{instant(0, now)}" NotOnOrAfter="{instant(300, now)}">'
        f"<a:AudienceRestriction><a:Audience>{audience}</a:Audience></a:AudienceRestriction></a:Conditions>"
        f'<a:AuthnStatement AuthnInstant="{instant(-5, now)}"{until}><a:AuthnContext>'
        f"<a:AuthnContextClassRef>urn:oasis:names:tc:SAML:2.0:ac:classes:PasswordProtectedTransport"
        f"</a:AuthnContextClassRef></a:AuthnContext></a:AuthnStatement><a:AttributeStatement>"
        f'<a:Attribute Name="groups">{values}</a:Attribute></a:AttributeStatement></a:Assertion>'
    )


def signed(element: etree._Element, name: str = "idp", **changes: Any) -> etree._Element:
    """Sign an element by its ID, enveloped."""
    private, public = pem(name)
    options: dict[str, Any] = {
        "method": methods.enveloped,
        "signature_algorithm": "rsa-sha256",
        "digest_algorithm": "sha256",
        "c14n_algorithm": EXCLUSIVE,
    }
    signer = XMLSigner(**{**options, **changes})
    return signer.sign(element, key=private, cert=public, reference_uri=element.get("ID"))


def response(
    *children: etree._Element,
    ident: str = "_r1",
    request: str | None = REQUEST,
    destination: str = ACS,
    status: str = "urn:oasis:names:tc:SAML:2.0:status:Success",
    issuer: str = IDP,
) -> etree._Element:
    """Put assertions into a response."""
    answers = f' InResponseTo="{request}"' if request else ""
    root = etree.fromstring(
        f'<p:Response xmlns:p="{P}" xmlns:a="{A}" ID="{ident}" Version="2.0" IssueInstant="{instant(0)}"'
        f' Destination="{destination}"{answers}><a:Issuer>{issuer}</a:Issuer>'
        f'<p:Status><p:StatusCode Value="{status}"/></p:Status></p:Response>'
    )
    root.extend(children)
    return root


def written(root: etree._Element) -> bytes:
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8")


def good(**changes: Any) -> bytes:
    """A response as a provider sends it."""
    return written(response(signed(assertion(**changes))))


def metadata(*names: str, sign_in: str = "https://idp.example/sso", issuer: str = IDP, more: str = "") -> bytes:
    """A provider's metadata with these certificates."""
    keys = "".join(
        f'<md:KeyDescriptor use="signing"><ds:KeyInfo><ds:X509Data><ds:X509Certificate>'
        f"{''.join(pem(each)[1].splitlines()[1:-1])}"
        f"</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>"
        for each in names or ("idp",)
    )
    return (
        f'<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" xmlns:ds="{DS}"'
        f' entityID="{issuer}"{more}>'
        f'<md:IDPSSODescriptor protocolSupportEnumeration="{P}">{keys}'
        f'<md:SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect" Location="{sign_in}"/>'
        f"</md:IDPSSODescriptor></md:EntityDescriptor>"
    ).encode()
