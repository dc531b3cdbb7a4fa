"""Which files a policy was made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.policy.watching import Watched

POLICY = """
version: 1
identity: [{name: local, static: {tokens: tokens.yaml}}]
connections:
  - {name: a, credential: {header: x, value: "Bearer ${file:KEY}"}, descriptors: a.pb}
inspection: {ner: {folder: model}, allow: [{file: allowed.yaml}]}
recording: {path: recording.db}
"""
BELOW = [
    "packs/a.yaml",
    "packs/words.txt",
    "dialects/b.yaml",
    "a.pb",
    "model/config.json",
    "allowed.yaml",
    "allowed.yaml.key",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*BELOW, "tokens.yaml", "recording.db", "unrelated.txt"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "KEY").write_text("x")
    (tmp_path / "policy.yaml").write_text(POLICY.replace("KEY", str(tmp_path / "KEY")))
    return tmp_path


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text("x")
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("longer"),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "replaced": replaced,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["policy.yaml", "KEY", *BELOW])
def test_a_change_of_any_file_is_seen(folder: Path, name: str, change: str) -> None:
    watched = Watched(folder / "policy.yaml")
    before = watched.stamp()
    assert watched.stamp() == before
    CHANGES[change](folder / name)
    assert watched.stamp() != before


@pytest.mark.parametrize("name", ["tokens.yaml", "recording.db", "unrelated.txt"])
def test_what_is_no_part_of_it_is_not(folder: Path, name: str) -> None:
    watched = Watched(folder / "policy.yaml")
    before = watched.stamp()
    (folder / name).write_text("longer")
    assert watched.stamp() == before


def test_a_new_pack_is_seen_and_a_new_reference_once_it_is_known(folder: Path) -> None:
    watched = Watched(folder / "policy.yaml")
    before = watched.stamp()
    (folder / "packs" / "new.yaml").write_text("x")
    assert watched.stamp() != before
    path = folder / "policy.yaml"
    path.write_text(path.read_text().replace("a.pb", "unrelated.txt"))
    assert watched.renew()
    before = watched.stamp()
    (folder / "unrelated.txt").write_text("longer")
    assert watched.stamp() != before


@pytest.mark.parametrize("text", ["{", "- a", "", "\0"])
def test_of_a_broken_policy_the_files_it_had_are_watched(folder: Path, text: str) -> None:
    watched = Watched(folder / "policy.yaml")
    (folder / "policy.yaml").write_text(text)
    assert not watched.renew()
    before = watched.stamp()
    (folder / "a.pb").write_text("longer")
    assert watched.stamp() != before
