"""The whole streamed answer of one exchange: bytes in, bytes out, and the refusal that ends it before its time.

Law: a frame leaves with the bytes it came in unless a text of it changed; what cannot be read is never passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from tidegate.dialects import ownership
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.errors import NO_CALLS, render_event
from tidegate.dialects.spec import Endpoint, ErrorShape, FramingKind
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_message
from tidegate.inspection.engine import Engine
from tidegate.inspection.media import ANSWER, withheld
from tidegate.inspection.rules import Rule
from tidegate.limits.usage import Meter, Taken
from tidegate.model import Action, Denial, Finding, OnUnknown, Reason, Stored
from tidegate.streams import framings
from tidegate.streams.channels import MALFORMED, EventRedactor, HeldCaps, Outgoing
from tidegate.streams.envelope import Envelope, open_up, seal
from tidegate.streams.framing import MAX_FRAME, Frame, FrameFault, Framing

DONE = "[DONE]"
"""The terminator most OpenAI-compatible servers send. It is no JSON and holds no text, so it may end any stream."""

MAX_UNREAD = 100
"""Places of media that are remembered of one stream; its record says why they were not scanned, each reason once."""

TOO_LARGE = Denial(
    Reason.ANSWER_TOO_LARGE,
    502,
    f"An event of the answer is larger than the {MAX_FRAME} bytes the gateway inspects.",
)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What the head of an answer says: its media type in lower case, without parameters, and its status.

    ``on_unknown``: what its connection does with what cannot be inspected.
    """

    label: str = ""
    status: int = 200
    on_unknown: OnUnknown = OnUnknown.BLOCK


