"""What one start makes of packs and dialects is kept for the next, beside the compiled rules.

Only what was made of exactly these files by exactly this code is taken back; anything else is made anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from tidegate import memo
from tidegate.dialects import fields
from tidegate.inspection import closure
from tidegate.inspection.scanner import CompiledCache
from tidegate.policy import source

MEMOS = (source.TREES, closure.PATTERNS, closure.SKETCHES, fields.STEPS)
_DIGEST = 32


@contextmanager
def remembering(cache: CompiledCache | None, texts: Iterable[str]) -> Iterator[None]:
    """Remember within a load of these texts what an earlier load of them made, and keep what this one makes."""
    key = _key(texts)
    stored = {} if cache is None else _opened(cache.get(key))
    for each in MEMOS:
        each.forget()
        each.recall(stored.get(each.name, {}))
    try:
        yield
        if cache is not None and any(each.grown for each in MEMOS):
            cache.put(key, _closed({each.name: each.told() for each in MEMOS}))
    finally:
        for each in MEMOS:
            each.forget()


def _key(texts: Iterable[str]) -> str:
    digest = hashlib.sha256(f"{sys.version} {version('jsonpath-ng')} {version('pyyaml')}".encode())
    for data in (*map(_code, (memo, source, closure, fields)), *(text.encode() for text in texts)):
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _code(module: ModuleType) -> bytes:
    return b"" if module.__file__ is None else Path(module.__file__).read_bytes()


def _closed(made: dict[str, dict[str, object]]) -> bytes:
    data = json.dumps(made, separators=(",", ":")).encode()
    return hashlib.sha256(data).digest() + data


def _opened(kept: bytes | None) -> dict[str, dict[str, object]]:
    """Return what was kept; nothing where its bytes are not those that were written."""
    if kept is None or hashlib.sha256(kept[_DIGEST:]).digest() != kept[:_DIGEST]:
        return {}
    found: dict[str, dict[str, object]] = json.loads(kept[_DIGEST:])
    return found
