"""From the bytes of a SAML response to the element that its provider signed. Pure.

Law: one parser, one parse, and **whatever is used later is read from the element that this returns**, which signxml
made out of the very bytes whose digest was signed; never from the tree that came in. The guards below refuse documents
of a shape that no provider sends before signxml sees them; each would be enough against the attacks it is for, and
with any one of them off the next still holds (``tests/test_saml.py`` switches them off in turn).
"""

from __future__ import annotations

import datetime as dt
import enum
from collections import Counter
from collections.abc import Callable, Sequence

from cryptography import x509
from lxml import etree
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.exceptions import SignXMLException
from signxml.verifier import SignatureConfiguration, XMLVerifier

BYTES = 256 * 1024
"""Of a document; a response with 1,000 groups has about 100 KB."""

PROTOCOL, ASSERTIONS = "urn:oasis:names:tc:SAML:2.0:protocol", "urn:oasis:names:tc:SAML:2.0:assertion"
XMLDSIG, EXCLUSIVE = "http://www.w3.org/2000/09/xmldsig#", "http://www.w3.org/2001/10/xml-exc-c14n#"
RESPONSE, ASSERTION = f"{{{PROTOCOL}}}Response", f"{{{ASSERTIONS}}}Assertion"
ENCRYPTED = f"{{{ASSERTIONS}}}EncryptedAssertion"
SIGNATURE = f"{{{XMLDSIG}}}Signature"
TRANSFORMS = (f"{XMLDSIG}enveloped-signature", EXCLUSIVE)


class SamlReason(enum.StrEnum):
    """Why an assertion was refused: for log and metrics. The client is told one sentence for all of them."""

    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    DOCTYPE = "doctype"
    COMMENT = "comment"
    STRUCTURE = "structure"
    REPEATED_ID = "repeated_id"
    UNSIGNED = "unsigned"
    TRANSFORM = "transform"
    SIGNATURE = "signature"
    ENCRYPTED = "encrypted"
    STATUS = "status"
    ISSUER = "issuer"
    DESTINATION = "destination"
    RECIPIENT = "recipient"
    AUDIENCE = "audience"
    CONDITION = "condition"
    EXPIRED = "expired"
    NOT_YET = "not_yet"
    REQUEST = "request"
    REPLAYED = "replayed"
    STATEMENT = "statement"
    SUBJECT = "subject"
    GROUPS = "groups"
    OVERAGE = "overage"
    METADATA = "metadata"


class SamlRefused(Exception):
    """A document is not believed. It holds a reason and nothing of the document."""

    def __init__(self, reason: SamlReason) -> None:
        super().__init__(str(reason))
        self.reason = reason


_CONFIGURATION = {
    "require_x509": True,
    "location": "./",
    "expect_references": 1,
    "signature_methods": frozenset(
        {SignatureMethod.RSA_SHA256, SignatureMethod.RSA_SHA512, SignatureMethod.ECDSA_SHA256}
    ),
    "digest_algorithms": frozenset({DigestAlgorithm.SHA256, DigestAlgorithm.SHA512}),
}


def parse(raw: bytes) -> etree._Element:
    """Parse a document: UTF-8, no entities, nothing fetched. Raises ``SamlRefused``."""
    if len(raw) > BYTES:
        raise SamlRefused(SamlReason.TOO_LARGE)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        raw.decode("utf-8")
        root = etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise SamlRefused(SamlReason.MALFORMED) from None
    if (root.getroottree().docinfo.encoding or "UTF-8").upper() not in ("UTF-8", "ASCII", "US-ASCII"):
        raise SamlRefused(SamlReason.MALFORMED)
    return root


def signed_assertion(root: etree._Element, certificates: Sequence[x509.Certificate], now: float) -> etree._Element:
    """Return the assertion that one of the certificates has signed, as it was signed: alone, or with its response.

    Raises ``SamlRefused``.
    """
    for reason, holds in GUARDS:
        if not holds(root):
            raise SamlRefused(reason)
    assertion = root if root.tag == ASSERTION else root.find(f".//{ASSERTION}")
    if assertion is None:
        raise SamlRefused(SamlReason.STRUCTURE)
    seen = None
    for element in (root, assertion) if assertion is not root else (root,):
        if element.find(SIGNATURE) is not None:
            seen = _signed(element, certificates, now)  # each that is there must hold; the inner one counts
    if seen is None:
        raise SamlRefused(SamlReason.UNSIGNED)
    found = seen if seen.tag == ASSERTION else seen.find(ASSERTION)
    if found is None or found.find(f".//{ASSERTION}") is not None:
        raise SamlRefused(SamlReason.STRUCTURE)
    return found


