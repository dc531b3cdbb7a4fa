"""Attacks on a signed SAML response: each takes the bytes a provider sent for alice, and tries to be somebody else."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Mapping

from lxml import etree

from tests import saml as s
from tidegate.identity.saml_document import SamlReason

Attack = Callable[[etree._Element], etree._Element]


def _assertion(root: etree._Element) -> etree._Element:
    return root.find("a:Assertion", s.NS)


def _signature(root: etree._Element) -> etree._Element:
    return root.find(".//ds:Signature", s.NS)


def _evil(root: etree._Element, *, ident: str = "_evil", signature: bool = False) -> etree._Element:
    """Copy the assertion, for somebody else."""
    made = copy.deepcopy(_assertion(root))
    made.set("ID", ident)
    made.find(".//a:NameID", s.NS).text = s.EVIL
    found = made.find("ds:Signature", s.NS)
    if found is not None and not signature:
        made.remove(found)
    return made


def _evil_response(root: etree._Element, *, ident: str = "_evil-r") -> etree._Element:
    made = copy.deepcopy(root)
    made.set("ID", ident)
    for found in made.findall("ds:Signature", s.NS):
        made.remove(found)
    _assertion(made).find(".//a:NameID", s.NS).text = s.EVIL
    return made


def xsw1(root: etree._Element) -> etree._Element:
    """The signed response moves into the signature of an evil one."""
    evil, signature = _evil_response(root), copy.deepcopy(_signature(root))
    original = copy.deepcopy(root)
    for each in original.findall("ds:Signature", s.NS):
        original.remove(each)
    signature.append(original)
    evil.insert(1, signature)
    return evil


def xsw2(root: etree._Element) -> etree._Element:
    """The signed response stands before its signature, both inside an evil one."""
    evil, signature = _evil_response(root), copy.deepcopy(_signature(root))
    original = copy.deepcopy(root)
    for each in original.findall("ds:Signature", s.NS):
        original.remove(each)
    evil.insert(1, signature)
    signature.addprevious(original)
    return evil


def xsw3(root: etree._Element) -> etree._Element:
    """An evil assertion before the original."""
    _assertion(root).addprevious(_evil(root))
    return root


def xsw3_same_id(root: etree._Element) -> etree._Element:
    """The same, under the original's ID."""
    _assertion(root).addprevious(_evil(root, ident="_a1"))
    return root


def xsw3_after(root: etree._Element) -> etree._Element:
    """An evil assertion after the original, under its ID and with its signature."""
    _assertion(root).addnext(_evil(root, ident="_a1", signature=True))
    return root


def xsw4(root: etree._Element) -> etree._Element:
    """The original inside an evil assertion."""
    original, evil = _assertion(root), _evil(root)
    original.addprevious(evil)
    evil.append(original)
    return root


def xsw5(root: etree._Element) -> etree._Element:
    """The evil assertion keeps the signature, the original goes to the end without it."""
    original, evil = _assertion(root), _evil(root, signature=True)
    bare = copy.deepcopy(original)
    for each in bare.findall("ds:Signature", s.NS):
        bare.remove(each)
    root.replace(original, evil)
    root.append(bare)
    return root


def xsw6(root: etree._Element) -> etree._Element:
    """The evil assertion keeps the signature, and the original lies in it."""
    original, evil = _assertion(root), _evil(root, signature=True)
    bare = copy.deepcopy(original)
    for each in bare.findall("ds:Signature", s.NS):
        bare.remove(each)
    root.replace(original, evil)
    _signature(root).append(bare)
    return root


def xsw7(root: etree._Element) -> etree._Element:
    """An evil assertion in Extensions, which may hold anything."""
    extensions = etree.Element(f"{{{s.P}}}Extensions")
    extensions.append(_evil(root, ident="_a1"))
    _assertion(root).addprevious(extensions)
    return root


