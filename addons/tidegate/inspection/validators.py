"""Second looks at a matched span: pure functions of the matched bytes alone, named in a rule's ``validators``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

VALIDATORS: Mapping[str, Callable[[bytes], bool]] = {}
