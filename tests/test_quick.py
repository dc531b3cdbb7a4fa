"""What is made faster gives what mitmproxy gives."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http, options
from mitmproxy.proxy.layers.http import HttpRequestHook
from mitmproxy.proxy.server_hooks import ServerConnectHook, ServerConnectionHookData
from mitmproxy.test import tflow

from tidegate import quick

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
