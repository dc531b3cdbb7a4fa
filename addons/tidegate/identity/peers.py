"""Who calls, told by the client's connection alone: by its certificate, or by its address. Pure; the clock is given.

A certificate counts if ``cryptography`` builds a chain from it to an authority that the policy names for this
purpose, if it is valid at this time, and if it says that it is for clients. The handshake has proven that the client
has its key.
An address is what the connection really came from: header fields that tell another are never read.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections import OrderedDict
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidegate.model import Caller, Denial, Peer, Reason
from tidegate.policy.policy import CertificateIdentity, CertificateName, Identity, SourceIdentity

REMEMBERED = 1_000
"""Certificates whose caller is remembered; to verify one takes about 0.2 ms."""
NAME_CHARACTERS = 512
CERTIFICATE = "mtls"
ADDRESS = "address"
"""What ``Caller.strength`` holds of a caller who is known by a certificate, or by nothing but an address."""

REFUSED = Denial(
    Reason.CERTIFICATE_REFUSED, 401, "The client certificate was not accepted; connect with another, or with none."
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Peers:
    """The callers of one policy that their connection makes known. ``identify`` is all there is to ask."""

    def __init__(self, identities: Sequence[Identity] | None) -> None:
        known = identities or ()
        self._authorities = [_Authority(each) for each in known if isinstance(each, CertificateIdentity)]
        networks = [
            (ipaddress.ip_network(network), each)
            for each in known
            if isinstance(each, SourceIdentity)
            for network in each.networks
        ]
        self._networks = sorted(networks, key=lambda pair: -pair[0].prefixlen)  # the narrowest network wins
        self._remembered: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    @property
    def any(self) -> bool:
        """Whether there is any caller to know."""
        return bool(self._authorities or self._networks)

    @property
    def certificates(self) -> bool:
        """Whether clients are to be asked for a certificate."""
        return bool(self._authorities)

    def identify(self, peer: Peer, now: float) -> Caller | Denial | None:
        """Name the caller; ``None`` if the connection says nothing. A certificate that is bad is not overlooked."""
        if peer.certificate is not None and self._authorities:
            return self._certified(peer.certificate, now)
        return self._located(peer.address) if self._networks and peer.address else None

    def _certified(self, der: bytes, now: float) -> Caller | Denial:
        remembered = self._remembered.get(der)
        if remembered is not None and remembered[1] <= now < (remembered[0].expires or 0):
            self._remembered.move_to_end(der)
            return remembered[0]
        try:
            certificate = x509.load_der_x509_certificate(der)
            found = [each.caller(certificate, now) for each in self._authorities]
        except ValueError:
            return REFUSED
        callers = [each for each in found if each is not None]
        if len(callers) != 1:
            return REFUSED
        self._remembered[der] = callers[0], certificate.not_valid_before_utc.timestamp()
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return callers[0]

    def _located(self, text: str) -> Caller | None:
        address = _address(text)
        for network, each in self._networks if address is not None else ():
            if address in network:
                groups = frozenset(f"{each.name}:{group}" for group in each.groups)
                return Caller(each.name, each.subject or str(address), groups, strength=frozenset({ADDRESS}))
        return None


class _Authority:
    """Those who sign the certificates of one identity."""

    def __init__(self, identity: CertificateIdentity) -> None:
        self.identity = identity
        self._roots = [x509.load_der_x509_certificate(each) for each in identity.roots]

    def caller(self, certificate: x509.Certificate, now: float) -> Caller | None:
        """Name the holder of a certificate; ``None`` if it is not ours. Raises ``ValueError`` on a broken one."""
        if not self._roots:
            return None
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store(self._roots))
            .time(datetime.datetime.fromtimestamp(now, datetime.UTC))
            .extension_policies(ca_policy=_CA, ee_policy=_CLIENT)
            .build_client_verifier()
        )
        try:
            chain = verifier.verify(certificate, []).chain
        except verification.VerificationError:
            return None
        subject = _subject(certificate, self.identity.subject)
        groups = {*self.identity.groups, *(_texts(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME, self.identity))}
        if subject is None or not all(_is_name(each) for each in groups):
            return None
        return Caller(
            self.identity.name,
            subject,
            frozenset(f"{self.identity.name}:{group}" for group in groups),
            expires=min(each.not_valid_after_utc.timestamp() for each in chain),
            strength=frozenset({CERTIFICATE}),
        )


_CA = verification.ExtensionPolicy.webpki_defaults_ca()


def _for_clients(_policy: object, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("not for clients")


_CLIENT = (
    verification.ExtensionPolicy.webpki_defaults_ee()
    # private authorities issue certificates without another name than CN
    .may_be_present(x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None)
    # "any purpose" and silence are not enough
    .require_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _for_clients)
)


def _subject(certificate: x509.Certificate, kind: CertificateName) -> str | None:
    """Read the one name of a kind; a certificate with none or several of them names nobody."""
    if kind is CertificateName.CN:
        found = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    else:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return None
        found = [str(each) for each in names.get_values_for_type(_KINDS[kind])]
    return found[0] if len(found) == 1 and _is_name(found[0]) else None


_KINDS: dict[CertificateName, type[x509.DNSName | x509.UniformResourceIdentifier | x509.RFC822Name]] = {
    CertificateName.DNS: x509.DNSName,
    CertificateName.URI: x509.UniformResourceIdentifier,
    CertificateName.EMAIL: x509.RFC822Name,
}


def _texts(certificate: x509.Certificate, oid: x509.ObjectIdentifier, identity: CertificateIdentity) -> list[str]:
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(oid)] if identity.units else []


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARACTERS and text.isprintable() and not text.lower().startswith("tidegate:")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address; one of IPv4 that came over an IPv6 socket is itself, and a zone (``%eth0``) is left out."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address