def xsw8(root: etree._Element) -> etree._Element:
    """The evil assertion keeps the signature, and the original lies in an Object of it."""
    original, evil = _assertion(root), _evil(root, signature=True)
    bare = copy.deepcopy(original)
    for each in bare.findall("ds:Signature", s.NS):
        bare.remove(each)
    root.replace(original, evil)
    etree.SubElement(_signature(root), f"{{{s.DS}}}Object").append(bare)
    return root


def advice(root: etree._Element) -> etree._Element:
    """The original lies in the Advice of an evil assertion, which points its signature at it (CVE-2024-45409's kin)."""
    original, evil = _assertion(root), _evil(root, signature=True)
    root.replace(original, evil)
    etree.SubElement(evil, f"{{{s.A}}}Advice").append(original)
    return root


def status_detail(root: etree._Element) -> etree._Element:
    """The original lies in StatusDetail, where anything may stand (CVE-2024-45409)."""
    original, evil = _assertion(root), _evil(root, signature=True)
    root.replace(original, evil)
    etree.SubElement(root.find("p:Status", s.NS), f"{{{s.P}}}StatusDetail").append(original)
    return root


def tampered(root: etree._Element) -> etree._Element:
    """Another name."""
    root.find(".//a:NameID", s.NS).text = s.EVIL
    return root


def promoted(root: etree._Element) -> etree._Element:
    """Another group."""
    root.find(".//a:AttributeValue", s.NS).text = "admins"
    return root


def stripped(root: etree._Element) -> etree._Element:
    """No signature, another name."""
    for each in root.findall(".//ds:Signature", s.NS):
        each.getparent().remove(each)
    return tampered(root)


def foreign(root: etree._Element) -> etree._Element:
    """Signed by somebody else, who shows the certificate for it."""
    original = _assertion(root)
    root.replace(original, s.signed(_evil(root, ident="_a1"), "mallory"))
    return root


def foreign_with_our_certificate(root: etree._Element) -> etree._Element:
    """Signed by somebody else, who shows the provider's certificate."""
    ours = base64.b64encode(s.certificate().public_bytes(s.serialization.Encoding.DER)).decode()
    foreign(root).find(".//ds:X509Certificate", s.NS).text = ours
    return root


def hmac(root: etree._Element) -> etree._Element:
    """A keyed hash, whose key would be the certificate that everybody knows."""
    root.find(".//ds:SignatureMethod", s.NS).set("Algorithm", "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256")
    return tampered(root)


def sha1(root: etree._Element) -> etree._Element:
    """A broken hash."""
    root.find(".//ds:SignatureMethod", s.NS).set("Algorithm", f"{s.DS}rsa-sha1")
    return root


def sha1_digest(root: etree._Element) -> etree._Element:
    """A broken hash of what is signed."""
    root.find(".//ds:DigestMethod", s.NS).set("Algorithm", f"{s.DS}sha1")
    return root


def comment(root: etree._Element) -> etree._Element:
    """A comment that cuts the name in two: a reader of .text sees the first part alone."""
    name = root.find(".//a:NameID", s.NS)
    whole, name.text = name.text, "alice"
    name.append(etree.Comment("x"))
    name[0].tail = whole.removeprefix("alice")
    return root


def comment_that_changes(root: etree._Element) -> etree._Element:
    """A comment, with another name around it."""
    name = root.find(".//a:NameID", s.NS)
    name.text = s.EVIL
    name.append(etree.Comment("x"))
    name[0].tail = ".alice@example.org"
    return root


def instruction(root: etree._Element) -> etree._Element:
    """A processing instruction in the name."""
    name = root.find(".//a:NameID", s.NS)
    name.text = s.EVIL
    name.append(etree.ProcessingInstruction("x", "y"))
    name[0].tail = "alice@example.org"
    return root


def whole_document(root: etree._Element) -> etree._Element:
    """A reference to everything instead of one element."""
    root.find(".//ds:Reference", s.NS).set("URI", "")
    return root


