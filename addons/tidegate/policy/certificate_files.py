"""Opens the authorities that certificate identities name. A shell: it reads files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.policy.identities import Identities
from tidegate.policy.policy import CertificateIdentity, Identity
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

FILE_BYTES = 1024 * 1024  # a bundle of all public authorities has 230 KB
_ACCEPTED = "a file of certificates (PEM), each that of an authority"


def open_authorities(
    reader: Reader, read: Identities, identities: Sequence[Identity] | None
) -> tuple[tuple[Identity, ...] | None, list[tuple[str, bytes]]]:
    """Return the identities with their roots, and the files (name, contents); faults go to the reader."""
    if identities is None:
        return None, []
    found: list[Identity] = []
    files: list[tuple[str, bytes]] = []
    for each in identities:
        node = _ca(read.nodes.get(each.name))
        if isinstance(each, CertificateIdentity) and node is not None:
            data, roots = _open(reader, node, Path(each.ca))
            files.append((Path(each.ca).name, data))
            found.append(replace(each, roots=roots))
        else:
            found.append(each)
    return tuple(found), files


def _ca(node: Node | None) -> Node | None:
    """Find the key ``certificate.ca`` of an identity."""
    for name in ("certificate", "ca"):
        node = node.value.get(name) if node is not None and isinstance(node.value, Mapping) else None
    return node if node is not None and isinstance(node.value, str) else None


def _open(reader: Reader, node: Node, path: Path) -> tuple[bytes, tuple[bytes, ...]]:
    try:
        if path.stat().st_size > FILE_BYTES:
            reader.fault(node, f"a file of at most {FILE_BYTES} bytes", f"{node.found}, a larger file")
            return b"", ()
        data = path.read_bytes()
        certificates = x509.load_pem_x509_certificates(data)
    except OSError as error:
        reader.fault(node, "a file that can be read", f"{node.found}: {error.strerror or 'an error'}")
        return b"", ()
    except ValueError:
        reader.fault(node, _ACCEPTED, f"{node.found}, something else")
        return b"", ()
    if not all(_is_authority(each) for each in certificates):
        reader.fault(node, _ACCEPTED, f"{node.found}: a certificate that may not sign others")
    return data, tuple(each.public_bytes(Encoding.DER) for each in certificates)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
