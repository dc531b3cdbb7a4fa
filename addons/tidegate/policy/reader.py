"""Reads typed values out of a ``Node`` tree and collects a fault for each one that is not what is accepted. Pure."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tidegate.model import Fault
from tidegate.policy.source import Node

BYTES = "a number of bytes such as 65536, 512KiB or 4MiB"
SECONDS = "a time such as 250ms, 120s, 10m or 1h"
NAME = "a name of lower-case letters, digits and hyphens that starts with a letter"
SHARE = "a number above 0, up to 1"

BYTES_PATTERN = r"([0-9]{1,9})\s?(B|KiB|MiB|GiB|kB|MB|GB)?"
SECONDS_PATTERN = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s?(ms|s|m|h|d)"
NAME_PATTERN = "[a-z][a-z0-9-]{0,62}"

_BYTES = re.compile(BYTES_PATTERN)
_BYTE_UNITS = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SECONDS = re.compile(SECONDS_PATTERN)
_SECOND_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME = re.compile(NAME_PATTERN)

E = TypeVar("E", bound=enum.StrEnum)


class Reader:
    """Reads one file. Every method answers with a usable value, and notes a fault when it had to invent it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []

    def fault(self, node: Node, accepted: str, found: str | None = None, key: str | None = None) -> None:
        """Note that a value is not accepted; ``found`` replaces its text where it must not be shown."""
        self.faults.append(
            Fault(
                f"{self.file}:{node.line}",
                (node.key if key is None else key) or "the file",
                node.found if found is None else found,
                accepted,
            )
        )

    def section(self, node: Node, keys: Sequence[str], required: Mapping[str, str] | None = None) -> dict[str, Node]:
        """Read a mapping. Unknown keys and missing required ones (key: what is accepted) are faults."""
        if not isinstance(node.value, Mapping):
            self.fault(node, f"a mapping with the keys {', '.join(keys)}")
            return {}
        prefix = f"{node.key}." if node.key else ""
        for name, child in node.value.items():
            if name not in keys:
                self.fault(child, f"the keys {', '.join(keys)}", found="an unknown key")
        for name, accepted in (required or {}).items():
            if name not in node.value:
                self.fault(node, accepted, found="nothing", key=f"{prefix}{name}")
        return {name: child for name, child in node.value.items() if name in keys}

    def entries(self, node: Node | None) -> dict[str, Node]:
        """Read a mapping whose keys are names of the user's."""
        if node is None:
            return {}
        if not isinstance(node.value, Mapping):
            self.fault(node, "a mapping")
            return {}
        return dict(node.value)

    def items(self, node: Node | None, accepted: str = "a list") -> tuple[Node, ...]:
        """Read a list; a missing one is empty."""
        if node is None:
            return ()
        if not isinstance(node.value, tuple):
            self.fault(node, accepted)
            return ()
        return node.value

    def text(self, node: Node | None, accepted: str, default: str = "") -> str:
        """Read a text that is not empty."""
        if node is None:
            return default
        if isinstance(node.value, str) and node.value.strip():
            return node.value
        self.fault(node, accepted)
        return default

    def texts(self, node: Node | None, accepted: str) -> tuple[Node, ...]:
        """Read a list of at least one text; the nodes hold ``str``. A missing one is empty."""
        found = self.items(node, accepted)
        if node is not None and node.value == ():
            self.fault(node, accepted, found="an empty list")
        for each in found:
            if not isinstance(each.value, str) or not each.value:
                self.fault(each, accepted)
        return tuple(each for each in found if isinstance(each.value, str) and each.value)

    def name(self, node: Node | None) -> str:
        """Read a name."""
        if node is None:
            return ""
        if isinstance(node.value, str) and _NAME.fullmatch(node.value):
            return node.value
        self.fault(node, NAME)
        return ""

    def choice(self, node: Node | None, values: type[E], default: E, note: str = "") -> E:
        """Read one word of an enum."""
        if node is None:
            return default
        try:
            return values(str(node.value))
        except ValueError:
            self.fault(node, " or ".join(values) + note)
            return default

    def flag(self, node: Node | None, default: bool) -> bool:
        """Read true or false."""
        if node is None:
            return default
        if isinstance(node.value, bool):
            return node.value
        self.fault(node, "true or false")
        return default

    def count(self, node: Node | None, accepted: str) -> int | None:
        """Read a whole number above zero."""
        if node is None:
            return None
        if isinstance(node.value, int) and not isinstance(node.value, bool) and node.value > 0:
            return node.value
        self.fault(node, accepted)
        return None

    def share(self, node: Node | None) -> float | None:
        """Read a number above zero, up to 1."""
        if node is None:
            return None
        if isinstance(node.value, int | float) and not isinstance(node.value, bool) and 0 < node.value <= 1:
            return float(node.value)
        self.fault(node, SHARE)
        return None

    def bytes(self, node: Node | None) -> int | None:
        """Read a size in bytes, above zero."""
        if node is None:
            return None
        found = None if isinstance(node.value, bool) else _BYTES.fullmatch(str(node.value))
        size = 0 if found is None else int(found[1]) * _BYTE_UNITS[found[2]]
        if size <= 0:
            self.fault(node, BYTES)
            return None
        return size

    def seconds(self, node: Node | None) -> float | None:
        """Read a time with its unit, in seconds, above zero."""
        if node is None:
            return None
        found = _SECONDS.fullmatch(node.value) if isinstance(node.value, str) else None
        value = 0.0 if found is None else float(found[1]) * _SECOND_UNITS[found[2]]
        if value <= 0 or not math.isfinite(value):
            self.fault(node, SECONDS)
            return None
        return value
