"""What runs in the process that reads attachments: bytes on standard input, JSON on standard output, then the end.

Input: each attachment as its length (8 bytes, big-endian) and its bytes. Output: a list of
``{"kind", "texts": [[name, text]], "unread"}`` in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys

from tidegate.inspection.attachments import extract

CPU_SECONDS = 30
"""Seconds of computing after which the kernel ends the process, should nobody be left to do it."""
MEMORY = 2 * 1024 * 1024 * 1024
"""Bytes of address space: what may be unpacked, as characters of four bytes, in several copies."""


def main() -> None:
    """Read everything, answer, end."""
    _confine()
    data = sys.stdin.buffer.read()
    rows, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "big")
        found = extract(data[at + 8 : at + 8 + size])
        texts = [[each.name, each.text] for each in found.texts]
        rows.append({"kind": found.kind, "texts": texts, "unread": list(found.unread)})
        at += 8 + size
    sys.stdout.buffer.write(json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    sys.stdout.buffer.flush()


def _confine() -> None:
    """Bound what the process takes: time, memory, no file written, no core file, which would hold what it read."""
    os.nice(5)  # the gate goes first
    signal.alarm(2 * CPU_SECONDS)
    for what, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some of them
            resource.setrlimit(what, (most, most))
