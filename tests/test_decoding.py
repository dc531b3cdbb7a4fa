"""Decoding before matching: what hides a value is undone, and what is found stands where the encoded text stands."""

from __future__ import annotations

import base64
import gzip
import html
import json
import random
import time
import zlib
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, MAIL, always, endpoint, engine
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.inspection.decoding import find_hidden, find_text, hides_nothing, views
from tidegate.inspection.engine import build, encode
from tidegate.inspection.rules import parse_pack
from tidegate.model import Action

RULES = "pack: t\nclass: secrets\nversion: 1\ndescription: a\nrules:\n" + "".join(
    f"  - {{id: {name}, description: a, severity: {severity}, pattern: '\\b{head}-[A-Za-z0-9]{{8,20}}\\b',"
    f" match: [{head}-AbCd1234, {head}-AbCd12345], pass: [a, b], references: ['https://example.com/']}}\n"
    for name, severity, head in (("key", "high", "sk"), ("low", "low", "lo"))
)
ENGINE = build(parse_pack(RULES, "t.yaml")[0], None)
DATA = KEY.encode()

HIDDEN = {
    "base64": base64.b64encode(DATA).decode(),
    "base64 without padding": base64.b64encode(DATA).decode().rstrip("="),
    "base64 in a URL": "https://a.example/p?d=" + base64.urlsafe_b64encode(DATA).decode(),
    "base64 cut out of more": base64.b64encode(b"xy" + DATA).decode(),
    "base64 twice": base64.b64encode(base64.b64encode(DATA)).decode(),
    "base64 in lines": base64.encodebytes(b"a b c " * 20 + DATA + b" d e f" * 20).decode(),
    "a data URL": "data:text/plain;base64," + base64.b64encode(DATA).decode(),
    "base32": base64.b32encode(DATA).decode(),
    "ascii85": base64.a85encode(DATA).decode(),
    "hex": DATA.hex(),
    "hex with spaces": DATA.hex(" "),
    "hex in a host name": f"https://{DATA[:12].hex()}{DATA[12:].hex()}.a.example/",
    "bits": " ".join(f"{byte:08b}" for byte in DATA),
    "decimal codes": ", ".join(map(str, DATA)),
    "percent": "".join(f"%{byte:02X}" for byte in DATA),
    "percent twice": quote("".join(f"%{byte:02X}" for byte in DATA)),
    "HTML entities": "".join(f"&#{byte};" for byte in DATA),
    "a named entity": html.escape(f'"{KEY}"').replace("-", "&hyphen;").replace("‐", "-").replace("&hyphen;", "&#45;"),
    "backslash x": "".join(f"\\x{byte:02x}" for byte in DATA),
    "backslash u": "".join(f"\\u{byte:04x}" for byte in DATA),
    "behind a backslash n": f"one\\n{KEY}",
    "quoted-printable": "".join(f"={byte:02X}" for byte in DATA),
    "gzip in base64": base64.b64encode(gzip.compress(DATA)).decode(),
    "zlib in base64": base64.b64encode(zlib.compress(DATA)).decode(),
    "full width": "".join(chr(byte + 0xFEE0) for byte in DATA),
    "Cyrillic letters": KEY.replace("A", "А").replace("E", "Е").replace("s", "ѕ"),
    "zero width": "\u200b".join(KEY),
    "soft hyphens": "\u00ad".join(KEY),
    "tag characters": "".join(chr(0xE0000 + byte) for byte in DATA),
    "variation selectors": "😀" + "".join(chr(0xE0100 + byte - 16) for byte in DATA),
    "right to left": f"\u202e{KEY[::-1]}\u202c",
    "reversed": KEY[::-1],
    "ROT13": KEY.translate(str.maketrans("skAbCdEfGh", "fxNoPqRsTu")),
    "case swapped": KEY.swapcase(),
    "spaced out": " ".join(KEY),
    "dashed": "-".join(KEY),
    "digits as words": " ".join({"1": "one", "5": "five"}.get(each, each) for each in KEY),
    "in two lines": f"{KEY[:9]}\n{KEY[9:]}",
    "in two literals": f'"{KEY[:9]}" + "{KEY[9:]}"',
    "in two items": json.dumps([KEY[:9], KEY[9:]]),
    "in two fields": json.dumps({"a": KEY[:9], "b": KEY[9:]}),
    "entities in base64": base64.b64encode("".join(f"&#{byte};" for byte in DATA).encode()).decode(),
    "zero width and percent": "s\u200bk%2D" + KEY[3:],
}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
@pytest.mark.parametrize("around", ["{}", "Please use {} when you call, é!", "x\n\t{}\r\n"])
def test_what_hides_a_value_is_undone(hidden: str, around: str) -> None:
    text = around.format(hidden)
    found = find_text(ENGINE, text)
    assert {span.rule.id for span in found} == {"t.key"}
    left = text.find(hidden)
    assert all(left <= span.start < span.end <= left + len(hidden) for span in found)


CLEAN = {
    "prose": "The quick brown fox jumps over the lazy dog, and authentication was straightforwardly established. " * 5,
    "numbers": "0.123, 0.456, 12, 13, 14, 15, 16, 17, 18, 19, 20\n2026-01-02\n2026-01-03\n",
    "a hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "a picture": "data:image/png;base64," + base64.b64encode(random.Random(1).randbytes(4000)).decode(),
    "code": 'def f(a, b):\n    return "a" + "b" + c[0]\n\n\n@cache\ndef g():\n    pass\n',
    "other scripts": "Привет, мир! 東京 café “quoted” — naïve…",
    "base64 of a text without values": base64.b64encode(b"nothing to see in this text").decode(),
}


