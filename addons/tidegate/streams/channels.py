"""Redact a stream of JSON events: one text per channel, whatever the events are cut into.

Law: what a reader gets by joining the deltas of a channel equals the redaction of the whole text, and no text leaves
that is redacted later. A delta keeps its event and loses what must wait; held text leaves with a later delta, or at the
channel's end: in the event itself where it carries a delta of the channel, else in one delta before it, modelled on the
channel's last. A text that arrives whole (a repeat, a label) is redacted as a whole, and so equals its deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from tidegate.dialects.body import dump
from tidegate.dialects.fields import Leaf, LeafKind, Pointer, Trie, replace, where
from tidegate.dialects.spec import Delta, Drop, Flush, Keep, Source, StreamSpec
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.model import ACTING, Action, Denial, Finding, Reason
from tidegate.streams.events import JsonObject, Key, agree, key_of, slim, stretch, value_at
from tidegate.streams.redactor import Piece, Redactor
from tidegate.streams.source import JsonSource
from tidegate.streams.texts import Texts

type Payload = Delta | Source | Keep | Drop

MALFORMED = Denial(
    Reason.ANSWER_MALFORMED, 502, "The upstream's answer is malformed, so the gateway cannot inspect it."
)
UNDECIDED = Denial(
    Reason.ANSWER_MALFORMED, 502, "The answer keeps more text undecided than the gateway holds back, so it ends here."
)
RESUMED = Denial(Reason.ANSWER_MALFORMED, 502, "The answer goes on with a text that it had ended, so it ends here.")


@dataclass(frozen=True, slots=True)
class HeldCaps:
    """Bounds of what one stream may make the gateway keep: characters per channel and in all, and channels.

    A match has at most 1,024 bytes and JSON source spells a byte with up to six characters, so no sound rule ever
    reaches 8 KB. Recorded streams have at most 35 channels; a hundred parallel tool calls have four hundred.
    """

    channel: int = 8 * 1024
    stream: int = 64 * 1024
    channels: int = 1024


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event to be sent. ``like`` is what came with the event it is, or with the one it was modelled on."""

    value: JsonObject = field(repr=False)
    like: object = field(repr=False)
    changed: bool = False
    inserted: bool = False


@dataclass(slots=True)
class _Channel:
    """One logical text. ``last`` is the last event that carried it, ``at`` the place of the text in that event."""

    delta: Delta
    key: Key
    redactor: Redactor | JsonSource
    at: Pointer = ()
    last: JsonObject = field(default_factory=dict, repr=False)
    like: object = field(default=None, repr=False)
    held: int = 0


@dataclass(slots=True)
class _Event:
    """One event on its way through."""

    value: JsonObject = field(repr=False)
    kind: str | None
    like: object = field(repr=False)
    texts: dict[tuple[int, Key], list[tuple[_Channel, Leaf[Payload], str]]] = field(default_factory=dict, repr=False)
    deltas: list[tuple[Delta, Leaf[Payload]]] = field(default_factory=list, repr=False)
    whole: list[Leaf[Payload]] = field(default_factory=list, repr=False)
    source: list[Leaf[Payload]] = field(default_factory=list, repr=False)
    signed: list[Leaf[Payload]] = field(default_factory=list, repr=False)
    edits: list[tuple[Leaf[Payload], str]] = field(default_factory=list, repr=False)
    dropped: bool = False


