"""The ``connections`` and ``limits`` of a policy: where requests go, with which credential and limits. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tidegate.identity import reference
from tidegate.model import AnswerLimits, CredentialRef, OnUnknown, Origin
from tidegate.policy.oidc import LOOPBACK
from tidegate.policy.policy import RecordingMode
from tidegate.policy.reader import Reader
from tidegate.policy.recording import read_mode
from tidegate.policy.source import Node

CONNECTION_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "connections[]": (
        "name",
        "dialect",
        "upstream",
        "serve",
        "credential",
        "limits",
        "on_unknown",
        "encoded_runs",
        "descriptors",
        "labels",
        "recording",
    ),
    "connections[].serve": ("path",),
    "connections[].credential": ("header", "value"),
    "connections[].limits": ("request", "response", "socket"),
    "limits": ("request", "response", "socket"),
    "limits.request": ("bytes",),
    "limits.response": ("bytes", "first_byte", "idle", "duration", "held"),
    "limits.socket": ("idle", "duration"),
}

RUNS = 64, 4096
"""Least and most characters of an encoded run: a stream holds 8 Ki in all of one text, and a match beside the run."""
NO_RUNS = "none"
REQUEST_BYTES = 8 * 1024 * 1024  # a prompt of a million tokens is 4 to 5 MB of JSON
_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_HOST = re.compile(r"[a-z0-9._:-]+")
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_NOT_A_CREDENTIAL = frozenset(  # framing and routing: whoever sets these moves the request, not its authority
    {"host", "content-length", "transfer-encoding", "content-encoding", "content-type", "connection", "upgrade", "te"}
)
_HEADER_NAME = "the name of a header such as authorization or x-api-key"
DESCRIPTORS = "the path of a descriptor set, relative to this file"
_UPSTREAM = "an http or https address without user, query or fragment, such as https://api.openai.com"


@dataclass(frozen=True, slots=True)
class LimitsDoc:
    """Limits as written; ``None`` is not written. ``nodes`` maps the name of a limit to its place."""

    request_bytes: int | None = None
    bytes: int | None = None
    first_byte: float | None = None
    idle: float | None = None
    duration: float | None = None
    held: float | None = None
    socket_idle: float | None = None
    socket_duration: float | None = None
    nodes: Mapping[str, Node] | None = None


@dataclass(frozen=True, slots=True)
class ConnectionDoc:
    """A connection as written. ``upstream`` is ``None`` when it was at fault; ``prefix`` when it is not served."""

    node: Node
    name: str
    dialect: Node | None
    upstream: Origin | None
    upstream_path: str
    prefix: str | None
    credential: CredentialRef | None
    limits: LimitsDoc
    on_unknown: OnUnknown = OnUnknown.BLOCK
    encoded_runs: int | None = None
    descriptors: Node | None = None
    labels: tuple[str, ...] = ()
    recording: RecordingMode | None = None


def read_connection(reader: Reader, node: Node) -> ConnectionDoc:
    """Read one connection."""
    section = reader.section(
        node,
        CONNECTION_SECTIONS["connections[]"],
        {"name": "a name for the connection", "dialect": "the name of a dialect", "upstream": _UPSTREAM},
    )
    origin, path = _upstream(reader, section.get("upstream"))
    credential = _credential(reader, section["credential"]) if "credential" in section else None
    if credential is not None and origin is not None and origin.scheme == "http" and origin.host not in LOOPBACK:
        reader.fault(section["upstream"], "an https address where a credential is attached, or http to loopback")
    if "descriptors" in section:
        reader.text(section["descriptors"], DESCRIPTORS)
    if "dialect" in section:
        reader.text(section["dialect"], "the name of a dialect")
    return ConnectionDoc(
        node=node,
        name=reader.name(section.get("name")),
        dialect=section.get("dialect"),
        upstream=origin,
        upstream_path=path,
        prefix=_prefix(reader, section["serve"]) if "serve" in section else None,
        credential=credential,
        limits=read_limits(reader, section.get("limits")),
        on_unknown=reader.choice(section.get("on_unknown"), OnUnknown, OnUnknown.BLOCK),
        encoded_runs=read_runs(reader, section.get("encoded_runs")),
        descriptors=section.get("descriptors"),
        labels=tuple(filter(None, map(reader.name, reader.items(section.get("labels"), "a list of labels")))),
        recording=read_mode(reader, section.get("recording")),
    )


def read_runs(reader: Reader, node: Node | None) -> int | None:
    """Read how many characters of an encoded run a stream waits for: 0 for none, ``None`` where nobody says."""
    if node is None or node.value == NO_RUNS:
        return None if node is None else 0
    accepted = f"a size from {RUNS[0]}B to {RUNS[1] // 1024}KiB, or {NO_RUNS}"
    size = reader.bytes(node)
    if size is not None and not RUNS[0] <= size <= RUNS[1]:
        reader.fault(node, accepted)
    return size


def read_limits(reader: Reader, node: Node | None) -> LimitsDoc:
    """Read a ``limits`` section, of the policy or of a connection."""
    if node is None:
        return LimitsDoc()
    section = reader.section(node, CONNECTION_SECTIONS["limits"])
    request = reader.section(section["request"], CONNECTION_SECTIONS["limits.request"]) if "request" in section else {}
    answer = (
        reader.section(section["response"], CONNECTION_SECTIONS["limits.response"]) if "response" in section else {}
    )
    socket = reader.section(section["socket"], CONNECTION_SECTIONS["limits.socket"]) if "socket" in section else {}
    return LimitsDoc(
        request_bytes=reader.bytes(request.get("bytes")),
        bytes=reader.bytes(answer.get("bytes")),
        first_byte=reader.seconds(answer.get("first_byte")),
        idle=reader.seconds(answer.get("idle")),
        duration=reader.seconds(answer.get("duration")),
        held=reader.seconds(answer.get("held")),
        socket_idle=reader.seconds(socket.get("idle")),
        socket_duration=reader.seconds(socket.get("duration")),
        nodes=answer,
    )


def merge(reader: Reader, general: LimitsDoc, own: LimitsDoc) -> tuple[int, AnswerLimits]:
    """Lay a connection's limits over the general ones and the defaults; returns request bytes and answer limits.

    A written limit that the duration makes pointless is a fault where it is written in ``own``; a default one that is
    longer than a written duration is shortened to it.
    """
    base = AnswerLimits()
    written = {
        name: getattr(own, name) if getattr(own, name) is not None else getattr(general, name)
        for name in ("bytes", "first_byte", "idle", "duration", "held", "socket_idle", "socket_duration")
    }
    limits = replace(base, **{name: value for name, value in written.items() if value is not None})
    nodes = own.nodes or {}
    for name in ("first_byte", "idle", "held"):
        at = nodes.get(name) or nodes.get("duration")
        if written[name] is not None and written[name] > limits.duration and at is not None:
            reader.fault(
                at,
                "a time of at most the duration",
                found=f"{name} {written[name]:g}s with a duration of {limits.duration:g}s",
            )
    limits = replace(limits, first_byte=min(limits.first_byte, limits.duration), idle=min(limits.idle, limits.duration))
    return own.request_bytes or general.request_bytes or REQUEST_BYTES, limits


def _upstream(reader: Reader, node: Node | None) -> tuple[Origin | None, str]:
    """Read the upstream address; returns its origin and its base path without a final slash."""
    address = reader.text(node, _UPSTREAM)
    if node is None or not address:
        return None, ""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        reader.fault(node, _UPSTREAM)
        return None, ""
    if parts.username is not None or parts.password is not None or "?" in address or "#" in address:
        reader.fault(node, _UPSTREAM, found="an address with a user, query or fragment (not shown)")
        return None, ""
    host = (parts.hostname or "").rstrip(".")
    plain = _HOST.fullmatch(host) and _PATH.fullmatch(parts.path) and not {".", ".."} & set(parts.path.split("/"))
    if parts.scheme not in _PORTS or not plain:
        reader.fault(node, _UPSTREAM)
        return None, ""
    return Origin(parts.scheme, host, port or _PORTS[parts.scheme]), parts.path.rstrip("/")


def _prefix(reader: Reader, node: Node) -> str | None:
    accepted = "a path such as /openai"
    section = reader.section(node, CONNECTION_SECTIONS["connections[].serve"], {"path": accepted})
    path = reader.text(section.get("path"), accepted)
    if not path:
        return None
    if not path.startswith("/") or not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        reader.fault(section["path"], accepted)
        return None
    return path.rstrip("/")


def _credential(reader: Reader, node: Node) -> CredentialRef | None:
    """Read a credential. Whatever is written in its place may be the secret itself, so none of it is ever shown."""
    if not isinstance(node.value, Mapping):
        reader.fault(node, "a mapping with the keys header, value", found="something else (not shown)")
        return None
    section = reader.section(
        node,
        CONNECTION_SECTIONS["connections[].credential"],
        {"header": _HEADER_NAME, "value": reference.ACCEPTED},
    )
    header = reader.text(section.get("header"), _HEADER_NAME).lower()
    if header and (not _HEADER.fullmatch(header) or header in _NOT_A_CREDENTIAL):
        reader.fault(section["header"], _HEADER_NAME, found="something else (not shown)")
    value = section.get("value")
    if value is None:
        return None
    if not isinstance(value.value, str):
        reader.fault(value, reference.ACCEPTED, found="a value that is not text (not shown)")
        return None
    try:
        reference.parse(value.value)
    except reference.NotAReference as problem:
        reader.fault(value, reference.ACCEPTED, found=str(problem))
        return None
    return CredentialRef(header, value.value)
