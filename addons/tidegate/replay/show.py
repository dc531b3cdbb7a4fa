"""One recorded exchange for a person: what was decided, what was found and where, and the bodies as they were kept."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from mitmproxy import http
from mitmproxy.websocket import WebSocketMessage
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidegate.evidence import queries
from tidegate.evidence.queries import Row, moment, printable
from tidegate.evidence.records import RecordingError
from tidegate.replay.flows import PATH, load_recording

SHOWN = 16_384
"""Characters of a body that are printed; ``--json`` has all of it."""


def details(path: Path, prefix: str) -> Row:
    """Return an exchange as JSON values: its columns, ``decisions``, ``finding_list``, ``request`` and ``response``.

    ``request`` and ``response`` are ``None`` where no bodies were kept. ``messages`` are those of a WebSocket, ``None``
    where it is none. Raises ``RecordingError``.
    """
    row = queries.show(path, prefix)
    try:
        flow = load_recording(path, [row["id"]])[0]
    except RecordingError:
        return {**row, "request": None, "response": None, "messages": None}
    asked = {
        "method": flow.request.method,
        "path": flow.metadata.get(PATH, flow.request.path),
        "sent_to": f"{flow.request.scheme}://{flow.request.host}:{flow.request.port}{flow.request.path}",
        **_message(flow.request),
    }
    answer = None if flow.response is None else {"status": flow.response.status_code, **_message(flow.response)}
    said = None if flow.websocket is None else [_said(each) for each in flow.websocket.messages]
    return {**row, "request": asked, "response": answer, "messages": said}


def _said(message: WebSocketMessage) -> dict[str, Any]:
    return {"from": "client" if message.from_client else "upstream", "body": message.content.decode("utf-8", "replace")}


def _message(message: http.Message) -> dict[str, Any]:
    fields = [[name, value] for name, value in message.headers.items(multi=True)]
    body = message.get_content(strict=False)
    return {"headers": fields, "body": None if body is None else body.decode("utf-8", "replace")}


def view(found: Row) -> RenderableType:
    """Render ``details`` for a terminal. Control characters of a body are replaced: they are a stranger's."""
    parts: list[RenderableType] = [Panel(_head(found), title=found["id"], title_align="left", expand=False)]
    if found["decisions"]:
        parts.append(_table("Decisions", ("stage", "result", "reason", "detail"), found["decisions"]))
    if found["finding_list"]:
        spans = [{**each, "span": f"{each['start']}-{each['end']}"} for each in found["finding_list"]]
        parts.append(_table("Findings", ("direction", "rule", "class", "where", "span", "action"), spans))
        scored = [each for each in found["finding_list"] if each.get("hints")]
        if scored:
            parts.append(_table("Scores", ("where", "hints"), scored))
    if found["request"] is None and found["response"] is None:
        parts.append(Text("No bodies were kept.", style="dim"))
    for title, message in (("Request", found["request"]), ("Answer", found["response"])):
        if message is not None:
            parts += [Text(f"\n{title}", style="bold"), Text(_body(message["body"]))]
    if found["messages"] is not None:
        parts += [Text("\nMessages", style="bold"), Text(_messages(found["messages"]))]
    return Group(*parts)


def _head(found: Row) -> Table:
    grid = Table.grid(padding=(0, 2))
    outcome = found["outcome"] or "open: sent, and no end was recorded"
    where = "/".join(each for each in (found["connection"], found["endpoint"]) if each)
    took = "" if found["duration_us"] is None else f"{found['duration_us'] / 1000:.1f} ms"
    first = "" if found["first_byte_us"] is None else f", first byte after {found['first_byte_us'] / 1000:.1f} ms"
    for name, value in (
        ("outcome", outcome if found["reason"] is None else f"{outcome}: {found['reason']}"),
        ("status", str(found["status"] or "")),
        ("started", f"{moment(found['started_us'])} UTC"),
        ("took", took + first),
        ("caller", queries.who(found)),
        ("connection", where),
        ("model", found["model"] or ""),
        ("request", f"{found['method']} {found['path']}, {found['request_bytes']} bytes"),
        ("answer", f"{found['response_bytes']} bytes{', streamed' if found['streamed'] else ''}"),
        ("tokens", _tokens(found)),
        ("scanned", found.get("scanned") or ""),
        ("policy", f"{found['mode']}, sha256 {found['policy_sha'][:12]}"),
        ("replay of", found["replay_of"] or ""),
    ):
        if value:
            grid.add_row(Text(name, style="bold"), Text(printable(value)))
    return grid


def _tokens(found: Row) -> str:
    if found.get("input_tokens") is None:
        return ""
    cached = f" ({found['cached_tokens']} of them cached)" if found["cached_tokens"] else ""
    cost = "" if found["cost"] is None else f", cost {found['cost']:.6f}"
    told = ", estimated" if found["tokens_estimated"] else ""
    return f"{found['input_tokens']} in{cached}, {found['output_tokens']} out{told}{cost}"


def _table(title: str, names: tuple[str, ...], rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(row[name] or ""))) for name in names))
    return table


def _messages(messages: list[dict[str, Any]]) -> str:
    """Return the messages of a WebSocket, one a line."""
    text = "\n".join(f"{each['from']:>8}: {printable(each['body'])}" for each in messages)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}\n... {len(text) - SHOWN} more characters; --json shows all"


def _body(body: str | None) -> str:
    """Return a body as it is shown: JSON indented, shortened, harmless to a terminal."""
    if body is None:
        return "(not kept)"
    with contextlib.suppress(ValueError, RecursionError):  # events, or what is left of a broken answer: as it is
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    if len(body) > SHOWN:
        body = f"{body[:SHOWN]}\n... {len(body) - SHOWN} more characters; --json shows all"
    return printable(body) or "(empty)"
