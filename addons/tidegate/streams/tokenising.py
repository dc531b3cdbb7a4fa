"""Put tokens in place of placeholders in a whole text: what is tokenised is masked so that it can be given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tidegate.inspection.rules import Rule
from tidegate.inspection.tokens import Counts, Session
from tidegate.model import Action
from tidegate.streams.redactor import Dropped, Kept, Masked, Noted, Piece, Redactor, Whole, short_name


@dataclass(frozen=True, slots=True)
class Tokens:
    """Whose tokens the values of a request become, and which of them it holds."""

    session: Session
    counts: Counts


@dataclass(slots=True)
class _Run:
    """Matches that overlap: one placeholder. ``alone``: nothing in it must be masked for good."""

    at: int
    start: int
    alone: bool


class TokeniseWhole(Whole):
    """A text that is judged at its end, around the redactor that judges it.

    ``source``: the text is the view of JSON source, in which one token cannot stand for the content of two strings.
    """

    def __init__(self, inner: Redactor, tokens: Tokens, decide: Callable[[Rule], Action], *, source: bool) -> None:
        super().__init__(inner)
        self._decide = decide
        self._tokens = tokens
        self._source = source

    def end(self) -> list[Piece]:
        """Return the whole text."""
        text, pieces = self._whole()
        for run, end in _runs(pieces):
            masked, value = pieces[run.at], text[run.start : end]
            assert isinstance(masked, Masked)
            if not run.alone or (self._source and '"' in value):
                continue
            token = self._tokens.session.token(short_name(masked.rule), value, masked.rule)
            if token is not None:
                self._issued(token)
                pieces[run.at] = replace(masked, text=token)
        return self._with_recalled(pieces) if self._tokens.session.has_given else pieces

    def _issued(self, token: str) -> None:
        self._tokens.counts.note(self._tokens.counts.issued, token)

    def _with_recalled(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Put tokens in place of what the client has read before, where no rule finds it this time."""
        out: list[Piece] = []
        at = 0
        for piece in pieces:
            if not isinstance(piece, Kept):
                out.append(piece)
                at += piece.length if isinstance(piece, Dropped) else 0
                continue
            done = 0
            for start, end, token, rule in self._tokens.session.recall(piece.text):
                if not self._is_tokenised(rule) or (self._source and '"' in piece.text[start:end]):
                    continue
                self._issued(token)
                masked = Masked(token, end - start, rule, Action.TOKENISE, at + start)
                out += [Kept(piece.text[done:start]), masked, Dropped(end - start)]
                done = end
            out.append(Kept(piece.text[done:]))
            at += len(piece.text)
        return out

    def _is_tokenised(self, rule: Rule) -> bool:
        try:
            return self._decide(rule) is Action.TOKENISE
        except KeyError:  # a reload has taken the rule away
            return False


def _runs(pieces: Sequence[Piece]) -> list[tuple[_Run, int]]:
    """Return the runs that are tokenised, each with where it ends in the text."""
    found: list[tuple[_Run, int]] = []
    at = 0
    run: _Run | None = None
    for index, piece in enumerate(pieces):
        match piece:
            case Kept(text):
                if run is not None:
                    found.append((run, at))
                run = None
                at += len(text)
            case Dropped(length):
                at += length
            case Masked():
                if run is not None:
                    found.append((run, at))
                run = _Run(index, at, piece.action is Action.TOKENISE)
            case Noted() if run is not None and piece.action not in (Action.FLAG, Action.TOKENISE):
                run.alone = False
    return [*found, (run, at)] if run is not None else found
