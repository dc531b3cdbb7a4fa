"""Coded detectors: found by their entry point, as bounded as any rule, and never silent when they fail."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.e2e.harness import policy as write_policy
from tests.test_scanning import PACK as HOUSE
from tests.test_scanning import run
from tidegate.inspection import detectors
from tidegate.inspection.detectors import GROUP, Detector, DetectorError
from tidegate.inspection.findings import inspect_text
from tidegate.inspection.validators import VALIDATORS
from tidegate.model import Action
from tidegate.policy.loading import load, load_packs
from tidegate.policy.policy import PolicyError
from tidegate.streams.redactor import Redactor, short_name

# The example of docs/rules.md: an order number whose last two digits are the others modulo 97.
PACK = r"""
pack: acme
class: pii
version: 1
rules:
  - id: order
    description: Acme order number
    severity: medium
    pattern: '\bAC-\d{8}\b'
    validators: ['acme:mod97']
    references: [https://acme.test/orders]
    match: ['AC-12345672', 'order AC-00000101']
    pass: ['AC-12345634', 'AC-1234563']
"""


def mod97(span: bytes) -> bool:
    digits = span[3:]
    return int(digits[:6]) % 97 == int(digits[6:])


def raises(span: bytes) -> bool:
    raise ValueError(f"cannot read {span!r}")


def says_nothing(span: bytes) -> None:
    return None


GOOD = Detector(PACK, {"mod97": mod97})
BAD_OBJECT = "not a detector"
NO_FUNCTION = Detector(PACK, {"mod97": 5})
BROKEN_PACK = Detector(PACK.replace("severity: medium", "severity: enormous"), {"mod97": mod97})
RAISING = Detector(PACK, {"mod97": raises})
WITHOUT_CHECK = Detector(PACK, {})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Pretend that packages with these entry points are installed."""
    before = dict(VALIDATORS)

    def pretend(*names: str, entry: str = "acme") -> None:
        entries = [EntryPoint(entry, f"{__name__}:{name}", GROUP) for name in names]
        monkeypatch.setattr(detectors, "entry_points", lambda *, group: entries if group == GROUP else [])

    yield pretend
    VALIDATORS.clear()
    VALIDATORS.update(before)


def small_policy(folder: Path) -> Path:
    (folder / "house.yaml").write_text(HOUSE)
    acts = {"secrets": "redact", "pii": "redact"}
    inspection = {"prompt": acts, "response": dict(acts)}
    return write_policy(folder, "http://127.0.0.1:9", packs=["house.yaml"], inspection=inspection)


def found(text: str) -> list[tuple[str, int, int]]:
    return [(each.rule.id, each.start, each.end) for each in inspect_text(load_packs([]), text)]


def test_a_detector_finds_what_its_code_accepts(install) -> None:
    install("GOOD")
    assert found("AC-12345634 or AC-12345635 or AC-00000101") == [("acme.order", 30, 41)]


def test_a_stream_and_a_whole_text_agree_about_it(install) -> None:
    install("GOOD")
    engine, text = load_packs([]), "order AC-00000101, not AC-00000102"
    for cut in range(len(text)):
        channel = Redactor(engine, lambda _: Action.REDACT, short_name)
        pieces = [*channel.feed(text[:cut]), *channel.feed(text[cut:]), *channel.end()]
        assert "".join(each.text for each in pieces) == "order [REDACTED:order], not AC-00000102"


def test_scan_uses_it(install) -> None:
    install("GOOD")
    done = run("scan", "--jsonl", stdin=json.dumps({"id": 1, "text": "AC-00000101"}))
    assert [each["rule"] for each in json.loads(done.stdout)["findings"]] == ["acme.order"]


def test_a_policy_uses_it_and_its_digest_covers_it(install, tmp_path: Path) -> None:
    path = small_policy(tmp_path)
    install()
    without = load(path)
    install("GOOD")
    with_it = load(path)
    assert "acme.order" in {rule.id for rule in with_it.engine.rules} - {rule.id for rule in without.engine.rules}
    assert with_it.sha256 != without.sha256


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["MISSING"], "AttributeError while it was imported; accepted: a module that can be imported"),
        (["BAD_OBJECT"], "an object of str; accepted: an object of tidegate.inspection.detectors.Detector"),
        (["NO_FUNCTION"], "a check that is no function; accepted: functions"),
        (["GOOD", "RAISING"], "a second entry point of this name; accepted: each name once"),
        (["BROKEN_PACK"], "rules[order].severity: found 'enormous'; accepted: low or medium or high or critical"),
        (["WITHOUT_CHECK"], "rules[order].validators[0]: found 'acme:mod97'; accepted: one of "),
        (["RAISING"], "the check acme:mod97 of a detector raised ValueError; accepted: checks that answer"),
    ],
    ids=["import", "object", "function", "twice", "pack", "unknown-check", "raises"],
)
def test_what_is_wrong_with_one_is_a_fault(install, names, fault: str) -> None:
    install(*names)
    with pytest.raises(PolicyError) as refused:
        load_packs([])
    assert fault in str(refused.value)
    assert "AC-" not in str(refused.value)


def test_a_policy_is_refused_with_a_detector_that_is_at_fault(install, tmp_path: Path) -> None:
    install("BAD_OBJECT")
    with pytest.raises(PolicyError, match=r"detector acme: .*an object of str"):
        load(small_policy(tmp_path))


def test_an_entry_points_name_is_a_name(install) -> None:
    install("GOOD", entry="Acme Corp")
    with pytest.raises(PolicyError, match="lower-case letters, digits and hyphens"):
        load_packs([])


@pytest.mark.parametrize(
    ("check", "how"), [(raises, "raised ValueError"), (says_nothing, "answered neither True nor False")]
)
def test_a_check_that_fails_later_ends_the_inspection_without_the_value(install, monkeypatch, check, how: str) -> None:
    calls = {"check": mod97}

    def ask(span: bytes) -> object:
        return calls["check"](span)

    monkeypatch.setitem(GOOD.checks, "mod97", ask)
    install("GOOD")
    engine = load_packs([])
    calls["check"] = check
    with pytest.raises(DetectorError) as failed:
        inspect_text(engine, "AC-00000101")
    assert how in str(failed.value)
    assert "acme:mod97" in str(failed.value)
    assert failed.value.__context__ is None
    assert "00000101" not in str(failed.value)


def test_scan_ends_with_two_when_a_check_fails(install, monkeypatch) -> None:
    calls = {"check": mod97}

    def ask(span: bytes) -> object:
        return calls["check"](span)

    monkeypatch.setitem(GOOD.checks, "mod97", ask)
    install("GOOD")
    load_packs([])
    seen = []

    def late(span: bytes) -> bool:
        seen.append(span)
        if b"77777" in span:
            raise ValueError("AC-77777777")
        return mod97(span)

    calls["check"] = late
    done = run("scan", "-", stdin="AC-77777777")
    assert done.exit_code == 2
    assert "the check acme:mod97 of a detector raised ValueError" in done.stderr
    assert "77777" not in done.output


def test_the_example_of_the_page_works(install, monkeypatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "rules.md").read_text("utf-8")
    (example,) = (each for each in re.findall(r"(?ms)^```python\n(.*?)^```", page) if "Detector" in each)
    names: dict[str, object] = {}
    exec(example, names)
    monkeypatch.setitem(globals(), "ORDERS", names["ORDERS"])
    install("ORDERS")
    assert found("AC-12345672 AC-12345673") == [("acme.order", 0, 11)]
