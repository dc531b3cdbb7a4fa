"""Decoding before matching: a text as it reads once what hides it is undone. docs/decisions.md says what is undone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from tidegate.inspection.decoding.codes import encoded, escaped, labelled, listed, run_ends, wrapped
from tidegate.inspection.decoding.folding import folded, overridden
from tidegate.inspection.decoding.tricks import ascii85, backwards, is_grouped, joint_ends, spaced, split, turned
from tidegate.inspection.decoding.views import BREAK, Edit, View, substitute, windows
from tidegate.inspection.engine import Engine, Span, TextSpan, count, encode
from tidegate.inspection.rules import Severity
from tidegate.inspection.spotting import Disguise, Spots, is_sure
from tidegate.inspection.turning import has_opening

__all__ = [
    "BREAK", "DEPTH", "View", "all_views", "find", "find_hidden", "find_split", "find_text", "hides_nothing", "views",
]  # fmt: skip

DEPTH = 3
"""Times that what was decoded is decoded again."""
MAX_VIEWS = 24
"""Views of one text in which something is decoded. Those of the text itself are always made, at most nine."""
MAX_GROWTH = 6
MIN_BYTES = 1 << 17
"""Bytes of views that decode again: ``MAX_GROWTH`` times the text and this much. Beyond, nothing more is undone."""
_STEPS = (
    ("escapes", escaped, Disguise.ESCAPED),
    ("lines", wrapped, Disguise.WRAPPED),
    ("codes", listed, Disguise.LISTED),
    ("labels", labelled, Disguise.LABELLED),
    ("spaced", spaced, Disguise.SPACED),
)
_TRIM = 3  # quotes and a comma around a token


def views(engine: Engine, data: bytes, plain: Callable[[], Sequence[Span]] = tuple) -> list[View]:
    """Return the views of a text in UTF-8: none where nothing is hidden in a way that is known. Never raises.

    ``plain`` gives what was found without decoding, by start: words in which something was are not turned.
    """
    spots = engine.spots(data)
    return _undone(engine, data, spots) + _whole(data, spots, plain)


def all_views(engine: Engine, data: bytes) -> list[View]:
    """Return the views as if everything had been spotted: what ``views`` leaves out holds nothing, tests say."""
    spots = Spots(frozenset(Disguise), run_ends(data), joint_ends(data))
    return _undone(engine, data, spots, every=True) + _whole(data, spots, tuple)


def _undone(engine: Engine, data: bytes, spots: Spots, *, every: bool = False) -> list[View]:
    """Return the views in which something is decoded, and what comes out decoded again."""
    made: list[View] = []
    seen = {data}
    left = MAX_GROWTH * len(data) + MIN_BYTES
    level: list[tuple[bytes, View | None]] = [(data, None)]
    for depth in range(DEPTH):
        deeper: list[tuple[bytes, View | None]] = []
        for text, source in level:
            if depth:
                spots = Spots(frozenset(Disguise), run_ends(text)) if every else engine.spots(text)
            for name, edits in _edits(text, spots):
                view = substitute(text, edits, name, source)
                if view.data in seen or (depth and (len(made) >= MAX_VIEWS or left < len(view.data))):
                    continue
                left -= len(view.data) if depth else 0
                seen.add(view.data)
                made.append(view)
                deeper.append((view.data, view))
        level = deeper
    return made


def _edits(text: bytes, spots: Spots) -> list[tuple[str, list[Edit]]]:
    """Return what every step undoes for which something was spotted, by the step's name, where it undoes anything."""
    found: list[tuple[str, list[Edit]]] = []
    if not text.isascii():
        found += [("bidi", list(overridden(text))), ("unicode", list(folded(text)))]
    if spots.runs:
        found.append(("encoding", list(encoded(text, spots.runs))))
    found.append(("ascii85", list(ascii85(text))))
    if spots.kinds:
        found += [(name, list(step(text))) for name, step, kind in _STEPS if kind in spots.kinds]
    return [each for each in found if each[1]]


def _whole(data: bytes, spots: Spots, plain: Callable[[], Sequence[Span]]) -> list[View]:
    """Return the views of the text itself that concern all of it; they are not decoded again."""
    tokens = list(turned(data, spots.kinds)) if spots.kinds else []
    if Disguise.NUMBER in spots.kinds:
        tokens += backwards(data)
    if tokens and (found := [(span.start, span.end) for span in plain() if has_opening(span.rule.pattern)]):
        tokens = [each for each in tokens if not _overlaps(found, each[0], each[1])]
    return [*_joined(data, spots.joints), *([windows(tokens, "turned", None)] if tokens else ())]


