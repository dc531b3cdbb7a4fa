"""One whole text, redacted with what hides a value undone: what is found decoded is masked where it stands encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tidegate.inspection import decoding
from tidegate.inspection.engine import Engine, TextSpan
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.redactor import Dropped, Kept, Masked, Noted, Piece, Redactor, placeholder, short_name


class WholeText:
    """A text that is fed at once: the pieces of a ``Redactor``, with what ``find`` tells laid over them.

    With another ``find`` than that of decoding nothing else is masked.
    """

    def __init__(
        self,
        engine: Engine,
        decide: Callable[[Rule], Action],
        find: Callable[[Engine, str], tuple[TextSpan, ...]] = decoding.find_hidden,
    ) -> None:
        self._find = find
        self._engine = engine
        self._decide = decide
        self._redactor = Redactor(engine, decide if find is decoding.find_hidden else _allow, short_name)
        self._text: list[str] = []

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left: all of them, until the end."""
        return sum(map(len, self._text))

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the text; nothing leaves before the end."""
        self._text.append(text)
        return []

    def end(self) -> list[Piece]:
        """Return all pieces of the text."""
        text = "".join(self._text)
        self._text = []
        pieces = self._redactor.feed(text) + self._redactor.end()
        found = self._find(self._engine, text)
        spans = [span for span in found if self._decide(span.rule) is not Action.ALLOW]
        return list(self._laid_over(pieces, spans)) if spans else pieces

    def _laid_over(self, pieces: list[Piece], spans: list[TextSpan]) -> Iterator[Piece]:
        """Mask spans in what the pieces keep. ``spans`` are sorted; what one covers, the next ones only note."""
        position = covered = index = 0
        for piece in pieces:
            if isinstance(piece, Masked | Noted):
                yield piece
                continue
            dropped = isinstance(piece, Dropped)
            length = piece.length if isinstance(piece, Dropped) else len(piece.text)
            begin, end = position, position + length
            while position < end:
                while index < len(spans) and spans[index].start <= position:
                    span = spans[index]
                    yield self._told(span, noted=span.end <= covered or (dropped and span.end <= end))
                    if self._decide(span.rule) is not Action.FLAG:
                        covered = max(covered, span.end)
                    index += 1
                stop = min(end, spans[index].start if index < len(spans) else end)
                hidden = dropped or position < covered
                stop = min(stop, covered) if position < covered else stop
                yield Dropped(stop - position) if hidden else Kept(piece.text[position - begin : stop - begin])
                position = stop

    def _told(self, span: TextSpan, *, noted: bool) -> Piece:
        action, length = self._decide(span.rule), span.end - span.start
        if noted or action is Action.FLAG:
            return Noted(length, span.rule, action, span.start)
        return Masked(placeholder(short_name(span.rule)), length, span.rule, action, span.start)


def _allow(_rule: Rule) -> Action:
    return Action.ALLOW
