"""The way a policy names a secret without holding it: a template whose ``${...}`` are references. Pure.

``${env:NAME}``  ``${file:/path}``  ``${systemd:NAME}``  ``${exec:["program", "argument"]}``
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass

ACCEPTED = (
    "an optional scheme word such as Bearer, then a reference: ${env:NAME}, ${file:/path}, ${systemd:NAME} or "
    '${exec:["program", "argument"]}'
)
_SCHEME_WORD = re.compile(r"(?:[A-Za-z]{1,16} )?")  # Bearer, Basic, Token, Key: no secret is one short word and a space
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_UNIT = re.compile(r"[A-Za-z0-9_.-]{1,255}")  # systemd.exec(5): a credential id is a file name


class Source(enum.StrEnum):
    """Where a secret comes from."""

    ENV = "env"
    FILE = "file"
    SYSTEMD = "systemd"
    EXEC = "exec"


@dataclass(frozen=True, slots=True)
class Reference:
    """One ``${source:...}``. ``arguments`` is one name or path, or the argument list of ``exec``."""

    source: Source
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        written = json.dumps(list(self.arguments)) if self.source is Source.EXEC else self.arguments[0]
        return f"${{{self.source}:{written}}}"


class NotAReference(ValueError):
    """The template is not accepted. Its text says why and never quotes a literal."""


def parse(template: str) -> tuple[str, tuple[Reference, ...]]:
    """Split a template into its scheme word (with its space, or empty) and one or more references.

    Raises ``NotAReference`` for anything else, so that no secret can be written into a policy.
    """
    start = template.find("${")
    if start < 0:
        raise NotAReference("a literal value (not shown)")
    word = template[:start]
    if not _SCHEME_WORD.fullmatch(word):
        raise NotAReference("text beside the reference (not shown)")
    references: list[Reference] = []
    at = start
    while at < len(template):
        if not template.startswith("${", at):
            raise NotAReference("text beside the reference (not shown)")
        reference, at = _reference(template, at)
        references.append(reference)
    return word, tuple(references)


def _reference(template: str, start: int) -> tuple[Reference, int]:
    """Read the reference at ``start``; returns it and where it ends."""
    scheme, colon, _ = template[start + 2 :].partition(":")
    if not colon or not re.fullmatch(r"[a-z]{1,16}", scheme):
        raise NotAReference("a reference without a source")
    if scheme == "vault":
        raise NotAReference("a vault: reference, which this version does not have")
    if scheme not in list(Source):
        raise NotAReference(f"the unknown source {scheme!r}")
    at = start + 2 + len(scheme) + 1
    if scheme == Source.EXEC:
        return _exec(template, at)
    end = template.find("}", at)
    if end < 0:
        raise NotAReference("a reference that is not closed")
    source, argument = Source(scheme), template[at:end]
    if source is Source.FILE and (not argument.startswith("/") or "\x00" in argument):
        raise NotAReference("a file: reference without an absolute path")
    if source is Source.ENV and not _ENV.fullmatch(argument):
        raise NotAReference("an env: reference that is not the name of a variable")
    if source is Source.SYSTEMD and (not _UNIT.fullmatch(argument) or argument in {".", ".."}):
        raise NotAReference("a systemd: reference that is not the name of a credential")
    return Reference(source, (argument,)), end + 1


def _exec(template: str, at: int) -> tuple[Reference, int]:
    """Read the JSON list of an ``exec:`` reference."""
    problem = NotAReference('an exec: reference without a list such as ["program", "argument"]')
    try:
        value, end = json.JSONDecoder().raw_decode(template, at)
    except (ValueError, RecursionError):
        raise problem from None
    if not isinstance(value, list) or not value or not template.startswith("}", end):
        raise problem
    arguments = tuple(each for each in value if isinstance(each, str) and "\x00" not in each)
    if len(arguments) != len(value) or not arguments[0].startswith("/"):
        raise NotAReference("an exec: reference whose program is not an absolute path, or that is not all text")
    return Reference(Source.EXEC, arguments), end + 1
