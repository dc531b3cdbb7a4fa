"""Callers known by their connection, and what the proxy asks of it: parts of a policy. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from tidegate.policy.policy import CertificateIdentity, CertificateName, ProxyAuthentication, SourceIdentity
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

ENTRANCE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity[].source": ("addresses", "subject", "groups"),
    "identity[].certificate": ("ca", "subject", "groups"),
    "proxy": ("authentication",),
}

UNITS = "ou"
MOST_ADDRESSES = 2**24
"""The widest network that may stand for a caller: 10.0.0.0/8. For IPv6 it is a /32, what a provider gets."""
IPV6_PREFIX = 32
_ADDRESSES = "a list of addresses or networks such as 10.2.0.0/16 or fd00:1::/64, at most as wide as a /8 (IPv6: a /32)"
_GROUPS = "a list of groups without the identity's name"


def read_proxy(reader: Reader, node: Node | None, identity: Node | None) -> ProxyAuthentication:
    """Read the section ``proxy``; who has nobody to ask for cannot require anything."""
    if node is None:
        return ProxyAuthentication.OPTIONAL
    section = reader.section(node, ENTRANCE_SECTIONS["proxy"])
    found = section.get("authentication")
    word = _word(found)
    asked = reader.choice(word, ProxyAuthentication, ProxyAuthentication.REQUIRED)
    if found is None:
        return ProxyAuthentication.OPTIONAL
    if asked is ProxyAuthentication.REQUIRED and identity is not None and identity.value == "none":
        reader.fault(found, "optional or off with identity: none, under which nobody can be told from anybody")
    return asked


def read_source(reader: Reader, node: Node, name: str) -> SourceIdentity:
    """Read an identity by source address."""
    section = reader.section(node, ENTRANCE_SECTIONS["identity[].source"], {"addresses": _ADDRESSES})
    networks = []
    for each in reader.texts(section.get("addresses"), _ADDRESSES):
        network = _network(str(each.value))
        if network is None:
            reader.fault(each, _ADDRESSES)
        else:
            networks.append(network)
    subject = section.get("subject")
    accepted = "a name for the caller; without it each address is a caller of its own"
    if subject is not None and not _is_name(reader.text(subject, accepted)):
        reader.fault(subject, accepted)
    return SourceIdentity(
        name=name,
        networks=tuple(networks),
        subject=None if subject is None else str(subject.value),
        groups=_groups(reader, section.get("groups"), _GROUPS),
    )


def one_network_each(reader: Reader, node: Node, identity: SourceIdentity, seen: dict[str, str]) -> None:
    """Note a fault where two entries name the same network: nobody could tell whose callers come from it."""
    for network in identity.networks:
        if network in seen:
            found = f"the network {network} a second time (identity {seen[network]})"
            reader.fault(node, "each network once", found=found)
        seen[network] = identity.name


def read_certificate(reader: Reader, node: Node, name: str) -> CertificateIdentity:
    """Read an identity by client certificate; its file is opened elsewhere."""
    ca = "the path of a file with the certificates (PEM) of those who sign client certificates, relative to this file"
    section = reader.section(node, ENTRANCE_SECTIONS["identity[].certificate"], {"ca": ca})
    groups = section.get("groups")
    units = groups is not None and groups.value == UNITS
    return CertificateIdentity(
        name=name,
        ca=reader.text(section.get("ca"), ca),
        subject=reader.choice(section.get("subject"), CertificateName, CertificateName.CN),
        groups=() if units else _groups(reader, groups, f"the word {UNITS}, or {_GROUPS}"),
        units=units,
    )


def _word(node: Node | None) -> Node | None:
    """Take YAML's ``off`` for the word that was written; a reader of YAML 1.1 makes it false."""
    return Node(node.key, node.line, "off") if node is not None and node.value is False else node


def _groups(reader: Reader, node: Node | None, accepted: str) -> tuple[str, ...]:
    found = reader.texts(node, accepted)
    for each in found:
        if not _is_name(str(each.value)):
            reader.fault(each, accepted)
    return tuple(str(each.value) for each in found)


def _is_name(text: str) -> bool:
    return bool(text) and text.isprintable() and not text.lower().startswith("tidegate:")


def _network(text: str) -> str | None:
    """Return a network as ``ipaddress`` writes it; an address stands for itself. Bits beyond the prefix are a fault."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    wide = network.prefixlen < IPV6_PREFIX if network.version == 6 else network.num_addresses > MOST_ADDRESSES
    return None if wide else str(network)
