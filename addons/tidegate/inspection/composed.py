"""Inspect whole answers that are not one JSON value of one endpoint: lines of JSON, texts, and answers inside answers.

How to use it. In the dialect, say of the endpoint what its answers may be and where the answers of others stand::

    file_content:
      methods: [GET]
      paths: [/v1/files/*/content]
      body: false
      answers: [json, lines, text]
      answered:                             # paths begin at the line, or at the one JSON value
        - path: $.response.body
          told_by: object                   # this field of the value says whose answer it is
          endpoints: {chat.completion: chat, response: responses, list: embeddings}
        - {path: $.result.message, endpoint: messages}

and nothing in code: ``crossing`` gives every whole answer to ``inspect_whole``. What an answer is, its bytes tell. A
line is inspected as an answer of its own: what stands at a path of ``answered`` by the fields of that endpoint, the
rest by those of the outer one. Findings are at ``line 3: $.response.body.choices[0].message.content``. Lines in which
nothing was masked leave with the bytes they came in; a value that ``told_by`` does not name is part of the rest.

For requests the same is ``bodies``, ``form.lines`` and ``inner`` (``tidegate.composing``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Pointer, where
from tidegate.dialects.kinds import BodyKind
from tidegate.dialects.spec import Endpoint
from tidegate.inspection.bodies import MALFORMED, Inspected, inspect_answer, inspect_text, put
from tidegate.inspection.engine import Engine
from tidegate.inspection.rules import Rule
from tidegate.model import Action, Denial, Finding, Reason


@dataclass(frozen=True, slots=True)
class Judge:
    """By what answers are inspected: the endpoints of the dialect, the rules, and what the policy does with each."""

    endpoints: Mapping[str, Endpoint]
    engine: Engine
    decide: Callable[[Rule], Action]


def inspect_whole(endpoint: Endpoint, judge: Judge, body: bytes, *, status: int) -> Inspected | Denial:
    """Inspect a whole answer, decoded but not parsed, whatever its endpoint says it may be.

    Denials are those of ``inspect_answer``.
    """
    made_of = endpoint.made_of
    if made_of.answers_plainly or not body.strip():
        return inspect_answer(endpoint, judge.engine, judge.decide, body, status=status)
    lines = BodyKind.LINES in made_of.answers and _are_lines(body)
    if lines:
        return _by_line(endpoint, judge, body, status)
    value = strict_json(body)
    if not isinstance(value, Denial):
        return _value(endpoint, judge, value, body, status)
    if BodyKind.TEXT in made_of.answers and status < 400:
        return inspect_text(judge.engine, judge.decide, body)
    return inspect_answer(endpoint, judge.engine, judge.decide, body, status=status)


def _are_lines(body: bytes) -> bool:
    """Say whether a body is lines of JSON objects, at least two: one line is one JSON value."""
    first, end, rest = body.strip().partition(b"\n")
    return bool(end) and rest.lstrip()[:1] == b"{" and isinstance(strict_json(first.strip()), dict)


def _by_line(endpoint: Endpoint, judge: Judge, body: bytes, status: int) -> Inspected | Denial:
    """Inspect each line; one that cannot be read makes the whole answer malformed."""
    written: list[bytes] = []
    findings: list[Finding] = []
    unread: list[tuple[str, str]] = []
    for number, line in enumerate(body.split(b"\n"), 1):
        plain = line.strip()
        if not plain:
            written.append(line)
            continue
        value = strict_json(plain)
        if not isinstance(value, dict):
            return MALFORMED
        found = _value(endpoint, judge, value, plain, status)
        if isinstance(found, Denial):
            return found
        written.append(line if found.body is plain else found.body)
        findings += [replace(each, where=f"line {number}: {each.where}") for each in found.findings]
        unread += [(f"line {number}: {place}", why) for place, why in found.unread]
    return Inspected(b"\n".join(written), tuple(findings), tuple(unread))


def _value(endpoint: Endpoint, judge: Judge, value: object, body: bytes, status: int) -> Inspected | Denial:
    """Inspect one JSON value with the answers in it. ``body`` is returned as it is where nothing was masked."""
    findings: list[Finding] = []
    unread: list[tuple[str, str]] = []
    inner: list[tuple[Pointer, object]] = []
    changed = False
    for found in list(endpoint.made_of.answered.select(value)):
        name = next((one for each in found.payloads if (one := each.told(found.value)) is not None), None)
        if name is None or not isinstance(found.value, dict) or not found.pointer:
            continue
        plain = dump(found.value)
        seen = inspect_answer(judge.endpoints[name], judge.engine, judge.decide, plain, status=status)
        if isinstance(seen, Denial):
            return seen
        changed |= seen.body is not plain
        inner.append((found.pointer, found.value if seen.body is plain else strict_json(seen.body)))
        findings += [replace(each, where=where(found.pointer) + each.where[1:]) for each in seen.findings]
        unread += [(where(found.pointer) + place[1:], why) for place, why in seen.unread]
    for pointer, _ in inner:
        put(value, pointer, None)
    plain = dump(value) if inner else body
    seen = inspect_answer(endpoint, judge.engine, judge.decide, plain, status=status)
    if isinstance(seen, Denial):
        return seen
    if seen.body is plain and not changed:
        return Inspected(body, (*seen.findings, *findings), (*seen.unread, *unread))
    written = strict_json(seen.body)
    if not all(put(written, *each) for each in inner):
        return _unmaskable()
    return Inspected(dump(written), (*seen.findings, *findings), (*seen.unread, *unread))


def _unmaskable() -> Denial:
    return Denial(Reason.ANSWER_MALFORMED, 502, "The upstream's answer cannot be masked without breaking it.")
