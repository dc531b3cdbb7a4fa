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
from collections import Counter
from collections.abc import Callable
from functools import partial

from stdnum import luhn

from tidegate.inspection import urls
from tidegate.inspection.identifiers import IDENTIFIERS, is_number

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
_REFERENCE = re.compile(
    rb"[$%#@]\{|\$[A-Za-z_(]|\{\{|\{[A-Za-z_]|%[A-Za-z_]{2,64}%|<[A-Za-z]|(?:os\.|process\.|env\.|ENV\[)"
)
# How addresses, paths and templates begin: not what a person or a generator makes up as a password.
_NOT_TYPED = (b"/", b"./", b"http", b"arn:", b"$", b"{", b"(")
# A date, a version, an address or a range of numbers, whatever follows it.
_DATED = re.compile(
    rb"[12][0-9]{3}-[01][0-9]-[0-3][0-9]|[v^~=]{0,2}[0-9]{1,4}\.[0-9]{1,5}[.\-]|[0-9.:,/_-]{1,300}$|[0-9]{1,6}[a-z]{1,2}$"
)
_LETTERS = re.compile(rb"[A-Z]{0,1}[a-z]{1,64}|[A-Z]{1,64}")
_CHUNKS = re.compile(rb"[A-Za-z0-9]{1,400}")
_INNER_DIGITS = re.compile(rb"[A-Za-z][0-9]{1,9}(?=[A-Za-z])")
_VOWEL = re.compile(rb"[aeiouyAEIOUY]")
# Five consonants in a row, or hexadecimal digits alone.
_UNSPEAKABLE = re.compile(rb"[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ]{5}|^[a-fA-F]{4,64}$")
# Words beside "password" in forms, schemas and code.
FORM_WORDS = frozenset(
    b"required optional invalid incorrect mismatch missing unknown changed confirm confirmation current-password "
    b"new-password username userpass repeat forgotten expired strength strong disabled enabled visible toggle submit "
    b"credentials minlength maxlength property integer boolean keyring default undefined password1 password2 postgres "
    b"plaintext encrypted protected private".split()
)
_RUN = re.compile(rb"(.)\1{5}", re.DOTALL)


def not_placeholder(span: bytes) -> bool:
    """Reject what stands for a secret in documentation: stop words, references, runs, too few distinct characters."""
    low = span.lower()
    if low.strip(b"\"'` ") in STOP_VALUES or any(word in low for word in STOP_WORDS):
        return False
    if _REFERENCE.match(span) or _RUN.search(low):
        return False
    return len(span) < 12 or len(set(low)) >= 5


def not_stand_in(span: bytes) -> bool:
    """Reject words, templates and references that stand for a secret; accept made-up ones (``abcdefgh12345678``)."""
    low = span.lower()
    if low.strip(b"\"'` ") in STOP_VALUES or any(word in low for word in STAND_INS):
        return False
    return not _REFERENCE.match(span) and len(set(low)) >= 3


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
    letters = _LETTERS.findall(span)
    words = [part for part in letters if len(part) > 2 and _VOWEL.search(part) and not _UNSPEAKABLE.search(part)]
    total, spelt = sum(map(len, letters)), sum(map(len, words))
    digits = sum(48 <= byte <= 57 for byte in span)
    if max((len(_INNER_DIGITS.findall(part)) for part in _CHUNKS.findall(span)), default=0) > 2:
        return True
    return total > 0 and (spelt * 2 < total or digits * 4 >= len(span) or (digits > 4 and spelt * 5 < total * 4))


def is_long(span: bytes, least: int) -> bool:
    """Accept spans of at least ``least`` bytes."""
    return len(span) >= least


def has_entropy(span: bytes, bits: float) -> bool:
    """Accept spans with at least ``bits`` of Shannon entropy per byte."""
    counts = Counter(span)
    return bool(span) and -sum(n / len(span) * math.log2(n / len(span)) for n in counts.values()) >= bits


def is_mixed(span: bytes) -> bool:
    """Accept spans that hold a letter and a digit: what random tokens have and words lack."""
    return re.search(rb"[A-Za-z]", span) is not None and re.search(rb"[0-9]", span) is not None


def is_password(span: bytes) -> bool:
    """Accept what looks like a chosen secret rather than code: two kinds of characters, no name, call or path."""
    if re.fullmatch(rb"[A-Za-z_][A-Za-z_]{0,200}(?:[.:/-][A-Za-z_]{1,200}){0,20}[();]{0,3}", span):
        return False
    if re.search(rb"[A-Za-z_]\(|\)\.|->|::|==|\]\.", span) or span.startswith(_NOT_TYPED):
        return False
    if re.fullmatch(rb"[\W_]{1,200}|[0-9.,:]{1,200}", span):
        return False
    kinds = (rb"[a-z]", rb"[A-Z]", rb"[0-9]", rb"[^A-Za-z0-9]")
    return sum(re.search(kind, span) is not None for kind in kinds) >= 2


def is_jwt(span: bytes) -> bool:
    """Accept spans whose first part decodes to a JOSE header (RFC 7515): a JSON object with ``alg`` or ``enc``."""
    head = span.split(b".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and bool({"alg", "enc"} & header.keys())


def is_luhn(span: bytes) -> bool:
    """Accept digits, separators aside, with a right Luhn check digit (ISO/IEC 7812-1) and not all the same."""
    digits = _digits(span)
    return len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def is_mac(span: bytes) -> bool:
    """Accept MAC addresses that are neither zero, broadcast nor of one repeated octet."""
    digits = re.sub(rb"[:.-]", b"", span.lower())
    octets = {digits[at : at + 2] for at in range(0, len(digits), 2)}
    return len(octets) > 2 and re.fullmatch(rb"[0-9a-f]{12}", digits) is not None


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
    "jwt": is_jwt,
    "length:12": partial(is_long, least=12),
    "length:16": partial(is_long, least=16),
    "luhn": is_luhn,
    "mac": is_mac,
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
