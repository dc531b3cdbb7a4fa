"""What a local model is asked about a request, and what becomes of it when the model does not answer. Pure.

Law: what the model found is masked, counted and blocked by inspection itself, which looks at the request once more with
the model's findings among its detectors; and a request that was not read is judged by ``late``, never taken for clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tidegate import calls, composing
from tidegate.dialects import body as bodies
from tidegate.dialects.spec import Endpoint
from tidegate.inspection.ner.spec import PACK, Late, Ner, NerSpan, Unread, rule_of
from tidegate.inspection.ner.told import Told, questions
from tidegate.model import Action, Denial, Direction, Finding, Grant, Mode, Reason
from tidegate.policy.policy import Policy

UNREAD = f"{PACK}.unread"
"""The rule that a request bears which the model did not read, with ``late: flag``."""

_LATE = Denial(
    Reason.NER_UNREAD,
    503,
    "The gateway's model for names did not read this request in its time, so nothing was sent. "
    "What it has read is remembered: sent again, the request goes on from there.",
)
_SOCKET = Denial(
    Reason.NER_UNREAD,
    403,
    "Blocked by policy: prompts must be read by the gateway's model for names, which reads no WebSocket; "
    "use the HTTP API.",
)


def texts(ner: Ner, endpoint: Endpoint, data: bytes, encodings: Sequence[str], limit: int) -> tuple[str, ...]:
    """Return the texts of a judged request body, as it was on the wire, that the model is to read."""
    if not endpoint.body:
        return ()
    plain = bodies.decode(data, encodings, limit)
    value = plain if isinstance(plain, Denial) else bodies.strict_json(plain)
    assert not isinstance(value, Denial), "a body that was judged can be read"
    if endpoint.calls is None:
        return questions(ner, endpoint, value)
    every = calls.messages(endpoint, value)
    assert not isinstance(every, Denial), "a body that was judged can be read"
    asked = (questions(ner, each.endpoint, each.value) for each in every)
    return tuple(dict.fromkeys(text for each in asked for text in each))


def texts_within(
    ner: Ner,
    policy: Policy,
    endpoint: Endpoint,
    grant: Grant,
    data: bytes,
    encodings: Sequence[str],
    content_type: str,
) -> tuple[str, ...]:
    """Return the texts that the model is to read of a judged body that is no single JSON value."""
    plain = bodies.decode(data, encodings, grant.request_bytes)
    assert not isinstance(plain, Denial), "a body that was judged can be read"
    parts = composing.values(policy, endpoint, grant, plain, content_type)
    return tuple(dict.fromkeys(text for each, value in parts for text in questions(ner, each, value)))


def with_told(policy: Policy, spans: Mapping[str, tuple[NerSpan, ...]]) -> tuple[Policy, tuple[Told, ...]]:
    """Return the policy with what the model found in one request among its detectors, and those detectors."""
    assert policy.ner is not None
    classes = sorted({cls for _, cls in policy.ner.classes})
    every = (Told(rule_of(cls, policy.file), spans) for cls in classes)
    told = tuple(each for each in every if policy.decisions[Direction.PROMPT][each.rule.id] is not Action.ALLOW)
    return replace(policy, engine=policy.engine.beside(told)), told


def own(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings that are the model's."""
    return tuple(each for each in findings if each.rule.startswith(f"{PACK}."))


def verdict(ner: Ner, mode: Mode, unread: Unread) -> tuple[str, tuple[Finding, ...], Denial | None]:
    """Say what becomes of a request that was not read: the decision's word, what is noted, and the refusal if any."""
    late = Late.FLAG if ner.late is Late.BLOCK and mode is Mode.OBSERVE else ner.late
    if late is Late.BLOCK:
        return "deny", (), _SOCKET if unread is Unread.SOCKET else _LATE
    noted = (Finding(UNREAD, PACK, "$", 0, 0, Action.FLAG),) if late is Late.FLAG else ()
    return str(late), noted, None
