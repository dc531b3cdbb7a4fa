"""What the routes of the admin listener work with: everything they may touch of the running gate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.admin.issuer import Tokens
from tidegate.admin.metrics import Metrics
from tidegate.admin.sessions import Sessions
from tidegate.admin.signing_in import SigningIn
from tidegate.desk import Desk
from tidegate.model import Caller, Denial
from tidegate.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Services:
    """All callables may be called in the admin thread; none of them waits for the data path longer than it says.

    ``identify`` names the holder of a token. ``alive`` says whether the data path turns, ``ready`` what is fit and what
    is not. ``failing`` says for each identity whether its keys could not be fetched. ``reload`` loads the policy's file
    again, and returns what to mind; it raises ``PolicyError`` and leaves the policy in force. ``changed`` is another
    text whenever what the pages show may have changed. ``noted`` puts an event into the recording's log. ``desk`` has
    work done where requests wait for people, in the loop of the data path.
    """

    policy: Callable[[], Policy]
    identify: Callable[[str], Awaitable[Caller | Denial]]
    alive: Callable[[], Awaitable[bool]]
    ready: Callable[[], Awaitable[Mapping[str, bool]]]
    failing: Callable[[], Mapping[str, bool]]
    reload: Callable[[], Awaitable[tuple[str, ...]]]
    now: Callable[[], float]
    metrics: Metrics
    sessions: Sessions
    changed: Callable[[], str]
    noted: Callable[[str, str], None]
    desk: Callable[[Callable[[Desk], Awaitable[Any]]], Awaitable[Any]]
    tokens: Tokens
    signing_in: SigningIn
