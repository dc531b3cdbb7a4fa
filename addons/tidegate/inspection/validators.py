"""Second looks at a matched span: pure functions of the matched bytes alone, named in a rule's ``validators``.

A span is what the rule would redact: the group ``value`` where the pattern has one, else the whole match. A validator
sees nothing around it, so that a stream and a whole text agree (docs/rules.md lists them all). Every one answers
``False`` instead of raising, whatever the bytes are.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from tidegate.inspection import urls
from tidegate.inspection.identifiers import IDENTIFIERS, is_number
from tidegate.inspection.patterns import compile_re2

Validator = Callable[[bytes], bool]

# Words that people write where a secret would stand. Each is rare enough in random text: four letters of a base-36
# alphabet meet by chance once in 1.7 million places.
STAND_INS = (
    b"example", b"placeholder", b"changeme", b"change_me", b"change-me", b"change_this", b"change-this", b"your",
    b"dummy", b"redacted", b"replace", b"insert", b"notreal", b"not-real", b"not_real", b"foobar",
    b"mysecret", b"my-secret", b"my_secret", b"secret_key", b"secret-key", b"api_key", b"api-key", b"apikey",
    b"my_token", b"mytoken", b"xxxx", b"****", b"....", b"____", b"----", b"####", b"${", b"{{", b"%(", b"<", b"$(",
    b"lorem", b"todo", b"secretsmanager", b"vault.azure.net",
)  # fmt: skip
# What people type when they make a token up: the keyboard, the alphabet, the digits in their order.
SEQUENCES = (
    b"0123456789", b"12345678", b"87654321", b"abcdefgh", b"qwerty", b"deadbeef", b"fake", b"sample",
)  # fmt: skip
STOP_WORDS = STAND_INS + SEQUENCES
# Whole values that are never the secret itself.
STOP_VALUES = frozenset(
    b"password passwd pass pwd passphrase token key none null nil true false undefined string text value user "
    b"username test testing default required optional empty hidden masked prompt admin root guest env config".split()
)
# Shell, template and interpolation openings: the secret is elsewhere.
_REFERENCE = r"[$%#@]\{|\$[A-Za-z_(]|\{\{|\{[A-Za-z_]|%[A-Za-z_]{2,64}%|<[A-Za-z]|(?:os\.|process\.|env\.|ENV\[)"


def _standing_for(words: tuple[bytes, ...]) -> Any:
    """Compile one search for the words, the whole values, references, and dots in place of the rest."""
    inside = "|".join(re.escape(word.decode()) for word in words)
    whole = "|".join(sorted(word.decode() for word in STOP_VALUES))
    return compile_re2(rf"(?i:{inside})|\A[\"'` ]*(?i:{whole})[\"'` ]*\z|\A(?:{_REFERENCE})|\.\.\z")


_STAND_IN = _standing_for(STAND_INS)
_STOP_WORD = _standing_for(STOP_WORDS)
# A date, a version, an address or a range of numbers, whatever follows it.
_DATED = re.compile(
    rb"[12][0-9]{3}-[01][0-9]-[0-3][0-9]|[v^~=]{0,2}[0-9]{1,4}\.[0-9]{1,5}[.\-]|[0-9.:,/_-]{1,300}$|[0-9]{1,6}[a-z]{1,2}$"
)
_LETTERS = re.compile(rb"[A-Z]{0,1}[a-z]{1,64}|[A-Z]{1,64}")
# A part that can be spoken: three letters, a vowel, no five consonants in a row, not hexadecimal digits alone.
_SPOKEN = re.compile(
    rb"(?<![A-Za-z])(?=[A-Za-z]{3})(?![a-fA-F]{4,64}(?![A-Za-z]))"
    rb"(?>(?:[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]{0,4}[aeiouyAEIOUY]){1,64}[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]{0,4})"
    rb"(?![A-Za-z])"
)
# Digits between letters three times in one word.
_INNER_DIGITS = compile_re2(r"[A-Za-z][0-9]{1,9}(?:[A-Za-z](?:[A-Za-z0-9]*[A-Za-z])?[0-9]{1,9}){2}[A-Za-z]")
_DIGITS = b"0123456789"
# Code, paths, addresses, templates, punctuation or numbers alone, and what has one kind of characters only. RE2 answers
# all of it in a microsecond, in which Python's expressions need four.
_NOT_TYPED = compile_re2(
    r"\A(?:/|\./|http|arn:|[$({])|[A-Za-z_]\(|\)\.|->|::|==|\]\.|\A(?:[#.]?[A-Za-z_]+(?:[.:/-][A-Za-z_]+)*[();]{0,3}"
    r"|[\W_]*|[0-9.,:]*|[a-z]*|[A-Z]*|[^A-Za-z0-9]*)\z"
)
_GRAFANA = re.compile(rb'\{"k":"([^"]{0,128})"')
# Words beside "password" in forms, schemas and code.
FORM_WORDS = frozenset(
    b"required optional invalid incorrect mismatch missing unknown changed confirm confirmation current-password "
    b"new-password username userpass repeat forgotten expired strength strong disabled enabled visible toggle submit "
    b"credentials minlength maxlength property integer boolean keyring default undefined password1 password2 postgres "
    b"plaintext encrypted protected private".split()
)
# For Luhn's sum, which runs over many numbers that are no cards: four times as fast as digit by digit.
_SEPARATORS = bytes(set(range(128)) - set(b"0123456789"))
_DOUBLED = bytes(
    48 + (2 * (byte - 48)) // 10 + 2 * (byte - 48) % 10 if 48 <= byte <= 57 else byte for byte in range(256)
)
_RUN = re.compile(rb"(.)\1{5}", re.DOTALL)


def not_placeholder(span: bytes) -> bool:
    """Reject what stands for a secret in documentation: stop words, references, runs, too few distinct characters."""
    low = span.lower()
    if _STOP_WORD.search(span) is not None or _RUN.search(low):
        return False
    return len(span) < 12 or len(set(low)) >= 5


def not_stand_in(span: bytes) -> bool:
    """Reject words, templates and references that stand for a secret; accept made-up ones (``abcdefgh12345678``)."""
    return _STAND_IN.search(span) is None and len(set(span.lower())) >= 3


def is_password_word(span: bytes) -> bool:
    """Accept a word that may be a password: no stand-in, and no word of a form, a schema or a programming language."""
    low = span.lower().strip(b"\"'` ")
    return low not in FORM_WORDS and b"password" not in low.removesuffix(b"password") and not_stand_in(low)


def is_random(span: bytes) -> bool:
    """Reject what reads as names, versions, dates, addresses or paths: most of its letters belong to words.

    Letters are split where case, digits and punctuation change; a word has three letters or more, a vowel, and no five
    consonants in a row. Random text of the same length rarely has half of its letters in such words. Many digits among
    few letters, and digits between letters three times over, are random too, dates and versions aside.
    """
    if _DATED.match(span):
        return False
    if _INNER_DIGITS.search(span) is not None:
        return True
    letters = _LETTERS.findall(span)
    total = sum(map(len, letters))
    spelt = sum(map(len, _SPOKEN.findall(b" ".join(letters))))
    digits = len(span) - len(span.translate(None, _DIGITS))
    return total > 0 and (spelt * 2 < total or digits * 4 >= len(span) or (digits > 4 and spelt * 5 < total * 4))


def is_long(span: bytes, least: int) -> bool:
    """Accept spans of at least ``least`` bytes."""
    return len(span) >= least


def has_entropy(span: bytes, bits: float) -> bool:
    """Accept spans with at least ``bits`` of Shannon entropy per byte."""
    length = len(span)
    if not length:
        return False
    counts = map(span.count, set(span))
    return math.log2(length) - sum(count * math.log2(count) for count in counts if count > 1) / length >= bits


def is_mixed(span: bytes) -> bool:
    """Accept spans that hold a letter and a digit: what random tokens have and words lack."""
    return re.search(rb"[A-Za-z]", span) is not None and re.search(rb"[0-9]", span) is not None


def is_password(span: bytes) -> bool:
    """Accept what looks like a chosen secret rather than code: two kinds of characters, no name, call or path."""
    return _NOT_TYPED.search(span) is None


def is_jwt(span: bytes) -> bool:
    """Accept spans whose first part decodes to a JOSE header (RFC 7515): a JSON object with ``alg`` or ``enc``."""
    head = span.split(b".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and bool({"alg", "enc"} & header.keys())


def is_grafana_key(span: bytes) -> bool:
    """Refuse what decodes to JSON like that of a Grafana key with another key inside: an identifier, or a stand-in.

    A key of the older form is the base64 text of ``{"k":"<32 letters and digits>","n":"<name>","id":<number>}``; other
    services' tokens begin the same way. What does not decode so far is left to the pattern.
    """
    body = span.rstrip(b"=")
    try:
        text = base64.b64decode(body[: len(body) // 4 * 4])
    except (binascii.Error, ValueError):
        return True
    inside = _GRAFANA.match(text)
    return inside is None or (re.fullmatch(rb"[A-Za-z0-9]{24,64}", inside[1]) is not None and not_stand_in(inside[1]))


def is_luhn(span: bytes) -> bool:
    """Accept digits, separators aside, with a right Luhn check digit (ISO/IEC 7812-1) and not all the same."""
    digits = span.translate(None, _SEPARATORS)
    if not digits.isdigit() or len(set(digits)) == 1:
        return False
    return (sum(digits[-1::-2]) + sum(digits[-2::-2].translate(_DOUBLED)) - 48 * len(digits)) % 10 == 0


def is_date(span: bytes) -> bool:
    """Accept dates, in any order of day, month and year, whose year is 1900 to 2099 or has two digits."""
    parts = [int(part) for part in re.findall(rb"[0-9]{1,4}", span)]
    if re.search(rb"[A-Za-z]{3}", span):
        return len(parts) == 2 and 1 <= parts[0] <= 31 and 1900 <= parts[1] <= 2099
    years = [part for part in parts if part > 31]
    rest = sorted(part for part in parts if part <= 31)
    if len(parts) != 3 or len(years) > 1 or (years and not (1900 <= years[0] <= 2099 or years[0] < 100)):
        return False
    return rest[0] >= 1 and any(1 <= part <= 12 for part in rest)


def is_ssn(span: bytes) -> bool:
    """Accept US Social Security numbers however they are separated, without the areas and numbers never assigned."""
    digits = _digits(span)
    return len(digits) == 9 and is_number(f"{digits[:3]}-{digits[3:5]}-{digits[5:]}".encode(), "us.ssn")


def is_nino(span: bytes) -> bool:
    """Accept UK National Insurance numbers whose prefix is in use (HMRC manual NIM39110)."""
    return span[:2].upper() not in {b"BG", b"GB", b"KN", b"NK", b"NT", b"TN", b"ZZ", b"QQ"}


def _digits(span: bytes) -> str:
    return re.sub(rb"[^0-9]", b"", span).decode("ascii")


VALIDATORS: dict[str, Validator] = {
    "date": is_date,
    "entropy:2.5": partial(has_entropy, bits=2.5),
    "entropy:3": partial(has_entropy, bits=3.0),
    "entropy:3.5": partial(has_entropy, bits=3.5),
    "entropy:4": partial(has_entropy, bits=4.0),
    "grafana-key": is_grafana_key,
    "jwt": is_jwt,
    "length:12": partial(is_long, least=12),
    "length:16": partial(is_long, least=16),
    "luhn": is_luhn,
    "mixed": is_mixed,
    "password": is_password,
    "password-word": is_password_word,
    "placeholder": not_placeholder,
    "random": is_random,
    "stand-in": not_stand_in,
    "uk-nino": is_nino,
    "us-ssn-digits": is_ssn,
    **IDENTIFIERS,
    **urls.VALIDATORS,
}