def _signed(element: etree._Element, certificates: Sequence[x509.Certificate], now: float) -> etree._Element:
    """Return what is signed in an element: that element itself, made anew from the bytes that were signed."""
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    expected = SignatureConfiguration(**_CONFIGURATION, verification_time=moment)  # type: ignore[arg-type]
    for each in certificates:
        try:
            result = XMLVerifier().verify(element, x509_cert=each, id_attribute="ID", expect_config=expected)
        except (SignXMLException, etree.LxmlError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue  # signxml lets through what its parts raise for hostile input
        seen = result.signed_xml  # type: ignore[union-attr]  # one reference, one result
        if seen is not None and seen.tag == element.tag and seen.get("ID") == element.get("ID"):
            return seen
    raise SamlRefused(SamlReason.SIGNATURE)


# ── guards ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _no_doctype(root: etree._Element) -> bool:
    return not root.getroottree().docinfo.doctype and not any(True for _ in root.iter(etree.Entity))


def _no_comment(root: etree._Element) -> bool:
    """Nothing that canonicalisation drops or that cuts a text in two, inside the root or beside it."""
    tree = root.getroottree()
    return not any(True for _ in tree.iter(etree.Comment, etree.ProcessingInstruction)) and (
        root.getprevious() is None and root.getnext() is None
    )


def _not_encrypted(root: etree._Element) -> bool:
    return root.find(f".//{ENCRYPTED}") is None


def _one_assertion(root: etree._Element) -> bool:
    """One assertion: the root (RFC 7522), or a child of a response. Names are compared without their namespace too."""
    found = [each for each in root.iter("{*}Assertion", "Assertion") if isinstance(each.tag, str)]
    if len(found) != 1 or found[0].tag != ASSERTION:
        return False
    return found[0] is root or (root.tag == RESPONSE and found[0].getparent() is root)


def _ids_once(root: etree._Element) -> bool:
    """No two elements share an id, whatever the attribute is called: a parser may take any of them for one."""
    ids = Counter(
        value
        for each in root.iter(etree.Element)
        for name, value in each.attrib.items()
        if etree.QName(name).localname.lower() == "id"
    )
    return all(count == 1 for count in ids.values())


def _signature_places(root: etree._Element) -> bool:
    """A signature is a child of what it signs, the root or the assertion, once in each, and nowhere else."""
    found = [each for each in root.iter("{*}Signature", "Signature") if isinstance(each.tag, str)]
    parents = [each.getparent() for each in found]
    places = all(parent is not None and parent.tag in (RESPONSE, ASSERTION) for parent in parents)
    return places and len({id(parent) for parent in parents}) == len(parents) and all(x.tag == SIGNATURE for x in found)


def _plain_transforms(root: etree._Element) -> bool:
    """A signature covers its parent by id, through the two transforms that SAML needs (core section 5.4), no other."""
    for signature in root.iter(SIGNATURE):
        parent = signature.getparent()
        references = list(signature.iter(f"{{{XMLDSIG}}}Reference"))
        algorithms = [each.get("Algorithm") for each in signature.iter(f"{{{XMLDSIG}}}Transform")]
        method = signature.find(f"{{{XMLDSIG}}}SignedInfo/{{{XMLDSIG}}}CanonicalizationMethod")
        covers = [f"#{parent.get('ID')}"] if parent is not None and parent.get("ID") else []
        if [each.get("URI") for each in references] != covers or sorted(map(str, algorithms)) != sorted(TRANSFORMS):
            return False
        if method is None or method.get("Algorithm") != EXCLUSIVE:
            return False
        if signature.find(f".//{{{XMLDSIG}}}Object") is not None:
            return False
    return True


GUARDS: tuple[tuple[SamlReason, Callable[[etree._Element], bool]], ...] = (
    (SamlReason.DOCTYPE, _no_doctype),
    (SamlReason.COMMENT, _no_comment),
    (SamlReason.ENCRYPTED, _not_encrypted),
    (SamlReason.STRUCTURE, _one_assertion),
    (SamlReason.REPEATED_ID, _ids_once),
    (SamlReason.STRUCTURE, _signature_places),
    (SamlReason.TRANSFORM, _plain_transforms),
)
"""What a document must be before a signature in it is looked at, and the reason if it is not."""
