"""A gate's recorder, as its policy says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate.evidence.ledger import Settings
from tidegate.evidence.log import Cadence
from tidegate.evidence.sinks import Copier
from tidegate.evidence.store import Recorder
from tidegate.policy.keeping import Originals
from tidegate.policy.policy import Recording


def start_recorder(recording: Recording, encode: Callable[[dict[str, Any]], bytes]) -> Recorder:
    """Make and start the recorder of a policy. Raises ``RecordingError``."""
    said = recording.keeping
    copier = None if said.sink is None else Copier(said.sink)
    settings = Settings(
        private=True,
        cadence=Cadence(said.leaves, said.every, copier),
        segment_bytes=said.segment_bytes,
        segment_age=said.segment_age,
        retain=said.retain,
        ballast=said.ballast,
        auditor=said.auditor if said.originals is Originals.SEALED else None,
    )
    recorder = Recorder(Path(recording.path), encode, settings=settings)
    if copier is not None:
        copier.failed = lambda what: recorder.event("sink", what)
        recorder.closed = copier.close
    try:
        recorder.start()
    except BaseException:
        recorder.closed()
        raise
    return recorder
