"""The tables of ``scripts/bench --detection``: on a terminal, and as they stand in docs/detection.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

type Cells = Sequence[object]
type Table = tuple[str, str, Cells, list[Cells]]  # title, sentence, headings, rows


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """Return every table of a run."""
    yield (
        "Secrets",
        (
            "Rows in which a rule of the class secrets finds something, and without rules that only record; negatives"
            " that a label's own rules flag (those that fire on its positives), the same by rules that name a provider."
        ),
        (
            "source",
            "`scope: rule`",
            "recall",
            "`scope: global`",
            "recall",
            "enforced",
            "negatives",
            "own rule",
            "own, named",
            "any rule",
        ),
        [
            (
                line["source"],
                line["rule_rows"],
                percent(line["rule_recall"]),
                line["global_rows"],
                percent(line["global_recall"]),
                percent(line["enforced_recall"]),
                line["negatives"],
                f"{line['own_rule_flags']} ({percent(line['own_rate'])})",
                f"{line['provider_rule_flags']} ({percent(line['provider_rate'])})",
                line["any_rule_flags"],
            )
            for line in found["secrets"]
        ],
    )
    yield from benign(found["benign"])
    yield from pii(found["pii"])
    yield from injection(found["injection"])
    techniques = found["obfuscated"]
    total, hit = sum(line["rows"] for line in techniques), sum(line["found"] for line in techniques)
    yield (
        "Obfuscated",
        f"Of what is found in plain {hit} of {total} rows are found obfuscated ({percent(hit / (total or 1))}).",
        ("technique", "rows", "found", "rate"),
        [(line["technique"], line["rows"], line["found"], percent(line["rate"])) for line in techniques],
    )
    files = found["attachments"]
    missing = ", ".join(each["file"] for each in files if not each["found"])
    yield (
        "Attachments",
        f"The marker is found in {sum(each['found'] for each in files)} of {len(files)} files sent as data: URLs.",
        ("", ""),
        [("not in", missing)] if missing else [],
    )
    yield from speed(found)
    if "peers" in found:
        yield peers(found["peers"])


def benign(found: dict[str, Any]) -> Iterator[Table]:
    true = "; ".join(f"{count} {why}" for why, count in found["true"].items())
    levels = ", ".join(f"{level} {percent(rate)}" for level, rate in found["by_severity_from"].items())
    yield (
        "False findings",
        (
            f"Of {found['rows']} benign look-alikes {found['flagged']} are flagged ({percent(found['rate'])}), "
            f"{percent(found['rate_without_decoding'])} without decoding; {percent(found['secrets_rate'])} as secrets. "
            "Flagged is what the default policy acts on: every severity, but not rules of mode observe; with those "
            f"{found['recorded']} rows are recorded. True findings by reading: {true or 'none'}; without them "
            f"{percent(found['rate_without_true'])}. "
            f"By the severity from which findings count: {levels}. Classes without a false finding are left out."
        ),
        ("class", "rows", "flagged", "as secrets", "rules"),
        [
            (line["class"], line["rows"], line["flagged"], line["secrets"], ", ".join(line["rules"]))
            for line in found["by_class"]
            if line["flagged"]
        ],
    )


GROUPS = {
    "checked": "whose value tells what it is: a check digit, a checksum or a form of its own",
    "named": "whose value needs its name beside it",
    "uncovered": "that rules do not cover: words, dates, pages",
    "unsorted": "that are in none of these groups yet",
}


def pii(found: dict[str, Any]) -> Iterator[Table]:
    """Return the tables of personal data: sentences, then single examples, each by group of entities."""
    for name, words in GROUPS.items():
        lines = [line for line in found["sentences"] if line["group"] == name]
        if lines:
            yield (
                f"Personal data in sentences: {name}",
                f"Entities {words}.",
                ("entity", "spans", "found", "recall", "acted on"),
                [
                    (line["entity"], line["rows"], line["found"], percent(line["recall"]), line["acted"])
                    for line in lines
                ],
            )
    for name, words in GROUPS.items():
        lines = [line for line in found["tests"] if line["group"] == name]
        total = found["tests_total"][name]
        if lines:
            yield (
                f"Personal data, one by one: {name}",
                (
                    f"Entities {words}. {percent(total['recall'])} of {total['rows']} found, {total['acted']} of them "
                    f"acted on; without the {total['bare']} rows that are nothing but up to nine digits "
                    f"{percent(total['recall_told'])}. {percent(total['rate'])} of {total['negatives']} negatives "
                    f"flagged by a rule for that entity, {total['any']} by any. "
                    f"{total['torn']} rows that say both are left out."
                ),
                (
                    "entity",
                    "form",
                    "rows",
                    "bare",
                    "found",
                    "acted on",
                    "recall",
                    "without bare",
                    "negatives",
                    "flagged",
                ),
                [
                    (
                        *(line[key] for key in ("entity", "why", "rows", "bare", "found", "acted")),
                        percent(line["recall"]),
                        percent(line["recall_told"]),
                        line["negatives"],
                        line["flagged"],
                    )
                    for line in lines
                ],
            )


def injection(found: dict[str, Any] | None) -> Iterator[Table]:
    if found is None:
        yield "Injection", "There is no pack of the class injection: nothing was measured.", ("", ""), []
        return
    rows: list[Cells] = []
    for line in found["by_source"]:
        labels = ", ".join(f"{label} {hit}/{of}" for label, (hit, of) in line["labels"].items())
        rows.append((line["source"], line["how"], line["rows"], percent(line["recall"]), labels))
    falsely = ", ".join(f"{how} {found[how]['false']} of {found[how]['benign_rows']}" for how in ("rules", "keywords"))
    scans = "".join(
        f" The scan for hints takes {each['p50_us']} microseconds of CPU per {each['size']} of those benign rows"
        f" (p99 {each['p99_us']})."
        for each in found.get("first_pass", ())
    )
    said = (
        f"Recall at 1 % false positives on the benign rows of the same corpora ({falsely}), beside a list of keywords."
    )
    yield (
        "Injection",
        said + scans,
        ("source", "by", "rows", "recall", "largest labels"),
        sorted(rows, key=str),
    )


def speed(found: dict[str, Any]) -> Iterator[Table]:
    figures = ("p50", "p99", "max")
    yield (
        "Speed",
        (
            "Milliseconds per text: processor time, in brackets wall time. Texts not seen before, one in five with a"
            " secret; in the last line request bodies under the shipped policy, all seen before but a turn of 1 KB."
        ),
        ("size", "texts", "p50", "p99", "worst"),
        [
            (line["size"], line["texts"], *(f"{line[f'cpu_{each}_ms']} ({line[f'{each}_ms']})" for each in figures))
            for line in found["speed"]
        ],
    )
    hostile = found["hostile"]
    yield (
        "Hostile inputs",
        (
            f"{hostile['inputs']} adversarial inputs, processor time: the slowest takes "
            f"{hostile['slowest_ms_per_32_kb']} ms per 32 KB"
            f" (rules {', '.join(hostile['slowest_rules']) or 'none'}) "
            f"(median {hostile['median_ms_per_32_kb']}); from 8 to 32 KB time grows at most "
            f"{hostile['most_above_linear']} times as much as the length (inputs above 1 ms)."
        ),
        ("", ""),
        [],
    )


def peers(found: list[dict[str, Any]]) -> Table:
    sources = list(found[0]["recall"]) if found else []
    return (
        "Peers",
        (
            "The same rows, the same machine; a row counts when anything is found, and a slow scanner gets to a part"
            " of them only. Time: median per 4 KB of text not seen. detect-secrets is circular on its own source."
        ),
        ("scanner", "rows", *sources, "benign flagged", "ms per 4 KB"),
        [
            (
                line["scanner"],
                line["rows"],
                *[percent(line["recall"][name]) for name in sources],
                percent(line["benign"]),
                line["ms"],
            )
            if "recall" in line
            else (line["scanner"], line["why"])
            for line in found
        ],
    )


def percent(rate: float | None) -> str:
    """Write a rate; rates below one percent with one digit more."""
    return "–" if rate is None else f"{rate:.2%}" if 0 < rate < 0.01 else f"{rate:.1%}"


def document(found: dict[str, Any]) -> str:
    """Write the tables as Markdown."""
    packs = ", ".join(f"{name} {count}" for name, count in found["rules"].items())
    machine = found["machine"]
    lines = [f"Rules: {packs}. Python {machine['python']}, {machine['system']}, {machine['cores']} cores.", ""]
    for title, sentence, headings, rows in tables(found):
        lines += [f"### {title}", "", sentence, ""]
        if rows:
            lines += [_line(headings), _line(["---"] * len(headings)), *map(_line, rows), ""]
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(each).replace("|", "\\|") for each in cells) + " |"


def show(found: dict[str, Any]) -> None:
    """Print the tables on a terminal."""
    from rich.console import Console
    from rich.table import Table as Grid

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=160)
    for title, sentence, headings, rows in tables(found):
        console.print(f"\n[bold]{title}[/bold]. {sentence}", highlight=False)
        grid = Grid(box=None, header_style="bold", pad_edge=False)
        for heading in headings:
            grid.add_column(str(heading).replace("`", ""))
        for row in rows:
            grid.add_row(*map(str, row))
        if rows:
            console.print(grid)
