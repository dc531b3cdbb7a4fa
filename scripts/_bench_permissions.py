"""Measure what one decision of the permissions costs: one core, no network, the median of several rounds.

``decisions()`` gives each line as (name, limit in seconds or None, work, how often to do it), for other benches too. A
decision is both phases: the rules are found by the caller's roles, and every condition is asked on head and body.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tidegate.dialects.load import parse_dialect
from tidegate.identity.permission import admit, permit
from tidegate.model import Asked, Caller, Grant, Modality, Route, Situation
from tidegate.policy.linking import Parts, link
from tidegate.policy.reader import Reader
from tidegate.policy.schema import read
from tidegate.policy.source import parse

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
LIMIT = 30e-6
"""Seconds for a decision over 200 rules: a twentieth of what a request costs in all."""

Line = tuple[str, float | None, Callable[[], object], int]


class Permissions:
    """The permissions of a policy with these roles, and its connections."""

    def __init__(self, roles: dict[str, Any]) -> None:
        dialect, faults = parse_dialect((ROOT / "rules" / "dialects" / "openai.yaml").read_text(), "openai.yaml")
        assert dialect is not None, faults
        connections = [
            {"name": f"c{at}", "dialect": "openai", "upstream": f"https://c{at}.example", "labels": ["all"]}
            for at in range(10)
        ]
        groups = [{"groups": [f"corp:{name}"], "roles": [name]} for name in roles]
        whole = {
            "version": 1,
            "identity": [{"name": "corp", "static": {"tokens": "t.yaml"}}],
            "connections": connections,
            "roles": roles,
            "bindings": groups,
            "inspection": {"prompt": {}, "response": {}},
        }
        reader = Reader("policy.yaml")
        root, _ = parse(json.dumps(whole), "policy.yaml")
        assert root is not None
        found = link(reader, read(reader, root), Parts({"openai": dialect}, (), whole=True))
        assert not reader.faults, reader.faults
        self.permissions, self.connections = found.permissions, found.connections


def decisions() -> Iterator[Line]:
    """Return what is measured."""
    what = Asked("model-199", False, ("read_file",), 100, ("read_file",), 1, frozenset({Modality.TEXT}))
    here = Situation(1_770_000_000.0, "10.1.2.3", "POST", "/v1/chat/completions")
    one = {"connections": ["c0"], "endpoints": ["chat"]}

    def allow(at: int, **more: Any) -> dict[str, Any]:
        return {**one, "models": [f"model-{at}"], "limits": {"max_output_tokens": 1000}, **more}

    simple = Permissions({"r": {"allow": [{"connections": ["*"], "endpoints": ["*"]}]}})
    yield _line("one rule without conditions", None, simple, ["r"], what, here)
    few = Permissions(
        {"r": {"allow": [allow(199), allow(198)], "deny": [{"models": ["*-preview"]}, {"tools": ["bash"]}]}}
    )
    yield _line("four rules on models and tools", None, few, ["r"], what, here)

    spread = {
        f"r{role}": {"allow": [{**allow(at), "connections": [f"c{at % 10}"]} for at in range(role, 200, 10)]}
        for role in range(10)
    }
    yield _line("200 rules in 10 roles, on 10 connections", LIMIT, Permissions(spread), list(spread), what, here, "c9")
    at_one = {f"r{role}": {"allow": [allow(at) for at in range(role, 200, 10)]} for role in range(10)}
    yield _line("200 rules in 10 roles, all on one endpoint", LIMIT, Permissions(at_one), list(at_one), what, here)
    wild = {"r": {"allow": [allow(at, models=[f"*-{at}", f"x{at}*"]) for at in range(150)] + [allow(199)],
                  "deny": [{"models": [f"*-{at}-preview"]} for at in range(49)]}}  # fmt: skip
    yield _line("200 rules with patterns, 49 of them deny", LIMIT, Permissions(wild), ["r"], what, here)
    asks = {"hours": "00:00-24:00", "zone": "Europe/Berlin"}
    conditional = {
        "r": {"allow": [allow(at, sources=["10.0.0.0/8"], modalities=["text"]) for at in range(199)]
              + [allow(199, when=asks, sources=["10.0.0.0/8"], strength=["mfa"], max_age="8h")]}
    }  # fmt: skip
    yield _line("200 rules that all ask from where", None, Permissions(conditional), ["r"], what, here)

    patterns = Permissions(wild)
    names = iter(range(10**9))

    def new_model() -> object:
        return _decide(
            patterns,
            _caller(["r"]),
            Route(patterns.connections["c0"], "chat", "/x"),
            _named(what, f"y-{next(names)}"),
            here,
        )

    yield ("200 rules with patterns, a model never named before", None, new_model, 200)


def _named(what: Asked, model: str) -> Asked:
    return Asked(model, what.stream, what.tools, what.max_output, what.called, what.choices, what.modalities)


def _caller(groups: list[str]) -> Caller:
    names = frozenset(f"corp:{each}" for each in groups)
    return Caller("corp", "alice", names, strength=frozenset({"mfa"}), authenticated=1_770_000_000.0 - 60)


def _line(
    name: str, limit: float | None, found: Permissions, roles: list[str], what: Asked, here: Situation, at: str = "c0"
) -> Line:
    who, route = _caller(roles), Route(found.connections[at], "chat", "/v1/chat/completions")
    assert isinstance(_decide(found, who, route, what, here), Grant), name
    return name, limit, lambda: _decide(found, who, route, what, here), 2000


def _decide(found: Permissions, who: Caller, route: Route, what: Asked, here: Situation) -> object:
    grant = admit(found, route, who, here)  # type: ignore[arg-type]  # of a policy it asks for the permissions alone
    return permit(grant, what) if isinstance(grant, Grant) else grant


def main(words: list[str]) -> int:
    """Measure and print; 1 where a line passes its limit."""
    parser = argparse.ArgumentParser(prog="scripts/bench --permissions", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    options = parser.parse_args(words)
    rows = []
    for name, limit, work, often in decisions():
        rounds = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            for _ in range(often):
                work()
            rounds.append((time.process_time() - begin) / often)
        rows.append({"name": name, "us": round(statistics.median(rounds) * 1e6, 2), "limit_us": limit and limit * 1e6})
    bad = [row for row in rows if row["limit_us"] and row["us"] > row["limit_us"]]
    if options.json:
        print(json.dumps({"decisions": rows, "good": not bad}))
    else:
        for row in rows:
            most = f"  (limit {row['limit_us']:g})" if row["limit_us"] else ""
            print(f"{row['us']:8.2f} us  {row['name']}{most}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
