"""Flows of other tools into a recording: mitmproxy's files and HAR. Credentials are left out; nothing is masked."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from mitmproxy import exceptions, http
from mitmproxy.io import FlowReader

from tidegate.evidence.ledger import Settings
from tidegate.evidence.records import ExchangeRecord, RecordingError, bare_path
from tidegate.evidence.store import Recorder
from tidegate.model import Outcome
from tidegate.policy.policy import Keep
from tidegate.replay.flows import encode, safe_state


def import_flows(source: Path, into: Path, progress: Callable[[int], None] = lambda _: None) -> int:
    """Record the HTTP flows of a file; return how many. Raises ``RecordingError``."""
    recorder = Recorder(into, encode, settings=Settings(private=True))
    recorder.start()
    done = 0
    try:
        with source.open("rb") as file:
            for flow in FlowReader(file).stream():
                if isinstance(flow, http.HTTPFlow):
                    _keep(recorder, flow)
                    done += 1
                    progress(done)
        recorder.event("import", f"{done} flows")
    except (exceptions.FlowReadException, OSError, ValueError) as error:
        recorder.event("import", f"{done} flows, then the file could not be read")
        raise RecordingError(f"{source}: cannot be read as flows: {type(error).__name__}") from None
    finally:
        recorder.close()
    if recorder.dropped:
        raise RecordingError(f"{into}: {recorder.dropped} of {done} flows could not be recorded")
    return done


def _keep(recorder: Recorder, flow: http.HTTPFlow) -> None:
    request, answer = flow.request, flow.response
    exchange = f"ex_{int(request.timestamp_start * 1000):011x}{secrets.token_hex(5)}"
    end = request.timestamp_start
    if answer is not None:
        end = answer.timestamp_end or answer.timestamp_start or end
    record = ExchangeRecord(
        id=exchange,
        started_us=int(request.timestamp_start * 1e6),
        ended_us=int(end * 1e6),
        duration_us=int((end - request.timestamp_start) * 1e6),
        method=request.method,
        path=bare_path(request.path),
        connection=request.pretty_host,
        outcome=Outcome.FAILED if answer is None else Outcome.ANSWERED,
        status=None if answer is None else answer.status_code,
        mode="import",
        request_bytes=len(request.raw_content or b""),
        response_bytes=0 if answer is None else len(answer.raw_content or b""),
    )
    recorder.seal(record, safe_state(flow, Keep.REDACTED, exchange, websocket=True))
    recorder.drain()
