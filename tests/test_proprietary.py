"""A company's own data: tables, documents, canaries, word lists and known values, without the files around them."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.dialects.body import dump
from tidegate.inspection.engine import Engine, build, encode
from tidegate.inspection.proprietary import canary, known
from tidegate.inspection.proprietary.canary import Form
from tidegate.inspection.proprietary.detector import CodedSpan, coded_rule
from tidegate.inspection.proprietary.documents import GRAM, WINDOW, DocumentBuilder, DocumentMatch, winnow
from tidegate.inspection.proprietary.exact import MOST_ROWS, ExactBuilder, ExactMatch
from tidegate.inspection.proprietary.normal import forms, number, words
from tidegate.inspection.proprietary.table import IndexFault, derive, read, write
from tidegate.inspection.rules import Rule, Severity, check_examples, parse_pack
from tidegate.model import Action
from tidegate.streams.redactor import Redactor, short_name
from tidegate.streams.texts import Texts, _unescaped

KEY = derive("a test key")
RULE = coded_rule("customers", "customer-data", "a customer", Severity.HIGH, "policy.yaml:1")
DOCS = coded_rule("sources", "source-code", "a document", Severity.HIGH, "policy.yaml:2")
TABLE = [
    ("anna.lee@example.org", "Anna Lee", "4111 1111 2222", "DE89 3704 0044 0532 0130 00"),
    ("béla@example.org", "Béla Groß", "55512345678", "AC-77-1234"),
    ("", "Jo", "123", "Zoë O'Neill"),
]
COLUMNS = ("email", "name", "account", "iban")


def table(rows: list[tuple[str, ...]] = TABLE) -> bytes:
    builder = ExactBuilder(KEY, COLUMNS)
    for number_, row in enumerate(rows):
        for column, value in enumerate(row):
            builder.add(number_, column, value)
    return builder.file()


INDEX = table()
MATCH = ExactMatch(INDEX, KEY, RULE)


def found(detector: ExactMatch | DocumentMatch, text: str) -> list[str]:
    return [text[span.start : span.end] for span in detector.find(text)]


# ── words and numbers ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("O'Neill, ANNA_b", "o neill anna b"),
        ("ＡＢ ½x ﬁn Groß", "ab 12x fin gross"),
        ("cafe\u0301 Café", "café café"),
        ("\u0301x--", "\u0301x"),
        ("", ""),
    ],
    ids=["ascii", "compatible", "marks", "loose-mark", "empty"],
)
def test_words(text: str, expected: str) -> None:
    assert b" ".join(word.form for word in words(text)).decode() == expected


@given(st.text())
def test_the_fast_way_gives_the_same_words(text: str) -> None:
    assert forms(encode(text)) == [word.form for word in words(text)]


@pytest.mark.parametrize(
    ("value", "digits"),
    [("+49 (0)30-12.34", "490301234"), ("4111", "4111"), ("12 a", None), ("", None), ("1    2", None), ("１２", "12")],
)
def test_number(value: str, digits: str | None) -> None:
    assert number(value) == digits


# ── exact data match ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("To ANNA.LEE@EXAMPLE.ORG now", ["ANNA.LEE@EXAMPLE.ORG"]),
        ("Lee, Anna or anna\n  lee!", ["anna\n  lee"]),
        ("n:411111112222.", ["411111112222"]),
        ("4111-1111 (2222)", ["4111-1111 (2222"]),
        ("94111 1111 2222 x4111 1111 2222 4111 1111 22223", []),
        ("de89370400440532013000 DE89-3704-0044-0532-0130-00", 2),
        ("AC771234, ac 77 1234; AC-77-12345", ["AC771234", "ac 77 1234"]),
        ("mail BÉLA@example.org of béla gross", ["BÉLA@example.org", "béla gross"]),
        ("anna_lee", ["anna_lee"]),
        ("annalee, annax lee, anna xlee, Jo, 123, zoë", []),
    ],
    ids=["case", "spaces", "digits", "groups", "borders", "code", "code-short", "folded", "underscore", "others"],
)
def test_values_are_found_however_they_are_written(text: str, expected: list[str] | int) -> None:
    hits = found(MATCH, text)
    assert (len(hits) if isinstance(expected, int) else hits) == expected
    assert MATCH.may_find(encode(text)) or not hits


def test_the_index_holds_no_value_and_opens_with_its_key_only() -> None:
    for row in TABLE:
        for value in row:
            assert not value or value.encode() not in INDEX
    with pytest.raises(IndexFault, match="another key, or a damaged file"):
        ExactMatch(INDEX, derive("another"), RULE)
    with pytest.raises(IndexFault, match="a damaged file"):
        ExactMatch(INDEX[:-50] + b"x" + INDEX[-49:], KEY, RULE)
    with pytest.raises(IndexFault, match="no such index"):
        ExactMatch(b"PK", KEY, RULE)
    with pytest.raises(IndexFault, match="kind exact"):
        DocumentMatch(INDEX, KEY, RULE)


def test_arrays_come_back_as_they_were() -> None:
    arrays = [array("Q", [1, 2**64 - 1]), array("I", []), array("B", [7])]
    assert read(write("k", {"a": 1}, arrays, KEY), "k", KEY)[1] == arrays


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Anna Lee has 411111112222", ["Anna Lee", "411111112222"]),
        ("Anna Lee and Anna Lee", []),
        ("Anna Lee has AC-77-1234", []),
        (f"Anna Lee {'.' * 300} 411111112222", []),
        (f"Anna Lee {'.' * 300} 411111112222 anna.lee@example.org", ["411111112222", "anna.lee@example.org"]),
    ],
    ids=["two", "one-column", "other-row", "far", "window"],
)
def test_require_wants_columns_of_one_row_near_each_other(text: str, expected: list[str]) -> None:
    assert found(ExactMatch(INDEX, KEY, RULE, require=2), text) == expected


def test_require_more_columns_than_there_are() -> None:
    with pytest.raises(IndexFault, match="found require: 5; accepted: at most the 4 columns"):
        ExactMatch(INDEX, KEY, RULE, require=5)


def test_a_value_of_many_rows_is_found_but_tells_no_row() -> None:
    data = table([("", "Springfield", str(10**7 + row), "") for row in range(MOST_ROWS + 1)])
    assert found(ExactMatch(data, KEY, RULE), "in Springfield") == ["Springfield"]
    assert found(ExactMatch(data, KEY, RULE, require=2), "Springfield 10000003") == []


def test_short_and_long_values_are_counted() -> None:
    builder = ExactBuilder(KEY, ("a",))
    for value in ("Jo", "12345", "x " * 20, "1" * 50, "", "fine"):
        builder.add(0, 0, value)
    assert (builder.values, builder.short, builder.long) == (1, 2, 2)


# ── documents ────────────────────────────────────────────────────────────────

SOURCE = "\n".join(f"def step_{n}(first, second):\n    return first * {n} + second - {n * 7}\n" for n in range(40))
LICENCE = "permission is hereby granted free of charge to any person obtaining a copy of this software and more"


def sources(threshold: float = 4, more: int = 0) -> DocumentMatch:
    builder = DocumentBuilder(KEY)
    builder.add(SOURCE)
    for each in range(more):
        builder.add(f"{LICENCE} {each} " + " ".join(f"w{each}x{n}" for n in range(20)))
    return DocumentMatch(builder.file(), KEY, DOCS, threshold=threshold)


def test_a_pasted_part_is_found_reformatted() -> None:
    part = SOURCE[200:600]
    said = (
        "Please explain what all of this does:\n"
        + " ".join(part.upper().split()).replace("(", " ( ")
        + "\nThank you for the help."
    )
    (span,) = sources().find(said)
    shared = said[span.start : span.end]
    assert "Please explain" not in shared
    assert "for the help" not in shared
    assert len(shared) > 0.95 * len(" ".join(part.split()))
    assert sources().may_find(encode(said))


def test_other_text_is_not_found_and_two_parts_are_two_spans() -> None:
    assert sources().find("def other(first, second): return nothing of it, and more words than a gram has") == []
    between = " ".join(f"unrelated{n}" for n in range(60))
    assert len(sources().find(f"{SOURCE[100:500]} {between} {SOURCE[1500:1900]}")) == 2


@pytest.mark.parametrize(("threshold", "hit"), [(4, True), (0.1, True), (0.9, False), (200, False), (1, True)])
def test_threshold_is_a_share_or_a_number(threshold: float, hit: bool) -> None:
    assert bool(sources(threshold).find(SOURCE[: len(SOURCE) // 3])) is hit


def test_what_many_documents_share_is_no_document() -> None:
    assert sources(2, more=3).find(LICENCE)
    assert not sources(2, more=20).find(LICENCE)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_every_window_keeps_a_fingerprint(hashes: list[int]) -> None:
    kept = winnow(hashes)
    assert all(kept & set(hashes[at : at + WINDOW]) for at in range(max(1, len(hashes) - WINDOW + 1)))


@given(st.integers(0, 200))
def test_every_shared_run_of_gram_and_window_is_noticed(start: int) -> None:
    parts = SOURCE.split()
    run = [word for each in parts for word in (w.form.decode() for w in words(each))][start:][: GRAM + WINDOW - 1]
    assert len(run) < GRAM + WINDOW - 1 or sources(1).find(" ".join(run))


# ── canaries and known values ────────────────────────────────────────────────


def engine_of(*rules: Rule) -> Engine:
    return build(rules, None)


def split(engine: Engine, text: str, at: int) -> str:
    channel = Redactor(engine, lambda _: Action.REDACT, short_name)
    pieces = [*channel.feed(text[:at]), *channel.feed(text[at:]), *channel.end()]
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("form", list(Form))
def test_a_canary_is_found_wherever_it_is_cut_and_its_like_is_not(form: Form) -> None:
    token, kept = canary.mint("trap", form, KEY, bytes(range(7, 23)))
    other, _ = canary.mint("other", form, KEY, bytes((7, 8, *range(100, 114))))
    assert token not in repr(kept)
    rule = canary.canary_rule(kept, "canary", "f")
    engine = engine_of(rule).extended({rule.id: canary.check(kept, KEY)}, {}, ())
    assert engine.candidates(encode(other)), "the like has the same form"
    text = f"see {token}, not {other}."
    for at in range(len(text)):
        assert split(engine, text, at) == f"see [REDACTED:trap], not {other}."


TOKEN = parse_pack(
    """{pack: t, class: s, version: 1, rules: [{id: mail, description: d, severity: low,
    pattern: '[a-z.]{1,40}@[a-z]{1,20}\\.org', match: [a@b.org, b@b.org], pass: [x, y], references: [https://example.org]}]}""",
    "t.yaml",
)[0][0]


@pytest.mark.parametrize(("now", "expected"), [(5.0, "to info@firm.org, [REDACTED:mail]"), (10.0, None)])
def test_a_known_value_is_passed_over_whole_until_it_expires(now: float, expected: str | None) -> None:
    entry = known.Known("t.mail", known.fingerprint(KEY, "t.mail", b"info@firm.org"), 10.0)
    assert "t.mail" in repr(entry)
    assert entry.fingerprint not in repr(entry)
    engine = engine_of(TOKEN).extended({}, known.passes([(entry, KEY)], lambda: now), ())
    text = "to info@firm.org, info@other.org"
    for at in range(len(text)):
        assert split(engine, text, at) == (expected or "to [REDACTED:mail], [REDACTED:mail]")


def test_a_known_value_counts_for_its_rule_and_key_only() -> None:
    entry = known.Known("t.mail", known.fingerprint(derive("other"), "t.mail", b"info@firm.org"), 10.0)
    test = known.passes([(entry, KEY)], lambda: 0.0)["t.mail"]
    assert not test(b"info@firm.org")
    assert known.fingerprint(KEY, "t.mail", b"x") != known.fingerprint(KEY, "t.mai", b"lx")


# ── in texts ─────────────────────────────────────────────────────────────────


def texts(action: Action = Action.REDACT, *, streamed: bool = False) -> Texts:
    engine = engine_of(TOKEN).extended({}, {}, [MATCH])
    return Texts(engine, lambda rule: action if rule is RULE else Action.REDACT, streamed=streamed)


@pytest.mark.parametrize(
    ("text", "expected", "rules"),
    [
        ("x Anna Lee y", "x [REDACTED:customers] y", ["customers"]),
        ("x anna.lee@example.org y", "x [REDACTED:mail] y", ["customers", "mail"]),
        ("x Anna.lee@example.org y", "x [REDACTED:customers] y", ["customers", "mail"]),
        ("z.anna.lee@example.org", "[REDACTED:mail]", ["mail", "customers"]),
        ("Anna Lee, c@d.org", "[REDACTED:customers], [REDACTED:mail]", ["customers", "mail"]),
    ],
    ids=["alone", "same-place", "before", "inside", "beside"],
)
def test_a_detector_and_a_rule_share_a_placeholder(text: str, expected: str, rules: list[str]) -> None:
    one = texts()
    assert one.check([text], lambda _: "$") == {0: expected}
    assert sorted(short_name(replace(RULE, id=each.rule)) for each in one.findings) == sorted(rules)
    for each in one.findings:
        assert 0 <= each.start < each.end <= len(text)


def test_flagged_stays_blocked_denies_allowed_is_not_looked_for() -> None:
    flagged, blocked, allowed = texts(Action.FLAG), texts(Action.BLOCK), texts(Action.ALLOW)
    assert flagged.check(["is Anna Lee"], lambda _: "$") == {}
    assert [(each.start, each.end, each.action) for each in flagged.findings] == [(3, 11, Action.FLAG)]
    blocked.check(["is Anna Lee"], lambda _: "$")
    assert blocked.denial is not None
    assert "Anna" not in blocked.denial.message
    allowed.check(["is Anna Lee"], lambda _: "$")
    assert allowed.findings == []
    assert texts(streamed=True).check(["is Anna Lee"], lambda _: "$") == {}


def test_json_source_still_parses() -> None:
    assert texts().check_source('{"who": "Anna\\nLee", "n": 411111112222}', "$") == (
        '{"who": "[REDACTED:customers]", "n": 0}'
    )


@given(st.text(max_size=20), st.text(max_size=20))
@example("", "é")
def test_a_body_with_a_value_is_never_clean(left: str, right: str) -> None:
    text = f"{left} Anna Lee {right}"
    body = dump({"a": [text]})
    assert not texts().are_clean(body, ())
    if b"\\u" not in body:
        assert MATCH.may_find(_unescaped(body))
    assert not texts().are_clean(b"{}", [text])


def test_a_clean_body_is_clean() -> None:
    assert texts().are_clean(dump({"a": "nothing of theirs, 12345"}), ())


def test_spans_show_no_text() -> None:
    assert repr(CodedSpan(RULE, 1, 2)) == repr(MATCH.find("xAnna Anna Lee")[0]).replace(
        "start=6, end=14", "start=1, end=2"
    )


# ── word lists ───────────────────────────────────────────────────────────────

WORDS = """pack: house
class: project-names
version: 1
words:
  - id: projects
    description: Names of projects
    words: [Blue Heron, kestrel, Éclair, C++20]
    file: more.txt
"""


def test_words_become_a_rule() -> None:
    rules, faults = parse_pack(WORDS, "house.yaml", lambda name: f"# {name}\n\nosprey\n")
    assert faults == ()
    (rule,) = rules
    assert (rule.id, rule.cls, rule.severity) == ("house.projects", "project-names", Severity.MEDIUM)
    engine = engine_of(*rules)
    assert check_examples(rules, engine) == ()
    text = "KESTREL, blue\n heron, blueheron, kestrels, éclair, ÉCLAIR, c++20, OSPREY"
    hits = [text[span.start : span.end] for span in engine.find_text(text)]
    assert hits == ["KESTREL", "blue\n heron", "éclair", "ÉCLAIR", "c++20", "OSPREY"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WORDS.replace("kestrel", "ab"), "words[0]: found 1 that are too short, too long or not printable"),
        (WORDS.replace("words: [", "word: ["), "words[0].word: found an unknown key"),
        (WORDS.partition("    words: [")[0], "words[0]: found neither; accepted: words (words or phrases"),
        (WORDS, "words[0].file: found 'more.txt'; accepted: a UTF-8 text file in or below the pack's folder"),
        (
            WORDS.replace("kestrel", ", ".join(f"bird{n}" for n in range(501))),
            "at most 1500; make it several lists, or a table for",
        ),
    ],
    ids=["short", "key", "neither", "file", "many"],
)
def test_a_word_list_s_faults(text: str, message: str) -> None:
    def missing(name: str) -> str:
        raise FileNotFoundError(name)

    _, faults = parse_pack(text, "house.yaml", missing)
    assert message in "\n".join(map(str, faults))
