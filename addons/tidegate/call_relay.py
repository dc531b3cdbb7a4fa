"""A gRPC call in which both sides speak at any time: what its client says is sent only as the gate released it.

mitmproxy either collects a request whole, which such a call may never let it do, or sends it on before anybody was
asked. Here whole messages are shown to the gate alone, by a hook of our own. No connection to the upstream is opened
before the first was released; a message that is refused ends the call. ``egress`` applies this to the flows that the
gate says are such calls.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import http
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import HttpStream, SendHttp
from mitmproxy.proxy.layers.http import _events as http_events

from tidegate.streams.grpc import PREFIX, complete

Commands = Generator[commands.Command, Any, None]


@dataclass
class Spoken:
    """Whole messages of a client, as they came; the gate fills in what may be sent because of them.

    ``first``: nothing was sent before. ``ended``: the client says no more, and ``data`` is all that is left.
    ``waiting``: bytes that came while the gate looked at what was before.
    """

    flow: http.HTTPFlow
    data: bytes = field(repr=False)
    first: bool
    ended: bool
    waiting: int = 0
    released: bytes | None = field(default=None, repr=False)


@dataclass
class TidegateCallHook(commands.StartHook):
    """A client spoke in a call: asked of the gate and of nobody else."""

    spoken: Spoken


@dataclass(slots=True)
class Speech:
    """What a client has said in one call and was not shown yet. ``room``: the bytes that one message may have.

    ``stopped``: the gate released nothing, so the call must end.
    """

    room: int
    data: bytearray = field(default_factory=bytearray, repr=False)
    open: bool = False
    stopped: bool = False


def hear(self: HttpStream, speech: Speech, event: Any) -> Commands:
    """Take what a client says."""
    if speech.stopped:
        return
    if self.server_state in (self.state_done, self.state_errored):
        yield from _too_late(self, event)
        return
    if isinstance(event, http_events.RequestTrailers):
        return  # a client has none in gRPC
    ended = isinstance(event, http_events.RequestEndOfMessage)
    if isinstance(event, http_events.RequestData):
        speech.data += event.data
    size = len(speech.data) if ended else _ready(speech)
    if not size and not ended:
        return
    spoken = Spoken(self.flow, bytes(speech.data[:size]), not speech.open, ended, _waiting(self))
    del speech.data[:size]
    if spoken.data or spoken.first:
        yield TidegateCallHook(spoken)
        if spoken.released is None:
            speech.stopped = True
            return
    if not speech.open:
        speech.open = yield from _open(self)
        if not speech.open:
            return
    if spoken.released:
        yield SendHttp(http_events.RequestData(self.stream_id, spoken.released), self.context.server)
    if ended and self.client_state == self.state_stream_request_body:
        self.client_state = self.state_done
        yield SendHttp(event, self.context.server)


def _waiting(self: HttpStream) -> int:
    """Count what waits: mitmproxy takes in whatever a client sends, however slowly it is looked at."""
    queue = self._paused_event_queue
    return sum(len(each.data) for each in queue if isinstance(each, http_events.RequestData))


def _ready(speech: Speech) -> int:
    """Return how many bytes can be shown: whole messages, or all where nobody will take what is coming."""
    size = complete(speech.data)
    return len(speech.data) if not size and len(speech.data) > speech.room + PREFIX else size


def _open(self: HttpStream) -> Generator[commands.Command, Any, bool]:
    """Open the call upstream; the egress compares its head with what was cleared."""
    ok = yield from self.make_server_connection()
    if not ok:
        self.client_state = self.state_errored
        return False
    yield SendHttp(http_events.RequestHeaders(self.stream_id, self.flow.request, False), self.context.server)
    self.client_state = self.state_stream_request_body
    return not getattr(self, "tidegate_over", False)


def _too_late(self: HttpStream, event: Any) -> Commands:
    """Throw away what comes after the answer is complete."""
    if isinstance(event, http_events.RequestEndOfMessage) and self.client_state != self.state_errored:
        self.client_state = self.state_done
        if self.server_state == self.state_done and self.flow.response is not None:
            yield from self.flow_done()