def xpointer(root: etree._Element) -> etree._Element:
    """A reference by XPointer."""
    root.find(".//ds:Reference", s.NS).set("URI", "#xpointer(id('_a1'))")
    return root


def elsewhere(root: etree._Element) -> etree._Element:
    """A reference to a file."""
    root.find(".//ds:Reference", s.NS).set("URI", "file:///etc/passwd")
    return root


def two_references(root: etree._Element) -> etree._Element:
    """A second reference."""
    found = root.find(".//ds:Reference", s.NS)
    found.addnext(copy.deepcopy(found))
    return root


def _transform(root: etree._Element, algorithm: str) -> etree._Element:
    found = root.find(".//ds:Transforms", s.NS)
    etree.SubElement(found, f"{{{s.DS}}}Transform", Algorithm=algorithm)
    return tampered(root)


def xslt(root: etree._Element) -> etree._Element:
    """A program as a transform."""
    return _transform(root, "http://www.w3.org/TR/1999/REC-xslt-19991116")


def xpath(root: etree._Element) -> etree._Element:
    """A filter as a transform."""
    return _transform(root, "http://www.w3.org/TR/1999/REC-xpath-19991116")


def with_comments(root: etree._Element) -> etree._Element:
    """Canonical XML with comments."""
    root.findall(".//ds:Transform", s.NS)[-1].set("Algorithm", "http://www.w3.org/2001/10/xml-exc-c14n#WithComments")
    return root


def no_transforms(root: etree._Element) -> etree._Element:
    """No transform at all."""
    found = root.find(".//ds:Transforms", s.NS)
    found.getparent().remove(found)
    return root


def repeated_id(root: etree._Element) -> etree._Element:
    """Another element with the assertion's ID."""
    root.find("p:Status", s.NS).set("ID", "_a1")
    return root


def repeated_id_by_another_name(root: etree._Element) -> etree._Element:
    """The same, by the name that other parsers look for."""
    root.find("p:Status", s.NS).set("Id", "_a1")
    return root


def repeated_xml_id(root: etree._Element) -> etree._Element:
    """The same, in the XML namespace."""
    root.find("p:Status", s.NS).set("{http://www.w3.org/XML/1998/namespace}id", "_a1")
    return root


def other_namespace(root: etree._Element) -> etree._Element:
    """An assertion of another namespace, for a reader that looks at the name alone."""
    evil = _evil(root)
    for each in evil.iter():
        each.tag = etree.QName("urn:x", etree.QName(each).localname).text
    _assertion(root).addprevious(evil)
    return root


def second_signature(root: etree._Element) -> etree._Element:
    """Two signatures in one assertion."""
    found = _signature(root)
    found.addnext(copy.deepcopy(found))
    return root


def loose_signature(root: etree._Element) -> etree._Element:
    """The signature somewhere else."""
    root.find("p:Status", s.NS).append(_signature(root))
    return root


def wrapped_assertion(root: etree._Element) -> etree._Element:
    """The assertion is not a child of the response."""
    root.find("p:Status", s.NS).append(_assertion(root))
    return root


def encrypted(root: etree._Element) -> etree._Element:
    """An encrypted assertion beside the other."""
    etree.SubElement(root, f"{{{s.A}}}EncryptedAssertion")
    return root


def response_signature_of_another(root: etree._Element) -> etree._Element:
    """A response signed by somebody else around an assertion that is good."""
    return s.signed(root, "mallory")


def second_root(root: etree._Element) -> etree._Element:
    """A comment behind the document."""
    root.addnext(etree.Comment(s.EVIL))
    return root


