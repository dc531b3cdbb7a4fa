"""Recorded uploads, audio, images and Azure chats, each through the whole crossing: what is refused, what is sent."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import functools
import gzip
import json
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.test_composing import crossed, policy, sent, with_rule
from tests.test_unknown import anyone
from tests.wire import RECORDED, dialect
from tidegate import steps
from tidegate.dialects.addresses import match
from tidegate.dialects.forms import read
from tidegate.dialects.reading import read as read_body
from tidegate.model import Denial, OnUnknown, Owners, Scanned
from tidegate.policy.policy import Policy

__all__ = ["policy"]

pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not on this machine")

APIS = ("files", "openai.audio", "openai.images", "batches", "openai.chat azure-openai", "openai.chat azure-ai")
DIALECT = {"anthropic": "anthropic"}


@dataclass(frozen=True)
class Row:
    """One exchange. ``path`` is below a connection of its dialect; ``None`` where no endpoint has it."""

    id: str
    api: str
    dialect: str
    path: str | None
    address: str
    label: str
    request: bytes
    answer: bytes
    status: int
    answered: str


def _bytes(message: dict) -> bytes:
    body = message["body"]
    coded = message.get("body_encoding") == "base64" or (body or "").startswith("LS")  # two recorders did not say so
    return base64.b64decode(body) if coded else (body or "").encode("utf-8", "surrogatepass")


@functools.cache
def rows() -> tuple[Row, ...]:
    found = []
    with gzip.open(RECORDED, "rt", encoding="utf-8") as opened:
        for line in opened:
            row = json.loads(line)
            api = next((each for each in APIS if each in (row["api"], f"{row['api']} {row['provider']}")), None)
            if api is None or row["request"]["method"] != "POST":
                continue
            name = DIALECT.get(row["provider"], "openai")
            url = urllib.parse.urlsplit(row["request"]["url"])
            parts = url.path.replace("//", "/").split("/")
            below = ("/" + "/".join(parts[at:]) for at in range(1, len(parts)))
            path = next((each for each in below if match(dialect(name), "POST", each)), None)
            headers = {key.lower(): value for key, value in (row["request"]["headers"] or {}).items()}
            response = row["response"]
            found.append(
                Row(
                    row["id"], api, name, path, url.netloc + url.path, headers.get("content-type", ""),
                    _bytes(row["request"]), _bytes(response), response["status"], response["content_type"],
                )
            )  # fmt: skip
    return tuple(found)


def of(*apis: str) -> Iterator[Row]:
    yield from (row for row in rows() if row.api in apis and row.path is not None)


def test_every_address_has_an_endpoint() -> None:
    assert not [row.address for row in rows() if row.path is None]


def judged(policy: Policy, row: Row, rule: OnUnknown = OnUnknown.PASS) -> tuple[object, steps.Step]:
    exchange, step = crossed(with_rule(anyone(policy), rule), row.request, f"/{row.dialect}{row.path}", row.label)
    if isinstance(step, steps.LookUp):  # what it names was made by the same caller
        own = Owners(dict.fromkeys(step.stored))
        step = exchange.receive(steps.BodyArrived(row.request, owners=own))
    return exchange, step


def lost(row: Row) -> bool:
    """Say whether the recorder lost the body of a form: its bytes were no text."""
    return row.label.startswith("multipart/") and b"--" not in row.request[:3]


def test_forms_are_read_as_others_read_them() -> None:
    seen = 0
    for row in of("files", "openai.audio", "openai.images"):
        if not row.label.startswith("multipart/") or lost(row):
            continue
        found = read(row.request, row.label)
        assert not isinstance(found, Denial), (row.id, found)
        other = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            f"content-type: {row.label}\r\n\r\n".encode() + row.request
        )
        theirs = list(other.iter_parts())  # type: ignore[attr-defined]
        names = [each.get_param("name", header="content-disposition") for each in theirs]
        assert [each.name for each in found] == names
        assert [each.filename for each in found] == [each.get_filename() for each in theirs]
        seen += 1
    assert seen == SEEN_FORMS


SEEN_FORMS = 13
"""Forms that were recorded whole."""


def test_what_is_refused_and_why(policy: Policy) -> None:
    counts: Counter[str] = Counter()
    for row in of(*APIS):
        _, step = judged(policy, row)
        if isinstance(step, steps.Refuse):
            counts[f"{row.api}: {step.denial.reason}"] += 1
        else:
            counts["sent"] += 1
    assert counts == REFUSED


REFUSED = {
    "sent": 120,
    "openai.audio: body_malformed": 1,  # "[multipart form data omitted]"
    "openai.chat azure-openai: body_malformed": 2,  # empty
}
"""The bodies that their recorders lost, and nothing else."""


def test_what_is_not_scanned_is_refused_by_default(policy: Policy) -> None:
    for row in of("openai.audio", "openai.images"):
        exchange, step = judged(policy, row, OnUnknown.BLOCK)
        if not lost(row):
            assert isinstance(step, steps.Refuse), row.id
            assert step.denial.reason == "body_opaque", row.id
            assert exchange.scanned is Scanned.PARTLY  # type: ignore[attr-defined]


def test_clean_forms_are_sent_with_every_part_equal(policy: Policy) -> None:
    seen = 0
    for row in of("files", "openai.audio", "openai.images"):
        exchange, step = judged(policy, row)
        if not row.label.startswith("multipart/") or isinstance(step, steps.Refuse):
            continue
        going = sent(exchange)  # type: ignore[arg-type]
        again = read(going.clearance.verdict.body, dict(going.fields)["content-type"])
        before = read(row.request, row.label)
        assert not isinstance(again, Denial)
        assert not isinstance(before, Denial)
        clean = not exchange.prompt_findings  # type: ignore[attr-defined]
        for ours, theirs in zip(again, sorted(before, key=lambda each: _first(before, each.name)), strict=True):
            assert (ours.name, ours.filename, ours.label) == (theirs.name, theirs.filename, theirs.label)
            if clean:
                assert _value(ours.data) == _value(theirs.data), row.id
        seen += 1
    assert seen >= 8


def _first(parts: object, name: str) -> int:
    return next(at for at, each in enumerate(parts) if each.name == name)  # type: ignore[arg-type]


def _value(data: bytes) -> object:
    """Read lines of JSON as what they say; anything else is its bytes."""
    try:
        return [json.loads(line) for line in data.splitlines() if line.strip()]
    except ValueError:
        return data


def test_answers_come_back(policy: Policy) -> None:
    counts: Counter[str] = Counter()
    for row in of(*APIS):
        exchange, step = judged(policy, row)
        if isinstance(step, steps.Refuse):
            continue
        sent(exchange)  # type: ignore[arg-type]
        began = exchange.receive(steps.AnswerBegan(row.status, (("content-type", row.answered),)))  # type: ignore[attr-defined]
        assert isinstance(began, (steps.Buffer, steps.Stream)), row.id
        end = exchange.whole(row.answer)  # type: ignore[attr-defined]
        if isinstance(end, steps.Claim):
            end = exchange.receive(steps.Claimed(True))  # type: ignore[attr-defined]
        assert isinstance(end, steps.Emit), (row.id, end)
        if not exchange.answer_findings:  # type: ignore[attr-defined]
            counts["the same bytes" if end.data == row.answer else "held for a moment"] += 1
            assert end.data == row.answer or isinstance(began, steps.Stream), row.id
            if end.data != row.answer:
                assert _said(end.data) == _said(row.answer), row.id
        else:
            counts["masked"] += 1
    assert counts == {"the same bytes": 94, "held for a moment": 26}


def _said(stream: bytes) -> str:
    events = (json.loads(line[6:]) for line in stream.decode().split("\n") if line.startswith("data: {"))
    return "".join(
        choice.get("delta", {}).get("content") or "" for event in events for choice in event.get("choices") or ()
    )


def test_bodies_are_what_their_bytes_tell() -> None:
    for row in of(*APIS):
        assert row.path is not None
        endpoint = match(dialect(row.dialect), "POST", row.path)
        assert endpoint is not None
        if not lost(row) and not endpoint.made_of.asks_plainly:
            assert not isinstance(read_body(replace(endpoint), row.request, row.label), Denial), row.id
