"""A WebSocket on which both sides speak at any time, as a pure machine. No I/O, no clock.

Law: as in ``sockets``, only what was judged goes up, and the texts of events leave under the law of
``streams.channels``. Nobody waits for a turn: a client's message goes up at once, and several answers may be under
way, each of whose texts is its own channel. What earlier messages settled (the model, the limit of output tokens)
holds for those that say nothing of it, the limit once the upstream has confirmed it.
"""

from __future__ import annotations

from dataclasses import replace

from tidegate.dialects.asking import asked, names_output
from tidegate.dialects.spec import Dialect, Endpoint, JsonObject
from tidegate.model import Asked, Denial, Grant, OnUnknown, Outcome, Reason
from tidegate.policy.policy import Policy
from tidegate.sockets import FINDINGS, Socket, written
from tidegate.steps import ClientSaid, Form, Relay, UpstreamSaid
from tidegate.streams.tokenising import Tokens

MESSAGES = 1_000_000
"""Messages of a client: sound comes in fifty pieces a second, which is 180,000 in an hour."""
OPEN = 100
"""Answers that are counted as under way at the same time; more only make the count stop."""


class Duplex(Socket):
    """One open WebSocket without turns. ``busy``: an answer was asked for or is under way."""

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
        super().__init__(policy, dialect, endpoint, grant, exchange, tokens)
        self._due = 0
        self._open: set[str] = set()
        self._model = grant.route.model
        self._output: int | None = None
        self._pending: int | None = None
        self._runs: dict[tuple[str, str, Reason | None, str], tuple[int, int, int]] = {}

    def upstream(self, said: UpstreamSaid) -> Relay:
        """Take what an upstream did."""
        if said.form is Form.END:
            return self._upstream_left()
        event = self._event(said)
        if isinstance(event, Denial):
            return self.stop(event)
        out = self._events.event(event, None, said.data)
        denial = out if isinstance(out, Denial) else self._opaque()
        if denial is not None or isinstance(out, Denial):
            return self.stop(denial)  # type: ignore[arg-type]  # one of the two is a denial
        self._follow(event)
        self._found.extend(self._events.taken()[: max(0, FINDINGS - len(self._found))])
        return Relay(tuple(written(out)), binary=said.form is Form.BINARY)

    # clients ─────────────────────────────────────────────────────────────────

    def _next(self, item: bytes | Denial, value: JsonObject, said: ClientSaid) -> Relay:
        """Send a message that was judged, or say why not."""
        if isinstance(item, Denial):
            return Relay(self._errors(item))
        kinds = self._kinds(value)
        if kinds[0] in self._socket.settings:
            assert self.asked is not None
            self._model = self.asked.model
            self._pending = self.asked.max_output if names_output(self._endpoint, value) else self._pending
        if self._marked(self._socket.asks, value):
            self.turns += not self.busy
            self._due += 1
            self.busy = True
        return Relay((), (item,), binary=said.form is Form.BINARY)

    def _settled(self, value: JsonObject) -> Asked:
        """Return what holds for a message; one that settles things begins no answer, so it needs no limit itself."""
        settings = not self._socket.settings.isdisjoint(self._kinds(value))
        return Asked(self._model, False, (), 0 if settings else self._output)

    def _decide(self, stage: str, result: str, reason: Reason | None = None, detail: str = "") -> None:
        """Note what was decided on the client's message; the same of many in a row is one decision."""
        run = (stage, result, reason, detail)
        first, last, at = self._runs.get(run, (0, 0, 0))
        if last and last == self._heard - 1:
            self._runs[run] = first, self._heard, at
            self.decisions[at] = replace(self.decisions[at], detail=f"messages {first}-{self._heard}{detail}")
            return
        self._runs[run] = self._heard, self._heard, len(self.decisions)
        super()._decide(stage, result, reason, detail)

    # upstreams ───────────────────────────────────────────────────────────────

    def _opaque(self) -> Denial | None:
        """Decide on what came that no rule can read."""
        for why in self._events.unread:
            if self._on_unknown is OnUnknown.BLOCK:
                return Denial(
                    Reason.ANSWER_OPAQUE, 502, f"The answer holds {why}, which was not scanned; ask for text alone."
                )
            self._unread(f"answers: not scanned: {why}")
        return None

    def _follow(self, event: JsonObject) -> None:
        """Keep account of what is settled, and of the answers under way."""
        if not self._socket.settles.isdisjoint(self._kinds(event)):
            self._confirm(event)
        told = self._named(event)
        name = told if isinstance(told, str) else ""
        if self._marked(self._socket.begins, event) and name not in self._open and len(self._open) < OPEN:
            self.turns += bool(self._open) or not self._due
            self._due = max(0, self._due - 1)
            self._open.add(name)
        if self._marked(self._socket.ends, event):
            if name or not self._socket.names:
                self._open.discard(name)
            if not name:  # it names no answer, so it may be the end of any question
                self._due = 0
        self.busy = bool(self._due or self._open)

    def _confirm(self, event: JsonObject) -> None:
        """Take the limit of output tokens that holds from now on."""
        if names_output(self._endpoint, event):
            told = asked(self._endpoint, event)
            self._output = None if isinstance(told, Denial) else told.max_output
        elif self._pending is not None:
            self._output = self._pending
        self._pending = None

    def stop(self, denial: Denial, outcome: Outcome = Outcome.DENIED) -> Relay:
        """End the socket with the dialect's own error. What was held stays here."""
        self._open.clear()
        return super().stop(denial, outcome)
