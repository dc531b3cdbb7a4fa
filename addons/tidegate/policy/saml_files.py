"""Looks into the metadata files of SAML identities when a policy is loaded, so that a fault is told then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tidegate.identity.saml_file import load_metadata
from tidegate.policy.identities import Identities
from tidegate.policy.policy import SamlIdentity
from tidegate.policy.reader import Reader

ACCEPTED = "a SAML 2.0 metadata file with one identity provider, its HTTP-Redirect address and its signing certificates"


def check_metadata(reader: Reader, identities: Identities, folder: Path) -> None:
    """Note a fault for each metadata file that cannot be used."""
    for each in identities.all or ():
        if isinstance(each, SamlIdentity) and each.metadata:
            found = load_metadata((folder / each.metadata).resolve(), each.issuer, time.time())
            if isinstance(found, str):
                node = identities.nodes[each.name]
                saml = node.value["saml"] if isinstance(node.value, Mapping) else node
                place = saml.value["metadata"] if isinstance(saml.value, Mapping) else saml
                reader.fault(place, ACCEPTED, found=f"{place.found}: {found}")
