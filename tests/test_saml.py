"""SAML: the matrix of hostile assertions with every guard on and each off, the checks, metadata, another signer."""

from __future__ import annotations

import base64
import functools
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import xmlsec
from lxml import etree

from tests import saml as s
from tests.saml_attacks import ATTACKS, DOCUMENTS, Attack
from tidegate.identity import saml, saml_document
from tidegate.identity.saml import SignedIn
from tidegate.identity.saml_document import GUARDS, SamlReason, SamlRefused
from tidegate.identity.saml_file import MetadataFile

ALICE = "alice@example.org"


def read(raw: bytes, **changes: Any) -> SignedIn:
    values = {"provider": s.PROVIDER, "identity": s.IDENTITY, "expected": s.EXPECTED, "now": s.NOW, **changes}
    return saml.read_response(raw, values["provider"], values["identity"], values["expected"], values["now"])


def reason(raw: bytes, **changes: Any) -> SamlReason:
    with pytest.raises(SamlRefused) as caught:
        read(raw, **changes)
    assert s.EVIL not in str(caught.value)
    assert ALICE not in str(caught.value)
    return caught.value.reason


@functools.cache
def sent(where: str) -> bytes:
    """What a provider sends, by where it signs."""
    inner = s.assertion()
    made = s.response(inner if where == "response" else s.signed(inner))
    return s.written(made if where == "assertion" else s.signed(made))


def attacked(attack: Attack, where: str = "assertion") -> bytes:
    """Write an attack as bytes that arrive; what stands beside the root is part of it."""
    return etree.tostring(attack(etree.fromstring(sent(where))).getroottree(), xml_declaration=True, encoding="UTF-8")


# ── what is signed is believed ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["assertion", "response", "both"])
def test_an_assertion_is_believed_wherever_it_is_signed(where: str) -> None:
    found = read(sent(where))
    assert (found.caller.identity, found.caller.subject) == ("adfs", ALICE)
    assert found.caller.groups == {"adfs:ml-eng", "adfs:ops"}
    assert found.caller.authenticated == s.NOW - 5
    assert len(found.caller.strength) == 1
    assert (found.assertion, found.ends, found.until) == ("_a1", s.NOW + 360, None)
    assert read(s.written(s.response(s.signed(s.assertion(session=1200))))).until == s.NOW + 1200


def by_xmlsec(element: etree._Element) -> etree._Element:
    """Sign with libxmlsec1, which shares no line with the verifier."""
    rules = xmlsec.constants
    signature = xmlsec.template.create(element, rules.TransformExclC14N, rules.TransformRsaSha256)
    element.insert(1, signature)
    reference = xmlsec.template.add_reference(signature, rules.TransformSha256, uri="#" + element.get("ID"))
    xmlsec.template.add_transform(reference, rules.TransformEnveloped)
    xmlsec.template.add_transform(reference, rules.TransformExclC14N)
    xmlsec.template.add_x509_data(xmlsec.template.ensure_key_info(signature))
    private, public = s.pem()
    context = xmlsec.SignatureContext()
    context.key = xmlsec.Key.from_memory(private, rules.KeyDataFormatPem)
    context.key.load_cert_from_memory(public.encode(), rules.KeyDataFormatPem)
    xmlsec.tree.add_ids(element, ["ID"])
    context.sign(signature)
    return element


@pytest.mark.parametrize("number", range(12))
def test_assertions_of_an_independent_signer_are_believed(number: int) -> None:
    name = ["alice@example.org", "Ålice Ünicode", "a&amp;b", "x" * 400][number % 4]
    made = s.assertion(name, groups=[f"group {n}" for n in range(number * 10)])
    inside = s.response(by_xmlsec(made)) if number % 3 else by_xmlsec(s.response(made))
    found = read(s.written(inside))
    assert found.caller.subject == name.replace("&amp;", "&")
    assert len(found.caller.groups) == number * 10
    changed = s.written(inside).replace(b"<a:NameID ", b"<a:NameID  x='1' ", 1)
    assert reason(changed) is SamlReason.SIGNATURE


