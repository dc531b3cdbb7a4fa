"""Redact a stream of JSON events: one text per channel, whatever the events are cut into.

Law: what a reader gets by joining the deltas of a channel equals the redaction of the whole text, and no text leaves
that is redacted later. A delta keeps its event and loses what must wait; held text leaves with a later delta, or at the
channel's end: in the event itself where it carries a delta of the channel, else in one delta before it, modelled on the
channel's last. A text that arrives whole (a repeat, a label) is redacted as a whole, and so equals its deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Leaf, LeafKind, Pointer, Trie, replace, where
from tidegate.dialects.spec import ALPHABETS, Delta, Drop, Flush, Keep, Source, StreamSpec
from tidegate.inspection.bodies import put
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.limits.usage import Meter, Taken
from tidegate.model import ACTING, Action, Denial, Finding, OnUnknown, Reason
from tidegate.streams.events import JsonObject, Key, agree, is_true, key_of, set_true, slim, stretch, value_at
from tidegate.streams.moulds import Moulds, Place
from tidegate.streams.redactor import Piece, Redactor, placeholder, short_name
from tidegate.streams.source import JsonSource
from tidegate.streams.texts import Texts
from tidegate.streams.unnamed import Unnamed

type Payload = Delta | Source | Keep | Drop

MALFORMED = Denial(
    Reason.ANSWER_MALFORMED, 502, "The upstream's answer is malformed, so the gateway cannot inspect it."
)
UNDECIDED = Denial(
    Reason.ANSWER_MALFORMED, 502, "The answer keeps more text undecided than the gateway holds back, so it ends here."
)
UNKNOWN_EVENT = "an event of an unknown type"
_UNKNOWN = Denial(Reason.ANSWER_OPAQUE, 502, f"The upstream's answer was not scanned: it is or holds {UNKNOWN_EVENT}.")
REPEATED = Denial(
    Reason.ANSWER_MALFORMED,
    502,
    "The answer repeats in each event what it has said before, which the gateway cannot mask while it streams.",
)
RESUMED = Denial(Reason.ANSWER_MALFORMED, 502, "The answer goes on with a text that it had ended, so it ends here.")


_AGAIN = 8
"""Characters of a delta that the next one begins with: fewer are chance, more a model that sends all it has said."""


@dataclass(frozen=True, slots=True)
class HeldCaps:
    """Bounds of what one stream may make the gateway keep: characters per channel and in all, and channels.

    A match has at most 1,024 bytes and JSON source spells a byte with up to six characters, so no sound rule ever
    reaches 8 KB. Recorded streams have at most 35 channels; a hundred parallel tool calls have four hundred.
    ``runs`` is how many characters of an encoded run wait to be decoded; 0 where the policy does not ask for it.
    """

    channel: int = 8 * 1024
    stream: int = 64 * 1024
    channels: int = 1024
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event to be sent. ``like`` is what came with the event it is, or with the one it was modelled on.

    ``place`` says where in that one the text of an inserted event stood, and what it is now.
    """

    value: JsonObject = field(repr=False)
    like: object = field(repr=False)
    changed: bool = False
    inserted: bool = False
    place: tuple[Pointer, str] | None = field(default=None, repr=False)


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
    raw: str = field(default="", repr=False)

    def repeats(self, text: str) -> bool:
        """Say whether a delta is the one before and more."""
        before, self.raw = self.raw, text
        return len(before.strip()) >= _AGAIN and len(text) > len(before) and text.startswith(before)


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
    anew: list[dict[tuple[int, str], object]] = field(default_factory=list, repr=False)
    edits: list[tuple[Leaf[Payload], str]] = field(default_factory=list, repr=False)
    dropped: bool = False


