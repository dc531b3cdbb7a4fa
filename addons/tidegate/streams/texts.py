"""Look at texts that are whole or come in pieces, by one policy: what they become, and what was found in them."""

from __future__ import annotations

import codecs
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from tidegate.inspection.decoding import BREAK, find_hidden, find_split, hides_nothing
from tidegate.inspection.engine import Engine, TextSpan, encode
from tidegate.inspection.proprietary.detector import find_all
from tidegate.inspection.rules import Rule
from tidegate.inspection.scoring import Scorer
from tidegate.model import ACTING, Action, Denial, Finding, Reason, Role, Score
from tidegate.streams.coded import Found, WholeRedactor
from tidegate.streams.redactor import Masked, Noted, Piece, Redactor, short_name
from tidegate.streams.runs import RunRedactor, hides
from tidegate.streams.source import JsonSource
from tidegate.streams.tokenising import TokeniseWhole, Tokens

MAX_CLEAN = 1024
"""Texts remembered as clean. The names and constants that the events of a stream repeat are about forty."""
CLEAN_LENGTH = 128
"""Characters of a text worth remembering: the longest names and ids have fewer than a hundred."""

LONG = 8192
"""Bytes from which on a JSON text is looked up in the history: two of its parts. Below, a search is as fast."""

MAX_FLAGGED = 1000
"""Findings that are only flagged, per body or stream; those that act are never left out. More would tell no more."""

_MARKS = b",:{}[]"
_OUTSIDE = b"0123456789+-.eEtruefalsn" + _MARKS
"""What JSON has between its strings: numbers, three words, and marks."""


