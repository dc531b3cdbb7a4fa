"""Addresses that carry data away: what stands in a URL, and whose it is. Pure functions of the URL alone.

A model that is told to leak something writes it into an address that a page loads or a person clicks: as text, or in
hexadecimal, base64 or base32, since a model cannot encrypt. So a run that decodes to text is data, and a digest, a
signature or an id, which decodes to noise, is none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from tidegate.inspection.rules import Rule

HOST = re.compile(r"(?:\*\.)?[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,15}")
"""What a list of hosts may hold: a name, or ``*.`` and a name for every host below it."""

ENCODED = 16
"""Characters of an encoded run that are worth decoding: 8 bytes of hexadecimal, 12 of base64."""
_READABLE = 8
_MOST = 2048  # a URL that a rule matches is shorter
_HEX = re.compile(rb"[0-9a-fA-F]{16,2048}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,2048}")
_BASE32 = re.compile(rb"[A-Za-z2-7]{16,2048}")
_WRITTEN = re.compile(rb"[\x20-\x7e]{16}")
"""What noise never decodes to by chance: 16 printable characters in a row come once in ten million bytes."""
_SPACES = re.compile(rb"[ \t\r\n]")


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is data: characters of ``text`` (four words, or an object of JSON), of anything, of a whole query."""

    text: int
    opaque: int
    query: int


LOADED = Amounts(text=24, opaque=120, query=300)
"""For an address that is loaded without anyone's doing, as an image is: more than a caption or a size."""
CLICKED = Amounts(text=64, opaque=200, query=500)
"""For an address that someone must click: people share searches and signed links of this length every day."""


def carries_data(url: bytes, amounts: Amounts) -> bool:
    """Say whether a URL holds data: in the labels of its host, a part of its path, its query or its fragment."""
    authority, rest = _split(url[:_MOST])
    labels = authority.rpartition(b"@")[2].partition(b":")[0].split(b".")[:-2]
    if any(_hides(each) for each in (*labels, b"".join(labels))):
        return True
    path, mark, query = rest.partition(b"?")
    if not mark:
        path, _, query = rest.partition(b"#")
    values = [value for pair in re.split(rb"[&#;?]", query) for value in pair.split(b"=", 1)]
    if len(query) >= amounts.query:
        return True
    return any(_is_data(each, amounts, plus=False) for each in re.split(rb"[/\\]", path)) or any(
        _is_data(each, amounts, plus=True) for each in values
    )


def host(url: bytes) -> str:
    """Return the host of a URL as a browser reads it, in lower case; empty where it is not a plain name.

    What stands before an ``@`` is no host, and a backslash is a slash (WHATWG URL, special schemes).
    """
    authority, _ = _split(url)
    name = authority.rpartition(b"@")[2].partition(b":")[0].lower().rstrip(b".")
    return name.decode("ascii") if re.fullmatch(rb"[a-z0-9.-]{1,253}", name) else ""


def unlisted(hosts: Iterable[str]) -> Callable[[bytes], bool]:
    """Return a check that accepts a URL to any host but those of a list."""
    listed = tuple(hosts)

    def check(url: bytes) -> bool:
        name = host(url)
        return not any(name == each or (each[0] == "*" and name.endswith(each[1:])) for each in listed)

    return check


def checks(rules: Iterable[Rule], hosts: Iterable[str]) -> Mapping[str, Callable[[bytes], bool]]:
    """Return the check for each rule, by id, that has one of ``VALIDATORS``; none where no hosts are listed."""
    listed = tuple(hosts)
    check = unlisted(listed)
    return {rule.id: check for rule in rules if listed and VALIDATORS.keys() & set(rule.validators)}


def _split(url: bytes) -> tuple[bytes, bytes]:
    """Return what stands between the slashes of a URL, and the rest."""
    after = re.split(rb"[/\\]{2}", url, maxsplit=1)[-1].lstrip(b"/\\")
    found = re.search(rb"[/\\?#]", after)
    at = found.start() if found is not None else len(after)
    return after[:at], after[at:]


def _is_data(part: bytes, amounts: Amounts, *, plus: bool) -> bool:
    plain = unquote_to_bytes(part.replace(b"+", b" ") if plus else part)
    if len(plain) >= amounts.opaque:
        return True
    if len(plain) >= amounts.text and (len(_SPACES.findall(plain)) >= 3 or (b"{" in plain and b'"' in plain)):
        return True
    return _hides(unquote_to_bytes(part))


def _hides(part: bytes) -> bool:
    """Say whether a run in a part is text in hexadecimal, base64 or base32 of either alphabet, wherever it begins."""
    if len(part) < ENCODED:
        return False
    for run in _HEX.findall(part):
        if any(_reads(binascii.unhexlify(each[: len(each) // 2 * 2])) for each in (run, run[1:])):
            return True
    for run in _BASE64.findall(part):
        plain = run.translate(_URL_SAFE)
        if any(_reads(_from_base64(plain[at:])) for at in range(4)):
            return True
    return any(_reads(base64.b32decode(run[: len(run) // 8 * 8].upper())) for run in _BASE32.findall(part))


def _from_base64(run: bytes) -> bytes:
    return binascii.a2b_base64(run[: len(run) - (len(run) % 4 == 1)] + b"==")


_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def _reads(data: bytes) -> bool:
    """Say whether bytes are text: UTF-8 without control characters, cut at most in its last character.

    Or have a piece of text in them: a label before the run (``id-``) or a few letters behind it decode to noise.
    """
    if _WRITTEN.search(data):
        return True
    for cut in (0, 1, 2, 3):
        try:
            text = data[: len(data) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return len(text) >= _READABLE and all(each.isprintable() or each in "\t\r\n" for each in text)
    return False


VALIDATORS: Mapping[str, Callable[[bytes], bool]] = {
    "url-data": lambda span: carries_data(span, LOADED),
    "url-data-long": lambda span: carries_data(span, CLICKED),
}
