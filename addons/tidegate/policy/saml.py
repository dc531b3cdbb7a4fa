"""The ``saml`` section of an identity. Pure; the metadata file itself is read by ``saml_files``."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.policy.policy import SamlIdentity
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

SAML_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity[].saml": ("metadata", "issuer", "entity_id", "groups", "subject", "leeway"),
}

LEEWAY = 60.0
MOST_LEEWAY = 300.0


def read_saml(reader: Reader, node: Node, name: str) -> SamlIdentity:
    """Read one section."""
    accepted = "the path of the provider's metadata file, relative to this file"
    section = reader.section(node, SAML_SECTIONS["identity[].saml"], {"metadata": accepted})
    attribute = "the name of an attribute in the provider's assertions"
    leeway = reader.seconds(section.get("leeway"))
    if leeway is not None and leeway > MOST_LEEWAY:
        reader.fault(section["leeway"], f"at most {MOST_LEEWAY:.0f}s")
    return SamlIdentity(
        name=name,
        metadata=reader.text(section.get("metadata"), accepted),
        issuer=reader.text(section.get("issuer"), "the provider's entity id, where its metadata has several") or None,
        entity_id=reader.text(section.get("entity_id"), "the name by which the provider knows this gateway") or None,
        groups=reader.text(section.get("groups"), attribute) or None,
        subject=reader.text(section.get("subject"), attribute) or None,
        leeway=LEEWAY if leeway is None else leeway,
    )
