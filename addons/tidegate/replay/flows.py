"""Flows into a recording and out of it: what of mitmproxy's flow state is kept, and the two forms of a request.

A flow is kept in its **routed form**, as it went upstream: upstream host, upstream path, redacted body. How the client
had asked is kept beside it in the flow's metadata (``tidegate.path``, ``.target``, ``.reverse``), because both replays
need that: ``send`` crosses the gate again, ``serve`` is asked by clients. ``client_form`` gives a flow that form.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from mitmproxy import exceptions, http
from mitmproxy.io import compat, tnetstring
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.version import FLOW_FORMAT_VERSION

from tidegate import headers
from tidegate.evidence import queries
from tidegate.evidence.records import RecordingError, bare_path
from tidegate.model import Action, Finding
from tidegate.policy.policy import Keep

EXCHANGE, PATH, TARGET, REVERSE = "tidegate.exchange", "tidegate.path", "tidegate.target", "tidegate.reverse"
MASKED = "tidegate.masked"
"""Keys of a kept flow's metadata: its exchange, and how the client asked: path, origin, whether by a path prefix.

``MASKED`` is set when a flow is loaded: the findings (rule and place) whose texts the kept request no longer holds.
"""

NOWHERE = "reverse:http://unset.invalid"

_SECRET_FIELD = re.compile(r"auth|token|key|secret|cookie|session|credential|signature|passw|websocket-protocol")
_SECRET_PARAMETER = re.compile(
    r"(?<=[?&;])([^=&;]*(?:key|token|secret|passw|sig|code|auth)[^=&;]*)=[^&;]*", re.IGNORECASE
)
_SECRET_ANSWER = headers.CREDENTIALS | {"set-cookie", "set-cookie2", "www-authenticate", "proxy-authenticate"}
_PLAIN = frozenset({"accept", "content-length", "content-type", "host", "user-agent"})


class Fixed(dict[str, Any]):
    """A part of a flow state that is the same for many flows, with its encoding made once."""

    __slots__ = ("encoded",)

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__(parts)
        self.encoded = tnetstring.dumps(parts)


def safe_state(
    flow: http.HTTPFlow,
    keep: Keep,
    exchange: str,
    path: str | None = None,
    target: tuple[str, str, int] | None = None,
    *,
    inspected: bool = True,
    websocket: bool = False,
) -> dict[str, Any] | None:
    """Return mitmproxy's state of a flow as it may be recorded; ``None`` if the policy keeps no bodies.

    Left out: credentials (header fields and query values by their names), cookies, addresses and certificates of the
    peers, trailers, error texts, other addons' metadata, and the unredacted copy mitmproxy keeps of an edited flow.

    ``path`` (with its query) and ``target`` (scheme, host, port) are what the client asked for, before the gate routed
    the request; without them the flow's own are taken. ``inspected``: whether the request's head passed inspection; if
    not, only header fields of fixed meaning are kept and the query is dropped.
    """
    if keep is Keep.NONE:
        return None
    reverse = isinstance(flow.client_conn.proxy_mode, ReverseMode)
    asked = flow.request.path if path is None else path
    request = _request(flow.request, inspected=inspected)
    tls = request["scheme"] == b"https"
    return {
        "version": FLOW_FORMAT_VERSION,
        "type": "http",
        "id": flow.id,
        "error": None if flow.error is None else {"msg": "ended early", "timestamp": flow.error.timestamp},
        "client_conn": _client(NOWHERE if reverse else "regular", tls and not reverse),
        "server_conn": _server(request["host"], request["port"], tls),
        "intercepted": False,
        "is_replay": flow.is_replay,
        "marked": "",
        "metadata": {
            EXCHANGE: exchange,
            PATH: _path(asked, inspected=inspected),
            TARGET: "{}://{}:{}".format(*(target or (flow.request.scheme, flow.request.host, flow.request.port))),
            REVERSE: reverse,
        },
        "comment": "",
        "timestamp_created": flow.timestamp_created,
        "backup": None,
        "request": request,
        "response": None if flow.response is None else _response(flow.response),
        "websocket": flow.websocket.get_state() if websocket and flow.websocket is not None else None,
    }


def encode(state: dict[str, Any]) -> bytes:
    """Return a flow state as a tnetstring: what ``mitmproxy.io`` reads, in a fraction of its own encoder's time.

    Raises ``ValueError`` for what a tnetstring cannot hold.
    """
    return _encode(state)


def _encode(value: Any) -> bytes:
    leaf = _LEAVES.get(type(value))
    if leaf is not None:
        return leaf(value)
    if type(value) is dict:
        pieces = []
        for key, each in value.items():
            pieces.append(_key(key))
            leaf = _LEAVES.get(type(each))
            pieces.append(leaf(each) if leaf is not None else _encode(each))
        data = b"".join(pieces)
        return b"%d:%b}" % (len(data), data)
    if type(value) in (tuple, list):
        data = b"".join([_pair(*each) if _is_pair(each) else _encode(each) for each in value])
        return b"%d:%b]" % (len(data), data)
    return tnetstring.dumps(value)


def _is_pair(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and type(value[0]) is bytes and type(value[1]) is bytes


def _pair(name: bytes, value: bytes) -> bytes:
    """Encode a header field: the most frequent of all values."""
    data = b"%d:%b,%d:%b," % (len(name), name, len(value), value)
    return b"%d:%b]" % (len(data), data)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"%d:%b;" % (len(data), data)


_key = functools.lru_cache(maxsize=1024)(_text)


def _number(value: float) -> bytes:
    text = repr(value).encode()
    return b"%d:%b%b" % (len(text), text, b"#" if type(value) is int else b"^")


_LEAVES: dict[type, Callable[[Any], bytes]] = {
    bytes: lambda value: b"%d:%b," % (len(value), value),
    str: _text,
    int: _number,
    float: _number,
    bool: lambda value: b"4:true!" if value else b"5:false!",
    type(None): lambda _: b"0:~",
    Fixed: lambda value: value.encoded,
}


def _request(request: http.Request, *, inspected: bool) -> dict[str, Any]:
    data = request.data
    return {
        "http_version": data.http_version,
        "headers": tuple(pair for pair in data.headers.fields if _may_keep(pair[0], inspected)),
        "content": data.content,
        "trailers": None,
        "timestamp_start": data.timestamp_start,
        "timestamp_end": data.timestamp_end,
        "host": data.host,
        "port": data.port,
        "method": data.method,
        "scheme": data.scheme,
        "authority": b"",
        "path": _path(data.path.decode("utf-8", "surrogateescape"), inspected=inspected).encode(
            "utf-8", "surrogateescape"
        ),
    }


def _response(response: http.Response) -> dict[str, Any]:
    data = response.data
    return {
        "http_version": data.http_version,
        "headers": tuple(
            pair for pair in data.headers.fields if pair[0].decode("latin-1").lower() not in _SECRET_ANSWER
        ),
        "content": data.content,
        "trailers": None,
        "timestamp_start": data.timestamp_start,
        "timestamp_end": data.timestamp_end,
        "status_code": data.status_code,
        "reason": data.reason,
    }


@functools.lru_cache(maxsize=1024)
def _may_keep(name: bytes, inspected: bool) -> bool:
    plain = name.decode("latin-1").lower()
    if plain in headers.CREDENTIALS:
        return False
    return plain in _PLAIN if not inspected else not _SECRET_FIELD.search(plain)


def _path(path: str, *, inspected: bool) -> str:
    """Return a path to keep: no value of a parameter named like a credential, no query that nobody inspected."""
    if not inspected:
        return bare_path(path)
    return path if "?" not in path else _SECRET_PARAMETER.sub(r"\1=", path)


@functools.lru_cache(maxsize=8)
def _client(mode: str, tls: bool) -> Fixed:
    return Fixed(
        {
            **dict.fromkeys(("alpn", "cipher", "error", "mitmcert", "sni", "timestamp_end", "timestamp_tls_setup")),
            **{name: [] for name in ("alpn_offers", "certificate_list", "cipher_list")},
            "id": "client", "peername": ("", 0), "sockname": ("", 0), "proxy_mode": mode, "timestamp_start": 0.0,
            "tls": tls, "tls_version": None, "transport_protocol": "tcp",
        }
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _server(host: str, port: int, tls: bool) -> Fixed:
    nothing = (
        "alpn", "cipher", "error", "peername", "sockname", "timestamp_end", "timestamp_start", "timestamp_tcp_setup",
        "timestamp_tls_setup", "tls_version", "via",
    )  # fmt: skip
    return Fixed(
        {
            **dict.fromkeys(nothing),
            **{name: [] for name in ("alpn_offers", "certificate_list", "cipher_list")},
            "id": "server", "address": (host, port), "sni": host if tls else None, "tls": tls,
            "transport_protocol": "tcp",
        }
    )  # fmt: skip


# ── out of a recording ───────────────────────────────────────────────────────


def load_recording(path: Path, ids: Sequence[str] | None = None, *, strict: bool = True) -> list[http.HTTPFlow]:
    """Return the recorded flows in routed form, oldest first: all, or those whose ids begin with one of ``ids``.

    Not ``strict``: ``ids`` are whole ids, and those without bodies are left out.

    The comment of a flow says how its exchange ended and which rules fired. Raises ``RecordingError``.
    """
    return [_flow(path, stored) for stored in queries.states(path, ids, strict=strict)]


def _flow(path: Path, stored: queries.StoredState) -> http.HTTPFlow:
    try:
        state: Any = compat.migrate_flow(tnetstring.loads(stored.state))  # type: ignore[arg-type]  # or it raises
        flow = http.HTTPFlow.from_state(state)
    except (ValueError, TypeError, KeyError, AssertionError, exceptions.FlowReadException) as error:
        raise RecordingError(
            f"{path}: exchange {stored.exchange} holds a flow of format {stored.format}; "
            f"accepted: format {FLOW_FORMAT_VERSION} or older ({type(error).__name__})"
        ) from error
    assert isinstance(flow, http.HTTPFlow)
    flow.metadata[MASKED] = [
        [*astuple(each)[:5], each.action.value] for each in stored.masked
    ]  # plain: it may be saved
    flow.comment = _comment(stored.row)
    flow.marked = {"denied": ":no_entry:", "aborted": ":warning:", "failed": ":warning:"}.get(stored.row["outcome"], "")
    return flow


def _comment(row: queries.Row) -> str:
    ended = row["outcome"] or "open"
    parts = [ended if row["reason"] is None else f"{ended}: {row['reason']}", queries.who(row)]
    parts += [rule if times == 1 else f"{rule} x{times}" for rule, times in row["rules"].items()]
    return ", ".join(queries.printable(each) for each in parts if each)


def masked(flow: http.HTTPFlow) -> tuple[Finding, ...]:
    """Return what was found in a recorded request when it was judged, and is no longer in it."""
    found = flow.metadata.get(MASKED, ())
    return tuple(Finding(rule, cls, where, at, end, Action(act)) for rule, cls, where, at, end, act in found)


def client_form(flow: http.HTTPFlow) -> None:
    """Give a loaded flow the form in which the client had asked for it, and the listener it had come by."""
    flow.request.path = flow.metadata.get(PATH, flow.request.path)
    scheme, _, place = str(flow.metadata.get(TARGET, "")).partition("://")
    host, colon, port = place.rpartition(":")
    if colon and port.isdecimal():
        data = flow.request.data  # not the setters: they would rewrite the Host field, which may name the upstream
        data.scheme, data.host, data.port = scheme.encode(), host, int(port)
    if flow.request.raw_content is not None:  # masked, so of another length; and decoded, if it had an encoding
        flow.request.headers["content-length"] = str(len(flow.request.raw_content))
        try:
            flow.request.get_content(strict=True)
        except ValueError:
            del flow.request.headers["content-encoding"]
    if flow.metadata.get(REVERSE):
        flow.client_conn.proxy_mode = ProxyMode.parse(NOWHERE)
