"""A body of JSON-RPC messages: which endpoint each of them calls, and the judgement of each by itself. Pure.

Law: the method of a message names its endpoint, and a method that no endpoint is called by is refused; a caller needs a
grant for every endpoint that a body calls, and what is sent on is what was judged, all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tidegate import headers, judging
from tidegate.dialects import body as bodies
from tidegate.dialects.errors import Calls
from tidegate.dialects.spec import CallSpec, Endpoint, JsonObject
from tidegate.identity import permission
from tidegate.inspection import media
from tidegate.inspection.attachments import Extraction
from tidegate.inspection.engine import Engine
from tidegate.inspection.media import Opened
from tidegate.judging import Judged, Unopened
from tidegate.model import ACTING, Asked, Denial, Grant, Head, Reason
from tidegate.policy.policy import Policy
from tidegate.policy.role_actions import seen_by
from tidegate.streams.tokenising import Tokens

MESSAGES = 64
"""Messages in one list. MCP had lists for three months, and no client is known to send more than a handful."""
ID_CHARACTERS = 128
"""The longest id that a refusal repeats. SDKs count, or send a UUID of 36 characters."""

_SAFE = 2**53
"""Numbers from here on are read differently by different parsers (RFC 8259, section 6)."""

_ID_FOUND = Denial(Reason.FINDING, 403, "Blocked by policy: the id of a message holds what may not be sent.")


@dataclass(frozen=True, slots=True)
class Message:
    """One message, and the endpoint it is judged by."""

    endpoint: Endpoint
    value: JsonObject = field(repr=False)


def ids(value: object) -> Calls:
    """Return the ids of the calls in a parsed body, readable or not: those that a refusal must answer."""
    batch = isinstance(value, list)
    every = value[:MESSAGES] if isinstance(value, list) else [value]
    found = [each.get("id") for each in every if isinstance(each, dict) and "method" in each]
    return Calls(tuple(each for each in found if _is_id(each)), batch)  # type: ignore[misc]  # _is_id told their types


def answerable(engine: Engine, calls: Calls) -> Calls:
    """Leave out the ids that a refusal must not repeat: what a rule finds does not travel, not even back."""
    texts = [each for each in calls.ids if isinstance(each, str)]
    if not texts:
        return calls
    hidden = {texts[index] for index in engine.find_many(texts)}
    return replace(calls, ids=tuple(each for each in calls.ids if each not in hidden))


def messages(door: Endpoint, value: object, connection: str = "") -> tuple[Message, ...] | Denial:
    """Read a parsed body: one message, or a list of them. ``connection`` names it where a method is unknown."""
    assert door.calls is not None
    every = value if isinstance(value, list) else [value]
    if not every or len(every) > MESSAGES:
        return _malformed(f"it is a list of no message, or of more than {MESSAGES}")
    found: list[Message] = []
    for each in every:
        message = _message(door.calls, each, connection)
        if isinstance(message, Denial):
            return message
        found.append(message)
    return tuple(found)


def judge(
    policy: Policy,
    door: Endpoint,
    grant: Grant,
    plain: bytes,
    head: Head,
    *,
    extracted: tuple[Extraction, ...] | None = None,
    tokens: Tokens | None = None,
) -> Judged | Unopened:
    """Judge a decoded body. Of one message the grant is that of its endpoint, of a list that of the address."""
    value = bodies.strict_json(plain)
    if isinstance(value, Denial):
        return Judged(grant, "body", value)
    known = ids(value)
    found = _unwanted(door, head, value) or messages(door, value, grant.route.connection.name)
    if isinstance(found, Denial):
        return Judged(grant, "body", found, calls=known)
    judged: list[Judged] = []
    waiting: list[bytes] = []
    left = list(extracted or ())
    for each in found:
        own = None
        if extracted is not None:
            count = len(_slow(each, plain))
            own, left = tuple(left[:count]), left[count:]
        extra = {} if judged or waiting else judging.beside(head, grant.route)
        one = _judge(policy, grant, each, plain, extra, own, tokens)
        if isinstance(one, Unopened):
            waiting += one.attachments
            continue
        judged.append(one)
        if one.denial is not None:
            return replace(one, calls=known)
    if waiting:
        return Unopened(tuple(waiting))
    return _joined(grant, judged, known) if known.batch else replace(judged[0], calls=known)


def _judge(
    policy: Policy,
    grant: Grant,
    message: Message,
    plain: bytes,
    extra: dict[str, str],
    extracted: tuple[Extraction, ...] | None,
    tokens: Tokens | None,
) -> Judged | Unopened:
    admitted = permission.admit(
        policy, replace(grant.route, endpoint=message.endpoint.name), grant.caller, grant.situation
    )
    if isinstance(admitted, Denial):
        return Judged(grant, "grant", admitted)
    policy = seen_by(policy, admitted)
    one = judging.judge(
        policy, message.endpoint, admitted, message.value, plain, extra=extra, extracted=extracted, tokens=tokens
    )
    assert not isinstance(one, judging.Unowned), "what names something stored is refused here"
    if isinstance(one, Judged) and any(each.where == "$.id" and each.action in ACTING for each in one.findings):
        return replace(one, denial=one.denial or _ID_FOUND)  # its answer would find nobody
    return one


def _unwanted(door: Endpoint, head: Head, value: object) -> Denial | None:
    """Refuse a list where the version of the protocol that the client speaks has none."""
    assert door.calls is not None
    if not isinstance(value, list):
        return None
    batch = door.calls.batch
    told = headers.values(head.headers, batch.header) if batch is not None else []
    if batch is not None and set(told) <= set(batch.values):
        return None
    return _malformed("it is a list of messages, which this version of the protocol does not have")


def _message(spec: CallSpec, value: object, connection: str) -> Message | Denial:
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        return _malformed("it is no JSON-RPC 2.0 message")
    answers = "result" in value or "error" in value
    if answers == ("method" in value):  # one reader would take it for a call, another for an answer
        return _malformed("a JSON-RPC message has either a method or a result or error")
    if "id" in value and not _is_id(value["id"]):
        return _malformed(
            f"the id of a message is neither a whole number nor a text of up to {ID_CHARACTERS} characters"
        )
    if not isinstance(value.get("params"), dict | None):  # the dialect says what its fields are by their names
        return _malformed("the params of a message are no object")
    if answers:
        return _malformed("nothing was asked that it could answer") if spec.results is None else _answer(spec, value)
    method = value["method"]
    endpoint = spec.methods.get(method) if isinstance(method, str) else None
    if endpoint is None:
        accepted = ", ".join(spec.methods)
        return Denial(
            Reason.NO_ENDPOINT,
            404,
            f"The connection {connection} has no endpoint for this JSON-RPC method; accepted: {accepted}.",
        )
    return Message(endpoint, value)


def _answer(spec: CallSpec, value: JsonObject) -> Message | Denial:
    assert spec.results is not None
    if "result" in value and "error" in value:
        return _malformed("a JSON-RPC answer has either a result or an error")
    return Message(spec.results, value)


def _is_id(value: object) -> bool:
    if type(value) is int:
        return abs(value) < _SAFE
    return isinstance(value, str) and len(value) <= ID_CHARACTERS


def _slow(message: Message, plain: bytes) -> tuple[bytes, ...]:
    parts = media.parts(message.endpoint, message.value)
    return media.slow((*parts, *media.beside(parts, message.value, plain)))


def _joined(grant: Grant, judged: Sequence[Judged], calls: Calls) -> Judged:
    """Put a list together again; a place in it begins with the number of its message."""
    findings = tuple(
        replace(each, where=f"$[{index}]{each.where[1:]}") if each.where.startswith("$") else each
        for index, one in enumerate(judged)
        for each in one.findings
    )
    asked = [one.asked for one in judged if one.asked is not None]
    tools = dict.fromkeys(tool for one in asked for tool in one.tools)
    return Judged(
        grant,
        asked=Asked(None, any(one.stream for one in asked), tuple(tools), None),
        body=b"[" + b",".join(one.body for one in judged) + b"]",
        findings=findings,
        media=_opened(one.media for one in judged),
        calls=calls,
        approve=tuple(name for one in judged for name in one.approve),
    )


def _opened(found: Iterable[Opened | None]) -> Opened | None:
    every = [each for each in found if each is not None]
    if not every:
        return None
    texts = {place: text for each in every for place, text in each.texts.items()}
    return Opened(texts, (), tuple(one for each in every for one in each.unread))


def _malformed(what: str) -> Denial:
    return Denial(Reason.BODY_MALFORMED, 400, f"The request body is malformed: {what}.")
