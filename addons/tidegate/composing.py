"""Judge request bodies that are no single JSON value of one endpoint: forms, texts, data, and bodies inside of bodies.

How to use it. In the dialect, say of the endpoint what its requests may be and where the bodies of others stand::

    message_batches:
      methods: [POST]
      paths: [/v1/messages/batches]
      inner:
        - {path: "$.requests[*].params", endpoint: messages}

    file_upload:
      methods: [POST]
      paths: [/v1/files]
      bodies: [form]
      form:
        lines: [{part: file, when: {purpose: [batch]}}]      # lines of JSON: $.file.lines[*]
      inner:
        - {path: "$.file.lines[*].body", method: method, url: url}   # fields beside it name the endpoint

and nothing in code. Each inner body is judged as a request of its own endpoint by the same caller: whether he may use
it, its model and tools, what it refuses, its media, its texts. The first refusal refuses all, and its sentence names
the line. Files of a form are read as media are. What is sent on is written anew from what was judged.

For answers the same is ``answers`` and ``answered`` (``tidegate.inspection.composed``). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from tidegate.dialects import reading
from tidegate.dialects.addresses import match, model_named, stored_in
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.fields import Pointer, where
from tidegate.dialects.kinds import Inner
from tidegate.dialects.spec import Endpoint, JsonObject
from tidegate.dialects.wanted import sum_up
from tidegate.identity import permission
from tidegate.inspection import media
from tidegate.inspection.attachments import Extraction
from tidegate.inspection.bodies import at, put
from tidegate.inspection.media import Opened
from tidegate.judging import Judged, Unopened, Unowned, judge
from tidegate.model import Asked, Denial, Finding, Grant, Owners, Reason, Stored
from tidegate.policy.policy import Policy
from tidegate.policy.role_actions import seen_by
from tidegate.streams.tokenising import Tokens


@dataclass(frozen=True, slots=True)
class Unit:
    """One inner body: where it stands, the request of which endpoint it is, and the model that its address names."""

    pointer: Pointer
    endpoint: Endpoint
    value: JsonObject = field(repr=False)
    model: str | None = None

    @property
    def place(self) -> str:
        """Say where it is, for records."""
        return where(self.pointer)

    @property
    def said(self) -> str:
        """Say where it is, for people."""
        for before, part in pairwise(self.pointer):
            if before == "lines" and isinstance(part, int):
                return f"line {part + 1} of the file"
        return self.place


@dataclass(slots=True)
class _Sum:
    """What the judgements of all parts come to."""

    denial: Denial | None = None
    stage: str = "inspect"
    asked: list[Asked] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    opened: bool = False
    attachments: list[bytes] = field(default_factory=list, repr=False)
    unowned: list[Stored] = field(default_factory=list)
    approve: list[str] = field(default_factory=list)

    def take(self, judged: Judged, place: str = "", said: str = "") -> bool:
        """Add the judgement of a part; say whether it ends the whole. A finding does not: others are found too."""
        self.asked += [judged.asked] if judged.asked is not None else []
        self.approve += judged.approve
        self.findings += [replace(each, where=_under(place, each.where)) for each in judged.findings]
        if judged.media is not None:
            self.opened = True
            self.unread += [(_under(place, at_), why) for at_, why in judged.media.unread]
        if judged.denial is None:
            return False
        if self.denial is None:
            told = f"In {said}: {judged.denial.message}" if said else judged.denial.message
            self.denial, self.stage = replace(judged.denial, message=told), judged.stage
        return judged.denial.reason is not Reason.FINDING


@dataclass(frozen=True, slots=True)
class _About:
    """What is the same for all parts: whose the stored things are that they name, and the caller's tokens."""

    owners: Owners | None
    tokens: Tokens | None


