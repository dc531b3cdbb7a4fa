"""The answer of one gRPC call: messages of a known type, masked in place, one by one or live over all of them.

Law: a message leaves written anew, with its unknown fields; what cannot be read is never passed on. In a stream each
message is one event, and its texts leave under the law of ``streams.channels``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from google.protobuf.message import Message

from tidegate.dialects import protobuf
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.errors import grpc_message
from tidegate.dialects.fields import Trie
from tidegate.dialects.spec import Endpoint, GrpcSpec, JsonObject
from tidegate.inspection.bodies import Inspected, inspect_answer
from tidegate.inspection.engine import Engine
from tidegate.inspection.media import withheld
from tidegate.inspection.rules import Rule
from tidegate.model import Action, Denial, Finding, OnUnknown, Reason, Stored
from tidegate.streams.answers import MAX_UNREAD
from tidegate.streams.channels import MALFORMED, EventRedactor, HeldCaps, Outgoing
from tidegate.streams.grpc import Deframer, GrpcFault, frame
from tidegate.streams.texts import Texts

STATUS = "grpc-status"
MESSAGE = "grpc-message"
DETAILS = "grpc-status-details-bin"

_NO_STATUS = ((STATUS, "13"), (MESSAGE, "The upstream ended its answer without a status."))


@dataclass(frozen=True, slots=True)
class Answering:
    """What is known of an answer before it comes: the type of its messages, how to look at them, and their limit."""

    kind: type[Message]
    endpoint: Endpoint
    engine: Engine
    decide: Callable[[Rule], Action]
    on_unknown: OnUnknown
    limit: int
    encoding: str = "identity"

    @property
    def spec(self) -> GrpcSpec:
        """How its messages are shown."""
        assert self.endpoint.grpc is not None
        return self.endpoint.grpc


def faulty(fault: GrpcFault, limit: int) -> Denial:
    """Refuse an answer that cannot be read any further."""
    if fault is GrpcFault.TOO_LARGE:
        text = f"A message of the answer is larger than the {limit} bytes this connection accepts."
        return Denial(Reason.ANSWER_TOO_LARGE, 502, text)
    return MALFORMED


class GrpcAnswer:
    """An answer in many messages: bytes in, bytes out. ``denial`` is set when it must be cut.

    ``unread`` are the places of what was not scanned and may pass all the same, and why.
    """

    def __init__(self, about: Answering, caps: HeldCaps | None = None) -> None:
        assert about.endpoint.stream is not None  # ``dialects.methods`` wants one for every such method
        self.denial: Denial | None = None
        self.unread: tuple[tuple[str, str], ...] = ()
        self.made: list[Stored] = []  # nothing that is stored has a name there
        self._about = about
        self._deframer = Deframer(about.encoding, about.limit)
        self._deltas: Trie[None] = Trie((each.path, None) for each in about.endpoint.stream.deltas)
        self._events = EventRedactor(about.endpoint.stream, about.engine, about.decide, caps)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far; ``where`` begins with ``stream:``."""
        return self._events.findings

    @property
    def held(self) -> int:
        """Characters held back now, in all channels."""
        return self._events.held

    @property
    def stuck(self) -> frozenset[object]:
        """Name what is held back: the same name means the same text, still waiting."""
        return self._events.stuck

    def expire(self, stuck: Collection[object]) -> bytes:
        """Mask the held texts of these names, since they have waited for too long; return what may leave."""
        return b"" if self.denial is not None else self._written(self._events.expire(stuck))

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, cut anywhere; return what may leave now."""
        out: list[bytes] = []
        for data in self._deframer.feed(chunk) if self.denial is None else ():
            out.append(self._take(data))
            if self.denial is not None:
                return b"".join(out)
        if self._deframer.fault is not None and self.denial is None:
            self.denial = faulty(self._deframer.fault, self._about.limit)
        return b"".join(out)

    def end(self) -> bytes:
        """End the answer: return what was held, redacted where it must be, in messages of its own."""
        if self.denial is not None:
            return b""
        self._deframer.end()
        if self._deframer.fault is not None:
            self.denial = faulty(self._deframer.fault, self._about.limit)
            return b""
        return self._written(self._events.end())

    def stop(self, denial: Denial) -> bytes:
        """End the answer from outside. What was held stays here; the refusal is in the trailers."""
        self.denial = self.denial or denial
        return b""

    def _take(self, data: bytes) -> bytes:
        read = opened(self._about, data, self._events.texts, "stream:")
        if isinstance(read, Denial):
            self.denial = read
            return b""
        message, value, unread = read
        self.unread += unread[: max(0, MAX_UNREAD - len(self.unread))]
        return self._written(self._events.event(value, None, message))

    def _written(self, events: list[Outgoing] | Denial) -> bytes:
        denial = events if isinstance(events, Denial) else self._events.texts.denial
        if isinstance(events, Denial) or denial is not None:
            self.denial = denial
            return b""
        try:
            return b"".join(frame(protobuf.dump(self._message(each))) for each in events)
        except protobuf.Unwritable:
            self.denial = MALFORMED
            return b""

    def _message(self, event: Outgoing) -> Message:
        message = event.like
        assert isinstance(message, Message)
        if event.place is not None:
            return protobuf.alone(message, self._about.spec, self._deltas, *event.place)
        if event.changed:
            protobuf.write(message, self._about.spec, event.value, answer=True)
        return message


def opened(
    about: Answering, data: bytes, texts: Texts, prefix: str
) -> tuple[Message, JsonObject, tuple[tuple[str, str], ...]] | Denial:
    """Read a message of an answer, and look at what its view does not show; return what was not scanned, too."""
    try:
        message = protobuf.parse(about.kind, data)
        view = protobuf.show(message, about.spec, answer=True)
    except protobuf.Unreadable:
        return MALFORMED
    if (denial := withheld(view.unread, about.on_unknown)) is not None:
        return denial
    if view.texts:
        places = [f"{prefix}{place}" for place in view.texts]
        if texts.check(list(view.texts.values()), lambda index: places[index]):
            message.DiscardUnknownFields()  # they can be left out, not masked  # type: ignore[attr-defined]
    return message, view.value, tuple(view.unread)


def whole_answer(about: Answering, data: bytes) -> Inspected | Denial:
    """Inspect the answer of a call that has one message, or none where its status says why."""
    deframer = Deframer(about.encoding, about.limit)
    messages = deframer.feed(data)
    deframer.end()
    if deframer.fault is not None:
        return faulty(deframer.fault, about.limit)
    if not messages:
        return Inspected(b"", ())
    texts = Texts(about.engine, about.decide)
    read = opened(about, messages[0], texts, "")
    if len(messages) > 1 or isinstance(read, Denial):
        return read if isinstance(read, Denial) else MALFORMED
    message, value, unread = read
    before = dump(value)
    found = inspect_answer(about.endpoint, about.engine, about.decide, before, status=200)
    if isinstance(found, Denial) or texts.denial is not None:
        return found if isinstance(found, Denial) else texts.denial or MALFORMED
    if found.body != before:
        after = strict_json(found.body)
        try:
            protobuf.write(message, about.spec, after, answer=True)  # type: ignore[arg-type]  # what is no object does not fit
        except protobuf.Unwritable:
            return MALFORMED
    return Inspected(frame(protobuf.dump(message)), (*texts.findings, *found.findings), unread)


# ── the status ───────────────────────────────────────────────────────────────────────────────────────────────────────


def masked_trailers(
    fields: Iterable[tuple[str, str]], engine: Engine, decide: Callable[[Rule], Action]
) -> tuple[tuple[tuple[str, str], ...], tuple[Finding, ...]]:
    """Mask the trailers of a call: its status, the message of it, its details, and the upstream's own.

    A field other than the message is left out where something in it must not leave. Names are lower case.
    """
    texts = Texts(engine, decide)
    kept = [pair for pair in (_trailer(texts, *each) for each in fields) if pair is not None]
    if STATUS not in {name for name, _ in kept}:
        kept += _NO_STATUS
    return tuple(kept), tuple(texts.findings)


def _trailer(texts: Texts, name: str, value: str) -> tuple[str, str] | None:
    place = f"trailer {name}"
    if name == STATUS:
        return (name, value) if value.isdecimal() and len(value) <= 2 else None
    if name == MESSAGE:
        plain = unquote(value, errors="replace")
        said = texts.check([plain], lambda _: place).get(0, plain)
        return name, grpc_message(said)
    if texts.check([name], lambda _: "trailer names"):
        return None
    said_in = readings(name, value)
    if said_in is None or texts.check(said_in, lambda _: place):
        return None
    return name, value


def readings(name: str, value: str) -> list[str] | None:
    """Return what a field of metadata says: a binary one is base64 of anything. ``None`` if it is not even that."""
    if not name.endswith("-bin"):
        return [value]
    found: list[str] = []
    for part in value.split(","):
        try:
            data = base64.b64decode(part.strip() + "=" * (-len(part.strip()) % 4), validate=True)
        except (binascii.Error, ValueError):
            return None
        found += [data.decode("utf-8", "replace"), *protobuf.texts_inside(data)]
    return found
