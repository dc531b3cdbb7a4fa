"""``tidegate rules``: what the rules are, whether their examples hold, and how they do on labelled texts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli_common import load_engine, packs_option, rules_option

if TYPE_CHECKING:
    from tidegate.inspection.rules import Rule
    from tidegate.measuring import Measured, Tally

json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group()
def rules() -> None:
    """Look at the detection rules, try them, and measure them."""


@rules.command("list")
@packs_option
@rules_option
@click.option("--class", "cls", help="Only rules of this class, such as secrets or pii.")
@click.option("--severity", type=click.Choice(["low", "medium", "high", "critical"]), help="Only this severity.")
@json_option
def rules_list(
    packs: Sequence[str], policy_path: Path | None, cls: str | None, severity: str | None, *, as_json: bool
) -> None:
    """List the rules."""
    every = load_engine(packs, policy_path).rules
    chosen = [each for each in every if cls in (None, each.cls) and severity in (None, str(each.severity))]
    if as_json:
        for each in chosen:
            click.echo(json.dumps(_brief(each)))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("rule", "class", "severity"):
        table.add_column(heading, no_wrap=True)
    table.add_column("description")
    for each in chosen:
        observed = " (observe)" if each.observe else ""
        table.add_row(Text(each.id), Text(each.cls), Text(each.severity), Text(each.description + observed))
    _console().print(table)
    click.echo(f"{len(chosen)} of {len(every)} rules", err=True)


def _console() -> Console:
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=160)  # a pipe has no width


def _brief(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.id,
        "class": rule.cls,
        "pack": rule.pack,
        "severity": str(rule.severity),
        "mode": "observe" if rule.observe else None,
        **({"score": rule.score} if rule.score is not None else {}),
        "description": rule.description,
    }


def _named(every: Iterable[Rule], name: str) -> Rule:
    """Find a rule by its full id, or by its name where only one rule has it."""
    found = [each for each in every if name in (each.id, each.id.partition(".")[2])]
    if exact := [each for each in found if each.id == name]:
        return exact[0]
    if len(found) != 1:
        several = ", ".join(each.id for each in found)
        raise click.ClickException(
            f"found {several} for {name}; accepted: one of these ids."
            if found
            else f"found no rule {name}; accepted: an id that `tidegate rules list` shows."
        )
    return found[0]


@rules.command("show")
@click.argument("rule_id", metavar="ID")
@packs_option
@rules_option
@json_option
def rules_show(rule_id: str, packs: Sequence[str], policy_path: Path | None, *, as_json: bool) -> None:
    """Show everything of one rule, its examples too. ID is a full id, or the name after the pack's."""
    rule = _named(load_engine(packs, policy_path).rules, rule_id)
    lists = {
        "validators": list(rule.validators),
        "references": list(rule.references),
        "match": list(rule.match),
        "pass": list(rule.passes),
    }
    plain = _brief(rule) | {"file": rule.file, "pattern": rule.pattern}
    if rule.score is not None:
        plain |= {"threshold": rule.threshold}
    if rule.end is not None:
        plain |= {"end": rule.end, "max": rule.cap}
    if as_json:
        click.echo(json.dumps(plain | lists))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in plain.items():
        if value is not None:
            table.add_row(Text(key, "bold"), Text(str(value), overflow="fold"))
    for key, values in lists.items():
        for number, value in enumerate(values):
            table.add_row(Text("" if number else key, "bold"), Text(value, overflow="fold"))
    _console().print(table)


@rules.command("test")
@packs_option
@rules_option
@click.option("--rule", "rule_id", metavar="ID", help="Try this rule on a text instead of running the examples.")
@click.option("--text", help="The text to try, or - for standard input.")
def rules_test(packs: Sequence[str], policy_path: Path | None, rule_id: str | None, text: str | None) -> None:
    """Run every example of every rule, or one rule on a text of your own.

    Exit code: 0 when all examples hold, or the rule finds something; else 1.
    """
    if (rule_id is None) != (text is None):
        raise click.UsageError("found one of --rule and --text; accepted: both, or neither to run the examples")
    engine = load_engine(packs, policy_path)  # loading runs every example
    if rule_id is None or text is None:
        count = sum(len(rule.match) + len(rule.passes) for rule in engine.rules)
        click.echo(f"{len(engine.rules)} rules, {count} examples: all hold")
        return
    _try(_named(engine.rules, rule_id), sys.stdin.read() if text == "-" else text)


