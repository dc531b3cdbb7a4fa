"""The verifier of the admin listener: one for each policy, however many ask, and each is closed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tidegate.admin.callers import Callers


class Slow:
    """A verifier that takes its time."""

    def __init__(self) -> None:
        self.did: list[str] = []

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        self.did.append("started")

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.did.append("closed")

    async def identify(self, *_: Any) -> Any:
        return self


async def test_requests_after_a_reload_share_one_verifier_and_all_are_closed() -> None:
    made: list[Slow] = []
    policies: list[Any] = []

    def make(_: Any) -> Any:
        made.append(Slow())
        return made[-1]

    callers = Callers(lambda: policies[-1], make, lambda: 0.0)
    for number in range(3):
        policies.append(SimpleNamespace(identities=(number, "more")))
        answers = await asyncio.gather(*(callers.identify("x") for _ in range(5)))
        assert len(made) == number + 1
        assert set(answers) == {made[-1]}
        await asyncio.sleep(0.005 * number)
    await callers.close()
    assert [each.did for each in made] == [["started", "closed"]] * 3
