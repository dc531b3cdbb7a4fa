"""What a policy says of the recording: ``recording``, and ``recording`` of a connection. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidegate.policy.keeping import (
    BALLAST,
    CHECKPOINT_EVERY,
    CHECKPOINT_LEAVES,
    SEGMENT_AGE,
    SEGMENT_BYTES,
    Keeping,
    Originals,
    Sink,
    SinkKind,
)
from tidegate.policy.policy import Keep, RecordingMode
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

RECORDING_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "recording": ("mode", "keep", "path", "originals", "auditor", "checkpoints", "segments", "retain", "ballast"),
    "recording.checkpoints": ("every", "leaves", "sink"),
    "recording.checkpoints.sink": ("file", "syslog", "webhook", "command"),
    "recording.segments": ("size", "age"),
    "connections[].recording": ("mode",),
}

RECORDING_PATH = "recordings/tidegate.db"

_SYSLOG = re.compile(r"/\S+|[^\s/]+:\d{1,5}")
_WEBHOOK = re.compile(r"https?://[^\s@]+")
_AUDITOR = "a public key as `tidegate evidence keygen` prints it"
_PREFIX = "tidegate-auditor-x25519:"


@dataclass(frozen=True, slots=True)
class RecordingDoc:
    """The section as written."""

    mode: RecordingMode = RecordingMode.STRICT
    keep: Keep = Keep.REDACTED
    path: str = RECORDING_PATH
    keeping: Keeping = field(default_factory=Keeping)


def read_recording(reader: Reader, node: Node | None) -> RecordingDoc:
    """Read ``recording``. Faults go to the reader."""
    if node is None:
        return RecordingDoc()
    keys = reader.section(node, RECORDING_SECTIONS["recording"])
    notes, parts = (
        reader.section(keys[each], RECORDING_SECTIONS[f"recording.{each}"]) if each in keys else {}
        for each in ("checkpoints", "segments")
    )
    originals = reader.choice(keys.get("originals"), Originals, Originals.NONE)
    auditor = _auditor(reader, keys.get("auditor"))
    if originals is Originals.SEALED and "auditor" not in keys:
        reader.fault(keys["originals"], f"none, or sealed together with auditor: {_AUDITOR}")
    mode = reader.choice(keys.get("mode"), RecordingMode, RecordingMode.STRICT)
    keep = reader.choice(keys.get("keep"), Keep, Keep.REDACTED)
    return RecordingDoc(
        mode=mode,
        keep=keep,
        path=reader.text(keys.get("path"), "the path of an SQLite file", RECORDING_PATH),
        keeping=Keeping(
            originals=originals,
            auditor=auditor,
            every=reader.seconds(notes.get("every")) or CHECKPOINT_EVERY,
            leaves=reader.count(notes.get("leaves"), "a number of events above zero") or CHECKPOINT_LEAVES,
            sink=_sink(reader, notes.get("sink")),
            segment_bytes=reader.bytes(parts.get("size")) or SEGMENT_BYTES,
            segment_age=reader.seconds(parts.get("age")) or SEGMENT_AGE,
            retain=reader.seconds(keys.get("retain")),
            ballast=reader.bytes(keys.get("ballast")) or BALLAST,
        ),
    )


def read_mode(reader: Reader, node: Node | None) -> RecordingMode | None:
    """Read ``recording`` of a connection; ``None`` where it says nothing."""
    keys = reader.section(node, RECORDING_SECTIONS["connections[].recording"]) if node is not None else {}
    return reader.choice(keys["mode"], RecordingMode, RecordingMode.STRICT) if "mode" in keys else None


def _sink(reader: Reader, node: Node | None) -> Sink | None:
    if node is None:
        return None
    keys = reader.section(node, RECORDING_SECTIONS["recording.checkpoints.sink"])
    if not isinstance(node.value, Mapping):
        return None
    if len(keys) != 1:
        reader.fault(node, "one of file, syslog, webhook, command", found=f"{len(keys)} of them" if keys else "nothing")
        return None
    ((name, value),) = keys.items()
    kind = SinkKind(name)
    if kind is SinkKind.COMMAND:
        words = tuple(str(each.value) for each in reader.texts(value, "a list: a program and its arguments"))
        return Sink(kind, words)
    text = reader.text(value, _ACCEPTED[kind])
    shape = _SHAPES.get(kind)
    if text and shape is not None and not shape.fullmatch(text):
        reader.fault(value, _ACCEPTED[kind], found="something else")  # it may hold a password
    return Sink(kind, (text,))


_SHAPES = {SinkKind.SYSLOG: _SYSLOG, SinkKind.WEBHOOK: _WEBHOOK}
_ACCEPTED = {
    SinkKind.FILE: "the path of a file that notes are appended to",
    SinkKind.SYSLOG: "the path of a socket such as /dev/log, or host:port",
    SinkKind.WEBHOOK: "an http or https address without a user",
}


def _auditor(reader: Reader, node: Node | None) -> bytes | None:
    if node is None:
        return None
    text = reader.text(node, _AUDITOR)
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if text and (not text.startswith(_PREFIX) or len(key) != 32):
        reader.fault(node, _AUDITOR, found="something else")
    return key if len(key) == 32 else None


def auditor_text(public: bytes) -> str:
    """Write an auditor's public key as a policy holds it."""
    return _PREFIX + base64.b64encode(public).decode()
