"""Forms: what is read, what is refused because two readers could read it in two ways, and what is written anew."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import email.parser
import email.policy
import io
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.formparser import MultiPartParser

from tidegate.dialects import forms, reading
from tidegate.dialects.kinds import BodyKind, Composition, FormSpec, Lines
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.spec import Endpoint
from tidegate.model import Denial, Reason

LABEL = "multipart/form-data; boundary=b1"
SECRET = "AKIA" + "Z7QK4WJX2MVT5R3P"


def part(head: str, data: bytes = b"x") -> bytes:
    return f"--b1\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


def form(*parts: bytes, end: bytes = b"--b1--\r\n") -> bytes:
    return b"".join(parts) + end


NAMED = 'Content-Disposition: form-data; name="a"'
FILE = 'Content-Disposition: form-data; name="f"; filename="x.bin"'


def read(data: bytes, label: str = LABEL) -> tuple[forms.Part, ...]:
    found = forms.read(data, label)
    assert not isinstance(found, Denial), found.message
    return found


READ: dict[str, tuple[bytes, str, list[tuple[str, bytes, str | None, str | None]]]] = {
    "a text": (form(part(NAMED)), LABEL, [("a", b"x", None, None)]),
    "no end of line at the end": (form(part(NAMED), end=b"--b1--"), LABEL, [("a", b"x", None, None)]),
    "a quoted boundary": (form(part(NAMED)), 'multipart/form-data; boundary="b1"', [("a", b"x", None, None)]),
    "upper case and a charset": (form(part(NAMED)), "Multipart/Form-Data; charset=utf-8; Boundary=b1", [("a", b"x", None, None)]),
    "a name that is a token": (form(part("content-disposition: form-data; name=a")), LABEL, [("a", b"x", None, None)]),
    "a file": (form(part(FILE + "\r\nContent-Type: audio/wav", b"\0\r\n--b\xff")), LABEL, [("f", b"\0\r\n--b\xff", "x.bin", "audio/wav")]),
    "a file without a type": (form(part(FILE)), LABEL, [("f", b"x", "x.bin", None)]),
    "an empty file name": (form(part('Content-Disposition: form-data; name="f"; filename=""')), LABEL, [("f", b"x", "", None)]),
    "what Ruby writes": (form(part(f"{FILE}\r\nContent-Length: 1\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: binary")), LABEL, [("f", b"x", "x.bin", "a/b")]),
    "a text of a type": (form(part(NAMED + "\r\nContent-Type: text/plain; charset=UTF-8")), LABEL, [("a", b"x", None, "text/plain")]),
    "letters beyond ASCII": (form(part('Content-Disposition: form-data; name="ä"; filename="日本.txt"', "é".encode())), LABEL, [("ä", "é".encode(), "日本.txt", None)]),
    "an empty text": (form(part(NAMED, b"")), LABEL, [("a", b"", None, None)]),
    "a text with lines": (form(part(NAMED, b"1\r\n2\n--b\r\n")), LABEL, [("a", b"1\r\n2\n--b\r\n", None, None)]),
}  # fmt: skip


@pytest.mark.parametrize(("data", "label", "expected"), READ.values(), ids=READ.keys())
def test_forms_are_read(data: bytes, label: str, expected: list[tuple[str, bytes, str | None, str | None]]) -> None:
    assert [(each.name, each.data, each.filename, each.label) for each in read(data, label)] == expected


ONE = form(part(NAMED))
REFUSED: dict[str, tuple[bytes, str]] = {
    "no boundary": (ONE, "multipart/form-data"),
    "an empty boundary": (ONE, "multipart/form-data; boundary="),
    "two boundaries": (ONE, "multipart/form-data; boundary=b1; boundary=b1"),
    "a boundary in pieces": (ONE, "multipart/form-data; boundary*0=b; boundary*1=1"),
    "an encoded boundary": (ONE, "multipart/form-data; boundary*=utf-8''b1"),
    "a boundary with a space": (ONE, 'multipart/form-data; boundary="b 1"'),
    "a long boundary": (ONE.replace(b"b1", b"b" * 71), f"multipart/form-data; boundary={'b' * 71}"),
    "another parameter": (ONE, f"{LABEL}; start=x"),
    "something odd behind": (ONE, f"{LABEL} x"),
    "another multipart": (ONE, "multipart/mixed; boundary=b1"),
    "another boundary": (ONE, "multipart/form-data; boundary=b2"),
    "nothing": (b"", LABEL),
    "a preamble": (b"hello\r\n" + ONE, LABEL),
    "an empty preamble": (b"\r\n" + ONE, LABEL),
    "an epilogue": (ONE + b"hello", LABEL),
    "an epilogue that is a part": (ONE + ONE, LABEL),
    "no end": (form(part(NAMED), end=b""), LABEL),
    "no part": (b"--b1--\r\n", LABEL),
    "LF for CRLF": (ONE.replace(b"\r\n", b"\n"), LABEL),
    "space behind a boundary": (ONE.replace(b"--b1\r\n", b"--b1 \r\n"), LABEL),
    "no header": (form(b"--b1\r\n\r\nx\r\n"), LABEL),
    "no name": (form(part("Content-Disposition: form-data")), LABEL),
    "an empty name": (form(part('Content-Disposition: form-data; name=""')), LABEL),
    "two names": (form(part('Content-Disposition: form-data; name="a"; name="b"')), LABEL),
    "two names, one in capitals": (form(part('Content-Disposition: form-data; name="a"; NAME="b"')), LABEL),
    "filename*": (form(part("Content-Disposition: form-data; name=\"a\"; filename*=utf-8''x")), LABEL),
    "both file names": (form(part("Content-Disposition: form-data; name=\"a\"; filename=\"x\"; filename*=utf-8''y")), LABEL),
    "name*": (form(part("Content-Disposition: form-data; name*=utf-8''a")), LABEL),
    "an escaped quote": (form(part('Content-Disposition: form-data; name="a\\"b"')), LABEL),
    "a backslash": (form(part('Content-Disposition: form-data; name="a"; filename="c:\\\\x"')), LABEL),
    "an open quote": (form(part('Content-Disposition: form-data; name="a')), LABEL),
    "a control character": (form(part('Content-Disposition: form-data; name="a\x01"')), LABEL),
    "an attachment": (form(part('Content-Disposition: attachment; name="a"')), LABEL),
    "two dispositions": (form(part(f"{NAMED}\r\n{NAMED}")), LABEL),
    "a folded header": (form(part('Content-Disposition: form-data;\r\n name="a"')), LABEL),
    "another header": (form(part(f"{NAMED}\r\nX-Other: 1")), LABEL),
    "base64": (form(part(f"{NAMED}\r\nContent-Transfer-Encoding: base64")), LABEL),
    "quoted-printable": (form(part(f"{NAMED}\r\nContent-Transfer-Encoding: quoted-printable")), LABEL),
    "another length": (form(part(f"{FILE}\r\nContent-Length: 7")), LABEL),
    "a nested form": (form(part(f"{FILE}\r\nContent-Type: multipart/mixed; boundary=c")), LABEL),
    "a mail": (form(part(f"{FILE}\r\nContent-Type: message/rfc822")), LABEL),
    "a text in UTF-16": (form(part(f"{NAMED}\r\nContent-Type: text/plain; charset=utf-16")), LABEL),
    "a text of an odd type": (form(part(f"{NAMED}\r\nContent-Type: text/{SECRET}")), LABEL),
    "a text that is no UTF-8": (form(part(NAMED, b"\xff")), LABEL),
    "a name that is no UTF-8": (b'--b1\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b1--\r\n', LABEL),
    "many parts": (form(*(part(f'Content-Disposition: form-data; name="a{i}"') for i in range(forms.MAX_PARTS + 1))), LABEL),
    "many headers": (form(part(NAMED + "\r\nContent-Type: a/b" * 9)), LABEL),
    "a long header": (form(part(f'Content-Disposition: form-data; name="{"a" * 3000}"')), LABEL),
}  # fmt: skip


@pytest.mark.parametrize(("data", "label"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_two_readings_is_refused(data: bytes, label: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        found = forms.read(data, label)
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.BODY_MALFORMED, 400)
    assert SECRET not in found.message
    assert not caplog.records, "a parser's log may hold what was sent"


NAMES = st.text(st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters='"\\'), min_size=1, max_size=12)
BYTES = st.binary(max_size=60) | st.lists(
    st.sampled_from([b"\r\n", b"--", b"b1", b"tidegate-", b"\r\n--b1", b"x", b"\xc3\xa9", b'"']), max_size=8
).map(b"".join)
PARTS = st.lists(
    st.builds(lambda name, text: forms.Part(name, text.encode()), NAMES, st.text(st.characters(blacklist_categories=("Cs",)), max_size=30))
    | st.builds(forms.Part, NAMES, BYTES, NAMES | st.just(""), st.none() | st.sampled_from(["audio/wav", "a/b; c=d"])),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(PARTS, st.binary(max_size=20))
def test_what_is_written_is_read_again_by_us_and_by_others(parts: list[forms.Part], seed: bytes) -> None:
    data, label = forms.write(parts, seed)
    assert read(data, label) == tuple(parts)
    assert forms.write(parts, seed) == (data, label), "the same each time"
    mark = forms.boundary(label)
    assert mark is not None
    assert not any(mark in each.data for each in parts)
    other = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        f"content-type: {label}\r\n\r\n".encode() + data
    )
    payloads = [each.get_payload(decode=True) for each in other.iter_parts()]  # type: ignore[attr-defined]
    assert len(payloads) == len(parts)
    fields, files = MultiPartParser(stream_factory=lambda *_, **__: io.BytesIO()).parse(
        io.BytesIO(data), mark, len(data)
    )
    assert sorted(fields.items(multi=True)) == sorted((each.name, each.text) for each in parts if each.filename is None)
    theirs = sorted((name, each.filename or "", each.read()) for name, each in files.items(multi=True))
    assert theirs == sorted((each.name, each.filename, each.data) for each in parts if each.filename is not None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"--b1", b"\r\n", b"--", b"\n", NAMED.encode(), b"\r\n\r\n", b"x", b" ", b"\r", FILE.encode()]
        ),
        max_size=14,
    ).map(b"".join)
)
def test_whatever_is_read_at_all_is_what_a_second_reader_reads(data: bytes) -> None:
    """What is written anew says the same as what was read, whatever the client's own bytes were."""
    found = forms.read(data, LABEL)
    if not isinstance(found, Denial):
        assert read(*forms.write(found, data)) == found


