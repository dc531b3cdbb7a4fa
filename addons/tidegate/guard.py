"""The one guard: a bug in a hook refuses what the hook was asked about. mitmproxy by itself logs it and forwards."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol


class Denies(Protocol):
    """Who can refuse what one of its hooks was asked about."""

    def deny_bug(self, hook: str, data: Any, bug: Exception) -> None:
        """Refuse what a hook was asked about, because the hook failed. Never raises."""


def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Make a bug in a hook deny what the hook was asked about. A bug's text may hold data: only its type is logged."""

    @functools.wraps(hook)
    def run(self: Denies, data: Any) -> Awaitable[None] | None:
        try:
            result = hook(self, data)
        except Exception as bug:
            self.deny_bug(hook.__name__, data, bug)
            return None
        return rest(self, data, result) if result is not None and inspect.isawaitable(result) else None

    async def rest(self: Denies, data: Any, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as bug:
            self.deny_bug(hook.__name__, data, bug)

    return run
