"""What a policy says of amounts: ``budgets``, and the price table that ``prices`` names. Pure."""

from __future__ import annotations

import decimal
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.limits.budgets import UNIT, Budget, Limit, Metric, Per
from tidegate.limits.prices import Price, Prices
from tidegate.model import Fault
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node, parse

BUDGET_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "budgets.NAME": ("per", "requests", "tokens", "spend", "concurrent", "answer"),
}
PRICE_KEYS = ("version", "currency", "models")
MODEL_KEYS = ("models", "input", "cached", "output")

EVERYONE = "everyone"
WINDOW = 1.0, 366 * 86400.0
"""Shortest and longest window in seconds: a step of the shortest is 17 ms, about as long as a commit takes."""

_RATE = re.compile(r"([0-9][0-9_]{0,17}(?:\.[0-9]{1,6})?)\s?/\s?([0-9]{0,9})\s?(s|m|h|d)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EXAMPLES = {Metric.REQUESTS: "100/1m", Metric.TOKENS: "200000/1h", Metric.SPEND: "50/1d"}
_PRICE = "a number, the price of a million tokens, such as 2.50"


@dataclass(frozen=True, slots=True)
class BudgetsDoc:
    """The budgets as written, by name, and the path of the price table."""

    budgets: Mapping[str, Budget] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    prices: Node | None = None


def read_budgets(reader: Reader, node: Node | None, prices: Node | None) -> BudgetsDoc:
    """Read ``budgets`` and ``prices``. Faults go to the reader."""
    table = prices if reader.text(prices, "the path of a price table, such as prices.yaml") else None
    nodes = reader.entries(node)
    budgets = {name: _budget(reader, name, each) for name, each in nodes.items()}
    for name, each in budgets.items():
        if Metric.SPEND in each.limits and prices is None:
            accepted = "spend in a policy with prices, the path of a price table"
            reader.fault(nodes[name], accepted, "spend without prices", key=f"{nodes[name].key}.spend")
    return BudgetsDoc(budgets, nodes, table)


def check_attached(reader: Reader, document: BudgetsDoc, attached: Sequence[Node]) -> tuple[str, ...]:
    """Report budgets that rules name and nobody has defined; return a warning for each that no rule names."""
    known = " or ".join(sorted(document.budgets)) or "a budget that stands under budgets"
    for each in attached:
        if each.value not in document.budgets:
            reader.fault(each, known)
    unused = sorted(set(document.budgets) - {str(each.value) for each in attached})
    return tuple(f"the budget {name} has no effect: no allow rule names it in limits.budgets" for name in unused)


def _budget(reader: Reader, name: str, node: Node) -> Budget:
    reader.name(Node(node.key, node.line, name))
    entry = reader.section(node, BUDGET_SECTIONS["budgets.NAME"])
    limits: dict[Metric, Limit] = {}
    for metric in Metric:
        found = _limit(reader, metric, entry[metric]) if metric in entry else None
        if found is not None:
            limits[metric] = found
    if isinstance(node.value, Mapping) and not {*Metric, "concurrent"} & set(entry):
        reader.fault(node, "at least one of requests, tokens, spend, concurrent", "no limit")
    return Budget(
        name=name,
        per=_per(reader, entry.get("per")),
        limits=limits,
        concurrent=reader.count(entry.get("concurrent"), "a whole number of requests above zero"),
        answer=reader.count(entry.get("answer"), "a whole number of tokens above zero") or 4096,
    )


def _per(reader: Reader, node: Node | None) -> tuple[Per, ...]:
    if node is None:
        return (Per.CALLER,)
    if node.value == EVERYONE:
        return ()
    accepted = f"{EVERYONE}, or one or several of {', '.join(Per)}"
    one = isinstance(node.value, str)
    found = (node,) if one else reader.texts(node, accepted)
    for each in found:
        if each.value not in set(Per):
            reader.fault(each, accepted)
    return tuple(dict.fromkeys(Per(str(each.value)) for each in found if each.value in set(Per)))


def _limit(reader: Reader, metric: Metric, node: Node) -> Limit | None:
    accepted = f"an amount in a window, such as {_EXAMPLES[metric]}, with a window from 1s to 366d"
    found = _RATE.fullmatch(node.value) if isinstance(node.value, str) else None
    whole = metric is not Metric.SPEND
    if found is None or (whole and "." in found[1]):
        reader.fault(node, accepted)
        return None
    amount = decimal.Decimal(found[1].replace("_", ""))
    most = int(amount if whole else amount * UNIT)
    window = float(found[2] or "1") * _UNITS[found[3]]
    if most <= 0 or not WINDOW[0] <= window <= WINDOW[1]:
        reader.fault(node, accepted)
        return None
    return Limit(most, window)


def parse_prices(text: str, file: str) -> tuple[Prices | None, tuple[Fault, ...]]:
    """Read a price table. Returns it and no faults, or ``None`` and every fault of the file."""
    root, faults = parse(text, file)
    if root is None:
        return None, faults
    reader = Reader(file)
    required = {"version": "1", "currency": "a currency, such as USD", "models": "a list of prices"}
    top = reader.section(root, PRICE_KEYS, required)
    if "version" in top and (top["version"].value != 1 or isinstance(top["version"].value, bool)):
        reader.fault(top["version"], "1")
    currency = reader.text(top.get("currency"), "a currency, such as USD")
    entries = tuple(_price(reader, each) for each in reader.items(top.get("models"), "a list of prices"))
    faults += tuple(reader.faults)
    return (None if faults else Prices(currency, entries)), faults


def _price(reader: Reader, node: Node) -> Price:
    models = "a list of names in which * stands for any text"
    entry = reader.section(node, MODEL_KEYS, {"models": models, "input": _PRICE, "output": _PRICE})
    read, written = (_amount(reader, entry.get(each)) for each in ("input", "output"))
    return Price(
        models=tuple(str(each.value) for each in reader.texts(entry.get("models"), models)),
        input=read,
        cached=_amount(reader, entry["cached"]) if "cached" in entry else read,
        output=written,
    )


def _amount(reader: Reader, node: Node | None) -> int:
    """Read a price for a million tokens, as parts of ``UNIT`` for one."""
    if node is None:
        return 0
    value = node.value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1_000_000:
        found = decimal.Decimal(str(value)) * UNIT / 1_000_000
        if found == int(found):
            return int(found)
    reader.fault(node, f"{_PRICE}, with at most six decimals")
    return 0
