"""Makes what a policy looks for of a company's own data: indexes of tables and documents, canaries, known values.

Tables are read row by row and documents one by one; what is written holds keyed hashes, never a value.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.identity.credential import CredentialError
from tidegate.identity.reference import NotAReference
from tidegate.inspection.engine import Engine, encode
from tidegate.inspection.proprietary import canary, known
from tidegate.inspection.proprietary.documents import DocumentBuilder
from tidegate.inspection.proprietary.exact import ExactBuilder
from tidegate.policy.coded import key_beside, key_of
from tidegate.policy.keyed_files import read_canaries

DOCUMENT_BYTES = 8 << 20  # of one document: larger text files are data
MAX_COLUMNS = 255
STEP = 1000  # rows between two moves of a progress bar

type Moved = Callable[[int], object]
"""Takes the number of bytes read so far."""


class FingerprintError(Exception):
    """Nothing was written; the message names file, line and column, never a value."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was indexed. ``left_out`` holds a sentence for each reason and how often."""

    count: int
    size: int
    left_out: tuple[str, ...]


def open_key(path: Path, template: str | None) -> bytes:
    """Fetch the key for the file at ``path``; without a reference one is made beside it, readable by its owner alone.

    Raises ``FingerprintError``.
    """
    try:
        if template is None and not key_beside(path).exists():
            write_private(key_beside(path), secrets.token_hex(32).encode() + b"\n")
        return key_of(path, template)
    except (CredentialError, NotAReference) as error:
        raise FingerprintError(f"the key: {error}") from None
    except OSError as error:
        raise FingerprintError(f"{key_beside(path)}: {error.strerror or 'it cannot be written'}") from None


def table(path: Path, columns: Sequence[str], out: Path, key: bytes, moved: Moved, delimiter: str = ",") -> Made:
    """Index columns of a CSV file with a head line. Raises ``FingerprintError``."""
    builder = ExactBuilder(key, columns)
    line = 0
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            places = _places(path, next(rows, []), columns)
            for number, row in enumerate(rows):
                line = rows.line_num
                if not row:
                    continue
                if len(row) <= max(places):
                    name = columns[next(at for at, place in enumerate(places) if place >= len(row))]
                    raise FingerprintError(
                        f"{path}:{line}: {name}: found a row of {len(row)} fields; accepted: at least {max(places) + 1}"
                    )
                for column, place in enumerate(places):
                    builder.add(number, column, row[place])
                if number % STEP == 0:
                    moved(raw.tell())
    except csv.Error as error:
        raise FingerprintError(f"{path}:{line + 1}: found {error}; accepted: CSV") from None
    except UnicodeDecodeError:
        raise FingerprintError(f"{path}: found bytes that are not UTF-8; accepted: UTF-8 text") from None
    except OSError as error:
        raise FingerprintError(f"{path}: {error.strerror or 'it cannot be read'}") from None
    if not builder.values:
        raise FingerprintError(f"{path}: found no value to look for; accepted: a table with values of four characters")
    data = builder.file()
    write_private(out, data)
    short = f"{builder.short} values of fewer than 4 letters or 6 digits" if builder.short else ""
    long = f"{builder.long} values of more than 12 words or 40 digits" if builder.long else ""
    return Made(builder.values, len(data), tuple(each for each in (short, long) if each))


def _places(path: Path, head: Sequence[str], columns: Sequence[str]) -> list[int]:
    if len(columns) > MAX_COLUMNS or len(set(columns)) < len(columns):
        raise FingerprintError(f"--columns: found {len(columns)} names; accepted: up to {MAX_COLUMNS}, each once")
    for name in columns:
        if head.count(name) != 1:
            found = "no column" if name not in head else "more than one column"
            raise FingerprintError(f"{path}:1: found {found} {name!r}; accepted: {', '.join(head) or 'a head line'}")
    return [head.index(name) for name in columns]


def documents(folder: Path, out: Path, key: bytes, moved: Moved) -> Made:
    """Index every text file below a folder, hidden ones aside. Raises ``FingerprintError``."""
    builder = DocumentBuilder(key)
    seen = binary = large = 0
    for path in _files(folder):
        try:
            size = path.stat().st_size
            seen += size
            if size > DOCUMENT_BYTES:
                large += 1
                continue
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            binary += 1
            continue
        except OSError as error:
            raise FingerprintError(f"{path}: {error.strerror or 'it cannot be read'}") from None
        builder.add(text)
        moved(seen)
    if not builder.documents:
        raise FingerprintError(f"{folder}: found no text file of eight words; accepted: a folder of documents")
    data = builder.file()
    write_private(out, data)
    left = (
        (binary, "files that are not UTF-8 text"),
        (large, "files of more than 8 MiB"),
        (builder.short, "files of fewer than eight words"),
    )
    return Made(builder.documents, len(data), tuple(f"{count} {what}" for count, what in left if count))


def _files(folder: Path) -> Iterator[Path]:
    for top, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (
            Path(top) / name
            for name in sorted(files)
            if not name.startswith(".") and not (Path(top) / name).is_symlink()
        )


def size_below(folder: Path) -> int:
    """Return how many bytes ``documents`` will go through."""
    return sum(path.stat().st_size for path in _files(folder))


def mint(name: str, form: canary.Form, host: str, out: Path, key: bytes, today: str) -> str:
    """Mint a canary and add it to a file; returns the token, which is kept nowhere. Raises ``FingerprintError``."""
    if out.exists():
        held, faults = read_canaries(out.read_text("utf-8"), str(out))
        if faults:
            raise FingerprintError(str(faults[0]))
        if any(each.name == name for each in held):
            raise FingerprintError(f"{out}: found a canary named {name}; accepted: each name once")
    token, kept = canary.mint(name, form, key, secrets.token_bytes(canary.RANDOM_BYTES), host=host)
    entry = {"name": name, "form": str(form), "lead": kept.lead, "fingerprint": kept.fingerprint, "minted": today}
    _append(out, "canaries", entry)
    if read_canaries(out.read_text("utf-8"), str(out))[1]:
        raise FingerprintError(f"{out}: the canary cannot be read back; accepted: a file made by this command")
    return token


def allow(engine: Engine, rule: str, text: str, out: Path, key: bytes, said: dict[str, str]) -> None:
    """Add the one value that a rule finds in a text to a file of known values. Raises ``FingerprintError``."""
    able = {each.id for each in engine.rules if each.end is None and each.score is None}
    if rule not in able:
        raise FingerprintError(f"found the rule {rule!r}; accepted: a rule of the policy's packs without an end marker")
    data = encode(text)
    values = {data[span.start : span.end] for span in engine.find(data) if span.rule.id == rule}
    if len(values) != 1:
        accepted = f"a text in which {rule} finds exactly one value that is not known yet"
        raise FingerprintError(f"found {len(values)} values; accepted: {accepted}")
    print_ = known.fingerprint(key, rule, values.pop())
    _append(out, "allowed", {"rule": rule, "fingerprint": print_, **said})


def _append(path: Path, key: str, entry: dict[str, str]) -> None:
    """Add an entry to a list in YAML; an entry is JSON, which is YAML too."""
    text = path.read_text("utf-8") if path.exists() else f"version: 1\n{key}:\n"
    line = f"  - {json.dumps(entry, ensure_ascii=False)}\n"
    write_private(path, (text + ("" if text.endswith("\n") else "\n") + line).encode())


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, whole or not at all. Raises ``FingerprintError``."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FingerprintError(f"{path}: {error.strerror or 'it cannot be written'}") from None
