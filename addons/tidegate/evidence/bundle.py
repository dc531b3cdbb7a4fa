"""The evidence bundle: selected events with their proofs, checkpoints and bodies, in one deterministic zip."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tidegate.evidence import offline, queries
from tidegate.evidence.files import Files
from tidegate.evidence.names import names_of
from tidegate.evidence.notes import tlog_proof
from tidegate.evidence.proving import Prover, proving
from tidegate.evidence.records import RecordingError
from tidegate.evidence.subjects import MARK
from tidegate.evidence.tree import ProofError

PATIENCE = 15.0
"""Seconds to wait for a checkpoint over what was selected: longer than the time between two."""

README = """\
A tidegate evidence bundle: what a gateway recorded, with proofs that it is unchanged.

    python verify.py BUNDLE.zip --key 'NAME+ID+KEY'

Unpack verify.py (or take it from a tidegate you trust) and give it the log's public key from where you noted it,
never from whoever gave you this bundle. It needs Python and the package `cryptography`, and no network.

events.jsonl     one event a line, exactly as hashed: what was decided, what was found (rule and place, never a value)
proofs/          for each event its inclusion proof (c2sp.org/tlog-proof)
checkpoints/     signed states of the log (c2sp.org/tlog-checkpoint), and that the first is the beginning of the last
bodies/          requests and answers as the policy kept them (mitmproxy flows); what was erased is not here
manifest.json    the hash of each file, the index of each event, the salt of each body's commitment
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is exported: exchanges by the beginnings of their ids, or those of a caller or a time span.

    Times are microseconds since 1970. ``bodies``: whether what was kept of requests and answers goes along.
    """

    ids: tuple[str, ...] = ()
    caller: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    bodies: bool = True


def chosen(path: Path, selection: Selection) -> list[str]:
    """Return the ids of the exchanges that are selected, oldest first. Raises ``RecordingError`` if there are none."""
    if selection.ids:
        found = sorted({queries.find(path, each) for each in selection.ids})
    else:
        rows = queries.list_flows(path, limit=10**9, caller=selection.caller)
        low, high = selection.since_us or 0, selection.until_us or 1 << 62
        found = sorted(row["id"] for row in rows if low <= row["started_us"] < high)
    if not found:
        raise RecordingError(f"{path}: found no exchange that was selected; `tidegate flows list` shows what is there")
    return found


def export(path: Path, selection: Selection, progress: Callable[[int], None] = lambda _: None) -> bytes:
    """Return the bundle of what is selected. Raises ``RecordingError``.

    Events that are about no exchange (starts, gaps, deletions ...) go along from the first selected event to the last;
    where exchanges or a caller are named, approvals that other callers asked for do not.
    """
    ids = chosen(path, selection)
    named = bool(selection.ids or selection.caller)
    deadline = time.monotonic() + PATIENCE
    while True:
        with proving(path) as prover:
            events = _events(prover, set(ids), progress, named=named)
            if not events:
                raise RecordingError(
                    f"{path}: found no event of these exchanges in the log; a version without one recorded them"
                )
            note = prover.note_over(events[-1][0])
            if note is not None:
                return offline.pack(_members(path, prover, events, note, ids if selection.bodies else []))
        if time.monotonic() > deadline:
            raise RecordingError(
                f"{path}: no checkpoint is signed over the newest of these events yet; try again later"
            )
        time.sleep(0.5)


def _events(prover: Prover, ids: set[str], progress: Callable[[int], None], *, named: bool) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    approvals: dict[int, str] = {}
    asked: dict[str, str] = {}
    callers: set[str] = set()
    between: list[tuple[int, str]] = []
    for index, payload in prover.leaves():
        if not index & 0xFFF:
            progress(index)
        said = json.loads(payload)
        if said["kind"] == "event":
            if said["event"] == "approval":
                approvals[index] = _approval(said["detail"], asked)
            if found:
                between.append((index, payload))
        elif said["exchange"]["id"] in ids:
            callers.add(_caller(said["exchange"]))
            found += [*between, (index, payload)]
            between = []
    foreign = {index for index, each in approvals.items() if asked.get(each) not in callers} if named else set()
    return [each for each in found if each[0] not in foreign]


def _approval(detail: str, asked: dict[str, str]) -> str:
    """Return the approval that a step belongs to; where it is the first one, remember who has asked."""
    try:
        step = json.loads(detail)
        approval = str(step["approval"])
        if step["what"] == "ask":
            asked[approval] = str(step["actor"])
    except (ValueError, KeyError, TypeError):
        return ""
    return approval


def _caller(exchange: dict[str, Any]) -> str:
    """Return whose exchange it is as events name people: by pseudonym, or ``identity:subject``."""
    caller = str(exchange.get("caller", ""))
    return caller if caller.startswith(MARK) else f"{exchange.get('identity', '')}:{caller}"


def _members(path: Path, prover: Prover, events: list[tuple[int, str]], note: str, ids: list[str]) -> dict[str, bytes]:
    first = prover.notes[min(prover.notes)]
    members: dict[str, bytes] = {}
    try:
        for index, _ in events:
            members[f"proofs/{index}.tlog-proof"] = tlog_proof(index, prover.inclusion(index, note), note).encode()
        path_between = prover.consistency(first, note)
    except ProofError as error:
        raise RecordingError(f"{path}: {error}; `tidegate verify` says more") from None
    hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in path_between)
    members["checkpoints/first.note"] = first.encode()
    members["checkpoints/last.note"] = note.encode()
    members["checkpoints/consistency.txt"] = (
        f"consistency proof, from the first to the last checkpoint\n{hashes}".encode()
    )
    members["events.jsonl"] = "".join(f"{payload}\n" for _, payload in events).encode()
    salts = _bodies(path, ids, members)
    members["README.txt"] = README.encode()
    members["verify.py"] = Path(offline.__file__).read_bytes()
    manifest: dict[str, Any] = {
        "events": [index for index, _ in events],
        "members": {name: sha256(data).hexdigest() for name, data in members.items()},
        "salts": salts,
        "version": 1,
    }
    members["manifest.json"] = json.dumps(manifest, sort_keys=True, indent=1).encode()
    return members


def _bodies(path: Path, ids: list[str], members: dict[str, bytes]) -> dict[str, str]:
    """Add what was kept of requests and answers and can still be opened; return the salts."""
    salts: dict[str, str] = {}
    wanted = set(ids)
    with names_of(Files(path)) as names:
        for _, file in Files(path).segments():
            with queries.reading(file) as db:
                for row in db.query("SELECT exchange, state, salt, key FROM flow_state"):
                    if row["exchange"] not in wanted:
                        continue
                    try:
                        state, salt = names.open(row["exchange"], row["state"], row["salt"], row["key"])
                    except RecordingError:
                        continue  # erased; the verifier counts it
                    members[f"bodies/{row['exchange']}.flow"] = state
                    salts[row["exchange"]] = salt.hex()
    return salts