# ── the matrix ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("attack", "why"), ATTACKS.items(), ids=lambda each: getattr(each, "__name__", str(each)))
def test_an_attack_is_refused_for_its_reason(attack: Attack, why: SamlReason) -> None:
    assert reason(attacked(attack)) is why


@pytest.mark.parametrize("where", ["response", "both"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda x: x.__name__)
def test_no_attack_is_somebody_else_where_the_response_is_signed(attack: Attack, where: str) -> None:
    with pytest.raises(SamlRefused):
        read(attacked(attack, where))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda each: each.__name__)
def test_with_a_guard_off_the_next_one_holds(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("assertion", "response"):
        raw = attacked(attack, where)
        for kept in [*((*GUARDS[:n], *GUARDS[n + 1 :]) for n in range(len(GUARDS))), ()]:
            monkeypatch.setattr(saml_document, "GUARDS", kept)
            try:
                found = read(raw)
            except SamlRefused:
                continue
            assert found.caller.subject == ALICE, "what was signed, and nothing else"
            assert found.caller.groups == {"adfs:ml-eng", "adfs:ops"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_parsers_may_differ_on_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, why = DOCUMENTS[name]
    assert reason(change(s.good())) is why
    monkeypatch.setattr(saml_document, "GUARDS", ())
    try:
        found = read(change(s.good()))
    except SamlRefused:
        return
    assert found.caller.subject == ALICE


def test_every_guard_is_what_refuses_something() -> None:
    """With one guard off, at least one attack or document is told another reason, or none: it was not there in vain."""
    raws = [attacked(each) for each in ATTACKS] + [change(s.good()) for change, _ in DOCUMENTS.values()]
    for position, (why, guard) in enumerate(GUARDS):
        alone = [raw for raw in raws if _first_guard(raw) == position]
        assert alone, f"{guard.__name__} ({why}) refuses nothing here"


def _first_guard(raw: bytes) -> int | None:
    try:
        root = saml_document.parse(raw)
    except SamlRefused:
        return None
    return next((n for n, (_, holds) in enumerate(GUARDS) if not holds(root)), None)


def test_a_signature_of_a_certificate_that_has_ended_or_of_none_is_refused() -> None:
    ended = replace(s.PROVIDER, certificates=(s.certificate("idp", 30),))
    assert reason(s.good(), provider=ended) is SamlReason.SIGNATURE
    assert reason(s.good(), provider=replace(s.PROVIDER, certificates=())) is SamlReason.SIGNATURE
    several = replace(s.PROVIDER, certificates=(s.certificate("old"), s.certificate()))
    assert read(s.good(), provider=several).caller.subject == ALICE


# ── the checks beside the signature ──────────────────────────────────────────────────────────────────────────────


def changed(path: str, name: str | None, value: str | None, *, remove: bool = False) -> bytes:
    """Change an assertion before it is signed: an attribute, the text, or the whole element."""
    made = s.assertion()
    found = made if path == "." else made.find(path, s.NS)
    if remove:
        found.getparent().remove(found)
    elif name is None:
        found.text = value
    elif value is None:
        del found.attrib[name]
    else:
        found.set(name, value)
    return s.written(s.response(s.signed(made)))


DATA, CONDITIONS = ".//a:SubjectConfirmationData", "a:Conditions"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (lambda: changed("a:Issuer", None, "https://other.example"), SamlReason.ISSUER),
        (lambda: changed("a:Issuer", None, None, remove=True), SamlReason.ISSUER),
        (lambda: changed(".", "Version", "1.1"), SamlReason.ISSUER),
        (lambda: s.good(audience="https://other.example"), SamlReason.AUDIENCE),
        (lambda: changed(".//a:AudienceRestriction", None, None, remove=True), SamlReason.AUDIENCE),
        (lambda: changed(CONDITIONS, None, None, remove=True), SamlReason.CONDITION),
        (lambda: s.good(recipient=s.ACS + "/"), SamlReason.RECIPIENT),
        (lambda: changed(DATA, "Recipient", None), SamlReason.RECIPIENT),
        (lambda: s.good(request="_other"), SamlReason.REQUEST),
        (lambda: s.good(request=None), SamlReason.REQUEST),
        (lambda: changed(DATA, "NotOnOrAfter", s.instant(-60)), SamlReason.EXPIRED),
        (lambda: changed(DATA, "NotOnOrAfter", None), SamlReason.EXPIRED),
        (lambda: changed(DATA, "NotBefore", s.instant(61)), SamlReason.NOT_YET),
        (lambda: changed(CONDITIONS, "NotOnOrAfter", s.instant(-60)), SamlReason.EXPIRED),
        (lambda: changed(CONDITIONS, "NotBefore", s.instant(61)), SamlReason.NOT_YET),
        (lambda: changed(CONDITIONS, "NotBefore", "yesterday"), SamlReason.MALFORMED),
        (lambda: changed(CONDITIONS, "NotBefore", "2027-01-15T08:00:00+01:00"), SamlReason.MALFORMED),
        (lambda: changed(CONDITIONS, "NotBefore", "2027-13-15T08:00:00Z"), SamlReason.MALFORMED),
        (lambda: changed("a:AuthnStatement", None, None, remove=True), SamlReason.STATEMENT),
        (lambda: changed("a:AuthnStatement", "SessionNotOnOrAfter", s.instant(0)), SamlReason.EXPIRED),
        (lambda: changed(".//a:SubjectConfirmation", "Method", "urn:x:holder-of-key"), SamlReason.SUBJECT),
        (lambda: changed(DATA, None, None, remove=True), SamlReason.SUBJECT),
        (lambda: changed(".//a:NameID", None, None, remove=True), SamlReason.SUBJECT),
        (lambda: s.good(name=" "), SamlReason.SUBJECT),
        (lambda: s.good(name="x" * 513), SamlReason.SUBJECT),
        (lambda: s.good(name="tidegate:alice"), SamlReason.SUBJECT),
        (lambda: s.good(name="a&#10;b"), SamlReason.SUBJECT),
        (lambda: s.good(kind=saml.TRANSIENT), SamlReason.SUBJECT),
        (lambda: s.good(groups=["Tidegate:x"]), SamlReason.GROUPS),
        (lambda: s.good(groups=[""]), SamlReason.GROUPS),
        (lambda: s.good(groups=[str(n) for n in range(1001)]), SamlReason.GROUPS),
        (lambda: changed(".//a:Attribute", "Name", saml.OVERAGE), SamlReason.OVERAGE),
        (lambda: s.written(s.response(s.signed(s.assertion()), request="_other")), SamlReason.REQUEST),
        (
            lambda: s.written(s.response(s.signed(s.assertion()), destination="https://x.example")),
            SamlReason.DESTINATION,
        ),
        (lambda: s.written(s.response(s.signed(s.assertion()), status="urn:x:Responder")), SamlReason.STATUS),
        (lambda: s.written(s.response(s.signed(s.assertion()), issuer="https://x.example")), SamlReason.ISSUER),
        (lambda: s.written(s.signed(s.assertion())), SamlReason.STRUCTURE),
        (lambda: s.written(s.response()), SamlReason.STRUCTURE),
    ],
)
def test_a_signed_assertion_is_refused_for_what_it_says(raw: Callable[[], bytes], why: SamlReason) -> None:
    assert reason(raw()) is why


