"""Recorded exchanges as other tools read them: mitmproxy flows, HAR, JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from mitmproxy import http
from mitmproxy.addons.savehar import SaveHar
from mitmproxy.io import FlowWriter

from tidegate.evidence.records import RecordingError
from tidegate.replay import show
from tidegate.replay.flows import load_recording


def to_mitm(path: Path, ids: Sequence[str]) -> bytes:
    """Return the kept flows as mitmproxy's own file, which ``mitmweb -r`` opens. Raises ``RecordingError``."""
    out = io.BytesIO()
    writer = FlowWriter(out)
    for flow in _kept(path, ids):
        writer.add(flow)
    return out.getvalue()


def to_har(path: Path, ids: Sequence[str]) -> bytes:
    """Return the kept flows as HAR 1.2. Raises ``RecordingError``."""
    return json.dumps(SaveHar().make_har(_kept(path, ids)), indent=1).encode()


def to_jsonl(path: Path, ids: Sequence[str]) -> bytes:
    """Return a line for each exchange, as ``flows show --json`` prints it. Raises ``RecordingError``."""
    return "".join(f"{json.dumps(show.details(path, each))}\n" for each in ids).encode()


def _kept(path: Path, ids: Sequence[str]) -> list[http.HTTPFlow]:
    """Return the flows of exchanges that kept their bodies."""
    wanted = set(ids)
    found = [flow for flow in load_recording(path) if flow.metadata["tidegate.exchange"] in wanted]
    if not found:
        raise RecordingError(f"{path}: found no bodies of what was selected; accepted: exchanges that kept them")
    return found
