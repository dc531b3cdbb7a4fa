"""Inspect a whole body: every text of it by field, then the JSON text as one, since a rule may span key and value.

Every string, every object key and every long number is looked at; only what a path exempts, with its reason, is not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Leaf, LeafKind, Pointer, replace, where
from tidegate.dialects.spec import AnswerField, Endpoint, RequestField, is_exempt, is_source, role_of
from tidegate.inspection import media, pieces
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.model import ACTING, Action, Denial, Finding, Reason, Role
from tidegate.streams.texts import Texts
from tidegate.streams.tokenising import Tokens

MALFORMED = Denial(
    Reason.ANSWER_MALFORMED, 502, "The upstream's answer is malformed, so the gateway cannot inspect it."
)

type Place = tuple[Pointer, object]
"""Where an exempt value stands, and the value."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """A body as it may travel, and what was found in it. What the policy blocks is masked in ``body`` too.

    ``unread`` are the places of an answer's media that were not scanned, and why.
    """

    body: bytes = field(repr=False)
    findings: tuple[Finding, ...]
    unread: tuple[tuple[str, str], ...] = ()


def inspect_request(
    endpoint: Endpoint,
    engine: Engine,
    decide: Callable[[Rule], Action],
    value: object,
    *,
    extra: Mapping[str, str] | None = None,
    opaque: Sequence[Pointer] = (),
    tokens: Tokens | None = None,
) -> Inspected | Denial:
    """Inspect a parsed request body, ``None`` for a request without one; ``value`` is changed in place.

    ``extra`` holds texts outside the body (path, header fields) by the place their findings are reported at: they are
    inspected but not rewritten. ``opaque`` points at texts that are nothing but data, which others have read
    (``inspection.media``): no rule looks at their letters. ``tokens`` stand for what the policy
    tokenises. The body returned is the value written anew, so what was inspected is what is sent.
    Denies ``BODY_MALFORMED`` where a body could not be masked without breaking it.
    """
    texts = Texts(engine, decide, tokens=tokens)
    exempt: list[Place] = [(pointer, at(value, pointer)) for pointer in opaque]
    for pointer, _ in exempt:
        put(value, pointer, "")
    if endpoint.pieces.paths:
        pieces.mask(texts, endpoint.pieces, value)
    body = dump(value) if value is not None else b""
    clean = texts.are_clean(body, (extra or {}).values())
    given = tokens is not None and tokens.session.has_given
    if clean and not texts.hinted and not given:
        for pointer, data in exempt:
            put(value, pointer, data)
        return Inspected(dump(value) if exempt else body, tuple(texts.findings))
    leaves: list[Leaf[RequestField]] = []
    for leaf in endpoint.request.walk(value):
        if _may_exempt(leaf) and is_exempt(leaf):
            exempt.append((leaf.pointer, at(value, leaf.pointer)))
        else:
            leaves.append(leaf)
    _weigh(texts, value, leaves, extra or {})
    given = given and bool(texts.recalled([*[leaf.text for leaf in leaves], *(extra or {}).values()]))
    if clean and not given:
        for pointer, data in exempt:
            put(value, pointer, data)
        body = dump(value) if exempt else body
        return Inspected(body, tuple(texts.findings))
    masked = _look(texts, value, leaves, exempt, extra or {}, given=given)
    if masked is None:
        return Denial(Reason.BODY_MALFORMED, 400, "The request body cannot be masked without breaking it.")
    return Inspected(b"" if value is None else masked, tuple(texts.findings))


def inspect_answer(
    endpoint: Endpoint, engine: Engine, decide: Callable[[Rule], Action], body: bytes, *, status: int
) -> Inspected | Denial:
    """Inspect a whole answer, decoded but not parsed. A body that holds nothing to mask is returned as it came.

    Denies ``ANSWER_FINDING`` (the policy blocks what was found) and ``ANSWER_MALFORMED`` (neither JSON nor, from a
    status of 400 on, a text). Second copies of the text are emptied where anything was masked.
    """
    if not body.strip():
        return Inspected(body, ())
    value = strict_json(body)
    if isinstance(value, Denial):
        return _plain_text(Texts(engine, decide), body) if status >= 400 else MALFORMED
    if isinstance(value, list) and (endpoint.calls or endpoint.called):
        return _each(endpoint, engine, decide, value, body)
    return inspect_message(endpoint, engine, decide, value, body)


def _each(
    endpoint: Endpoint, engine: Engine, decide: Callable[[Rule], Action], values: Sequence[object], body: bytes
) -> Inspected | Denial:
    """Inspect each of a list of messages by itself."""
    written: list[bytes] = []
    unread: list[tuple[str, str]] = []
    findings: list[Finding] = []
    for index, value in enumerate(values):
        as_is = dump(value)
        found = inspect_message(endpoint, engine, decide, value, as_is)
        if isinstance(found, Denial):
            return found
        written.append(found.body)
        unread += [(f"$[{index}]{place[1:]}", why) for place, why in found.unread]
        findings += [dataclasses.replace(each, where=f"$[{index}]{each.where[1:]}") for each in found.findings]
    if not any(each.action in ACTING for each in findings):
        return Inspected(body, tuple(findings), tuple(unread))
    return Inspected(b"[" + b",".join(written) + b"]", tuple(findings), tuple(unread))


def inspect_message(
    endpoint: Endpoint,
    engine: Engine,
    decide: Callable[[Rule], Action],
    value: object,
    body: bytes,
    beside: Collection[Pointer] = (),
) -> Inspected | Denial:
    """Inspect a parsed answer, or an event that is one, as ``inspect_answer`` does; ``value`` is changed in place.

    ``beside`` points at texts that are looked at elsewhere: pieces of a text in a stream.
    """
    if not endpoint.answer_media.paths:
        return _inspect_message(endpoint, Texts(engine, decide), value, body, beside)
    opened = media.in_answer(endpoint, value)
    found = _inspect_message(endpoint, Texts(engine, decide), value, body, {*beside, *opened.opaque})
    return found if isinstance(found, Denial) else dataclasses.replace(found, unread=opened.unread)


def _inspect_message(
    endpoint: Endpoint, texts: Texts, value: object, body: bytes, beside: Collection[Pointer]
) -> Inspected | Denial:
    if endpoint.pieces.paths and pieces.mask(texts, endpoint.pieces, value, beside):
        body = dump(value)
    clean = texts.are_clean(dump(value), ())
    if clean and not texts.hinted:
        return texts.denial or Inspected(body, tuple(texts.findings))
    bare = not isinstance(value, dict | list)
    root: object = [value] if bare else value
    leaves = [leaf for leaf in endpoint.answer.walk(root) if leaf.pointer not in beside or leaf.kind is LeafKind.KEY]
    texts.weigh(
        [leaf.text for leaf in leaves],
        lambda index: _speaker(leaves[index], root),
        lambda index: where(leaves[index].pointer),
    )
    if clean:
        return texts.denial or Inspected(body, tuple(texts.findings))
    exempt = [
        (one.pointer, one.value)
        for one in endpoint.answer.select(root)
        if one.pointer and any(payload.exempt for payload in one.payloads)
    ]
    exempt += [(pointer, at(root, pointer)) for pointer in beside]
    written = _look(texts, root, leaves, exempt, {})
    if written is None or texts.denial is not None:
        return texts.denial or MALFORMED
    if not any(finding.action in ACTING for finding in texts.findings):
        return Inspected(body, tuple(texts.findings))
    root = strict_json(written)
    _empty_copies(endpoint, root)
    return Inspected(dump(root[0] if bare and isinstance(root, list) else root), tuple(texts.findings))


def _speaker(leaf: Leaf[AnswerField], root: object) -> Role:
    """Tell who speaks in an answer. What the model says there is new, not one of its earlier words."""
    role = role_of(leaf, root)
    return Role.OTHER if role is Role.ASSISTANT else role


def inspect_text(engine: Engine, decide: Callable[[Rule], Action], body: bytes) -> Inspected | Denial:
    """Inspect a whole answer that is a plain text. Denies ``ANSWER_FINDING``, and ``ANSWER_MALFORMED`` for no text."""
    return _plain_text(Texts(engine, decide), body, quotes=True)


def _plain_text(texts: Texts, body: bytes, *, quotes: bool = False) -> Inspected | Denial:
    """Inspect what is no JSON as one text. What only looks like JSON could hide a value behind escapes.

    ``quotes``: it may begin like JSON where it has no escapes.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return MALFORMED
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", '"') and not (quotes and "\\" not in text):
        return MALFORMED  # a speaker's words may begin so too, but they have no escapes
    texts.weigh([text], lambda _: Role.OTHER, lambda _: "$")
    changed = texts.check([text], lambda _: "$")
    said = changed.get(0, text)
    said = texts.check_source(said, "$") if "\\" in said else said  # JSON may stand inside it
    return texts.denial or Inspected(said.encode(), tuple(texts.findings))