@pytest.mark.parametrize("bad", ['a"b', "a\\b", "a\r\nb", "a\x7fb"])
def test_a_name_that_cannot_be_written_is_not(bad: str) -> None:
    for each in (forms.Part(bad, b""), forms.Part("a", b"", bad), forms.Part("a", b"", "f", bad)):
        if "label" in repr(each) or each.label != bad or "\r" in bad or "\x7f" in bad:
            with pytest.raises(ValueError, match="a name with"):
                forms.write([each], b"")


def test_a_boundary_that_occurs_is_not_taken() -> None:
    _, label = forms.write([forms.Part("a", b"")], b"seed")
    mark = forms.boundary(label)
    assert mark is not None
    other, again = forms.write([forms.Part("a", mark)], b"seed")
    assert forms.boundary(again) != mark
    assert read(other, again)[0].data == mark


# ── as one value ─────────────────────────────────────────────────────────────────────────────────────────────────────


def endpoint(*kinds: BodyKind, form: FormSpec | None = None) -> Endpoint:
    text = "dialect: a\nversion: 1\nerror: {body: {}, event: {}, types: {other: x}}\nendpoints: {a: {methods: [POST], paths: [/a]}}"
    found, _ = parse_dialect(text, "a")
    assert found is not None
    from dataclasses import replace

    return replace(found.endpoints["a"], made_of=Composition(kinds, form or FormSpec()))


