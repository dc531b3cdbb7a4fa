"""What a policy says of a company's own data: the indexes to look for, and the known false positives. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from tidegate.identity import reference
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node

KINDS = ("edm", "documents", "canaries")
PROPRIETARY_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "inspection.proprietary[]": (*KINDS, "name", "class", "key", "require", "window", "threshold"),
    "inspection.allow[]": ("file", "key"),
}
WINDOW = 300
_PATH = "a path relative to this file"
_KEY = "a reference to the key, such as ${file:/run/secrets/index} or ${env:INDEX_KEY}"


@dataclass(frozen=True, slots=True)
class DetectorDoc:
    """An entry of ``inspection.proprietary``. ``key`` is a reference; ``None``: the file beside the index."""

    node: Node
    kind: str
    path: str
    name: str
    cls: str
    key: str | None
    require: int
    window: int
    threshold: float | None


@dataclass(frozen=True, slots=True)
class AllowFileDoc:
    """An entry of ``inspection.allow`` as written."""

    node: Node
    path: str
    key: str | None


def read_detectors(reader: Reader, node: Node | None) -> tuple[DetectorDoc, ...]:
    """Read ``inspection.proprietary``. Faults go to the reader; what is returned can be opened."""
    found: dict[str, DetectorDoc] = {}
    for each in reader.items(node, "a list of indexes made by tidegate rules fingerprint"):
        doc = _detector(reader, each)
        if doc is None:
            continue
        if doc.name in found:
            reader.fault(each, "a name of its own for each; set one with name", found=f"a second one named {doc.name}")
        found[doc.name] = doc
    return tuple(found.values())


def _detector(reader: Reader, node: Node) -> DetectorDoc | None:
    before = len(reader.faults)
    keys = reader.section(node, PROPRIETARY_SECTIONS["inspection.proprietary[]"], {"class": NAME})
    kinds = [each for each in KINDS if each in keys]
    if isinstance(node.value, Mapping) and len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        reader.fault(node, f"exactly one of {', '.join(KINDS)}, with the path of the index", found=found)
        return None
    if not kinds:
        return None
    kind = kinds[0]
    for name in {"require": "edm", "window": "edm", "threshold": "documents"}.items():
        if name[0] in keys and name[1] != kind:
            reader.fault(keys[name[0]], f"{name[0]} beside {name[1]} only", found=f"{name[0]} beside {kind}")
    path = reader.text(keys[kind], _PATH)
    doc = DetectorDoc(
        node=keys[kind],
        kind=kind,
        path=path,
        name=reader.name(keys["name"]) if "name" in keys else _stem(reader, keys[kind], path, kind),
        cls=reader.name(keys.get("class")),
        key=_key(reader, keys.get("key")),
        require=reader.count(keys.get("require"), "a number of columns above zero") or 1,
        window=reader.count(keys.get("window"), "a number of characters above zero") or WINDOW,
        threshold=_threshold(reader, keys.get("threshold")),
    )
    return doc if len(reader.faults) == before else None


def read_allow_files(reader: Reader, node: Node | None) -> tuple[AllowFileDoc, ...]:
    """Read ``inspection.allow``. Faults go to the reader."""
    found = []
    for each in reader.items(node, "a list of files written by tidegate rules allow"):
        before = len(reader.faults)
        keys = reader.section(each, PROPRIETARY_SECTIONS["inspection.allow[]"], {"file": _PATH})
        doc = AllowFileDoc(keys.get("file", each), reader.text(keys.get("file"), _PATH), _key(reader, keys.get("key")))
        if len(reader.faults) == before:
            found.append(doc)
    return tuple(found)


def _stem(reader: Reader, node: Node, path: str, kind: str) -> str:
    """Name an index by its file; the canaries of a file have names of their own."""
    stem = PurePosixPath(path).name.partition(".")[0].lower().replace("_", "-")
    if kind != "canaries" and path and not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", stem):
        reader.fault(node, f"a file named like {NAME}, or a name beside it")
    return stem


def _key(reader: Reader, node: Node | None) -> str | None:
    if node is None:
        return None
    try:
        template = node.value if isinstance(node.value, str) else ""
        word, _ = reference.parse(template)
    except reference.NotAReference as problem:
        reader.fault(node, _KEY, found=str(problem))
        return None
    if word:
        reader.fault(node, _KEY, found="text beside the reference (not shown)")
    return template


def _threshold(reader: Reader, node: Node | None) -> float | None:
    """Read a share below one, or a whole number of fingerprints."""
    if node is None:
        return None
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or (value > 1 and value % 1):
        reader.fault(node, "a share of the document such as 0.3, or a whole number of fingerprints such as 4")
        return None
    return value