def _look[T: (RequestField, AnswerField)](
    texts: Texts,
    value: object,
    leaves: Sequence[Leaf[T]],
    exempt: Sequence[Place],
    extra: Mapping[str, str],
    *,
    given: bool = False,
) -> bytes | None:
    """Look at every leaf and then at the JSON text; return the body as it may travel, ``None`` if masking breaks it."""
    for pointer, _ in exempt:
        put(value, pointer, "")
    original = body = dump(value)
    source = {index for index, leaf in enumerate(leaves) if leaf.payloads and is_source(leaf)}
    hidden = any("\\" in leaves[index].text for index in source)
    edited: list[tuple[Leaf[T], str]] = []
    # Nothing was taken out and nothing is to be opened: the look at all of it has said already that something is there.
    told = not exempt and b"\\\\" not in original
    if hidden or told or given or not texts.may_be_skipped(original, extra.values()):
        seen: Counter[tuple[str, str]] = Counter()
        edited = _by_field(texts, leaves, source, extra, seen)
        body = texts.check_spanning(original, dump(value) if edited else original, seen)
    if not exempt:
        return body
    written = value if body is original else strict_json(body)
    masked = {leaf.pointer[:-1] for leaf, text in edited if not texts.stands_for(text, leaf.text)}
    for pointer, old in exempt:
        # a signature belongs to the text that was masked beside it; what was tokenised is again what was signed
        if not put(written, pointer, "" if pointer[-1] == "signature" and pointer[:-1] in masked else old):
            return None
    return dump(written)


