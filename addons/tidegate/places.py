"""Where the rules are: in the working directory, in the checkout, or beside an installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def default_policy() -> Path:
    """Find ``rules/policy.yaml``: the working directory's first, so that a person's own rules win.

    When there is none at all, the working directory's path is returned, for the message that it is missing.
    """
    here = Path("rules/policy.yaml")
    for candidate in (here, PACKAGE.parents[1] / "rules" / "policy.yaml", PACKAGE / "_rules" / "policy.yaml"):
        if candidate.is_file():
            return candidate
    return here