@pytest.mark.parametrize("text", CLEAN.values(), ids=CLEAN.keys())
def test_clean_texts_stay_clean(text: str) -> None:
    assert find_text(ENGINE, text) == ()
    assert hides_nothing(ENGINE, encode(text))


def test_a_guess_is_not_made_twice() -> None:
    """Rules of severity low are not asked where text was turned or joined; they are where it was encoded."""
    low = "lo-AbCd1234EfGh"
    assert find_hidden(ENGINE, low[::-1]) == ()
    assert find_hidden(ENGINE, f"{low[:8]}\n{low[8:]}") == ()
    assert [span.rule.id for span in find_hidden(ENGINE, base64.b64encode(low.encode()).decode())] == ["t.low"]


ENCODERS = [
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: text.encode().hex(),
    lambda text: quote(text, safe="").replace("-", "%2D"),
    lambda text: "".join(f"&#{ord(each)};" for each in text),
    lambda text: "".join(f"\\u{ord(each):04x}" for each in text),
    "\u200b".join,
]
plain = st.text(st.sampled_from("ab Z9é\n.東"), max_size=400)


@settings(max_examples=300, deadline=None)
@given(before=plain, after=plain, picked=st.lists(st.sampled_from(ENCODERS), min_size=1, max_size=2))
def test_the_span_of_a_finding_says_the_value_once_decoded(before: str, after: str, picked: list) -> None:
    run = KEY
    for encoder in picked:
        run = encoder(run)
    text = f"{before} {run} {after}"
    found = find_hidden(ENGINE, text)
    assert any(span.rule.id == "t.key" for span in found)
    for span in found:
        said = text[span.start : span.end]
        assert KEY in said or any(KEY in view.data.decode("utf-8", "replace") for view in views(encode(said)))
        assert len(before) + 1 <= span.start < span.end <= len(before) + 1 + len(run)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=600), st.text(max_size=300).map(encode), st.text("%&\\=u{}x0-9aAfF\n\"'+;,: ").map(encode)
    )
)
def test_nothing_raises_and_spans_stay_inside(data: bytes) -> None:
    for view in views(data):
        for start in range(0, len(view.data), 7):
            first, last = view.origin(start, min(start + 5, len(view.data)))
            assert 0 <= first <= last <= len(data)


def message(*contents: str) -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": content} for content in contents]}


BODIES = {
    "base64": ([f"my {HIDDEN['base64']} ok"], ["my [REDACTED:key] ok"]),
    "zero width": ([f"é {HIDDEN['zero width']}"], ["é [REDACTED:key]"]),
    "behind a backslash n": ([f"one\\n{KEY}"], ["one\\n[REDACTED:key]"]),
    "both": ([f"{KEY} {HIDDEN['hex']}"], ["[REDACTED:key] [REDACTED:key]"]),
    "over messages": (
        [f"first half: {KEY[:9]}", f"second half: {KEY[9:]} !"],
        ["first half: [REDACTED:key]", "second half: [REDACTED:key] !"],
    ),
}


@pytest.mark.parametrize(("contents", "expected"), BODIES.values(), ids=BODIES.keys())
def test_bodies_are_masked_where_the_encoded_text_stands(contents: list[str], expected: list[str]) -> None:
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), message(*contents))
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == message(*expected)
    assert found.findings


@pytest.mark.parametrize(("contents", "expected"), list(BODIES.values())[:-1], ids=list(BODIES)[:-1])
def test_answers_are_masked_where_the_encoded_text_stands(contents: list[str], expected: list[str]) -> None:
    body = {"choices": [{"message": {"content": contents[0]}}]}
    told = inspect_answer(endpoint("chat"), ENGINE, always(Action.REDACT), json.dumps(body).encode(), status=200)
    assert isinstance(told, Inspected)
    assert [each["message"]["content"] for each in json.loads(told.body)["choices"]] == expected


def test_json_source_stays_json() -> None:
    source = json.dumps({"a": [HIDDEN["base64"] + "\n", 1], "b": HIDDEN["percent"]})
    value = {"messages": [{"tool_calls": [{"function": {"arguments": source}}]}]}
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.REDACT), value)
    assert isinstance(found, Inspected)
    sent = json.loads(found.body)["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"a": ["[REDACTED:key]\n", 1], "b": "[REDACTED:key]"}


def test_what_is_only_flagged_stays() -> None:
    value = message(HIDDEN["base64"])
    found = inspect_request(endpoint("chat"), ENGINE, always(Action.FLAG), json.loads(json.dumps(value)))
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == value
    assert [(each.start, each.end) for each in found.findings] == [(0, len(HIDDEN["base64"]))]


HOSTILE = {
    "percent": "%41", "entities": "&#65;", "backslashes": "\\\\n", "quotes": '"+"', "lines": "a1\nb2\n",
    "base64": "QUJD",
    "spaced": "a ", "dashes": "-----BEGIN ", "zero width": "a\u200b", "nested": "%25", "tokens": "aB3xY9kL2mN4 ",
    "codes": "65, ", "equals": "=41=\n", "overrides": "\u202eab", "braces": '"}, {"a": "',
}  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_work_grows_with_the_text(unit: str) -> None:
    def cost(size: int) -> float:
        data = encode(unit * (size // len(encode(unit))))
        best = []
        for _ in range(3):
            start = time.process_time()
            hides_nothing(ENGINE, data)
            best.append(time.process_time() - start)
        return min(best)

    cost(5_000)
    assert cost(200_000) < 3 * 4 * max(cost(50_000), 0.001)


def test_every_value_of_the_shared_rules_is_found_encoded() -> None:
    for value in (KEY, MAIL, CARD):
        text = base64.b64encode(f"say {value} now".encode()).decode()
        assert find_hidden(engine(), text)