def _weigh(texts: Texts, value: object, leaves: Sequence[Leaf[RequestField]], extra: Mapping[str, str]) -> None:
    """Score every text of a request by its role; what stands outside the body is metadata."""
    if not texts.hinted:
        return
    places = tuple(extra)
    count = len(leaves)

    def role(index: int) -> Role:
        return role_of(leaves[index], value) if index < count else Role.METADATA

    def place(index: int) -> str:
        return where(leaves[index].pointer) if index < count else places[index - count]

    texts.weigh([*[leaf.text for leaf in leaves], *extra.values()], role, place)


def _by_field[T: (RequestField, AnswerField)](
    texts: Texts,
    leaves: Sequence[Leaf[T]],
    source: Collection[int],
    extra: Mapping[str, str],
    seen: Counter[tuple[str, str]],
) -> list[tuple[Leaf[T], str]]:
    """Look at every leaf and put its new text in place; return the leaves that changed, with what they became."""
    places = tuple(extra)
    count = len(leaves)

    def place(index: int) -> str:
        return where(leaves[index].pointer) if index < count else places[index - count]

    changed = texts.check([*[leaf.text for leaf in leaves], *extra.values()], place, source, seen)
    edited = [(leaves[index], text) for index, text in sorted(changed.items(), reverse=True) if index < count]
    for leaf, text in edited:
        replace(None, leaf, text)  # type: ignore[arg-type]  # the payloads of a leaf are not looked at
    return edited


def _may_exempt(leaf: Leaf[RequestField]) -> bool:
    """Ask cheaply whether a path exempts the leaf or something around it; ``is_exempt`` then looks at the text."""
    if leaf.kind is LeafKind.KEY:
        return False
    for payload in leaf.payloads:
        if payload.exempt is not None:
            return True
    for payload in leaf.around:  # noqa: SIM110 - any() with a generator costs three times as much, for every leaf
        if payload.exempt is not None:
            return True
    return False


def _empty_copies(endpoint: Endpoint, value: object) -> None:
    """Empty the second copies of a text that was masked; a list stays a list, so that readers find what they expect."""
    for one in list(endpoint.answer.select(value)):
        if one.value and any(payload.drop for payload in one.payloads):
            put(value, one.pointer, [] if isinstance(one.value, list) else None)


def at(value: object, pointer: Pointer) -> object:
    """Follow a pointer; ``None`` where it leads nowhere, as in a body whose keys were masked."""
    for part in pointer:
        try:
            value = value[part]  # type: ignore[index]  # what cannot be indexed is caught
        except (KeyError, IndexError, TypeError):
            return None
    return value


def put(value: object, pointer: Pointer, new: object) -> bool:
    """Write to the place of a pointer; say whether there is such a place."""
    holder = at(value, pointer[:-1])
    if not isinstance(holder, dict | list):
        return False
    holder[pointer[-1]] = new  # type: ignore[index]  # the part came from a value of the same form
    return True