class StreamedAnswer:
    """A streamed answer in any of the framings its endpoint may use, told by its first bytes.

    One that turns out to be a single JSON value is kept until its end and inspected as a whole. ``exchange`` is the id
    that an error event shows. ``denial`` is set when the answer must be cut: the bytes returned then end with the
    family's own error event, and nothing comes after it; ``calls`` are what it then answers. ``made`` is what its
    events said so far was made; ``meter`` reads of them how many tokens the answer took.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        shape: ErrorShape,
        engine: Engine,
        decide: Callable[[Rule], Action],
        exchange: str,
        head: AnswerHead = AnswerHead(),
        caps: HeldCaps | None = None,
    ) -> None:
        assert endpoint.stream is not None  # the crossing refuses a stream where the dialect knows none
        self._engine = engine
        self._decide = decide
        self._start(
            endpoint, shape, EventRedactor(endpoint.stream, engine, decide, caps, head.on_unknown), exchange, head
        )

    def _start(
        self, endpoint: Endpoint, shape: ErrorShape, events: EventRedactor, exchange: str, head: AnswerHead
    ) -> None:
        assert endpoint.stream is not None
        self.denial: Denial | None = None
        self.calls = NO_CALLS
        self.meter: Meter | None = None
        self._on_unknown = head.on_unknown
        self._unread: list[tuple[str, str]] = []
        self.made: list[Stored] = []
        self._makes = bool(endpoint.makes.paths) and head.status < 300
        self._endpoint = endpoint
        self._spec = endpoint.stream
        self._done = {DONE, endpoint.stream.done or DONE}
        self._shape = shape
        self._exchange = exchange
        self._label = head.label
        self._status = head.status
        self._head = bytearray()
        self._whole = False
        self._framing: Framing | None = None
        self._events = events
        self._found: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far; ``where`` begins with ``stream:``, or with ``$`` in an answer that is no stream."""
        return (*self._events.findings, *self._found)

    @property
    def unread(self) -> tuple[tuple[str, str], ...]:
        """What was not scanned and may pass all the same: its place, and why."""
        return (*self._unread, *((ANSWER, why) for why in self._events.unread))

    @property
    def held(self) -> int:
        """Characters held back now, in all channels."""
        return self._events.held

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, cut anywhere; return what may leave now."""
        if self.denial is not None:
            return b""
        if self._framing is not None:
            return self._relay(self._framing, self._framing.feed(chunk))
        self._head += chunk
        return b"" if self._whole else self._begin(final=False)

    def end(self) -> bytes:
        """End the answer, also where the upstream broke off: return what was held, redacted where it must be."""
        if self.denial is not None:
            return b""
        before = self._begin(final=True) if self._framing is None and not self._whole else b""
        framing = self._framing
        if framing is None:
            return self._look_at_whole()
        if self._cut():
            return before
        left = [frame for frame in framing.end() if self._is_readable(frame)]
        rest = before + b"".join(self._take(framing, frame) for frame in left)
        return rest if self._cut() else rest + self._flush(framing)

    @property
    def stuck(self) -> frozenset[object]:
        """Name what is held back: the same name means the same text, still waiting."""
        return self._events.stuck

    def expire(self, stuck: Collection[object]) -> bytes:
        """Mask the held texts of these names, since they have waited for too long; return what may leave."""
        if self.denial is not None or self._framing is None:
            return b""
        return self._written(self._framing, self._events.expire(stuck))

    def stop(self, denial: Denial) -> bytes:
        """End the answer from outside. What was held stays here; the family's error event is all that leaves."""
        if self.denial is not None:
            return b""
        return self._deny(denial)

    def _begin(self, *, final: bool) -> bytes:
        """Find the framing; until it is found, what came waits."""
        try:
            kind = framings.find(bytes(self._head), self._label, self._spec.framings, final=final)
        except framings.Undecided:
            return self._deny(TOO_LARGE) if len(self._head) > MAX_FRAME else b""
        if kind is FramingKind.JSON or (kind is None and self._status >= 400):  # an error may be a plain text
            self._whole = True
            return b""
        if kind is None:
            return self._deny(MALFORMED)
        framing = self._framing = framings.MAKERS[kind]()
        head, self._head = bytes(self._head), bytearray()
        return self._relay(framing, framing.feed(head))

    def _note(self, value: object) -> Taken | None:
        """Note what an event says was made and how many tokens it took, as the upstream wrote it."""
        if self._makes:
            self.made.extend(ownership.made(self._endpoint, value))
        return None if self.meter is None else self.meter.event(value)

    def _look_at_whole(self) -> bytes:
        body, self._head = bytes(self._head), bytearray()
        if self.meter is not None:
            self.meter.whole(body)
        value = strict_json(body) if self._makes else None
        if self._makes and not isinstance(value, Denial):
            self.made.extend(ownership.made(self._endpoint, value))
        found = inspect_answer(self._endpoint, self._engine, self._decide, body, status=self._status)
        if isinstance(found, Denial):
            return self._deny(found)
        if (denial := self._withheld(found)) is not None:
            return self._deny(denial)
        self._found = found.findings
        return found.body

    def _withheld(self, found: Inspected) -> Denial | None:
        """Refuse an answer with media that was not scanned, unless the connection lets it pass: then it is noted."""
        denial = withheld(found.unread, self._on_unknown)
        if denial is None:
            self._unread += found.unread[: max(0, MAX_UNREAD - len(self._unread))]
        return denial

    def _relay(self, framing: Framing, frames: list[Frame]) -> bytes:
        out: list[bytes] = []
        for frame in frames:
            out.append(self._take(framing, frame))
            if self.denial is not None:
                break
        else:
            if framing.fault is not None:
                out.append(self._deny(TOO_LARGE if framing.fault is FrameFault.TOO_LARGE else MALFORMED))
        return b"".join(out)

    def _take(self, framing: Framing, frame: Frame) -> bytes:
        frame = self._tidy(framing, frame)
        if self._events.texts.denial is not None:
            return self._deny(self._events.texts.denial)
        if frame.closes or (frame.data and frame.data.strip() in self._done):
            late = self._flush(framing)
            return late if self.denial is not None else late + framing.same(frame)
        if not frame.data:
            return framing.same(frame)
        known = self._events.again(frame.data, frame.name, frame, self.meter)
        if known is not None:
            return self._written(framing, known)
        value = strict_json(frame.data.encode())
        if isinstance(value, Denial):
            return self._deny(MALFORMED)
        if self._spec.wrapped is not None:
            return self._open_up(framing, frame, value)
        taken = self._note(value)
        if self._spec.whole:
            return self._message(framing, frame, value)
        events = self._events.event(value, frame.name, frame)
        self._events.learn(frame.data, frame.name, taken)
        return self._written(framing, events)

    def _message(self, framing: Framing, frame: Frame, value: object) -> bytes:
        """Inspect an event that is an answer of its own; what it holds of a text in pieces is the channel's."""
        before = (frame.data or "").encode()
        if not isinstance(value, dict | list):
            return self._deny(MALFORMED)
        if isinstance(value, list):
            looked = inspect_answer(self._endpoint, self._engine, self._decide, before, status=self._status)
        else:
            pieces = self._events.pieces(value)
            looked = inspect_message(self._endpoint, self._engine, self._decide, value, before, pieces)
        if isinstance(looked, Denial):
            return self._deny(looked)
        if (denial := self._withheld(looked)) is not None:
            return self._deny(denial)
        self._found += tuple(replace(each, where=f"stream:{each.where}") for each in looked.findings)
        if not self._spec.deltas:
            return framing.same(frame) if looked.body == before else framing.changed(frame, looked.body)
        if looked.body == before:
            return self._written(framing, self._events.event(strict_json(before), frame.name, frame))
        return self._written(framing, self._events.event(strict_json(looked.body), frame.name, frame), edited=True)

    def _open_up(self, framing: Framing, frame: Frame, value: object) -> bytes:
        """Take an event out of the object around it; what else is there goes if some of it must not leave."""
        opened = open_up(value, frame, self._spec.wrapped or "", self._spec.padding)
        if opened is None:
            return self._deny(MALFORMED)
        event, envelope = opened
        self._note(event)
        name = frame.name if envelope is frame else None  # else the frame names the envelope
        alone = isinstance(envelope, Envelope) and bool(envelope.rest) and self._is_found(envelope)
        return self._written(framing, self._events.event(event, name, envelope), alone=alone)

    def _is_found(self, envelope: Envelope) -> bool:
        """Look at what is around an event; say whether it must not leave."""
        text = dump(envelope.rest).decode("utf-8", "replace")
        return self._events.texts.check_source(text, "stream:$") != text

    def _tidy(self, framing: Framing, frame: Frame) -> Frame:
        """Look at what is beside the event (names, ids, comments); if some of it must not leave, all goes."""
        unseen = [text for text in frame.others if text not in self._events.texts.clean]
        if not unseen or not self._events.texts.check(unseen, lambda _: "stream:line"):
            return frame
        return framing.bare(frame)

    def _flush(self, framing: Framing) -> bytes:
        return self._written(framing, self._events.end())

    def _written(
        self, framing: Framing, events: list[Outgoing] | Denial, *, alone: bool = False, edited: bool = False
    ) -> bytes:
        """Write what may leave; ``alone``: without what is around an event; ``edited``: an event was changed before."""
        if isinstance(events, Denial):
            return self._deny(events)
        if self._events.texts.denial is not None:
            return self._deny(self._events.texts.denial)
        out: list[bytes] = []
        for event in events:
            like = event.like
            frame = like.frame if isinstance(like, Envelope) else like
            assert isinstance(frame, Frame)
            if event.inserted:
                out.append(framing.added(seal(like, event.value, alone=True), frame))
            elif event.changed or alone or edited:
                out.append(framing.changed(frame, seal(like, event.value, alone=alone)))
            else:
                out.append(framing.same(frame))
        return b"".join(out)

    def _deny(self, denial: Denial) -> bytes:
        self.denial = denial
        if self._framing is None:
            if self.meter is not None:
                self.meter.characters += len(self._head)  # of an answer that was to be read as a whole
            self._framing = framings.MAKERS[framings.expected(self._label, self._spec.framings)]()
        framing, name = self._framing, self._shape.event_name
        events = [render_event(self._shape, denial, self._exchange, call) for call in self.calls.ids or (None,)]
        return b"".join(framing.refusal(event, name) for event in events)

    def _cut(self) -> bool:
        return self.denial is not None

    def _is_readable(self, frame: Frame) -> bool:
        """Say whether a frame that is not whole is all there. The standard of SSE drops it; most SDKs read it."""
        if not frame.data or frame.data.strip() in self._done:
            return True
        return not isinstance(strict_json(frame.data.encode()), Denial)
