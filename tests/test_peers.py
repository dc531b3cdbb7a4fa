"""Callers by certificate and by address; certificates good and hostile."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.tokens import NOW
from tidegate.identity.peers import Peers
from tidegate.model import Caller, Denial, Peer, Reason
from tidegate.policy.policy import CertificateIdentity, CertificateName, SourceIdentity

MOMENT = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
DAY = datetime.timedelta(days=1)
USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


class Signer:
    """An authority of the test's own."""

    def __init__(self, name: str = "machines ca", **changes: Any) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        extensions: list[x509.ExtensionType] = [x509.BasicConstraints(ca=True, path_length=0), usage]
        self.certificate = self.sign(self.name, self.key, extensions, **changes)

    def sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: Sequence[x509.ExtensionType],
        *,
        start: datetime.datetime = MOMENT - DAY,
        end: datetime.datetime = MOMENT + DAY,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for each in extensions:
            builder = builder.add_extension(each, critical=isinstance(each, x509.BasicConstraints | x509.KeyUsage))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def client(
        self,
        *names: tuple[x509.ObjectIdentifier, str],
        usages: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        others: Sequence[x509.GeneralName] = (),
        ca: bool = False,
        **times: Any,
    ) -> bytes:
        extensions: list[x509.ExtensionType] = [x509.BasicConstraints(ca=ca, path_length=None), USAGE]
        if usages is not None:
            extensions.append(x509.ExtendedKeyUsage(usages))
        if others:
            extensions.append(x509.SubjectAlternativeName(others))
        subject = x509.Name([x509.NameAttribute(*each) for each in names or ((NameOID.COMMON_NAME, "build-7"),)])
        return self.sign(subject, ec.generate_private_key(ec.SECP256R1()), extensions, **times)

    def client_pem(self) -> bytes:
        """Return a certificate of now with its key, as a file for a client."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        extensions = [x509.BasicConstraints(ca=False, path_length=None), USAGE, usages]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "build-7")])
        der = self.sign(subject, key, extensions, start=now - DAY, end=now + DAY)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return secret + x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def client_certificates(folder: Path) -> Signer:
    """Make an authority of now, and the file ``machines.pem`` of it."""
    now = datetime.datetime.now(datetime.UTC)
    signer = Signer(start=now - DAY, end=now + DAY)
    pem = x509.load_der_x509_certificate(signer.certificate).public_bytes(Encoding.PEM)
    (folder / "machines.pem").write_bytes(pem)
    return signer


SIGNER = Signer()
CN = NameOID.COMMON_NAME
OU = NameOID.ORGANIZATIONAL_UNIT_NAME


def machines(signer: Signer = SIGNER, name: str = "machines", **changes: Any) -> CertificateIdentity:
    values = {"subject": CertificateName.CN, "groups": ("ci",), "units": False, "roots": (signer.certificate,)}
    return CertificateIdentity(name, "/ca.pem", **{**values, **changes})  # type: ignore[arg-type]


def test_a_certificate_names_its_caller() -> None:
    caller = Peers([machines()]).identify(Peer("10.0.0.1", SIGNER.client()), NOW)
    assert caller == Caller(
        "machines",
        "build-7",
        frozenset({"machines:ci"}),
        expires=(MOMENT + DAY).timestamp(),
        strength=frozenset({"mtls"}),
    )


@pytest.mark.parametrize(
    ("kind", "other", "subject"),
    [
        (CertificateName.DNS, x509.DNSName("build.example.com"), "build.example.com"),
        (CertificateName.URI, x509.UniformResourceIdentifier("spiffe://td/ns/ci"), "spiffe://td/ns/ci"),
        (CertificateName.EMAIL, x509.RFC822Name("build@example.com"), "build@example.com"),
    ],
)
def test_other_names(kind: CertificateName, other: x509.GeneralName, subject: str) -> None:
    peers = Peers([machines(subject=kind)])
    caller = peers.identify(Peer(None, SIGNER.client(others=[other])), NOW)
    assert isinstance(caller, Caller)
    assert caller.subject == subject
    several = SIGNER.client(others=[other, x509.DNSName("b.example"), x509.RFC822Name("c@b.example"), other])
    for each in (SIGNER.client(), several):
        assert isinstance(peers.identify(Peer(None, each), NOW), Denial)


def test_units_are_groups() -> None:
    peers = Peers([machines(groups=(), units=True)])
    caller = peers.identify(Peer(None, SIGNER.client((CN, "a"), (OU, "ml-eng"), (OU, "ci"))), NOW)
    assert isinstance(caller, Caller)
    assert caller.groups == {"machines:ml-eng", "machines:ci"}


HOSTILE = {
    "self-signed": Signer("build-7").certificate,
    "foreign-authority-of-the-same-name": Signer().client(),
    "past-its-end": SIGNER.client(start=MOMENT - 2 * DAY, end=MOMENT - DAY),
    "not-yet": SIGNER.client(start=MOMENT + DAY, end=MOMENT + 2 * DAY),
    "for-servers": SIGNER.client(usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "for-anything": SIGNER.client(usages=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "for-nothing-said": SIGNER.client(usages=None),
    "an-authority": SIGNER.client(ca=True),
    "the-root-itself": SIGNER.certificate,
    "two-common-names": SIGNER.client((CN, "build-7"), (CN, "admin")),
    "no-common-name": SIGNER.client((OU, "x")),
    "reserved": SIGNER.client((CN, "Tidegate:admin")),
    "control-characters": SIGNER.client((CN, "a\x1b[2J")),
    "truncated": SIGNER.client()[:-1],
    "no-certificate-at-all": b"x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_certificates(name: str) -> None:
    """None of them is overlooked, although the address alone would do."""
    peers = Peers([machines(), SourceIdentity("net", ("10.0.0.0/8",), None, ())])
    denial = peers.identify(Peer("10.0.0.1", HOSTILE[name]), NOW)
    assert isinstance(denial, Denial)
    assert denial.reason is Reason.CERTIFICATE_REFUSED


def test_a_remembered_certificate_ends_as_well() -> None:
    peers, shown = Peers([machines()]), Peer(None, SIGNER.client())
    first = peers.identify(shown, NOW)
    assert peers.identify(shown, NOW + 1) is first
    assert isinstance(peers.identify(shown, NOW + 2 * 86400), Denial)
    assert isinstance(peers.identify(shown, NOW - 2 * 86400), Denial)


def test_an_authority_that_ended_signs_nothing() -> None:
    old = Signer(end=MOMENT - datetime.timedelta(hours=1))
    assert isinstance(Peers([machines(old)]).identify(Peer(None, old.client()), NOW), Denial)


def test_a_certificate_of_two_identities_is_of_none() -> None:
    peers = Peers([machines(), machines(name="more")])
    assert isinstance(peers.identify(Peer(None, SIGNER.client()), NOW), Denial)


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("10.2.0.7", "net:farm"),
        ("::ffff:10.2.0.7", "net:farm"),
        ("10.2.3.4", "one:10.2.3.4"),
        ("fd00:1::5", "six:fd00:1::5"),
        ("fd00:1::5%eth0", "six:fd00:1::5"),
        ("10.3.0.1", None),
        ("::1", None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_addresses(address: str | None, subject: str | None) -> None:
    peers = Peers(
        [
            SourceIdentity("net", ("10.2.0.0/16",), "farm", ("ci",)),
            SourceIdentity("one", ("10.2.3.4/32",), None, ()),
            SourceIdentity("six", ("fd00:1::/64",), None, ()),
        ]
    )
    caller = peers.identify(Peer(address, b"a certificate that nobody asked for"), NOW)
    assert (f"{caller.identity}:{caller.subject}" if isinstance(caller, Caller) else caller) == subject
    if isinstance(caller, Caller):
        assert caller.strength == {"address"}


def test_nobody_is_known_by_default() -> None:
    assert not Peers(None).any
    assert Peers(()).identify(Peer("10.0.0.1", SIGNER.client()), NOW) is None