class Texts:
    """The texts of one body or stream. ``findings`` grow as it is read; ``denial`` is set by one that is blocked."""

    __slots__ = (
        "_decide", "_decodes", "_detectors", "_doubted", "_engine", "_flagged", "_hinted", "_read", "_runs", "_scorer",
        "_tokens", "clean", "denial", "findings",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        decide: Callable[[Rule], Action],
        *,
        streamed: bool = False,
        runs: int = 0,
        tokens: Tokens | None = None,
    ) -> None:
        """Begin. Of texts that are ``streamed`` nothing is decoded, and detectors (``proprietary``) do not see them.

        But for encoded runs of at most ``runs`` characters, where that is not 0. Without ``tokens`` what the policy
        tokenises is masked for good.
        """
        self._runs = runs
        self._scorer = None if streamed else engine.scorer
        if self._scorer is not None and all(decide(each) is Action.ALLOW for each in self._scorer.firsts):
            self._scorer = None
        self._hinted: bool | None = None if self._scorer is not None else False
        self.findings: list[Finding] = []
        self.denial: Denial | None = None
        self.clean: set[str] = set()
        self._engine = engine
        self._decodes = not streamed
        coded = () if streamed else engine.detectors
        self._detectors = tuple(each for each in coded if decide(each.rule) is not Action.ALLOW)
        self._flagged = 0
        self._doubted: bytes | None = None
        self._read: tuple[bytes, bytes | None] | None = None
        self._decide = decide
        self._tokens = tokens

    def redactor(self) -> Redactor:
        """Begin a text that comes in pieces."""
        inner = Redactor(self._engine, self._decide, short_name)
        return RunRedactor(inner, self._engine, self._decide, self._runs) if self._runs else inner

    def source(self) -> Redactor | JsonSource:
        """Begin a text that comes in pieces and is JSON source."""
        return JsonSource(self.redactor())

    def recalled(self, texts: Iterable[str]) -> Collection[int]:
        """Return the indexes of texts that hold a value which the client has read in place of its token."""
        if self._tokens is None or not self._tokens.session.has_given:
            return ()
        return {index for index, text in enumerate(texts) if self._tokens.session.recall(text)}

    def stands_for(self, text: str, original: str) -> bool:
        """Say whether a text is another in which nothing but tokens took the place of their values."""
        return self._tokens is not None and self._tokens.session.untokenised(text) == original

    def say(self, pieces: Iterable[Piece], place: Callable[[], str]) -> tuple[str, bool]:
        """Join pieces as they may leave, noting what was found at ``place()``; say whether anything was masked."""
        text: list[str] = []
        masked = False
        for piece in pieces:
            text.append(piece.text)
            if isinstance(piece, Masked | Noted):
                masked |= isinstance(piece, Masked)
                self.note(piece.rule, place(), piece.start, piece.start + piece.length)
        return "".join(text), masked

    def check(
        self,
        texts: Sequence[str],
        place: Callable[[int], str],
        source: Collection[int] = frozenset(),
        seen: Counter[tuple[str, str]] | None = None,
    ) -> dict[int, str]:
        """Look at whole texts; return those that change, by index. ``source`` holds the indexes of JSON source.

        What hides a value in them is undone before rules look (``inspection.decoding``), unless they are streamed.
        ``seen`` counts what the rules match in the texts as they are written, by rule id and matched text.
        """
        names = self._names(texts, source)
        recalled = self.recalled(texts)
        indexes = [index for index in range(len(texts)) if index in recalled or not self._knows(names.get(index))]
        new = [texts[index] for index in indexes]
        found = self._engine.find_many(new) if new else {}
        coded = self._coded(new) | self._hidden(new, found) | self._in_runs(new)
        if not found and not source and not coded:
            self._remember(texts)
        if seen is not None:
            seen.update((span.rule.id, new[i][span.start : span.end]) for i, spans in found.items() for span in spans)
        changed: dict[int, str] = {}
        for at, (index, text) in enumerate(zip(indexes, new, strict=True)):
            before = self._told()
            said = text
            escaped = index in source and "\\" in text  # without escapes JSON source reads as it is written
            if escaped or at in found or at in coded or index in recalled:
                said = self._whole(text, place(index), source=index in source)
            if said != text:
                changed[index] = said
            elif index in names and at not in found and before == self._told():
                self._keep(names[index])
        return changed

    def _names(self, texts: Sequence[str], source: Collection[int]) -> dict[int, bytes]:
        """Name texts that are worth it, for the history: what a conversation holds is sent again at every turn."""
        history = self._engine.history
        if history is None or not self._decodes:
            return {}
        # Rules that are allowed are not looked for, so nothing is known of them: an answer may be asked about more.
        allowed = tuple([each.rule.id for each in self._engine.compiled if self._decide(each.rule) is Action.ALLOW])
        plain, inner = self._under("text", allowed), self._under("source", allowed)
        return {
            index: history.name(encode(text), inner if index in source else plain)
            for index, text in enumerate(texts)
            if len(text) > CLEAN_LENGTH
        }

    def _knows(self, name: bytes | None) -> bool:
        history = self._engine.history
        return name is not None and history is not None and history.knows(name)

    def _keep(self, name: bytes) -> None:
        if self._engine.history is not None:
            self._engine.history.keep(name)

    def _under(self, what: str, allowed: tuple[str, ...] = ()) -> bytes:
        """Name a question to the history: what is asked, who is asked beside the rules, and which of these are not."""
        return _question(what, self._decodes, tuple([each.rule.id for each in self._detectors]), allowed)

    def _told(self) -> tuple[int, int]:
        return len(self.findings), self._flagged

    def check_source(self, text: str, place: str) -> str:
        """Look at a whole text that is JSON source; return it as it may leave."""
        return self.check([text], lambda _: place, (0,)).get(0, text)

    def are_clean(self, body: bytes, extra: Iterable[str]) -> bool:
        """Say that nothing can be found in a JSON text as ``dialects.body.dump`` writes it, nor in other texts.

        One scan is enough for most bodies, which hold nothing: with its escapes undone the JSON text holds every value
        as it is, between quotes or colons, which are no part of a word, so a rule that matches a value matches there
        too. ``False`` may also mean that this cannot tell: where a text holds a backslash it may be JSON source itself.
        """
        return self._is_empty(body, extra, self._is_plain)

    def may_be_skipped(self, body: bytes, extra: Iterable[str]) -> bool:
        """Say that no rule matches in a JSON text or other texts, decoded or not.

        As ``are_clean``, but JSON source is not opened.
        """
        return self._is_empty(body, extra, self._is_silent)

    def _is_empty(self, body: bytes, extra: Iterable[str], look: Callable[[bytes], bool]) -> bool:
        """Ask ``look`` of a JSON text, of the parts that were not seen before if it is long; then of other texts."""
        history = self._engine.history
        if history is None or len(body) < LONG:
            empty = look(body)
        else:
            empty = history.is_clean(body, self._engine.reach, look, self._under(look.__name__))
        beside = BREAK.join(map(encode, extra))
        if not empty or not self._is_silent_beside(beside):
            return False
        if self._hinted is None and self._scorer is not None:
            self._hinted = self._may_be_hinted(self._scorer, body, beside)
        return True

    def _may_be_hinted(self, scorer: Scorer, body: bytes, beside: bytes) -> bool:
        """Ask for hints in a JSON text and in others; in the parts of a long one, which have no sum, for any hint."""
        history = self._engine.history
        if history is None or len(body) < LONG:
            return bool(scorer.hits(BREAK.join([self._unescaped(body), beside])))

        def look(part: bytes) -> bool:
            return not scorer.holds_any(_unescaped(part))

        return not history.is_clean(body, scorer.reach, look, self._under("hints")) or scorer.holds_any(beside)

    def _is_silent_beside(self, data: bytes) -> bool:
        """Ask about a path and header fields; a client sends the same ones with every request."""
        history = self._engine.history
        name = history.name(data, self._under("beside")) if history is not None and data else b""
        if not data or self._knows(name or None):
            return True
        silent = self._tells_nothing(data, _in_one_text)
        if silent and name:
            self._keep(name)
        return silent

    def _is_plain(self, body: bytes) -> bool:
        return (self._simple(body) is not None or b"\\\\" not in body) and self._is_silent(body)

    def _is_silent(self, body: bytes) -> bool:
        simple = self._simple(body)
        if simple is None and b"\\u" in body and b"\\u" in body.replace(b"\\\\", b""):
            return False  # what ``_unescaped`` leaves as it is
        return self._tells_nothing(_unescaped(body) if simple is None else simple, _in_one_value)

    def _simple(self, body: bytes) -> bytes | None:
        """Undo the escapes of a JSON text that has no backslash of its own, which is asked more than once of most."""
        if self._read is None or self._read[0] is not body:
            plain: bytes | None = body
            if b"\\" in body:
                plain = None if b"\\u" in body else codecs.escape_decode(body)[0]
                plain = None if plain is None or b"\\" in plain else plain
            self._read = body, plain
        return self._read[1]

    def _unescaped(self, body: bytes) -> bytes:
        simple = self._simple(body)
        return _unescaped(body) if simple is None else simple

    def _tells_nothing(self, data: bytes, in_one: Callable[[bytes], bool]) -> bool:
        if data and self._doubted == data:  # asked before, when it was whole
            return False
        empty = self._engine.refuses(data, in_one) and not any(each.may_find(data) for each in self._detectors)
        empty = empty and (not self._decodes or hides_nothing(self._engine, data))
        self._doubted = None if empty else data
        return empty

    @property
    def hinted(self) -> bool:
        """Whether ``weigh`` may find something; a scan that found no other rule has told."""
        return self._hinted is not False

    def weigh(self, texts: Sequence[str], role: Callable[[int], Role], place: Callable[[int], str]) -> None:
        """Note what the hints in each whole text come to, by who speaks there. Nothing is masked for it."""
        if self._scorer is None or self._hinted is False:
            return
        if self._hinted is None and sum(map(len, texts)) < LONG:  # of more, each is looked up in the scorer's memory
            self._hinted = bool(self._scorer.hits(encode("\0".join(texts))))
            if not self._hinted:
                return
        for index, text in enumerate(texts):
            for each in self._scorer.recall(text, partial(role, index)):
                if self._decide(each.rule) is not Action.ALLOW:
                    self.note(each.rule, place(index), each.start, each.end, each.score)

    def check_spanning(self, original: bytes, masked: bytes, seen: Counter[tuple[str, str]]) -> bytes:
        """Look at a JSON text for what spans its values; return ``masked`` without that.

        ``original`` is the text before its values were masked (a placeholder moves the edges of words, so rules look at
        the original), ``seen`` what was found in its values. What a rule only flags is noted once, at ``$``.
        """
        text = _unescaped(original).decode()
        spanning = []
        for span in self._engine.find_text(text):
            value = (span.rule.id, text[span.start : span.end])
            seen[value] -= 1
            if seen[value] < 0:
                spanning.append(span)
        acting = {span.rule.id for span in spanning if self._decide(span.rule) in ACTING}
        for rule, span in {span.rule.id: span for span in reversed(spanning)}.items():
            if rule not in acting and self._decide(span.rule) is Action.FLAG:
                self.note(span.rule, "$", span.start, span.end)
        if not acting:
            return self._across(masked)

        def decide(rule: Rule) -> Action:
            return self._decide(rule) if rule.id in acting else Action.ALLOW

        channel = JsonSource(Redactor(self._engine, decide, short_name))
        return self._across(encode(self.say([*channel.feed(masked.decode()), *channel.end()], lambda: "$")[0]))

    def _across(self, body: bytes) -> bytes:
        """Mask what is split over strings of a JSON text that follow one another: items, fields, messages.

        What is only flagged and split over the lines of one value was noted there.
        """
        noted = {finding.rule for finding in self.findings}

        def find(text: str) -> list[TextSpan]:
            spans = self._looked_for(find_split(self._engine, text))
            return [span for span in spans if self._decide(span.rule) in ACTING or span.rule.id not in noted]

        if not self._decodes or not find(_unescaped(body).decode()):
            return body
        nothing = Redactor(self._engine, lambda _: Action.ALLOW, short_name)
        channel = JsonSource(WholeRedactor(nothing, find, self._decide))
        return encode(self.say([*channel.feed(body.decode()), *channel.end()], lambda: "$")[0])

    def _found(self, text: str) -> Sequence[Found]:
        """Return what detectors find in a whole text, and what rules find once it is decoded."""
        spans: list[Found] = [*find_all(self._detectors, text)]
        if self._decodes:
            spans += self._looked_for(find_hidden(self._engine, text))
        return sorted(spans, key=lambda span: (span.start, -span.end, span.rule.id))

    def _looked_for(self, spans: Sequence[TextSpan]) -> list[TextSpan]:
        return [span for span in spans if self._decide(span.rule) is not Action.ALLOW]

    def _whole(self, text: str, place: str, *, source: bool) -> str:
        inner = self.redactor()
        if self._detectors or self._decodes:
            inner = WholeRedactor(inner, self._found, self._decide)
        if self._tokens is not None:
            inner = TokeniseWhole(inner, self._tokens, self._decide, source=source)
        channel = JsonSource(inner) if source else inner
        return self.say([*channel.feed(text), *channel.end()], lambda: place)[0]

    def _in_runs(self, texts: Sequence[str]) -> set[int]:
        """Return the indexes of the streamed texts of which an encoded run may not leave."""
        if not self._runs:
            return set()
        return {i for i, text in enumerate(texts) if hides(self._engine, self._decide, text, self._runs)}

    def _coded(self, texts: Sequence[str]) -> set[int]:
        """Return the indexes of the texts in which a detector finds something; mostly one look at all of them."""
        if not self._detectors:
            return set()
        data = encode("\n".join(texts))
        able = [each for each in self._detectors if each.may_find(data)]
        return {index for index, text in enumerate(texts) if any(each.find(text) for each in able)}

    def _hidden(self, texts: Sequence[str], known: Collection[int]) -> set[int]:
        """Return the indexes of the texts that may hold something once decoded; mostly one look at all of them.

        Those ``known`` to hold something as they are written are decoded in any case.
        """
        found: set[int] = set()
        asked = [(index, encode(text)) for index, text in enumerate(texts) if index not in known]
        waiting = [asked] if self._decodes and asked else []
        while waiting:  # where there is something, each half is asked by itself
            some = waiting.pop()
            if hides_nothing(self._engine, BREAK.join([part for _, part in some])):
                continue
            if len(some) == 1:
                found.add(some[0][0])
            else:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
        return found

    def note(self, rule: Rule, place: str, start: int, end: int, score: Score | None = None) -> None:
        """Note what was found at a place; what the policy blocks sets ``denial``."""
        action = self._decide(rule)
        if action not in ACTING:
            self._flagged += 1
            if self._flagged > MAX_FLAGGED:
                return
        self.findings.append(Finding(rule.id, rule.cls, place, start, end, action, score))
        if action is Action.BLOCK and self.denial is None:
            self.denial = Denial(
                Reason.ANSWER_FINDING,
                403,
                f"Blocked by policy: the answer contains something of the class {rule.cls} (rule {rule.id}).",
            )

    def _remember(self, texts: Sequence[str]) -> None:
        if len(texts) + len(self.clean) <= MAX_CLEAN:
            self.clean.update(text for text in texts if len(text) <= CLEAN_LENGTH)


@functools.lru_cache(maxsize=256)
def _question(what: str, decodes: bool, detectors: tuple[str, ...], allowed: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(f"{what} {decodes} {detectors} {allowed}".encode(), digest_size=16).digest()


def _unescaped(body: bytes) -> bytes:
    """Undo the escapes that ``dialects.body.dump`` writes, all but those of rare control characters."""
    if b"\\u" not in body:
        return codecs.escape_decode(body)[0]  # in C, fifty times as fast as a pass for each escape
    return b"\\".join(map(_plain, body.split(b"\\\\")))


def _plain(part: bytes) -> bytes:
    return b"\\u".join(codecs.escape_decode(each)[0] for each in part.split(b"\\u"))


def _in_one_text(span: bytes) -> bool:
    """Say that a part of texts joined by ``BREAK`` lies in one of them."""
    return BREAK[:1] not in span


def _in_one_value(span: bytes) -> bool:
    """Say that a part of an unescaped JSON text lies in one string or one number: it reaches over no quote, no mark.

    Without a quote it is all inside a string or all outside, where there is nothing but what ``_OUTSIDE`` names.
    """
    if b'"' in span:
        return False
    return bool(span.translate(None, _OUTSIDE)) or len(span.translate(None, _MARKS)) == len(span)
