"""mitmproxy's header fields, hooks, options and ids: the same results in less time. Only ``tidegate run`` uses this.

Every request asks its header fields about thirty times. mitmproxy answers through four layers of abstract classes;
one loop over the fields gives the same in a fifth of the time (docs/decisions.md).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import secrets
from collections.abc import Iterable
from typing import Any

from mitmproxy import connection, flow, hooks, http
from mitmproxy.net.http import validate
from mitmproxy.optmanager import _Option, unset
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders

_original_init = http.Headers.__init__
_original_handle_event = layer.Layer.handle_event

lengths = functools.lru_cache(maxsize=1024)(validate.parse_content_length)
"""``parse_content_length``, which reads the length of each message three times."""

_FIXED = 0x4 << 76 | 0x2 << 62
_FREE = (1 << 128) - 1 - (0xF << 76) - (0x3 << 62)


class Ids:
    """Stands in for the module ``uuid`` where mitmproxy names flows and connections: no system call for each name.

    mitmproxy turns each id into its text, so it is given the text.
    """

    def __init__(self) -> None:
        self._random = random.Random(secrets.token_bytes(32))  # noqa: S311 - names, not secrets

    def uuid4(self) -> str:
        """Return the text of a random UUID (RFC 9562, version 4)."""
        digits = f"{self._random.getrandbits(128) & _FREE | _FIXED:032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@functools.lru_cache(maxsize=1024)
def _wanted(name: str | bytes) -> bytes:
    return (name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")).lower()


def init(self: http.Headers, fields: Iterable[tuple[bytes, bytes]] = (), **headers: str | bytes) -> None:
    """Do as ``Headers.__init__``; most header fields come as pairs alone."""
    if headers:
        _original_init(self, fields, **headers)
        return
    pairs: tuple[tuple[Any, Any], ...] = tuple([(name, value) for name, value in fields])
    self.fields = pairs
    for name, value in pairs:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError("Header fields must be bytes.")


def get_all(self: http.Headers, name: str | bytes) -> list[str]:
    """Do as ``Headers.get_all``."""
    wanted = _wanted(name)
    return [value.decode("utf-8", "surrogateescape") for key, value in self.fields if key.lower() == wanted]


def get_item(self: http.Headers, name: str | bytes) -> str:
    """Do as ``Headers.__getitem__``."""
    found = get_all(self, name)
    if not found:
        raise KeyError(name)
    return ", ".join(found)


def get(self: http.Headers, name: str | bytes, default: Any = None) -> Any:
    """Do as ``Headers.get``."""
    found = get_all(self, name)
    return ", ".join(found) if found else default


def contains(self: http.Headers, name: object) -> bool:
    """Do as ``Headers.__contains__``."""
    if not isinstance(name, str | bytes):
        raise TypeError("Header names are text or bytes.")
    wanted = _wanted(name)
    for key, _ in self.fields:  # noqa: SIM110 - any() with a generator costs three times as much
        if key.lower() == wanted:
            return True
    return False


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(kind))


def arguments(self: hooks.Hook) -> list[Any]:
    """Do as ``Hook.args``."""
    kind: Any = type(self)
    return [getattr(self, name) for name in _names(kind)]


def current(self: Any) -> Any:
    """Do as ``_Option.current``, which copies the value of an option each time: only what can change needs a copy."""
    value = self._default if self.value is unset else self.value
    return value if type(value) in (str, int, bool, type(None)) else copy.deepcopy(value)


def handle_event(self: layer.Layer, event: events.Event) -> layer.CommandGenerator[None]:
    """Do as ``Layer.handle_event`` without its debug output, which ``tidegate run`` has no option for."""
    if self._paused:
        yield from _original_handle_event(self, event)
        return
    running = self._handle_event(event)
    for command in running:
        if command.blocking is True:
            command.blocking = self
            self._paused = layer.Paused(command, running)
            yield command
            return
        yield command


def event_to_child(self: HttpLayer, child: Any, event: events.Event) -> layer.CommandGenerator[None]:
    """Do as ``HttpLayer.event_to_child``: what most commands are is asked first."""
    for command in child.handle_event(event):
        kind = type(command)
        if kind is commands.SendData:
            yield command
        elif kind is ReceiveHttp:
            said = command.event
            if type(said) is RequestHeaders:
                yield from self.make_stream(said.stream_id)
            stream = self.streams.get(said.stream_id)
            if stream is not None:  # else it is done already, see mitmproxy's issue 5343
                yield from event_to_child(self, stream, said)
        elif kind is SendHttp:
            yield from event_to_child(self, self.connections[command.connection], command.event)
        else:
            yield from _rarely(self, child, command)


def _rarely(self: HttpLayer, child: Any, command: commands.Command) -> layer.CommandGenerator[None]:
    """Do the rest of ``HttpLayer.event_to_child``."""
    if command.blocking or isinstance(command, commands.RequestWakeup):
        self.command_sources[command] = child
    if isinstance(command, DropStream):
        self.streams.pop(command.stream_id, None)
    elif isinstance(command, GetHttpConnection):
        yield from self.get_connection(command)
    elif isinstance(command, RegisterHttpConnection):
        yield from self.register_connection(command)
    else:
        if isinstance(command, commands.OpenConnection):
            self.connections[command.connection] = child
        yield command


def equal(self: connection.Connection, other: object) -> bool:
    """Do as ``Connection.__eq__``, whose class asks its metaclass what the other is; mostly it is one of two, or ours.

    A layer compares the peers of its connection at every event.
    """
    if self is other:
        return True
    kind = type(other)
    ours = kind is connection.Client or kind is connection.Server or isinstance(other, connection.Connection)
    return ours and self.id == other.id  # type: ignore[attr-defined]  # it is a connection


def fork(self: context.Context) -> context.Context:
    """Do as ``Context.fork``, without making a server for the copy only to put ours in its place."""
    copied = object.__new__(context.Context)
    copied.client, copied.options, copied.server = self.client, self.options, self.server
    copied.layers = self.layers.copy()
    return copied


def quicken() -> None:
    """Change mitmproxy's classes. ``tests/test_quick.py`` compares the two."""
    context.Context.fork = fork  # type: ignore[method-assign]
    connection.Connection.__eq__ = equal  # type: ignore[method-assign]
    validate.parse_content_length = lengths
    layer.Layer.handle_event = handle_event  # type: ignore[method-assign]
    HttpLayer.event_to_child = event_to_child  # type: ignore[method-assign]
    headers: Any = http.Headers
    headers.__init__, headers.get_all, headers.__getitem__ = init, get_all, get_item
    headers.get, headers.__contains__ = get, contains
    _Option.current = current  # type: ignore[method-assign]
    hooks.Hook.args = arguments  # type: ignore[method-assign]
    connection.uuid = flow.uuid = Ids()  # type: ignore[assignment, attr-defined]
    http.MessageData.__post_init__ = lambda _: None  # type: ignore[method-assign]  # checks types, at each message
