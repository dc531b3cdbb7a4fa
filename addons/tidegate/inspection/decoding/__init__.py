"""Decoding before matching: a text as it reads once what hides it is undone. docs/decisions.md says what is undone."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.inspection.decoding.codes import encoded, escaped, labelled, listed, wrapped
from tidegate.inspection.decoding.folding import folded, overridden
from tidegate.inspection.decoding.tricks import ascii85, every_turn, spaced, split, turned
from tidegate.inspection.decoding.views import BREAK, Edit, View, substitute, windows
from tidegate.inspection.engine import Engine, Span, TextSpan, count, encode
from tidegate.inspection.rules import Rule, Severity

__all__ = ["BREAK", "DEPTH", "View", "find", "find_hidden", "find_split", "find_text", "hides_nothing", "views"]

DEPTH = 3
"""Times that what was decoded is decoded again."""
MAX_VIEWS = 24
"""Views of one text in which something is decoded."""
MAX_GROWTH = 6
MIN_BYTES = 1 << 17
"""Bytes of those views together: ``MAX_GROWTH`` times the text and this much. Beyond, nothing more is undone."""
_STEPS = (
    ("bidi", overridden),
    ("unicode", folded),
    ("escapes", escaped),
    ("encoding", encoded),
    ("lines", wrapped),
    ("codes", listed),
    ("labels", labelled),
    ("ascii85", ascii85),
    ("spaced", spaced),
)
_TRIM = 3  # quotes and a comma around a token


def views(data: bytes) -> list[View]:
    """Return the views of a text in UTF-8: none where nothing is hidden in a way that is known. Never raises."""
    return _undone(data) + _whole(data)


def _undone(data: bytes) -> list[View]:
    """Return the views in which something is decoded, and what comes out decoded again."""
    made: list[View] = []
    seen = {data}
    left = MAX_GROWTH * len(data) + MIN_BYTES
    level: list[tuple[bytes, View | None]] = [(data, None)]
    for _ in range(DEPTH):
        deeper: list[tuple[bytes, View | None]] = []
        for text, source in level:
            for name, step in _STEPS:
                edits = list(step(text))
                view = substitute(text, edits, name, source) if edits else None
                if view is None or view.data in seen or len(made) >= MAX_VIEWS or left < len(view.data):
                    continue
                left -= len(view.data)
                seen.add(view.data)
                made.append(view)
                deeper.append((view.data, view))
        level = deeper
    return made


def _whole(data: bytes) -> list[View]:
    """Return the views of the text itself that concern all of it; they are not decoded again."""
    tokens: list[Edit] = list(turned(data))
    return [*_joined(data), *([windows(tokens, "turned", None)] if tokens else ())]


def _joined(data: bytes) -> list[View]:
    joints = list(split(data))
    return [substitute(data, joints, "split", None, joined=True)] if joints else []


def hides_nothing(engine: Engine, data: bytes) -> bool:
    """Say that no rule can match in any view of a text; ``False`` may also mean that one might."""
    made = _undone(data)
    if made and engine.candidates(BREAK.join(view.data for view in made)):
        return False
    tricks = BREAK.join([*(view.data for view in _joined(data)), every_turn(data)])
    return not any(_is_sure(engine.rules[index]) for index in engine.candidates(tricks))


def _is_sure(rule: Rule) -> bool:
    """Say whether a rule is asked where text was turned or joined: not one that guesses."""
    return rule.severity is not Severity.LOW and not any(name.startswith("entropy") for name in rule.validators)


def find(engine: Engine, data: bytes, plain: Iterable[Span] = ()) -> tuple[Span, ...]:
    """Return what rules match in the views of a text, where it stands in the text itself, sorted.

    ``plain`` is what was found without decoding, which is not told again.
    """
    return _found(engine, data, views(data), plain)


def _found(engine: Engine, data: bytes, made: list[View], plain: Iterable[Span]) -> tuple[Span, ...]:
    if not made or not engine.candidates(BREAK.join(view.data for view in made)):
        return ()
    known: dict[str, list[tuple[int, int]]] = {}
    for span in plain:
        known.setdefault(span.rule.id, []).append((span.start, span.end))
    found: list[Span] = []
    for view in made:
        for span in engine.find(view.data):
            if not view.new(span.start, span.end) or _doubtful(view, span, data):
                continue
            pieces = view.pieces(span.start, span.end)
            told = known.setdefault(span.rule.id, [])
            if not any(_same(piece, other) for piece in pieces for other in told):
                told += pieces
                found += [Span(span.rule, start, end) for start, end in pieces]
    return tuple(sorted(found, key=lambda each: (each.start, -each.end, each.rule.id)))


def _same(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether one of two spans is all of the other: what one rule finds there in two ways is one finding."""
    return (one[0] <= other[0] and other[1] <= one[1]) or (other[0] <= one[0] and one[1] <= other[1])


def _doubtful(view: View, span: Span, data: bytes) -> bool:
    """Say whether a match in a view of split or turned text is as likely chance, or is no news.

    Rules that guess (severity low, or by entropy) are not asked there. A turned number, or what a rule of severity
    medium matches, has to be all of the token and more than digits.
    """
    if _acts_only_as_itself(view.data[span.start : span.end]):
        return True
    if view.undone not in ("split", "turned"):
        return False
    if not _is_sure(span.rule):
        return True
    if view.undone == "split":
        return False
    said = view.data[span.start : span.end]
    start, end = view.origin(span.start, span.end)
    if said in data[start:end] or said.isdigit():
        return True
    whole = view.around(span.start) - len(said) <= _TRIM
    return not whole and (span.rule.severity is Severity.MEDIUM or said.upper() == said.lower())


def _acts_only_as_itself(said: bytes) -> bool:
    """Say whether a match holds what a terminal acts on or nobody sees: as an escape, in code, it is neither."""
    return not "".join(said.decode("utf-8", "replace").split()).isprintable()


def find_text(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return everything found in a text, decoded or not, in characters of it."""
    found = (*engine.find_text(text), *find_hidden(engine, text))
    return tuple(sorted(found, key=lambda each: (each.start, -each.end)))


def find_hidden(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return what is found in a text only once it is decoded, in characters of the text as it stands, sorted."""
    data = encode(text)
    made = views(data)
    return _in_characters(text, data, _found(engine, data, made, engine.find(data)) if made else ())


def find_split(engine: Engine, text: str) -> tuple[TextSpan, ...]:
    """Return what is found in a JSON text only once strings that follow one another are read as one, in parts."""
    data = encode(text)
    made = _joined(data)
    return _in_characters(text, data, _found(engine, data, made, engine.find(data)) if made else ())


def _in_characters(text: str, data: bytes, spans: Iterable[Span]) -> tuple[TextSpan, ...]:
    if len(data) == len(text):
        return tuple(TextSpan(span.rule, span.start, span.end) for span in spans)
    return tuple(TextSpan(span.rule, count(data[: span.start]), count(data[: span.end])) for span in spans)
