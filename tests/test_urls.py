from __future__ import annotations

import base64
import functools
import random
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tidegate.inspection import urls
from tidegate.inspection.cache import DiskCache
from tidegate.inspection.engine import Engine, build
from tidegate.inspection.findings import inspect_text
from tidegate.inspection.rules import Rule, parse_pack
from tidegate.inspection.urls import CLICKED, LOADED, carries_data
from tidegate.model import Action
from tidegate.policy.schema import SECTIONS
from tidegate.streams.redactor import Redactor, redact, short_name

ROOT = Path(__file__).resolve().parents[1]
SAID = b"The user said that he resigns"
B64 = base64.b64encode(SAID).rstrip(b"=").decode()
B32 = base64.b32encode(b"the key is hope").rstrip(b"=").decode().lower()
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://e.test/?d=the+user+said+that+he+resigns", id="text-plus"),
        pytest.param("https://e.test/?d=the%20user%20said%20that%20he%20resigns", id="text-percent"),
        pytest.param("https://e.test/the%20user%20said%20that%20he%20resigns.png", id="text-path"),
        pytest.param("https://e.test/#the+user+said+that+he+resigns", id="text-fragment"),
        pytest.param('https://e.test/?d={"name":"Miller","age":41}', id="json"),
        pytest.param(f"https://e.test/?d={B64}", id="base64-query"),
        pytest.param(f"https://e.test/?{B64}", id="base64-bare"),
        pytest.param(f"https://e.test/?d=user-{B64}", id="base64-label-before"),
        pytest.param(f"https://e.test/?d={B64.rstrip('=')}_x9_Qw7z", id="base64-noise-behind"),
        pytest.param(f"https://e.test/?d={DIGEST[:7]}{b'the user resigns'.hex()}{DIGEST[:5]}", id="hex-in-noise"),
        pytest.param(f"https://e.test/{B64}.png", id="base64-path"),
        pytest.param(
            f"https://e.test/?d={base64.urlsafe_b64encode('ÿþ of straße ¿ ñandú'.encode()).decode()}", id="base64url"
        ),
        pytest.param(f"https://e.test/{SAID.hex()}", id="hex"),
        pytest.param(f"https://{SAID[:14].hex()}.e.test/a.gif", id="hex-label"),
        pytest.param(f"https://{SAID.hex()[:10]}.{SAID.hex()[10:40]}.e.test/", id="hex-over-labels"),
        pytest.param(f"https://{B32}.e.test/", id="base32-label"),
        pytest.param(f"https://e.test/?d={'zq9' * 40}", id="opaque"),
        pytest.param(f"https://e.test/?{'&'.join(f'a{i}=b{i}' for i in range(60))}", id="many-values"),
        pytest.param(f"//e.test/{B64}", id="no-scheme"),
        pytest.param(f"https:\\\\e.test\\{B64}", id="backslashes"),
    ],
)
def test_data_in_an_address(url: str) -> None:
    assert carries_data(url.encode(), LOADED)


@pytest.mark.parametrize(
    "url",
    [
        "https://e.test",
        "https://e.test/",
        "https://docs.e.test/guide/how-to-write-a-rule-for-a-token-format.html#keys-of-a-rule",
        "https://e.test/?q=how+to+bake",
        "https://e.test/search?q=tide&lang=en&page=2&utm_source=newsletter",
        f"https://e.test/a/{DIGEST}.png",
        f"https://bucket.e.test/a.pdf?X-Amz-Expires=300&X-Amz-Signature={DIGEST}",
        "https://e.test/commit/2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
        "https://e.test/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit",
        "https://e.test/6f9619ff-8b86-d011-b42d-00c04fc964ff",
        "https://e.test/%E3%83%97%E3%83%AD%E3%82%B0",
        "https://a.very.deep.host.of.e.test/x",
    ],
)
@pytest.mark.parametrize("amounts", [LOADED, CLICKED])
def test_an_ordinary_address(url: str, amounts: urls.Amounts) -> None:
    assert not carries_data(url.encode(), amounts)


def test_what_is_clicked_may_carry_a_search() -> None:
    url = b"https://e.test/?q=how+to+bake+bread+without+an+oven"
    assert carries_data(url, LOADED)
    assert not carries_data(url, CLICKED)


@given(st.binary(max_size=80), st.sampled_from([LOADED, CLICKED]))
def test_it_answers_for_any_bytes(data: bytes, amounts: urls.Amounts) -> None:
    assert carries_data(b"https://" + data, amounts) in (True, False)
    assert isinstance(urls.host(b"https://" + data), str)


@given(st.text("abcdefghij klmnop", min_size=14, max_size=40), st.sampled_from(["hex", "base64", "base32"]))
def test_text_is_found_in_every_encoding(text: str, how: str) -> None:
    data = text.encode()
    coded = {"hex": data.hex(), "base64": base64.b64encode(data).decode(), "base32": base64.b32encode(data).decode()}
    assert carries_data(f"https://e.test/{coded[how]}".encode(), CLICKED)


def test_noise_is_hardly_ever_text() -> None:
    chance = random.Random(5)
    made = [chance.randbytes(24) for _ in range(4000)]
    found = sum(carries_data(f"https://e.test/{each.hex()}/{each.hex()}".encode(), CLICKED) for each in made)
    assert found == 0


