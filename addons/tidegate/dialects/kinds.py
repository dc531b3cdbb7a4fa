"""What bodies are made of beside one JSON value: forms with parts, lines of JSON, texts, and bodies inside of bodies.

A **form** (``multipart/form-data``) reads as an object of its fields: a text part is a text, a file an object with
``filename`` and ``content_type``. A file that is **lines** of JSON has them in ``lines``. So paths name them like any
field: ``$.prompt``, ``$.file.filename``, ``$.file.lines[*].body``.

An ``Inner`` says where a body holds the body of another endpoint, and of which one. Each is judged or inspected as that
endpoint's own (``composing`` for requests, ``inspection.composed`` for answers), the rest as the outer one's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tidegate.dialects.fields import Trie


class BodyKind(enum.StrEnum):
    """What a body may be. ``DATA``: bytes that are none of the others."""

    JSON = "json"
    FORM = "form"
    LINES = "lines"
    TEXT = "text"
    DATA = "data"


JSON_ALONE = (BodyKind.JSON,)


@dataclass(frozen=True, slots=True)
class Lines:
    """A file of a form that is lines of JSON: the part of this name, where each field of ``when`` has one of these."""

    part: str
    when: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def concerns(self, name: str, fields: Mapping[str, object]) -> bool:
        """Say whether the part of this name in a form with these fields is lines; spaces and capitals mean nothing."""
        told = {key: value.strip().lower() if isinstance(value, str) else value for key, value in fields.items()}
        return name == self.part and all(told.get(key) in values for key, values in self.when.items())


@dataclass(frozen=True, slots=True)
class FormSpec:
    """What a form may look like. ``lists`` name fields that may come more than once, as any may that ends in ``[]``."""

    lists: frozenset[str] = frozenset()
    lines: tuple[Lines, ...] = ()

    def repeats(self, name: str) -> bool:
        """Say whether a field of this name may come more than once."""
        return name.endswith("[]") or name in self.lists


@dataclass(frozen=True, slots=True)
class Inner:
    """A path whose values are bodies of another endpoint of the dialect.

    Which one: ``endpoint`` by name; or the fields ``method`` and ``url`` beside the value; or the field ``told_by`` of
    the value, through the table ``endpoints``.
    """

    path: str
    endpoint: str | None = None
    method: str | None = None
    url: str | None = None
    told_by: str | None = None
    endpoints: Mapping[str, str] = field(default_factory=dict)

    def named(self) -> Iterator[str]:
        """Name the endpoints that it may be, where the dialect says so itself."""
        yield from self.endpoints.values()
        if self.endpoint is not None:
            yield self.endpoint

    def told(self, value: object) -> str | None:
        """Return the endpoint that a value of the path is the body of, ``None`` where it does not say."""
        if self.told_by is None:
            return self.endpoint
        word = value.get(self.told_by) if isinstance(value, dict) else None
        return self.endpoints.get(word) if isinstance(word, str) else None


@dataclass(frozen=True, slots=True)
class Composition:
    """What the bodies of an endpoint are made of: its requests (``bodies``) and its whole answers (``answers``)."""

    bodies: tuple[BodyKind, ...] = JSON_ALONE
    form: FormSpec = FormSpec()
    inner: Trie[Inner] = field(default_factory=lambda: Trie[Inner]([]))
    answers: tuple[BodyKind, ...] = JSON_ALONE
    answered: Trie[Inner] = field(default_factory=lambda: Trie[Inner]([]))

    asks_plainly: bool = field(init=False)
    """A request is one JSON value that holds no other body."""
    answers_plainly: bool = field(init=False)
    """An answer is one JSON value that holds no other body."""

    def __post_init__(self) -> None:
        """Say once what is asked for every request."""
        object.__setattr__(self, "asks_plainly", self.bodies == JSON_ALONE and not self.inner.paths)
        object.__setattr__(self, "answers_plainly", self.answers == JSON_ALONE and not self.answered.paths)

    @property
    def may_name_model(self) -> bool:
        """Whether a request could name a model somewhere that no path of the dialect leads to."""
        return self.bodies != (BodyKind.FORM,) and not self.inner.paths
