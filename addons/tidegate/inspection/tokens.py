"""Tokens that stand for found values on their way to a model, and the memory that gives the values back.

A token is ``XQ``, the kind of value in capitals, and ten small consonants: ``XQEMAILkdmwrtbhzp``. The kind never holds
a Q, so no token begins inside another, and its length ends it, so none is the beginning of another. Plain letters
survive JSON, Markdown and most models; ``XQ`` begins no word, so almost no text has to wait for what follows.

Within a session a value has one token and a token one value: the letters are an HMAC of the value under a key that the
session alone has, and where two values would share one, the later gets the next. Nothing here is ever written down.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.inspection.rules import Rule

OPENING = "XQ"
KIND = 12
"""Letters a kind may have."""
LETTERS = 10
ALPHABET = "bcdfghjkmnpqrstvwxyz"
"""No vowels, so that no word arises, and no l. Ten of them hold 43 bits."""

TOKEN = re.compile(rf"{OPENING}[A-PR-Z]{{1,{KIND}}}[{ALPHABET}]{{{LETTERS}}}")
BEGUN = re.compile(rf"X(?:Q(?:[A-PR-Z]{{0,{KIND}}}|[A-PR-Z]{{1,{KIND}}}[{ALPHABET}]{{1,{LETTERS - 1}}}))?\Z")
"""The beginning of a token at the end of a text."""
LONGEST = len(OPENING) + KIND + LETTERS

GIVEN = 1000
"""Values looked for again in later prompts: those that a client read last."""
RECALLED = 5
"""Characters of a value that is looked for again; a shorter one is found by its rule or not at all."""

_ENTRY = 512
"""Bytes that a token costs beside its value, in two tables: the bounds below count them too."""
MARGIN = 2048
"""What a session costs without any."""


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What the policy says of tokens: times in seconds, ``values`` and ``bytes`` of one session, ``all_bytes`` of all.

    ``tool_arguments`` and ``urls``: values are put back there as well.
    """

    idle: float = 3600.0
    lifetime: float = 8 * 3600.0
    values: int = 10_000
    bytes: int = 4 * 1024 * 1024
    all_bytes: int = 64 * 1024 * 1024
    tool_arguments: bool = False
    urls: bool = False


@dataclass(frozen=True, slots=True)
class Who:
    """Whose session: the caller, the connection, and what the client calls its conversation (a digest)."""

    identity: str
    subject: str
    connection: str
    name: str = ""


@dataclass(slots=True)
class Counts:
    """The tokens of one exchange, each counted once: put into the prompt; put back; left in an address; never
    issued to this session, or forgotten."""

    issued: set[str] = field(default_factory=set)
    restored: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    grown: int = 0

    GROWTH = 16 * 1024 * 1024
    """Characters that values may add to one answer: an answer of 16 MiB holds a million tokens."""
    MOST = 10_000  # a hostile answer may name any number of tokens that nobody issued

    def note(self, among: set[str], token: str) -> None:
        """Count a token."""
        if len(among) < self.MOST:
            among.add(token)

    def may_grow(self, by: int) -> bool:
        """Say whether an answer may grow by so many characters, and note that it does."""
        if self.grown + by > self.GROWTH:
            return False
        self.grown += by
        return True

    def told(self) -> dict[str, int]:
        """Return the numbers."""
        return {name: len(getattr(self, name)) for name in ("issued", "restored", "kept", "unknown")}


def kind_of(name: str) -> str:
    """Return what a token says of its value: the words of a rule's name in capitals, as many as fit."""
    kind = ""
    for word in re.findall(r"[A-Z]+", name.upper().replace("Q", "K")):
        if kind and len(kind) + len(word) > KIND:
            break
        kind += word
    return kind[:KIND] or "VALUE"


