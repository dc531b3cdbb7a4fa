"""Which endpoint a method and path name, and which model a path names."""

from __future__ import annotations

import re
import string

from tidegate.dialects.spec import Dialect, Endpoint
from tidegate.model import Stored

_PLAIN_PART = frozenset(string.ascii_letters + string.digits + "-_.:@~")
MODEL = "{model}"
"""The place in a path that names the model."""
_KIND = re.compile(r"\{([a-z][a-z0-9-]*)\}")
"""The place in a path that names something stored, and its kind."""


def match(dialect: Dialect, method: str, path: str) -> Endpoint | None:
    """Find the endpoint a request names. ``path`` has no query and no connection prefix.

    Escapes match nothing, but for that of a colon in the name of a model, which some clients write.
    """
    if (name := dialect.exact.get((method, path))) is not None:
        return dialect.endpoints[name]
    parts = path.split("/")
    for endpoint in dialect.endpoints.values():
        if method in endpoint.methods and any(_fits(text.split("/"), parts) for text in endpoint.paths):
            return endpoint
    return None


def model_named(endpoint: Endpoint, path: str) -> str | None:
    """Return the model that a path of this endpoint names, ``None`` if it names none."""
    parts = path.split("/")
    for text in endpoint.paths:
        pattern = text.split("/")
        if MODEL in text and _fits(pattern, parts):
            return next(_model(want, part) for want, part in zip(pattern, parts, strict=True) if MODEL in want)
    return None


def stored_in(endpoint: Endpoint, path: str) -> tuple[Stored, ...]:
    """Return the stored things that a path of this endpoint names."""
    parts = path.split("/")
    for text in endpoint.paths:
        pattern = text.split("/")
        if "{" in text and _fits(pattern, parts):
            named = ((_kind(want), part) for want, part in zip(pattern, parts, strict=True))
            return tuple(Stored(kind, part) for kind, part in named if kind is not None)
    return ()


def kinds_of(path: str) -> tuple[str, ...]:
    """Return the kinds of stored things that a dialect's path has places for."""
    return tuple(kind for part in path.split("/") if (kind := _kind(part)) is not None)


def _kind(want: str) -> str | None:
    found = _KIND.fullmatch(want)
    return None if found is None or want == MODEL else found[1]


def _fits(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        want == part
        or (want == "*" and _is_plain(part))
        or (MODEL in want and _model(want, part) is not None)
        or (want[:1] == "{" and _kind(want) is not None and _is_plain(part))
        for want, part in zip(pattern, parts, strict=True)
    )


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and _PLAIN_PART.issuperset(part)


def _model(want: str, part: str) -> str | None:
    """Return what stands at the place of the model; before a colon it holds none, so there is one way to read it."""
    rest = want.removeprefix(MODEL)
    if not part.endswith(rest):
        return None
    name = part.removesuffix(rest).replace("%3A", ":").replace("%3a", ":")
    return name if _is_plain(name) and not (rest and ":" in name) else None
