"""One question to many patterns at once: which of them occur in these bytes? The home of Hyperscan.

Block mode only: the binding's stream mode crashes (0.7.30 to 0.9.1), and without the start of a match there is nothing
a stream could add. Where Hyperscan cannot be imported RE2 answers, pattern by pattern: slower, the same answers.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import re2

from tidegate.inspection.patterns import compile_re2, matcher

try:
    import hyperscan as _hyperscan
except ImportError:  # no wheel for this platform: Re2Scanner stands in
    _hyperscan = None  # type: ignore[assignment]

hyperscan: Any = _hyperscan
CompileError: type[Exception] = hyperscan.error if hyperscan is not None else re2.error

# Part of every cache key: raise it when what is stored, or how patterns are spelled, changes.
_FORMAT = "tidegate-scanner-1"
_DIGEST = 32


class CompiledCache(Protocol):
    """Keeps compiled databases between starts. Losing an entry costs seconds, never a finding."""

    def get(self, key: str) -> bytes | None:
        """Return what was put under ``key`` (hexadecimal), or ``None``."""

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data`` under ``key`` if that is possible."""


class Scanner(Protocol):
    """Answers which patterns occur. Safe to use from many threads."""

    def hits(self, data: bytes) -> list[int]:
        """Return the indexes of the patterns that match somewhere in ``data``, each once, in any order."""


class Spotter(Protocol):
    """Answers where one pattern ends. Safe to use from many threads."""

    def ends(self, data: bytes) -> list[int]:
        """Return every position in ``data`` at which a match ends, ascending."""


class HyperscanScanner:
    """All patterns in one block-mode database: one pass over the bytes, whatever their number."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._local = threading.local()

    def hits(self, data: bytes) -> list[int]:
        """Return the indexes of the patterns that match somewhere in ``data``, each once, in any order."""
        found: list[int] = []

        def note(index: int, _start: int, _end: int, _flags: int, _context: object) -> None:
            found.append(index)

        self._database.scan(data, match_event_handler=note, scratch=self._own_scratch())
        return found

    def _own_scratch(self) -> Any:
        try:
            return self._local.scratch
        except AttributeError:  # a scratch serves one thread at a time
            scratch = self._local.scratch = hyperscan.Scratch(self._database)
            return scratch


class HyperscanSpotter(HyperscanScanner):
    """The same for a database of one pattern that reports every end."""

    def ends(self, data: bytes) -> list[int]:
        """Return every position in ``data`` at which a match ends, ascending."""
        found: list[int] = []

        def note(_index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            found.append(end)

        self._database.scan(data, match_event_handler=note, scratch=self._own_scratch())
        return found


class Re2Scanner:
    """The same answers where Hyperscan is missing, one RE2 search per pattern."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._compiled = [matcher(pattern, longest=False) for pattern in patterns]

    def hits(self, data: bytes) -> list[int]:
        """Return the indexes of the patterns that match somewhere in ``data``, each once, in any order."""
        size = len(data)
        return [index for index, each in enumerate(self._compiled) if each(data, 0, size)[0][0] >= 0]


class Re2Spotter:
    """The same where Hyperscan is missing, for a pattern of which matches share one byte; the longest of each start."""

    def __init__(self, pattern: str) -> None:
        self._compiled = compile_re2(pattern)

    def ends(self, data: bytes) -> list[int]:
        """Return every position in ``data`` at which a match ends, ascending."""
        found: list[int] = []
        match = self._compiled.search(data)
        while match is not None:
            found.append(match.end())
            match = self._compiled.search(data, found[-1] - 1)
        return found


def scanner(patterns: Sequence[str], cache: CompiledCache | None) -> Scanner:
    """Compile ``patterns`` (ASCII, RE2 and Hyperscan syntax), or load them from ``cache``.

    An entry of the cache that is damaged, or of another version or machine, is compiled anew. Raises ``CompileError``
    for a pattern that is refused; ``refused`` tells which.
    """
    if hyperscan is None or not patterns:
        return Re2Scanner(patterns)
    return HyperscanScanner(_database(patterns, cache, every=False))


def spotter(pattern: str, cache: CompiledCache | None) -> Spotter:
    """Compile one pattern of which all ends are asked, or load it; as ``scanner``."""
    if hyperscan is None:
        return Re2Spotter(pattern)
    return HyperscanSpotter(_database([pattern], cache, every=True))


def refused(pattern: str) -> str | None:
    """Say why Hyperscan refuses ``pattern``, without quoting it; ``None`` when it does not."""
    try:
        _compile([pattern])
    except hyperscan.error as error:
        return str(error).split(":", maxsplit=1)[0]
    return None


def _database(patterns: Sequence[str], cache: CompiledCache | None, *, every: bool) -> Any:
    """Load or compile all patterns; with ``every`` they report each end."""
    key = _key(["every", *patterns] if every else patterns)
    kept = cache.get(key) if cache is not None else None
    database = _load(key, kept) if kept is not None else None
    if database is None:
        database = _compile(patterns, every=every)
        if cache is not None:
            data = hyperscan.dumpb(database)
            cache.put(key, _digest(key, data) + data)
    return database


def _compile(patterns: Sequence[str], *, every: bool = False) -> Any:
    """Compile all patterns into one database.

    As prefilters: where a pattern is too large as it stands (long bounded repeats, about 1 in 70) Hyperscan makes a
    coarser one of it, which matches wherever the pattern does and sometimes elsewhere. RE2 decides in either case.
    """
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=[pattern.encode("ascii") for pattern in patterns],
        ids=list(range(len(patterns))),
        elements=len(patterns),
        flags=[0 if every else hyperscan.HS_FLAG_SINGLEMATCH | hyperscan.HS_FLAG_PREFILTER] * len(patterns),
    )
    return database


def _key(patterns: Sequence[str]) -> str:
    parts = [_FORMAT, hyperscan.__version__, platform.machine(), platform.system(), *patterns]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()


def _load(key: str, entry: bytes) -> Any | None:
    """Return the database of a cache entry; ``None`` unless it is whole, ours, and fits this machine."""
    data = entry[_DIGEST:]
    if entry[:_DIGEST] != _digest(key, data):
        return None
    try:
        database = hyperscan.loadb(data, hyperscan.HS_MODE_BLOCK)
        hyperscan.Scratch(database)
    except hyperscan.error:
        return None
    return database
