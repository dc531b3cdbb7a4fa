"""A WebSocket and its handshake, as a pure machine: what comes in, and which messages may go out. No I/O, no clock.

Law: a client's message is a request and is judged like one, and only what was judged goes up; an upstream's message is
an event of the answer in flight, and its texts leave under the law of ``streams.channels``. There is one answer at a
time: what a client asks before it is over waits its turn. What is no message of the dialect ends the socket.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from tidegate.dialects.body import dump, strict_json
from tidegate.dialects.errors import render_message
from tidegate.dialects.spec import Dialect, Endpoint, JsonObject
from tidegate.endings import CLIENT_GONE, UPSTREAM_FAILED
from tidegate.inspection import media
from tidegate.judging import Judged, Unopened, judge, parse, too_large, worst
from tidegate.model import Asked, Decision, Denial, Direction, Finding, Grant, Head, Outcome, Reason, Scanned
from tidegate.policy.policy import Policy
from tidegate.steps import ClientSaid, Extract, Form, Relay, UpstreamSaid
from tidegate.streams.channels import MALFORMED, EventRedactor, Outgoing
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
_NEEDED = Denial(Reason.PROTOCOL, 400, "This address is a WebSocket; ask for one with the header Upgrade: websocket.")
_NOT_TEXT = Denial(
    Reason.PROTOCOL, 400, "This WebSocket carries text messages of one JSON object each, so it ends here."
)
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
        self._policy = policy
        self._endpoint = endpoint
        self._socket = endpoint.socket
        self._stream = endpoint.stream
        self._shape = dialect.error
        self._grant = grant
        self._tokens = tokens
        self._exchange = exchange
        self._heard = 0
        self._waiting: deque[bytes | Denial] = deque()
        self._own: set[str] = set()
        self._found: list[Finding] = []
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
        if self._restorer is None or not isinstance(event, dict):
            return (data,)
        events = self._restorer.event(event, None, data)
        if self._tokens is not None and event.get(self._stream.event_type or "") in self._socket.ends:
            self._restorer = EventRestorer(self._stream, self._tokens)  # the next answer counts its events anew
        return (data,) if isinstance(events, Denial) else tuple(_written(events))

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
        kind = event[self._stream.event_type or ""]
        ends = kind in self._socket.ends
        late = self._events.end() if ends and not isinstance(out, Denial) else []
        if isinstance(out, Denial) or isinstance(late, Denial):
            return self.stop(out if isinstance(out, Denial) else late)  # type: ignore[arg-type]  # one of them is
        down = _written([*out, *late])
        if not ends:
            return Relay(tuple(down))
        self.busy = False
        self._renew()
        expires = self._grant.caller.expires
        if self._waiting and expires is not None and said.now >= expires:
            return self._over(_EXPIRED, Outcome.DENIED, (*down, self._error(_EXPIRED)), POLICY)
        if self._waiting and said.aged:
            return self.rest(tuple(down))
        return Relay(*self._turn(down))

    def rest(self, down: tuple[bytes, ...] = ()) -> Relay:
        """Close a socket that has been open, or silent, for as long as it may; what waits is not sent."""
        self.decisions.append(Decision("socket", "rest"))
        return self._over(None, Outcome.ANSWERED, down, GOING_AWAY)

    def stop(self, denial: Denial, outcome: Outcome = Outcome.DENIED) -> Relay:
        """End the socket with the dialect's own error. What was held stays here."""
        return self._over(denial, outcome, (self._error(denial),), POLICY)

    # clients ─────────────────────────────────────────────────────────────────

    def _read(self, said: ClientSaid) -> JsonObject | Denial:
        """Read a message, or say why the socket ends with it."""
        expires = self._grant.caller.expires
        if self._heard > MESSAGES:
            return _TOO_MANY
        if said.form is not Form.TEXT:
            return _NOT_TEXT
        if expires is not None and said.now >= expires:
            return _EXPIRED
        if len(said.data) > self._grant.request_bytes:
            return too_large(self._grant.request_bytes)
        value = parse(said.data)
        if isinstance(value, Denial):
            return value
        kind = value.get(self._stream.event_type or "")
        if not isinstance(kind, str) or kind not in self._socket.messages:
            known = ", ".join(sorted(self._socket.messages))
            return Denial(Reason.PROTOCOL, 400, f"A message on this WebSocket must be of the type {known}.")
        return value

    def _judge(self, value: JsonObject, said: ClientSaid) -> bytes | Denial | Extract:
        earlier = self._socket.continues or ""
        named = value.get(earlier)
        own = isinstance(named, str) and named in self._own
        known = earlier if own else ""
        judged = judge(
            self._policy,
            self._endpoint,
            self._grant,
            value,
            said.data,
            known=known,
            extracted=said.extracted,
            tokens=self._tokens,
        )
        if isinstance(judged, Unopened):
            return Extract(judged.attachments)
        place = f"message {self._heard}"
        self._scan(judged, place)
        room = max(0, FINDINGS - len(self.prompt_findings))
        self.prompt_findings += [replace(each, where=f"{place}: {each.where}") for each in judged.findings[:room]]
        if judged.denial is not None:
            self.denial = self.denial or judged.denial
            self.decisions.append(Decision(judged.stage, "deny", judged.denial.reason, place))
            return judged.denial
        self.asked = judged.asked
        self.decisions.append(Decision(judged.stage, worst(judged.findings), None, place))
        return judged.body

    def _scan(self, judged: Judged, place: str) -> None:
        """Note how much was scanned: of the whole socket, so the least of any message."""
        if judged.media is None or not judged.media.unread:
            return
        self.scanned = media.scanned(judged.media)
        if judged.denial is None:
            rule = self._grant.route.connection.on_unknown
            self.decisions.append(Decision("media", rule, None, f"{place}: {media.told(judged.media)}"))

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

    # upstreams ───────────────────────────────────────────────────────────────

    def _event(self, said: UpstreamSaid) -> JsonObject | Denial:
        """Read an event, or say why the socket ends with it."""
        if said.form is not Form.TEXT:
            return _ODD
        if len(said.data) > MAX_FRAME:
            return _TOO_LARGE
        event = strict_json(said.data)
        if isinstance(event, Denial) or not isinstance(event, dict):
            return MALFORMED
        kind = event.get(self._stream.event_type or "")
        if not isinstance(kind, str) or not self._socket.knows(kind):
            return _ODD
        if self.busy and self._socket.names:
            told: object = event
            for name in self._socket.names:
                told = told.get(name) if isinstance(told, dict) else None
            if isinstance(told, str) and len(self._own) < MESSAGES:
                self._own.add(told)
        return event

    def _upstream_left(self) -> Relay:
        if self.busy:
            return self.stop(UPSTREAM_FAILED, Outcome.FAILED)
        late = self._events.end()
        if isinstance(late, Denial):
            return self.stop(late)
        return self._over(None, Outcome.ANSWERED, tuple(_written(late)))

    def _renew(self) -> list[bytes]:
        """Forget the channels of an answer that is over; return what came unasked and was still held."""
        late = self._events.end()
        self._found.extend(self._events.findings[: max(0, FINDINGS - len(self._found))])
        self._events = self._fresh()
        return [] if isinstance(late, Denial) else _written(late)

    def _fresh(self) -> EventRedactor:
        return EventRedactor(self._stream, self._policy.engine, self._policy.decide(Direction.RESPONSE))

    def _over(
        self, denial: Denial | None, outcome: Outcome, down: tuple[bytes, ...] = (), close: int = NORMAL
    ) -> Relay:
        """End the socket. One that ends well but had a message refused has been denied something."""
        if denial is not None:
            self.decisions.append(Decision("socket", "deny", denial.reason))
            self.denial = denial
            self.outcome = outcome
        else:
            self.outcome = Outcome.DENIED if self.denial is not None else Outcome.ANSWERED
        self.busy = False
        self._waiting.clear()
        return Relay(down, (), close)


def _written(events: Iterable[Outgoing]) -> list[bytes]:
    """Write events; one that did not change keeps the bytes it came in."""
    return [each.like if not each.changed and isinstance(each.like, bytes) else dump(each.value) for each in events]