def _overlaps(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    """Say whether the last of the spans that begin before ``end`` reaches over ``start``."""
    index = bisect_left(spans, (end, 0))
    return index > 0 and spans[index - 1][1] > start


def _joined(data: bytes, ends: Iterable[int]) -> list[View]:
    joints = list(split(data, ends))
    return [substitute(data, joints, "split", None, joined=True)] if joints else []


def hides_nothing(engine: Engine, data: bytes) -> bool:
    """Say that no rule can match in any view of a text; ``False`` may also mean that one might."""
    return not _may_hold(engine, views(engine, data))


def _may_hold(engine: Engine, made: list[View]) -> bool:
    """Ask all views at once whether a rule may match in them."""
    decoded = [view.data for view in made if view.undone not in _DOUBTED]
    if decoded and not all(engine.rules[index].plain for index in engine.candidates(BREAK.join(decoded))):
        return True
    tricks = [view.data for view in made if view.undone in _DOUBTED]
    return bool(tricks) and any(is_sure(engine.rules[index]) for index in engine.candidates(BREAK.join(tricks)))


_DOUBTED = ("split", "turned")


def find(
    engine: Engine, data: bytes, plain: Iterable[Span] | None = None, made: list[View] | None = None
) -> tuple[Span, ...]:
    """Return what rules match in the views of a text, where it stands in the text itself, sorted.

    What is found without decoding is not told again: ``plain`` if it is known. ``made`` are other views than ``views``.
    """
    once = cache(lambda: tuple(engine.find(data) if plain is None else plain))
    return _found(engine, data, views(engine, data, once) if made is None else made, once)


def _found(engine: Engine, data: bytes, made: list[View], plain: Callable[[], Sequence[Span]]) -> tuple[Span, ...]:
    if not made or not _may_hold(engine, made):
        return ()
    known: dict[str, list[tuple[int, int]]] = {}
    for span in plain():
        known.setdefault(span.rule.id, []).append((span.start, span.end))
    found: list[Span] = []
    for view in made:
        for span in engine.find(view.data):
            if span.rule.plain or not view.new(span.start, span.end) or _doubtful(view, span, data):
                continue
            pieces = view.pieces(span.start, span.end)
            if view.undone == "turned" and engine.passes_over(span.rule, data[pieces[0][0] : pieces[0][1]]):
                continue
            told = known.setdefault(span.rule.id, [])
            if not any(_is_told(told, piece) for piece in pieces):
                for piece in pieces:
                    insort(told, piece)
                found += [Span(span.rule, start, end) for start, end in pieces]
    return tuple(sorted(found, key=lambda each: (each.start, -each.end, each.rule.id)))


def _is_told(told: list[tuple[int, int]], piece: tuple[int, int]) -> bool:
    """Say whether one of the spans holds the piece or is inside it: what one rule finds there twice is one finding.

    None of the spans holds another, so their starts and ends rise together and only the nearest two can.
    """
    index = bisect_right(told, piece)
    before, after = told[index - 1 : index], told[index : index + 1]
    return any(other[1] >= piece[1] or other[0] == piece[0] for other in before) or any(
        other[1] <= piece[1] for other in after
    )


def _doubtful(view: View, span: Span, data: bytes) -> bool:
    """Say whether a match in a view of split or turned text is as likely chance, or is no news.

    Rules that guess (severity low, or by entropy) are not asked there, nor where a text was turned those without an
    opening, but for groups of digits. A turned number, or what a rule of severity medium matches, has to be all of the
    token and more than digits.
    """
    if view.undone not in _DOUBTED:
        return False
    if not is_sure(span.rule):
        return True
    if view.undone == "split":
        return False
    said = view.data[span.start : span.end]
    start, end = view.origin(span.start, span.end)
    if said in data[start:end] or said.isdigit():
        return True
    if not (has_opening(span.rule.pattern) or is_grouped(data[start:end])):
        return True
    whole = view.around(span.start) - len(said) <= _TRIM
    return not whole and (span.rule.severity is Severity.MEDIUM or said.upper() == said.lower())


def find_text(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return everything found in a text, decoded or not, in characters of it."""
    data = encode(text)
    plain = engine.find(data)
    found = (*plain, *find(engine, data, plain))
    return _in_characters(text, data, sorted(found, key=lambda each: (each.start, -each.end)))


def find_hidden(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return what is found in a text only once it is decoded, in characters of the text as it stands, sorted."""
    data = encode(text)
    return _in_characters(text, data, find(engine, data))


def find_split(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return what is found in a JSON text only once strings that follow one another are read as one, in parts."""
    data = encode(text)
    return _in_characters(text, data, find(engine, data, made=_joined(data, engine.spots(data).joints)))


def _in_characters(text: str, data: bytes, spans: Iterable[Span]) -> tuple[TextSpan, ...]:
    """Turn byte positions into character positions; ``spans`` are sorted by their starts."""
    if len(data) == len(text):
        return tuple(TextSpan(span.rule, span.start, span.end) for span in spans)
    found, done, seen = [], 0, 0
    for span in spans:
        seen += count(data[done : span.start])
        done = span.start
        found.append(TextSpan(span.rule, seen, seen + count(data[done : span.end])))
    return tuple(found)
