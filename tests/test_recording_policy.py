"""What a policy says of its recording: sizes, times, sinks, originals, and the mode of a connection."""

from __future__ import annotations

import base64

import pytest

from tidegate.model import Fault
from tidegate.policy.keeping import Keeping, Originals, Sink, SinkKind
from tidegate.policy.policy import Keep, Recording, RecordingMode
from tidegate.policy.reader import Reader
from tidegate.policy.recording import RecordingDoc, auditor_text, read_mode, read_recording
from tidegate.policy.source import parse

PUBLIC = bytes(range(32))


def read(text: str) -> tuple[RecordingDoc, list[Fault]]:
    reader = Reader("policy.yaml")
    root, faults = parse(text, "policy.yaml")
    assert not faults
    return read_recording(reader, root), reader.faults


def test_what_is_not_said_has_its_default() -> None:
    assert read_recording(Reader("policy.yaml"), None) == RecordingDoc()
    assert read("{mode: best_effort}")[0] == RecordingDoc(mode=RecordingMode.BEST_EFFORT)


def test_everything_can_be_said() -> None:
    found, faults = read(
        f"{{mode: strict, keep: none, path: a.db, originals: sealed, auditor: '{auditor_text(PUBLIC)}', "
        "checkpoints: {every: 1s, leaves: 5, sink: {command: [logger, -t, tide]}}, "
        "segments: {size: 64MiB, age: 1h}, retain: 200d, ballast: 1MiB}"
    )
    assert faults == []
    keeping = Keeping(
        Originals.SEALED, PUBLIC, 1.0, 5, Sink(SinkKind.COMMAND, ("logger", "-t", "tide")), 64 << 20, 3600.0,
        200 * 86400.0, 1 << 20,
    )  # fmt: skip
    assert found == RecordingDoc(RecordingMode.STRICT, Keep.NONE, "a.db", keeping)


@pytest.mark.parametrize(
    ("sink", "found"),
    [
        ("{file: notes}", Sink(SinkKind.FILE, ("notes",))),
        ("{syslog: /dev/log}", Sink(SinkKind.SYSLOG, ("/dev/log",))),
        ("{syslog: 'log.example.com:514'}", Sink(SinkKind.SYSLOG, ("log.example.com:514",))),
        ("{webhook: 'https://log.example.com/notes'}", Sink(SinkKind.WEBHOOK, ("https://log.example.com/notes",))),
    ],
)
def test_sinks(sink: str, found: Sink) -> None:
    assert read(f"{{checkpoints: {{sink: {sink}}}}}")[0].keeping.sink == found


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("{checkpoints: {sink: {syslog: nowhere}}}", "the path of a socket such as /dev/log, or host:port"),
        ("{checkpoints: {sink: {webhook: 'ftp://x'}}}", "an http or https address without a user"),
        ("{checkpoints: {sink: {webhook: 'https://user@x'}}}", "an http or https address without a user"),
        ("{checkpoints: {sink: {command: logger}}}", "a list: a program and its arguments"),
        ("{checkpoints: {sink: {}}}", "one of file, syslog, webhook, command"),
        ("{originals: sealed}", "none, or sealed together with auditor"),
        ("{auditor: 'tidegate-auditor-x25519:AAAA'}", "a public key as `tidegate evidence keygen` prints it"),
        ("{auditor: '" + base64.b64encode(PUBLIC).decode() + "'}", "a public key as `tidegate evidence keygen`"),
    ],
)
def test_what_is_refused_says_what_is_accepted(text: str, accepted: str) -> None:
    _, faults = read(text)
    assert len(faults) == 1
    assert accepted in str(faults[0])
    assert "user@x" not in str(faults[0])


def test_a_connection_may_have_a_mode_of_its_own() -> None:
    reader = Reader("policy.yaml")
    assert read_mode(reader, None) is None
    assert read_mode(reader, parse("{mode: best_effort}", "policy.yaml")[0]) is RecordingMode.BEST_EFFORT
    assert read_mode(reader, parse("{mode: maybe}", "policy.yaml")[0]) is RecordingMode.STRICT
    assert len(reader.faults) == 1
    recording = Recording(RecordingMode.STRICT, Keep.NONE, "x", {"lab": RecordingMode.BEST_EFFORT})
    assert recording.mode_of("lab") is RecordingMode.BEST_EFFORT
    assert recording.mode_of("openai") is recording.mode_of(None) is RecordingMode.STRICT
