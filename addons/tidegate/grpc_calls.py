"""A gRPC call as it is judged: the messages of its request, each like a request of its own, and what its head says.

Law: a message goes up written anew from what was inspected, uncompressed; what the descriptors do not know, and what is
neither text nor a single number, is named, and the connection's ``on_unknown`` says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from tidegate import headers
from tidegate.dialects import protobuf
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.protobuf import Method, View
from tidegate.dialects.spec import Endpoint, GrpcSpec, JsonObject
from tidegate.inspection.attachments import Extraction
from tidegate.judging import Judged, Unopened, Unowned, blocked, judge, too_large
from tidegate.model import MASKING, Denial, Finding, Grant, Head, Reason, Route
from tidegate.policy.policy import Policy
from tidegate.streams.grpc import Deframer, GrpcFault, frame
from tidegate.streams.grpc_answers import DETAILS, MESSAGE, STATUS

STATUS_FIELDS = frozenset({STATUS, MESSAGE, DETAILS})
CONTENT_TYPES = ("application/grpc", "application/grpc+proto")
OWN = frozenset({"grpc-encoding", "grpc-accept-encoding"})
"""Fields of a call that the gate sets itself: what leaves is never compressed."""

MESSAGES = 10_000
"""Messages of a client in one call: three a second for an hour, as on a WebSocket."""
AHEAD = 4
"""How many times the bytes of one request may wait while the gate looks at a message of a call."""
FINDINGS = 1000
"""Findings remembered of what a client says in one call."""

EXPIRED = Denial(Reason.TOKEN_EXPIRED, 401, "The access token has expired; make another call with a new one.")
TOO_MANY = Denial(Reason.PROTOCOL, 400, "More messages than one call takes; make another one.")
_NOT_GRPC = Denial(
    Reason.PROTOCOL, 400, "This address is a gRPC method: call it over HTTP/2 with the content type application/grpc."
)
_CODING = Denial(Reason.BODY_ENCODING, 415, "The message is compressed; the gateway reads gzip and deflate alone.")
_BROKEN = Denial(Reason.BODY_ENCODING, 400, "A compressed message cannot be decompressed, or expands too much.")
_MALFORMED = Denial(Reason.BODY_MALFORMED, 400, "The request is not written as gRPC and the descriptors of it say.")
_UNWRITABLE = Denial(Reason.BODY_MALFORMED, 400, "The request message cannot be masked without breaking it.")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its method, how its messages are shown, and what the request's are compressed with."""

    method: Method
    endpoint: Endpoint
    encoding: str

    @property
    def spec(self) -> GrpcSpec:
        """How its messages are shown."""
        assert self.endpoint.grpc is not None
        return self.endpoint.grpc

    @property
    def live(self) -> bool:
        """Whether both sides may speak at any time, so that each message must be judged as it comes."""
        return self.method.client_streams and self.method.server_streams


def is_call(head: Head) -> bool:
    """Say whether a request is a gRPC call, wherever it leads: its refusal is then a gRPC status."""
    return _content_type(head) in CONTENT_TYPES


def _content_type(head: Head) -> str:
    found = headers.values(head.headers, "content-type")
    return found[0].partition(";")[0].strip().lower() if len(found) == 1 else ""


def called(policy: Policy, found: Route, endpoint: Endpoint, head: Head) -> Call | Denial:
    """Tell which method a request calls. Anything but gRPC over HTTP/2 is refused."""
    method = policy.descriptors[found.connection.name].method(endpoint.paths[0])
    assert method is not None  # ``policy.descriptor_files`` has compared the two
    odd = headers.values(head.headers, "content-encoding")
    if head.http1 or not is_call(head) or any(each != "identity" for each in odd):
        return _NOT_GRPC
    return Call(method, endpoint, ",".join(headers.values(head.headers, "grpc-encoding")))


def status_names(fields: tuple[tuple[str, str], ...]) -> frozenset[str]:
    """Name the fields of an answer's head that belong to its end: all of them where there is nothing else."""
    names = frozenset(name for name, _ in fields)
    return names - {"content-type"} if STATUS in names else STATUS_FIELDS