def test_an_unknown_condition_and_a_second_statement_are_refused() -> None:
    for path, tag, why in (
        (CONDITIONS, f"{{{s.A}}}Condition", SamlReason.CONDITION),
        (CONDITIONS, f"{{{s.A}}}OneTimeUse", None),
        (".", f"{{{s.A}}}AuthnStatement", SamlReason.STATEMENT),
    ):
        made = s.assertion()
        etree.SubElement(made if path == "." else made.find(path, s.NS), tag)
        raw = s.written(s.response(s.signed(made)))
        if why is None:
            assert read(raw).caller.subject == ALICE
        else:
            assert reason(raw) is why


@pytest.mark.parametrize(
    ("path", "name", "seconds"),
    [
        (DATA, "NotOnOrAfter", -59),
        (CONDITIONS, "NotOnOrAfter", -59),
        (CONDITIONS, "NotBefore", 60),
        (DATA, "NotBefore", 60),
    ],
)
def test_clocks_may_differ_by_the_leeway(path: str, name: str, seconds: float) -> None:
    assert read(changed(path, name, s.instant(seconds))).caller.subject == ALICE


def test_the_subject_may_be_an_attribute_and_groups_may_come_in_pieces() -> None:
    made = s.assertion(kind=saml.TRANSIENT)
    statement = made.find("a:AttributeStatement", s.NS)
    for name, value in (("uid", "a-1"), ("groups", "more")):
        attribute = etree.SubElement(statement, f"{{{s.A}}}Attribute", Name=name)
        etree.SubElement(attribute, f"{{{s.A}}}AttributeValue").text = value
    raw = s.written(s.response(s.signed(made)))
    found = read(raw, identity=replace(s.IDENTITY, subject="uid"))
    assert found.caller.subject == "a-1"
    assert found.caller.groups == {"adfs:ml-eng", "adfs:ops", "adfs:more"}
    assert reason(raw, identity=replace(s.IDENTITY, subject="groups")) is SamlReason.SUBJECT
    assert read(raw, identity=replace(s.IDENTITY, subject="uid", groups=None)).caller.groups == frozenset()