class _Plan:
    """What a ``StreamSpec`` says, arranged for one walk per event."""

    def __init__(self, spec: StreamSpec) -> None:
        self.drops: Trie[Drop] = Trie((one.path, one) for one in spec.drop)
        self.numbers = {id(delta): number for number, delta in enumerate(spec.deltas)}
        # A tool's name is there in one piece, and clients act on it at once: it does not wait, and may not go on.
        self.once = {number for number, delta in enumerate(spec.deltas) if delta.path.endswith(".name")}
        ends = [flush.path or "" for flush in spec.flushes if not flush.values]  # other values of it may be needed
        paths = [*(delta.path for delta in spec.deltas), *ends]
        self.blank = {path[2:] for path in paths if path.count(".") == 1}
        self._flushes: dict[str | None, tuple[Flush, ...]] = {}
        self._spec = spec
        self._roles: dict[tuple[int, int, str | None], Payload | None] = {}

    def flushes(self, kind: str | None) -> tuple[Flush, ...]:
        """Return the flushes an event of this type may cause."""
        if kind not in self._flushes:
            if len(self._flushes) > 100:  # an API has some 60 event types; an upstream may make up any number
                self._flushes.clear()
            self._flushes[kind] = tuple(one for one in self._spec.flushes if one.when is None or kind in one.when)
        return self._flushes[kind]

    def role(self, leaf: Leaf[Payload], kind: str | None) -> Payload | None:
        """Tell what a leaf is: kept before anything else, then the first delta that allows the event, then source."""
        if leaf.kind is LeafKind.KEY or not (leaf.payloads or leaf.around):
            return None
        at = (id(leaf.payloads), id(leaf.around), kind)  # the tuples live as long as the trie that holds them
        if at not in self._roles:
            if len(self._roles) > 10_000:
                self._roles.clear()
            self._roles[at] = _role(leaf, kind)
        return self._roles[at]


def _role(leaf: Leaf[Payload], kind: str | None) -> Payload | None:
    for payload in (*leaf.payloads, *leaf.around):
        if isinstance(payload, Keep):
            return payload
    if leaf.kind is LeafKind.STRING:
        for payload in leaf.payloads:
            if isinstance(payload, Delta) and (payload.when is None or kind in payload.when):
                return payload
        for payload in leaf.payloads:
            if isinstance(payload, Source):
                return payload
    return None


@lru_cache(maxsize=64)
def _plan(spec: StreamSpec) -> _Plan:
    return _Plan(spec)


