"""Fetches the secrets that a policy only refers to, and holds them so that they cannot be shown by accident.

A secret is fetched when the gate starts, so that a missing one is a message at start and not a failed request. One that
comes from a file is fetched again when the file changes; if that fails, the last good value stays.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from tidegate.identity.reference import Reference, Source, parse
from tidegate.model import Connection

SECRET_BYTES = 16 * 1024  # a header field longer than this is refused by the common servers
EXEC_SECONDS = 5.0  # a credential helper that takes longer would hold up the start

logger = logging.getLogger(__name__)


class CredentialError(Exception):
    """A reference cannot be resolved. Names the reference, never a value."""


class Secret:
    """A header value made of references. It shows itself only to ``reveal``."""

    __slots__ = ("_references", "_stamp", "_value", "_word", "name")

    def __init__(self, name: str, word: str, references: tuple[Reference, ...]) -> None:
        self.name = name
        self._word = word
        self._references = references
        self._stamp = _stamp(references)
        self._value = _join(word, references)

    def reveal(self) -> str:
        """Return the value, read again if a file it comes from changed."""
        stamp = _stamp(self._references)
        if stamp != self._stamp:
            try:
                self._value = _join(self._word, self._references)
            except CredentialError as error:
                logger.error("credential %s: %s; the last good value stays", self.name, error)
            self._stamp = stamp
        return self._value

    def __repr__(self) -> str:
        return f"<Secret {self.name}>"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a secret is not copied or stored")


def resolve(template: str, name: str = "credential") -> Secret:
    """Fetch the secrets of a template such as ``Bearer ${file:/run/secrets/key}``.

    ``name`` stands for the secret in messages. Raises ``CredentialError``; ``reference.NotAReference`` (a
    ``ValueError``) for a template that no policy could hold.
    """
    word, references = parse(template)
    return Secret(name, word, references)


def resolve_all(connections: Iterable[Connection]) -> tuple[dict[str, Secret], tuple[str, ...]]:
    """Fetch the credential of every connection that has one; returns them by name, and a sentence for each failure."""
    found: dict[str, Secret] = {}
    problems: list[str] = []
    for each in connections:
        if each.credential is None:
            continue
        try:
            found[each.name] = resolve(each.credential.template, each.name)
        except CredentialError as error:
            problems.append(f"connection {each.name}: {error}")
    return found, tuple(problems)


def _join(word: str, references: tuple[Reference, ...]) -> str:
    value = word + "".join(_fetch(reference) for reference in references)
    if len(value) > SECRET_BYTES or not value.isascii() or not value.isprintable():
        raise CredentialError(f"{references[0]}: the value is not one line of printable ASCII text")
    return value


def _fetch(reference: Reference) -> str:
    """Fetch one secret, without the white space around it."""
    match reference.source:
        case Source.ENV:
            value = os.environ.get(reference.arguments[0], "")
        case Source.FILE:
            value = _read(Path(reference.arguments[0]), reference)
        case Source.SYSTEMD:
            value = _read(_systemd(reference), reference)
        case Source.EXEC:
            value = _run(reference)
    value = value.strip()
    if not value:
        raise CredentialError(f"{reference}: there is no value")
    return value


def _systemd(reference: Reference) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise CredentialError(f"{reference}: this process was not started by systemd with credentials")
    return Path(folder) / reference.arguments[0]


def _read(path: Path, reference: Reference) -> str:
    """Read a file that only its owner may read, and that is ours or root's."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(SECRET_BYTES + 1)
    except OSError as error:
        raise CredentialError(f"{reference}: {error.strerror or 'the file cannot be read'}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CredentialError(f"{reference}: it is not a file")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise CredentialError(f"{reference}: its mode is {stat.S_IMODE(status.st_mode):04o}; make it 0600 or 0400")
    if status.st_uid not in (0, os.geteuid()):
        raise CredentialError(f"{reference}: it belongs to another user")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise CredentialError(f"{reference}: the value is not one line of printable ASCII text") from None


def _run(reference: Reference) -> str:
    """Run a credential helper: no shell, no input, a few seconds."""
    try:
        done = subprocess.run(
            reference.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=EXEC_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CredentialError(f"{reference}: it took longer than {EXEC_SECONDS:.0f} seconds") from None
    except OSError as error:
        raise CredentialError(f"{reference}: {error.strerror or 'it cannot be run'}") from None
    if done.returncode != 0:
        raise CredentialError(f"{reference}: it ended with status {done.returncode}")
    return done.stdout.decode("ascii", "replace")


def _stamp(references: tuple[Reference, ...]) -> tuple[tuple[int, int] | None, ...]:
    """When and where the files were last written; ``None`` for what is not a file or not there."""
    stamps: list[tuple[int, int] | None] = []
    for reference in references:
        if reference.source is not Source.FILE:
            stamps.append(None)
            continue
        try:
            status = Path(reference.arguments[0]).stat()
            stamps.append((status.st_mtime_ns, status.st_ino))
        except OSError:
            stamps.append(None)
    return tuple(stamps)
