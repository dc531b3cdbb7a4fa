"""What a request carries beside texts: where it is, what can be read of it, and what follows from the rest. Pure.

The dialect says which fields hold media (``Media``); the bytes say what it is (``attachments``); the connection's
``on_unknown`` says what happens to what was not scanned.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tidegate.dialects.fields import Pointer, Trie, where
from tidegate.dialects.spec import Endpoint, Media
from tidegate.inspection import data_urls
from tidegate.inspection.attachments import Extraction, extract, is_quick, packed
from tidegate.inspection.attachments.found import ADDRESS, IN_ANSWER, NOT_BASE64, STORED, UNKNOWN
from tidegate.inspection.attachments.kinds import UNREADABLE, Kind, kinds
from tidegate.inspection.engine import Engine, encode
from tidegate.model import MASKING, Denial, Finding, OnUnknown, Reason, Scanned

ANSWER = "the answer"
"""The place of what comes back and cannot be scanned, as is known before it was asked for."""

_NAME_LETTERS = frozenset(string.ascii_letters + "_-[]")
_TEXTS = frozenset({Kind.TEXT, Kind.JSON, Kind.XML, Kind.HTML, Kind.MAIL, Kind.RTF})
_SHORT = 1024
"""Characters of base64 from which on, without white space, it is no text: rules would only find chance in it."""
_NAME = 60
"""Characters of a name inside an attachment that is shown; those that office documents use have fewer than 40."""


@dataclass(frozen=True, slots=True)
class Part:
    """A value of a body that holds media. ``data``: its bytes, ``None`` where there are none and ``why`` says so.

    ``opaque``: it is a text that is nothing but those bytes in base64, and ``head`` stands before them there.
    ``wordy``: if nobody knows what the bytes are, the letters may be a text all the same. ``aside``: it stands inside
    a text, and what cannot be read of it changes nothing.
    """

    pointer: Pointer = field(repr=False)
    place: str
    why: str = ""
    data: bytes | None = field(default=None, repr=False)
    opaque: bool = False
    head: str = field(default="", repr=False)
    wordy: bool = False
    aside: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """The media of a request when all of it was looked at.

    ``texts`` are those read out of it, by the place their findings are reported at; ``opaque`` what no rule looks at in
    the body itself; ``unread`` the places of what was not scanned, and why.
    """

    texts: dict[str, str] = field(default_factory=dict, repr=False)
    opaque: tuple[Pointer, ...] = field(default=(), repr=False)
    unread: tuple[tuple[str, str], ...] = ()


def parts(endpoint: Endpoint, body: object) -> tuple[Part, ...]:
    """Find the media of a request, in the order of the body, each value once."""
    return _selected(endpoint.media, body)


def in_answer(endpoint: Endpoint, body: object) -> Opened:
    """Look at the media of an answer: what was not scanned, whose letters no rule needs to look at then.

    What is quick to tell by its bytes is told; documents wait for nobody here, so they count as not scanned. A plain
    text is inspected as base64 in any text is.
    """
    unread: list[tuple[str, str]] = []
    opaque: list[Pointer] = []
    for part in _selected(endpoint.answer_media, body):
        if part.data is None:
            why: tuple[str, ...] = (part.why,)
        else:
            why = tuple(extract(part.data).unread) if is_quick(part.data) else (IN_ANSWER,)
        unread += [(part.place, each) for each in why]
        if why and part.opaque and not part.wordy:
            opaque.append(part.pointer)
    return Opened({}, tuple(opaque), tuple(unread))


def _selected(paths: Trie[Media], body: object) -> tuple[Part, ...]:
    found: dict[Pointer, Part] = {}  # by pointer: two keys that are not plain words have one place
    for selected in paths.select(body):
        for media in selected.payloads:
            if media.concerns(selected.value):
                for part in _parts(media, selected.pointer, selected.value):
                    found.setdefault(part.pointer, part)
    return tuple(found.values())


def beside(known: Collection[Part], body: object, plain: bytes) -> tuple[Part, ...]:
    """Find the documents in data: URLs of texts that are no ``known`` media; ``plain`` is the body as it was sent."""
    if not data_urls.may_hold(plain):
        return ()
    media = {part.pointer for part in known}
    found: list[Part] = []
    todo: list[tuple[Pointer, object]] = [((), body)]
    while todo:
        at, value = todo.pop()
        if isinstance(value, str) and ";" in value and at not in media:
            found += _inside(at, value)
        elif isinstance(value, dict):
            todo += reversed([((*at, key), each) for key, each in value.items()])
        elif isinstance(value, list):
            todo += reversed([((*at, index), each) for index, each in enumerate(value)])
    return tuple(found)


def _inside(pointer: Pointer, text: str) -> Iterator[Part]:
    """Open the documents in the data: URLs of a text. What cannot be read of them is still the text that rules see."""
    for number, (_, _, data) in enumerate(data_urls.urls(text), 1):
        if not is_quick(data):  # the letters of plain texts and pictures say no less themselves
            yield Part(pointer, f"{where(pointer)}, data: URL {number}", "", data, aside=True)


def _parts(media: Media, pointer: Pointer, value: object) -> Iterator[Part]:
    """Open one value that the dialect calls media. Where none of its fields holds data it is not scanned.

    Nor is what the dialect gives a reason for: sound looks like any data, a text among them.
    """
    empty = True
    for way in media.data:
        at, held = pointer, value
        for name in way:
            held = held.get(name) if isinstance(held, dict) else None
            at = (*at, name)
        if isinstance(held, str):
            empty = False
            part = _part(at, held)
            yield replace(part, why=media.because, data=None, head="") if media.because else part
    if empty:
        why = media.because or (ADDRESS if _names_address(value) else STORED)
        yield Part(pointer, where(pointer), why)


def _names_address(value: object) -> bool:
    if isinstance(value, dict):
        return any(_names_address(each) for each in value.values() if isinstance(each, str | dict))
    return isinstance(value, str) and "://" in value


def _part(pointer: Pointer, text: str) -> Part:
    place, head = where(pointer), text[:16].lstrip().lower()
    if head.startswith("data:"):
        opened = packed.url(text.lstrip())
        if opened is None:
            return Part(pointer, place, NOT_BASE64)
        coded = opened[0].rstrip().lower().endswith(";base64")
        return Part(pointer, place, "", opened[1], coded, opened[0] if coded else "", _wordy(text))
    if "://" in head:
        return Part(pointer, place, ADDRESS)
    data = packed.base64(text)
    return Part(pointer, place, NOT_BASE64) if data is None else Part(pointer, place, "", data, True, "", _wordy(text))


def _wordy(text: str) -> bool:
    return len(text) <= _SHORT or any(space in text for space in " \t\r\n")


def slow(found: Sequence[Part]) -> tuple[bytes, ...]:
    """Return the data that only a process which can be ended may read, in order."""
    return tuple(part.data for part in found if part.data is not None and not is_quick(part.data))


def opened(found: Sequence[Part], extracted: Sequence[Extraction], engine: Engine) -> Opened:
    """Put together what was read. ``extracted`` belongs to ``slow(found)``. Raises ``ValueError`` if it does not."""
    slowly = iter(extracted)
    texts: dict[str, str] = {}
    unread: list[tuple[str, str]] = []
    opaque: list[Pointer] = []
    for part in found:
        if part.head:
            texts[_free(f"{part.place} (data: label)", texts)] = part.head
        if part.data is None:
            unread.append((part.place, part.why))
            if part.opaque and not part.wordy:
                opaque.append(part.pointer)
            continue
        result = extract(part.data) if is_quick(part.data) else next(slowly, None)
        if result is None:
            raise ValueError("an attachment was not read")
        unread += [(part.place, why) for why in result.unread if not part.aside]
        for place, text in _placed(part.place, result, engine):
            texts[_free(place, texts)] = text
        if part.opaque and not (part.wordy and result.kind == Kind.UNKNOWN):
            opaque.append(part.pointer)
    return Opened(texts, tuple(opaque), tuple(unread))


def _placed(place: str, result: Extraction, engine: Engine) -> Iterator[tuple[str, str]]:
    """Give each text of an attachment its place, without a name that may be what is looked for."""
    hidden = engine.find_many([each.name for each in result.texts])
    for index, each in enumerate(result.texts):
        known = index in hidden or any(one.may_find(encode(each.name)) for one in engine.detectors)
        shown = f"entry {index + 1}" if known or not _is_plain(each.name) else each.name
        yield f"{place} ({result.kind}: {shown})" if shown else f"{place} ({result.kind})", each.text


def _free(place: str, taken: Collection[str]) -> str:
    """Return a place that no other text has: a second one gets a number, so that none is left out."""
    free, number = place, len(taken)  # not from 1 on: ten thousand entries may have one name
    while free in taken:
        number += 1
        free = f"{place} {number}"
    return free


def _is_plain(name: str) -> bool:
    """Say whether a name is of the kind that formats give: senders choose names, and a name may be the value."""
    pieces = name.replace("/", " ").replace(".", " ").split(" ")
    bare = [each.rstrip("0123456789") for each in pieces]
    few = all(len(each) - len(word) <= 4 for each, word in zip(pieces, bare, strict=True))
    return len(name) <= _NAME and few and all(map(_NAME_LETTERS.issuperset, bare))


def unmaskable(places: dict[str, str], findings: Sequence[Finding]) -> Denial | None:
    """Refuse a request in whose attachments something is found that the policy masks: a file cannot be rewritten."""
    first = next((each for each in findings if each.where in places and each.action in MASKING), None)
    if first is None:
        return None
    return Denial(
        Reason.FINDING,
        403,
        f"Blocked: {first.where} contains something of the class {first.cls} (rule {first.rule}), which the policy "
        "masks, and nothing can be masked inside a file. Nothing was sent to the model; take it out of the file, or "
        "send the file's text in its place.",
    )


def unscanned(found: Opened, rule: OnUnknown) -> Denial | None:
    """Refuse a request that holds what was not scanned, where the connection blocks that."""
    if not found.unread or rule is not OnUnknown.BLOCK:
        return None
    place, why = found.unread[0]
    if place == ANSWER:
        return Denial(
            Reason.BODY_OPAQUE,
            400,
            f"The answer could not be scanned: it would be {why}. Nothing was sent to the model.",
        )
    return Denial(
        Reason.BODY_OPAQUE,
        400,
        f"{place} was not scanned: it is or holds {why}. Nothing was sent to the model; send text, or a document that "
        "can be read.",
    )


def opaque(data: bytes) -> str | None:
    """Say what an answer is that is no text in any encoding, one of ``REASONS``; ``None`` for a text.

    So a text that the gate cannot inspect, in UTF-16 say, is malformed; ``on_unknown`` does not let it pass.
    """
    found = kinds(data)
    if not _TEXTS.isdisjoint(found):
        return None
    return UNKNOWN if found[0] is Kind.UNKNOWN else UNREADABLE.get(found[0], IN_ANSWER)


def withheld(unread: Sequence[tuple[str, str]], rule: OnUnknown) -> Denial | None:
    """Refuse an answer that holds what was not scanned, where the connection blocks that."""
    if not unread or rule is not OnUnknown.BLOCK:
        return None
    place, why = unread[0]
    whose = "The upstream's answer" if place == ANSWER else f"{place} of the answer"
    return Denial(Reason.ANSWER_OPAQUE, 502, f"{whose} was not scanned: it is or holds {why}, so it was withheld.")


def scanned(found: Opened) -> Scanned:
    """Say how much of a request rules have seen; its texts always."""
    return Scanned.PARTLY if found.unread else Scanned.WHOLE


def told(unread: Sequence[tuple[str, str]]) -> str:
    """Sum up the media of a body for its record: reasons of a closed list, nothing of the body."""
    why = dict.fromkeys(reason for _, reason in unread)
    return f"not scanned: {'; '.join(why)}" if why else ""