def test_an_assertion_by_itself_is_for_the_token_endpoint() -> None:
    shown = s.signed(s.assertion(recipient=s.TOKEN, audience=s.TOKEN, request=None))

    def exchange(raw: bytes) -> SignedIn:
        return saml.read_assertion(raw, s.PROVIDER, s.IDENTITY, s.SHOWN, s.NOW)

    assert exchange(s.written(shown)).caller.subject == ALICE
    assert saml.claimed_issuer(s.written(shown)) == s.IDP
    for raw, why in (
        (s.written(s.signed(s.assertion())), SamlReason.RECIPIENT),
        (s.good(), SamlReason.STRUCTURE),
        (s.written(s.assertion(recipient=s.TOKEN, request=None)), SamlReason.UNSIGNED),
    ):
        with pytest.raises(SamlRefused) as caught:
            exchange(raw)
        assert caught.value.reason is why


# ── metadata, requests, base64 ───────────────────────────────────────────────────────────────────────────────────


def test_metadata_is_read_and_its_faults_are_told() -> None:
    found = saml.read_metadata(s.metadata("idp", "old"), None, s.NOW)
    assert isinstance(found, saml.Provider)
    assert (found.issuer, found.sign_in, len(found.certificates)) == (s.IDP, "https://idp.example/sso", 2)
    weak = s.metadata().replace(b'use="signing"', b'use="encryption"')
    for raw, problem in (
        (b"not xml", "no XML document"),
        (b"<!DOCTYPE x>" + s.metadata(), "DTD"),
        (weak, "no signing certificate"),
        (s.metadata(sign_in="http://idp.example/sso"), "no https address"),
        (s.metadata(sign_in="javascript:alert(1)"), "no https address"),
        (s.metadata(more=f' validUntil="{s.instant(-1)}"'), "has ended"),
        (s.metadata(more=' validUntil="soon"'), "validUntil"),
        (s.metadata().replace(b"IDPSSODescriptor", b"SPSSODescriptor"), "0 identity providers"),
    ):
        told = saml.read_metadata(raw, None, s.NOW)
        assert isinstance(told, str)
        assert problem in told
    assert saml.read_metadata(s.metadata(), "https://other.example", s.NOW) == "0 identity providers of that issuer"
    both = b'<md:EntitiesDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata">%s%s</md:EntitiesDescriptor>'
    both %= (s.metadata(), s.metadata(issuer="https://b.example"))
    assert saml.read_metadata(both, None, s.NOW) == "2 identity providers"
    assert isinstance(saml.read_metadata(both, "https://b.example", s.NOW), saml.Provider)


