"""Put values back where their tokens stand: in the texts that people read, for the session they were issued to.

This runs over an answer as it was masked, which is what is recorded, so the rules see tokens and never the values. A
token inside an address or in the arguments of a tool stays a token unless the policy says otherwise: whoever makes a
model write one there would otherwise have the value sent to them. One that this session was never given stays, too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Leaf, LeafKind, replace
from tidegate.dialects.kinds import BodyKind
from tidegate.dialects.spec import Delta, Endpoint, ErrorShape, Keep, Source, StreamSpec, is_exempt, is_source
from tidegate.inspection.tokens import BEGUN, LONGEST, OPENING, TOKEN
from tidegate.model import Denial, Finding, OnUnknown
from tidegate.streams.address import Place
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.channels import EventRedactor, HeldCaps, Payload, _Event
from tidegate.streams.envelope import Envelope
from tidegate.streams.framing import Frame, Framing
from tidegate.streams.redactor import Kept, Piece, Redactor
from tidegate.streams.texts import Texts
from tidegate.streams.tokenising import Tokens

LOOK = 2
"""Characters after a token that are looked at before it is restored."""
_GOES_ON = re.compile(r"@|\.[\w\\]|\\u|_?[A-Za-z0-9%+&-]")
"""What makes a token the beginning of an address: a host or a path of which it is a part, or a mailbox."""


class Restorer(Redactor):
    """One text. What waits is the beginning of a token, or a token and what follows it."""

    def __init__(self, tokens: Tokens, place: Place | None = None, done: Callable[[Place], None] | None = None) -> None:
        self._session = tokens.session
        self._counts = tokens.counts
        self._place = place or Place()
        self._over = done
        self._rest = ""

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left."""
        return len(self._rest)

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the text and return what may leave."""
        return self._go_on(self._rest + text, final=False) if text else []

    def end(self) -> list[Piece]:
        """Return what is left: the text is over. Nothing may be fed after it."""
        pieces = self._go_on(self._rest, final=True)
        if self._over is not None:
            self._over(self._place)
        return pieces

    def _go_on(self, text: str, *, final: bool) -> list[Piece]:
        out: list[str] = []
        at = 0
        self._rest = ""
        while found := TOKEN.search(text, at):
            self._pass(text[at : found.start()], out)
            at = found.end()
            after = text[at : at + LOOK]
            if len(after) < LOOK and not final:
                self._rest = text[found.start() :]
                return [Kept("".join(out))]
            out.append(self._said(found[0], after))
            self._place.feed(found[0])
        begun = None if final else BEGUN.search(text, max(at, len(text) - LONGEST))
        stop = begun.start() if begun else len(text)
        self._pass(text[at:stop], out)
        self._rest = text[stop:]
        return [Kept("".join(out))]

    def _pass(self, text: str, out: list[str]) -> None:
        self._place.feed(text)
        out.append(text)

    def _said(self, token: str, after: str) -> str:
        value, counts = self._session.value(token), self._counts
        if value is None:
            counts.note(counts.unknown, token)
            return token
        leads_away = not self._session.limits.urls and self._is_address(after)
        if leads_away or not counts.may_grow(len(value)):
            counts.note(counts.kept, token)
            return token
        counts.note(counts.restored, token)
        self._session.give(token)
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._place.in_json else value

    def _is_address(self, after: str) -> bool:
        if self._place.after_angle and after[:1] == ">":
            return False  # an address that is nothing but the value leads nowhere else
        return self._place.inside or _GOES_ON.match(after) is not None


class RestoringTexts(Texts):
    """Stands in for ``Texts``: what streams ask it, answered by putting values back. No rule looks at anything."""

    __slots__ = ("_open", "_own")

    def __init__(self, tokens: Tokens) -> None:
        self.denial: Denial | None = None
        self.findings: list[Finding] = []
        self.clean: set[str] = set()
        self._own = tokens
        self._open: Place | None = None

    def redactor(self) -> Restorer:
        """Begin a text that comes in pieces. It may be joined to the last that has ended."""
        return Restorer(self._own, self._open and self._open.onward(), self._ended)

    def source(self) -> Restorer:
        """Begin a text that comes in pieces and is JSON source."""
        return Restorer(self._own, Place(json=True))

    def _ended(self, place: Place) -> None:
        self._open = place.onward()

    def say(self, pieces: Iterable[Piece], place: Callable[[], str]) -> tuple[str, bool]:
        """Join pieces as they may leave; nothing is ever masked here."""
        del place
        return "".join(piece.text for piece in pieces), False

    def check(
        self,
        texts: Sequence[str],
        place: Callable[[int], str],
        source: Collection[int] = frozenset(),
        seen: Counter[tuple[str, str]] | None = None,
    ) -> dict[int, str]:
        """Look at whole texts that clients may join; return those that change, by index."""
        del place, seen
        changed: dict[int, str] = {}
        if not any(OPENING in text for text in texts):
            return changed
        before: Place | None = None
        for index, text in enumerate(texts):
            ended: list[Place] = []
            own = Place(json=True) if index in source else before and before.onward()
            one = Restorer(self._own, own, ended.append)
            said = "".join(piece.text for piece in [*one.feed(text), *one.end()])
            before = before if index in source else ended[0].onward()
            if said != text:
                changed[index] = said
        return changed


class EventRestorer(EventRedactor):
    """The channels of a stream of JSON events, with values put back in those that the dialect says people read.

    The events were judged before, so nothing is refused here for what it is.
    """

    _judges = False
    _joint = "-"  # so that no id of an event is one of those that were made when it was masked

    def __init__(self, spec: StreamSpec, tokens: Tokens, caps: HeldCaps | None = None) -> None:
        self._unnamed = None
        self._set_up(spec, RestoringTexts(tokens), caps or HeldCaps(), OnUnknown.FLAG)
        self._everywhere = tokens.session.limits.tool_arguments

    def _sort(self, work: _Event) -> None:
        told = work.kind
        named = {
            one.pointer
            for one in self._spec.restore.select(work.value)
            if isinstance(one.value, str) and any(each.when is None or told in each.when for each in one.payloads)
        }
        if not named and not self._everywhere:
            return
        for leaf in self._spec.fields.walk(work.value):
            if leaf.kind is LeafKind.STRING and (self._everywhere or leaf.pointer in named):
                self._place(work, leaf, self._plan.role(leaf, told))

    def _place(self, work: _Event, leaf: Leaf[Payload], role: Payload | None) -> None:
        if isinstance(role, Delta):
            if self._plan.numbers[id(role)] not in self._plan.once:
                work.deltas.append((role, leaf))
        elif isinstance(role, Source):
            work.source.append(leaf)
        elif not isinstance(role, Keep):
            work.whole.append(leaf)

    def _feed(self, work: _Event) -> Denial | None:
        self._ended.clear()  # a text may go on after its end: what was held of it was no more than a token's beginning
        return super()._feed(work)

    def _sign(self, work: _Event) -> None:
        """Leave signatures: they are of the text with its tokens, and that is what comes back from the client."""


class RestoredStream(StreamedAnswer):
    """A streamed answer that was masked, with values put back."""

    def __init__(self, endpoint: Endpoint, shape: ErrorShape, tokens: Tokens, exchange: str, head: AnswerHead) -> None:
        assert endpoint.stream is not None
        self._tokens = tokens
        self._start(endpoint, shape, EventRestorer(endpoint.stream, tokens), exchange, head)

    def _look_at_whole(self) -> bytes:
        return restored(self._endpoint, self._tokens, bytes(self._head))

    def _message(self, framing: Framing, frame: Frame, value: object) -> bytes:
        if not isinstance(value, dict):  # a list of messages, each for a call of its own: its tokens stay
            return framing.same(frame)
        return self._written(framing, self._events.event(value, frame.name, frame))

    def _tidy(self, framing: Framing, frame: Frame) -> Frame:
        del framing  # what is beside an event is for no reader
        return frame

    def _is_found(self, envelope: Envelope) -> bool:
        del envelope
        return False


def restored_whole(endpoint: Endpoint, tokens: Tokens, body: bytes) -> bytes:
    """Put values back in a whole answer, but for one that holds answers of other endpoints: there tokens stay."""
    made_of = endpoint.made_of
    if made_of.answered.paths or BodyKind.LINES in made_of.answers:
        return body
    return restored(endpoint, tokens, body)


def restored(endpoint: Endpoint, tokens: Tokens, body: bytes) -> bytes:
    """Put values back in a whole answer that was masked. Where there is nothing to put back it stays byte-identical."""
    if OPENING.encode() not in body:
        return body
    texts, value = RestoringTexts(tokens), strict_json(body)
    if isinstance(value, Denial):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return body
        return texts.check([text], lambda _: "$").get(0, text).encode()
    root: object = value if isinstance(value, dict | list) else [value]
    everywhere = tokens.session.limits.tool_arguments
    named = {one.pointer for one in endpoint.restore.select(root)}
    leaves = [
        leaf
        for leaf in endpoint.answer.walk(root)
        if leaf.kind is LeafKind.STRING and (leaf.pointer in named or (everywhere and not is_exempt(leaf)))
    ]
    source = {index for index, leaf in enumerate(leaves) if is_source(leaf)}
    changed = texts.check([leaf.text for leaf in leaves], lambda _: "$", source)
    for index, text in changed.items():
        replace(root, leaves[index], text)  # type: ignore[arg-type]  # the payloads of a leaf are not looked at
    whole = value if isinstance(value, dict | list) else root[0]  # type: ignore[index]  # it was put in a list
    return dump(whole) if changed else body