def opening(fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the fields of a cleared call."""
    kept = ((name, value) for name, value in fields if name not in OWN)
    return (*kept, ("te", "trailers"), ("grpc-accept-encoding", "identity"))


def views(call: Call, data: bytes, limit: int) -> list[tuple[Message, View]] | Denial:
    """Read the messages of a request; ``limit`` is for all of them together."""
    deframer = Deframer(call.encoding, limit)
    messages = deframer.feed(data)
    deframer.end()
    if deframer.fault is not None:
        return _faulty(deframer.fault, limit)
    if sum(map(len, messages)) > limit:
        return too_large(limit)
    if not call.method.client_streams and len(messages) != 1:
        return _MALFORMED
    found = []
    try:
        for each in messages:
            message = protobuf.parse(call.method.request, each)
            found.append((message, protobuf.show(message, call.spec)))
    except protobuf.Unreadable:
        return _MALFORMED
    fits = call.endpoint.body or not any(view.value for _, view in found)
    return found if fits else _MALFORMED


def judged(
    policy: Policy,
    call: Call,
    grant: Grant,
    data: bytes,
    *,
    extra: Mapping[str, str] | None = None,
    extracted: tuple[Extraction, ...] | None = None,
    before: int = 0,
) -> Judged | Unopened:
    """Judge the messages of a request, as they were on the wire; ``before``: how many were judged already.

    ``extra`` are texts beside them, judged with the first; ``extracted`` what was read of attachments.
    """
    found = views(call, data, grant.request_bytes)
    if isinstance(found, Denial):
        return Judged(grant, "body", found)
    judging = _Judging(policy, call, grant, list(extracted) if extracted is not None else None)
    total = Judged(grant, "body", _MALFORMED) if not found else None
    unopened: list[bytes] = []
    for number, (message, view) in enumerate(found, before + 1):
        place = f"message {number}: " if call.method.client_streams else ""
        one = judging.message(message, view, (extra or {}) if number == 1 else {})
        if isinstance(one, Unopened):
            unopened += one.attachments
            continue
        total = _joined(total, one, place)
        if total.denial is not None:
            return total
    if unopened or total is None:
        return Unopened(tuple(unopened))
    return total


def as_json(call: Call, data: bytes, limit: int) -> list[bytes]:
    """Return the views of a request that was judged, as JSON texts."""
    found = views(call, data, limit)
    return [] if isinstance(found, Denial) else [dump(view.value) for _, view in found]


class _Judging:
    """Judges message by message; ``extracted`` is used up as attachments come."""

    def __init__(self, policy: Policy, call: Call, grant: Grant, extracted: list[Extraction] | None) -> None:
        self._policy = policy
        self._call = call
        self._grant = grant
        self._extracted = extracted

    def message(self, message: Message, view: View, extra: Mapping[str, str]) -> Judged | Unopened:
        before = dump(view.value)
        texts = {**extra, **view.texts}
        one = self._judge(view, before, texts, None)
        if isinstance(one, Unopened) and self._extracted is not None:
            count = len(one.attachments)
            mine, self._extracted[:count] = tuple(self._extracted[:count]), ()
            one = self._judge(view, before, texts, mine)
        if isinstance(one, Unopened) or one.denial is not None:
            return one
        denial = _unmaskable(view, one.findings)
        if denial is not None:
            return replace(one, denial=denial)
        if one.body != before:
            after = strict_json(one.body)
            try:
                protobuf.write(message, self._call.spec, after)  # type: ignore[arg-type]  # what is no object does not fit
            except protobuf.Unwritable:
                return replace(one, denial=_UNWRITABLE)
        return replace(one, body=frame(protobuf.dump(message)))

    def _judge(
        self, view: View, plain: bytes, texts: Mapping[str, str], extracted: tuple[Extraction, ...] | None
    ) -> Judged | Unopened:
        value: JsonObject = view.value
        one = judge(
            self._policy,
            self._call.endpoint,
            self._grant,
            value,
            plain,
            extra=texts,
            extracted=extracted,
            hidden=view.unread,
        )
        assert not isinstance(one, Unowned), "what names something stored is refused here"
        return one


def _joined(total: Judged | None, one: Judged, place: str) -> Judged:
    """Put the judgement of one more message to those before it."""
    if place:
        inside = tuple(replace(each, where=f"{place}{each.where}") for each in one.findings)
        denial = one.denial
        if denial is not None and denial.reason is Reason.FINDING:
            denial = blocked(inside) or denial
        one = replace(one, findings=inside, denial=denial)
    if total is None:
        return one
    return replace(
        one,
        asked=total.asked,
        body=total.body + one.body,
        findings=total.findings + one.findings,
        media=one.media if one.media is not None and one.media.unread else total.media,
        approve=total.approve + one.approve,
    )


def _unmaskable(view: View, findings: tuple[Finding, ...]) -> Denial | None:
    """Refuse a message in whose unknown fields something is found that the policy masks."""
    first = next((each for each in findings if each.where in view.texts and each.action in MASKING), None)
    if first is None:
        return None
    return Denial(
        Reason.FINDING,
        403,
        f"Blocked: {first.where} contains something of the class {first.cls} (rule {first.rule}), which the policy "
        "masks, and nothing can be masked in a field that the descriptors do not know. Nothing was sent to the model.",
    )


def _faulty(fault: GrpcFault, limit: int) -> Denial:
    if fault is GrpcFault.TOO_LARGE:
        return too_large(limit)
    return {GrpcFault.CODING: _CODING, GrpcFault.BROKEN: _BROKEN}.get(fault, _MALFORMED)
