"""One whole text, redacted with what hides a value undone: what rules match decoded is masked where it stands encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tidegate.inspection import decoding
from tidegate.inspection.engine import Engine, TextSpan
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.redactor import Dropped, Kept, Masked, Noted, Piece, Redactor, placeholder, short_name


class WholeText:
    """A text that is fed at once: the pieces of ``redactor``, with what was found decoded laid over them."""

    def __init__(self, engine: Engine, decide: Callable[[Rule], Action], redactor: Redactor) -> None:
        self._engine = engine
        self._decide = decide
        self._redactor = redactor
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
        spans = [span for span in decoding.find_hidden(self._engine, text) if self._decide(span.rule) is not Action.ALLOW]
        return list(self._laid_over(pieces, spans)) if spans else pieces

    def _laid_over(self, pieces: list[Piece], spans: list[TextSpan]) -> Iterator[Piece]:
        """Mask spans in what the pieces keep. ``spans`` are sorted; what one covers, the next ones only note."""
        position = covered = index = 0
        for piece in pieces:
            if isinstance(piece, Masked | Noted):
                yield piece
                continue
            length = piece.length if isinstance(piece, Dropped) else len(piece.text)
            end = position + length
            dropped = isinstance(piece, Dropped)
            while position < end:
                while index < len(spans) and spans[index].start <= position:
                    span = spans[index]
                    index += 1
                    action = self._decide(span.rule)
                    if action is Action.FLAG or (covered >= span.end) or (dropped and span.end <= end):
                        yield Noted(span.end - span.start, span.rule, action, span.start)
                    else:
                        yield Masked(placeholder(short_name(span.rule)), span.end - span.start, span.rule, action, span.start)
                    if action is not Action.FLAG:
                        covered = max(covered, span.end)
                stop = min([end, *([spans[index].start] if index < len(spans) else [])])
                if position < covered:
                    stop = min(stop, covered)
                if dropped or position < covered:
                    yield Dropped(stop - position)
                else:
                    yield Kept(piece.text[length - (end - position) : length - (end - stop)])
                position = stop
