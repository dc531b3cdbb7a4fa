"""The whole streamed answer of one exchange: bytes in, bytes out, and the refusal that ends it before its time.

Law: an event leaves with the bytes it came in unless a text of it changed; what cannot be read is never passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.errors import render_event
from tidegate.dialects.spec import Endpoint, ErrorShape
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.model import Action, Denial, Finding, Reason
from tidegate.streams import sse
from tidegate.streams.channels import MALFORMED, EventRedactor, HeldCaps, Outgoing
from tidegate.streams.sse import SseEvent, SseFault, SseParser

DONE = "[DONE]"
"""The terminator most OpenAI-compatible servers send. It is no JSON and holds no text, so it may end any stream."""

TOO_LARGE = Denial(
    Reason.ANSWER_TOO_LARGE,
    502,
    f"An event of the answer is larger than the {sse.MAX_EVENT} bytes the gateway inspects.",
)


class SseAnswer:
    """A streamed answer of server-sent events.

    ``denial`` is set when the answer must be cut: the bytes returned then end with the family's own error event, and
    nothing comes after it. ``exchange`` is the id that event shows.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        shape: ErrorShape,
        engine: Engine,
        decide: Callable[[Rule], Action],
        exchange: str,
        caps: HeldCaps | None = None,
    ) -> None:
        assert endpoint.stream is not None  # the crossing refuses a stream where the dialect knows none
        self.denial: Denial | None = None
        self._done = {DONE, endpoint.stream.done or DONE}
        self._shape = shape
        self._exchange = exchange
        self._parser = SseParser()
        self._events = EventRedactor(endpoint.stream, engine, decide, caps)
        self._open = False

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far; ``where`` begins with ``stream:``."""
        return self._events.findings

    @property
    def held(self) -> int:
        """Characters held back now, in all channels."""
        return self._events.held

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, cut anywhere; return what may leave now."""
        return b"" if self.denial is not None else self._relay(self._parser.feed(chunk))

    def end(self) -> bytes:
        """End the answer, also where the upstream broke off: return what was held, redacted where it must be."""
        if self._cut():
            return b""
        left = [event for event in self._parser.end() if self._is_readable(event)]
        rest = b"".join(map(self._take, left))
        self._open = bool(left)
        return rest if self._cut() else rest + self._flush()

    def stop(self, denial: Denial) -> bytes:
        """End the answer from outside. What was held stays here; the family's error event is all that leaves."""
        if self.denial is not None:
            return b""
        return self._deny(denial)

    def _relay(self, events: list[SseEvent]) -> bytes:
        out: list[bytes] = []
        for event in events:
            out.append(self._take(event))
            if self.denial is not None:
                break
        else:
            if self._parser.fault is not None:
                out.append(self._deny(TOO_LARGE if self._parser.fault is SseFault.TOO_LARGE else MALFORMED))
        return b"".join(out)

    def _take(self, event: SseEvent) -> bytes:
        event = self._tidy(event)
        if self._events.texts.denial is not None:
            return self._deny(self._events.texts.denial)
        if not event.data:
            return event.raw
        if event.data.strip() in self._done:
            late = self._flush()
            return late if self.denial is not None else late + event.raw
        value = strict_json(event.data.encode())
        if isinstance(value, Denial):
            return self._deny(MALFORMED)
        return self._written(self._events.event(value, event.name, event), event)

    def _tidy(self, event: SseEvent) -> SseEvent:
        """Look at the lines that are not data (names, ids, comments); if one holds what must not leave, all go."""
        unseen = [text for text in event.others if text not in self._events.texts.clean]
        if not unseen or not self._events.texts.check(unseen, lambda _: "stream:line", decoded=False):
            return event
        return replace(event, raw=sse.only_data(event), name=None, others=())

    def _flush(self) -> bytes:
        return self._written(self._events.end(), None)

    def _written(self, events: list[Outgoing] | Denial, own: SseEvent | None) -> bytes:
        if isinstance(events, Denial):
            return self._deny(events)
        out: list[bytes] = []
        for event in events:
            like = event.like
            assert isinstance(like, SseEvent)
            if event.inserted:
                out.append(self._closing() + sse.write(like.name, dump(event.value), like.raw))
            else:
                assert own is like
                out.append(sse.rewrite(like, dump(event.value)) if event.changed else like.raw)
        return b"".join(out)

    def _deny(self, denial: Denial) -> bytes:
        self.denial = denial
        return self._closing() + render_event(self._shape, denial, self._exchange)

    def _closing(self) -> bytes:
        """End the event before, where the upstream broke off without an empty line."""
        opened, self._open = self._open, False
        return b"\n\n" if opened else b""

    def _cut(self) -> bool:
        return self.denial is not None

    def _is_readable(self, event: SseEvent) -> bool:
        """Say whether an event without its empty line is all there. The standard drops it; most SDKs read it."""
        if not event.data or event.data.strip() in self._done:
            return True
        return not isinstance(strict_json(event.data.encode()), Denial)
