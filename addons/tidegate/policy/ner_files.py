"""Opens the folder of the model that a policy names, in the usual Hugging Face layout for token classification.

A shell: it reads files. The model itself is loaded by the workers alone; here is only what can be told without it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidegate.inspection.ner.spec import Ner, entities, entity, rule_of
from tidegate.inspection.rules import Rule
from tidegate.model import Action, Direction, Fault
from tidegate.policy.ner import NerDoc

NEEDED = ("numpy", "onnxruntime", "tokenizers")
INSTALL = "pip install 'tidegate[ner]'"
MODEL_FILE = "model.onnx"
LENGTH = 256
"""Tokens a model reads at once unless its files say less. Attention costs the square of it: per character, 512 tokens
took 1.2 to 1.7 times as long as 256 with a small model; 256 are two hundred words around a name."""
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert"})  # two of their positions stand for padding
_FILE_BYTES = 64 << 20  # the tokenizers of large multilingual models have 17 MB
_MODEL_BYTES = 2 << 30  # what protobuf, and so an ONNX file, can hold


@dataclass(slots=True)
class OpenedNer:
    """What was found. ``files`` hold names and digests, for the policy's own."""

    ner: Ner | None = None
    rules: tuple[Rule, ...] = ()
    files: list[tuple[str, bytes]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def warnings(self, actions: Mapping[tuple[str, Direction], Action]) -> list[str]:
        """Say what the model does not read although the policy gives its classes an action there."""
        return [
            f"inspection.response.{rule.cls} is {action}, but {rule.id} reads prompts only: "
            "no answer, whole or streamed, is searched for it"
            for rule in self.rules
            if (action := actions.get((rule.cls, Direction.RESPONSE), Action.ALLOW)) is not Action.ALLOW
        ]

    def wanted(self, actions: Mapping[tuple[str, Direction], Action]) -> Ner | None:
        """Return the model if the policy wants anything of what it finds in prompts."""
        acts = (actions.get((rule.cls, Direction.PROMPT), Action.BLOCK) for rule in self.rules)
        return self.ner if any(each is not Action.ALLOW for each in acts) else None


def open_ner(file: str, doc: NerDoc | None, folder: Path) -> OpenedNer:
    """Look at the files of a model; ``folder`` is the policy's. Every fault is returned."""
    found = OpenedNer()
    if doc is None:
        return found
    place = (folder / str(doc.folder.value)).resolve()
    found.rules = tuple(rule_of(cls, file) for cls in sorted({cls for cls, _ in doc.labels.values()}))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        _fault(found, file, doc, (f"no installed package {' or '.join(missing)}", f"the extra ner: {INSTALL}"))
    if not place.is_dir():
        key = doc.folder
        found.faults.append(
            Fault(f"{file}:{key.line}", key.key, f"{place}, which is no folder", "the folder of a model")
        )
        return found
    model = place / (str(doc.file.value) if doc.file is not None else MODEL_FILE)
    config = _json(found, file, doc, place / "config.json")
    _json(found, file, doc, place / "tokenizer.json")
    _digested(found, file, doc, model)
    labels = _labels(config)
    if config is not None and not labels:
        _fault(found, file, doc, ("a config.json without id2label", "the labels by number, from 0 on"))
    for name, (_, node) in doc.labels.items():
        if labels and name not in entities(labels):
            known = ", ".join(entities(labels))
            found.faults.append(
                Fault(f"{file}:{node.line}", node.key, "a label that the model does not have", f"its labels: {known}")
            )
    if found.faults or config is None:
        return found
    classes = tuple(sorted((name, cls) for name, (cls, _) in doc.labels.items()))
    found.ner = Ner(
        model=str(model),
        tokenizer=str(place / "tokenizer.json"),
        labels=labels,
        classes=classes,
        length=_length(config, place),
        digest=hashlib.sha256(b"".join(digest for _, digest in found.files)).hexdigest(),
        budget=doc.budget,
        late=doc.late,
        workers=doc.workers,
        roles=doc.roles,
        threshold=doc.threshold,
    )
    return found


def _fault(found: OpenedNer, file: str, doc: NerDoc, says: tuple[str, str]) -> None:
    found.faults.append(Fault(f"{file}:{doc.node.line}", doc.node.key, *says))


def _digested(found: OpenedNer, file: str, doc: NerDoc, path: Path) -> None:
    key = doc.file or doc.folder
    try:
        if path.stat().st_size > _MODEL_BYTES:
            found.faults.append(Fault(f"{file}:{key.line}", key.key, f"{path}, over 2 GiB", "an ONNX file of its own"))
            return
        with path.open("rb") as data:
            found.files.append((path.name, hashlib.file_digest(data, "sha256").digest()))
    except OSError as error:
        said = f"{path}: {error.strerror or 'an error'}"
        found.faults.append(Fault(f"{file}:{key.line}", key.key, said, "an ONNX file; name another with file"))


def _json(found: OpenedNer, file: str, doc: NerDoc, path: Path) -> Mapping[str, Any] | None:
    key = doc.folder
    accepted = "a file of JSON, as a model's folder has it"
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise ValueError
        data = path.read_bytes()
        value = json.loads(data)
    except OSError as error:
        said = f"{path}: {error.strerror or 'an error'}"
        found.faults.append(Fault(f"{file}:{key.line}", key.key, said, accepted))
        return None
    except (ValueError, RecursionError):
        found.faults.append(Fault(f"{file}:{key.line}", key.key, f"{path}, which is no JSON", accepted))
        return None
    found.files.append((path.name, hashlib.sha256(data).digest()))
    return value if isinstance(value, dict) else {}


def _labels(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the labels by number; none where numbers are missing, or all that they say is that there is nothing."""
    named = (config or {}).get("id2label")
    if not isinstance(named, dict):
        return ()
    labels = tuple(named.get(str(index)) for index in range(len(named)))
    if not all(isinstance(each, str) and each for each in labels) or not any(map(entity, map(str, labels))):
        return ()
    return tuple(map(str, labels))


def _length(config: Mapping[str, Any], place: Path) -> int:
    """Return how many tokens the model reads at once: the least that its files say, and no more than ``LENGTH``."""
    positions = config.get("max_position_embeddings")
    said = [LENGTH]
    if isinstance(positions, int) and positions > 0:
        said.append(positions - 2 if config.get("model_type") in _OFFSET_POSITIONS else positions)
    try:
        more = json.loads((place / "tokenizer_config.json").read_bytes()).get("model_max_length")
    except (OSError, ValueError, AttributeError, RecursionError):
        more = None  # an optional file
    if isinstance(more, int) and more > 0:
        said.append(more)
    return max(min(said), 16)  # below that a window has no room for the words around a name
