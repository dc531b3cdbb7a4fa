"""What is asked of every request before it may travel: permission for what it asks, and no text that must stay. Pure.

A body of a request and a client's message on a socket are judged alike; ``crossing`` and ``sockets`` say when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote_plus

from tidegate import headers
from tidegate.dialects import body as bodies
from tidegate.dialects import ownership
from tidegate.dialects.asking import asked, names_output
from tidegate.dialects.errors import NO_CALLS, Calls
from tidegate.dialects.spec import Endpoint, JsonObject, refused
from tidegate.dialects.wanted import complete
from tidegate.identity import permission
from tidegate.inspection import media
from tidegate.inspection.attachments import Extraction
from tidegate.inspection.bodies import inspect_request
from tidegate.inspection.media import Opened, Part
from tidegate.inspection.tokens import Who
from tidegate.model import (
    Action,
    Asked,
    Caller,
    Connection,
    Denial,
    Direction,
    Finding,
    Grant,
    Head,
    Modality,
    Owners,
    Reason,
    Route,
    Situation,
    Stored,
)
from tidegate.policy.policy import Policy
from tidegate.streams.tokenising import Tokens

NAMES = "header names"
"""Where a finding in the name of a header field is reported: the name itself would be the value."""


NOTHING = Asked(None, False, (), None, called=(), choices=1, modalities=frozenset({Modality.TEXT}))
"""What a request without a body asks for."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of it. ``denial`` was made by ``stage``; what was known by then is there all the same.

    ``calls`` are the JSON-RPC calls that the body holds.
    """

    grant: Grant
    stage: str = "inspect"
    denial: Denial | None = None
    asked: Asked | None = None
    body: bytes = field(default=b"", repr=False)
    findings: tuple[Finding, ...] = ()
    media: Opened | None = None
    content_type: str | None = None
    """That of ``body``, where it is another than the client's."""
    calls: Calls = NO_CALLS
    approve: tuple[str, ...] = ()
    """The approvals that the allow rules ask for which cover it."""


@dataclass(frozen=True, slots=True)
class Unopened:
    """A body cannot be judged before these attachments were read, which may take long."""

    attachments: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unowned:
    """A body cannot be judged before somebody knows which of these stored things are the caller's."""

    stored: tuple[Stored, ...]


def parse(plain: bytes) -> JsonObject | Denial:
    """Read a body that must be a JSON object."""
    value = bodies.strict_json(plain)
    if isinstance(value, Denial):
        return value
    if not isinstance(value, dict):
        return Denial(Reason.BODY_MALFORMED, 400, "The request body is not a JSON object.")
    return value


def barred(endpoint: Endpoint, head: Head) -> Denial | None:
    """Refuse a request with a header field that its endpoint does not take."""
    for name, _ in head.headers:
        if name in endpoint.deny_headers:
            return Denial(Reason.BODY_OPAQUE, 400, f"The request has a header {name}: {endpoint.deny_headers[name]}.")
    return None


def judge(  # noqa: PLR0913 - each is another part of what is judged
    policy: Policy,
    endpoint: Endpoint,
    grant: Grant,
    value: JsonObject,
    plain: bytes,
    *,
    extra: Mapping[str, str] | None = None,
    known: str = "",
    extracted: tuple[Extraction, ...] | None = None,
    files: Sequence[Part] = (),
    settled: Asked | None = None,
    hidden: Sequence[tuple[str, str]] = (),
    named: bool = False,
    owners: Owners | None = None,
    tokens: Tokens | None = None,
) -> Judged | Unopened | Unowned:
    """Judge a body, ``plain`` and as it was parsed. ``value`` is changed in place, if it is ``Judged``.

    ``extracted`` is what was read of the attachments that an earlier judgement of the same body asked for, ``owners``
    what is known of the stored things it asked about; without ``named`` a body that names any is refused. ``extra``
    holds texts outside the body by the place their findings are reported at. ``known`` names a field of the root that
    the dialect's conditions do not speak of this time, and that names nothing stored; it is inspected like any other.
    ``files`` stand beside the value. ``settled``: model and limit of output tokens that hold where the body says
    nothing of them. ``hidden`` are places of what is not in ``value`` and cannot be inspected, and why. ``tokens``
    stand for what the policy tokenises.
    """
    judged = value if not known else {name: each for name, each in value.items() if name != known}
    unread: list[tuple[str, str]] = [(media.ANSWER, endpoint.unread)] if endpoint.unread else []
    denial = refused(endpoint, judged, redacting=policy.redacts_answers, unread=unread, named=named)
    if denial is not None:
        return Judged(grant, "body", denial)
    what = asked(endpoint, value, grant.route.model)
    if isinstance(what, Denial):
        return Judged(grant, "body", what)
    if policy.permissions.reads:
        what = complete(what, endpoint, value, policy.permissions.reads, files=bool(files))
        if isinstance(what, Denial):
            return Judged(grant, "body", what)
    if settled is not None:
        most = what.max_output if names_output(endpoint, value) else settled.max_output
        what = replace(what, model=what.model or settled.model, max_output=most)
    admitted = permit(endpoint, grant, what, judged if named else None, owners)
    if not isinstance(admitted, tuple):
        return admitted
    permitted, what = admitted
    if len(plain) > permitted.request_bytes:
        return Judged(permitted, "body", too_large(permitted.request_bytes), what)
    parts = media.parts(endpoint, value)
    parts += media.beside(parts, value, plain)
    parts += tuple(files)
    if not parts and not unread and not hidden:
        return inspect(policy, endpoint, permitted, what, value, extra, tokens=tokens)
    slow = media.slow(parts)
    if slow and extracted is None:
        return Unopened(slow)
    opened = media.opened(parts, extracted or (), policy.engine)
    opened = replace(opened, unread=(*opened.unread, *hidden, *unread))
    found = inspect(policy, endpoint, permitted, what, value, extra, opened, tokens=tokens)
    seen = replace(found, media=opened)
    denial = seen.denial or media.unmaskable(opened.texts, seen.findings)
    if denial is not None:
        return replace(seen, denial=denial)
    denial = media.unscanned(opened, permitted.route.connection.on_unknown)
    return seen if denial is None else replace(seen, denial=denial, stage="media")


