"""A WebSocket and its handshake, as a pure machine: what comes in, and which messages may go out. No I/O, no clock.

Law: a client's message is a request and is judged like one, and only what was judged goes up; an upstream's message is
an event of the answer in flight, and its texts leave under the law of ``streams.channels``. There is one answer at a
time: what a client asks before it is over waits its turn (``duplex`` is the other kind). What is no message of the
dialect ends the socket.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from tidegate.approving import unheld
from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.errors import render_close, render_message
from tidegate.dialects.spec import Dialect, Endpoint, JsonObject, Mark
from tidegate.endings import CLIENT_GONE, UPSTREAM_FAILED
from tidegate.inspection import media
from tidegate.judging import Judged, Unopened, judge, parse, too_large, worst
from tidegate.limits.usage import Meter
from tidegate.model import (
    Asked,
    Decision,
    Denial,
    Direction,
    Finding,
    Grant,
    Head,
    OnUnknown,
    Outcome,
    Reason,
    Scanned,
)
from tidegate.policy.policy import Policy
from tidegate.steps import ClientSaid, Extract, Form, Relay, UpstreamSaid
from tidegate.streams.channels import MALFORMED, EventRedactor, HeldCaps, Outgoing
from tidegate.streams.framing import MAX_FRAME
from tidegate.streams.restoring import EventRestorer
from tidegate.streams.tokenising import Tokens

MESSAGES = 10_000
"""Messages of a client on one socket: three a second for an hour. It bounds what is remembered of them."""
WAITING = 8
"""Messages that may wait for their turn. Agents ask one thing at a time; together they may be as large as one may."""

FINDINGS = 1000
"""Findings remembered of a socket, in each direction. A decision is kept of every message, whatever was found in it."""

NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008
"""Close codes (RFC 6455, 7.4.1)."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_HANDSHAKE = frozenset({"sec-websocket-key", "sec-websocket-version"})

NO_SWITCH = Denial(Reason.PROTOCOL, 400, "This gateway does not switch protocols on this address.")
"""The answer to any change of protocol that is no WebSocket of an endpoint."""
_HANDSHAKE_ODD = Denial(
    Reason.PROTOCOL, 400, "This gateway accepts WebSocket version 13 over HTTP/1.1, without a subprotocol."
)
_KEY_BESIDE = Denial(
    Reason.CALLER_MISSING, 401, "Give the access token in a header, never in a subprotocol of the WebSocket."
)
_CREDENTIAL = re.compile("key|token|auth|bearer|secret", re.IGNORECASE)
_NEEDED = Denial(Reason.PROTOCOL, 400, "This address is a WebSocket; ask for one with the header Upgrade: websocket.")
_NOT_TEXT = Denial(
    Reason.PROTOCOL, 400, "This WebSocket carries text messages of one JSON object each, so it ends here."
)
_NOT_ONE = Denial(Reason.PROTOCOL, 400, "A message on this WebSocket must be an object with one field, its type.")
_TOO_MANY = Denial(Reason.PROTOCOL, 400, "More messages than this WebSocket takes; open another one.")
_EXPIRED = Denial(Reason.TOKEN_EXPIRED, 401, "The access token has expired; open a WebSocket with a new one.")
_ODD = Denial(Reason.UPSTREAM_PROTOCOL, 502, "The upstream sent a message that the gateway cannot inspect.")
_TOO_LARGE = Denial(
    Reason.ANSWER_TOO_LARGE, 502, f"An event of the answer is larger than the {MAX_FRAME} bytes the gateway inspects."
)


# ── the handshake ────────────────────────────────────────────────────────────────────────────────────────────────────


def wanted(head: Head) -> bool | Denial:
    """Say whether a request asks for a WebSocket. Any other change of protocol is refused: it would pass unseen."""
    upgrades = [value.strip().lower() for name, value in head.headers if name == "upgrade"]
    if head.method.upper() == "CONNECT" or any(each not in ("h2c", "websocket") for each in upgrades):
        return NO_SWITCH
    if "websocket" not in upgrades:
        return False
    if len(upgrades) > 1 or head.method != "GET" or not head.http1:
        return NO_SWITCH
    fields = dict(head.headers)
    keys = [value for name, value in head.headers if name == "sec-websocket-key"]
    protocols = [value for name, value in head.headers if name == "sec-websocket-protocol"]
    if any(map(_CREDENTIAL.search, protocols)):
        return _KEY_BESIDE
    plain = fields.get("sec-websocket-version") == "13" and len(keys) == 1 and _is_key(keys[0])
    return _HANDSHAKE_ODD if not plain or "sec-websocket-protocol" in fields else True


