"""What the commands share: the policy option, loading, and how faults are told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from tidegate.places import default_policy, shipped_packs
from tidegate.policy.policy import Policy, PolicyError

if TYPE_CHECKING:
    from tidegate.inspection.engine import Engine

policy_option = click.option(
    "--policy",
    "policy_path",
    type=click.Path(path_type=Path),
    default=None,
    show_default="rules/policy.yaml",
    help="The policy file.",
)
packs_option = click.option(
    "--pack",
    "packs",
    multiple=True,
    metavar="PACK",
    help="Only this pack: the name of one that is loaded, or the path of a pack's file; repeat.",
)
rules_option = click.option(
    "--policy",
    "policy_path",
    type=click.Path(path_type=Path),
    default=None,
    show_default="the shipped packs",
    help="Take the packs of this policy.",
)


def policy_file(path: Path | None) -> Path:
    """Return the policy that is meant."""
    return default_policy() if path is None else path


def load_policy(path: Path | None) -> Policy:
    """Load a policy; faults are shown and end the command with 1."""
    from tidegate.inspection.cache import DiskCache
    from tidegate.policy.loading import load

    try:
        return load(policy_file(path), engine_cache=DiskCache())
    except PolicyError as error:
        raise click.exceptions.Exit(show_faults(error)) from None


def show_faults(error: PolicyError) -> int:
    """Show every fault on stderr; return the exit code for it."""
    console = Console(stderr=True)
    for fault in error.faults:
        console.print(str(fault), style="red", markup=False, highlight=False, soft_wrap=True)
    count = len(error.faults)
    console.print(f"{count} fault{'s' if count != 1 else ''}; nothing was started or changed.", style="bold")
    return 1


def load_engine(packs: Sequence[str], policy_path: Path | None, *, failed: int = 1) -> Engine:
    """Compile the rules that ``--pack`` and ``--policy`` name; faults are shown and end the command with ``failed``."""
    from tidegate.inspection.cache import DiskCache
    from tidegate.inspection.engine import build
    from tidegate.policy.loading import load, load_packs

    logging.getLogger("pypdf").addHandler(logging.NullHandler())  # its warnings may quote a document
    cache = DiskCache()
    own = [Path(each) for each in packs if _is_path(each)]
    names = {each for each in packs if not _is_path(each)}
    try:
        if policy_path is not None:
            engine = load(policy_path, engine_cache=cache).engine
        elif own and not names:
            return load_packs(own, engine_cache=cache, detectors=False)
        else:
            engine = load_packs([*shipped_packs(), *own], engine_cache=cache)
    except PolicyError as error:
        show_faults(error)
        raise click.exceptions.Exit(failed) from None
    known = {rule.pack for rule in engine.rules}
    if unknown := sorted(names - known):
        raise click.BadParameter(
            f"found {unknown[0]}; accepted: {', '.join(sorted(known))}, or a path", None, None, "--pack"
        )
    if not names:
        return engine
    files = {str(path) for path in own}
    return build([rule for rule in engine.rules if rule.pack in names or rule.file in files], cache)


def _is_path(pack: str) -> bool:
    return "/" in pack or pack.endswith((".yaml", ".yml"))