def test_a_changed_metadata_file_counts_at_once_and_a_broken_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "adfs.xml"
    file = MetadataFile(replace(s.IDENTITY, metadata=str(path)), lambda: s.NOW)
    assert file.provider() is None
    path.write_bytes(s.metadata("idp"))
    first = file.provider()
    assert first is not None
    assert read(s.good(), provider=first).caller.subject == ALICE
    path.write_bytes(s.metadata("idp") + b"<broken")
    assert file.provider() is first
    path.write_bytes(s.metadata("new-key"))
    second = file.provider()
    assert second is not None
    assert reason(s.good(), provider=second) is SamlReason.SIGNATURE, "the old certificate is gone"
    path.unlink()
    assert file.provider() is second


@pytest.mark.parametrize(
    ("group", "entity", "descriptor"),
    [
        pytest.param(None, 60, None, id="entity"),
        pytest.param(60, None, None, id="root"),
        pytest.param(None, None, 60, id="descriptor"),
        pytest.param(90, 60, 120, id="the-earliest"),
    ],
)
def test_metadata_ends_while_the_gate_runs(
    group: int | None, entity: int | None, descriptor: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ending(seconds: int | None) -> str:
        return "" if seconds is None else f' validUntil="{s.instant(seconds)}"'

    inner = s.metadata(more=ending(entity)).decode()
    inner = inner.replace("<md:IDPSSODescriptor", f"<md:IDPSSODescriptor{ending(descriptor)}")
    path, now = tmp_path / "adfs.xml", s.NOW
    path.write_text(
        f'<md:EntitiesDescriptor xmlns:md="{saml.METADATA}"{ending(group)}><md:EntitiesDescriptor>{inner}'
        "</md:EntitiesDescriptor></md:EntitiesDescriptor>"
    )
    file = MetadataFile(replace(s.IDENTITY, metadata=str(path)), lambda: now)
    found = file.provider()
    assert found is not None
    assert found.until == s.NOW + 60
    now = s.NOW + 59
    assert file.provider() is found
    now = s.NOW + 60
    assert file.provider() is file.provider() is None
    assert caplog.messages == [f"identity adfs: metadata {path}: it has ended (validUntil); nobody can sign in"]
    path.write_bytes(s.metadata(more=ending(86400)))
    assert file.provider() is not None


def test_a_request_to_sign_in_says_who_asks_and_where_to_answer() -> None:
    provider = replace(s.PROVIDER, sign_in="https://idp.example/sso?tenant=1")
    address = saml.sign_in_address(provider, request="_x", now=s.NOW, entity_id="urn:a&b", acs=s.ACS, state="_x")
    query = parse_qs(urlsplit(address).query)
    assert query["tenant"] == ["1"]
    assert query["RelayState"] == ["_x"]
    asked = etree.fromstring(zlib.decompress(base64.b64decode(query["SAMLRequest"][0]), -15))
    assert (asked.get("ID"), asked.get("AssertionConsumerServiceURL")) == ("_x", s.ACS)
    assert asked.findtext("a:Issuer", namespaces=s.NS) == "urn:a&b"
    ours = etree.fromstring(saml.our_metadata("urn:a&b", s.ACS))
    assert ours.get("entityID") == "urn:a&b"
    assert s.ACS.encode() in saml.our_metadata("x", s.ACS)


@pytest.mark.parametrize(
    ("text", "url", "why"),
    [("YQ", False, SamlReason.MALFORMED), ("Y Q=\n=", False, None), ("YQ", True, None),
     ("YQ==*", False, SamlReason.MALFORMED), ("é", False, SamlReason.MALFORMED),
     ("A" * 400_000, False, SamlReason.TOO_LARGE)],
    ids=["no padding", "white space", "base64url", "a foreign sign", "not ascii", "large"],
)  # fmt: skip
def test_base64_is_read_strictly(text: str, url: bool, why: SamlReason | None) -> None:
    if why is None:
        assert saml.decoded(text, url=url) == b"a"
        return
    with pytest.raises(SamlRefused) as caught:
        saml.decoded(text, url=url)
    assert caught.value.reason is why


def test_every_reason_is_documented_and_no_other() -> None:
    text = (Path(__file__).parents[1] / "docs" / "identity.md").read_text()
    table = text.partition("## SAML 2.0")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| ([a-z_, ]+) \| ", table)
    assert {each for row in rows for each in row.split(", ")} - {"reason"} == set(SamlReason)