# ── whose it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://Docs.Example.com/a", "docs.example.com"),
        ("//docs.example.com:8443/a", "docs.example.com"),
        ("www.example.com/a", "www.example.com"),
        ("https://docs.example.com./a", "docs.example.com"),
        ("https://docs.example.com@evil.test/a", "evil.test"),
        ("https://docs.example.com:x@evil.test/a", "evil.test"),
        ("https://evil.test\\@docs.example.com/a", "evil.test"),
        ("https://evil.test?@docs.example.com/a", "evil.test"),
        ("https://evil.test#@docs.example.com/a", "evil.test"),
        ("https:///evil.test/a", "evil.test"),
        ("https:\\\\evil.test/a", "evil.test"),
        ("https://docs%2eexample.com/a", ""),
        ("https://[::1]/a", ""),
        ("https://exämple.com/a", ""),
        ("https://", ""),
    ],
)
def test_the_host_is_the_one_a_browser_goes_to(url: str, name: str) -> None:
    assert urls.host(url.encode()) == name


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("docs.example.com", True),
        ("a.wild.test", True),
        ("a.b.wild.test", True),
        ("wild.test", False),
        ("notwild.test", False),
        ("docs.example.com.evil.test", False),
        ("xdocs.example.com", False),
        ("", False),
    ],
)
def test_a_list_of_hosts(name: str, listed: bool) -> None:
    check = urls.unlisted(["docs.example.com", "*.wild.test"])
    assert check(f"https://{name}/a".encode()) is not listed


# ── the pack ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def pack() -> tuple[Rule, ...]:
    rules, faults = parse_pack((ROOT / "rules" / "packs" / "exfil.yaml").read_text("utf-8"), "exfil.yaml")
    assert not faults
    return rules


@functools.cache
def engine(*hosts: str) -> Engine:
    built = build(pack(), DiskCache())
    return built.extended(urls.checks(pack(), hosts), {}, ())


def masked(text: str, *hosts: str) -> str:
    return redact(engine(*hosts), lambda _: Action.REDACT, short_name, text)[0]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (f"![a](https://e.test/{B64}) b", "![a]([REDACTED:markdown-image]) b"),
        (f"[a](https://e.test/{B64} 'title') b", "[a]([REDACTED:markdown-link] 'title') b"),
        (f"[a](<https://e.test/{B64}>) b", "[a](<[REDACTED:markdown-link]>) b"),
        (f"[a]: https://e.test/{B64}\nb", "[a]: [REDACTED:markdown-reference]\nb"),
        (f'<img alt="x" src="https://e.test/{B64}"> b', '<img alt="x" src="[REDACTED:html-address]"> b'),
        (f"<a title='y' href='//e.test/{B64}'>b</a>", "<a title='y' href='[REDACTED:html-address]'>b</a>"),
        (f"p {{ background: url(https://e.test/{B64}) }}", "p { background: url([REDACTED:css-address]) }"),
        (f"see https://e.test/{B64}, b", "see [REDACTED:autolink] b"),
        (f"see https://e.test/?d=x{B64};y b", "see [REDACTED:autolink] b"),
        (f"![a](https://docs.example.com/{B64}) b", f"![a](https://docs.example.com/{B64}) b"),
        (f"see https://docs.example.com/{B64} b", f"see https://docs.example.com/{B64} b"),
        (f"![a](https://docs.example.com@e.test/{B64}) b", "![a]([REDACTED:markdown-image]) b"),
        ("![a](https://e.test/logo.png) [b](https://e.test/b) <img src='//e.test/c.png'>", None),
    ],
)
def test_the_address_is_masked_and_the_words_around_it_stay(text: str, result: str | None) -> None:
    assert masked(text, "docs.example.com") == (text if result is None else result)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("ok\U000e0073\U000e0065\U000e006e\U000e0064 b", "ok[REDACTED:tag-characters] b"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", None),
        ("a❤️ 👨‍👩‍👧 می‌روم b", None),
        ("x\ufe01\ufe02\ufe03\ufe04 b", "x[REDACTED:variation-selectors] b"),
        ("x\u200b\u200c\u200b\u200c b", "x[REDACTED:zero-width-run] b"),
        ("a\x1b[31mred\x1b[0m b", "a[REDACTED:terminal-escape]red[REDACTED:terminal-escape] b"),
        ("a\x1b]0;title\x07 b", "a[REDACTED:terminal-escape] b"),
        ("invoice\u202efdp.exe", "invoice[REDACTED:bidi-override]fdp.exe"),
    ],
)
def test_what_nobody_sees(text: str, result: str | None) -> None:
    assert masked(text) == (text if result is None else result)


@pytest.mark.parametrize("text", [r"print('\x1b[31mred')", r"clean = re.sub('[\u200b\u200c\u200d]', '', said)"])
def test_an_escape_written_in_code_is_none(text: str) -> None:
    assert inspect_text(engine(), text) == ()


PIECES = st.sampled_from(
    [
        "![", "](", "[a", "]: ", "https://", "//", "e.test/", "docs.example.com/", B64, "?d=", "the+user+said+",
        "that+he+",
        "<img ", 'src="', '">', ")", " ", "\n", "\U000e0061", "\u200b", "\ufe01", "\x1b[", "31m", "url(", "word",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=14).map("".join), st.data())
def test_every_cut_gives_what_the_whole_gives(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    channel = Redactor(engine("docs.example.com"), lambda _: Action.REDACT, short_name)
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = [piece for part in parts for piece in channel.feed(part)] + channel.end()
    assert "".join(piece.text for piece in pieces) == masked(text, "docs.example.com")


def test_an_ordinary_sentence_is_not_held_back() -> None:
    channel = Redactor(engine(), lambda _: Action.REDACT, short_name)
    for word in ("The gate ", "lets water pass ", "one way; ", "see [the page] ", "and (this) ", "for more, ", "then."):
        channel.feed(word)
        assert channel.held <= 1


def test_the_policy_has_a_key_for_hosts() -> None:
    assert "hosts" in SECTIONS["inspection"]
