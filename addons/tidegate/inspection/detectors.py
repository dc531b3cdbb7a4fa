"""Coded detectors: rules of another package with code of their own, found by the entry point ``tidegate.detectors``.

A detector is a pack and the validators its rules name. Its patterns say where to look, its code decides; so a stream
and a whole text agree about it, and it is as bounded as any other rule. How to write one: docs/rules.md.

    DetectorError  the code of a detector failed while it looked at a text: what it was asked about is refused
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Fault

GROUP = "tidegate.detectors"

type Check = Callable[[bytes], bool]


class DetectorError(Exception):
    """The code of a detector failed. The message names the detector's check and never what it looked at."""


@dataclass(frozen=True, slots=True)
class Detector:
    """What an entry point leads to. ``pack`` is the YAML text of a pack; ``checks`` are validators by short name.

    A rule of the pack names a check as ``NAME:CHECK``, ``NAME`` being the entry point's. A check gets the span (the
    value group, or the whole match) as UTF-8 bytes, returns ``True`` to keep it, and depends on nothing but the span.
    """

    pack: str
    checks: Mapping[str, Check] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plugged:
    """An installed detector. ``name`` is its entry point's, ``version`` that of the distribution it comes from."""

    name: str
    version: str
    pack: str

    @property
    def file(self) -> str:
        """What messages call its pack, which is no file."""
        return f"detector {self.name}"


def plugged() -> tuple[tuple[Plugged, ...], tuple[Fault, ...]]:
    """Load every installed detector and make its checks known as validators; what is wrong with one is a fault."""
    found: dict[str, Plugged] = {}
    faults: list[Fault] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        where = f"detector {entry.name}"
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", entry.name):
            faults.append(Fault(where, "the entry point's name", entry.name, "lower-case letters, digits and hyphens"))
        elif entry.name in found:
            faults.append(Fault(where, GROUP, "a second entry point of this name", "each name once"))
        elif isinstance(detector := _loaded(entry), Fault):
            faults.append(detector)
        else:
            for name, check in detector.checks.items():
                VALIDATORS[f"{entry.name}:{name}"] = _guarded(f"{entry.name}:{name}", check)
            version = entry.dist.version if entry.dist is not None else ""
            found[entry.name] = Plugged(entry.name, version, str(detector.pack))
    return tuple(found.values()), tuple(faults)


def _loaded(entry: EntryPoint) -> Detector | Fault:
    where = f"detector {entry.name}"
    try:
        detector = entry.load()
    except Exception as error:  # noqa: BLE001 - whatever an import raises: the policy is refused with this fault
        return Fault(
            where, entry.value, f"{type(error).__name__} while it was imported", "a module that can be imported"
        )
    if not isinstance(detector, Detector):
        accepted = "an object of tidegate.inspection.detectors.Detector"
        return Fault(where, entry.value, f"an object of {type(detector).__name__}", accepted)
    if not all(callable(each) for each in detector.checks.values()):
        return Fault(where, entry.value, "a check that is no function", "functions")
    return detector


def _guarded(name: str, check: Check) -> Check:
    """Turn whatever a check does but answer into one error without the value in it."""

    def ask(span: bytes) -> bool:
        failed, answer = "", None
        try:
            answer = check(span)
        except Exception as error:  # noqa: BLE001 - it is raised again below, without the text it may hold
            failed = f"raised {type(error).__name__}"
        if isinstance(answer, bool):
            return answer
        raise DetectorError(f"the check {name} of a detector {failed or 'answered neither True nor False'}")

    return ask
