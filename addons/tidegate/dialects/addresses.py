"""Which endpoint a method and path name, and which model a path names."""

from __future__ import annotations

import re
import string
from urllib.parse import unquote_plus

from tidegate.dialects.spec import Dialect, Endpoint
from tidegate.model import Denial, Reason, Stored

_PLAIN_PART = frozenset(string.ascii_letters + string.digits + "-_.:@~")
_SEPARATOR = re.compile("[&;]")
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


def closed(dialect: Dialect, path: str) -> str | None:
    """Say why a path that is no endpoint is closed on purpose; ``None`` where the dialect says nothing of it."""
    parts = path.split("/")
    for each in dialect.closed:
        if any(_fits(text.split("/"), parts) for text in each.paths):
            return each.because
    return None


def asked_for(endpoint: Endpoint, query: str) -> str | Denial | None:
    """Return the model that the query of an address names, ``None`` if it names none; refuse what is unclear."""
    names, socket = endpoint.asked.query, endpoint.socket
    said = [(unquote_plus(name), unquote_plus(value)) for name, _, value in map(_pair, _SEPARATOR.split(query)) if name]
    known = None if socket is None else socket.parameters
    if known is not None and any(name not in known and name not in names for name, _ in said):
        accepted = ", ".join(sorted({*known, *names})) or "none"
        return Denial(Reason.PROTOCOL, 400, f"The address has a parameter that is not known; known are: {accepted}.")
    models = [value for name, value in said if name in names]
    if len(models) > 1 or not all(map(is_plain, models)):
        return Denial(Reason.PROTOCOL, 400, "The address must name one model, once, in plain letters.")
    return models[0] if models else None


def _pair(text: str) -> tuple[str, str, str]:
    return text.partition("=")


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
        or (want[:1] == "*" and _any(want, part))
        or (MODEL in want and _model(want, part) is not None)
        or (want[:1] == "{" and _kind(want) is not None and is_plain(part))
        for want, part in zip(pattern, parts, strict=True)
    )


def _any(want: str, part: str) -> bool:
    """Say whether a part is anything, or anything before what follows the ``*``; then it holds no colon itself."""
    rest = want[1:]
    name = part.removesuffix(rest)
    return part.endswith(rest) and is_plain(name) and not (rest and ":" in name)


def is_plain(part: str) -> bool:
    """Say whether this can be one part of a path, written as it is."""
    return part not in ("", ".", "..") and _PLAIN_PART.issuperset(part)


def _model(want: str, part: str) -> str | None:
    """Return what stands at the place of the model; before a colon it holds none, so there is one way to read it."""
    rest = want.removeprefix(MODEL)
    if not part.endswith(rest):
        return None
    name = part.removesuffix(rest).replace("%3A", ":").replace("%3a", ":")
    return name if is_plain(name) and not (rest and ":" in name) else None
