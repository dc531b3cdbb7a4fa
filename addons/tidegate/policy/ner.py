"""What a policy says of the optional model that recognises names: ``inspection.ner``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.inspection.ner.spec import READ_BY_DEFAULT, Late
from tidegate.model import Role
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

NER_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "inspection.ner": ("folder", "file", "labels", "budget", "late", "workers", "roles", "threshold"),
}
BUDGET = 0.15
THRESHOLD = 0.5
MAX_WORKERS = 64
"""Each holds a model of its own: more is a mistake in the unit."""
_FOLDER = "a folder relative to this file, with config.json, tokenizer.json and model.onnx"
_LABELS = "labels of the model, each with the class of its findings, such as {PER: names, LOC: addresses}"
_SHARE = "a probability above 0 and below 1, such as 0.5"


@dataclass(frozen=True, slots=True)
class NerDoc:
    """The section as written. ``labels`` maps an entity of the model to its class, and where that is written."""

    node: Node
    folder: Node
    file: Node | None
    labels: Mapping[str, tuple[str, Node]]
    budget: float
    late: Late
    workers: int
    roles: frozenset[Role]
    threshold: float


def read_ner(reader: Reader, node: Node | None) -> NerDoc | None:
    """Read ``inspection.ner``. Faults go to the reader; what is returned can be looked for."""
    if node is None:
        return None
    before = len(reader.faults)
    keys = reader.section(node, NER_SECTIONS["inspection.ner"], {"folder": _FOLDER, "labels": _LABELS})
    entries = reader.entries(keys.get("labels"))
    if "labels" in keys and entries == {} and isinstance(keys["labels"].value, Mapping):
        reader.fault(keys["labels"], _LABELS, found="no label")
    for name in ("folder", "file"):
        reader.text(keys.get(name), _FOLDER if name == "folder" else "the path of an ONNX file below the folder")
    workers = reader.count(keys.get("workers"), f"a number of processes from 1 to {MAX_WORKERS}")
    if workers is not None and workers > MAX_WORKERS:
        reader.fault(keys["workers"], f"a number of processes from 1 to {MAX_WORKERS}")
    doc = NerDoc(
        node=node,
        folder=keys.get("folder", node),
        file=keys.get("file"),
        labels={name: (reader.name(each), each) for name, each in entries.items()},
        budget=reader.seconds(keys.get("budget")) or BUDGET,
        late=reader.choice(keys.get("late"), Late, Late.BLOCK),
        workers=workers or 1,
        roles=_roles(reader, keys.get("roles")),
        threshold=_share(reader, keys.get("threshold")),
    )
    return doc if len(reader.faults) == before else None


def _roles(reader: Reader, node: Node | None) -> frozenset[Role]:
    if node is None:
        return frozenset(READ_BY_DEFAULT)
    written = reader.texts(node, f"a list of roles: {', '.join(Role)}")
    return frozenset(reader.choice(each, Role, Role.USER) for each in written)


def _share(reader: Reader, node: Node | None) -> float:
    if node is None:
        return THRESHOLD
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        reader.fault(node, _SHARE)
        return THRESHOLD
    return float(value)