def permit(
    endpoint: Endpoint, grant: Grant, what: Asked, value: JsonObject | None, owners: Owners | None
) -> tuple[Grant, Asked] | Judged | Unowned:
    """Ask whether all that a request names is the caller's own, and whether it is permitted what it asks for.

    Where it names no model, those count with which the things it names were made.
    """
    models: tuple[str | None, ...] = ()
    if endpoint.owned.paths or grant.route.stored:
        stored = ownership.stored(endpoint, value, grant.route)
        if isinstance(stored, Denial):
            return Judged(grant, "body", stored, what)
        if stored and owners is None:
            return Unowned(stored)
        if owners is not None and not owners.own.keys() >= set(stored):
            return Judged(grant, "owner", ownership.NOT_OWNER, what)
        if owners is not None and what.model is None:
            models = tuple(sorted({name for each in stored if (name := owners.own[each]) is not None}))
    for each in models or (what.model,):
        what = replace(what, model=each) if models else what
        permitted = permission.permit(grant, what)
        if isinstance(permitted, Denial):
            return Judged(grant, "permission", permitted, what)
        grant = permitted
    return grant, what


def inspect(  # noqa: PLR0913 - each is another part of what is judged
    policy: Policy,
    endpoint: Endpoint,
    grant: Grant,
    what: Asked,
    value: JsonObject | None,
    extra: Mapping[str, str] | None,
    opened: Opened = Opened(),  # noqa: B008 - frozen, and empty
    *,
    tokens: Tokens | None = None,
) -> Judged:
    """Look at every text of a permitted request: all of its body, what stands beside it and in its attachments."""
    found = inspect_request(
        endpoint,
        policy.engine,
        policy.decide(Direction.PROMPT),
        value,
        extra={**(extra or {}), **opened.texts},
        opaque=opened.opaque,
        tokens=tokens,
    )
    if isinstance(found, Denial):
        return Judged(grant, "inspect", found, what)
    approve = tuple([rule.approve for rule in grant.allows if rule.approve is not None])
    return Judged(grant, "inspect", blocked(found.findings), what, found.body, found.findings, approve=approve)


def again(policy: Policy, judged: Judged, before: tuple[Finding, ...]) -> Judged:
    """Decide again on what a recorded request no longer holds, because it was masked before it was kept."""
    if not before or (judged.denial is not None and judged.denial.reason is not Reason.FINDING):
        return judged
    decisions, seen = policy.decisions[Direction.PROMPT], {(each.rule, each.where) for each in judged.findings}
    lost = tuple(  # a rule that is no longer in force finds nothing
        replace(each, action=decisions[each.rule])
        for each in before
        if each.rule in decisions and (each.rule, each.where) not in seen
    )
    findings = (*judged.findings, *lost)
    return replace(judged, findings=findings, denial=blocked(findings))


def too_large(limit: int) -> Denial:
    """Refuse a request body over ``limit`` bytes."""
    return Denial(
        Reason.BODY_TOO_LARGE, 413, f"The request body is larger than the {limit} bytes this connection accepts."
    )


def blocked(findings: tuple[Finding, ...]) -> Denial | None:
    """Refuse a request with a finding that the policy blocks; the sentence names rule and place, never the value."""
    first = next((f for f in findings if f.action is Action.BLOCK), None)
    if first is None:
        return None
    return Denial(
        Reason.FINDING,
        403,
        f"Blocked by policy: {first.where} contains something of the class {first.cls} (rule {first.rule}). "
        "Nothing was sent to the model; remove it and try again.",
    )


def worst(findings: tuple[Finding, ...]) -> str:
    """Name the strictest action among findings."""
    return max((f.action for f in findings), key=list(Action).index).value if findings else Action.ALLOW.value


def beside(head: Head, found: Route) -> dict[str, str]:
    """The texts of a request outside its body: query and header values, by the place a finding is reported at."""
    fields = headers.upstream(head.headers)
    texts = {"path": readings(found.path), NAMES: "\n".join([name for name, _ in fields])}
    for name, value in fields:
        place = f"header {name}"
        texts[place] = f"{texts[place]}\n{value}" if place in texts else value
    return texts


def whose(caller: Caller, connection: Connection, head: Head) -> Who:
    """Say whose tokens a request speaks of. The name that a client gives its conversation is kept as a digest."""
    named = "\0".join(value for name, value in head.headers if name == headers.SESSION)
    digest = hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest() if named else ""
    return Who(caller.identity, caller.subject, connection.name, digest)


def situation_of(head: Head | None, route: Route, now: float | None) -> Situation:
    """Say how a request came. Its path is that of its dialect: below the connection's own, without the query."""
    if head is None:
        return Situation(now)
    path = route.path.partition("?")[0].removeprefix(route.connection.upstream_path)
    return Situation(now, head.peer.address, head.method, path or "/")


def readings(path: str) -> str:
    """Return a path as it is written and, where that differs, with its percent escapes undone."""
    return f"{path}\n{unquote_plus(path)}" if "%" in path or "+" in path else path