ATTACKS: Mapping[Attack, SamlReason] = {
    **dict.fromkeys(
        (xsw1, xsw2, xsw3, xsw3_same_id, xsw3_after, xsw4, xsw5, xsw6, xsw7, xsw8, advice, status_detail),
        SamlReason.STRUCTURE,
    ),
    **dict.fromkeys((other_namespace, second_signature, loose_signature, wrapped_assertion), SamlReason.STRUCTURE),
    **dict.fromkeys((tampered, promoted, foreign, foreign_with_our_certificate, hmac, sha1), SamlReason.SIGNATURE),
    **dict.fromkeys((sha1_digest, response_signature_of_another), SamlReason.SIGNATURE),
    **dict.fromkeys((comment, comment_that_changes, instruction, second_root), SamlReason.COMMENT),
    **dict.fromkeys((whole_document, xpointer, elsewhere, two_references), SamlReason.TRANSFORM),
    **dict.fromkeys((xslt, xpath, with_comments, no_transforms), SamlReason.TRANSFORM),
    **dict.fromkeys((repeated_id, repeated_id_by_another_name, repeated_xml_id), SamlReason.REPEATED_ID),
    stripped: SamlReason.UNSIGNED,
    encrypted: SamlReason.ENCRYPTED,
}
"""Each attack, and the reason it is refused for with every guard on."""


def _text(find: bytes, put: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        assert find in raw
        return raw.replace(find, put, 1)

    return change


_LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10 if n else b"ha") for n in range(9))
_HEAD = b"<p:Response"

DOCUMENTS: Mapping[str, tuple[Callable[[bytes], bytes], SamlReason]] = {
    "doctype": (_text(_HEAD, b"<!DOCTYPE x>" + _HEAD), SamlReason.DOCTYPE),
    "entity": (
        lambda raw: _text(b">alice@", b">&e;alice@")(
            _text(_HEAD, b'<!DOCTYPE x [<!ENTITY e "mallory">]>' + _HEAD)(raw)
        ),
        SamlReason.DOCTYPE,
    ),
    "external entity": (
        lambda raw: _text(b">alice@", b">&e;alice@")(
            _text(_HEAD, b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + _HEAD)(raw)
        ),
        SamlReason.DOCTYPE,
    ),
    "external dtd": (_text(_HEAD, b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">' + _HEAD), SamlReason.DOCTYPE),
    "default attribute": (
        _text(_HEAD, b'<!DOCTYPE x [<!ATTLIST a:NameID ID CDATA "_a1">]>' + _HEAD),
        SamlReason.DOCTYPE,
    ),
    "entities in entities": (
        lambda raw: _text(b">alice@", b">&l8;alice@")(_text(_HEAD, b"<!DOCTYPE x [" + _LAUGHS + b"]>" + _HEAD)(raw)),
        SamlReason.MALFORMED,
    ),
    "utf-16": (lambda raw: raw.decode().replace("UTF-8", "UTF-16").encode("utf-16"), SamlReason.MALFORMED),
    "utf-7": (_text(b"UTF-8", b"UTF-7"), SamlReason.MALFORMED),
    "latin-1": (_text(b"UTF-8", b"ISO-8859-1"), SamlReason.MALFORMED),
    "not utf-8": (_text(b">alice@", b">alic\xff@"), SamlReason.MALFORMED),
    "nul": (_text(b">alice@", b">alice\0@"), SamlReason.MALFORMED),
    "attribute twice": (_text(b' ID="_a1"', b' ID="_a1" ID="_a2"'), SamlReason.MALFORMED),
    "unbound prefix": (_text(b"<a:Issuer>", b'<a:Issuer y:z="1">'), SamlReason.MALFORMED),
    "two roots": (lambda raw: raw + raw.partition(b"?>")[2], SamlReason.MALFORMED),
    "deep": (
        _text(b"<a:Subject>", b"<a:x>" * 400 + b"</a:x>" * 400 + b"<a:Subject>"),
        SamlReason.MALFORMED,
    ),
    "large": (_text(b"<a:Subject>", b" " * 300_000 + b"<a:Subject>"), SamlReason.TOO_LARGE),
    "empty": (lambda raw: b"", SamlReason.MALFORMED),
    "html": (lambda raw: b"<html><body>Sign in</html>", SamlReason.MALFORMED),
}
"""Documents that parsers may read in different ways, or not at all."""