class _Plan:
    """What a ``StreamSpec`` says, arranged for one walk per event."""

    def __init__(self, spec: StreamSpec) -> None:
        self.drops: Trie[Drop] = Trie((one.path, one) for one in spec.drop)
        self.deltas: Trie[Delta] = Trie((one.path, one) for one in spec.deltas)
        self.numbers = {id(delta): number for number, delta in enumerate(spec.deltas)}
        # A tool's name is there in one piece, and clients act on it at once: it does not wait, and may not go on.
        self.once = {number for number, delta in enumerate(spec.deltas) if delta.path.endswith(".name")}
        ends = [flush.path or "" for flush in spec.flushes if not flush.values]  # other values of it may be needed
        paths = [*(delta.path for delta in spec.deltas), *ends]
        self.blank = {path[2:] for path in paths if path.count(".") == 1}
        keys = {name for delta in spec.deltas for name in delta.key}
        self.indexes = tuple(keys - {"type", spec.event_type})  # what only tells kinds apart, many of one event share
        self.labels = {*keys, spec.event_type, spec.padding, spec.sequence, "id", "type", "object", "role"}
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
        if isinstance(payload, Keep) and (payload.when is None or kind in payload.when):
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

    ``findings`` grows as the stream goes. After a denial nothing may be fed any more. ``unread`` says what came that no
    rule can read, or that nobody knows the meaning of; what is text in it is looked at all the same, each as a whole.
    """

    _judges = True
    _joint = "_"

    def __init__(
        self,
        spec: StreamSpec,
        engine: Engine,
        decide: Callable[[Rule], Action],
        caps: HeldCaps | None = None,
        on_unknown: OnUnknown = OnUnknown.BLOCK,
    ) -> None:
        caps = caps or HeldCaps()
        redacts = any(decide(rule) in ACTING for rule in engine.rules)
        self._unnamed: Unnamed | None = Unnamed(engine, decide) if redacts else None
        self._set_up(spec, Texts(engine, decide, streamed=True, runs=caps.runs), caps, on_unknown)

    def _set_up(self, spec: StreamSpec, texts: Texts, caps: HeldCaps, on_unknown: OnUnknown) -> None:
        self.texts = texts
        self.unread: dict[str, None] = {}
        self._caps = caps
        self._on_unknown = on_unknown
        self._spec = spec
        self._plan = _plan(spec)
        self._channels: dict[tuple[int, Key], _Channel] = {}
        self._ended: dict[tuple[int, Key], str | None] = {}
        self._masked: set[tuple[str, Key]] = set()
        self._held = 0
        self._shift = 0
        self._next: int | None = None
        self._made = 0
        self._moulds = Moulds()
        self._alone: Place | None = None
        self._redacts = self._unnamed is not None

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
        if self._spec.events and not self._spec.knows(work.kind):
            if self._on_unknown is OnUnknown.BLOCK:
                return _UNKNOWN
            self.unread[UNKNOWN_EVENT] = None
        self._sort(work)
        begun = self._begin(work)
        denial = self._feed(work)
        if denial is not None:
            return denial
        late = [*begun, *self._flush(work)]
        self._whole(work)
        self._sign(work)
        for told in work.anew:
            self._ended = {at: text for at, text in self._ended.items() if not agree(at[1], told)}
            self._masked = {each for each in self._masked if not agree(each[1], told)}
        changed = self._write(work)
        denial = self.texts.denial or self._over()
        if denial is not None:
            return denial
        self._alone = None if late else self._told_alone(work)
        return self._number([*late, Outgoing(value, like, changed)])

    def again(
        self, data: str, name: str | None = None, like: object = None, meter: Meter | None = None
    ) -> list[Outgoing] | Denial | None:
        """Take one event as ``event`` does, not parsed yet; ``None``, and nothing taken, if it must be read.

        ``meter`` counts it as it would if it were read.
        """
        known = self._moulds.find(data, name)
        if known is None or (place := known[0]).channel in self._ended or place.channel not in self._channels:
            return None
        said, channel = known[1], self._channels[place.channel]
        if meter is not None and place.taken is not None:
            meter.again(place.taken, len(said) - len(place.text))
        channel.at, channel.like = place.pointer, like
        text = self._say(channel, channel.redactor.feed(said))
        denial = self.texts.denial or (self._over() if self._held else None)
        if denial is not None:
            return denial
        if text == said:
            return [Outgoing(channel.last, like)]
        value = strict_json(data.encode())
        if not isinstance(value, dict) or not put(value, place.pointer, text):
            return MALFORMED  # never: the mould says that it has this place
        channel.last = value
        return [Outgoing(value, like, changed=True)]

    def learn(self, data: str, name: str | None = None, taken: Taken | None = None) -> None:
        """Remember the form of the event that ``event`` took last, from its JSON, for ``again``."""
        place, self._alone = self._alone, None
        if place is not None:
            self._moulds.learn(data, name, place, taken)

    def _told_alone(self, work: _Event) -> Place | None:
        """Return the place of an event's text, if nothing else in it was looked at, taken out, begun or ended.

        Nor would be with another text in that place: nothing that decides about an event stands there.
        """
        spec = self._spec
        if not self._judges or len(work.deltas) != 1 or work.whole or work.source or work.signed or work.dropped:
            return None
        (delta, leaf), (at,) = work.deltas[0], work.texts
        if delta.named or at[0] in self._plan.once or work.anew or spec.sequence is not None:
            return None
        if (spec.padding is not None and spec.padding in work.value) or is_true(work.value, delta.ends):
            return None
        if delta.continues and not is_true(work.value, delta.continues):
            return None
        flushes = self._plan.flushes(work.kind)
        if any(one.path == delta.path or one.hits(work.value) for one in flushes):
            return None
        return Place(leaf.pointer, leaf.text, at)

    def pieces(self, value: object) -> frozenset[Pointer]:
        """Point at the texts of an event that continue a channel, whatever its type."""
        return frozenset(
            found.pointer for found in self._plan.deltas.select(value) if isinstance(found.value, str) and found.pointer
        )

    def taken(self) -> tuple[Finding, ...]:
        """Return what was found since last asked, and forget it: a stream without an end would remember all of it."""
        found = tuple(self.texts.findings)
        self.texts.findings.clear()
        return found

    @property
    def stuck(self) -> frozenset[object]:
        """Name what is held: the same name means the same text, still waiting."""
        return frozenset((at, one.redactor.position) for at, one in self._channels.items() if one.held)

    def expire(self, stuck: Collection[object]) -> list[Outgoing] | Denial:
        """Mask the held texts of these names, and let what stands for them leave."""
        late: list[Outgoing] = []
        for at, channel in self._channels.items():
            if channel.held and (at, channel.redactor.position) in stuck:
                late.extend(self._late(channel, self._say(channel, channel.redactor.expire())))
        return self.texts.denial or self._number(late)

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
                if leaf.text not in clean and not self._spec.whole:  # else it was inspected with the rest of its event
                    work.whole.append(leaf)
            elif isinstance(payload, Delta):
                work.deltas.append((payload, leaf))
            elif isinstance(payload, Source):
                if not self._spec.whole:
                    work.source.append(leaf)
            elif isinstance(payload, Keep) and payload.unread:
                self._unread(work, leaf, payload)
            elif leaf.pointer[-1] == "signature" and leaf.text:
                work.signed.append(leaf)

    def _unread(self, work: _Event, leaf: Leaf[Payload], payload: Keep) -> None:
        """Note what no rule can read; what is no base64 is a text like any other."""
        if leaf.text.strip(ALPHABETS["base64"]):
            work.whole.append(leaf)
        elif leaf.text:
            self.unread[payload.because] = None

    def _drop(self, work: _Event) -> None:
        """Empty what the dialect calls a second copy; a list stays a list, so that readers find what they expect."""
        for found in self._plan.drops.select(work.value):
            if found.value and isinstance(found.parent, dict):
                found.parent[str(found.pointer[-1])] = [] if isinstance(found.value, list) else None
                work.dropped = True

    def _begin(self, work: _Event) -> list[Outgoing]:
        """End the channels that this event does not continue but begins anew; their held text comes before it."""
        late: list[Outgoing] = []
        anew = {
            (self._plan.numbers[id(delta)], key_of(work.value, leaf.pointer, delta.key, self._spec.absent))
            for delta, leaf in work.deltas
            if delta.continues and not is_true(work.value, delta.continues)
        }
        for at in anew:
            if at in self._channels:
                channel = self._channels[at]
                late.extend(self._late(channel, self._close(at)))
            self._ended.pop(at, None)
        return late

    def _feed(self, work: _Event) -> Denial | None:
        for delta, leaf in work.deltas:
            key = key_of(work.value, leaf.pointer, delta.key, self._spec.absent)
            at = (self._plan.numbers[id(delta)], key)
            if delta.named:
                key += tuple((depth, "*", name) for depth, name in enumerate(leaf.pointer) if isinstance(name, str))
                at = (at[0], key)
            if leaf.text and at in self._ended and self._ended[at] != leaf.text:
                return RESUMED
            channel = self._channels.get(at)
            if channel is None:
                if len(self._channels) + len(self._ended) >= self._caps.channels:
                    return UNDECIDED
                redactor = self.texts.source() if delta.source else self.texts.redactor()
                channel = self._channels[at] = _Channel(delta, key, redactor)
            if delta.named and self._judges and channel.repeats(leaf.text):
                return REPEATED
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
        for at in self._ending(work) if self._channels or self._ended or self._masked else ():
            channel = self._channels[at]
            text = self._close(at)
            if at in work.texts:
                _, leaf, before = work.texts[at][-1]
                work.texts[at][-1] = (channel, leaf, before + text)
            else:
                late.extend(self._late(channel, text))
        return late

    def _ending(self, work: _Event) -> dict[tuple[int, Key], None]:
        """Return the channels that an event ends."""
        ends: dict[tuple[int, Key], None] = {}
        for flush in self._plan.flushes(work.kind):
            for pointer in flush.hits(work.value):
                if pointer and value_at(work.value, pointer) == "":
                    continue  # some servers write an empty finish_reason in every event
                found = key_of(work.value, pointer, flush.key, self._spec.absent)
                told = {(depth, name): value for depth, name, value in found} | _same(flush, work.value)
                if flush.again:
                    work.anew.append(told)
                ends |= {at: None for at, channel in self._channels.items() if agree(channel.key, told)}
        ends |= {at: None for at, said in work.texts.items() if is_true(work.value, said[0][0].delta.ends)}
        for leaf in work.signed:
            ends |= {
                at: None
                for at, channel in self._channels.items()
                if channel.held and self._signs(work.value, leaf, _holder(channel.delta.path), channel.key)
            }
        return ends

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
        if channel.delta.continues:
            set_true(value, channel.delta.continues)
        for name in self._plan.blank & value.keys():
            if name != channel.at[0]:
                value[name] = "" if isinstance(value[name], str) else None
        if channel.delta.named:
            self._bare(value, channel.at[0])
        pad = self._spec.padding
        unique = self._spec.unique
        if unique is not None and isinstance(own := value.get(unique), str):
            self._made += 1
            value[unique] = f"{own}{self._joint}{self._made}"
        if pad is not None and isinstance(old := value.get(pad), str):
            value[pad] = ""
            value[pad] = stretch(old, len(dump(channel.last)) - len(dump(value)))
        return [Outgoing(value, channel.like, changed=True, inserted=True, place=(channel.at, text))]

    def _bare(self, value: JsonObject, own: str | int) -> None:
        """Empty the texts of other channels in an event that was made up for one of many names."""
        for leaf in list(self._spec.fields.walk(value)):
            if leaf.pointer[0] != own and isinstance(self._plan.role(leaf, None), Delta):
                replace(None, leaf, "")  # type: ignore[arg-type]  # the payloads of a leaf are not looked at

    def _whole(self, work: _Event) -> None:
        """Look at the texts that no delta names: each by itself, and as what goes on with an earlier one."""
        left = ["" for _ in work.whole]
        rest = [leaf.text for leaf in work.whole]
        for number, leaf in enumerate(work.whole if self._redacts else ()):
            if leaf.kind is LeafKind.STRING and not self._is_label(leaf.pointer):
                left[number], rest[number] = self._gone_on(work, leaf)
        looked = self.texts.check(rest, lambda i: _place(work.whole[i])) if rest else {}
        for number, leaf in enumerate(work.whole):
            text = left[number] + looked.get(number, rest[number])
            if text != leaf.text:
                work.edits.append((leaf, text))
            if (
                self._unnamed is not None
                and leaf.text in self.texts.clean
                and self._unnamed.differs(self._at(work, leaf))
            ):
                self.texts.clean.discard(leaf.text)
                self._moulds.clear()
        for leaf in work.source:
            if (text := self.texts.check_source(leaf.text, _place(leaf))) != leaf.text:
                work.edits.append((leaf, text))
        for said in work.texts.values():
            work.edits.extend((leaf, text) for _, leaf, text in said if text != leaf.text)

    def _is_label(self, pointer: Pointer) -> bool:
        """Say whether a text tells what its event is, or names something: no reader joins such texts."""
        name = pointer[-1]
        return not isinstance(name, str) or name in self._plan.labels or name.endswith(("_id", "Id"))

    def _at(self, work: _Event, leaf: Leaf[Payload]) -> object:
        """Return the place of an unnamed text: by the indexes beside it, by its position only where there are none."""
        key = key_of(work.value, leaf.pointer, self._plan.indexes, self._spec.absent)
        deep = max((depth for depth, _, _ in key), default=-1)
        return tuple("*" if type(one) is int and at < deep else one for at, one in enumerate(leaf.pointer)), key

    def _gone_on(self, work: _Event, leaf: Leaf[Payload]) -> tuple[str, str]:
        """Return what leaves for the part of a text that goes on with a value of an earlier event, and the rest."""
        went = None if self._unnamed is None else self._unnamed.follow(self._at(work, leaf), leaf.text)
        if went is None:
            return "", leaf.text
        self.texts.note(went.rule, _place(leaf), 0, went.length)
        return placeholder(short_name(went.rule)) if went.fresh else "", leaf.text[went.length :]

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


def _same(flush: Flush, event: object) -> dict[tuple[int, str], object]:
    """Read what an event says elsewhere of fields that the root of a channel's events has."""
    found: dict[tuple[int, str], object] = {}
    for name, way in flush.same.items():
        told = event
        for part in way:
            told = told.get(part) if isinstance(told, dict) else None
        if told is not None and not isinstance(told, dict | list):
            found[0, name] = told
    return found


def _holder(path: str) -> str:
    return path.rpartition(".")[0]


def _place(leaf: Leaf[Payload]) -> str:
    return f"stream:{where(leaf.pointer)}"
