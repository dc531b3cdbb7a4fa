"""The admin listener without a gate behind it: what its routes are given, and a client that calls its application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import httpx

from tidegate.admin.issuer import Tokens
from tidegate.admin.metrics import Metrics
from tidegate.admin.services import Services
from tidegate.admin.sessions import Sessions
from tidegate.admin.signing_in import SigningIn
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import Admin, AdminRight, Permissions, StaticIdentity

OPERATOR, READER = Caller("local", "ops"), Caller("local", "reader", frozenset({"local:dev"}))
TOKENS = {"tg_ops": OPERATOR, "tg_reader": READER}
URL = "https://gate.example.com"


def policy(**changes: Any) -> Any:
    """As much of a policy as the listener looks at: ops may do everything, the group dev may read metrics."""
    values = {
        "sha256": "ab" * 32,
        "mode": "enforce",
        "file": "policy.yaml",
        "warnings": (),
        "identities": (StaticIdentity("local", "tokens.yaml"),),
        "permissions": Permissions({"local:dev": ("watcher",)}, {"local:ops": ("operator",)}, {}),
        "admin": Admin(
            url=URL,
            hosts=frozenset({"gate.internal"}),
            rights={"operator": frozenset(AdminRight), "watcher": frozenset({AdminRight.METRICS})},
        ),
        **changes,
    }
    return SimpleNamespace(**values)


async def identify(token: str) -> Caller | Denial:
    return TOKENS.get(token) or Denial(Reason.TOKEN_UNKNOWN, 401, "The access token was not accepted.")


def always[T](value: T) -> Callable[[], Awaitable[T]]:
    async def answer() -> T:
        return value

    return answer


def services(the_policy: Any = None, **changes: Any) -> Services:
    chosen = the_policy or policy()
    ready: Mapping[str, bool] = {"policy": True, "recording": True}
    metrics = changes.pop("metrics", Metrics())

    async def verifier() -> Any:
        return changes.get("verifier", Verifier(None))

    values: dict[str, Any] = {
        "policy": lambda: chosen,
        "identify": identify,
        "alive": always(True),
        "ready": always(ready),
        "failing": dict,
        "reload": always(()),
        "now": time.time,
        "metrics": metrics,
        "sessions": Sessions(),
        "changed": lambda: "",
        "noted": lambda _kind, _detail: None,
        "desk": always(()),
        "tokens": Tokens(
            lambda: chosen, verifier, changes.pop("revocations", None), metrics, changes.get("now", time.time)
        ),
        "signing_in": SigningIn(lambda: chosen, changes.pop("logins", None), metrics, changes.get("now", time.time)),
        **{name: value for name, value in changes.items() if name != "verifier"},
    }
    return Services(**values)


def client(app: Any, **more: Any) -> httpx.AsyncClient:
    """A client of an application; nothing is sent anywhere."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=more.pop("base_url", URL), **more)


def who(caller: Caller | Denial) -> tuple[object, ...]:
    """What a caller is known by, whatever else its token says."""
    assert isinstance(caller, Caller), caller
    return caller.identity, caller.subject, caller.groups, caller.expires


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer tg_{name}"}
