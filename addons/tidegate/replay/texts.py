"""The texts of recorded exchanges, masked as they were kept: what a search looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mitmproxy import http

from tidegate.replay.flows import EXCHANGE, load_recording


def texts(path: Path, ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (id, request, answer) of exchanges; without bodies they are empty. Raises ``RecordingError``."""
    found = {each: (each, "", "") for each in ids}
    for flow in load_recording(path, ids, strict=False):
        exchange = str(flow.metadata[EXCHANGE])
        said = [] if flow.websocket is None else flow.websocket.messages
        asked = [_text(flow.request), *(each.content.decode("utf-8", "replace") for each in said if each.from_client)]
        answer = [] if flow.response is None else [_text(flow.response)]
        answer += [each.content.decode("utf-8", "replace") for each in said if not each.from_client]
        found[exchange] = (exchange, "\n".join(asked), "\n".join(answer))
    return [found[each] for each in ids]


def _text(message: http.Message) -> str:
    return (message.get_content(strict=False) or b"").decode("utf-8", "replace")
