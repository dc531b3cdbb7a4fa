"""What a request asks for that is read only where a rule of a role asks: tools called, choices, modalities. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypedDict

from tidegate.dialects.asking import malformed, tool_names
from tidegate.dialects.spec import Endpoint, JsonObject, Media
from tidegate.model import Asked, Denial, Modality

_TYPES = {"image": Modality.IMAGE, "audio": Modality.AUDIO, "video": Modality.VIDEO, "text": Modality.FILE}
_NAMES = {each.value: each for each in Modality}
DATA_URL = 100
"""Characters of a data: URL in which its media type must stand; the longest registered one has 73."""
DEPTH = 3
"""Objects below each other in which a value names its media type: Anthropic writes ``source: {media_type: ...}``."""


def complete(
    what: Asked, endpoint: Endpoint, body: JsonObject | None, wanted: Collection[str], *, files: bool = False
) -> Asked | Denial:
    """Add what is ``wanted`` of ``called``, ``choices``, ``modalities``; a field of the wrong type is refused.

    ``files``: some stand beside the body. They are what every request here holds, or files.
    """
    called = _called(endpoint, body) if "called" in wanted else None
    if isinstance(called, Denial):
        return called
    choices = _choices(endpoint, body) if "choices" in wanted else None
    if isinstance(choices, Denial):
        return choices
    return replace(
        what,
        called=called,
        choices=choices,
        modalities=_modalities(endpoint, body, files) if "modalities" in wanted else None,
    )


class Summed(TypedDict):
    """The three fields of ``Asked`` that are read only where they are wanted."""

    called: tuple[str, ...] | None
    choices: int | None
    modalities: frozenset[Modality] | None


def sum_up(every: Sequence[Asked]) -> Summed:
    """Sum up the parts of one request: what is unknown of one of them is unknown."""
    called = [each.called for each in every if each.called is not None]
    choices = [each.choices for each in every if each.choices is not None]
    kinds = [each.modalities for each in every if each.modalities is not None]
    return Summed(
        called=tuple(dict.fromkeys(name for each in called for name in each)) if len(called) == len(every) else None,
        choices=max(choices, default=1) if len(choices) == len(every) else None,
        modalities=frozenset().union(*kinds) if len(kinds) == len(every) else None,
    )


def _called(endpoint: Endpoint, body: JsonObject | None) -> tuple[str, ...] | Denial:
    found: list[str] = []
    for selected in endpoint.asked.called.select(body):
        for payload in selected.payloads:
            names = tool_names(payload, selected.value)
            if names is None:
                return malformed(f"{payload.each} holds the call of a tool without a name or of an unknown form")
            found.extend(names)
    return tuple(dict.fromkeys(found))


def _choices(endpoint: Endpoint, body: JsonObject | None) -> int | Denial:
    """Return how many answers are wanted: one, where nothing is said. A number may be written as text in a form."""
    most = 1
    for selected in endpoint.asked.choices.select(body):
        value = selected.value
        if value is None:
            continue
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
            value = int(value)
        if type(value) is not int or value < 0:
            return malformed("the number of answers is not a whole number")
        most = max(most, value)
    return most


def _modalities(endpoint: Endpoint, body: JsonObject | None, files: bool) -> frozenset[Modality]:
    found = {Modality.TEXT, *endpoint.asked.always}
    if files and not endpoint.asked.always:
        found.add(Modality.FILE)
    for selected in endpoint.asked.modalities.select(body):
        for value in selected.value if isinstance(selected.value, list) else (selected.value,):
            if value is not None:
                found.add(_NAMES.get(value.lower(), Modality.OTHER) if isinstance(value, str) else Modality.OTHER)
    for held in endpoint.media.select(body):
        told = [each for each in held.payloads if each.concerns(held.value)]
        if told:
            found |= _kinds(told, held.value)
    for stored in endpoint.owned.select(body):
        if any("file" in each.kind and each.concerns(stored.value) for each in stored.payloads):
            found.add(Modality.FILE)
    return frozenset(found)


def _kinds(told: Iterable[Media], value: object) -> set[Modality]:
    """Say what one value is. Entries that do not know leave it to one that does; where none does, it is ``other``."""
    found = {each.modality or _by_type(_type(each, value)) for each in told}
    return {each for each in found if each is not None} or {Modality.OTHER}


def _type(media: Media, value: object) -> str | None:
    """Return the media type that a value names of itself, or that its data: URL does."""
    for name in media.mime:
        found = _below(value, name, DEPTH)
        if isinstance(found, str):
            return found
    for way in media.data:
        held = value
        for name in way:
            held = held.get(name) if isinstance(held, dict) else None
        if isinstance(held, str) and held[:8].lstrip().lower().startswith("data:"):
            return held.lstrip()[5:DATA_URL].partition(",")[0].partition(";")[0]
    return None


def _below(value: object, name: str, depth: int) -> object:
    if not isinstance(value, dict) or not depth:
        return None
    if name in value:
        return value[name]
    found = (_below(each, name, depth - 1) for each in value.values())
    return next((each for each in found if each is not None), None)


def _by_type(mime: str | None) -> Modality | None:
    if mime is None:
        return None
    main, slash, _ = mime.strip().lower().partition("/")
    if not slash:
        return Modality.OTHER
    return _TYPES.get(main, Modality.FILE if main == "application" else Modality.OTHER)