def body(data: bytes, label: str, at: Endpoint) -> reading.Body:
    found = reading.read(at, data, label)
    assert not isinstance(found, Denial), found.message
    return found


SEVERAL = FormSpec(frozenset({"many"}), (Lines("f", {"purpose": ("batch",)}),))


def named(name: str, data: bytes = b"x", more: str = "") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"{more}', data)


def test_a_form_is_an_object_of_its_fields() -> None:
    data = form(
        named("a"),
        named("b[]"),
        named("many", b"1"),
        named("f", b"\0", '; filename="x"'),
        named("b[]", b"y"),
        named("many", b"2"),
    )
    found = body(data, LABEL, endpoint(BodyKind.FORM, form=SEVERAL))
    assert found.value == {"a": "x", "b[]": ["x", "y"], "many": ["1", "2"], "f": {"filename": "x"}}
    assert found.files == ((("f",), b"\0"),)
    written = reading.write(found, found.value)
    assert not isinstance(written, Denial)
    assert written[1] is not None
    assert [(each.name, each.data) for each in read(written[0], written[1])] == [
        ("a", b"x"), ("b[]", b"x"), ("b[]", b"y"), ("many", b"1"), ("many", b"2"), ("f", b"\0"),
    ]  # fmt: skip


def test_a_field_twice_is_refused_unless_it_repeats() -> None:
    found = reading.read(endpoint(BodyKind.FORM), form(named("a"), named("a")), LABEL)
    assert isinstance(found, Denial)
    assert found.message == "The request body is malformed: it has a field twice."


