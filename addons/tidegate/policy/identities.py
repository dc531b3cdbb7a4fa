"""The ``identity`` section of a policy: who issues the tokens that callers show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.policy.entrances import one_network_each, read_certificate, read_source
from tidegate.policy.oidc import OIDC_SECTIONS, check_opaque, read_oidc
from tidegate.policy.policy import Identity, OidcIdentity, SourceIdentity, StaticIdentity
from tidegate.policy.reader import Reader
from tidegate.policy.saml import SAML_SECTIONS, read_saml
from tidegate.policy.source import Node

IDENTITY_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity[]": ("name", "oidc", "static", "saml", "source", "certificate"),
    **OIDC_SECTIONS,
    "identity[].static": ("tokens",),
    **SAML_SECTIONS,
}

RESERVED = frozenset({"none", "tidegate"})
_LIST = "a list of identities, or the word none to switch identity off"


@dataclass(frozen=True, slots=True)
class Identities:
    """What was read: ``all`` is ``None`` for ``identity: none``; ``nodes`` maps each name to its place."""

    all: tuple[Identity, ...] | None
    nodes: Mapping[str, Node]


def read_identities(reader: Reader, node: Node | None) -> Identities:
    """Read the section; a repeated name or issuer is a fault."""
    if node is None:
        return Identities((), {})
    if node.value == "none":
        return Identities(None, {})
    if node.value == ():
        reader.fault(node, _LIST, found="an empty list")
    found: list[Identity] = []
    nodes: dict[str, Node] = {}
    issuers: set[str] = set()
    networks: dict[str, str] = {}
    for each in reader.items(node, _LIST):
        identity = _identity(reader, each, nodes)
        if isinstance(identity, OidcIdentity) and identity.issuer:
            if identity.issuer in issuers:
                reader.fault(each, "each issuer once", found=f"a second identity of the issuer {identity.issuer}")
            issuers.add(identity.issuer)
        if isinstance(identity, SourceIdentity):
            one_network_each(reader, each, identity, networks)
        if identity is not None:
            found.append(identity)
    check_opaque(reader, node, found)
    return Identities(tuple(found), nodes)


def _identity(reader: Reader, node: Node, nodes: dict[str, Node]) -> Identity | None:
    section = reader.section(node, IDENTITY_SECTIONS["identity[]"], {"name": "a name for the identity"})
    name = reader.name(section.get("name"))
    if name in RESERVED:
        reader.fault(section["name"], "a name other than none and tidegate")
    elif name in nodes:
        reader.fault(section["name"], "each name once", found=f"a second identity named {name}")
    if name:
        nodes.setdefault(name, node)
    kinds = [kind for kind in IDENTITY_SECTIONS["identity[]"][1:] if kind in section]
    if len(kinds) != 1:
        if isinstance(node.value, Mapping):
            reader.fault(
                node, "exactly one of oidc, static, saml, source and certificate", found=" and ".join(kinds) or "none"
            )
        return None
    if kinds == ["oidc"]:
        return read_oidc(reader, section["oidc"], name)
    if kinds == ["saml"]:
        return read_saml(reader, section["saml"], name)
    if kinds == ["source"]:
        return read_source(reader, section["source"], name)
    if kinds == ["certificate"]:
        return read_certificate(reader, section["certificate"], name)
    accepted = "the path of a tokens file, relative to this file"
    static = reader.section(section["static"], IDENTITY_SECTIONS["identity[].static"], {"tokens": accepted})
    return StaticIdentity(name, reader.text(static.get("tokens"), accepted))
