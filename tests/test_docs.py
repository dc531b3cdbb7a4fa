"""What the documents say, against what there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tidegate.cli import main
from tidegate.gateway import THREAD_BYTES
from tidegate.model import Reason
from tidegate.standalone import FORBIDDEN

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DENIALS = (ROOT / "docs" / "denials.md").read_text()
CLIENTS = (ROOT / "docs" / "clients.md").read_text()


def commands(
    group: click.Group = main, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = dict(commands())


def options(command: click.Command) -> set[str]:
    return {word for each in command.params if isinstance(each, click.Option) for word in each.opts}


def test_every_reason_is_documented_and_no_other() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \|", DENIALS)
    assert sorted(rows) == sorted(reason.value for reason in Reason)


@pytest.mark.parametrize("reason", list(Reason), ids=str)
def test_a_reason_has_its_statuses_its_meaning_and_what_to_do(reason: Reason) -> None:
    row = re.search(rf"(?m)^\| `{reason}` \| ([^|]*) \| ([^|]*) \| ([^|]*)\|$", DENIALS)
    assert row is not None
    documented = set(re.findall(r"\d{3}", row[1]))
    source = "\n".join(path.read_text() for path in (ROOT / "addons" / "tidegate").rglob("*.py"))
    used = set(re.findall(rf"Denial\(\s*Reason\.{reason.name},\s*(\d{{3}}),", source))
    assert documented
    assert used <= documented
    assert len(row[2]) > 10


@pytest.mark.parametrize("words", list(COMMANDS), ids=" ".join)
def test_every_command_and_option_is_documented_and_no_other(words: tuple[str, ...]) -> None:
    row = re.search(rf"(?m)^\| `tidegate {' '.join(words)}` \| .+ \| (.+) \|$", CLIENTS)
    assert row is not None
    documented = {each.split()[0] for each in re.findall(r"`(--?[^`]+)`", row[1])}
    assert documented == options(COMMANDS[words])


def console_lines(text: str) -> Iterator[str]:
    for block in re.findall(r"(?ms)^```(?:console|sh)\n(.*?)^```", text):
        yield from (line.removeprefix("$ ") for line in block.splitlines())
    yield from re.findall(r"`(tidegate [^`]+)`", text)


def spoken(path: Path) -> list[str]:
    """Return the words after each ``tidegate`` that a document tells a person to type."""
    lines = (line.partition("  #")[0].strip() for line in console_lines(path.read_text()))
    return sorted({line for line in lines if line.startswith("tidegate ")})


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_that_documents_name_exist(path: Path) -> None:
    for line in spoken(path):
        words = [word for word in shlex.split(line.replace("...", ""))[1:] if word != "COMMAND"]
        if words[:1] in ([], ["--help"]):
            continue
        assert words[0] in main.commands, line
        found = next((COMMANDS[tuple(words[:n])] for n in (1, 2) if tuple(words[:n]) in COMMANDS), None)
        if found is None:
            assert "|" in line or len(words) == 1, line  # a whole group: `tidegate flows`, `tidegate flows list|show`
            continue
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options(found) | {"--help"}, line


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_scripts_that_documents_name_exist(path: Path) -> None:
    for name in re.findall(r"(?<![\w/])\.?/?(scripts/\w+(?:\.\w+)?|addons/\w+\.py)", path.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_security_model_names_the_options_it_speaks_of() -> None:
    text = (ROOT / "docs" / "security-model.md").read_text()
    for name in ("stream_large_bodies", "ignore_hosts", "allow_hosts", "save_stream_file", "hardump"):
        assert f"`{name}`" in text
        assert name in FORBIDDEN


def test_the_size_from_which_bodies_are_looked_at_beside_the_loop_is_told() -> None:
    assert THREAD_BYTES <= 16 * 1024, "a hostile body of 64 KB keeps everybody waiting for half a second"
    told = f"**Bodies and whole answers above {THREAD_BYTES // 1024} KB** are looked at beside the event loop"
    assert told in (ROOT / "docs" / "detection.md").read_text()