LIKE_TWO = {
    "with and without brackets": form(named("a"), named("a[]")),
    "lines that are no file": form(named("purpose", b"batch"), named("f")),
    "a field that tells, as a file": form(
        named("purpose", b"batch", '; filename="x"'), named("f", b"{}", '; filename="x"')
    ),
}


@pytest.mark.parametrize("data", LIKE_TWO.values(), ids=LIKE_TWO.keys())
def test_what_others_may_read_as_another_field_is_refused(data: bytes) -> None:
    found = reading.read(endpoint(BodyKind.FORM, form=SEVERAL), data, LABEL)
    assert isinstance(found, Denial)
    assert found.reason is Reason.BODY_MALFORMED


def test_lines_are_lines_where_the_fields_beside_say_so() -> None:
    at = endpoint(BodyKind.FORM, form=SEVERAL)
    lines = named("f", b'{"a": 1}\n\n{"b": 2}\n', '; filename="x"')
    assert body(form(named("purpose", b"batch"), lines), LABEL, at).value["f"] == {
        "filename": "x",
        "lines": [{"a": 1}, {"b": 2}],
    }
    assert body(form(lines, named("purpose", b"batch")), LABEL, at).value["f"] == {
        "filename": "x",
        "lines": [{"a": 1}, {"b": 2}],
    }
    assert "lines" in body(form(named("purpose", b" Batch\n"), lines), LABEL, at).value["f"]  # type: ignore[operator]
    assert body(form(named("purpose", b"other"), lines), LABEL, at).value["f"] == {"filename": "x"}


def test_a_value_that_is_no_form_any_more_is_not_written() -> None:
    found = body(form(named("a"), named("f", b"", '; filename="x"')), LABEL, endpoint(BodyKind.FORM))
    for broken in (
        [],
        {},
        {"a": 1, "f": {"filename": "x"}},
        {"a": "x", "f": "x"},
        {"a": "x", "f": {}},
        {"a": "x", "f": {"filename": 'a"'}},
    ):
        assert isinstance(reading.write(found, broken), Denial)


JSON, TEXT, DATA, FORM = BodyKind.JSON, BodyKind.TEXT, BodyKind.DATA, BodyKind.FORM
KINDS: dict[str, tuple[tuple[BodyKind, ...], bytes, BodyKind | None]] = {
    "JSON": ((JSON, FORM), b'{"a": 1}', JSON),
    "a text": ((JSON, TEXT), b"v=0\r\n", TEXT),
    "JSON that is broken is no text": ((JSON, TEXT, DATA), b'{"a": ', None),
    "a list is no object": ((JSON, TEXT), b"[1]", None),
    "data": ((JSON, TEXT, DATA), b"\x89PNG\0", DATA),
    "data where only a text may be": ((JSON, TEXT), b"\x89PNG\0", None),
    "a NUL is no text": ((TEXT, DATA), b"a\0", DATA),
    "no form without its label": ((FORM,), ONE, None),
}


@pytest.mark.parametrize(("kinds", "data", "expected"), KINDS.values(), ids=KINDS.keys())
def test_what_a_body_is_its_bytes_tell(kinds: tuple[BodyKind, ...], data: bytes, expected: BodyKind | None) -> None:
    found = reading.read(endpoint(*kinds), data, "application/x-unknown")
    assert (None if isinstance(found, Denial) else found.kind) == expected
    if not isinstance(found, Denial) and found.kind is not JSON:
        assert reading.write(found, found.value) == (data, None)


@pytest.mark.parametrize("label", ["multipart/form-data; boundary=b1", "Multipart/Mixed; boundary=b1", "multipart/x"])
@pytest.mark.parametrize("data", [b'{"a": 1}', b"hello", b"\0"])
def test_no_other_body_is_called_a_form(data: bytes, label: str) -> None:
    assert isinstance(reading.read(endpoint(JSON, TEXT, DATA), data, label), Denial)