class Session:
    """The tokens of one caller. Safe to use from several threads. ``repr`` shows nothing."""

    def __init__(self, vault: Vault, key: bytes, limits: TokenLimits, now: float) -> None:
        self.limits = limits
        self.born = self.used = now
        self.size = MARGIN
        self._vault = vault
        self._key = key
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._values: dict[str, str] = {}
        self._rules: dict[str, Rule | None] = {}
        self._given: OrderedDict[str, None] = OrderedDict()
        self._over = False

    def __repr__(self) -> str:
        return f"<Session of {len(self._values)} tokens>"

    def __len__(self) -> int:
        return len(self._values)

    @property
    def due(self) -> float:
        """When it ends, if nobody uses it until then."""
        return min(self.used + self.limits.idle, self.born + self.limits.lifetime)

    def token(self, name: str, value: str, rule: Rule | None = None) -> str | None:
        """Return the token of a value that ``rule``, called ``name``, found; ``None`` where there is no room for it."""
        with self._vault.lock:
            known = self._tokens.get(value)
            if known is not None:
                self._tokens.move_to_end(value)
                return known
            cost = _cost(value)
            if self._over or not value or cost > self.limits.bytes:
                return None
            token = self._new(kind_of(name), value)
            self._tokens[value] = token
            self._values[token] = value
            self._rules[token] = rule
            self._grow(cost)
            while len(self._values) > self.limits.values or self.size - MARGIN > self.limits.bytes:
                self._forget_oldest()
            self._vault.bound(self)
            return self._tokens.get(value)

    def value(self, token: str) -> str | None:
        """Return what a token stands for, if it was issued to this session and is still known."""
        return self._values.get(token)

    def give(self, token: str) -> None:
        """Note that a client has read what a token stands for: it will come back in the history of the conversation."""
        with self._vault.lock:
            value = self._values.get(token, "")
            if len(value) >= RECALLED and self._rules[token] is not None:
                self._given[value] = None
                self._given.move_to_end(value)
                if len(self._given) > GIVEN:
                    self._given.popitem(last=False)

    @property
    def has_given(self) -> bool:
        """Whether a client has read any value in place of its token."""
        return bool(self._given)

    def recall(self, text: str) -> list[tuple[int, int, str, Rule]]:
        """Find the values that a client has read before: start, end, token, and the rule that found each at first.

        Many rules need words beside a value, which the model may have left out when it repeated it.
        """
        with self._vault.lock:
            present = sorted((value for value in self._given if value in text), key=len, reverse=True)
            if not present:
                return []
            pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, present))})(?!\w)")
            found = []
            for each in pattern.finditer(text):
                token = self._tokens[each[0]]
                rule = self._rules[token]
                assert rule is not None
                found.append((each.start(), each.end(), token, rule))
            return found

    def untokenised(self, text: str) -> str:
        """Put the values back in a whole text, wherever its tokens stand."""
        return TOKEN.sub(lambda found: self.value(found[0]) or found[0], text)

    def end(self) -> None:
        """Forget everything. The caller holds the vault's lock."""
        self._over, self._key = True, b""
        self._vault.size -= self.size
        self.size = 0
        self._tokens.clear()
        self._values.clear()
        self._rules.clear()
        self._given.clear()

    def _new(self, kind: str, value: str) -> str:
        for attempt in itertools.count():
            token = f"{OPENING}{kind}{self._letters(value, attempt)}"
            if token not in self._values:
                return token
        raise AssertionError  # pragma: no cover - a count has no end

    def _letters(self, value: str, attempt: int) -> str:
        data = attempt.to_bytes(4, "big") + value.encode("utf-8", "surrogatepass")
        number = int.from_bytes(hmac.digest(self._key, data, hashlib.sha256)[:16], "big")
        letters = []
        for _ in range(LETTERS):
            number, at = divmod(number, len(ALPHABET))
            letters.append(ALPHABET[at])
        return "".join(letters)

    def _grow(self, by: int) -> None:
        self.size += by
        self._vault.size += by

    def _forget_oldest(self) -> None:
        value, token = self._tokens.popitem(last=False)
        del self._values[token], self._rules[token]
        self._given.pop(value, None)
        self._grow(-_cost(value))


class Vault:
    """The sessions of a process, in memory alone. ``fresh`` makes keys, 32 random bytes each. Times are seconds."""

    def __init__(self, fresh: Callable[[], bytes]) -> None:
        self.lock = threading.RLock()
        self.size = 0
        self._fresh = fresh
        self._sessions: OrderedDict[Who, Session] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Vault of {len(self._sessions)} sessions>"

    def __len__(self) -> int:
        return len(self._sessions)

    def session(self, who: Who, limits: TokenLimits, now: float) -> Session:
        """Return a caller's session, a new one where there is none or its time is over."""
        with self.lock:
            found = self._sessions.get(who)
            if found is not None:
                found.limits = limits
                if found.due > now:
                    found.used = now
                    self._sessions.move_to_end(who)
                    return found
                self._end(who)
            made = self._sessions[who] = Session(self, self._fresh(), limits, now)
            self.size += made.size
            self.bound(made)
            return made

    def sweep(self, now: float) -> float | None:
        """End the sessions whose time is over; return when the next one is due."""
        with self.lock:
            for who in [who for who, each in self._sessions.items() if each.due <= now]:
                self._end(who)
            return min((each.due for each in self._sessions.values()), default=None)

    def bound(self, asking: Session) -> None:
        """End the sessions that were not used for longest, until all of them fit."""
        while self.size > asking.limits.all_bytes and self._sessions:
            self._end(next(iter(self._sessions)))

    def _end(self, who: Who) -> None:
        self._sessions.pop(who).end()


def _cost(value: str) -> int:
    return _ENTRY + 4 * len(value)
