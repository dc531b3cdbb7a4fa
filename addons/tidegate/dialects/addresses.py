"""Which endpoint a method and path name, and which model a path names."""

from __future__ import annotations

import string

from tidegate.dialects.spec import Dialect, Endpoint

_PLAIN_PART = frozenset(string.ascii_letters + string.digits + "-_.:@~")
MODEL = "{model}"
"""The place in a path that names the model."""


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
    parts: list[str] = []
    for text in endpoint.paths:
        if MODEL not in text:
            continue
        pattern = text.split("/")
        parts = parts or path.split("/")
        if _fits(pattern, parts):
            return next(_model(want, part) for want, part in zip(pattern, parts, strict=True) if MODEL in want)
    return None


def _fits(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        want == part or (want == "*" and _is_plain(part)) or (MODEL in want and _model(want, part) is not None)
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
