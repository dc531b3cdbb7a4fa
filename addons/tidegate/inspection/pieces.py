"""Texts of a whole body that are one text cut in pieces: masked as what a reader makes of them. Pure.

Law: the pieces of a list, joined, lose what a stream of the same pieces loses; each is looked at by itself as well, so
they may lose more. A piece in which nothing is masked stays as it is; a placeholder stands in the piece in which its
finding begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from tidegate.dialects.fields import Pointer, Selected, Trie, where
from tidegate.streams.redactor import Dropped, Kept, Masked
from tidegate.streams.texts import Texts

type Run = tuple[int, int, str]
"""What is masked: the characters from one place to another, and what stands there then."""


def mask(texts: Texts, paths: Trie[str], value: object, beside: Collection[Pointer] = ()) -> bool:
    """Mask what is found in pieces that are joined; ``value`` is changed in place. Say whether anything was masked.

    Those that one path selects in one list belong together. ``beside`` points at texts that are looked at elsewhere.
    """
    groups: dict[tuple[object, ...], list[Selected[str]]] = {}
    for found in paths.select(value):
        if isinstance(found.value, str) and found.pointer not in beside:
            groups.setdefault(_list_of(found.pointer), []).append(found)
    changed = [_mask(texts, group) for group in groups.values() if len(group) > 1]
    return any(changed)


def _list_of(pointer: Pointer) -> tuple[object, ...]:
    """Name the innermost list around a value, and how it is reached from there."""
    at = max((index for index, part in enumerate(pointer) if isinstance(part, int)), default=0)
    return (*pointer[:at], None, *pointer[at + 1 :])


def _mask(texts: Texts, group: Sequence[Selected[str]]) -> bool:
    parts = [str(each.value) for each in group]
    begins = [sum(map(len, parts[:index])) for index in range(len(parts) + 1)]

    def at(place: int) -> int:
        return max(index for index in range(len(parts)) if begins[index] <= place)

    runs = _runs(texts, "".join(parts), lambda place: where(group[at(place)].pointer), begins)
    for index, each in enumerate(group):
        text = _without(parts[index], begins[index], runs)
        if text != parts[index]:
            each.parent[each.pointer[-1]] = text  # type: ignore[index]  # the pointer came from this parent
    return bool(runs)


def _runs(texts: Texts, text: str, place: Callable[[int], str], begins: Sequence[int]) -> list[Run]:
    """Redact the joined text; what is only noted counts here where it reaches over the end of a piece."""
    redactor = texts.redactor()
    runs: list[Run] = []
    here = 0
    for piece in [*redactor.feed(text), *redactor.end()]:
        if isinstance(piece, Kept):
            here += len(piece.text)
        elif isinstance(piece, Dropped):
            start, end, said = runs.pop() if runs and runs[-1][1] == here else (here, here, "")
            runs.append((start, end + piece.length, said + piece.text))
            here += piece.length
        elif isinstance(piece, Masked):
            texts.say([piece], partial(place, piece.start))
            runs.append((here, here, piece.text))
        elif any(piece.start < each < piece.start + piece.length for each in begins):
            texts.say([piece], partial(place, piece.start))
    return runs


def _without(part: str, begin: int, runs: Sequence[Run]) -> str:
    """Write one piece without what is masked in it."""
    kept: list[str] = []
    done = 0
    for start, end, said in runs:
        first, last = min(max(start - begin, done), len(part)), min(max(end - begin, done), len(part))
        kept.append(part[done:first])
        if 0 <= start - begin < len(part):
            kept.append(said)
        done = max(done, last)
    return "".join((*kept, part[done:]))