def judge_body(  # noqa: PLR0913 - each is another part of what is judged
    policy: Policy,
    endpoint: Endpoint,
    grant: Grant,
    plain: bytes,
    content_type: str,
    *,
    extra: Mapping[str, str] | None = None,
    extracted: tuple[Extraction, ...] | None = None,
    owners: Owners | None = None,
    tokens: Tokens | None = None,
) -> Judged | Unopened | Unowned:
    """Judge a decoded body of any kind, with all that is in it. Other arguments and results are those of ``judge``."""
    body = reading.read(endpoint, plain, content_type)
    if isinstance(body, Denial):
        return Judged(grant, "body", body)
    inner = units(policy, endpoint, grant, body.value)
    if isinstance(inner, Denial):
        return Judged(grant, "body", inner)
    for unit in inner:
        put(body.value, unit.pointer, None)
    files = tuple(media.Part(pointer, where(pointer), "", data) for pointer, data in body.files)
    total, supply = _Sum(), None if extracted is None else list(extracted)
    about = _About(owners, tokens)
    outer = _one(policy, endpoint, grant, body.value, plain, supply, about, extra, files)
    ended = _took(total, outer)
    written: list[tuple[Unit, object]] = []
    for unit in inner if not ended else ():
        judged = _inner(policy, unit, grant, supply, about)
        if _took(total, judged, unit):
            break
        if isinstance(judged, Judged):
            written.append((unit, strict_json(judged.body)))
    if total.unowned and not (total.denial is not None and total.denial.reason is not Reason.FINDING):
        return Unowned(tuple(dict.fromkeys(total.unowned)))
    if total.attachments and not (total.denial is not None and total.denial.reason is not Reason.FINDING):
        return Unopened(tuple(total.attachments))
    left = outer if isinstance(outer, Judged) else Judged(grant)  # what ended it came before the attachments were read
    return _summed(body, left, total, written)


def values(
    policy: Policy, endpoint: Endpoint, grant: Grant, plain: bytes, content_type: str
) -> list[tuple[Endpoint, object]]:
    """Return the values of a body that was judged, each with the endpoint whose fields it has."""
    body = reading.read(endpoint, plain, content_type)
    assert not isinstance(body, Denial), "a body that was judged can be read"
    inner = units(policy, endpoint, grant, body.value)
    assert not isinstance(inner, Denial), "and what is in it too"
    for unit in inner:
        put(body.value, unit.pointer, None)
    return [(endpoint, body.value), *((unit.endpoint, unit.value) for unit in inner)]


def units(policy: Policy, endpoint: Endpoint, grant: Grant, value: object) -> tuple[Unit, ...] | Denial:
    """Find the bodies inside of a body, in order. One that names no endpoint of the dialect is refused."""
    found: list[Unit] = []
    endpoints = policy.dialects[grant.route.connection.dialect].endpoints
    for selected in list(endpoint.made_of.inner.select(value)):
        beside = selected.parent if isinstance(selected.parent, dict) else {}
        for inner in selected.payloads:
            name, model = _named(policy, grant, inner, beside)
            unit = Unit(selected.pointer, endpoints.get(name, endpoint), {}, model)
            if name == "" or not _is_inner(unit.endpoint):
                return Denial(
                    Reason.NO_ENDPOINT,
                    404,
                    f"In {unit.said}: it names no endpoint of the connection that it could ask.",
                )
            if not isinstance(selected.value, dict):
                return Denial(Reason.BODY_MALFORMED, 400, f"In {unit.said}: the body is not a JSON object.")
            found.append(replace(unit, value=selected.value))
    if endpoint.made_of.form.lines and (missed := _line_without(value, found)) is not None:
        return missed
    return tuple(found)


def _named(policy: Policy, grant: Grant, inner: Inner, beside: Mapping[str, object]) -> tuple[str, str | None]:
    """Name the endpoint of an inner body, ``""`` where it names none, and the model in its address."""
    if inner.endpoint is not None:
        return inner.endpoint, None
    method, url = beside.get(inner.method or ""), beside.get(inner.url or "")
    if not isinstance(method, str) or not isinstance(url, str):
        return "", None
    found = match(policy.dialects[grant.route.connection.dialect], method, url)
    if found is None or stored_in(found, url):  # what an address names nobody looks up here
        return "", None
    if model_named(found, url) is not None:  # of a line the provider reads its body: two models, and one was asked for
        return "", None
    return found.name, None


def _is_inner(endpoint: Endpoint) -> bool:
    """Say whether a body of this endpoint may stand in another: one JSON value, judged by itself."""
    return endpoint.body and endpoint.socket is None and endpoint.made_of.asks_plainly


