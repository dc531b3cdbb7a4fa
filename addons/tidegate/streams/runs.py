"""Runs of base64 and hexadecimal in a text that comes in pieces, where the policy asks for them to be decoded.

A run waits for its end, as its letters say nothing before. Then it leaves as it came, or masked as a whole if what it
says holds a finding. One longer than the cap is masked, since nobody has looked at it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from tidegate.inspection.decoding import find_hidden
from tidegate.inspection.engine import Engine, TextSpan
from tidegate.inspection.rules import Rule
from tidegate.model import Action
from tidegate.streams.coded import Overlay, Rest
from tidegate.streams.redactor import Piece, Redactor, plan_of

SHORTEST = 14
"""Characters below which a run is no encoding (``inspection.decoding``)."""
TOO_LONG = "stream.encoded-run"
"""The id under which a run longer than the cap is recorded."""
_RUN = re.compile(r"[A-Za-z0-9+/_-]+")  # the padding behind it says nothing, and stays


class RunRedactor(Redactor):
    """One text: a ``Redactor``, and what its runs of at most ``cap`` characters say."""

    def __init__(self, inner: Redactor, engine: Engine, decide: Callable[[Rule], Action], cap: int) -> None:
        self._inner = inner
        self._engine = engine
        self._cap = cap
        self._masking = plan_of(engine, decide).masking
        self._decide = decide
        self._overlay = Overlay((), lambda rule: Action.REDACT if rule.id == TOO_LONG else decide(rule))
        self._open = ""
        self._at = 0
        self._swallowing = False

    @property
    def held(self) -> int:
        """Count the characters that came in and have not left."""
        return self._inner.held + len(self._open)

    @property
    def position(self) -> int:
        """Where what is held begins; it moves whenever something leaves."""
        return self._inner.position

    def feed(self, text: str) -> list[Piece]:
        """Take the next part of the text and return what may leave."""
        return self._split(text, final=False)

    def end(self) -> list[Piece]:
        """Return what is left: the text is over."""
        return self._split("", final=True) + self._overlay.lay(self._inner.end())

    def expire(self) -> list[Piece]:
        """Mask what is held, since it has waited for too long; the rest of an open run with it."""
        out: list[Piece] = []
        if self._open:
            self._mask(len(self._open))
            out = self._pass(self._open)
            self._open, self._swallowing = "", True
        return out + self._overlay.lay(self._inner.expire())

    def _split(self, text: str, *, final: bool) -> list[Piece]:
        text, self._open = self._open + text, ""
        out: list[Piece] = []
        at = 0
        if self._swallowing and text:
            run = _RUN.match(text)
            at = run.end() if run else 0
            self._overlay.add(Rest(self._at, self._at + at))
            out += self._pass(text[:at])
            self._swallowing = at == len(text)
        for run in _RUN.finditer(text, at):
            out += self._pass(text[at : run.start()])
            at = run.end()
            if len(run[0]) > self._cap:
                self._mask(len(run[0]))
                self._swallowing = at == len(text)
            elif at == len(text) and not final:
                self._open = run[0]
                return out
            elif (rule := self._says(run[0])) is not None:
                self._overlay.add(TextSpan(rule, self._at, self._at + len(run[0])))
            out += self._pass(run[0])
        return out + self._pass(text[at:])

    def _pass(self, text: str) -> list[Piece]:
        self._at += len(text)
        return self._overlay.lay(self._inner.feed(text))

    def _mask(self, length: int) -> None:
        """Mask the next characters, unread; the record tells of as many as the cap, however the text was cut."""
        first = self._engine.compiled[min(self._masking)].rule if self._masking else self._engine.rules[0]
        rule = replace(first, id=TOO_LONG)
        self._overlay.add(TextSpan(rule, self._at, self._at + min(length, self._cap)))
        self._overlay.add(Rest(self._at, self._at + length))

    def _says(self, run: str) -> Rule | None:
        return hidden_in(self._engine, self._decide, run)


def hidden_in(engine: Engine, decide: Callable[[Rule], Action], run: str) -> Rule | None:
    """Return a rule that finds something in what a run says, one that masks before one that only notes."""
    if len(run) < SHORTEST:
        return None
    found = [span.rule for span in find_hidden(engine, run) if decide(span.rule) is not Action.ALLOW]
    return min(found, key=lambda rule: decide(rule) is Action.FLAG, default=None)


def hides(engine: Engine, decide: Callable[[Rule], Action], text: str, cap: int) -> bool:
    """Say whether some run of a whole text would be masked or noted."""
    return any(len(run[0]) > cap or hidden_in(engine, decide, run[0]) is not None for run in _RUN.finditer(text))
