"""Answer clients out of a recording, with mitmproxy's server replay: nothing is ever sent anywhere.

A client points its base URL here with the same path as at the gate (``http://127.0.0.1:PORT/openai/v1``). Host, port
and scheme do not count. A body matches if it is the same JSON value; a placeholder in the recorded one
(``[REDACTED:...]``) stands for any text, because the client sends again what the gate had masked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import http
from mitmproxy.addons import serverplayback
from mitmproxy.proxy import server_hooks

from tidegate import master
from tidegate.dialects.errors import GENERIC, render
from tidegate.evidence.records import RecordingError
from tidegate.model import Denial, Reason
from tidegate.replay.flows import EXCHANGE, NOWHERE, client_form

UNMATCHED = Denial(
    Reason.REPLAY_UNMATCHED, 404, "The recording holds no answer to this request, and a replay sends nothing upstream."
)
MATCHED = "tidegate.replayed"
"""Key of a live flow's metadata: the exchange whose answer it gets."""

_PLACEHOLDER = re.compile(r"\[REDACTED(?::[^\[\]]{0,80})?\]")


async def serve(
    flows: Sequence[http.HTTPFlow],
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    ignore_content: bool = False,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Listen until SIGINT or SIGTERM. ``ready`` is called with the number of answers when the port is open.

    ``ignore_content``: the first recorded answer of a method and path answers every body. Raises ``RecordingError`` if
    there is nothing to answer with.
    """
    playable = [each for flow in flows if (each := _playable(flow)) is not None]
    if not playable:
        raise RecordingError(
            "replay serve: found no recorded answer with a body; accepted: a recording that keeps them"
        )
    settings: dict[str, Any] = {
        "mode": [NOWHERE],
        "listen_host": host,
        "listen_port": port,
        "connection_strategy": "lazy",
        "rawtcp": False,
    }
    match, playback = Match(playable, ignore_content=ignore_content), serverplayback.ServerPlayback()
    running = _Running(lambda: ready(len(playable)) if ready is not None else None)
    slim = master.build(settings, match, playback, Unmatched(), running)
    slim.options.update(
        server_replay_extra="404",
        server_replay_reuse=True,
        server_replay_refresh=False,
        server_replay_ignore_content=ignore_content,
    )
    playback.load_flows(playable)
    await master.serve(slim)


def _playable(flow: http.HTTPFlow) -> http.HTTPFlow | None:
    """Give a recorded flow the form in which live requests are compared, its answer whole; ``None`` if it has none.

    Answers that broke off are not replayed: a client could not tell them from whole ones.
    """
    response = flow.response
    if response is None or response.raw_content is None or flow.error is not None or flow.websocket is not None:
        return None
    client_form(flow)
    _plain(flow.request, canonical(flow.request.raw_content or b""))
    response.headers.pop("transfer-encoding", None)
    response.headers["content-length"] = str(len(response.raw_content))
    return flow


def _plain(request: http.Request, body: bytes) -> None:
    request.headers.pop("content-encoding", None)
    data = request.data
    data.scheme, data.host, data.port, data.authority = b"http", "recording.invalid", 80, b""
    request.headers["host"] = "recording.invalid"
    data.content = body


class Match:
    """Finds the recorded request that a live one repeats, and makes the live one equal to it, for the engine."""

    name = "tidegate_match"

    def __init__(self, flows: Sequence[http.HTTPFlow], *, ignore_content: bool) -> None:
        self._any = ignore_content
        self._recorded: dict[tuple[str, str], dict[bytes, str]] = {}
        for flow in flows:
            bodies = self._recorded.setdefault(_place(flow.request), {})
            bodies.setdefault(flow.request.raw_content or b"", str(flow.metadata.get(EXCHANGE, "")))

    def request(self, flow: http.HTTPFlow) -> None:
        """Prepare a live request for mitmproxy's own look-up."""
        body = canonical(flow.request.get_content(strict=False) or b"")
        bodies = self._recorded.get(_place(flow.request), {})
        found = body if body in bodies else next(iter(bodies), None) if self._any else _covering(bodies, body)
        if found is not None:
            flow.metadata[MATCHED] = bodies[found]
            body = found
        _plain(flow.request, body)


class Unmatched:
    """Refuses what the engine did not answer, and is the fence: no connection is ever opened."""

    name = "tidegate_unmatched"

    def request(self, flow: http.HTTPFlow) -> None:
        """Say that the recording holds no answer, in a form that SDKs read."""
        if flow.response is not None and MATCHED in flow.metadata:
            flow.response.headers["x-tidegate-replayed"] = flow.metadata[MATCHED]
            return
        fields, body = render(GENERIC, UNMATCHED, "replay")
        pairs = [(name.encode(), value.encode()) for name, value in fields]
        flow.response = http.Response.make(UNMATCHED.status, body, http.Headers(pairs))

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Open no tunnel."""
        self.request(flow)

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Open no connection."""
        data.server.error = "a replay sends nothing upstream"


class _Running:
    """Tells when the port is open."""

    name = "tidegate_running"

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def running(self) -> None:
        self._tell()


def canonical(body: bytes) -> bytes:
    """Return the one spelling of a JSON body: sorted keys, no spaces. Another body is returned as it is."""
    try:
        value = json.loads(body)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return body


def covers(recorded: str, live: str) -> bool:
    """Say whether a text is a recorded one, where each placeholder of that stands for any text. Linear in both."""
    first, *rest = _PLACEHOLDER.split(recorded)
    if not rest:
        return recorded == live
    last = rest.pop()
    if len(live) < len(first) + len(last) or not live.startswith(first) or not live.endswith(last):
        return False
    at, end = len(first), len(live) - len(last)
    for piece in rest:
        found = live.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _covering(bodies: dict[bytes, str], body: bytes) -> bytes | None:
    """Return the recorded body that covers a live one; of several, the one with the fewest placeholders."""
    try:
        live = json.loads(body)
    except (ValueError, RecursionError):
        return None
    masked = [(len(found), each) for each in bodies if (found := _PLACEHOLDER.findall(each.decode("utf-8", "replace")))]
    for _, each in sorted(masked):
        if _covers_value(json.loads(each), live):
            return each
    return None


def _covers_value(recorded: Any, live: Any) -> bool:
    if isinstance(recorded, str) and isinstance(live, str):
        return covers(recorded, live)
    if isinstance(recorded, str) and type(live) in (int, float) and _PLACEHOLDER.search(recorded):
        return covers(recorded, json.dumps(live))
    if isinstance(recorded, list) and isinstance(live, list):
        return len(recorded) == len(live) and all(map(_covers_value, recorded, live))
    if isinstance(recorded, dict) and isinstance(live, dict):
        return recorded.keys() == live.keys() and all(_covers_value(recorded[key], live[key]) for key in recorded)
    return bool(type(recorded) is type(live) and recorded == live)


def _place(request: http.Request) -> tuple[str, str]:
    return request.method, request.path
