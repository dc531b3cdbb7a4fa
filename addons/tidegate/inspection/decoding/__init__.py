"""Decoding before matching: a text as it reads once what hides it is undone. docs/decisions.md says what is undone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from tidegate.inspection.decoding.codes import encoded, escaped, labelled, listed, run_ends, wrapped
from tidegate.inspection.decoding.folding import folded, overridden
from tidegate.inspection.decoding.intervals import Intervals
from tidegate.inspection.decoding.tricks import ascii85, backwards, is_grouped, joint_ends, spaced, split, turned
from tidegate.inspection.decoding.views import BREAK, CONTEXT, Edit, View, substitute, windows
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
    ("ascii85", ascii85, Disguise.BASE85),
)
_TRIM = 3  # quotes and a comma around a token


def views(engine: Engine, data: bytes, plain: Callable[[], Sequence[Span]] = tuple) -> list[View]:
    """Return the views of a text in UTF-8: none where nothing is hidden in a way that is known. Never raises.

    ``plain`` gives what was found without decoding, by start: words in which something was are not turned.
    """
    return _views(engine, data, plain)[0]


def _views(engine: Engine, data: bytes, plain: Callable[[], Sequence[Span]] = tuple) -> tuple[list[View], bool]:
    """Return the views of a text, and whether the bounds left nothing out."""
    spots = engine.spots(data)
    made, complete = _undone(engine, data, spots)
    return made + _whole(data, spots, plain), complete


def all_views(engine: Engine, data: bytes) -> list[View]:
    """Return the views as if everything had been spotted: what ``views`` leaves out holds nothing, tests say."""
    spots = Spots(frozenset(Disguise), run_ends(data), joint_ends(data))
    return _undone(engine, data, spots, every=True)[0] + _whole(data, spots, tuple)


def _undone(engine: Engine, data: bytes, spots: Spots, *, every: bool = False) -> tuple[list[View], bool]:
    """Return the views in which something is decoded, what comes out decoded again, and whether that is all of it."""
    made: list[View] = []
    seen = {data}
    complete = True
    left = MAX_GROWTH * len(data) + MIN_BYTES
    level: list[tuple[bytes, View | None]] = [(data, None)]
    for depth in range(DEPTH):
        deeper: list[tuple[bytes, View | None]] = []
        for text, source in level:
            if depth:
                spots = Spots(frozenset(Disguise), run_ends(text)) if every else engine.spots(text)
            for name, found in _edits(text, spots):
                room = left if len(made) < MAX_VIEWS else 0
                edits, all_of_it = _fitting(found, room if depth else MAX_GROWTH * len(data) + MIN_BYTES)
                complete &= all_of_it
                view = substitute(text, edits, name, source) if edits else None
                if view is None or view.data in seen:
                    continue
                left -= len(view.data) if depth else 0
                seen.add(view.data)
                made.append(view)
                deeper.append((view.data, view))
        level = deeper
    return made, complete


def _edits(text: bytes, spots: Spots) -> Iterator[tuple[str, Iterator[Edit]]]:
    """Return what every step undoes for which something was spotted, by the step's name, each when it is asked for."""
    if not text.isascii():
        yield "bidi", overridden(text)
        yield "unicode", folded(text)
    if spots.runs:
        yield "encoding", encoded(text, spots.runs)
    for name, step, kind in _STEPS:
        if kind in spots.kinds:
            yield name, step(text)


def _fitting(found: Iterator[Edit], room: int) -> tuple[list[Edit], bool]:
    """Take the first edits of which the view has no more than ``room`` bytes; say whether those are all.

    What was compressed is a thousand times as long, so that nothing is undone for which there is no room.
    """
    edits: list[Edit] = []
    size = CONTEXT
    for edit in found:
        size += len(edit[2]) + len(BREAK)
        if size + edit[1] > room:
            return edits, False
        edits.append(edit)
    return edits, True


def _whole(data: bytes, spots: Spots, plain: Callable[[], Sequence[Span]]) -> list[View]:
    """Return the views of the text itself that concern all of it; they are not decoded again."""
    tokens = list(turned(data, spots.kinds)) if spots.kinds else []
    if Disguise.NUMBER in spots.kinds:
        tokens += backwards(data)
    if tokens:
        found = Intervals((span.start, span.end) for span in plain() if has_opening(span.rule.pattern))
        tokens = [each for each in tokens if not found.touches(each[0], each[1])]
    return [*_joined(data, spots.joints), *([windows(tokens, "turned", None)] if tokens else ())]


def _joined(data: bytes, ends: Iterable[int]) -> list[View]:
    joints = list(split(data, ends))
    return [substitute(data, joints, "split", None, joined=True)] if joints else []


def hides_nothing(engine: Engine, data: bytes) -> bool:
    """Say that no rule can match in any view of a text; ``False`` may also mean that one might.

    So it does where the bounds of one text left something out: of several texts looked at as one, each has its own.
    """
    made, complete = _views(engine, data)
    return complete and not _may_hold(engine, made)


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
    known: defaultdict[str, Intervals] = defaultdict(Intervals)
    for span in plain():
        known[span.rule.id].add(span.start, span.end)
    found: list[Span] = []
    for view in made:
        for span in engine.find(view.data):
            if span.rule.plain or not view.new(span.start, span.end) or _doubtful(view, span, data):
                continue
            pieces = view.pieces(span.start, span.end)
            if view.undone == "turned" and engine.passes_over(span.rule, data[pieces[0][0] : pieces[0][1]]):
                continue
            told = known[span.rule.id]
            if not any(told.nests(start, end) for start, end in pieces):  # else one rule found it in two ways
                for start, end in pieces:
                    told.add(start, end)
                    found.append(Span(span.rule, start, end))
    return tuple(sorted(found, key=lambda each: (each.start, -each.end, each.rule.id)))


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
