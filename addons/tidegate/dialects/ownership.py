"""What a provider keeps under a name: where a request names such things, where an answer makes or lists them. Pure.

Behind one upstream credential the provider takes all callers for one, and gives each what any of them stored. Who made
what is therefore remembered here, and a caller may name only his own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from tidegate.dialects.fields import Pointer
from tidegate.dialects.spec import has_one
from tidegate.model import Connection, Denial, Owners, Reason, Route, Stored

if TYPE_CHECKING:
    from tidegate.dialects.spec import Endpoint

Way = tuple[str, ...]
Conditions = Mapping[str, tuple[object, ...]]

PORTS = {"http": 80, "https": 443}

NOT_OWNER = Denial(
    Reason.NOT_OWNER,
    404,
    "The request names something stored at the provider that is not known here as yours. "
    "What you made through this gateway is; nobody can use what somebody else made.",
)
"""One sentence for what another caller made and for what nobody did, so that nobody can find out which it is."""

UNREAD = Denial(
    Reason.ANSWER_MALFORMED, 502, "The upstream's list has an unknown form, so nobody can tell what of it is yours."
)


@dataclass(frozen=True, slots=True)
class Owned:
    """A path of a request whose value names something stored: a text, a list of them, or objects.

    ``id`` are the ways from an object to the text; the empty way is the value itself. ``when`` narrows it to objects of
    which a field has one of these values, ``unless`` leaves such objects out; ``None`` also stands for a field that is
    not there. ``query``: the path is the name of a field of the address' query instead.
    """

    path: str
    kind: str
    id: tuple[Way, ...] = ((),)
    when: Conditions = field(default_factory=dict)
    unless: Conditions = field(default_factory=dict)
    query: bool = False

    def concerns(self, value: object) -> bool:
        """Say whether a value of this path names something."""
        return value is not None and not self.query and _concerns(value, self.when, self.unless)


@dataclass(frozen=True, slots=True)
class Makes:
    """A path of an answer, or of an event of a streamed one, at which an object with new names stands.

    ``id`` leads to them from there, through the entries of lists too.
    """

    path: str
    kind: str
    id: Way = ("id",)
    when: Conditions = field(default_factory=dict)
    unless: Conditions = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """A path of an answer at which a list of stored things stands, everybody's.

    ``ends`` are the fields beside the list that repeat the names of its first and its last entry.
    """

    path: str
    kind: str
    id: Way = ("id",)
    ends: tuple[str, str] | None = None


def stored(endpoint: Endpoint, body: object, route: Route) -> tuple[Stored, ...] | Denial:
    """Return every stored thing that a request names: in its path, its query and its body; each once.

    Denies ``BODY_MALFORMED`` where something is named in a form that cannot be read.
    """
    found: dict[Stored, None] = dict.fromkeys(route.stored)
    _, mark, query = route.path.partition("?") if endpoint.owned.paths else ("", "", "")
    if mark:
        fields = {each.path: each.kind for _, each in endpoint.owned.paths if each.query}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name in fields:
                found[Stored(fields[name], value)] = None
    for one in endpoint.owned.select(body):
        for owned in one.payloads:
            ids = None if owned.query else _ids(owned, one.value)
            if isinstance(ids, Denial):
                return ids
            found.update(dict.fromkeys(Stored(owned.kind, each) for each in ids or ()))
    return tuple(found)


def _ids(owned: Owned, value: object) -> tuple[str, ...] | Denial:
    """Read the names at a path; ``null`` names nothing."""
    if value is None:
        return ()
    if isinstance(value, list):
        found: list[str] = []
        for each in value:
            ids = _ids(owned, each)
            if isinstance(ids, Denial):
                return ids
            found.extend(ids)
        return tuple(found)
    if not owned.concerns(value):
        return ()
    named = [told for way in owned.id if (told := _at(value, way)) is not None]
    texts = tuple(each for each in named if isinstance(each, str))
    if not texts or len(texts) < len(named) - (isinstance(value, dict) and () in owned.id):
        return Denial(
            Reason.BODY_MALFORMED, 400, f"The request names something stored at {owned.path}, but not by a text."
        )
    return texts


def made(endpoint: Endpoint, value: object) -> tuple[Stored, ...]:
    """Return what an answer, or an event of one, says was made; ``value`` as the upstream wrote it."""
    found: dict[Stored, None] = {}
    for one in endpoint.makes.select(value):
        for makes in one.payloads:
            if isinstance(one.value, dict) and _concerns(one.value, makes.when, makes.unless):
                names = (name for name in _all(one.value, makes.id) if isinstance(name, str) and name)
                found.update(dict.fromkeys(Stored(makes.kind, name) for name in names))
    return tuple(found)


def listed(endpoint: Endpoint, value: object) -> tuple[Stored, ...] | Denial:
    """Return the stored things that an answer lists. Denies an answer without the list."""
    lists = [(one.value, each) for one in endpoint.lists.select(value) for each in one.payloads]
    if not lists or not all(isinstance(entries, list) for entries, _ in lists):
        return UNREAD
    named = ((each.kind, _at(entry, each.id)) for entries, each in lists for entry in _entries(entries))
    return tuple(dict.fromkeys(Stored(kind, name) for kind, name in named if isinstance(name, str)))


def keep_own(endpoint: Endpoint, value: object, owners: Owners) -> None:
    """Take out of an answer's lists, in place, what is not the caller's own. Whether there is more stays as it was."""
    for one in list(endpoint.lists.select(value)):
        for each in one.payloads:
            entries = [entry for entry in _entries(one.value) if _is_own(each, entry, owners)]
            assert isinstance(one.value, list)
            one.value[:] = entries
            if each.ends is not None and isinstance(one.parent, dict):
                _rename_ends(each, one.parent, one.pointer, entries)


def make_local(endpoint: Endpoint, value: object, connection: Connection) -> None:
    """Write an answer's addresses at the upstream, in place, as paths below the base URL that the client uses.

    A client that asked for the whole address would go round the gate, and show the provider its own token.
    """
    upstream = connection.upstream
    for one in endpoint.local.select(value):
        try:
            found = urlsplit(one.value) if isinstance(one.value, str) else None
            port = found.port if found is not None else None
        except ValueError:
            continue
        if found is None or (found.scheme, found.hostname) != (upstream.scheme, upstream.host):
            continue
        path = found.path.removeprefix(connection.upstream_path)
        if (port or PORTS.get(found.scheme)) == upstream.port and isinstance(one.parent, dict | list):
            one.parent[one.pointer[-1]] = f"{path}?{found.query}" if found.query else path  # type: ignore[index]


def _rename_ends(listed: Listed, parent: dict[str, object], pointer: Pointer, entries: list[object]) -> None:
    for name, at in zip(listed.ends or (), (0, -1), strict=False):
        if name in parent and name != pointer[-1]:
            parent[name] = _at(entries[at], listed.id) if entries else None


def _is_own(listed: Listed, entry: object, owners: Owners) -> bool:
    name = _at(entry, listed.id)
    return isinstance(name, str) and Stored(listed.kind, name) in owners.own


def _entries(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _concerns(value: object, when: Conditions, unless: Conditions) -> bool:
    return all(has_one(value, *each) for each in when.items()) and not any(
        has_one(value, *each) for each in unless.items()
    )


def _all(value: object, way: Way) -> Iterator[object]:
    """Follow a way into every entry of the lists along it."""
    if isinstance(value, list):
        for each in value:
            yield from _all(each, way)
    elif not way:
        yield value
    elif isinstance(value, dict):
        yield from _all(value.get(way[0]), way[1:])


def _at(value: object, way: Way) -> object:
    for name in way:
        value = value.get(name) if isinstance(value, dict) else None
    return value
