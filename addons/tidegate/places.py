"""Where the rules are: in the working directory, in the checkout, or where an installed wheel put them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLED = Path(sysconfig.get_path("data")) / "share" / "tidegate"


def default_policy() -> Path:
    """Find ``rules/policy.yaml``: the working directory's first, so that a person's own rules win.

    When there is none at all, the working directory's path is returned, for the message that it is missing.
    """
    here = Path("rules/policy.yaml")
    for candidate in (here, CHECKOUT / here, INSTALLED / here):
        if candidate.is_file():
            return candidate
    return here


def shipped_packs() -> tuple[Path, ...]:
    """Return the files of the packs that come with tidegate, whatever the working directory holds."""
    for top in (CHECKOUT, INSTALLED):
        if found := sorted((top / "rules" / "packs").glob("*.yaml")):
            return tuple(found)
    return ()
