"""What is found in a whole text, laid over what the rules made of it: one placeholder for a run of both.

That is what detectors find, and what hides in an encoding, which is masked where it stands encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate.inspection.engine import TextSpan
from tidegate.inspection.proprietary.detector import CodedSpan
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.redactor import Dropped, Kept, Masked, Noted, Piece, Redactor, Whole, placeholder, short_name


@dataclass(frozen=True, slots=True)
class Rest:
    """More of what a span before it masks: no finding of its own."""

    start: int
    end: int


type Found = CodedSpan | TextSpan


class WholeRedactor(Whole):
    """A text that is judged at its end, by a redactor and by what ``find`` tells.

    ``find`` gives spans sorted by start, none of them allowed by the policy.
    """

    def __init__(
        self, redactor: Redactor, find: Callable[[str], Sequence[Found]], decide: Callable[[Rule], Action]
    ) -> None:
        super().__init__(redactor)
        self._find = find
        self._decide = decide

    def end(self) -> list[Piece]:
        """Return the whole text."""
        text, pieces = self._whole()
        spans = self._find(text)
        return Overlay(spans, self._decide).lay(pieces) if spans else pieces


class Overlay:
    """Spans of one text, laid over its pieces as they leave. Positions count characters of the text.

    ``covered`` is how far what is masked reaches.
    """

    def __init__(self, spans: Sequence[Found], decide: Callable[[Rule], Action]) -> None:
        self._spans: list[Found | Rest] = list(reversed(spans))
        self._decide = decide
        self._covered = 0
        self._at = 0
        self._out: list[Piece] = []

    def add(self, span: Found | Rest) -> None:
        """Lay one more span, behind all that are there, over text that has not left."""
        self._spans.insert(0, span)

    def lay(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return the next pieces of the text with what the spans mask taken out."""
        self._out = []
        at = self._at
        for piece in pieces:
            while isinstance(piece, Masked) and self._spans and self._goes_on_at(piece.start):
                self._begin(hidden=True)
            match piece:
                case Kept(text):
                    self._kept(text, at)
                    at += len(text)
                case Dropped(length):
                    at += length
                    while self._spans and self._spans[-1].start < at:
                        self._begin(hidden=True)
                    self._out.append(piece)
                case Masked() if piece.start < self._covered:
                    self._out.append(Noted(piece.length, piece.rule, piece.action, piece.start))
                case _:
                    self._out.append(piece)
        self._at = at
        return self._out

    def _goes_on_at(self, start: int) -> bool:
        """Say whether the next span is the rest of one before, and reaches a match that starts here."""
        return isinstance(self._spans[-1], Rest) and self._spans[-1].start <= start

    def _kept(self, text: str, at: int) -> None:
        end, done = at + len(text), at
        while done < end:
            while self._spans and self._spans[-1].start <= done:
                self._begin(hidden=done < self._covered)
            stop = min(end, self._spans[-1].start) if self._spans else end
            if done < self._covered:
                stop = min(stop, self._covered)
                self._out.append(Dropped(stop - done))
            else:
                self._out.append(Kept(text[done - at : stop - at]))
            done = stop

    def _begin(self, *, hidden: bool) -> None:
        """Report the next span; ``hidden``: a placeholder stands for its beginning already."""
        span = self._spans.pop()
        if isinstance(span, Rest):
            self._covered = max(self._covered, span.end)
            return
        action, length = self._decide(span.rule), span.end - span.start
        if action is not Action.FLAG:
            self._covered = max(self._covered, span.end)
        if hidden or action is Action.FLAG:
            self._out.append(Noted(length, span.rule, action, span.start))
        else:
            said = placeholder(short_name(span.rule))
            self._out.append(Masked(said, length, span.rule, action, span.start))