class EventRedactor:
    """The channels of one stream of JSON events: of SSE, and of any framing that carries such events.

    ``findings`` grows as the stream goes. After a denial nothing may be fed any more.
    """

    def __init__(
        self, spec: StreamSpec, engine: Engine, decide: Callable[[Rule], Action], caps: HeldCaps | None = None
    ) -> None:
        redacts = any(decide(rule) in ACTING for rule in engine.rules)
        self._begin(spec, Texts(engine, decide, streamed=True), caps, redacts=redacts)

    def _begin(self, spec: StreamSpec, texts: Texts, caps: HeldCaps | None, *, redacts: bool) -> None:
        self.texts = texts
        self._spec = spec
        self._plan = _plan(spec)
        self._caps = caps or HeldCaps()
        self._channels: dict[tuple[int, Key], _Channel] = {}
        self._ended: dict[tuple[int, Key], str | None] = {}
        self._masked: set[tuple[str, Key]] = set()
        self._held = 0
        self._shift = 0
        self._next: int | None = None
        self._redacts = redacts

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far; ``where`` begins with ``stream:``."""
        return tuple(self.texts.findings)

    @property
    def held(self) -> int:
        """Characters held back now, in all channels."""
        return self._held

    def event(self, value: object, name: str | None = None, like: object = None) -> list[Outgoing] | Denial:
        """Take one parsed event; return what may leave: held text that comes before it, then the event itself.

        ``value`` is changed in place and kept until the channel's next event. ``name`` is the name the framing gave the
        event, ``like`` anything that is handed back with it. Denials: ``ANSWER_FINDING`` and ``ANSWER_MALFORMED``.
        """
        if not isinstance(value, dict):
            return MALFORMED
        told = value.get(self._spec.event_type) if self._spec.event_type else None
        if isinstance(told, str) and name is not None and told != name:
            return MALFORMED  # two readers would take it for two different events
        work = _Event(value, told if isinstance(told, str) else name, like)
        self._sort(work)
        denial = self._feed(work)
        if denial is not None:
            return denial
        late = self._flush(work)
        self._whole(work)
        self._sign(work)
        changed = self._write(work)
        denial = self.texts.denial or self._over()
        if denial is not None:
            return denial
        return self._number([*late, Outgoing(value, like, changed)])

    def end(self) -> list[Outgoing] | Denial:
        """End every channel: return the held text, redacted where it must be. The stream may go on all the same."""
        late: list[Outgoing] = []
        for at in list(self._channels):
            channel = self._channels[at]
            late.extend(self._late(channel, self._close(at)))
        return self.texts.denial or self._number(late)

    def _sort(self, work: _Event) -> None:
        """Take second copies out, then put every text of the event where it belongs."""
        if self._redacts:
            self._drop(work)
        role, kind, clean = self._plan.role, work.kind, self.texts.clean
        for leaf in self._spec.fields.walk(work.value, clean):
            payload = role(leaf, kind)
            if payload is None:
                if leaf.text not in clean:
                    work.whole.append(leaf)
            elif isinstance(payload, Delta):
                work.deltas.append((payload, leaf))
            elif isinstance(payload, Source):
                work.source.append(leaf)
            elif leaf.pointer[-1] == "signature" and leaf.text:
                work.signed.append(leaf)

    def _drop(self, work: _Event) -> None:
        """Empty what the dialect calls a second copy; a list stays a list, so that readers find what they expect."""
        for found in self._plan.drops.select(work.value):
            if found.value and isinstance(found.parent, dict):
                found.parent[str(found.pointer[-1])] = [] if isinstance(found.value, list) else None
                work.dropped = True

    def _feed(self, work: _Event) -> Denial | None:
        for delta, leaf in work.deltas:
            key = key_of(work.value, leaf.pointer, delta.key, self._spec.absent)
            at = (self._plan.numbers[id(delta)], key)
            if leaf.text and at in self._ended and self._ended[at] != leaf.text:
                return RESUMED
            channel = self._channels.get(at)
            if channel is None:
                if len(self._channels) + len(self._ended) >= self._caps.channels:
                    return UNDECIDED
                redactor = self.texts.source() if delta.source else self.texts.redactor()
                channel = self._channels[at] = _Channel(delta, key, redactor)
            channel.at, channel.last, channel.like = leaf.pointer, work.value, work.like
            text = self._say(channel, channel.redactor.feed(leaf.text))
            if at[0] in self._plan.once and leaf.text:
                text += self._close(at)
                self._ended[at] = leaf.text
            work.texts.setdefault(at, []).append((channel, leaf, text))
        return None

    def _say(self, channel: _Channel, pieces: Iterable[Piece]) -> str:
        text, masked = self.texts.say(pieces, lambda: f"stream:{where(channel.at)}")
        if masked:
            self._masked.add((channel.delta.path.rpartition(".")[0], channel.key))
        self._held += channel.redactor.held - channel.held
        channel.held = channel.redactor.held
        return text

    def _flush(self, work: _Event) -> list[Outgoing]:
        """End the channels that this event ends, and those whose signature it carries."""
        late: list[Outgoing] = []
        for at in self._ending(work) if self._channels else ():
            channel = self._channels[at]
            text = self._close(at)
            if at in work.texts:
                _, leaf, before = work.texts[at][-1]
                work.texts[at][-1] = (channel, leaf, before + text)
            else:
                late.extend(self._late(channel, text))
        return late

    def _ending(self, work: _Event) -> list[tuple[int, Key]]:
        ends: dict[tuple[int, Key], None] = {}
        for flush in self._plan.flushes(work.kind):
            for pointer in flush.hits(work.value):
                if pointer and value_at(work.value, pointer) == "":
                    continue  # some servers write an empty finish_reason in every event
                found = key_of(work.value, pointer, flush.key, self._spec.absent)
                told = {(depth, name): value for depth, name, value in found}
                ends |= {at: None for at, channel in self._channels.items() if agree(channel.key, told)}
        for leaf in work.signed:
            ends |= {
                at: None
                for at, channel in self._channels.items()
                if channel.held and self._signs(work.value, leaf, _holder(channel.delta.path), channel.key)
            }
        return list(ends)

    def _close(self, at: tuple[int, Key]) -> str:
        """End a channel and return its last text. More text on it would be a text cut in two: see ``RESUMED``."""
        channel = self._channels.pop(at)
        held = channel.held
        text = self._say(channel, channel.redactor.end())
        self._held -= channel.held
        if held:
            self._ended[at] = None
        return text

    def _late(self, channel: _Channel, text: str) -> list[Outgoing]:
        """Write a delta with held text, modelled on the channel's last event: same ids, no other text, no ending."""
        if not text:
            return []
        names = {*channel.delta.key, *channel.delta.beside, "type"}
        value = slim(channel.last, channel.at, names, text)
        for name in self._plan.blank & value.keys():
            if name != channel.at[0]:
                value[name] = "" if isinstance(value[name], str) else None
        pad = self._spec.padding
        if pad is not None and isinstance(old := value.get(pad), str):
            value[pad] = ""
            value[pad] = stretch(old, len(dump(channel.last)) - len(dump(value)))
        return [Outgoing(value, channel.like, changed=True, inserted=True)]

    def _whole(self, work: _Event) -> None:
        texts = [leaf.text for leaf in work.whole]
        for index, text in self.texts.check(texts, lambda i: _place(work.whole[i])).items() if texts else ():
            work.edits.append((work.whole[index], text))
        for leaf in work.source:
            if (text := self.texts.check_source(leaf.text, _place(leaf))) != leaf.text:
                work.edits.append((leaf, text))
        for said in work.texts.values():
            work.edits.extend((leaf, text) for _, leaf, text in said if text != leaf.text)

    def _sign(self, work: _Event) -> None:
        """Take away the signature of a text that was redacted: it would not fit, and it belongs to the old text."""
        holders = {id(leaf.parent) for leaf, _ in work.edits} if work.signed else set()
        for leaf in work.signed:
            if id(leaf.parent) in holders or any(self._signs(work.value, leaf, *one) for one in self._masked):
                work.edits.append((leaf, ""))

    def _signs(self, event: object, leaf: Leaf[Payload], holder: str, key: Key) -> bool:
        """Say whether a signature stands beside the text of a channel: the same path, objects of the same indexes."""
        if not any(_holder(payload.path) == holder for payload in leaf.payloads):
            return False
        names = tuple(name for _, name, _ in key)
        told = {(depth, name): value for depth, name, value in key_of(event, leaf.pointer, names, self._spec.absent)}
        return all(told.get((depth, name)) == value for depth, name, value in key if name != "type")

    def _write(self, work: _Event) -> bool:
        """Put the new texts in place and rebuild the padding, so that the event is as long as it was."""
        if not work.edits:
            return work.dropped
        saved = 0
        for leaf, text in sorted(work.edits, key=lambda edit: edit[0].kind is LeafKind.KEY):
            saved += len(dump(leaf.text)) - len(dump(text))
            replace(work.value, leaf, text)  # type: ignore[arg-type]  # the payloads of a leaf are not looked at
        pad = self._spec.padding
        if pad is not None and isinstance(old := work.value.get(pad), str):
            work.value[pad] = stretch(old, len(old) + saved)
        return True

    def _over(self) -> Denial | None:
        if self._held > self._caps.stream or any(one.held > self._caps.channel for one in self._channels.values()):
            return UNDECIDED
        return None

    def _number(self, events: list[Outgoing]) -> list[Outgoing]:
        """Count anew: an inserted event takes the number of the one it precedes, and those that follow move up."""
        name = self._spec.sequence
        if name is None or not events:
            return events
        own = self._next if events[-1].inserted else events[-1].value.get(name)
        if type(own) is not int:
            return events
        numbered = []
        for event in events:
            number = own + self._shift
            if event.inserted:
                self._shift += 1
            changed = event.changed or event.value.get(name) != number
            if changed:
                event.value[name] = number
            numbered.append(Outgoing(event.value, event.like, changed, event.inserted))
        self._next = own + (0 if events[-1].inserted else 1)
        return numbered


def _holder(path: str) -> str:
    return path.rpartition(".")[0]


def _place(leaf: Leaf[Payload]) -> str:
    return f"stream:{where(leaf.pointer)}"
