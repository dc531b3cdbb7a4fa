"""What ``tidegate scan`` does: files, folders and rows of JSON in, findings out. No value that was found leaves it.

ScanError   something cannot be scanned: one sentence that names it
"""

from __future__ import annotations

import json
import os
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.inspection.attachments import Extraction, Text
from tidegate.inspection.attachments.found import UNKNOWN
from tidegate.inspection.attachments.kinds import UNREADABLE, Kind, kinds
from tidegate.inspection.engine import Engine
from tidegate.inspection.findings import TextFinding, inspect_text
from tidegate.inspection.rules import Severity
from tidegate.streams.redactor import placeholder, short_name

MAX_FILE = 64 * 1024 * 1024
"""Bytes of a file that is read as one text; what git hosts take is 100 MB at most, and sources are far below."""
SNIFFED = 8000
"""Bytes looked at for a NUL, as git does to tell binary files."""
EXCERPT = 60
"""Characters of a line that are shown around a finding."""
_LEVELS = list(Severity)
_DOCUMENTS = frozenset((Kind.PDF, Kind.RTF, Kind.ZIP, Kind.TAR, Kind.GZIP, Kind.BZIP2, Kind.XZ, Kind.SQLITE, Kind.MAIL))
"""What is read as a document; notebooks, HTML and XML have lines, and are read as the texts they are."""


class ScanError(Exception):
    """Something cannot be scanned; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Located:
    """A finding with its place in a text: ``line`` and ``column`` count from 1; ``excerpt`` is its line, masked."""

    finding: TextFinding
    line: int
    column: int
    excerpt: str


def files(paths: Iterable[str]) -> Iterator[Path]:
    """Return the files that are named, and all below a named folder but ``.git``; links are not followed there.

    Raises ``ScanError`` for a path that does not exist.
    """
    for each in paths:
        path = Path(each)
        if path.is_dir():
            yield from _below(path)
        elif path.exists():
            yield path
        else:
            raise ScanError(f"{each}: found nothing there; accepted: a file, a folder or - for standard input")


def _below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise ScanError(f"{error.filename}: cannot be listed ({error.strerror})")

    for top, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            path = Path(top, name)
            if path.is_file() and not path.is_symlink():
                yield path


def read_file(path: Path) -> bytes:
    """Return what a file holds. Raises ``ScanError`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_FILE:
        raise ScanError(f"{path}: found more than {MAX_FILE} bytes; accepted: files up to {MAX_FILE // 2**20} MiB")
    return data


def texts(data: bytes, extract: Callable[[bytes], Extraction]) -> Extraction:
    """Return the texts of a file. One that is a text has one, without a name; of documents ``extract`` reads them.

    Binary files that are no documents have none: what runs of letters they hold is mostly noise.
    """
    if _DOCUMENTS.isdisjoint(found := kinds(data)):
        text = as_text(data)
        if text is not None:
            return Extraction("text", (Text("", text),))
        return Extraction("binary", (), (UNREADABLE.get(found[0], UNKNOWN),))
    return extract(data)


def as_text(data: bytes) -> str | None:
    """Decode the bytes of a file; ``None`` for what is no text. Bytes that are not UTF-8 become lone surrogates."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            return None
    if b"\0" in data[:SNIFFED]:
        return None
    return data.decode("utf-8", "surrogateescape")


def scan_text(engine: Engine, text: str, at_least: Severity) -> tuple[TextFinding, ...]:
    """Return the findings in a text from a severity on."""
    return tuple(each for each in inspect_text(engine, text) if is_severe(each, at_least))


def is_severe(finding: TextFinding, at_least: Severity) -> bool:
    """Tell whether a finding's rule has a severity, or a higher one."""
    return _LEVELS.index(finding.rule.severity) >= _LEVELS.index(at_least)


def locate(text: str, findings: Sequence[TextFinding]) -> tuple[Located, ...]:
    """Give each finding its line and column, and its line with everything that was found in it masked."""
    starts = [0]
    while (end := text.find("\n", starts[-1])) >= 0:
        starts.append(end + 1)
    spans = _merged(findings)
    found = []
    for each in findings:
        line = bisect_right(starts, each.start)
        first = starts[line - 1]
        last = starts[line] - 1 if line < len(starts) else len(text)
        excerpt = _excerpt(text, first, last, each.start, spans)
        found.append(Located(each, line, each.start - first + 1, excerpt))
    return tuple(found)


def _merged(findings: Sequence[TextFinding]) -> list[tuple[int, int, str]]:
    """Join overlapping findings to spans, each with the placeholder of its first finding."""
    spans: list[tuple[int, int, str]] = []
    for each in findings:
        if spans and each.start < spans[-1][1]:
            start, end, mask = spans[-1]
            spans[-1] = start, max(end, each.end), mask
        else:
            spans.append((each.start, each.end, placeholder(short_name(each.rule))))
    return spans


def _excerpt(text: str, first: int, last: int, at: int, spans: Sequence[tuple[int, int, str]]) -> str:
    """Return the part of a line around ``at`` with its spans masked, safe to print on a terminal."""
    left, right = max(first, at - EXCERPT // 2), min(last, at + EXCERPT // 2)
    parts, done = [], left
    for start, end, mask in spans[max(bisect_right(spans, (left, left, "")) - 1, 0) :]:
        if start >= right:
            break
        if end > left:
            parts += [text[done : max(start, done)], mask]
            done = end
    parts.append(text[done:right])
    return ("…" if left > first else "") + printable("".join(parts).strip()) + ("…" if max(done, right) < last else "")


def printable(text: str) -> str:
    """Replace what a terminal would act on, or show as nothing, by a dot."""
    return "".join("·" if unicodedata.category(each)[0] == "C" else each for each in text)


def rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[object, str, Mapping[str, object]]]:
    """Read rows ``{"id", "text"}`` of JSON, one a line: id, text, and the whole row. Empty lines are left out.

    Raises ``ScanError`` with the number of the line for the first one that is something else.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ScanError(f"{name}:{number}: found no JSON; accepted: {_ROW}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "id" not in row:
            raise ScanError(f"{name}:{number}: found another value; accepted: {_ROW}")
        yield row["id"], row["text"], row


_ROW = 'one object a line with "id" and a "text" that is a string'


def answer(ident: object, findings: Iterable[TextFinding]) -> str:
    """Write the findings of one row as a line of JSON."""
    return json.dumps({"id": ident, "findings": [as_json(each) for each in findings]})


def as_json(finding: TextFinding) -> dict[str, object]:
    """Return a finding as it is written: rule, class, pack, severity, score and the span in characters."""
    rule = finding.rule
    return {
        "rule": rule.id,
        "class": rule.cls,
        "pack": rule.pack,
        "severity": str(rule.severity),
        "score": finding.score,
        "start": finding.start,
        "end": finding.end,
    }
