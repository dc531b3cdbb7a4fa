"""Another addon in the same proxy: runs the statement that ``meddle.json`` names, before the gate or after it.

``{"who": "early" | "late", "hooks": ["request"], "code": "flow.request.content = b'...'"}``;
without the file it does nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mitmproxy import ctx, exceptions, http

HOOKS = ("http_connect", "requestheaders", "request", "responseheaders", "response", "error")


class Meddler:
    def __init__(self, who: str) -> None:
        self.name = f"meddler_{who}"
        for hook in HOOKS:
            setattr(self, hook, lambda flow, hook=hook: meddle(who, hook, flow))


def meddle(who: str, hook: str, flow: http.HTTPFlow) -> None:
    try:
        asked = json.loads(Path("meddle.json").read_text())
    except (OSError, ValueError):
        return
    if asked["who"] == who and hook in asked["hooks"]:
        exec(asked["code"], {"flow": flow, "http": http, "exceptions": exceptions, "ctx": ctx})


class Arrival:
    """Puts one meddler before everything; the other one came after the gate, as scripts do."""

    def running(self) -> None:
        manager: Any = ctx.master.addons
        if manager.get("meddler_early") is not None:  # a script hears of the start twice
            return
        manager.chain.insert(0, manager.register(Meddler("early")))


addons = [Meddler("late"), Arrival()]
