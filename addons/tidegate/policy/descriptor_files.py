"""Opens the descriptor sets that gRPC connections name. A shell: it reads files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.dialects.methods import misfits
from tidegate.dialects.protobuf import DescriptorFault, Descriptors
from tidegate.dialects.spec import Dialect
from tidegate.policy.reader import Reader
from tidegate.policy.upstreams import DESCRIPTORS, ConnectionDoc

SET_BYTES = 16 * 1024 * 1024
"""Bytes of a descriptor set. That of Triton has 60 KB; one of all of Google's public APIs about 10 MB."""


@dataclass(slots=True)
class Described:
    """What was opened: descriptor sets by connection; ``files`` hold names and contents."""

    sets: dict[str, Descriptors] = field(default_factory=dict, repr=False)
    files: list[tuple[str, bytes]] = field(default_factory=list, repr=False)


def open_descriptors(
    reader: Reader, connections: Sequence[ConnectionDoc], dialects: Mapping[str, Dialect], folder: Path
) -> Described:
    """Open the descriptor set of every connection with a gRPC dialect; faults go to the reader."""
    found = Described()
    for each in connections:
        dialect = dialects.get(str(each.dialect.value)) if each.dialect is not None else None
        if dialect is None:
            continue
        if each.descriptors is None:
            if dialect.is_grpc:
                reader.fault(each.node, DESCRIPTORS, "nothing", f"{each.node.key}.descriptors")
        elif not dialect.is_grpc:
            reader.fault(each.descriptors, "descriptors for a dialect of gRPC methods alone")
        elif isinstance(each.descriptors.value, str):
            _open(reader, found, each, dialect, folder / each.descriptors.value)
    return found


def _open(reader: Reader, found: Described, doc: ConnectionDoc, dialect: Dialect, path: Path) -> None:
    assert doc.descriptors is not None
    try:
        if path.stat().st_size > SET_BYTES:
            reader.fault(doc.descriptors, f"a descriptor set of at most {SET_BYTES} bytes", f"{path}, a larger file")
            return
        data = path.read_bytes()
        sets = Descriptors(data)
    except OSError as error:
        reader.fault(doc.descriptors, "a file that can be read", f"{path}: {error.strerror or 'an error'}")
        return
    except DescriptorFault as fault:
        accepted = "what protoc --include_imports --descriptor_set_out writes"
        reader.fault(doc.descriptors, accepted, f"{path}: {fault}")
        return
    for what, accepted in misfits(dialect, sets):
        reader.fault(doc.descriptors, accepted, f"{path}: {what}")
    found.sets[doc.name] = sets
    found.files.append((path.name, data))
