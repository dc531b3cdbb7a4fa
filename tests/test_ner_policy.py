"""What a policy may say of a local model, and the one sentence for everything it may not."""

from __future__ import annotations

# ruff: noqa: E501 - a message is one line
import importlib.util
import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml

from tests.ner_model import LABELS, make
from tidegate.inspection.ner.spec import READ_BY_DEFAULT, Late
from tidegate.model import Action, Direction, Role
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, PolicyError

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
ACTS = {"names": "redact", "addresses": "flag"}
NER = {"folder": "model", "labels": {"PER": "names", "LOC": "addresses"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "packs", tmp_path / "packs")
    (tmp_path / "dialects").symlink_to(ROOT / "rules" / "dialects", target_is_directory=True)
    make(tmp_path / "model", length=512)
    return tmp_path


def written(folder: Path, ner: object, prompt: dict[str, str] = ACTS, response: dict[str, str] | None = None) -> Path:
    document = yaml.safe_load((DATA / "policy.yaml").read_text())
    document["dialects"] = ["dialects/*.yaml"]
    document["inspection"]["prompt"] |= prompt
    document["inspection"]["response"] |= response or dict.fromkeys(prompt, "allow")
    document["inspection"]["ner"] = ner
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def loaded(folder: Path, ner: object = NER, **more: dict[str, str]) -> Policy:
    return load(written(folder, ner, **more))


def faults(folder: Path, ner: object) -> list[str]:
    """Return the messages, without the file's name and the line, which is not what is tested here."""
    with pytest.raises(PolicyError) as caught:
        loaded(folder, ner)
    texts = (str(fault).replace(str(folder), "FOLDER").split(": ", 1)[1] for fault in caught.value.faults)
    return sorted(texts)


def test_the_defaults(folder: Path) -> None:
    policy = loaded(folder)
    assert policy.ner is not None
    assert policy.ner.model == str(folder / "model" / "model.onnx")
    assert policy.ner.tokenizer == str(folder / "model" / "tokenizer.json")
    assert policy.ner.labels == LABELS
    assert policy.ner.classes == (("LOC", "addresses"), ("PER", "names"))
    assert (policy.ner.budget, policy.ner.late, policy.ner.workers) == (0.15, Late.BLOCK, 1)
    assert (policy.ner.roles, policy.ner.threshold) == (frozenset(READ_BY_DEFAULT), 0.5)
    assert policy.decisions[Direction.PROMPT]["ner.names"] is Action.REDACT
    assert policy.actions["addresses", Direction.PROMPT] is Action.FLAG


def test_every_key(folder: Path) -> None:
    (folder / "model" / "onnx").mkdir()
    shutil.move(folder / "model" / "model.onnx", folder / "model" / "onnx" / "small.onnx")
    more = {
        "file": "onnx/small.onnx",
        "budget": "2s",
        "late": "flag",
        "workers": 3,
        "roles": ["user"],
        "threshold": 0.3,
    }
    policy = loaded(folder, {**NER, **more})
    assert policy.ner is not None
    assert policy.ner.model == str(folder / "model" / "onnx" / "small.onnx")
    assert (policy.ner.budget, policy.ner.late, policy.ner.workers) == (2.0, Late.FLAG, 3)
    assert (policy.ner.roles, policy.ner.threshold) == (frozenset({Role.USER}), 0.3)


@pytest.mark.parametrize(
    ("config", "more", "length"),
    [
        ({"max_position_embeddings": 512}, None, 256),
        ({"max_position_embeddings": 128}, None, 128),
        ({"max_position_embeddings": 130, "model_type": "xlm-roberta"}, None, 128),
        ({}, None, 256),
        ({"max_position_embeddings": 512}, {"model_max_length": 64}, 64),
        ({"max_position_embeddings": 512}, {"model_max_length": 10**30}, 256),
        ({"max_position_embeddings": 512}, [], 256),
    ],
)
def test_windows_are_no_longer_than_the_model_reads(
    folder: Path, config: dict[str, object], more: object, length: int
) -> None:
    labels = {str(row): label for row, label in enumerate(LABELS)}
    (folder / "model" / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    if more is not None:
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps(more))
    policy = loaded(folder)
    assert policy.ner is not None
    assert policy.ner.length == length


def test_the_digest_of_the_policy_covers_the_files_of_the_model(folder: Path) -> None:
    before = loaded(folder)
    make(folder / "model", length=512, words={"carol": "B-PER"})
    after = loaded(folder)
    assert before.sha256 != after.sha256
    assert before.ner != after.ner


def test_answers_are_not_read_and_each_start_says_so(folder: Path) -> None:
    policy = loaded(folder, response={"names": "redact", "addresses": "allow"})
    assert [each for each in policy.warnings if "ner" in each] == [
        "inspection.response.names is redact, but ner.names reads prompts only: no answer, whole or streamed, is searched for it"
    ]
    assert not any("ner" in each for each in loaded(folder).warnings)


def test_a_model_of_which_nothing_is_wanted_is_not_started(folder: Path) -> None:
    assert loaded(folder, prompt=dict.fromkeys(ACTS, "allow")).ner is None


def test_a_policy_without_the_section_has_no_model() -> None:
    assert load(DATA / "policy.yaml").ner is None


NUMBER = "inspection.ner.workers: found {}; accepted: a number of processes from 1 to 64"
FOLDER = "inspection.ner.folder: found FOLDER/model/{}; accepted: a file of JSON, as a model's folder has it"
BROKEN: dict[str, tuple[object, list[str]]] = {
    "an unknown key": (
        {**NER, "path": "x"},
        [
            "inspection.ner.path: found an unknown key; accepted: the keys folder, file, labels, budget, late, workers, roles, threshold"
        ],
    ),
    "no mapping": (
        "model",
        [
            "inspection.ner: found 'model'; accepted: a mapping with the keys folder, file, labels, budget, late, workers, roles, threshold",
        ],
    ),
    "no folder": (
        {"labels": NER["labels"]},
        [
            "inspection.ner.folder: found nothing; accepted: a folder relative to this file, with config.json, tokenizer.json and model.onnx",
        ],
    ),
    "no labels": (
        {"folder": "model"},
        [
            "inspection.ner.labels: found nothing; accepted: labels of the model, each with the class of its findings, such as {PER: names, LOC: addresses}"
        ],
    ),
    "an empty mapping of labels": (
        {**NER, "labels": {}},
        [
            "inspection.ner.labels: found no label; accepted: labels of the model, each with the class of its findings, such as {PER: names, LOC: addresses}"
        ],
    ),
    "a class that is no name": (
        {**NER, "labels": {"PER": "Names!", "LOC": "addresses"}},
        [
            "inspection.ner.labels.PER: found 'Names!'; accepted: a name of lower-case letters, digits and hyphens that starts with a letter"
        ],
    ),
    "a label that the model does not have": (
        {**NER, "labels": {"PER": "names", "LOC": "addresses", "ORG": "names"}},
        ["inspection.ner.labels.ORG: found a label that the model does not have; accepted: its labels: LOC, PER"],
    ),
    "a folder that is not there": (
        {**NER, "folder": "nowhere"},
        ["inspection.ner.folder: found FOLDER/nowhere, which is no folder; accepted: the folder of a model"],
    ),
    "a file that is not there": (
        {**NER, "file": "small.onnx"},
        [
            "inspection.ner.file: found FOLDER/model/small.onnx: No such file or directory; accepted: an ONNX file; name another with file"
        ],
    ),
    "a budget without a unit": (
        {**NER, "budget": 150},
        ["inspection.ner.budget: found 150; accepted: a time such as 250ms, 120s, 10m or 1h"],
    ),
    "an unknown verdict": (
        {**NER, "late": "redact"},
        ["inspection.ner.late: found 'redact'; accepted: allow or flag or block"],
    ),
    "no workers": ({**NER, "workers": 0}, [NUMBER.format("0")]),
    "too many workers": ({**NER, "workers": 1000}, [NUMBER.format("1000")]),
    "an unknown role": (
        {**NER, "roles": ["user", "model"]},
        [
            "inspection.ner.roles[1]: found 'model'; accepted: system or user or assistant or tool_result or tool_definition or metadata or other"
        ],
    ),
    "a threshold of all": (
        {**NER, "threshold": 1},
        ["inspection.ner.threshold: found 1; accepted: a probability above 0 and below 1, such as 0.5"],
    ),
}


@pytest.mark.parametrize(("ner", "expected"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_accepted_is_said(folder: Path, ner: object, expected: list[str]) -> None:
    found = faults(folder, ner)
    assert [each for each in found if each.startswith("inspection.ner")] == sorted(expected)


FILES: dict[str, tuple[str, str | None, str]] = {
    "no config.json": ("config.json", None, FOLDER.format("config.json: No such file or directory")),
    "no tokenizer.json": ("tokenizer.json", None, FOLDER.format("tokenizer.json: No such file or directory")),
    "a tokenizer that is no JSON": ("tokenizer.json", "{", FOLDER.format("tokenizer.json, which is no JSON")),
    "no labels in config.json": (
        "config.json",
        "{}",
        "inspection.ner: found a config.json without id2label; accepted: the labels by number, from 0 on",
    ),
    "labels with a gap": (
        "config.json",
        '{"id2label": {"0": "O", "2": "B-PER"}}',
        "inspection.ner: found a config.json without id2label; accepted: the labels by number, from 0 on",
    ),
    "no model": (
        "model.onnx",
        None,
        "inspection.ner.folder: found FOLDER/model/model.onnx: No such file or directory; accepted: an ONNX file; name another with file",
    ),
}


@pytest.mark.parametrize(("name", "text", "says"), FILES.values(), ids=FILES)
def test_what_is_missing_in_the_folder_is_said(folder: Path, name: str, text: str | None, says: str) -> None:
    (folder / "model" / name).unlink()
    if text is not None:
        (folder / "model" / name).write_text(text)
    assert faults(folder, NER) == [says]


def test_without_the_extra_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in ("onnxruntime", "tokenizers") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert faults(folder, NER) == [
        "inspection.ner: found no installed package onnxruntime or tokenizers; accepted: the extra ner: pip install 'tidegate[ner]'"
    ]