def fits(endpoint: Endpoint, *, asked: bool) -> Denial | None:
    """Refuse a WebSocket where the endpoint is none, and anything else where it is one."""
    if asked == (endpoint.socket is not None):
        return None
    return NO_SWITCH if asked else _NEEDED


def opening(fields: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the fields of a cleared handshake. No extension is offered: a compressed message cannot be inspected."""
    kept = ((name, value) for name, value in fields if not name.startswith("sec-websocket-") or name in _HANDSHAKE)
    return (*kept, ("connection", "Upgrade"), ("upgrade", "websocket"))


def accepted(head: Head, fields: Iterable[tuple[str, str]]) -> bool:
    """Say whether the head of a ``101`` opens the WebSocket that was asked for: no other protocol, no extension."""
    own = [(name, value) for name, value in fields if name == "upgrade" or name.startswith("sec-websocket-")]
    key = next(value for name, value in head.headers if name == "sec-websocket-key")
    proof = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    said = sorted((name, value.lower() if name == "upgrade" else value) for name, value in own)
    return said == [("sec-websocket-accept", proof), ("upgrade", "websocket")]


def _is_key(text: str) -> bool:
    try:
        return len(text) == 24 and len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


# ── the socket ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Socket:
    """One open WebSocket. After each event the attributes hold what is known so far.

    ``busy``: an answer is in flight, the ``turns``-th. ``denial`` is the first refusal, of a message or of the whole
    socket; ``outcome`` is set when it is over. ``asked`` is what the last permitted message asked for.
    """

    most = MESSAGES

    def __init__(
        self,
        policy: Policy,
        dialect: Dialect,
        endpoint: Endpoint,
        grant: Grant,
        exchange: str,
        tokens: Tokens | None = None,
    ) -> None:
        assert endpoint.socket is not None
        assert endpoint.stream is not None
        self.busy = False
        self.turns = 0
        self.scanned = Scanned.WHOLE
        self.asked: Asked | None = None
        self.denial: Denial | None = None
        self.outcome: Outcome | None = None
        self.decisions: list[Decision] = []
        self.prompt_findings: list[Finding] = []
        self.meter: Meter | None = None
        self._policy = policy
        self._endpoint = endpoint
        self._socket = endpoint.socket
        self._stream = endpoint.stream
        self._forms = (Form.TEXT, Form.BINARY) if endpoint.socket.binary else (Form.TEXT,)
        self._on_unknown = grant.route.connection.on_unknown
        self._shape = dialect.error
        self._grant = grant
        self._tokens = tokens
        self._exchange = exchange
        self._heard = 0
        self._waiting: deque[bytes | Denial] = deque()
        self._own: set[str] = set()
        self._found: list[Finding] = []
        self._told: set[str] = set()
        self._events = self._fresh()
        self._restorer = None if tokens is None else EventRestorer(self._stream, tokens)

    @property
    def answer_findings(self) -> tuple[Finding, ...]:
        """What was found so far in the answers; ``where`` begins with ``stream:``."""
        return (*self._found, *self._events.findings)

    @property
    def held(self) -> int:
        """Characters held back now, in all channels."""
        return self._events.held

    def restored(self, data: bytes) -> tuple[bytes, ...]:
        """Return what the client gets for a message that goes down: values in place of its tokens, for it alone."""
        event = None if self._restorer is None else strict_json(data)
        if self._tokens is None or self._restorer is None or not isinstance(event, dict):
            return (data,)
        ends = not self._socket.duplex and self._marked(self._socket.ends, event)
        events = self._restorer.event(event, None, data)
        late = self._restorer.end() if ends else []
        if ends:
            self._restorer = EventRestorer(self._stream, self._tokens)  # the next answer counts its events anew
        if isinstance(events, Denial) or isinstance(late, Denial):
            return (data,)
        return tuple(written([*events, *late]))

    def client(self, said: ClientSaid) -> Relay | Extract:
        """Take what a client did; ``Extract`` where its attachments must be read first, and nothing has changed."""
        if said.form is Form.END:
            return self._over(CLIENT_GONE if self.busy else None, Outcome.ABORTED)
        self._heard += 1
        value = self._read(said)
        if isinstance(value, Denial):
            return self.stop(value)
        item = self._judge(value, said)
        if isinstance(item, Extract):
            self._heard -= 1  # it comes again, with what was read
            return item
        if isinstance(item, Denial) and self._shape.message is None:
            return self.stop(item)
        return self._next(item, value, said)

    def _next(self, item: bytes | Denial, _value: JsonObject, _said: ClientSaid) -> Relay:
        """Let a message that was judged wait for its turn, or take it."""
        self._waiting.append(item)
        if not self.busy:
            return Relay(*self._turn([]))
        size = sum(len(each) for each in self._waiting if isinstance(each, bytes))
        return self.stop(_TOO_MANY) if len(self._waiting) > WAITING or size > self._grant.request_bytes else Relay()

    def upstream(self, said: UpstreamSaid) -> Relay:
        """Take what an upstream did."""
        if said.form is Form.END:
            return self._upstream_left()
        event = self._event(said)
        if isinstance(event, Denial):
            return self.stop(event)
        out = self._events.event(event, None, said.data)
        ends = self._marked(self._socket.ends, event)
        late = self._events.end() if ends and not isinstance(out, Denial) else []
        if isinstance(out, Denial) or isinstance(late, Denial):
            return self.stop(out if isinstance(out, Denial) else late)  # type: ignore[arg-type]  # one of them is
        down = written([*out, *late])
        if not ends:
            return Relay(tuple(down))
        self.busy = False
        self._renew()
        expires = self._grant.caller.expires
        if self._waiting and expires is not None and said.now >= expires:
            return self._over(_EXPIRED, Outcome.DENIED, (*down, *self._errors(_EXPIRED)), POLICY)
        if self._waiting and said.aged:
            return self.rest(tuple(down))
        return Relay(*self._turn(down))

    def rest(self, down: tuple[bytes, ...] = ()) -> Relay:
        """Close a socket that has been open, or silent, for as long as it may; what waits is not sent."""
        self.decisions.append(Decision("socket", "rest"))
        return self._over(None, Outcome.ANSWERED, down, GOING_AWAY)

    def stop(self, denial: Denial, outcome: Outcome = Outcome.DENIED) -> Relay:
        """End the socket with the dialect's own error. What was held stays here."""
        return self._over(denial, outcome, self._errors(denial), POLICY)

    # clients ─────────────────────────────────────────────────────────────────

    def _read(self, said: ClientSaid) -> JsonObject | Denial:
        """Read a message, or say why the socket ends with it."""
        expires = self._grant.caller.expires
        if self._heard > self.most or len(self.decisions) > MESSAGES:
            return _TOO_MANY
        if said.form not in self._forms:
            return _NOT_TEXT
        if expires is not None and said.now >= expires:
            return _EXPIRED
        if len(said.data) > self._grant.request_bytes:
            return too_large(self._grant.request_bytes)
        value = parse(said.data)
        if isinstance(value, Denial):
            return value
        kinds = self._kinds(value)
        if len(kinds) != 1:
            return _NOT_ONE if self._socket.fields else self._unknown()
        if kinds[0] not in self._socket.messages:
            if self._on_unknown is OnUnknown.BLOCK or not self._socket.duplex:  # it would wait for an answer
                return self._unknown()
            self._unread("messages: a type that is not known here")
        return value

    def _kinds(self, message: JsonObject) -> tuple[str, ...]:
        return self._socket.kinds(message, self._stream.event_type)

    def _marked(self, marks: tuple[Mark, ...], message: JsonObject) -> bool:
        """Say whether one of the marks fits a message."""
        return any(mark.fits(self._kinds(message), message) for mark in marks)

    def _unknown(self) -> Denial:
        known = ", ".join(sorted(self._socket.messages))
        return Denial(Reason.PROTOCOL, 400, f"A message on this WebSocket must be of the type {known}.")

    def _unread(self, detail: str) -> None:
        """Note what passes although rules cannot read it, or not all of it: once for each kind of it."""
        self.scanned = Scanned.PARTLY
        if detail not in self._told:
            self._told.add(detail)
            self.decisions.append(Decision("media", self._on_unknown, None, detail))

    def _judge(self, value: JsonObject, said: ClientSaid) -> bytes | Denial | Extract:
        earlier = self._socket.continues or ""
        named = value.get(earlier)
        own = isinstance(named, str) and named in self._own
        known = earlier if own else ""
        judged = judge(
            self._policy, self._endpoint, self._grant, value, said.data,
            known=known, extracted=said.extracted, settled=self._settled(value), tokens=self._tokens,
        )  # fmt: skip
        if isinstance(judged, Unopened):
            return Extract(judged.attachments)
        assert isinstance(judged, Judged)  # stored things may not be named here, so nobody is asked whose they are
        judged = unheld(self._policy, self._endpoint, judged, len(said.data), said.now)
        place = f"message {self._heard}"
        self._scan(judged)
        room = max(0, FINDINGS - len(self.prompt_findings))
        self.prompt_findings += [replace(each, where=f"{place}: {each.where}") for each in judged.findings[:room]]
        if judged.denial is not None:
            self.denial = self.denial or judged.denial
            self._decide(judged.stage, "deny", judged.denial.reason)
            return judged.denial
        self.asked = judged.asked
        self._decide(judged.stage, worst(judged.findings))
        return judged.body

    def _settled(self, _value: JsonObject) -> Asked | None:
        """Return what earlier messages settled for this one."""
        return None

    def _decide(self, stage: str, result: str, reason: Reason | None = None, detail: str = "") -> None:
        """Note what was decided on the client's message."""
        self.decisions.append(Decision(stage, result, reason, f"message {self._heard}{detail}"))

    def _scan(self, judged: Judged) -> None:
        """Note how much was scanned: of the whole socket, so the least of any message."""
        if judged.media is None or not judged.media.unread:
            return
        self.scanned = media.scanned(judged.media)
        if judged.denial is None:
            self._decide("media", self._on_unknown, None, f": {media.told(judged.media.unread)}")

    def _turn(self, down: list[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Answer the refused messages that are next, and let the next other one go up."""
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, bytes):
                self.busy = True
                self.turns += 1
                return (*down, *self._renew()), (item,)
            down.append(self._error(item))
        return tuple(down), ()

    def _error(self, denial: Denial) -> bytes:
        return render_message(self._shape, denial, self._exchange)

    def _errors(self, denial: Denial) -> tuple[bytes, ...]:
        """Write a refusal as a message, if the family has one."""
        return () if self._shape.message is None else (self._error(denial),)

    # upstreams ───────────────────────────────────────────────────────────────

    def _event(self, said: UpstreamSaid) -> JsonObject | Denial:
        """Read an event, or say why the socket ends with it."""
        if said.form not in self._forms:
            return _ODD
        if len(said.data) > MAX_FRAME:
            return _TOO_LARGE
        event = strict_json(said.data)
        if isinstance(event, Denial) or not isinstance(event, dict):
            return MALFORMED
        kinds = self._kinds(event)
        if not kinds and not self._socket.fields:
            return _ODD
        if not all(map(self._socket.knows, kinds)):
            if self._on_unknown is OnUnknown.BLOCK:
                return _ODD
            self._unread("events: a type that is not known here")
        if self.meter is not None:
            self.meter.event(event)
            if self._marked(self._socket.ends, event):
                self.meter.turn()
        if self.busy and self._socket.continues:
            told = self._named(event)
            if isinstance(told, str) and len(self._own) < MESSAGES:
                self._own.add(told)
        return event

    def _named(self, event: JsonObject) -> object:
        """Return what an answer calls itself in one of its events."""
        told: object = event
        for name in self._socket.names:
            told = told.get(name) if isinstance(told, dict) else None
        return told

    def _upstream_left(self) -> Relay:
        if self.busy:
            return self.stop(UPSTREAM_FAILED, Outcome.FAILED)
        late = self._events.end()
        if isinstance(late, Denial):
            return self.stop(late)
        return self._over(None, Outcome.ANSWERED, tuple(written(late)))

    def _renew(self) -> list[bytes]:
        """Forget the channels of an answer that is over; return what came unasked and was still held."""
        late = self._events.end()
        self._found.extend(self._events.findings[: max(0, FINDINGS - len(self._found))])
        self._events = self._fresh()
        return [] if isinstance(late, Denial) else written(late)

    def _fresh(self) -> EventRedactor:
        caps = HeldCaps(runs=self._grant.route.connection.encoded_runs)
        return EventRedactor(self._stream, self._policy.engine, self._policy.decide(Direction.RESPONSE), caps)

    def _over(
        self, denial: Denial | None, outcome: Outcome, down: tuple[bytes, ...] = (), close: int = NORMAL
    ) -> Relay:
        """End the socket. One that ends well but had a message refused has been denied something."""
        reason = ""
        if denial is not None:
            self.decisions.append(Decision("socket", "deny", denial.reason))
            self.denial = denial
            self.outcome = outcome
            reason = render_close(self._shape, denial, self._exchange) if close == POLICY else ""
        else:
            self.outcome = Outcome.DENIED if self.denial is not None else Outcome.ANSWERED
        self.busy = False
        self._waiting.clear()
        return Relay(down, (), close, reason)


def written(events: Iterable[Outgoing]) -> list[bytes]:
    """Write events; one that did not change keeps the bytes it came in."""
    return [each.like if not each.changed and isinstance(each.like, bytes) else dump(each.value) for each in events]
