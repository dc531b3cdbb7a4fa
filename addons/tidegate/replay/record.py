"""The two scripts beside the gate: one that only records, and one that loads a recording into a viewer."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader

from tidegate.evidence.records import ExchangeRecord, RecordingError, bare_path
from tidegate.evidence.store import Recorder
from tidegate.model import Outcome
from tidegate.policy.policy import Keep
from tidegate.replay.flows import encode, load_recording, safe_state

log = logging.getLogger("tidegate")


class PlainRecorder:
    """Records every HTTP flow of any mitmproxy, WebSocket messages too. It decides nothing."""

    name = "tidegate_recorder"

    def __init__(self) -> None:
        self._recorder: Recorder | None = None

    def load(self, loader: Loader) -> None:
        """Add the one option."""
        loader.add_option("recording", str, "recordings/plain.db", "The SQLite file to record into.")

    def configure(self, updated: AbstractSet[str]) -> None:
        """Open the recording. Raises ``OptionsError``, which ends the start of mitmproxy."""
        if "recording" not in updated:
            return
        recorder = Recorder(Path(ctx.options.recording), encode)
        try:
            recorder.start()
        except RecordingError as error:
            raise exceptions.OptionsError(f"recording: {error}") from None
        self.done()
        self._recorder = recorder

    def response(self, flow: http.HTTPFlow) -> None:
        """Record an answered flow; a WebSocket is recorded when it ends."""
        if flow.websocket is None:
            self._record(flow, Outcome.ANSWERED)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """Record a WebSocket with its messages."""
        self._record(flow, Outcome.ANSWERED)

    def error(self, flow: http.HTTPFlow) -> None:
        """Record a flow that ended without a whole answer."""
        self._record(flow, Outcome.FAILED if flow.response is None else Outcome.ABORTED)

    def done(self) -> None:
        """Write what is waiting."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _record(self, flow: http.HTTPFlow, outcome: Outcome) -> None:
        if self._recorder is None or not flow.live:
            return  # flows that mitmproxy loads from a file pass these hooks too
        request, answer, now = flow.request, flow.response, time.time()
        exchange = f"ex_{int(request.timestamp_start * 1000):011x}{secrets.token_hex(5)}"
        record = ExchangeRecord(
            id=exchange,
            started_us=int(request.timestamp_start * 1e6),
            ended_us=int(now * 1e6),
            duration_us=int((now - request.timestamp_start) * 1e6),
            method=request.method,
            path=bare_path(request.path),
            connection=request.pretty_host,
            outcome=outcome,
            status=None if answer is None else answer.status_code,
            mode="record",
            request_bytes=len(request.raw_content or b""),
            response_bytes=0 if answer is None else len(answer.raw_content or b""),
            streamed=answer is not None and answer.raw_content is None,
        )
        self._recorder.seal(record, safe_state(flow, Keep.REDACTED, exchange, websocket=True))


class Viewer:
    """Loads the flows of a recording into the view of mitmweb or mitmproxy, when it runs."""

    name = "tidegate_viewer"

    def __init__(self) -> None:
        self._flows: list[http.HTTPFlow] = []

    def load(self, loader: Loader) -> None:
        """Add the one option."""
        loader.add_option("recording", str, "", "The recording to look at, made by tidegate.")
        loader.add_option("exchanges", str, "", "Only these exchanges: ids, with commas between them.")

    def configure(self, updated: AbstractSet[str]) -> None:
        """Read the recording. Raises ``OptionsError``, which ends the start of mitmproxy."""
        if "recording" in updated and ctx.options.recording:
            try:
                ids = [each for each in ctx.options.exchanges.split(",") if each]
                self._flows = load_recording(Path(ctx.options.recording), ids or None)
            except RecordingError as error:
                raise exceptions.OptionsError(f"recording: {error}") from None

    async def running(self) -> None:
        """Put every recorded flow that kept its bodies into the view."""
        if not ctx.options.recording:  # an error logged now ends the start
            log.error("recording: found no path; accepted: --set recording=PATH, a recording made by tidegate")
        for flow in self._flows:
            await ctx.master.load_flow(flow)
