"""Opens what a policy names of a company's own data: indexes, canaries, known false positives, and their keys.

A shell: it reads files, the clock and randomness. Every fault of every file goes to the caller's list, and no value is
in any message.
"""

from __future__ import annotations

import bisect
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.identity.credential import CredentialError, resolve
from tidegate.inspection.engine import Engine
from tidegate.inspection.history import History
from tidegate.inspection.proprietary import canary, known
from tidegate.inspection.proprietary.detector import Detector, coded_rule
from tidegate.inspection.proprietary.documents import DEFAULT_THRESHOLD, DocumentMatch
from tidegate.inspection.proprietary.exact import ExactMatch
from tidegate.inspection.proprietary.table import IndexFault, derive
from tidegate.inspection.rules import Rule, Severity
from tidegate.model import Fault
from tidegate.policy.keyed_files import read_canaries, read_known
from tidegate.policy.proprietary import AllowFileDoc, DetectorDoc

INDEX_BYTES = 1 << 30  # a table of 40 million values; it is held in memory
LIST_BYTES = 4 << 20


@dataclass(slots=True)
class Coded:
    """What was opened. ``rules`` and ``checks`` are the canaries'; ``files`` hold names and contents."""

    rules: list[Rule] = field(default_factory=list)
    checks: dict[str, Callable[[bytes], bool]] = field(default_factory=dict)
    detectors: list[Detector] = field(default_factory=list)
    known: list[tuple[known.Known, bytes]] = field(default_factory=list, repr=False)
    files: list[tuple[str, bytes]] = field(default_factory=list, repr=False)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def coded_rules(self) -> tuple[Rule, ...]:
        """The rules of the detectors, which the engine does not compile."""
        return tuple(each.rule for each in self.detectors)

    def extend(self, engine: Engine) -> Engine:
        """Return the engine with all of this, and with a history under a key of its own."""
        ends = sorted(each.expires for each, _ in self.known)
        history = History(secrets.token_bytes(32), age=lambda: bisect.bisect(ends, time.time()))
        return engine.extended(self.checks, known.passes(self.known, time.time), self.detectors, history)

    def check_rules(self, rules: Sequence[Rule], files: Sequence[AllowFileDoc], folder: Path) -> None:
        """Refuse known false positives of rules that do not exist or that a stream cannot wait for."""
        able = {rule.id for rule in rules if rule.end is None and rule.score is None}
        for rule in sorted({entry.rule for entry, _ in self.known} - able):
            named = [each for each in rules if each.id == rule]
            kind = "a rule with an end" if named and named[0].score is None else "a rule with a score"
            found = kind if named else "a rule that is not loaded"
            where = " or ".join(str(folder / each.path) for each in files)
            self.faults.append(Fault(where, rule, found, "a loaded rule that has no end marker and no score"))


def open_all(file: str, detectors: Sequence[DetectorDoc], allows: Sequence[AllowFileDoc], folder: Path) -> Coded:
    """Open every index and list that a policy file names; ``folder`` is the policy's."""
    found = Coded()
    for doc in detectors:
        where = f"{file}:{doc.node.line}"
        opened = _open(found, where, doc.node.key, (folder / doc.path, doc.key), doc.kind == "canaries")
        if opened is not None:
            (_canaries if doc.kind == "canaries" else _index)(found, doc, where, *opened)
    for allow in allows:
        opened = _open(found, f"{file}:{allow.node.line}", allow.node.key, (folder / allow.path, allow.key), True)
        if opened is not None:
            entries, faults = read_known(opened[0].decode("utf-8", "replace"), str(folder / allow.path))
            found.faults += faults
            found.known += [(each, opened[1]) for each in entries]
            ended = sum(each.expires <= time.time() for each in entries)
            if ended:
                found.warnings.append(f"{allow.path}: {ended} of {len(entries)} known false positives have expired")
    return found


def key_beside(path: Path) -> Path:
    """Return where the key of an index is kept unless a reference names another place."""
    return path.with_name(path.name + ".key")


def key_of(path: Path, template: str | None) -> bytes:
    """Fetch the key of an index. Raises ``CredentialError``."""
    written = template if template is not None else f"${{file:{key_beside(path).resolve()}}}"
    return derive(resolve(written, "key").reveal())


def _open(
    found: Coded, where: str, key: str, place: tuple[Path, str | None], small: bool
) -> tuple[bytes, bytes] | None:
    """Read a file and its key."""
    path, template = place
    most = LIST_BYTES if small else INDEX_BYTES
    try:
        if path.stat().st_size > most:
            found.faults.append(Fault(where, key, f"{path}, a file that is too large", f"at most {most} bytes"))
            return None
        data = path.read_bytes()
        secret = key_of(path, template)
    except OSError as error:
        found.faults.append(Fault(where, key, f"{path}: {error.strerror or 'an error'}", "a file that can be read"))
        return None
    except CredentialError as error:
        found.faults.append(Fault(where, key, str(error), "the key the file was made with"))
        return None
    found.files.append((path.name, data))
    return data, secret


def _index(found: Coded, doc: DetectorDoc, where: str, data: bytes, key: bytes) -> None:
    exact = doc.kind == "edm"
    says = "A value of the table" if exact else "A part of a document of the index"
    rule = coded_rule(doc.name, doc.cls, f"{says} {doc.name}", Severity.HIGH, where)
    try:
        if exact:
            found.detectors.append(ExactMatch(data, key, rule, require=doc.require, window=doc.window))
        else:
            found.detectors.append(DocumentMatch(data, key, rule, threshold=doc.threshold or DEFAULT_THRESHOLD))
    except IndexFault as fault:
        found.faults.append(Fault(where, doc.node.key, fault.found, fault.accepted))


def _canaries(found: Coded, doc: DetectorDoc, where: str, data: bytes, key: bytes) -> None:
    canaries, faults = read_canaries(data.decode("utf-8", "replace"), where)
    found.faults += faults
    for each in canaries:
        rule = canary.canary_rule(each, doc.cls, where)
        if rule.id in found.checks or rule.id in {one.id for one in found.coded_rules}:
            found.faults.append(Fault(where, doc.node.key, f"a second one named {each.name}", "each name once"))
        found.rules.append(rule)
        found.checks[rule.id] = canary.check(each, key)


def whole_only(rules: Sequence[Rule], acts: Mapping[str, str]) -> list[str]:
    """Say for each detector that acts on answers that streams are not searched for it. ``acts``: class to action."""
    return [
        f"inspection.response.{rule.cls} is {acts[rule.cls]}, but {rule.id} looks at whole texts only: "
        "a streamed answer is not searched for it"
        for rule in rules
        if acts.get(rule.cls) in ("redact", "block", "flag")
    ]


def scored_whole_only(firsts: Sequence[Rule], acts: Mapping[str, str]) -> list[str]:
    """Say the same for each pack of hints, of which ``firsts`` holds one rule."""
    return [
        f"inspection.response.{rule.cls} is {acts[rule.cls]}, but the pack {rule.pack} is scored and looks at whole "
        "texts only: a streamed answer is not searched for it"
        for rule in firsts
        if acts.get(rule.cls) in ("redact", "block", "flag")
    ]