def _try(rule: Rule, text: str) -> None:
    from tidegate.inspection.engine import build
    from tidegate.inspection.findings import inspect_text
    from tidegate.scanning import locate

    alone = replace(rule, threshold=0.0)  # a hint is shown even where it would not be enough
    found = inspect_text(build([alone], None), text)
    for each in locate(text, found):
        span = f"characters {each.finding.start} to {each.finding.end}"
        click.echo(f"{rule.id} finds something at {each.line}:{each.column} ({span}): {each.excerpt}")
    if not found:
        click.echo(f"{rule.id} finds nothing")
        raise click.exceptions.Exit(1)


@rules.command("stats")
@packs_option
@rules_option
@json_option
def rules_stats(packs: Sequence[str], policy_path: Path | None, *, as_json: bool) -> None:
    """Count the rules by pack, class and severity."""
    from tidegate.inspection.rules import Severity

    every = load_engine(packs, policy_path).rules
    counts = Counter((each.pack, each.cls, str(each.severity)) for each in every)
    kinds = sorted({(pack, cls) for pack, cls, _ in counts})
    if as_json:
        found = [{"pack": pack, "class": cls, "severity": at, "rules": n} for (pack, cls, at), n in counts.items()]
        examples = sum(len(each.match) + len(each.passes) for each in every)
        click.echo(json.dumps({"rules": len(every), "examples": examples, "counts": found}))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("pack")
    table.add_column("class")
    for heading in (*Severity, "rules", "examples"):
        table.add_column(str(heading), justify="right")
    for pack, cls in kinds:
        each = [rule for rule in every if (rule.pack, rule.cls) == (pack, cls)]
        levels = [str(counts[pack, cls, str(level)]) for level in Severity]
        table.add_row(pack, cls, *levels, str(len(each)), str(sum(len(r.match) + len(r.passes) for r in each)))
    _console().print(table)
    click.echo(f"{len(every)} rules", err=True)


@rules.command("bench")
@click.argument("labelled", metavar="LABELLED.jsonl", type=click.Path(path_type=Path))
@packs_option
@rules_option
@json_option
def rules_bench(labelled: Path, packs: Sequence[str], policy_path: Path | None, *, as_json: bool) -> None:
    """Measure recall and precision by class and by label on rows {"text", "class", "label", "expect"}."""
    from tidegate import measuring
    from tidegate.inspection.findings import inspect_text
    from tidegate.scanning import ScanError, rows

    engine = load_engine(packs, policy_path)
    try:
        with labelled.open("rb") as stream:
            found = measuring.measure(
                (row for _, _, row in rows(stream, str(labelled))),
                lambda text: inspect_text(engine, text),
                {rule.cls for rule in engine.rules},
            )
    except OSError as error:
        raise click.ClickException(f"{labelled}: cannot be read ({error.strerror}).") from None
    except ScanError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(measuring.as_json(found)))
    else:
        _console().print(_tallies(found))


def _tallies(measured: Measured) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    table.add_column("label")
    for heading in ("expected", "found", "recall", "clean", "flagged", "precision"):
        table.add_column(heading, justify="right")
    for cls, tally in measured.classes.items():
        table.add_row(Text(cls, "bold"), Text("all", "bold"), *_cells(tally))
    table.add_section()
    for (cls, label), tally in measured.labels.items():
        table.add_row(Text(cls), Text(label), *_cells(tally))
    return table


def _cells(tally: Tally) -> list[str]:
    recall = "" if tally.recall is None else f"{tally.recall:.3f}"
    precision = "" if tally.precision is None else f"{tally.precision:.3f}"
    return [str(tally.expected), str(tally.found), recall, str(tally.clean), str(tally.flagged), precision]
