"""Decoding before matching: what hides a value is undone, and what is found stands where the encoded text stands."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time
import tracemalloc
import zlib
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disguises import ENGINE, HIDDEN
from tests.wire import CARD, KEY, MAIL, ROOT, engine
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.decoding import (
    MAX_GROWTH,
    MIN_BYTES,
    all_views,
    find,
    find_hidden,
    find_text,
    hides_nothing,
    views,
)
from tidegate.inspection.engine import Engine, build, encode
from tidegate.inspection.rules import parse_pack
from tidegate.places import shipped_packs
from tidegate.policy.loading import load_packs


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
        assert KEY in said or any(KEY in view.data.decode("utf-8", "replace") for view in views(ENGINE, encode(said)))
        assert len(before) + 1 <= span.start < span.end <= len(before) + 1 + len(run)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=600), st.text(max_size=300).map(encode), st.text("%&\\=u{}x0-9aAfF\n\"'+;,: ").map(encode)
    )
)
def test_nothing_raises_and_spans_stay_inside(data: bytes) -> None:
    for view in views(ENGINE, data):
        for start in range(0, len(view.data), 7):
            first, last = view.origin(start, min(start + 5, len(view.data)))
            assert 0 <= first <= last <= len(data)


# --------------------------------------------------------------------------------------- what is spotted is enough

CORPUS = ROOT.parent / "shared" / "corpora" / "detection" / "obfuscated.jsonl"


def told(using: Engine, data: bytes) -> None:
    """See that nothing is missed by undoing only what was spotted."""
    plain = using.find(data)
    everything = find(using, data, plain, all_views(using, data))
    if everything:
        assert not hides_nothing(using, data)
    assert {span.rule.id for span in everything} == {span.rule.id for span in find(using, data, plain)}


parts = st.one_of(
    st.sampled_from([*HIDDEN.values(), KEY, KEY[:8], KEY[8:], "\n", '", "', '"}, {"b": "', "\\", "%", " ", "= ", "A1"]),
    st.text(max_size=20),
    st.text("%&\\=u{}x0-9aAfF\n\"'+;,: -", max_size=30),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(parts, max_size=6).map("".join))
def test_undoing_what_was_spotted_misses_nothing(text: str) -> None:
    told(ENGINE, encode(text))


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_every_disguise_is_spotted(hidden: str) -> None:
    told(ENGINE, encode(f"Use {hidden} now"))
    assert not hides_nothing(ENGINE, encode(f"Use {hidden} now"))


@pytest.mark.skipif(not CORPUS.is_file(), reason="the corpora are not part of the repository")
def test_undoing_what_was_spotted_misses_nothing_in_the_corpus() -> None:
    shipped = load_packs(shipped_packs(), engine_cache=DiskCache(), detectors=False)
    for line in CORPUS.read_text("utf-8").splitlines()[::7]:
        told(shipped, encode(json.loads(line)["text"]))


# ------------------------------------------------------------------------------------------------- what it costs

HOSTILE = {
    "percent": "%41", "entities": "&#65;", "backslashes": "\\\\n", "quotes": '"+"', "lines": "a1\nb2\n",
    "base64": "QUJD",
    "spaced": "a ", "dashes": "-----BEGIN ", "zero width": "a\u200b", "nested": "%25", "tokens": "aB3xY9kL2mN4 ",
    "escaped u": "\\u0041", "escaped percent": "%2541", "encoded words": "aGVsbG8gd29ybGQh ", "numbers": "123 456 789 ",
    "halves": "A1\n", "mails": "a1@b.co\n", "look-alikes": "АВ ", "full width": "ａｂ ", "no-break": "1\u00a02",
    "literals": '"A1","B2",', "fields": '"a":"A1","b":"B2"},{',
    "codes": "65, ", "equals": "=41=\n", "overrides": "\u202eab", "braces": '"}, {"a": "',
    "values": f"{KEY[::-1]} {KEY} ",
}  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_work_grows_with_the_text(unit: str) -> None:
    def cost(size: int) -> float:
        data = encode(unit * (size // len(encode(unit))))
        best = []
        for _ in range(3):
            start = time.process_time()
            find(ENGINE, data, ENGINE.find(data))
            best.append(time.process_time() - start)
        return min(best)

    cost(5_000)
    assert cost(200_000) < 3 * 4 * max(cost(50_000), 0.001)


def test_what_was_compressed_takes_no_more_room_than_a_text_may_have() -> None:
    bombs = [base64.b64encode(zlib.compress(f"word{each} and so on ".encode() * 3000)).decode() for each in range(600)]
    data = encode(f"{HIDDEN['base64']} {' '.join(bombs)}")
    bound = MAX_GROWTH * len(data) + MIN_BYTES
    hides_nothing(ENGINE, data)
    tracemalloc.start()
    made = views(ENGINE, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(view.data) for view in made) <= bound
    assert peak < 4 * bound  # 600 times 48 KB would be 27 times as much
    assert any(KEY.encode() in view.data for view in made)


def test_every_value_of_the_shared_rules_is_found_encoded() -> None:
    for value in (KEY, MAIL, CARD):
        text = base64.b64encode(f"say {value} now".encode()).decode()
        assert find_hidden(engine(), text)


BOMB = (KEY.encode() + b" a" * 10_000_000, b" a" * 10_000_000 + KEY.encode())


def test_what_is_compressed_is_unpacked_within_bounds() -> None:
    early, late = (base64.b64encode(gzip.compress(text)).decode() for text in (BOMB[0], BOMB[1]))
    assert find_hidden(ENGINE, early)
    assert find_hidden(ENGINE, late) == ()


def test_a_long_encoded_text_is_decoded_whole() -> None:
    assert find_hidden(ENGINE, base64.b64encode(b"a b c " * 40_000 + KEY.encode() + b" d").decode())


def test_other_disguises_do_not_use_up_the_bounds() -> None:
    """The first reading of every step is made, whatever else is in the text."""
    noise = "\n".join(hidden for hidden in CLEAN.values()) + "".join(
        f"%{at % 90 + 33:x} &#{at % 90 + 33}; " for at in range(9000)
    )
    for hidden in HIDDEN.values():
        assert not hides_nothing(ENGINE, encode(f"{noise} {hidden} {noise}"))


def test_many_findings_take_no_longer_each() -> None:
    def cost(times: int) -> float:
        text = (base64.b64encode(KEY.encode()).decode() + " " + KEY + " ") * times
        best = []
        for _ in range(2):
            start = time.process_time()
            find_text(ENGINE, text)
            best.append(time.process_time() - start)
        return min(best)

    cost(50)
    assert cost(2_000) < 3 * 4 * cost(500)


ADDRESSES = build(
    parse_pack(
        "pack: t\nclass: pii\nversion: 1\ndescription: a\nrules:\n"
        "  - {id: mail, description: a, severity: medium, pattern: '\\b[a-z.]{1,20}@[a-z]{1,20}\\.com\\b',"
        " match: [a@b.com, c@d.com], pass: [a, b], references: ['https://example.com/']}\n",
        "t.yaml",
    )[0],
    None,
)


@pytest.mark.parametrize("joint", ['" + "', '", "', "\n"])
def test_an_address_that_was_split_behind_its_at_sign_is_found(joint: str) -> None:
    text = f'write to "jane.doe@{joint}example.com" now'
    found = find_hidden(ADDRESSES, text)
    assert [text[span.start : span.end] for span in found] == ["jane.doe@", "example.com"]