def _line_without(value: object, found: Sequence[Unit]) -> Denial | None:
    """Refuse a file of which a line holds no inner body: nobody could say what it asks."""
    known = {unit.pointer[:-1] for unit in found}
    for pointer, lines in _files(value):
        for index in range(len(lines)):
            if (*pointer, index) not in known:
                return Denial(
                    Reason.BODY_MALFORMED, 400, f"In line {index + 1} of the file: it holds no request with a body."
                )
    return None


def _files(value: object) -> Iterator[tuple[Pointer, list[object]]]:
    for name, item in value.items() if isinstance(value, dict) else ():
        for way, each in enumerate(item) if isinstance(item, list) else ((None, item),):
            if isinstance(each, dict) and isinstance(lines := each.get("lines"), list):
                yield ((name, "lines") if way is None else (name, way, "lines")), lines


def _inner(
    policy: Policy, unit: Unit, grant: Grant, supply: list[Extraction] | None, about: _About
) -> Judged | Unopened | Unowned:
    """Judge an inner body as a request of its own."""
    route = replace(grant.route, endpoint=unit.endpoint.name, model=unit.model, stored=())
    own = permission.admit(policy, route, grant.caller, replace(grant.situation, method=None, path=None))
    if isinstance(own, Denial):
        return Judged(grant, "grant", own)
    return _one(seen_by(policy, own), unit.endpoint, own, unit.value, dump(unit.value), supply, about)


def _one(  # noqa: PLR0913, PLR0917 - each is another part of what is judged
    policy: Policy,
    endpoint: Endpoint,
    grant: Grant,
    value: JsonObject,
    plain: bytes,
    supply: list[Extraction] | None,
    about: _About,
    extra: Mapping[str, str] | None = None,
    files: Sequence[media.Part] = (),
) -> Judged | Unopened | Unowned:
    """Judge one value; what was read of its attachments is taken off ``supply``."""
    asked = partial(judge, named=True, owners=about.owners, tokens=about.tokens)
    judged = asked(policy, endpoint, grant, value, plain, extra=extra, files=files)
    if supply is None or not isinstance(judged, Unopened):
        return judged
    count = len(judged.attachments)
    own, supply[:] = tuple(supply[:count]), supply[count:]
    return asked(policy, endpoint, grant, value, plain, extra=extra, files=files, extracted=own)


def _took(total: _Sum, judged: Judged | Unopened | Unowned, unit: Unit | None = None) -> bool:
    if isinstance(judged, Unowned):
        total.unowned += judged.stored
        return False
    if isinstance(judged, Unopened):
        total.attachments += judged.attachments
        return False
    return total.take(judged) if unit is None else total.take(judged, unit.place, unit.said)


def _summed(body: reading.Body, outer: Judged, total: _Sum, written: Sequence[tuple[Unit, object]]) -> Judged:
    opened = Opened(unread=tuple(total.unread)) if total.opened else None
    judged = Judged(outer.grant, total.stage, total.denial, _asked(total.asked), b"", tuple(total.findings), opened)
    judged = replace(judged, approve=tuple(total.approve))
    if total.denial is not None and total.denial.reason is not Reason.FINDING:
        return judged
    masked = strict_json(outer.body)
    placed = all(put(masked, unit.pointer, value) for unit, value in written if at(masked, unit.pointer[:-1]))
    result = reading.write(body, masked) if placed else _UNBROKEN
    if isinstance(result, Denial):
        return replace(judged, denial=judged.denial or result)
    return replace(judged, body=result[0], content_type=result[1])


def _asked(every: Sequence[Asked]) -> Asked | None:
    """Sum up what all parts ask for: the model if it is one, all tools, the largest answer."""
    if len(every) < 2:
        return every[0] if every else None
    models = {each.model for each in every if each.model is not None}
    return Asked(
        model=models.pop() if len(models) == 1 else None,
        stream=every[0].stream,
        tools=tuple(dict.fromkeys(tool for each in every for tool in each.tools)),
        max_output=max((each.max_output for each in every if each.max_output is not None), default=None),
        **sum_up(every),
    )


def _under(place: str, inner: str) -> str:
    return f"{place}{inner[1:]}" if place and inner.startswith("$") else inner


_UNBROKEN = Denial(Reason.BODY_MALFORMED, 400, "The request body cannot be masked without breaking it.")
