"""What is made faster gives what mitmproxy gives."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import connection, http, options
from mitmproxy.addonmanager import Loader
from mitmproxy.addons import proxyserver
from mitmproxy.proxy import commands, context, events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpRequestHook
from mitmproxy.proxy.server_hooks import ServerConnectHook, ServerConnectionHookData
from mitmproxy.test import tflow

from tidegate import egress, quick

NAMES = st.sampled_from([b"host", b"Host", b"HOST", b"x-a", b"X-A", b"", b"\xc3\xa9", b"\xff"])
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"a, b", b"\xc3\xa9", b"\xff"])), max_size=6)
ASKED = st.one_of(NAMES, st.sampled_from(["host", "Host", "X-a", "", "\xe9", "other"]))


def outcome(call: Callable[..., Any], *arguments: Any) -> object:
    try:
        return call(*arguments)
    except (KeyError, TypeError) as error:
        return type(error)


@given(FIELDS, ASKED)
def test_header_fields_are_found_as_mitmproxy_finds_them(fields: list[tuple[bytes, bytes]], name: str | bytes) -> None:
    headers = http.Headers(fields)
    assert quick.get_all(headers, name) == http.Headers.get_all(headers, name)
    assert outcome(quick.get_item, headers, name) == outcome(http.Headers.__getitem__, headers, name)
    assert quick.get(headers, name) == headers.get(name)
    assert quick.get(headers, name, "x") == headers.get(name, "x")
    assert quick.contains(headers, name) == (name in headers)


@given(FIELDS)
def test_header_fields_are_made_as_mitmproxy_makes_them(fields: list[tuple[bytes, bytes]]) -> None:
    made, named = object.__new__(http.Headers), object.__new__(http.Headers)
    quick.init(made, fields)
    quick.init(named, fields, x_a="1")
    assert made == http.Headers(fields)
    assert named == http.Headers(fields, x_a="1")
    assert type(made.fields) is tuple


@pytest.mark.parametrize("fields", [[("a", b"b")], [(b"a", "b")], [(b"a", 1)]])
def test_header_fields_that_are_no_bytes_are_refused(fields: Any) -> None:
    with pytest.raises(TypeError):
        quick.init(object.__new__(http.Headers), fields)


def test_hooks_have_the_arguments_that_mitmproxy_gives_them() -> None:
    flow = tflow.tflow()
    for hook in (
        HttpRequestHook(flow),
        ServerConnectHook(ServerConnectionHookData(flow.server_conn, flow.client_conn)),
    ):
        assert quick.arguments(hook) == hook.args()


def test_ids_are_random_and_of_the_usual_form() -> None:
    ids = {quick.Ids().uuid4() for _ in range(100)}
    assert len(ids) == 100
    assert {str(uuid.UUID(each)) for each in ids} == ids
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in ids} == {(4, uuid.RFC_4122)}


def test_options_have_the_values_that_mitmproxy_gives_them() -> None:
    known = options.Options()
    known.update(mode=["reverse:http://example.com"], listen_port=8123)
    for option in known._options.values():
        assert quick.current(option) == option.current()
    quick.current(known._options["mode"]).append("x")
    assert known.mode == ["reverse:http://example.com"]


def test_a_fork_of_a_context_shares_what_mitmproxy_shares() -> None:
    made = context.Context(tflow.tclient_conn(), options.Options())
    made.layers.append(made)  # type: ignore[arg-type]
    ours, theirs = quick.fork(made), made.fork()
    assert vars(ours) == vars(theirs)
    assert ours.layers is not made.layers
    assert ours.server is made.server


def test_connections_are_equal_as_mitmproxy_says() -> None:
    client, server, other = tflow.tclient_conn(), tflow.tserver_conn(), tflow.tclient_conn()
    other.id = "another"
    again = type(client).from_state(client.get_state())
    for one in (client, server, again, other):
        for two in (client, server, again, other, None, "client", client.id):
            assert quick.equal(one, two) == (isinstance(two, connection.Connection) and one.id == two.id)


@pytest.mark.parametrize("value", ["0", "17", "017", "", "-1", "1, 1", b"17", b"+1", "1\n", "\u0661"])
def test_lengths_are_read_as_mitmproxy_reads_them(value: str | bytes) -> None:
    def read(parse: Callable[..., int]) -> object:
        try:
            return parse(value)
        except ValueError:
            return None

    assert read(quick.lengths) == read(quick.lengths) == read(quick.lengths.__wrapped__)


REQUEST = b"POST /v1 HTTP/1.1\r\nhost: example.com\r\ncontent-length: 5\r\n\r\nhello"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def exchange(cuts: tuple[int, int]) -> list[tuple[str, object]]:
    """Take two requests through mitmproxy's HTTP layer, cut in two; return every command that came out of it."""
    asked = options.Options()
    proxyserver.Proxyserver().load(Loader(SimpleNamespace(options=asked)))  # type: ignore[arg-type]
    client = tflow.tclient_conn()
    client.state = connection.ConnectionState.OPEN
    top = HttpLayer(context.Context(client, asked), HTTPMode.regular)
    said: list[tuple[str, object]] = []
    servers: list[connection.Server] = []

    def feed(event: events.Event) -> None:
        for command in top.handle_event(event):
            said.append((type(command).__name__, getattr(command, "data", None)))
            if isinstance(command, commands.StartHook):
                feed(events.HookCompleted(command))
            elif isinstance(command, commands.OpenConnection):
                command.connection.state = connection.ConnectionState.OPEN
                servers.append(command.connection)  # type: ignore[arg-type]
                feed(events.OpenConnectionCompleted(command, None))

    feed(events.Start())
    for _ in range(2):
        data = REQUEST.replace(b"/v1", b"http://example.com/v1")
        for part in (data[: cuts[0]], data[cuts[0] :]):
            feed(events.DataReceived(client, part))
        for part in (ANSWER[: cuts[1]], ANSWER[cuts[1] :]):
            feed(events.DataReceived(servers[-1], part))
    feed(events.ConnectionClosed(client))
    return [each for each in said if not isinstance(each[1], http.HTTPFlow)]


@pytest.mark.parametrize("cuts", [(0, 0), (20, 3), (80, 40), (96, 41)])
def test_layers_say_what_mitmproxys_layers_say(cuts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_stream", "_without_trailers"):  # other tests have hardened these layers for good
        monkeypatch.setattr(egress, name, lambda self, event, plain: plain(self, event))
    theirs = exchange(cuts)
    monkeypatch.setattr(layer.Layer, "handle_event", quick.handle_event)
    monkeypatch.setattr(HttpLayer, "event_to_child", quick.event_to_child)
    assert exchange(cuts) == theirs
    assert [name for name, _ in theirs].count("SendData") == 8
